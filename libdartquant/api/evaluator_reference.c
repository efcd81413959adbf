/* dartquant/reference.h: the evaluator's part. SPDX-License-Identifier: Apache-2.0 */
#include "api/check.h"
#include "api/checkpoint.h"
#include "api/evaluator_job.h"

static dq_status own_model(const dq_evaluator *e)
{
    if (!e->model) return dq_fail(DQ_E_STATE, "this evaluator has logits of the host and no hidden states");
    return DQ_OK;
}

dq_status dq_evaluator_keep_reference(dq_evaluator *e, int32_t keep)
{
    DQ_ENTER_CONTEXT(e->ctx, e);
    DQ_TRY(own_model(e));
    e->keeps = keep != 0;
    return DQ_OK;
}

dq_status dq_evaluator_keep_states(dq_evaluator *e)
{
    dq_hidden hidden = {0};
    json_t *identity = NULL, *data = dq_ids_fingerprint(e->ids, e->count);
    int64_t windows = e->result.windows;
    dq_status status = dq_model_identity(e->model, &identity);
    if (status == DQ_OK && json_object_set(identity, "data", data) != 0) status = DQ_E_NOMEM;
    if (status == DQ_OK) status = dq_perplexity_job_take_states(e->job, &hidden);
    json_decref(data);
    if (status != DQ_OK) {
        json_decref(identity);
        return status;
    }
    return dq_reference_new(e->model, &hidden, windows, e->seqlen, identity, e->report, &e->kept);
}

dq_status dq_evaluator_take_reference(dq_evaluator *e, dq_reference **out)
{
    DQ_ENTER_CONTEXT(e->ctx, e && out);
    DQ_TRY(own_model(e));
    if (!e->kept)
        return dq_fail(DQ_E_STATE,
                       "nothing is kept: call dq_evaluator_keep_reference before the run, and take it once");
    *out = e->kept;
    e->kept = NULL;
    return DQ_OK;
}

dq_status dq_evaluator_set_reference(dq_evaluator *e, dq_reference *reference)
{
    DQ_ENTER_CONTEXT(e->ctx, e);
    DQ_TRY(own_model(e));
    if (reference && reference->ctx != e->ctx)
        return dq_fail(DQ_E_INVALID, "the reference belongs to another context than the model");
    if (reference && dq_model_arch(reference->states.model)->vocab != e->vocab)
        return dq_fail(DQ_E_MISMATCH, "the reference has a vocabulary of %lld, the model of %lld",
                       (long long)dq_model_arch(reference->states.model)->vocab, (long long)e->vocab);
    dq_evaluator_forget_run(e);
    if (reference) dq_reference_retain(reference);
    dq_reference_release(e->reference);
    e->reference = reference;
    return DQ_OK;
}

dq_status dq_evaluator_attach_reference(dq_evaluator *e)
{
    if (!e->reference) return DQ_OK;
    json_t *data = dq_ids_fingerprint(e->ids, e->count);
    bool same = json_equal(data, json_object_get(e->reference->identity, "data"));
    json_decref(data);
    DQ_TRY(dq_perplexity_job_compare(e->job, &e->reference->states));
    if (!same) return dq_fail(DQ_E_MISMATCH, "the reference was evaluated on other tokens than those of %s", e->name);
    return DQ_OK;
}
