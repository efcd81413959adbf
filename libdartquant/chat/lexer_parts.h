/* The two halves of the lexer: tags and text (lexer.c), words inside of tags (words.c).
 * SPDX-License-Identifier: Apache-2.0 */
#ifndef DQ_CHAT_LEXER_PARTS_H
#define DQ_CHAT_LEXER_PARTS_H

#include "chat/lexer.h"

enum { DQ_J_MAX_OPEN = 100 /* brackets */ };

typedef struct dq_jlexer {
    dq_jarena *arena;
    dq_jtokens *out;
    const char *at, *end;
    uint32_t line;
    bool line_starting; /* a line break was the last thing taken */
    char brackets[DQ_J_MAX_OPEN];
    int open;
} dq_jlexer;

dq_status dq_jlex_fail(const dq_jlexer *x, const char *what);
dq_status dq_jlex_add(dq_jlexer *x, dq_jtoken token);
void dq_jlex_advance(dq_jlexer *x, const char *end);
bool dq_jlex_starts(const dq_jlexer *x, const char *at, const char *word);
/* One name, number, string or operator at x->at, which is no white space. */
dq_status dq_jlex_word(dq_jlexer *x);

/* Bytes of the white space character (Python's str.isspace) that begins at `s`, or that ends before s + n; 0 = none. */
size_t dq_jspace_at(const char *s, size_t n);
size_t dq_jspace_before(const char *s, size_t n);

#endif
