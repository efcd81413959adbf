/* The root mean square norm of a row, the same to the bit in every kernel. SPDX-License-Identifier: Apache-2.0 */
#ifndef DQ_CUDA_NORM_CORE_H
#define DQ_CUDA_NORM_CORE_H

#include <math.h>

#include "backend/cuda/kernel.h"

/* 1 / rms of the block's row; the sum of squares in double, in a fixed order. `slots`: shared, one a warp. */
__device__ static inline float cu_norm_factor(const float *in, int64_t cols, double eps, double *slots)
{
    double sum = 0;
    for (int64_t c = threadIdx.x; c < cols; c += blockDim.x) sum += (double)in[c] * (double)in[c];
    sum = cu_block_sum(sum, slots);
    return (float)(1.0 / sqrt(sum / (double)cols + eps));
}

__device__ static inline float cu_normed(float x, float factor, const float *weight, int64_t c)
{
    return x * factor * (weight ? weight[c] : 1.0f);
}

#endif
