/* The datasets of GPTQ (arXiv 2210.17323) and its successors: which lines or documents, how joined, how tokenized.
 * SPDX-License-Identifier: Apache-2.0 */
#include <stdio.h>

#include "base/status.h"
#include "text/internal.h"
#include "text/lines.h"
#include "text/recipes.h"
#include "text/utf8.h"

enum { C4_TEST_DOCUMENTS = 1100, C4_TEST_WINDOWS = 256 };

static bool is_blank(const char *s, size_t n)
{
    for (size_t i = 0; i < n;) {
        int32_t cp;
        i += (size_t)dq_utf8_next(s + i, &cp);
        if (!dq_char_is_space(cp)) return false;
    }
    return true;
}

/* wikitext2: each line is a row with its line feed, a blank line an empty row; rows are joined by two line feeds.
 * ptb: each line is a sentence without surrounding blanks, sentences are joined by one space. */
static dq_status join_lines(dq_env *env, dq_recipe_kind kind, const char *path, dq_bytes *out)
{
    dq_lines r;
    dq_bytes all = {.env = env};
    DQ_TRY(dq_lines_open(env, path, &r));
    dq_status status;
    DQ_GO(dq_lines_rest(&r, &all));
    DQ_GO(dq_stream_check_utf8(&all, path));
    for (size_t at = 0; at < all.size;) {
        const char *line = all.data + at, *end = memchr(line, '\n', all.size - at);
        size_t n = end ? (size_t)(end - line) : all.size - at;
        bool feed = end != NULL, first = at == 0;
        at += n + 1;
        if (feed && n && line[n - 1] == '\r') n--; /* as files opened as text read */
        bool blank = is_blank(line, n);
        if (kind == DQ_RECIPE_PTB)
            for (; n && line[0] == ' '; n--) line++;
        while (kind == DQ_RECIPE_PTB && n && line[n - 1] == ' ') n--;
        if (!first) DQ_GO(dq_bytes_add(out, kind == DQ_RECIPE_PTB ? " " : "\n\n", kind == DQ_RECIPE_PTB ? 1 : 2));
        if (blank) continue;
        DQ_GO(dq_bytes_add(out, line, n));
        if (feed && kind == DQ_RECIPE_WIKITEXT2) DQ_GO(dq_bytes_add(out, "\n", 1));
    }
    status = DQ_OK;
done:
    dq_lines_close(&r);
    dq_bytes_clear(&all);
    return status;
}

static dq_status add_document(dq_token_stream *s, dq_id_list *ids, size_t *capacity, dq_env *env,
                              const dq_ids *document, int64_t seqlen)
{
    if ((size_t)s->document_count + 2 > *capacity) {
        size_t bigger = *capacity ? *capacity * 2 : 1024;
        int64_t *fresh = dq_realloc(env, s->documents, bigger * sizeof *fresh);
        if (!fresh) return DQ_E_NOMEM;
        s->documents = fresh;
        *capacity = bigger;
    }
    s->documents[s->document_count] = (int64_t)ids->count;
    if ((int64_t)document->count >= seqlen) {
        DQ_TRY(dq_id_list_grow(ids, document->count));
        memcpy(ids->data + ids->count, document->data, document->count * sizeof *ids->data);
        ids->count += document->count;
    }
    s->documents[++s->document_count] = (int64_t)ids->count;
    return DQ_OK;
}

/* c4 train: every document is tokenized on its own; those that hold a window are kept. */
static dq_status c4_train(dq_env *env, const dq_tokenizer *t, const char *path, int64_t seqlen, dq_token_stream *out)
{
    dq_token_stream s = {.document_min = seqlen};
    dq_id_list ids = {.env = env};
    dq_lines r;
    DQ_TRY(dq_lines_open(env, path, &r));
    dq_status status;
    json_t *root = NULL;
    size_t capacity = 0, longest = 0;
    for (;;) {
        const char *text = NULL;
        size_t bytes = 0;
        dq_ids document = {0};
        DQ_GO(dq_document_next(&r, &root, &text, &bytes));
        if (!root) break;
        DQ_GO(dq_tokenizer_encode_text(t, text, bytes, true, true, &document));
        status = add_document(&s, &ids, &capacity, env, &document, seqlen);
        if (document.count > longest) longest = document.count;
        dq_free(document.data);
        json_decref(root);
        root = NULL;
        if (status != DQ_OK) goto done;
    }
    if (ids.count == 0)
        DQ_GO(dq_error_in_file(dq_fail(DQ_E_TEXT,
                                       "none of the %lld documents holds a window of %lld tokens; the longest has %zu",
                                       (long long)s.document_count, (long long)seqlen, longest),
                               path));
    s.name = dq_strdup(env, "c4");
    s.protocol = dq_stream_protocol(t, "c4 train: windows inside single documents", "each document tokenized");
    if (!s.name || !s.protocol) DQ_GO(DQ_E_NOMEM);
    s.ids = (dq_ids){ids.data, ids.count};
    ids.data = NULL;
    *out = s;
    s = (dq_token_stream){0};
    status = DQ_OK;
done:
    json_decref(root);
    dq_lines_close(&r);
    dq_free(ids.data);
    dq_token_stream_clear(&s);
    return status;
}

static dq_status from_recipe(dq_env *env, const dq_tokenizer *t, const dq_recipe *recipe, const char *path,
                             dq_split split, int64_t seqlen, dq_token_stream *out)
{
    char source[200];
    dq_bytes text = {.env = env};
    dq_status status;
    const char *part = split == DQ_SPLIT_TRAIN ? "train" : "test";
    if (recipe->kind == DQ_RECIPE_C4) {
        int64_t count = 0;
        DQ_GO(dq_documents_join(env, path, " ", C4_TEST_DOCUMENTS, &text, &count));
        snprintf(source, sizeof source, "c4 validation: first %lld documents joined with a space, cut to %d windows",
                 (long long)count, C4_TEST_WINDOWS);
    } else {
        DQ_GO(join_lines(env, recipe->kind, path, &text));
        snprintf(source, sizeof source,
                 recipe->kind == DQ_RECIPE_PTB ? "ptb %s: sentences joined with a space"
                                               : "wikitext2 raw %s: lines joined with \\n\\n, blank lines kept",
                 part);
    }
    DQ_GO(dq_error_in_file(dq_stream_build(env, t, recipe->name, source, &text, out), path));
done:
    dq_bytes_clear(&text);
    if (status != DQ_OK) return status;
    if (recipe->kind == DQ_RECIPE_C4 && seqlen > 0 && out->ids.count / (size_t)seqlen >= C4_TEST_WINDOWS)
        out->ids.count = (size_t)seqlen * C4_TEST_WINDOWS;
    if (split == DQ_SPLIT_TEST && (int64_t)out->ids.count < seqlen) {
        status = dq_error_in_file(dq_fail(DQ_E_TEXT, "the %s split of %s has %zu tokens, less than one window of %lld",
                                          part, recipe->name, out->ids.count, (long long)seqlen),
                                  path);
        dq_token_stream_clear(out);
    }
    return status;
}

dq_status dq_stream_from_recipe(dq_env *env, const dq_tokenizer *tokenizer, const char *name, const char *data_dir,
                                dq_split split, int64_t seqlen, dq_token_stream *out)
{
    const dq_recipe *recipe = NULL;
    char *path = NULL;
    dq_token_stream s = {0};
    DQ_TRY(dq_recipe_by_name(name, &recipe));
    DQ_TRY(dq_recipe_find(env, recipe, data_dir, split, &path));
    dq_status status = recipe->kind == DQ_RECIPE_C4 && split == DQ_SPLIT_TRAIN
                           ? c4_train(env, tokenizer, path, seqlen, &s)
                           : from_recipe(env, tokenizer, recipe, path, split, seqlen, &s);
    dq_free(path);
    if (status == DQ_OK) *out = s;
    return status;
}
