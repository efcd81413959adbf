/* Tensor-level operations through the public header alone, against sums written out here.
 * SPDX-License-Identifier: Apache-2.0 */
#include <math.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <cmocka.h>

#include "host_model.h"

/* A fixed stream of numbers in (-1, 1). */
static float noise(uint32_t *seed)
{
    *seed = *seed * 1664525u + 1013904223u;
    return (float)(*seed >> 8) / 8388608.0f - 1.0f;
}

static float *random_matrix(int64_t rows, int64_t cols, uint32_t seed)
{
    float *x = malloc((size_t)(rows * cols) * sizeof *x);
    for (int64_t i = 0; i < rows * cols; i++) x[i] = noise(&seed);
    return x;
}

/* ---- Hessian ---- */

static void hessian_is_the_sum(void **state)
{
    (void)state;
    enum { N = 24, ROWS = 70, STRIDE = 31 };
    dq_context *ctx = host_context(2);
    dq_hessian *h = NULL, *again = NULL;
    float *x = random_matrix(ROWS, STRIDE, 1), out[N * N], copy[N * N];
    OK(dq_hessian_new(ctx, N, &h));
    OK(dq_hessian_add(h, x, 30, STRIDE, DQ_F32));
    OK(dq_hessian_add(h, x + 30 * STRIDE, ROWS - 30, STRIDE, DQ_F32));
    assert_int_equal(dq_hessian_rows(h), ROWS);
    OK(dq_hessian_copy(h, out, N * N));
    for (int i = 0; i < N; i++)
        for (int j = 0; j < N; j++) {
            double sum = 0;
            for (int r = 0; r < ROWS; r++) sum += 2.0 * (double)x[r * STRIDE + i] * (double)x[r * STRIDE + j];
            assert_true(fabs(out[i * N + j] - sum) < 1e-4);
        }
    OK(dq_hessian_new(ctx, N, &again));
    OK(dq_hessian_set(again, out, ROWS));
    OK(dq_hessian_copy(again, copy, N * N));
    assert_memory_equal(out, copy, sizeof out);
    /* bf16 inputs count as what they are */
    uint16_t half[ROWS * N];
    float wide[ROWS * N];
    for (int i = 0; i < ROWS * N; i++) {
        uint32_t bits;
        memcpy(&bits, &x[i], sizeof bits);
        half[i] = (uint16_t)(bits >> 16);
        bits &= 0xffff0000u;
        memcpy(&wide[i], &bits, sizeof bits);
    }
    dq_hessian_free(h);
    dq_hessian_free(again);
    OK(dq_hessian_new(ctx, N, &h));
    OK(dq_hessian_new(ctx, N, &again));
    OK(dq_hessian_add(h, half, ROWS, N, DQ_BF16));
    OK(dq_hessian_add(again, wide, ROWS, N, DQ_F32));
    OK(dq_hessian_copy(h, out, N * N));
    OK(dq_hessian_copy(again, copy, N * N));
    for (int i = 0; i < N * N; i++) assert_true(fabsf(out[i] - copy[i]) < 1e-3f);
    /* misuse */
    assert_int_equal(dq_hessian_copy(h, out, 3), DQ_E_INVALID);
    assert_int_equal(dq_hessian_add(h, x, 4, N - 1, DQ_F32), DQ_E_INVALID);
    assert_int_equal(dq_hessian_add(h, x, 4, N, DQ_I32), DQ_E_UNSUPPORTED);
    x[STRIDE + 3] = NAN;
    assert_int_equal(dq_hessian_add(h, x, 4, STRIDE, DQ_F32), DQ_E_NONFINITE);
    assert_non_null(strstr(dq_error_text(), "(1, 3)"));
    assert_int_equal(dq_hessian_rows(h), ROWS);
    assert_int_equal(dq_hessian_new(ctx, 0, &again), DQ_E_INVALID);
    assert_int_equal(dq_hessian_rows(NULL), 0);
    dq_hessian_free(h);
    dq_hessian_free(again);
    dq_hessian_free(NULL);
    free(x);
    dq_context_free(ctx);
}

/* ---- weights ---- */

enum { OUT = 20, IN = 48, SAMPLES = 200 };

typedef struct coded {
    uint8_t codes[OUT * IN];
    float scale[OUT * IN], zero[OUT * IN];
    int32_t g_idx[IN];
    int64_t groups;
    double error, damping;
    float w[OUT * IN];
} coded;

static void quantize(dq_context *ctx, const char *settings, const float *w, const dq_hessian *h, coded *c)
{
    dq_config *config = host_config(settings);
    int64_t group = 0;
    OK(dq_config_get_int(config, "w_groupsize", &group));
    OK(dq_quantize_groups(config, IN, &c->groups));
    OK(dq_quantize_weight(ctx, config, w, OUT, IN, h, c->codes, c->scale, c->zero, c->g_idx, &c->error, &c->damping));
    OK(dq_dequantize_weight(ctx, c->codes, c->scale, c->zero, c->g_idx, OUT, IN, group, c->w));
    dq_config_free(config);
}

/* sum |(w - q) x|^2 / sum |w x|^2 over the inputs */
static double output_error(const float *w, const float *q, const float *x)
{
    double lost = 0, all = 0;
    for (int s = 0; s < SAMPLES; s++)
        for (int o = 0; o < OUT; o++) {
            double d = 0, y = 0;
            for (int i = 0; i < IN; i++) {
                d += ((double)w[o * IN + i] - (double)q[o * IN + i]) * (double)x[s * IN + i];
                y += (double)w[o * IN + i] * (double)x[s * IN + i];
            }
            lost += d * d;
            all += y * y;
        }
    return lost / all;
}

static void gptq_beats_rounding(void **state)
{
    (void)state;
    dq_context *ctx = host_context(2);
    dq_hessian *h = NULL;
    float *w = random_matrix(OUT, IN, 3), *x = random_matrix(SAMPLES, IN, 4);
    for (int s = 0; s < SAMPLES; s++) /* inputs that hang together, as real ones do */
        for (int i = 1; i < IN; i++) x[s * IN + i] = 0.8f * x[s * IN + i - 1] + 0.4f * x[s * IN + i];
    OK(dq_hessian_new(ctx, IN, &h));
    OK(dq_hessian_add(h, x, SAMPLES, IN, DQ_F32));
    static const char *const schemes[] = {"w_bits=3", "w_bits=3 w_groupsize=16",
                                          "w_bits=4 w_groupsize=20 w_asym=true act_order=true",
                                          "w_bits=3 w_groupsize=16 act_order=true static_groups=true w_clip=true"};
    for (size_t i = 0; i < sizeof schemes / sizeof *schemes; i++) {
        coded *gptq = calloc(1, sizeof *gptq), *rtn = calloc(1, sizeof *rtn);
        char settings[160];
        snprintf(settings, sizeof settings, "%s w_rtn=true", schemes[i]);
        quantize(ctx, schemes[i], w, h, gptq);
        quantize(ctx, settings, w, NULL, rtn);
        double e = output_error(w, gptq->w, x), r = output_error(w, rtn->w, x);
        assert_true(e < 0.9 * r);
        assert_true(fabs(gptq->error - e) < 0.02 * e + 1e-6); /* what the call reports is the loss of the outputs */
        assert_true(gptq->damping >= 0.01 && rtn->damping == 0);
        double d = 0, n = 0;
        for (int k = 0; k < OUT * IN; k++) {
            d += (double)(w[k] - rtn->w[k]) * (double)(w[k] - rtn->w[k]);
            n += (double)w[k] * (double)w[k];
        }
        assert_true(fabs(rtn->error - d / n) < 1e-5);
        for (int k = 0; k < IN; k++) assert_in_range(gptq->g_idx[k], 0, gptq->groups - 1);
        free(gptq);
        free(rtn);
    }
    dq_hessian_free(h);
    free(w);
    free(x);
    dq_context_free(ctx);
}

static void weight_misuse(void **state)
{
    (void)state;
    dq_context *ctx = host_context(1), *other = host_context(1);
    dq_hessian *h = NULL, *foreign = NULL;
    float *w = random_matrix(OUT, IN, 5);
    coded *c = calloc(1, sizeof *c), *before = calloc(1, sizeof *before);
    dq_config *config = host_config("w_bits=4");
    int64_t groups = 0;
#define QUANTIZE(context, hessian)                                                                                     \
    dq_quantize_weight(context, config, w, OUT, IN, hessian, c->codes, c->scale, c->zero, c->g_idx, NULL, NULL)
    OK(dq_hessian_new(ctx, IN - 1, &h));
    OK(dq_hessian_new(other, IN, &foreign));
    assert_int_equal(QUANTIZE(ctx, NULL), DQ_E_INVALID);
    assert_int_equal(QUANTIZE(ctx, h), DQ_E_MISMATCH);
    assert_int_equal(QUANTIZE(ctx, foreign), DQ_E_INVALID);
    OK(dq_config_set(config, "w_rtn", "true"));
    w[IN + 2] = INFINITY;
    assert_int_equal(QUANTIZE(ctx, NULL), DQ_E_NONFINITE);
    assert_memory_equal(c, before, sizeof *c); /* untouched */
    w[IN + 2] = 0;
    OK(QUANTIZE(ctx, NULL));
    OK(dq_config_set(config, "w_bits", "16"));
    assert_int_equal(QUANTIZE(ctx, NULL), DQ_E_INVALID);
    assert_int_equal(dq_quantize_groups(config, 0, &groups), DQ_E_INVALID);
    c->g_idx[3] = 1;
    assert_int_equal(dq_dequantize_weight(ctx, c->codes, c->scale, c->zero, c->g_idx, OUT, IN, -1, c->w), DQ_E_INVALID);
    assert_int_equal(dq_dequantize_weight(ctx, c->codes, c->scale, c->zero, NULL, OUT, IN, 0, c->w), DQ_E_INVALID);
    dq_hessian_free(h);
    dq_hessian_free(foreign);
    dq_config_free(config);
    free(w);
    free(c);
    free(before);
    dq_context_free(ctx);
    dq_context_free(other);
}

/* ---- fake quantization and KV rows ---- */

static void kv_rows_equal_fake_quant(void **state)
{
    (void)state;
    enum { ROWS = 9, COLS = 32 };
    dq_context *ctx = host_context(2);
    float *x = random_matrix(ROWS, COLS, 6), y[ROWS * COLS], z[ROWS * COLS], scale[ROWS * COLS], zero[ROWS * COLS];
    uint8_t codes[ROWS * COLS];
    for (int i = 0; i < COLS; i++) {
        x[i] = 3.25f;                                 /* one value */
        x[COLS + i] = 0;                              /* nothing */
        x[2 * COLS + i] = 5 + 0.1f * x[2 * COLS + i]; /* far from zero */
    }
    for (int bits = 2; bits <= 8; bits++)
        for (int symmetric = 0; symmetric < 2; symmetric++)
            for (int64_t group = -1; group <= 16; group += group < 0 ? 9 : 8) {
                double clip = bits % 2 ? 0.9 : 1.0;
                memcpy(y, x, sizeof y);
                OK(dq_fake_quantize(ctx, y, ROWS, COLS, bits, group, symmetric, clip));
                OK(dq_kv_quantize_rows(ctx, x, ROWS, COLS, bits, group, symmetric, clip, codes, scale, zero));
                OK(dq_kv_dequantize_rows(ctx, codes, scale, zero, ROWS, COLS, group, z));
                for (int i = 0; i < ROWS * COLS; i++) {
                    assert_true(y[i] == z[i]);
                    assert_true(codes[i] < 1 << bits);
                }
            }
    /* the formula, once, by hand: 4 bits, symmetric, whole row */
    float row[4] = {0.7f, -0.3f, 0.05f, 0.0f}, step = 0.7f / 7.0f;
    OK(dq_fake_quantize(ctx, row, 1, 4, 4, -1, 1, 1.0));
    assert_true(row[0] == step * 7 && row[1] == step * -3 && row[3] == 0);
    assert_int_equal(dq_fake_quantize(ctx, x, ROWS, COLS, 1, -1, 1, 1.0), DQ_E_INVALID);
    assert_int_equal(dq_fake_quantize(ctx, x, ROWS, COLS, 4, 5, 1, 1.0), DQ_E_INVALID);
    assert_int_equal(dq_fake_quantize(ctx, x, ROWS, COLS, 4, -1, 2, 1.0), DQ_E_INVALID);
    assert_int_equal(dq_fake_quantize(ctx, x, ROWS, COLS, 4, -1, 1, 0.0), DQ_E_INVALID);
    assert_int_equal(dq_kv_quantize_rows(ctx, x, ROWS, COLS, 9, -1, 1, 1.0, codes, scale, zero), DQ_E_INVALID);
    x[40] = NAN;
    assert_int_equal(dq_fake_quantize(ctx, x, ROWS, COLS, 4, -1, 1, 1.0), DQ_E_NONFINITE);
    assert_non_null(strstr(dq_error_text(), "(1, 8)"));
    free(x);
    dq_context_free(ctx);
}

/* ---- rotations ---- */

static double energy(const float *x, int64_t n)
{
    double sum = 0;
    for (int64_t i = 0; i < n; i++) sum += (double)x[i] * (double)x[i];
    return sum;
}

static void hadamard_is_orthogonal(void **state)
{
    (void)state;
    static const int64_t orders[] = {1, 2, 64, 12, 20, 28, 40, 172, 192, 576};
    dq_context *ctx = host_context(2);
    for (size_t i = 0; i < sizeof orders / sizeof *orders; i++) {
        int64_t n = orders[i], rows = 5, cols = 3 * n;
        float *x = random_matrix(rows, cols, (uint32_t)n), *y = malloc((size_t)(rows * cols) * sizeof *y);
        memcpy(y, x, (size_t)(rows * cols) * sizeof *y);
        OK(dq_apply_hadamard(ctx, n, y, rows, cols, 0));
        for (int64_t b = 0; b < rows * 3; b++) /* every block keeps its length */
            assert_true(fabs(energy(y + b * n, n) - energy(x + b * n, n)) < 1e-4 * energy(x + b * n, n) + 1e-7);
        if (n > 1) assert_true(memcmp(x, y, (size_t)(rows * cols) * sizeof *y) != 0);
        OK(dq_apply_hadamard(ctx, n, y, rows, cols, 1));
        for (int64_t k = 0; k < rows * cols; k++) assert_true(fabsf(x[k] - y[k]) < 1e-5f);
        free(x);
        free(y);
    }
    /* Sylvester of order 2 in the natural order */
    float pair[3] = {3, 1, 0};
    OK(dq_apply_hadamard(ctx, 2, pair, 1, 2, 0));
    assert_true(fabs(pair[0] - 4 / sqrt(2.0)) < 1e-6 && fabs(pair[1] - 2 / sqrt(2.0)) < 1e-6);
    assert_int_equal(dq_apply_hadamard(ctx, 3, pair, 1, 3, 0), DQ_E_UNSUPPORTED);
    assert_int_equal(dq_apply_hadamard(ctx, 4, pair, 1, 2, 0), DQ_E_INVALID);
    assert_int_equal(dq_apply_hadamard(ctx, 2, pair, 1, 2, 5), DQ_E_INVALID);
    dq_context_free(ctx);
}

/* Buffers beyond one chunk give what their rows give alone. */
static void long_buffers(void **state)
{
    (void)state;
    enum { ROWS = 1200, COLS = 4096 };
    dq_context *ctx = host_context(2);
    float *x = random_matrix(ROWS, COLS, 9), last[COLS];
    memcpy(last, x + (ROWS - 1) * COLS, sizeof last);
    OK(dq_apply_hadamard(ctx, COLS, x, ROWS, COLS, 0));
    OK(dq_apply_hadamard(ctx, COLS, last, 1, COLS, 0));
    for (int i = 0; i < COLS; i++) assert_true(fabsf(last[i] - x[(ROWS - 1) * COLS + i]) < 1e-5f);
    free(x);
    dq_context_free(ctx);
}

/* x R times (w R)^T is x w^T: folding into the input side changes nothing; and y R comes out of the output side. */
static void folding_keeps_the_function(void **state)
{
    (void)state;
    enum { O = 12, I = 8, N = 4 };
    dq_context *ctx = host_context(1);
    float *w = random_matrix(O, I, 11), *bias = random_matrix(1, O, 12), *x = random_matrix(1, I, 13);
    float in[O * I], out[O * I], b[O];
    double c = cos(0.3), s = sin(0.3), c2 = cos(1.1), s2 = sin(1.1);
    double r[N * N] = {c, -s, 0, 0, s, c, 0, 0, 0, 0, c2, s2, 0, 0, -s2, c2};
    memcpy(in, w, sizeof in);
    memcpy(out, w, sizeof out);
    memcpy(b, bias, sizeof b);
    OK(dq_fold_rotation(ctx, in, b, O, I, r, N, DQ_FOLD_INPUT));
    assert_memory_equal(b, bias, sizeof b);
    OK(dq_fold_rotation(ctx, out, b, O, I, r, N, DQ_FOLD_OUTPUT));
    double xr[I] = {0}, y[O], yr[O] = {0};
    for (int i = 0; i < I; i++)
        for (int k = 0; k < N; k++) xr[i] += (double)x[i / N * N + k] * r[k * N + i % N];
    for (int o = 0; o < O; o++) {
        y[o] = bias[o];
        for (int i = 0; i < I; i++) y[o] += (double)x[i] * (double)w[o * I + i];
    }
    for (int o = 0; o < O; o++)
        for (int k = 0; k < N; k++) yr[o] += y[o / N * N + k] * r[k * N + o % N];
    for (int o = 0; o < O; o++) {
        double a = bias[o], z = b[o];
        for (int i = 0; i < I; i++) {
            a += xr[i] * (double)in[o * I + i];
            z += (double)x[i] * (double)out[o * I + i];
        }
        assert_true(fabs(a - y[o]) < 1e-6 && fabs(z - yr[o]) < 1e-6);
    }
    assert_int_equal(dq_fold_rotation(ctx, in, NULL, O, I, r, 3, DQ_FOLD_INPUT), DQ_E_MISMATCH);
    assert_int_equal(dq_fold_rotation(ctx, in, NULL, O, I, r, N, 7), DQ_E_INVALID);
    r[5] = NAN;
    assert_int_equal(dq_fold_rotation(ctx, in, NULL, O, I, r, N, DQ_FOLD_INPUT), DQ_E_NONFINITE);
    free(w);
    free(bias);
    free(x);
    dq_context_free(ctx);
}

/* ---- scores ---- */

static void scores(void **state)
{
    (void)state;
    dq_context *ctx = host_context(2);
    const float logits[3][5] = {{1, 2, 3, 99, 99}, {0, 0, 0, 99, 99}, {-1000, 1000, 1000, 99, 99}};
    const int32_t targets[3] = {0, -1, 2};
    double nll[3] = {7, 7, 7};
    int32_t best[3] = {7, 7, 7};
    OK(dq_score_logits(ctx, &logits[0][0], 3, 3, 5, targets, nll, best));
    assert_true(fabs(nll[0] - (log(exp(1) + exp(2) + exp(3)) - 1)) < 1e-12);
    assert_true(nll[1] == 0 && fabs(nll[2] - log(2)) < 1e-12);
    assert_true(best[0] == 2 && best[1] == 0 && best[2] == 1);
    OK(dq_score_logits(ctx, &logits[0][0], 3, 3, 5, targets, nll, NULL));
    const int32_t outside[1] = {3};
    nll[0] = 7;
    assert_int_equal(dq_score_logits(ctx, &logits[0][0], 1, 3, 5, outside, nll, best), DQ_E_MISMATCH);
    const float broken[3] = {NAN, 1, 2};
    assert_int_equal(dq_score_logits(ctx, broken, 1, 3, 3, targets, nll, best), DQ_E_NONFINITE);
    assert_int_equal(dq_score_logits(ctx, broken, 1, 3, 2, targets, nll, best), DQ_E_INVALID);
    assert_true(nll[0] == 7 && best[0] == 2);
    dq_context_free(ctx);
}

/* Logits of a model scored here give the evaluator's loss. */
static void scores_equal_the_evaluator(void **state)
{
    (void)state;
    enum { SEQLEN = 32 };
    dq_context *ctx = host_context(2);
    dq_config *config = host_config("seqlen=32 limit=1");
    dq_dataset *set = host_ids(ctx, 64);
    dq_model *model = NULL;
    OK(dq_model_open(ctx, "tests/data/tiny", &model));
    int64_t vocab = dq_model_vocab_size(model);
    int32_t ids[SEQLEN], targets[SEQLEN];
    double nll[SEQLEN], sum = 0;
    float *logits = malloc((size_t)(SEQLEN * vocab) * sizeof *logits);
    OK(dq_dataset_copy_ids(set, 0, SEQLEN, ids));
    for (int i = 0; i < SEQLEN; i++) targets[i] = i + 1 < SEQLEN ? ids[i + 1] : -1;
    OK(dq_model_logits(model, ids, SEQLEN, NULL, logits, (size_t)(SEQLEN * vocab)));
    OK(dq_score_logits(ctx, logits, SEQLEN, vocab, vocab, targets, nll, NULL));
    for (int i = 0; i < SEQLEN; i++) sum += nll[i];
    assert_true(fabs(exp(sum / (SEQLEN - 1)) / host_perplexity(model, config, set) - 1) < 1e-4);
    free(logits);
    dq_model_free(model);
    dq_dataset_free(set);
    dq_config_free(config);
    dq_context_free(ctx);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test_teardown(hessian_is_the_sum, host_no_leaks),
        cmocka_unit_test_teardown(gptq_beats_rounding, host_no_leaks),
        cmocka_unit_test_teardown(weight_misuse, host_no_leaks),
        cmocka_unit_test_teardown(kv_rows_equal_fake_quant, host_no_leaks),
        cmocka_unit_test_teardown(hadamard_is_orthogonal, host_no_leaks),
        cmocka_unit_test_teardown(long_buffers, host_no_leaks),
        cmocka_unit_test_teardown(folding_keeps_the_function, host_no_leaks),
        cmocka_unit_test_teardown(scores, host_no_leaks),
        cmocka_unit_test_teardown(scores_equal_the_evaluator, host_no_leaks),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
