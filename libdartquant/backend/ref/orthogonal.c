/* Orthogonal factors of stacks of square matrices, and the derivative through QR; fp64 inside.
 * SPDX-License-Identifier: Apache-2.0 */
#include <math.h>
#include <string.h>

#include "backend/ref/ops.h"

static dq_view matrix_of(const dq_view *stack, int64_t g)
{
    dq_view m = *stack;
    m.rows = m.cols;
    m.offset += (uint64_t)(g * m.rows * m.stride * (int64_t)dq_dtype_size(m.dtype));
    return m;
}

dq_status dq_ref_qr_batch(void *dev, int64_t groups, const dq_view *a, const dq_view *q, const dq_view *r)
{
    dq_status status = DQ_OK;
    for (int64_t g = 0; g < groups && status == DQ_OK; g++) {
        dq_view ag = matrix_of(a, g), qg = matrix_of(q, g), rg = r ? matrix_of(r, g) : qg;
        status = dq_ref_qr(dev, &ag, &qg, r ? &rg : NULL);
    }
    return status;
}

/* ---- derivative ---- */

/* da = q C r^-T row by row: y r^T = (q C), solved from the last column, as r^T is lower. */
static void grad_of_one(const dq_view *q, const dq_view *r, const dq_view *dq, const dq_view *da, double *c)
{
    int64_t n = q->cols;
    double *g = c + n * n, *line = g + n * n;
    for (int64_t i = 0; i < n; i++)
        for (int64_t j = 0; j < n; j++) {
            double sum = 0;
            for (int64_t k = 0; k < n; k++) sum += dq_ref_get(q, k, i) * dq_ref_get(dq, k, j);
            g[i * n + j] = sum;
        }
    for (int64_t i = 0; i < n; i++)
        for (int64_t j = 0; j < n; j++) c[i * n + j] = j < i ? g[i * n + j] - g[j * n + i] : 0;
    for (int64_t i = 0; i < n; i++) {
        for (int64_t j = 0; j < n; j++) line[j] = 0;
        for (int64_t k = 0; k < n; k++)
            for (int64_t j = 0; j < k; j++) line[j] += dq_ref_get(q, i, k) * c[k * n + j];
        for (int64_t j = n - 1; j >= 0; j--) {
            for (int64_t k = j + 1; k < n; k++) line[j] -= line[k] * dq_ref_get(r, j, k);
            line[j] /= dq_ref_get(r, j, j);
        }
        for (int64_t j = 0; j < n; j++) dq_ref_put(da, i, j, line[j]);
    }
}

static double *workspace(void *dev, const char *op, int64_t n)
{
    int64_t count;
    if (!__builtin_mul_overflow(2 * n + 1, n, &count)) return dq_ref_scratch(dev, count, sizeof(double));
    dq_ref_fail(dev, DQ_E_NOMEM, "%s: order %lld is too large", op, (long long)n);
    return NULL;
}

dq_status dq_ref_qr_grad(void *dev, int64_t groups, const dq_view *q, const dq_view *r, const dq_view *dq,
                         const dq_view *da)
{
    double *work = workspace(dev, "qr_grad", q->cols);
    if (!work) return DQ_E_NOMEM;
    for (int64_t g = 0; g < groups; g++) {
        dq_view qg = matrix_of(q, g), rg = matrix_of(r, g), dqg = matrix_of(dq, g), dag = matrix_of(da, g);
        grad_of_one(&qg, &rg, &dqg, &dag, work);
    }
    dq_ref_release(dev, work);
    return DQ_OK;
}

/* ---- polar factor ---- */

/* y = inverse of x by Gauss-Jordan with row exchanges; x is destroyed. False when a pivot is zero or not finite. */
static bool invert(double *x, double *y, int64_t n)
{
    for (int64_t i = 0; i < n * n; i++) y[i] = i / n == i % n;
    for (int64_t k = 0; k < n; k++) {
        int64_t best = k;
        for (int64_t i = k; i < n; i++)
            if (fabs(x[i * n + k]) > fabs(x[best * n + k])) best = i;
        double pivot = x[best * n + k];
        if (pivot == 0 || !isfinite(pivot)) return false;
        for (int64_t j = 0; j < n; j++) {
            double a = x[best * n + j], b = y[best * n + j];
            x[best * n + j] = x[k * n + j];
            y[best * n + j] = y[k * n + j];
            x[k * n + j] = a / pivot;
            y[k * n + j] = b / pivot;
        }
        for (int64_t i = 0; i < n; i++) {
            double f = x[i * n + k];
            if (i == k || f == 0) continue;
            for (int64_t j = 0; j < n; j++) {
                x[i * n + j] -= f * x[k * n + j];
                y[i * n + j] -= f * y[k * n + j];
            }
        }
    }
    return true;
}

static double norm_of(const double *x, int64_t count)
{
    double sum = 0;
    for (int64_t i = 0; i < count; i++) sum += x[i] * x[i];
    return sqrt(sum);
}

/* Newton's iteration x <- (s x + x^-T / s) / 2 with Higham's Frobenius scaling (SIAM J. Sci. Stat. Comput. 7, 1986);
 * x, copy, inverse: n x n. */
static bool newton_polar(double *x, double *copy, double *inverse, int64_t n)
{
    for (int step = 0; step < 60; step++) {
        memcpy(copy, x, (size_t)(n * n) * sizeof *x);
        double size = norm_of(x, n * n), change = 0;
        if (!isfinite(size) || !invert(copy, inverse, n)) return false;
        double other = norm_of(inverse, n * n);
        if (!isfinite(other) || size * other > 1e15 * (double)n) return false;
        double s = sqrt(other / size);
        for (int64_t i = 0; i < n; i++)
            for (int64_t j = 0; j < n; j++) {
                double next = 0.5 * (s * x[i * n + j] + inverse[j * n + i] / s);
                change = fmax(change, fabs(next - x[i * n + j]));
                x[i * n + j] = next;
            }
        if (change < 1e-15 * (double)n) return true;
        if (step > 12 && change < 1e-13) return true; /* as near as rounding lets it come */
    }
    return false;
}

static double deviation(const dq_view *u)
{
    double worst = 0;
    for (int64_t i = 0; i < u->cols; i++)
        for (int64_t j = 0; j <= i; j++) {
            double sum = i == j ? -1 : 0;
            for (int64_t k = 0; k < u->cols; k++) sum += dq_ref_get(u, k, i) * dq_ref_get(u, k, j);
            worst = fmax(worst, fabs(sum));
        }
    return worst;
}

dq_status dq_ref_polar(void *dev, int64_t groups, int32_t math, const dq_view *a, const dq_view *u, double *error)
{
    int64_t n = a->cols, square;
    (void)math;
    if (__builtin_mul_overflow(3 * n, n, &square))
        return dq_ref_fail(dev, DQ_E_NOMEM, "polar: order %lld is too large", (long long)n);
    double *x = dq_ref_scratch(dev, square, sizeof(double));
    if (!x) return DQ_E_NOMEM;
    *error = 0;
    for (int64_t g = 0; g < groups; g++) {
        dq_view ag = matrix_of(a, g), ug = matrix_of(u, g);
        for (int64_t i = 0; i < n * n; i++) x[i] = dq_ref_get(&ag, i / n, i % n);
        bool good = newton_polar(x, x + n * n, x + 2 * n * n, n);
        for (int64_t i = 0; good && i < n * n; i++) dq_ref_put(&ug, i / n, i % n, x[i]);
        *error = fmax(*error, good ? deviation(&ug) : INFINITY);
    }
    dq_ref_release(dev, x);
    return DQ_OK;
}
