/* Matrix products through cuBLAS. Row-major C = op(A) op(B) is column-major C^T = op(B)^T op(A)^T: operands are swapped
 * and nothing is transposed. SPDX-License-Identifier: Apache-2.0 */
#include "backend/cuda/kernel.h"

static const int64_t syrk_block = 1024;

/* An operand in the type that the product runs in, converted to scratch where it has another. */
typedef struct operand {
    const void *p;
    int64_t stride;
    dq_cuda_block scratch;
} operand;

static dq_status as_type(dq_cuda_device *dev, const dq_view *x, dq_dtype dtype, operand *out)
{
    out->p = cu_at(x);
    out->stride = x->stride;
    out->scratch.address = NULL;
    if (x->dtype == dtype) return DQ_OK;
    uint64_t size = dtype == DQ_F32 ? 4 : 2;
    CU_TRY(dq_cuda_scratch(dev, (uint64_t)x->rows * (uint64_t)x->cols * size, "a converted operand", &out->scratch));
    dq_view copy = {&out->scratch, 0, x->rows, x->cols, x->cols, dtype, 0};
    dq_status status = dq_cuda_convert(dev, x, &copy);
    if (status != DQ_OK) {
        dq_cuda_release(dev, &out->scratch);
        return status;
    }
    out->p = out->scratch.address;
    out->stride = x->cols;
    return DQ_OK;
}

/* Type of both operands: as they are stored when they agree, else what holds both exactly; 16 bits when that is asked. */
static dq_dtype product_type(const dq_view *a, const dq_view *b, int32_t math)
{
    if (a->dtype == b->dtype && a->dtype != DQ_F32) return a->dtype;
    return math == DQ_MATH_BF16 ? DQ_BF16 : DQ_F32;
}

static cudaDataType_t blas_type(dq_dtype dtype)
{
    return dtype == DQ_BF16 ? CUDA_R_16BF : dtype == DQ_F16 ? CUDA_R_16F : dtype == DQ_F64 ? CUDA_R_64F : CUDA_R_32F;
}

typedef struct product {
    int64_t rows, cols, depth; /* of C and between them */
    bool trans_a, trans_b;
} product;

static dq_status multiply(dq_cuda_device *dev, const product *p, dq_dtype type, double alpha, const operand *a,
                          const operand *b, double beta, const dq_view *c)
{
    float alpha32 = (float)alpha, beta32 = (float)beta;
    bool f64 = type == DQ_F64;
    cublasComputeType_t compute = f64                           ? CUBLAS_COMPUTE_64F
                                  : type == DQ_F32 && dev->tf32 ? CUBLAS_COMPUTE_32F_FAST_TF32
                                                                : CUBLAS_COMPUTE_32F;
    cublasStatus_t status =
        cublasGemmEx_64(dev->blas, p->trans_b ? CUBLAS_OP_T : CUBLAS_OP_N, p->trans_a ? CUBLAS_OP_T : CUBLAS_OP_N,
                        p->cols, p->rows, p->depth, f64 ? (void *)&alpha : (void *)&alpha32, b->p, blas_type(type),
                        b->stride, a->p, blas_type(type), a->stride, f64 ? (void *)&beta : (void *)&beta32, cu_at(c),
                        blas_type(c->dtype), c->stride, compute, CUBLAS_GEMM_DEFAULT);
    return dq_cuda_check_blas(dev, status, "gemm");
}

/* c *= beta, for sums without terms. */
template <class T> __global__ void scale_kernel(double beta, cu_mat<T> c)
{
    CU_STRIDE_LOOP(i, c.rows * c.cols)
    {
        T *at = c.row(i / c.cols) + i % c.cols;
        *at = beta == 0 ? (T)0 : (T)(beta * (double)*at);
    }
}

static dq_status scale(dq_cuda_device *dev, double beta, const dq_view *c)
{
    unsigned grid = cu_grid(c->rows * c->cols, CU_THREADS);
    if (c->dtype == DQ_F64)
        CU_LAUNCH(dev, scale_kernel<double>, grid, CU_THREADS, 0, beta, cu_view<double>(c));
    else
        CU_LAUNCH(dev, scale_kernel<float>, grid, CU_THREADS, 0, beta, cu_view<float>(c));
    return dq_cuda_launched(dev, "gemm");
}

DQ_CUDA_SLOT dq_cuda_gemm(void *device, int32_t trans_a, int32_t trans_b, double alpha, const dq_view *a,
                          const dq_view *b, double beta, const dq_view *c, int32_t math)
{
    CU_ENTER(device);
    product p = {c->rows, c->cols, trans_a ? a->rows : a->cols, trans_a != 0, trans_b != 0};
    if (p.depth == 0) return scale(dev, beta, c);
    dq_dtype type = c->dtype == DQ_F64 ? DQ_F64 : product_type(a, b, math);
    operand x, y;
    CU_TRY(as_type(dev, a, type, &x));
    dq_status status = as_type(dev, b, type, &y);
    if (status == DQ_OK) {
        status = multiply(dev, &p, type, alpha, &x, &y, beta, c);
        dq_cuda_release(dev, &y.scratch);
    }
    dq_cuda_release(dev, &x.scratch);
    return status;
}

/* ---- syrk ---- */

/* Adds the lower triangle of a square block; beta was applied to the old values here. */
__global__ void lower_kernel(cu_mat<const float> block, double beta, cu_mat<float> h)
{
    CU_STRIDE_LOOP(i, h.rows * h.cols)
    {
        int64_t r = i / h.cols, c = i % h.cols;
        if (c > r) continue;
        float *to = h.row(r) + c;
        float product = block.row(r)[c];
        *to = beta == 0 ? product : (float)(beta * (double)*to + (double)product);
    }
}

/* The block row [first, first + n) of h: full products left of the diagonal, the diagonal block through scratch so that
 * nothing above it is touched. */
static dq_status syrk_rows(dq_cuda_device *dev, double alpha, const dq_view *x, int64_t first, int64_t n, double beta,
                           const dq_view *h, dq_cuda_block *scratch)
{
    uint64_t size = x->dtype == DQ_F32 ? 4 : 2;
    operand all = {cu_at(x), x->stride, {}};
    operand some = {(const char *)cu_at(x) + (uint64_t)first * size, x->stride, {}};
    dq_view row = *h, square = {scratch, 0, n, n, n, DQ_F32, 0}, diagonal = *h;
    row.offset += (uint64_t)(first * h->stride) * 4;
    diagonal.offset = row.offset + (uint64_t)first * 4;
    diagonal.rows = diagonal.cols = row.rows = n;
    row.cols = first;
    product left = {n, first, x->rows, true, false}, right = {n, n, x->rows, true, false};
    if (first > 0) CU_TRY(multiply(dev, &left, x->dtype, alpha, &some, &all, beta, &row));
    CU_TRY(multiply(dev, &right, x->dtype, alpha, &some, &some, 0, &square));
    CU_LAUNCH(dev, lower_kernel, cu_grid(n * n, CU_THREADS), CU_THREADS, 0, cu_view<const float>(&square), beta,
              cu_view<float>(&diagonal));
    return dq_cuda_launched(dev, "syrk");
}

__global__ void scale_lower_kernel(double beta, cu_mat<float> h)
{
    CU_STRIDE_LOOP(i, h.rows * h.cols)
    {
        int64_t r = i / h.cols, c = i % h.cols;
        if (c <= r) h.row(r)[c] = beta == 0 ? 0.0f : (float)(beta * (double)h.row(r)[c]);
    }
}

DQ_CUDA_SLOT dq_cuda_syrk(void *device, double alpha, const dq_view *x, double beta, const dq_view *h)
{
    CU_ENTER(device);
    if (x->rows == 0) {
        CU_LAUNCH(dev, scale_lower_kernel, cu_grid(h->rows * h->cols, CU_THREADS), CU_THREADS, 0, beta,
                  cu_view<float>(h));
        return dq_cuda_launched(dev, "syrk");
    }
    int64_t n = h->rows, block = n < syrk_block ? n : syrk_block;
    dq_cuda_block scratch = {};
    CU_TRY(dq_cuda_scratch(dev, (uint64_t)(block * block) * 4, "syrk", &scratch));
    dq_status status = DQ_OK;
    for (int64_t first = 0; first < n && status == DQ_OK; first += block)
        status = syrk_rows(dev, alpha, x, first, n - first < block ? n - first : block, beta, h, &scratch);
    dq_cuda_release(dev, &scratch);
    return status;
}
