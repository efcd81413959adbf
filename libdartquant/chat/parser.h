/* From words to a tree, after Jinja's grammar (jinja2/parser.py). SPDX-License-Identifier: Apache-2.0 */
#ifndef DQ_CHAT_PARSER_H
#define DQ_CHAT_PARSER_H

#include "chat/ast.h"
#include "chat/lexer.h"

enum { DQ_J_MAX_NESTING = 80 /* of brackets and statements */ };

typedef struct dq_jparser {
    dq_jarena *arena;
    const dq_jtoken *at; /* the last token is DQ_JT_END and is never passed */
    int depth, loops;    /* of nesting; for statements around */
} dq_jparser;

/* The whole template: a list of statements. Errors: DQ_E_FORMAT, DQ_E_UNSUPPORTED, with the line. */
dq_status dq_jparse(dq_jarena *arena, const dq_jtokens *tokens, dq_jnode **out);

/* ---- shared by the parser's files ---- */
dq_status dq_jparse_fail(const dq_jparser *p, dq_status status, const char *fmt, ...)
    __attribute__((format(printf, 3, 4)));
/* "unexpected X, wanted Y" */
dq_status dq_jparse_unexpected(const dq_jparser *p, const char *wanted);
dq_status dq_jparse_node(dq_jparser *p, dq_jnode_kind kind, dq_jnode **out);
bool dq_jat_op(const dq_jparser *p, const char *op);
bool dq_jat_name(const dq_jparser *p, const char *name);
bool dq_jskip_op(dq_jparser *p, const char *op);
bool dq_jskip_name(dq_jparser *p, const char *name);
dq_status dq_jexpect_op(dq_jparser *p, const char *op);
dq_status dq_jexpect_name(dq_jparser *p, dq_jtext *out); /* any name */
void dq_jnext(dq_jparser *p);
/* Around everything that calls itself. */
dq_status dq_jenter(dq_jparser *p);
static inline void dq_jleave(dq_jparser *p) { p->depth--; }

/* Appends to a list that ends at *tail. */
static inline void dq_jappend(dq_jnode ***tail, dq_jnode *node)
{
    **tail = node;
    *tail = &node->next;
}

/* With `condition` also "x if y else z". */
dq_status dq_jparse_expression(dq_jparser *p, bool condition, dq_jnode **out);
/* The same, or several with commas between: a tuple. */
dq_status dq_jparse_tuple(dq_jparser *p, bool condition, dq_jnode **out);
dq_status dq_jparse_primary(dq_jparser *p, dq_jnode **out);
/* With a sign in front, and .name [index] (arguments) behind; with `filters` also | filter and is test. */
dq_status dq_jparse_unary(dq_jparser *p, bool filters, dq_jnode **out);
/* "| name(...)" as often as it stands there; the operand may be NULL. */
dq_status dq_jparse_filters(dq_jparser *p, dq_jnode *operand, dq_jnode **out);
dq_status dq_jparse_filter(dq_jparser *p, dq_jnode *operand, dq_jnode **out); /* one, at its name */

#endif
