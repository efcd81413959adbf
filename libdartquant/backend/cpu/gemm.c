/* Matrix products through single-threaded OpenBLAS calls on a partition of C that depends on the shape alone, so that
 * the result is the same for every number of threads. K is never split.
 * SPDX-License-Identifier: Apache-2.0 */
#include <cblas.h>
#include <limits.h>

#include "backend/cpu/decode.h"
#include "backend/cpu/gemm_packed.h"

/* A block of C in one task. Few rows by many columns run within some 5% of one large product, because OpenBLAS then packs
 * the rows of A once and streams B; products of few rows are cut in narrower columns to feed several threads. */
enum { BLOCK_M = 256, BLOCK_N = 2048, NARROW_N = 512, FEW_ROWS = 512 };
enum { CONVERT_FLOATS = 4 << 20 /* of one operand at a time */ };

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
    p->col_block = dq_ceil_div(p->n, dq_ceil_div(p->n, p->m <= FEW_ROWS ? NARROW_N : BLOCK_N));
    p->col_blocks = dq_ceil_div(p->n, p->col_block);
    dq_blas_enter();
    host->run(host->self, dq_ceil_div(p->m, p->row_block) * p->col_blocks, product_task, p);
    dq_blas_leave();
}

/* fp32 products, operands converted chunk by chunk where they are not plain fp32. */
static dq_status wide_product(dq_cpu_dev *dev, product p, const dq_view *a, const dq_view *b, const dq_view *c,
                              int32_t math)
{
    bool widen_a = !dq_cpu_is_wide(a, math), widen_b = !dq_cpu_is_wide(b, math);
    int64_t fit = dq_max64(BLOCK_N, CONVERT_FLOATS / dq_max64(1, p.k));
    int64_t m_chunk = widen_a ? dq_min64(p.m, fit) : p.m, n_chunk = widen_b ? dq_min64(p.n, fit) : p.n;
    int64_t a_floats = widen_a ? m_chunk * p.k : 0, b_floats = widen_b ? n_chunk * p.k : 0;
    float *scratch = NULL;
    if (a_floats + b_floats > 0) {
        scratch = dq_cpu_scratch_take(dev, (size_t)(a_floats + b_floats) * sizeof(float));
        if (!scratch) return DQ_E_NOMEM;
    }
    dq_view b_part = *b;
    int64_t a_size = a->dtype == DQ_F32 ? 4 : 2, b_size = b->dtype == DQ_F32 ? 4 : 2;
    for (int64_t m0 = 0; m0 < c->rows; m0 += m_chunk) {
        int64_t m = dq_min64(m_chunk, c->rows - m0);
        dq_view a_part = p.trans_a ? dq_view_slice(a, 0, p.k, m0, m, a_size) : dq_view_slice(a, m0, m, 0, p.k, a_size);
        if (widen_a) a_part = dq_cpu_widen(dev, &a_part, math, scratch);
        for (int64_t n0 = 0; n0 < c->cols; n0 += n_chunk) {
            int64_t n = dq_min64(n_chunk, c->cols - n0);
            if (m0 == 0 || n_chunk < c->cols) {
                b_part = p.trans_b ? dq_view_slice(b, n0, n, 0, p.k, b_size) : dq_view_slice(b, 0, p.k, n0, n, b_size);
                if (widen_b) b_part = dq_cpu_widen(dev, &b_part, math, scratch + a_floats);
            }
            dq_view c_part = dq_view_slice(c, m0, m, n0, n, 4);
            p.a = &a_part;
            p.b = &b_part;
            p.c = &c_part;
            p.m = m;
            p.n = n;
            run_product(dev, &p);
        }
    }
    dq_cpu_scratch_give(dev, scratch);
    return DQ_OK;
}

dq_status dq_cpu_gemm(void *device, int32_t trans_a, int32_t trans_b, double alpha, const dq_view *a, const dq_view *b,
                      double beta, const dq_view *c, int32_t math)
{
    dq_cpu_dev *dev = device;
    int64_t k = trans_a ? a->rows : a->cols;
    if (c->rows == 0 || c->cols == 0) return DQ_OK;
    bool rows = !trans_a && trans_b && c->dtype == DQ_F32 && a->dtype == DQ_F32;
    if (rows && c->rows <= DQ_DECODE_ROWS) return dq_cpu_gemm_few(dev, alpha, a, b, beta, c, math);
    if (rows && c->rows <= DQ_SOME_ROWS && k > 0 && math == DQ_MATH_F32 && b->dtype != DQ_F32)
        return dq_cpu_gemm_some(dev, alpha, a, b, beta, c);
    if (c->dtype == DQ_F32 && math == DQ_MATH_BF16 && dq_cpu_packed(dev))
        return dq_packed_gemm(dev, trans_a, trans_b, (float)alpha, a, b, (float)beta, c);
    /* What BLAS's 32-bit integers cannot express goes to the reference. */
    if (k > INT_MAX || a->stride > INT_MAX || b->stride > INT_MAX || c->stride > INT_MAX)
        return dq_ref_backend()->gemm(device, trans_a, trans_b, alpha, a, b, beta, c, math);
    product p = {.trans_a = trans_a, .trans_b = trans_b, .alpha = alpha, .beta = beta, .a = a, .b = b, .c = c};
    p.m = c->rows;
    p.n = c->cols;
    p.k = k;
    if (c->dtype == DQ_F32) return wide_product(dev, p, a, b, c, math);
    run_product(dev, &p);
    return DQ_OK;
}
