/* Hadamard transform of order k * 2^m: butterflies inside the k blocks, then the k x k table across them.
 * SPDX-License-Identifier: Apache-2.0 */
#include "backend/ref/ops.h"

/* Sylvester order, natural ordering: H[i][j] = (-1)^popcount(i & j). */
static void walsh(double *v, int64_t n)
{
    for (int64_t step = 1; step < n; step *= 2)
        for (int64_t i = 0; i < n; i += 2 * step)
            for (int64_t j = i; j < i + step; j++) {
                double a = v[j], b = v[j + step];
                v[j] = a + b;
                v[j + step] = a - b;
            }
}

/* out[a] = sum_b HK[a][b] v[b] over blocks of `size`; HK^T when transposed. */
static void mix(const dq_hadamard_desc *d, int64_t size, const double *v, double *out)
{
    for (int64_t a = 0; a < d->k; a++)
        for (int64_t i = 0; i < size; i++) {
            double sum = 0;
            for (int64_t b = 0; b < d->k; b++) {
                int8_t sign = d->transpose ? d->hk[b * d->k + a] : d->hk[a * d->k + b];
                sum += sign > 0 ? v[b * size + i] : -v[b * size + i];
            }
            out[a * size + i] = sum;
        }
}

static void transform(const dq_hadamard_desc *d, double *v, double *mixed)
{
    int64_t size = d->n / d->k;
    for (int64_t b = 0; b < d->k; b++) walsh(v + b * size, size);
    if (d->k > 1) {
        mix(d, size, v, mixed);
        for (int64_t i = 0; i < d->n; i++) v[i] = mixed[i];
    }
}

dq_status dq_ref_hadamard(void *dev, const dq_hadamard_desc *d, const dq_view *x, const dq_view *y)
{
    double *v = dq_ref_scratch(dev, d->n, 2 * sizeof(double));
    if (!v) return DQ_E_NOMEM;
    for (int64_t r = 0; r < x->rows; r++)
        for (int64_t outer = 0; outer < x->cols; outer += d->n * d->inner)
            for (int64_t inner = 0; inner < d->inner; inner++) {
                int64_t first = outer + inner;
                for (int64_t i = 0; i < d->n; i++) v[i] = dq_ref_get(x, r, first + i * d->inner);
                transform(d, v, v + d->n);
                for (int64_t i = 0; i < d->n; i++) dq_ref_put(y, r, first + i * d->inner, v[i] * d->scale);
            }
    dq_ref_release(dev, v);
    return DQ_OK;
}
