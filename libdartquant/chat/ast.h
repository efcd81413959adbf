/* A template as a tree. SPDX-License-Identifier: Apache-2.0 */
#ifndef DQ_CHAT_AST_H
#define DQ_CHAT_AST_H

#include "chat/value.h"

typedef enum dq_jnode_kind {
    /* expressions */
    DQ_JN_CONST,   /* value */
    DQ_JN_NAME,    /* text */
    DQ_JN_LIST,    /* a: items */
    DQ_JN_TUPLE,   /* a: items */
    DQ_JN_DICT,    /* a: PAIR ... */
    DQ_JN_PAIR,    /* a: key, b: value */
    DQ_JN_ATTR,    /* a.text */
    DQ_JN_ITEM,    /* a[b] */
    DQ_JN_SLICE,   /* x[a:b:c], each may be NULL; only as b of ITEM */
    DQ_JN_CALL,    /* a(b ...) */
    DQ_JN_KEYWORD, /* text=a, among arguments */
    DQ_JN_FILTER,  /* a | text(b ...); a NULL: what the block puts out */
    DQ_JN_TEST,    /* a is text(b ...) */
    DQ_JN_NEG,
    DQ_JN_POS,
    DQ_JN_NOT,
    DQ_JN_BINARY, /* a op b */
    DQ_JN_AND,
    DQ_JN_OR,
    DQ_JN_COMPARE, /* a, then b: OPERAND ... */
    DQ_JN_OPERAND, /* op a */
    DQ_JN_CONCAT,  /* a ~ ... */
    DQ_JN_COND,    /* b if a else c (or NULL) */
    /* statements */
    DQ_JN_DATA,     /* text */
    DQ_JN_PRINT,    /* a */
    DQ_JN_IF,       /* a: BRANCH ... */
    DQ_JN_BRANCH,   /* a: condition (NULL = else), body */
    DQ_JN_FOR,      /* a: target, b: what to go through, c: filter or NULL; body, orelse */
    DQ_JN_SET,      /* a: target, b: value, or NULL: the body, through the filters c */
    DQ_JN_NSREF,    /* text.text2, target of set */
    DQ_JN_WITH,     /* a: SET ..., body */
    DQ_JN_MACRO,    /* text, a: PARAM ..., body */
    DQ_JN_PARAM,    /* text, a: default or NULL */
    DQ_JN_FILTERED, /* c: filters, body */
    DQ_JN_GROUP,    /* body, as {% generation %} */
    DQ_JN_BREAK,
    DQ_JN_CONTINUE
} dq_jnode_kind;

typedef enum dq_jop {
    DQ_JO_ADD,
    DQ_JO_SUB,
    DQ_JO_MUL,
    DQ_JO_DIV,
    DQ_JO_FLOORDIV,
    DQ_JO_MOD,
    DQ_JO_POW,
    DQ_JO_EQ,
    DQ_JO_NE,
    DQ_JO_LT,
    DQ_JO_LE,
    DQ_JO_GT,
    DQ_JO_GE,
    DQ_JO_IN,
    DQ_JO_NOT_IN
} dq_jop;

typedef struct dq_jnode dq_jnode;
struct dq_jnode {
    dq_jnode_kind kind;
    dq_jop op;
    uint32_t line;
    dq_jnode *next; /* in a list */
    dq_jnode *a, *b, *c, *body, *orelse;
    dq_jtext text, text2;
    dq_jvalue value;
};

#endif
