/* libdartquant: how fast the device in use is. Since 1.0.
 * SPDX-License-Identifier: Apache-2.0 */
#ifndef DARTQUANT_BENCHMARK_H
#define DARTQUANT_BENCHMARK_H

#include "dartquant/progress.h"
#include "dartquant/types.h"

#ifdef __cplusplus
extern "C" {
#endif

/* Times the device's main operations on made-up data, best of several runs each, `seconds` of time for each operation
 * (0 = a default of 0.2 s). *out is JSON text owned by the context, valid until the next call:
 * {"device", "threads", "sgemm_gflops", "ops": [{"name", "shape", "seconds", "runs", "rate", "unit"}]}; unit is GFLOP/s
 * (multiply and add count as two), GB/s (read plus written) or Mweights/s. Operations the device does not support are
 * left out. `cancel`, `progress` may be NULL.
 * Errors: DQ_E_INVALID, DQ_E_CANCELLED, DQ_E_BACKEND, DQ_E_NOMEM. */
DQ_API dq_status dq_benchmark_ops(dq_context *ctx, double seconds, const dq_cancel *cancel, dq_progress_fn progress,
                                  void *user, const char **out);

#ifdef __cplusplus
}
#endif
#endif
