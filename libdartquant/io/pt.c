/* PyTorch checkpoints (zip archives of torch.save, 1.6 and later) as tensor sources. SPDX-License-Identifier: Apache-2.0 */
#include <pthread.h>
#include <string.h>

#include "base/dtype.h"
#include "base/status.h"
#include "io/decode.h"
#include "io/formats.h"
#include "io/limits.h"
#include "io/pickle.h"
#include "io/pt_archive.h"
#include "io/pt_names.h"

/* One entry NAME/data/KEY; several tensors may lie in it. */
typedef struct storage {
    dq_pt_entry entry;
    char *file; /* "path:NAME/data/KEY", for messages */
    char *key;
} storage;

/* How a tensor lies in its storage. */
typedef struct layout {
    size_t storage;
    int64_t offset; /* elements */
    int64_t stride[DQ_MAX_DIMS];
    bool contiguous;
} layout;

typedef struct pt_source {
    dq_source base;
    char *path;
    dq_map map;
    dq_pt_archive archive;
    storage *storages;
    size_t storage_count;
    layout *layouts; /* [base.count] */
    /* libzip handles are for one thread at a time, and so is the one storage that is kept whole (deflated entries and
     * strided tensors need it). */
    pthread_mutex_t lock;
    uint8_t *whole;
    size_t whole_of; /* its storage, when `whole` is not NULL */
} pt_source;

/* ---- reading (under the lock) ---- */

static dq_status load_whole(pt_source *s, size_t index)
{
    if (s->whole && s->whole_of == index) return DQ_OK;
    dq_free(s->whole);
    s->whole = NULL;
    const storage *st = &s->storages[index];
    uint8_t *data = dq_alloc(s->base.env, (size_t)st->entry.bytes);
    if (!data) return DQ_E_NOMEM;
    dq_status status = dq_pt_archive_read(&s->archive, &st->entry, 0, data, st->entry.bytes);
    if (status != DQ_OK) {
        dq_free(data);
        return status;
    }
    s->whole = data;
    s->whole_of = index;
    return DQ_OK;
}

/* Bytes of the storage itself. */
static dq_status read_storage(pt_source *s, size_t index, uint64_t offset, uint64_t bytes, void *out)
{
    const storage *st = &s->storages[index];
    if (st->entry.stored && !(s->whole && s->whole_of == index))
        return dq_pt_archive_read(&s->archive, &st->entry, offset, out, bytes);
    DQ_TRY(load_whole(s, index));
    if (bytes) memcpy(out, s->whole + offset, (size_t)bytes);
    return DQ_OK;
}

/* Elements [first, first + count) in the tensor's own order, from a storage that is kept whole. */
static void gather(const pt_source *s, int64_t tensor, uint64_t first, uint64_t count, uint8_t *out)
{
    const dq_tensor_info *t = &s->base.tensors[tensor];
    const layout *l = &s->layouts[tensor];
    size_t size = dq_dtype_size(t->dtype);
    int64_t index[DQ_MAX_DIMS] = {0}, at = l->offset;
    for (int d = t->ndim - 1; d >= 0; d--) {
        index[d] = (int64_t)(first % (uint64_t)t->shape[d]);
        first /= (uint64_t)t->shape[d];
        at += index[d] * l->stride[d];
    }
    for (; count > 0; count--, out += size) {
        memcpy(out, s->whole + (uint64_t)at * size, size);
        for (int d = t->ndim - 1; d >= 0; d--) { /* the next index, carrying */
            at += l->stride[d];
            if (++index[d] < t->shape[d]) break;
            at -= index[d] * l->stride[d];
            index[d] = 0;
        }
    }
}

/* Elements of the tensor as they would print, at most a buffer full. */
static dq_status read_elements(pt_source *s, int64_t tensor, uint64_t first, uint64_t count, uint8_t *out)
{
    const layout *l = &s->layouts[tensor];
    size_t size = dq_dtype_size(s->base.tensors[tensor].dtype);
    if (l->contiguous) return read_storage(s, l->storage, ((uint64_t)l->offset + first) * size, count * size, out);
    DQ_TRY(load_whole(s, l->storage));
    gather(s, tensor, first, count, out);
    return DQ_OK;
}

static dq_status fail_in(const dq_source *source, int64_t tensor, dq_status status)
{
    const dq_tensor_info *t = &source->tensors[tensor];
    return dq_error_in_tensor(dq_error_in_file(status, t->file), t->name);
}

static dq_status read_rows(dq_source *source, int64_t tensor, int64_t row, int64_t count, float *out)
{
    enum { BUFFER = 65536 };
    pt_source *s = (pt_source *)source;
    const dq_tensor_info *t = &source->tensors[tensor];
    uint64_t cols = (uint64_t)dq_info_cols(t), first = (uint64_t)row * cols, left = (uint64_t)count * cols;
    size_t size = dq_dtype_size(t->dtype);
    if (!dq_decode_float(t->dtype, NULL, 0, NULL)) return dq_refuse_decode(t);
    uint8_t *buffer = dq_alloc(source->env, BUFFER);
    if (!buffer) return DQ_E_NOMEM;
    dq_status status = DQ_OK;
    pthread_mutex_lock(&s->lock);
    while (left > 0 && status == DQ_OK) {
        uint64_t n = left < BUFFER / size ? left : BUFFER / size;
        status = read_elements(s, tensor, first, n, buffer);
        if (status == DQ_OK) dq_decode_float(t->dtype, buffer, (size_t)n, out);
        first += n;
        left -= n;
        out += n;
    }
    pthread_mutex_unlock(&s->lock);
    dq_free(buffer);
    return fail_in(source, tensor, status);
}

static dq_status read_raw_strided(pt_source *s, int64_t tensor, uint64_t offset, uint64_t bytes, uint8_t *out)
{
    size_t size = dq_dtype_size(s->base.tensors[tensor].dtype);
    while (bytes > 0) { /* one element at a time: the range may begin and end inside one */
        uint8_t element[8];
        size_t skip = (size_t)(offset % size), take = size - skip < bytes ? size - skip : (size_t)bytes;
        DQ_TRY(read_elements(s, tensor, offset / size, 1, element));
        memcpy(out, element + skip, take);
        offset += take;
        bytes -= take;
        out += take;
    }
    return DQ_OK;
}

static dq_status read_raw(dq_source *source, int64_t tensor, uint64_t offset, uint64_t bytes, void *out)
{
    pt_source *s = (pt_source *)source;
    const layout *l = &s->layouts[tensor];
    uint64_t size = dq_dtype_size(source->tensors[tensor].dtype);
    pthread_mutex_lock(&s->lock);
    dq_status status = l->contiguous ? read_storage(s, l->storage, (uint64_t)l->offset * size + offset, bytes, out)
                                     : read_raw_strided(s, tensor, offset, bytes, out);
    pthread_mutex_unlock(&s->lock);
    return fail_in(source, tensor, status);
}

static void release(dq_source *source, int64_t tensor)
{
    pt_source *s = (pt_source *)source;
    pthread_mutex_lock(&s->lock);
    if (s->whole && s->whole_of == s->layouts[tensor].storage) {
        dq_free(s->whole);
        s->whole = NULL;
    }
    pthread_mutex_unlock(&s->lock);
    dq_map_drop(&s->map, 0, s->map.size); /* libzip does not tell where the entry lies */
}

static void pt_free(dq_source *source)
{
    pt_source *s = (pt_source *)source;
    for (int64_t i = 0; i < source->count; i++) dq_free((void *)(uintptr_t)source->tensors[i].name);
    for (size_t i = 0; i < s->storage_count; i++) {
        dq_free(s->storages[i].file);
        dq_free(s->storages[i].key);
    }
    dq_free(source->tensors);
    dq_name_map_free(source->names);
    dq_free(s->storages);
    dq_free(s->layouts);
    dq_free(s->whole);
    dq_free(s->path);
    dq_pt_archive_close(&s->archive);
    pthread_mutex_destroy(&s->lock);
    dq_map_close(&s->map);
    dq_free(s);
}

static const dq_source_ops pt_ops = {pt_free, read_rows, read_raw, release};

/* ---- opening ---- */

/* The storage of that key: known already, or found in the archive now. */
static dq_status find_storage(pt_source *s, dq_name_map *keys, const dq_pickle_storage *p, size_t *index)
{
    dq_env *env = s->base.env;
    int64_t known = dq_name_map_get(keys, p->key, p->key_bytes);
    *index = known >= 0 ? (size_t)known : s->storage_count;
    if (known < 0) {
        storage *st = &s->storages[s->storage_count];
        char *entry = NULL;
        st->key = dq_strndup(env, p->key, p->key_bytes);
        if (!st->key) return DQ_E_NOMEM;
        s->storage_count++; /* from here pt_free frees it */
        entry = dq_asprintf(env, "data/%s", st->key);
        if (!entry) return DQ_E_NOMEM;
        dq_status status = dq_pt_archive_find(&s->archive, &s->map, entry, &st->entry);
        if (status == DQ_OK) {
            st->file = dq_asprintf(env, "%s:%s%s", s->path, s->archive.root, entry);
            status = st->file ? DQ_OK : DQ_E_NOMEM;
        }
        dq_free(entry);
        if (status == DQ_E_NOTFOUND) return dq_fail(DQ_E_FORMAT, "the archive holds no storage '%s'", st->key);
        DQ_TRY(status);
        DQ_TRY(dq_name_map_add(keys, st->key, strlen(st->key), (int64_t)*index));
    }
    uint64_t need;
    const dq_pt_entry *e = &s->storages[*index].entry;
    if (__builtin_mul_overflow((uint64_t)p->numel, (uint64_t)dq_dtype_size(p->dtype), &need) || need > e->bytes)
        return dq_fail(DQ_E_TRUNCATED, "storage '%s' has %llu bytes, %lld elements of %s are promised",
                       s->storages[*index].key, (unsigned long long)e->bytes, (long long)p->numel, p->type_name);
    return DQ_OK;
}

static bool is_contiguous(const dq_pickle_tensor *t)
{
    int64_t expected = 1;
    for (int i = t->ndim - 1; i >= 0; i--) {
        if (t->shape[i] == 0) return true;
        if (t->shape[i] != 1 && t->stride[i] != expected) return false;
        expected *= t->shape[i];
    }
    return true;
}

static dq_status add_tensor(pt_source *s, dq_name_map *keys, dq_pt_named *named)
{
    const dq_pickle_tensor *p = named->tensor;
    int64_t i = s->base.count;
    layout *l = &s->layouts[i];
    dq_tensor_info *t = &s->base.tensors[i];
    DQ_TRY(find_storage(s, keys, p->storage, &l->storage));
    l->offset = p->offset;
    memcpy(l->stride, p->stride, sizeof l->stride);
    l->contiguous = is_contiguous(p);
    uint64_t size = dq_dtype_size(p->storage->dtype), elements = 1;
    for (int d = 0; d < p->ndim; d++) elements *= (uint64_t)p->shape[d]; /* the unpickler has checked it */
    if (elements == 0) l->offset = 0;                                    /* need not lie inside */
    *t = (dq_tensor_info){.name = named->name,
                          .dtype = p->storage->dtype,
                          .type_name = p->storage->type_name,
                          .ndim = p->ndim,
                          .bytes = elements * size,
                          .file = s->storages[l->storage].file,
                          .offset = (uint64_t)l->offset * size};
    memcpy(t->shape, p->shape, sizeof t->shape);
    named->name = NULL; /* handed over */
    s->base.count++;
    dq_status status = dq_name_map_add(s->base.names, t->name, strlen(t->name), i);
    return status == DQ_E_INVALID ? dq_fail(DQ_E_FORMAT, "the name is used twice") : status;
}

static dq_status add_tensors(pt_source *s, dq_pt_names *names)
{
    dq_env *env = s->base.env;
    dq_name_map *keys = NULL;
    dq_status status;
    s->base.tensors = dq_calloc(env, names->count, sizeof *s->base.tensors);
    s->layouts = s->base.tensors ? dq_calloc(env, names->count, sizeof *s->layouts) : NULL;
    s->storages = s->layouts ? dq_calloc(env, names->count, sizeof *s->storages) : NULL;
    if (!s->storages) return DQ_E_NOMEM;
    DQ_TRY(dq_name_map_new(env, names->count, &s->base.names));
    DQ_TRY(dq_name_map_new(env, names->count, &keys));
    status = DQ_OK;
    for (size_t i = 0; i < names->count && status == DQ_OK; i++) {
        char shown[200]; /* the name may be handed over before the failure */
        size_t n = strlen(names->items[i].name);
        memcpy(shown, names->items[i].name, n < sizeof shown ? n + 1 : sizeof shown);
        shown[sizeof shown - 1] = '\0';
        status = dq_error_in_tensor(add_tensor(s, keys, &names->items[i]), shown);
    }
    dq_name_map_free(keys);
    return status;
}

static dq_status check_byteorder(pt_source *s)
{
    dq_pt_entry e;
    char text[8] = {0};
    dq_status status = dq_pt_archive_find(&s->archive, &s->map, "byteorder", &e);
    if (status == DQ_E_NOTFOUND) return DQ_OK; /* written since 2.0 */
    if (status == DQ_OK && e.bytes < sizeof text) status = dq_pt_archive_read(&s->archive, &e, 0, text, e.bytes);
    if (status == DQ_OK && strcmp(text, "little") != 0)
        status = dq_fail(DQ_E_UNSUPPORTED, "byte order '%.7s', only little-endian files are read", text);
    return status;
}

static dq_status read_pickle(pt_source *s)
{
    dq_env *env = s->base.env;
    dq_pt_entry e;
    uint8_t *data = NULL;
    dq_pickle *pickle = NULL;
    dq_pickle_value root = {0};
    dq_status status;
    dq_pt_names *names = dq_calloc(env, 1, sizeof *names);
    char *file = dq_asprintf(env, "%s:%sdata.pkl", s->path, s->archive.root);
    if (!names || !file) DQ_GO(DQ_E_NOMEM);
    DQ_GO(dq_pt_archive_find(&s->archive, &s->map, "data.pkl", &e));
    if (e.bytes > DQ_PT_MAX_PICKLE)
        DQ_GO(dq_fail(DQ_E_UNSUPPORTED, "data.pkl has %llu bytes, the limit is %llu", (unsigned long long)e.bytes,
                      (unsigned long long)DQ_PT_MAX_PICKLE));
    data = dq_alloc(env, (size_t)e.bytes);
    if (!data) DQ_GO(DQ_E_NOMEM);
    DQ_GO(dq_pt_archive_read(&s->archive, &e, 0, data, e.bytes));
    DQ_GO(dq_error_in_file(dq_pickle_load(env, data, (size_t)e.bytes, &pickle, &root), file));
    DQ_GO(dq_error_in_file(dq_pt_collect(env, &root, names), file));
    DQ_GO(add_tensors(s, names));
done:
    if (names) dq_pt_names_clear(names);
    dq_free(names);
    dq_pickle_free(pickle);
    dq_free(data);
    dq_free(file);
    return status;
}

/* What torch.save wrote before the zip format, and other things that carry the same suffixes. */
static dq_status check_kind(const dq_map *map)
{
    static const uint8_t legacy[] = {0x8a, 0x0a, 0x6c, 0xfc, 0x9c, 0x46, 0xf9, 0x20, 0x6a, 0xa8, 0x50, 0x19};
    if (map->size >= 4 && memcmp(map->data, "PK\3\4", 4) == 0) return DQ_OK;
    if (map->size >= 2 + sizeof legacy && map->data[0] == 0x80 && memcmp(map->data + 2, legacy, sizeof legacy) == 0)
        return dq_fail(DQ_E_UNSUPPORTED, "the format of PyTorch before 1.6; load it there and save it again");
    if (map->size >= 2 && map->data[0] == 0x80)
        return dq_fail(DQ_E_UNSUPPORTED, "a bare pickle, not the zip archive of torch.save");
    return dq_error_at_byte(dq_fail(DQ_E_FORMAT, "no zip archive, so no PyTorch checkpoint"), 0);
}

dq_status dq_pt_open_map(dq_env *env, const char *path, dq_map *map, dq_source **out)
{
    dq_status status;
    DQ_TRY(dq_error_in_file(check_kind(map), path));
    pt_source *s = dq_calloc(env, 1, sizeof *s);
    if (!s) return DQ_E_NOMEM;
    s->base = (dq_source){.ops = &pt_ops, .env = env, .format = "pytorch"};
    s->map = *map;
    pthread_mutex_init(&s->lock, NULL);
    s->path = dq_strdup(env, path);
    if (!s->path) DQ_GO(DQ_E_NOMEM);
    DQ_GO(dq_pt_archive_open(env, map, &s->archive));
    DQ_GO(check_byteorder(s));
    DQ_GO(read_pickle(s));
    *out = &s->base;
    *map = (dq_map){0};
    s = NULL;
done:
    if (s) {
        s->map = (dq_map){0}; /* still the caller's */
        pt_free(&s->base);
    }
    return dq_error_in_file(status, path);
}

dq_status dq_pt_open(dq_env *env, const char *path, dq_source **out)
{
    dq_map map = {0};
    DQ_TRY(dq_map_open(env, path, &map));
    dq_status status = dq_pt_open_map(env, path, &map, out);
    dq_map_close(&map);
    return status;
}
