/* io: PyTorch archives against torch (tests/golden/make_io.py). SPDX-License-Identifier: Apache-2.0 */
#include <pthread.h>

#include "io_helpers.h"

static dq_source *open_pt(const char *name)
{
    char path[256];
    snprintf(path, sizeof path, IO_DATA "%s", name);
    dq_source *s = NULL;
    if (dq_source_open(&env, path, &s) != DQ_OK) fail_msg("%s", dq_error_text());
    assert_string_equal(s->format, "pytorch");
    return s;
}

static void state_dicts(void **state)
{
    (void)state;
    static const char *const files[] = {"state_dict.pt", "parameters.pt"};
    for (size_t i = 0; i < 2; i++) {
        dq_source *s = open_pt(files[i]);
        assert_int_equal(s->count, 2);
        check_golden(s, "weight", "pt.x");
        check_golden(s, "bias", "pt.bias");
        dq_source_free(s);
    }
    dq_source *s = open_pt("protocol4.pt");
    check_golden(s, "a", "pt.x");
    dq_source_free(s);
    s = open_pt("bare.pt");
    assert_int_equal(s->count, 1);
    check_golden(s, "", "pt.x");
    assert_non_null(strstr(s->tensors[0].file, "bare.pt:bare/data/0"));
    dq_source_free(s);
    s = open_pt("cuda.pt"); /* location "cuda:0", unaligned, without byteorder */
    check_golden(s, "", "pt.x");
    dq_source_free(s);
}

/* Views into one shared storage; deflated the same. */
static void views(void **state)
{
    (void)state;
    static const char *const files[] = {"views.pt", "deflated.pt"};
    static const char *const names[] = {"t", "slice", "row", "step", "expand", "permute"};
    for (size_t i = 0; i < 2; i++) {
        dq_source *s = open_pt(files[i]);
        for (size_t k = 0; k < sizeof names / sizeof *names; k++) {
            char golden[32];
            snprintf(golden, sizeof golden, "pt.%s", names[k]);
            check_golden(s, names[k], golden);
            if (k % 2) dq_source_release(s, dq_source_find(s, names[k]));
        }
        int64_t t = dq_source_find(s, "t"); /* raw bytes across element borders equal the decoded ones */
        float all[30];
        uint8_t raw[13];
        assert_int_equal(dq_source_read_rows(s, t, 0, 5, all), DQ_OK);
        assert_int_equal(dq_source_read_raw(s, t, 6, sizeof raw, raw), DQ_OK);
        assert_memory_equal(raw, (uint8_t *)all + 6, sizeof raw);
        assert_int_equal(dq_source_read_raw(s, t, 0, 120, all), DQ_OK);
        t = dq_source_find(s, "row");
        float row[5];
        assert_int_equal(dq_source_read_rows(s, t, 0, 1, row), DQ_OK);
        assert_int_equal(dq_source_read_raw(s, t, 3, sizeof raw, raw), DQ_OK);
        assert_memory_equal(raw, (uint8_t *)row + 3, sizeof raw);
        dq_source_free(s);
    }
}

static void nested(void **state)
{
    (void)state;
    dq_source *s = open_pt("nested.pt");
    assert_int_equal(s->count, 7);
    check_golden(s, "model.layers.0.w", "pt.x");
    check_golden(s, "model.layers.1.w", "pt.half");
    check_golden(s, "list.0", "pt.bf16");
    check_golden(s, "list.1.0", "pt.x");
    float v;
    assert_int_equal(dq_source_read_rows(s, dq_source_find(s, "3"), 0, 1, &v), DQ_OK);
    assert_true(v == 1.25f);
    int64_t t = dq_source_find(s, "ids"), ids[3];
    assert_int_equal(dq_source_read_rows(s, t, 0, 1, &v), DQ_E_UNSUPPORTED);
    assert_non_null(strstr(dq_error_text(), "I64"));
    assert_int_equal(dq_source_read_raw(s, t, 0, sizeof ids, ids), DQ_OK);
    assert_int_equal(ids[2], 2);
    t = dq_source_find(s, "empty");
    assert_int_equal(s->tensors[t].bytes, 0);
    assert_int_equal(dq_source_read_rows(s, t, 0, 0, &v), DQ_OK);
    dq_source_free(s);
}

static void refused_by_name(void **state)
{
    (void)state;
    static const struct {
        const char *file, *message;
    } cases[] = {
        {"legacy.pt", "before 1.6"},
        {"module.pt", "'torch.nn.modules.linear.Linear' is refused"},
        {"big_endian.pt", "byte order 'big'"},
    };
    for (size_t i = 0; i < sizeof cases / sizeof *cases; i++) {
        char path[256];
        snprintf(path, sizeof path, IO_DATA "%s", cases[i].file);
        dq_source *s = NULL;
        assert_int_equal(dq_source_open(&env, path, &s), DQ_E_UNSUPPORTED);
        if (!strstr(dq_error_text(), cases[i].message)) fail_msg("%s", dq_error_text());
        assert_non_null(strstr(dq_error_text(), cases[i].file));
        assert_null(s);
    }
}

typedef struct reader {
    dq_source *source;
    int failures;
} reader;

static void *read_often(void *arg)
{
    reader *r = arg;
    float want[5][30], got[30];
    for (int round = 0; round < 200; round++) {
        for (int64_t t = 0; t < 5; t++) {
            const dq_tensor_info *info = &r->source->tensors[t];
            float *out = round ? got : want[t];
            r->failures += dq_source_read_rows(r->source, t, 0, dq_info_rows(info), out) != DQ_OK;
            r->failures += memcmp(out, want[t], sizeof(float) * (size_t)(dq_info_rows(info) * dq_info_cols(info))) != 0;
            if (round % 7 == 0) dq_source_release(r->source, t);
        }
    }
    return NULL;
}

static void many_threads(void **state)
{
    (void)state;
    dq_source *s = open_pt("deflated.pt");
    pthread_t threads[4];
    reader readers[4];
    for (int i = 0; i < 4; i++) {
        readers[i] = (reader){s, 0};
        assert_int_equal(pthread_create(&threads[i], NULL, read_often, &readers[i]), 0);
    }
    for (int i = 0; i < 4; i++) {
        pthread_join(threads[i], NULL);
        assert_int_equal(readers[i].failures, 0);
    }
    dq_source_free(s);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(state_dicts),     cmocka_unit_test(views),        cmocka_unit_test(nested),
        cmocka_unit_test(refused_by_name), cmocka_unit_test(many_threads),
    };
    return cmocka_run_group_tests(tests, io_set_up, io_tear_down);
}
