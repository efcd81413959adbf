/* dartquant/reference.h: inside of a reference. SPDX-License-Identifier: Apache-2.0 */
#ifndef DQ_API_REFERENCE_H
#define DQ_API_REFERENCE_H

#include "api/handles.h"
#include "dartquant/reference.h"
#include "eval/perplexity.h"

struct dq_reference {
    int references; /* the host's, and those of evaluators */
    dq_context *ctx;
    dq_reference_states states;
    json_t *identity; /* of the model (dq_model_identity), with "data" */
    char hash[17];    /* of the hidden states */
    char *report;
};

/* Takes `hidden` over, also on failure. `identity` is taken over, too. */
dq_status dq_reference_new(dq_model *model, dq_hidden *hidden, int64_t windows, int64_t seqlen, json_t *identity,
                           const char *report, dq_reference **out);
void dq_reference_release(dq_reference *reference); /* NULL is accepted */
static inline dq_reference *dq_reference_retain(dq_reference *r)
{
    r->references++;
    return r;
}

#endif
