/* How far a rotation under way is from orthogonal: for progress. SPDX-License-Identifier: Apache-2.0 */
#ifndef DQ_CALIB_DRIFT_H
#define DQ_CALIB_DRIFT_H

#include "calib/fit.h"

/* max |R^T R - I| of the fp32 rotation that the last step left (over all groups). */
dq_status dq_fit_drift(const dq_fit *fit, double *error);
/* Reports a step with its loss and, when an event goes out, this error. */
dq_status dq_fit_report_progress(const dq_fit *fit, dq_progress *progress, const char *stage, uint64_t index,
                                 uint64_t total);

#endif
