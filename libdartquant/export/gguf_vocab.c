/* The vocabulary of a GGUF file from Hugging Face's tokenizer.json. SPDX-License-Identifier: Apache-2.0 */
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "base/status.h"
#include "export/gguf_parts.h"
#include "io/file.h"
#include "io/formats.h"
#include "io/gguf.h"

enum { FILE_LIMIT = 1 << 28 };
/* llama.cpp's token types */
enum { NORMAL = 1, UNKNOWN = 2, CONTROL = 3, USER_DEFINED = 4, UNUSED = 5, BYTE = 6 };

typedef struct vocabulary {
    int64_t count;
    const char **tokens; /* [count] of the parsed file, NULL = unused */
    int32_t *types;
} vocabulary;

static void set_token(vocabulary *v, const char *text, const json_t *id, int32_t type)
{
    json_int_t i = json_is_integer(id) ? json_integer_value(id) : -1;
    if (i < 0 || i >= v->count) return; /* beyond the model's embedding */
    v->tokens[i] = text;
    v->types[i] = type;
}

static bool is_byte(const char *t)
{
    unsigned value;
    char end;
    return strlen(t) == 6 && sscanf(t, "<0x%2X%c", &value, &end) == 2 && end == '>';
}

static void collect(const json_t *root, bool bytes, vocabulary *v)
{
    const json_t *model = json_object_get(root, "model");
    const char *text, *unknown = json_string_value(json_object_get(model, "unk_token"));
    json_t *id, *added;
    size_t i;
    json_object_foreach(json_object_get(model, "vocab"), text, id)
    {
        set_token(v, text, id, bytes && is_byte(text) ? BYTE : NORMAL);
    }
    json_array_foreach(json_object_get(root, "added_tokens"), i, added)
    {
        const char *content = json_string_value(json_object_get(added, "content"));
        bool special = json_is_true(json_object_get(added, "special"));
        if (content) set_token(v, content, json_object_get(added, "id"), special ? CONTROL : USER_DEFINED);
    }
    for (int64_t t = 0; bytes && unknown && t < v->count; t++)
        if (v->tokens[t] && strcmp(v->tokens[t], unknown) == 0) v->types[t] = UNKNOWN;
}

static void put_tokens(dq_gguf_writer *w, const vocabulary *v)
{
    char unused[32];
    dq_gguf_writer_array(w, "tokenizer.ggml.tokens", DQ_GGUF_STRING, (uint64_t)v->count);
    for (int64_t i = 0; i < v->count; i++) {
        snprintf(unused, sizeof unused, "[PAD%lld]", (long long)i);
        const char *text = v->tokens[i] ? v->tokens[i] : unused;
        dq_gguf_writer_element_string(w, text, strlen(text));
    }
    dq_gguf_writer_array(w, "tokenizer.ggml.token_type", DQ_GGUF_I32, (uint64_t)v->count);
    for (int64_t i = 0; i < v->count; i++) dq_gguf_writer_element(w, &v->types[i], 4);
}

/* Merges are "a b", or pairs in newer files. *gap = length of a, which a blank follows. Fresh text. */
static dq_status merge_text(dq_env *env, const json_t *merge, size_t i, char **out, size_t *gap)
{
    const char *a = json_string_value(merge), *b = NULL;
    if (json_is_array(merge)) {
        a = json_string_value(json_array_get(merge, 0));
        b = json_string_value(json_array_get(merge, 1));
    }
    const char *blank = a && !b && *a ? strchr(a + 1, ' ') : NULL;
    if (!a || (!b && !blank)) return dq_fail(DQ_E_FORMAT, "merge %zu is no pair of tokens", i);
    *gap = b ? strlen(a) : (size_t)(blank - a);
    *out = dq_asprintf(env, "%s%s%s", a, b ? " " : "", b ? b : "");
    return *out ? DQ_OK : DQ_E_NOMEM;
}

static dq_status put_merges(dq_env *env, dq_gguf_writer *w, const json_t *merges)
{
    size_t i, gap;
    json_t *merge;
    char *text;
    dq_gguf_writer_array(w, "tokenizer.ggml.merges", DQ_GGUF_STRING, json_array_size(merges));
    json_array_foreach(merges, i, merge)
    {
        DQ_TRY(merge_text(env, merge, i, &text, &gap));
        dq_gguf_writer_element_string(w, text, strlen(text));
        dq_free(text);
    }
    return DQ_OK;
}

/* llama.cpp knows ways of cutting words by name. */
static const char *cutting_name(const json_t *pre)
{
    char *text = json_dumps(pre, JSON_COMPACT | JSON_ENCODE_ANY);
    const char *name = "default";
    if (text && strstr(text, "\\\\p{N}{1,3}"))
        name = "llama-bpe";
    else if (text && strstr(text, "\\\\p{N}") && strstr(text, "Split"))
        name = "qwen2";
    else if (text && strstr(text, "\"Digits\""))
        name = "smollm";
    else if (text && strstr(text, "\"ByteLevel\""))
        name = "gpt-2";
    free(text);
    return name;
}

static dq_status put_bpe(const dq_export_plan *p, dq_gguf_writer *w, const json_t *root, const vocabulary *v)
{
    const char *name = cutting_name(json_object_get(root, "pre_tokenizer"));
    if (strcmp(name, "default") == 0)
        dq_log(p->env, DQ_LOG_WARNING,
               "the tokenizer's way of cutting words has no name in GGUF; \"default\" is written");
    dq_gguf_writer_string(w, "tokenizer.ggml.model", "gpt2");
    dq_gguf_writer_string(w, "tokenizer.ggml.pre", name);
    put_tokens(w, v);
    return put_merges(p->env, w, json_object_get(json_object_get(root, "model"), "merges"));
}

/* SentencePiece joins the two neighbours whose token has the highest score: minus the rank of the first merge that makes it.
 * That says the same as the merges where all those of a token follow each other, as in files made from SentencePiece. */
static dq_status find_scores(dq_env *env, const json_t *model, const vocabulary *v, float *scores)
{
    size_t i, gap, apart = 0;
    json_t *merge;
    char *text;
    json_int_t last = -1;
    json_array_foreach(json_object_get(model, "merges"), i, merge)
    {
        DQ_TRY(merge_text(env, merge, i, &text, &gap));
        memmove(text + gap, text + gap + 1, strlen(text + gap));
        const json_t *id = json_object_get(json_object_get(model, "vocab"), text);
        json_int_t token = json_is_integer(id) ? json_integer_value(id) : -1;
        dq_free(text);
        if (token < 0 || token >= v->count) continue;
        if (scores[token] == 0.0f)
            scores[token] = -(float)(i + 1);
        else
            apart += token != last;
        last = token;
    }
    if (apart > 0)
        dq_log(env, DQ_LOG_WARNING,
               "%zu merges cannot be said by scores, which is what GGUF has for this kind of vocabulary: some texts "
               "will be cut differently",
               apart);
    return DQ_OK;
}

static dq_status put_spm(dq_env *env, dq_gguf_writer *w, const json_t *model, const vocabulary *v)
{
    float *scores = dq_calloc(env, (size_t)v->count, sizeof *scores);
    if (!scores) return DQ_E_NOMEM;
    dq_status status = find_scores(env, model, v, scores);
    if (status != DQ_OK) {
        dq_free(scores);
        return status;
    }
    dq_gguf_writer_string(w, "tokenizer.ggml.model", "llama");
    dq_gguf_writer_string(w, "tokenizer.ggml.pre", "default");
    put_tokens(w, v);
    dq_gguf_writer_array(w, "tokenizer.ggml.scores", DQ_GGUF_F32, (uint64_t)v->count);
    for (int64_t i = 0; i < v->count; i++) dq_gguf_writer_element(w, &scores[i], 4);
    dq_free(scores);
    return DQ_OK;
}

/* chat_template.jinja, else the text in tokenizer_config.json. */
static dq_status put_chat_template(const dq_export_plan *p, dq_gguf_writer *w, const char *dir, const json_t *config)
{
    const json_t *chat = json_object_get(config, "chat_template");
    char *path = dq_path_join(p->env, dir, "chat_template.jinja"), *text = NULL;
    size_t bytes = 0;
    dq_status status = path ? DQ_OK : DQ_E_NOMEM;
    if (path && dq_path_exists(path)) {
        status = dq_file_read(p->env, path, FILE_LIMIT, &text, &bytes);
        if (status == DQ_OK) dq_gguf_writer_string(w, "tokenizer.chat_template", text);
    } else if (json_is_string(chat)) {
        dq_gguf_writer_string(w, "tokenizer.chat_template", json_string_value(chat));
    }
    dq_free(text);
    dq_free(path);
    return status;
}

static dq_status put_flags(const dq_export_plan *p, dq_gguf_writer *w, const char *dir)
{
    json_t *config = NULL;
    const dq_arch *a = dq_model_arch(p->model);
    char *path = dq_path_join(p->env, dir, "tokenizer_config.json");
    dq_status status = path ? DQ_OK : DQ_E_NOMEM;
    if (a->bos_id >= 0) dq_gguf_writer_u32(w, "tokenizer.ggml.bos_token_id", (uint32_t)a->bos_id);
    if (a->eos_id >= 0) dq_gguf_writer_u32(w, "tokenizer.ggml.eos_token_id", (uint32_t)a->eos_id);
    if (path && dq_path_exists(path)) status = dq_json_load(p->env, path, FILE_LIMIT, &config);
    if (status == DQ_OK) {
        const json_t *bos = json_object_get(config, "add_bos_token");
        if (json_is_boolean(bos)) dq_gguf_writer_bool(w, "tokenizer.ggml.add_bos_token", json_is_true(bos));
        status = put_chat_template(p, w, dir, config);
    }
    json_decref(config);
    dq_free(path);
    return status;
}

static dq_status put_json(const dq_export_plan *p, dq_gguf_writer *w, const char *dir, const json_t *root)
{
    const json_t *model = json_object_get(root, "model");
    const char *type = json_string_value(json_object_get(model, "type"));
    bool bytes = json_is_true(json_object_get(model, "byte_fallback"));
    vocabulary v = {.count = dq_model_arch(p->model)->vocab};
    if (!json_is_object(json_object_get(model, "vocab")) || (type && strcmp(type, "BPE") != 0))
        return dq_fail(DQ_E_UNSUPPORTED, "a tokenizer of type \"%s\" cannot be written to GGUF (known: BPE)",
                       type ? type : "?");
    v.tokens = dq_calloc(p->env, (size_t)v.count, sizeof *v.tokens);
    v.types = dq_alloc(p->env, (size_t)v.count * sizeof *v.types);
    dq_status status = v.tokens && v.types ? DQ_OK : DQ_E_NOMEM;
    for (int64_t i = 0; status == DQ_OK && i < v.count; i++) v.types[i] = UNUSED;
    if (status == DQ_OK) {
        collect(root, bytes, &v);
        status = bytes ? put_spm(p->env, w, model, &v) : put_bpe(p, w, root, &v);
        if (status == DQ_OK) status = put_flags(p, w, dir);
    }
    dq_free(v.tokens);
    dq_free(v.types);
    return status;
}

dq_status dq_export_gguf_vocab(const dq_export_plan *p, dq_gguf_writer *w)
{
    const dq_model *root = dq_model_root(p->model);
    json_t *json = NULL;
    if (strcmp(root->source->format, "gguf") == 0) return dq_gguf_copy_keys(root->source, "tokenizer.", w);
    char *path = root->path && dq_path_is_dir(root->path) ? dq_path_join(p->env, root->path, "tokenizer.json") : NULL;
    char *saved = root->path && dq_path_is_dir(root->path) ? dq_path_join(p->env, root->path, DQ_TOKENIZER_GGUF) : NULL;
    dq_source *vocabulary_file = NULL;
    dq_status status = DQ_OK;
    if (saved && dq_path_exists(saved)) {
        status = dq_gguf_open(p->env, saved, &vocabulary_file);
        if (status == DQ_OK) status = dq_gguf_copy_keys(vocabulary_file, "tokenizer.", w);
        dq_source_free(vocabulary_file);
    } else if (path && dq_path_exists(path)) {
        status = dq_json_load(p->env, path, FILE_LIMIT, &json);
        if (status == DQ_OK) status = dq_error_in_file(put_json(p, w, root->path, json), path);
    } else {
        dq_log(p->env, DQ_LOG_WARNING, "the model comes without tokenizer.json: the GGUF file has no vocabulary");
        dq_gguf_writer_string(w, "tokenizer.ggml.model", "no_vocab");
    }
    json_decref(json);
    dq_free(path);
    dq_free(saved);
    return status;
}
