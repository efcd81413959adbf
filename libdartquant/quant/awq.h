/* AWQ (Lin et al., arXiv 2306.00978): channel scales and clipping that keep the output error of rounding to nearest small.
 * SPDX-License-Identifier: Apache-2.0 */
#ifndef DQ_QUANT_AWQ_H
#define DQ_QUANT_AWQ_H

#include "quant/quantize.h"

/* Candidates: DQ_AWQ_GRID exponents alpha = i / DQ_AWQ_GRID of s = x^alpha (the paper; alpha 0 scales nothing), then as many
 * of s = x^alpha / w^(1 - alpha) (the authors' program); x the mean magnitude of a channel, w that of its weights as shares
 * of their group's largest. */
enum { DQ_AWQ_GRID = 20, DQ_AWQ_CANDIDATES = 2 * DQ_AWQ_GRID };
/* Clipping: factors 1 - i / DQ_AWQ_GRID on the range, down to one half. */
enum { DQ_AWQ_CLIPS = DQ_AWQ_GRID / 2 };

/* The scales of one candidate from x and w [n]; channels without any activation keep 1. */
void dq_awq_candidate(int candidate, const float *x, const double *w, int64_t n, float *scale);
/* w [in]: the mean over all rows of |W| / (largest |W| in the row's group + 1e-6), from `count` linears with one input. */
dq_status dq_awq_weight_magnitude(const dq_tensor *const *linears, int count, int64_t group, double *w);

/* Rows that the search looks at: one of each of so many equal strips of the linears above one another, all where there are
 * no more; drawn with seed 0. */
enum { DQ_AWQ_ROWS = 512 };

/* The candidate with the least tr(D H D^T), D = Q(W diag(s)) diag(1/s) - W, over those rows; the first of equals.
 * h: Gram matrix of the inputs, F32, mirrored; x [in] their mean magnitudes; share: columns x with equal indices mod
 * head_dim of query heads that share a KV head have one scale (o_proj), 1 = none do. scale [in / share] receives the
 * result, `errors` (may be NULL) all sums. */
typedef struct dq_awq_input {
    const dq_tensor *const *linears; /* F32 [out, in] */
    int count;
    const dq_tensor *h;
    const float *x;
    int64_t share, head_dim;
} dq_awq_input;
dq_status dq_awq_search(const dq_weight_spec *spec, const dq_awq_input *input, float *scale,
                        double errors[DQ_AWQ_CANDIDATES]);

/* Rounds w = W diag(scale) (F32, kept) to nearest; with spec->clip_search each group's range is shrunk by the factor with
 * the least d H_g d^T of its own columns. h: as above, of the inputs before scaling. error: tr(D H D^T) / tr(W H W^T). */
dq_status dq_awq_round(const dq_weight_spec *spec, const dq_tensor *w, const dq_tensor *h, const float *scale,
                       dq_codes *out, double *error);

/* Columns that a scale list is spread over. */
static inline int64_t dq_awq_source(int64_t column, int64_t share, int64_t head_dim)
{
    return share > 1 ? column / head_dim / share * head_dim + column % head_dim : column;
}

#endif
