/* dartquant/evaluator.h. SPDX-License-Identifier: Apache-2.0 */
#include "dartquant/evaluator.h"

#include "api/check.h"
#include "api/config.h"
#include "api/handles.h"
#include "eval/perplexity.h"
#include "io/json.h"

struct dq_evaluator {
    dq_context *ctx;
    dq_model *model;
    int64_t seqlen, limit;
    int math;
    int32_t *ids; /* NULL = nothing bound */
    int64_t count;
    char *name, *protocol;
    dq_perplexity result;
    json_t *facts; /* NULL = not run */
    char *report;
};

static void forget_result(dq_evaluator *e)
{
    dq_free(e->result.window_nll);
    e->result = (dq_perplexity){0};
    json_decref(e->facts);
    e->facts = NULL;
    dq_free(e->report);
    e->report = NULL;
}

static void forget_data(dq_evaluator *e)
{
    dq_free(e->ids);
    dq_free(e->name);
    dq_free(e->protocol);
    e->ids = NULL;
    e->name = e->protocol = NULL;
}

dq_status dq_evaluator_new(dq_model *model, const dq_config *config, dq_evaluator **out)
{
    DQ_ENTER(model && out);
    dq_context *ctx = dq_context_of_model(model);
    dq_config *defaults = NULL;
    if (!config) DQ_TRY(dq_config_new(&defaults));
    const dq_config *c = config ? config : defaults;
    dq_evaluator *e = dq_calloc(&ctx->env, 1, sizeof *e);
    if (e) {
        e->ctx = dq_context_retain(ctx);
        e->model = dq_model_retain(model);
        e->seqlen = dq_config_int(c, "seqlen");
        e->limit = dq_config_int(c, "limit");
        e->math = dq_config_math(c);
        *out = e;
    }
    dq_config_free(defaults);
    return e ? DQ_OK : DQ_E_NOMEM;
}

void dq_evaluator_free(dq_evaluator *e)
{
    if (!e) return;
    dq_context *ctx = e->ctx;
    forget_result(e);
    forget_data(e);
    dq_model_release(e->model);
    dq_free(e);
    dq_context_release(ctx);
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
    DQ_ENTER(e && dataset);
    dq_env *env = &e->ctx->env;
    const dq_token_stream *stream = &dataset->stream;
    if (dataset->ctx != e->ctx) return dq_fail(DQ_E_INVALID, "the dataset belongs to another context than the model");
    int64_t used = ids_used(e, (int64_t)stream->ids.count);
    if (used == 0)
        return dq_fail(DQ_E_TEXT, "dataset %s has %zu tokens, less than one window of %lld", stream->name,
                       stream->ids.count, (long long)e->seqlen);
    int64_t vocab = dq_model_arch(e->model)->vocab;
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
    json_t *object = json_pack("{s:s, s:f, s:f, s:I, s:I, s:I, s:s, s:f, s:f}", "dataset", e->name, "ppl", r->ppl,
                               "nll", r->nll, "windows", (json_int_t)r->windows, "tokens", (json_int_t)r->tokens,
                               "seqlen", (json_int_t)r->seqlen, "protocol", e->protocol, "seconds", r->seconds,
                               "tokens_per_second", r->seconds > 0 ? (double)r->tokens / r->seconds : 0.0);
    if (!object) return dq_fail(DQ_E_NONFINITE, "perplexity of %s is not finite", e->name);
    dq_status status = dq_json_dump(&e->ctx->env, object, false, report);
    if (status == DQ_OK)
        *facts = object;
    else
        json_decref(object);
    return status;
}

dq_status dq_evaluator_run(dq_evaluator *e, const dq_cancel *cancel, dq_progress_fn progress, void *user)
{
    DQ_ENTER(e);
    if (!e->ids) return dq_fail(DQ_E_STATE, "dq_evaluator_run before dq_evaluator_bind");
    dq_progress p = dq_progress_make(cancel, progress, user);
    dq_perplexity result = {0};
    json_t *facts = NULL;
    char *report = NULL;
    DQ_TRY(dq_perplexity_run(e->model, e->ids, e->count, e->seqlen, e->limit, e->math, &p, &result));
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

static dq_status have_result(const dq_evaluator *e)
{
    if (!e->facts) return dq_fail(DQ_E_STATE, "the evaluator has no result: run it first");
    return DQ_OK;
}

dq_status dq_evaluator_get_float(dq_evaluator *e, const char *key, double *out)
{
    DQ_ENTER(e && key && out);
    DQ_TRY(have_result(e));
    return dq_facts_float(e->facts, key, "the evaluation", out);
}

dq_status dq_evaluator_get_int(dq_evaluator *e, const char *key, int64_t *out)
{
    DQ_ENTER(e && key && out);
    DQ_TRY(have_result(e));
    return dq_facts_int(e->facts, key, "the evaluation", out);
}

dq_status dq_evaluator_copy_windows(const dq_evaluator *e, double *out, size_t capacity)
{
    DQ_ENTER(e && out);
    DQ_TRY(have_result(e));
    if (capacity < (size_t)e->result.windows)
        return dq_fail(DQ_E_INVALID, "room for %zu windows of %lld", capacity, (long long)e->result.windows);
    memcpy(out, e->result.window_nll, (size_t)e->result.windows * sizeof *out);
    return DQ_OK;
}

dq_status dq_evaluator_report(dq_evaluator *e, const char **out)
{
    DQ_ENTER(e && out);
    DQ_TRY(have_result(e));
    *out = e->report;
    return DQ_OK;
}
