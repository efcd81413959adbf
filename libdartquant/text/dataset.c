/* Token streams of texts, files of documents and ids.
 * SPDX-License-Identifier: Apache-2.0 */
#include "text/dataset.h"

#include <stdio.h>

#include "base/status.h"
#include "io/json.h"
#include "text/internal.h"
#include "text/lines.h"
#include "text/recipes.h"
#include "text/utf8.h"

enum { MAX_IDS_FILE = 1 << 30 };

void dq_token_stream_clear(dq_token_stream *s)
{
    dq_free(s->name);
    dq_free(s->protocol);
    dq_free(s->ids.data);
    dq_free(s->documents);
    *s = (dq_token_stream){0};
}

static const char *base_name(const char *path)
{
    const char *slash = strrchr(path, '/');
    return slash ? slash + 1 : path;
}

char *dq_stream_protocol(const dq_tokenizer *t, const char *source, const char *once)
{
    char around[96] = "no BOS";
    if (t->post.before.count) snprintf(around, sizeof around, "BOS %d once at the start", t->post.before.data[0]);
    if (t->post.after.count)
        snprintf(around + strlen(around), sizeof around - strlen(around), ", EOS %d at the end", t->post.after.data[0]);
    return dq_asprintf(t->env, "%s; %s with %s, %s", source, once, t->kind, around);
}

dq_status dq_stream_build(dq_env *env, const dq_tokenizer *t, const char *name, const char *source,
                          const dq_bytes *text, dq_token_stream *out)
{
    dq_token_stream s = {0};
    dq_status status;
    if (text->size == 0) return dq_fail(DQ_E_TEXT, "the text of '%.200s' is empty", name);
    DQ_GO(dq_tokenizer_encode_text(t, text->data, text->size, true, true, &s.ids));
    if (s.ids.count == 0)
        DQ_GO(dq_fail(DQ_E_TEXT, "the text of '%.200s' (%zu bytes) gives no tokens", name, text->size));
    s.name = dq_strdup(env, name);
    s.protocol = dq_stream_protocol(t, source, "tokenized once");
    if (!s.name || !s.protocol) DQ_GO(DQ_E_NOMEM);
    *out = s;
    return DQ_OK;
done:
    dq_token_stream_clear(&s);
    return status;
}

dq_status dq_stream_check_utf8(const dq_bytes *text, const char *path)
{
    size_t good = dq_utf8_valid_prefix(text->data, text->size);
    if (good == text->size) return DQ_OK;
    return dq_error_at_byte(dq_error_in_file(dq_fail(DQ_E_TEXT, "not UTF-8 text: byte 0x%02X cannot stand there",
                                                     (unsigned char)text->data[good]),
                                             path),
                            good);
}

/* ---- documents of JSON lines ---- */

dq_status dq_document_next(dq_lines *r, json_t **root, const char **text, size_t *bytes)
{
    const char *line = NULL;
    size_t n = 0;
    *root = NULL;
    do {
        DQ_TRY(dq_lines_next(r, &line, &n));
        if (!line) return DQ_OK;
        while (n && (line[n - 1] == '\n' || line[n - 1] == '\r' || line[n - 1] == ' ')) n--;
    } while (n == 0);
    dq_status status = dq_json_parse(line, n, NULL, root);
    if (status == DQ_OK) {
        const json_t *value = json_object_get(*root, "text");
        *text = json_string_value(value);
        *bytes = json_string_length(value);
        if (*text) return DQ_OK;
        json_decref(*root);
        *root = NULL;
        status = dq_fail(DQ_E_FORMAT, "no string \"text\"");
    }
    char reason[400];
    snprintf(reason, sizeof reason, "%s", dq_error_text());
    return dq_error_in_file(dq_fail(status, "line %lld: %s", (long long)r->number, reason), r->path);
}

dq_status dq_documents_join(dq_env *env, const char *path, const char *separator, int64_t limit, dq_bytes *out,
                            int64_t *count)
{
    dq_lines r;
    DQ_TRY(dq_lines_open(env, path, &r));
    dq_status status;
    json_t *root = NULL;
    *count = 0;
    while (*count < limit) {
        const char *text = NULL;
        size_t bytes = 0;
        DQ_GO(dq_document_next(&r, &root, &text, &bytes));
        if (!root) break;
        if ((*count)++) DQ_GO(dq_bytes_add(out, separator, strlen(separator)));
        DQ_GO(dq_bytes_add(out, text, bytes));
        json_decref(root);
        root = NULL;
    }
    status = DQ_OK;
done:
    json_decref(root);
    dq_lines_close(&r);
    return status;
}

/* ---- files, texts, ids ---- */

static bool holds_documents(const char *path)
{
    static const char *const ends[] = {".jsonl", ".jsonl.gz", ".json", ".json.gz"};
    for (size_t i = 0; i < sizeof ends / sizeof *ends; i++)
        if (dq_path_ends_with(path, ends[i])) return true;
    return false;
}

dq_status dq_stream_from_file(dq_env *env, const dq_tokenizer *tokenizer, const char *path, dq_token_stream *out)
{
    dq_bytes text = {.env = env};
    dq_lines r = {0};
    char source[200];
    int64_t count = 0;
    dq_status status;
    if (dq_path_ends_with(path, ".parquet") || dq_path_ends_with(path, ".arrow"))
        return dq_error_in_file(
            dq_fail(DQ_E_UNSUPPORTED, "parquet and arrow files are not read; export them as .jsonl"), path);
    if (holds_documents(path)) {
        DQ_GO(dq_documents_join(env, path, "\n\n", INT64_MAX, &text, &count));
        snprintf(source, sizeof source, "file of %lld documents joined with a blank line", (long long)count);
    } else {
        DQ_GO(dq_lines_open(env, path, &r));
        status = dq_lines_rest(&r, &text);
        dq_lines_close(&r);
        if (status == DQ_OK) status = dq_stream_check_utf8(&text, path);
        snprintf(source, sizeof source, "text file as it is");
    }
    if (status == DQ_OK)
        status = dq_error_in_file(dq_stream_build(env, tokenizer, base_name(path), source, &text, out), path);
done:
    dq_bytes_clear(&text);
    return status;
}

dq_status dq_stream_from_text(dq_env *env, const dq_tokenizer *tokenizer, const char *text, size_t bytes,
                              const char *name, dq_token_stream *out)
{
    dq_bytes borrowed = {.env = env, .data = (char *)(uintptr_t)text, .size = bytes};
    return dq_stream_build(env, tokenizer, name, "text as given", &borrowed, out);
}

dq_status dq_stream_from_ids(dq_env *env, const int32_t *ids, size_t count, const char *name, dq_token_stream *out)
{
    size_t bytes;
    if (count == 0) return dq_fail(DQ_E_TEXT, "'%.200s' holds no token ids", name);
    for (size_t i = 0; i < count; i++)
        if (ids[i] < 0) return dq_fail(DQ_E_TEXT, "id %d at position %zu of '%.200s' is negative", ids[i], i, name);
    if (!dq_mul_ok(count, sizeof *ids, &bytes)) return dq_fail(DQ_E_NOMEM, "%zu ids do not fit in memory", count);
    dq_token_stream s = {.ids = {dq_alloc(env, bytes), count}};
    s.name = dq_strdup(env, name);
    s.protocol = dq_strdup(env, "token ids as given");
    if (!s.ids.data || !s.name || !s.protocol) {
        dq_token_stream_clear(&s);
        return DQ_E_NOMEM;
    }
    memcpy(s.ids.data, ids, bytes);
    *out = s;
    return DQ_OK;
}

static dq_status read_ids(dq_env *env, const json_t *list, dq_id_list *out)
{
    if (!json_is_array(list)) return dq_fail(DQ_E_FORMAT, "neither [1, 2, ...] nor {\"ids\": [1, 2, ...]}");
    out->env = env;
    for (size_t i = 0; i < json_array_size(list); i++) {
        const json_t *id = json_array_get(list, i);
        if (!json_is_integer(id) || json_integer_value(id) < 0 || json_integer_value(id) > INT32_MAX)
            return dq_fail(DQ_E_FORMAT, "entry %zu is not a token id", i);
        DQ_TRY(dq_id_list_add(out, (int32_t)json_integer_value(id)));
    }
    return DQ_OK;
}

dq_status dq_stream_from_ids_file(dq_env *env, const char *path, dq_token_stream *out)
{
    json_t *root = NULL;
    char *text = NULL;
    size_t bytes = 0;
    dq_id_list ids = {.env = env};
    dq_status status;
    DQ_GO(dq_stream_read(env, path, MAX_IDS_FILE, &text, &bytes));
    DQ_GO(dq_json_parse(text, bytes, path, &root));
    DQ_GO(dq_error_in_file(read_ids(env, json_is_object(root) ? json_object_get(root, "ids") : root, &ids), path));
    DQ_GO(dq_error_in_file(dq_stream_from_ids(env, ids.data, ids.count, base_name(path), out), path));
done:
    dq_free(text);
    dq_free(ids.data);
    json_decref(root);
    return status;
}
