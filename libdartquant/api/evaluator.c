/* dartquant/evaluator.h. SPDX-License-Identifier: Apache-2.0 */
#include "dartquant/evaluator.h"

#include <math.h>

#include "api/check.h"
#include "api/checkpoint.h"
#include "api/config.h"
#include "api/handles.h"
#include "api/score.h"
#include "dartquant/checkpoint.h"
#include "dartquant/model.h"
#include "eval/perplexity.h"
#include "io/file.h"
#include "io/json.h"

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
    double *losses;         /* the host's windows so far, NaN = missing */
    int64_t losses_count;
    int slot; /* of the next checkpoint's activations */
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

static void forget_run(dq_evaluator *e)
{
    dq_perplexity_job_free(e->job);
    e->job = NULL;
}

static void forget_data(dq_evaluator *e)
{
    forget_run(e);
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
    e->math = dq_config_math(e->config);
    *out = e;
    return DQ_OK;
}

dq_status dq_evaluator_new(dq_model *model, const dq_config *config, dq_evaluator **out)
{
    DQ_ENTER(model && out);
    return new_evaluator(dq_context_of_model(model), model, dq_model_vocab_size(model), config, out);
}

dq_status dq_evaluator_new_host(dq_context *ctx, int64_t vocab_size, const dq_config *config, dq_evaluator **out)
{
    DQ_ENTER(ctx && out);
    if (vocab_size < 1 || vocab_size > INT32_MAX)
        return dq_fail(DQ_E_INVALID, "a vocabulary of %lld", (long long)vocab_size);
    return new_evaluator(ctx, NULL, vocab_size, config, out);
}

void dq_evaluator_free(dq_evaluator *e)
{
    if (!e) return;
    dq_context *ctx = e->ctx;
    forget_result(e);
    forget_data(e);
    dq_model_release(e->model);
    dq_config_free(e->config);
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

/* ---- running ---- */

static dq_status check_ready(const dq_evaluator *e, const char *what)
{
    if (!e->ids) return dq_fail(DQ_E_STATE, "%s before dq_evaluator_bind", what);
    if (!e->model) return dq_fail(DQ_E_STATE, "this evaluator waits for logits of the host (dq_evaluator_add_logits)");
    return DQ_OK;
}

static dq_status begin(dq_evaluator *e)
{
    return dq_perplexity_job_new(e->model, e->ids, e->count, e->seqlen, e->limit, e->math, &e->job);
}

/* Takes `result` over when it can be described. */
static dq_status publish(dq_evaluator *e, dq_perplexity result)
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
    return publish(e, result);
}

static dq_status step(dq_evaluator *e, dq_progress *progress, bool *finished)
{
    dq_status status = e->job ? DQ_OK : begin(e);
    if (status == DQ_OK) status = dq_perplexity_job_step(e->job, progress, finished);
    if (status == DQ_OK && *finished) status = finish(e);
    if (status != DQ_OK || *finished) forget_run(e);
    return status;
}

dq_status dq_evaluator_step(dq_evaluator *e, const dq_cancel *cancel, dq_progress_fn progress, void *user,
                            int32_t *done)
{
    DQ_ENTER(e && done);
    bool finished = false;
    DQ_TRY(check_ready(e, __func__));
    dq_progress p = dq_progress_make(cancel, progress, user);
    DQ_TRY(step(e, &p, &finished));
    *done = finished;
    return DQ_OK;
}

dq_status dq_evaluator_run(dq_evaluator *e, const dq_cancel *cancel, dq_progress_fn progress, void *user)
{
    DQ_ENTER(e);
    DQ_TRY(check_ready(e, __func__));
    dq_progress p = dq_progress_make(cancel, progress, user);
    for (bool finished = false; !finished;) DQ_TRY(step(e, &p, &finished));
    return DQ_OK;
}

/* ---- logits of the host ---- */

dq_status dq_evaluator_copy_ids(const dq_evaluator *e, int64_t window, int32_t *out, size_t capacity)
{
    DQ_ENTER(e && out);
    if (!e->ids) return dq_fail(DQ_E_STATE, "dq_evaluator_copy_ids before dq_evaluator_bind");
    int64_t windows = e->count / e->seqlen;
    if (window < 0 || window >= windows)
        return dq_fail(DQ_E_NOTFOUND, "window %lld of %lld", (long long)window, (long long)windows);
    if (capacity < (size_t)e->seqlen)
        return dq_fail(DQ_E_INVALID, "room for %zu ids, a window has %lld", capacity, (long long)e->seqlen);
    memcpy(out, e->ids + window * e->seqlen, (size_t)e->seqlen * sizeof *out);
    return DQ_OK;
}

static dq_status window_loss(dq_evaluator *e, int64_t window, const float *logits, double *out)
{
    int64_t n = e->seqlen - 1; /* the last position predicts nothing */
    double *nll = dq_alloc(&e->ctx->env, (size_t)n * sizeof *nll), sum = 0;
    if (!nll) return DQ_E_NOMEM;
    const int32_t *targets = e->ids + window * e->seqlen + 1;
    dq_status status = dq_score_rows(&e->ctx->env, logits, n, e->vocab, e->vocab, targets, nll, NULL);
    for (int64_t i = 0; status == DQ_OK && i < n; i++) sum += nll[i];
    dq_free(nll);
    if (status == DQ_OK) *out = sum / (double)n;
    return status;
}

static dq_status finish_host(dq_evaluator *e, int64_t windows)
{
    dq_perplexity r = {.windows = windows, .seqlen = e->seqlen, .tokens = windows * e->seqlen};
    r.window_nll = dq_alloc(&e->ctx->env, (size_t)windows * sizeof *r.window_nll);
    if (!r.window_nll) return DQ_E_NOMEM;
    memcpy(r.window_nll, e->losses, (size_t)windows * sizeof *r.window_nll);
    for (int64_t w = 0; w < windows; w++) r.nll += r.window_nll[w];
    r.nll /= (double)windows;
    r.ppl = exp(r.nll);
    return publish(e, r);
}

dq_status dq_evaluator_add_logits(dq_evaluator *e, int64_t window, const float *logits, size_t capacity, int32_t *done)
{
    DQ_ENTER(e && logits && done);
    int64_t windows = e->count / e->seqlen;
    size_t needed;
    double loss = 0;
    if (e->model) return dq_fail(DQ_E_STATE, "this evaluator runs its own model: dq_evaluator_new_host takes logits");
    if (!e->ids) return dq_fail(DQ_E_STATE, "dq_evaluator_add_logits before dq_evaluator_bind");
    if (window < 0 || window >= windows)
        return dq_fail(DQ_E_NOTFOUND, "window %lld of %lld", (long long)window, (long long)windows);
    if (!dq_mul_ok((size_t)e->seqlen, (size_t)e->vocab, &needed) || capacity < needed)
        return dq_fail(DQ_E_INVALID, "%zu logits, a window has %lld x %lld", capacity, (long long)e->seqlen,
                       (long long)e->vocab);
    if (!e->losses) {
        e->losses = dq_alloc(&e->ctx->env, (size_t)windows * sizeof *e->losses);
        if (!e->losses) return DQ_E_NOMEM;
        for (int64_t w = 0; w < windows; w++) e->losses[w] = NAN;
    }
    DQ_TRY(window_loss(e, window, logits, &loss));
    if (isnan(e->losses[window])) e->losses_count++;
    e->losses[window] = loss;
    if (e->losses_count == windows) DQ_TRY(finish_host(e, windows));
    *done = e->losses_count == windows;
    return DQ_OK;
}

/* ---- checkpoints ---- */

static const char JOB[] = "perplexity";

static dq_status fingerprint_of(dq_evaluator *e, json_t **out)
{
    return dq_job_fingerprint(e->model, e->config, e->ids, e->count, out);
}

dq_status dq_evaluator_checkpoint(dq_evaluator *e, const char *dir)
{
    DQ_ENTER(e && dir);
    dq_tensor hidden, state;
    json_t *fingerprint = NULL, *activations = NULL;
    DQ_TRY(check_ready(e, __func__));
    if (!e->job) return dq_fail(DQ_E_STATE, "no evaluation is under way: checkpoints lie between its steps");
    dq_perplexity_job_tensors(e->job, &hidden, &state);
    const dq_tensor *const tensors[] = {&hidden, &state};
    DQ_TRY(dq_make_dirs(&e->ctx->env, dir));
    DQ_TRY(fingerprint_of(e, &fingerprint));
    dq_status status = dq_checkpoint_save_tensors(&e->ctx->env, dir, e->slot, tensors,
                                                  dq_tensor_is_empty(&state) ? 1 : 2, &activations);
    if (status == DQ_OK)
        status =
            dq_checkpoint_write(e->model, dir, JOB, fingerprint,
                                json_pack("{s:I, s:f, s:o}", "position", (json_int_t)dq_perplexity_job_position(e->job),
                                          "seconds", dq_perplexity_job_seconds(e->job), "activations", activations));
    json_decref(fingerprint);
    if (status == DQ_OK) e->slot = !e->slot;
    return status;
}

static dq_status restore(dq_evaluator *e, const char *dir, const json_t *saved)
{
    dq_tensor hidden, state;
    dq_tensor *const tensors[] = {&hidden, &state};
    int64_t position;
    double seconds = 0;
    const json_t *record = json_object_get(saved, "activations");
    const char *file = json_string_value(json_object_get(record, "file"));
    DQ_TRY(dq_json_int(saved, "position", 1, INT64_MAX, true, dir, &position));
    DQ_TRY(dq_json_double(saved, "seconds", true, dir, &seconds));
    DQ_TRY(begin(e));
    DQ_TRY(dq_perplexity_job_seek(e->job, position, seconds));
    dq_perplexity_job_tensors(e->job, &hidden, &state);
    DQ_TRY(dq_checkpoint_load_tensors(&e->ctx->env, dir, record, tensors, dq_tensor_is_empty(&state) ? 1 : 2));
    e->slot = file && strchr(file, '0') ? 1 : 0; /* not over the one that counts */
    return DQ_OK;
}

dq_status dq_evaluator_restore(dq_evaluator *e, const char *dir)
{
    DQ_ENTER(e && dir);
    json_t *fingerprint = NULL, *saved = NULL;
    DQ_TRY(check_ready(e, __func__));
    if (e->job) return dq_fail(DQ_E_STATE, "an evaluation is under way");
    DQ_TRY(fingerprint_of(e, &fingerprint));
    dq_status status = dq_checkpoint_read(e->model, dir, JOB, fingerprint, &saved);
    if (status == DQ_OK) status = restore(e, dir, saved);
    if (status != DQ_OK) forget_run(e);
    json_decref(fingerprint);
    json_decref(saved);
    return status;
}

/* ---- results ---- */

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
