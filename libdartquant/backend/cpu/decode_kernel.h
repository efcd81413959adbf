/* Kernels of generation for one instruction set, compiled by decode_avx512.c, decode_avx2.c and decode_plain.c. What a row
 * gets does not depend on how many rows there are. SPDX-License-Identifier: Apache-2.0 */
#include "backend/cpu/decode.h"
#include "backend/cpu/vec_exp.h"
#include "base/half.h"

/* ---- packed weights ---- */

enum { AHEAD = 2048 /* bytes: where codes are asked for early, across the rows of a task */ };

/* n <= VF scales from the one at `first` on. */
VEC_INLINE vf scales_at(const void *scale, bool half, int64_t first, int64_t n)
{
    return half ? vf_load_f16_n((const uint16_t *)scale + first, n) : vf_load_n((const float *)scale + first, n);
}

/* What has to be added to the products with codes less the middle: sum over groups of (sum of x) times
 *   scale * (middle - zero), or scale * middle + zero where that is a minimum. */
VEC_INLINE float offset_part(const dq_packed_x *x, int64_t row, const dq_packed_w *w, float middle)
{
    const float *sums = x->sum + row * x->groups;
    vf total = vf_zero();
    for (int64_t g = 0; g < x->groups; g += VF) {
        int64_t n = dq_min64(VF, x->groups - g);
        vf scale = scales_at(w->scale, w->half, g, n), factor;
        if (w->minimum) {
            factor = vf_madd(scale, vf_set1(middle), scales_at(w->zero, w->half, g, n));
        } else {
            uint8_t bytes[DQ_DECODE_LANES] = {0};
            memcpy(bytes, (const uint8_t *)w->zero + g, (size_t)n);
            factor = scale * (vf_set1(middle) - vf_load_u8(bytes));
        }
        total = vf_madd(factor, vf_load_n(sums + g, n), total);
    }
    return vf_sum(total);
}

/* `bits`, `rows` and `half` are constants where this is called. */
VEC_INLINE void packed_rows(const dq_packed_x *x, int64_t first, int rows, int bits, bool half, const dq_packed_w *w,
                            float *out)
{
    int per = 32 / bits;
    vf sum[4];
    for (int r = 0; r < rows; r++) sum[r] = vf_zero();
    for (int64_t b = 0; b < x->blocks; b++) {
        const uint8_t *at = w->codes + b * VF * 4;
        __builtin_prefetch(at + AHEAD);
        vw words = vw_load_n(at, x->row_bytes - b * VF * 4);
        const float *column = x->x + first * x->stride + b * per * VF;
        vf part[4];
        for (int r = 0; r < rows; r++) part[r] = vf_zero();
        for (int i = 0; i < per; i++) {
            vf code = bits == 4 ? vw_nibble(words, i) : vw_byte(words, i);
            for (int r = 0; r < rows; r++) part[r] = vf_madd(code, vf_load(column + r * x->stride + i * VF), part[r]);
        }
        int32_t group = x->block_group[b];
        vf s = scales_at(w->scale, half, group, dq_min64(VF, x->groups - group));
        s = vf_shuffle(s, x->lane_group + b * VF);
        for (int r = 0; r < rows; r++) sum[r] = vf_madd(s, part[r], sum[r]);
    }
    for (int r = 0; r < rows; r++) out[first + r] = vf_sum(sum[r]);
}

VEC_INLINE void packed_any(const dq_packed_x *x, int bits, bool half, const dq_packed_w *w, float *out)
{
    int64_t r = 0;
    for (; r + 4 <= x->rows; r += 4) packed_rows(x, r, 4, bits, half, w, out);
    if (r + 2 <= x->rows) {
        packed_rows(x, r, 2, bits, half, w, out);
        r += 2;
    }
    if (r < x->rows) packed_rows(x, r, 1, bits, half, w, out);
    for (r = 0; w->zero && r < x->rows; r++) out[r] += offset_part(x, r, w, bits == 4 ? 8 : 128);
}

static void packed4(const dq_packed_x *x, const dq_packed_w *w, float *out)
{
    if (w->half)
        packed_any(x, 4, true, w, out);
    else
        packed_any(x, 4, false, w, out);
}

static void packed8(const dq_packed_x *x, const dq_packed_w *w, float *out)
{
    if (w->half)
        packed_any(x, 8, true, w, out);
    else
        packed_any(x, 8, false, w, out);
}

static float scale_at(const void *scale, bool half, int64_t g)
{
    return half ? dq_f16_to_f32(((const uint16_t *)scale)[g]) : ((const float *)scale)[g];
}

static void dequantize(const dq_packed_w *w, int bits, const uint8_t *codes, int64_t n, int64_t group, float *out)
{
    for (int64_t first = 0, g = 0; first < n; first += group, g++) {
        int64_t end = dq_min64(n, first + group), c = first;
        float s = scale_at(w->scale, w->half, g), zero = (float)(1 << (bits - 1)), minimum = 0;
        if (w->minimum)
            minimum = scale_at(w->zero, w->half, g);
        else if (w->zero)
            zero = ((const uint8_t *)w->zero)[g];
        if (w->minimum) {
            for (; c + VF <= end; c += VF) vf_store(out + c, vf_set1(s) * vf_load_u8(codes + c) + vf_set1(minimum));
            for (; c < end; c++) out[c] = s * (float)codes[c] + minimum;
        } else {
            for (; c + VF <= end; c += VF) vf_store(out + c, vf_set1(s) * (vf_load_u8(codes + c) - vf_set1(zero)));
            for (; c < end; c++) out[c] = s * ((float)codes[c] - zero);
        }
    }
}

/* ---- plain weights ---- */

VEC_INLINE vf weight_at(const void *w, dq_dtype dtype, int64_t c)
{
    if (dtype == DQ_F32) return vf_load((const float *)w + c);
    return dtype == DQ_F16 ? vf_load_f16((const uint16_t *)w + c) : vf_load_bf16((const uint16_t *)w + c);
}

/* `rows` and `dtype` are constants where this is called. Two sums each, so that a row does not wait for its own. */
VEC_INLINE void dense_rows(const float *x, int64_t stride, int rows, const void *w, dq_dtype dtype, int64_t n,
                           float *out)
{
    vf sum[2][2];
    int64_t c = 0, size = dtype == DQ_F32 ? 4 : 2;
    for (int r = 0; r < rows; r++) sum[0][r] = sum[1][r] = vf_zero();
    for (; c + 2 * VF <= n; c += 2 * VF)
        for (int u = 0; u < 2; u++) {
            vf weight = weight_at(w, dtype, c + u * VF);
            for (int r = 0; r < rows; r++) sum[u][r] = vf_madd(weight, vf_load(x + r * stride + c + u * VF), sum[u][r]);
        }
    for (; c < n; c += VF) {
        int64_t left = dq_min64(VF, n - c);
        _Alignas(64) unsigned char wide[4 * DQ_DECODE_LANES] = {0};
        memcpy(wide, (const char *)w + c * size, (size_t)(left * size));
        vf weight = weight_at(wide, dtype, 0);
        for (int r = 0; r < rows; r++) sum[0][r] = vf_madd(weight, vf_load_n(x + r * stride + c, left), sum[0][r]);
    }
    for (int r = 0; r < rows; r++) out[r] = vf_sum(sum[0][r] + sum[1][r]);
}

VEC_INLINE void dense_any(const float *x, int64_t stride, int64_t rows, const void *w, dq_dtype dtype, int64_t n,
                          float *out)
{
    int64_t r = 0;
    for (; r + 2 <= rows; r += 2) dense_rows(x + r * stride, stride, 2, w, dtype, n, out + r);
    if (r < rows) dense_rows(x + r * stride, stride, 1, w, dtype, n, out + r);
}

static void dense(const float *x, int64_t stride, int64_t rows, const void *w, dq_dtype dtype, int64_t n, float *out)
{
    if (dtype == DQ_F32)
        dense_any(x, stride, rows, w, DQ_F32, n, out);
    else if (dtype == DQ_F16)
        dense_any(x, stride, rows, w, DQ_F16, n, out);
    else
        dense_any(x, stride, rows, w, DQ_BF16, n, out);
}

/* ---- attention ---- */

static void scores(const float *q, const dq_keys *k, float scale, float *p)
{
    for (int64_t j = 0; j < k->count; j++) {
        const float *key = k->at + j * k->stride;
        vf sum = vf_zero();
        int64_t c = 0;
        for (; c + VF <= k->dim; c += VF) sum = vf_madd(vf_load(q + c), vf_load(key + c), sum);
        if (c < k->dim) sum = vf_madd(vf_load_n(q + c, k->dim - c), vf_load_n(key + c, k->dim - c), sum);
        p[j] = scale * vf_sum(sum);
    }
}

static void softmax(float *p, int64_t n)
{
    float top = p[0];
    for (int64_t j = 1; j < n; j++) top = p[j] > top ? p[j] : top;
    vf total = vf_zero();
    for (int64_t j = 0; j < n; j += VF) {
        int64_t left = dq_min64(VF, n - j);
        vf e = vf_keep_n(vf_exp(vf_load_n(p + j, left) - vf_set1(top)), vf_zero(), left);
        vf_store_n(p + j, e, left);
        total = total + e;
    }
    vf part = vf_set1(1.0f / vf_sum(total));
    for (int64_t j = 0; j < n; j += VF) vf_store_n(p + j, vf_load_n(p + j, n - j) * part, n - j);
}

static void weigh(const float *p, const dq_keys *v, float *o)
{
    for (int64_t c = 0; c < v->dim; c += VF) {
        int64_t left = dq_min64(VF, v->dim - c);
        vf sum = vf_load_n(o + c, left);
        const float *at = v->at + c;
        if (left == VF)
            for (int64_t j = 0; j < v->count; j++) sum = vf_madd(vf_set1(p[j]), vf_load(at + j * v->stride), sum);
        else
            for (int64_t j = 0; j < v->count; j++)
                sum = vf_madd(vf_set1(p[j]), vf_load_n(at + j * v->stride, left), sum);
        vf_store_n(o + c, sum, left);
    }
}

const dq_decode_kernels DQ_ISA(dq_decode) = {
    .lanes = VF,
    .packed4 = packed4,
    .packed8 = packed8,
    .dequantize = dequantize,
    .dense = dense,
    .scores = scores,
    .softmax = softmax,
    .weigh = weigh,
};
