/* dartquant/tensor_ops.h: activations, KV caches and rotations in the host's buffers. SPDX-License-Identifier: Apache-2.0 */
#include <math.h>

#include "api/buffer_ops.h"
#include "api/check.h"
#include "api/handles.h"
#include "api/weight_ops.h"
#include "dartquant/tensor_ops.h"
#include "graph/block.h"
#include "rotation/rotation.h"

enum { CHUNK = 1 << 22 }; /* elements that go to the device at a time, whole rows */

dq_status dq_check_matrix(const char *what, int64_t rows, int64_t cols)
{
    size_t bytes;
    if (rows < 1 || cols < 1 || cols > INT32_MAX || !dq_mul_ok((size_t)rows, (size_t)cols * sizeof(double), &bytes) ||
        bytes > INT64_MAX)
        return dq_fail(DQ_E_INVALID, "%s of %lld x %lld", what, (long long)rows, (long long)cols);
    return DQ_OK;
}

dq_status dq_check_finite(const char *what, const float *x, int64_t rows, int64_t cols)
{
    for (int64_t i = 0; i < rows * cols; i++)
        if (!isfinite(x[i]))
            return dq_fail(DQ_E_NONFINITE, "%s (%lld, %lld) is NaN or Inf", what, (long long)(i / cols),
                           (long long)(i % cols));
    return DQ_OK;
}

/* ---- in place, chunk by chunk ---- */

dq_status dq_run_in_place(dq_context *ctx, float *x, int64_t rows, int64_t cols, dq_buffer_fn fn, const void *arg)
{
    int64_t most = cols < CHUNK ? CHUNK / cols : 1;
    float *result = x;
    if (most > rows) most = rows;
    if (most < rows && !(result = dq_alloc(&ctx->env, (size_t)(rows * cols) * sizeof *x))) return DQ_E_NOMEM;
    dq_status status = DQ_OK;
    for (int64_t r = 0; r < rows && status == DQ_OK; r += most) {
        int64_t n = rows - r < most ? rows - r : most;
        dq_tensor t = {0};
        status = dq_tensor_from_host(ctx->dev, DQ_F32, n, cols, x + r * cols, &t);
        if (status == DQ_OK) status = fn(arg, r, &t);
        if (status == DQ_OK) status = dq_tensor_download(&t, result + r * cols);
        dq_tensor_free(&t);
    }
    if (result != x) {
        if (status == DQ_OK) memcpy(x, result, (size_t)(rows * cols) * sizeof *x);
        dq_free(result);
    }
    return status;
}

/* ---- fake quantization ---- */

static dq_status make_desc(int32_t bits, int32_t most_bits, int64_t cols, int64_t group, int32_t symmetric, double clip,
                           dq_fake_quant_desc *out)
{
    if (bits < 2 || bits > most_bits) return dq_fail(DQ_E_INVALID, "%d bits, 2 to %d are possible", bits, most_bits);
    if (symmetric != 0 && symmetric != 1) return dq_fail(DQ_E_INVALID, "symmetric = %d, must be 0 or 1", symmetric);
    if (!(clip > 0 && clip <= 1)) return dq_fail(DQ_E_INVALID, "a clip ratio of %g is not in (0, 1]", clip);
    if (group != -1 && (group < 1 || cols % group != 0))
        return dq_fail(DQ_E_INVALID, "groups of %lld do not divide %lld columns", (long long)group, (long long)cols);
    *out = (dq_fake_quant_desc){.bits = bits,
                                .symmetric = symmetric,
                                .group = group == -1 ? cols : group,
                                .clip = (float)clip,
                                .zero_in_range = group == -1};
    return DQ_OK;
}

static dq_status fake_quant(const void *arg, int64_t row, dq_tensor *x)
{
    (void)row;
    return dq_op_fake_quant(arg, x, x);
}

dq_status dq_fake_quantize(dq_context *ctx, float *x, int64_t rows, int64_t cols, int32_t bits, int64_t group,
                           int32_t symmetric, double clip)
{
    DQ_ENTER_CONTEXT(ctx, ctx && x);
    dq_fake_quant_desc d;
    DQ_TRY(dq_check_matrix("a buffer", rows, cols));
    DQ_TRY(make_desc(bits, 15, cols, group, symmetric, clip, &d));
    DQ_TRY(dq_check_finite("buffer element", x, rows, cols));
    return dq_run_in_place(ctx, x, rows, cols, fake_quant, &d);
}

/* ---- rows of a KV cache ---- */

typedef struct kv_job {
    dq_fake_quant_desc d;
    const float *x;
    int64_t cols, groups;
    uint8_t *codes;
    float *scale, *zero;
} kv_job;

static float clampf(float x, float lo, float hi) { return x < lo ? lo : x > hi ? hi : x; }

/* As backend/ref/fake_quant.c, step by step, but what is kept are the integers. */
static void quantize_group(const dq_fake_quant_desc *d, const float *x, uint8_t *codes, float *scale, float *zero)
{
    float lo = x[0], hi = x[0];
    for (int64_t i = 1; i < d->group; i++) {
        if (x[i] < lo) lo = x[i];
        if (x[i] > hi) hi = x[i];
    }
    if (d->zero_in_range && lo > 0) lo = 0;
    if (d->zero_in_range && hi < 0) hi = 0;
    lo *= d->clip;
    hi *= d->clip;
    float maxq = (float)((1 << d->bits) - 1), shift;
    if (d->symmetric) {
        float positive = (float)((1 << (d->bits - 1)) - 1);
        *scale = fmaxf(fabsf(lo), fabsf(hi)) / positive;
        if (*scale == 0) *scale = 1;
        shift = positive + 1; /* code = q + 2^(bits-1) */
    } else {
        if (lo == 0 && hi == 0) {
            lo = -1;
            hi = 1;
        }
        *scale = (hi - lo) / maxq;
        if (*scale == 0) { /* empty range: code 0 stands for the number itself */
            *scale = x[0];
            *zero = -1;
            memset(codes, 0, (size_t)d->group);
            return;
        }
        shift = rintf(-lo / *scale);
    }
    *zero = shift;
    for (int64_t i = 0; i < d->group; i++) codes[i] = (uint8_t)clampf(rintf(x[i] / *scale) + shift, 0, maxq);
}

static void quantize_row(void *arg, int64_t r, int thread)
{
    (void)thread;
    const kv_job *j = arg;
    for (int64_t g = 0; g < j->groups; g++) {
        int64_t at = r * j->cols + g * j->d.group;
        quantize_group(&j->d, j->x + at, j->codes + at, &j->scale[r * j->groups + g], &j->zero[r * j->groups + g]);
    }
}

dq_status dq_kv_quantize_rows(dq_context *ctx, const float *x, int64_t rows, int64_t cols, int32_t bits, int64_t group,
                              int32_t symmetric, double clip, uint8_t *codes, float *scale, float *zero)
{
    DQ_ENTER_CONTEXT(ctx, ctx && x && codes && scale && zero);
    kv_job job = {.x = x, .cols = cols, .codes = codes, .scale = scale, .zero = zero};
    DQ_TRY(dq_check_matrix("rows of a cache", rows, cols));
    DQ_TRY(make_desc(bits, 8, cols, group, symmetric, clip, &job.d));
    DQ_TRY(dq_check_finite("cache element", x, rows, cols));
    job.groups = cols / job.d.group;
    dq_run(&ctx->env, rows, quantize_row, &job);
    return DQ_OK;
}

dq_status dq_kv_dequantize_rows(dq_context *ctx, const uint8_t *codes, const float *scale, const float *zero,
                                int64_t rows, int64_t cols, int64_t group, float *x)
{
    DQ_ENTER_CONTEXT(ctx, ctx && codes && scale && zero && x);
    DQ_TRY(dq_check_matrix("rows of a cache", rows, cols));
    if (group != -1 && (group < 1 || cols % group != 0))
        return dq_fail(DQ_E_INVALID, "groups of %lld do not divide %lld columns", (long long)group, (long long)cols);
    return dq_dequantize_rows(&ctx->env, codes, scale, zero, NULL, rows, cols, group, x);
}

/* ---- rotations ---- */

typedef struct transform {
    dq_hadamard h;
    int32_t transpose;
} transform;

static dq_status hadamard(const void *arg, int64_t row, dq_tensor *x)
{
    (void)row;
    const transform *t = arg;
    dq_hadamard_desc d = {.n = t->h.n,
                          .k = t->h.k,
                          .hk = t->h.hk,
                          .inner = 1,
                          .transpose = t->transpose,
                          .scale = 1.0 / sqrt((double)t->h.n)};
    return dq_op_hadamard(&d, x, x);
}

dq_status dq_apply_hadamard(dq_context *ctx, int64_t n, float *x, int64_t rows, int64_t cols, int32_t transpose)
{
    DQ_ENTER_CONTEXT(ctx, ctx && x);
    transform t = {.transpose = transpose};
    DQ_TRY(dq_check_matrix("a buffer", rows, cols));
    if (transpose != 0 && transpose != 1) return dq_fail(DQ_E_INVALID, "transpose = %d, must be 0 or 1", transpose);
    if (n < 1 || cols % n != 0)
        return dq_fail(DQ_E_INVALID, "order %lld does not divide %lld columns", (long long)n, (long long)cols);
    DQ_TRY(dq_check_finite("buffer element", x, rows, cols));
    DQ_TRY(dq_hadamard_make(&ctx->env, n, false, &t.h));
    dq_status status = dq_run_in_place(ctx, x, rows, cols, hadamard, &t);
    dq_hadamard_clear(&t.h);
    return status;
}

/* to = R-turned `from`, both F64 [out, in]. */
static dq_status fold(const dq_tensor *from, const dq_tensor *r, int32_t side, dq_tensor *to)
{
    int64_t n = r->view.rows, length = side == DQ_FOLD_INPUT ? from->view.cols : from->view.rows;
    for (int64_t i = 0; i < length; i += n) {
        if (side == DQ_FOLD_INPUT) {
            dq_tensor a = dq_tensor_slice(from, 0, from->view.rows, i, n);
            dq_tensor b = dq_tensor_slice(to, 0, to->view.rows, i, n);
            DQ_TRY(dq_op_gemm(false, false, 1.0, &a, r, 0.0, &b, DQ_MATH_F32));
        } else {
            dq_tensor a = dq_tensor_rows(from, i, n), b = dq_tensor_rows(to, i, n);
            DQ_TRY(dq_op_gemm(true, false, 1.0, r, &a, 0.0, &b, DQ_MATH_F32));
        }
    }
    return DQ_OK;
}

/* x fp32 [rows, cols] through `fold` into `result`. */
static dq_status fold_matrix(dq_context *ctx, const float *x, int64_t rows, int64_t cols, const dq_tensor *r,
                             int32_t side, float *result)
{
    dq_tensor narrow = {0}, wide = {0}, turned = {0};
    dq_status status;
    int64_t bad;
    DQ_GO(dq_tensor_from_host(ctx->dev, DQ_F32, rows, cols, x, &narrow));
    DQ_GO(dq_tensor_alloc(ctx->dev, DQ_F64, rows, cols, &wide));
    DQ_GO(dq_tensor_alloc(ctx->dev, DQ_F64, rows, cols, &turned));
    DQ_GO(dq_op_convert(&narrow, &wide));
    DQ_GO(fold(&wide, r, side, &turned));
    DQ_GO(dq_op_convert(&turned, &narrow));
    DQ_GO(dq_op_find_nonfinite(&narrow, &bad));
    if (bad >= 0)
        DQ_GO(dq_fail(DQ_E_NONFINITE, "the folded weight is not finite in row %lld, column %lld",
                      (long long)(bad / cols), (long long)(bad % cols)));
    status = dq_tensor_download(&narrow, result);
done:
    dq_tensor_free(&narrow);
    dq_tensor_free(&wide);
    dq_tensor_free(&turned);
    return status;
}

dq_status dq_fold_rotation(dq_context *ctx, float *w, float *bias, int64_t out, int64_t in, const double *r, int64_t n,
                           int32_t side)
{
    DQ_ENTER_CONTEXT(ctx, ctx && w && r);
    dq_tensor rotation = {0};
    dq_status status;
    DQ_TRY(dq_check_matrix("a weight", out, in));
    if (side != DQ_FOLD_INPUT && side != DQ_FOLD_OUTPUT)
        return dq_fail(DQ_E_INVALID, "side = %d, must be DQ_FOLD_INPUT or DQ_FOLD_OUTPUT", side);
    int64_t length = side == DQ_FOLD_INPUT ? in : out;
    if (n < 1 || length % n != 0)
        return dq_fail(DQ_E_MISMATCH, "a rotation of order %lld does not divide the %lld features of that side",
                       (long long)n, (long long)length);
    bool turns_bias = bias && side == DQ_FOLD_OUTPUT;
    float *result = dq_alloc(&ctx->env, (size_t)(out * in) * sizeof *w);
    float *column = dq_alloc(&ctx->env, (size_t)out * sizeof *bias);
    DQ_GO(result && column ? DQ_OK : DQ_E_NOMEM);
    for (int64_t i = 0; i < n * n; i++)
        if (!isfinite(r[i]))
            DQ_GO(dq_fail(DQ_E_NONFINITE, "rotation entry (%lld, %lld) is NaN or Inf", (long long)(i / n),
                          (long long)(i % n)));
    DQ_GO(dq_check_finite("weight", w, out, in));
    if (turns_bias) DQ_GO(dq_check_finite("bias", bias, 1, out));
    DQ_GO(dq_tensor_from_host(ctx->dev, DQ_F64, n, n, r, &rotation));
    DQ_GO(fold_matrix(ctx, w, out, in, &rotation, side, result));
    if (turns_bias) DQ_GO(fold_matrix(ctx, bias, out, 1, &rotation, side, column)); /* one more column of the weight */
    memcpy(w, result, (size_t)(out * in) * sizeof *w);
    if (turns_bias) memcpy(bias, column, (size_t)out * sizeof *bias);
done:
    dq_tensor_free(&rotation);
    dq_free(result);
    dq_free(column);
    return status;
}
