/* SPDX-License-Identifier: Apache-2.0 */
#include "text/named.h"

#include <string.h>

#include "base/status.h"

static dq_named_text *find(const dq_named *list, const char *name)
{
    for (size_t i = 0; i < list->count; i++)
        if (strcmp(list->items[i].name, name) == 0) return &list->items[i];
    return NULL;
}

dq_status dq_named_set(dq_env *env, dq_named *list, const char *name, const char *text, size_t bytes, bool replace)
{
    dq_named_text *there = find(list, name), *more;
    if (there && !replace) return DQ_OK;
    char *copy = dq_strndup(env, text, bytes), *key = NULL;
    if (!copy) return DQ_E_NOMEM;
    if (there) {
        dq_free(there->text);
        there->text = copy;
        return DQ_OK;
    }
    key = dq_strdup(env, name);
    more = key ? dq_realloc(env, list->items, (list->count + 1) * sizeof *more) : NULL;
    if (!more) {
        dq_free(copy);
        dq_free(key);
        return DQ_E_NOMEM;
    }
    list->items = more;
    more[list->count++] = (dq_named_text){key, copy};
    return DQ_OK;
}

const char *dq_named_get(const dq_named *list, const char *name)
{
    const dq_named_text *there = find(list, name);
    return there ? there->text : NULL;
}

void dq_named_clear(dq_named *list)
{
    for (size_t i = 0; i < list->count; i++) {
        dq_free(list->items[i].name);
        dq_free(list->items[i].text);
    }
    dq_free(list->items);
    *list = (dq_named){0};
}
