/* Token strings by id and ids by string. SPDX-License-Identifier: Apache-2.0 */
#ifndef DQ_TEXT_VOCAB_H
#define DQ_TEXT_VOCAB_H

#include "base/env.h"
#include "base/source.h"

/* No vocabulary in use comes near; keeps hostile ids from asking for the memory. */
enum { DQ_MAX_TOKEN_ID = 1 << 23 };

typedef struct dq_token {
    const char *text; /* NULL: the id is not used */
    size_t bytes;
    const char *shown; /* what decoding starts from: differs from text for added tokens that are normalized */
    size_t shown_bytes;
    bool special;
    bool added; /* not part of the model's own vocabulary */
} dq_token;

typedef struct dq_vocab {
    dq_env *env;
    char *arena;
    size_t arena_used, arena_size;
    dq_token *tokens;
    int64_t size;     /* highest id + 1 */
    dq_name_map *map; /* model vocabulary only */
} dq_vocab;

/* Room for ids below `size` and strings of `bytes` in all. */
dq_status dq_vocab_open(dq_env *env, int64_t size, size_t bytes, dq_vocab *out);
void dq_vocab_clear(dq_vocab *v);
/* DQ_E_FORMAT (naming both) when the id or the string is taken. With `added` the string gets no entry in the map. */
dq_status dq_vocab_add(dq_vocab *v, int64_t id, const char *text, size_t bytes, bool added);
static inline int32_t dq_vocab_id(const dq_vocab *v, const char *text, size_t bytes)
{
    return (int32_t)dq_name_map_get(v->map, text, bytes);
}
/* Any token with that text, the model's first, then added ones; -1 = none. */
int32_t dq_vocab_find_any(const dq_vocab *v, const char *text, size_t bytes);
/* Ids of the byte tokens <0x00>..<0xFF>, -1 where missing. */
void dq_vocab_byte_tokens(const dq_vocab *v, int32_t ids[256]);

#endif
