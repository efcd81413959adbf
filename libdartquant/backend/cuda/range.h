/* Grids of activations from the range of what a warp or a block looks through. SPDX-License-Identifier: Apache-2.0 */
#ifndef DQ_CUDA_RANGE_H
#define DQ_CUDA_RANGE_H

#include "backend/cuda/kernel.h"
#include "backend/cuda/quant_core.h"

/* Values v(0) ... v(count - 1). Every thread starts from the first, so that a NaN there rules all, as in the reference. */
template <class V>
__device__ static inline void cu_thread_range(V v, int64_t count, int first, int step, float *lo, float *hi)
{
    *lo = *hi = v(0);
    for (int64_t i = first; i < count; i += step) {
        float x = v(i);
        if (x < *lo) *lo = x;
        if (x > *hi) *hi = x;
    }
}

/* By one warp. */
template <class V> __device__ static inline cu_fake_grid cu_warp_grid(const dq_fake_quant_desc &d, V v, int64_t count)
{
    float lo, hi;
    cu_thread_range(v, count, threadIdx.x % CU_WARP, CU_WARP, &lo, &hi);
    __syncwarp(); /* all have read the first value before anybody writes in place; shuffles alone order no memory */
    return cu_make_fake_grid(d, cu_warp_min(lo), cu_warp_max(hi));
}

/* By the whole block; `slots`: shared, two a warp. */
template <class V>
__device__ static inline cu_fake_grid cu_block_grid(const dq_fake_quant_desc &d, V v, int64_t count, float *slots)
{
    float lo, hi;
    cu_thread_range(v, count, threadIdx.x, blockDim.x, &lo, &hi);
    cu_block_range(&lo, &hi, slots);
    return cu_make_fake_grid(d, lo, hi);
}

#endif
