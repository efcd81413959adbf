/* formats: packing against hand-checked words, every layout there and back, and checkpoints packed by other tools
 * (tests/golden/make_formats.py) against their logits. SPDX-License-Identifier: Apache-2.0 */
#include <setjmp.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <cmocka.h>

#include "base/status.h"
#include "formats/packed_source.h"
#include "formats/fields.h"
#include "io/formats.h"
#include "models.h"

static void ok(dq_status status)
{
    if (status != DQ_OK) print_message("%s (%s)\n", dq_error_text(), dq_error_tensor());
    assert_int_equal(status, DQ_OK);
}

/* ---- fields ---- */

static void pack_one(dq_field_order order, int bits, int64_t count, const uint8_t *values, const uint32_t *wanted)
{
    dq_env env;
    uint32_t words[8] = {0};
    uint8_t back[64] = {0};
    ok(dq_env_init(&env, NULL, 1));
    dq_fields f = {order, bits, 1, count, 0, 1, 0, 1};
    dq_fields_pack(&env, &f, values, words);
    int64_t n = dq_fields_words(order, bits, count);
    for (int64_t i = 0; i < n; i++) assert_int_equal(words[i], wanted[i]);
    dq_fields_unpack(&env, &f, words, back);
    assert_memory_equal(back, values, (size_t)count);
    dq_env_clear(&env);
}

static void words_by_hand(void **state)
{
    (void)state;
    static const uint8_t eight[8] = {1, 2, 3, 4, 5, 6, 7, 8};
    pack_one(DQ_FIELDS_DENSE, 4, 8, eight, (uint32_t[]){0x87654321u});
    /* column j in nibble [0,4,1,5,2,6,3,7][j] */
    pack_one(DQ_FIELDS_AWQ, 4, 8, eight, (uint32_t[]){0x86427531u});
    /* value 10 straddles words 0 and 1 with 2 + 1 bits, value 21 words 1 and 2 with 1 + 2 */
    uint8_t three[32] = {0};
    three[0] = 5;
    three[10] = 7;
    three[21] = 6;
    three[31] = 3;
    pack_one(DQ_FIELDS_DENSE, 3, 32, three, (uint32_t[]){0xc0000005u, 0x00000001u, 0x60000003u});
    pack_one(DQ_FIELDS_PADDED, 3, 11, three, (uint32_t[]){5u, 7u});
    /* planes: two words of two low bits, one word of the third bit */
    pack_one(DQ_FIELDS_PLANAR, 3, 32, three, (uint32_t[]){0x00300001u, 0xc0000800u, 0x00200401u});
    uint8_t five[32] = {0};
    five[0] = 31;
    five[9] = 18;
    pack_one(DQ_FIELDS_PLANAR, 5, 32, five, (uint32_t[]){0xfu, 0x20u, 0u, 0u, 0x201u});
    assert_int_equal(dq_fields_words(DQ_FIELDS_DENSE, 3, 33), 4);
    assert_int_equal(dq_fields_words(DQ_FIELDS_PADDED, 6, 11), 3);
    assert_false(dq_fields_fit(DQ_FIELDS_PLANAR, 3, 33));
    assert_false(dq_fields_fit(DQ_FIELDS_AWQ, 4, 12));
}

/* ---- every layout, there and back ---- */

static void random_codes(dq_env *env, int bits, int64_t out, int64_t in, int64_t group, bool sym, bool index,
                         dq_host_codes *c)
{
    *c = (dq_host_codes){.bits = bits, .out = out, .in = in, .group = group};
    ok(dq_host_codes_alloc(env, c));
    srand(7);
    for (int64_t i = 0; i < out * in; i++) c->codes[i] = (uint8_t)(rand() & ((1 << bits) - 1));
    for (int64_t i = 0; i < out * c->groups; i++) {
        c->scale[i] = (float)(1 + rand() % 500) / 1024.0f;
        if (!sym) c->zero[i] = (uint8_t)(rand() & ((1 << bits) - 1));
    }
    dq_host_codes_find_symmetry(c);
    if (!index) return;
    c->group_index = dq_alloc(env, (size_t)in * sizeof(int32_t));
    for (int64_t k = 0; k < in; k++) c->group_index[k] = (int32_t)((in - 1 - k) / group);
}

static void assert_same(const dq_host_codes *a, const dq_host_codes *b)
{
    assert_int_equal(a->bits, b->bits);
    assert_int_equal(a->out, b->out);
    assert_int_equal(a->in, b->in);
    assert_int_equal(a->groups, b->groups);
    assert_memory_equal(a->codes, b->codes, (size_t)(a->out * a->in));
    assert_memory_equal(a->scale, b->scale, (size_t)(a->out * a->groups) * 4);
    assert_memory_equal(a->zero, b->zero, (size_t)(a->out * a->groups));
    assert_int_equal(!a->group_index, !b->group_index);
    if (a->group_index) assert_memory_equal(a->group_index, b->group_index, (size_t)a->in * 4);
}

static void there_and_back(dq_env *env, dq_layout_kind kind, int bits, bool sym, int64_t group, bool index)
{
    dq_host_codes c, back;
    dq_sink *sink;
    dq_source *source;
    dq_packed p;
    random_codes(env, bits, 64, 128, group, sym, index, &c);
    dq_layout l = {.kind = kind, .bits = bits, .group = group, .symmetric = c.symmetric};
    ok(dq_memory_sink(env, &sink));
    ok(dq_packed_write(sink, "x", &l, DQ_F16, &c));
    ok(sink->ops->finish(sink));
    ok(dq_memory_source(sink, &source));
    sink->ops->free(sink);
    ok(dq_packed_bind(source, "x", &l, 0, &p));
    ok(dq_packed_read(source, "x", &p, &back));
    assert_same(&c, &back);
    dq_source_free(source);
    dq_host_codes_free(&c);
    dq_host_codes_free(&back);
}

static void round_trips(void **state)
{
    (void)state;
    dq_env env;
    ok(dq_env_init(&env, NULL, 1));
    uint64_t before = env.memory_now;
    for (int bits = 2; bits <= 8; bits++) {
        for (int index = 0; index < 2; index++) {
            if (bits < 5 || bits == 8) there_and_back(&env, DQ_LAYOUT_GPTQ, bits, true, 32, index);
            if (bits < 5 || bits == 8) there_and_back(&env, DQ_LAYOUT_GPTQ_V2, bits, false, 32, index);
            there_and_back(&env, DQ_LAYOUT_GPTQ_PLANAR, bits, false, 32, index);
            there_and_back(&env, DQ_LAYOUT_CT_PACKED, bits, false, 32, index);
        }
        there_and_back(&env, DQ_LAYOUT_CT_PACKED, bits, true, 128, false);
        there_and_back(&env, DQ_LAYOUT_CT_INT, bits, false, 32, false);
        there_and_back(&env, DQ_LAYOUT_CT_INT, bits, true, 128, false);
    }
    there_and_back(&env, DQ_LAYOUT_AWQ_GEMM, 4, false, 32, false);
    there_and_back(&env, DQ_LAYOUT_AWQ_GEMV, 4, false, 64, false);
    there_and_back(&env, DQ_LAYOUT_AWQ_GEMV_FAST, 4, false, 128, false);
    assert_int_equal(env.memory_now, before);
    dq_env_clear(&env);
}

static void limits(void **state)
{
    (void)state;
    static const struct {
        dq_layout_kind kind;
        int bits;
        int64_t out, in, group;
        bool sym, index;
        const char *says;
    } cases[] = {
        {DQ_LAYOUT_GPTQ, 4, 64, 64, 32, false, false, "gptq_v2"},
        {DQ_LAYOUT_GPTQ, 5, 64, 64, 32, true, false, "compressed-tensors"},
        {DQ_LAYOUT_GPTQ, 4, 64, 48, 16, true, false, "multiple of 32 input"},
        {DQ_LAYOUT_GPTQ_V2, 4, 48, 64, 32, true, false, "multiple of 32 output"},
        {DQ_LAYOUT_AWQ_GEMM, 3, 64, 64, 32, true, false, "4 bits"},
        {DQ_LAYOUT_AWQ_GEMM, 4, 64, 64, 32, true, true, "g_idx"},
        {DQ_LAYOUT_AWQ_GEMM, 4, 60, 64, 32, true, false, "multiple of 8"},
        {DQ_LAYOUT_CT_INT, 8, 64, 64, 32, true, true, "g_idx"},
    };
    dq_env env;
    ok(dq_env_init(&env, NULL, 1));
    for (size_t i = 0; i < sizeof cases / sizeof *cases; i++) {
        dq_host_codes c;
        random_codes(&env, cases[i].bits, cases[i].out, cases[i].in, cases[i].group, cases[i].sym, cases[i].index, &c);
        dq_layout l = {.kind = cases[i].kind, .bits = cases[i].bits, .group = cases[i].group};
        assert_int_equal(dq_layout_check(&l, &c), DQ_E_UNSUPPORTED);
        if (!strstr(dq_error_text(), cases[i].says)) fail_msg("case %zu says: %s", i, dq_error_text());
        dq_host_codes_free(&c);
    }
    dq_env_clear(&env);
}

/* ---- files of other tools ---- */

static void foreign(const char *name, int bits, const char *format, double most_bits, bool codes)
{
    fixture f;
    dq_model *m;
    expected e;
    char path[128], expected_name[64];
    fixture_open(&f, "cpu", 2);
    snprintf(path, sizeof path, "tests/data/formats/%s", name);
    snprintf(expected_name, sizeof expected_name, "../formats/%s", name);
    read_expected(&f, expected_name, &e);
    ok(dq_model_open_path(f.dev, path, &m));
    double d = logits_difference(m, &e);
    print_message("%-22s logits differ by %.1e, %.2f bits per weight\n", name, d, dq_model_bits_per_weight(m));
    assert_true(d < 2e-4);
    assert_string_equal(dq_model_root_source(m)->format, format);
    assert_int_equal(dq_model_scheme(m) != NULL, codes);
    if (codes) assert_int_equal(dq_model_scheme(m)->w.bits, bits);
    assert_true(dq_model_bits_per_weight(m) < most_bits && dq_model_bits_per_weight(m) >= 2.0);
    dq_model_release(m);
    fixture_close(&f);
}

static void foreign_checkpoints(void **state)
{
    (void)state;
    foreign("gptq_w4", 4, "gptq", 5.5, true);
    foreign("gptq_w3_act_order", 3, "gptq", 4.5, true);
    foreign("gptq_w2_empty_g_idx", 2, "gptq", 2.7, true);
    foreign("gptq_w8_row", 8, "gptq", 9.5, true);
    foreign("gptq_mislabelled", 4, "gptq", 5.5, true);
    foreign("gptq_planar_w5", 5, "gptq", 6.5, true);
    foreign("gptq_dynamic", 8, "gptq", 9.5, true);
    foreign("awq_gemm", 4, "awq", 4.7, true);
    foreign("awq_gemv", 4, "awq", 13, true); /* tiny widths: mostly padding */
    foreign("awq_gemv_fast", 4, "awq", 19, true);
    foreign("ct_w4_r4", 4, "compressed-tensors", 4.8, true);
    foreign("ct_w3_act_order", 3, "compressed-tensors", 4.7, true);
    foreign("ct_w5_old", 5, "compressed-tensors", 6.9, true);
    foreign("ct_int8", 8, "compressed-tensors", 8.3, true);
    foreign("ct_fp8", 0, "compressed-tensors", 8.3, false);
    foreign("diffulex", 0, "diffulex", 7, false);
    foreign("gptq_head", 4, "gptq", 7, true);
    foreign("ct_head", 8, "compressed-tensors", 8.6, true);
}

/* A foreign checkpoint saved by us and opened again gives the same numbers. */
static void saved_again(void **state)
{
    (void)state;
    static const char *const names[] = {"gptq_dynamic", "ct_w4_r4", "diffulex", "gptq_head", "ct_head"};
    for (int i = 0; i < 5; i++) {
        fixture f;
        dq_model *m, *back;
        expected e;
        char dir[256], path[128], expected_name[64];
        static float a[64 * 128], b[64 * 128];
        fixture_open(&f, "cpu", 2);
        snprintf(path, sizeof path, "tests/data/formats/%s", names[i]);
        snprintf(expected_name, sizeof expected_name, "../formats/%s", names[i]);
        read_expected(&f, expected_name, &e);
        make_folder(dir, sizeof dir);
        ok(dq_model_open_path(f.dev, path, &m));
        ok(dq_model_save_dir(m, dir, 1 << 30, NULL));
        ok(dq_model_open_path(f.dev, dir, &back));
        logits_of(m, &e, a);
        logits_of(back, &e, b);
        assert_memory_equal(a, b, (size_t)(e.tokens * e.vocab) * sizeof(float));
        dq_model_release(m);
        dq_model_release(back);
        remove_folder(dir);
        fixture_close(&f);
    }
}

int main(void)
{
    const struct CMUnitTest tests[] = {cmocka_unit_test(words_by_hand), cmocka_unit_test(round_trips),
                                       cmocka_unit_test(limits), cmocka_unit_test(foreign_checkpoints),
                                       cmocka_unit_test(saved_again)};
    return cmocka_run_group_tests(tests, NULL, NULL);
}
