/* io: PyTorch archives that we write. Torch itself reads them in tests/cli. SPDX-License-Identifier: Apache-2.0 */
#include <zip.h>

#include "io_helpers.h"

static const float numbers[6] = {1, -2.5f, 3, 0, 1e-30f, 6};
static const uint16_t halves[4] = {0x3f80, 0xbf80, 0x4000, 0x4040}; /* bf16 1 -1 2 3 */

static void write_both(const char *path)
{
    dq_sink *s = NULL;
    assert_int_equal(dq_pt_sink(&env, path, false, &s), DQ_OK);
    assert_int_equal(s->ops->add(s, "R1", DQ_F32, 2, (int64_t[]){2, 3}, numbers, sizeof numbers), DQ_OK);
    assert_int_equal(s->ops->set_metadata(s, "origin", "left out"), DQ_OK);
    assert_int_equal(s->ops->begin(s, "model.layers.0.self_attn.R2", DQ_BF16, 3, (int64_t[]){1, 2, 2}, sizeof halves),
                     DQ_OK);
    assert_int_equal(s->ops->append(s, halves, 2), DQ_OK);
    assert_false(dq_path_exists(path));
    assert_int_equal(s->ops->finish(s), DQ_E_STATE); /* a tensor is not complete */
    assert_int_equal(s->ops->append(s, halves + 1, 6), DQ_OK);
    assert_int_equal(s->ops->finish(s), DQ_OK);
    s->ops->free(s);
}

static void dictionary(void **state)
{
    (void)state;
    const char *path = in_scratch("both.pt");
    write_both(path);
    dq_source *s = NULL;
    assert_int_equal(dq_source_open(&env, path, &s), DQ_OK);
    assert_int_equal(s->count, 2);
    float got[6];
    int64_t r1 = dq_source_find(s, "R1"), r2 = dq_source_find(s, "model.layers.0.self_attn.R2");
    assert_true(r1 >= 0 && r2 >= 0);
    assert_int_equal(s->tensors[r1].shape[0], 2);
    assert_int_equal(s->tensors[r1].shape[1], 3);
    assert_int_equal(dq_source_read_rows(s, r1, 0, 2, got), DQ_OK);
    assert_memory_equal(got, numbers, sizeof numbers);
    assert_int_equal(s->tensors[r2].dtype, DQ_BF16);
    assert_int_equal(s->tensors[r2].ndim, 3);
    assert_int_equal(dq_source_read_rows(s, r2, 0, 1, got), DQ_OK);
    assert_true(got[0] == 1 && got[1] == -1 && got[2] == 2 && got[3] == 3);
    assert_int_equal(s->tensors[r1].offset % 64, 0);
    dq_source_free(s);
}

/* Checksums and structure as libzip sees them. */
static void sound_archive(void **state)
{
    (void)state;
    const char *path = in_scratch("sound.pt");
    write_both(path);
    int error;
    zip_t *z = zip_open(path, ZIP_RDONLY | ZIP_CHECKCONS, &error);
    assert_non_null(z);
    assert_int_equal(zip_get_num_entries(z, 0), 5);
    static const char *const names[] = {"sound/data/0", "sound/data/1", "sound/data.pkl", "sound/byteorder",
                                        "sound/version"};
    for (zip_uint64_t i = 0; i < 5; i++) {
        char content[4096];
        assert_string_equal(zip_get_name(z, i, 0), names[i]);
        zip_file_t *f = zip_fopen_index(z, i, 0);
        zip_int64_t n = zip_fread(f, content, sizeof content);
        assert_true(n > 0);
        assert_int_equal(zip_fread(f, content, 1), 0); /* compares the checksum */
        assert_int_equal(zip_error_code_zip(zip_file_get_error(f)), ZIP_ER_OK);
        zip_fclose(f);
    }
    zip_discard(z);
}

static void bare_tensor(void **state)
{
    (void)state;
    const char *path = in_scratch("layer_0_self_attn_o_proj.pt");
    dq_sink *sink = NULL;
    dq_source *s = NULL;
    float got[6];
    assert_int_equal(dq_pt_sink(&env, path, true, &sink), DQ_OK);
    assert_int_equal(sink->ops->finish(sink), DQ_E_STATE); /* nothing in it; also ends the sink */
    sink->ops->free(sink);
    assert_false(dq_path_exists(path));
    assert_int_equal(dq_pt_sink(&env, path, true, &sink), DQ_OK);
    assert_int_equal(sink->ops->add(sink, "x", DQ_F32, 3, (int64_t[]){1, 2, 3}, numbers, sizeof numbers), DQ_OK);
    assert_int_equal(sink->ops->add(sink, "y", DQ_F32, 1, (int64_t[]){6}, numbers, sizeof numbers), DQ_E_INVALID);
    sink->ops->free(sink);
    assert_false(dq_path_exists(path));
    assert_int_equal(dq_pt_sink(&env, path, true, &sink), DQ_OK);
    assert_int_equal(sink->ops->add(sink, "x", DQ_F32, 3, (int64_t[]){1, 2, 3}, numbers, sizeof numbers), DQ_OK);
    assert_int_equal(sink->ops->finish(sink), DQ_OK);
    assert_int_equal(sink->ops->finish(sink), DQ_E_STATE);
    sink->ops->free(sink);
    assert_int_equal(dq_source_open(&env, path, &s), DQ_OK);
    assert_int_equal(s->count, 1);
    assert_string_equal(s->tensors[0].name, "");
    assert_int_equal(s->tensors[0].ndim, 3);
    assert_int_equal(dq_source_read_rows(s, 0, 0, 1, got), DQ_OK);
    assert_memory_equal(got, numbers, sizeof numbers);
    dq_source_free(s);
}

static void refusals(void **state)
{
    (void)state;
    dq_sink *s = NULL;
    int before = scratch_entries();
    assert_int_equal(dq_pt_sink(&env, in_scratch("absent/x.pt"), false, &s), DQ_E_IO);
    assert_int_equal(dq_pt_sink(&env, in_scratch("x.pt"), false, &s), DQ_OK);
    assert_int_equal(s->ops->add(s, "a", DQ_F32, 1, (int64_t[]){7}, numbers, sizeof numbers), DQ_E_INVALID);
    assert_int_equal(s->ops->add(s, "a", DQ_F32, 1, (int64_t[]){6}, numbers, sizeof numbers), DQ_E_STATE);
    s->ops->free(s);
    assert_int_equal(dq_pt_sink(&env, in_scratch("x.pt"), false, &s), DQ_OK);
    assert_int_equal(s->ops->add(s, "a", DQ_F32, 1, (int64_t[]){6}, numbers, sizeof numbers), DQ_OK);
    assert_int_equal(s->ops->add(s, "a", DQ_F32, 1, (int64_t[]){6}, numbers, sizeof numbers), DQ_E_INVALID);
    s->ops->free(s);
    assert_int_equal(dq_pt_sink(&env, in_scratch("x.pt"), false, &s), DQ_OK);
    assert_int_equal(s->ops->add(s, "a", DQ_F8_E4M3, 1, (int64_t[]){24}, numbers, sizeof numbers), DQ_E_UNSUPPORTED);
    s->ops->free(s);
    assert_int_equal(scratch_entries(), before);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(dictionary),
        cmocka_unit_test(sound_archive),
        cmocka_unit_test(bare_tensor),
        cmocka_unit_test(refusals),
    };
    return cmocka_run_group_tests(tests, io_set_up, io_tear_down);
}
