/* The calibration job of a model. SPDX-License-Identifier: Apache-2.0 */
#include "calib/job.h"

#include <math.h>
#include <stdio.h>
#include <string.h>

#include "base/status.h"
#include "calib/drift.h"
#include "calib/folder.h"
#include "calib/job_parts.h"

/* ---- the pass over the layers ---- */

static dq_status on_layer(void *arg, int64_t layer)
{
    dq_calibrate_job *job = arg;
    return dq_gather_begin(&job->gather, layer, job->capture ? job->capture->norms : NULL);
}

static dq_status on_weights(void *arg, int64_t layer, const dq_block *block)
{
    return dq_gather_weights(&((dq_calibrate_job *)arg)->gather, layer, block);
}

static dq_status on_inputs(void *arg, const dq_inputs *in)
{
    return dq_gather_inputs(&((dq_calibrate_job *)arg)->gather, in);
}

static dq_status on_tick(void *arg, int64_t tokens)
{
    const dq_calibrate_job *job = arg;
    uint64_t all = (uint64_t)job->gather.tokens;
    return dq_progress_report(job->progress, "capture", (uint64_t)job->layer * all + (uint64_t)tokens,
                              (uint64_t)job->arch->layers * all, NAN);
}

dq_status dq_job_open_capture(dq_calibrate_job *job)
{
    bool sinks = job->spec.wanted[DQ_TARGET_R1] && job->spec.rows[DQ_TARGET_R1].share[DQ_ROWS_SINK] > 0 &&
                 job->spec.sink_ratio > 0;
    if (job->folder) {
        job->gather.tokens = dq_folder_tokens(job->folder);
        return DQ_OK;
    }
    DQ_TRY(dq_capture_new(job->model, job->windows, job->nsamples, job->seqlen, job->spec.math, job->spec.stream_most,
                          job->temp_dir, sinks, &job->capture));
    job->gather.tokens = job->capture->tokens;
    return DQ_OK;
}

dq_status dq_job_open_rows(dq_calibrate_job *job, dq_target target)
{
    dq_rows_spec spec = job->spec.rows[target];
    spec.width = target == DQ_TARGET_R1 ? job->arch->hidden : job->arch->heads * job->arch->head_dim;
    spec.seed = target == DQ_TARGET_R1 ? job->spec.seed : job->spec.seed + 1 + (uint64_t)job->layer;
    return dq_rows_new(job->dev, &spec, &job->rows[target]);
}

/* ---- fits ---- */

static dq_orbit orbit_of(const dq_calibrate_job *job, dq_target target)
{
    const dq_arch *a = job->arch;
    if (target == DQ_TARGET_R1) return (dq_orbit){a->hidden, 1, 1};
    return (dq_orbit){a->head_dim, (int32_t)a->heads, job->spec.r2_shared ? 1 : (int32_t)a->kv_heads};
}

int64_t dq_job_matrices(const dq_calibrate_job *job, dq_target target)
{
    const dq_arch *a = job->arch;
    return target == DQ_TARGET_R1 ? a->hidden * a->hidden : a->kv_heads * a->head_dim * a->head_dim;
}

/* The original program visits a tenth of its files in an epoch, of sequences 0 to 99 alone, upstream_files in a step. Where
 * the rows that are kept are fewer than those files hold, batches are smaller, steps as many. */
static int64_t upstream_batches(const dq_calibrate_job *job)
{
    enum { SEQUENCES = 100, PART = 10, SITES = 2 };
    int64_t windows = job->folder ? dq_folder_windows(job->folder) : job->nsamples, per_step = job->spec.upstream_files;
    if (windows > SEQUENCES) windows = SEQUENCES;
    int64_t files = windows * SITES * job->arch->layers / PART;
    if (per_step == 0 || windows == 0) return 0; /* drawn rows do not tell of how many they are left */
    return files > per_step ? (files + per_step - 1) / per_step : 1;
}

void dq_learnt_name(dq_target target, int64_t layer, char name[32])
{
    if (target == DQ_TARGET_R1)
        snprintf(name, 32, "R1");
    else
        snprintf(name, 32, "R2 of layer %lld", (long long)layer);
}

dq_status dq_job_open_fit(dq_calibrate_job *job, dq_target target)
{
    dq_fit_spec spec = job->spec.fit[target];
    spec.orbit = orbit_of(job, target);
    if (target == DQ_TARGET_R1) spec.batches = upstream_batches(job);
    dq_learnt_name(target, job->layer, spec.name);
    spec.seed = target == DQ_TARGET_R1 ? job->spec.seed : job->spec.seed + 1 + (uint64_t)job->layer;
    DQ_TRY(dq_rows_seal(job->rows[target]));
    DQ_TRY(dq_fit_new(job->dev, &spec, job->rows[target], NULL, &job->fit));
    job->per_fit[target] = dq_fit_steps_total(job->fit);
    return DQ_OK;
}

static dq_target target_of(const dq_calibrate_job *job)
{
    return job->phase == DQ_PHASE_R1 ? DQ_TARGET_R1 : DQ_TARGET_R2;
}

static void fill_learnt(const dq_calibrate_job *job, dq_learnt *l)
{
    dq_target target = target_of(job);
    *l = (dq_learnt){.target = target, .layer = target == DQ_TARGET_R1 ? -1 : job->layer};
    l->orbit = orbit_of(job, target);
}

/* Result and report of the fit under way become the job's own. */
static dq_status keep_result(dq_calibrate_job *job)
{
    dq_target target = target_of(job);
    int64_t size = dq_job_matrices(job, target);
    dq_fit_let_go(job->fit); /* the result takes room of its own */
    dq_rows_free(job->rows[target]);
    job->rows[target] = NULL;
    if (target == DQ_TARGET_R1 && !job->r1) job->r1 = dq_alloc(job->env, (size_t)size * sizeof *job->r1);
    if (target == DQ_TARGET_R1 && !job->r1) return DQ_E_NOMEM;
    double *out = target == DQ_TARGET_R1 ? job->r1 : job->r2 + job->layer * size;
    dq_learnt l;
    fill_learnt(job, &l);
    DQ_TRY(dq_fit_result(job->fit, out));
    int64_t fitted = l.orbit.groups * l.orbit.n * l.orbit.n; /* where heads share one matrix the others are copies */
    for (int64_t at = fitted; at < size; at += fitted) memcpy(out + at, out, (size_t)fitted * sizeof *out);
    DQ_TRY(dq_fit_get_report(job->fit, &l.fit));
    size_t bytes = (size_t)l.fit.steps * sizeof *l.fit.history;
    dq_fit_point *history = dq_alloc(job->env, bytes);
    if (!history) return DQ_E_NOMEM;
    memcpy(history, l.fit.history, bytes);
    l.fit.history = history;
    job->learnt[job->count++] = l;
    dq_fit_free(job->fit);
    job->fit = NULL;
    return DQ_OK;
}

/* ---- steps ---- */

static dq_status after_layers(dq_calibrate_job *job)
{
    dq_capture_free(job->capture); /* the residual stream makes room for the fit */
    job->capture = NULL;
    dq_gather_clear(&job->gather);
    job->phase = DQ_PHASE_FINISHED;
    if (!job->spec.wanted[DQ_TARGET_R1]) return DQ_OK;
    job->phase = DQ_PHASE_R1;
    return dq_job_open_fit(job, DQ_TARGET_R1);
}

static dq_status next_layer(dq_calibrate_job *job)
{
    job->generation++;
    job->phase = DQ_PHASE_GATHER;
    return ++job->layer == job->arch->layers ? after_layers(job) : DQ_OK;
}

static dq_status start(dq_calibrate_job *job)
{
    if (job->spec.wanted[DQ_TARGET_R1]) DQ_TRY(dq_job_open_rows(job, DQ_TARGET_R1));
    return dq_job_open_capture(job);
}

static dq_status gather_layer(dq_calibrate_job *job)
{
    const dq_visitor visitor = {job, on_layer, on_weights, on_inputs, on_tick};
    double begin = dq_now();
    if (job->steps == 0) DQ_TRY(start(job));
    DQ_TRY(on_tick(job, 0));
    if (job->spec.wanted[DQ_TARGET_R2]) DQ_TRY(dq_job_open_rows(job, DQ_TARGET_R2));
    job->gather.r1 = job->rows[DQ_TARGET_R1];
    job->gather.r2 = job->rows[DQ_TARGET_R2];
    DQ_TRY(job->folder ? dq_folder_layer(job->folder, job->model, job->layer, &job->gather, &visitor)
                       : dq_capture_layer(job->capture, &visitor));
    job->seconds_capture += dq_now() - begin;
    if (!job->spec.wanted[DQ_TARGET_R2]) return next_layer(job);
    job->phase = DQ_PHASE_R2;
    job->generation++;
    return dq_job_open_fit(job, DQ_TARGET_R2);
}

static dq_status report_fit(const dq_calibrate_job *job)
{
    bool r1 = job->phase == DQ_PHASE_R1;
    uint64_t total = (uint64_t)dq_fit_steps_total(job->fit), done = (uint64_t)dq_fit_steps_done(job->fit);
    if (dq_fit_done(job->fit)) done = total; /* stopped early */
    return r1 ? dq_fit_report_progress(job->fit, job->progress, "fit R1", done, total)
              : dq_fit_report_progress(job->fit, job->progress, "fit R2", (uint64_t)job->layer * total + done,
                                       (uint64_t)job->arch->layers * total);
}

static dq_status fit_step(dq_calibrate_job *job)
{
    bool done = false;
    DQ_TRY(dq_fit_steps_done(job->fit) ? dq_progress_check(job->progress) : report_fit(job));
    DQ_TRY(dq_fit_step(job->fit, &done));
    DQ_TRY(report_fit(job));
    if (!done) return DQ_OK;
    DQ_TRY(keep_result(job));
    if (job->phase == DQ_PHASE_R2) return next_layer(job);
    job->phase = DQ_PHASE_FINISHED;
    job->generation++;
    return DQ_OK;
}

dq_status dq_calibrate_job_step(dq_calibrate_job *job, dq_progress *progress, bool *finished)
{
    if (job->failed) return dq_fail(DQ_E_STATE, "the calibration failed before and cannot go on");
    if (job->phase == DQ_PHASE_FINISHED) return dq_fail(DQ_E_STATE, "the calibration is already finished");
    job->progress = progress;
    dq_status status = job->phase == DQ_PHASE_GATHER ? gather_layer(job) : fit_step(job);
    job->progress = NULL;
    job->failed = status != DQ_OK;
    if (status != DQ_OK) return status;
    job->steps++;
    *finished = job->phase == DQ_PHASE_FINISHED;
    return DQ_OK;
}

/* ---- what is known ---- */

void dq_calibrate_job_count(const dq_calibrate_job *job, int64_t *done, int64_t *total)
{
    int64_t n = job->arch->layers;
    if (job->spec.wanted[DQ_TARGET_R2]) n += job->arch->layers * job->per_fit[DQ_TARGET_R2];
    if (job->spec.wanted[DQ_TARGET_R1]) n += job->per_fit[DQ_TARGET_R1];
    *done = job->steps;
    *total = job->phase == DQ_PHASE_FINISHED || n < job->steps ? job->steps : n;
}

const dq_learnt *dq_calibrate_job_learnt(const dq_calibrate_job *job, int64_t *count)
{
    *count = job->count;
    return job->learnt;
}

bool dq_calibrate_job_current(dq_calibrate_job *job, dq_learnt *current)
{
    if (!job->fit) return false;
    fill_learnt(job, current);
    return dq_fit_get_report(job->fit, &current->fit) == DQ_OK;
}

double dq_calibrate_job_seconds_capture(const dq_calibrate_job *job) { return job->seconds_capture; }

int64_t dq_calibrate_job_generation(const dq_calibrate_job *job) { return job->generation; }

dq_status dq_calibrate_job_result(const dq_calibrate_job *job, dq_rotation_set *set)
{
    if (job->phase != DQ_PHASE_FINISHED) return dq_fail(DQ_E_STATE, "the calibration is not finished");
    if (job->r1) memcpy(set->r1, job->r1, (size_t)dq_job_matrices(job, DQ_TARGET_R1) * sizeof *job->r1);
    if (job->r2)
        memcpy(set->r2, job->r2, (size_t)(job->arch->layers * dq_job_matrices(job, DQ_TARGET_R2)) * sizeof *job->r2);
    return DQ_OK;
}

/* ---- lifetime ---- */

static dq_status alloc_results(dq_calibrate_job *job)
{
    size_t r2 = (size_t)dq_job_matrices(job, DQ_TARGET_R2);
    if (job->spec.wanted[DQ_TARGET_R2]) job->r2 = dq_calloc(job->env, r2 * (size_t)job->arch->layers, sizeof *job->r2);
    if (job->spec.wanted[DQ_TARGET_R2] && !job->r2) return DQ_E_NOMEM;
    job->learnt = dq_calloc(job->env, (size_t)job->arch->layers + 1, sizeof *job->learnt);
    return job->learnt ? DQ_OK : DQ_E_NOMEM;
}

dq_status dq_calibrate_job_new(dq_model *model, const dq_calibrate_spec *spec, const int32_t *windows, int64_t nsamples,
                               int64_t seqlen, struct dq_folder *folder, dq_calibrate_job **out)
{
    dq_device *dev = dq_model_device(model);
    dq_status status;
    if (!spec->wanted[DQ_TARGET_R1] && !spec->wanted[DQ_TARGET_R2])
        return dq_fail(DQ_E_INVALID, "there is no rotation to learn");
    DQ_TRY(dq_capture_check_model(model));
    dq_calibrate_job *job = dq_calloc(dq_device_env(dev), 1, sizeof *job);
    if (!job) return DQ_E_NOMEM;
    job->env = dq_device_env(dev);
    job->dev = dev;
    job->model = dq_model_retain(model);
    job->arch = dq_model_arch(model);
    job->spec = *spec;
    job->windows = windows;
    job->nsamples = nsamples;
    job->seqlen = seqlen;
    job->folder = folder;
    job->temp_dir = dq_strdup(job->env, spec->temp_dir ? spec->temp_dir : "");
    DQ_GO(job->temp_dir ? DQ_OK : DQ_E_NOMEM);
    job->gather = (dq_gather){.env = job->env, .dev = dev, .arch = job->arch, .seed = spec->seed};
    job->gather.sink_ratio = spec->sink_ratio;
    DQ_GO(alloc_results(job));
    *out = job;
    return DQ_OK;
done:
    dq_calibrate_job_free(job);
    return status;
}

void dq_calibrate_job_free(dq_calibrate_job *job)
{
    if (!job) return;
    dq_fit_free(job->fit);
    for (int t = 0; t < DQ_TARGETS; t++) dq_rows_free(job->rows[t]);
    dq_gather_clear(&job->gather);
    dq_capture_free(job->capture);
    for (int64_t i = 0; i < job->count; i++) dq_free((void *)(uintptr_t)job->learnt[i].fit.history);
    dq_free(job->learnt);
    dq_free(job->r1);
    dq_free(job->r2);
    dq_free(job->temp_dir);
    dq_model_release(job->model);
    dq_free(job);
}
