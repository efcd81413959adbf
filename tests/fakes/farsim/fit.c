/* Kernels that fit rotations, from the definitions in backend.h: the Whip loss, and the derivative through QR.
 * SPDX-License-Identifier: Apache-2.0 */
#include <math.h>
#include <stdlib.h>

#include "farsim.h"

/* o[column] of a row that has `width` columns, cut in heads. */
static double rotated(const far_cmd *c, int64_t row, int64_t column)
{
    int64_t n = c->d.loss.n, head = column / n, first = head / (c->d.loss.heads / c->d.loss.groups) * n;
    double sum = 0;
    for (int64_t k = 0; k < n; k++)
        sum += far_get(&c->mat[0], row, head * n + k) * far_get(&c->mat[2], first + k, column % n);
    return sum;
}

static void whip_row(const far_cmd *c, int64_t row, double *slope, double *grad, double *total)
{
    const dq_rotation_loss_desc *d = &c->d.loss;
    const far_mat *x = &c->mat[0], *weight = &c->mat[1], *row_loss = &c->mat[4];
    double sum = 0, norm = 0, w = weight->at ? far_get(weight, 0, row) : 1;
    for (int64_t i = 0; i < x->cols; i++) norm += far_get(x, row, i) * far_get(x, row, i);
    double per = !d->relative ? 1 : norm == 0 ? 0 : 1 / norm;
    for (int64_t i = 0; i < x->cols; i++) {
        double o = rotated(c, row, i), e = exp(-fabs(o));
        sum += e;
        slope[i] = w * per * ((o > 0 ? -e : o < 0 ? e : 0 * o) + d->shift * o);
    }
    *total += w * per * sum;
    if (row_loss->at) far_put(row_loss, 0, row, per * sum);
    for (int64_t i = 0; grad && i < x->cols; i++) {
        int64_t head = i / d->n, first = head / (d->heads / d->groups) * d->n;
        for (int64_t k = 0; k < d->n; k++)
            grad[(first + k) * d->n + i % d->n] += far_get(x, row, head * d->n + k) * slope[i];
    }
}

void far_k_rotation_loss(far_dev *dev, far_cmd *c)
{
    const dq_rotation_loss_desc *d = &c->d.loss;
    const far_mat *x = &c->mat[0], *out = &c->mat[3];
    int64_t stack = out->at ? out->rows * out->cols : 0;
    double total = 0, *slope = calloc((size_t)(x->cols + stack), sizeof *slope);
    if (!slope) {
        far_break(dev, DQ_E_DEVICE_MEMORY, FAR_OUT_OF_MEMORY, "no workspace for %lld rows", (long long)stack);
        return;
    }
    double *grad = out->at ? slope + x->cols : NULL;
    for (int64_t r = 0; r < x->rows; r++) whip_row(c, r, slope, grad, &total);
    for (int64_t i = 0; i < stack; i++) {
        int64_t r = i / d->n, k = i % d->n;
        far_put(out, r, k, d->scale * grad[i] + (d->beta == 0 ? 0 : d->beta * far_get(out, r, k)));
    }
    *(double *)c->result = d->scale * total;
    free(slope);
}

/* (q^T dq) of the matrix whose first row is `first`. */
static double product(const far_cmd *c, int64_t first, int64_t i, int64_t j)
{
    double sum = 0;
    for (int64_t k = 0; k < c->mat[0].cols; k++)
        sum += far_get(&c->mat[0], first + k, i) * far_get(&c->mat[2], first + k, j);
    return sum;
}

void far_k_qr_grad(far_dev *dev, far_cmd *c)
{
    const far_mat *q = &c->mat[0], *r = &c->mat[1], *da = &c->mat[3];
    int64_t n = q->cols;
    double *skew = malloc((size_t)(n * n + n) * sizeof *skew), *line = skew + n * n;
    if (!skew) far_break(dev, DQ_E_DEVICE_MEMORY, FAR_OUT_OF_MEMORY, "no workspace for order %lld", (long long)n);
    for (int64_t first = 0; skew && first < q->rows; first += n) {
        for (int64_t i = 0; i < n; i++)
            for (int64_t j = 0; j < i; j++) skew[i * n + j] = product(c, first, i, j) - product(c, first, j, i);
        for (int64_t i = 0; i < n; i++)
            for (int64_t j = n - 1; j >= 0; j--) {
                line[j] = 0;
                for (int64_t k = j + 1; k < n; k++)
                    line[j] += far_get(q, first + i, k) * skew[k * n + j] - line[k] * far_get(r, first + j, k);
                line[j] /= far_get(r, first + j, j);
                far_put(da, first + i, j, line[j]);
            }
    }
    free(skew);
}
