/* vec.h for AVX-512 F, BW, DQ, VL. SPDX-License-Identifier: Apache-2.0 */
#include <immintrin.h>

#define DQ_ISA(name) name##_avx512
#define VF 16
#define VD 8
#define V_REGISTERS 32

typedef __m512 vf;
typedef __m512d vd;

static inline __mmask16 vf_first(int64_t n) { return n >= 16 ? 0xffff : (__mmask16)((1u << n) - 1u); }
static inline __mmask8 vd_first(int64_t n) { return n >= 8 ? 0xff : (__mmask8)((1u << n) - 1u); }

static inline vf vf_zero(void) { return _mm512_setzero_ps(); }
static inline vf vf_set1(float x) { return _mm512_set1_ps(x); }
static inline vf vf_load(const float *p) { return _mm512_loadu_ps(p); }
static inline void vf_store(float *p, vf v) { _mm512_storeu_ps(p, v); }
/* The first n lanes, n in 0..VF; the others are zero, memory behind them is not touched. */
static inline vf vf_load_n(const float *p, int64_t n) { return _mm512_maskz_loadu_ps(vf_first(n), p); }
static inline void vf_store_n(float *p, vf v, int64_t n) { _mm512_mask_storeu_ps(p, vf_first(n), v); }
/* Lanes below n from v, the others from other. */
static inline vf vf_keep_n(vf v, vf other, int64_t n) { return _mm512_mask_blend_ps(vf_first(n), other, v); }
static inline vf vf_madd(vf a, vf b, vf c) { return _mm512_fmadd_ps(a, b, c); }   /* a b + c */
static inline vf vf_nmadd(vf a, vf b, vf c) { return _mm512_fnmadd_ps(a, b, c); } /* c - a b */
/* a < b ? a : b, and a > b ? a : b: a NaN in a gives b. */
static inline vf vf_min(vf a, vf b) { return _mm512_min_ps(a, b); }
static inline vf vf_max(vf a, vf b) { return _mm512_max_ps(a, b); }
static inline vf vf_abs(vf a) { return _mm512_andnot_ps(_mm512_set1_ps(-0.0f), a); }
/* The size of a with the sign of b, and 0 where b is 0. */
static inline vf vf_sign_of(vf a, vf b)
{
    vf sign = _mm512_and_ps(b, _mm512_set1_ps(-0.0f));
    return _mm512_maskz_or_ps(_mm512_cmp_ps_mask(b, _mm512_setzero_ps(), _CMP_NEQ_UQ), vf_abs(a), sign);
}
/* Half to even. */
static inline vf vf_rint(vf a) { return _mm512_roundscale_ps(a, _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC); }
static inline vf vf_gather(const float *p, const int32_t *index)
{
    return _mm512_i32gather_ps(_mm512_loadu_si512(index), p, 4);
}
/* Lanes hold integers in 0..255. */
static inline void vf_store_u8(uint8_t *p, vf v)
{
    _mm_storeu_si128((__m128i *)(void *)p, _mm512_cvtepi32_epi8(_mm512_cvttps_epi32(v)));
}
static inline vf vf_load_u8(const uint8_t *p)
{
    return _mm512_cvtepi32_ps(_mm512_cvtepu8_epi32(_mm_loadu_si128((const __m128i *)(const void *)p)));
}
static inline float vf_sum(vf v) { return _mm512_reduce_add_ps(v); }
/* Lane i: the sum of v[i]. */
static inline vf vf_sums(const vf v[16])
{
    vf w[4], half[2];
    for (int i = 0; i < 4; i++) {
        vf a = _mm512_unpacklo_ps(v[4 * i], v[4 * i + 1]) + _mm512_unpackhi_ps(v[4 * i], v[4 * i + 1]);
        vf b = _mm512_unpacklo_ps(v[4 * i + 2], v[4 * i + 3]) + _mm512_unpackhi_ps(v[4 * i + 2], v[4 * i + 3]);
        __m512d x = _mm512_castps_pd(a), y = _mm512_castps_pd(b);
        w[i] = _mm512_castpd_ps(_mm512_unpacklo_pd(x, y)) + _mm512_castpd_ps(_mm512_unpackhi_pd(x, y));
    }
    for (int i = 0; i < 2; i++)
        half[i] =
            _mm512_shuffle_f32x4(w[2 * i], w[2 * i + 1], 0x88) + _mm512_shuffle_f32x4(w[2 * i], w[2 * i + 1], 0xdd);
    return _mm512_shuffle_f32x4(half[0], half[1], 0x88) + _mm512_shuffle_f32x4(half[0], half[1], 0xdd);
}
static inline float vf_hmin(vf v) { return _mm512_reduce_min_ps(v); }
static inline float vf_hmax(vf v) { return _mm512_reduce_max_ps(v); }
/* x > 0 as 2^e m with m in [1, 2): e, and m. */
static inline vf vf_exponent(vf x) { return _mm512_getexp_ps(x); }
static inline vf vf_mantissa(vf x) { return _mm512_getmant_ps(x, _MM_MANT_NORM_1_2, _MM_MANT_SIGN_src); }
/* x 2^n for integral n; underflows to zero. */
static inline vf vf_scale2(vf x, vf n) { return _mm512_scalef_ps(x, n); }
/* Exchange of lanes i and i ^ h. */
static inline vf vf_swap1(vf v) { return _mm512_permute_ps(v, 0xb1); }
static inline vf vf_swap2(vf v) { return _mm512_permute_ps(v, 0x4e); }
static inline vf vf_swap4(vf v) { return _mm512_shuffle_f32x4(v, v, 0xb1); }
static inline vf vf_swap8(vf v) { return _mm512_shuffle_f32x4(v, v, 0x4e); }
/* +1 in lanes whose bit h is clear, -1 in the others. */
static inline vf vf_signs(int h)
{
    float s[16];
    for (int i = 0; i < 16; i++) s[i] = i & h ? -1.0f : 1.0f;
    return vf_load(s);
}

static inline vd vd_zero(void) { return _mm512_setzero_pd(); }
static inline vd vd_set1(double x) { return _mm512_set1_pd(x); }
static inline vd vd_load(const double *p) { return _mm512_loadu_pd(p); }
static inline void vd_store(double *p, vd v) { _mm512_storeu_pd(p, v); }
static inline vd vd_load_n(const double *p, int64_t n) { return _mm512_maskz_loadu_pd(vd_first(n), p); }
static inline void vd_store_n(double *p, vd v, int64_t n) { _mm512_mask_storeu_pd(p, vd_first(n), v); }
static inline vd vd_madd(vd a, vd b, vd c) { return _mm512_fmadd_pd(a, b, c); }
static inline vd vd_min(vd a, vd b) { return _mm512_min_pd(a, b); }
static inline vd vd_max(vd a, vd b) { return _mm512_max_pd(a, b); }
static inline vd vd_rint(vd a) { return _mm512_roundscale_pd(a, _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC); }
/* Lanes hold integers in 0..255. */
static inline void vd_store_u8(uint8_t *p, vd v)
{
    _mm_storel_epi64((__m128i *)(void *)p, _mm256_cvtepi32_epi8(_mm512_cvttpd_epi32(v)));
}
static inline vd vd_swap1(vd v) { return _mm512_permute_pd(v, 0x55); }
static inline vd vd_swap2(vd v) { return _mm512_permutex_pd(v, 0x4e); }
static inline vd vd_swap4(vd v) { return _mm512_shuffle_f64x2(v, v, 0x4e); }
static inline vd vd_signs(int h)
{
    double s[8];
    for (int i = 0; i < 8; i++) s[i] = i & h ? -1.0 : 1.0;
    return vd_load(s);
}

/* Words of packed codes. */
typedef __m512i vw;
/* The first n bytes; the others are zero, memory behind them is not touched. */
static inline vw vw_load_n(const void *p, int64_t n)
{
    return n >= 64 ? _mm512_loadu_si512(p) : _mm512_maskz_loadu_epi8((1ull << n) - 1u, p);
}
/* Four bits of every word as a number less 8, and eight bits less 128. */
static inline vf vw_nibble(vw w, int i)
{
    const vf value = _mm512_setr_ps(-8, -7, -6, -5, -4, -3, -2, -1, 0, 1, 2, 3, 4, 5, 6, 7);
    return _mm512_permutexvar_ps(_mm512_srli_epi32(w, (unsigned)(4 * i)), value); /* reads four bits of a lane */
}
static inline vf vw_byte(vw w, int i)
{
    vw code = _mm512_and_si512(_mm512_srli_epi32(w, (unsigned)(8 * i)), _mm512_set1_epi32(255));
    return _mm512_cvtepi32_ps(_mm512_sub_epi32(code, _mm512_set1_epi32(128)));
}
/* v[index[lane]] */
static inline vf vf_shuffle(vf v, const int32_t *index) { return _mm512_permutexvar_ps(_mm512_loadu_si512(index), v); }
static inline vf vf_load_f16_n(const uint16_t *p, int64_t n)
{
    return _mm512_cvtph_ps(_mm256_maskz_loadu_epi16(vf_first(n), p));
}
static inline vf vf_load_f16(const uint16_t *p)
{
    return _mm512_cvtph_ps(_mm256_loadu_si256((const __m256i *)(const void *)p));
}
static inline vf vf_load_bf16(const uint16_t *p)
{
    __m512i u = _mm512_cvtepu16_epi32(_mm256_loadu_si256((const __m256i *)(const void *)p));
    return _mm512_castsi512_ps(_mm512_slli_epi32(u, 16));
}
/* Rounded to bf16, half to even; a NaN stays one. */
static inline vf vf_round_bf16(vf v)
{
    const __m512i high = _mm512_set1_epi32((int)0xffff0000u);
    __m512i u = _mm512_castps_si512(v), odd = _mm512_and_si512(_mm512_srli_epi32(u, 16), _mm512_set1_epi32(1));
    __m512i rounded = _mm512_add_epi32(u, _mm512_add_epi32(odd, _mm512_set1_epi32(0x7fff)));
    __mmask16 nan = _mm512_cmp_ps_mask(v, v, _CMP_UNORD_Q);
    rounded = _mm512_mask_or_epi32(rounded, nan, u, _mm512_set1_epi32(0x400000));
    return _mm512_castsi512_ps(_mm512_and_si512(rounded, high));
}
