/* text: tokenizers against the goldens of tests/golden/make_tokenizers.py and, where present, real vocabularies.
 * SPDX-License-Identifier: Apache-2.0 */
#include <setjmp.h>
#include <stdarg.h>
#include <stdint.h>
#include <string.h>
#include <cmocka.h>

#include <jansson.h>

#include "base/status.h"
#include "io/file.h"
#include "paths.h"
#include "text/bytes.h"
#include "text/parts.h"
#include "text/pattern.h"
#include "text/tokenizer.h"
#include "text/utf8.h"

static dq_env env;

static int open_env(void **state)
{
    (void)state;
    return dq_env_init(&env, NULL, 1);
}

static int close_env(void **state)
{
    (void)state;
    dq_env_clear(&env);
    return 0;
}

static void ok(dq_status status)
{
    if (status != DQ_OK) fail_msg("%s: %s", dq_status_name(status), dq_error_text());
}

static size_t from_hex(const char *hex, unsigned char *out)
{
    size_t n = strlen(hex) / 2;
    for (size_t i = 0; i < n; i++) {
        unsigned value;
        assert_int_equal(sscanf(hex + 2 * i, "%2x", &value), 1);
        out[i] = (unsigned char)value;
    }
    return n;
}

static void same_ids(const char *what, size_t text, const json_t *expected, const dq_ids *ids)
{
    bool same = json_array_size(expected) == ids->count;
    for (size_t i = 0; i < ids->count && same; i++)
        same = json_integer_value(json_array_get(expected, i)) == ids->data[i];
    if (same) return;
    char *dump = json_dumps(expected, JSON_COMPACT);
    print_error("%s, text %zu: expected %s, got [", what, text, dump);
    for (size_t i = 0; i < ids->count; i++) print_error("%d,", ids->data[i]);
    print_error("]\n");
    free(dump);
    fail();
}

static const json_t *entry(const json_t *variant, const char *list, size_t i)
{
    char key[24];
    snprintf(key, sizeof key, "%zu", i);
    return json_object_get(json_object_get(variant, list), key);
}

static void same_text(const char *what, size_t i, const json_t *hex, const char *source, const dq_tokenizer *t,
                      const dq_ids *ids, bool skip)
{
    unsigned char expected[4096];
    char *text = NULL;
    size_t bytes = 0;
    size_t n = from_hex(hex ? json_string_value(hex) : source, expected);
    ok(dq_tokenizer_decode_ids(t, ids->data, ids->count, skip, &text, &bytes));
    if (bytes != n || memcmp(text, expected, n) != 0)
        fail_msg("%s, text %zu: decoded '%s' instead of '%.*s'", what, i, text, (int)n, (const char *)expected);
    dq_free(text);
}

/* All texts with one tokenizer: with special tokens, without, and back to text. */
static void check_variant(const char *name, const json_t *variant, const json_t *texts)
{
    char file[300];
    dq_tokenizer *t = NULL;
    snprintf(file, sizeof file, "tokenizers/%s.json", name);
    ok(dq_tokenizer_open_path(&env, test_data(file), &t));
    for (size_t i = 0; i < json_array_size(texts); i++) {
        unsigned char text[4096];
        const char *hex = json_string_value(json_array_get(texts, i));
        size_t n = from_hex(hex, text);
        dq_ids ids = {0}, plain = {0};
        const json_t *with = json_array_get(json_object_get(variant, "ids"), i), *without = entry(variant, "plain", i);
        ok(dq_tokenizer_encode_text(t, (char *)text, n, true, true, &ids));
        same_ids(name, i, with, &ids);
        ok(dq_tokenizer_encode_text(t, (char *)text, n, false, false, &plain));
        same_ids(name, i, without ? without : with, &plain);
        const json_t *skipped = entry(variant, "text", i), *all = entry(variant, "all", i);
        same_text(name, i, skipped, hex, t, &ids, true);
        same_text(name, i, all ? all : skipped, hex, t, &ids, false);
        dq_free(ids.data);
        dq_free(plain.data);
    }
    dq_tokenizer_destroy(t);
}

static void goldens(void **state)
{
    (void)state;
    json_error_t error;
    json_t *golden = json_load_file(test_data("tokenizers/golden.json"), 0, &error);
    if (!golden) fail_msg("golden.json: %s", error.text);
    const char *name;
    json_t *variant;
    uint64_t before = atomic_load(&env.memory_now);
    assert_true(json_object_size(json_object_get(golden, "variants")) >= 14);
    assert_true(json_array_size(json_object_get(golden, "texts")) >= 50);
    json_object_foreach(json_object_get(golden, "variants"), name, variant)
    {
        check_variant(name, variant, json_object_get(golden, "texts"));
        assert_int_equal(atomic_load(&env.memory_now), before);
    }
    json_decref(golden);
}

/* Vocabularies of both kinds inside GGUF files. */
static void gguf_goldens(void **state)
{
    (void)state;
    json_t *golden = json_load_file(test_data("tokenizers/golden.json"), 0, NULL);
    const json_t *texts = json_object_get(golden, "texts");
    const char *name;
    json_t *lists;
    assert_int_equal(json_object_size(json_object_get(golden, "gguf")), 2);
    json_object_foreach(json_object_get(golden, "gguf"), name, lists)
    {
        char file[300];
        dq_tokenizer *t = NULL;
        snprintf(file, sizeof file, "tokenizers/%s", name);
        ok(dq_tokenizer_open_path(&env, test_data(file), &t));
        for (size_t i = 0; i < json_array_size(texts); i++) {
            unsigned char text[4096];
            size_t n = from_hex(json_string_value(json_array_get(texts, i)), text);
            dq_ids ids = {0}, plain = {0};
            ok(dq_tokenizer_encode_text(t, (char *)text, n, true, true, &ids));
            same_ids(name, i, json_array_get(json_object_get(lists, "ids"), i), &ids);
            ok(dq_tokenizer_encode_text(t, (char *)text, n, false, false, &plain));
            same_ids(name, i, json_array_get(json_object_get(lists, "plain"), i), &plain);
            if (dq_utf8_valid_prefix((char *)text, n) == n && !memmem(text, n, "\xe2\x96\x81", 3) &&
                !memchr(text, '<', n)) {
                char *back = NULL;
                size_t bytes = 0;
                ok(dq_tokenizer_decode_ids(t, plain.data, plain.count, false, &back, &bytes));
                bool user_token =
                    memmem(text, n, "tool", 4) || memmem(text, n, "word", 4); /* a space in front of what follows */
                if (!user_token && (bytes != n || memcmp(back, text, n) != 0))
                    fail_msg("%s, text %zu: decoded '%s'", name, i, back);
                dq_free(back);
            }
            dq_free(ids.data);
            dq_free(plain.data);
        }
        dq_tokenizer_destroy(t);
    }
    json_decref(golden);
}

/* ---- real vocabularies of the shared collection ---- */

static char *read_shared(const char *name, size_t *bytes)
{
    char *text = NULL;
    const char *path = shared_data(name);
    if (!path) return NULL;
    ok(dq_file_read(&env, path, 64 << 20, &text, bytes));
    return text;
}

static void shared_cases(const char *folder, size_t *cases)
{
    static const char separator[] = "\n__ggml_vocab_test__\n";
    char name[128];
    size_t in_bytes, out_bytes;
    dq_tokenizer *t = NULL;
    snprintf(name, sizeof name, "tokenizers/%s/cases.inp", folder);
    char *in = read_shared(name, &in_bytes);
    if (!in) skip();
    snprintf(name, sizeof name, "tokenizers/%s/cases.out", folder);
    char *out = read_shared(name, &out_bytes), *line = out;
    snprintf(name, sizeof name, "tokenizers/%s", folder);
    ok(dq_tokenizer_open_path(&env, shared_data(name), &t));
    *cases = 0;
    for (char *text = in; text; (*cases)++) {
        size_t left = in_bytes - (size_t)(text - in);
        char *end = memmem(text, left, separator, strlen(separator));
        dq_ids ids = {0};
        ok(dq_tokenizer_encode_text(t, text, end ? (size_t)(end - text) : left, false, false, &ids));
        char *stop = line + strcspn(line, "\n"); /* the last line has no line feed */
        for (size_t i = 0; i < ids.count; i++) {
            char *next = line;
            long id = strtol(line, &next, 10);
            if (next == line || next > stop || id != ids.data[i])
                fail_msg("%s case %zu: id %zu is %d", folder, *cases, i, ids.data[i]);
            line = next;
        }
        assert_int_equal(strspn(line, " "), stop - line);
        line = stop + (*stop != '\0');
        dq_free(ids.data);
        text = end ? end + strlen(separator) : NULL;
    }
    dq_tokenizer_destroy(t);
    dq_free(in);
    dq_free(out);
}

static void shared_gpt2(void **state)
{
    (void)state;
    size_t cases;
    shared_cases("gpt2", &cases);
    assert_int_equal(cases, 47);
}

static void shared_opt(void **state)
{
    (void)state;
    size_t cases;
    shared_cases("opt", &cases);
    assert_int_equal(cases, 47);
}

static void shared_llama2(void **state)
{
    (void)state;
    size_t cases;
    shared_cases("llama2-spm-phi3", &cases);
    assert_int_equal(cases, 47);
}

/* The score-merged and the listed vocabulary of a trained model agree with its published prompt. */
static void shared_stories(void **state)
{
    (void)state;
    size_t bytes;
    char *text = read_shared("tinystories-sample/tinystories-sample.txt", &bytes);
    if (!text) skip();
    dq_tokenizer *t = NULL;
    dq_ids ids = {0};
    char *back = NULL;
    size_t n = 0;
    ok(dq_tokenizer_open_path(&env, shared_data("stories260k/hf"), &t));
    assert_int_equal(dq_tokenizer_size(t), 512);
    assert_int_equal(dq_tokenizer_bos_id(t), 1);
    assert_int_equal(dq_tokenizer_eos_id(t), 2);
    assert_string_equal(dq_tokenizer_kind(t), "sentencepiece BPE");
    ok(dq_tokenizer_encode_text(t, text, bytes, true, true, &ids));
    assert_int_equal(ids.data[0], 1);
    assert_int_equal(ids.count, 134731); /* as `tokenizers` counts */
    ok(dq_tokenizer_decode_ids(t, ids.data, ids.count, true, &back, &n));
    assert_int_equal(n, bytes);
    assert_memory_equal(back, text, n);
    dq_free(back);
    dq_free(ids.data);
    dq_free(text);
    dq_tokenizer_destroy(t);
}

/* ---- parts ---- */

static void utf8_replacement(void **state)
{
    (void)state;
    /* Unicode 15, table 3-8: one U+FFFD per maximal subpart */
    static const char in[] = "a\xf1\x80\x80\xe1\x80\xc2"
                             "b\x80"
                             "c\x80\xbf"
                             "d";
    static const char expected[] = "a\xef\xbf\xbd\xef\xbf\xbd\xef\xbf\xbd"
                                   "b\xef\xbf\xbd"
                                   "c\xef\xbf\xbd\xef\xbf\xbd"
                                   "d";
    dq_bytes out = {.env = &env};
    ok(dq_utf8_add_lossy(&out, in, sizeof in - 1));
    assert_int_equal(out.size, sizeof expected - 1);
    assert_memory_equal(out.data, expected, out.size);
    dq_bytes_clear(&out);
    assert_int_equal(dq_utf8_valid_prefix("\xf4\x8f\xbf\xbf\xed\x9f\xbf", 7), 7);
    assert_int_equal(dq_utf8_valid_prefix("ab\xed\xa0\x80", 5), 2);
    assert_int_equal(dq_utf8_valid_prefix("\xc1\xbf", 2), 0);
}

static void bytelevel_round_trip(void **state)
{
    (void)state;
    bool seen[0x200] = {false};
    for (int b = 0; b < 256; b++) {
        char text[4];
        int32_t cp;
        int n = dq_bytelevel_char((unsigned char)b, text);
        assert_int_equal(dq_utf8_read(text, (size_t)n, &cp), n);
        assert_true(cp < 0x200 && !seen[cp] && cp > ' ');
        seen[cp] = true;
        assert_int_equal(dq_bytelevel_byte(cp), b);
    }
    assert_int_equal(dq_bytelevel_byte(0x144), -1);
    assert_int_equal(dq_bytelevel_byte(' '), -1);
}

static void pattern_walk(void **state)
{
    (void)state;
    dq_pattern *p = NULL;
    dq_matcher m;
    size_t start = 0, end = 0, count = 0;
    bool found = true;
    ok(dq_pattern_regex(&env, "x*", 2, NULL, "test", &p));
    ok(dq_matcher_open(&m, p));
    dq_matcher_start(&m, "axxb", 4);
    /* (0,0) (1,3) (4,4): the empty match right behind "xx" is passed over, as Oniguruma's iterator does */
    static const size_t expected[][2] = {{0, 0}, {1, 3}, {4, 4}};
    for (;; count++) {
        ok(dq_matcher_next(&m, &start, &end, &found));
        if (!found) break;
        assert_true(count < 3);
        assert_int_equal(start, expected[count][0]);
        assert_int_equal(end, expected[count][1]);
    }
    assert_int_equal(count, 3);
    dq_matcher_close(&m);
    dq_pattern_free(p);
}

/* Long words leave the short merge for the queue: both must agree with each other across the boundary. */
static void long_words(void **state)
{
    (void)state;
    dq_tokenizer *t = NULL;
    enum { N = 200000 };
    char *text = dq_alloc(&env, N);
    ok(dq_tokenizer_open_path(&env, test_data("tokenizers/metaspace-always-whole.json"), &t));
    for (size_t i = 0; i < N; i++) text[i] = "thelanternriverbasket"[(i * 7 + i / 5) % 21];
    dq_ids all = {0};
    char *back = NULL;
    size_t n = 0;
    ok(dq_tokenizer_encode_text(t, text, N, false, true, &all)); /* one word of 200000 letters: n log n or never */
    ok(dq_tokenizer_decode_ids(t, all.data, all.count, true, &back, &n));
    assert_int_equal(n, N);
    assert_memory_equal(back, text, N);
    assert_true(all.count < N - N / 20);
    dq_free(all.data);
    dq_free(back);
    dq_free(text);
    dq_tokenizer_destroy(t);
}

static void whole_and_cut_agree(void **state)
{
    (void)state;
    /* 63 repeats: above the short-word limit; below it the same text is cut by hand at a space */
    dq_tokenizer *t = NULL;
    ok(dq_tokenizer_open_path(&env, test_data("tokenizers/llama2.json"), &t));
    char text[2048] = "";
    for (int i = 0; i < 63; i++) strcat(text, " the old lantern");
    dq_ids whole = {0}, one = {0};
    ok(dq_tokenizer_encode_text(t, text + 1, strlen(text) - 1, false, true, &whole));
    ok(dq_tokenizer_encode_text(t, "the old lantern", 15, false, true, &one));
    assert_int_equal(whole.count, 63 * one.count);
    for (size_t i = 0; i < whole.count; i++) assert_int_equal(whole.data[i], one.data[i % one.count]);
    dq_free(whole.data);
    dq_free(one.data);
    dq_tokenizer_destroy(t);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(goldens),          cmocka_unit_test(gguf_goldens),         cmocka_unit_test(shared_gpt2),
        cmocka_unit_test(shared_opt),       cmocka_unit_test(shared_llama2),        cmocka_unit_test(shared_stories),
        cmocka_unit_test(utf8_replacement), cmocka_unit_test(bytelevel_round_trip), cmocka_unit_test(pattern_walk),
        cmocka_unit_test(long_words),       cmocka_unit_test(whole_and_cut_agree),
    };
    return cmocka_run_group_tests_name("tokenizer", tests, open_env, close_env);
}
