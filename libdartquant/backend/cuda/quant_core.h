/* The arithmetic of quantization, the same to the bit as the reference: fp32, one rounding an operation. Plain functions
 * for card and host, so that the tests run them anywhere. Compile without contraction.
 * SPDX-License-Identifier: Apache-2.0 */
#ifndef DQ_CUDA_QUANT_CORE_H
#define DQ_CUDA_QUANT_CORE_H

#include <math.h>

#include "backend/cuda/kernel.h"

/* ---- activations ---- */

typedef struct cu_fake_grid {
    float scale, zero, lo, hi; /* codes rint(x / scale) + zero in [lo, hi] */
    bool exact;                /* empty range: values stay */
} cu_fake_grid;

__host__ __device__ static inline float cu_clamp(float x, float lo, float hi) { return x < lo ? lo : x > hi ? hi : x; }

__host__ __device__ static inline cu_fake_grid cu_make_fake_grid(const dq_fake_quant_desc &d, float lo, float hi)
{
    cu_fake_grid g = {1, 0, 0, 0, false};
    if (d.zero_in_range) {
        if (lo > 0) lo = 0;
        if (hi < 0) hi = 0;
    }
    lo *= d.clip;
    hi *= d.clip;
    if (d.symmetric) {
        float maxq = (float)((1 << (d.bits - 1)) - 1);
        g.scale = fmaxf(fabsf(lo), fabsf(hi)) / maxq;
        if (g.scale == 0) g.scale = 1;
        g.lo = -maxq - 1;
        g.hi = maxq;
        return g;
    }
    if (lo == 0 && hi == 0) {
        lo = -1;
        hi = 1;
    }
    g.hi = (float)((1 << d.bits) - 1);
    g.scale = (hi - lo) / g.hi;
    g.exact = g.scale == 0;
    if (!g.exact) g.zero = rintf(-lo / g.scale);
    return g;
}

__host__ __device__ static inline float cu_fake_value(const cu_fake_grid &g, float x)
{
    if (g.exact) return x;
    return g.scale * (cu_clamp(rintf(x / g.scale) + g.zero, g.lo, g.hi) - g.zero);
}

/* Codes of a whole row as signed bytes: less 2^(bits-1) where asymmetric; an empty range, which whole rows have only below fp32's
 * smallest numbers, becomes zero. */
__host__ __device__ static inline int cu_code_shift(const dq_fake_quant_desc &d)
{
    return d.symmetric ? 0 : 1 << (d.bits - 1);
}
__host__ __device__ static inline cu_fake_grid cu_make_code_grid(const dq_fake_quant_desc &d, float lo, float hi)
{
    cu_fake_grid g = cu_make_fake_grid(d, lo, hi);
    if (g.exact) g.scale = 1;
    return g;
}
__host__ __device__ static inline int cu_row_code(const cu_fake_grid &g, int shift, float x)
{
    return (int)cu_clamp(rintf(x / g.scale) + g.zero, g.lo, g.hi) - shift;
}
/* Scale, zero and sum of the codes; `bad`: numbers of the row that are not finite. */
__host__ __device__ static inline void cu_put_code_grid(float *to, const cu_fake_grid &g, int shift, int sum, int bad)
{
    to[0] = bad ? NAN : g.scale;
    to[1] = bad ? 0.0f : g.zero - (float)shift;
    to[2] = bad ? 0.0f : (float)sum;
}

/* ---- weights ---- */

__host__ __device__ static inline float cu_top_code(int bits) { return (float)((1 << bits) - 1); }

/* fmaxf turns NaN into 0. */
__host__ __device__ static inline float cu_code(float w, float scale, float zero, float top)
{
    return fminf(fmaxf(rintf(w / scale) + zero, 0.0f), top);
}
__host__ __device__ static inline float cu_code_value(float code, float scale, float zero)
{
    return scale * (code - zero);
}

/* Parameters of the range lo <= 0 <= hi shrunk by p; absmax is at least 1e-5. */
__host__ __device__ static inline void cu_weight_grid(const dq_grid_desc &d, float lo, float hi, float p, float *scale,
                                                      float *zero)
{
    const float smallest = 1e-5f;
    if (d.symmetric) {
        float absmax = fmaxf(fmaxf(-lo, hi), smallest);
        *scale = p * absmax / (float)((1 << (d.bits - 1)) - 1);
        *zero = (float)(1 << (d.bits - 1));
        return;
    }
    lo *= p;
    hi *= p;
    *scale = fmaxf(hi - lo, smallest) / cu_top_code(d.bits);
    *zero = rintf(-lo / *scale) + 0.0f; /* never -0 */
}

#endif
