/* Learning rotations with a host's allocator that refuses: each failing point gives DQ_E_NOMEM, leaks nothing, and leaves no
 * unfinished file. SPDX-License-Identifier: Apache-2.0 */
#include <dirent.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>
#include <cmocka.h>

#include "dartquant.h"
#include "ok.h"
#include "refusing_heap.h"

static char dir[64];

typedef struct objects {
    dq_config *config;
    dq_context *ctx;
    dq_model *model, *fused;
    dq_dataset *words;
    dq_calibrator *job, *second;
    dq_rotation *rotation;
} objects;

static const char *in_dir(const char *name)
{
    static char path[128];
    snprintf(path, sizeof path, "%s/%s", dir, name);
    return path;
}

/* Capture to files, a job with a checkpoint after the first layer, a second job that goes on from it. */
static dq_status pipeline(objects *o)
{
    static const char *const options[][2] = {{"threads", "1"}, {"seqlen", "16"},     {"nsamples", "2"},
                                             {"ep", "1"},      {"quant_steps", "1"}, {"weight_weight", "0.1"}};
    dq_services services = {.struct_size = sizeof services, .abi = 1, .allocator = {refuse_alloc, refuse_free, NULL}};
    int32_t ids[64], done = 0;
    for (int i = 0; i < 64; i++) ids[i] = 3 + i * 5;
    TRY(dq_config_new(&o->config));
    for (size_t i = 0; i < sizeof options / sizeof *options; i++)
        TRY(dq_config_set(o->config, options[i][0], options[i][1]));
    TRY(dq_context_new(o->config, &services, &o->ctx));
    TRY(dq_model_open(o->ctx, "tests/data/tiny", &o->model));
    TRY(dq_model_fuse_norms(o->model, o->config, &o->fused));
    TRY(dq_dataset_from_ids(o->ctx, ids, 64, "ids", &o->words));
    TRY(dq_model_capture(o->fused, o->config, o->words, in_dir("cap"), NULL, NULL, NULL));
    TRY(dq_calibrator_new(o->fused, o->config, &o->job));
    TRY(dq_calibrator_bind(o->job, o->words));
    TRY(dq_calibrator_step(o->job, NULL, NULL, NULL, &done));
    TRY(dq_calibrator_checkpoint(o->job, in_dir("ck")));
    TRY(dq_calibrator_new(o->fused, o->config, &o->second));
    TRY(dq_calibrator_bind(o->second, o->words));
    TRY(dq_calibrator_restore(o->second, in_dir("ck")));
    TRY(dq_calibrator_run(o->second, NULL, NULL, NULL));
    TRY(dq_calibrator_take_rotation(o->second, &o->rotation));
    return dq_rotation_save(o->rotation, in_dir("r.pt"));
}

static void free_all(objects *o)
{
    dq_rotation_free(o->rotation);
    dq_calibrator_free(o->second);
    dq_calibrator_free(o->job);
    dq_dataset_free(o->words);
    dq_model_free(o->fused);
    dq_model_free(o->model);
    dq_context_free(o->ctx);
    dq_config_free(o->config);
}

/* Whether any file of the folder or of the folders in it still has its temporary name. */
static int has_unfinished(const char *path)
{
    int found = 0;
    DIR *d = opendir(path);
    if (!d) return 0;
    for (struct dirent *e; (e = readdir(d));) {
        char inside[400];
        if (e->d_name[0] == '.') continue;
        snprintf(inside, sizeof inside, "%s/%s", path, e->d_name);
        found |= strstr(e->d_name, ".tmp.") != NULL || has_unfinished(inside);
    }
    closedir(d);
    return found;
}

static int run_once(long n)
{
    char command[128];
    objects o = {0};
    heap.calls = 0;
    heap.fail_at = n;
    dq_status status = pipeline(&o);
    int reached = n > 0 && heap.calls >= n;
    if (status != DQ_OK && status != DQ_E_NOMEM)
        fail_msg("allocation %ld refused: status %d, %s", n, (int)status, dq_error_text());
    if (status != DQ_OK && dq_error_last() != status) fail_msg("allocation %ld: no error recorded", n);
    if (!reached && status != DQ_OK) fail_msg("%s", dq_error_text());
    if (status != DQ_OK && access(in_dir("r.pt"), F_OK) == 0) fail_msg("allocation %ld: a failed save left a file", n);
    free_all(&o);
    if (has_unfinished(dir)) fail_msg("allocation %ld refused: an unfinished file is left", n);
    if (heap.live != 0) fail_msg("allocation %ld refused: %ld blocks leaked", n, heap.live);
    snprintf(command, sizeof command, "rm -rf '%s'/*", dir);
    assert_int_equal(system(command), 0);
    return reached;
}

static void every_allocation(void **state)
{
    (void)state;
    strcpy(dir, access("/dev/shm", W_OK) == 0 ? "/dev/shm/dq_oom_cal.XXXXXX" : "/tmp/dq_oom_cal.XXXXXX");
    assert_non_null(mkdtemp(dir));
    run_once(0);
    long points = 0;
    for (long n = 1; run_once(n); n += 1 + n / 60) points++;
    assert_true(points > 100);
    rmdir(dir);
}

int main(void)
{
    const struct CMUnitTest tests[] = {cmocka_unit_test(every_allocation)};
    return cmocka_run_group_tests(tests, NULL, NULL);
}
