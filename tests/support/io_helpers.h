/* Helpers of the io tests: a scratch folder, golden files, and an allocator that counts and fails on demand.
 * SPDX-License-Identifier: Apache-2.0 */
#ifndef TEST_IO_HELPERS_H
#define TEST_IO_HELPERS_H

#include <dirent.h>
#include <errno.h>
#include <math.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>
#include <cmocka.h>

#include "base/status.h"
#include "io/file.h"
#include "io/formats.h"

#define IO_DATA "tests/data/io/"

static dq_env env;
static char scratch[64];

__attribute__((unused)) static const char *in_scratch(const char *name)
{
    static char path[4][400];
    static int turn;
    turn = (turn + 1) % 4;
    snprintf(path[turn], sizeof path[turn], "%s/%s", scratch, name);
    return path[turn];
}

__attribute__((unused)) static int scratch_entries(void)
{
    DIR *dir = opendir(scratch);
    int n = 0;
    for (struct dirent *e; (e = readdir(dir)) != NULL;) n += e->d_name[0] != '.';
    closedir(dir);
    return n;
}

__attribute__((unused)) static int io_set_up(void **state)
{
    (void)state;
    /* Thousands of synced files: in memory where that is offered. */
    strcpy(scratch, access("/dev/shm", W_OK) == 0 ? "/dev/shm/dq_test_io.XXXXXX" : "/tmp/dq_test_io.XXXXXX");
    return dq_env_init(&env, NULL, 1) != DQ_OK || !mkdtemp(scratch);
}

__attribute__((unused)) static int io_tear_down(void **state)
{
    (void)state;
    char command[128];
    snprintf(command, sizeof command, "rm -rf '%s'", scratch);
    int failed = system(command) != 0;
    dq_env_clear(&env);
    if (atomic_load(&env.memory_now) != 0) {
        fprintf(stderr, "%llu bytes leaked\n", (unsigned long long)atomic_load(&env.memory_now));
        failed = 1;
    }
    return failed;
}

/* Compares a tensor, read whole and row by row, with tests/data/io/<golden>.f32: to the bit, any NaN for a NaN. */
__attribute__((unused)) static void check_golden(dq_source *source, const char *name, const char *golden)
{
    char path[256];
    char *bytes = NULL;
    size_t size = 0;
    snprintf(path, sizeof path, IO_DATA "%s.f32", golden);
    if (dq_file_read(&env, path, 1 << 20, &bytes, &size) != DQ_OK) fail_msg("%s", dq_error_text());
    const float *want = (const float *)bytes;
    int64_t t = dq_source_find(source, name);
    if (t < 0) fail_msg("no tensor '%s'", name);
    int64_t rows = dq_info_rows(&source->tensors[t]), cols = dq_info_cols(&source->tensors[t]);
    assert_int_equal(size, (size_t)(rows * cols) * sizeof(float));
    float *got = calloc((size_t)(rows * cols) * 2 + 1, sizeof *got);
    if (dq_source_read_rows(source, t, 0, rows, got) != DQ_OK) fail_msg("%s", dq_error_text());
    float *by_row = got + rows * cols;
    for (int64_t r = rows; r-- > 0;) assert_int_equal(dq_source_read_rows(source, t, r, 1, by_row + r * cols), DQ_OK);
    for (int64_t i = 0; i < rows * cols; i++) {
        if (isnan(want[i]) && isnan(got[i])) continue;
        if (memcmp(&want[i], &got[i], 4) != 0 || memcmp(&want[i], &by_row[i], 4) != 0)
            fail_msg("%s[%lld]: %a and by rows %a, expected %a", name, (long long)i, got[i], by_row[i], want[i]);
    }
    free(got);
    dq_free(bytes);
}

/* ---- failing allocator ---- */

typedef struct counting_allocator {
    long calls, fail_at; /* the fail_at-th call fails (and every later one when `forever`); 0 = never */
    int forever;
    long live;
} counting_allocator;

__attribute__((unused)) static void *counting_alloc(void *user, size_t bytes)
{
    counting_allocator *a = user;
    a->calls++;
    if (a->fail_at && (a->calls == a->fail_at || (a->forever && a->calls > a->fail_at))) return NULL;
    void *p = malloc(bytes);
    if (p) a->live++;
    return p;
}

__attribute__((unused)) static void counting_free(void *user, void *ptr, size_t bytes)
{
    (void)bytes;
    ((counting_allocator *)user)->live--;
    free(ptr);
}

#endif
