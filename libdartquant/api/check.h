/* Argument checks at the border. SPDX-License-Identifier: Apache-2.0 */
#ifndef DQ_API_CHECK_H
#define DQ_API_CHECK_H

#include <string.h>

#include "base/status.h"

/* First line of every fallible public function: forgets the thread's last error and refuses NULL arguments. `required` is
 * the conjunction of what must not be NULL; it becomes part of the message. */
#define DQ_ENTER(required)                                                                                             \
    do {                                                                                                               \
        dq_error_reset();                                                                                              \
        if (!(required)) return dq_fail(DQ_E_INVALID, "%s: NULL argument (%s)", __func__, #required);                  \
    } while (0)

/* Copies as much of `full` as the caller's struct has room for. Every open struct begins with uint32_t struct_size, which
 * is kept. `bytes` of the first version is the least a caller may bring. */
static inline dq_status dq_fill_struct(void *out, const void *full, size_t bytes, const char *name)
{
    uint32_t given;
    memcpy(&given, out, sizeof given);
    if (given < bytes || given > 65536)
        return dq_fail(DQ_E_INVALID, "%s: struct_size is %u, must be sizeof(%s) = %zu", name, given, name, bytes);
    memcpy((char *)out + sizeof given, (const char *)full + sizeof given, bytes - sizeof given);
    memset((char *)out + bytes, 0, given - bytes); /* a caller newer than this library: what we do not know is zero */
    return DQ_OK;
}

#endif
