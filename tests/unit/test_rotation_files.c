/* Files that r1_path, r2_path name and that are no rotations of this model, through the public functions: refused with what
 * was found, and nothing of them is run. SPDX-License-Identifier: Apache-2.0 */
#include <setjmp.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>
#include <cmocka.h>
#include <zip.h>

#include "host_model.h"
#include "recipe.h"
#include "scratch.h"

enum { N = 64 }; /* hidden size of the tiny model */

static dq_context *ctx;
static dq_model *model;

static int open_model(void **state)
{
    (void)state;
    ctx = host_context(1);
    OK(dq_model_open(ctx, "tests/data/tiny", &model));
    return scratch_open();
}

static int close_model(void **state)
{
    (void)state;
    dq_model_free(model);
    dq_context_free(ctx);
    scratch_close();
    return heap.live != 0;
}

/* What dq_rotation_new says to the file as r1_path or r2_path. */
static void expect(const char *option, const char *path, dq_status status, const char *words)
{
    dq_config *config = NULL;
    dq_rotation *rotation = NULL;
    OK(dq_config_new(&config));
    OK(dq_config_set(config, option, path));
    dq_status got = dq_rotation_new(model, config, &rotation);
    if (got != status || (status != DQ_OK && !strstr(dq_error_text(), words)))
        fail_msg("%s: status %d instead of %d, \"%s\" should say \"%s\"", path, got, status, dq_error_text(), words);
    if (status != DQ_OK) {
        assert_null(rotation);
        assert_non_null(strstr(dq_error_file(), path));
    }
    dq_rotation_free(rotation);
    dq_config_free(config);
}

/* ---- matrices ---- */

static const char *write_tensor(const char *file, const char *tensor, int rows, int cols, const float *values)
{
    char header[256];
    size_t bytes = (size_t)rows * (size_t)cols * 4;
    snprintf(header, sizeof header, "{\"%s\":{\"dtype\":\"F32\",\"shape\":[%d,%d],\"data_offsets\":[0,%zu]}}", tensor,
             rows, cols, bytes);
    uint64_t length = strlen(header);
    unsigned char *all = malloc(8 + length + bytes);
    memcpy(all, &length, 8);
    memcpy(all + 8, header, length);
    memcpy(all + 8 + length, values, bytes);
    const char *path = scratch_write(file, all, 8 + length + bytes);
    free(all);
    return path;
}

static void matrices_that_are_no_rotations(void **state)
{
    (void)state;
    static float r[N * N];
    for (int i = 0; i < N; i++) r[i * N + i] = i % 3 ? 1 : -1;
    expect("r1_path", write_tensor("good.safetensors", "R1", N, N, r), DQ_OK, "");
    expect("r1_path", write_tensor("bare.safetensors", "rotation", N, N, r), DQ_OK, ""); /* the only one there is */
    expect("r2_path", write_tensor("no-r2.safetensors", "R1", N, N, r), DQ_E_MISMATCH,
           "no tensor \"model.layers.0.self_attn.R2\"");
    expect("r1_path", write_tensor("half.safetensors", "R1", N / 2, N / 2, r), DQ_E_MISMATCH,
           "R1 has shape [32, 32], the model needs [64, 64]");
    expect("r1_path", write_tensor("flat.safetensors", "R1", 1, N * N, r), DQ_E_MISMATCH, "[1, 4096]");
    expect("r2_path", write_tensor("r2.safetensors", "model.layers.0.self_attn.R2", N, N, r), DQ_E_MISMATCH,
           "R2 has shape [64, 64], the model needs [2, 16, 16] or [16, 16]");
    r[7 * N + 9] = 0.125f;
    expect("r1_path", write_tensor("skew.safetensors", "R1", N, N, r), DQ_E_NUMERIC,
           "R1 is not orthogonal: max |R^T R - I| = 0.125, allowed 1e-03");
    r[7 * N + 9] = 0;
    for (int i = 0; i < N * N; i++) r[i] *= 2;
    expect("r1_path", write_tensor("scaled.safetensors", "R1", N, N, r), DQ_E_NUMERIC, "= 3,");
    r[5] = -1.0f / 0.0f;
    expect("r1_path", write_tensor("inf.safetensors", "R1", N, N, r), DQ_E_NONFINITE, "R1 contains NaN or Inf");
    memset(r, 0, sizeof r);
    expect("r1_path", write_tensor("zero.safetensors", "R1", N, N, r), DQ_E_NUMERIC, "= 1,");
}

static void matrices_come_out(void **state)
{
    (void)state;
    enum { R2 = 2 * 16 * 16 };
    static float r[N * N];
    static double got[N * N], r2[R2];
    dq_config *config = NULL;
    dq_rotation *rotation = NULL;
    for (int i = 0; i < N; i++) r[i * N + (i + 5) % N] = i % 3 ? 1 : -1;
    OK(dq_config_new(&config));
    OK(dq_config_set(config, "r1_path", write_tensor("out.safetensors", "R1", N, N, r)));
    OK(dq_rotation_new(model, config, &rotation));
    OK(dq_rotation_copy(rotation, -1, got, N * N));
    for (int i = 0; i < N * N; i++) assert_true(got[i] == r[i]);
    OK(dq_rotation_copy(rotation, 3, r2, R2));
    for (int i = 0; i < 16; i++)
        for (int j = 0; j < 16; j++) {
            double dot = 0;
            for (int k = 0; k < 16; k++) dot += r2[256 + k * 16 + i] * r2[256 + k * 16 + j];
            assert_float_equal(dot, i == j, 1e-12);
        }
    got[0] = 7;
    assert_int_equal(dq_rotation_copy(rotation, -1, got, N * N - 1), DQ_E_INVALID);
    assert_int_equal(dq_rotation_copy(rotation, 4, got, N * N), DQ_E_INVALID);
    assert_int_equal(dq_rotation_copy(rotation, -2, got, N * N), DQ_E_INVALID);
    dq_rotation_free(rotation);
    OK(dq_config_set(config, "use_r1", "false"));
    OK(dq_config_set(config, "r1_path", ""));
    OK(dq_config_set(config, "use_r2", "online"));
    OK(dq_rotation_new(model, config, &rotation));
    assert_int_equal(dq_rotation_copy(rotation, -1, got, N * N), DQ_E_NOTFOUND);
    assert_int_equal(dq_rotation_copy(rotation, 0, got, N * N), DQ_E_NOTFOUND);
    assert_true(got[0] == 7);
    dq_rotation_free(rotation);
    dq_config_free(config);
}

/* ---- pickles ---- */

static const char *write_archive(const char *file, const char *pickle)
{
    recipe_bytes b;
    recipe_cook(&b, pickle);
    const char *path = scratch_write(file, "", 1);
    unlink(path);
    zip_t *z = zip_open(path, ZIP_CREATE, NULL);
    assert_non_null(z);
    assert_true(zip_file_add(z, "R/data.pkl", zip_source_buffer(z, b.data, b.size, 0), 0) >= 0);
    assert_true(zip_file_add(z, "R/version", zip_source_buffer(z, "3\n", 2, 0), 0) >= 0);
    assert_int_equal(zip_close(z), 0);
    return path;
}

#define PROTO "1:0x80 1:2 "

static void foreign_pickles(void **state)
{
    (void)state;
    char owned[300], hostile[600];
    snprintf(owned, sizeof owned, "%s/owned", scratch_dir());
    /* what a blind loader would run: os.system("touch<TAB>owned") */
    snprintf(hostile, sizeof hostile, PROTO "c:posix,system u:touch\t%s 1:0x85 t:R.", owned);
    static const char *const options[] = {"r1_path", "r2_path"}, *const names[] = {"bad.pt", "R.bin"};
    for (int o = 0; o < 2; o++)
        for (int n = 0; n < 2; n++) {
            expect(options[o], write_archive(names[n], hostile), DQ_E_UNSUPPORTED,
                   "the global 'posix.system' is refused");
            expect(options[o], write_archive(names[n], PROTO "t:} u:R1 c:builtins,eval u:0 1:0x85 t:Rs."),
                   DQ_E_UNSUPPORTED, "'builtins.eval' is refused");
            expect(options[o], write_archive(names[n], PROTO "t:} u:epoch t:K 1:3 t:s."), DQ_E_MISMATCH,
                   "no tensor \"");
            expect(options[o], write_archive(names[n], PROTO "t:} u:R1 t:K 1:3 t:s."), DQ_E_MISMATCH, "no tensor \"");
            expect(options[o], scratch_write(names[n], "\x80\x04\x95 a bare pickle", 16), DQ_E_UNSUPPORTED,
                   "bare pickle");
            expect(options[o], scratch_write(names[n], "#!/bin/sh\necho rotation\n", 0), DQ_E_FORMAT, "");
            expect(options[o], scratch_write(names[n], "PK\3\4, and no more", 15), DQ_E_FORMAT, "zip");
        }
    assert_int_not_equal(access(owned, F_OK), 0);
}

int main(void)
{
    const struct CMUnitTest tests[] = {cmocka_unit_test(matrices_that_are_no_rotations),
                                       cmocka_unit_test(matrices_come_out), cmocka_unit_test(foreign_pickles)};
    return cmocka_run_group_tests(tests, open_model, close_model);
}
