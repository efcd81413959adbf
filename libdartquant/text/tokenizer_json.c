/* tokenizer.json of Hugging Face's `tokenizers`, models of type BPE. SPDX-License-Identifier: Apache-2.0 */
#include "base/status.h"
#include "io/file.h"
#include "io/json.h"
#include "text/internal.h"

enum { MAX_FILE = 256 << 20 };

/* Highest id and bytes of all strings in {"token": id}. */
static dq_status measure(const dq_json_at *at, const json_t *json, int64_t *max_id, size_t *bytes)
{
    const char *key;
    json_t *value;
    json_object_foreach((json_t *)(uintptr_t)json, key, value)
    {
        int64_t id = json_is_integer(value) ? json_integer_value(value) : -1;
        if (id < 0 || id > DQ_MAX_TOKEN_ID)
            return dq_at_fail(at, DQ_E_FORMAT, "token '%.80s' has no id in 0..%d", key, DQ_MAX_TOKEN_ID);
        if (id > *max_id) *max_id = id;
        *bytes += strlen(key);
    }
    return DQ_OK;
}

dq_status dq_vocab_read_json(const dq_json_at *at, const json_t *json, int64_t max_id, size_t more, dq_vocab *out)
{
    if (!json_is_object(json) || json_object_size(json) == 0)
        return dq_at_fail(at, DQ_E_FORMAT, "the vocabulary is missing, empty or not an object");
    size_t bytes = more;
    DQ_TRY(measure(at, json, &max_id, &bytes));
    dq_vocab v = {.env = at->env};
    DQ_TRY(dq_vocab_open(at->env, max_id + 1, bytes, &v));
    const char *key;
    json_t *value;
    json_object_foreach((json_t *)(uintptr_t)json, key, value)
    {
        dq_status status = dq_vocab_add(&v, json_integer_value(value), key, strlen(key), false);
        if (status == DQ_OK) continue;
        dq_vocab_clear(&v);
        return dq_error_in_file(status, at->file);
    }
    *out = v;
    return DQ_OK;
}

/* "a b" or ["a", "b"] */
static dq_status add_merge(const dq_json_at *at, const json_t *json, const dq_vocab *vocab, uint32_t rank,
                           dq_merges *out)
{
    const char *left, *right;
    size_t left_bytes, right_bytes;
    if (json_is_string(json)) {
        left = json_string_value(json);
        size_t n = json_string_length(json);
        if (n >= 8 && memcmp(left, "#version", 8) == 0) return DQ_OK;
        const char *gap = memchr(left, ' ', n);
        if (!gap || memchr(gap + 1, ' ', n - (size_t)(gap + 1 - left)))
            return dq_at_fail(at, DQ_E_FORMAT, "'%.100s' is not two tokens separated by one space", left);
        left_bytes = (size_t)(gap - left);
        right = gap + 1;
        right_bytes = n - left_bytes - 1;
    } else {
        const json_t *a = json_array_get(json, 0), *b = json_array_get(json, 1);
        if (!json_is_string(a) || !json_is_string(b) || json_array_size(json) != 2)
            return dq_at_fail(at, DQ_E_FORMAT, "a merge is neither \"a b\" nor [\"a\", \"b\"]");
        left = json_string_value(a);
        left_bytes = json_string_length(a);
        right = json_string_value(b);
        right_bytes = json_string_length(b);
    }
    return dq_error_in_file(dq_merges_add(out, vocab, left, left_bytes, right, right_bytes, rank), at->file);
}

static dq_status read_merges(const dq_json_at *at, const json_t *model, const dq_vocab *vocab, dq_merges *out)
{
    const json_t *list = NULL;
    DQ_TRY(dq_at_array(at, model, "merges", &list));
    DQ_TRY(dq_merges_open(at->env, json_array_size(list), out));
    dq_json_at below = dq_at_key(at, "merges");
    for (size_t i = 0; i < json_array_size(list); i++) {
        dq_json_at one = dq_at_index(&below, i);
        DQ_TRY(add_merge(&one, json_array_get(list, i), vocab, (uint32_t)i, out));
    }
    return DQ_OK;
}

static dq_status refuse_affix(const dq_json_at *at, const json_t *model, const char *key)
{
    const char *text = NULL;
    DQ_TRY(dq_at_string(at, model, key, false, &text, NULL));
    if (!text || !*text) return DQ_OK;
    return dq_at_fail(at, DQ_E_UNSUPPORTED, "%s '%.40s' is not supported", key, text);
}

static dq_status read_model(const dq_json_at *at, const json_t *model, int64_t max_id, size_t more, dq_tokenizer *t)
{
    const char *type = NULL, *unk = NULL;
    size_t unk_bytes = 0;
    if (!json_is_object(model)) return dq_at_fail(at, DQ_E_FORMAT, "the model is missing");
    DQ_TRY(dq_at_string(at, model, "type", false, &type, NULL));
    if (!type && json_object_get(model, "merges")) type = "BPE"; /* files of early versions */
    if (!type || strcmp(type, "BPE") != 0)
        return dq_at_fail(at, DQ_E_UNSUPPORTED, "model type '%.40s' is not supported (only BPE)", type ? type : "?");
    const json_t *dropout = json_object_get(model, "dropout");
    if (dropout && !json_is_null(dropout) && json_number_value(dropout) != 0)
        return dq_at_fail(at, DQ_E_UNSUPPORTED, "BPE dropout is not supported");
    DQ_TRY(refuse_affix(at, model, "continuing_subword_prefix"));
    DQ_TRY(refuse_affix(at, model, "end_of_word_suffix"));
    DQ_TRY(dq_at_bool(at, model, "fuse_unk", false, &t->bpe.fuse_unk));
    DQ_TRY(dq_at_bool(at, model, "byte_fallback", false, &t->bpe.byte_fallback));
    DQ_TRY(dq_at_bool(at, model, "ignore_merges", false, &t->bpe.ignore_merges));
    dq_json_at below = dq_at_key(at, "vocab");
    DQ_TRY(dq_vocab_read_json(&below, json_object_get(model, "vocab"), max_id, more, &t->vocab));
    DQ_TRY(read_merges(at, model, &t->vocab, &t->bpe.merges));
    DQ_TRY(dq_at_string(at, model, "unk_token", false, &unk, &unk_bytes));
    if (unk && *unk) {
        t->bpe.unk = dq_vocab_id(&t->vocab, unk, unk_bytes);
        if (t->bpe.unk < 0) return dq_at_fail(at, DQ_E_FORMAT, "unk_token '%.60s' is not in the vocabulary", unk);
    }
    if (t->bpe.byte_fallback) {
        dq_vocab_byte_tokens(&t->vocab, t->bpe.bytes);
        t->kind = "sentencepiece BPE";
    }
    return DQ_OK;
}

/* Ids and text sizes of the added tokens, before the vocabulary is laid out. */
static dq_status measure_added(const dq_json_at *at, const json_t *list, int64_t *max_id, size_t *bytes)
{
    if (!list || json_is_null(list)) return DQ_OK;
    if (!json_is_array(list)) return dq_at_fail(at, DQ_E_FORMAT, "not an array");
    for (size_t i = 0; i < json_array_size(list); i++) {
        dq_json_at one = dq_at_index(at, i);
        const json_t *token = json_array_get(list, i);
        const char *text = NULL;
        size_t n = 0;
        int64_t id = 0;
        DQ_TRY(dq_at_string(&one, token, "content", true, &text, &n));
        DQ_TRY(dq_at_int(&one, token, "id", 0, DQ_MAX_TOKEN_ID, &id));
        if (id > *max_id) *max_id = id;
        *bytes += n;
    }
    return DQ_OK;
}

static dq_status read_added_token(const dq_json_at *at, const json_t *json, dq_tokenizer *t)
{
    dq_added_token token = {0};
    const char *text = NULL;
    int64_t id = 0;
    DQ_TRY(dq_at_string(at, json, "content", true, &text, &token.bytes));
    DQ_TRY(dq_at_int(at, json, "id", 0, DQ_MAX_TOKEN_ID, &id));
    DQ_TRY(dq_at_bool(at, json, "special", false, &token.special));
    DQ_TRY(dq_at_bool(at, json, "lstrip", false, &token.lstrip));
    DQ_TRY(dq_at_bool(at, json, "rstrip", false, &token.rstrip));
    DQ_TRY(dq_at_bool(at, json, "single_word", false, &token.single_word));
    DQ_TRY(dq_at_bool(at, json, "normalized", !token.special, &token.normalized));
    token.text = (char *)(uintptr_t)text;
    token.id = (int32_t)id;
    int32_t known = dq_vocab_id(&t->vocab, text, token.bytes);
    if (known >= 0 && known != token.id)
        return dq_at_fail(at, DQ_E_FORMAT, "added token '%.60s' has id %d here and %d in the vocabulary", text,
                          token.id, known);
    if (known < 0) DQ_TRY(dq_error_in_file(dq_vocab_add(&t->vocab, id, text, token.bytes, true), at->file));
    t->vocab.tokens[id].special = token.special;
    DQ_TRY(dq_added_add(&t->added, &token, &t->normalizers));
    if (!token.normalized || token.bytes == 0) return DQ_OK;
    t->vocab.tokens[id].shown = t->added.tokens[t->added.count - 1].text;
    t->vocab.tokens[id].shown_bytes = t->added.tokens[t->added.count - 1].bytes;
    return DQ_OK;
}

static dq_status read_all(dq_env *env, const char *path, const json_t *root, dq_tokenizer *t)
{
    dq_json_at at = {.env = env, .file = path, .where = "$"};
    if (!json_is_object(root)) return dq_at_fail(&at, DQ_E_FORMAT, "a tokenizer.json is an object");
    int64_t max_id = 0;
    size_t more = 0;
    const json_t *added = json_object_get(root, "added_tokens");
    dq_json_at below = dq_at_key(&at, "added_tokens"), part;
    DQ_TRY(measure_added(&below, added, &max_id, &more));
    part = dq_at_key(&at, "model");
    DQ_TRY(read_model(&part, json_object_get(root, "model"), max_id, more, t));
    part = dq_at_key(&at, "normalizer");
    DQ_TRY(dq_normalizers_read(&part, json_object_get(root, "normalizer"), &t->normalizers));
    part = dq_at_key(&at, "pre_tokenizer");
    DQ_TRY(dq_pretokenizers_read(&part, json_object_get(root, "pre_tokenizer"), &t->pretokenizers));
    part = dq_at_key(&at, "post_processor");
    DQ_TRY(dq_post_read(&part, json_object_get(root, "post_processor"), &t->post));
    part = dq_at_key(&at, "decoder");
    DQ_TRY(dq_decoders_read(&part, json_object_get(root, "decoder"), &t->decoders));
    for (size_t i = 0; i < json_array_size(added); i++) {
        dq_json_at one = dq_at_index(&below, i);
        DQ_TRY(read_added_token(&one, json_array_get(added, i), t));
    }
    return DQ_OK;
}

dq_status dq_tokenizer_from_json(dq_env *env, const char *path, dq_tokenizer **out)
{
    json_t *root = NULL;
    dq_tokenizer *t = NULL;
    dq_tokenizer_config config = {0};
    char *dir = NULL;
    dq_status status;
    DQ_GO(dq_json_load(env, path, MAX_FILE, &root));
    DQ_GO(dq_tokenizer_new(env, &t));
    DQ_GO(read_all(env, path, root, t));
    const char *slash = strrchr(path, '/');
    dir = slash ? dq_strndup(env, path, (size_t)(slash - path) + 1) : dq_strdup(env, ".");
    if (!dir) DQ_GO(DQ_E_NOMEM);
    DQ_GO(dq_tokenizer_config_read(env, dir, &config));
    DQ_GO(dq_tokenizer_apply_config(t, &config, path));
    dq_tokenizer_take_chat(t, &config);
    DQ_GO(dq_error_in_file(dq_tokenizer_finish(t), path));
    *out = t;
    t = NULL;
done:
    dq_tokenizer_config_clear(&config);
    dq_free(dir);
    dq_tokenizer_destroy(t);
    json_decref(root);
    return status;
}
