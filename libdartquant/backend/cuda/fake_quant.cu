/* Dynamic fake quantization (QuaRot, arXiv 2404.00456), alone and behind a norm: one warp a group. Every operation rounds
 * once, as backend.h asks: this file is compiled without contraction. SPDX-License-Identifier: Apache-2.0 */
#include <math.h>

#include "backend/cuda/norm_core.h"
#include "backend/cuda/range.h"

__global__ void fake_quant_kernel(dq_fake_quant_desc d, cu_mat<const float> x, cu_mat<float> y, int64_t groups)
{
    int64_t warp = ((int64_t)blockIdx.x * blockDim.x + threadIdx.x) / CU_WARP, lane = threadIdx.x % CU_WARP;
    int64_t warps = (int64_t)gridDim.x * blockDim.x / CU_WARP;
    for (int64_t g = warp; g < x.rows * groups; g += warps) {
        const float *in = x.row(g / groups) + g % groups * d.group;
        float *out = y.row(g / groups) + g % groups * d.group;
        cu_fake_grid grid = cu_warp_grid(
            d, [&](int64_t i) { return in[i]; }, d.group);
        for (int64_t i = lane; i < d.group; i += CU_WARP) out[i] = cu_fake_value(grid, in[i]);
    }
}

DQ_CUDA_SLOT dq_cuda_fake_quant(void *device, const dq_fake_quant_desc *d, const dq_view *x, const dq_view *y)
{
    CU_ENTER(device);
    int64_t groups = x->cols / d->group;
    CU_LAUNCH(dev, fake_quant_kernel, cu_grid(x->rows * groups, CU_THREADS / CU_WARP), CU_THREADS, 0, *d,
              cu_view<const float>(x), cu_view<float>(y), groups);
    return dq_cuda_launched(dev, "fake_quant");
}

/* The norm, as in forward.cu, of a row that stays in shared memory until its range is known. */
__global__ void rmsnorm_quant_kernel(dq_fake_quant_desc d, cu_mat<const float> x, const float *weight, double eps,
                                     cu_mat<float> y)
{
    CU_DYNAMIC_SHARED(shared);
    __shared__ double slots[CU_THREADS / CU_WARP];
    float *v = (float *)shared, *out = y.row(blockIdx.x);
    int cols = (int)x.cols, group = (int)d.group;
    float factor = cu_norm_factor(x.row(blockIdx.x), x.cols, eps, slots);
    for (int c = threadIdx.x; c < cols; c += blockDim.x) v[c] = cu_normed(x.row(blockIdx.x)[c], factor, weight, c);
    __syncthreads();
    if (group == cols) {
        cu_fake_grid grid = cu_block_grid(
            d, [&](int64_t i) { return v[i]; }, cols, (float *)slots);
        for (int c = threadIdx.x; c < cols; c += blockDim.x) out[c] = cu_fake_value(grid, v[c]);
    } else {
        for (int first = threadIdx.x / CU_WARP * group; first < cols; first += blockDim.x / CU_WARP * group) {
            cu_fake_grid grid = cu_warp_grid(
                d, [&](int64_t i) { return v[first + i]; }, group);
            for (int i = threadIdx.x % CU_WARP; i < group; i += CU_WARP)
                out[first + i] = cu_fake_value(grid, v[first + i]);
        }
    }
}

DQ_CUDA_SLOT dq_cuda_rmsnorm_quant(void *device, const dq_view *x, const dq_view *weight, double eps,
                                   const dq_fake_quant_desc *d, const dq_view *y)
{
    CU_ENTER(device);
    int64_t bytes = x->cols * (int64_t)sizeof(float);
    if (bytes + 1024 > dev->max_shared)
        return dq_cuda_fail(dev, DQ_E_UNSUPPORTED, 0, "rmsnorm_quant: a row of %lld does not fit shared memory",
                            (long long)x->cols);
    CU_TRY(cu_allow_shared(dev, rmsnorm_quant_kernel, bytes));
    CU_LAUNCH(dev, rmsnorm_quant_kernel, (unsigned)x->rows, CU_THREADS, (size_t)bytes, *d, cu_view<const float>(x),
              weight ? (const float *)cu_at(weight) : NULL, eps, cu_view<float>(y));
    return dq_cuda_launched(dev, "rmsnorm_quant");
}
