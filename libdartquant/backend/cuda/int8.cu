/* Rows as codes of 8 bits and their products in integers: cuBLAS where its rules allow (TN, depth and outputs in multiples of
 * 4, 4-byte alignment), else our own kernel; sums go through scratch of a bounded size, which the next rows use again while
 * it is still in cache. Compiled without contraction. SPDX-License-Identifier: Apache-2.0 */
#include <math.h>

#include "backend/cuda/norm_core.h"
#include "backend/cuda/quant_core.h"

/* ---- rows to codes ---- */

enum { AS_IT_IS, RMS, LAYER };

/* `n` of the row's numbers from column c on, behind the norm where there is one. */
template <int NORM>
__device__ static inline cu_four<float> four_of(const cu_norm &norm, const float *in, int64_t c, int n, bool wide)
{
    cu_four<float> x = cu_take(in + c, n, wide);
    return NORM == AS_IT_IS ? x : cu_normed<NORM == LAYER>(norm, x, c, n, wide);
}

/* One block a row, whose numbers are made anew for each pass over them: they are in cache. */
template <int NORM>
__global__ void quantize_rows_kernel(dq_fake_quant_desc d, cu_mat<const float> x, cu_norm norm, double eps,
                                     cu_mat<int8_t> codes, cu_mat<float> grid, bool wide)
{
    __shared__ double slots[CU_THREADS / CU_WARP];
    const float *in = x.row(blockIdx.x);
    int8_t *out = codes.row(blockIdx.x);
    int bad = 0, sum = 0, shift = cu_code_shift(d);
    float lo = 0, hi = 0; /* a range with zero, or a symmetric one, to which zero makes no difference */
    if (NORM != AS_IT_IS) cu_measure<NORM == LAYER>(&norm, in, x.cols, eps, slots, wide);
    CU_BLOCK_FOURS(c, n, x.cols)
    {
        cu_four<float> four = four_of<NORM>(norm, in, c, (int)n, wide);
#pragma unroll
        for (int i = 0; i < 4; i++) {
            if (i >= n) continue;
            lo = fminf(lo, four.v[i]);
            hi = fmaxf(hi, four.v[i]);
            bad += !(fabsf(four.v[i]) < INFINITY);
        }
    }
    cu_block_range(&lo, &hi, (float *)slots);
    bad = cu_block_sum(bad, (int *)slots);
    cu_fake_grid g = cu_make_code_grid(d, lo, hi);
    CU_BLOCK_FOURS(c, n, x.cols)
    {
        cu_four<float> four = four_of<NORM>(norm, in, c, (int)n, wide);
        cu_four<int8_t> to = {};
#pragma unroll
        for (int i = 0; i < 4; i++) {
            int code = bad || i >= n ? 0 : cu_row_code(g, shift, four.v[i]);
            to.v[i] = (int8_t)code;
            sum += code;
        }
        cu_put(out + c, to, (int)n, wide);
    }
    sum = cu_block_sum(sum, (int *)slots);
    if (threadIdx.x == 0) cu_put_code_grid(grid.row(blockIdx.x), g, shift, sum, bad);
}

template <int NORM>
static dq_status quantize_rows(dq_cuda_device *dev, const char *op, const dq_view *x, const dq_view *weight,
                               const dq_view *bias, double eps, const dq_fake_quant_desc *d, const dq_view *codes,
                               const dq_view *grid)
{
    cu_norm norm = {cu_vector(weight), cu_vector(bias), 0, 0};
    CU_LAUNCH(dev, quantize_rows_kernel<NORM>, (unsigned)x->rows, CU_THREADS, 0, *d, cu_view<const float>(x), norm, eps,
              cu_view<int8_t>(codes), cu_view<float>(grid), cu_norm_in_fours<int8_t>(x, weight, bias, codes));
    return dq_cuda_launched(dev, op);
}

DQ_CUDA_SLOT dq_cuda_quantize_rows(void *device, const dq_fake_quant_desc *d, const dq_view *x, const dq_view *codes,
                                   const dq_view *grid)
{
    CU_ENTER(device);
    return quantize_rows<AS_IT_IS>(dev, "quantize_rows", x, NULL, NULL, 0, d, codes, grid);
}

DQ_CUDA_SLOT dq_cuda_rmsnorm_rows(void *device, const dq_view *x, const dq_view *weight, double eps,
                                  const dq_fake_quant_desc *d, const dq_view *codes, const dq_view *grid)
{
    CU_ENTER(device);
    return quantize_rows<RMS>(dev, "rmsnorm_rows", x, weight, NULL, eps, d, codes, grid);
}

DQ_CUDA_SLOT dq_cuda_layernorm_rows(void *device, const dq_view *x, const dq_view *weight, const dq_view *bias,
                                    double eps, const dq_fake_quant_desc *d, const dq_view *codes, const dq_view *grid)
{
    CU_ENTER(device);
    return quantize_rows<LAYER>(dev, "layernorm_rows", x, weight, bias, eps, d, codes, grid);
}

/* ---- products ---- */

enum {
    SUM_BYTES = 32 << 20, /* of int32 at a time: less than the cache of large cards */
    SUM_ROWS = 128,       /* and whole multiples of this many rows */
    MOST_ROWS = 65536,
    STRIP = 8,            /* rows of sums that a thread finishes */
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

/* y = beta y + sx sw (float)S, S = P - zw sum(x) - zx (sum(w) - in zw). A thread has four columns, and the weights' grid for
 * them in registers over STRIP rows. */
__global__ void int8_finish_kernel(cu_mat<const int32_t> sums, cu_mat<const float> x_grid, cu_mat<const float> w_grid,
                                   int64_t in, float beta, cu_mat<float> y, bool wide)
{
    int64_t c = ((int64_t)blockIdx.x * blockDim.x + threadIdx.x) * 4;
    int n = cu_at_most_four(y.cols - c), zero[4], rest[4];
    float scale[4];
    if (n <= 0) return;
#pragma unroll
    for (int i = 0; i < 4; i++) {
        const float *g = w_grid.row(i < n ? c + i : c);
        scale[i] = g[0];
        zero[i] = (int)g[1];
        rest[i] = (int)g[2] - (int)in * zero[i];
    }
    for (int64_t first = (int64_t)blockIdx.y * STRIP; first < y.rows; first += (int64_t)gridDim.y * STRIP)
        for (int64_t r = first; r < first + STRIP && r < y.rows; r++) {
            const float *g = x_grid.row(r);
            int64_t zx = (int)g[1], total = (int)g[2];
            cu_four<int32_t> s = cu_take(sums.row(r) + c, n, true);
            cu_four<float> to = {};
            if (beta != 0) to = cu_take((const float *)y.row(r) + c, n, wide);
#pragma unroll
            for (int i = 0; i < 4; i++) {
                float product = g[0] * scale[i] * (float)(s.v[i] - zero[i] * total - zx * rest[i]);
                to.v[i] = beta == 0 ? product : beta * to.v[i] + product;
            }
            cu_put(y.row(r) + c, to, n, wide);
        }
}

static dq_status finish(dq_cuda_device *dev, const dq_view *sums, const dq_view *x_grid, const dq_view *w_grid,
                        int64_t in, double beta, const dq_view *y)
{
    int64_t strips = cu_div_up(y->rows, STRIP);
    dim3 grid((unsigned)cu_div_up(y->cols, 4 * CU_THREADS), (unsigned)(strips < 65535 ? strips : 65535));
    CU_LAUNCH(dev, int8_finish_kernel, grid, CU_THREADS, 0, cu_view<const int32_t>(sums), cu_view<const float>(x_grid),
              cu_view<const float>(w_grid), in, (float)beta, cu_view<float>(y), cu_in_fours<float>(y));
    return dq_cuda_launched(dev, "int8_linear");
}

/* Rows that start at multiples of `bytes`. */
static bool is_aligned(const dq_view *v, uintptr_t bytes)
{
    return (uintptr_t)cu_at(v) % bytes == 0 && v->stride * cu_element_size(v->dtype) % (int64_t)bytes == 0;
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
    if (status != CUBLAS_STATUS_NOT_SUPPORTED && status != CUBLAS_STATUS_ARCH_MISMATCH)
        return dq_cuda_check_blas(dev, status, "int8_linear");
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
        if (status == DQ_OK) status = finish(dev, &sums, &grid, w_grid, x->cols, beta, &to);
    }
    dq_cuda_release(dev, &scratch);
    return status;
}
