/* Reporting progress from inside a job. SPDX-License-Identifier: Apache-2.0 */
#ifndef DQ_BASE_PROGRESS_H
#define DQ_BASE_PROGRESS_H

#include <stdbool.h>

#include "dartquant/progress.h"

/* What a job carries; all zero = silent and not cancellable. */
typedef struct dq_progress {
    dq_progress_fn fn;
    void *user;
    const dq_cancel *cancel;
    const char *stage;
    double stage_start;
    double last_event;
} dq_progress;

/* Monotonic seconds. */
double dq_now(void);
/* DQ_E_CANCELLED when the token is set. */
dq_status dq_progress_check(const dq_progress *progress);
/* Starts a new stage when `stage` differs from the last one; sends an event when due (always at index == total);
 * checks the cancel token. `progress` may be NULL. */
dq_status dq_progress_report(dq_progress *progress, const char *stage, uint64_t index, uint64_t total, double metric);
/* Whether that would send an event: for figures that are dear to compute. */
bool dq_progress_due(const dq_progress *progress, const char *stage, uint64_t index, uint64_t total);
/* The same with the event's orthogonality_error. */
dq_status dq_progress_report_fit(dq_progress *progress, const char *stage, uint64_t index, uint64_t total,
                                 double metric, double orthogonality_error);

#endif
