/* Weight grids with clip search, codes and back. Compiled without contraction. SPDX-License-Identifier: Apache-2.0 */
#include <math.h>

#include "backend/cuda/kernel.h"
#include "backend/cuda/quant_core.h"

/* ---- grid ---- */

enum { MAX_STEPS = 256 };

/* One block a group: its values wait in shared memory (when they fit) and each warp tries every eighth step, alone, so
 * that a step's error is a sum in one fixed order. */
__global__ void grid_kernel(dq_grid_desc d, cu_mat<const float> w, cu_mat<float> scale, cu_mat<float> zero, bool cached)
{
    CU_DYNAMIC_SHARED(shared);
    __shared__ float low, high, errors[MAX_STEPS];
    __shared__ float lows[CU_THREADS / CU_WARP], highs[CU_THREADS / CU_WARP];
    float *cache = (float *)shared;
    int lane = threadIdx.x % CU_WARP, warp = threadIdx.x / CU_WARP, warps = blockDim.x / CU_WARP;
    int64_t r = blockIdx.x / scale.cols, g = blockIdx.x % scale.cols, first = g * d.group;
    int64_t n = w.cols - first < d.group ? w.cols - first : d.group;
    const float *x = w.row(r) + first;
    float lo = 0, hi = 0;
    for (int64_t i = threadIdx.x; i < n; i += blockDim.x) {
        float value = x[i];
        if (cached) cache[i] = value;
        lo = fminf(lo, value);
        hi = fmaxf(hi, value);
    }
    lo = cu_warp_min(lo);
    hi = cu_warp_max(hi);
    if (lane == 0) {
        lows[warp] = lo;
        highs[warp] = hi;
    }
    __syncthreads();
    if (threadIdx.x == 0) {
        for (int i = 1; i < warps; i++) {
            lo = fminf(lo, lows[i]);
            hi = fmaxf(hi, highs[i]);
        }
        low = lo;
        high = hi;
    }
    __syncthreads();
    float top = cu_top_code(d.bits), s, z;
    if (cached) x = cache;
    for (int step = warp; step < d.search_steps; step += warps) {
        cu_weight_grid(d, low, high, (float)(1.0 - (double)step / d.search_grid), &s, &z);
        float error = 0;
        for (int64_t i = lane; i < n; i += CU_WARP) {
            float difference = fabsf(cu_code_value(cu_code(x[i], s, z, top), s, z) - x[i]);
            error += powf(difference, d.search_norm);
        }
        error = cu_warp_sum(error);
        if (lane == 0) errors[step] = error;
    }
    __syncthreads();
    if (threadIdx.x != 0) return;
    int best = 0; /* of equal errors the largest range: it comes first */
    for (int step = 1; step < d.search_steps; step++)
        if (errors[step] < errors[best]) best = step;
    cu_weight_grid(d, low, high, d.search_steps > 0 ? (float)(1.0 - (double)best / d.search_grid) : 1.0f, &s, &z);
    scale.row(r)[g] = s;
    zero.row(r)[g] = z;
}

DQ_CUDA_SLOT dq_cuda_weight_grid(void *device, const dq_grid_desc *d, const dq_view *w, const dq_view *scale,
                                 const dq_view *zero)
{
    CU_ENTER(device);
    if (d->search_steps > MAX_STEPS)
        return dq_cuda_fail(dev, DQ_E_UNSUPPORTED, 0, "weight_grid: %d search steps (%d at most)", d->search_steps,
                            (int)MAX_STEPS);
    int64_t bytes = (d->group < w->cols ? d->group : w->cols) * 4;
    bool cached = bytes <= dev->max_shared - 8192; /* the kernel has some of its own */
    if (!cached) bytes = 0;
    CU_TRY(cu_allow_shared(dev, grid_kernel, bytes));
    CU_LAUNCH(dev, grid_kernel, (unsigned)(w->rows * scale->cols), CU_THREADS, (size_t)bytes, *d,
              cu_view<const float>(w), cu_view<float>(scale), cu_view<float>(zero), cached);
    return dq_cuda_launched(dev, "weight_grid");
}

/* ---- codes ---- */

__device__ static int64_t group_of(const dq_grid_desc &d, const int32_t *index, int64_t c, int64_t groups,
                                   dq_cuda_fault *fault, int op)
{
    return index ? cu_checked(index[c], groups, fault, op, c) : c / d.group;
}

__global__ void quantize_kernel(dq_grid_desc d, cu_mat<const float> w, cu_mat<const float> scale,
                                cu_mat<const float> zero, const int32_t *index, cu_mat<uint8_t> codes,
                                dq_cuda_fault *fault)
{
    float top = cu_top_code(d.bits);
    CU_STRIDE_LOOP(i, w.rows * w.cols)
    {
        int64_t r = i / w.cols, c = i % w.cols, g = group_of(d, index, c, scale.cols, fault, CU_OP_QUANTIZE);
        codes.row(r)[c] = (uint8_t)cu_code(w.row(r)[c], scale.row(r)[g], zero.row(r)[g], top);
    }
}

DQ_CUDA_SLOT dq_cuda_quantize_weight(void *device, const dq_grid_desc *d, const dq_view *w, const dq_view *scale,
                                     const dq_view *zero, const dq_view *group_index, const dq_view *codes)
{
    CU_ENTER(device);
    CU_LAUNCH(dev, quantize_kernel, cu_grid(w->rows * w->cols, CU_THREADS), CU_THREADS, 0, *d, cu_view<const float>(w),
              cu_view<const float>(scale), cu_view<const float>(zero),
              group_index ? (const int32_t *)cu_at(group_index) : NULL, cu_view<uint8_t>(codes), dev->fault);
    return dq_cuda_launched(dev, "quantize_weight");
}

__global__ void dequantize_kernel(dq_grid_desc d, cu_mat<const uint8_t> codes, cu_mat<const float> scale,
                                  cu_mat<const float> zero, const int32_t *index, cu_mat<float> w, dq_cuda_fault *fault)
{
    CU_STRIDE_LOOP(i, w.rows * w.cols)
    {
        int64_t r = i / w.cols, c = i % w.cols, g = group_of(d, index, c, scale.cols, fault, CU_OP_DEQUANTIZE);
        w.row(r)[c] = cu_code_value((float)codes.row(r)[c], scale.row(r)[g], zero.row(r)[g]);
    }
}

DQ_CUDA_SLOT dq_cuda_dequantize_weight(void *device, const dq_grid_desc *d, const dq_view *codes, const dq_view *scale,
                                       const dq_view *zero, const dq_view *group_index, const dq_view *w)
{
    CU_ENTER(device);
    CU_LAUNCH(dev, dequantize_kernel, cu_grid(w->rows * w->cols, CU_THREADS), CU_THREADS, 0, *d,
              cu_view<const uint8_t>(codes), cu_view<const float>(scale), cu_view<const float>(zero),
              group_index ? (const int32_t *)cu_at(group_index) : NULL, cu_view<float>(w), dev->fault);
    return dq_cuda_launched(dev, "dequantize_weight");
}
