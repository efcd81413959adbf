/* Kernels of generation for one instruction set, compiled by decode_avx512.c, decode_avx2.c and decode_plain.c. What a row
 * gets does not depend on how many rows there are. SPDX-License-Identifier: Apache-2.0 */
#include "backend/cpu/dots_kernel.h"
#include "backend/cpu/vec_exp.h"
#include "base/half.h"

/* ---- packed weights ---- */

/* One block of x against `outs` rows of weights: sum[o][r] += scale * (sum over the block's codes). Constants where this is
 * called: outs, rows, bits, half. */
VEC_INLINE void packed_block(const dq_packed_x *x, int64_t b, int64_t bytes, int64_t first, int outs, int rows,
                             int bits, bool half, const dq_packed_w *w, vf sum[4][4])
{
    int per = 32 / bits;
    const float *column = x->x + first * x->stride + b * per * VF;
    int32_t group = x->block_group[b];
    int64_t n = dq_min64(VF, x->groups - group);
    vw words[4];
    vf part[4][4];
    for (int o = 0; o < outs; o++) {
        const uint8_t *at = w->codes + o * w->code_stride + b * VF * 4;
        __builtin_prefetch(at + AHEAD);
        words[o] = vw_load_n(at, bytes);
        for (int r = 0; r < rows; r++) part[o][r] = vf_zero();
    }
    for (int i = 0; i < per; i++) {
        vf c[4];
        for (int r = 0; r < rows; r++) c[r] = vf_load(column + r * x->stride + i * VF);
        for (int o = 0; o < outs; o++) {
            vf code = bits == 4 ? vw_nibble(words[o], i) : vw_byte(words[o], i);
            for (int r = 0; r < rows; r++) part[o][r] = vf_madd(code, c[r], part[o][r]);
        }
    }
    for (int o = 0; o < outs; o++) {
        vf s = vf_shuffle(scales_at(w->scale + o * w->scale_stride, half, group, n), x->lane_group + b * VF);
        for (int r = 0; r < rows; r++) sum[o][r] = vf_madd(s, part[o][r], sum[o][r]);
    }
}

VEC_INLINE void packed_tile(const dq_packed_x *x, int64_t first, int outs, int rows, int bits, bool half,
                            const dq_packed_w *w, float (*out)[DQ_DECODE_ROWS])
{
    vf sum[4][4];
    int64_t full = x->row_bytes / (VF * 4), b = 0;
    for (int o = 0; o < outs; o++)
        for (int r = 0; r < rows; r++) sum[o][r] = vf_zero();
    for (; b < full; b++) packed_block(x, b, VF * 4, first, outs, rows, bits, half, w, sum);
    if (x->row_bytes > b * VF * 4) packed_block(x, b, x->row_bytes - b * VF * 4, first, outs, rows, bits, half, w, sum);
    for (int o = 0; o < outs; o++)
        for (int r = 0; r < rows; r++) out[o][first + r] = vf_sum(sum[o][r]);
}

VEC_INLINE void packed_outs(const dq_packed_x *x, int outs, int bits, bool half, const dq_packed_w *w,
                            float (*out)[DQ_DECODE_ROWS])
{
    int64_t r = 0;
    int wide = V_REGISTERS == 32 ? 4 : 2;
    if (outs * wide <= 8)
        for (; r + wide <= x->rows; r += wide) packed_tile(x, r, outs, wide, bits, half, w, out);
    for (; r + 2 <= x->rows; r += 2) packed_tile(x, r, outs, 2, bits, half, w, out);
    if (r < x->rows) packed_tile(x, r, outs, 1, bits, half, w, out);
}

#include "backend/cpu/packed_all.h"

static float scale_at(const void *scale, bool half, int64_t g)
{
    return half ? dq_f16_to_f32(((const uint16_t *)scale)[g]) : ((const float *)scale)[g];
}

/* Codes [first, first + n) of a row, n <= RUN, as bytes; first is even. */
enum { RUN = 256 };
static void unpack(const uint8_t *codes, int bits, int64_t first, int64_t n, uint8_t *out)
{
    if (bits == 8) {
        memcpy(out, codes + first, (size_t)n);
        return;
    }
    const uint8_t *from = codes + first / 2;
    for (int64_t i = 0; i < n / 2; i++) {
        out[2 * i] = from[i] & 15;
        out[2 * i + 1] = from[i] >> 4;
    }
    if (n & 1) out[n - 1] = from[n / 2] & 15;
}

static void dequantize(const dq_packed_w *w, int bits, int64_t n, int64_t group, float *out)
{
    uint8_t codes[RUN];
    for (int64_t g = 0, next = group; g * group < n; g++, next += group) {
        float s = scale_at(w->scale, w->half, g), zero = (float)(1 << (bits - 1)), minimum = 0;
        if (w->minimum)
            minimum = scale_at(w->zero, w->half, g);
        else if (w->zero)
            zero = ((const uint8_t *)w->zero)[g];
        for (int64_t first = g * group; first < dq_min64(n, next); first += RUN) {
            int64_t count = dq_min64(RUN, dq_min64(n, next) - first), c = 0;
            float *to = out + first;
            unpack(w->codes, bits, first, count, codes);
            if (w->minimum) {
                for (; c + VF <= count; c += VF)
                    vf_store(to + c, vf_set1(s) * vf_load_u8(codes + c) + vf_set1(minimum));
                for (; c < count; c++) to[c] = s * (float)codes[c] + minimum;
            } else {
                for (; c + VF <= count; c += VF) vf_store(to + c, vf_set1(s) * (vf_load_u8(codes + c) - vf_set1(zero)));
                for (; c < count; c++) to[c] = s * ((float)codes[c] - zero);
            }
        }
    }
}

/* ---- plain weights ---- */

VEC_INLINE vf weight_at(const void *w, dq_dtype dtype, bool round, int64_t c)
{
    if (dtype == DQ_BF16) return vf_load_bf16((const uint16_t *)w + c);
    vf v = dtype == DQ_F32 ? vf_load((const float *)w + c) : vf_load_f16((const uint16_t *)w + c);
    return round ? vf_round_bf16(v) : v;
}

/* `rows`, `dtype` and `round` are constants where this is called. Two sums each, so that a row does not wait for its own. */
VEC_INLINE void dense_rows(const float *x, int64_t stride, int rows, const void *w, dq_dtype dtype, bool round,
                           int64_t n, float *out)
{
    vf sum[2][4];
    int64_t c = 0, size = dtype == DQ_F32 ? 4 : 2;
    for (int r = 0; r < rows; r++) sum[0][r] = sum[1][r] = vf_zero();
    for (; c + 2 * VF <= n; c += 2 * VF)
        for (int u = 0; u < 2; u++) {
            __builtin_prefetch((const char *)w + (c + u * VF) * size + AHEAD);
            vf weight = weight_at(w, dtype, round, c + u * VF);
            for (int r = 0; r < rows; r++) sum[u][r] = vf_madd(weight, vf_load(x + r * stride + c + u * VF), sum[u][r]);
        }
    for (; c < n; c += VF) {
        int64_t left = dq_min64(VF, n - c);
        _Alignas(64) unsigned char wide[4 * DQ_DECODE_LANES] = {0};
        memcpy(wide, (const char *)w + c * size, (size_t)(left * size));
        vf weight = weight_at(wide, dtype, round, 0);
        for (int r = 0; r < rows; r++) sum[0][r] = vf_madd(weight, vf_load_n(x + r * stride + c, left), sum[0][r]);
    }
    for (int r = 0; r < rows; r++) out[r] = vf_sum(sum[0][r] + sum[1][r]);
}

VEC_INLINE void dense_any(const float *x, int64_t stride, int64_t rows, const void *w, dq_dtype dtype, bool round,
                          int64_t n, float *out)
{
    int64_t r = 0;
    for (; r + 4 <= rows; r += 4) dense_rows(x + r * stride, stride, 4, w, dtype, round, n, out + r);
    for (; r + 2 <= rows; r += 2) dense_rows(x + r * stride, stride, 2, w, dtype, round, n, out + r);
    if (r < rows) dense_rows(x + r * stride, stride, 1, w, dtype, round, n, out + r);
}

static void dense(const float *x, int64_t stride, int64_t rows, const void *w, dq_dtype dtype, bool round, int64_t n,
                  float *out)
{
    if (dtype == DQ_BF16)
        dense_any(x, stride, rows, w, DQ_BF16, false, n, out);
    else if (dtype == DQ_F16 && round)
        dense_any(x, stride, rows, w, DQ_F16, true, n, out);
    else if (dtype == DQ_F16)
        dense_any(x, stride, rows, w, DQ_F16, false, n, out);
    else if (round)
        dense_any(x, stride, rows, w, DQ_F32, true, n, out);
    else
        dense_any(x, stride, rows, w, DQ_F32, false, n, out);
}

/* ---- attention ---- */

/* Heads of tokens lie apart, which the processor's own prefetching does not see. */
enum { KEYS_AHEAD = 16 };
VEC_INLINE void prefetch_head(const dq_keys *k, int64_t j)
{
    const float *next = k->at + (j + KEYS_AHEAD) * k->stride;
    for (int64_t c = 0; c < k->dim; c += 16) __builtin_prefetch(next + c);
}

/* VF keys at a time, summed together. */
static void scores(const float *q, const dq_keys *k, float scale, float *p)
{
    for (int64_t j = 0; j < k->count; j += VF) {
        int64_t n = dq_min64(VF, k->count - j), c = 0;
        vf sum[VF];
        for (int i = 0; i < VF; i++) {
            const float *key = k->at + (j + dq_min64(i, n - 1)) * k->stride;
            prefetch_head(k, j + i);
            sum[i] = vf_zero();
            for (c = 0; c + VF <= k->dim; c += VF) sum[i] = vf_madd(vf_load(q + c), vf_load(key + c), sum[i]);
            if (c < k->dim) sum[i] = vf_madd(vf_load_n(q + c, k->dim - c), vf_load_n(key + c, k->dim - c), sum[i]);
        }
        vf_store_n(p + j, vf_set1(scale) * vf_sums(sum), n);
    }
}

static void softmax(float *p, int64_t n)
{
    vf most = vf_set1(p[0]);
    for (int64_t j = 0; j < n; j += VF) {
        int64_t left = dq_min64(VF, n - j);
        most = vf_max(vf_keep_n(vf_load_n(p + j, left), most, left), most);
    }
    float top = vf_hmax(most);
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

/* `n` vectors of columns from c on, a constant where this is called. */
VEC_INLINE void weigh_columns(const float *p, const dq_keys *v, int64_t c, int n, float *o)
{
    vf sum[4];
    for (int i = 0; i < n; i++) sum[i] = vf_load(o + c + i * VF);
    for (int64_t j = 0; j < v->count; j++) {
        const float *at = v->at + j * v->stride + c;
        vf weight = vf_set1(p[j]);
        if (c == 0) prefetch_head(v, j);
        for (int i = 0; i < n; i++) sum[i] = vf_madd(weight, vf_load(at + i * VF), sum[i]);
    }
    for (int i = 0; i < n; i++) vf_store(o + c + i * VF, sum[i]);
}

static void weigh(const float *p, const dq_keys *v, float *o)
{
    int64_t c = 0;
    for (; c + 4 * VF <= v->dim; c += 4 * VF) weigh_columns(p, v, c, 4, o);
    for (; c + VF <= v->dim; c += VF) weigh_columns(p, v, c, 1, o);
    if (c == v->dim) return;
    int64_t left = v->dim - c;
    vf sum = vf_load_n(o + c, left);
    for (int64_t j = 0; j < v->count; j++)
        sum = vf_madd(vf_set1(p[j]), vf_load_n(v->at + j * v->stride + c, left), sum);
    vf_store_n(o + c, sum, left);
}

const dq_decode_kernels DQ_ISA(dq_decode) = {
    .lanes = VF,
    .packed4 = packed4,
    .packed8 = packed8,
    .dequantize = dequantize,
    .spread = spread,
    .dots = dots,
    .dense = dense,
    .scores = scores,
    .softmax = softmax,
    .weigh = weigh,
};
