/* The words of a template. SPDX-License-Identifier: Apache-2.0 */
#ifndef DQ_CHAT_LEXER_H
#define DQ_CHAT_LEXER_H

#include "chat/value.h"

typedef enum dq_jtoken_kind {
    DQ_JT_END,
    DQ_JT_DATA, /* text outside of tags */
    DQ_JT_PRINT_BEGIN,
    DQ_JT_PRINT_END,
    DQ_JT_BLOCK_BEGIN,
    DQ_JT_BLOCK_END,
    DQ_JT_NAME,
    DQ_JT_STRING, /* without quotes, escapes resolved */
    DQ_JT_INT,
    DQ_JT_FLOAT,
    DQ_JT_OPERATOR
} dq_jtoken_kind;

typedef struct dq_jtoken {
    dq_jtoken_kind kind;
    uint32_t line;
    dq_jtext text; /* of names, strings, data, and operators as written */
    union {
        int64_t integer;
        double number;
    };
} dq_jtoken;

typedef struct dq_jtokens {
    dq_jtoken *items; /* the last is DQ_JT_END */
    size_t count, capacity;
} dq_jtokens;

/* Cuts a template up as Jinja does with trim_blocks and lstrip_blocks. Everything lives in `arena`.
 * Errors: DQ_E_FORMAT with the line. */
dq_status dq_jlex(dq_jarena *arena, const char *text, size_t bytes, dq_jtokens *out);

#endif
