/* X^T X of fp32 inputs on tensor cores without losing their precision: x = s (hi + lo), two numbers of 16 bits that hold 22 bits
 * of every element (Ootomo and Yokota, arXiv 2203.03341), so that hi hi' + hi lo' + lo hi' is one product over three times the
 * rows; what is left out is 2^-22 of a term. SPDX-License-Identifier: Apache-2.0 */
#include "backend/cuda/four.h"
#include "backend/cuda/gemm.h"

/* Bytes of split rows that exist at a time. */
static const int64_t most_bytes = (int64_t)512 << 20;
enum { MOST_BLOCKS = 2048 };

/* Few blocks, each with much to look through: they meet at one address. */
__global__ void largest_kernel(cu_mat<const float> x, bool wide, unsigned long long *largest)
{
    __shared__ float slots[CU_THREADS / CU_WARP];
    uint32_t top = 0; /* bits of magnitudes are ordered like the numbers, NaN above all */
    CU_EACH_FOUR(r, c, n, x.rows, x.cols)
    {
        cu_four<float> four = cu_take(x.row(r) + c, (int)n, wide);
#pragma unroll
        for (int i = 0; i < 4; i++) {
            uint32_t u = cu_float_bits(four.v[i]) & 0x7fffffffu; /* 0 behind the last column */
            if (u > top) top = u;
        }
    }
    uint32_t *shared = (uint32_t *)slots;
    for (int step = CU_WARP / 2; step > 0; step /= 2) {
        uint32_t other = __shfl_xor_sync(CU_ALL, top, step);
        if (other > top) top = other;
    }
    if (threadIdx.x % CU_WARP == 0) shared[threadIdx.x / CU_WARP] = top;
    __syncthreads();
    if (threadIdx.x != 0) return;
    for (int w = 1; w < CU_THREADS / CU_WARP; w++)
        if (shared[w] > top) top = shared[w];
    atomicMax(largest, (unsigned long long)top);
}

/* A power of two that brings the largest magnitude to [2^14, 2^15); NaN stays. */
__device__ static float scale_of(unsigned long long largest)
{
    uint32_t top = (uint32_t)largest, exponent = top >> 23;
    if (top >= 0x7f800000u) return cu_bits_float(0x7fc00000u);
    if (exponent < 16) exponent = 16; /* nothing or next to nothing: the scale itself stays finite */
    return cu_bits_float((127u + 14u + 127u - exponent) << 23);
}

/* numbers: alpha / s^2, beta, 1, 0, for cuBLAS. */
__global__ void numbers_kernel(const unsigned long long *largest, float alpha, float beta, float *numbers)
{
    float s = scale_of(*largest);
    if (threadIdx.x != 0) return;
    numbers[0] = alpha / s / s;
    numbers[1] = beta;
    numbers[2] = 1;
    numbers[3] = 0;
}

/* left = [hi; lo; hi], right = [hi; hi; lo] of rows x cols each. */
__global__ void split_kernel(cu_mat<const float> x, const unsigned long long *largest, cu_f16 *left, cu_f16 *right,
                             bool wide)
{
    float s = scale_of(*largest);
    int64_t whole = x.rows * x.cols;
    CU_EACH_FOUR(r, c, n, x.rows, x.cols)
    {
        int64_t at = r * x.cols + c;
        cu_four<float> four = cu_take(x.row(r) + c, (int)n, wide);
        cu_four<cu_f16> hi, lo;
#pragma unroll
        for (int i = 0; i < 4; i++) {
            float value = four.v[i] * s;
            cu_store(&hi.v[i], value);
            cu_store(&lo.v[i], value - cu_load(&hi.v[i]));
        }
        cu_put(left + at, hi, (int)n, wide);
        cu_put(left + at + whole, lo, (int)n, wide);
        cu_put(left + at + 2 * whole, hi, (int)n, wide);
        cu_put(right + at, hi, (int)n, wide);
        cu_put(right + at + whole, hi, (int)n, wide);
        cu_put(right + at + 2 * whole, lo, (int)n, wide);
    }
}

dq_status dq_cuda_syrk_split(dq_cuda_device *dev, double alpha, const dq_view *x, double beta, const dq_view *h)
{
    int64_t n = x->cols, most = most_bytes / (12 * n);
    int64_t step = most < 1 ? 1 : most < x->rows ? most : x->rows;
    uint64_t half = (uint64_t)(3 * step * n) * 2;
    dq_cuda_block halves = {}, few = {};
    CU_TRY(dq_cuda_scratch(dev, 64, "syrk", &few));
    unsigned long long *largest = (unsigned long long *)few.address;
    float *numbers = (float *)(few.address + 16);
    dq_status status = dq_cuda_scratch(dev, 2 * half, "syrk", &halves);
    for (int64_t first = 0; first < x->rows && status == DQ_OK; first += step) {
        int64_t rows = x->rows - first < step ? x->rows - first : step;
        dq_view part = cu_part(x, first, rows, 0, n);
        cu_f16 *left = (cu_f16 *)halves.address, *right = (cu_f16 *)(halves.address + half);
        status = dq_cuda_check(dev, cudaMemsetAsync(largest, 0, sizeof *largest, dev->stream), "syrk");
        if (status != DQ_OK) break;
        dim3 grid = cu_grid_fours(&part), few_blocks = grid;
        bool wide = n % 4 == 0 && cu_in_fours<float>(&part);
        few_blocks.y = few_blocks.x * few_blocks.y > MOST_BLOCKS ? (unsigned)cu_div_up(MOST_BLOCKS, grid.x) : grid.y;
        CU_LAUNCH(dev, largest_kernel, few_blocks, CU_THREADS, 0, cu_view<const float>(&part), wide, largest);
        CU_LAUNCH(dev, numbers_kernel, 1, CU_WARP, 0, (const unsigned long long *)largest, (float)alpha,
                  (float)(first == 0 ? beta : 1.0), numbers);
        CU_LAUNCH(dev, split_kernel, grid, cu_threads_fours(&part), 0, cu_view<const float>(&part),
                  (const unsigned long long *)largest, left, right, wide);
        status = dq_cuda_launched(dev, "syrk");
        if (status == DQ_OK)
            status = dq_cuda_lower_product(dev, left, right, DQ_F16, 3 * rows, n, n, numbers, true,
                                           first == 0 ? beta : 1.0, h);
    }
    dq_cuda_release(dev, &halves);
    dq_cuda_release(dev, &few);
    return status;
}
