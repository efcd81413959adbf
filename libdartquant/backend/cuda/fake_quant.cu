/* Dynamic fake quantization (QuaRot, arXiv 2404.00456), alone and behind a norm: one warp a group. Every operation rounds
 * once, as backend.h asks: this file is compiled without contraction. SPDX-License-Identifier: Apache-2.0 */
#include <math.h>

#include "backend/cuda/norm_core.h"
#include "backend/cuda/range.h"

/* Any group at any place: read twice. */
template <class Y>
__global__ void fake_quant_kernel(dq_fake_quant_desc d, cu_mat<const float> x, cu_mat<Y> y, int64_t groups)
{
    int64_t warp = ((int64_t)blockIdx.x * blockDim.x + threadIdx.x) / CU_WARP, lane = threadIdx.x % CU_WARP;
    int64_t warps = (int64_t)gridDim.x * blockDim.x / CU_WARP;
    for (int64_t g = warp; g < x.rows * groups; g += warps) {
        const float *in = x.row(g / groups) + g % groups * d.group;
        Y *out = y.row(g / groups) + g % groups * d.group;
        cu_fake_grid grid = cu_warp_grid(
            d, [&](int64_t i) { return in[i]; }, d.group);
        for (int64_t i = lane; i < d.group; i += CU_WARP) cu_store(out + i, cu_fake_value(grid, in[i]));
    }
}

/* A group in the registers of a warp or a block: read once, FOURS vectors a thread. */
template <int LANES, int FOURS, class Y>
__global__ void __launch_bounds__(CU_THREADS)
    fake_quant_held_kernel(dq_fake_quant_desc d, cu_mat<const float> x, cu_mat<Y> y, unsigned groups)
{
    __shared__ float slots[2 * CU_THREADS / CU_WARP];
    int64_t g = (int64_t)blockIdx.x * (CU_THREADS / LANES) + threadIdx.x / LANES;
    if (g >= x.rows * groups) return; /* a whole warp, or the block, leaves */
    int64_t r = (uint32_t)g / groups, first = (g - r * groups) * d.group;
    int lane = threadIdx.x % LANES, n = (int)d.group;
    const float *in = x.row(r) + first;
    Y *out = y.row(r) + first;
    cu_four<float> v[FOURS];
    float lo = in[0], hi = lo; /* as in cu_thread_range */
#pragma unroll
    for (int i = 0; i < FOURS; i++)
        if ((i * LANES + lane) * 4 < n) v[i] = cu_take(in + (i * LANES + lane) * 4, 4, true);
#pragma unroll
    for (int i = 0; i < FOURS; i++)
#pragma unroll
        for (int j = 0; j < 4; j++) {
            if ((i * LANES + lane) * 4 >= n) continue;
            if (v[i].v[j] < lo) lo = v[i].v[j];
            if (v[i].v[j] > hi) hi = v[i].v[j];
        }
    if (LANES == CU_WARP) {
        __syncwarp(); /* all have read the first value before anybody writes in place */
        lo = cu_warp_min(lo);
        hi = cu_warp_max(hi);
    } else {
        cu_block_range(&lo, &hi, slots);
    }
    cu_fake_grid grid = cu_make_fake_grid(d, lo, hi);
#pragma unroll
    for (int i = 0; i < FOURS; i++) {
        if ((i * LANES + lane) * 4 >= n) continue;
#pragma unroll
        for (int j = 0; j < 4; j++) v[i].v[j] = cu_fake_value(grid, v[i].v[j]);
        cu_put_float(out + (i * LANES + lane) * 4, v[i], 4, true);
    }
}

template <int LANES, int FOURS, class Y>
static void hold(dq_cuda_device *dev, const dq_fake_quant_desc *d, const dq_view *x, const dq_view *y)
{
    int64_t groups = x->cols / d->group;
    CU_LAUNCH(dev, (fake_quant_held_kernel<LANES, FOURS, Y>), (unsigned)cu_div_up(x->rows * groups, CU_THREADS / LANES),
              CU_THREADS, 0, *d, cu_view<const float>(x), cu_view<Y>(y), (unsigned)groups);
}

template <class Y>
static void fake_quant(dq_cuda_device *dev, const dq_fake_quant_desc *d, const dq_view *x, const dq_view *y)
{
    int64_t n = d->group, groups = x->cols / n;
    bool wide = n % 4 == 0 && cu_in_fours<float>(x) && cu_in_fours<Y>(y) && x->rows * groups <= INT32_MAX;
    if (!wide || n > 32 * CU_THREADS)
        CU_LAUNCH(dev, fake_quant_kernel<Y>, cu_grid(x->rows * groups, CU_THREADS / CU_WARP), CU_THREADS, 0, *d,
                  cu_view<const float>(x), cu_view<Y>(y), groups);
    else if (n <= 4 * CU_WARP)
        hold<CU_WARP, 1, Y>(dev, d, x, y);
    else if (n <= 16 * CU_WARP)
        hold<CU_WARP, 4, Y>(dev, d, x, y);
    else if (n <= 16 * CU_THREADS)
        hold<CU_THREADS, 4, Y>(dev, d, x, y);
    else
        hold<CU_THREADS, 8, Y>(dev, d, x, y);
}

DQ_CUDA_SLOT dq_cuda_fake_quant(void *device, const dq_fake_quant_desc *d, const dq_view *x, const dq_view *y)
{
    CU_ENTER(device);
    if (y->dtype == DQ_BF16)
        fake_quant<cu_bf16>(dev, d, x, y);
    else
        fake_quant<float>(dev, d, x, y);
    return dq_cuda_launched(dev, "fake_quant");
}

/* The norm, as in forward.cu, of a row that stays in shared memory until its range is known. */
template <bool LAYER, class Y>
__global__ void norm_quant_kernel(dq_fake_quant_desc d, cu_mat<const float> x, cu_norm norm, double eps, cu_mat<Y> y,
                                  bool wide)
{
    CU_DYNAMIC_SHARED(shared);
    __shared__ double slots[CU_THREADS / CU_WARP];
    const float *in = x.row(blockIdx.x);
    float *v = (float *)shared;
    Y *out = y.row(blockIdx.x);
    int cols = (int)x.cols, group = (int)d.group;
    cu_measure<LAYER>(&norm, in, cols, eps, slots, wide);
    CU_BLOCK_FOURS(c, n, cols)
    {
        cu_four<float> four = cu_take(in + c, (int)n, wide);
        cu_put(v + c, cu_normed<LAYER>(norm, four, c, (int)n, wide), (int)n, true);
    }
    __syncthreads();
    if (group == cols) {
        cu_fake_grid grid = cu_block_grid(
            d, [&](int64_t i) { return v[i]; }, cols, (float *)slots);
        CU_BLOCK_FOURS(c, n, cols)
        {
            cu_four<float> four = cu_take(v + c, (int)n, true);
#pragma unroll
            for (int i = 0; i < 4; i++) four.v[i] = cu_fake_value(grid, four.v[i]);
            cu_put_float(out + c, four, (int)n, wide);
        }
    } else {
        for (int first = threadIdx.x / CU_WARP * group; first < cols; first += blockDim.x / CU_WARP * group) {
            cu_fake_grid grid = cu_warp_grid(
                d, [&](int64_t i) { return v[first + i]; }, group);
            for (int i = threadIdx.x % CU_WARP; i < group; i += CU_WARP)
                cu_store(out + first + i, cu_fake_value(grid, v[first + i]));
        }
    }
}

template <bool LAYER, class Y>
static dq_status norm_quant(dq_cuda_device *dev, const char *op, const dq_view *x, const dq_view *weight,
                            const dq_view *bias, double eps, const dq_fake_quant_desc *d, const dq_view *y)
{
    cu_norm n = {cu_vector(weight), cu_vector(bias), 0, 0};
    int64_t bytes = x->cols * (int64_t)sizeof(float);
    CU_TRY(cu_allow_shared(dev, norm_quant_kernel<LAYER, Y>, bytes));
    CU_LAUNCH(dev, (norm_quant_kernel<LAYER, Y>), (unsigned)x->rows, CU_THREADS, (size_t)bytes, *d,
              cu_view<const float>(x), n, eps, cu_view<Y>(y), cu_norm_in_fours<Y>(x, weight, bias, y));
    return dq_cuda_launched(dev, op);
}

DQ_CUDA_SLOT dq_cuda_rmsnorm_quant(void *device, const dq_view *x, const dq_view *weight, double eps,
                                   const dq_fake_quant_desc *d, const dq_view *y)
{
    CU_ENTER(device);
    return y->dtype == DQ_BF16 ? norm_quant<false, cu_bf16>(dev, "rmsnorm_quant", x, weight, NULL, eps, d, y)
                               : norm_quant<false, float>(dev, "rmsnorm_quant", x, weight, NULL, eps, d, y);
}

DQ_CUDA_SLOT dq_cuda_layernorm_quant(void *device, const dq_view *x, const dq_view *weight, const dq_view *bias,
                                     double eps, const dq_fake_quant_desc *d, const dq_view *y)
{
    CU_ENTER(device);
    return y->dtype == DQ_BF16 ? norm_quant<true, cu_bf16>(dev, "layernorm_quant", x, weight, bias, eps, d, y)
                               : norm_quant<true, float>(dev, "layernorm_quant", x, weight, bias, eps, d, y);
}
