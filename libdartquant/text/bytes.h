/* Growable byte strings and the pieces a text is cut into on its way to token ids.
 * SPDX-License-Identifier: Apache-2.0 */
#ifndef DQ_TEXT_BYTES_H
#define DQ_TEXT_BYTES_H

#include <string.h>

#include "base/env.h"

typedef struct dq_bytes {
    dq_env *env;
    char *data;
    size_t size, capacity;
} dq_bytes;

/* Room for `extra` more bytes (and a final NUL). */
dq_status dq_bytes_reserve(dq_bytes *b, size_t extra);
dq_status dq_bytes_add(dq_bytes *b, const void *data, size_t size);
void dq_bytes_clear(dq_bytes *b);

/* A run of text still to be tokenized (id < 0) or an added token that was recognised (id >= 0). */
typedef struct dq_span {
    size_t start, length;
    int32_t id;
    bool first; /* begins where the caller's text begins (Metaspace's prepend_scheme "first") */
} dq_span;

typedef struct dq_pieces {
    dq_bytes text;
    dq_span *spans;
    size_t count, capacity;
} dq_pieces;

void dq_pieces_init(dq_pieces *p, dq_env *env);
void dq_pieces_clear(dq_pieces *p);
dq_status dq_pieces_add(dq_pieces *p, size_t start, size_t length, int32_t id, bool first);

typedef struct dq_id_list {
    dq_env *env;
    int32_t *data;
    size_t count, capacity;
} dq_id_list;

dq_status dq_id_list_grow(dq_id_list *list, size_t extra);
static inline dq_status dq_id_list_add(dq_id_list *list, int32_t id)
{
    if (list->count == list->capacity) {
        dq_status status = dq_id_list_grow(list, 1);
        if (status != DQ_OK) return status;
    }
    list->data[list->count++] = id;
    return DQ_OK;
}

#endif
