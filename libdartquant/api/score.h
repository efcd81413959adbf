/* Losses of the host's logits. SPDX-License-Identifier: Apache-2.0 */
#ifndef DQ_API_SCORE_H
#define DQ_API_SCORE_H

#include "base/env.h"

/* nll[r] of every row as dq_score_logits describes; `best` may be NULL. Outputs are undefined after a failure. */
dq_status dq_score_rows(dq_env *env, const float *logits, int64_t rows, int64_t vocab, int64_t row_stride,
                        const int32_t *targets, double *nll, int32_t *best);

#endif
