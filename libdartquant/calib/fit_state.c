/* Results, reports and the complete state of a fit. SPDX-License-Identifier: Apache-2.0 */
#include <math.h>
#include <string.h>

#include "base/status.h"
#include "calib/fit_job.h"

/* ---- results ---- */

/* The matrix is orthogonal to fp32; the polar factor in double precision is the nearest one that is so to the end. */
static dq_status polish(dq_fit *f, double *r, double *error)
{
    int64_t n = f->spec.orbit.n, rows = n * f->spec.orbit.groups;
    dq_tensor a = {0}, u = {0};
    dq_status status = DQ_OK;
    for (int64_t i = 0; i < rows * n; i++) r[i] = f->best[i];
    DQ_GO(dq_tensor_from_host(f->dev, DQ_F64, rows, n, r, &a));
    DQ_GO(dq_tensor_alloc(f->dev, DQ_F64, rows, n, &u));
    DQ_GO(dq_op_polar(f->spec.orbit.groups, DQ_MATH_F32, &a, &u, error));
    if (!(*error <= 1e-12)) {
        status = dq_fail(DQ_E_NUMERIC, "the fitted rotation stays %g away from orthogonal", *error);
        goto done;
    }
    DQ_GO(dq_tensor_download(&u, r));
done:
    dq_tensor_free(&a);
    dq_tensor_free(&u);
    return status;
}

dq_status dq_fit_result(dq_fit *f, double *out)
{
    double error = 0;
    double *r = dq_alloc(f->env, (size_t)f->optim.count * sizeof *r);
    if (!r) return DQ_E_NOMEM;
    dq_status status = polish(f, r, &error);
    if (status == DQ_OK) {
        memcpy(out, r, (size_t)f->optim.count * sizeof *r);
        f->report.orthogonality = error;
    }
    dq_free(r);
    return status;
}

dq_status dq_fit_get_report(dq_fit *f, dq_fit_report *out)
{
    double *r = NULL;
    if (f->done && f->report.orthogonality == 0) {
        if (!(r = dq_alloc(f->env, (size_t)f->optim.count * sizeof *r))) return DQ_E_NOMEM;
        dq_status status = polish(f, r, &f->report.orthogonality);
        dq_free(r);
        DQ_TRY(status);
    }
    f->report.steps = f->steps;
    f->report.steps_total = f->total;
    *out = f->report;
    return DQ_OK;
}

/* ---- complete state ---- */

#define STATE_MAGIC "dqfit\2\0\0"

/* Followed by z, first, second, best (F32 [count] each) and the points of the steps done. */
typedef struct state_header {
    char magic[8];
    int64_t count, steps, total, optim_steps, stale, above;
    int64_t best_step, diverged_step;
    int32_t finish, done, stopped_early, kept_start;
    double start, best_loss, last_loss, diverged_loss, seconds, loss_before, loss_after, rejected_error;
    dq_fit_kind_report kinds[DQ_ROW_KINDS];
} state_header;

static size_t state_size(const dq_fit *f, int64_t steps)
{
    return sizeof(state_header) + 4 * (size_t)f->optim.count * sizeof(float) + (size_t)steps * sizeof(dq_fit_point);
}

/* The arrays one after the other, out of or into the fit. */
static void move_arrays(dq_fit *f, unsigned char *bytes, int64_t steps, bool out)
{
    size_t matrices = (size_t)f->optim.count * sizeof(float);
    struct {
        void *data;
        size_t size;
    } const parts[] = {{f->optim.z, matrices},
                       {f->optim.first, matrices},
                       {f->optim.second, matrices},
                       {f->best, matrices},
                       {f->history, (size_t)steps * sizeof(dq_fit_point)}};
    for (size_t i = 0; i < sizeof parts / sizeof *parts; i++) {
        memcpy(out ? (void *)bytes : parts[i].data, out ? parts[i].data : (void *)bytes, parts[i].size);
        bytes += parts[i].size;
    }
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
    move_arrays(f, state + sizeof h, f->steps, true);
    *bytes = state;
    *size = total;
    return DQ_OK;
}

static dq_status check_state(const dq_fit *f, const state_header *h, size_t size)
{
    if (memcmp(h->magic, STATE_MAGIC, sizeof h->magic) != 0)
        return dq_fail(DQ_E_FORMAT, "this is no state of a fitted rotation");
    if (h->count != f->optim.count)
        return dq_fail(DQ_E_MISMATCH, "the state has %lld numbers in its matrices, the fit has %lld",
                       (long long)h->count, (long long)f->optim.count);
    if (h->steps < 0 || h->steps > h->total || h->total > f->total || size != state_size(f, h->steps))
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
    if ((bool)h.finish != f->finish) f->optim.method = h.finish ? DQ_FIT_POLAR_MM : f->spec.method;
    move_arrays(f, (unsigned char *)(uintptr_t)bytes + sizeof h, h.steps, false);
    f->finish = h.finish;
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
