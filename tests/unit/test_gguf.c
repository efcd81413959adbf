/* io: GGUF reading against gguf-py (tests/golden/make_io.py). SPDX-License-Identifier: Apache-2.0 */
#include "io_helpers.h"

#include "io/decode.h"

static int64_t get_int(const dq_source *s, const char *key)
{
    int64_t v = INT64_MIN;
    assert_int_equal(dq_gguf_int(s, key, &v), DQ_OK);
    return v;
}

static double get_double(const dq_source *s, const char *key)
{
    double v = NAN;
    assert_int_equal(dq_gguf_double(s, key, &v), DQ_OK);
    return v;
}

static void metadata(void **state)
{
    (void)state;
    dq_source *s = NULL;
    assert_int_equal(dq_gguf_open(&env, IO_DATA "types.gguf", &s), DQ_OK);
    assert_int_equal(get_int(s, "k.u8"), 200);
    assert_int_equal(get_int(s, "k.i8"), -5);
    assert_int_equal(get_int(s, "k.u16"), 60000);
    assert_int_equal(get_int(s, "k.i16"), -300);
    assert_int_equal(get_int(s, "k.u32"), 4000000000);
    assert_int_equal(get_int(s, "k.i32"), -70000);
    assert_int_equal(get_int(s, "k.u64"), (int64_t)1 << 40);
    assert_int_equal(get_int(s, "k.i64"), -((int64_t)1 << 40));
    assert_int_equal(get_int(s, "k.bool"), 1);
    assert_true(get_double(s, "k.f32") == 0.5);
    assert_true(get_double(s, "k.f64") == 1e-5);
    assert_true(get_double(s, "k.i8") == -5);

    const char *text = NULL;
    size_t bytes = 0;
    assert_int_equal(dq_gguf_string(s, "k.string", &text, &bytes), DQ_OK);
    assert_int_equal(bytes, strlen("wörld"));
    assert_memory_equal(text, "wörld", bytes);
    static const char *const strings[] = {"a", "", "çc"};
    int64_t n = 0;
    assert_int_equal(dq_gguf_array_length(s, "k.strings", &n), DQ_OK);
    assert_int_equal(n, 3);
    for (int i = 0; i < 3; i++) {
        assert_int_equal(dq_gguf_array_string(s, "k.strings", i, &text, &bytes), DQ_OK);
        assert_int_equal(bytes, strlen(strings[i]));
        assert_memory_equal(text, strings[i], bytes);
    }
    int64_t v = 0;
    double d = 0;
    assert_int_equal(dq_gguf_array_int(s, "k.ints", 1, &v), DQ_OK);
    assert_int_equal(v, -2);
    assert_int_equal(dq_gguf_array_double(s, "k.floats", 1, &d), DQ_OK);
    assert_true(d == -1.5);

    /* What is not there or of another kind is named. */
    assert_true(dq_gguf_has(s, "k.u8"));
    assert_false(dq_gguf_has(s, "k"));
    assert_int_equal(dq_gguf_int(s, "absent", &v), DQ_E_FORMAT);
    assert_non_null(strstr(dq_error_text(), "'absent' is missing"));
    assert_non_null(strstr(dq_error_text(), "types.gguf"));
    assert_int_equal(dq_gguf_int(s, "k.string", &v), DQ_E_FORMAT);
    assert_int_equal(dq_gguf_int(s, "k.f32", &v), DQ_E_FORMAT);
    assert_int_equal(dq_gguf_int(s, "k.ints", &v), DQ_E_FORMAT);
    assert_int_equal(dq_gguf_double(s, "k.string", &d), DQ_E_FORMAT);
    assert_int_equal(dq_gguf_string(s, "k.u8", &text, &bytes), DQ_E_FORMAT);
    assert_int_equal(dq_gguf_array_length(s, "k.u8", &n), DQ_E_FORMAT);
    assert_int_equal(dq_gguf_array_int(s, "k.ints", 3, &v), DQ_E_FORMAT);
    assert_int_equal(dq_gguf_array_int(s, "k.ints", -1, &v), DQ_E_FORMAT);
    assert_int_equal(v, -2);
    dq_source_free(s);
}

static void every_type(void **state)
{
    (void)state;
    dq_source *s = NULL;
    assert_int_equal(dq_source_open(&env, IO_DATA "types.gguf", &s), DQ_OK);
    assert_string_equal(s->format, "gguf");
    static const char *const names[] = {"f32",  "f16",  "bf16", "q4_0", "q4_1", "q5_0",
                                        "q5_1", "q8_0", "q4_k", "q5_k", "q6_k"};
    for (size_t i = 0; i < sizeof names / sizeof *names; i++) {
        char golden[64];
        snprintf(golden, sizeof golden, "types.gguf.%s", names[i]);
        check_golden(s, names[i], golden);
        dq_source_release(s, dq_source_find(s, names[i]));
        check_golden(s, names[i], golden);
    }
    dq_source_free(s);
}

/* Codes, scales and minima of a block give the decoder's numbers, bit for bit. */
static void blocks_taken_apart(void **state)
{
    (void)state;
    static const char *const names[] = {"q4_0", "q4_1", "q5_0", "q5_1", "q8_0", "q4_k", "q5_k", "q6_k"};
    dq_source *s = NULL;
    assert_int_equal(dq_gguf_open(&env, IO_DATA "types.gguf", &s), DQ_OK);
    assert_null(dq_gguf_block_form("Q2_K"));
    for (size_t i = 0; i < sizeof names / sizeof *names; i++) {
        int64_t t = dq_source_find(s, names[i]), cols = dq_info_cols(&s->tensors[t]);
        const dq_block_form *form = dq_gguf_block_form(s->tensors[t].type_name);
        assert_non_null(form);
        int64_t blocks = cols / form->elements;
        uint64_t row_bytes = (uint64_t)(blocks * form->bytes);
        for (int64_t r = 0; r < dq_info_rows(&s->tensors[t]); r++) {
            uint8_t raw[4096], codes[256];
            float want[2048], scale[16], minimum[16] = {0};
            assert_true(row_bytes <= sizeof raw && cols <= 2048);
            assert_int_equal(dq_source_read_raw(s, t, (uint64_t)r * row_bytes, row_bytes, raw), DQ_OK);
            assert_int_equal(dq_source_read_rows(s, t, r, 1, want), DQ_OK);
            for (int64_t b = 0; b < blocks; b++) {
                form->split(raw + b * form->bytes, codes, scale, minimum);
                for (int c = 0; c < form->elements; c++) {
                    int g = c / form->group;
                    float product = scale[g] * (float)(codes[c] - (form->minimum ? 0 : 1 << (form->bits - 1)));
                    float x = form->minimum ? product + minimum[g] : product;
                    assert_true(codes[c] >> form->bits == 0);
                    assert_true(x == want[b * form->elements + c]);
                }
            }
        }
    }
    dq_source_free(s);
}

static void listed_but_not_decoded(void **state)
{
    (void)state;
    dq_source *s = NULL;
    assert_int_equal(dq_gguf_open(&env, IO_DATA "types.gguf", &s), DQ_OK);
    float out[512];
    int64_t t = dq_source_find(s, "q2_k");
    assert_true(t >= 0);
    assert_string_equal(s->tensors[t].type_name, "Q2_K");
    assert_int_equal(s->tensors[t].dtype, DQ_BLOCK);
    assert_int_equal(s->tensors[t].bytes, 84);
    assert_int_equal(dq_source_read_rows(s, t, 0, 1, out), DQ_E_UNSUPPORTED);
    assert_non_null(strstr(dq_error_text(), "Q2_K"));
    assert_non_null(strstr(dq_error_text(), "[tensor q2_k]"));

    t = dq_source_find(s, "i32");
    assert_int_equal(dq_source_read_rows(s, t, 0, 1, out), DQ_E_UNSUPPORTED);
    int32_t raw[2];
    assert_int_equal(dq_source_read_raw(s, t, 4, 8, raw), DQ_OK);
    assert_int_equal(raw[0], 1);
    assert_int_equal(raw[1], 2);
    assert_int_equal(dq_source_read_raw(s, t, 12, 8, raw), DQ_E_MISMATCH);

    t = dq_source_find(s, "q4_k"); /* slowest dimension first */
    assert_int_equal(s->tensors[t].ndim, 2);
    assert_int_equal(s->tensors[t].shape[0], 3);
    assert_int_equal(s->tensors[t].shape[1], 512);
    assert_int_equal(s->tensors[t].offset % 32, 0);
    assert_string_equal(s->tensors[t].file, IO_DATA "types.gguf");
    dq_source_free(s);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(metadata),
        cmocka_unit_test(every_type),
        cmocka_unit_test(blocks_taken_apart),
        cmocka_unit_test(listed_but_not_decoded),
    };
    return cmocka_run_group_tests(tests, io_set_up, io_tear_down);
}
