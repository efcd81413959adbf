/* Causal grouped-query attention with an optional sliding window: plain softmax in fp64. Under DQ_MATH_BF16 q, k and v
 * are rounded, the probabilities are not. SPDX-License-Identifier: Apache-2.0 */
#include <math.h>

#include "backend/ref/ops.h"

/* One sequence and one query head, widened to fp64 (and rounded as the products ask). */
typedef struct head {
    double *q, *k, *v; /* [seqlen, head_dim] */
    double *p;         /* [seqlen] */
    double *sum;       /* [head_dim] */
} head;

static void widen(const dq_attention_desc *d, const dq_view *x, int64_t first_row, int64_t first_col, double *out)
{
    for (int64_t r = 0; r < d->seqlen; r++)
        for (int64_t c = 0; c < d->head_dim; c++)
            out[r * d->head_dim + c] = dq_ref_operand(x, first_row + r, first_col + c, d->math);
}

/* Token `row` looks at the keys [first, row]. */
static void attend(const dq_attention_desc *d, const head *h, int64_t row, int64_t first)
{
    int64_t dim = d->head_dim;
    double top = -INFINITY, total = 0;
    for (int64_t j = first; j <= row; j++) {
        double dot = 0;
        for (int64_t c = 0; c < dim; c++) dot += h->q[row * dim + c] * h->k[j * dim + c];
        h->p[j] = dot * d->scale;
        if (h->p[j] > top) top = h->p[j];
    }
    for (int64_t c = 0; c < dim; c++) h->sum[c] = 0;
    for (int64_t j = first; j <= row; j++) {
        double weight = exp(h->p[j] - top);
        total += weight;
        for (int64_t c = 0; c < dim; c++) h->sum[c] += weight * h->v[j * dim + c];
    }
    for (int64_t c = 0; c < dim; c++) h->sum[c] /= total;
}

dq_status dq_ref_attention(void *dev, const dq_attention_desc *d, const dq_view *q, const dq_view *k, const dq_view *v,
                           const dq_view *o)
{
    int64_t dim = d->head_dim, plane, share = d->heads / d->kv_heads;
    if (__builtin_mul_overflow(d->seqlen, dim, &plane) || plane > INT64_MAX / 8)
        return dq_ref_fail(dev, DQ_E_NOMEM, "attention: %lld tokens are too many", (long long)d->seqlen);
    double *scratch = dq_ref_scratch(dev, 3 * plane + d->seqlen + dim, sizeof(double));
    if (!scratch) return DQ_E_NOMEM;
    head h = {scratch, scratch + plane, scratch + 2 * plane, scratch + 3 * plane, scratch + 3 * plane + d->seqlen};
    for (int64_t start = 0; start < q->rows; start += d->seqlen)
        for (int64_t at = 0; at < d->heads; at++) {
            widen(d, q, start, at * dim, h.q);
            widen(d, k, start, at / share * dim, h.k);
            widen(d, v, start, at / share * dim, h.v);
            for (int64_t row = 0; row < d->seqlen; row++) {
                attend(d, &h, row, d->window > 0 && row >= d->window ? row - d->window + 1 : 0);
                for (int64_t c = 0; c < dim; c++) dq_ref_put(o, start + row, at * dim + c, h.sum[c]);
            }
        }
    dq_ref_release(dev, scratch);
    return DQ_OK;
}
