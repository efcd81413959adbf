/* Hostile and broken tokenizers, texts and data folders: a precise error, nothing leaked, nothing crashed; and every
 * allocation failing in turn. SPDX-License-Identifier: Apache-2.0 */
#include <setjmp.h>
#include <stdarg.h>
#include <stdint.h>
#include <string.h>
#include <cmocka.h>

#include "base/status.h"
#include "io/file.h"
#include "paths.h"
#include "scratch.h"
#include "text/dataset.h"

static dq_env env;
static dq_tokenizer *gpt2;

static int open_all(void **state)
{
    (void)state;
    return dq_env_init(&env, NULL, 1) || scratch_open() ||
           dq_tokenizer_open_path(&env, test_data("tokenizers/gpt2.json"), &gpt2);
}

static int close_all(void **state)
{
    (void)state;
    dq_tokenizer_destroy(gpt2);
    dq_env_clear(&env);
    scratch_close();
    return 0;
}

static void refused(const char *what, dq_status status, dq_status expected, const char *words, uint64_t before)
{
    if (status != expected || !strstr(dq_error_text(), words))
        fail_msg("%s: %s '%s' instead of %s with '%s'", what, dq_status_name(status), dq_error_text(),
                 dq_status_name(expected), words);
    if (atomic_load(&env.memory_now) != before) fail_msg("%s: memory is left", what);
}

/* ---- tokenizer.json ---- */

#define VOCAB "\"vocab\":{\"a\":0,\"b\":1,\"ab\":2}"
#define MODEL "\"model\":{\"type\":\"BPE\"," VOCAB ",\"merges\":[\"a b\"]}"
#define BPE(members) "{\"model\":{\"type\":\"BPE\"," members "}}"
#define SPLIT(regex)                                                                                                   \
    "{\"pre_tokenizer\":{\"type\":\"Split\",\"pattern\":{\"Regex\":\"" regex "\"},\"behavior\":\"Isolated\"}," MODEL "}"
#define PARENS "(((((((((((((((((((((((((((((((((((((((((((((((((((((((((((((((((((((("

static const struct {
    const char *name, *json;
    dq_status status;
    const char *words;
} bad_files[] = {
    {"empty", " ", DQ_E_FORMAT, "tokenizer.json"},
    {"truncated", "{\"model\":{\"type\":\"BPE\",\"vocab\":{\"a\":0,", DQ_E_FORMAT, "tokenizer.json"},
    {"not an object", "[1]", DQ_E_FORMAT, "$: a tokenizer.json is an object"},
    {"no model", "{\"version\":\"1.0\"}", DQ_E_FORMAT, "$.model"},
    {"other model", "{\"model\":{\"type\":\"Unigram\",\"vocab\":[]}}", DQ_E_UNSUPPORTED, "'Unigram'"},
    {"empty vocabulary", BPE("\"vocab\":{},\"merges\":[]"), DQ_E_FORMAT, "$.model.vocab"},
    {"vocabulary is a list", BPE("\"vocab\":[],\"merges\":[]"), DQ_E_FORMAT, "$.model.vocab"},
    {"id twice", BPE("\"vocab\":{\"a\":0,\"b\":0},\"merges\":[]"), DQ_E_FORMAT, "two tokens: 'a' and 'b'"},
    {"token twice", BPE("\"vocab\":{\"a\":0,\"a\":1},\"merges\":[]"), DQ_E_FORMAT, "duplicate"},
    {"negative id", BPE("\"vocab\":{\"a\":-1},\"merges\":[]"), DQ_E_FORMAT, "token 'a'"},
    {"huge id", BPE("\"vocab\":{\"a\":4000000000},\"merges\":[]"), DQ_E_FORMAT, "token 'a'"},
    {"id is a string", BPE("\"vocab\":{\"a\":\"0\"},\"merges\":[]"), DQ_E_FORMAT, "token 'a'"},
    {"no merges", BPE(VOCAB), DQ_E_FORMAT, "'merges' is missing"},
    {"merge of unknown", BPE(VOCAB ",\"merges\":[\"a b\",\"a x\"]"), DQ_E_FORMAT, "merge 1 ('a' + 'x')"},
    {"merge to unknown", BPE(VOCAB ",\"merges\":[\"b a\"]"), DQ_E_FORMAT, "the result"},
    {"merge of three", BPE(VOCAB ",\"merges\":[\"a b a\"]"), DQ_E_FORMAT, "$.model.merges[0]"},
    {"merge of one", BPE(VOCAB ",\"merges\":[\"ab\"]"), DQ_E_FORMAT, "$.model.merges[0]"},
    {"merge is a number", BPE(VOCAB ",\"merges\":[[\"a\",\"b\"],7]"), DQ_E_FORMAT, "$.model.merges[1]"},
    {"dropout", BPE("\"dropout\":0.1," VOCAB ",\"merges\":[]"), DQ_E_UNSUPPORTED, "dropout"},
    {"suffix", BPE("\"end_of_word_suffix\":\"</w>\"," VOCAB ",\"merges\":[]"), DQ_E_UNSUPPORTED, "</w>"},
    {"unk missing", BPE("\"unk_token\":\"?\"," VOCAB ",\"merges\":[]"), DQ_E_FORMAT, "unk_token '?'"},
    {"flag is text", BPE("\"byte_fallback\":\"yes\"," VOCAB ",\"merges\":[]"), DQ_E_FORMAT, "byte_fallback"},
    {"added without content", "{\"added_tokens\":[{\"id\":3}]," MODEL "}", DQ_E_FORMAT, "$.added_tokens[0]"},
    {"added is no list", "{\"added_tokens\":{\"id\":3}," MODEL "}", DQ_E_FORMAT, "$.added_tokens"},
    {"added with other id", "{\"added_tokens\":[{\"id\":1,\"content\":\"a\"}]," MODEL "}", DQ_E_FORMAT,
     "has id 1 here and 0"},
    {"added on taken id", "{\"added_tokens\":[{\"id\":1,\"content\":\"<x>\"}]," MODEL "}", DQ_E_FORMAT,
     "id 1 is given to two tokens"},
    {"added beyond limit", "{\"added_tokens\":[{\"id\":999999999,\"content\":\"<x>\"}]," MODEL "}", DQ_E_FORMAT,
     "'id' is 999999999"},
    {"normalizer", "{\"normalizer\":{\"type\":\"Precompiled\"}," MODEL "}", DQ_E_UNSUPPORTED,
     "$.normalizer: normalizer 'Precompiled'"},
    {"pre-tokenizer",
     "{\"pre_tokenizer\":{\"type\":\"Sequence\",\"pretokenizers\":[{\"type\":\"Digits\"},{\"type\":\"Scripts\"}]}," MODEL
     "}",
     DQ_E_UNSUPPORTED, "$.pre_tokenizer.pretokenizers[1]: pre-tokenizer 'Scripts'"},
    {"post-processor", "{\"post_processor\":{\"type\":\"Magic\"}," MODEL "}", DQ_E_UNSUPPORTED, "'Magic'"},
    {"decoder", "{\"decoder\":{\"type\":\"CTC\"}," MODEL "}", DQ_E_UNSUPPORTED, "$.decoder: decoder 'CTC'"},
    {"template id",
     "{\"post_processor\":{\"type\":\"TemplateProcessing\",\"single\":[{\"SpecialToken\":{\"id\":\"x\"}},"
     "{\"Sequence\":{\"id\":\"A\"}}],\"special_tokens\":{\"x\":{\"ids\":[77]}}}," MODEL "}",
     DQ_E_FORMAT, "adds id 77"},
    {"template token",
     "{\"post_processor\":{\"type\":\"TemplateProcessing\",\"single\":[{\"SpecialToken\":{\"id\":\"x\"}},"
     "{\"Sequence\":{\"id\":\"A\"}}]}," MODEL "}",
     DQ_E_FORMAT, "'x' is used by the template"},
    {"template without text",
     "{\"post_processor\":{\"type\":\"TemplateProcessing\",\"single\":[],\"special_tokens\":{}}," MODEL "}",
     DQ_E_UNSUPPORTED, "the text 0 times"},
    {"regex", SPLIT("(a"), DQ_E_FORMAT, "$.pre_tokenizer.pattern: regular expression '(a' does not compile"},
    {"regex class", SPLIT("[a-z&&b]"), DQ_E_UNSUPPORTED, "&& inside a class"},
    {"regex nested class", SPLIT("[a[bc]]"), DQ_E_UNSUPPORTED, "a class inside a class"},
    {"regex depth", SPLIT(PARENS PARENS PARENS "a"), DQ_E_FORMAT, "does not compile"},
    {"split behaviour",
     "{\"pre_tokenizer\":{\"type\":\"Split\",\"pattern\":{\"String\":\"a\"},\"behavior\":\"Keep\"}," MODEL "}",
     DQ_E_UNSUPPORTED, "'Keep'"},
    {"split without pattern", "{\"pre_tokenizer\":{\"type\":\"Split\",\"behavior\":\"Isolated\"}," MODEL "}",
     DQ_E_FORMAT, "$.pre_tokenizer.pattern"},
};

static void bad_tokenizers(void **state)
{
    (void)state;
    uint64_t before = atomic_load(&env.memory_now);
    for (size_t i = 0; i < sizeof bad_files / sizeof *bad_files; i++) {
        dq_tokenizer *t = NULL;
        dq_status status = dq_tokenizer_open_path(&env, scratch_write("tokenizer.json", bad_files[i].json, 0), &t);
        assert_null(t);
        refused(bad_files[i].name, status, bad_files[i].status, bad_files[i].words, before);
        assert_non_null(strstr(dq_error_file(), "tokenizer.json"));
    }
}

/* A Sequence in a Sequence in a ... */
static void deep_nesting(void **state)
{
    (void)state;
    char json[8192] = "{\"normalizer\":";
    for (int i = 0; i < 60; i++) strcat(json, "{\"type\":\"Sequence\",\"normalizers\":[");
    strcat(json, "{\"type\":\"NFC\"}");
    for (int i = 0; i < 60; i++) strcat(json, "]}");
    strcat(json, "," MODEL "}");
    dq_tokenizer *t = NULL;
    uint64_t before = atomic_load(&env.memory_now);
    dq_status status = dq_tokenizer_open_path(&env, scratch_write("tokenizer.json", json, 0), &t);
    refused("depth", status, DQ_E_FORMAT, "too deep", before);
}

/* A good file cut anywhere gives an error, never a tokenizer. */
static void truncations(void **state)
{
    (void)state;
    char *json = NULL;
    size_t bytes = 0;
    assert_int_equal(dq_file_read(&env, test_data("tokenizers/llama3.json"), 1 << 20, &json, &bytes), DQ_OK);
    uint64_t before = atomic_load(&env.memory_now);
    for (size_t n = 1; n < bytes; n += 131) {
        dq_tokenizer *t = NULL;
        dq_status status = dq_tokenizer_open_path(&env, scratch_write("tokenizer.json", json, n), &t);
        refused("truncated", status, DQ_E_FORMAT, "tokenizer.json", before);
    }
    dq_free(json);
}

static void catastrophic_regex(void **state)
{
    (void)state;
    dq_tokenizer *t = NULL;
    dq_ids ids = {0};
    const char *path = scratch_write("tokenizer.json", SPLIT("(a|aa)+$|(a*)*b"), 0);
    assert_int_equal(dq_tokenizer_open_path(&env, path, &t), DQ_OK);
    char text[64];
    memset(text, 'a', sizeof text);
    text[63] = '!';
    uint64_t before = atomic_load(&env.memory_now);
    refused("catastrophic", dq_tokenizer_encode_text(t, text, 64, true, true, &ids), DQ_E_TEXT, "gave up at byte 0",
            before);
    dq_tokenizer_destroy(t);
}

/* Files whose normalizers blow a text up, each step a thousand times, or in as many steps as they like. */
static void growing_normalizers(void **state)
{
    (void)state;
    static const char step[] = "{\"type\":\"Replace\",\"pattern\":{\"String\":\"a\"},\"content\":\"%s\"}";
    static const char add[] = "{\"type\":\"Prepend\",\"prepend\":\"%s\"}";
    char long_text[1001], json[200000] = "", one[1200];
    memset(long_text, 'a', 1000);
    long_text[1000] = '\0';
    for (int kind = 0; kind < 2; kind++) {
        dq_tokenizer *t = NULL;
        dq_ids ids = {0};
        int steps = kind ? 150 : 4;
        strcpy(json, "{\"normalizer\":{\"type\":\"Sequence\",\"normalizers\":[");
        for (int i = 0; i < steps; i++) {
            snprintf(one, sizeof one, kind ? add : step, long_text);
            strcat(json, one);
            strcat(json, i + 1 < steps ? "," : "]}," MODEL "}");
        }
        assert_int_equal(dq_tokenizer_open_path(&env, scratch_write("tokenizer.json", json, 0), &t), DQ_OK);
        uint64_t before = atomic_load(&env.memory_now);
        refused("growing", dq_tokenizer_encode_text(t, "banana", 6, true, true, &ids), DQ_E_TEXT, "normalizer makes",
                before);
        dq_tokenizer_destroy(t);
    }
}

/* Long runs are not mistaken for catastrophes and take no quadratic time. */
static void long_runs(void **state)
{
    (void)state;
    enum { N = 200000 };
    static const char *const files[] = {"gpt2", "llama3", "o200k", "llama2", "words"};
    char *text = malloc(N);
    for (size_t f = 0; f < sizeof files / sizeof *files; f++) {
        char name[64];
        dq_tokenizer *t = NULL;
        snprintf(name, sizeof name, "tokenizers/%s.json", files[f]);
        assert_int_equal(dq_tokenizer_open_path(&env, test_data(name), &t), DQ_OK);
        for (const char *c = " \n!a0\x80"; *c; c++) {
            dq_ids ids = {0};
            memset(text, *c, N);
            if (dq_tokenizer_encode_text(t, text, N, true, true, &ids) != DQ_OK)
                fail_msg("%s: %s", files[f], dq_error_text());
            dq_free(ids.data);
        }
        dq_tokenizer_destroy(t);
    }
    free(text);
}

static void bad_gpt2_folders(void **state)
{
    (void)state;
    dq_tokenizer *t = NULL;
    uint64_t before = atomic_load(&env.memory_now);
#define OPEN dq_tokenizer_open_path(&env, scratch_dir(), &t)
    refused("nothing", OPEN, DQ_E_NOTFOUND, "looked for tokenizer.json", before);
    scratch_write("tokenizer.model", "x", 0);
    refused("sentencepiece", OPEN, DQ_E_UNSUPPORTED, "SentencePiece", before);
    scratch_write("vocab.json", "{\"a\":0,\"b\":1,\"ab\":2}", 0);
    scratch_write("merges.txt", "#version: 0.2\na b\nab c\n", 0);
    refused("unknown merge", OPEN, DQ_E_FORMAT, "merge 1 ('ab' + 'c')", before);
    assert_int_equal(dq_error_byte(), 18);
    scratch_write("merges.txt", "a b\nab\n", 0);
    refused("short line", OPEN, DQ_E_FORMAT, "'ab' is not two tokens", before);
    scratch_write("merges.txt", "a b\n", 0);
    scratch_write("tokenizer_config.json", "{\"add_bos_token\": 3}", 0);
    refused("flag", OPEN, DQ_E_FORMAT, "add_bos_token", before);
    refused("path", dq_tokenizer_open_path(&env, "/nonexistent/x", &t), DQ_E_NOTFOUND, "no such file", before);
}

static void bad_ids_to_decode(void **state)
{
    (void)state;
    char *text = NULL;
    int32_t ids[] = {1, 9999};
    uint64_t before = atomic_load(&env.memory_now);
    refused("beyond", dq_tokenizer_decode_ids(gpt2, ids, 2, false, &text, NULL), DQ_E_TEXT, "id 9999 at position 1",
            before);
    ids[1] = -1;
    refused("negative", dq_tokenizer_decode_ids(gpt2, ids, 2, false, &text, NULL), DQ_E_TEXT, "id -1", before);
    assert_null(text);
}

/* ---- texts and folders ---- */

static const struct {
    const char *file, *content;
    size_t bytes; /* 0 = a string */
    dq_status status;
    const char *words;
} bad_texts[] = {
    {"empty.txt", "", 0, DQ_E_TEXT, "is empty"},
    {"latin1.txt", "caf\xe9 noir", 0, DQ_E_TEXT, "byte 0xE9"},
    {"cut.txt", "ab\xe2\x82", 0, DQ_E_TEXT, "byte 2"},
    {"no-text.jsonl", "{\"text\":\"a\"}\n{\"body\":\"b\"}\n", 0, DQ_E_FORMAT, "line 2: no string \"text\""},
    {"broken.jsonl", "{\"text\":\"a\"}\n{\"text\":\n", 0, DQ_E_FORMAT, "line 2"},
    {"list.jsonl", "[1]\n", 0, DQ_E_FORMAT, "line 1"},
    {"empty.jsonl", "\n\n", 0, DQ_E_TEXT, "is empty"},
    {"plain.json.gz", "{\"text\":\"a\"}\n", 0, DQ_E_FORMAT, "not a gzip file"},
    {"cut.json.gz", "\x1f\x8b\x08\x00\x00\x00\x00\x00\x00\x03\x4b\x4c", 12, DQ_E_TRUNCATED, "gzip data end early"},
    {"bad.json.gz", "\x1f\x8b\x08\x00\x00\x00\x00\x00\x00\x03\xff\xff\xff\xff", 14, DQ_E_FORMAT, "damaged gzip data"},
    {"x.parquet", "PAR1", 0, DQ_E_UNSUPPORTED, "parquet"},
};

static void bad_text_files(void **state)
{
    (void)state;
    uint64_t before = atomic_load(&env.memory_now);
    dq_token_stream s = {0};
    for (size_t i = 0; i < sizeof bad_texts / sizeof *bad_texts; i++) {
        const char *path = scratch_write(bad_texts[i].file, bad_texts[i].content, bad_texts[i].bytes);
        refused(bad_texts[i].file, dq_stream_from_file(&env, gpt2, path, &s), bad_texts[i].status, bad_texts[i].words,
                before);
        assert_string_equal(dq_error_file(), path);
        assert_null(s.ids.data);
    }
    refused("missing", dq_stream_from_file(&env, gpt2, "/nonexistent/x.txt", &s), DQ_E_IO, "/nonexistent/x.txt",
            before);
    refused("empty text", dq_stream_from_text(&env, gpt2, "", 0, "given", &s), DQ_E_TEXT, "'given' is empty", before);
}

static void bad_recipes(void **state)
{
    (void)state;
    dq_token_stream s = {0};
    uint64_t before = atomic_load(&env.memory_now);
#define RECIPE(name, split, seqlen) dq_stream_from_recipe(&env, gpt2, name, scratch_dir(), split, seqlen, &s)
    refused("name", RECIPE("imdb", DQ_SPLIT_TEST, 4), DQ_E_NOTFOUND, "known: wikitext2, ptb, c4", before);
    refused("empty folder", RECIPE("wikitext2", DQ_SPLIT_TEST, 4), DQ_E_NOTFOUND, "looked for wiki.test.raw", before);
    refused("no folder", dq_stream_from_recipe(&env, gpt2, "ptb", "/nonexistent", DQ_SPLIT_TEST, 4, &s), DQ_E_NOTFOUND,
            "no such folder", before);
    scratch_write("wikitext2/wiki.test.tokens", " a <unk> b \n", 0);
    refused("look-alike", RECIPE("wikitext2", DQ_SPLIT_TEST, 4), DQ_E_NOTFOUND,
            "<unk>, whose perplexities do not compare", before);
    scratch_write("wikitext2/wiki.test.raw", " a b \n", 0);
    refused("other split", RECIPE("wikitext2", DQ_SPLIT_TRAIN, 4), DQ_E_NOTFOUND, "only its test split is there",
            before);
    refused("hint", RECIPE("wikitext2", DQ_SPLIT_TRAIN, 4), DQ_E_NOTFOUND, "--cal-file", before);
    refused("short", RECIPE("wikitext2", DQ_SPLIT_TEST, 2048), DQ_E_TEXT, "less than one window of 2048", before);
    scratch_write("test.txt", "not ptb", 0);
    refused("plain name outside", RECIPE("ptb", DQ_SPLIT_TEST, 1), DQ_E_NOTFOUND, "ptb.test.txt", before);
}

static void bad_samples(void **state)
{
    (void)state;
    dq_token_stream s = {0};
    dq_ids out = {0};
    assert_int_equal(dq_stream_from_ids(&env, (const int32_t[]){1, 2, 3, 4}, 4, "four", &s), DQ_OK);
    uint64_t before = atomic_load(&env.memory_now);
    refused("window", dq_stream_sample(&env, &s, 0, 1, 4, &out), DQ_E_TEXT,
            "'four' has 4 tokens; drawing windows of 4 needs at least 5", before);
    refused("none", dq_stream_sample(&env, &s, 0, 0, 2, &out), DQ_E_INVALID, "0 samples", before);
    refused("zero", dq_stream_sample(&env, &s, 0, 1, 0, &out), DQ_E_INVALID, "of 0 tokens", before);
    refused("too many", dq_stream_sample(&env, &s, 0, INT64_MAX / 2, 3, &out), DQ_E_NOMEM, "", before);
    assert_null(out.data);
    dq_token_stream_clear(&s);
}

static void bad_id_files(void **state)
{
    (void)state;
    static const char *const contents[] = {"{}",           "\"x\"",       "[1,-2]", "[1,2.5]",
                                           "[3000000000]", "{\"ids\":7}", "[1,",    "[]"};
    dq_token_stream s = {0};
    uint64_t before = atomic_load(&env.memory_now);
    for (size_t i = 0; i < sizeof contents / sizeof *contents; i++) {
        dq_status status = dq_stream_from_ids_file(&env, scratch_write("ids.json", contents[i], 0), &s);
        refused(contents[i], status, strcmp(contents[i], "[]") == 0 ? DQ_E_TEXT : DQ_E_FORMAT, "ids.json", before);
    }
}

/* ---- memory: the n-th allocation fails, for every n until all goes through ---- */
typedef struct faulty {
    long left; /* allocations until the failure; negative: none will come */
    long alive;
} faulty;

static void *faulty_alloc(void *user, size_t bytes)
{
    faulty *f = user;
    if (f->left-- == 0) return NULL;
    void *p = aligned_alloc(64, (bytes + 127) / 64 * 64);
    f->alive += p != NULL;
    return p;
}

static void faulty_free(void *user, void *ptr, size_t bytes)
{
    (void)bytes;
    ((faulty *)user)->alive -= ptr != NULL;
    free(ptr);
}

static dq_status whole_run(dq_env *e, const char *file, const char *data)
{
    static const char text[] = "Mara isn't <|left|> 12 na\xc3\xafve \xe6\xa9\x8b the tool \xff x";
    dq_tokenizer *t = NULL;
    dq_token_stream s = {0};
    dq_ids ids = {0}, windows = {0};
    char *back = NULL;
    dq_status status;
    DQ_GO(dq_tokenizer_open_path(e, test_data(file), &t));
    DQ_GO(dq_tokenizer_encode_text(t, text, sizeof text - 1, true, true, &ids));
    DQ_GO(dq_tokenizer_decode_ids(t, ids.data, ids.count, false, &back, NULL));
    DQ_GO(dq_stream_from_recipe(e, t, "wikitext2", data, DQ_SPLIT_TEST, 4, &s));
    DQ_GO(dq_stream_sample(e, &s, 0, 2, 4, &windows));
    dq_token_stream_clear(&s);
    DQ_GO(dq_stream_from_recipe(e, t, "c4", data, DQ_SPLIT_TRAIN, 4, &s));
done:
    dq_free(back);
    dq_free(ids.data);
    dq_free(windows.data);
    dq_token_stream_clear(&s);
    dq_tokenizer_destroy(t);
    return status;
}

/* A run whose n-th allocation fails; false when there are not that many. *survived counts runs that went on: without
 * memory for PCRE2's JIT code its interpreter takes over. */
static bool run_with_fault(const char *file, long n, long *survived)
{
    faulty f = {.left = -1};
    dq_services services = {.struct_size = sizeof services, .abi = 1, .allocator = {faulty_alloc, faulty_free, &f}};
    dq_env e;
    assert_int_equal(dq_env_init(&e, &services, 1), DQ_OK);
    f.left = n;
    dq_status status = whole_run(&e, file, scratch_dir());
    bool reached = f.left < 0;
    f.left = -1;
    dq_env_clear(&e);
    assert_int_equal(f.alive, 0);
    if (reached && status == DQ_OK)
        ++*survived;
    else if (status != (reached ? DQ_E_NOMEM : DQ_OK))
        fail_msg("%s, allocation %ld: %s '%s'", file, n, dq_status_name(status), dq_error_text());
    return reached;
}

static void failing_allocations(void **state)
{
    (void)state;
    static const char *const files[] = {"tokenizers/qwen2.json", "tokenizers/llama2.json", "tokenizers/words.json"};
    scratch_write("wikitext2/wiki.test.raw", " = Title = \n \n The lantern isn't here . \n", 0);
    scratch_write("c4/train.jsonl", "{\"text\":\"one more lantern in the river\"}\n{\"text\":\"b\"}\n", 0);
    for (size_t i = 0; i < sizeof files / sizeof *files; i++) {
        long n = 0, survived = 0;
        while (run_with_fault(files[i], n, &survived)) n++;
        assert_true(n > 50);
        assert_true(survived < n / 4);
    }
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test_setup(bad_tokenizers, scratch_fresh),
        cmocka_unit_test_setup(deep_nesting, scratch_fresh),
        cmocka_unit_test_setup(growing_normalizers, scratch_fresh),
        cmocka_unit_test_setup(truncations, scratch_fresh),
        cmocka_unit_test_setup(catastrophic_regex, scratch_fresh),
        cmocka_unit_test_setup(long_runs, scratch_fresh),
        cmocka_unit_test_setup(bad_gpt2_folders, scratch_fresh),
        cmocka_unit_test_setup(bad_ids_to_decode, scratch_fresh),
        cmocka_unit_test_setup(bad_text_files, scratch_fresh),
        cmocka_unit_test_setup(bad_recipes, scratch_fresh),
        cmocka_unit_test_setup(bad_samples, scratch_fresh),
        cmocka_unit_test_setup(bad_id_files, scratch_fresh),
        cmocka_unit_test_setup(failing_allocations, scratch_fresh),
    };
    return cmocka_run_group_tests_name("bad text", tests, open_all, close_all);
}
