/* Element types: sizes and names. SPDX-License-Identifier: Apache-2.0 */
#ifndef DQ_BASE_DTYPE_H
#define DQ_BASE_DTYPE_H

#include <stddef.h>

#include "dartquant/types.h"

/* Bytes of one element; 0 for DQ_BLOCK and DQ_DTYPE_OTHER. */
static inline size_t dq_dtype_size(dq_dtype t)
{
    switch (t) {
        case DQ_F64:
        case DQ_I64:
        case DQ_U64: return 8;
        case DQ_F32:
        case DQ_I32:
        case DQ_U32: return 4;
        case DQ_F16:
        case DQ_BF16:
        case DQ_I16:
        case DQ_U16: return 2;
        case DQ_U8:
        case DQ_I8:
        case DQ_BOOL:
        case DQ_F8_E4M3:
        case DQ_F8_E5M2: return 1;
        default: return 0;
    }
}

static inline const char *dq_dtype_name(dq_dtype t)
{
    static const char *const names[] = {"F32", "F64", "F16", "BF16", "U8",      "I8",      "I16",   "I32",  "I64",
                                        "U16", "U32", "U64", "BOOL", "F8_E4M3", "F8_E5M2", "BLOCK", "OTHER"};
    return t >= 0 && t <= DQ_DTYPE_OTHER ? names[t] : "?";
}

#endif
