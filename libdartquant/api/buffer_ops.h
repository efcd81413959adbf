/* What the operations on the host's buffers share. SPDX-License-Identifier: Apache-2.0 */
#ifndef DQ_API_BUFFER_OPS_H
#define DQ_API_BUFFER_OPS_H

#include "api/handles.h"

dq_status dq_check_matrix(const char *what, int64_t rows, int64_t cols);
dq_status dq_check_finite(const char *what, const float *x, int64_t rows, int64_t cols);

/* Works on rows [row, row + x->view.rows) of the buffer. */
typedef dq_status (*dq_buffer_fn)(const void *arg, int64_t row, dq_tensor *x);
/* The rows of x through `fn`, chunk by chunk. All results are gathered first, so that x stays as it is when one chunk fails;
 * a buffer that fits one chunk needs no copy. */
dq_status dq_run_in_place(dq_context *ctx, float *x, int64_t rows, int64_t cols, dq_buffer_fn fn, const void *arg);

#endif
