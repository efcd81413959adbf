/* Packed linears and attention over cached keys and values. SPDX-License-Identifier: Apache-2.0 */
#include <math.h>

#include "backend/ref/ops.h"
#include "base/fp8.h"

/* ---- packed linear ---- */

dq_status dq_ref_check_order(void *dev, const dq_view *order, int64_t columns)
{
    for (int64_t j = 0; order && j < order->cols; j++) {
        int32_t at = dq_view_i32(order, 0)[j];
        if (at < -1 || at >= columns)
            return dq_ref_fail(dev, DQ_E_INVALID, "packed_linear: order[%lld] is %d, x has %lld columns", (long long)j,
                               at, (long long)columns);
    }
    return DQ_OK;
}

static int code_at(const uint8_t *codes, int64_t j, int bits)
{
    return bits == 8 ? codes[j] : j & 1 ? codes[j / 2] >> 4 : codes[j / 2] & 15;
}

/* The weight of a code, as backend.h defines it. */
static float weight_of(const dq_packed_desc *d, const dq_view *scale, const dq_view *zero, int64_t o, int64_t g,
                       int code)
{
    float s = (float)dq_ref_get(scale, o, g);
    if (!zero) return s * (float)(code - (1 << (d->bits - 1)));
    if (zero->dtype == DQ_U8) return s * (float)(code - dq_view_u8(zero, o)[g]);
    float product = s * (float)code;
    return product + (float)dq_ref_get(zero, o, g);
}

/* The values that n of x are rounded to under DQ_MATH_INT8. */
static void round_run(double *x, int64_t n)
{
    float top = 0, probe = 0;
    for (int64_t i = 0; i < n; i++) {
        top = fmaxf(top, fabsf((float)x[i]));
        probe += (float)x[i] * 0.0f; /* NaN where one is not finite */
    }
    float scale = top / 127.0f + probe;
    for (int64_t i = 0; i < n; i++) x[i] = scale == 0 ? 0.0 : (double)scale * rintf((float)x[i] / scale);
}

/* Row r of x as the codes' columns see it. */
static void operands(const dq_packed_desc *d, const dq_view *x, const dq_view *order, int64_t r, int64_t n, bool round,
                     double *out)
{
    enum { RUN = 32 };
    const int32_t *from = order ? dq_view_i32(order, 0) : NULL;
    for (int64_t j = 0; j < n; j++) {
        int64_t column = from ? from[j] : j;
        out[j] = column < 0 ? 0 : dq_ref_operand(x, r, column, round ? DQ_MATH_F32 : d->math & ~DQ_MATH_INT8);
    }
    for (int64_t j = 0; round && j < n; j += RUN) round_run(out + j, n - j < RUN ? n - j : RUN);
}

dq_status dq_ref_packed_linear(void *dev, const dq_packed_desc *d, const dq_view *x, const dq_view *codes,
                               const dq_view *scale, const dq_view *zero, const dq_view *order, const dq_view *y)
{
    int64_t n = order ? order->cols : x->cols;
    bool round = (d->math & DQ_MATH_INT8) && (d->group % 32 == 0 || scale->cols == 1);
    bool narrow = !round && (d->math & DQ_MATH_BF16);
    dq_status status = dq_ref_check_order(dev, order, x->cols);
    if (status != DQ_OK) return status;
    double *row = dq_ref_scratch(dev, n, sizeof *row);
    if (!row) return DQ_E_NOMEM;
    for (int64_t r = 0; r < y->rows; r++) {
        operands(d, x, order, r, n, round, row);
        for (int64_t o = 0; o < y->cols; o++) {
            double sum = 0;
            for (int64_t j = 0; j < n; j++) {
                float w = weight_of(d, scale, zero, o, j / d->group, code_at(dq_view_u8(codes, o), j, d->bits));
                if (narrow) w = dq_bf16_to_f32(dq_f32_to_bf16(w));
                sum += row[j] * w;
            }
            dq_ref_put(y, r, o, d->beta != 0 ? d->beta * dq_ref_get(y, r, o) + sum : sum);
        }
    }
    dq_ref_release(dev, row);
    return DQ_OK;
}

/* ---- keys and values ---- */

/* One head of one token. */
static void encode(const dq_kv_desc *d, const float *x, int64_t n, uint8_t *codes, int64_t first, float *grid)
{
    float lo = 0, hi = 0, maxq = (float)((1 << d->bits) - 1);
    for (int64_t c = 0; c < n; c++) {
        if (x[c] < lo) lo = x[c];
        if (x[c] > hi) hi = x[c];
    }
    if (lo == 0 && hi == 0) {
        lo = -1;
        hi = 1;
    }
    float scale = (hi - lo) / maxq;
    if (scale == 0) scale = 1; /* a range so small that nothing is left */
    float zero = rintf(-lo / scale);
    for (int64_t c = 0; c < n; c++) {
        int code = (int)fminf(fmaxf(rintf(x[c] / scale) + zero, 0), maxq); /* a NaN becomes 0 */
        int64_t at = first + c;
        if (d->bits == 8)
            codes[at] = (uint8_t)code;
        else if (at & 1)
            codes[at / 2] = (uint8_t)((codes[at / 2] & 15) | code << 4);
        else
            codes[at / 2] = (uint8_t)((codes[at / 2] & 0xf0) | code);
    }
    grid[0] = scale;
    grid[1] = zero;
}

dq_status dq_ref_kv_store(void *dev, const dq_kv_desc *d, const dq_view *x, const dq_view *slot, const dq_view *cache,
                          const dq_view *grid)
{
    dq_status status = dq_ref_check_index(dev, slot, cache->rows, "kv_store");
    if (status != DQ_OK) return status;
    for (int64_t r = 0; r < x->rows; r++) {
        int64_t to = dq_view_i32(slot, 0)[r];
        const float *from = dq_view_f32(x, r);
        if (d->kind == DQ_KV_INT) {
            for (int64_t h = 0; h < d->heads; h++)
                encode(d, from + h * d->head_dim, d->head_dim, dq_view_u8(cache, to), h * d->head_dim,
                       dq_view_f32(grid, to) + 2 * h);
            continue;
        }
        for (int64_t c = 0; c < x->cols; c++)
            if (d->kind == DQ_KV_FP8)
                dq_view_u8(cache, to)[c] = dq_f32_to_e4m3(from[c]);
            else
                dq_ref_put(cache, to, c, from[c]);
    }
    return DQ_OK;
}

static double cached(const dq_kv_desc *d, const dq_view *cache, const dq_view *grid, int64_t row, int64_t head,
                     int64_t c)
{
    int64_t at = head * d->head_dim + c;
    if (d->kind == DQ_KV_FLOAT) return dq_ref_get(cache, row, at);
    if (d->kind == DQ_KV_FP8) return dq_e4m3_to_f32(dq_view_u8(cache, row)[at]);
    const float *g = dq_view_f32(grid, row) + 2 * head;
    return g[0] * ((float)code_at(dq_view_u8(cache, row), at, d->bits) - g[1]);
}

dq_status dq_ref_check_span(void *dev, const dq_view *span, int64_t slots)
{
    for (int64_t r = 0; r < span->cols; r++) {
        int64_t first = dq_view_i32(span, 0)[r], count = dq_view_i32(span, 1)[r];
        if (first < 0 || count < 1 || first + count > slots)
            return dq_ref_fail(dev, DQ_E_INVALID, "kv_attention: row %lld sees slots %lld..%lld of %lld", (long long)r,
                               (long long)first, (long long)(first + count), (long long)slots);
    }
    return DQ_OK;
}

dq_status dq_ref_kv_attention(void *dev, const dq_kv_attention_desc *d, const dq_view *q, const dq_view *k,
                              const dq_view *k_grid, const dq_view *v, const dq_view *v_grid, const dq_view *span,
                              const dq_view *o)
{
    int64_t dim = d->kv.head_dim, share = d->heads / d->kv.heads;
    dq_status status = dq_ref_check_span(dev, span, k->rows);
    if (status != DQ_OK) return status;
    double *p = dq_ref_scratch(dev, k->rows + dim, sizeof(double)), *sum = p + k->rows;
    if (!p) return DQ_E_NOMEM;
    for (int64_t r = 0; r < q->rows; r++)
        for (int64_t h = 0; h < d->heads; h++) {
            int64_t first = dq_view_i32(span, 0)[r], count = dq_view_i32(span, 1)[r];
            double top = -INFINITY, total = 0;
            for (int64_t j = 0; j < count; j++) {
                double dot = 0;
                for (int64_t c = 0; c < dim; c++)
                    dot += dq_ref_get(q, r, h * dim + c) * cached(&d->kv, k, k_grid, first + j, h / share, c);
                p[j] = dot * d->scale;
                if (p[j] > top) top = p[j];
            }
            for (int64_t c = 0; c < dim; c++) sum[c] = 0;
            for (int64_t j = 0; j < count; j++) {
                double weight = exp(p[j] - top);
                total += weight;
                for (int64_t c = 0; c < dim; c++) sum[c] += weight * cached(&d->kv, v, v_grid, first + j, h / share, c);
            }
            for (int64_t c = 0; c < dim; c++) dq_ref_put(o, r, h * dim + c, sum[c] / total);
        }
    dq_ref_release(dev, p);
    return DQ_OK;
}
