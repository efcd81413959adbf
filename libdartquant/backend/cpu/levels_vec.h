/* What quantization to levels needs beside vec.h: masks, integers in lanes, look-ups. Part of levels_kernel.h.
 * SPDX-License-Identifier: Apache-2.0 */
#include "backend/cpu/vec.h"

/* vm: a choice of lanes; vi: integers; table16: sixteen floats. */
#if VF == 16
typedef __mmask16 vm;
typedef __m512i vi;
typedef __m512 table16;
VEC_INLINE vm vm_less(vf a, vf b) { return _mm512_cmp_ps_mask(a, b, _CMP_LT_OQ); }
VEC_INLINE vm vm_not_more(vf a, vf b) { return _mm512_cmp_ps_mask(a, b, _CMP_LE_OQ); }
VEC_INLINE vm vm_nan(vf a) { return _mm512_cmp_ps_mask(a, a, _CMP_UNORD_Q); }
VEC_INLINE vm vm_or(vm a, vm b) { return (vm)(a | b); }
VEC_INLINE unsigned vm_bits(vm m) { return m; }
VEC_INLINE vf vf_pick(vm m, vf a, vf b) { return _mm512_mask_blend_ps(m, b, a); }
VEC_INLINE vi vi_set1(int x) { return _mm512_set1_epi32(x); }
VEC_INLINE vi vi_add_where(vm m, vi a, vi b) { return _mm512_mask_add_epi32(a, m, a, b); }
VEC_INLINE vi vi_add(vi a, vi b) { return _mm512_add_epi32(a, b); }
VEC_INLINE vi vi_times_power(vi a, int log) { return _mm512_sll_epi32(a, _mm_cvtsi32_si128(log)); }
VEC_INLINE vf vf_at(const float *p, vi i) { return _mm512_i32gather_ps(i, p, 4); }
VEC_INLINE table16 table16_load(const float *p) { return _mm512_loadu_ps(p); }
VEC_INLINE vf table16_at(table16 t, vi i) { return _mm512_permutexvar_ps(i, t); }
#elif VF == 8
typedef __m256 vm;
typedef __m256i vi;
typedef struct table16 {
    __m256 low, high;
} table16;
VEC_INLINE vm vm_less(vf a, vf b) { return _mm256_cmp_ps(a, b, _CMP_LT_OQ); }
VEC_INLINE vm vm_not_more(vf a, vf b) { return _mm256_cmp_ps(a, b, _CMP_LE_OQ); }
VEC_INLINE vm vm_nan(vf a) { return _mm256_cmp_ps(a, a, _CMP_UNORD_Q); }
VEC_INLINE vm vm_or(vm a, vm b) { return _mm256_or_ps(a, b); }
VEC_INLINE unsigned vm_bits(vm m) { return (unsigned)_mm256_movemask_ps(m); }
VEC_INLINE vf vf_pick(vm m, vf a, vf b) { return _mm256_blendv_ps(b, a, m); }
VEC_INLINE vi vi_set1(int x) { return _mm256_set1_epi32(x); }
VEC_INLINE vi vi_add(vi a, vi b) { return _mm256_add_epi32(a, b); }
VEC_INLINE vi vi_add_where(vm m, vi a, vi b) { return vi_add(a, _mm256_and_si256(_mm256_castps_si256(m), b)); }
VEC_INLINE vi vi_times_power(vi a, int log) { return _mm256_sll_epi32(a, _mm_cvtsi32_si128(log)); }
VEC_INLINE vf vf_at(const float *p, vi i) { return _mm256_i32gather_ps(p, i, 4); }
VEC_INLINE table16 table16_load(const float *p) { return (table16){vf_load(p), vf_load(p + 8)}; }
VEC_INLINE vf table16_at(table16 t, vi i) /* a permutation reads three bits of a lane, the blend the sign: bit 3 */
{
    vf low = _mm256_permutevar8x32_ps(t.low, i), high = _mm256_permutevar8x32_ps(t.high, i);
    return _mm256_blendv_ps(low, high, _mm256_castsi256_ps(_mm256_slli_epi32(i, 28)));
}
#else
typedef vf_int vm;
typedef vf_int vi;
typedef const float *table16;
VEC_INLINE vm vm_less(vf a, vf b) { return a < b; }
VEC_INLINE vm vm_not_more(vf a, vf b) { return a <= b; }
VEC_INLINE vm vm_nan(vf a) { return a != a; }
VEC_INLINE vm vm_or(vm a, vm b) { return a | b; }
VEC_INLINE unsigned vm_bits(vm m) { return (unsigned)((m[0] & 1) | (m[1] & 2) | (m[2] & 4) | (m[3] & 8)); }
VEC_INLINE vf vf_pick(vm m, vf a, vf b) { return vf_select(m, a, b); }
VEC_INLINE vi vi_set1(int x) { return (vi){x, x, x, x}; }
VEC_INLINE vi vi_add(vi a, vi b) { return a + b; }
VEC_INLINE vi vi_add_where(vm m, vi a, vi b) { return a + (m & b); }
VEC_INLINE vi vi_times_power(vi a, int log) { return a << log; }
VEC_INLINE vf vf_at(const float *p, vi i) { return (vf){p[i[0]], p[i[1]], p[i[2]], p[i[3]]}; }
VEC_INLINE table16 table16_load(const float *p) { return p; }
VEC_INLINE vf table16_at(table16 t, vi i) { return vf_at(t, i); }
#endif
