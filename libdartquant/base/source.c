/* SPDX-License-Identifier: Apache-2.0 */
#include "base/source.h"

#include <string.h>

#include "base/status.h"

typedef struct slot {
    const char *key;
    size_t length;
    int64_t value;
} slot;

struct dq_name_map {
    dq_env *env;
    slot *slots;
    size_t capacity; /* power of two */
    size_t used;
};

static uint64_t hash(const char *key, size_t length)
{
    uint64_t h = 1469598103934665603u;
    for (size_t i = 0; i < length; i++) h = (h ^ (unsigned char)key[i]) * 1099511628211u;
    return h ^ (h >> 29);
}

dq_status dq_name_map_new(dq_env *env, size_t expected, dq_name_map **out)
{
    size_t capacity = 16;
    while (capacity < SIZE_MAX / 4 && capacity < expected * 2) capacity *= 2;
    dq_name_map *map = dq_calloc(env, 1, sizeof *map);
    if (!map) return DQ_E_NOMEM;
    map->env = env;
    map->capacity = capacity;
    map->slots = dq_calloc(env, capacity, sizeof *map->slots);
    if (!map->slots) {
        dq_free(map);
        return DQ_E_NOMEM;
    }
    *out = map;
    return DQ_OK;
}

void dq_name_map_free(dq_name_map *map)
{
    if (!map) return;
    dq_free(map->slots);
    dq_free(map);
}

static slot *find(const dq_name_map *map, const char *key, size_t length)
{
    size_t mask = map->capacity - 1;
    size_t i = hash(key, length) & mask;
    while (map->slots[i].key && (map->slots[i].length != length || memcmp(map->slots[i].key, key, length) != 0))
        i = (i + 1) & mask;
    return &map->slots[i];
}

static dq_status grow(dq_name_map *map)
{
    dq_name_map bigger = {map->env, dq_calloc(map->env, map->capacity * 2, sizeof(slot)), map->capacity * 2, map->used};
    if (!bigger.slots) return DQ_E_NOMEM;
    for (size_t i = 0; i < map->capacity; i++)
        if (map->slots[i].key) *find(&bigger, map->slots[i].key, map->slots[i].length) = map->slots[i];
    dq_free(map->slots);
    *map = bigger;
    return DQ_OK;
}

dq_status dq_name_map_add(dq_name_map *map, const char *key, size_t length, int64_t value)
{
    if ((map->used + 1) * 3 > map->capacity * 2) DQ_TRY(grow(map));
    slot *s = find(map, key, length);
    if (s->key) return DQ_E_INVALID;
    *s = (slot){key, length, value};
    map->used++;
    return DQ_OK;
}

int64_t dq_name_map_get(const dq_name_map *map, const char *key, size_t length)
{
    if (!map) return -1;
    const slot *s = find(map, key, length);
    return s->key ? s->value : -1;
}

int64_t dq_source_find(const dq_source *source, const char *name)
{
    return dq_name_map_get(source->names, name, strlen(name));
}

dq_status dq_source_need(const dq_source *source, const char *name, int64_t *index)
{
    int64_t found = dq_source_find(source, name);
    if (found >= 0) {
        *index = found;
        return DQ_OK;
    }
    dq_status status = dq_error_in_tensor(dq_fail(DQ_E_MISMATCH, "the tensor is missing"), name);
    const char *file = source->count > 0 ? source->tensors[0].file : NULL;
    for (int64_t i = 1; file && i < source->count; i++)
        if (!source->tensors[i].file || strcmp(source->tensors[i].file, file) != 0) return status;
    return file ? dq_error_in_file(status, file) : status;
}

void dq_source_free(dq_source *source)
{
    if (source) source->ops->free(source);
}

dq_status dq_source_read_rows(dq_source *source, int64_t tensor, int64_t row, int64_t count, float *out)
{
    const dq_tensor_info *t = &source->tensors[tensor];
    int64_t rows = dq_info_rows(t);
    if (row < 0 || count < 0 || row > rows || count > rows - row)
        return dq_error_in_tensor(dq_fail(DQ_E_INTERNAL, "rows %lld..%lld asked of %lld", (long long)row,
                                          (long long)(row + count), (long long)rows),
                                  t->name);
    return source->ops->read_rows(source, tensor, row, count, out);
}

dq_status dq_source_read_raw(dq_source *source, int64_t tensor, uint64_t offset, uint64_t bytes, void *out)
{
    const dq_tensor_info *t = &source->tensors[tensor];
    if (offset > t->bytes || bytes > t->bytes - offset)
        return dq_error_in_tensor(dq_fail(DQ_E_MISMATCH, "%llu bytes at %llu asked of a tensor of %llu bytes",
                                          (unsigned long long)bytes, (unsigned long long)offset,
                                          (unsigned long long)t->bytes),
                                  t->name);
    return source->ops->read_raw(source, tensor, offset, bytes, out);
}

void dq_source_release(dq_source *source, int64_t tensor)
{
    if (source->ops->release) source->ops->release(source, tensor);
}
