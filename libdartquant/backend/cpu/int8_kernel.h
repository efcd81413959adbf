/* Products of x rounded to 8 bits with packed codes, in integers up to a lane's sum, for one instruction set; compiled by
 * int8_vnni.c, int8_avx2.c and int8_plain.c. SPDX-License-Identifier: Apache-2.0 */
#include "backend/cpu/packed_parts.h"

/* ---- integers: VF lanes of 32 bits, or four times as many bytes ---- */

#if defined(__AVX512VNNI__)
#define DQ_INT8(name) name##_vnni
typedef __m512i vi;
enum { SIGNED8 = 0 };
VEC_INLINE vi vi_load(const void *p) { return _mm512_loadu_si512(p); }
VEC_INLINE vf vi_float(vi v) { return _mm512_cvtepi32_ps(v); }
VEC_INLINE vi low_codes(vi w) { return _mm512_and_si512(w, _mm512_set1_epi8(15)); }
VEC_INLINE vi high_codes(vi w) { return _mm512_and_si512(_mm512_srli_epi16(w, 4), _mm512_set1_epi8(15)); }
/* sum + the four products of a lane: codes of weights are unsigned, those of x signed */
VEC_INLINE vi dot4(vi sum, vi w, vi x) { return _mm512_dpbusd_epi32(sum, w, x); }
VEC_INLINE vi dot8(vi sum, vi w, vi x) { return _mm512_dpbusd_epi32(sum, w, x); }
#elif defined(__AVX2__)
#define DQ_INT8(name) name##_avx2
typedef __m256i vi;
enum { SIGNED8 = 1 };
VEC_INLINE vi vi_load(const void *p) { return _mm256_loadu_si256(p); }
VEC_INLINE vf vi_float(vi v) { return _mm256_cvtepi32_ps(v); }
VEC_INLINE vi low_codes(vi w) { return _mm256_and_si256(w, _mm256_set1_epi8(15)); }
VEC_INLINE vi high_codes(vi w) { return _mm256_and_si256(_mm256_srli_epi16(w, 4), _mm256_set1_epi8(15)); }
/* Pairs are summed in 16 bits: 2 * 15 * 127 fits. */
VEC_INLINE vi dot4(vi sum, vi w, vi x)
{
    return _mm256_add_epi32(sum, _mm256_madd_epi16(_mm256_maddubs_epi16(w, x), _mm256_set1_epi16(1)));
}
/* 2 * 255 * 127 does not, 2 * 128 * 127 does: the middle is taken off, and the sign moved to x. */
VEC_INLINE vi dot8(vi sum, vi w, vi x)
{
    w = _mm256_xor_si256(w, _mm256_set1_epi8(-128));
    return dot4(sum, _mm256_abs_epi8(w), _mm256_sign_epi8(x, w));
}
#else
#define DQ_INT8(name) name##_plain
typedef struct vi {
    uint8_t byte[16];
} vi;
enum { SIGNED8 = 0 };
VEC_INLINE vi vi_load(const void *p)
{
    vi v;
    memcpy(&v, p, sizeof v);
    return v;
}
VEC_INLINE vf vi_float(vi v)
{
    int32_t lane[4];
    memcpy(lane, &v, sizeof lane);
    return (vf){(float)lane[0], (float)lane[1], (float)lane[2], (float)lane[3]};
}
VEC_INLINE vi low_codes(vi w)
{
    for (int i = 0; i < 16; i++) w.byte[i] &= 15;
    return w;
}
VEC_INLINE vi high_codes(vi w)
{
    for (int i = 0; i < 16; i++) w.byte[i] >>= 4;
    return w;
}
VEC_INLINE vi dot4(vi sum, vi w, vi x)
{
    int32_t lane[4];
    memcpy(lane, &sum, sizeof lane);
    for (int i = 0; i < 16; i++) lane[i / 4] += w.byte[i] * (int8_t)x.byte[i];
    memcpy(&sum, lane, sizeof lane);
    return sum;
}
VEC_INLINE vi dot8(vi sum, vi w, vi x) { return dot4(sum, w, x); }
#endif

/* ---- products ---- */

/* The first n bytes of a block of codes. */
VEC_INLINE vi codes_at(const uint8_t *p, int64_t n)
{
    if (n >= VF * 4) return vi_load(p);
    uint8_t copy[4 * DQ_DECODE_LANES] = {0};
    memcpy(copy, p, (size_t)n);
    return vi_load(copy);
}

VEC_INLINE void int8_block(const dq_packed_x *x, int64_t b, int64_t bytes, int64_t first, int outs, int rows, int bits,
                           bool half, const dq_packed_w *w, vf sum[4][4])
{
    int64_t per = 32 / bits, lane = b * VF, lanes = x->blocks * VF;
    int32_t group = x->block_group[b];
    int64_t n = dq_min64(VF, x->groups - group);
    vi codes[4];
    vf scale[4];
    for (int o = 0; o < outs; o++) {
        const uint8_t *at = w->codes + o * w->code_stride + b * VF * 4;
        __builtin_prefetch(at + AHEAD);
        codes[o] = codes_at(at, bytes);
        scale[o] = vf_shuffle(scales_at(w->scale + o * w->scale_stride, half, group, n), x->lane_group + lane);
    }
    for (int r = 0; r < rows; r++) {
        const int8_t *xs = x->codes + (first + r) * x->stride + lane * per;
        vi start = vi_load(x->lane_start + (first + r) * lanes + lane);
        vf x_scale = vf_load(x->lane_scale + (first + r) * lanes + lane);
        for (int o = 0; o < outs; o++) {
            vi dot = start;
            if (bits == 4)
                dot = dot4(dot4(dot, low_codes(codes[o]), vi_load(xs)), high_codes(codes[o]), vi_load(xs + 4 * VF));
            else
                dot = dot8(dot, codes[o], vi_load(xs));
            sum[o][r] = vf_madd(scale[o] * x_scale, vi_float(dot), sum[o][r]);
        }
    }
}

VEC_INLINE void int8_tile(const dq_packed_x *x, int64_t first, int outs, int rows, int bits, bool half,
                          const dq_packed_w *w, float (*out)[DQ_DECODE_ROWS])
{
    vf sum[4][4];
    int64_t full = x->row_bytes / (VF * 4), b = 0;
    for (int o = 0; o < outs; o++)
        for (int r = 0; r < rows; r++) sum[o][r] = vf_zero();
    for (; b < full; b++) int8_block(x, b, VF * 4, first, outs, rows, bits, half, w, sum);
    if (x->row_bytes > b * VF * 4) int8_block(x, b, x->row_bytes - b * VF * 4, first, outs, rows, bits, half, w, sum);
    for (int o = 0; o < outs; o++)
        for (int r = 0; r < rows; r++) out[o][first + r] = vf_sum(sum[o][r]);
}

VEC_INLINE void packed_outs(const dq_packed_x *x, int outs, int bits, bool half, const dq_packed_w *w,
                            float (*out)[DQ_DECODE_ROWS])
{
    int64_t r = 0;
    for (; r + 2 <= x->rows; r += 2) int8_tile(x, r, outs, 2, bits, half, w, out);
    if (r < x->rows) int8_tile(x, r, outs, 1, bits, half, w, out);
}

#include "backend/cpu/packed_all.h"

static float round_run(const float *x, int8_t *codes)
{
    vf top = vf_zero(), probe = vf_zero();
    for (int i = 0; i < DQ_INT8_RUN; i += VF) {
        top = vf_max(vf_abs(vf_load(x + i)), top);
        probe = probe + vf_load(x + i) * vf_zero(); /* NaN where one is not finite */
    }
    float scale = vf_hmax(top) / 127.0f + vf_sum(probe), q[DQ_INT8_RUN];
    memset(codes, 0, DQ_INT8_RUN);
    if (!(scale > 0)) return scale;
    for (int i = 0; i < DQ_INT8_RUN; i += VF) vf_store(q + i, vf_rint(vf_load(x + i) / vf_set1(scale)));
    for (int i = 0; i < DQ_INT8_RUN; i++) codes[i] = (int8_t)q[i];
    return scale;
}

const dq_int8_kernels DQ_INT8(dq_int8) = {
    .lanes = VF, .signed8 = SIGNED8, .packed4 = packed4, .packed8 = packed8, .round = round_run};
