/* Rows of numbers in the host's memory on their way to the device. SPDX-License-Identifier: Apache-2.0 */
#ifndef DQ_API_HOST_ROWS_H
#define DQ_API_HOST_ROWS_H

#include "api/handles.h"

typedef struct dq_host_rows {
    const void *x; /* F32, F16 or BF16 [rows, width] */
    int64_t rows, width, stride;
    dq_dtype dtype;
} dq_host_rows;

/* DQ_E_UNSUPPORTED (dtype), DQ_E_INVALID (sizes), DQ_E_NONFINITE "WHAT (row, column) is NaN or Inf". */
dq_status dq_host_rows_check(const dq_host_rows *r, const char *what);
/* Calls fn(arg, rows on the device) for all rows, some at a time. */
dq_status dq_host_rows_each(dq_context *ctx, const dq_host_rows *r, dq_status (*fn)(void *arg, const dq_tensor *x),
                            void *arg);

#endif
