/* vec.h in plain C: four floats or two doubles, which the compiler maps to whatever the target has (SSE2, NEON, scalar
 * registers). Uses the vector types of GCC and clang. SPDX-License-Identifier: Apache-2.0 */
#include "base/half.h"

#define DQ_ISA(name) name##_plain
#define VF 4
#define VD 2
#define V_REGISTERS 16

typedef float vf __attribute__((vector_size(16)));
typedef double vd __attribute__((vector_size(16)));
typedef int32_t vf_int __attribute__((vector_size(16)));

static inline vf vf_zero(void) { return (vf){0, 0, 0, 0}; }
static inline vf vf_set1(float x) { return (vf){x, x, x, x}; }
static inline vf vf_load(const float *p)
{
    vf v;
    memcpy(&v, p, sizeof v);
    return v;
}
static inline void vf_store(float *p, vf v) { memcpy(p, &v, sizeof v); }
static inline vf vf_load_n(const float *p, int64_t n)
{
    vf v = vf_zero();
    for (int64_t i = 0; i < n && i < VF; i++) v[i] = p[i];
    return v;
}
static inline void vf_store_n(float *p, vf v, int64_t n)
{
    for (int64_t i = 0; i < n && i < VF; i++) p[i] = v[i];
}
/* Bits of a where the mask is set, of b elsewhere. */
static inline vf vf_select(vf_int mask, vf a, vf b) { return (vf)((mask & (vf_int)a) | (~mask & (vf_int)b)); }
static inline vf vf_keep_n(vf v, vf other, int64_t n)
{
    int32_t k = (int32_t)(n < VF ? n : VF);
    return vf_select((vf_int){0, 1, 2, 3} < (vf_int){k, k, k, k}, v, other);
}
static inline vf vf_madd(vf a, vf b, vf c) { return a * b + c; }
static inline vf vf_nmadd(vf a, vf b, vf c) { return c - a * b; }
static inline vf vf_min(vf a, vf b) { return vf_select(a < b, a, b); }
static inline vf vf_max(vf a, vf b) { return vf_select(a > b, a, b); }
static inline vf vf_abs(vf a) { return (vf)((vf_int)a & 0x7fffffff); }
static inline vf vf_sign_of(vf a, vf b)
{
    return (vf)((b != vf_zero()) & ((vf_int)vf_abs(a) | ((vf_int)b & (int32_t)0x80000000)));
}
/* Adding and taking away 2^23 rounds the fraction off; larger values have none. */
static inline vf vf_rint(vf a)
{
    vf magnitude = vf_abs(a), big = vf_set1(8388608.0f);
    vf r = (magnitude + big) - big;
    r = (vf)((vf_int)r | ((vf_int)a & (int32_t)0x80000000));
    return vf_select(magnitude < big, r, a);
}
static inline vf vf_gather(const float *p, const int32_t *index)
{
    return (vf){p[index[0]], p[index[1]], p[index[2]], p[index[3]]};
}
static inline void vf_store_u8(uint8_t *p, vf v)
{
    for (int i = 0; i < VF; i++) p[i] = (uint8_t)v[i];
}
static inline vf vf_load_u8(const uint8_t *p) { return (vf){p[0], p[1], p[2], p[3]}; }
static inline float vf_sum(vf v) { return (v[0] + v[2]) + (v[1] + v[3]); }
static inline vf vf_sums(const vf v[4]) { return (vf){vf_sum(v[0]), vf_sum(v[1]), vf_sum(v[2]), vf_sum(v[3])}; }
static inline float vf_hmin(vf v)
{
    float a = v[0] < v[1] ? v[0] : v[1], b = v[2] < v[3] ? v[2] : v[3];
    return a < b ? a : b;
}
static inline float vf_hmax(vf v)
{
    float a = v[0] > v[1] ? v[0] : v[1], b = v[2] > v[3] ? v[2] : v[3];
    return a > b ? a : b;
}
static inline vf vf_from_int(vf_int i) { return (vf){(float)i[0], (float)i[1], (float)i[2], (float)i[3]}; }
static inline vf vf_exponent(vf x) { return vf_from_int(((vf_int)x >> 23) - 127); }
static inline vf vf_mantissa(vf x) { return (vf)(((vf_int)x & 0x7fffff) | 0x3f800000); }
static inline vf vf_scale2(vf x, vf n)
{
    n = vf_min(vf_max(n, vf_set1(-127.0f)), vf_set1(127.0f));
    vf_int e = {(int32_t)n[0], (int32_t)n[1], (int32_t)n[2], (int32_t)n[3]};
    return x * (vf)((e + 127) << 23);
}
static inline vf vf_swap1(vf v) { return (vf){v[1], v[0], v[3], v[2]}; }
static inline vf vf_swap2(vf v) { return (vf){v[2], v[3], v[0], v[1]}; }
static inline vf vf_signs(int h)
{
    return (vf){1.0f, h & 1 ? -1.0f : 1.0f, h & 2 ? -1.0f : 1.0f, h & 3 ? -1.0f : 1.0f};
}

static inline vd vd_zero(void) { return (vd){0, 0}; }
static inline vd vd_set1(double x) { return (vd){x, x}; }
static inline vd vd_load(const double *p)
{
    vd v;
    memcpy(&v, p, sizeof v);
    return v;
}
static inline void vd_store(double *p, vd v) { memcpy(p, &v, sizeof v); }
static inline vd vd_load_n(const double *p, int64_t n)
{
    vd v = vd_zero();
    for (int64_t i = 0; i < n && i < VD; i++) v[i] = p[i];
    return v;
}
static inline void vd_store_n(double *p, vd v, int64_t n)
{
    for (int64_t i = 0; i < n && i < VD; i++) p[i] = v[i];
}
static inline vd vd_madd(vd a, vd b, vd c) { return a * b + c; }
static inline vd vd_min(vd a, vd b) { return (vd){a[0] < b[0] ? a[0] : b[0], a[1] < b[1] ? a[1] : b[1]}; }
static inline vd vd_max(vd a, vd b) { return (vd){a[0] > b[0] ? a[0] : b[0], a[1] > b[1] ? a[1] : b[1]}; }
static inline vd vd_rint(vd a) { return (vd){rint(a[0]), rint(a[1])}; }
static inline void vd_store_u8(uint8_t *p, vd v)
{
    for (int i = 0; i < VD; i++) p[i] = (uint8_t)v[i];
}
static inline vd vd_swap1(vd v) { return (vd){v[1], v[0]}; }
static inline vd vd_signs(int h) { return (vd){1.0, h & 1 ? -1.0 : 1.0}; }

typedef uint32_t vw __attribute__((vector_size(16)));
static inline vw vw_load_n(const void *p, int64_t n)
{
    vw w = {0, 0, 0, 0};
    memcpy(&w, p, n < 16 ? (size_t)n : sizeof w);
    return w;
}
static inline vf vw_nibble(vw w, int i)
{
    vf_int code = (vf_int)(w >> (4 * i) & 15) - 8;
    return (vf){(float)code[0], (float)code[1], (float)code[2], (float)code[3]};
}
static inline vf vw_byte(vw w, int i)
{
    vf_int code = (vf_int)(w >> (8 * i) & 255) - 128;
    return (vf){(float)code[0], (float)code[1], (float)code[2], (float)code[3]};
}
static inline vf vf_shuffle(vf v, const int32_t *index)
{
    return (vf){v[index[0]], v[index[1]], v[index[2]], v[index[3]]};
}
static inline vf vf_load_f16_n(const uint16_t *p, int64_t n)
{
    vf v = vf_zero();
    for (int64_t i = 0; i < n && i < VF; i++) v[i] = dq_f16_to_f32(p[i]);
    return v;
}
static inline vf vf_load_f16(const uint16_t *p)
{
    return (vf){dq_f16_to_f32(p[0]), dq_f16_to_f32(p[1]), dq_f16_to_f32(p[2]), dq_f16_to_f32(p[3])};
}
static inline vf vf_load_bf16(const uint16_t *p)
{
    return (vf){dq_bf16_to_f32(p[0]), dq_bf16_to_f32(p[1]), dq_bf16_to_f32(p[2]), dq_bf16_to_f32(p[3])};
}
static inline vf vf_round_bf16(vf v)
{
    for (int i = 0; i < VF; i++) v[i] = dq_bf16_to_f32(dq_f32_to_bf16(v[i]));
    return v;
}
