/* Inside of an evaluator, shared by its files. SPDX-License-Identifier: Apache-2.0 */
#ifndef DQ_API_EVALUATOR_JOB_H
#define DQ_API_EVALUATOR_JOB_H

#include "api/handles.h"
#include "api/reference.h"
#include "dartquant/evaluator.h"
#include "eval/perplexity.h"

/* A window of the host's logits. */
typedef struct dq_host_window {
    double nll;   /* mean */
    int64_t hits; /* targets with the largest logit */
} dq_host_window;

struct dq_evaluator {
    dq_context *ctx;
    dq_model *model; /* NULL: the host brings the logits */
    int64_t vocab;
    dq_config *config;
    int64_t seqlen, limit;
    int math;
    int32_t *ids; /* NULL = nothing bound */
    int64_t count;
    char *name, *protocol;
    dq_perplexity_job *job; /* under way */
    dq_host_window *losses; /* the host's windows so far, nll NaN = missing */
    int64_t losses_count;
    bool keeps;              /* the last hidden states of a run */
    dq_reference *kept;      /* of the last run */
    dq_reference *reference; /* to compare with; NULL = none */
    int slot;                /* of the next checkpoint's activations */
    dq_perplexity result;
    json_t *facts; /* NULL = not run */
    char *report;
};

/* Data bound and a model to run on; `what` stands in the message. */
dq_status dq_evaluator_check_ready(const dq_evaluator *e, const char *what);
/* Starts a run; forgets one that is under way. */
dq_status dq_evaluator_begin(dq_evaluator *e);
void dq_evaluator_forget_run(dq_evaluator *e);
/* The run's last hidden states become a reference that can be taken; the fresh run's comparison. */
dq_status dq_evaluator_keep_states(dq_evaluator *e);
dq_status dq_evaluator_attach_reference(dq_evaluator *e);
/* Takes `result` over when it can be described. */
dq_status dq_evaluator_publish(dq_evaluator *e, dq_perplexity result);

#endif
