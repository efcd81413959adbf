/* export: a full disk or a killed process never leaves a folder that looks like a model.
 * SPDX-License-Identifier: Apache-2.0 */
#include <dirent.h>
#include <setjmp.h>
#include <signal.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/resource.h>
#include <sys/stat.h>
#include <sys/wait.h>
#include <unistd.h>
#include <cmocka.h>

#include "base/status.h"
#include "export/export.h"
#include "models.h"

static const char *const formats[] = {"gptq",      "awq",     "compressed-tensors", "compressed-tensors:int-quantized",
                                      "gguf:q4_0", "hf:bf16", "diffulex-gptq"};
enum { FORMATS = sizeof formats / sizeof *formats };

static dq_model *open_source(fixture *f)
{
    dq_model *m;
    if (dq_model_open_path(f->dev, "tests/data/formats/gptq_w4", &m) != DQ_OK) fail_msg("%s", dq_error_text());
    return m;
}

static dq_status export_to(dq_model *m, const char *format, const char *dir, dq_progress *progress)
{
    dq_export_spec spec;
    assert_int_equal(dq_export_parse(format, &spec), DQ_OK);
    spec.part_size = 1 << 14; /* several shards */
    return dq_export_model(m, &spec, dir, progress);
}

static int entries_of(const char *path)
{
    DIR *d = opendir(path);
    int n = 0;
    for (struct dirent *e; d && (e = readdir(d));) n += strcmp(e->d_name, ".") != 0 && strcmp(e->d_name, "..") != 0;
    if (d) closedir(d);
    return n;
}

/* Removes what a test left in its scratch folder, folders in it too. */
static void sweep(const char *path)
{
    DIR *d = opendir(path);
    for (struct dirent *e; d && (e = readdir(d));) {
        char inner[600];
        if (e->d_name[0] == '.') continue;
        snprintf(inner, sizeof inner, "%s/%s", path, e->d_name);
        remove_folder(inner);
        unlink(inner);
    }
    if (d) closedir(d);
}

static void opens_whole(fixture *f, const char *format, const char *dir)
{
    char path[400];
    dq_model *m;
    snprintf(path, sizeof path, strncmp(format, "gguf", 4) == 0 ? "%s/model.gguf" : "%s", dir);
    if (dq_model_open_path(f->dev, path, &m) != DQ_OK) fail_msg("%s: %s", format, dq_error_text());
    dq_model_release(m);
}

/* Files may not grow beyond `bytes`: every write after that fails with EFBIG. */
static dq_status with_small_files(dq_model *m, const char *format, const char *dir, rlim_t bytes)
{
    struct rlimit old, small;
    assert_int_equal(getrlimit(RLIMIT_FSIZE, &old), 0);
    small = old;
    small.rlim_cur = bytes;
    void (*handler)(int) = signal(SIGXFSZ, SIG_IGN);
    assert_int_equal(setrlimit(RLIMIT_FSIZE, &small), 0);
    dq_status status = export_to(m, format, dir, NULL);
    assert_int_equal(setrlimit(RLIMIT_FSIZE, &old), 0);
    signal(SIGXFSZ, handler);
    return status;
}

static void full_disk(void **state)
{
    (void)state;
    for (int i = 0; i < FORMATS; i++) {
        fixture f;
        char scratch[256], dir[300];
        int failures = 0, successes = 0;
        fixture_open(&f, "cpu", 1);
        make_folder(scratch, sizeof scratch);
        snprintf(dir, sizeof dir, "%s/out", scratch);
        dq_model *m = open_source(&f);
        for (rlim_t bytes = 50; bytes < 2000000; bytes *= 2) {
            dq_status status = with_small_files(m, formats[i], dir, bytes);
            if (status != DQ_OK && status != DQ_E_IO)
                fail_msg("%s, files of %ld bytes: %s", formats[i], (long)bytes, dq_error_text());
            if (status != DQ_OK && entries_of(scratch) != 0)
                fail_msg("%s, files of %ld bytes: something stays", formats[i], (long)bytes);
            if (status == DQ_OK) opens_whole(&f, formats[i], dir);
            failures += status != DQ_OK;
            successes += status == DQ_OK;
            sweep(scratch);
        }
        assert_true(failures > 2 && successes > 0);
        dq_model_release(m);
        remove_folder(scratch);
        fixture_close(&f);
    }
}

/* ---- kill -9 ---- */

static int32_t die_at(void *user, const dq_progress_event *event)
{
    if (event->index >= *(uint64_t *)user) kill(getpid(), SIGKILL);
    return 0;
}

static int killed_child(const char *format, const char *dir, uint64_t at)
{
    pid_t child = fork();
    assert_true(child >= 0);
    if (child == 0) {
        fixture f;
        dq_progress p = {.fn = die_at, .user = &at};
        fixture_open(&f, "cpu", 1);
        _exit(export_to(open_source(&f), format, dir, &p) == DQ_OK ? 0 : 1);
    }
    int status;
    assert_int_equal(waitpid(child, &status, 0), child);
    return status;
}

/* The target appears only whole; what a dead process leaves has another name and hinders no later export. */
static void killed(void **state)
{
    (void)state;
    for (int i = 0; i < FORMATS; i++)
        for (uint64_t at = 0; at < 20; at++) {
            fixture f;
            char scratch[256], dir[300];
            fixture_open(&f, "cpu", 1);
            make_folder(scratch, sizeof scratch);
            snprintf(dir, sizeof dir, "%s/out", scratch);
            int status = killed_child(formats[i], dir, at);
            bool died = WIFSIGNALED(status) && WTERMSIG(status) == SIGKILL;
            if (!died && !(WIFEXITED(status) && WEXITSTATUS(status) == 0)) fail_msg("%s: the child failed", formats[i]);
            if (access(dir, F_OK) == 0)
                opens_whole(&f, formats[i], dir);
            else {
                assert_true(died);
                dq_model *m = open_source(&f);
                if (export_to(m, formats[i], dir, NULL) != DQ_OK) fail_msg("%s: %s", formats[i], dq_error_text());
                dq_model_release(m);
                opens_whole(&f, formats[i], dir);
            }
            sweep(scratch);
            remove_folder(scratch);
            fixture_close(&f);
            if (!died) {
                assert_true(at > 1); /* earlier steps did kill it */
                break;
            }
            assert_true(at < 19);
        }
}

int main(void)
{
    const struct CMUnitTest tests[] = {cmocka_unit_test(full_disk), cmocka_unit_test(killed)};
    return cmocka_run_group_tests_name("export_faults", tests, NULL, NULL);
}
