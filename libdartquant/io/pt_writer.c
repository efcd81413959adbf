/* torch.save archives: NAME/data.pkl (a protocol 2 pickle), NAME/data/K (raw storages), NAME/byteorder, NAME/version.
 * The data is written as it comes; the pickle, which names it, last. SPDX-License-Identifier: Apache-2.0 */
#include <stdio.h>
#include <string.h>

#include "base/dtype.h"
#include "base/status.h"
#include "io/formats.h"
#include "io/zip_writer.h"

enum { MEMBER = 512 };

typedef struct pt_sink {
    dq_sink base;
    dq_zip_writer *zip;
    char *root;
    bool bare;   /* one tensor is the whole content */
    bool broken; /* a call failed, or the file is finished */
    uint64_t count;
    uint64_t missing; /* bytes that the last tensor still waits for */
    dq_name_map *names;
    char **keys; /* the map borrows them */
    size_t key_capacity;
    uint8_t *pickle;
    size_t used, capacity;
} pt_sink;

/* ---- the pickle ---- */

static dq_status emit(pt_sink *s, const void *data, size_t bytes)
{
    if (s->capacity - s->used < bytes) {
        size_t bigger = (s->capacity ? s->capacity * 2 : 1024) + bytes;
        uint8_t *fresh = dq_realloc(s->base.env, s->pickle, bigger);
        if (!fresh) return DQ_E_NOMEM;
        s->pickle = fresh;
        s->capacity = bigger;
    }
    memcpy(s->pickle + s->used, data, bytes);
    s->used += bytes;
    return DQ_OK;
}

static dq_status emit_text(pt_sink *s, const char *text) { return emit(s, text, strlen(text)); }

/* BINUNICODE */
static dq_status emit_string(pt_sink *s, const char *text)
{
    size_t n = strlen(text);
    uint8_t head[5] = {'X', (uint8_t)n, (uint8_t)(n >> 8), (uint8_t)(n >> 16), (uint8_t)(n >> 24)};
    DQ_TRY(emit(s, head, sizeof head));
    return emit(s, text, n);
}

/* BININT1, BININT or LONG1, whichever holds it. */
static dq_status emit_int(pt_sink *s, int64_t v)
{
    uint8_t code[11];
    size_t n = 1;
    if (v < 256) {
        code[0] = 'K';
        code[n++] = (uint8_t)v;
    } else if (v <= INT32_MAX) {
        code[0] = 'J';
        for (int i = 0; i < 4; i++) code[n++] = (uint8_t)(v >> (8 * i));
    } else {
        code[0] = 0x8a;
        code[n++] = 8;
        for (int i = 0; i < 8; i++) code[n++] = (uint8_t)((uint64_t)v >> (8 * i));
    }
    return emit(s, code, n);
}

static dq_status emit_tuple(pt_sink *s, int ndim, const int64_t *values)
{
    DQ_TRY(emit_text(s, "("));
    for (int i = 0; i < ndim; i++) DQ_TRY(emit_int(s, values[i]));
    return emit_text(s, "t");
}

static const char *storage_class(dq_dtype dtype)
{
    switch (dtype) {
        case DQ_F32: return "FloatStorage";
        case DQ_F64: return "DoubleStorage";
        case DQ_F16: return "HalfStorage";
        case DQ_BF16: return "BFloat16Storage";
        case DQ_I32: return "IntStorage";
        case DQ_I64: return "LongStorage";
        case DQ_U8: return "ByteStorage";
        default: return NULL;
    }
}

/* _rebuild_tensor_v2(storage, 0, shape, strides, False, OrderedDict()) */
static dq_status emit_tensor(pt_sink *s, uint64_t number, const char *class_name, int ndim, const int64_t *shape)
{
    char text[64];
    int64_t strides[DQ_MAX_DIMS], elements = 1;
    for (int i = ndim - 1; i >= 0; i--) {
        strides[i] = elements;
        elements *= shape[i];
    }
    DQ_TRY(emit_text(s, "ctorch._utils\n_rebuild_tensor_v2\n(("));
    DQ_TRY(emit_string(s, "storage"));
    snprintf(text, sizeof text, "ctorch\n%s\n", class_name);
    DQ_TRY(emit_text(s, text));
    snprintf(text, sizeof text, "%llu", (unsigned long long)number);
    DQ_TRY(emit_string(s, text));
    DQ_TRY(emit_string(s, "cpu"));
    DQ_TRY(emit_int(s, elements));
    DQ_TRY(emit_text(s, "tQ")); /* BINPERSID */
    DQ_TRY(emit_int(s, 0));
    DQ_TRY(emit_tuple(s, ndim, shape));
    DQ_TRY(emit_tuple(s, ndim, strides));
    return emit_text(s, "\x89"
                        "ccollections\nOrderedDict\n)RtR");
}

/* ---- the sink ---- */

static dq_status keep_name(pt_sink *s, const char *name)
{
    if (s->count == s->key_capacity) {
        size_t bigger = s->key_capacity ? s->key_capacity * 2 : 16;
        char **fresh = dq_realloc(s->base.env, s->keys, bigger * sizeof *fresh);
        if (!fresh) return DQ_E_NOMEM;
        s->keys = fresh;
        s->key_capacity = bigger;
    }
    char *copy = dq_strdup(s->base.env, name);
    if (!copy) return DQ_E_NOMEM;
    s->keys[s->count] = copy;
    dq_status status = dq_name_map_add(s->names, copy, strlen(copy), (int64_t)s->count);
    s->count++;
    return status == DQ_E_INVALID ? dq_fail(DQ_E_INVALID, "tensor \"%s\" is written twice", name) : status;
}

static dq_status begin_tensor(pt_sink *s, const char *name, dq_dtype dtype, int ndim, const int64_t *shape,
                              uint64_t bytes)
{
    const char *class_name = storage_class(dtype);
    char member[MEMBER];
    uint64_t number = s->count, expected = dq_dtype_size(dtype);
    if (!class_name) return dq_fail(DQ_E_UNSUPPORTED, "a PyTorch archive cannot hold %s", dq_dtype_name(dtype));
    if (s->bare && s->count) return dq_fail(DQ_E_INVALID, "a second tensor in an archive of one");
    if (ndim < 0 || ndim > DQ_MAX_DIMS) return dq_fail(DQ_E_INVALID, "a tensor of %d dimensions", ndim);
    for (int i = 0; i < ndim; i++)
        if (shape[i] < 0 || __builtin_mul_overflow(expected, (uint64_t)shape[i], &expected))
            return dq_fail(DQ_E_INVALID, "a tensor too large to address");
    if (expected != bytes)
        return dq_fail(DQ_E_INVALID, "%llu bytes for a tensor of %llu", (unsigned long long)bytes,
                       (unsigned long long)expected);
    DQ_TRY(keep_name(s, name));
    if (!s->bare) DQ_TRY(emit_string(s, name));
    DQ_TRY(emit_tensor(s, number, class_name, ndim, shape));
    snprintf(member, sizeof member, "%s/data/%llu", s->root, (unsigned long long)number);
    DQ_TRY(dq_zip_begin(s->zip, member, bytes));
    s->missing = bytes;
    return DQ_OK;
}

static dq_status check_open(pt_sink *s)
{
    if (s->broken) return dq_fail(DQ_E_STATE, "the archive is finished or a call failed");
    return s->missing ? dq_fail(DQ_E_STATE, "the tensor before is not complete") : DQ_OK;
}

static dq_status settle(pt_sink *s, dq_status status)
{
    if (status != DQ_OK) s->broken = true;
    return status;
}

static dq_status pt_begin(dq_sink *sink, const char *name, dq_dtype dtype, int ndim, const int64_t *shape,
                          uint64_t bytes)
{
    pt_sink *s = (pt_sink *)sink;
    DQ_TRY(check_open(s));
    dq_status status = begin_tensor(s, name, dtype, ndim, shape, bytes);
    if (status == DQ_OK && bytes == 0) status = dq_zip_end(s->zip);
    return settle(s, dq_error_in_tensor(status, name));
}

static dq_status pt_append(dq_sink *sink, const void *data, uint64_t bytes)
{
    pt_sink *s = (pt_sink *)sink;
    if (s->broken) return dq_fail(DQ_E_STATE, "the archive is finished or a call failed");
    if (bytes > s->missing) return settle(s, dq_fail(DQ_E_INVALID, "more bytes than the tensor has"));
    dq_status status = dq_zip_append(s->zip, data, bytes);
    s->missing -= bytes;
    if (status == DQ_OK && bytes > 0 && s->missing == 0) status = dq_zip_end(s->zip);
    return settle(s, status);
}

static dq_status pt_add(dq_sink *sink, const char *name, dq_dtype dtype, int ndim, const int64_t *shape,
                        const void *data, uint64_t bytes)
{
    DQ_TRY(pt_begin(sink, name, dtype, ndim, shape, bytes));
    return bytes ? pt_append(sink, data, bytes) : DQ_OK;
}

/* A state dict has no place beside its tensors that a reader of state dicts would not trip over. */
static dq_status pt_metadata(dq_sink *sink, const char *key, const char *value)
{
    (void)value;
    dq_log(sink->env, DQ_LOG_DEBUG, "a PyTorch archive keeps no metadata: \"%s\" is left out", key);
    return DQ_OK;
}

static dq_status add_member(pt_sink *s, const char *name, const void *data, size_t bytes)
{
    char member[MEMBER];
    snprintf(member, sizeof member, "%s/%s", s->root, name);
    DQ_TRY(dq_zip_begin(s->zip, member, bytes));
    DQ_TRY(dq_zip_append(s->zip, data, bytes));
    return dq_zip_end(s->zip);
}

static dq_status complete(pt_sink *s)
{
    if (s->bare && s->count != 1) return dq_fail(DQ_E_STATE, "an archive of one tensor has none");
    DQ_TRY(emit_text(s, s->bare ? "." : "u."));
    DQ_TRY(add_member(s, "data.pkl", s->pickle, s->used));
    DQ_TRY(add_member(s, "byteorder", "little", 6));
    DQ_TRY(add_member(s, "version", "3\n", 2));
    return dq_zip_finish(s->zip);
}

static dq_status pt_finish(dq_sink *sink)
{
    pt_sink *s = (pt_sink *)sink;
    DQ_TRY(check_open(s));
    dq_status status = complete(s);
    s->broken = true;
    return status;
}

static void pt_free(dq_sink *sink)
{
    pt_sink *s = (pt_sink *)sink;
    dq_zip_free(s->zip);
    dq_name_map_free(s->names);
    for (uint64_t i = 0; i < s->count; i++) dq_free(s->keys[i]);
    dq_free(s->keys);
    dq_free(s->pickle);
    dq_free(s->root);
    dq_free(s);
}

static const dq_sink_ops pt_ops = {pt_add, pt_metadata, pt_finish, pt_free, pt_begin, pt_append};

/* torch.save calls the folder inside as the file without its ending. */
static char *root_name(dq_env *env, const char *path)
{
    const char *base = strrchr(path, '/');
    base = base ? base + 1 : path;
    const char *dot = strrchr(base, '.');
    size_t n = dot && dot > base ? (size_t)(dot - base) : strlen(base);
    return n > 0 && n < 256 ? dq_strndup(env, base, n) : dq_strdup(env, "archive");
}

dq_status dq_pt_sink(dq_env *env, const char *path, bool bare, dq_sink **out)
{
    dq_status status = DQ_OK;
    pt_sink *s = dq_calloc(env, 1, sizeof *s);
    if (!s) return DQ_E_NOMEM;
    s->base = (dq_sink){&pt_ops, env};
    s->bare = bare;
    s->root = root_name(env, path);
    if (!s->root) DQ_GO(DQ_E_NOMEM);
    DQ_GO(dq_name_map_new(env, 16, &s->names));
    DQ_GO(emit_text(s, bare ? "\x80\x02" : "\x80\x02}("));
    DQ_GO(dq_zip_open(env, path, &s->zip));
    *out = &s->base;
    return DQ_OK;
done:
    pt_free(&s->base);
    return status;
}
