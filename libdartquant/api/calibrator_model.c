/* dartquant/calibrator.h: jobs that gather their rows from a model. SPDX-License-Identifier: Apache-2.0 */
#include <stdio.h>

#include "api/calibrator_job.h"
#include "api/check.h"
#include "api/checkpoint.h"
#include "api/config.h"
#include "api/rotation.h"
#include "calib/folder.h"
#include "calib/job.h"
#include "dartquant/rotation.h"
#include "dartquant/version.h"
#include "io/json.h"

/* Residual stream that stays resident unless memory_budget says otherwise. */
#define STREAM_MOST ((uint64_t)1 << 29)

/* What a job for a model works on. */
struct dq_calibration_data {
    dq_calibrate_spec spec;
    dq_ids windows;
    int64_t nsamples, seqlen;
    char *dataset, *protocol; /* of the windows */
    char *dir;                /* captured inputs instead */
    dq_folder *folder;
    json_t *bulk; /* record of the part of the state that was saved last, and of which generation it is */
    int64_t bulk_generation;
    int bulk_slot;
};

static const dq_calibrator_ops model_ops;

/* ---- options ---- */

/* Options that say where a rotation comes from do not go with learning it. */
static dq_status check_sources(const dq_config *config, const bool wanted[DQ_TARGETS])
{
    static const char *const paths[DQ_TARGETS] = {"r1_path", "r2_path"};
    for (int t = 0; t < DQ_TARGETS; t++)
        if (wanted[t] && dq_config_text(config, paths[t])[0])
            return dq_fail(DQ_E_INVALID, "R%d is to be learnt: %s does not go with it (target chooses what is learnt)",
                           t + 1, paths[t]);
    if (wanted[DQ_TARGET_R1] && !dq_config_int(config, "use_r1"))
        return dq_fail(DQ_E_INVALID, "R1 is to be learnt and use_r1 is off (target chooses what is learnt)");
    if (wanted[DQ_TARGET_R2] && dq_config_int(config, "use_r2") != DQ_R2_OFFLINE)
        return dq_fail(DQ_E_INVALID, "R2 is to be learnt: use_r2 must be offline (target chooses what is learnt)");
    return DQ_OK;
}

static dq_status spec_from_config(dq_model *model, const dq_config *config, dq_calibrate_spec *out)
{
    const dq_arch *a = dq_model_arch(model);
    dq_env *env = dq_device_env(dq_model_device(model));
    const dq_orbit orbits[DQ_TARGETS] = {{a->hidden, 1, 1}, {a->head_dim, (int32_t)a->heads, (int32_t)a->kv_heads}};
    int64_t target = dq_config_int(config, "target"); /* r1,r2 or r1 or r2 */
    dq_calibrate_spec s = {.wanted = {target != 2, target != 1},
                           .r2_shared = dq_config_int(config, "r2_shared"),
                           .sink_ratio = dq_config_float(config, "sink_ratio"),
                           .upstream_files = dq_fit_upstream_files(config),
                           .seed = (uint64_t)dq_config_int(config, "seed"),
                           .math = dq_config_math(config),
                           .stream_most = env->memory_budget ? env->memory_budget : STREAM_MOST,
                           .temp_dir = dq_config_text(config, "temp_dir")};
    dq_dtype kept = dq_config_int(config, "rows_dtype") == 1 ? DQ_BF16 : DQ_F32; /* f32, bf16 */
    DQ_TRY(check_sources(config, s.wanted));
    for (int t = 0; t < DQ_TARGETS; t++) {
        DQ_TRY(dq_fit_spec_from_config(config, &orbits[t], &s.fit[t]));
        DQ_TRY(dq_rows_spec_from_config(config, &orbits[t], kept, &s.rows[t]));
    }
    *out = s;
    return DQ_OK;
}

/* ---- data ---- */

static dq_status check_ids(dq_model *model, const dq_ids *ids, const char *name)
{
    int64_t vocab = dq_model_arch(model)->vocab;
    for (size_t i = 0; i < ids->count; i++)
        if (ids->data[i] < 0 || ids->data[i] >= vocab)
            return dq_fail(DQ_E_MISMATCH, "token %d of dataset %s is outside the model's vocabulary of %lld",
                           ids->data[i], name, (long long)vocab);
    return DQ_OK;
}

static dq_status draw_windows(dq_model *model, const dq_config *config, const dq_dataset *dataset, dq_ids *out)
{
    dq_context *ctx = dq_context_of_model(model);
    dq_ids windows = {0};
    if (dataset->ctx != ctx) return dq_fail(DQ_E_INVALID, "the dataset belongs to another context than the model");
    DQ_TRY(dq_stream_sample(&ctx->env, &dataset->stream, (uint64_t)dq_config_int(config, "seed"),
                            dq_config_int(config, "nsamples"), dq_config_int(config, "seqlen"), &windows));
    dq_status status = check_ids(model, &windows, dataset->stream.name);
    if (status == DQ_OK)
        *out = windows;
    else
        dq_free(windows.data);
    return status;
}

static void forget_data(struct dq_calibration_data *d)
{
    dq_free(d->windows.data);
    dq_free(d->dataset);
    dq_free(d->protocol);
    dq_free(d->dir);
    dq_folder_free(d->folder);
    d->windows = (dq_ids){0};
    d->dataset = d->protocol = d->dir = NULL;
    d->folder = NULL;
}

dq_status dq_calibrator_new(dq_model *model, const dq_config *config, dq_calibrator **out)
{
    DQ_ENTER_CONTEXT(dq_context_of_model(model), model && out);
    dq_calibrator *c = NULL;
    dq_context *ctx = dq_context_of_model(model);
    dq_status status;
    DQ_TRY(dq_capture_check_model(model));
    DQ_TRY(dq_calibrator_make(ctx, config, &model_ops, &c));
    c->model = dq_model_retain(model);
    c->data = dq_calloc(&ctx->env, 1, sizeof *c->data);
    DQ_GO(c->data ? DQ_OK : DQ_E_NOMEM);
    c->data->nsamples = dq_config_int(c->config, "nsamples");
    c->data->seqlen = dq_config_int(c->config, "seqlen");
    c->data->bulk_generation = -1;
    DQ_GO(spec_from_config(model, c->config, &c->data->spec));
    *out = c;
    return DQ_OK;
done:
    dq_calibrator_destroy(c);
    return status;
}

dq_status dq_calibrator_bind(dq_calibrator *c, const dq_dataset *dataset)
{
    DQ_ENTER_CONTEXT(c->ctx, c && dataset);
    dq_ids windows = {0};
    DQ_TRY(dq_calibrator_check_kind(c, &model_ops));
    DQ_TRY(dq_calibrator_check_fresh(c));
    char *name = dq_strdup(&c->ctx->env, dataset->stream.name);
    char *protocol = dq_strdup(&c->ctx->env, dataset->stream.protocol);
    dq_status status = name && protocol ? draw_windows(c->model, c->config, dataset, &windows) : DQ_E_NOMEM;
    if (status != DQ_OK) {
        dq_free(name);
        dq_free(protocol);
        return status;
    }
    forget_data(c->data);
    c->data->windows = windows;
    c->data->dataset = name;
    c->data->protocol = protocol;
    return DQ_OK;
}

dq_status dq_calibrator_bind_folder(dq_calibrator *c, const char *dir)
{
    DQ_ENTER_CONTEXT(c->ctx, c && dir);
    dq_folder *folder = NULL;
    DQ_TRY(dq_calibrator_check_kind(c, &model_ops));
    DQ_TRY(dq_calibrator_check_fresh(c));
    char *copy = dq_strdup(&c->ctx->env, dir);
    if (!copy) return DQ_E_NOMEM;
    dq_status status = dq_folder_open(&c->ctx->env, dir, dq_model_arch(c->model), c->data->spec.wanted, &folder);
    if (status != DQ_OK) {
        dq_free(copy);
        return status;
    }
    forget_data(c->data);
    c->data->dir = copy;
    c->data->folder = folder;
    return DQ_OK;
}

/* ---- running ---- */

static dq_status start(dq_calibrator *c)
{
    struct dq_calibration_data *d = c->data;
    if (!d->windows.data && !d->folder)
        return dq_fail(DQ_E_STATE, "calibration data is missing: call dq_calibrator_bind or _bind_folder first");
    for (int t = 0; c->has_loss && t < DQ_TARGETS; t++) dq_fit_spec_set_host_loss(&d->spec.fit[t], &c->loss);
    return dq_calibrate_job_new(c->model, &d->spec, d->windows.data, d->nsamples, d->seqlen, d->folder, &c->job);
}

static dq_status step(dq_calibrator *c, bool *finished)
{
    return dq_calibrate_job_step(c->job, &c->progress, finished);
}

static void stop(dq_calibrator *c)
{
    dq_calibrate_job_free(c->job);
    c->job = NULL;
}

static void destroy(dq_calibrator *c)
{
    stop(c);
    if (c->data) {
        forget_data(c->data);
        json_decref(c->data->bulk);
        dq_free(c->data);
    }
    dq_model_release(c->model);
}

static void count(const dq_calibrator *c, int64_t *done, int64_t *total)
{
    *done = *total = 0;
    if (c->job) dq_calibrate_job_count(c->job, done, total);
}

/* ---- checkpoints ---- */

static dq_status fingerprint(dq_calibrator *c, json_t **out)
{
    struct dq_calibration_data *d = c->data;
    json_t *o = NULL;
    DQ_TRY(dq_job_fingerprint(c->model, c->config, d->windows.data, (int64_t)d->windows.count, &o));
    json_object_set_new(o, "folder", json_string(d->dir ? d->dir : "none"));
    dq_status status = dq_calibrator_options_fingerprint(c, o);
    if (status == DQ_OK)
        *out = o;
    else
        json_decref(o);
    return status;
}

static dq_status put_bulk(void *arg, const dq_put *put) { return dq_calibrate_job_save_bulk(arg, put); }
static dq_status put_rest(void *arg, const dq_put *put) { return dq_calibrate_job_save_rest(arg, put); }
static dq_status get_bulk(void *arg, const dq_get *get) { return dq_calibrate_job_load_bulk(arg, get); }
static dq_status get_rest(void *arg, const dq_get *get) { return dq_calibrate_job_load_rest(arg, get); }

/* The large part is written only when it changed, never over the one that the last checkpoint names. */
static dq_status save(dq_calibrator *c, const char *dir, json_t *state)
{
    struct dq_calibration_data *d = c->data;
    dq_env *env = &c->ctx->env;
    json_t *record = NULL;
    int64_t generation = dq_calibrate_job_generation(c->job);
    if (d->bulk_generation != generation || !d->bulk) {
        DQ_TRY(dq_checkpoint_save_state(env, dir, "calibration", d->bulk_slot, put_bulk, c->job, &record));
        json_decref(d->bulk);
        d->bulk = record;
        d->bulk_generation = generation;
        d->bulk_slot = !d->bulk_slot;
    }
    DQ_TRY(dq_checkpoint_save_state(env, dir, "fit", c->slot, put_rest, c->job, &record));
    bool bad = json_object_set(state, "calibration", d->bulk) != 0;
    bad |= json_object_set_new(state, "fit", record) != 0;
    return bad ? dq_fail(DQ_E_NOMEM, "out of memory: checkpoint") : DQ_OK;
}

static int next_slot(const json_t *record)
{
    const char *file = json_string_value(json_object_get(record, "file"));
    return file && strchr(file, '0') ? 1 : 0;
}

static dq_status load(dq_calibrator *c, const char *dir, const json_t *state)
{
    struct dq_calibration_data *d = c->data;
    dq_env *env = &c->ctx->env;
    json_t *bulk = json_object_get(state, "calibration");
    const json_t *rest = json_object_get(state, "fit");
    DQ_TRY(dq_checkpoint_load_state(env, dir, "calibration", bulk, get_bulk, c->job));
    DQ_TRY(dq_checkpoint_load_state(env, dir, "fit", rest, get_rest, c->job));
    json_decref(d->bulk);
    d->bulk = json_incref(bulk);
    d->bulk_generation = dq_calibrate_job_generation(c->job);
    d->bulk_slot = next_slot(bulk);
    c->slot = next_slot(rest);
    return DQ_OK;
}

/* ---- reports ---- */

static dq_status append_learnt(const dq_learnt *l, json_t *rotations)
{
    char name[32];
    dq_learnt_name(l->target, l->layer, name);
    json_t *entry = dq_fit_report_json(name, &l->orbit, &l->fit);
    return json_array_append_new(rotations, entry) == 0 ? DQ_OK : dq_fail(DQ_E_NOMEM, "out of memory: report");
}

static dq_status report(dq_calibrator *c, json_t *rotations, double *seconds)
{
    int64_t n = 0;
    dq_learnt current;
    *seconds = 0;
    if (!c->job) return DQ_OK;
    *seconds = dq_calibrate_job_seconds_capture(c->job);
    const dq_learnt *learnt = dq_calibrate_job_learnt(c->job, &n);
    for (int64_t i = 0; i < n; i++) DQ_TRY(append_learnt(&learnt[i], rotations));
    return dq_calibrate_job_current(c->job, &current) ? append_learnt(&current, rotations) : DQ_OK;
}

static const dq_calibrator_ops model_ops = {
    "calibration of a model", start, step, fingerprint, save, load, report, count, stop, destroy};

/* ---- the result ---- */

static json_t *data_json(const dq_calibrator *c)
{
    const struct dq_calibration_data *d = c->data;
    if (d->folder) {
        json_t *manifest = json_loads(dq_folder_manifest(d->folder), 0, NULL);
        return json_pack("{s:s, s:o}", "folder", d->dir, "captured", manifest ? manifest : json_null());
    }
    return json_pack("{s:s, s:s, s:I, s:I, s:o}", "dataset", d->dataset, "protocol", d->protocol, "nsamples",
                     (json_int_t)d->nsamples, "seqlen", (json_int_t)d->seqlen, "fingerprint",
                     dq_ids_fingerprint(d->windows.data, (int64_t)d->windows.count));
}

/* All options of rotation fitting as they were; those that compat = upstream overrules are not told. */
static json_t *options_json(const dq_calibrator *c)
{
    json_t *o = json_object();
    for (int32_t i = 0; i < dq_option_count(); i++) {
        dq_option_info info = {.struct_size = sizeof info};
        const char *text = "";
        if (dq_option_get(i, &info) != DQ_OK || strcmp(info.area, "rotation fitting") != 0) continue;
        if (dq_fit_option_overruled(c->config, info.name)) continue;
        if (dq_config_get(c->config, info.name, &text) == DQ_OK) json_object_set_new(o, info.name, json_string(text));
    }
    return o;
}

/* How the rotations were learnt: model, data, options, loss histories. */
static dq_status manifest_text(dq_calibrator *c, char **out)
{
    double seconds;
    const char *model = "";
    DQ_TRY(dq_model_fingerprint(c->model, &model));
    json_t *rotations = json_array();
    dq_status status = rotations ? report(c, rotations, &seconds) : dq_fail(DQ_E_NOMEM, "out of memory: manifest");
    if (status != DQ_OK) {
        json_decref(rotations);
        return status;
    }
    json_t *o = json_pack("{s:s, s:s, s:I, s:o, s:o, s:o}", "library", dq_version_string(), "model_fingerprint", model,
                          "seed", (json_int_t)c->data->spec.seed, "data", data_json(c), "options", options_json(c),
                          "rotations", rotations);
    if (!o) return dq_fail(DQ_E_NOMEM, "out of memory: manifest");
    status = dq_json_dump(&c->ctx->env, o, false, out);
    json_decref(o);
    return status;
}

static dq_status describe_origin(dq_calibrator *c, dq_rotation_set *set)
{
    static const char *const what[] = {"R1 and R2", "R1", "R2"};
    const char *loss = "", *method = "";
    int64_t target = dq_config_int(c->config, "target");
    DQ_TRY(dq_config_get(c->config, "loss", &loss));
    DQ_TRY(dq_fit_method_text(c->config, &method));
    char *text =
        dq_asprintf(set->env, "%s learnt (%s, %s) from %s, seed %llu%s%s", what[target],
                    c->has_loss ? c->loss_name : loss, method, c->data->dir ? c->data->dir : c->data->dataset,
                    (unsigned long long)c->data->spec.seed, target ? "; else " : "", target ? set->origin : "");
    if (!text) return DQ_E_NOMEM;
    dq_free(set->origin);
    set->origin = text;
    return manifest_text(c, &set->manifest);
}

dq_status dq_calibrator_take_rotation(dq_calibrator *c, dq_rotation **out)
{
    DQ_ENTER_CONTEXT(c->ctx, c && out);
    dq_rotation *rotation = NULL;
    dq_status status;
    DQ_TRY(dq_calibrator_check_kind(c, &model_ops));
    if (c->state != DQ_CALIBRATOR_DONE)
        return dq_fail(DQ_E_STATE, c->state == DQ_CALIBRATOR_TAKEN ? "the rotations were taken already"
                                                                   : "the calibrator is not done");
    DQ_GO(dq_rotation_make(c->model, c->config, &rotation)); /* with R1 and R2 to be replaced */
    DQ_GO(dq_calibrate_job_result(c->job, rotation->set));
    DQ_GO(describe_origin(c, rotation->set));
    DQ_GO(dq_rotation_refresh(rotation));
    c->state = DQ_CALIBRATOR_TAKEN;
    *out = rotation;
    return DQ_OK;
done:
    dq_rotation_free(rotation);
    return status;
}

/* ---- capture alone ---- */

static dq_status capture_manifest(dq_model *model, const dq_config *config, const dq_dataset *dataset,
                                  const dq_ids *windows, char **out)
{
    const char *fingerprint = "";
    DQ_TRY(dq_model_fingerprint(model, &fingerprint));
    json_t *o =
        json_pack("{s:s, s:s, s:s, s:s, s:I, s:I, s:I, s:o}", "library", dq_version_string(), "model_fingerprint",
                  fingerprint, "dataset", dataset->stream.name, "protocol", dataset->stream.protocol, "nsamples",
                  (json_int_t)dq_config_int(config, "nsamples"), "seqlen", (json_int_t)dq_config_int(config, "seqlen"),
                  "seed", (json_int_t)dq_config_int(config, "seed"), "fingerprint",
                  dq_ids_fingerprint(windows->data, (int64_t)windows->count));
    if (!o) return dq_fail(DQ_E_NOMEM, "out of memory: manifest");
    dq_status status = dq_json_dump(&dq_context_of_model(model)->env, o, false, out);
    json_decref(o);
    return status;
}

static dq_status capture(dq_model *model, const dq_config *config, const dq_dataset *dataset, const char *dir,
                         dq_progress *progress)
{
    dq_calibrate_spec spec;
    dq_ids windows = {0};
    char *manifest = NULL;
    dq_status status;
    int formats = 1 + (int)dq_config_int(config, "capture_format"); /* rows, upstream, both */
    DQ_TRY(dq_capture_check_model(model));
    DQ_TRY(spec_from_config(model, config, &spec));
    DQ_TRY(draw_windows(model, config, dataset, &windows));
    DQ_GO(capture_manifest(model, config, dataset, &windows, &manifest));
    DQ_GO(dq_folder_write(model, &spec, windows.data, dq_config_int(config, "nsamples"),
                          dq_config_int(config, "seqlen"), formats, dir, manifest, progress));
done:
    dq_free(windows.data);
    dq_free(manifest);
    return status;
}

dq_status dq_model_capture(dq_model *model, const dq_config *config, const dq_dataset *dataset, const char *dir,
                           const dq_cancel *cancel, dq_progress_fn progress, void *user)
{
    DQ_ENTER_CONTEXT(dq_context_of_model(model), model && dataset && dir);
    dq_progress p = dq_progress_make(cancel, progress, user);
    dq_config *own;
    DQ_TRY(dq_config_or_defaults(&config, &own));
    dq_status status = capture(model, config, dataset, dir, &p);
    dq_config_free(own);
    return status;
}
