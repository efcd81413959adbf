/* The state of a calibration job between two steps. SPDX-License-Identifier: Apache-2.0 */
#include <string.h>

#include "base/status.h"
#include "calib/folder.h"
#include "calib/job_parts.h"

typedef struct head {
    int64_t phase, layer, generation, count;
} head;

typedef struct rest {
    int64_t steps, per_fit[2], bytes;
    double seconds_capture;
} rest;

/* ---- saving ---- */

static dq_status save_learnt(const dq_calibrate_job *job, const dq_put *put)
{
    for (int64_t i = 0; i < job->count; i++) {
        dq_learnt l = job->learnt[i];
        const dq_fit_point *history = l.fit.history;
        l.fit.history = NULL;
        DQ_TRY(dq_put_bytes(put, &l, sizeof l));
        DQ_TRY(dq_put_bytes(put, history, (uint64_t)l.fit.steps * sizeof *history));
    }
    return DQ_OK;
}

static dq_status save_stream(dq_capture *c, const dq_put *put)
{
    for (int64_t first = 0; first < c->tokens; first += c->chunk) {
        dq_tensor h;
        int64_t rows = c->tokens - first < c->chunk ? c->tokens - first : c->chunk;
        DQ_TRY(dq_hidden_take(&c->hidden, first, rows, true, &h));
        DQ_TRY(dq_put_tensor(c->env, put, &h));
    }
    return DQ_OK;
}

/* Matrices of the layers that are done. */
static uint64_t r2_bytes(const dq_calibrate_job *job)
{
    return (uint64_t)(job->layer * dq_job_matrices(job, DQ_TARGET_R2)) * sizeof *job->r2;
}

dq_status dq_calibrate_job_save_bulk(dq_calibrate_job *job, const dq_put *put)
{
    const head h = {(int64_t)job->phase, job->layer, job->generation, job->count};
    DQ_TRY(dq_put_bytes(put, &h, sizeof h));
    DQ_TRY(save_learnt(job, put));
    if (job->r2) DQ_TRY(dq_put_bytes(put, job->r2, r2_bytes(job)));
    if (job->steps == 0) return DQ_OK; /* nothing has begun */
    if (job->capture) DQ_TRY(save_stream(job->capture, put));
    if (job->rows[DQ_TARGET_R1]) DQ_TRY(dq_rows_save(job->rows[DQ_TARGET_R1], put));
    return job->phase == DQ_PHASE_R2 ? dq_rows_save(job->rows[DQ_TARGET_R2], put) : DQ_OK;
}

dq_status dq_calibrate_job_save_rest(dq_calibrate_job *job, const dq_put *put)
{
    void *bytes = NULL;
    size_t size = 0;
    if (job->fit) DQ_TRY(dq_fit_export(job->fit, &bytes, &size));
    rest r;
    memset(&r, 0, sizeof r);
    r.steps = job->steps;
    r.bytes = (int64_t)size;
    r.seconds_capture = job->seconds_capture;
    memcpy(r.per_fit, job->per_fit, sizeof r.per_fit);
    dq_status status = dq_put_bytes(put, &r, sizeof r);
    if (status == DQ_OK && size) status = dq_put_bytes(put, bytes, size);
    dq_free(bytes);
    return status;
}

/* ---- loading ---- */

static dq_status load_head(dq_calibrate_job *job, const dq_get *get)
{
    head h;
    DQ_TRY(dq_get_bytes(get, &h, sizeof h));
    int64_t layers = job->arch->layers;
    bool sound = h.phase >= DQ_PHASE_GATHER && h.phase < DQ_PHASE_FINISHED && h.layer >= 0 && h.layer <= layers &&
                 h.count >= 0 && h.count <= layers && (h.phase == DQ_PHASE_R1) == (h.layer == layers);
    if (!sound || job->steps || job->generation)
        return dq_fail(DQ_E_FORMAT, "the state of a calibration is damaged: phase %lld, layer %lld of %lld",
                       (long long)h.phase, (long long)h.layer, (long long)layers);
    job->phase = (dq_phase)h.phase;
    job->layer = h.layer;
    job->generation = h.generation;
    return h.count == (job->r2 ? h.layer : 0) ? DQ_OK : dq_fail(DQ_E_FORMAT, "learnt rotations are missing");
}

static dq_status load_learnt(dq_calibrate_job *job, int64_t count, const dq_get *get)
{
    while (job->count < count) {
        dq_learnt l;
        DQ_TRY(dq_get_bytes(get, &l, sizeof l));
        if (l.fit.steps < 0 || l.fit.steps > INT32_MAX) return dq_fail(DQ_E_FORMAT, "a damaged report");
        size_t bytes = (size_t)l.fit.steps * sizeof *l.fit.history;
        dq_fit_point *history = dq_alloc(job->env, bytes);
        if (!history) return DQ_E_NOMEM;
        l.fit.history = history;
        job->learnt[job->count++] = l;
        DQ_TRY(dq_get_bytes(get, history, bytes));
    }
    return DQ_OK;
}

static dq_status load_stream(dq_capture *c, int64_t layer, const dq_get *get)
{
    for (int64_t first = 0; first < c->tokens; first += c->chunk) {
        dq_tensor h;
        int64_t rows = c->tokens - first < c->chunk ? c->tokens - first : c->chunk;
        DQ_TRY(dq_hidden_take(&c->hidden, first, rows, false, &h));
        DQ_TRY(dq_get_tensor(c->env, get, &h));
        DQ_TRY(dq_hidden_put(&c->hidden, first, &h));
    }
    return dq_capture_resume(c, layer);
}

dq_status dq_calibrate_job_load_bulk(dq_calibrate_job *job, const dq_get *get)
{
    DQ_TRY(load_head(job, get));
    DQ_TRY(load_learnt(job, job->r2 ? job->layer : 0, get));
    if (job->r2) DQ_TRY(dq_get_bytes(get, job->r2, r2_bytes(job)));
    if (job->phase == DQ_PHASE_GATHER && job->layer == 0) return DQ_OK;
    if (job->phase != DQ_PHASE_R1) {
        DQ_TRY(dq_job_open_capture(job));
        int64_t next = job->phase == DQ_PHASE_R2 ? job->layer + 1 : job->layer; /* of the pass */
        if (job->capture) DQ_TRY(load_stream(job->capture, next, get));
    }
    if (job->spec.wanted[DQ_TARGET_R1]) {
        DQ_TRY(dq_job_open_rows(job, DQ_TARGET_R1));
        DQ_TRY(dq_rows_load(job->rows[DQ_TARGET_R1], get));
    }
    if (job->phase != DQ_PHASE_R2) return DQ_OK;
    DQ_TRY(dq_job_open_rows(job, DQ_TARGET_R2));
    return dq_rows_load(job->rows[DQ_TARGET_R2], get);
}

static dq_status import_fit(dq_calibrate_job *job, int64_t size, const dq_get *get)
{
    if (size < 1 || size > ((int64_t)1 << 40)) return dq_fail(DQ_E_FORMAT, "the state of a fit is damaged");
    void *bytes = dq_alloc(job->env, (size_t)size);
    if (!bytes) return DQ_E_NOMEM;
    dq_status status = dq_get_bytes(get, bytes, (uint64_t)size);
    if (status == DQ_OK) status = dq_job_open_fit(job, job->phase == DQ_PHASE_R1 ? DQ_TARGET_R1 : DQ_TARGET_R2);
    if (status == DQ_OK) status = dq_fit_import(job->fit, bytes, (size_t)size);
    dq_free(bytes);
    return status;
}

dq_status dq_calibrate_job_load_rest(dq_calibrate_job *job, const dq_get *get)
{
    rest r;
    DQ_TRY(dq_get_bytes(get, &r, sizeof r));
    bool begun = job->phase != DQ_PHASE_GATHER || job->layer > 0, known = true;
    for (int t = 0; t < DQ_TARGETS; t++) known = known && r.per_fit[t] >= 0 && r.per_fit[t] <= INT32_MAX;
    if (r.steps < 0 || (r.steps > 0) != begun || !known)
        return dq_fail(DQ_E_FORMAT, "the state of a calibration is damaged: %lld steps at layer %lld",
                       (long long)r.steps, (long long)job->layer);
    if (job->phase != DQ_PHASE_GATHER) DQ_TRY(import_fit(job, r.bytes, get));
    job->steps = r.steps;
    job->seconds_capture = r.seconds_capture;
    memcpy(job->per_fit, r.per_fit, sizeof r.per_fit);
    return DQ_OK;
}
