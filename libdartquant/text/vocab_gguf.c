/* Vocabularies inside GGUF files: models "gpt2" (byte-level BPE) and "llama" (SentencePiece BPE by score).
 * The splits are those that llama.cpp's names stand for (tokenizer.ggml.pre). SPDX-License-Identifier: Apache-2.0 */
#include <stdio.h>

#include "base/status.h"
#include "io/formats.h"
#include "text/internal.h"
#include "text/utf8.h"

#define WORDS "'s|'t|'re|'ve|'m|'ll|'d| ?\\p{L}+| ?\\p{N}+| ?[^\\s\\p{L}\\p{N}]+|\\s+(?!\\S)"
#define SHORT_FORMS "(?:'[sS]|'[tT]|'[rR][eE]|'[vV][eE]|'[mM]|'[lL][lL]|'[dD])"
#define TAIL "\\s*[\\r\\n]+|\\s+(?!\\S)|\\s+"
#define CL100K(digits) SHORT_FORMS "|[^\\r\\n\\p{L}\\p{N}]?\\p{L}+|" digits "| ?[^\\s\\p{L}\\p{N}]+[\\r\\n]*|" TAIL
#define UPPER "[\\p{Lu}\\p{Lt}\\p{Lm}\\p{Lo}\\p{M}]"
#define LOWER "[\\p{Ll}\\p{Lm}\\p{Lo}\\p{M}]"
#define O200K(forms, digits)                                                                                           \
    "[^\\r\\n\\p{L}\\p{N}]?" UPPER "*" LOWER "+" forms "|[^\\r\\n\\p{L}\\p{N}]?" UPPER "+" LOWER "*" forms "|" digits  \
    "| ?[^\\s\\p{L}\\p{N}]+[\\r\\n/]*|" TAIL

enum { MAX_SPLITS = 4 };
typedef struct split_table {
    const char *splits[MAX_SPLITS]; /* one after the other, matches and gaps isolated */
    bool ignore_merges, add_bos;
    const char *names; /* separated by blanks, with one at both ends */
} split_table;

static const split_table tables[] = {
    {{WORDS}, false, false, " gpt-2 phi-2 mpt olmo jais trillion granite-docling exaone4 gigachat mellum a.x-4.0 "},
    {{"\\p{N}", WORDS}, false, false, " smollm starcoder refact command-r codeshell exaone minerva-7b "},
    {{"[\\p{P}\\$\\+<=>\\^~\\|]+", WORDS, "\\p{N}+", "[0-9][0-9][0-9]"}, false, false, " default "},
    {{"[\\p{P}\\$\\+<=>\\^~\\|`]+", WORDS, "[0-9][0-9][0-9]"}, false, false, " falcon "},
    {{CL100K("\\p{N}{1,3}")}, true, true, " llama3 llama-v3 llama-bpe falcon3 falcon-h1 pixtral midm-2.0 lfm2 "},
    {{CL100K("\\p{N}{1,3}")}, false, false, " dbrx smaug-bpe chatglm-bpe glm4 "},
    {{CL100K("\\p{N}")}, false, false, " qwen2 stablelm2 deepseek-r1-qwen megrez "},
    {{O200K("", "\\p{N}")}, true, true, " tekken "},
    {{O200K("(?i:'s|'t|'re|'ve|'m|'ll|'d)?", "\\p{N}{1,3}")}, false, false, " gpt-4o llama4 "},
    {{"[\\r\\n]", "\\s?\\p{L}+", "\\s?\\p{P}+", "[\\x{4e00}-\\x{9fa5}\\x{0800}-\\x{4e00}\\x{ac00}-\\x{d7ff}]+|\\p{N}"},
     false,
     false,
     " deepseek-coder "},
    {{"\\p{N}{1,3}", "[\\x{4e00}-\\x{9fa5}\\x{3040}-\\x{309f}\\x{30a0}-\\x{30ff}]+",
      "[!\"#$%&'()*+,\\-./:;<=>?@\\[\\\\\\]^_`{|}~][A-Za-z]+|[^\\r\\n\\p{L}\\p{P}\\p{S}]?[\\p{L}\\p{M}]+"
      "| ?[\\p{P}\\p{S}]+[\\r\\n]*|" TAIL},
     false,
     false,
     " deepseek-v3 hunyuan-dense "},
};

static const split_table *find_table(const char *name, size_t n)
{
    for (size_t i = 0; i < sizeof tables / sizeof *tables; i++)
        for (const char *at = tables[i].names + 1; *at; at = strchr(at, ' ') + 1)
            if (strlen(at) > n && at[n] == ' ' && memcmp(at, name, n) == 0) return &tables[i];
    return NULL;
}

/* llama.cpp's token types */
enum { TYPE_NORMAL = 1, TYPE_UNKNOWN = 2, TYPE_CONTROL = 3, TYPE_USER_DEFINED = 4, TYPE_UNUSED = 5, TYPE_BYTE = 6 };

static dq_status read_tokens(const dq_source *gguf, dq_tokenizer *t)
{
    int64_t count = 0, types = 0;
    size_t bytes = 0, n = 0;
    const char *text = NULL;
    DQ_TRY(dq_gguf_array_length(gguf, "tokenizer.ggml.tokens", &count));
    if (count < 1 || count > DQ_MAX_TOKEN_ID)
        return dq_fail(DQ_E_FORMAT, "tokenizer.ggml.tokens has %lld entries", (long long)count);
    for (int64_t i = 0; i < count; i++) {
        DQ_TRY(dq_gguf_array_string(gguf, "tokenizer.ggml.tokens", i, &text, &n));
        bytes += n;
    }
    bool typed = dq_gguf_has(gguf, "tokenizer.ggml.token_type");
    if (typed) DQ_TRY(dq_gguf_array_length(gguf, "tokenizer.ggml.token_type", &types));
    if (typed && types != count)
        return dq_fail(DQ_E_FORMAT, "tokenizer.ggml.token_type has %lld entries, tokenizer.ggml.tokens %lld",
                       (long long)types, (long long)count);
    DQ_TRY(dq_vocab_open(t->env, count, bytes, &t->vocab));
    for (int64_t i = 0; i < count; i++) {
        int64_t type = TYPE_NORMAL;
        DQ_TRY(dq_gguf_array_string(gguf, "tokenizer.ggml.tokens", i, &text, &n));
        if (typed) DQ_TRY(dq_gguf_array_int(gguf, "tokenizer.ggml.token_type", i, &type));
        size_t good = dq_utf8_valid_prefix(text, n);
        if (good != n) return dq_fail(DQ_E_FORMAT, "token %lld is not valid UTF-8 at its byte %zu", (long long)i, good);
        DQ_TRY(dq_vocab_add(&t->vocab, i, text, n, false));
        bool special = type == TYPE_CONTROL || type == TYPE_UNKNOWN;
        t->vocab.tokens[i].special = special;
        if (!special && type != TYPE_USER_DEFINED) continue;
        dq_added_token token = {(char *)(uintptr_t)text, n, (int32_t)i, special, false, false, false, false};
        DQ_TRY(dq_added_add(&t->added, &token, &t->normalizers));
    }
    return DQ_OK;
}

static dq_status read_merges(const dq_source *gguf, dq_tokenizer *t)
{
    int64_t count = 0;
    DQ_TRY(dq_gguf_array_length(gguf, "tokenizer.ggml.merges", &count));
    if (count > 4 * (int64_t)DQ_MAX_TOKEN_ID) return dq_fail(DQ_E_FORMAT, "%lld merges", (long long)count);
    DQ_TRY(dq_merges_open(t->env, (size_t)count, &t->bpe.merges));
    for (int64_t i = 0; i < count; i++) {
        const char *text = NULL;
        size_t n = 0;
        DQ_TRY(dq_gguf_array_string(gguf, "tokenizer.ggml.merges", i, &text, &n));
        const char *gap = n > 1 ? memchr(text + 1, ' ', n - 1) : NULL;
        if (!gap) return dq_fail(DQ_E_FORMAT, "merge %lld is not two tokens separated by a space", (long long)i);
        size_t left = (size_t)(gap - text);
        DQ_TRY(dq_merges_add(&t->bpe.merges, &t->vocab, text, left, gap + 1, n - left - 1, (uint32_t)i));
    }
    return DQ_OK;
}

static dq_status read_scores(const dq_source *gguf, dq_tokenizer *t)
{
    int64_t count = 0;
    DQ_TRY(dq_gguf_array_length(gguf, "tokenizer.ggml.scores", &count));
    if (count != t->vocab.size)
        return dq_fail(DQ_E_FORMAT, "tokenizer.ggml.scores has %lld entries for %lld tokens", (long long)count,
                       (long long)t->vocab.size);
    float *scores = dq_calloc(t->env, (size_t)count, sizeof *scores);
    if (!scores) return DQ_E_NOMEM;
    t->bpe.scores = scores;
    for (int64_t i = 0; i < count; i++) {
        double value = 0;
        DQ_TRY(dq_gguf_array_double(gguf, "tokenizer.ggml.scores", i, &value));
        if (!(value > -1e30 && value < 1e30))
            return dq_fail(DQ_E_NONFINITE, "tokenizer.ggml.scores[%lld] is not a finite number", (long long)i);
        scores[i] = (float)value;
    }
    return DQ_OK;
}

/* A token id under `key`, -1 when absent. */
static dq_status read_id(const dq_source *gguf, const dq_tokenizer *t, const char *key, int32_t *out)
{
    int64_t id = -1;
    if (!dq_gguf_has(gguf, key)) return DQ_OK;
    DQ_TRY(dq_gguf_int(gguf, key, &id));
    if (id == -1 || id == UINT32_MAX) return DQ_OK;
    if (id < 0 || id >= t->vocab.size)
        return dq_fail(DQ_E_FORMAT, "%s is %lld, the vocabulary has %lld tokens", key, (long long)id,
                       (long long)t->vocab.size);
    *out = (int32_t)id;
    return DQ_OK;
}

static dq_status read_flag(const dq_source *gguf, const char *key, bool *out)
{
    int64_t value = 0;
    if (!dq_gguf_has(gguf, key)) return DQ_OK;
    DQ_TRY(dq_gguf_int(gguf, key, &value));
    *out = value != 0;
    return DQ_OK;
}

static dq_status open_gpt2(const dq_source *gguf, dq_tokenizer *t, bool *add_bos)
{
    const char *pre = "default";
    size_t n = 7;
    if (dq_gguf_has(gguf, "tokenizer.ggml.pre")) DQ_TRY(dq_gguf_string(gguf, "tokenizer.ggml.pre", &pre, &n));
    const split_table *table = find_table(pre, n);
    if (!table)
        return dq_fail(DQ_E_UNSUPPORTED, "tokenizer.ggml.pre '%.*s' is not supported", (int)(n < 60 ? n : 60), pre);
    for (int i = 0; i < MAX_SPLITS && table->splits[i]; i++)
        DQ_TRY(dq_pretokenizers_add_split(&t->pretokenizers, table->splits[i], NULL, "tokenizer.ggml.pre"));
    DQ_TRY(dq_pretokenizers_add_bytelevel(&t->pretokenizers, false, false));
    DQ_TRY(dq_decoders_add_bytelevel(&t->decoders));
    t->bpe.ignore_merges = table->ignore_merges;
    *add_bos = table->add_bos;
    return read_merges(gguf, t);
}

static dq_status open_llama(const dq_source *gguf, dq_tokenizer *t, bool *add_bos)
{
    bool prefix = true;
    DQ_TRY(read_flag(gguf, "tokenizer.ggml.add_space_prefix", &prefix));
    DQ_TRY(dq_normalizers_metaspace(&t->normalizers, prefix));
    DQ_TRY(dq_decoders_add_sentencepiece(&t->decoders, prefix));
    dq_vocab_byte_tokens(&t->vocab, t->bpe.bytes);
    t->bpe.unk = 0; /* llama.cpp's default for this kind */
    DQ_TRY(read_id(gguf, t, "tokenizer.ggml.unknown_token_id", &t->bpe.unk));
    t->kind = "sentencepiece BPE";
    *add_bos = true;
    return read_scores(gguf, t);
}

/* Texts of special tokens as transformers names them, and the chat templates: tokenizer.chat_template, and one more for
 * each name that tokenizer.chat_templates lists. */
static dq_status read_chat(const dq_source *gguf, dq_tokenizer *t)
{
    struct {
        const char *name;
        int32_t id;
    } specials[] = {{"bos_token", t->bos}, {"eos_token", t->eos}, {"unk_token", -1}, {"pad_token", -1}};
    const char *text = NULL, *name = NULL;
    size_t n = 0, bytes = 0;
    int64_t count = 0;
    DQ_TRY(read_id(gguf, t, "tokenizer.ggml.unknown_token_id", &specials[2].id));
    DQ_TRY(read_id(gguf, t, "tokenizer.ggml.padding_token_id", &specials[3].id));
    for (size_t i = 0; i < 4; i++) {
        const dq_token *token =
            specials[i].id >= 0 && specials[i].id < t->vocab.size ? &t->vocab.tokens[specials[i].id] : NULL;
        if (token && token->text)
            DQ_TRY(dq_named_set(t->env, &t->specials, specials[i].name, token->text, token->bytes, true));
    }
    if (dq_gguf_has(gguf, "tokenizer.chat_template")) {
        DQ_TRY(dq_gguf_string(gguf, "tokenizer.chat_template", &text, &bytes));
        DQ_TRY(dq_named_set(t->env, &t->templates, "default", text, bytes, true));
    }
    if (dq_gguf_has(gguf, "tokenizer.chat_templates"))
        DQ_TRY(dq_gguf_array_length(gguf, "tokenizer.chat_templates", &count));
    for (int64_t i = 0; i < count && i < 16; i++) {
        char key[100], word[60];
        DQ_TRY(dq_gguf_array_string(gguf, "tokenizer.chat_templates", i, &name, &n));
        snprintf(word, sizeof word, "%.*s", (int)(n < sizeof word ? n : sizeof word - 1), name);
        snprintf(key, sizeof key, "tokenizer.chat_template.%s", word);
        if (!dq_gguf_has(gguf, key)) continue;
        DQ_TRY(dq_gguf_string(gguf, key, &text, &bytes));
        DQ_TRY(dq_named_set(t->env, &t->templates, word, text, bytes, true));
    }
    return DQ_OK;
}

static dq_status fill(const dq_source *gguf, dq_tokenizer *t)
{
    const char *model = NULL;
    size_t n = 0;
    bool add_bos = false, add_eos = false;
    DQ_TRY(dq_gguf_string(gguf, "tokenizer.ggml.model", &model, &n));
    bool gpt2 = n == 4 && memcmp(model, "gpt2", 4) == 0, llama = n == 5 && memcmp(model, "llama", 5) == 0;
    if (!gpt2 && !llama)
        return dq_fail(DQ_E_UNSUPPORTED, "tokenizer.ggml.model '%.*s' is not supported (only gpt2 and llama)",
                       (int)(n < 60 ? n : 60), model);
    DQ_TRY(read_tokens(gguf, t));
    DQ_TRY(gpt2 ? open_gpt2(gguf, t, &add_bos) : open_llama(gguf, t, &add_bos));
    if (llama) t->bos = 1, t->eos = 2; /* llama.cpp's defaults for this kind */
    DQ_TRY(read_id(gguf, t, "tokenizer.ggml.bos_token_id", &t->bos));
    DQ_TRY(read_id(gguf, t, "tokenizer.ggml.eos_token_id", &t->eos));
    DQ_TRY(read_flag(gguf, "tokenizer.ggml.add_bos_token", &add_bos));
    DQ_TRY(read_flag(gguf, "tokenizer.ggml.add_eos_token", &add_eos));
    if (t->bos >= t->vocab.size) t->bos = -1;
    if (t->eos >= t->vocab.size) t->eos = -1;
    if (add_bos && t->bos >= 0) DQ_TRY(dq_id_list_add(&t->post.before, t->bos));
    if (add_eos && t->eos >= 0) DQ_TRY(dq_id_list_add(&t->post.after, t->eos));
    DQ_TRY(read_chat(gguf, t));
    return dq_tokenizer_finish(t);
}

dq_status dq_tokenizer_from_gguf(const dq_source *gguf, dq_tokenizer **out)
{
    dq_tokenizer *t = NULL;
    DQ_TRY(dq_tokenizer_new(gguf->env, &t));
    dq_status status = fill(gguf, t);
    if (status != DQ_OK) {
        dq_tokenizer_destroy(t);
        return status;
    }
    *out = t;
    return DQ_OK;
}
