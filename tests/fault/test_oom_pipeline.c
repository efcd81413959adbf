/* The whole pipeline through the public header with a host's allocator that refuses: each failing point gives
 * DQ_E_NOMEM, leaks nothing, and leaves no half-saved model. SPDX-License-Identifier: Apache-2.0 */
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

#define MODEL "tests/data/tiny"

typedef struct objects {
    dq_config *config;
    dq_context *ctx;
    dq_model *model, *fused, *rotated, *quantized;
    dq_tokenizer *tokenizer;
    dq_dataset *words;
    dq_rotation *rotation;
    dq_quantizer *quantizer;
    dq_evaluator *evaluator, *full;
    dq_reference *reference;
    double ppl;
} objects;

static dq_status pipeline(objects *o, const char *dir, int *saved)
{
    dq_services services = {.struct_size = sizeof services, .abi = 1, .allocator = {refuse_alloc, refuse_free, NULL}};
    char text[400];
    const char *report;
    for (size_t i = 0; i < sizeof text - 1; i++) text[i] = "one day a cat saw the sun. "[i % 27];
    text[sizeof text - 1] = '\0';
    TRY(dq_config_new(&o->config));
    TRY(dq_config_apply_preset(o->config, "w4a4kv4"));
    TRY(dq_config_set(o->config, "threads", "1"));
    TRY(dq_config_set(o->config, "seqlen", "16"));
    TRY(dq_config_set(o->config, "nsamples", "1"));
    TRY(dq_config_set(o->config, "limit", "1"));
    TRY(dq_config_set(o->config, "a_clip_ratio", "auto"));
    TRY(dq_config_set(o->config, "k_clip_ratio", "auto"));
    TRY(dq_config_set(o->config, "v_clip_ratio", "auto"));
    if (dir) TRY(dq_config_set(o->config, "save_qmodel_path", dir));
    TRY(dq_context_new(o->config, &services, &o->ctx));
    TRY(dq_model_open(o->ctx, MODEL, &o->model));
    TRY(dq_model_describe(o->model, &report));
    TRY(dq_tokenizer_open(o->ctx, MODEL, &o->tokenizer));
    TRY(dq_dataset_from_text(o->tokenizer, text, strlen(text), "cat", &o->words));
    TRY(dq_model_fuse_norms(o->model, o->config, &o->fused));
    TRY(dq_rotation_new(o->fused, o->config, &o->rotation));
    TRY(dq_model_rotate(o->fused, o->rotation, &o->rotated));
    TRY(dq_quantizer_new(o->rotated, o->config, &o->quantizer));
    TRY(dq_quantizer_bind(o->quantizer, o->words));
    TRY(dq_quantizer_run(o->quantizer, NULL, NULL, NULL));
    *saved = 1;
    TRY(dq_quantizer_take_model(o->quantizer, &o->quantized));
    TRY(dq_quantizer_report(o->quantizer, &report));
    TRY(dq_evaluator_new(o->rotated, o->config, &o->full));
    TRY(dq_evaluator_bind(o->full, o->words));
    TRY(dq_evaluator_keep_reference(o->full, 1));
    TRY(dq_evaluator_run(o->full, NULL, NULL, NULL));
    TRY(dq_evaluator_take_reference(o->full, &o->reference));
    TRY(dq_evaluator_new(o->quantized, o->config, &o->evaluator));
    TRY(dq_evaluator_set_reference(o->evaluator, o->reference));
    TRY(dq_evaluator_bind(o->evaluator, o->words));
    TRY(dq_evaluator_run(o->evaluator, NULL, NULL, NULL));
    TRY(dq_evaluator_get_float(o->evaluator, "kl", &o->ppl));
    return dq_evaluator_get_float(o->evaluator, "ppl", &o->ppl);
}

static void free_all(objects *o)
{
    dq_evaluator_free(o->evaluator);
    dq_evaluator_free(o->full);
    dq_reference_free(o->reference);
    dq_quantizer_free(o->quantizer);
    dq_rotation_free(o->rotation);
    dq_dataset_free(o->words);
    dq_tokenizer_free(o->tokenizer);
    dq_model_free(o->quantized);
    dq_model_free(o->rotated);
    dq_model_free(o->fused);
    dq_model_free(o->model);
    dq_context_free(o->ctx);
    dq_config_free(o->config);
}

static char leftover[256]; /* one of the files found */

static int files_in(const char *dir)
{
    int n = 0;
    DIR *d = opendir(dir);
    if (!d) return 0;
    for (struct dirent *e; (e = readdir(d));)
        if (e->d_name[0] != '.') {
            snprintf(leftover, sizeof leftover, "%s", e->d_name);
            n++;
        }
    closedir(d);
    return n;
}

static void empty_folder(const char *dir)
{
    char command[200];
    snprintf(command, sizeof command, "rm -rf '%s'", dir);
    assert_int_equal(system(command), 0);
}

/* Runs with the n-th allocation refused; returns whether it was reached. */
static int run_once(long n, int for_good, const char *dir, double expected)
{
    objects o = {0};
    int saved = 0;
    heap.calls = 0;
    heap.fail_at = n;
    heap.for_good = for_good;
    dq_status status = pipeline(&o, dir, &saved);
    int reached = n > 0 && heap.calls >= n;
    if (reached && status == DQ_OK && for_good) fail_msg("allocation %ld refused for good, and nobody noticed", n);
    if (status != DQ_OK && status != DQ_E_NOMEM)
        fail_msg("allocation %ld refused: status %d, %s", n, (int)status, dq_error_text());
    if (status != DQ_OK && dq_error_last() != status) fail_msg("allocation %ld: no error recorded", n);
    if (status == DQ_OK && expected > 0 && o.ppl != expected) fail_msg("allocation %ld changed the result", n);
    if (dir && !saved && files_in(dir) != 0)
        fail_msg("allocation %ld refused: %d files left behind, one is %s", n, files_in(dir), leftover);
    free_all(&o);
    if (heap.live != 0) fail_msg("allocation %ld refused: %ld blocks leaked", n, heap.live);
    if (dir) empty_folder(dir);
    return reached;
}

/* Every early allocation, then ever sparser ones: a few hundred of several thousand. */
static void sweep(const char *dir, int for_good)
{
    objects o = {0};
    int saved = 0;
    heap.fail_at = 0;
    assert_int_equal(pipeline(&o, dir, &saved), DQ_OK);
    double expected = o.ppl;
    assert_true(expected > 1);
    free_all(&o);
    assert_int_equal(heap.live, 0);
    if (dir) empty_folder(dir);
    long points = 0;
    for (long n = 1; run_once(n, for_good, dir, expected); n += 1 + n / 60) points++;
    assert_true(points > 150);
}

static void in_memory_once(void **state)
{
    (void)state;
    sweep(NULL, 0);
}

static void in_memory_for_good(void **state)
{
    (void)state;
    sweep(NULL, 1);
}

static void to_a_folder(void **state)
{
    (void)state;
    char dir[] = "/tmp/dartquant-oom-XXXXXX";
    assert_non_null(mkdtemp(dir));
    sweep(dir, 0);
    empty_folder(dir);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(in_memory_once),
        cmocka_unit_test(in_memory_for_good),
        cmocka_unit_test(to_a_folder),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
