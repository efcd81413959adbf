/* dartquant/checkpoint.h: the quantizer's state on disk. SPDX-License-Identifier: Apache-2.0 */
#include "dartquant/checkpoint.h"

#include <dirent.h>
#include <errno.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <unistd.h>

#include "api/check.h"
#include "api/checkpoint.h"
#include "api/quantizer_job.h"
#include "io/file.h"
#include "io/formats.h"
#include "io/json.h"
#include "model/clips_json.h"

static const char JOB[] = "quantize";

/* Codes go to a file of the checkpoint, too. One file holds what came between two checkpoints; it gets its name, which has
 * the first layer's number, when the second is made. */
typedef struct dq_keeper {
    dq_sink sink; /* must be first */
    dq_sink *target;
    dq_sink *file; /* NULL = nothing came since the last checkpoint */
    char *dir;
    json_t *names;    /* stems of the finished files */
    int64_t layer;    /* next one at the last checkpoint */
    int slot;         /* of the next activations */
    dq_status broken; /* why codes are missing: no more checkpoints; DQ_OK = none are */
} dq_keeper;

/* ---- keeping codes ---- */

static void stem_of(const dq_keeper *k, char *buf, size_t size)
{
    snprintf(buf, size, DQ_CHECKPOINT_CODES, (int)k->layer);
}

static void give_up(dq_keeper *k, dq_status why)
{
    if (k->file) k->file->ops->free(k->file);
    k->file = NULL;
    k->broken = why;
    dq_log(k->sink.env, DQ_LOG_WARNING, "no more checkpoints in %s: %s", k->dir, dq_error_text());
}

/* What fails here ends the checkpoints, not the job. */
static dq_status keep(dq_sink *sink, const char *name, dq_dtype dtype, int ndim, const int64_t *shape, const void *data,
                      uint64_t bytes)
{
    dq_keeper *k = (dq_keeper *)sink;
    char stem[32];
    stem_of(k, stem, sizeof stem);
    dq_status status = DQ_OK;
    if (!k->file && !k->broken) status = dq_safetensors_sink(sink->env, k->dir, stem, UINT64_MAX, &k->file);
    if (status == DQ_OK && !k->broken) status = k->file->ops->add(k->file, name, dtype, ndim, shape, data, bytes);
    if (status != DQ_OK) give_up(k, status);
    return k->target->ops->add(k->target, name, dtype, ndim, shape, data, bytes);
}

static dq_status pass_metadata(dq_sink *sink, const char *key, const char *value)
{
    dq_sink *target = ((dq_keeper *)sink)->target;
    return target->ops->set_metadata(target, key, value);
}

static dq_status pass_finish(dq_sink *sink)
{
    (void)sink;
    return DQ_OK;
}

static void pass_free(dq_sink *sink) { (void)sink; }

static const dq_sink_ops keeper_ops = {
    .add = keep, .set_metadata = pass_metadata, .finish = pass_finish, .free = pass_free};

dq_sink *dq_keeper_before(dq_keeper *k, dq_sink *target)
{
    k->target = target;
    return &k->sink;
}

void dq_keeper_free(dq_keeper *k)
{
    if (!k) return;
    if (k->file) k->file->ops->free(k->file);
    json_decref(k->names);
    dq_free(k->dir);
    dq_free(k);
}

static dq_status keeper_new(dq_env *env, const char *dir, dq_keeper **out)
{
    dq_keeper *k = dq_calloc(env, 1, sizeof *k);
    if (!k) return DQ_E_NOMEM;
    k->sink = (dq_sink){&keeper_ops, env};
    k->dir = dq_strdup(env, dir);
    k->names = json_array();
    if (!k->dir || !k->names) {
        dq_keeper_free(k);
        return DQ_E_NOMEM;
    }
    *out = k;
    return DQ_OK;
}

/* ---- saving ---- */

static dq_status fingerprint_of(dq_quantizer *q, json_t **out)
{
    return dq_job_fingerprint(q->model, q->config, q->windows.data, (int64_t)q->windows.count, out);
}

static json_t *linears_json(const dq_quantize_report *r)
{
    json_t *list = json_array();
    for (int64_t i = 0; list && i < r->count; i++) {
        const dq_linear_report *l = &r->linears[i];
        json_array_append_new(
            list, json_pack("[I, i, i, f, f]", (json_int_t)l->layer, (int)l->role, l->bits, l->error, l->damping));
    }
    return list;
}

static dq_status finish_codes(dq_keeper *k)
{
    char stem[32];
    if (k->broken)
        return dq_fail(k->broken, "codes could not be kept in %s (%s, see the log): no checkpoint is possible", k->dir,
                       dq_status_name(k->broken));
    if (!k->file) return DQ_OK;
    stem_of(k, stem, sizeof stem);
    dq_status status = k->file->ops->finish(k->file);
    if (status == DQ_OK && json_array_append_new(k->names, json_string(stem)) != 0) status = DQ_E_NOMEM;
    if (status != DQ_OK) {
        give_up(k, status);
        return status;
    }
    k->file->ops->free(k->file);
    k->file = NULL;
    return DQ_OK;
}

/* AWQ's scales as F32 [layers, total], else empty. */
static dq_status scales_tensor(dq_quantizer *q, dq_tensor *out)
{
    const dq_scales *s = dq_quantize_job_scales(q->job);
    if (!s) return DQ_OK;
    return dq_tensor_from_host(q->ctx->dev, DQ_F32, s->layers, s->total, s->values, out);
}

/* KVQuant's tables as F32 [1, count], else empty. */
static dq_status tables_tensor(dq_quantizer *q, dq_tensor *out)
{
    const dq_kv_tables *t = q->tables;
    if (!t) return DQ_OK;
    return dq_tensor_from_host(q->ctx->dev, DQ_F32, 1, t->count, t->ranges, out);
}

/* What stands in a file beside the state, in its order. */
enum { TENSORS = 3 };
typedef struct state_tensors {
    dq_tensor stream, scales, tables; /* the stream is borrowed */
    dq_tensor *list[TENSORS];
    int count;
} state_tensors;

static dq_status list_tensors(dq_quantizer *q, state_tensors *t)
{
    dq_tensor *const all[TENSORS] = {&t->stream, &t->scales, &t->tables};
    *t = (state_tensors){.count = 0};
    if (!q->job) return DQ_OK;
    t->stream = dq_quantize_job_stream(q->job);
    DQ_TRY(scales_tensor(q, &t->scales));
    DQ_TRY(tables_tensor(q, &t->tables));
    for (int i = 0; i < TENSORS; i++)
        if (!dq_tensor_is_empty(all[i])) t->list[t->count++] = all[i];
    return DQ_OK;
}

static void free_tensors(state_tensors *t)
{
    dq_tensor_free(&t->scales);
    dq_tensor_free(&t->tables);
}

static dq_status save_state(dq_quantizer *q, int64_t layer)
{
    static const dq_quantize_report nothing;
    dq_keeper *k = q->keeper;
    const dq_quantize_report *r = q->job ? dq_quantize_job_report(q->job) : &nothing;
    state_tensors t = {.count = 0};
    json_t *fingerprint = NULL, *activations = json_null();
    DQ_TRY(fingerprint_of(q, &fingerprint));
    dq_status status = list_tensors(q, &t);
    if (status == DQ_OK && t.count > 0)
        status = dq_checkpoint_save_tensors(&q->ctx->env, k->dir, k->slot, (const dq_tensor *const *)t.list, t.count,
                                            &activations);
    free_tensors(&t);
    if (status == DQ_OK) {
        json_t *state = json_pack("{s:o, s:b, s:f, s:I, s:O, s:o, s:o, s:[f, f, f, f, f]}", "clip_ratios",
                                  q->clips ? dq_clips_to_json(q->clips) : json_null(), "kv_tables", q->job && q->tables,
                                  "search_seconds", q->search_seconds, "layer", (json_int_t)layer, "codes", k->names,
                                  "activations", activations, "linears", linears_json(r), "seconds", r->seconds_load,
                                  r->seconds_forward, r->seconds_hessian, r->seconds_solve, r->seconds_write);
        status = dq_checkpoint_write(q->ctx, k->dir, JOB, fingerprint, state);
    }
    json_decref(fingerprint);
    DQ_TRY(status);
    k->layer = layer;
    k->slot = !k->slot;
    return DQ_OK;
}

/* Turns checkpoints on. */
static dq_status begin(dq_quantizer *q, const char *dir)
{
    dq_keeper *k = NULL;
    dq_env *env = &q->ctx->env;
    if (!dq_quantizer_is_bound(q)) return dq_fail(DQ_E_STATE, "bind the data before the first checkpoint");
    if (!q->keeper) {
        DQ_TRY(dq_checkpoint_clear(env, dir));
        DQ_TRY(dq_make_dirs(env, dir));
        DQ_TRY(keeper_new(env, dir, &k));
        q->keeper = k;
    }
    dq_status status = save_state(q, 0);
    if (status == DQ_OK || !k) return status;
    dq_keeper_free(k);
    q->keeper = NULL;
    return status;
}

dq_status dq_quantizer_checkpoint(dq_quantizer *q, const char *dir)
{
    DQ_ENTER_CONTEXT(q->ctx, q && dir);
    if (q->state == FAILED) return dq_fail(DQ_E_STATE, "the quantizer failed: its last checkpoint stands");
    if (q->state == DONE || q->state == TAKEN) return dq_fail(DQ_E_STATE, "the quantizer is done");
    if (!dq_quantizer_has_weights(q))
        return dq_fail(DQ_E_UNSUPPORTED, "a job that quantizes no weights has no checkpoints");
    if (q->keeper && strcmp(q->keeper->dir, dir) != 0)
        return dq_fail(DQ_E_INVALID, "this job keeps its checkpoints in %s", q->keeper->dir);
    if (q->state == READY) return begin(q, dir);
    if (!q->keeper)
        return dq_fail(DQ_E_STATE,
                       "the first checkpoint comes before the first step, so that codes are kept from there");
    DQ_TRY(finish_codes(q->keeper));
    return save_state(q, q->job ? dq_quantize_job_report(q->job)->count / dq_arch_linears(dq_model_arch(q->model)) : 0);
}

/* ---- restoring ---- */

typedef struct saved {
    json_t *state; /* owned */
    int64_t layer;
    dq_quantize_report report;
} saved;

static dq_status read_linears(const json_t *list, const dq_arch *arch, int64_t bits, saved *s)
{
    int64_t each = dq_arch_linears(arch);
    if (!json_is_array(list) || (int64_t)json_array_size(list) != s->layer * each)
        return dq_fail(DQ_E_FORMAT, "%zu linears for %lld layers", json_array_size(list), (long long)s->layer);
    for (size_t i = 0; i < json_array_size(list); i++) {
        json_int_t layer, role, width;
        double error, damping;
        if (json_unpack(json_array_get(list, i), "[I, I, I, F, F]", &layer, &role, &width, &error, &damping) != 0 ||
            layer != (json_int_t)i / each || role != (json_int_t)dq_arch_linear(arch, (int64_t)i % each) ||
            width != bits)
            return dq_fail(DQ_E_FORMAT, "linear %zu of the checkpoint is damaged", i);
        s->report.linears[s->report.count++] =
            (dq_linear_report){(int64_t)layer, (dq_role)role, (int)width, error, damping};
    }
    return DQ_OK;
}

static dq_status read_state(dq_quantizer *q, const char *dir, saved *s)
{
    dq_env *env = &q->ctx->env;
    json_t *fingerprint = NULL;
    dq_quantize_report *r = &s->report;
    int64_t layers = dq_model_arch(q->model)->layers;
    DQ_TRY(fingerprint_of(q, &fingerprint));
    dq_status status = dq_checkpoint_read(q->ctx, dir, JOB, fingerprint, &s->state);
    json_decref(fingerprint);
    DQ_TRY(status);
    DQ_TRY(dq_json_int(s->state, "layer", 0, layers - 1, true, dir, &s->layer));
    if (json_unpack(json_object_get(s->state, "seconds"), "[F, F, F, F, F]", &r->seconds_load, &r->seconds_forward,
                    &r->seconds_hessian, &r->seconds_solve, &r->seconds_write) != 0)
        return dq_fail(DQ_E_FORMAT, "the checkpoint names no times");
    r->linears = dq_calloc(env, (size_t)(layers * DQ_LINEARS), sizeof *r->linears);
    if (!r->linears) return DQ_E_NOMEM;
    return read_linears(json_object_get(s->state, "linears"), dq_model_arch(q->model), q->scheme.w.bits, s);
}

/* Hands the codes of one file to where the job's own will go. */
static dq_status replay(dq_quantizer *q, const char *stem)
{
    dq_env *env = &q->ctx->env;
    dq_source *source = NULL;
    dq_sink *target = q->keeper->target;
    char *path = dq_asprintf(env, "%s/%s.safetensors", q->keeper->dir, stem);
    if (!path) return DQ_E_NOMEM;
    dq_status status = dq_safetensors_open(env, path, &source);
    for (int64_t t = 0; status == DQ_OK && t < source->count; t++) {
        const dq_tensor_info *info = &source->tensors[t];
        void *data = dq_alloc(env, (size_t)info->bytes);
        status = data ? dq_source_read_raw(source, t, 0, info->bytes, data) : DQ_E_NOMEM;
        if (status == DQ_OK)
            status = target->ops->add(target, info->name, info->dtype, info->ndim, info->shape, data, info->bytes);
        dq_free(data);
    }
    dq_source_free(source);
    dq_free(path);
    return status;
}

static dq_status replay_all(dq_quantizer *q, const saved *s)
{
    const json_t *codes = json_object_get(s->state, "codes");
    dq_keeper *k = q->keeper;
    for (size_t i = 0; i < json_array_size(codes); i++) {
        const char *stem = json_string_value(json_array_get(codes, i));
        int number;
        char end;
        if (!stem || sscanf(stem, "codes-%5d%c", &number, &end) != 1)
            return dq_fail(DQ_E_FORMAT, "the checkpoint names a file of codes \"%s\"", stem ? stem : "?");
        DQ_TRY(replay(q, stem));
        if (json_array_append_new(k->names, json_string(stem)) != 0) return DQ_E_NOMEM;
    }
    return DQ_OK;
}

static dq_status restore_tensors(dq_quantizer *q, const saved *s)
{
    state_tensors t;
    const json_t *record = json_object_get(s->state, "activations");
    const char *file = json_string_value(json_object_get(record, "file"));
    dq_status status = list_tensors(q, &t);
    /* before the first layer a stream is as it was made */
    bool wanted = t.count > 0 && (s->layer > 0 || json_is_true(json_object_get(s->state, "kv_tables")));
    if (file) q->keeper->slot = strchr(file, '0') ? 1 : 0; /* not over the one that counts */
    if (status == DQ_OK && wanted)
        status = dq_checkpoint_load_tensors(&q->ctx->env, q->keeper->dir, record, t.list, t.count);
    if (status == DQ_OK && wanted && !dq_tensor_is_empty(&t.scales))
        status = dq_tensor_download(&t.scales, dq_quantize_job_scales(q->job)->values);
    if (status == DQ_OK && wanted && q->tables) {
        status = dq_tensor_download(&t.tables, q->tables->ranges);
        if (status == DQ_OK) status = dq_kv_tables_check(q->tables);
    }
    free_tensors(&t);
    return status;
}

/* Whether `name` is an unfinished file (io/writer.c: NAME.tmp.PROCESS) of a model or a checkpoint whose process is dead. */
static bool is_orphan(const char *name)
{
    static const char *const stems[] = {"model", "codes-", "activations-", DQ_CHECKPOINT_STATE};
    const char *mark = strstr(name, ".tmp.");
    long long process = mark ? atoll(mark + 5) : 0;
    bool known = false;
    for (size_t i = 0; i < sizeof stems / sizeof *stems; i++)
        known = known || strncmp(name, stems[i], strlen(stems[i])) == 0;
    return known && process > 0 && process <= INT32_MAX && process != getpid() && kill((pid_t)process, 0) != 0 &&
           errno == ESRCH;
}

/* Removes what killed processes left behind. */
static void sweep(const char *dir)
{
    char path[4096];
    DIR *d = opendir(dir);
    if (!d) return;
    for (struct dirent *e; (e = readdir(d));)
        if (is_orphan(e->d_name) && (size_t)snprintf(path, sizeof path, "%s/%s", dir, e->d_name) < sizeof path)
            unlink(path);
    closedir(d);
}

static dq_status restore(dq_quantizer *q, const saved *s)
{
    const json_t *clips = json_object_get(s->state, "clip_ratios");
    dq_clips *found = NULL;
    if (dq_quantizer_searches(q)) {
        if (!json_is_object(clips)) return dq_quantizer_begin_search(q); /* which is short and starts afresh */
        DQ_TRY(dq_clips_from_json(&q->ctx->env, clips, dq_model_arch(q->model)->layers, q->keeper->dir, &found));
        dq_quantizer_set_clips(q, found);
        q->search_seconds = json_real_value(json_object_get(s->state, "search_seconds"));
    }
    if (dq_quantizer_lacks_tables(q)) {
        dq_kv_tables *tables = NULL;
        bool there = json_is_true(json_object_get(s->state, "kv_tables"));
        if (!there && dq_kv_needs_data(&q->scheme)) return dq_quantizer_begin_tables(q); /* likewise */
        DQ_TRY(dq_kv_tables_begin(q->model, &q->scheme, &tables));
        dq_quantizer_set_tables(q, tables);
    }
    DQ_TRY(dq_quantizer_start(q));
    DQ_TRY(restore_tensors(q, s));
    DQ_TRY(replay_all(q, s));
    DQ_TRY(dq_quantize_job_resume(q->job, s->layer, &s->report));
    q->keeper->layer = s->layer;
    return DQ_OK;
}

dq_status dq_quantizer_restore(dq_quantizer *q, const char *dir)
{
    DQ_ENTER_CONTEXT(q->ctx, q && dir);
    saved s = {0};
    if (q->state != READY || q->keeper) return dq_fail(DQ_E_STATE, "the quantizer has started already");
    if (!dq_quantizer_has_weights(q))
        return dq_fail(DQ_E_UNSUPPORTED, "a job that quantizes no weights has no checkpoints");
    if (!dq_quantizer_is_bound(q)) return dq_fail(DQ_E_STATE, "bind the same data before restoring");
    dq_status status = read_state(q, dir, &s);
    if (status == DQ_OK) status = keeper_new(&q->ctx->env, dir, &q->keeper);
    if (status == DQ_OK) {
        sweep(dir);
        if (q->save_dir[0]) sweep(q->save_dir);
        status = restore(q, &s);
        if (status == DQ_OK) {
            q->state = RUNNING;
        } else {
            dq_quantizer_stop(q);
            dq_clip_job_free(q->search);
            q->search = NULL;
            dq_kv_job_free(q->kv);
            q->kv = NULL;
            dq_kv_tables_free(q->tables);
            dq_quantizer_set_tables(q, NULL);
            dq_keeper_free(q->keeper);
            q->keeper = NULL;
        }
    }
    json_decref(s.state);
    dq_free(s.report.linears);
    return status;
}
