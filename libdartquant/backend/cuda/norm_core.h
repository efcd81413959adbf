/* Norms of a row, the same to the bit in every kernel: sums in double, by the same threads in the same order whether they load
 * one number at a time or four. SPDX-License-Identifier: Apache-2.0 */
#ifndef DQ_CUDA_NORM_CORE_H
#define DQ_CUDA_NORM_CORE_H

#include <math.h>

#include "backend/cuda/four.h"

/* y = (x - mean) * factor * weight + bias; an RMS norm has no mean and no bias. */
typedef struct cu_norm {
    const float *weight, *bias; /* or NULL */
    double mean;
    float factor;
} cu_norm;

/* What the block needs to know of its row. `slots`: shared, one a warp. */
template <bool LAYER>
__device__ static inline void cu_measure(cu_norm *n, const float *in, int64_t cols, double eps, double *slots,
                                         bool wide)
{
    double sum = 0;
    n->mean = 0;
    if (LAYER) {
        CU_BLOCK_FOURS(c, count, cols)
        {
            cu_four<float> x = cu_take(in + c, (int)count, wide);
            for (int i = 0; i < 4; i++) sum += (double)x.v[i];
        }
        n->mean = cu_block_sum(sum, slots) / (double)cols;
        sum = 0;
    }
    CU_BLOCK_FOURS(c, count, cols)
    {
        cu_four<float> x = cu_take(in + c, (int)count, wide);
        for (int i = 0; i < 4; i++) {
            double d = i < count ? (double)x.v[i] - n->mean : 0.0;
            sum += d * d;
        }
    }
    sum = cu_block_sum(sum, slots);
    n->factor = (float)(1.0 / sqrt(sum / (double)cols + eps));
}

/* `count` of columns c to c + 3. */
template <bool LAYER>
__device__ static inline cu_four<float> cu_normed(const cu_norm &n, cu_four<float> x, int64_t c, int count, bool wide)
{
    cu_four<float> w = {{1.0f, 1.0f, 1.0f, 1.0f}}, b = {{0.0f, 0.0f, 0.0f, 0.0f}};
    if (n.weight) w = cu_take(n.weight + c, count, wide);
    if (LAYER && n.bias) b = cu_take(n.bias + c, count, wide);
#pragma unroll
    for (int i = 0; i < 4; i++) {
        x.v[i] = (LAYER ? (float)((double)x.v[i] - n.mean) : x.v[i]) * n.factor * w.v[i];
        if (LAYER) x.v[i] = x.v[i] + b.v[i];
    }
    return x;
}

/* Whether vectors may load and store all of them; NULL ones are fine. */
template <class Y>
static inline bool cu_norm_in_fours(const dq_view *x, const dq_view *weight, const dq_view *bias, const dq_view *y)
{
    return cu_in_fours<float>(x) && cu_in_fours<Y>(y) && (!weight || cu_in_fours<float>(weight)) &&
           (!bias || cu_in_fours<float>(bias));
}
static inline const float *cu_vector(const dq_view *v) { return v ? (const float *)cu_at(v) : NULL; }

#endif
