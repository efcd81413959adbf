/* SPDX-License-Identifier: Apache-2.0 */
#include "base/progress.h"

#include <math.h>
#include <stdatomic.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>

#include "base/status.h"

struct dq_cancel {
    atomic_int set;
};

dq_status dq_cancel_new(dq_cancel **out)
{
    dq_error_reset();
    if (!out) return dq_fail(DQ_E_INVALID, "dq_cancel_new: out is NULL");
    dq_cancel *cancel = calloc(1, sizeof *cancel);
    if (!cancel) return dq_fail(DQ_E_NOMEM, "out of memory: cancel token");
    *out = cancel;
    return DQ_OK;
}

void dq_cancel_free(dq_cancel *cancel) { free(cancel); }

void dq_cancel_set(dq_cancel *cancel)
{
    if (cancel) atomic_store(&cancel->set, 1);
}

void dq_cancel_clear(dq_cancel *cancel)
{
    if (cancel) atomic_store(&cancel->set, 0);
}

double dq_now(void)
{
    struct timespec t;
    clock_gettime(CLOCK_MONOTONIC, &t);
    return (double)t.tv_sec + 1e-9 * (double)t.tv_nsec;
}

dq_status dq_progress_check(const dq_progress *progress)
{
    if (progress && progress->cancel && atomic_load(&progress->cancel->set))
        return dq_fail(DQ_E_CANCELLED, "cancelled during %s", progress->stage ? progress->stage : "start");
    return DQ_OK;
}

static bool is_fresh(const dq_progress *progress, const char *stage)
{
    return !progress->stage || strcmp(progress->stage, stage) != 0;
}

static bool is_due(const dq_progress *progress, uint64_t index, uint64_t total, double now)
{
    return index == total || now - progress->last_event >= 0.1;
}

bool dq_progress_due(const dq_progress *progress, const char *stage, uint64_t index, uint64_t total)
{
    return progress && progress->fn && (is_fresh(progress, stage) || is_due(progress, index, total, dq_now()));
}

dq_status dq_progress_report_fit(dq_progress *progress, const char *stage, uint64_t index, uint64_t total,
                                 double metric, double orthogonality_error)
{
    if (!progress) return DQ_OK;
    double now = dq_now();
    if (is_fresh(progress, stage)) {
        progress->stage = stage;
        progress->stage_start = now;
        progress->last_event = -INFINITY;
    }
    DQ_TRY(dq_progress_check(progress));
    if (!progress->fn || !is_due(progress, index, total, now)) return DQ_OK;
    progress->last_event = now;
    dq_progress_event event = {
        .struct_size = sizeof event,
        .stage = stage,
        .index = index,
        .total = total,
        .metric = metric,
        .elapsed = now - progress->stage_start,
        .orthogonality_error = orthogonality_error,
    };
    if (progress->fn(progress->user, &event) != 0)
        return dq_fail(DQ_E_CANCELLED, "cancelled by the progress callback during %s", stage);
    return DQ_OK;
}

dq_status dq_progress_report(dq_progress *progress, const char *stage, uint64_t index, uint64_t total, double metric)
{
    return dq_progress_report_fit(progress, stage, index, total, metric, NAN);
}
