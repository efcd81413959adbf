/* Perplexity by the upstream protocol: windows of seqlen without overlap, tail dropped, mean of window means.
 * SPDX-License-Identifier: Apache-2.0 */
#ifndef DQ_EVAL_PERPLEXITY_H
#define DQ_EVAL_PERPLEXITY_H

#include "model/hidden.h"
#include "model/model.h"

typedef struct dq_perplexity {
    double nll;                      /* mean over windows of the mean over seqlen - 1 targets, nats */
    double ppl;                      /* exp(nll) */
    int64_t windows, seqlen, tokens; /* tokens = windows * seqlen */
    int64_t integers;                /* linears whose products were those of integers */
    double accuracy;                 /* share of targets that have the largest logit */
    double *window_nll;              /* [windows]; dq_free */
    double seconds;
    bool compared;     /* the rest holds: */
    double kl, kl_max; /* mean and largest divergence from the reference, nats */
    double agreement;  /* share of positions where both have the same largest logit */
} dq_perplexity;

/* What is kept of an evaluated model so that others can be compared with it. */
typedef struct dq_reference_states {
    dq_model *model;  /* for its head */
    dq_hidden hidden; /* [windows * seqlen, hidden] after the final norm */
    int64_t windows, seqlen;
} dq_reference_states;

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
/* Before the first step: compare with `reference`, which was evaluated on the same ids and outlives the job. */
dq_status dq_perplexity_job_compare(dq_perplexity_job *job, dq_reference_states *reference);
/* After the last step: the hidden states that became the logits move to *out. */
dq_status dq_perplexity_job_take_states(dq_perplexity_job *job, dq_hidden *out);
/* Hidden states as the job has them: of so many tokens in windows of seqlen. Contents undefined. */
dq_status dq_perplexity_open_states(const dq_model *model, int64_t tokens, int64_t seqlen, dq_hidden *out);
/* Between steps: how many are done, and the tensors that go on from there (borrowed; the hidden states, and once the head
 * has begun the sums); returns their number. */
enum { DQ_PERPLEXITY_TENSORS = 3 };
int64_t dq_perplexity_job_position(const dq_perplexity_job *job);
int dq_perplexity_job_tensors(const dq_perplexity_job *job, dq_tensor out[DQ_PERPLEXITY_TENSORS]);
/* A fresh job takes that position; afterwards the tensors are ready to be overwritten with what was there. */
dq_status dq_perplexity_job_seek(dq_perplexity_job *job, int64_t position, double seconds);
double dq_perplexity_job_seconds(const dq_perplexity_job *job);

#endif
