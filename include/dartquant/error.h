/* libdartquant: details of the last failure on the calling thread. Since 1.0.
 * SPDX-License-Identifier: Apache-2.0 */
#ifndef DARTQUANT_ERROR_H
#define DARTQUANT_ERROR_H

#include "dartquant/types.h"

#ifdef __cplusplus
extern "C" {
#endif

/* All getters describe the last fallible call of the calling thread, never return NULL ("" when unknown), and stay
 * valid until that thread's next fallible call. Every fallible call resets the record on entry. */
DQ_API dq_status dq_error_last(void);
/* One sentence with everything known: message, file, tensor, byte, backend. */
DQ_API const char *dq_error_text(void);
DQ_API const char *dq_error_file(void);
DQ_API const char *dq_error_tensor(void);
/* Byte position in the file, or -1. */
DQ_API int64_t dq_error_byte(void);
DQ_API const char *dq_error_backend(void);
/* errno or the device library's own code, or 0. */
DQ_API int64_t dq_error_vendor_code(void);
/* Constant name of a status, e.g. "DQ_E_FORMAT"; "DQ_E_?" when unknown. */
DQ_API const char *dq_status_name(dq_status status);

#ifdef __cplusplus
}
#endif
#endif
