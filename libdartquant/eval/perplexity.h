/* Perplexity by the upstream protocol: windows of seqlen without overlap, tail dropped, mean of window means.
 * SPDX-License-Identifier: Apache-2.0 */
#ifndef DQ_EVAL_PERPLEXITY_H
#define DQ_EVAL_PERPLEXITY_H

#include "model/model.h"

typedef struct dq_perplexity {
    double nll;                      /* mean over windows of the mean over seqlen - 1 targets, nats */
    double ppl;                      /* exp(nll) */
    int64_t windows, seqlen, tokens; /* tokens = windows * seqlen */
    double *window_nll;              /* [windows]; dq_free */
    double seconds;
} dq_perplexity;

/* All windows at once, one layer in memory at a time. limit = 0: all windows. A window whose loss is not finite is an
 * error naming it. */
dq_status dq_perplexity_run(dq_model *model, const int32_t *ids, int64_t count, int64_t seqlen, int64_t limit, int math,
                            dq_progress *progress, dq_perplexity *out);

#endif
