/* Kernels of generation for one instruction set, compiled by decode_avx512.c, decode_avx2.c and decode_plain.c. What a row
 * gets does not depend on how many rows there are. SPDX-License-Identifier: Apache-2.0 */
#include "backend/cpu/decode.h"
#include "backend/cpu/vec_exp.h"

/* ---- packed weights ---- */

/* sum over groups of scale * (zero - middle) * (sum of x), what a zero point off the middle takes away. */
static float offset_part(const dq_packed_x *x, int64_t row, const float *scale, const uint8_t *zero, float middle)
{
    const float *sums = x->sum + row * x->groups;
    vf total = vf_zero();
    for (int64_t g = 0; g < x->groups; g += VF) {
        int64_t n = dq_min64(VF, x->groups - g);
        uint8_t bytes[DQ_DECODE_LANES] = {0};
        memcpy(bytes, zero + g, (size_t)n);
        vf z = vf_load_u8(bytes) - vf_set1(middle);
        total = vf_madd(vf_load_n(scale + g, n) * z, vf_load_n(sums + g, n), total);
    }
    return vf_sum(total);
}

/* `bits` and `rows` are constants where this is called. */
VEC_INLINE void packed_rows(const dq_packed_x *x, int64_t first, int rows, int bits, const uint8_t *codes,
                            const float *scale, float *out)
{
    int per = 32 / bits;
    vf sum[4];
    for (int r = 0; r < rows; r++) sum[r] = vf_zero();
    for (int64_t b = 0; b < x->blocks; b++) {
        const uint8_t *at = codes + b * VF * 4;
        uint8_t tail[4 * DQ_DECODE_LANES] = {0};
        int64_t left = x->row_bytes - b * VF * 4;
        if (left < VF * 4) {
            memcpy(tail, at, (size_t)left);
            at = tail;
        }
        vw words = vw_load(at);
        const float *column = x->x + first * x->stride + b * per * VF;
        vf part[4];
        for (int r = 0; r < rows; r++) part[r] = vf_zero();
        for (int i = 0; i < per; i++) {
            vf code = bits == 4 ? vw_nibble(words, i) : vw_byte(words, i);
            for (int r = 0; r < rows; r++) part[r] = vf_madd(code, vf_load(column + r * x->stride + i * VF), part[r]);
        }
        int32_t group = x->block_group[b];
        vf s = vf_pick(scale + group, dq_min64(VF, x->groups - group), x->lane_group + b * VF);
        for (int r = 0; r < rows; r++) sum[r] = vf_madd(s, part[r], sum[r]);
    }
    for (int r = 0; r < rows; r++) out[first + r] = vf_sum(sum[r]);
}

VEC_INLINE void packed_any(const dq_packed_x *x, int bits, const uint8_t *codes, const float *scale,
                           const uint8_t *zero, float *out)
{
    int64_t r = 0;
    for (; r + 4 <= x->rows; r += 4) packed_rows(x, r, 4, bits, codes, scale, out);
    if (r + 2 <= x->rows) {
        packed_rows(x, r, 2, bits, codes, scale, out);
        r += 2;
    }
    if (r < x->rows) packed_rows(x, r, 1, bits, codes, scale, out);
    for (r = 0; zero && r < x->rows; r++) out[r] -= offset_part(x, r, scale, zero, bits == 4 ? 8 : 128);
}

static void packed4(const dq_packed_x *x, const uint8_t *codes, const float *scale, const uint8_t *zero, float *out)
{
    packed_any(x, 4, codes, scale, zero, out);
}

static void packed8(const dq_packed_x *x, const uint8_t *codes, const float *scale, const uint8_t *zero, float *out)
{
    packed_any(x, 8, codes, scale, zero, out);
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
    .dense = dense,
    .scores = scores,
    .softmax = softmax,
    .weigh = weigh,
};
