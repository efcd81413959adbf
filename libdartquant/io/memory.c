/* Tensors kept in memory or in an unnamed temporary file: a sink that becomes a source.
 * SPDX-License-Identifier: Apache-2.0 */
#include <string.h>

#include "base/dtype.h"
#include "base/status.h"
#include "io/decode.h"
#include "io/formats.h"
#include "io/spool.h"

typedef struct pair {
    char *key;
    char *value;
} pair;

typedef struct memory_source {
    dq_source base;
    uint8_t **data; /* [base.count]; NULL where the spool holds the tensor, at its info's offset */
    dq_spool spool;
    int64_t capacity;
    pair *metadata;
    size_t metadata_count;
    size_t metadata_capacity;
} memory_source;

typedef struct memory_sink {
    dq_sink base;
    memory_source *source; /* NULL once taken */
    bool finished;
} memory_sink;

/* ---- source ---- */

/* Elements [first, first + count) of a tensor in the spool, through a small buffer. */
static dq_status spooled_rows(memory_source *s, const dq_tensor_info *t, uint64_t first, uint64_t count, float *out)
{
    uint8_t buffer[8192];
    uint64_t size = dq_dtype_size(t->dtype), most = sizeof buffer / size;
    for (uint64_t i = 0; i < count; i += most) {
        uint64_t n = count - i < most ? count - i : most;
        DQ_TRY(dq_error_in_tensor(dq_spool_read(&s->spool, t->offset + (first + i) * size, n * size, buffer), t->name));
        if (!dq_decode_float(t->dtype, buffer, (size_t)n, out + i)) return dq_refuse_decode(t);
    }
    return DQ_OK;
}

static dq_status read_rows(dq_source *source, int64_t tensor, int64_t row, int64_t count, float *out)
{
    const dq_tensor_info *t = &source->tensors[tensor];
    memory_source *s = (memory_source *)source;
    size_t cols = (size_t)dq_info_cols(t), size = dq_dtype_size(t->dtype);
    if (!s->data[tensor]) return spooled_rows(s, t, (uint64_t)row * cols, (uint64_t)count * cols, out);
    const uint8_t *src = s->data[tensor] + (size_t)row * cols * size;
    return dq_decode_float(t->dtype, src, (size_t)count * cols, out) ? DQ_OK : dq_refuse_decode(t);
}

static dq_status read_raw(dq_source *source, int64_t tensor, uint64_t offset, uint64_t bytes, void *out)
{
    memory_source *s = (memory_source *)source;
    const dq_tensor_info *t = &source->tensors[tensor];
    if (!s->data[tensor]) return dq_error_in_tensor(dq_spool_read(&s->spool, t->offset + offset, bytes, out), t->name);
    if (bytes) memcpy(out, s->data[tensor] + offset, (size_t)bytes);
    return DQ_OK;
}

static void source_free(dq_source *source)
{
    memory_source *s = (memory_source *)source;
    for (int64_t i = 0; i < source->count; i++) {
        dq_free((void *)(uintptr_t)source->tensors[i].name);
        dq_free(s->data[i]);
    }
    for (size_t i = 0; i < s->metadata_count; i++) {
        dq_free(s->metadata[i].key);
        dq_free(s->metadata[i].value);
    }
    dq_free(s->metadata);
    dq_free(s->data);
    dq_free(source->tensors);
    dq_name_map_free(source->names);
    dq_spool_close(&s->spool);
    dq_free(s);
}

static const dq_source_ops source_ops = {source_free, read_rows, read_raw, NULL};

/* ---- sink ---- */

static dq_status reserve(memory_source *s)
{
    if (s->base.count < s->capacity) return DQ_OK;
    int64_t bigger = s->capacity ? s->capacity * 2 : 16;
    dq_tensor_info *tensors = dq_realloc(s->base.env, s->base.tensors, (size_t)bigger * sizeof *tensors);
    if (!tensors) return DQ_E_NOMEM;
    s->base.tensors = tensors;
    uint8_t **data = dq_realloc(s->base.env, s->data, (size_t)bigger * sizeof *data);
    if (!data) return DQ_E_NOMEM;
    s->data = data;
    s->capacity = bigger;
    return DQ_OK;
}

/* Puts the content of a tensor where the sink keeps it. */
static dq_status store(memory_source *s, const void *data, uint64_t bytes, dq_tensor_info *info, uint8_t **copy)
{
    *copy = NULL;
    if (dq_spool_is_open(&s->spool)) {
        info->file = s->spool.folder;
        return dq_spool_append(&s->spool, data, bytes, &info->offset);
    }
    *copy = dq_alloc(s->base.env, (size_t)bytes);
    if (!*copy) return DQ_E_NOMEM;
    if (bytes) memcpy(*copy, data, (size_t)bytes);
    return DQ_OK;
}

static dq_status sink_add(dq_sink *sink, const char *name, dq_dtype dtype, int ndim, const int64_t *shape,
                          const void *data, uint64_t bytes)
{
    memory_sink *m = (memory_sink *)sink;
    memory_source *s = m->source;
    if (!s || m->finished) return dq_error_in_tensor(dq_fail(DQ_E_STATE, "the sink is finished"), name);
    dq_tensor_info info = {.type_name = dq_dtype_name(dtype), .file = ""};
    DQ_TRY(dq_sink_check(name, dtype, ndim, shape, bytes, &info));
    DQ_TRY(reserve(s));
    int64_t i = s->base.count;
    char *copy = dq_strdup(sink->env, name);
    uint8_t *bytes_copy = NULL;
    if (!copy) return DQ_E_NOMEM;
    dq_status status = store(s, data, bytes, &info, &bytes_copy);
    if (status == DQ_OK) {
        status = dq_name_map_add(s->base.names, copy, strlen(copy), i);
        if (status == DQ_E_INVALID) status = dq_fail(status, "the name is used twice");
    }
    if (status != DQ_OK) {
        dq_free(bytes_copy);
        dq_free(copy);
        return dq_error_in_tensor(status, name);
    }
    info.name = copy;
    s->base.tensors[i] = info;
    s->data[i] = bytes_copy;
    s->base.count++;
    return DQ_OK;
}

static dq_status sink_set_metadata(dq_sink *sink, const char *key, const char *value)
{
    memory_source *s = ((memory_sink *)sink)->source;
    if (!s) return dq_fail(DQ_E_STATE, "the sink is finished");
    char *fresh = dq_strdup(sink->env, value);
    if (!fresh) return DQ_E_NOMEM;
    for (size_t i = 0; i < s->metadata_count; i++) {
        if (strcmp(s->metadata[i].key, key) != 0) continue;
        dq_free(s->metadata[i].value);
        s->metadata[i].value = fresh;
        return DQ_OK;
    }
    char *name = dq_strdup(sink->env, key);
    if (name && s->metadata_count == s->metadata_capacity) {
        size_t bigger = s->metadata_capacity ? s->metadata_capacity * 2 : 8;
        pair *grown = dq_realloc(sink->env, s->metadata, bigger * sizeof *grown);
        if (grown) {
            s->metadata = grown;
            s->metadata_capacity = bigger;
        }
    }
    if (!name || s->metadata_count == s->metadata_capacity) {
        dq_free(name);
        dq_free(fresh);
        return DQ_E_NOMEM;
    }
    s->metadata[s->metadata_count++] = (pair){name, fresh};
    return DQ_OK;
}

static dq_status sink_finish(dq_sink *sink)
{
    ((memory_sink *)sink)->finished = true;
    return DQ_OK;
}

static void sink_free(dq_sink *sink)
{
    if (!sink) return;
    memory_sink *m = (memory_sink *)sink;
    if (m->source) source_free(&m->source->base);
    dq_free(m);
}

static const dq_sink_ops sink_ops = {
    .add = sink_add, .set_metadata = sink_set_metadata, .finish = sink_finish, .free = sink_free};

/* `folder`: where the spool is, NULL = memory. */
static dq_status new_sink(dq_env *env, const char *folder, uint64_t expected, dq_sink **out)
{
    memory_sink *m = dq_calloc(env, 1, sizeof *m);
    if (!m) return DQ_E_NOMEM;
    m->base = (dq_sink){&sink_ops, env};
    m->source = dq_calloc(env, 1, sizeof *m->source);
    dq_status status = DQ_E_NOMEM;
    if (m->source) {
        m->source->base = (dq_source){.ops = &source_ops, .env = env, .format = "memory"};
        status = dq_name_map_new(env, 16, &m->source->base.names);
        if (status == DQ_OK && folder) status = dq_spool_open(env, folder, expected, &m->source->spool);
    }
    if (status != DQ_OK) {
        sink_free(&m->base);
        return status;
    }
    *out = &m->base;
    return DQ_OK;
}

dq_status dq_memory_sink(dq_env *env, dq_sink **out) { return new_sink(env, NULL, 0, out); }

dq_status dq_spool_sink(dq_env *env, const char *folder, uint64_t expected, dq_sink **out)
{
    return new_sink(env, folder, expected, out);
}

dq_status dq_memory_source(dq_sink *sink, dq_source **out)
{
    memory_sink *m = (memory_sink *)sink;
    if (sink->ops != &sink_ops || !m->finished || !m->source)
        return dq_fail(DQ_E_STATE, "only a finished memory or spool sink gives its tensors, and only once");
    *out = &m->source->base;
    m->source = NULL;
    return DQ_OK;
}

const char *dq_memory_metadata(const dq_source *source, const char *key)
{
    if (source->ops != &source_ops) return NULL;
    const memory_source *s = (const memory_source *)source;
    for (size_t i = 0; i < s->metadata_count; i++)
        if (strcmp(s->metadata[i].key, key) == 0) return s->metadata[i].value;
    return NULL;
}
