/* SPDX-License-Identifier: Apache-2.0 */
#include "io/pt_names.h"

#include <stdio.h>
#include <string.h>

#include "base/status.h"
#include "io/limits.h"

static dq_status add(dq_pt_names *n, const dq_pickle_tensor *tensor, size_t length)
{
    if (n->count == n->capacity) {
        size_t bigger = n->capacity ? n->capacity * 2 : 64;
        dq_pt_named *fresh = dq_realloc(n->env, n->items, bigger * sizeof *fresh);
        if (!fresh) return DQ_E_NOMEM;
        n->items = fresh;
        n->capacity = bigger;
    }
    char *name = dq_strndup(n->env, n->prefix, length);
    if (!name) return DQ_E_NOMEM;
    n->items[n->count++] = (dq_pt_named){name, tensor};
    return DQ_OK;
}

/* Appends a key to the prefix of `length` bytes; *longer is the new length. */
static dq_status extend(dq_pt_names *n, size_t length, bool top, const dq_pickle_value *key, size_t *longer)
{
    char number[24];
    const char *text = number;
    size_t bytes = 0;
    if (key->kind == DQ_PICKLE_STRING) {
        text = key->as.text;
        bytes = key->bytes;
    } else if (key->kind == DQ_PICKLE_INT) {
        bytes = (size_t)snprintf(number, sizeof number, "%lld", (long long)key->as.integer);
    } else {
        return dq_fail(DQ_E_UNSUPPORTED, "pickle: a dict key that is neither text nor an integer");
    }
    if (bytes + 1 >= sizeof n->prefix - length)
        return dq_fail(DQ_E_UNSUPPORTED, "pickle: a name longer than %zu bytes", sizeof n->prefix - 2);
    if (bytes && memchr(text, '\0', bytes)) return dq_fail(DQ_E_FORMAT, "pickle: a name holds a NUL");
    if (!top) n->prefix[length++] = '.';
    if (bytes) memcpy(n->prefix + length, text, bytes);
    *longer = length + bytes;
    return DQ_OK;
}

static dq_status walk(dq_pt_names *n, const dq_pickle_value *v, size_t length, int depth)
{
    if (v->kind == DQ_PICKLE_TENSOR) return add(n, v->as.tensor, length);
    bool dict = v->kind == DQ_PICKLE_DICT;
    if (!dict && v->kind != DQ_PICKLE_LIST && v->kind != DQ_PICKLE_TUPLE) return DQ_OK;
    if (depth >= DQ_PT_MAX_DEPTH)
        return dq_fail(DQ_E_UNSUPPORTED, "pickle: containers nested deeper than %d (or in themselves)",
                       DQ_PT_MAX_DEPTH);
    size_t step = dict ? 2 : 1;
    for (size_t i = 0; i < v->as.list->count; i += step) {
        /* A container may be reached on many ways: this bounds the walk, not the file. */
        if (++n->visited > DQ_PT_MAX_NODES)
            return dq_fail(DQ_E_UNSUPPORTED, "pickle: more than %zu values", DQ_PT_MAX_NODES);
        const dq_pickle_value *item = &v->as.list->items[i];
        dq_pickle_value position = {.kind = DQ_PICKLE_INT, .as.integer = (int64_t)i};
        const dq_pickle_value *value = dict ? item + 1 : item;
        if (value->kind < DQ_PICKLE_TUPLE || value->kind == DQ_PICKLE_GLOBAL) continue;
        size_t longer = 0;
        DQ_TRY(extend(n, length, depth == 0, dict ? item : &position, &longer));
        DQ_TRY(walk(n, value, longer, depth + 1));
    }
    return DQ_OK;
}

dq_status dq_pt_collect(dq_env *env, const dq_pickle_value *root, dq_pt_names *out)
{
    *out = (dq_pt_names){.env = env};
    return walk(out, root, 0, 0);
}

void dq_pt_names_clear(dq_pt_names *names)
{
    for (size_t i = 0; i < names->count; i++) dq_free(names->items[i].name);
    dq_free(names->items);
    names->items = NULL;
    names->count = 0;
}
