/* Growable arrays of the text room. SPDX-License-Identifier: Apache-2.0 */
#include "text/bytes.h"

#include "base/status.h"

/* Doubles `*data` until `need` elements fit. */
static dq_status grow(dq_env *env, void **data, size_t *capacity, size_t need, size_t element)
{
    size_t wanted = *capacity < 32 ? 32 : *capacity;
    while (wanted < need && wanted <= SIZE_MAX / 2) wanted *= 2;
    size_t bytes;
    if (wanted < need || !dq_mul_ok(wanted, element, &bytes))
        return dq_fail(DQ_E_NOMEM, "a text of %zu pieces does not fit in memory", need);
    void *bigger = dq_realloc(env, *data, bytes);
    if (!bigger) return DQ_E_NOMEM;
    *data = bigger;
    *capacity = wanted;
    return DQ_OK;
}

dq_status dq_bytes_reserve(dq_bytes *b, size_t extra)
{
    size_t need;
    if (!dq_add_ok(b->size, extra, &need) || !dq_add_ok(need, 1, &need))
        return dq_fail(DQ_E_NOMEM, "a text of more than %zu bytes does not fit in memory", b->size);
    if (need <= b->capacity) return DQ_OK;
    return grow(b->env, (void **)&b->data, &b->capacity, need, 1);
}

dq_status dq_bytes_add(dq_bytes *b, const void *data, size_t size)
{
    DQ_TRY(dq_bytes_reserve(b, size));
    if (size) memcpy(b->data + b->size, data, size);
    b->size += size;
    b->data[b->size] = '\0';
    return DQ_OK;
}

void dq_bytes_clear(dq_bytes *b)
{
    dq_free(b->data);
    *b = (dq_bytes){.env = b->env};
}

void dq_pieces_init(dq_pieces *p, dq_env *env) { *p = (dq_pieces){.text = {.env = env}}; }

void dq_pieces_clear(dq_pieces *p)
{
    dq_bytes_clear(&p->text);
    dq_free(p->spans);
    dq_pieces_init(p, p->text.env);
}

dq_status dq_pieces_add(dq_pieces *p, size_t start, size_t length, int32_t id, bool first)
{
    if (p->count == p->capacity)
        DQ_TRY(grow(p->text.env, (void **)&p->spans, &p->capacity, p->count + 1, sizeof *p->spans));
    p->spans[p->count++] = (dq_span){start, length, id, first};
    return DQ_OK;
}

dq_status dq_id_list_grow(dq_id_list *list, size_t extra)
{
    size_t need;
    if (!dq_add_ok(list->count, extra, &need)) return dq_fail(DQ_E_NOMEM, "too many token ids");
    if (need <= list->capacity) return DQ_OK;
    return grow(list->env, (void **)&list->data, &list->capacity, need, sizeof *list->data);
}
