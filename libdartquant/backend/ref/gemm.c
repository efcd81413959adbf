/* Matrix products: operands widened to fp64, summed in order of k. SPDX-License-Identifier: Apache-2.0 */
#include "backend/ref/ops.h"

enum { TILE = 64 }; /* columns of the result that are summed together */

/* op(v)[row][col] */
static double element(const dq_view *v, bool transposed, int64_t row, int64_t col, int32_t math)
{
    return transposed ? dq_ref_operand(v, col, row, math) : dq_ref_operand(v, row, col, math);
}

/* panel[k][TILE] = op(b)[:, first .. first+width), zero padded */
static void pack_panel(const dq_view *b, bool transposed, int64_t depth, int64_t first, int64_t width, int32_t math,
                       double *panel)
{
    for (int64_t p = 0; p < depth; p++)
        for (int64_t j = 0; j < TILE; j++)
            panel[p * TILE + j] = j < width ? element(b, transposed, p, first + j, math) : 0.0;
}

dq_status dq_ref_gemm(void *dev, int32_t trans_a, int32_t trans_b, double alpha, const dq_view *a, const dq_view *b,
                      double beta, const dq_view *c, int32_t math)
{
    int64_t depth = trans_a ? a->rows : a->cols;
    double *panel = dq_ref_scratch(dev, depth, (TILE + 1) * sizeof(double));
    if (!panel) return DQ_E_NOMEM;
    double *line = panel + depth * TILE;
    for (int64_t first = 0; first < c->cols; first += TILE) {
        int64_t width = c->cols - first < TILE ? c->cols - first : TILE;
        pack_panel(b, trans_b != 0, depth, first, width, math, panel);
        for (int64_t i = 0; i < c->rows; i++) {
            double sum[TILE] = {0};
            for (int64_t p = 0; p < depth; p++) line[p] = element(a, trans_a != 0, i, p, math);
            for (int64_t p = 0; p < depth; p++)
                for (int64_t j = 0; j < TILE; j++) sum[j] += line[p] * panel[p * TILE + j];
            for (int64_t j = 0; j < width; j++) {
                double old = beta == 0 ? 0.0 : beta * dq_ref_get(c, i, first + j);
                dq_ref_put(c, i, first + j, alpha * sum[j] + old);
            }
        }
    }
    dq_ref_release(dev, panel);
    return DQ_OK;
}

dq_status dq_ref_syrk(void *dev, double alpha, const dq_view *x, double beta, const dq_view *h)
{
    int64_t n = x->cols, squared;
    if (__builtin_mul_overflow(n + 1, n, &squared))
        return dq_ref_fail(dev, DQ_E_NOMEM, "syrk: order %lld is too large", (long long)n);
    double *sum = dq_ref_scratch(dev, squared, sizeof(double));
    if (!sum) return DQ_E_NOMEM;
    double *line = sum + n * n;
    for (int64_t i = 0; i < n * n; i++) sum[i] = 0;
    for (int64_t t = 0; t < x->rows; t++) {
        for (int64_t i = 0; i < n; i++) line[i] = dq_ref_get(x, t, i);
        for (int64_t i = 0; i < n; i++)
            for (int64_t j = 0; j <= i; j++) sum[i * n + j] += line[i] * line[j];
    }
    for (int64_t i = 0; i < n; i++) {
        float *row = dq_view_f32(h, i);
        for (int64_t j = 0; j <= i; j++) row[j] = (float)(alpha * sum[i * n + j] + (beta == 0 ? 0.0 : beta * row[j]));
    }
    dq_ref_release(dev, sum);
    return DQ_OK;
}
