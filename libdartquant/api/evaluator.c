/* dartquant/evaluator.h. SPDX-License-Identifier: Apache-2.0 */
#include "api/evaluator_job.h"

#include "api/check.h"
#include "api/config.h"
#include "dartquant/model.h"
#include "io/json.h"

static void forget_result(dq_evaluator *e)
{
    dq_free(e->result.window_nll);
    e->result = (dq_perplexity){0};
    json_decref(e->facts);
    e->facts = NULL;
    dq_free(e->report);
    e->report = NULL;
    dq_reference_release(e->kept);
    e->kept = NULL;
}

void dq_evaluator_forget_run(dq_evaluator *e)
{
    dq_perplexity_job_free(e->job);
    e->job = NULL;
}

static void forget_data(dq_evaluator *e)
{
    dq_evaluator_forget_run(e);
    dq_free(e->losses);
    e->losses = NULL;
    e->losses_count = 0;
    dq_free(e->ids);
    dq_free(e->name);
    dq_free(e->protocol);
    e->ids = NULL;
    e->name = e->protocol = NULL;
}

/* `model` NULL: for logits of the host over `vocab` words. */
static dq_status new_evaluator(dq_context *ctx, dq_model *model, int64_t vocab, const dq_config *config,
                               dq_evaluator **out)
{
    dq_evaluator *e = dq_calloc(&ctx->env, 1, sizeof *e);
    if (!e) return DQ_E_NOMEM;
    dq_status status = config ? dq_config_copy(config, &e->config) : dq_config_new(&e->config);
    if (status != DQ_OK) {
        dq_free(e);
        return status;
    }
    e->ctx = dq_context_retain(ctx);
    e->model = model ? dq_model_retain(model) : NULL;
    e->vocab = vocab;
    e->seqlen = dq_config_int(e->config, "seqlen");
    e->limit = dq_config_int(e->config, "limit");
    e->math = dq_config_products(e->config);
    *out = e;
    return DQ_OK;
}

dq_status dq_evaluator_new(dq_model *model, const dq_config *config, dq_evaluator **out)
{
    DQ_ENTER_CONTEXT(dq_context_of_model(model), model && out);
    return new_evaluator(dq_context_of_model(model), model, dq_model_vocab_size(model), config, out);
}

dq_status dq_evaluator_new_host(dq_context *ctx, int64_t vocab_size, const dq_config *config, dq_evaluator **out)
{
    DQ_ENTER_CONTEXT(ctx, ctx && out);
    if (vocab_size < 1 || vocab_size > INT32_MAX)
        return dq_fail(DQ_E_INVALID, "a vocabulary of %lld", (long long)vocab_size);
    return new_evaluator(ctx, NULL, vocab_size, config, out);
}

static void destroy(void *object)
{
    dq_evaluator *e = object;
    dq_context *ctx = e->ctx;
    forget_result(e);
    forget_data(e);
    dq_reference_release(e->reference);
    dq_model_release(e->model);
    dq_config_free(e->config);
    dq_free(e);
    dq_context_release(ctx);
}

void dq_evaluator_free(dq_evaluator *e)
{
    if (e) dq_context_discard(e->ctx, destroy, e);
}

/* Ids beyond the last whole window, or beyond the limit, are never read. */
static int64_t ids_used(const dq_evaluator *e, int64_t count)
{
    int64_t windows = count / e->seqlen;
    if (e->limit > 0 && windows > e->limit) windows = e->limit;
    return windows * e->seqlen;
}

dq_status dq_evaluator_bind(dq_evaluator *e, const dq_dataset *dataset)
{
    DQ_ENTER_CONTEXT(e->ctx, e && dataset);
    dq_env *env = &e->ctx->env;
    const dq_token_stream *stream = &dataset->stream;
    if (dataset->ctx != e->ctx) return dq_fail(DQ_E_INVALID, "the dataset belongs to another context than the model");
    int64_t used = ids_used(e, (int64_t)stream->ids.count);
    if (used == 0)
        return dq_fail(DQ_E_TEXT, "dataset %s has %zu tokens, less than one window of %lld", stream->name,
                       stream->ids.count, (long long)e->seqlen);
    int64_t vocab = e->vocab;
    for (int64_t i = 0; i < used; i++)
        if (stream->ids.data[i] < 0 || stream->ids.data[i] >= vocab)
            return dq_fail(DQ_E_MISMATCH, "token %d at %lld of dataset %s is outside the model's vocabulary of %lld",
                           stream->ids.data[i], (long long)i, stream->name, (long long)vocab);
    int32_t *ids = dq_alloc(env, (size_t)used * sizeof *ids);
    char *name = dq_strdup(env, stream->name);
    char *protocol = dq_asprintf(env,
                                 "%s; windows of %lld tokens without overlap, tail dropped, loss over the %lld targets "
                                 "of a window, mean of window means",
                                 stream->protocol, (long long)e->seqlen, (long long)e->seqlen - 1);
    if (!ids || !name || !protocol) {
        dq_free(ids);
        dq_free(name);
        dq_free(protocol);
        return DQ_E_NOMEM;
    }
    memcpy(ids, stream->ids.data, (size_t)used * sizeof *ids);
    forget_result(e);
    forget_data(e);
    e->ids = ids;
    e->count = used;
    e->name = name;
    e->protocol = protocol;
    return DQ_OK;
}

static dq_status describe(const dq_evaluator *e, const dq_perplexity *r, json_t **facts, char **report)
{
    json_t *object =
        json_pack("{s:s, s:f, s:f, s:f, s:I, s:I, s:I, s:s, s:f, s:f}", "dataset", e->name, "ppl", r->ppl, "nll",
                  r->nll, "top1_accuracy", r->accuracy, "windows", (json_int_t)r->windows, "tokens",
                  (json_int_t)r->tokens, "seqlen", (json_int_t)r->seqlen, "protocol", e->protocol, "seconds",
                  r->seconds, "tokens_per_second", r->seconds > 0 ? (double)r->tokens / r->seconds : 0.0);
    if (!object) return dq_fail(DQ_E_NONFINITE, "perplexity of %s is not finite", e->name);
    if (r->integers > 0) json_object_set_new(object, "integer_linears", json_integer(r->integers));
    if (r->compared) {
        json_object_set_new(object, "kl", json_real(r->kl));
        json_object_set_new(object, "kl_max", json_real(r->kl_max));
        json_object_set_new(object, "top1_agreement", json_real(r->agreement));
    }
    dq_status status = dq_json_dump(&e->ctx->env, object, false, report);
    if (status == DQ_OK)
        *facts = object;
    else
        json_decref(object);
    return status;
}

/* ---- running ---- */

dq_status dq_evaluator_check_ready(const dq_evaluator *e, const char *what)
{
    if (!e->ids) return dq_fail(DQ_E_STATE, "%s before dq_evaluator_bind", what);
    if (!e->model) return dq_fail(DQ_E_STATE, "this evaluator waits for logits of the host (dq_evaluator_add_logits)");
    return DQ_OK;
}

dq_status dq_evaluator_begin(dq_evaluator *e)
{
    DQ_TRY(dq_perplexity_job_new(e->model, e->ids, e->count, e->seqlen, e->limit, e->math, &e->job));
    dq_status status = dq_evaluator_attach_reference(e);
    if (status != DQ_OK) dq_evaluator_forget_run(e);
    return status;
}

dq_status dq_evaluator_publish(dq_evaluator *e, dq_perplexity result)
{
    json_t *facts = NULL;
    char *report = NULL;
    dq_status status = describe(e, &result, &facts, &report);
    if (status != DQ_OK) {
        dq_free(result.window_nll);
        return status;
    }
    forget_result(e);
    e->result = result;
    e->facts = facts;
    e->report = report;
    return DQ_OK;
}

static dq_status finish(dq_evaluator *e)
{
    dq_perplexity result = {0};
    DQ_TRY(dq_perplexity_job_result(e->job, &result));
    DQ_TRY(dq_evaluator_publish(e, result));
    return e->keeps ? dq_evaluator_keep_states(e) : DQ_OK;
}

static dq_status step(dq_evaluator *e, dq_progress *progress, bool *finished)
{
    dq_status status = e->job ? DQ_OK : dq_evaluator_begin(e);
    if (status == DQ_OK) status = dq_perplexity_job_step(e->job, progress, finished);
    if (status == DQ_OK && *finished) status = finish(e);
    if (status != DQ_OK || *finished) dq_evaluator_forget_run(e);
    return status;
}

dq_status dq_evaluator_step(dq_evaluator *e, const dq_cancel *cancel, dq_progress_fn progress, void *user,
                            int32_t *done)
{
    DQ_ENTER_CONTEXT(e->ctx, e && done);
    bool finished = false;
    DQ_TRY(dq_evaluator_check_ready(e, __func__));
    dq_progress p = dq_progress_make(cancel, progress, user);
    DQ_TRY(step(e, &p, &finished));
    *done = finished;
    return DQ_OK;
}

dq_status dq_evaluator_run(dq_evaluator *e, const dq_cancel *cancel, dq_progress_fn progress, void *user)
{
    DQ_ENTER_CONTEXT(e->ctx, e);
    DQ_TRY(dq_evaluator_check_ready(e, __func__));
    dq_progress p = dq_progress_make(cancel, progress, user);
    for (bool finished = false; !finished;) DQ_TRY(step(e, &p, &finished));
    return DQ_OK;
}

/* ---- results ---- */

static dq_status have_result(const dq_evaluator *e)
{
    if (!e->facts) return dq_fail(DQ_E_STATE, "the evaluator has no result: run it first");
    return DQ_OK;
}

dq_status dq_evaluator_get_float(dq_evaluator *e, const char *key, double *out)
{
    DQ_ENTER_CONTEXT(e->ctx, e && key && out);
    DQ_TRY(have_result(e));
    return dq_facts_float(e->facts, key, "the evaluation", out);
}

dq_status dq_evaluator_get_int(dq_evaluator *e, const char *key, int64_t *out)
{
    DQ_ENTER_CONTEXT(e->ctx, e && key && out);
    DQ_TRY(have_result(e));
    return dq_facts_int(e->facts, key, "the evaluation", out);
}

dq_status dq_evaluator_copy_windows(const dq_evaluator *e, double *out, size_t capacity)
{
    DQ_ENTER_CONTEXT(e->ctx, e && out);
    DQ_TRY(have_result(e));
    if (capacity < (size_t)e->result.windows)
        return dq_fail(DQ_E_INVALID, "room for %zu windows of %lld", capacity, (long long)e->result.windows);
    memcpy(out, e->result.window_nll, (size_t)e->result.windows * sizeof *out);
    return DQ_OK;
}

dq_status dq_evaluator_report(dq_evaluator *e, const char **out)
{
    DQ_ENTER_CONTEXT(e->ctx, e && out);
    DQ_TRY(have_result(e));
    *out = e->report;
    return DQ_OK;
}
