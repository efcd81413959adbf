/* vec.h for AVX2 with FMA. SPDX-License-Identifier: Apache-2.0 */
#include <immintrin.h>

#define DQ_ISA(name) name##_avx2
#define VF 8
#define VD 4
#define V_REGISTERS 16

typedef __m256 vf;
typedef __m256d vd;

/* All ones in the first n lanes. */
static inline __m256i vf_first(int64_t n)
{
    return _mm256_cmpgt_epi32(_mm256_set1_epi32((int)n), _mm256_setr_epi32(0, 1, 2, 3, 4, 5, 6, 7));
}
static inline __m256i vd_first(int64_t n)
{
    return _mm256_cmpgt_epi64(_mm256_set1_epi64x(n), _mm256_setr_epi64x(0, 1, 2, 3));
}

static inline vf vf_zero(void) { return _mm256_setzero_ps(); }
static inline vf vf_set1(float x) { return _mm256_set1_ps(x); }
static inline vf vf_load(const float *p) { return _mm256_loadu_ps(p); }
static inline void vf_store(float *p, vf v) { _mm256_storeu_ps(p, v); }
static inline vf vf_load_n(const float *p, int64_t n) { return _mm256_maskload_ps(p, vf_first(n)); }
static inline void vf_store_n(float *p, vf v, int64_t n) { _mm256_maskstore_ps(p, vf_first(n), v); }
static inline vf vf_keep_n(vf v, vf other, int64_t n)
{
    return _mm256_blendv_ps(other, v, _mm256_castsi256_ps(vf_first(n)));
}
static inline vf vf_madd(vf a, vf b, vf c) { return _mm256_fmadd_ps(a, b, c); }
static inline vf vf_nmadd(vf a, vf b, vf c) { return _mm256_fnmadd_ps(a, b, c); }
static inline vf vf_min(vf a, vf b) { return _mm256_min_ps(a, b); }
static inline vf vf_max(vf a, vf b) { return _mm256_max_ps(a, b); }
static inline vf vf_abs(vf a) { return _mm256_andnot_ps(_mm256_set1_ps(-0.0f), a); }
static inline vf vf_sign_of(vf a, vf b)
{
    vf sign = _mm256_and_ps(b, _mm256_set1_ps(-0.0f)), nonzero = _mm256_cmp_ps(b, _mm256_setzero_ps(), _CMP_NEQ_UQ);
    return _mm256_and_ps(nonzero, _mm256_or_ps(vf_abs(a), sign));
}
static inline vf vf_rint(vf a) { return _mm256_round_ps(a, _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC); }
static inline vf vf_gather(const float *p, const int32_t *index)
{
    return _mm256_i32gather_ps(p, _mm256_loadu_si256((const __m256i *)(const void *)index), 4);
}
static inline void vf_store_u8(uint8_t *p, vf v)
{
    __m256i i = _mm256_cvttps_epi32(v);
    __m128i w = _mm_packus_epi32(_mm256_castsi256_si128(i), _mm256_extracti128_si256(i, 1));
    _mm_storel_epi64((__m128i *)(void *)p, _mm_packus_epi16(w, w));
}
static inline vf vf_load_u8(const uint8_t *p)
{
    return _mm256_cvtepi32_ps(_mm256_cvtepu8_epi32(_mm_loadl_epi64((const __m128i *)(const void *)p)));
}
static inline __m128 vf_fold4(vf v, int what)
{
    __m128 a = _mm256_castps256_ps128(v), b = _mm256_extractf128_ps(v, 1);
    return what == 0 ? _mm_add_ps(a, b) : what < 0 ? _mm_min_ps(a, b) : _mm_max_ps(a, b);
}
static inline float vf_sum(vf v)
{
    __m128 a = vf_fold4(v, 0);
    a = _mm_add_ps(a, _mm_movehl_ps(a, a));
    return _mm_cvtss_f32(_mm_add_ss(a, _mm_movehdup_ps(a)));
}
static inline vf vf_sums(const vf v[8])
{
    vf w[2];
    for (int i = 0; i < 2; i++) {
        vf a = _mm256_unpacklo_ps(v[4 * i], v[4 * i + 1]) + _mm256_unpackhi_ps(v[4 * i], v[4 * i + 1]);
        vf b = _mm256_unpacklo_ps(v[4 * i + 2], v[4 * i + 3]) + _mm256_unpackhi_ps(v[4 * i + 2], v[4 * i + 3]);
        __m256d x = _mm256_castps_pd(a), y = _mm256_castps_pd(b);
        w[i] = _mm256_castpd_ps(_mm256_unpacklo_pd(x, y)) + _mm256_castpd_ps(_mm256_unpackhi_pd(x, y));
    }
    return _mm256_permute2f128_ps(w[0], w[1], 0x20) + _mm256_permute2f128_ps(w[0], w[1], 0x31);
}
static inline float vf_hmin(vf v)
{
    __m128 a = vf_fold4(v, -1);
    a = _mm_min_ps(a, _mm_movehl_ps(a, a));
    return _mm_cvtss_f32(_mm_min_ss(a, _mm_movehdup_ps(a)));
}
static inline float vf_hmax(vf v)
{
    __m128 a = vf_fold4(v, 1);
    a = _mm_max_ps(a, _mm_movehl_ps(a, a));
    return _mm_cvtss_f32(_mm_max_ss(a, _mm_movehdup_ps(a)));
}
static inline vf vf_exponent(vf x)
{
    __m256i e = _mm256_srli_epi32(_mm256_castps_si256(x), 23);
    return _mm256_cvtepi32_ps(_mm256_sub_epi32(e, _mm256_set1_epi32(127)));
}
static inline vf vf_mantissa(vf x)
{
    __m256i m = _mm256_and_si256(_mm256_castps_si256(x), _mm256_set1_epi32(0x7fffff));
    return _mm256_castsi256_ps(_mm256_or_si256(m, _mm256_set1_epi32(0x3f800000)));
}
static inline vf vf_scale2(vf x, vf n)
{
    n = _mm256_min_ps(_mm256_max_ps(n, _mm256_set1_ps(-127.0f)), _mm256_set1_ps(127.0f));
    __m256i e = _mm256_add_epi32(_mm256_cvtps_epi32(n), _mm256_set1_epi32(127));
    return _mm256_mul_ps(x, _mm256_castsi256_ps(_mm256_slli_epi32(e, 23)));
}
static inline vf vf_swap1(vf v) { return _mm256_permute_ps(v, 0xb1); }
static inline vf vf_swap2(vf v) { return _mm256_permute_ps(v, 0x4e); }
static inline vf vf_swap4(vf v) { return _mm256_permute2f128_ps(v, v, 1); }
static inline vf vf_signs(int h)
{
    float s[8];
    for (int i = 0; i < 8; i++) s[i] = i & h ? -1.0f : 1.0f;
    return vf_load(s);
}

static inline vd vd_zero(void) { return _mm256_setzero_pd(); }
static inline vd vd_set1(double x) { return _mm256_set1_pd(x); }
static inline vd vd_load(const double *p) { return _mm256_loadu_pd(p); }
static inline void vd_store(double *p, vd v) { _mm256_storeu_pd(p, v); }
static inline vd vd_load_n(const double *p, int64_t n) { return _mm256_maskload_pd(p, vd_first(n)); }
static inline void vd_store_n(double *p, vd v, int64_t n) { _mm256_maskstore_pd(p, vd_first(n), v); }
static inline vd vd_madd(vd a, vd b, vd c) { return _mm256_fmadd_pd(a, b, c); }
static inline vd vd_min(vd a, vd b) { return _mm256_min_pd(a, b); }
static inline vd vd_max(vd a, vd b) { return _mm256_max_pd(a, b); }
static inline vd vd_rint(vd a) { return _mm256_round_pd(a, _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC); }
static inline void vd_store_u8(uint8_t *p, vd v)
{
    __m128i i = _mm256_cvttpd_epi32(v), w = _mm_packus_epi32(i, i);
    int32_t bytes = _mm_cvtsi128_si32(_mm_packus_epi16(w, w));
    memcpy(p, &bytes, 4);
}
static inline vd vd_swap1(vd v) { return _mm256_permute_pd(v, 0x5); }
static inline vd vd_swap2(vd v) { return _mm256_permute2f128_pd(v, v, 1); }
static inline vd vd_signs(int h)
{
    double s[4];
    for (int i = 0; i < 4; i++) s[i] = i & h ? -1.0 : 1.0;
    return vd_load(s);
}

typedef __m256i vw;
static inline vw vw_load_n(const void *p, int64_t n)
{
    if (n >= 32) return _mm256_loadu_si256((const __m256i *)p);
    uint8_t copy[32] = {0};
    memcpy(copy, p, (size_t)n);
    return _mm256_loadu_si256((const __m256i *)(const void *)copy);
}
static inline vf vw_nibble(vw w, int i)
{
    vw code = _mm256_and_si256(_mm256_srli_epi32(w, 4 * i), _mm256_set1_epi32(15));
    return _mm256_cvtepi32_ps(_mm256_sub_epi32(code, _mm256_set1_epi32(8)));
}
static inline vf vw_byte(vw w, int i)
{
    vw code = _mm256_and_si256(_mm256_srli_epi32(w, 8 * i), _mm256_set1_epi32(255));
    return _mm256_cvtepi32_ps(_mm256_sub_epi32(code, _mm256_set1_epi32(128)));
}
static inline vf vf_shuffle(vf v, const int32_t *index)
{
    return _mm256_permutevar8x32_ps(v, _mm256_loadu_si256((const __m256i *)(const void *)index));
}
static inline vf vf_load_f16_n(const uint16_t *p, int64_t n)
{
    if (n >= 8) return _mm256_cvtph_ps(_mm_loadu_si128((const __m128i *)(const void *)p));
    uint16_t copy[8] = {0};
    memcpy(copy, p, (size_t)n * sizeof *copy);
    return _mm256_cvtph_ps(_mm_loadu_si128((const __m128i *)(const void *)copy));
}
static inline vf vf_load_f16(const uint16_t *p)
{
    return _mm256_cvtph_ps(_mm_loadu_si128((const __m128i *)(const void *)p));
}
static inline vf vf_load_bf16(const uint16_t *p)
{
    __m256i u = _mm256_cvtepu16_epi32(_mm_loadu_si128((const __m128i *)(const void *)p));
    return _mm256_castsi256_ps(_mm256_slli_epi32(u, 16));
}
static inline vf vf_round_bf16(vf v)
{
    const __m256i high = _mm256_set1_epi32((int)0xffff0000u);
    __m256i u = _mm256_castps_si256(v), odd = _mm256_and_si256(_mm256_srli_epi32(u, 16), _mm256_set1_epi32(1));
    __m256i rounded = _mm256_add_epi32(u, _mm256_add_epi32(odd, _mm256_set1_epi32(0x7fff)));
    __m256i quiet = _mm256_or_si256(u, _mm256_set1_epi32(0x400000)), nan;
    nan = _mm256_castps_si256(_mm256_cmp_ps(v, v, _CMP_UNORD_Q));
    return _mm256_castsi256_ps(_mm256_and_si256(_mm256_blendv_epi8(rounded, quiet, nan), high));
}
