/* GGUF v2 and v3 (https://github.com/ggml-org/ggml/blob/master/docs/gguf.md) as a tensor source. Checks follow llama.cpp's
 * gguf.cpp: names, offsets and sizes must be exactly what its own writer produces.
 * SPDX-License-Identifier: Apache-2.0 */
#include "io/gguf.h"

#include <string.h>

#include "base/status.h"
#include "io/decode.h"
#include "io/formats.h"
#include "io/limits.h"

/* All types of ggml.h, so that tensors this library cannot decode are still listed. */
static const dq_gguf_type types[] = {
    {0, "F32", 1, 4, DQ_F32},           {1, "F16", 1, 2, DQ_F16},           {2, "Q4_0", 32, 18, DQ_BLOCK},
    {3, "Q4_1", 32, 20, DQ_BLOCK},      {6, "Q5_0", 32, 22, DQ_BLOCK},      {7, "Q5_1", 32, 24, DQ_BLOCK},
    {8, "Q8_0", 32, 34, DQ_BLOCK},      {9, "Q8_1", 32, 36, DQ_BLOCK}, /* f16 d, f16 s */
    {10, "Q2_K", 256, 84, DQ_BLOCK},    {11, "Q3_K", 256, 110, DQ_BLOCK},   {12, "Q4_K", 256, 144, DQ_BLOCK},
    {13, "Q5_K", 256, 176, DQ_BLOCK},   {14, "Q6_K", 256, 210, DQ_BLOCK},   {15, "Q8_K", 256, 292, DQ_BLOCK},
    {16, "IQ2_XXS", 256, 66, DQ_BLOCK}, {17, "IQ2_XS", 256, 74, DQ_BLOCK},  {18, "IQ3_XXS", 256, 98, DQ_BLOCK},
    {19, "IQ1_S", 256, 50, DQ_BLOCK},   {20, "IQ4_NL", 32, 18, DQ_BLOCK},   {21, "IQ3_S", 256, 110, DQ_BLOCK},
    {22, "IQ2_S", 256, 82, DQ_BLOCK},   {23, "IQ4_XS", 256, 136, DQ_BLOCK}, {24, "I8", 1, 1, DQ_I8},
    {25, "I16", 1, 2, DQ_I16},          {26, "I32", 1, 4, DQ_I32},          {27, "I64", 1, 8, DQ_I64},
    {28, "F64", 1, 8, DQ_F64},          {29, "IQ1_M", 256, 56, DQ_BLOCK},   {30, "BF16", 1, 2, DQ_BF16},
    {34, "TQ1_0", 256, 54, DQ_BLOCK},   {35, "TQ2_0", 256, 66, DQ_BLOCK},   {39, "MXFP4", 32, 17, DQ_BLOCK},
    {40, "NVFP4", 64, 36, DQ_BLOCK},    {41, "Q1_0", 128, 18, DQ_BLOCK},
};

const dq_gguf_type *dq_gguf_find_type(uint32_t id)
{
    for (size_t i = 0; i < sizeof types / sizeof *types; i++)
        if (types[i].id == id) return &types[i];
    return NULL;
}

/* ---- reading tensors ---- */

static dq_status read_rows(dq_source *source, int64_t tensor, int64_t row, int64_t count, float *out)
{
    dq_gguf_source *s = (dq_gguf_source *)source;
    const dq_tensor_info *t = &source->tensors[tensor];
    const dq_gguf_type *type = dq_gguf_find_type(s->types[tensor]);
    uint64_t cols = (uint64_t)dq_info_cols(t);
    uint64_t row_blocks = cols / type->block; /* the opener has checked that it divides */
    const uint8_t *src = s->map.data + t->offset + (uint64_t)row * row_blocks * type->bytes;
    if (t->dtype != DQ_BLOCK)
        return dq_decode_float(t->dtype, src, (size_t)((uint64_t)count * cols), out) ? DQ_OK : dq_refuse_decode(t);
    dq_gguf_block_fn decode = dq_gguf_block_decoder(type->id);
    if (!decode) return dq_refuse_decode(t);
    decode(src, (size_t)((uint64_t)count * row_blocks), out);
    return DQ_OK;
}

static dq_status read_raw(dq_source *source, int64_t tensor, uint64_t offset, uint64_t bytes, void *out)
{
    dq_gguf_source *s = (dq_gguf_source *)source;
    if (bytes) memcpy(out, s->map.data + source->tensors[tensor].offset + offset, (size_t)bytes);
    return DQ_OK;
}

static void release(dq_source *source, int64_t tensor)
{
    const dq_tensor_info *t = &source->tensors[tensor];
    dq_map_drop(&((dq_gguf_source *)source)->map, t->offset, t->bytes);
}

static void gguf_free(dq_source *source)
{
    dq_gguf_source *s = (dq_gguf_source *)source;
    for (int64_t i = 0; i < source->count; i++) dq_free((void *)(uintptr_t)source->tensors[i].name);
    for (size_t i = 0; s->kvs && i < s->kv_count; i++) dq_free(s->kvs[i].strings);
    dq_free(source->tensors);
    dq_name_map_free(source->names);
    dq_name_map_free(s->keys);
    dq_free(s->kvs);
    dq_free(s->types);
    dq_free(s->path);
    dq_map_close(&s->map);
    dq_free(s);
}

const dq_source_ops dq_gguf_ops = {gguf_free, read_rows, read_raw, release};

/* ---- tensor infos ---- */

static dq_status read_shape(dq_gguf_cursor *c, dq_tensor_info *t)
{
    uint32_t ndim = 0;
    uint64_t at = c->at;
    DQ_TRY(dq_gguf_take_u32(c, "the number of dimensions", &ndim));
    if (ndim > DQ_GGUF_MAX_DIMS)
        return dq_error_at_byte(dq_fail(DQ_E_FORMAT, "%u dimensions, at most %u are allowed", ndim, DQ_GGUF_MAX_DIMS),
                                at);
    t->ndim = (int)ndim;
    int64_t span = 1;
    for (uint32_t i = 0; i < ndim; i++) {
        uint64_t dim = 0;
        at = c->at;
        DQ_TRY(dq_gguf_take_u64(c, "a dimension", &dim));
        /* The file lists the fastest dimension first, dq_tensor_info the slowest. */
        if (dim == 0 || dim > INT64_MAX || __builtin_mul_overflow(span, (int64_t)dim, &span))
            return dq_error_at_byte(dq_fail(DQ_E_FORMAT, "dimension %u is %llu", i, (unsigned long long)dim), at);
        t->shape[ndim - 1 - i] = (int64_t)dim;
    }
    return DQ_OK;
}

static dq_status read_type(dq_gguf_cursor *c, dq_tensor_info *t, uint32_t *id)
{
    uint64_t at = c->at;
    DQ_TRY(dq_gguf_take_u32(c, "the tensor type", id));
    const dq_gguf_type *type = dq_gguf_find_type(*id);
    if (!type) return dq_error_at_byte(dq_fail(DQ_E_UNSUPPORTED, "unknown tensor type %u", *id), at);
    t->dtype = type->dtype;
    t->type_name = type->name;
    uint64_t fastest = t->ndim ? (uint64_t)t->shape[t->ndim - 1] : 1;
    if (fastest % type->block != 0)
        return dq_error_at_byte(dq_fail(DQ_E_FORMAT, "rows of %llu elements are no multiple of the %s block of %u",
                                        (unsigned long long)fastest, type->name, type->block),
                                at);
    uint64_t blocks = 1;
    for (int i = 0; i < t->ndim; i++) blocks *= (uint64_t)t->shape[i];
    if (__builtin_mul_overflow(blocks / type->block, (uint64_t)type->bytes, &t->bytes))
        return dq_error_at_byte(dq_fail(DQ_E_FORMAT, "the size overflows"), at);
    return DQ_OK;
}

/* `expected` is the running sum of padded sizes, which offsets must equal. t->offset stays relative. */
static dq_status read_info(dq_gguf_source *s, dq_gguf_cursor *c, int64_t index, uint64_t *expected)
{
    dq_tensor_info *t = &s->base.tensors[index];
    const char *name = NULL;
    uint64_t bytes = 0, start = c->at;
    DQ_TRY(dq_gguf_take_string(c, "a tensor name", &name, &bytes));
    if (bytes == 0 || bytes >= DQ_GGUF_MAX_NAME || memchr(name, '\0', (size_t)bytes))
        return dq_error_at_byte(dq_fail(DQ_E_FORMAT,
                                        "tensor name %lld is %llu bytes long or holds a NUL; 1..%u are allowed",
                                        (long long)index, (unsigned long long)bytes, DQ_GGUF_MAX_NAME - 1),
                                start);
    char *copy = dq_strndup(s->base.env, name, (size_t)bytes);
    if (!copy) return DQ_E_NOMEM;
    t->name = copy;
    t->file = s->path;
    s->base.count = index + 1; /* from here gguf_free frees the name */
    dq_status status = dq_name_map_add(s->base.names, copy, (size_t)bytes, index);
    if (status == DQ_E_INVALID) status = dq_error_at_byte(dq_fail(DQ_E_FORMAT, "the tensor name is used twice"), start);
    if (status == DQ_OK) status = read_shape(c, t);
    if (status == DQ_OK) status = read_type(c, t, &s->types[index]);
    uint64_t at = c->at;
    if (status == DQ_OK) status = dq_gguf_take_u64(c, "the tensor offset", &t->offset);
    if (status == DQ_OK && t->offset != *expected)
        status = dq_error_at_byte(dq_fail(DQ_E_FORMAT, "offset %llu, %llu is expected", (unsigned long long)t->offset,
                                          (unsigned long long)*expected),
                                  at);
    uint64_t padded;
    if (status == DQ_OK && (__builtin_add_overflow(t->bytes, s->alignment - 1, &padded) ||
                            __builtin_add_overflow(*expected, padded / s->alignment * s->alignment, expected)))
        status = dq_error_at_byte(dq_fail(DQ_E_FORMAT, "the size overflows"), at);
    return dq_error_in_tensor(status, copy);
}

/* The data begins at the next multiple of the alignment; every tensor must lie in the file. */
static dq_status place_data(dq_gguf_source *s, uint64_t header_end)
{
    s->data_start = (header_end + s->alignment - 1) / s->alignment * s->alignment;
    for (int64_t i = 0; i < s->base.count; i++) {
        dq_tensor_info *t = &s->base.tensors[i];
        uint64_t end;
        if (__builtin_add_overflow(t->offset, s->data_start, &t->offset) ||
            __builtin_add_overflow(t->offset, t->bytes, &end) || end > s->map.size) {
            dq_status status =
                dq_fail(DQ_E_TRUNCATED, "the tensor needs %llu bytes from byte %llu, the file has %llu",
                        (unsigned long long)t->bytes, (unsigned long long)t->offset, (unsigned long long)s->map.size);
            return dq_error_at_byte(dq_error_in_tensor(status, t->name), t->offset);
        }
    }
    return DQ_OK;
}

/* ---- header ---- */

static dq_status read_header(dq_gguf_cursor *c, uint64_t *tensors, uint64_t *kvs)
{
    const uint8_t *magic = NULL;
    uint32_t version = 0;
    DQ_TRY(dq_gguf_take(c, 4, "the magic", &magic));
    if (memcmp(magic, "GGUF", 4) != 0) return dq_error_at_byte(dq_fail(DQ_E_FORMAT, "no GGUF magic"), 0);
    DQ_TRY(dq_gguf_take_u32(c, "the version", &version));
    if ((version & 0xffffu) == 0 && version != 0)
        return dq_error_at_byte(dq_fail(DQ_E_UNSUPPORTED, "a big-endian GGUF file (version field 0x%08x)", version), 4);
    if (version != 2 && version != 3)
        return dq_error_at_byte(dq_fail(DQ_E_UNSUPPORTED, "GGUF version %u, 2 and 3 are supported", version), 4);
    DQ_TRY(dq_gguf_take_u64(c, "the tensor count", tensors));
    DQ_TRY(dq_gguf_take_u64(c, "the key count", kvs));
    /* Before memory is taken for them: so many entries must at least fit in what follows. */
    uint64_t rest = c->map->size - c->at;
    if (*tensors > rest / DQ_GGUF_MIN_TENSOR_BYTES)
        return dq_error_at_byte(dq_fail(DQ_E_TRUNCATED, "%llu tensors cannot lie in the %llu bytes that follow",
                                        (unsigned long long)*tensors, (unsigned long long)rest),
                                8);
    if (*kvs > rest / DQ_GGUF_MIN_KV_BYTES)
        return dq_error_at_byte(dq_fail(DQ_E_TRUNCATED, "%llu keys cannot lie in the %llu bytes that follow",
                                        (unsigned long long)*kvs, (unsigned long long)rest),
                                16);
    return DQ_OK;
}

static dq_status allocate(dq_gguf_source *s, const char *path, uint64_t tensors, uint64_t kvs)
{
    dq_env *env = s->base.env;
    s->path = dq_strdup(env, path);
    s->base.tensors = s->path ? dq_calloc(env, (size_t)tensors, sizeof *s->base.tensors) : NULL;
    s->types = s->base.tensors ? dq_calloc(env, (size_t)tensors, sizeof *s->types) : NULL;
    s->kvs = s->types ? dq_calloc(env, (size_t)kvs, sizeof *s->kvs) : NULL;
    if (!s->kvs) return DQ_E_NOMEM;
    s->kv_count = (size_t)kvs;
    DQ_TRY(dq_name_map_new(env, (size_t)tensors, &s->base.names));
    return dq_name_map_new(env, (size_t)kvs, &s->keys);
}

dq_status dq_gguf_open_map(dq_env *env, const char *path, dq_map *map, dq_source **out)
{
    uint64_t tensors = 0, kvs = 0, expected = 0;
    dq_status status;
    dq_gguf_source *s = dq_calloc(env, 1, sizeof *s);
    if (!s) return DQ_E_NOMEM;
    s->base = (dq_source){.ops = &dq_gguf_ops, .env = env, .format = "gguf"};
    s->map = *map;
    dq_gguf_cursor c = {&s->map, 0};
    DQ_GO(read_header(&c, &tensors, &kvs));
    DQ_GO(allocate(s, path, tensors, kvs));
    DQ_GO(dq_gguf_read_metadata(s, &c));
    for (int64_t i = 0; i < (int64_t)tensors; i++) DQ_GO(read_info(s, &c, i, &expected));
    DQ_GO(place_data(s, c.at));
    *out = &s->base;
    *map = (dq_map){0};
    s = NULL;
done:
    if (s) {
        s->map = (dq_map){0}; /* still the caller's */
        gguf_free(&s->base);
    }
    return dq_error_in_file(status, path);
}

dq_status dq_gguf_open(dq_env *env, const char *path, dq_source **out)
{
    dq_map map = {0};
    DQ_TRY(dq_map_open(env, path, &map));
    dq_status status = dq_gguf_open_map(env, path, &map, out);
    dq_map_close(&map);
    return status;
}
