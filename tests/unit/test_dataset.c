/* text: recipes, files and calibration windows. SPDX-License-Identifier: Apache-2.0 */
#include <setjmp.h>
#include <stdarg.h>
#include <stdint.h>
#include <string.h>
#include <cmocka.h>
#include <zlib.h>

#include "base/status.h"
#include "io/file.h"
#include "paths.h"
#include "scratch.h"
#include "text/dataset.h"

static dq_env env;
static dq_tokenizer *gpt2, *llama3; /* without and with BOS */

static void ok(dq_status status)
{
    if (status != DQ_OK) fail_msg("%s: %s", dq_status_name(status), dq_error_text());
}

static int open_all(void **state)
{
    (void)state;
    return dq_env_init(&env, NULL, 1) || scratch_open() ||
           dq_tokenizer_open_path(&env, test_data("tokenizers/gpt2.json"), &gpt2) ||
           dq_tokenizer_open_path(&env, test_data("tokenizers/llama3.json"), &llama3);
}

static int close_all(void **state)
{
    (void)state;
    dq_tokenizer_destroy(gpt2);
    dq_tokenizer_destroy(llama3);
    dq_env_clear(&env);
    scratch_close();
    return 0;
}

/* The stream's ids stand for exactly this text. */
static void same_text(const dq_token_stream *s, const char *expected)
{
    char *text = NULL;
    ok(dq_tokenizer_decode_ids(gpt2, s->ids.data, s->ids.count, true, &text, NULL));
    assert_string_equal(text, expected);
    dq_free(text);
}

static void wikitext2(void **state)
{
    (void)state;
    dq_token_stream s = {0};
    scratch_write("wikitext-2-raw-v1/wiki.test.raw", " \n = Title = \n \n Some text . \n\t\xe2\x80\x83\n last", 0);
    ok(dq_stream_from_recipe(&env, gpt2, "wikitext2", scratch_dir(), DQ_SPLIT_TEST, 4, &s));
    same_text(&s, "\n\n = Title = \n\n\n\n\n Some text . \n\n\n\n\n last");
    assert_string_equal(s.name, "wikitext2");
    assert_string_equal(
        s.protocol,
        "wikitext2 raw test: lines joined with \\n\\n, blank lines kept; tokenized once with byte-level BPE, no BOS");
    dq_token_stream_clear(&s);
    ok(dq_stream_from_recipe(&env, llama3, "wikitext2", scratch_dir(), DQ_SPLIT_TEST, 4, &s));
    assert_int_equal(s.ids.data[0], dq_tokenizer_bos_id(llama3));
    for (size_t i = 1; i < s.ids.count; i++) assert_int_not_equal(s.ids.data[i], dq_tokenizer_bos_id(llama3));
    assert_non_null(strstr(s.protocol, "once at the start"));
    dq_token_stream_clear(&s);
    /* the folder of the set itself, CRLF as text mode reads it */
    scratch_write("wikitext-2-raw-v1/wiki.train.raw", "a\r\n\r\nb\r\n", 0);
    char dir[600];
    snprintf(dir, sizeof dir, "%s/wikitext-2-raw-v1", scratch_dir());
    ok(dq_stream_from_recipe(&env, gpt2, "wikitext2", dir, DQ_SPLIT_TRAIN, 1 << 20, &s));
    same_text(&s, "a\n\n\n\n\nb\n");
    dq_token_stream_clear(&s);
}

static void ptb(void **state)
{
    (void)state;
    dq_token_stream s = {0};
    scratch_write("penn/ptb.test.txt", " no it was n't \n the <unk> said \n", 0);
    ok(dq_stream_from_recipe(&env, gpt2, "ptb", scratch_dir(), DQ_SPLIT_TEST, 2, &s));
    same_text(&s, "no it was n't the <unk> said");
    dq_token_stream_clear(&s);
}

static void write_gz(const char *name, const char *text, int members)
{
    char path[600];
    scratch_write(name, "", 0);
    snprintf(path, sizeof path, "%s/%s", scratch_dir(), name);
    for (int i = 0; i < members; i++) {
        gzFile f = gzopen(path, i ? "ab" : "wb");
        size_t n = strlen(text), from = n * (size_t)i / (size_t)members, to = n * (size_t)(i + 1) / (size_t)members;
        assert_int_equal(gzwrite(f, text + from, (unsigned)(to - from)), to - from);
        gzclose(f);
    }
}

static void c4_test(void **state)
{
    (void)state;
    char lines[1200 * 32] = "", *at = lines;
    for (int i = 0; i < 1200; i++) at += sprintf(at, "{\"text\":\"d%d\",\"url\":\"\"}\n", i);
    dq_token_stream s = {0};
    char *text = NULL;
    write_gz("c4/en/c4-validation.00000-of-00008.json.gz", lines, 3);
    ok(dq_stream_from_recipe(&env, gpt2, "c4", scratch_dir(), DQ_SPLIT_TEST, 1000, &s));
    ok(dq_tokenizer_decode_ids(gpt2, s.ids.data, s.ids.count, true, &text, NULL));
    assert_memory_equal(text, "d0 d1 d2 ", 9);
    assert_string_equal(text + strlen(text) - 6, " d1099");
    dq_free(text);
    size_t all = s.ids.count;
    dq_token_stream_clear(&s);
    assert_true(all > 256 * 4);
    ok(dq_stream_from_recipe(&env, gpt2, "c4", scratch_dir(), DQ_SPLIT_TEST, 4, &s));
    assert_int_equal(s.ids.count, 256 * 4);
    dq_token_stream_clear(&s);
}

static void c4_train(void **state)
{
    (void)state;
    dq_token_stream s = {0};
    dq_ids windows = {0};
    /* 3 letters a token at most: documents of 1, 12 and many tokens */
    scratch_write(
        "c4-mini/train.jsonl",
        "{\"text\":\"a\"}\n\n{\"text\":\"1 2 3 4 5 6\"}\r\n{\"text\":\"b\"}\n{\"text\":\"1 2 3 4 5 6 7 8 9\"}", 0);
    ok(dq_stream_from_recipe(&env, llama3, "c4", scratch_dir(), DQ_SPLIT_TRAIN, 12, &s));
    assert_int_equal(s.document_count, 4);
    assert_int_equal(s.documents[1], 0);
    assert_int_equal(s.documents[2], 12); /* BOS and 11 characters: exactly one window */
    assert_int_equal(s.documents[4], 12 + 18);
    ok(dq_stream_sample(&env, &s, 0, 40, 12, &windows));
    bool exact = false, inside = false;
    for (int i = 0; i < 40; i++) {
        const int32_t *w = windows.data + 12 * i;
        if (memcmp(w, s.ids.data, 12 * sizeof *w) == 0)
            exact = true;
        else
            inside = true;
        bool found = false;
        for (int start = 12; start < 18; start++) found = found || memcmp(w, s.ids.data + start, 12 * sizeof *w) == 0;
        assert_true(found || memcmp(w, s.ids.data, 12 * sizeof *w) == 0);
    }
    assert_true(exact && inside);
    dq_free(windows.data);
    assert_int_equal(dq_stream_sample(&env, &s, 0, 1, 11, &windows), DQ_E_INVALID);
    dq_token_stream_clear(&s);
    assert_int_equal(dq_stream_from_recipe(&env, llama3, "c4", scratch_dir(), DQ_SPLIT_TRAIN, 19, &s), DQ_E_TEXT);
    assert_non_null(strstr(dq_error_text(), "none of the 4 documents holds a window of 19 tokens; the longest has 18"));
}

/* Python: random.seed(0), randint(0, 997951) */
static void sample_starts(void **state)
{
    (void)state;
    static const int32_t expected[] = {885440, 403958, 794772, 933488, 441001, 42450, 271493, 536110};
    enum { SEQLEN = 5, LENGTH = 997952 + SEQLEN };
    int32_t *ids = malloc(LENGTH * sizeof *ids);
    for (int i = 0; i < LENGTH; i++) ids[i] = i;
    dq_token_stream s = {0};
    dq_ids out = {0};
    ok(dq_stream_from_ids(&env, ids, LENGTH, "numbers", &s));
    ok(dq_stream_sample(&env, &s, 0, 8, SEQLEN, &out));
    assert_int_equal(out.count, 8 * SEQLEN);
    for (int i = 0; i < 8; i++)
        for (int j = 0; j < SEQLEN; j++) assert_int_equal(out.data[i * SEQLEN + j], expected[i] + j);
    dq_free(out.data);
    dq_token_stream_clear(&s);
    free(ids);
}

/* The same loop in Python over documents of 3, 8, 5, 20 and 8 tokens, windows of 8. */
static void sample_documents(void **state)
{
    (void)state;
    static const int32_t expected[] = {14, 28, 14, 13, 28, 0, 28, 0, 0, 28, 28, 28};
    int64_t documents[] = {0, 0, 8, 8, 28, 36};
    int32_t ids[36];
    for (int i = 0; i < 36; i++) ids[i] = i;
    dq_token_stream s = {
        .name = (char *)"d", .ids = {ids, 36}, .documents = documents, .document_count = 5, .document_min = 8};
    dq_ids out = {0};
    ok(dq_stream_sample(&env, &s, 0, 12, 8, &out));
    for (int i = 0; i < 12; i++) assert_int_equal(out.data[8 * i], expected[i]);
    dq_free(out.data);
}

static void files(void **state)
{
    (void)state;
    dq_token_stream s = {0};
    ok(dq_stream_from_file(&env, gpt2, scratch_write("a.txt", "one\r\ntwo \n", 0), &s));
    same_text(&s, "one\r\ntwo \n");
    assert_string_equal(s.name, "a.txt");
    dq_token_stream_clear(&s);
    ok(dq_stream_from_file(&env, gpt2, scratch_write("a.jsonl", "{\"text\":\"one\"}\n{\"text\":\"two\\n\"}\n", 0), &s));
    same_text(&s, "one\n\ntwo\n");
    assert_non_null(strstr(s.protocol, "2 documents"));
    dq_token_stream_clear(&s);
    write_gz("b.txt.gz", "packed text", 1);
    char path[600];
    snprintf(path, sizeof path, "%s/b.txt.gz", scratch_dir());
    ok(dq_stream_from_file(&env, gpt2, path, &s));
    same_text(&s, "packed text");
    dq_token_stream_clear(&s);
    ok(dq_stream_from_text(&env, llama3, "words", 5, "given", &s));
    assert_int_equal(s.ids.data[0], dq_tokenizer_bos_id(llama3));
    dq_token_stream_clear(&s);
    ok(dq_stream_from_ids_file(&env, scratch_write("ids.json", "[3, 1,4]", 0), &s));
    assert_int_equal(s.ids.count, 3);
    assert_int_equal(s.ids.data[2], 4);
    dq_token_stream_clear(&s);
    ok(dq_stream_from_ids_file(&env, scratch_write("ids2.json", "{\"ids\": [7], \"x\": 1}", 0), &s));
    assert_int_equal(s.ids.data[0], 7);
    dq_token_stream_clear(&s);
}

/* BOS by configuration: the flags of tokenizer_config.json replace the template of tokenizer.json. */
static void configured_bos(void **state)
{
    (void)state;
    char *json = NULL;
    size_t bytes = 0;
    ok(dq_file_read(&env, test_data("tokenizers/llama2.json"), 1 << 20, &json, &bytes));
    static const struct {
        const char *config;
        int before, after;
    } cases[] = {
        {"{\"bos_token\": \"<s>\", \"eos_token\": {\"content\": \"</s>\"}}", 1, -1}, /* the template stays */
        {"{\"bos_token\": \"<s>\", \"eos_token\": \"</s>\", \"add_bos_token\": false}", -1, -1},
        {"{\"bos_token\": \"</s>\", \"add_bos_token\": true, \"model_max_length\": 1000000000000000019884624838656}", 2,
         -1},
        {"{\"bos_token\": \"<s>\", \"eos_token\": \"</s>\", \"add_bos_token\": true, \"add_eos_token\": true}", 1, 2},
    };
    for (size_t i = 0; i < sizeof cases / sizeof *cases; i++) {
        dq_tokenizer *t = NULL;
        dq_ids ids = {0}, plain = {0};
        scratch_write("m/tokenizer.json", json, bytes);
        scratch_write("m/tokenizer_config.json", cases[i].config, 0);
        char dir[600];
        snprintf(dir, sizeof dir, "%s/m", scratch_dir());
        ok(dq_tokenizer_open_path(&env, dir, &t));
        ok(dq_tokenizer_encode_text(t, "the bridge", 10, true, true, &ids));
        ok(dq_tokenizer_encode_text(t, "the bridge", 10, false, true, &plain));
        assert_int_equal(ids.count, plain.count + (cases[i].before >= 0) + (cases[i].after >= 0));
        if (cases[i].before >= 0) assert_int_equal(ids.data[0], cases[i].before);
        if (cases[i].after >= 0) assert_int_equal(ids.data[ids.count - 1], cases[i].after);
        dq_free(ids.data);
        dq_free(plain.data);
        dq_tokenizer_destroy(t);
    }
    dq_free(json);
}

static void shared_count(const char *tokenizer, const char *config, size_t expected)
{
    dq_token_stream s = {0};
    dq_tokenizer *t = NULL;
    const char *path = shared_data(tokenizer);
    if (!path) skip();
    if (config) { /* a copy with a configuration beside it */
        char *json = NULL, from[1200], dir[600];
        size_t bytes = 0;
        snprintf(from, sizeof from, "%s/tokenizer.json", path);
        ok(dq_file_read(&env, from, 64 << 20, &json, &bytes));
        scratch_write("m/tokenizer.json", json, bytes);
        scratch_write("m/tokenizer_config.json", config, 0);
        dq_free(json);
        snprintf(dir, sizeof dir, "%s/m", scratch_dir());
        ok(dq_tokenizer_open_path(&env, dir, &t));
    } else
        ok(dq_tokenizer_open_path(&env, path, &t));
    ok(dq_stream_from_recipe(&env, t, "wikitext2", shared_data(""), DQ_SPLIT_TEST, 2048, &s));
    assert_int_equal(s.ids.count, expected);
    dq_token_stream_clear(&s);
    assert_int_equal(dq_stream_from_recipe(&env, t, "wikitext2", shared_data(""), DQ_SPLIT_TRAIN, 2048, &s),
                     DQ_E_NOTFOUND);
    assert_non_null(strstr(dq_error_text(), "--cal-file"));
    ok(dq_stream_from_recipe(&env, t, "c4", shared_data(""), DQ_SPLIT_TEST, 256, &s));
    assert_int_equal(s.ids.count, 256 * 256);
    dq_token_stream_clear(&s);
    ok(dq_stream_from_recipe(&env, t, "c4", shared_data(""), DQ_SPLIT_TRAIN, 2048, &s));
    assert_int_equal(s.document_count, 1000);
    dq_token_stream_clear(&s);
    dq_tokenizer_destroy(t);
}

/* The counts the literature knows. */
static void shared_wikitext2_gpt2(void **state)
{
    (void)state;
    shared_count("tokenizers/gpt2", NULL, 287644);
}
static void shared_wikitext2_opt(void **state)
{
    (void)state;
    shared_count("tokenizers/opt", NULL, 287645);
}
static void shared_wikitext2_llama2(void **state)
{
    (void)state;
    shared_count("tokenizers/llama2-spm-phi3", "{\"bos_token\": \"<s>\", \"add_bos_token\": true}", 341469);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test_setup(wikitext2, scratch_fresh),
        cmocka_unit_test_setup(ptb, scratch_fresh),
        cmocka_unit_test_setup(c4_test, scratch_fresh),
        cmocka_unit_test_setup(c4_train, scratch_fresh),
        cmocka_unit_test_setup(sample_starts, scratch_fresh),
        cmocka_unit_test_setup(sample_documents, scratch_fresh),
        cmocka_unit_test_setup(files, scratch_fresh),
        cmocka_unit_test_setup(configured_bos, scratch_fresh),
        cmocka_unit_test_setup(shared_wikitext2_gpt2, scratch_fresh),
        cmocka_unit_test_setup(shared_wikitext2_opt, scratch_fresh),
        cmocka_unit_test_setup(shared_wikitext2_llama2, scratch_fresh),
    };
    return cmocka_run_group_tests_name("dataset", tests, open_all, close_all);
}
