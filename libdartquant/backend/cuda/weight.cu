/* Weight grids with clip search, codes and back. Compiled without contraction. SPDX-License-Identifier: Apache-2.0 */
#include <math.h>

#include "backend/cuda/kernel.h"
#include "backend/cuda/quant_core.h"

/* ---- grid ---- */

enum { MAX_STEPS = 256, GRID_THREADS = 128, CHUNK = 64 /* values between whose sums another one stands */ };

/* x^norm for x >= 0, good to 1e-6; below 2^-126 nothing. Of the search alone. */
__device__ static float power(float x, float norm)
{
#ifdef __CUDA_ARCH__
    float log, y;
    asm("lg2.approx.ftz.f32 %0, %1;" : "=f"(log) : "f"(x));
    asm("ex2.approx.ftz.f32 %0, %1;" : "=f"(y) : "f"(norm * log));
    return y;
#else
    return exp2f(norm * log2f(x));
#endif
}

/* The error of one step. Codes by a reciprocal: beside a tie either one costs the same. */
__device__ static float step_error(const float *x, int n, float s, float z, float top, float norm)
{
    const float bias = 12582912.0f; /* 1.5 2^23: adding it rounds to an integer */
    float inverse = 1.0f / s, error = 0;
    for (int first = 0; first < n; first += CHUNK) {
        int end = n - first < CHUNK ? n : first + CHUNK;
        float sum = 0;
#pragma unroll 4
        for (int i = first; i < end; i++) {
            float value = x[i], code = (value * inverse + bias) - bias + z;
            code = fminf(fmaxf(code, 0.0f), top);
            sum += power(fabsf(cu_code_value(code, s, z) - value), norm);
        }
        error += sum;
    }
    return error;
}

/* The step of the least error, of equals the first; the first one, too, when its error is no number. By one warp. */
__device__ static int best_step(const float *errors, int steps)
{
    int lane = threadIdx.x % CU_WARP, best = lane < steps ? lane : 0;
    for (int step = lane + CU_WARP; step < steps; step += CU_WARP)
        if (errors[step] < errors[best] || errors[best] != errors[best]) best = step;
    for (int way = CU_WARP / 2; way > 0; way /= 2) {
        int other = __shfl_xor_sync(CU_ALL, best, way);
        bool less = errors[other] < errors[best] || (errors[other] == errors[best] && other < best);
        if (less || (errors[best] != errors[best] && errors[other] == errors[other])) best = other;
    }
    return errors[0] == errors[0] ? best : 0;
}

/* One block a group: its values wait in shared memory (when they fit) and each thread tries a step of its own. */
__global__ void grid_kernel(dq_grid_desc d, cu_mat<const float> w, cu_mat<float> scale, cu_mat<float> zero, bool cached)
{
    CU_DYNAMIC_SHARED(shared);
    __shared__ float slots[2 * MAX_STEPS / CU_WARP], errors[MAX_STEPS];
    float *cache = (float *)shared;
    unsigned groups = (unsigned)scale.cols, r = blockIdx.x / groups, g = blockIdx.x % groups;
    int64_t first = g * d.group;
    int n = (int)(w.cols - first < d.group ? w.cols - first : d.group);
    const float *x = w.row(r) + first;
    float lo = 0, hi = 0, s, z;
    for (int i = threadIdx.x; i < n; i += blockDim.x) {
        float value = x[i];
        if (cached) cache[i] = value;
        lo = fminf(lo, value);
        hi = fmaxf(hi, value);
    }
    cu_block_range(&lo, &hi, slots);
    int step = threadIdx.x;
    if (step < d.search_steps) {
        float top = cu_top_code(d.bits);
        cu_weight_grid(d, lo, hi, (float)(1.0 - (double)step / d.search_grid), &s, &z);
        errors[step] =
            cached ? step_error(cache, n, s, z, top, d.search_norm) : step_error(x, n, s, z, top, d.search_norm);
    }
    __syncthreads();
    if (threadIdx.x >= CU_WARP) return;
    int best = d.search_steps > 0 ? best_step(errors, d.search_steps) : 0;
    if (threadIdx.x != 0) return;
    cu_weight_grid(d, lo, hi, d.search_steps > 0 ? (float)(1.0 - (double)best / d.search_grid) : 1.0f, &s, &z);
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
    bool cached = d->search_steps > 0 && bytes <= dev->max_shared - 8192; /* the kernel has some of its own */
    if (!cached) bytes = 0;
    int threads = d->search_steps > 0 ? (int)cu_div_up(d->search_steps, CU_WARP) * CU_WARP : (int)GRID_THREADS;
    CU_TRY(cu_allow_shared(dev, grid_kernel, bytes));
    CU_LAUNCH(dev, grid_kernel, (unsigned)(w->rows * scale->cols), threads, (size_t)bytes, *d, cu_view<const float>(w),
              cu_view<float>(scale), cu_view<float>(zero), cached);
    return dq_cuda_launched(dev, "weight_grid");
}

/* ---- codes ---- */

/* No card holds a row of 2^32 columns: divisions of 32 bits, which take a tenth of the time. */
__device__ static int64_t group_of(const dq_grid_desc &d, const int32_t *index, int64_t c, int64_t groups,
                                   dq_cuda_fault *fault, int op)
{
    if (index) return cu_checked(index[c], groups, fault, op, c);
    return c < d.group ? 0 : (uint32_t)c / (uint32_t)d.group;
}

__global__ void quantize_kernel(dq_grid_desc d, cu_mat<const float> w, cu_mat<const float> scale,
                                cu_mat<const float> zero, const int32_t *index, cu_mat<uint8_t> codes,
                                dq_cuda_fault *fault)
{
    float top = cu_top_code(d.bits);
    CU_EACH(r, c, w.rows, w.cols)
    {
        int64_t g = group_of(d, index, c, scale.cols, fault, CU_OP_QUANTIZE);
        codes.row(r)[c] = (uint8_t)cu_code(w.row(r)[c], scale.row(r)[g], zero.row(r)[g], top);
    }
}

DQ_CUDA_SLOT dq_cuda_quantize_weight(void *device, const dq_grid_desc *d, const dq_view *w, const dq_view *scale,
                                     const dq_view *zero, const dq_view *group_index, const dq_view *codes)
{
    CU_ENTER(device);
    CU_LAUNCH(dev, quantize_kernel, cu_grid_rows(w), CU_THREADS, 0, *d, cu_view<const float>(w),
              cu_view<const float>(scale), cu_view<const float>(zero),
              group_index ? (const int32_t *)cu_at(group_index) : NULL, cu_view<uint8_t>(codes), dev->fault);
    return dq_cuda_launched(dev, "quantize_weight");
}

__global__ void dequantize_kernel(dq_grid_desc d, cu_mat<const uint8_t> codes, cu_mat<const float> scale,
                                  cu_mat<const float> zero, const int32_t *index, cu_mat<float> w, dq_cuda_fault *fault)
{
    CU_EACH(r, c, w.rows, w.cols)
    {
        int64_t g = group_of(d, index, c, scale.cols, fault, CU_OP_DEQUANTIZE);
        w.row(r)[c] = cu_code_value((float)codes.row(r)[c], scale.row(r)[g], zero.row(r)[g]);
    }
}

DQ_CUDA_SLOT dq_cuda_dequantize_weight(void *device, const dq_grid_desc *d, const dq_view *codes, const dq_view *scale,
                                       const dq_view *zero, const dq_view *group_index, const dq_view *w)
{
    CU_ENTER(device);
    CU_LAUNCH(dev, dequantize_kernel, cu_grid_rows(w), CU_THREADS, 0, *d, cu_view<const uint8_t>(codes),
              cu_view<const float>(scale), cu_view<const float>(zero),
              group_index ? (const int32_t *)cu_at(group_index) : NULL, cu_view<float>(w), dev->fault);
    return dq_cuda_launched(dev, "dequantize_weight");
}
