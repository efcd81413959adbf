/* Dynamic fake quantization (QuaRot, arXiv 2404.00456): one warp a group. Every operation rounds once, as backend.h asks:
 * this file is compiled without contraction. SPDX-License-Identifier: Apache-2.0 */
#include <math.h>

#include "backend/cuda/kernel.h"
#include "backend/cuda/quant_core.h"

__global__ void fake_quant_kernel(dq_fake_quant_desc d, cu_mat<const float> x, cu_mat<float> y, int64_t groups)
{
    int64_t warp = ((int64_t)blockIdx.x * blockDim.x + threadIdx.x) / CU_WARP, lane = threadIdx.x % CU_WARP;
    int64_t warps = (int64_t)gridDim.x * blockDim.x / CU_WARP;
    for (int64_t g = warp; g < x.rows * groups; g += warps) {
        const float *in = x.row(g / groups) + g % groups * d.group;
        float *out = y.row(g / groups) + g % groups * d.group;
        float lo = in[0], hi = in[0];
        for (int64_t i = lane; i < d.group; i += CU_WARP) {
            if (in[i] < lo) lo = in[i];
            if (in[i] > hi) hi = in[i];
        }
        cu_fake_grid grid = cu_make_fake_grid(d, cu_warp_min(lo), cu_warp_max(hi));
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
