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

/* The same as a job of steps: one layer over all windows, `layers` times, then one tile of the head over all windows until
 * the vocabulary is through. A step that fails may be repeated only after a restore; results come after the last. */
typedef struct dq_perplexity_job dq_perplexity_job;
dq_status dq_perplexity_job_new(dq_model *model, const int32_t *ids, int64_t count, int64_t seqlen, int64_t limit,
                                int math, dq_perplexity_job **out);
dq_status dq_perplexity_job_step(dq_perplexity_job *job, dq_progress *progress, bool *finished);
dq_status dq_perplexity_job_result(const dq_perplexity_job *job, dq_perplexity *out);
void dq_perplexity_job_free(dq_perplexity_job *job); /* NULL is accepted */
/* Between steps: how many are done, and the tensors that go on from there (borrowed; the last `state` is empty as long as
 * layers are under way). */
int64_t dq_perplexity_job_position(const dq_perplexity_job *job);
void dq_perplexity_job_tensors(const dq_perplexity_job *job, dq_tensor *hidden, dq_tensor *state);
/* A fresh job takes that position; afterwards the tensors are ready to be overwritten with what was there. */
dq_status dq_perplexity_job_seek(dq_perplexity_job *job, int64_t position, double seconds);
double dq_perplexity_job_seconds(const dq_perplexity_job *job);

#endif
