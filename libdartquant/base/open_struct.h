/* Structs that may grow at the end (docs/abi.md). They begin with uint32_t struct_size, the size its maker knew.
 * SPDX-License-Identifier: Apache-2.0 */
#ifndef DQ_BASE_OPEN_STRUCT_H
#define DQ_BASE_OPEN_STRUCT_H

#include <stddef.h>
#include <string.h>

#include "base/status.h"

enum { DQ_STRUCT_LIMIT = 65536 }; /* more is no size but garbage */

/* Size of `type` up to and with `last`, the last member of version 1.0. */
#define DQ_SIZE_TO(type, last) (offsetof(type, last) + sizeof(((type *)NULL)->last))

static inline dq_status dq_open_struct_check(uint32_t given, size_t least, const char *name)
{
    if (given >= least && given <= DQ_STRUCT_LIMIT) return DQ_OK;
    return dq_fail(DQ_E_INVALID, "%s: struct_size is %u, must be sizeof(%s), at least %zu", name, given, name, least);
}

/* Takes a struct of the caller over into ours of `bytes`: members it does not have are zero, members that we do not know
 * are ignored. The version (`abi`) is the caller's to check before. */
static inline dq_status dq_take_struct(void *ours, const void *theirs, size_t least, size_t bytes, const char *name)
{
    uint32_t given;
    memcpy(&given, theirs, sizeof given);
    DQ_TRY(dq_open_struct_check(given, least, name));
    memset(ours, 0, bytes);
    memcpy(ours, theirs, given < bytes ? given : bytes);
    return DQ_OK;
}
#define DQ_TAKE_STRUCT(ours, theirs, type, last)                                                                       \
    dq_take_struct(ours, theirs, DQ_SIZE_TO(type, last), sizeof(type), #type)

#endif
