/* Causal grouped-query attention with an optional sliding window: plain softmax in fp64. Under DQ_MATH_BF16 q, k and v
 * are rounded, the probabilities are not. SPDX-License-Identifier: Apache-2.0 */
#include <math.h>

#include "backend/ref/ops.h"

/* The columns of one query head, and of the key/value head it reads. */
typedef struct head_place {
    int64_t q;
    int64_t kv;
} head_place;

/* Attention of token `row` over the keys [first, row]; `p` holds their probabilities, `sum` the head's output. */
static void attend(const dq_attention_desc *d, const dq_view *q, const dq_view *k, const dq_view *v, const dq_view *o,
                   head_place at, int64_t row, int64_t first, double *p, double *sum)
{
    double top = -INFINITY, total = 0;
    for (int64_t j = first; j <= row; j++) {
        double dot = 0;
        for (int64_t c = 0; c < d->head_dim; c++)
            dot += dq_ref_operand(q, row, at.q + c, d->math) * dq_ref_operand(k, j, at.kv + c, d->math);
        p[j - first] = dot * d->scale;
        if (p[j - first] > top) top = p[j - first];
    }
    for (int64_t c = 0; c < d->head_dim; c++) sum[c] = 0;
    for (int64_t j = first; j <= row; j++) {
        double weight = exp(p[j - first] - top);
        total += weight;
        for (int64_t c = 0; c < d->head_dim; c++) sum[c] += weight * dq_ref_operand(v, j, at.kv + c, d->math);
    }
    for (int64_t c = 0; c < d->head_dim; c++) dq_ref_put(o, row, at.q + c, sum[c] / total);
}

dq_status dq_ref_attention(void *dev, const dq_attention_desc *d, const dq_view *q, const dq_view *k, const dq_view *v,
                           const dq_view *o)
{
    double *p = dq_ref_scratch(dev, d->seqlen + d->head_dim, sizeof(double));
    if (!p) return DQ_E_NOMEM;
    int64_t share = d->heads / d->kv_heads;
    for (int64_t row = 0; row < q->rows; row++) {
        int64_t first = row - row % d->seqlen;
        if (d->window > 0 && row - d->window + 1 > first) first = row - d->window + 1;
        for (int64_t h = 0; h < d->heads; h++) {
            head_place at = {h * d->head_dim, h / share * d->head_dim};
            attend(d, q, k, v, o, at, row, first, p, p + d->seqlen);
        }
    }
    dq_ref_release(dev, p);
    return DQ_OK;
}
