/* Argument checks at the border. SPDX-License-Identifier: Apache-2.0 */
#ifndef DQ_API_CHECK_H
#define DQ_API_CHECK_H

#include <string.h>

#include "base/open_struct.h"
#include "base/status.h"

/* First line of every fallible public function: forgets the thread's last error and refuses NULL arguments. `required` is
 * the conjunction of what must not be NULL; it becomes part of the message. */
#define DQ_ENTER(required)                                                                                             \
    do {                                                                                                               \
        dq_error_reset();                                                                                              \
        if (!(required)) return dq_fail(DQ_E_INVALID, "%s: NULL argument (%s)", __func__, #required);                  \
    } while (0)

/* Copies as much of `full` as the caller's struct has room for. Every open struct begins with uint32_t struct_size, which
 * is kept. `least` is the size of version 1.0, which every caller has; `bytes` is ours. */
static inline dq_status dq_fill_struct(void *out, const void *full, size_t least, size_t bytes, const char *name)
{
    uint32_t given;
    memcpy(&given, out, sizeof given);
    DQ_TRY(dq_open_struct_check(given, least, name));
    size_t known = given < bytes ? given : bytes;
    memcpy((char *)out + sizeof given, (const char *)full + sizeof given, known - sizeof given);
    memset((char *)out + known, 0, given - known); /* a caller newer than this library: what we do not know is zero */
    return DQ_OK;
}
#define DQ_FILL_STRUCT(out, full, type, last) dq_fill_struct(out, full, DQ_SIZE_TO(type, last), sizeof(type), #type)

#endif
