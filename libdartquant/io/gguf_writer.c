/* SPDX-License-Identifier: Apache-2.0 */
#include "io/gguf_writer.h"

#include <string.h>

#include "base/status.h"
#include "io/file.h"
#include "io/gguf.h"

enum { ALIGNMENT = 32, NAME_LIMIT = 63 };

typedef struct buffer {
    uint8_t *data;
    size_t bytes, capacity;
} buffer;

struct dq_gguf_writer {
    dq_env *env;
    dq_writer *file;
    dq_status status; /* the first failure while the header was built */
    buffer keys, table;
    uint64_t key_count, tensor_count;
    uint64_t offset;    /* of the next tensor in the table */
    uint64_t *promised; /* [tensor_count] */
    uint64_t promised_capacity, at, written;
};

dq_status dq_gguf_writer_open(dq_env *env, const char *path, dq_gguf_writer **out)
{
    dq_gguf_writer *w = dq_calloc(env, 1, sizeof *w);
    if (!w) return DQ_E_NOMEM;
    w->env = env;
    dq_status status = dq_writer_open(env, path, &w->file);
    if (status == DQ_OK)
        *out = w;
    else
        dq_gguf_writer_free(w);
    return status;
}

void dq_gguf_writer_free(dq_gguf_writer *w)
{
    if (!w) return;
    dq_writer_free(w->file);
    dq_free(w->keys.data);
    dq_free(w->table.data);
    dq_free(w->promised);
    dq_free(w);
}

static void put(dq_gguf_writer *w, buffer *b, const void *data, uint64_t bytes)
{
    if (w->status != DQ_OK) return;
    if (b->bytes + bytes > b->capacity) {
        size_t bigger = 2 * (b->bytes + (size_t)bytes) + 1024;
        uint8_t *grown = dq_realloc(w->env, b->data, bigger);
        if (!grown) {
            w->status = DQ_E_NOMEM;
            return;
        }
        b->data = grown;
        b->capacity = bigger;
    }
    memcpy(b->data + b->bytes, data, (size_t)bytes);
    b->bytes += (size_t)bytes;
}

static void put_u32(dq_gguf_writer *w, buffer *b, uint32_t v) { put(w, b, &v, sizeof v); }
static void put_u64(dq_gguf_writer *w, buffer *b, uint64_t v) { put(w, b, &v, sizeof v); }

static void put_string(dq_gguf_writer *w, buffer *b, const char *text, uint64_t bytes)
{
    put_u64(w, b, bytes);
    put(w, b, text, bytes);
}

static void key(dq_gguf_writer *w, const char *name, uint32_t type)
{
    put_string(w, &w->keys, name, strlen(name));
    put_u32(w, &w->keys, type);
    w->key_count++;
}

void dq_gguf_writer_u32(dq_gguf_writer *w, const char *name, uint32_t value)
{
    key(w, name, DQ_GGUF_U32);
    put_u32(w, &w->keys, value);
}

void dq_gguf_writer_f32(dq_gguf_writer *w, const char *name, float value)
{
    key(w, name, DQ_GGUF_F32);
    put(w, &w->keys, &value, sizeof value);
}

void dq_gguf_writer_bool(dq_gguf_writer *w, const char *name, bool value)
{
    uint8_t byte = value;
    key(w, name, DQ_GGUF_BOOL);
    put(w, &w->keys, &byte, 1);
}

void dq_gguf_writer_string(dq_gguf_writer *w, const char *name, const char *value)
{
    key(w, name, DQ_GGUF_STRING);
    put_string(w, &w->keys, value, strlen(value));
}

void dq_gguf_writer_array(dq_gguf_writer *w, const char *name, uint32_t type, uint64_t count)
{
    key(w, name, DQ_GGUF_ARRAY);
    put_u32(w, &w->keys, type);
    put_u64(w, &w->keys, count);
}

void dq_gguf_writer_element(dq_gguf_writer *w, const void *data, uint64_t bytes) { put(w, &w->keys, data, bytes); }

void dq_gguf_writer_element_string(dq_gguf_writer *w, const char *text, uint64_t bytes)
{
    put_string(w, &w->keys, text, bytes);
}

dq_status dq_gguf_writer_raw_key(dq_gguf_writer *w, const void *data, uint64_t bytes)
{
    put(w, &w->keys, data, bytes);
    w->key_count++;
    return w->status;
}

static uint64_t padded(uint64_t bytes) { return (bytes + ALIGNMENT - 1) / ALIGNMENT * ALIGNMENT; }

void dq_gguf_writer_tensor(dq_gguf_writer *w, const char *name, int64_t rows, int64_t cols, uint32_t type,
                           uint64_t bytes)
{
    if (w->status == DQ_OK && strlen(name) > NAME_LIMIT)
        w->status = dq_error_in_tensor(dq_fail(DQ_E_UNSUPPORTED, "GGUF names have at most %d bytes", NAME_LIMIT), name);
    if (w->status == DQ_OK && w->tensor_count == w->promised_capacity) {
        uint64_t bigger = w->promised_capacity ? 2 * w->promised_capacity : 64;
        uint64_t *grown = dq_realloc(w->env, w->promised, (size_t)bigger * sizeof *grown);
        if (!grown) w->status = DQ_E_NOMEM;
        if (grown) {
            w->promised = grown;
            w->promised_capacity = bigger;
        }
    }
    if (w->status != DQ_OK) return;
    put_string(w, &w->table, name, strlen(name));
    put_u32(w, &w->table, rows > 0 ? 2 : 1);
    put_u64(w, &w->table, (uint64_t)cols);
    if (rows > 0) put_u64(w, &w->table, (uint64_t)rows);
    put_u32(w, &w->table, type);
    put_u64(w, &w->table, w->offset);
    w->offset += padded(bytes);
    w->promised[w->tensor_count++] = bytes;
}

static dq_status pad(dq_gguf_writer *w)
{
    uint64_t at = dq_writer_position(w->file);
    return padded(at) > at ? dq_writer_skip(w->file, padded(at) - at) : DQ_OK;
}

dq_status dq_gguf_writer_begin(dq_gguf_writer *w)
{
    uint64_t counts[2] = {w->tensor_count, w->key_count};
    uint32_t version = 3;
    DQ_TRY(w->status);
    DQ_TRY(dq_writer_write(w->file, "GGUF", 4));
    DQ_TRY(dq_writer_write(w->file, &version, 4));
    DQ_TRY(dq_writer_write(w->file, counts, sizeof counts));
    DQ_TRY(dq_writer_write(w->file, w->keys.data, w->keys.bytes));
    DQ_TRY(dq_writer_write(w->file, w->table.data, w->table.bytes));
    return pad(w);
}

dq_status dq_gguf_writer_data(dq_gguf_writer *w, const void *data, uint64_t bytes)
{
    w->written += bytes;
    return dq_writer_write(w->file, data, bytes);
}

dq_status dq_gguf_writer_end_tensor(dq_gguf_writer *w)
{
    if (w->at >= w->tensor_count || w->written != w->promised[w->at])
        return dq_fail(DQ_E_INTERNAL, "tensor %llu has %llu bytes, not those of the table", (unsigned long long)w->at,
                       (unsigned long long)w->written);
    w->at++;
    w->written = 0;
    return pad(w);
}

dq_status dq_gguf_writer_commit(dq_gguf_writer *w)
{
    if (w->at != w->tensor_count) return dq_fail(DQ_E_INTERNAL, "tensors of the table are missing");
    return dq_writer_commit(w->file);
}
