/* dartquant/checkpoint.h: the evaluator's state on disk. SPDX-License-Identifier: Apache-2.0 */
#include "dartquant/checkpoint.h"

#include "api/check.h"
#include "api/checkpoint.h"
#include "api/evaluator_job.h"
#include "io/file.h"
#include "io/json.h"

static const char JOB[] = "perplexity";

static dq_status fingerprint_of(dq_evaluator *e, json_t **out)
{
    DQ_TRY(dq_job_fingerprint(e->model, e->config, e->ids, e->count, out));
    json_object_set_new(*out, "reference", json_string(e->reference ? e->reference->hash : "none"));
    return DQ_OK;
}

dq_status dq_evaluator_checkpoint(dq_evaluator *e, const char *dir)
{
    DQ_ENTER_CONTEXT(e->ctx, e && dir);
    dq_tensor tensors[DQ_PERPLEXITY_TENSORS];
    const dq_tensor *list[DQ_PERPLEXITY_TENSORS];
    json_t *fingerprint = NULL, *activations = NULL;
    DQ_TRY(dq_evaluator_check_ready(e, __func__));
    if (!e->job) return dq_fail(DQ_E_STATE, "no evaluation is under way: checkpoints lie between its steps");
    int count = dq_perplexity_job_tensors(e->job, tensors);
    for (int i = 0; i < count; i++) list[i] = &tensors[i];
    DQ_TRY(dq_make_dirs(&e->ctx->env, dir));
    DQ_TRY(fingerprint_of(e, &fingerprint));
    dq_status status = dq_checkpoint_save_tensors(&e->ctx->env, dir, e->slot, list, count, &activations);
    if (status == DQ_OK)
        status =
            dq_checkpoint_write(e->ctx, dir, JOB, fingerprint,
                                json_pack("{s:I, s:f, s:o}", "position", (json_int_t)dq_perplexity_job_position(e->job),
                                          "seconds", dq_perplexity_job_seconds(e->job), "activations", activations));
    json_decref(fingerprint);
    if (status == DQ_OK) e->slot = !e->slot;
    return status;
}

static dq_status restore(dq_evaluator *e, const char *dir, const json_t *saved)
{
    dq_tensor tensors[DQ_PERPLEXITY_TENSORS], *list[DQ_PERPLEXITY_TENSORS];
    int64_t position;
    double seconds = 0;
    const json_t *record = json_object_get(saved, "activations");
    const char *file = json_string_value(json_object_get(record, "file"));
    DQ_TRY(dq_json_int(saved, "position", 1, INT64_MAX, true, dir, &position));
    DQ_TRY(dq_json_double(saved, "seconds", true, dir, &seconds));
    DQ_TRY(dq_evaluator_begin(e));
    DQ_TRY(dq_perplexity_job_seek(e->job, position, seconds));
    int count = dq_perplexity_job_tensors(e->job, tensors);
    for (int i = 0; i < count; i++) list[i] = &tensors[i];
    DQ_TRY(dq_checkpoint_load_tensors(&e->ctx->env, dir, record, list, count));
    e->slot = file && strchr(file, '0') ? 1 : 0; /* not over the one that counts */
    return DQ_OK;
}

dq_status dq_evaluator_restore(dq_evaluator *e, const char *dir)
{
    DQ_ENTER_CONTEXT(e->ctx, e && dir);
    json_t *fingerprint = NULL, *saved = NULL;
    DQ_TRY(dq_evaluator_check_ready(e, __func__));
    if (e->job) return dq_fail(DQ_E_STATE, "an evaluation is under way");
    DQ_TRY(fingerprint_of(e, &fingerprint));
    dq_status status = dq_checkpoint_read(e->ctx, dir, JOB, fingerprint, &saved);
    if (status == DQ_OK) status = restore(e, dir, saved);
    if (status != DQ_OK) dq_evaluator_forget_run(e);
    json_decref(fingerprint);
    json_decref(saved);
    return status;
}
