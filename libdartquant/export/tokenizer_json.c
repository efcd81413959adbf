/* tokenizer.json and tokenizer_config.json from the vocabulary of a GGUF file, for the ways of cutting words whose
 * definition is known here. SPDX-License-Identifier: Apache-2.0 */
#include <stdio.h>
#include <string.h>

#include "base/status.h"
#include "export/parts.h"
#include "io/formats.h"

enum { CONTROL = 3, USER_DEFINED = 4 };

#define LLAMA3_CUT(digits)                                                                                             \
    "(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\\r\\n\\p{L}\\p{N}]?\\p{L}+|" digits                                               \
    "| ?[^\\s\\p{L}\\p{N}]+[\\r\\n]*|\\s*[\\r\\n]+|\\s+(?!\\S)|\\s+"

static dq_status no_memory(void) { return dq_fail(DQ_E_NOMEM, "out of memory while writing tokenizer.json"); }

static bool is_text(const char *a, size_t bytes, const char *b)
{
    return bytes == strlen(b) && memcmp(a, b, bytes) == 0;
}

static json_t *byte_level(bool regex)
{
    return json_pack("{s:s, s:b, s:b, s:b}", "type", "ByteLevel", "add_prefix_space", 0, "trim_offsets", 1, "use_regex",
                     (int)regex);
}

static json_t *split(const char *pattern)
{
    return json_pack("{s:s, s:{s:s}, s:s, s:b}", "type", "Split", "pattern", "Regex", pattern, "behavior", "Isolated",
                     "invert", 0);
}

/* NULL: a name that is not known here. */
static json_t *pre_tokenizer(const char *name, size_t bytes)
{
    json_t *first = NULL;
    if (is_text(name, bytes, "gpt-2")) return byte_level(true);
    if (is_text(name, bytes, "smollm"))
        return json_pack("{s:s, s:[{s:s, s:b}, o]}", "type", "Sequence", "pretokenizers", "type", "Digits",
                         "individual_digits", 1, byte_level(true));
    if (is_text(name, bytes, "llama-bpe")) first = split(LLAMA3_CUT("\\p{N}{1,3}"));
    if (is_text(name, bytes, "qwen2")) first = split(LLAMA3_CUT("\\p{N}"));
    return first ? json_pack("{s:s, s:[o, o]}", "type", "Sequence", "pretokenizers", first, byte_level(false)) : NULL;
}

static dq_status read_vocabulary(const dq_source *g, json_t *vocab, json_t *added)
{
    int64_t count;
    bool typed = dq_gguf_has(g, "tokenizer.ggml.token_type");
    DQ_TRY(dq_gguf_array_length(g, "tokenizer.ggml.tokens", &count));
    for (int64_t i = 0; i < count; i++) {
        const char *text;
        size_t bytes;
        int64_t type = 1;
        DQ_TRY(dq_gguf_array_string(g, "tokenizer.ggml.tokens", i, &text, &bytes));
        if (typed) DQ_TRY(dq_gguf_array_int(g, "tokenizer.ggml.token_type", i, &type));
        json_t *key = memchr(text, '\0', bytes) ? NULL : json_stringn(text, bytes);
        if (!key) return dq_fail(DQ_E_FORMAT, "token %lld is no UTF-8 text", (long long)i);
        int bad = json_object_set_new(vocab, json_string_value(key), json_integer((json_int_t)i));
        if (type == CONTROL || type == USER_DEFINED)
            bad |= json_array_append_new(added, json_pack("{s:I, s:O, s:b, s:b, s:b, s:b, s:b}", "id", (json_int_t)i,
                                                          "content", key, "single_word", 0, "lstrip", 0, "rstrip", 0,
                                                          "normalized", 0, "special", (int)(type == CONTROL)));
        json_decref(key);
        if (bad) return no_memory();
    }
    return DQ_OK;
}

static dq_status read_merges(const dq_source *g, json_t *merges)
{
    int64_t count;
    DQ_TRY(dq_gguf_array_length(g, "tokenizer.ggml.merges", &count));
    for (int64_t i = 0; i < count; i++) {
        const char *text;
        size_t bytes;
        DQ_TRY(dq_gguf_array_string(g, "tokenizer.ggml.merges", i, &text, &bytes));
        const char *blank = bytes > 1 ? memchr(text + 1, ' ', bytes - 1) : NULL;
        if (!blank) return dq_fail(DQ_E_FORMAT, "merge %lld is no pair", (long long)i);
        json_t *left = json_stringn(text, (size_t)(blank - text));
        json_t *right = json_stringn(blank + 1, bytes - (size_t)(blank - text) - 1);
        if (!left || !right) {
            json_decref(left);
            json_decref(right);
            return dq_fail(DQ_E_FORMAT, "merge %lld is no UTF-8 text", (long long)i);
        }
        if (json_array_append_new(merges, json_pack("[o, o]", left, right)) != 0) return no_memory();
    }
    return DQ_OK;
}

/* The text of a special token by its key; NULL without one. */
static json_t *special(const dq_source *g, const char *key)
{
    int64_t id, count;
    const char *text;
    size_t bytes;
    if (!dq_gguf_has(g, key) || dq_gguf_int(g, key, &id) != DQ_OK ||
        dq_gguf_array_length(g, "tokenizer.ggml.tokens", &count) != DQ_OK || id < 0 || id >= count ||
        dq_gguf_array_string(g, "tokenizer.ggml.tokens", id, &text, &bytes) != DQ_OK)
        return NULL;
    return json_stringn(text, bytes);
}

/* Puts BOS in front where the file says so; NULL = out of memory. */
static json_t *post_processor(const dq_source *g, json_t *bos)
{
    int64_t add = 0, id = 0;
    if (!bos || !dq_gguf_has(g, "tokenizer.ggml.add_bos_token") ||
        dq_gguf_int(g, "tokenizer.ggml.add_bos_token", &add) != DQ_OK || !add ||
        dq_gguf_int(g, "tokenizer.ggml.bos_token_id", &id) != DQ_OK)
        return json_null();
    json_t *piece = json_pack("{s:{s:O, s:i}}", "SpecialToken", "id", bos, "type_id", 0);
    json_t *tokens = json_object();
    if (json_object_set_new(tokens, json_string_value(bos),
                            json_pack("{s:O, s:[I], s:[O]}", "id", bos, "ids", (json_int_t)id, "tokens", bos)) != 0) {
        json_decref(piece);
        json_decref(tokens);
        return NULL;
    }
    return json_pack("{s:s, s:[O, {s:{s:s, s:i}}], s:[o, {s:{s:s, s:i}}, {s:{s:s, s:i}}], s:o}", "type",
                     "TemplateProcessing", "single", piece, "Sequence", "id", "A", "type_id", 0, "pair", piece,
                     "Sequence", "id", "A", "type_id", 0, "Sequence", "id", "B", "type_id", 1, "special_tokens",
                     tokens);
}

static dq_status write_config(dq_env *env, const dq_source *g, const char *dir, json_t *bos, json_t *eos)
{
    const char *text;
    size_t bytes;
    json_t *o =
        json_pack("{s:s, s:b}", "tokenizer_class", "PreTrainedTokenizerFast", "clean_up_tokenization_spaces", 0);
    dq_status status = DQ_OK;
    if ((bos && json_object_set(o, "bos_token", bos) != 0) || (eos && json_object_set(o, "eos_token", eos) != 0))
        status = no_memory();
    if (status == DQ_OK && dq_gguf_has(g, "tokenizer.chat_template"))
        status = dq_gguf_string(g, "tokenizer.chat_template", &text, &bytes);
    else
        bytes = 0;
    if (status == DQ_OK && bytes > 0 && json_object_set_new(o, "chat_template", json_stringn(text, bytes)) != 0)
        status = dq_fail(DQ_E_FORMAT, "tokenizer.chat_template is no UTF-8 text");
    if (status == DQ_OK) return dq_export_write_json(env, dir, "tokenizer_config.json", o);
    json_decref(o);
    return status;
}

dq_status dq_export_tokenizer_json(dq_env *env, const dq_source *g, const char *dir, bool *written)
{
    const char *model, *pre;
    size_t model_bytes, pre_bytes;
    *written = false;
    if (!dq_gguf_has(g, "tokenizer.ggml.model") || !dq_gguf_has(g, "tokenizer.ggml.pre") ||
        !dq_gguf_has(g, "tokenizer.ggml.merges"))
        return DQ_OK;
    DQ_TRY(dq_gguf_string(g, "tokenizer.ggml.model", &model, &model_bytes));
    DQ_TRY(dq_gguf_string(g, "tokenizer.ggml.pre", &pre, &pre_bytes));
    json_t *cut = is_text(model, model_bytes, "gpt2") ? pre_tokenizer(pre, pre_bytes) : NULL;
    if (!cut) return DQ_OK;
    json_t *vocab = json_object(), *merges = json_array(), *added = json_array();
    json_t *bos = special(g, "tokenizer.ggml.bos_token_id"), *eos = special(g, "tokenizer.ggml.eos_token_id");
    dq_status status = read_vocabulary(g, vocab, added);
    if (status == DQ_OK) status = read_merges(g, merges);
    if (status == DQ_OK) {
        json_t *bpe =
            json_pack("{s:s, s:n, s:n, s:n, s:n, s:b, s:b, s:b, s:O, s:O}", "type", "BPE", "dropout", "unk_token",
                      "continuing_subword_prefix", "end_of_word_suffix", "fuse_unk", 0, "byte_fallback", 0,
                      "ignore_merges", (int)is_text(pre, pre_bytes, "llama-bpe"), "vocab", vocab, "merges", merges);
        status = dq_export_write_json(
            env, dir, "tokenizer.json",
            json_pack("{s:s, s:n, s:n, s:O, s:n, s:O, s:o, s:{s:s, s:b, s:b, s:b}, s:o}", "version", "1.0",
                      "truncation", "padding", "added_tokens", added, "normalizer", "pre_tokenizer", cut,
                      "post_processor", post_processor(g, bos), "decoder", "type", "ByteLevel", "add_prefix_space", 1,
                      "trim_offsets", 1, "use_regex", 1, "model", bpe));
    }
    if (status == DQ_OK) status = write_config(env, g, dir, bos, eos);
    json_decref(cut);
    json_decref(vocab);
    json_decref(merges);
    json_decref(added);
    json_decref(bos);
    json_decref(eos);
    *written = status == DQ_OK;
    return status;
}
