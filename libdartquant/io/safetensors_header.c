/* safetensors: u64 header length, JSON header, data (https://github.com/huggingface/safetensors). The verdicts are those
 * of the reference implementation, with duplicate keys refused as its README demands.
 * SPDX-License-Identifier: Apache-2.0 */
#include <stdlib.h>
#include <string.h>

#include "base/status.h"
#include "io/decode.h"
#include "io/limits.h"
#include "io/safetensors.h"

static const struct {
    const char *name;
    dq_dtype dtype;
    unsigned bits;
} type_table[] = {
    {"F32", DQ_F32, 32},
    {"F16", DQ_F16, 16},
    {"BF16", DQ_BF16, 16},
    {"F64", DQ_F64, 64},
    {"I64", DQ_I64, 64},
    {"I32", DQ_I32, 32},
    {"I16", DQ_I16, 16},
    {"I8", DQ_I8, 8},
    {"U8", DQ_U8, 8},
    {"U16", DQ_U16, 16},
    {"U32", DQ_U32, 32},
    {"U64", DQ_U64, 64},
    {"BOOL", DQ_BOOL, 8},
    {"F8_E4M3", DQ_F8_E4M3, 8},
    {"F8_E5M2", DQ_F8_E5M2, 8},
    {"F8_E8M0", DQ_DTYPE_OTHER, 8},
    {"F8_E4M3FNUZ", DQ_DTYPE_OTHER, 8},
    {"F8_E5M2FNUZ", DQ_DTYPE_OTHER, 8},
    {"C64", DQ_DTYPE_OTHER, 64},
    {"F4", DQ_DTYPE_OTHER, 4},
    {"F6_E2M3", DQ_DTYPE_OTHER, 6},
    {"F6_E3M2", DQ_DTYPE_OTHER, 6},
};

void dq_st_header_clear(dq_st_header *h)
{
    json_decref(h->root);
    dq_free(h->tensors);
}

/* Where a tensor's entry stands in the file: its quoted name, or the header when the name is written with escapes. */
static uint64_t entry_byte(const dq_map *map, uint64_t data_start, const char *name)
{
    size_t n = strlen(name);
    const uint8_t *p = map->data + 8, *end = map->data + data_start;
    while ((p = memmem(p, (size_t)(end - p), name, n)) != NULL) {
        if (p[-1] == '"' && p + n < end && p[n] == '"') return (uint64_t)(p - map->data) - 1;
        p++;
    }
    return 8;
}

static dq_status parse_shape(const json_t *shape, dq_tensor_info *t)
{
    if (!json_is_array(shape)) return dq_fail(DQ_E_FORMAT, "'shape' is missing or no array");
    size_t ndim = json_array_size(shape);
    if (ndim > DQ_MAX_DIMS)
        return dq_fail(DQ_E_UNSUPPORTED, "%zu dimensions, at most %d are supported", ndim, DQ_MAX_DIMS);
    int64_t span = 1; /* the product with zeros left out, so that no later product can overflow */
    for (size_t i = 0; i < ndim; i++) {
        const json_t *dim = json_array_get(shape, i);
        if (!json_is_integer(dim)) return dq_fail(DQ_E_FORMAT, "dimension %zu of 'shape' is not an integer", i);
        json_int_t d = json_integer_value(dim);
        if (d < 0) return dq_fail(DQ_E_FORMAT, "dimension %zu of 'shape' is negative (%lld)", i, (long long)d);
        if (d > 0 && __builtin_mul_overflow(span, (int64_t)d, &span))
            return dq_fail(DQ_E_FORMAT, "the product of 'shape' overflows");
        t->shape[i] = (int64_t)d;
    }
    t->ndim = (int)ndim;
    return DQ_OK;
}

static dq_status parse_type(const json_t *value, dq_tensor_info *t, unsigned *bits)
{
    const char *name = json_string_value(value);
    if (!name) return dq_fail(DQ_E_FORMAT, "'dtype' is missing or no string");
    for (size_t i = 0; i < sizeof type_table / sizeof *type_table; i++) {
        if (strcmp(name, type_table[i].name) != 0) continue;
        t->dtype = type_table[i].dtype;
        t->type_name = type_table[i].name;
        *bits = type_table[i].bits;
        return DQ_OK;
    }
    return dq_fail(DQ_E_FORMAT, "unknown dtype '%s'", name);
}

/* Fills all but name and file; t->offset is relative to the data. */
static dq_status parse_tensor(const json_t *value, uint64_t data_bytes, dq_tensor_info *t)
{
    unsigned bits = 0;
    if (!json_is_object(value)) return dq_fail(DQ_E_FORMAT, "the entry is no object");
    DQ_TRY(parse_type(json_object_get(value, "dtype"), t, &bits));
    DQ_TRY(parse_shape(json_object_get(value, "shape"), t));
    const json_t *offsets = json_object_get(value, "data_offsets");
    const json_t *begin = json_array_get(offsets, 0), *end = json_array_get(offsets, 1);
    if (json_array_size(offsets) != 2 || !json_is_integer(begin) || !json_is_integer(end))
        return dq_fail(DQ_E_FORMAT, "'data_offsets' is missing or not two integers");
    json_int_t b = json_integer_value(begin), e = json_integer_value(end);
    if (b < 0 || e < b)
        return dq_fail(DQ_E_FORMAT, "data_offsets [%lld, %lld] are no range", (long long)b, (long long)e);

    uint64_t total = 1;
    for (int i = 0; i < t->ndim; i++) total *= (uint64_t)t->shape[i]; /* parse_shape has checked it */
    if (__builtin_mul_overflow(total, (uint64_t)bits, &total)) return dq_fail(DQ_E_FORMAT, "the size overflows");
    if (total % 8 != 0) return dq_fail(DQ_E_FORMAT, "%llu bits do not end on a byte", (unsigned long long)total);
    t->bytes = (uint64_t)e - (uint64_t)b;
    t->offset = (uint64_t)b;
    if (t->bytes != total / 8)
        return dq_fail(DQ_E_FORMAT, "data_offsets hold %llu bytes, shape and dtype need %llu",
                       (unsigned long long)t->bytes, (unsigned long long)(total / 8));
    if ((uint64_t)e > data_bytes)
        return dq_fail(DQ_E_TRUNCATED, "data ends at %llu of %llu bytes of data", (unsigned long long)e,
                       (unsigned long long)data_bytes);
    return DQ_OK;
}

static dq_status parse_metadata(json_t *value, dq_st_header *h)
{
    if (json_is_null(value)) return DQ_OK;
    if (!json_is_object(value)) return dq_fail(DQ_E_FORMAT, "'__metadata__' is no object");
    const char *key;
    json_t *text;
    json_object_foreach(value, key, text)
    {
        if (!json_is_string(text)) return dq_fail(DQ_E_FORMAT, "'__metadata__' key '%s' is no string", key);
    }
    h->metadata = value;
    return DQ_OK;
}

static int by_range(const void *a, const void *b)
{
    const dq_tensor_info *x = *(const dq_tensor_info *const *)a, *y = *(const dq_tensor_info *const *)b;
    if (x->offset != y->offset) return x->offset < y->offset ? -1 : 1;
    return x->bytes < y->bytes ? -1 : x->bytes > y->bytes;
}

/* Ranges in offset order must follow each other without hole or overlap and fill the data. */
static dq_status check_ranges(dq_env *env, const dq_st_header *h, const dq_map *map, uint64_t data_start)
{
    const dq_tensor_info **order = dq_alloc(env, (h->count + 1) * sizeof *order);
    if (!order) return DQ_E_NOMEM;
    for (size_t i = 0; i < h->count; i++) order[i] = &h->tensors[i];
    qsort(order, h->count, sizeof *order, by_range);
    uint64_t expected = 0;
    dq_status status = DQ_OK;
    for (size_t i = 0; i < h->count && status == DQ_OK; i++) {
        const dq_tensor_info *t = order[i];
        if (t->offset != expected) {
            status =
                dq_fail(DQ_E_FORMAT, "data begins at %llu, %s (%llu is expected)", (unsigned long long)t->offset,
                        t->offset < expected ? "inside another tensor" : "after a hole", (unsigned long long)expected);
            dq_error_at_byte(dq_error_in_tensor(status, t->name), entry_byte(map, data_start, t->name));
        }
        expected = t->offset + t->bytes;
    }
    dq_free(order);
    uint64_t data_bytes = map->size - data_start;
    if (status == DQ_OK && expected != data_bytes)
        status = dq_error_at_byte(
            dq_fail(DQ_E_FORMAT, "%llu bytes follow the last tensor", (unsigned long long)(data_bytes - expected)),
            data_start + expected);
    return status;
}

static dq_status parse_entries(dq_env *env, const dq_map *map, uint64_t data_start, dq_st_header *h)
{
    if (!json_is_object(h->root)) return dq_error_at_byte(dq_fail(DQ_E_FORMAT, "the header is no JSON object"), 8);
    h->tensors = dq_calloc(env, json_object_size(h->root), sizeof *h->tensors);
    if (!h->tensors) return DQ_E_NOMEM;
    const char *name;
    json_t *value;
    json_object_foreach(h->root, name, value)
    {
        if (strcmp(name, "__metadata__") == 0) {
            DQ_TRY(dq_error_at_byte(parse_metadata(value, h), entry_byte(map, data_start, name)));
            continue;
        }
        dq_tensor_info *t = &h->tensors[h->count++];
        t->name = name;
        dq_status status = parse_tensor(value, map->size - data_start, t);
        if (status != DQ_OK)
            return dq_error_at_byte(dq_error_in_tensor(status, name), entry_byte(map, data_start, name));
    }
    DQ_TRY(check_ranges(env, h, map, data_start));
    for (size_t i = 0; i < h->count; i++) h->tensors[i].offset += data_start;
    return DQ_OK;
}

/* "-0" is no unsigned integer to the reference; jansson makes a plain 0 of it, so it is looked for in the text. */
static dq_status check_minus_zero(const uint8_t *text, size_t bytes)
{
    bool in_string = false;
    for (size_t i = 0; i < bytes; i++) {
        if (in_string && text[i] == '\\')
            i++;
        else if (text[i] == '"')
            in_string = !in_string;
        else if (!in_string && text[i] == '-' && i + 2 < bytes && text[i + 1] == '0' && !strchr(".eE", text[i + 2]))
            return dq_error_at_byte(dq_fail(DQ_E_FORMAT, "a minus zero"), 8 + i);
    }
    return DQ_OK;
}

dq_status dq_st_header_parse(dq_env *env, const dq_map *map, uint64_t *data_start, dq_st_header *h)
{
    if (map->size < 8)
        return dq_fail(DQ_E_TRUNCATED, "%llu bytes cannot hold the header length", (unsigned long long)map->size);
    uint64_t length = dq_load_u64(map->data);
    if (length > DQ_ST_MAX_HEADER)
        return dq_error_at_byte(dq_fail(DQ_E_FORMAT, "header length %llu is above the limit of %llu",
                                        (unsigned long long)length, (unsigned long long)DQ_ST_MAX_HEADER),
                                0);
    if (length > map->size - 8)
        return dq_error_at_byte(dq_fail(DQ_E_TRUNCATED, "the header needs %llu bytes, %llu follow",
                                        (unsigned long long)length, (unsigned long long)(map->size - 8)),
                                0);
    *data_start = 8 + length;
    DQ_TRY(dq_json_parse_at((const char *)map->data + 8, (size_t)length, 8, NULL, &h->root));
    DQ_TRY(check_minus_zero(map->data + 8, (size_t)length));
    return parse_entries(env, map, *data_start, h);
}
