/* Matrix products through cuBLAS. Row-major C = op(A) op(B) is column-major C^T = op(B)^T op(A)^T: operands are swapped
 * and nothing is transposed. SPDX-License-Identifier: Apache-2.0 */
#include "backend/cuda/gemm.h"

/* Fewer rows are not worth splitting. */
enum { SPLIT_ROWS = 16 };

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

/* alpha and beta: fp32, or fp64 when the type is; in host memory, or all on the card. */
static dq_status multiply(dq_cuda_device *dev, const product *p, dq_dtype type, const void *alpha, const operand *a,
                          const operand *b, const void *beta, const dq_view *c)
{
    cublasComputeType_t compute = type == DQ_F64                ? CUBLAS_COMPUTE_64F
                                  : type == DQ_F32 && dev->tf32 ? CUBLAS_COMPUTE_32F_FAST_TF32
                                                                : CUBLAS_COMPUTE_32F;
    cublasStatus_t status =
        cublasGemmEx_64(dev->blas, p->trans_b ? CUBLAS_OP_T : CUBLAS_OP_N, p->trans_a ? CUBLAS_OP_T : CUBLAS_OP_N,
                        p->cols, p->rows, p->depth, alpha, b->p, blas_type(type), b->stride, a->p, blas_type(type),
                        a->stride, beta, cu_at(c), blas_type(c->dtype), c->stride, compute, CUBLAS_GEMM_DEFAULT);
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

/* The operands of a lower triangle: h = beta h + alpha left^T right. */
typedef struct lower {
    const char *left, *right;
    dq_dtype dtype;
    int64_t rows, stride;
    const float *numbers; /* alpha, beta, 1, 0 */
    double beta;
} lower;

/* The block row [first, first + n) of h: full products left of the diagonal, the diagonal block through scratch so that
 * nothing above it is touched. */
static dq_status lower_rows(dq_cuda_device *dev, const lower *l, int64_t first, int64_t n, const dq_view *h,
                            dq_cuda_block *scratch)
{
    int64_t skip = first * cu_element_size(l->dtype);
    operand some = {l->left + skip, l->stride, {}}, all = {l->right, l->stride, {}};
    operand same = {l->right + skip, l->stride, {}};
    dq_view square = {scratch, 0, n, n, n, DQ_F32, 0};
    dq_view row = cu_part(h, first, n, 0, first), diagonal = cu_part(h, first, n, first, n);
    product left = {n, first, l->rows, true, false}, right = {n, n, l->rows, true, false};
    if (first > 0) CU_TRY(multiply(dev, &left, l->dtype, l->numbers, &some, &all, l->numbers + 1, &row));
    CU_TRY(multiply(dev, &right, l->dtype, l->numbers, &some, &same, l->numbers + 3, &square));
    CU_LAUNCH(dev, lower_kernel, cu_grid(n * n, CU_THREADS), CU_THREADS, 0, cu_view<const float>(&square), l->beta,
              cu_view<float>(&diagonal));
    return dq_cuda_launched(dev, "syrk");
}

static dq_status numbers_on_card(dq_cuda_device *dev, bool on)
{
    return dq_cuda_check_blas(
        dev, cublasSetPointerMode(dev->blas, on ? CUBLAS_POINTER_MODE_DEVICE : CUBLAS_POINTER_MODE_HOST), "syrk");
}

dq_status dq_cuda_lower_product(dq_cuda_device *dev, const void *left, const void *right, dq_dtype dtype, int64_t rows,
                                int64_t n, int64_t stride, const float *numbers, bool on_card, double beta,
                                const dq_view *h)
{
    lower l = {(const char *)left, (const char *)right, dtype, rows, stride, numbers, beta};
    int64_t block = n < dev->syrk_block ? n : dev->syrk_block;
    dq_cuda_block scratch = {};
    CU_TRY(dq_cuda_scratch(dev, (uint64_t)(block * block) * 4, "syrk", &scratch));
    dq_status status = numbers_on_card(dev, on_card);
    for (int64_t first = 0; first < n && status == DQ_OK; first += block)
        status = lower_rows(dev, &l, first, n - first < block ? n - first : block, h, &scratch);
    dq_status back = on_card ? numbers_on_card(dev, false) : DQ_OK;
    dq_cuda_release(dev, &scratch);
    return status != DQ_OK ? status : back;
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
    if (x->dtype == DQ_F32 && dev->syrk_split && x->rows >= SPLIT_ROWS)
        return dq_cuda_syrk_split(dev, alpha, x, beta, h);
    float numbers[4] = {(float)alpha, (float)beta, 1, 0};
    return dq_cuda_lower_product(dev, cu_at(x), cu_at(x), x->dtype, x->rows, x->cols, x->stride, numbers, false, beta,
                                 h);
}
