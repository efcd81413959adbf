/* safetensors files and sharded sets of them as tensor sources. SPDX-License-Identifier: Apache-2.0 */
#include <dirent.h>
#include <string.h>

#include "base/status.h"
#include "io/decode.h"
#include "io/formats.h"
#include "io/limits.h"
#include "io/safetensors.h"

typedef struct shard {
    char *path;
    dq_map map;
    uint64_t data_start;
    json_t *metadata; /* NULL = none */
} shard;

typedef struct st_source {
    dq_source base;
    shard *shards;
    size_t shard_count;
    size_t *shard_of; /* [base.count] */
} st_source;

/* ---- reading ---- */

static const uint8_t *tensor_bytes(dq_source *source, int64_t tensor)
{
    st_source *s = (st_source *)source;
    return s->shards[s->shard_of[tensor]].map.data + source->tensors[tensor].offset;
}

static dq_status read_rows(dq_source *source, int64_t tensor, int64_t row, int64_t count, float *out)
{
    const dq_tensor_info *t = &source->tensors[tensor];
    uint64_t elements = (uint64_t)(dq_info_rows(t) * dq_info_cols(t));
    if (elements == 0 || count == 0) return DQ_OK;
    uint64_t cols = (uint64_t)dq_info_cols(t), size = t->bytes / elements;
    const uint8_t *src = tensor_bytes(source, tensor) + (uint64_t)row * cols * size;
    return dq_decode_float(t->dtype, src, (size_t)((uint64_t)count * cols), out) ? DQ_OK : dq_refuse_decode(t);
}

static dq_status read_raw(dq_source *source, int64_t tensor, uint64_t offset, uint64_t bytes, void *out)
{
    if (bytes) memcpy(out, tensor_bytes(source, tensor) + offset, (size_t)bytes);
    return DQ_OK;
}

static void release(dq_source *source, int64_t tensor)
{
    st_source *s = (st_source *)source;
    const dq_tensor_info *t = &source->tensors[tensor];
    dq_map_drop(&s->shards[s->shard_of[tensor]].map, t->offset, t->bytes);
}

static void free_shard(shard *s)
{
    dq_map_close(&s->map);
    json_decref(s->metadata);
    dq_free(s->path);
}

static void st_free(dq_source *source)
{
    st_source *s = (st_source *)source;
    for (int64_t i = 0; i < source->count; i++) dq_free((void *)(uintptr_t)source->tensors[i].name);
    dq_free(source->tensors);
    dq_name_map_free(source->names);
    for (size_t i = 0; i < s->shard_count; i++) free_shard(&s->shards[i]);
    dq_free(s->shards);
    dq_free(s->shard_of);
    dq_free(s);
}

static const dq_source_ops st_ops = {st_free, read_rows, read_raw, release};

/* An empty source with room for `tensors` tensors and `shards` shards. */
static dq_status new_source(dq_env *env, size_t tensors, size_t shards, st_source **out)
{
    st_source *s = dq_calloc(env, 1, sizeof *s);
    if (!s) return DQ_E_NOMEM;
    s->base = (dq_source){.ops = &st_ops, .env = env, .format = "safetensors"};
    dq_status status = dq_name_map_new(env, tensors, &s->base.names);
    if (status == DQ_OK) s->base.tensors = dq_calloc(env, tensors, sizeof *s->base.tensors);
    if (status == DQ_OK) s->shard_of = dq_calloc(env, tensors, sizeof *s->shard_of);
    if (status == DQ_OK) s->shards = dq_calloc(env, shards, sizeof *s->shards);
    if (!s->base.tensors || !s->shard_of || !s->shards) {
        st_free(&s->base);
        return DQ_E_NOMEM;
    }
    *out = s;
    return DQ_OK;
}

/* Takes over the name inside `info`'s place: the source keeps a copy. */
static dq_status add_tensor(st_source *s, size_t shard_index, const dq_tensor_info *info)
{
    int64_t i = s->base.count;
    char *name = dq_strdup(s->base.env, info->name);
    if (!name) return DQ_E_NOMEM;
    s->base.tensors[i] = *info;
    s->base.tensors[i].name = name;
    s->base.tensors[i].file = s->shards[shard_index].path;
    s->shard_of[i] = shard_index;
    s->base.count++; /* from here st_free frees the name */
    dq_status status = dq_name_map_add(s->base.names, name, strlen(name), i);
    if (status == DQ_E_INVALID) status = dq_error_in_tensor(dq_fail(DQ_E_FORMAT, "the name is used twice"), name);
    return status;
}

/* ---- opening ---- */

/* Gives the map and a copy of the path to the source's next shard. */
static dq_status add_shard(st_source *s, const char *path, dq_map *map, uint64_t data_start, const dq_st_header *h)
{
    char *copy = dq_strdup(s->base.env, path);
    if (!copy) return DQ_E_NOMEM;
    s->shards[s->shard_count++] = (shard){copy, *map, data_start, h->metadata ? json_incref(h->metadata) : NULL};
    *map = (dq_map){0};
    return DQ_OK;
}

dq_status dq_safetensors_open_map(dq_env *env, const char *path, dq_map *map, dq_source **out)
{
    dq_st_header h = {0};
    st_source *s = NULL;
    uint64_t data_start = 0;
    dq_map kept = *map;
    dq_status status;
    DQ_GO(dq_st_header_parse(env, map, &data_start, &h));
    DQ_GO(new_source(env, h.count, 1, &s));
    DQ_GO(add_shard(s, path, &kept, data_start, &h));
    for (size_t i = 0; i < h.count; i++) DQ_GO(add_tensor(s, 0, &h.tensors[i]));
    *out = &s->base;
    *map = (dq_map){0};
    s = NULL;
done:
    dq_st_header_clear(&h);
    if (s) {
        if (s->shard_count) s->shards[0].map = (dq_map){0}; /* still the caller's */
        st_free(&s->base);
    }
    return dq_error_in_file(status, path);
}

dq_status dq_safetensors_open(dq_env *env, const char *path, dq_source **out)
{
    dq_map map = {0};
    DQ_TRY(dq_map_open(env, path, &map));
    dq_status status = dq_safetensors_open_map(env, path, &map, out);
    dq_map_close(&map);
    return status;
}

/* Opens one shard of an index and takes the tensors that the index maps to it. */
static dq_status open_shard(st_source *s, const char *dir, const char *name, const json_t *weight_map)
{
    dq_env *env = s->base.env;
    dq_st_header h = {0};
    dq_map map = {0};
    uint64_t data_start = 0;
    dq_status status = DQ_OK;
    char *path = dq_path_join(env, dir, name);
    if (!path) return DQ_E_NOMEM;
    DQ_GO(dq_map_open(env, path, &map));
    DQ_GO(dq_st_header_parse(env, &map, &data_start, &h));
    DQ_GO(add_shard(s, path, &map, data_start, &h));
    for (size_t i = 0; i < h.count; i++) {
        const char *mapped = json_string_value(json_object_get(weight_map, h.tensors[i].name));
        if (mapped && strcmp(mapped, name) == 0) DQ_GO(add_tensor(s, s->shard_count - 1, &h.tensors[i]));
    }
done:
    dq_error_in_file(status, path);
    dq_st_header_clear(&h);
    dq_map_close(&map);
    dq_free(path);
    return status;
}

/* Distinct shard names in the order of the index; names are borrowed from `weight_map`. */
static dq_status list_shards(dq_env *env, const json_t *weight_map, const char **names, size_t *count)
{
    dq_name_map *seen = NULL;
    dq_status status = dq_name_map_new(env, 64, &seen);
    const char *tensor;
    json_t *value;
    json_object_foreach((json_t *)(uintptr_t)weight_map, tensor, value)
    {
        if (status != DQ_OK) break;
        const char *name = json_string_value(value);
        if (!name)
            status = dq_error_in_tensor(dq_fail(DQ_E_FORMAT, "the file name in 'weight_map' is no string"), tensor);
        else if (name[0] == '\0' || strchr(name, '/') || strchr(name, '\\') || !strcmp(name, ".") ||
                 !strcmp(name, ".."))
            status =
                dq_error_in_tensor(dq_fail(DQ_E_FORMAT, "'%s' in 'weight_map' is no plain file name", name), tensor);
        else if (dq_name_map_get(seen, name, strlen(name)) < 0) {
            status = dq_name_map_add(seen, name, strlen(name), 0);
            names[(*count)++] = name;
        }
    }
    dq_name_map_free(seen);
    return status;
}

static dq_status check_all_found(const st_source *s, const json_t *weight_map)
{
    const char *tensor;
    json_t *value;
    json_object_foreach((json_t *)(uintptr_t)weight_map, tensor, value)
    {
        if (dq_source_find(&s->base, tensor) < 0)
            return dq_error_in_tensor(
                dq_fail(DQ_E_MISMATCH, "the index maps it to %s, which does not hold it", json_string_value(value)),
                tensor);
    }
    return DQ_OK;
}

dq_status dq_safetensors_open_index(dq_env *env, const char *index_path, dq_source **out)
{
    json_t *root = NULL;
    st_source *s = NULL;
    const char **names = NULL;
    size_t shards = 0;
    dq_status status = DQ_OK;
    const char *slash = strrchr(index_path, '/');
    char *dir = slash ? dq_strndup(env, index_path, (size_t)(slash - index_path) + 1) : dq_strdup(env, "");
    if (!dir) return DQ_E_NOMEM;
    DQ_GO(dq_json_load(env, index_path, DQ_ST_MAX_INDEX, &root));
    const json_t *weight_map = json_object_get(root, "weight_map");
    if (!json_is_object(weight_map)) DQ_GO(dq_fail(DQ_E_FORMAT, "'weight_map' is missing or no object"));
    size_t tensors = json_object_size(weight_map);
    if (tensors == 0) DQ_GO(dq_fail(DQ_E_FORMAT, "'weight_map' names no tensors"));
    names = dq_calloc(env, tensors, sizeof *names);
    if (!names) DQ_GO(DQ_E_NOMEM);
    DQ_GO(list_shards(env, weight_map, names, &shards));
    DQ_GO(new_source(env, tensors, shards, &s));
    for (size_t i = 0; i < shards; i++) DQ_GO(open_shard(s, dir, names[i], weight_map));
    DQ_GO(check_all_found(s, weight_map));
    *out = &s->base;
    s = NULL;
done:
    dq_error_in_file(status, index_path);
    if (s) st_free(&s->base);
    dq_free(names);
    dq_free(dir);
    json_decref(root);
    return status;
}

/* The only file of the folder whose name ends so: its path in *out, NULL when there is none. */
static dq_status only_file(dq_env *env, const char *dir, const char *suffix, char **out)
{
    DIR *d = opendir(dir);
    if (!d) return dq_error_in_file(dq_fail_errno(DQ_E_IO, "cannot read the folder"), dir);
    char *found = NULL;
    dq_status status = DQ_OK;
    for (struct dirent *e; status == DQ_OK && (e = readdir(d)) != NULL;) {
        if (e->d_name[0] == '.' || !dq_path_ends_with(e->d_name, suffix)) continue;
        if (found)
            status = dq_error_in_file(
                dq_fail(DQ_E_NOTFOUND, "the folder holds more than one *%s and no model%s", suffix, suffix), dir);
        else if (!(found = dq_path_join(env, dir, e->d_name)))
            status = DQ_E_NOMEM;
    }
    closedir(d);
    if (status != DQ_OK) {
        dq_free(found);
        return status;
    }
    *out = found;
    return DQ_OK;
}

dq_status dq_safetensors_open_dir(dq_env *env, const char *dir, dq_source **out)
{
    static const char *const suffixes[] = {".safetensors.index.json", ".safetensors"};
    static const char *const usual[] = {"model.safetensors.index.json", "model.safetensors"};
    for (size_t i = 0; i < 4; i++) {
        char *path = NULL;
        if (i < 2) {
            path = dq_path_join(env, dir, usual[i]);
            if (!path) return DQ_E_NOMEM;
            if (!dq_path_exists(path)) {
                dq_free(path);
                continue;
            }
        } else {
            DQ_TRY(only_file(env, dir, suffixes[i - 2], &path));
            if (!path) continue;
        }
        dq_status status = i % 2 == 0 ? dq_safetensors_open_index(env, path, out) : dq_safetensors_open(env, path, out);
        dq_free(path);
        return status;
    }
    return dq_error_in_file(dq_fail(DQ_E_NOTFOUND, "the folder holds no safetensors file"), dir);
}

const char *dq_safetensors_metadata(const dq_source *source, const char *key)
{
    if (source->ops != &st_ops) return NULL;
    const st_source *s = (const st_source *)source;
    return s->shard_count ? json_string_value(json_object_get(s->shards[0].metadata, key)) : NULL;
}
