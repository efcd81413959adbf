/* SPDX-License-Identifier: Apache-2.0 */
#include "text/vocab.h"

#include <stdio.h>
#include <string.h>

#include "base/status.h"

dq_status dq_vocab_open(dq_env *env, int64_t size, size_t bytes, dq_vocab *out)
{
    dq_vocab v = {.env = env, .size = size, .arena_size = bytes};
    v.tokens = dq_calloc(env, (size_t)size, sizeof *v.tokens);
    v.arena = dq_alloc(env, bytes);
    dq_status status = v.tokens && v.arena ? dq_name_map_new(env, (size_t)size, &v.map) : DQ_E_NOMEM;
    if (status != DQ_OK) {
        dq_free(v.tokens);
        dq_free(v.arena);
        return status;
    }
    *out = v;
    return DQ_OK;
}

void dq_vocab_clear(dq_vocab *v)
{
    dq_name_map_free(v->map);
    dq_free(v->tokens);
    dq_free(v->arena);
    *v = (dq_vocab){.env = v->env};
}

dq_status dq_vocab_add(dq_vocab *v, int64_t id, const char *text, size_t bytes, bool added)
{
    if (id < 0 || id >= v->size)
        return dq_fail(DQ_E_FORMAT, "token '%.*s' has id %lld outside of 0..%lld", (int)(bytes < 80 ? bytes : 80), text,
                       (long long)id, (long long)v->size - 1);
    dq_token *t = &v->tokens[id];
    if (t->text)
        return dq_fail(DQ_E_FORMAT, "id %lld is given to two tokens: '%.*s' and '%.*s'", (long long)id,
                       (int)(t->bytes < 80 ? t->bytes : 80), t->text, (int)(bytes < 80 ? bytes : 80), text);
    if (bytes > v->arena_size - v->arena_used) return dq_fail(DQ_E_INTERNAL, "vocabulary arena too small");
    char *copy = v->arena + v->arena_used;
    memcpy(copy, text, bytes);
    if (!added) {
        dq_status status = dq_name_map_add(v->map, copy, bytes, id);
        if (status == DQ_E_INVALID)
            return dq_fail(DQ_E_FORMAT, "token '%.*s' has two ids: %lld and %lld", (int)(bytes < 80 ? bytes : 80), text,
                           (long long)dq_name_map_get(v->map, text, bytes), (long long)id);
        DQ_TRY(status);
    }
    v->arena_used += bytes;
    *t = (dq_token){.text = copy, .bytes = bytes, .shown = copy, .shown_bytes = bytes, .added = added};
    return DQ_OK;
}

int32_t dq_vocab_find_any(const dq_vocab *v, const char *text, size_t bytes)
{
    int32_t id = dq_vocab_id(v, text, bytes);
    for (int64_t i = 0; id < 0 && i < v->size; i++)
        if (v->tokens[i].added && v->tokens[i].bytes == bytes && memcmp(v->tokens[i].text, text, bytes) == 0)
            id = (int32_t)i;
    return id;
}

void dq_vocab_byte_tokens(const dq_vocab *v, int32_t ids[256])
{
    for (int b = 0; b < 256; b++) {
        char name[8];
        int n = snprintf(name, sizeof name, "<0x%02X>", (unsigned)b);
        ids[b] = dq_vocab_id(v, name, (size_t)n);
    }
}
