/* Eight-bit floats E4M3 (OCP 8-bit floating point, "e4m3fn"): no infinities, largest 448, NaN 0x7f and 0xff.
 * SPDX-License-Identifier: Apache-2.0 */
#ifndef DQ_BASE_FP8_H
#define DQ_BASE_FP8_H

#include "base/half.h"

static inline float dq_e4m3_to_f32(uint8_t x)
{
    uint32_t sign = (uint32_t)(x & 0x80u) << 24, exponent = (x >> 3) & 15u, mantissa = x & 7u;
    if (exponent == 15 && mantissa == 7) return dq_f32_from_bits(sign | 0x7fc00000u);
    if (exponent != 0) return dq_f32_from_bits(sign | ((exponent + 120) << 23) | (mantissa << 20));
    return dq_f32_from_bits(sign | dq_f32_bits((float)mantissa * 0x1p-9f)); /* subnormal: exact */
}

/* Half to even; what is larger than 448 becomes 448. */
static inline uint8_t dq_f32_to_e4m3(float x)
{
    uint32_t u = dq_f32_bits(x), a = u & 0x7fffffffu;
    uint8_t sign = (uint8_t)(u >> 24 & 0x80u);
    if (a > 0x7f800000u) return sign | 0x7f;
    if (a >= 0x43e00000u) return sign | 0x7e; /* 448 */
    if (a >= 0x3c800000u) {                   /* 2^-6: normal */
        uint32_t r = a + 0x7ffffu + (a >> 20 & 1u);
        return sign | (uint8_t)((r >> 20) - (120u << 3));
    }
    /* Subnormal: adding 2^14 puts the rounding position at the last mantissa bit of the sum. */
    float shifted = dq_f32_from_bits(a) + 0x1p14f;
    return sign | (uint8_t)(dq_f32_bits(shifted) - 0x46800000u);
}

#endif
