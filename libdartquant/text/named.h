/* Texts by name, few of them. SPDX-License-Identifier: Apache-2.0 */
#ifndef DQ_TEXT_NAMED_H
#define DQ_TEXT_NAMED_H

#include "base/env.h"

typedef struct dq_named_text {
    char *name, *text;
} dq_named_text;
typedef struct dq_named {
    dq_named_text *items;
    size_t count;
} dq_named;

/* Copies of both; a text that is there under that name is replaced when `replace`, else stays. */
dq_status dq_named_set(dq_env *env, dq_named *list, const char *name, const char *text, size_t bytes, bool replace);
const char *dq_named_get(const dq_named *list, const char *name); /* NULL = absent */
void dq_named_clear(dq_named *list);

#endif
