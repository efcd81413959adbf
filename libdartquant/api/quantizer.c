/* dartquant/quantizer.h. SPDX-License-Identifier: Apache-2.0 */
#include "dartquant/quantizer.h"

#include <math.h>
#include <stdio.h>

#include "api/check.h"
#include "api/config.h"
#include "api/handles.h"
#include "api/quantizer_job.h"
#include "api/scheme.h"
#include "dartquant/version.h"
#include "io/formats.h"
#include "io/json.h"

/* Codes that may stay in memory when they cannot go to a file; memory_budget overrides it. */
#define CODES_IN_MEMORY ((uint64_t)1 << 30)

static bool quantizes_weights(const dq_quantizer *q) { return q->scheme.w.bits < 16 && !q->keeps_codes; }
static bool needs_data(const dq_quantizer *q)
{
    return q->auto_sites || dq_kv_needs_data(&q->scheme) ||
           (quantizes_weights(q) && (q->scheme.w.method == DQ_WEIGHT_GPTQ || q->scheme.w.awq));
}
bool dq_quantizer_has_weights(const dq_quantizer *q) { return quantizes_weights(q); }
bool dq_quantizer_is_bound(const dq_quantizer *q) { return !needs_data(q) || q->windows.data; }

/* ---- life ---- */

static void destroy(void *object)
{
    dq_quantizer *q = object;
    dq_context *ctx = q->ctx;
    dq_clip_job_free(q->search);
    dq_clips_free(q->clips);
    dq_kv_job_free(q->kv);
    dq_kv_tables_free(q->tables);
    dq_quantize_job_free(q->job);
    dq_keeper_free(q->keeper);
    if (q->spool) q->spool->ops->free(q->spool);
    dq_saver_free(q->saver);
    dq_source_free(q->store);
    dq_model_release(q->scaled);
    dq_model_release(q->model);
    dq_config_free(q->config);
    dq_free(q->windows.data);
    dq_free(q->dataset);
    dq_free(q->protocol);
    json_decref(q->facts);
    dq_free(q->report);
    dq_free(q);
    dq_context_release(ctx);
}

static dq_status check_request(dq_quantizer *q)
{
    const dq_scheme *present = dq_model_scheme(q->model);
    if (!present) return DQ_OK;
    if (present->w.bits < 16 && quantizes_weights(q))
        return dq_fail(DQ_E_STATE, "the model's weights are quantized already (%d bits)", present->w.bits);
    if (!quantizes_weights(q)) {
        q->scheme.w = present->w; /* new activation settings on the same codes */
        q->keeps_codes = true;
    }
    return DQ_OK;
}

/* R3 mixes the channels of keys that KVQuant gives ranges of their own. Where the model has it and nobody asked for both, it
 * stays off, which changes nothing but the rounding of scores. */
static dq_status check_r3(const dq_quantizer *q)
{
    const dq_rotation_set *r = dq_model_rotations(q->model);
    int32_t asked = 0;
    if (!dq_scheme_has_levels(&q->scheme) || q->scheme.k.bits == 16 || !r || r->r3.n == 0) return DQ_OK;
    DQ_TRY(dq_config_is_set(q->config, "use_r3", &asked));
    if (asked && dq_config_int(q->config, "use_r3"))
        return dq_fail(DQ_E_INVALID,
                       "use_r3 with kv_method kvquant: R3 mixes the channels of keys, each of which has a "
                       "range of its own there; give use_r3 false, or kv_method grid");
    dq_log(&q->ctx->env, DQ_LOG_INFO, "R3 stays off: KVQuant quantizes keys before RoPE, channel by channel");
    return DQ_OK;
}

static dq_status new_job(dq_model *model, const dq_config *config, dq_quantizer **out)
{
    dq_context *ctx = dq_context_of_model(model);
    dq_status status;
    dq_quantizer *q = dq_calloc(&ctx->env, 1, sizeof *q);
    if (!q) return DQ_E_NOMEM;
    q->ctx = dq_context_retain(ctx);
    q->model = dq_model_retain(model);
    q->bits_per_weight = -1;
    DQ_GO(dq_config_copy(config, &q->config));
    DQ_GO(dq_scheme_from_config(config, dq_model_arch(model), &q->scheme));
    dq_scheme_warn_idle(&ctx->env, config, &q->scheme);
    q->auto_sites = dq_scheme_auto_sites(config, &q->scheme);
    q->nsamples = dq_config_int(config, "nsamples");
    q->seqlen = dq_config_int(config, "seqlen");
    q->seed = (uint64_t)dq_config_int(config, "seed");
    q->save_dir = dq_config_text(q->config, "save_qmodel_path");
    DQ_GO(check_request(q));
    DQ_GO(check_r3(q));
    *out = q;
    return DQ_OK;
done:
    destroy(q);
    return status;
}

dq_status dq_quantizer_new(dq_model *model, const dq_config *config, dq_quantizer **out)
{
    DQ_ENTER_CONTEXT(dq_context_of_model(model), model && out);
    dq_config *own;
    DQ_TRY(dq_config_or_defaults(&config, &own));
    dq_status status = new_job(model, config, out);
    dq_config_free(own);
    return status;
}

void dq_quantizer_free(dq_quantizer *q)
{
    if (q) dq_context_discard(q->ctx, destroy, q);
}

/* ---- where the result goes ---- */

dq_status dq_quantizer_set_sink(dq_quantizer *q, const dq_tensor_sink *table)
{
    DQ_ENTER_CONTEXT(q->ctx, q && table);
    if (q->state != READY) return dq_fail(DQ_E_STATE, "the quantizer has started already");
    if (q->save_dir[0]) return dq_fail(DQ_E_STATE, "save_qmodel_path is set: the result goes to that folder");
    DQ_TRY(dq_host_sink_check(table, &q->sink));
    q->has_sink = true;
    return DQ_OK;
}

/* ---- calibration data ---- */

dq_status dq_quantizer_needs_data(const dq_quantizer *q, int32_t *out)
{
    DQ_ENTER_CONTEXT(q->ctx, q && out);
    *out = needs_data(q);
    return DQ_OK;
}

static dq_status check_ids(const dq_quantizer *q, const dq_ids *ids, const char *name)
{
    int64_t vocab = dq_model_arch(q->model)->vocab;
    for (size_t i = 0; i < ids->count; i++)
        if (ids->data[i] < 0 || ids->data[i] >= vocab)
            return dq_fail(DQ_E_MISMATCH, "token %d of dataset %s is outside the model's vocabulary of %lld",
                           ids->data[i], name, (long long)vocab);
    return DQ_OK;
}

/* FNV-1a, 64 bits. */
static uint64_t hash_ids(const dq_ids *ids)
{
    uint64_t h = 1469598103934665603u;
    for (size_t i = 0; i < ids->count; i++)
        for (int shift = 0; shift < 32; shift += 8)
            h = (h ^ (((uint32_t)ids->data[i] >> shift) & 0xffu)) * 1099511628211u;
    return h;
}

dq_status dq_quantizer_bind(dq_quantizer *q, const dq_dataset *dataset)
{
    DQ_ENTER_CONTEXT(q->ctx, q && dataset);
    dq_status status;
    dq_env *env = &q->ctx->env;
    dq_ids windows = {0};
    char *name = NULL, *protocol = NULL;
    if (dataset->ctx != q->ctx) return dq_fail(DQ_E_INVALID, "the dataset belongs to another context than the model");
    if (q->state != READY) return dq_fail(DQ_E_STATE, "the quantizer has started already");
    if (!needs_data(q)) return DQ_OK;
    DQ_GO(dq_stream_sample(env, &dataset->stream, q->seed, q->nsamples, q->seqlen, &windows));
    DQ_GO(check_ids(q, &windows, dataset->stream.name));
    name = dq_strdup(env, dataset->stream.name);
    protocol = dq_strdup(env, dataset->stream.protocol);
    DQ_GO(name && protocol ? DQ_OK : DQ_E_NOMEM);
    dq_free(q->windows.data);
    dq_free(q->dataset);
    dq_free(q->protocol);
    q->windows = windows;
    q->dataset = name;
    q->protocol = protocol;
    snprintf(q->fingerprint, sizeof q->fingerprint, "%016llx", (unsigned long long)hash_ids(&windows));
    return DQ_OK;
done:
    dq_free(windows.data);
    dq_free(name);
    dq_free(protocol);
    return status;
}

/* ---- running ---- */

static dq_status refresh(dq_quantizer *q);

/* Bytes of all codes with their scales and zero points, about. */
static uint64_t codes_bytes(const dq_quantizer *q)
{
    const dq_arch *a = dq_model_arch(q->model);
    double bytes = 0;
    for (int n = 0; n < dq_arch_linears(a); n++) {
        int64_t rows, cols;
        dq_arch_shape(a, dq_arch_linear(a, n), &rows, &cols);
        double groups = q->scheme.w.group > 0 ? ceil((double)cols / (double)q->scheme.w.group) : 1;
        bytes += (double)rows * ((double)cols * q->scheme.w.bits / 8 + 5 * groups + 1);
    }
    return (uint64_t)(bytes * (double)a->layers);
}

/* Where codes wait when nothing is saved: a temporary file, or memory when that is asked for or the file cannot be. */
static dq_status open_spool(dq_quantizer *q)
{
    dq_env *env = &q->ctx->env;
    const char *folder = dq_config_text(q->config, "temp_dir");
    if (!folder[0]) return dq_memory_sink(env, &q->spool);
    uint64_t bytes = codes_bytes(q), most = env->memory_budget ? env->memory_budget : CODES_IN_MEMORY;
    dq_status status = dq_spool_sink(env, folder, bytes, &q->spool);
    if (status != DQ_E_IO || bytes > most) return status;
    dq_log(env, DQ_LOG_WARNING, "%s: %s; the codes (%.1f MB) stay in memory", folder, dq_error_text(),
           (double)bytes / 1e6);
    dq_error_reset();
    return dq_memory_sink(env, &q->spool);
}

static dq_status check_bound(const dq_quantizer *q)
{
    if (dq_quantizer_is_bound(q)) return DQ_OK;
    return dq_fail(DQ_E_STATE, "%s calibration data: call dq_quantizer_bind first",
                   q->auto_sites                  ? "the search of clip ratios (auto) needs"
                   : dq_kv_needs_data(&q->scheme) ? "KVQuant needs"
                   : q->scheme.w.awq              ? "AWQ needs"
                                                  : "GPTQ needs");
}

dq_status dq_quantizer_start(dq_quantizer *q)
{
    dq_env *env = &q->ctx->env;
    DQ_TRY(check_bound(q));
    dq_sink *sink = NULL;
    if (q->has_sink) {
        dq_sink *target = NULL;
        DQ_TRY(dq_host_sink_open(env, &q->sink, &target));
        DQ_TRY(dq_saver_open_sink(env, target, &q->saver));
        sink = dq_saver_sink(q->saver);
    } else if (q->save_dir[0]) {
        DQ_TRY(dq_saver_check_dir(q->model, q->save_dir));
        DQ_TRY(dq_saver_open(env, q->save_dir, (uint64_t)dq_config_int(q->config, "part_size"), &q->saver));
        sink = dq_saver_sink(q->saver);
    } else if (quantizes_weights(q)) {
        DQ_TRY(open_spool(q));
        sink = q->spool;
    }
    if (!quantizes_weights(q)) return DQ_OK;
    if (q->keeper) sink = dq_keeper_before(q->keeper, sink);
    return dq_quantize_job_new(q->model, &q->scheme, q->windows.data, q->nsamples, q->seqlen,
                               (int)dq_config_int(q->config, "math"), sink, &q->job);
}

/* Options that were set, as text: how the model can be made again. */
static json_t *set_options(const dq_config *config)
{
    json_t *object = json_object();
    for (int32_t i = 0; i < dq_option_count(); i++) {
        dq_option_info info = {.struct_size = sizeof info};
        int32_t set = 0;
        const char *text = "";
        if (dq_option_get(i, &info) != DQ_OK || dq_config_is_set(config, info.name, &set) != DQ_OK || !set) continue;
        if (strcmp(info.name, "save_qmodel_path") == 0 || strcmp(info.name, "temp_dir") == 0) continue;
        if (dq_config_get(config, info.name, &text) == DQ_OK) json_object_set_new(object, info.name, json_string(text));
    }
    return object;
}

static json_t *layers_json(const dq_quantizer *q, const dq_quantize_report *r)
{
    json_t *list = json_array();
    for (int64_t i = 0; i < r->count; i++) {
        const dq_linear_report *l = &r->linears[i];
        json_array_append_new(list, json_pack("{s:I, s:s, s:i, s:f, s:f}", "layer", (json_int_t)l->layer, "name",
                                              dq_arch_role_name(dq_model_arch(q->model), l->role), "bits", l->bits,
                                              "error", l->error, "damping", l->damping));
    }
    return list;
}

static const dq_quantize_report *job_report(const dq_quantizer *q)
{
    static const dq_quantize_report empty;
    return q->job ? dq_quantize_job_report(q->job) : &empty;
}

static json_t *calibration_json(const dq_quantizer *q)
{
    if (!q->windows.data) return json_null();
    return json_pack("{s:s, s:s, s:I, s:I, s:I, s:s}", "dataset", q->dataset, "protocol", q->protocol, "nsamples",
                     (json_int_t)q->nsamples, "seqlen", (json_int_t)q->seqlen, "seed", (json_int_t)q->seed,
                     "fingerprint", q->fingerprint);
}

static dq_status provenance_text(const dq_quantizer *q, char **out)
{
    json_t *object = json_pack("{s:s, s:I, s:o, s:o, s:o}", "library", dq_version_string(), "seed", (json_int_t)q->seed,
                               "calibration", calibration_json(q), "options", set_options(q->config), "layers",
                               layers_json(q, job_report(q)));
    dq_status status = dq_json_dump(&q->ctx->env, object, false, out);
    json_decref(object);
    return status;
}

static bool changes_activations(const dq_scheme *s) { return s->a.bits < 16 || s->k.bits < 16 || s->v.bits < 16; }

/* The result when its codes are not in a saved folder; `store` is taken over. */
static dq_status derive(const dq_quantizer *q, dq_source *store, dq_model **out)
{
    if (store || changes_activations(&q->scheme) || dq_model_scheme(q->model))
        return dq_model_derive_quantized(q->scaled ? q->scaled : q->model, store, &q->scheme, out);
    *out = dq_model_retain(q->model);
    return DQ_OK;
}

static dq_status complete_folder(dq_quantizer *q)
{
    dq_status status;
    char *provenance = NULL;
    dq_model *model = NULL;
    DQ_GO(provenance_text(q, &provenance));
    if (!q->job) DQ_GO(derive(q, NULL, &model));
    dq_model *base = q->scaled ? q->scaled : q->model;
    DQ_GO(dq_saver_finish(q->saver, model ? model : base, q->job ? &q->scheme : NULL, provenance, &q->progress));
    dq_saver_free(q->saver);
    q->saver = NULL;
done:
    dq_model_release(model);
    dq_free(provenance);
    return status;
}

/* After the last layer: codes become readable, or the saved folder complete. */
static dq_status complete(dq_quantizer *q)
{
    dq_scales *scales = q->job ? dq_quantize_job_scales(q->job) : NULL;
    if (scales) DQ_TRY(dq_model_derive_scaled(q->model, scales, &q->scaled));
    if (q->saver) return complete_folder(q);
    if (!q->spool) return DQ_OK;
    DQ_TRY(q->spool->ops->finish(q->spool));
    DQ_TRY(dq_memory_source(q->spool, &q->store));
    q->spool->ops->free(q->spool);
    q->spool = NULL;
    return DQ_OK;
}

bool dq_quantizer_searches(const dq_quantizer *q) { return q->auto_sites && !q->clips; }

dq_status dq_quantizer_begin_search(dq_quantizer *q)
{
    DQ_TRY(check_bound(q));
    return dq_clip_job_new(q->model, &q->scheme, q->auto_sites, q->windows.data, q->nsamples, q->seqlen,
                           (int)dq_config_int(q->config, "math"), &q->search);
}

void dq_quantizer_set_clips(dq_quantizer *q, dq_clips *clips)
{
    q->clips = clips;
    q->scheme.clips = clips;
}

bool dq_quantizer_lacks_tables(const dq_quantizer *q) { return dq_scheme_has_levels(&q->scheme) && !q->tables; }

void dq_quantizer_set_tables(dq_quantizer *q, dq_kv_tables *tables)
{
    q->tables = tables;
    q->scheme.tables = tables;
}

dq_status dq_quantizer_begin_tables(dq_quantizer *q)
{
    DQ_TRY(check_bound(q));
    return dq_kv_job_new(q->model, &q->scheme, q->windows.data, q->nsamples, q->seqlen,
                         (int)dq_config_int(q->config, "math"), &q->kv);
}

/* What comes before the job proper, one after the other. */
static dq_status next_stage(dq_quantizer *q)
{
    if (dq_quantizer_searches(q)) return dq_quantizer_begin_search(q);
    if (dq_quantizer_lacks_tables(q) && dq_kv_needs_data(&q->scheme)) return dq_quantizer_begin_tables(q);
    if (dq_quantizer_lacks_tables(q)) {
        dq_kv_tables *known = NULL;
        DQ_TRY(dq_kv_tables_begin(q->model, &q->scheme, &known));
        dq_quantizer_set_tables(q, known);
    }
    return dq_quantizer_start(q);
}

/* A layer's keys and values. */
static dq_status tables_step(dq_quantizer *q)
{
    bool last = false;
    DQ_TRY(dq_kv_job_step(q->kv, &q->progress, &last));
    if (!last) return DQ_OK;
    q->search_seconds += dq_kv_job_seconds(q->kv);
    dq_quantizer_set_tables(q, dq_kv_job_take(q->kv));
    dq_kv_job_free(q->kv);
    q->kv = NULL;
    return next_stage(q);
}

/* A layer's clip ratios; after the last layer the next stage begins. */
static dq_status search_step(dq_quantizer *q)
{
    bool last = false;
    DQ_TRY(dq_clip_job_step(q->search, &q->progress, &last));
    if (!last) return DQ_OK;
    q->search_seconds = dq_clip_job_seconds(q->search);
    dq_quantizer_set_clips(q, dq_clip_job_take(q->search));
    dq_clip_job_free(q->search);
    q->search = NULL;
    return next_stage(q);
}

static dq_status step(dq_quantizer *q, bool *finished)
{
    if (q->state == READY) {
        DQ_TRY(next_stage(q));
        q->state = RUNNING;
    }
    if (q->search) {
        *finished = false;
        return search_step(q);
    }
    if (q->kv) {
        *finished = false;
        return tables_step(q);
    }
    bool last = true;
    if (q->job) DQ_TRY(dq_quantize_job_step(q->job, &q->progress, &last));
    if (last) {
        DQ_TRY(refresh(q));
        DQ_TRY(complete(q));
        dq_quantize_job_free(q->job); /* its activations are not needed while the result is used */
        q->job = NULL;
        dq_keeper_free(q->keeper); /* the last checkpoint stands until the host removes it */
        q->keeper = NULL;
    }
    *finished = last;
    return DQ_OK;
}

/* A failed job leaves no unfinished file, even before it is freed. The job itself stays for the report. */
static void drop_output(dq_quantizer *q)
{
    dq_saver_free(q->saver);
    q->saver = NULL;
    if (q->spool) q->spool->ops->free(q->spool);
    q->spool = NULL;
}

void dq_quantizer_stop(dq_quantizer *q)
{
    dq_quantize_job_free(q->job);
    q->job = NULL;
    drop_output(q);
}

static dq_status checked_step(dq_quantizer *q, const dq_cancel *cancel, dq_progress_fn progress, void *user,
                              bool *finished)
{
    if (q->state == FAILED) return dq_fail(DQ_E_STATE, "the quantizer failed or was cancelled: free it and start anew");
    if (q->state == DONE || q->state == TAKEN) return dq_fail(DQ_E_STATE, "the quantizer is done");
    q->progress.cancel = cancel;
    q->progress.fn = progress;
    q->progress.user = user;
    bool fresh = q->state == READY;
    dq_status status = step(q, finished);
    if (status != DQ_OK) {
        /* Nothing was begun when only the data was missing: binding it is still possible. */
        q->state = fresh && status == DQ_E_STATE && !q->job && !q->kv ? READY : FAILED;
        if (q->state == FAILED) drop_output(q);
        return status;
    }
    if (*finished) q->state = DONE;
    return DQ_OK;
}

dq_status dq_quantizer_step(dq_quantizer *q, const dq_cancel *cancel, dq_progress_fn progress, void *user,
                            int32_t *done)
{
    DQ_ENTER_CONTEXT(q->ctx, q && done);
    bool finished = false;
    DQ_TRY(checked_step(q, cancel, progress, user, &finished));
    *done = finished;
    return DQ_OK;
}

dq_status dq_quantizer_run(dq_quantizer *q, const dq_cancel *cancel, dq_progress_fn progress, void *user)
{
    DQ_ENTER_CONTEXT(q->ctx, q);
    for (bool finished = false; !finished;) DQ_TRY(checked_step(q, cancel, progress, user, &finished));
    return DQ_OK;
}

dq_status dq_quantizer_take_model(dq_quantizer *q, dq_model **out)
{
    DQ_ENTER_CONTEXT(q->ctx, q && out);
    if (q->state == TAKEN) return dq_fail(DQ_E_STATE, "the quantizer's model was taken already");
    if (q->state != DONE) return dq_fail(DQ_E_STATE, "the quantizer is not done");
    if (q->has_sink)
        return dq_fail(DQ_E_STATE, "the result went to the host's sink: open its tensors with dq_model_open_source");
    dq_model *model = NULL;
    char *provenance = NULL;
    dq_status status;
    if (q->save_dir[0]) {
        DQ_TRY(dq_model_open_path(q->ctx->dev, q->save_dir, &model));
    } else {
        dq_source *store = q->store;
        q->store = NULL;
        DQ_TRY(derive(q, store, &model));
    }
    DQ_GO(provenance_text(q, &provenance));
    q->bits_per_weight = dq_model_bits_per_weight(model);
    status = dq_model_publish(model, provenance, out);
    model = NULL;
    if (status == DQ_OK) q->state = TAKEN;
done:
    dq_model_release(model);
    dq_free(provenance);
    return status;
}

/* ---- reports ---- */

static json_t *bits_json(const dq_quantizer *q)
{
    return q->bits_per_weight >= 0 ? json_real(q->bits_per_weight) : json_null();
}

/* Brings the facts up to date; once the job is done they only gain the bits per weight. */
static dq_status refresh(dq_quantizer *q)
{
    if (q->state == DONE || q->state == TAKEN) {
        json_object_set_new(q->facts, "bits_per_weight", bits_json(q));
        return DQ_OK;
    }
    const dq_quantize_report *r = job_report(q);
    double worst = 0, sum = 0;
    for (int64_t i = 0; i < r->count; i++) {
        sum += r->linears[i].error;
        if (r->linears[i].error > worst) worst = r->linears[i].error;
    }
    double total = q->search_seconds + r->seconds_load + r->seconds_forward + r->seconds_hessian + r->seconds_solve +
                   r->seconds_write;
    json_t *facts = json_pack("{s:o, s:o, s:I, s:I, s:f, s:f, s:f, s:o, s:o, s:{s:f, s:f, s:f, s:f, s:f, s:f}}",
                              "scheme", dq_scheme_json(&q->scheme), "calibration", calibration_json(q), "layers_done",
                              (json_int_t)(r->count / dq_arch_linears(dq_model_arch(q->model))), "layers_total",
                              (json_int_t)dq_model_arch(q->model)->layers, "max_error", worst, "mean_error",
                              r->count ? sum / (double)r->count : 0.0, "total_seconds", total, "bits_per_weight",
                              bits_json(q), "layers", layers_json(q, r), "seconds", "search", q->search_seconds, "load",
                              r->seconds_load, "forward", r->seconds_forward, "hessian", r->seconds_hessian, "solve",
                              r->seconds_solve, "write", r->seconds_write);
    if (!facts) return dq_fail(DQ_E_NOMEM, "out of memory: report");
    json_decref(q->facts);
    q->facts = facts;
    return DQ_OK;
}

dq_status dq_quantizer_report(dq_quantizer *q, const char **out)
{
    DQ_ENTER_CONTEXT(q->ctx, q && out);
    char *text = NULL;
    DQ_TRY(refresh(q));
    DQ_TRY(dq_json_dump(&q->ctx->env, q->facts, false, &text));
    dq_free(q->report);
    q->report = text;
    *out = text;
    return DQ_OK;
}

dq_status dq_quantizer_get_float(dq_quantizer *q, const char *key, double *out)
{
    DQ_ENTER_CONTEXT(q->ctx, q && key && out);
    DQ_TRY(refresh(q));
    if (json_is_null(json_object_get(q->facts, key)))
        return dq_fail(DQ_E_STATE, "\"%s\" is not known before the model was taken", key);
    return dq_facts_float(q->facts, key, "the quantizer's report", out);
}
