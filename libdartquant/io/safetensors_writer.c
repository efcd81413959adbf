/* safetensors files and sharded sets written as the tensors come. Their header stands before the data but is known last:
 * data goes behind a gap, and the header, filled up with spaces, is written into the gap at the end. When that would be
 * wasteful (small files), too tight, or would leave a tensor unaligned, the file is copied behind an exact header
 * instead, widest types first as the reference writer orders them.
 * SPDX-License-Identifier: Apache-2.0 */
#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "base/dtype.h"
#include "base/status.h"
#include "io/decode.h"
#include "io/formats.h"
#include "io/json.h"
#include "io/limits.h"

#define MAX_GAP (UINT64_C(1) << 20)

typedef struct entry {
    char *name;
    dq_dtype dtype;
    int ndim;
    int64_t shape[DQ_MAX_DIMS];
    uint64_t begin; /* in the part's data */
    uint64_t bytes;
} entry;

typedef struct part {
    dq_writer *writer;
    char *file, *path;   /* final name without and with folder, made by finish */
    size_t first, count; /* its entries */
    uint64_t bytes;      /* data */
    uint64_t header;     /* upper bound of the header's size */
    bool unaligned;
    bool visible; /* renamed */
} part;

typedef struct st_sink {
    dq_sink base;
    char *dir, *stem;
    uint64_t part_size, gap;
    entry *entries;
    size_t count, capacity;
    part *parts;
    size_t part_count, part_capacity;
    dq_name_map *names;
    json_t *metadata;
    uint64_t missing; /* bytes that the last tensor still waits for */
    bool closed;      /* finished or failed */
} st_sink;

/* ---- adding ---- */

/* Room for one more element of `size` bytes in *list. */
static dq_status grow(dq_env *env, void **list, size_t count, size_t *capacity, size_t size)
{
    if (count < *capacity) return DQ_OK;
    size_t bigger = *capacity ? *capacity * 2 : 16;
    void *fresh = dq_realloc(env, *list, bigger * size);
    if (!fresh) return DQ_E_NOMEM;
    *list = fresh;
    *capacity = bigger;
    return DQ_OK;
}

static char *path_in(const st_sink *s, const char *file) { return dq_path_join(s->base.env, s->dir, file); }

static dq_status open_part(st_sink *s)
{
    dq_env *env = s->base.env;
    if (s->part_count) DQ_TRY(dq_writer_pause(s->parts[s->part_count - 1].writer));
    DQ_TRY(grow(env, (void **)&s->parts, s->part_count, &s->part_capacity, sizeof *s->parts));
    char *file = dq_asprintf(env, "%s.part%05zu", s->stem, s->part_count + 1);
    char *path = file ? path_in(s, file) : NULL;
    part p = {.first = s->count, .header = 64};
    dq_status status = path ? dq_writer_open(env, path, &p.writer) : DQ_E_NOMEM;
    dq_free(path);
    dq_free(file);
    if (status != DQ_OK) return status;
    s->parts[s->part_count++] = p;
    return dq_writer_skip(p.writer, s->gap);
}

static uint64_t file_bytes(const st_sink *s, uint64_t header, uint64_t data)
{
    return (header > s->gap ? header : s->gap) + data;
}

/* Upper bound of an entry in the header: every byte of the name may need six as an escape. */
static uint64_t entry_header_bytes(const char *name, int ndim) { return 6 * strlen(name) + 21 * (uint64_t)ndim + 100; }

static dq_status check_name(st_sink *s, const char *name)
{
    json_t *text = json_string(name);
    bool valid = text != NULL;
    json_decref(text);
    if (!valid) return dq_fail(DQ_E_INVALID, "the name is not UTF-8");
    if (strcmp(name, "__metadata__") == 0) return dq_fail(DQ_E_INVALID, "the name is reserved");
    if (dq_name_map_get(s->names, name, strlen(name)) >= 0) return dq_fail(DQ_E_INVALID, "the name is used twice");
    return DQ_OK;
}

/* Makes the entry; its data comes next. */
static dq_status start(st_sink *s, const char *name, const dq_tensor_info *info)
{
    dq_env *env = s->base.env;
    uint64_t header = entry_header_bytes(name, info->ndim);
    part *p = s->part_count ? &s->parts[s->part_count - 1] : NULL;
    uint64_t after;
    if (!p || (p->count && (__builtin_add_overflow(p->bytes, info->bytes, &after) ||
                            file_bytes(s, p->header + header, after) > s->part_size))) {
        DQ_TRY(open_part(s));
        p = &s->parts[s->part_count - 1];
    }
    DQ_TRY(grow(env, (void **)&s->entries, s->count, &s->capacity, sizeof *s->entries));
    entry e = {.dtype = info->dtype, .ndim = info->ndim, .begin = p->bytes, .bytes = info->bytes};
    memcpy(e.shape, info->shape, sizeof e.shape);
    e.name = dq_strdup(env, name);
    if (!e.name) return DQ_E_NOMEM;
    s->entries[s->count++] = e;
    p->count++;
    p->header += header;
    p->unaligned = p->unaligned || e.begin % dq_dtype_size(e.dtype) != 0;
    DQ_TRY(dq_name_map_add(s->names, e.name, strlen(e.name), (int64_t)s->count - 1));
    p->bytes += e.bytes;
    s->missing = e.bytes;
    return DQ_OK;
}

static dq_status sink_begin(dq_sink *sink, const char *name, dq_dtype dtype, int ndim, const int64_t *shape,
                            uint64_t bytes)
{
    st_sink *s = (st_sink *)sink;
    dq_tensor_info info = {0};
    if (s->closed) return dq_error_in_tensor(dq_fail(DQ_E_STATE, "the sink is finished or failed"), name);
    if (s->missing) return dq_error_in_tensor(dq_fail(DQ_E_STATE, "the tensor before it is incomplete"), name);
    DQ_TRY(dq_sink_check(name, dtype, ndim, shape, bytes, &info));
    DQ_TRY(dq_error_in_tensor(check_name(s, name), name));
    dq_status status = start(s, name, &info);
    if (status != DQ_OK) s->closed = true; /* what is written is incomplete */
    return dq_error_in_tensor(status, name);
}

static dq_status sink_append(dq_sink *sink, const void *data, uint64_t bytes)
{
    st_sink *s = (st_sink *)sink;
    if (s->closed) return dq_fail(DQ_E_STATE, "the sink is finished or failed");
    if (bytes > s->missing)
        return dq_fail(DQ_E_INVALID, "%llu bytes given, the tensor lacks %llu", (unsigned long long)bytes,
                       (unsigned long long)s->missing);
    if (bytes == 0) return DQ_OK;
    dq_status status = dq_writer_write(s->parts[s->part_count - 1].writer, data, bytes);
    s->missing -= bytes;
    if (status != DQ_OK) s->closed = true;
    return dq_error_in_tensor(status, s->entries[s->count - 1].name);
}

static dq_status sink_add(dq_sink *sink, const char *name, dq_dtype dtype, int ndim, const int64_t *shape,
                          const void *data, uint64_t bytes)
{
    DQ_TRY(sink_begin(sink, name, dtype, ndim, shape, bytes));
    return sink_append(sink, data, bytes);
}

static dq_status sink_set_metadata(dq_sink *sink, const char *key, const char *value)
{
    st_sink *s = (st_sink *)sink;
    if (s->closed) return dq_fail(DQ_E_STATE, "the sink is finished or failed");
    if (json_object_set_new(s->metadata, key, json_string(value)) != 0)
        return dq_fail(DQ_E_INVALID, "metadata '%s' is not UTF-8", key);
    return DQ_OK;
}

/* ---- finishing ---- */

static int by_width(const void *a, const void *b)
{
    const entry *x = a, *y = b;
    size_t wx = dq_dtype_size(x->dtype), wy = dq_dtype_size(y->dtype);
    if (wx != wy) return wx > wy ? -1 : 1;
    return x->begin < y->begin ? -1 : x->begin > y->begin;
}

static json_t *entry_json(const entry *e, uint64_t begin)
{
    json_t *shape = json_array();
    for (int i = 0; i < e->ndim; i++) json_array_append_new(shape, json_integer(e->shape[i]));
    return json_pack("{s:s, s:o, s:[I,I]}", "dtype", dq_dtype_name(e->dtype), "shape", shape, "data_offsets",
                     (json_int_t)begin, (json_int_t)(begin + e->bytes));
}

/* The header as text; entries follow each other in the order of the list. */
static dq_status header_text(const st_sink *s, const part *p, char **out)
{
    json_t *root = json_object();
    int failed = json_object_set(root, "__metadata__", s->metadata);
    uint64_t begin = 0;
    for (size_t i = p->first; i < p->first + p->count; i++) {
        failed |= json_object_set_new(root, s->entries[i].name, entry_json(&s->entries[i], begin));
        begin += s->entries[i].bytes;
    }
    dq_status status = failed ? dq_fail(DQ_E_NOMEM, "out of memory while making the header")
                              : dq_json_dump(s->base.env, root, false, out);
    json_decref(root);
    return status;
}

/* Length field and header, filled with spaces to `total` bytes (at least 8 + strlen(text)). */
static dq_status write_header(st_sink *s, dq_writer *w, bool patch, const char *text, uint64_t total)
{
    uint8_t *bytes = dq_alloc(s->base.env, (size_t)total);
    if (!bytes) return DQ_E_NOMEM;
    uint64_t length = total - 8;
    memset(bytes, ' ', (size_t)total);
    memcpy(bytes, &length, 8);
    memcpy(bytes + 8, text, strlen(text));
    dq_status status = patch ? dq_writer_patch(w, 0, bytes, total) : dq_writer_write(w, bytes, total);
    dq_free(bytes);
    return status;
}

/* Copies the part behind an exact header, in the order its entries have now. */
static dq_status rewrite(st_sink *s, part *p, size_t number, const char *text, uint64_t header_total)
{
    dq_writer *w = NULL;
    dq_status status = DQ_OK;
    char *file = dq_asprintf(s->base.env, "%s.part%05zu", s->stem, number + 1);
    char *path = file ? path_in(s, file) : NULL;
    if (!path) DQ_GO(DQ_E_NOMEM);
    DQ_GO(dq_writer_open(s->base.env, path, &w));
    DQ_GO(write_header(s, w, false, text, header_total));
    for (size_t i = p->first; i < p->first + p->count; i++)
        DQ_GO(dq_writer_copy(w, p->writer, s->gap + s->entries[i].begin, s->entries[i].bytes));
    dq_writer_free(p->writer);
    p->writer = w;
    w = NULL;
done:
    dq_writer_free(w);
    dq_free(path);
    dq_free(file);
    return status;
}

static dq_status finish_part(st_sink *s, size_t number)
{
    part *p = &s->parts[number];
    if (p->unaligned) qsort(s->entries + p->first, p->count, sizeof *s->entries, by_width);
    char *text = NULL;
    DQ_TRY(header_text(s, p, &text));
    uint64_t exact = (8 + strlen(text) + 7) / 8 * 8;
    dq_status status = DQ_OK;
    if (exact - 8 > DQ_ST_MAX_HEADER)
        DQ_GO(dq_fail(DQ_E_INVALID, "the header needs %llu bytes, the format's limit is %llu; use smaller parts",
                      (unsigned long long)(exact - 8), (unsigned long long)DQ_ST_MAX_HEADER));
    DQ_GO(dq_writer_resume(p->writer));
    if (p->unaligned || exact > s->gap || s->gap > p->bytes / 64)
        DQ_GO(rewrite(s, p, number, text, exact));
    else
        DQ_GO(write_header(s, p->writer, true, text, s->gap));
    DQ_GO(dq_writer_seal(p->writer));
done:
    dq_free(text);
    return status;
}

static dq_status name_part(st_sink *s, size_t number)
{
    part *p = &s->parts[number];
    p->file = s->part_count == 1
                  ? dq_asprintf(s->base.env, "%s.safetensors", s->stem)
                  : dq_asprintf(s->base.env, "%s-%05zu-of-%05zu.safetensors", s->stem, number + 1, s->part_count);
    p->path = p->file ? path_in(s, p->file) : NULL;
    return p->path ? dq_writer_retarget(p->writer, p->path) : DQ_E_NOMEM;
}

static dq_status index_text(const st_sink *s, char **out)
{
    uint64_t total = 0;
    json_t *map = json_object();
    int failed = 0;
    for (size_t i = 0; i < s->part_count; i++) {
        const part *p = &s->parts[i];
        total += p->bytes;
        for (size_t k = p->first; k < p->first + p->count; k++)
            failed |= json_object_set_new(map, s->entries[k].name, json_string(p->file));
    }
    json_t *root = json_pack("{s:{s:I}, s:o}", "metadata", "total_size", (json_int_t)total, "weight_map", map);
    dq_status status = failed || !root ? dq_fail(DQ_E_NOMEM, "out of memory while making the index")
                                       : dq_json_dump(s->base.env, root, true, out);
    json_decref(root);
    return status;
}

/* "stem.suffix" in the sink's folder. */
static char *path_with(const st_sink *s, const char *suffix)
{
    char *file = dq_asprintf(s->base.env, "%s%s", s->stem, suffix);
    char *path = file ? path_in(s, file) : NULL;
    dq_free(file);
    return path;
}

static dq_status prepare_index(st_sink *s, dq_writer **out)
{
    char *text = NULL;
    dq_writer *w = NULL;
    dq_status status = DQ_OK;
    char *path = path_with(s, ".safetensors.index.json");
    if (!path) DQ_GO(DQ_E_NOMEM);
    DQ_GO(index_text(s, &text));
    DQ_GO(dq_writer_open(s->base.env, path, &w));
    DQ_GO(dq_writer_write(w, text, strlen(text)));
    DQ_GO(dq_writer_seal(w));
    *out = w;
    w = NULL;
done:
    dq_writer_free(w);
    dq_free(text);
    dq_free(path);
    return status;
}

/* Renames the sealed parts, then the index: a reader that finds the index finds its shards. All memory is taken before
 * the first file becomes visible. */
static dq_status publish(st_sink *s)
{
    bool set = s->part_count > 1;
    dq_writer *index = NULL;
    dq_status status = DQ_OK;
    /* An index beside a single file, or a single file beside a set, is left from an earlier save under this name. It would
     * be opened in place of ours. */
    char *stale = path_with(s, set ? ".safetensors" : ".safetensors.index.json");
    if (!stale) return DQ_E_NOMEM;
    if (set) DQ_GO(prepare_index(s, &index));
    for (size_t i = 0; i < s->part_count; i++) {
        DQ_GO(dq_writer_commit(s->parts[i].writer));
        s->parts[i].visible = true;
    }
    if (index) DQ_GO(dq_writer_commit(index));
    if (unlink(stale) != 0 && errno != ENOENT)
        DQ_GO(dq_error_in_file(dq_fail_errno(DQ_E_IO, "cannot remove the file of an earlier save"), stale));
done:
    for (size_t i = 0; status != DQ_OK && i < s->part_count; i++)
        if (s->parts[i].visible) unlink(s->parts[i].path);
    dq_writer_free(index);
    dq_free(stale);
    return status;
}

static dq_status sink_finish(dq_sink *sink)
{
    st_sink *s = (st_sink *)sink;
    if (s->closed) return dq_fail(DQ_E_STATE, "the sink is finished or failed");
    if (s->missing)
        return dq_error_in_tensor(dq_fail(DQ_E_STATE, "the tensor lacks %llu bytes", (unsigned long long)s->missing),
                                  s->entries[s->count - 1].name);
    s->closed = true;
    if (s->part_count == 0) DQ_TRY(open_part(s)); /* a file without tensors */
    for (size_t i = 0; i < s->part_count; i++) DQ_TRY(finish_part(s, i));
    for (size_t i = 0; i < s->part_count; i++) DQ_TRY(name_part(s, i));
    return publish(s);
}

static void sink_free(dq_sink *sink)
{
    if (!sink) return;
    st_sink *s = (st_sink *)sink;
    for (size_t i = 0; i < s->part_count; i++) {
        dq_writer_free(s->parts[i].writer);
        dq_free(s->parts[i].file);
        dq_free(s->parts[i].path);
    }
    for (size_t i = 0; i < s->count; i++) dq_free(s->entries[i].name);
    dq_free(s->parts);
    dq_free(s->entries);
    dq_name_map_free(s->names);
    json_decref(s->metadata);
    dq_free(s->dir);
    dq_free(s->stem);
    dq_free(s);
}

static const dq_sink_ops sink_ops = {.add = sink_add,
                                     .set_metadata = sink_set_metadata,
                                     .finish = sink_finish,
                                     .free = sink_free,
                                     .begin = sink_begin,
                                     .append = sink_append};

dq_status dq_safetensors_sink(dq_env *env, const char *dir, const char *stem, uint64_t part_size, dq_sink **out)
{
    if (strchr(stem, '/') || stem[0] == '\0') return dq_fail(DQ_E_INVALID, "'%s' is no file name", stem);
    st_sink *s = dq_calloc(env, 1, sizeof *s);
    if (!s) return DQ_E_NOMEM;
    s->base = (dq_sink){&sink_ops, env};
    s->part_size = part_size;
    /* A gap is only worth its bytes in large files; small parts are always copied. */
    s->gap = part_size / 64 < MAX_GAP ? part_size / 64 / 4096 * 4096 : MAX_GAP;
    dq_status status = DQ_E_NOMEM;
    s->dir = dq_strdup(env, dir);
    s->stem = dq_strdup(env, stem);
    s->metadata = json_pack("{s:s}", "format", "pt");
    if (s->dir && s->stem && s->metadata) status = dq_name_map_new(env, 64, &s->names);
    if (status != DQ_OK) {
        sink_free(&s->base);
        return status;
    }
    *out = &s->base;
    return DQ_OK;
}
