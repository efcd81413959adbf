/* Matrix products through single-threaded OpenBLAS calls on a partition of C that depends on the shape alone, so that
 * the result is the same for every number of threads. K is never split.
 * SPDX-License-Identifier: Apache-2.0 */
#include <cblas.h>
#include <limits.h>

#include "backend/cpu/forward.h"

enum {
    BLOCK_M =
        512, /* rows and columns of C in one task: large enough that OpenBLAS's packing of both operands is small */
    BLOCK_N = 768 /* beside the products, small enough to feed several threads */
};

typedef struct product {
    bool trans_a, trans_b;
    double alpha, beta;
    const dq_view *a, *b, *c;
    int64_t m, n, k;
    int64_t row_block, col_block, col_blocks;
} product;

static void product_task(void *arg, int64_t i, int thread)
{
    const product *p = arg;
    (void)thread;
    int64_t r0 = i / p->col_blocks * p->row_block, c0 = i % p->col_blocks * p->col_block;
    int m = (int)dq_min64(p->row_block, p->m - r0), n = (int)dq_min64(p->col_block, p->n - c0), k = (int)p->k;
    int lda = (int)p->a->stride, ldb = (int)p->b->stride, ldc = (int)p->c->stride;
    enum CBLAS_TRANSPOSE ta = p->trans_a ? CblasTrans : CblasNoTrans, tb = p->trans_b ? CblasTrans : CblasNoTrans;
    int64_t size = p->c->dtype == DQ_F64 ? 8 : 4;
    void *a = p->trans_a ? dq_view_at(p->a, 0, r0, size) : dq_view_at(p->a, r0, 0, size);
    void *b = p->trans_b ? dq_view_at(p->b, c0, 0, size) : dq_view_at(p->b, 0, c0, size);
    void *c = dq_view_at(p->c, r0, c0, size);
    if (size == 8) {
        cblas_dgemm(CblasRowMajor, ta, tb, m, n, k, p->alpha, a, lda, b, ldb, p->beta, c, ldc);
    } else {
        cblas_sgemm(CblasRowMajor, ta, tb, m, n, k, (float)p->alpha, a, lda, b, ldb, (float)p->beta, c, ldc);
    }
}

static void run_product(dq_cpu_dev *dev, product *p)
{
    const dq_host *host = dev->ref.host;
    p->row_block = dq_ceil_div(p->m, dq_ceil_div(p->m, BLOCK_M));
    p->col_block = dq_ceil_div(p->n, dq_ceil_div(p->n, BLOCK_N));
    p->col_blocks = dq_ceil_div(p->n, p->col_block);
    dq_blas_enter();
    host->run(host->self, dq_ceil_div(p->m, p->row_block) * p->col_blocks, product_task, p);
    dq_blas_leave();
}

dq_status dq_cpu_gemm(void *device, int32_t trans_a, int32_t trans_b, double alpha, const dq_view *a, const dq_view *b,
                      double beta, const dq_view *c, int32_t math)
{
    dq_cpu_dev *dev = device;
    bool same = a->dtype == c->dtype && b->dtype == c->dtype;
    int64_t k = trans_a ? a->rows : a->cols;
    if (c->rows == 0 || c->cols == 0) return DQ_OK;
    /* What BLAS's 32-bit integers cannot express goes to the reference. */
    if (!same || k > INT_MAX || a->stride > INT_MAX || b->stride > INT_MAX || c->stride > INT_MAX)
        return dq_ref_backend()->gemm(device, trans_a, trans_b, alpha, a, b, beta, c, math);
    product p = {.trans_a = trans_a, .trans_b = trans_b, .alpha = alpha, .beta = beta, .a = a, .b = b, .c = c};
    p.m = c->rows;
    p.n = c->cols;
    p.k = k;
    run_product(dev, &p);
    return DQ_OK;
}
