/* GGUF metadata: parsing with every length checked, and typed access. SPDX-License-Identifier: Apache-2.0 */
#include <string.h>

#include "base/status.h"
#include "io/decode.h"
#include "io/formats.h"
#include "io/gguf.h"
#include "io/limits.h"

dq_status dq_gguf_take(dq_gguf_cursor *c, uint64_t bytes, const char *what, const uint8_t **out)
{
    uint64_t rest = c->map->size - c->at;
    if (bytes > rest)
        return dq_error_at_byte(dq_fail(DQ_E_TRUNCATED, "%s needs %llu bytes, %llu follow", what,
                                        (unsigned long long)bytes, (unsigned long long)rest),
                                c->at);
    *out = c->map->data + c->at;
    c->at += bytes;
    return DQ_OK;
}

dq_status dq_gguf_take_u32(dq_gguf_cursor *c, const char *what, uint32_t *out)
{
    const uint8_t *p = NULL;
    DQ_TRY(dq_gguf_take(c, 4, what, &p));
    *out = dq_load_u32(p);
    return DQ_OK;
}

dq_status dq_gguf_take_u64(dq_gguf_cursor *c, const char *what, uint64_t *out)
{
    const uint8_t *p = NULL;
    DQ_TRY(dq_gguf_take(c, 8, what, &p));
    *out = dq_load_u64(p);
    return DQ_OK;
}

dq_status dq_gguf_take_string(dq_gguf_cursor *c, const char *what, const char **out, uint64_t *bytes)
{
    const uint8_t *p = NULL;
    DQ_TRY(dq_gguf_take_u64(c, what, bytes));
    DQ_TRY(dq_gguf_take(c, *bytes, what, &p));
    *out = (const char *)p;
    return DQ_OK;
}

/* Bytes of a fixed-size value; 0 for strings, arrays and unknown types. */
static uint64_t value_bytes(uint32_t type)
{
    static const uint8_t sizes[] = {1, 1, 2, 2, 4, 4, 4, 1, 0, 0, 8, 8, 8};
    return type < sizeof sizes ? sizes[type] : 0;
}

/* ---- parsing ---- */

/* Skips an array of strings and remembers where each begins. */
static dq_status read_strings(dq_env *env, dq_gguf_cursor *c, dq_gguf_kv *kv)
{
    if (kv->count > (c->map->size - c->at) / 8)
        return dq_error_at_byte(dq_fail(DQ_E_TRUNCATED, "%llu strings cannot lie in the %llu bytes that follow",
                                        (unsigned long long)kv->count, (unsigned long long)(c->map->size - c->at)),
                                c->at);
    kv->strings = dq_alloc(env, (size_t)kv->count * sizeof *kv->strings);
    if (!kv->strings) return DQ_E_NOMEM;
    for (uint64_t i = 0; i < kv->count; i++) {
        const char *text = NULL;
        uint64_t bytes = 0;
        kv->strings[i] = c->at;
        DQ_TRY(dq_gguf_take_string(c, "a string of an array", &text, &bytes));
    }
    return DQ_OK;
}

static dq_status read_value(dq_env *env, dq_gguf_cursor *c, dq_gguf_kv *kv)
{
    uint64_t at = c->at;
    kv->count = 1;
    DQ_TRY(dq_gguf_take_u32(c, "a value type", &kv->type));
    if (kv->type == DQ_GGUF_ARRAY) {
        kv->array = true;
        at = c->at;
        DQ_TRY(dq_gguf_take_u32(c, "an element type", &kv->type));
        DQ_TRY(dq_gguf_take_u64(c, "an array length", &kv->count));
        if (kv->type == DQ_GGUF_ARRAY) return dq_error_at_byte(dq_fail(DQ_E_UNSUPPORTED, "an array of arrays"), at);
    }
    kv->offset = c->at;
    if (kv->type == DQ_GGUF_STRING) {
        if (kv->array) return read_strings(env, c, kv);
        const char *text = NULL;
        uint64_t bytes = 0;
        return dq_gguf_take_string(c, "a string", &text, &bytes);
    }
    uint64_t size = value_bytes(kv->type), total;
    if (size == 0) return dq_error_at_byte(dq_fail(DQ_E_FORMAT, "unknown value type %u", kv->type), at);
    if (__builtin_mul_overflow(size, kv->count, &total)) total = UINT64_MAX;
    const uint8_t *skipped = NULL;
    return dq_gguf_take(c, total, kv->array ? "an array" : "a value", &skipped);
}

static dq_status read_pair(dq_gguf_source *s, dq_gguf_cursor *c, size_t index)
{
    dq_gguf_kv *kv = &s->kvs[index];
    uint64_t start = c->at, bytes = 0;
    DQ_TRY(dq_gguf_take_string(c, "a key", &kv->key, &bytes));
    if (bytes == 0 || bytes > DQ_GGUF_MAX_KEY)
        return dq_error_at_byte(dq_fail(DQ_E_FORMAT, "key %zu is %llu bytes long, 1..%u are allowed", index,
                                        (unsigned long long)bytes, DQ_GGUF_MAX_KEY),
                                start);
    kv->key_bytes = (size_t)bytes;
    dq_status status = dq_name_map_add(s->keys, kv->key, kv->key_bytes, (int64_t)index);
    int shown = bytes > 100 ? 100 : (int)bytes;
    if (status == DQ_E_INVALID)
        status = dq_error_at_byte(dq_fail(DQ_E_FORMAT, "the key '%.*s' is used twice", shown, kv->key), start);
    if (status != DQ_OK) return status;
    return read_value(s->base.env, c, kv);
}

static dq_status read_alignment(dq_gguf_source *s)
{
    s->alignment = 32;
    int64_t i = dq_name_map_get(s->keys, "general.alignment", strlen("general.alignment"));
    if (i < 0) return DQ_OK;
    const dq_gguf_kv *kv = &s->kvs[i];
    if (kv->array || kv->type != DQ_GGUF_U32)
        return dq_error_at_byte(dq_fail(DQ_E_FORMAT, "general.alignment is no u32"), kv->offset);
    uint32_t v = dq_load_u32(s->map.data + kv->offset);
    if (v == 0 || (v & (v - 1)) != 0 || v > DQ_GGUF_MAX_ALIGNMENT)
        return dq_error_at_byte(dq_fail(DQ_E_FORMAT, "general.alignment is %u, a power of two up to %u is expected", v,
                                        DQ_GGUF_MAX_ALIGNMENT),
                                kv->offset);
    s->alignment = v;
    return DQ_OK;
}

dq_status dq_gguf_read_metadata(dq_gguf_source *s, dq_gguf_cursor *c)
{
    for (size_t i = 0; i < s->kv_count; i++) DQ_TRY(read_pair(s, c, i));
    return read_alignment(s);
}

/* ---- access ---- */

static dq_status fail_key(const dq_source *source, const char *key, const char *problem)
{
    const char *path = source->ops == &dq_gguf_ops ? ((const dq_gguf_source *)source)->path : NULL;
    return dq_error_in_file(dq_fail(DQ_E_FORMAT, "GGUF key '%s' %s", key, problem), path);
}

static const dq_gguf_kv *find(const dq_source *source, const char *key)
{
    if (source->ops != &dq_gguf_ops) return NULL;
    const dq_gguf_source *s = (const dq_gguf_source *)source;
    int64_t i = dq_name_map_get(s->keys, key, strlen(key));
    return i < 0 ? NULL : &s->kvs[i];
}

/* The pair of that key, plain or an array with an element i. */
static dq_status get(const dq_source *source, const char *key, bool array, int64_t i, const dq_gguf_kv **out)
{
    const dq_gguf_kv *kv = find(source, key);
    if (!kv) return fail_key(source, key, "is missing");
    if (kv->array != array) return fail_key(source, key, array ? "is no array" : "is an array");
    if (i < 0 || (uint64_t)i >= kv->count) return fail_key(source, key, "has no element of that number");
    *out = kv;
    return DQ_OK;
}

static dq_status load_int(const dq_source *source, const char *key, const dq_gguf_kv *kv, int64_t i, int64_t *out)
{
    const uint8_t *p = ((const dq_gguf_source *)source)->map.data + kv->offset + (uint64_t)i * value_bytes(kv->type);
    uint64_t wide;
    switch (kv->type) {
        case DQ_GGUF_U8: *out = p[0]; return DQ_OK;
        case DQ_GGUF_I8: *out = (int8_t)p[0]; return DQ_OK;
        case DQ_GGUF_BOOL: *out = p[0] != 0; return DQ_OK;
        case DQ_GGUF_U16: *out = dq_load_u16(p); return DQ_OK;
        case DQ_GGUF_I16: *out = (int16_t)dq_load_u16(p); return DQ_OK;
        case DQ_GGUF_U32: *out = dq_load_u32(p); return DQ_OK;
        case DQ_GGUF_I32: *out = (int32_t)dq_load_u32(p); return DQ_OK;
        case DQ_GGUF_I64: *out = (int64_t)dq_load_u64(p); return DQ_OK;
        case DQ_GGUF_U64:
            wide = dq_load_u64(p);
            if (wide > INT64_MAX) return fail_key(source, key, "is above 2^63-1");
            *out = (int64_t)wide;
            return DQ_OK;
        default: return fail_key(source, key, "is no integer");
    }
}

static dq_status load_double(const dq_source *source, const char *key, const dq_gguf_kv *kv, int64_t i, double *out)
{
    const uint8_t *p = ((const dq_gguf_source *)source)->map.data + kv->offset + (uint64_t)i * value_bytes(kv->type);
    if (kv->type == DQ_GGUF_F32) {
        float v;
        memcpy(&v, p, sizeof v);
        *out = v;
        return DQ_OK;
    }
    if (kv->type == DQ_GGUF_F64) {
        memcpy(out, p, sizeof *out);
        return DQ_OK;
    }
    if (kv->type == DQ_GGUF_STRING) return fail_key(source, key, "is no number");
    int64_t integer = 0;
    DQ_TRY(load_int(source, key, kv, i, &integer));
    *out = (double)integer;
    return DQ_OK;
}

static dq_status load_string(const dq_source *source, const char *key, const dq_gguf_kv *kv, int64_t i,
                             const char **out, size_t *bytes)
{
    if (kv->type != DQ_GGUF_STRING) return fail_key(source, key, "is no string");
    const uint8_t *p = ((const dq_gguf_source *)source)->map.data + (kv->array ? kv->strings[i] : kv->offset);
    *bytes = (size_t)dq_load_u64(p);
    *out = (const char *)p + 8;
    return DQ_OK;
}

bool dq_gguf_has(const dq_source *source, const char *key) { return find(source, key) != NULL; }

dq_status dq_gguf_int(const dq_source *source, const char *key, int64_t *out)
{
    const dq_gguf_kv *kv = NULL;
    DQ_TRY(get(source, key, false, 0, &kv));
    return load_int(source, key, kv, 0, out);
}

dq_status dq_gguf_double(const dq_source *source, const char *key, double *out)
{
    const dq_gguf_kv *kv = NULL;
    DQ_TRY(get(source, key, false, 0, &kv));
    return load_double(source, key, kv, 0, out);
}

dq_status dq_gguf_string(const dq_source *source, const char *key, const char **out, size_t *bytes)
{
    const dq_gguf_kv *kv = NULL;
    DQ_TRY(get(source, key, false, 0, &kv));
    return load_string(source, key, kv, 0, out, bytes);
}

dq_status dq_gguf_array_length(const dq_source *source, const char *key, int64_t *out)
{
    const dq_gguf_kv *kv = find(source, key);
    if (!kv) return fail_key(source, key, "is missing");
    if (!kv->array) return fail_key(source, key, "is no array");
    *out = (int64_t)kv->count; /* at most the file's size */
    return DQ_OK;
}

dq_status dq_gguf_array_string(const dq_source *source, const char *key, int64_t i, const char **out, size_t *bytes)
{
    const dq_gguf_kv *kv = NULL;
    DQ_TRY(get(source, key, true, i, &kv));
    return load_string(source, key, kv, i, out, bytes);
}

dq_status dq_gguf_array_int(const dq_source *source, const char *key, int64_t i, int64_t *out)
{
    const dq_gguf_kv *kv = NULL;
    DQ_TRY(get(source, key, true, i, &kv));
    return load_int(source, key, kv, i, out);
}

dq_status dq_gguf_array_double(const dq_source *source, const char *key, int64_t i, double *out)
{
    const dq_gguf_kv *kv = NULL;
    DQ_TRY(get(source, key, true, i, &kv));
    return load_double(source, key, kv, i, out);
}
