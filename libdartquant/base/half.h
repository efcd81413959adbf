/* 16-bit floats. Conversions round half to even and keep NaN. SPDX-License-Identifier: Apache-2.0 */
#ifndef DQ_BASE_HALF_H
#define DQ_BASE_HALF_H

#include <stdint.h>
#include <string.h>

static inline uint32_t dq_f32_bits(float x)
{
    uint32_t u;
    memcpy(&u, &x, sizeof u);
    return u;
}

static inline float dq_f32_from_bits(uint32_t u)
{
    float x;
    memcpy(&x, &u, sizeof x);
    return x;
}

static inline float dq_bf16_to_f32(uint16_t h) { return dq_f32_from_bits((uint32_t)h << 16); }

static inline uint16_t dq_f32_to_bf16(float x)
{
    uint32_t u = dq_f32_bits(x);
    if ((u & 0x7fffffffu) > 0x7f800000u) return (uint16_t)((u >> 16) | 0x40u); /* quiet NaN */
    return (uint16_t)((u + 0x7fffu + ((u >> 16) & 1u)) >> 16);
}

static inline float dq_f16_to_f32(uint16_t h)
{
    uint32_t sign = (uint32_t)(h & 0x8000u) << 16;
    uint32_t exponent = (h >> 10) & 0x1fu;
    uint32_t mantissa = h & 0x3ffu;
    if (exponent == 0x1f) return dq_f32_from_bits(sign | 0x7f800000u | (mantissa << 13));
    if (exponent != 0) return dq_f32_from_bits(sign | ((exponent + 112) << 23) | (mantissa << 13));
    float tiny = (float)mantissa * 0x1p-24f; /* subnormal: exact */
    return dq_f32_from_bits(sign | dq_f32_bits(tiny));
}

static inline uint16_t dq_f32_to_f16(float x)
{
    uint32_t u = dq_f32_bits(x);
    uint16_t sign = (uint16_t)((u >> 16) & 0x8000u);
    uint32_t a = u & 0x7fffffffu;
    if (a > 0x7f800000u) return sign | 0x7e00u;
    if (a >= 0x477ff000u) return sign | 0x7c00u; /* 65520 and above round to infinity */
    if (a >= 0x38800000u) {                      /* normal half */
        uint32_t r = a + 0xfffu + ((a >> 13) & 1u);
        return sign | (uint16_t)((r - 0x38000000u) >> 13);
    }
    /* Subnormal: adding 0.5 puts the rounding position at the last mantissa bit of the sum. */
    float shifted = dq_f32_from_bits(a) + 0.5f;
    return sign | (uint16_t)(dq_f32_bits(shifted) - 0x3f000000u);
}

/* fp64 to the nearest fp32 whose last bit remembers that something was cut off ("round to odd"). Rounding that to 16
 * bits gives the correctly rounded result; rounding to the nearest fp32 first would round twice. */
static inline float dq_f64_to_f32_odd(double x)
{
    float f = (float)x;
    if ((double)f == x || x != x) return f;
    uint32_t u = dq_f32_bits(f);
    double magnitude = x < 0 ? -x : x;
    if ((double)dq_f32_from_bits(u & 0x7fffffffu) > magnitude) u--; /* toward zero */
    return dq_f32_from_bits(u | 1u);
}

static inline uint16_t dq_f64_to_bf16(double x) { return dq_f32_to_bf16(dq_f64_to_f32_odd(x)); }
static inline uint16_t dq_f64_to_f16(double x) { return dq_f32_to_f16(dq_f64_to_f32_odd(x)); }

#endif
