/* Matrix products through cuBLAS. Row-major C = op(A) op(B) is column-major C^T = op(B)^T op(A)^T: operands are swapped
 * and nothing is transposed. SPDX-License-Identifier: Apache-2.0 */
#include "backend/cuda/gemm.h"

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

cudaDataType_t dq_cuda_blas_type(dq_dtype dtype)
{
    return dtype == DQ_BF16 ? CUDA_R_16BF : dtype == DQ_F16 ? CUDA_R_16F : dtype == DQ_F64 ? CUDA_R_64F : CUDA_R_32F;
}

cublasComputeType_t dq_cuda_compute_type(const dq_cuda_device *dev, dq_dtype dtype)
{
    if (dtype == DQ_F64) return CUBLAS_COMPUTE_64F;
    return dtype == DQ_F32 && dev->tf32 ? CUBLAS_COMPUTE_32F_FAST_TF32 : CUBLAS_COMPUTE_32F;
}

typedef struct product {
    int64_t rows, cols, depth; /* of C and between them */
    bool trans_a, trans_b;
} product;

/* alpha and beta: fp32, or fp64 when the type is; in host memory, or all on the card. */
static dq_status multiply(dq_cuda_device *dev, const product *p, dq_dtype type, const void *alpha, const operand *a,
                          const operand *b, const void *beta, const dq_view *c)
{
    cudaDataType_t blas = dq_cuda_blas_type(type);
    cublasStatus_t status =
        cublasGemmEx_64(dev->blas, p->trans_b ? CUBLAS_OP_T : CUBLAS_OP_N, p->trans_a ? CUBLAS_OP_T : CUBLAS_OP_N,
                        p->cols, p->rows, p->depth, alpha, b->p, blas, b->stride, a->p, blas, a->stride, beta, cu_at(c),
                        dq_cuda_blas_type(c->dtype), c->stride, dq_cuda_compute_type(dev, type), CUBLAS_GEMM_DEFAULT);
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
        float alpha32 = (float)alpha, beta32 = (float)beta;
        bool f64 = type == DQ_F64;
        status = multiply(dev, &p, type, f64 ? (void *)&alpha : (void *)&alpha32, &x, &y,
                          f64 ? (void *)&beta : (void *)&beta32, c);
        dq_cuda_release(dev, &y.scratch);
    }
    dq_cuda_release(dev, &x.scratch);
    return status;
}
