/* Quantization to levels against goldens of another program (make_kvquant.py): the op on the reference and on every
 * instruction set, and the public functions on arrays. SPDX-License-Identifier: Apache-2.0 */
#include <math.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <cmocka.h>

#include "fixture.h"
#include "host_model.h"
#include "io/formats.h"
#include "ok.h"

enum { CASES = 20, FIELDS = 8 };

/* One golden case; `fields` as make_kvquant.py writes them. */
typedef struct golden {
    int64_t rows, cols, seqlen;
    int per_row, keep, sink, count;
    double outliers;
    float *x, *y, *levels, *range, norm[2];
} golden;

static void *read_tensor(dq_source *s, int number, const char *name)
{
    char key[40];
    snprintf(key, sizeof key, number < 0 ? "%.0d%s" : "%d.%s", number < 0 ? 0 : number, name);
    int64_t t = dq_source_find(s, key);
    assert_true(t >= 0);
    void *bytes = malloc(s->tensors[t].bytes);
    assert_non_null(bytes);
    OK(dq_source_read_raw(s, t, 0, s->tensors[t].bytes, bytes));
    return bytes;
}

static golden *read_goldens(void)
{
    golden *all = calloc(CASES, sizeof *all);
    dq_env env;
    dq_source *s = NULL;
    OK(dq_env_init(&env, NULL, 1));
    OK(dq_safetensors_open(&env, "tests/data/ops/levels_quant.safetensors", &s));
    double *fields = read_tensor(s, -1, "cases");
    for (int i = 0; i < CASES; i++) {
        const double *f = fields + i * FIELDS;
        float *norm = read_tensor(s, i, "norm");
        all[i] = (golden){(int64_t)f[0],
                          (int64_t)f[1],
                          (int64_t)f[5],
                          (int)f[2],
                          (int)f[3],
                          (int)f[6],
                          (int)f[7],
                          f[4],
                          read_tensor(s, i, "x"),
                          read_tensor(s, i, "y"),
                          read_tensor(s, i, "levels"),
                          read_tensor(s, i, "range"),
                          {norm[0], norm[1]}};
        free(norm);
    }
    free(fields);
    dq_source_free(s);
    dq_env_clear(&env);
    return all;
}

static void free_goldens(golden *all)
{
    for (int i = 0; i < CASES; i++) {
        free(all[i].x);
        free(all[i].y);
        free(all[i].levels);
        free(all[i].range);
    }
    free(all);
}

static void assert_equal(const golden *g, int number, const float *got, const char *where)
{
    for (int64_t i = 0; i < g->rows * g->cols; i++)
        if (got[i] != g->y[i])
            fail_msg("case %d on %s: [%lld][%lld] is %.9g, golden %.9g", number, where, (long long)(i / g->cols),
                     (long long)(i % g->cols), (double)got[i], (double)g->y[i]);
}

static void run_op(fixture *f, const golden *g, int number, const char *where)
{
    dq_levels_quant_desc d = {g->per_row, g->keep, g->outliers, g->seqlen, g->sink, g->norm[0], g->norm[1]};
    dq_tensor x = {0}, levels = {0}, range = {0};
    OK(dq_tensor_from_host(f->dev, DQ_F32, g->rows, g->cols, g->x, &x));
    OK(dq_tensor_from_host(f->dev, DQ_F32, 1, g->count, g->levels, &levels));
    if (!g->per_row) OK(dq_tensor_from_host(f->dev, DQ_F32, 2, g->cols, g->range, &range));
    OK(dq_op_levels_quant(&d, &x, &range, &levels, NULL, &x));
    float *got = host_copy(&x);
    assert_equal(g, number, got, where);
    free(got);
    dq_tensor_free(&x);
    dq_tensor_free(&levels);
    dq_tensor_free(&range);
}

static void op_gives_the_goldens(void **state)
{
    (void)state;
    static const char *const devices[] = {"ref", "cpu:simd=plain", "cpu", "fake"};
    golden *all = read_goldens();
    for (int k = 0; k < 4; k++) {
        fixture f;
        fixture_open(&f, devices[k], 2);
        for (int i = 0; i < CASES; i++) run_op(&f, &all[i], i, devices[k]);
        fixture_close(&f);
    }
    free_goldens(all);
}

static void arrays_give_the_goldens(void **state)
{
    (void)state;
    golden *all = read_goldens();
    dq_context *ctx = host_context(2);
    for (int i = 0; i < CASES; i++) {
        golden *g = &all[i];
        OK(dq_fake_quantize_levels(ctx, g->x, g->rows, g->cols, g->levels, g->count, g->per_row ? NULL : g->range,
                                   g->outliers, g->keep, g->sink, g->seqlen, (double)g->norm[0], (double)g->norm[1]));
        assert_equal(g, i, g->x, "arrays");
    }
    dq_context_free(ctx);
    free_goldens(all);
}

/* ---- the public functions ---- */

/* More than one chunk of 2^22 numbers, which begins in the middle of a sequence: sink tokens stay where they are. */
static void long_arrays_keep_their_positions(void **state)
{
    (void)state;
    enum { COLS = 4096, ROWS = 1100, SEQLEN = 171 };
    dq_context *ctx = host_context(2);
    float *x = malloc(sizeof(float) * ROWS * COLS), levels[4];
    for (int64_t i = 0; i < (int64_t)ROWS * COLS; i++) x[i] = (float)(i * 7919 % 1009) / 1009.0f;
    OK(dq_make_levels(ctx, DQ_LEVELS_UNIFORM, 2, levels));
    OK(dq_fake_quantize_levels(ctx, x, ROWS, COLS, levels, 4, NULL, 0, 1, 2, SEQLEN, 1, 0));
    for (int64_t r = 0; r < ROWS; r++) {
        int moved = 0;
        for (int64_t i = r * COLS; i < (r + 1) * COLS; i++) moved |= x[i] != (float)(i * 7919 % 1009) / 1009.0f;
        assert_int_equal(moved, r % SEQLEN >= 2);
    }
    free(x);
    dq_context_free(ctx);
}

static void level_tables(void **state)
{
    (void)state;
    /* NormalFloat of 2 and 3 bits, as its recipe gives them to four digits. */
    static const float two[] = {-1, 0, 0.3379f, 1};
    static const float three[] = {-1, -0.4786f, -0.2171f, 0, 0.1609f, 0.3379f, 0.5626f, 1};
    dq_context *ctx = host_context(1);
    float v[256];
    OK(dq_make_levels(ctx, DQ_LEVELS_NORMAL, 2, v));
    for (int i = 0; i < 4; i++) assert_true(fabsf(v[i] - two[i]) < 1e-4f);
    OK(dq_make_levels(ctx, DQ_LEVELS_NORMAL, 3, v));
    for (int i = 0; i < 8; i++) assert_true(fabsf(v[i] - three[i]) < 1e-4f);
    OK(dq_make_levels(ctx, DQ_LEVELS_UNIFORM, 8, v));
    for (int i = 0; i < 256; i++) assert_true(fabsf(v[i] - (float)(-1 + 2.0 * i / 255)) < 1e-7f);
    assert_int_equal(dq_make_levels(ctx, 2, 4, v), DQ_E_INVALID);
    assert_int_equal(dq_make_levels(ctx, DQ_LEVELS_NORMAL, 1, v), DQ_E_INVALID);
    assert_int_equal(dq_make_levels(ctx, DQ_LEVELS_NORMAL, 9, v), DQ_E_INVALID);
    dq_context_free(ctx);
}

static void ranges_of_columns(void **state)
{
    (void)state;
    enum { ROWS = 44, COLS = 37, KEPT = 41 };
    dq_context *ctx = host_context(3);
    float x[ROWS * COLS], range[2 * COLS];
    int at = 0;
    for (int r = 0; r < ROWS; r++) {
        bool sink = r % 15 < 1; /* three tokens, far outside */
        for (int c = 0; c < COLS; c++) x[r * COLS + c] = sink ? 1e6f : (float)(at * 17 % KEPT + c);
        at += !sink;
    }
    assert_int_equal(at, KEPT);
    OK(dq_measure_columns(ctx, x, ROWS, COLS, 0.05, 1, 15, range)); /* a column holds c, ..., c + 40 */
    for (int c = 0; c < COLS; c++) {
        assert_true(range[c] == (float)(c + 1));
        assert_true(range[COLS + c] == (float)(c + 39));
    }
    OK(dq_measure_columns(ctx, x, ROWS, COLS, 0, 0, 0, range));
    for (int c = 0; c < COLS; c++) {
        assert_true(range[c] == (float)c);
        assert_true(range[COLS + c] == 1e6f);
    }
    range[0] = 7;
    assert_int_equal(dq_measure_columns(ctx, x, ROWS, COLS, 0, 15, 15, range), DQ_E_INVALID);
    assert_int_equal(dq_measure_columns(ctx, x, ROWS, COLS, 1, 0, 1, range), DQ_E_INVALID);
    assert_int_equal(dq_measure_columns(ctx, x, ROWS, COLS, 0, 1, 0, range), DQ_E_INVALID);
    x[COLS + 2] = NAN;
    assert_int_equal(dq_measure_columns(ctx, x, ROWS, COLS, 0, 0, 1, range), DQ_E_NONFINITE);
    assert_non_null(strstr(dq_error_text(), "(1, 2)"));
    assert_true(range[0] == 7);
    dq_context_free(ctx);
}

static void misuse(void **state)
{
    (void)state;
    dq_context *ctx = host_context(1);
    float x[6] = {1, 2, 3, 4, 5, 6}, levels[3] = {-1, 0, 1}, down[3] = {-1, 1, 0}, range[4] = {0, 0, 2, -1};
    const struct {
        const float *levels, *range;
        int count, keep, sink;
        int64_t seqlen;
        double outliers, scale;
        const char *text;
    } wrong[] = {{levels, NULL, 1, 1, 0, 1, 0, 1, "1 levels"},
                 {levels, NULL, 257, 1, 0, 1, 0, 1, "257 levels"},
                 {down, NULL, 3, 1, 0, 1, 0, 1, "level 1 is 1 and level 2 is 0"},
                 {levels, range, 3, 1, 0, 1, 0, 1, "column 1 has a range from 0 to -1"},
                 {levels, NULL, 3, 2, 0, 1, 0, 1, "keep_outliers = 2"},
                 {levels, NULL, 3, 1, 1, 0, 0, 1, "1 sink tokens in sequences of 0"},
                 {levels, NULL, 3, 1, -1, 1, 0, 1, "-1 sink tokens"},
                 {levels, NULL, 3, 1, 0, 1, 1, 1, "share of outliers of 1"},
                 {levels, NULL, 3, 1, 0, 1, NAN, 1, "share of outliers"},
                 {levels, NULL, 3, 1, 0, 1, 0, 1e300, "Q-Norm"}};
    for (size_t i = 0; i < sizeof wrong / sizeof wrong[0]; i++) {
        assert_int_equal(dq_fake_quantize_levels(ctx, x, 3, 2, wrong[i].levels, wrong[i].count, wrong[i].range,
                                                 wrong[i].outliers, wrong[i].keep, wrong[i].sink, wrong[i].seqlen,
                                                 wrong[i].scale, 0),
                         DQ_E_INVALID);
        if (!strstr(dq_error_text(), wrong[i].text)) fail_msg("%s: %s", wrong[i].text, dq_error_text());
    }
    x[3] = INFINITY;
    assert_int_equal(dq_fake_quantize_levels(ctx, x, 3, 2, levels, 3, NULL, 0, 1, 0, 1, 1, 0), DQ_E_NONFINITE);
    assert_int_equal(dq_fake_quantize_levels(ctx, NULL, 3, 2, levels, 3, NULL, 0, 1, 0, 1, 1, 0), DQ_E_INVALID);
    assert_true(x[0] == 1 && x[5] == 6);
    dq_context_free(ctx);
}

int main(void)
{
    const struct CMUnitTest tests[] = {cmocka_unit_test(op_gives_the_goldens),
                                       cmocka_unit_test(arrays_give_the_goldens),
                                       cmocka_unit_test(long_arrays_keep_their_positions),
                                       cmocka_unit_test(level_tables),
                                       cmocka_unit_test(ranges_of_columns),
                                       cmocka_unit_test(misuse)};
    return cmocka_run_group_tests_name("quantization to levels", tests, NULL, NULL);
}
