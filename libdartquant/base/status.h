/* Recording and passing on errors. SPDX-License-Identifier: Apache-2.0 */
#ifndef DQ_BASE_STATUS_H
#define DQ_BASE_STATUS_H

#include <stdint.h>

#include "dartquant/error.h"

/* Records a failure of this thread and returns `status`: set the message where the failure is, then pass it up. */
dq_status dq_fail(dq_status status, const char *fmt, ...) __attribute__((format(printf, 2, 3)));
/* The same with errno's text appended and errno kept as vendor code. */
dq_status dq_fail_errno(dq_status status, const char *fmt, ...) __attribute__((format(printf, 2, 3)));

/* Add context to the recorded error, when not already set: the innermost knowledge wins. They return `status`
 * unchanged so that they can stand in a return statement; with status 0 they do nothing. */
dq_status dq_error_in_file(dq_status status, const char *path);
dq_status dq_error_in_tensor(dq_status status, const char *tensor);
/* More words behind the message of the error that is on its way. */
dq_status dq_error_append(dq_status status, const char *fmt, ...) __attribute__((format(printf, 2, 3)));
dq_status dq_error_at_byte(dq_status status, uint64_t byte);
dq_status dq_error_in_backend(dq_status status, const char *backend, int64_t vendor_code);

/* Forgets the thread's error; called on entry of public functions. */
void dq_error_reset(void);

#define DQ_TRY(expr)                                                                                                   \
    do {                                                                                                               \
        dq_status dq_try_ = (expr);                                                                                    \
        if (dq_try_ != DQ_OK) return dq_try_;                                                                          \
    } while (0)

/* For functions with one clean-up label: sets `status` and jumps to `done`. */
#define DQ_GO(expr)                                                                                                    \
    do {                                                                                                               \
        status = (expr);                                                                                               \
        if (status != DQ_OK) goto done;                                                                                \
    } while (0)

#endif
