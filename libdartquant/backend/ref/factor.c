/* Factorizations, fp64 inside. SPDX-License-Identifier: Apache-2.0 */
#include <math.h>

#include "backend/ref/ops.h"

/* a = the damped, permuted, symmetric matrix (both triangles). */
static void assemble(const dq_view *h, const int32_t *perm, double damp, int64_t n, double *a)
{
    for (int64_t i = 0; i < n; i++)
        for (int64_t j = 0; j <= i; j++) {
            int64_t p = perm ? perm[i] : i, q = perm ? perm[j] : j;
            double value = p >= q ? dq_view_f32(h, p)[q] : dq_view_f32(h, q)[p];
            if (i == j) value = (value == 0 ? 1.0 : value) + damp;
            a[i * n + j] = a[j * n + i] = value;
        }
}

/* Flipped Cholesky in the upper triangle, from the last column to the first: A = M M^T, M upper. Returns 0, or i+1 when
 * pivot i is not positive. */
static int64_t flipped_cholesky(double *a, int64_t n)
{
    for (int64_t j = n - 1; j >= 0; j--) {
        const double *mj = a + j * n;
        for (int64_t i = j; i >= 0; i--) {
            double *mi = a + i * n;
            double value = mi[j];
            for (int64_t k = j + 1; k < n; k++) value -= mi[k] * mj[k];
            if (i == j) {
                if (!(value > 0) || !isfinite(value)) return j + 1;
                mi[j] = sqrt(value);
            } else {
                mi[j] = value / mj[j];
            }
        }
    }
    return 0;
}

/* Replaces upper triangular M (its rows `stride` apart) by its inverse, row by row from the last; `line` holds n values. */
static void invert_upper(double *m, int64_t n, int64_t stride, double *line)
{
    for (int64_t i = n - 1; i >= 0; i--) {
        double *mi = m + i * stride;
        for (int64_t j = i + 1; j < n; j++) line[j] = 0;
        for (int64_t k = i + 1; k < n; k++) {
            const double *uk = m + k * stride;
            for (int64_t j = k; j < n; j++) line[j] += mi[k] * uk[j];
        }
        mi[i] = 1.0 / mi[i];
        for (int64_t j = i + 1; j < n; j++) mi[j] = -mi[i] * line[j];
    }
}

/* inv(A) = M^-T M^-1 = U^T U with U = M^-1 upper triangular: the factor GPTQ gets from Cholesky, inverse, Cholesky, with
 * a third of the work. Only blocks on the diagonal are inverted when block is less than n. */
static dq_status factor(void *dev, const char *op, const dq_view *h, const dq_view *perm, double damp, int64_t block,
                        const dq_view *u, int64_t *info)
{
    int64_t n = h->rows, squared;
    if (perm) {
        dq_status status = dq_ref_check_index(dev, perm, n, op);
        if (status != DQ_OK) return status;
    }
    if (__builtin_mul_overflow(n + 1, n, &squared))
        return dq_ref_fail(dev, DQ_E_NOMEM, "%s: order %lld is too large", op, (long long)n);
    double *a = dq_ref_scratch(dev, squared, sizeof(double));
    if (!a) return DQ_E_NOMEM;
    assemble(h, perm ? dq_view_i32(perm, 0) : NULL, damp, n, a);
    *info = flipped_cholesky(a, n);
    if (*info == 0) {
        for (int64_t c = 0; c < n; c += block) invert_upper(a + c * n + c, n - c < block ? n - c : block, n, a + n * n);
        for (int64_t i = 0; i < n; i++) {
            float *row = dq_view_f32(u, i);
            for (int64_t j = 0; j < n; j++) row[j] = j < i ? 0.0f : (float)a[i * n + j];
        }
    }
    dq_ref_release(dev, a);
    return DQ_OK;
}

dq_status dq_ref_gptq_factor(void *dev, const dq_view *h, const dq_view *perm, double damp, const dq_view *u,
                             int64_t *info)
{
    return factor(dev, "gptq_factor", h, perm, damp, h->rows, u, info);
}

dq_status dq_ref_gptq_root(void *dev, const dq_view *h, const dq_view *perm, double damp, int64_t block,
                           const dq_view *root, int64_t *info)
{
    return factor(dev, "gptq_root", h, perm, damp, block, root, info);
}

/* The reflector I - tau v v^T that maps (alpha, x) to (beta, 0), as LAPACK's larfg: v[0] = 1 is implied, the rest
 * replaces x, beta replaces alpha. A column that is already zero below keeps its sign (tau = 0). */
static double make_reflector(double *column, int64_t n)
{
    double norm = 0;
    for (int64_t i = 1; i < n; i++) norm = hypot(norm, column[i]);
    if (norm == 0) return 0;
    double alpha = column[0];
    double beta = -copysign(hypot(alpha, norm), alpha);
    for (int64_t i = 1; i < n; i++) column[i] /= alpha - beta;
    column[0] = beta;
    return (beta - alpha) / beta;
}

static void apply_reflector(const double *v, double tau, int64_t n, double *column)
{
    double sum = column[0];
    for (int64_t i = 1; i < n; i++) sum += v[i] * column[i];
    sum *= tau;
    column[0] -= sum;
    for (int64_t i = 1; i < n; i++) column[i] -= sum * v[i];
}

/* Householder QR as LAPACK geqrf + orgqr; `a`, `q` hold columns contiguously. */
static void householder(double *a, double *q, double *tau, int64_t n)
{
    for (int64_t j = 0; j < n; j++) {
        tau[j] = make_reflector(a + j * n + j, n - j);
        for (int64_t c = j + 1; c < n; c++) apply_reflector(a + j * n + j, tau[j], n - j, a + c * n + j);
    }
    for (int64_t c = 0; c < n; c++)
        for (int64_t i = 0; i < n; i++) q[c * n + i] = i == c;
    for (int64_t j = n - 1; j >= 0; j--)
        for (int64_t c = j; c < n; c++) apply_reflector(a + j * n + j, tau[j], n - j, q + c * n + j);
}

dq_status dq_ref_qr(void *dev, const dq_view *a, const dq_view *q, const dq_view *r)
{
    int64_t n = a->rows, squared;
    if (__builtin_mul_overflow(2 * n + 1, n, &squared))
        return dq_ref_fail(dev, DQ_E_NOMEM, "qr: order %lld is too large", (long long)n);
    double *columns = dq_ref_scratch(dev, squared, sizeof(double));
    if (!columns) return DQ_E_NOMEM;
    double *orthogonal = columns + n * n, *tau = orthogonal + n * n;
    for (int64_t i = 0; i < n; i++)
        for (int64_t j = 0; j < n; j++) columns[j * n + i] = dq_ref_get(a, i, j);
    householder(columns, orthogonal, tau, n);
    for (int64_t i = 0; i < n; i++)
        for (int64_t j = 0; j < n; j++) {
            dq_ref_put(q, i, j, orthogonal[j * n + i]);
            if (r) dq_ref_put(r, i, j, j < i ? 0.0 : columns[j * n + i]);
        }
    dq_ref_release(dev, columns);
    return DQ_OK;
}
