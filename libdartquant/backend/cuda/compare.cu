/* Two models' logits of the same tokens, folded tile by tile. SPDX-License-Identifier: Apache-2.0 */
#include <math.h>

#include "backend/cuda/kernel.h"

/* Running maximum with the lowest place where it stands. */
typedef struct peak {
    double top;
    double place; /* -1 = none */
} peak;

__device__ static peak higher(peak a, peak b)
{
    if (b.place < 0) return a;
    if (a.place < 0 || b.top > a.top || (b.top == a.top && b.place < a.place)) return b;
    return a;
}

__device__ static peak block_peak(const float *x, int64_t n, int64_t first, peak *slots)
{
    peak p = {-INFINITY, -1};
    for (int64_t c = threadIdx.x; c < n; c += blockDim.x) {
        peak mine = {(double)x[c], (double)(first + c)};
        if (x[c] > -INFINITY) p = higher(p, mine);
    }
    for (int step = CU_WARP / 2; step > 0; step /= 2) {
        peak other = {__shfl_xor_sync(CU_ALL, p.top, step), __shfl_xor_sync(CU_ALL, p.place, step)};
        p = higher(p, other);
    }
    if (threadIdx.x % CU_WARP == 0) slots[threadIdx.x / CU_WARP] = p;
    __syncthreads();
    p = slots[0];
    for (int w = 1; w < CU_THREADS / CU_WARP; w++) p = higher(p, slots[w]);
    __syncthreads();
    return p;
}

/* One block a token. */
__global__ void compare_kernel(cu_mat<const float> a, cu_mat<const float> b, int64_t first, cu_mat<double> state)
{
    __shared__ peak peaks[CU_THREADS / CU_WARP];
    __shared__ double slots[CU_THREADS / CU_WARP];
    const float *x = a.row(blockIdx.x), *y = b.row(blockIdx.x);
    double *s = state.row(blockIdx.x);
    peak before_a = {s[0], s[5]}, before_b = {s[3], s[6]};
    peak top_a = higher(before_a, block_peak(x, a.cols, first, peaks));
    peak top_b = higher(before_b, block_peak(y, b.cols, first, peaks));
    double mass = 0, gap = 0, other = 0;
    for (int64_t c = threadIdx.x; c < a.cols; c += blockDim.x) {
        double e = exp((double)x[c] - top_a.top);
        mass += e;
        gap += e * ((double)x[c] - (double)y[c]);
        other += exp((double)y[c] - top_b.top);
    }
    mass = cu_block_sum(mass, slots);
    gap = cu_block_sum(gap, slots);
    other = cu_block_sum(other, slots);
    if (threadIdx.x != 0) return;
    double shrink_a = s[0] == -INFINITY ? 0.0 : exp(s[0] - top_a.top);
    double shrink_b = s[3] == -INFINITY ? 0.0 : exp(s[3] - top_b.top);
    s[1] = s[1] * shrink_a + mass;
    s[2] = s[2] * shrink_a + gap;
    s[4] = s[4] * shrink_b + other;
    s[0] = top_a.top;
    s[3] = top_b.top;
    s[5] = top_a.place;
    s[6] = top_b.place;
}

DQ_CUDA_SLOT dq_cuda_compare_logits(void *device, const dq_view *a, const dq_view *b, int64_t first,
                                    const dq_view *state)
{
    CU_ENTER(device);
    CU_LAUNCH(dev, compare_kernel, (unsigned)a->rows, CU_THREADS, 0, cu_view<const float>(a), cu_view<const float>(b),
              first, cu_view<double>(state));
    return dq_cuda_launched(dev, "compare_logits");
}
