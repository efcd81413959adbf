/* SPDX-License-Identifier: Apache-2.0 */
#include "io/json.h"

#include <string.h>

#include "base/status.h"
#include "io/file.h"

/* jansson refuses integers beyond 64 bits, but files written by Python hold them (model_max_length 10^30). Text is
 * then fed through this filter, which writes such a number's last two digits as "e2": a real, the same to 17 digits
 * at least. */
typedef struct wide_filter {
    const char *text;
    size_t bytes;
    size_t position;
    size_t number_end; /* end of the number being copied */
    size_t patch;      /* where "e2" goes, or SIZE_MAX */
    bool in_string;
} wide_filter;

static bool is_digit(char c) { return c >= '0' && c <= '9'; }

/* `position` stands on the first digit of a number: finds its end and whether it must be patched. */
static void filter_number(wide_filter *f)
{
    size_t digits = f->position;
    uint64_t value = 0;
    bool wide = false;
    for (; digits < f->bytes && is_digit(f->text[digits]); digits++)
        wide = wide || __builtin_mul_overflow(value, UINT64_C(10), &value) ||
               __builtin_add_overflow(value, (uint64_t)(f->text[digits] - '0'), &value) || value > INT64_MAX;
    size_t end = digits;
    while (end < f->bytes && (is_digit(f->text[end]) || (f->text[end] && strchr(".eE+-", f->text[end])))) end++;
    f->number_end = end;
    f->patch = end == digits && wide ? digits - 2 : SIZE_MAX;
}

static size_t filter_read(void *buffer, size_t capacity, void *data)
{
    wide_filter *f = data;
    char *out = buffer;
    size_t n = 0;
    while (n < capacity && f->position < f->bytes) {
        char c = f->text[f->position];
        if (f->in_string) {
            if (c == '\\' && f->position + 1 < f->bytes) {
                if (n + 2 > capacity) break; /* an escape stays in one piece */
                out[n++] = c;
                c = f->text[++f->position];
            } else if (c == '"') {
                f->in_string = false;
            }
        } else if (c == '"') {
            f->in_string = true;
        } else if (is_digit(c)) {
            if (f->position >= f->number_end) filter_number(f);
            if (f->patch != SIZE_MAX && f->position >= f->patch) c = f->position == f->patch ? 'e' : '2';
        }
        out[n++] = c;
        f->position++;
    }
    return n;
}

dq_status dq_json_parse_at(const char *text, size_t bytes, uint64_t base, const char *path, json_t **out)
{
    json_error_t error;
    /* jansson passes over a NUL byte behind a number. */
    const char *nul = bytes ? memchr(text, '\0', bytes) : NULL;
    if (nul)
        return dq_error_at_byte(dq_error_in_file(dq_fail(DQ_E_FORMAT, "JSON: a NUL byte"), path),
                                base + (uint64_t)(nul - text));
    json_t *value = json_loadb(text, bytes, JSON_REJECT_DUPLICATES, &error);
    if (!value && json_error_code(&error) == json_error_numeric_overflow) {
        wide_filter filter = {.text = text, .bytes = bytes, .patch = SIZE_MAX};
        value = json_load_callback(filter_read, &filter, JSON_REJECT_DUPLICATES, &error);
    }
    if (value) {
        *out = value;
        return DQ_OK;
    }
    dq_status status =
        json_error_code(&error) == json_error_out_of_memory
            ? dq_fail(DQ_E_NOMEM, "out of memory while parsing JSON")
            : dq_fail(DQ_E_FORMAT, "JSON: %s (line %d, column %d)", error.text, error.line, error.column);
    return dq_error_at_byte(dq_error_in_file(status, path), base + (uint64_t)(error.position < 0 ? 0 : error.position));
}

dq_status dq_json_parse(const char *text, size_t bytes, const char *path, json_t **out)
{
    return dq_json_parse_at(text, bytes, 0, path, out);
}

dq_status dq_json_load(dq_env *env, const char *path, uint64_t limit, json_t **out)
{
    char *text = NULL;
    size_t bytes = 0;
    DQ_TRY(dq_file_read(env, path, limit, &text, &bytes));
    dq_status status = dq_json_parse(text, bytes, path, out);
    dq_free(text);
    return status;
}

static const char *kind_name(const json_t *value)
{
    switch (json_typeof(value)) {
        case JSON_OBJECT: return "an object";
        case JSON_ARRAY: return "an array";
        case JSON_STRING: return "a string";
        case JSON_INTEGER: return "an integer";
        case JSON_REAL: return "a real number";
        case JSON_TRUE:
        case JSON_FALSE: return "a boolean";
        default: return "null";
    }
}

/* *out = the member, or NULL when it is absent (or null) and may be. */
static dq_status member(const json_t *object, const char *key, bool required, const char *path, json_t **out)
{
    if (!json_is_object(object))
        return dq_error_in_file(dq_fail(DQ_E_FORMAT, "JSON: an object with the key '%s' is expected", key), path);
    json_t *value = json_object_get(object, key);
    if (json_is_null(value)) value = NULL;
    if (!value && required) return dq_error_in_file(dq_fail(DQ_E_FORMAT, "JSON: the key '%s' is missing", key), path);
    *out = value;
    return DQ_OK;
}

static dq_status wrong_kind(const char *key, const json_t *value, const char *expected, const char *path)
{
    dq_status status = dq_fail(DQ_E_FORMAT, "JSON: '%s' is %s, %s is expected", key, kind_name(value), expected);
    return dq_error_in_file(status, path);
}

dq_status dq_json_int(const json_t *object, const char *key, int64_t min, int64_t max, bool required, const char *path,
                      int64_t *out)
{
    json_t *value = NULL;
    DQ_TRY(member(object, key, required, path, &value));
    if (!value) return DQ_OK;
    if (!json_is_integer(value)) return wrong_kind(key, value, "an integer", path);
    json_int_t v = json_integer_value(value);
    if (v < min || v > max)
        return dq_error_in_file(dq_fail(DQ_E_FORMAT, "JSON: '%s' is %lld, %lld..%lld is expected", key, (long long)v,
                                        (long long)min, (long long)max),
                                path);
    *out = (int64_t)v;
    return DQ_OK;
}

dq_status dq_json_double(const json_t *object, const char *key, bool required, const char *path, double *out)
{
    json_t *value = NULL;
    DQ_TRY(member(object, key, required, path, &value));
    if (!value) return DQ_OK;
    if (!json_is_number(value)) return wrong_kind(key, value, "a number", path);
    *out = json_number_value(value);
    return DQ_OK;
}

dq_status dq_json_bool(const json_t *object, const char *key, bool required, const char *path, bool *out)
{
    json_t *value = NULL;
    DQ_TRY(member(object, key, required, path, &value));
    if (!value) return DQ_OK;
    if (!json_is_boolean(value)) return wrong_kind(key, value, "a boolean", path);
    *out = json_is_true(value);
    return DQ_OK;
}

dq_status dq_json_string(const json_t *object, const char *key, bool required, const char *path, const char **out)
{
    json_t *value = NULL;
    DQ_TRY(member(object, key, required, path, &value));
    if (!value) return DQ_OK;
    if (!json_is_string(value)) return wrong_kind(key, value, "a string", path);
    *out = json_string_value(value);
    return DQ_OK;
}

dq_status dq_json_dump(dq_env *env, const json_t *value, bool pretty, char **out)
{
    size_t flags = JSON_ENCODE_ANY | (pretty ? JSON_INDENT(2) : JSON_COMPACT);
    /* Asked for the size first, then written into our own memory. */
    size_t bytes = json_dumpb(value, NULL, 0, flags);
    if (bytes == 0) return dq_fail(DQ_E_INVALID, "JSON: the value cannot be written (it holds NaN, Inf or itself)");
    char *text = dq_alloc(env, bytes + 1);
    if (!text) return DQ_E_NOMEM;
    if (json_dumpb(value, text, bytes, flags) != bytes) {
        dq_free(text);
        return dq_fail(DQ_E_INTERNAL, "JSON: the value changed while it was written");
    }
    text[bytes] = '\0';
    *out = text;
    return DQ_OK;
}
