/* Rows as codes of 8 bits and their products in integers: cuBLAS where its rules allow (TN, depth and outputs in multiples of
 * 4, 4-byte alignment), else our own kernel; sums go through scratch of a bounded size, which the next rows use again while
 * it is still in cache. Compiled without contraction. SPDX-License-Identifier: Apache-2.0 */
#include <math.h>

#include "backend/cuda/kernel.h"
#include "backend/cuda/quant_core.h"

/* ---- rows to codes ---- */

/* Four numbers of a row from column c on; 0, which never widens a range that matters here, behind its end. */
template <bool quads> __device__ static inline void load_four(const float *in, int c, int cols, float *v)
{
    if constexpr (quads) {
        float4 q = *(const float4 *)(in + c);
        v[0] = q.x;
        v[1] = q.y;
        v[2] = q.z;
        v[3] = q.w;
    } else {
        for (int i = 0; i < 4; i++) v[i] = c + i < cols ? in[c + i] : 0.0f;
    }
}

/* One block a row. `quads`: rows of whole quadruples, aligned. */
template <bool quads>
__global__ void quantize_rows_kernel(dq_fake_quant_desc d, cu_mat<const float> x, cu_mat<int8_t> codes,
                                     cu_mat<float> grid)
{
    __shared__ float slots[2 * CU_THREADS / CU_WARP];
    __shared__ int counts[CU_THREADS / CU_WARP];
    const float *in = x.row(blockIdx.x);
    int8_t *out = codes.row(blockIdx.x);
    int cols = (int)x.cols, bad = 0, sum = 0, shift = d.symmetric ? 0 : 1 << (d.bits - 1);
    float lo = 0, hi = 0, v[4];
    for (int c = 4 * threadIdx.x; c < cols; c += 4 * blockDim.x) {
        load_four<quads>(in, c, cols, v);
        for (int i = 0; i < 4; i++) {
            lo = fminf(lo, v[i]);
            hi = fmaxf(hi, v[i]);
            bad += !(fabsf(v[i]) < INFINITY);
        }
    }
    cu_block_range(&lo, &hi, slots);
    bad = cu_block_sum(bad, counts);
    cu_fake_grid g = cu_make_fake_grid(d, lo, hi);
    if (g.exact) g.scale = 1;
    for (int c = 4 * threadIdx.x; c < cols; c += 4 * blockDim.x) {
        uint32_t word = 0;
        load_four<quads>(in, c, cols, v);
        for (int i = 0; i < 4 && c + i < cols; i++) {
            int code = bad ? 0 : (int)cu_clamp(rintf(v[i] / g.scale) + g.zero, g.lo, g.hi) - shift;
            sum += code;
            if (quads)
                word |= (uint32_t)(code & 0xff) << (8 * i);
            else
                out[c + i] = (int8_t)code;
        }
        if (quads) *(uint32_t *)(out + c) = word;
    }
    sum = cu_block_sum(sum, counts);
    if (threadIdx.x != 0) return;
    float *to = grid.row(blockIdx.x);
    to[0] = bad ? NAN : g.scale;
    to[1] = bad ? 0.0f : g.zero - (float)shift;
    to[2] = (float)sum;
}

/* Rows that start at multiples of `bytes`. */
static bool is_aligned(const dq_view *v, uintptr_t bytes)
{
    return (uintptr_t)cu_at(v) % bytes == 0 && v->stride * cu_element_size(v->dtype) % (int64_t)bytes == 0;
}

DQ_CUDA_SLOT dq_cuda_quantize_rows(void *device, const dq_fake_quant_desc *d, const dq_view *x, const dq_view *codes,
                                   const dq_view *grid)
{
    CU_ENTER(device);
    if (x->cols % 4 == 0 && is_aligned(x, 16) && is_aligned(codes, 4))
        CU_LAUNCH(dev, quantize_rows_kernel<true>, (unsigned)x->rows, CU_THREADS, 0, *d, cu_view<const float>(x),
                  cu_view<int8_t>(codes), cu_view<float>(grid));
    else
        CU_LAUNCH(dev, quantize_rows_kernel<false>, (unsigned)x->rows, CU_THREADS, 0, *d, cu_view<const float>(x),
                  cu_view<int8_t>(codes), cu_view<float>(grid));
    return dq_cuda_launched(dev, "quantize_rows");
}

/* ---- products ---- */

enum {
    SUM_BYTES = 32 << 20, /* of int32 at a time: less than the cache of large cards */
    SUM_ROWS = 128,       /* and whole multiples of this many rows */
    MOST_ROWS = 65536,
    TILE = 64,            /* our own kernel: rows and columns of a block's sums */
    DEPTH = 32,           /* codes at a time */
    WORDS = DEPTH / 4 + 1 /* of a row in shared memory, with one of padding */
};

/* 64 rows of 32 codes, 8 a thread, four to a word; 0 outside. */
__device__ static inline void load_tile(cu_mat<const int8_t> m, int64_t first, int64_t depth, int *tile)
{
    int row = threadIdx.x / 4, part = threadIdx.x % 4;
    for (int w = 2 * part; w < 2 * part + 2; w++) {
        uint32_t word = 0;
        for (int i = 0; i < 4; i++) {
            int64_t c = depth + 4 * w + i;
            if (first + row < m.rows && c < m.cols) word |= (uint32_t)(uint8_t)m.row(first + row)[c] << (8 * i);
        }
        tile[row * WORDS + w] = (int)word;
    }
}

__global__ void int8_product_kernel(cu_mat<const int8_t> x, cu_mat<const int8_t> w, cu_mat<int32_t> sums)
{
    __shared__ int a[TILE * WORDS], b[TILE * WORDS];
    int64_t r0 = (int64_t)blockIdx.y * TILE, c0 = (int64_t)blockIdx.x * TILE;
    int at_row = threadIdx.x / 16, at_col = threadIdx.x % 16, acc[4][4] = {};
    for (int64_t depth = 0; depth < x.cols; depth += DEPTH) {
        load_tile(x, r0, depth, a);
        load_tile(w, c0, depth, b);
        __syncthreads();
        for (int k = 0; k < DEPTH / 4; k++)
            for (int i = 0; i < 4; i++)
                for (int j = 0; j < 4; j++)
                    acc[i][j] = __dp4a(a[(at_row + 16 * i) * WORDS + k], b[(at_col + 16 * j) * WORDS + k], acc[i][j]);
        __syncthreads();
    }
    for (int i = 0; i < 4; i++)
        for (int j = 0; j < 4; j++) {
            int64_t r = r0 + at_row + 16 * i, c = c0 + at_col + 16 * j;
            if (r < sums.rows && c < sums.cols) sums.row(r)[c] = acc[i][j];
        }
}

/* y = beta y + sx sw (float)S, S = P - zw sum(x) - zx (sum(w) - in zw); rows along y. */
__global__ void int8_finish_kernel(cu_mat<const int32_t> sums, cu_mat<const float> x_grid, cu_mat<const float> w_grid,
                                   int64_t in, float beta, cu_mat<float> y)
{
    CU_EACH(r, c, y.rows, y.cols)
    {
        const float *gx = x_grid.row(r), *gw = w_grid.row(c);
        int zx = (int)gx[1], zw = (int)gw[1], rest = (int)gw[2] - (int)in * zw;
        int64_t sum = (int64_t)sums.row(r)[c] - (int64_t)zw * (int)gx[2] - (int64_t)zx * rest;
        float product = gx[0] * gw[0] * (float)sum, *to = y.row(r) + c;
        *to = beta == 0 ? product : beta * *to + product;
    }
}

/* Row-major sums = x w^T is column-major sums^T = (w^T)^T x^T, which is the one form that cuBLAS has for these types. */
static cublasStatus_t by_blas(dq_cuda_device *dev, const dq_view *x, const dq_view *w, const dq_view *sums)
{
    const int32_t one = 1, zero = 0;
    if (w->rows % 4 != 0 || x->cols % 4 != 0 || !is_aligned(x, 4) || !is_aligned(w, 4))
        return CUBLAS_STATUS_NOT_SUPPORTED;
    return cublasGemmEx_64(dev->blas, CUBLAS_OP_T, CUBLAS_OP_N, w->rows, x->rows, x->cols, &one, cu_at(w), CUDA_R_8I,
                           w->stride, cu_at(x), CUDA_R_8I, x->stride, &zero, cu_at(sums), CUDA_R_32I, sums->stride,
                           CUBLAS_COMPUTE_32I, CUBLAS_GEMM_DEFAULT);
}

static dq_status multiply(dq_cuda_device *dev, const dq_view *x, const dq_view *w, const dq_view *sums)
{
    cublasStatus_t status = by_blas(dev, x, w, sums);
    if (status != CUBLAS_STATUS_NOT_SUPPORTED) return dq_cuda_check_blas(dev, status, "int8_linear");
    dim3 grid((unsigned)cu_div_up(w->rows, TILE), (unsigned)cu_div_up(x->rows, TILE));
    CU_LAUNCH(dev, int8_product_kernel, grid, 256, 0, cu_view<const int8_t>(x), cu_view<const int8_t>(w),
              cu_view<int32_t>(sums));
    return dq_cuda_launched(dev, "int8_linear");
}

/* Whole multiples of SUM_ROWS that fit SUM_BYTES, at least one. */
static int64_t rows_at_once(int64_t rows, int64_t stride)
{
    int64_t most = SUM_BYTES / 4 / stride / SUM_ROWS * SUM_ROWS;
    if (most < SUM_ROWS) most = SUM_ROWS;
    if (most > MOST_ROWS) most = MOST_ROWS;
    return rows < most ? rows : most;
}

DQ_CUDA_SLOT dq_cuda_int8_linear(void *device, double beta, const dq_view *x, const dq_view *x_grid, const dq_view *w,
                                 const dq_view *w_grid, const dq_view *y)
{
    CU_ENTER(device);
    int64_t stride = cu_div_up(w->rows, 4) * 4, step = rows_at_once(x->rows, stride);
    dq_cuda_block scratch = {};
    CU_TRY(dq_cuda_scratch(dev, (uint64_t)(step * stride) * 4, "int8_linear", &scratch));
    dq_status status = DQ_OK;
    for (int64_t r = 0; r < x->rows && status == DQ_OK; r += step) {
        int64_t n = x->rows - r < step ? x->rows - r : step;
        dq_view sums = {&scratch, 0, n, w->rows, stride, DQ_I32, 0};
        dq_view codes = cu_part(x, r, n, 0, x->cols), grid = cu_part(x_grid, r, n, 0, 3);
        dq_view to = cu_part(y, r, n, 0, y->cols);
        status = multiply(dev, &codes, w, &sums);
        if (status != DQ_OK) break;
        CU_LAUNCH(dev, int8_finish_kernel, cu_grid_rows(&to), CU_THREADS, 0, cu_view<const int32_t>(&sums),
                  cu_view<const float>(&grid), cu_view<const float>(w_grid), x->cols, (float)beta, cu_view<float>(&to));
        status = dq_cuda_launched(dev, "int8_linear");
    }
    dq_cuda_release(dev, &scratch);
    return status;
}
