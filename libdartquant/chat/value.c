/* Memory, lists and dicts of the template language. SPDX-License-Identifier: Apache-2.0 */
#include "chat/value.h"

#include <string.h>

#include "base/status.h"

enum { CHUNK = 32 << 10, ALIGN = 16 };

typedef struct dq_jchunk {
    struct dq_jchunk *next;
    size_t used, size;
    _Alignas(ALIGN) unsigned char data[];
} dq_jchunk;

dq_status dq_jarena_charge(dq_jarena *a, size_t bytes)
{
    if (bytes > a->limit || a->bytes > a->limit - bytes)
        return dq_fail(DQ_E_INVALID, "the chat template asks for more than %llu MB of memory",
                       (unsigned long long)(a->limit >> 20));
    a->bytes += bytes;
    return DQ_OK;
}

dq_status dq_jarena_take(dq_jarena *a, size_t bytes, void **out)
{
    DQ_TRY(dq_jarena_charge(a, bytes));
    size_t rounded = (bytes + ALIGN - 1) / ALIGN * ALIGN; /* the limit keeps it from wrapping */
    dq_jchunk *c = a->chunks;
    if (!c || c->size - c->used < rounded) {
        size_t size = rounded > CHUNK ? rounded : CHUNK;
        c = dq_alloc(a->env, sizeof *c + size);
        if (!c) return DQ_E_NOMEM;
        *c = (dq_jchunk){.next = a->chunks, .size = size};
        a->chunks = c;
    }
    *out = c->data + c->used;
    c->used += rounded;
    return DQ_OK;
}

void dq_jarena_clear(dq_jarena *a)
{
    while (a->chunks) {
        dq_jchunk *next = a->chunks->next;
        dq_free(a->chunks);
        a->chunks = next;
    }
    a->bytes = 0;
}

/* ---- texts ---- */

dq_jtext dq_jtext_c(const char *text) { return (dq_jtext){text, strlen(text)}; }

bool dq_jtext_is(dq_jtext t, const char *word)
{
    return t.size == strlen(word) && (t.size == 0 || memcmp(t.data, word, t.size) == 0);
}

bool dq_jtext_equal(dq_jtext a, dq_jtext b)
{
    return a.size == b.size && (a.size == 0 || memcmp(a.data, b.data, a.size) == 0);
}

dq_status dq_jtext_copy(dq_jarena *arena, const char *data, size_t size, dq_jtext *out)
{
    void *copy = NULL;
    DQ_TRY(dq_jarena_take(arena, size, &copy));
    if (size) memcpy(copy, data, size);
    *out = dq_jtext_of(copy, size);
    return DQ_OK;
}

static bool begins_character(char c) { return ((unsigned char)c & 0xc0) != 0x80; }

size_t dq_jtext_length(dq_jtext t)
{
    size_t n = 0;
    for (size_t i = 0; i < t.size; i++) n += begins_character(t.data[i]);
    return n;
}

size_t dq_jtext_offset(dq_jtext t, size_t index)
{
    size_t i = 0;
    for (; i < t.size; i++)
        if (begins_character(t.data[i]) && index-- == 0) break;
    return i;
}

/* ---- lists ---- */

/* Room for one more of `size` bytes each; the old memory stays until the end of the rendering. */
static dq_status grow(dq_jarena *arena, void **data, size_t count, size_t capacity, size_t size)
{
    void *more = NULL;
    size_t bytes;
    if (!dq_mul_ok(capacity, size, &bytes)) bytes = SIZE_MAX;
    DQ_TRY(dq_jarena_take(arena, bytes, &more));
    if (count) memcpy(more, *data, count * size);
    *data = more;
    return DQ_OK;
}

dq_status dq_jlist_new(dq_jarena *arena, dq_jkind kind, size_t capacity, dq_jvalue *out)
{
    void *memory = NULL, *items = NULL;
    DQ_TRY(dq_jarena_take(arena, sizeof(dq_jlist), &memory));
    if (capacity) DQ_TRY(grow(arena, &items, 0, capacity, sizeof(dq_jvalue)));
    dq_jlist *list = memory;
    *list = (dq_jlist){.items = items, .capacity = capacity};
    *out = (dq_jvalue){.kind = kind, .list = list};
    return DQ_OK;
}

dq_status dq_jlist_add(dq_jarena *arena, dq_jlist *l, dq_jvalue item)
{
    if (l->count == l->capacity) {
        size_t more = l->capacity ? 2 * l->capacity : 4;
        void *items = l->items;
        DQ_TRY(grow(arena, &items, l->count, more, sizeof *l->items));
        l->items = items;
        l->capacity = more;
    }
    l->items[l->count++] = item;
    return DQ_OK;
}

dq_status dq_jpair(dq_jarena *arena, dq_jvalue a, dq_jvalue b, dq_jvalue *out)
{
    DQ_TRY(dq_jlist_new(arena, DQ_J_TUPLE, 2, out));
    out->list->items[0] = a;
    out->list->items[1] = b;
    out->list->count = 2;
    return DQ_OK;
}

/* ---- dicts: few keys, so they are searched one by one ---- */

dq_status dq_jdict_new(dq_jarena *arena, dq_jkind kind, dq_jvalue *out)
{
    void *memory = NULL;
    DQ_TRY(dq_jarena_take(arena, sizeof(dq_jdict), &memory));
    *(dq_jdict *)memory = (dq_jdict){0};
    *out = (dq_jvalue){.kind = kind, .dict = memory};
    return DQ_OK;
}

static bool same_key(const dq_jvalue *a, const dq_jvalue *b)
{
    if (a->kind == DQ_J_STRING && b->kind == DQ_J_STRING) return dq_jtext_equal(a->text, b->text);
    if (dq_jis_whole(a) && dq_jis_whole(b)) return dq_jwhole(a) == dq_jwhole(b);
    if (dq_jis_number(a) && dq_jis_number(b)) return dq_jnumber(a) == dq_jnumber(b);
    return a->kind == DQ_J_NONE && b->kind == DQ_J_NONE;
}

const dq_jvalue *dq_jdict_get(const dq_jdict *d, const dq_jvalue *key)
{
    for (size_t i = 0; i < d->count; i++)
        if (same_key(&d->keys[i], key)) return &d->values[i];
    return NULL;
}

const dq_jvalue *dq_jdict_find(const dq_jdict *d, dq_jtext key)
{
    dq_jvalue k = dq_jstring(key);
    return dq_jdict_get(d, &k);
}

dq_status dq_jdict_set(dq_jarena *arena, dq_jdict *d, dq_jvalue key, dq_jvalue value)
{
    for (size_t i = 0; i < d->count; i++)
        if (same_key(&d->keys[i], &key)) {
            d->values[i] = value;
            return DQ_OK;
        }
    if (d->count == d->capacity) {
        size_t more = d->capacity ? 2 * d->capacity : 4;
        void *keys = d->keys, *values = d->values;
        DQ_TRY(grow(arena, &keys, d->count, more, sizeof *d->keys));
        DQ_TRY(grow(arena, &values, d->count, more, sizeof *d->values));
        d->keys = keys;
        d->values = values;
        d->capacity = more;
    }
    d->keys[d->count] = key;
    d->values[d->count++] = value;
    return DQ_OK;
}

/* ---- what Python says of a value ---- */

const char *dq_jtype_name(const dq_jvalue *v)
{
    static const char *const names[] = {"Undefined",   "NoneType", "bool",     "int",  "float",
                                        "str",         "list",     "tuple",    "dict", "Namespace",
                                        "LoopContext", "method",   "function", "Macro"};
    return names[v->kind];
}

bool dq_jtruth(const dq_jvalue *v)
{
    switch (v->kind) {
        case DQ_J_UNDEFINED:
        case DQ_J_NONE: return false;
        case DQ_J_BOOL: return v->truth;
        case DQ_J_INT: return v->integer != 0;
        case DQ_J_FLOAT: return v->number != 0;
        case DQ_J_STRING: return v->text.size > 0;
        case DQ_J_LIST:
        case DQ_J_TUPLE: return v->list->count > 0;
        case DQ_J_DICT: return v->dict->count > 0;
        default: return true;
    }
}
