/* Results, reports and the complete state of a fit. SPDX-License-Identifier: Apache-2.0 */
#include <string.h>

#include "base/status.h"
#include "calib/fit_job.h"
#include "calib/polish.h"

/* ---- results ---- */

/* The polished rotation as a tensor of the device, and its error into the report. */
static dq_status polish(dq_fit *f, dq_tensor *out)
{
    double error = 0;
    DQ_TRY(dq_polish(f->dev, f->spec.orbit.groups, f->spec.orbit.n, f->best, out, &error));
    f->report.orthogonality = error;
    if (error <= 1e-12) return DQ_OK;
    dq_tensor_free(out);
    return dq_fail(DQ_E_NUMERIC, "the fitted rotation stays %g away from orthogonal", error);
}

dq_status dq_fit_result(dq_fit *f, double *out)
{
    dq_tensor r = {0};
    dq_status status = polish(f, &r);
    if (status == DQ_OK) status = dq_tensor_download(&r, out);
    dq_tensor_free(&r);
    return status;
}

dq_status dq_fit_get_report(dq_fit *f, dq_fit_report *out)
{
    if (f->done && f->report.orthogonality == 0) {
        dq_tensor r = {0};
        dq_status status = polish(f, &r);
        dq_tensor_free(&r);
        DQ_TRY(status);
    }
    f->report.steps = f->steps;
    f->report.steps_total = f->total;
    *out = f->report;
    return DQ_OK;
}

/* ---- complete state ---- */

#define STATE_MAGIC "dqfit\3\0\0"

/* Followed by the optimiser's state and the best rotation (F32 [count] each) and the points of the steps done. */
typedef struct state_header {
    char magic[8];
    int64_t count, steps, total, optim_steps, stale, above;
    int64_t best_step, diverged_step;
    int32_t finish, done, stopped_early, kept_start;
    double start, best_loss, last_loss, diverged_loss, seconds, loss_before, loss_after, rejected_error;
    dq_fit_kind_report kinds[DQ_ROW_KINDS];
} state_header;

static size_t matrix_size(const dq_fit *f) { return (size_t)f->optim.count * sizeof(float); }

static size_t state_size(dq_fit *f, int64_t steps)
{
    dq_tensor *state[DQ_OPTIM_STATE];
    size_t matrices = 1 + (size_t)dq_optim_state(&f->optim, state);
    return sizeof(state_header) + matrices * matrix_size(f) + (size_t)steps * sizeof(dq_fit_point);
}

/* One after the other, out of the fit or into it. */
static dq_status move_arrays(dq_fit *f, unsigned char *bytes, int64_t steps, bool out)
{
    dq_tensor *state[DQ_OPTIM_STATE];
    int count = dq_optim_state(&f->optim, state);
    for (int i = 0; i < count; i++, bytes += matrix_size(f))
        DQ_TRY(out ? dq_tensor_download(state[i], bytes) : dq_tensor_upload(state[i], bytes));
    memcpy(out ? (void *)bytes : f->best, out ? f->best : (void *)bytes, matrix_size(f));
    bytes += matrix_size(f);
    memcpy(out ? (void *)bytes : f->history, out ? f->history : (void *)bytes, (size_t)steps * sizeof(dq_fit_point));
    return DQ_OK;
}

dq_status dq_fit_export(dq_fit *f, void **bytes, size_t *size)
{
    const dq_fit_report *r = &f->report;
    size_t total = state_size(f, f->steps);
    unsigned char *state = dq_alloc(f->env, total);
    if (!state) return DQ_E_NOMEM;
    state_header h;
    memset(&h, 0, sizeof h); /* no stray bytes between members */
    memcpy(h.magic, STATE_MAGIC, sizeof h.magic);
    h.count = f->optim.count;
    h.steps = f->steps;
    h.total = f->total;
    h.optim_steps = f->optim.steps;
    h.stale = f->stale;
    h.above = f->above;
    h.best_step = r->best_step;
    h.diverged_step = r->diverged_step;
    h.finish = f->finish;
    h.done = f->done;
    h.stopped_early = r->stopped_early;
    h.kept_start = r->kept_start;
    h.rejected_error = r->rejected_error;
    h.start = f->start;
    h.best_loss = f->best_loss;
    h.last_loss = f->last_loss;
    h.diverged_loss = r->diverged_loss;
    h.seconds = r->seconds;
    h.loss_before = r->loss_before;
    h.loss_after = r->loss_after;
    memcpy(h.kinds, r->kinds, sizeof h.kinds);
    memcpy(state, &h, sizeof h);
    dq_status status = move_arrays(f, state + sizeof h, f->steps, true);
    if (status != DQ_OK) {
        dq_free(state);
        return status;
    }
    *bytes = state;
    *size = total;
    return DQ_OK;
}

/* The optimiser is that of the state's phase when this succeeds. */
static dq_status take_phase(dq_fit *f, const state_header *h)
{
    if ((bool)h->finish == f->finish) return DQ_OK;
    dq_optim_clear(&f->optim);
    DQ_TRY(dq_optim_init(&f->optim, f->dev, &f->spec, h->finish ? DQ_FIT_POLAR_MM : f->spec.method, f->best));
    f->finish = h->finish;
    return DQ_OK;
}

/* Whether a fit can stand there: further steps go on within its phase. */
static bool is_a_place(const dq_fit *f, const state_header *h)
{
    if (h->steps < 0 || h->steps > h->total || h->total > f->total) return false;
    if (h->done) return true;
    if (!h->finish) return h->steps < f->spec.epochs * f->epoch_steps;
    return h->steps < h->total && h->steps >= h->total - f->spec.quant_steps;
}

static dq_status check_state(dq_fit *f, const state_header *h, size_t size)
{
    if (memcmp(h->magic, STATE_MAGIC, sizeof h->magic) != 0)
        return dq_fail(DQ_E_FORMAT, "this is no state of a fitted rotation");
    if (h->count != f->optim.count)
        return dq_fail(DQ_E_MISMATCH, "the state has %lld numbers in its matrices, the fit has %lld",
                       (long long)h->count, (long long)f->optim.count);
    bool sound = is_a_place(f, h);
    if (sound) DQ_TRY(take_phase(f, h));
    if (!sound || size != state_size(f, h->steps))
        return dq_fail(DQ_E_FORMAT, "%zu bytes of state after %lld of %lld steps; the fit has %lld", size,
                       (long long)h->steps, (long long)h->total, (long long)f->total);
    return DQ_OK;
}

dq_status dq_fit_import(dq_fit *f, const void *bytes, size_t size)
{
    state_header h;
    if (size < sizeof h) return dq_fail(DQ_E_FORMAT, "%zu bytes are no state of a fitted rotation", size);
    memcpy(&h, bytes, sizeof h);
    DQ_TRY(check_state(f, &h, size));
    DQ_TRY(move_arrays(f, (unsigned char *)(uintptr_t)bytes + sizeof h, h.steps, false));
    f->done = h.done;
    f->steps = h.steps;
    f->total = h.total;
    f->optim.steps = h.optim_steps;
    f->optim.mm_memory = h.finish ? f->spec.finish_memory : f->spec.mm_memory;
    f->stale = h.stale;
    f->above = h.above;
    f->start = h.start;
    f->best_loss = h.best_loss;
    f->last_loss = h.last_loss;
    f->report.best_step = h.best_step;
    f->report.diverged_step = h.diverged_step;
    f->report.diverged_loss = h.diverged_loss;
    f->report.stopped_early = h.stopped_early;
    f->report.kept_start = h.kept_start;
    f->report.rejected_error = h.rejected_error;
    f->report.seconds = h.seconds;
    f->report.loss_before = h.loss_before;
    f->report.loss_after = h.loss_after;
    memcpy(f->report.kinds, h.kinds, sizeof h.kinds);
    return dq_optim_refresh(&f->optim);
}
