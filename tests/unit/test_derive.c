/* model: fusing and rotating keep the function. SPDX-License-Identifier: Apache-2.0 */
#include <math.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <cmocka.h>

#include "base/rotation_set.h"
#include "base/status.h"
#include "models.h"
#include "rotation/rotation.h"

static const char *const names[] = {"mha", "gqa", "tied", "bias", "window", "qwen2", "qwen3", "opt"};
enum { MODELS = sizeof names / sizeof *names };

static dq_model *fused(dq_model *base)
{
    dq_model *m;
    assert_int_equal(dq_model_derive_fused(base, false, &m), DQ_OK);
    return m;
}

static dq_rotation_set *make_set(fixture *f, const dq_model *m, bool r1, dq_r2_mode r2, bool r3, bool r4,
                                 dq_rotate_mode mode)
{
    dq_rotation_options o = {.use_r1 = r1, .use_r3 = r3, .use_r4 = r4, .use_r2 = r2, .mode = mode, .seed = 3};
    dq_rotation_set *set;
    dq_status status = dq_rotation_set_make(f->dev, dq_model_arch(m), &o, &set);
    if (status != DQ_OK) print_message("%s\n", dq_error_text());
    assert_int_equal(status, DQ_OK);
    return set;
}

static dq_model *rotated(dq_model *base, const dq_rotation_set *set)
{
    dq_model *m;
    dq_status status = dq_model_derive_rotated(base, set, &m);
    if (status != DQ_OK) print_message("%s\n", dq_error_text());
    assert_int_equal(status, DQ_OK);
    return m;
}

static void fusing_keeps_logits(void **state)
{
    (void)state;
    fixture f;
    fixture_open(&f, "cpu", 2);
    for (int i = 0; i < MODELS; i++) {
        expected e;
        read_expected(&f, names[i], &e);
        dq_model *base = open_tiny(&f, names[i]);
        dq_model *once = fused(base);
        dq_tensor norm;
        assert_true(dq_model_is_fused(once) && !dq_model_is_fused(base));
        assert_false(dq_model_arch(once)->tied);
        assert_int_equal(dq_model_read_norm(once, 0, DQ_ATTN_NORM, &norm), DQ_OK);
        assert_true(dq_tensor_is_empty(&norm));
        assert_true(logits_difference(once, &e) < 1e-4);
        dq_model *twice = fused(once);
        assert_ptr_equal(once, twice); /* the same function: the same model */
        dq_model_release(twice);
        dq_model_release(base);
        assert_true(logits_difference(once, &e) < 1e-4); /* lives without the caller's reference to its base */
        dq_model_release(once);
    }
    fixture_close(&f);
}

static void every_rotation_keeps_logits(void **state)
{
    (void)state;
    static const struct {
        bool r1;
        dq_r2_mode r2;
        bool r3, r4;
        dq_rotate_mode mode;
    } cases[] = {
        {true, DQ_R2_NONE, false, false, DQ_ROTATE_HADAMARD},   {true, DQ_R2_NONE, false, false, DQ_ROTATE_RANDOM},
        {false, DQ_R2_OFFLINE, false, false, DQ_ROTATE_RANDOM}, {false, DQ_R2_ONLINE, false, false, DQ_ROTATE_HADAMARD},
        {false, DQ_R2_NONE, true, false, DQ_ROTATE_HADAMARD},   {false, DQ_R2_NONE, false, true, DQ_ROTATE_HADAMARD},
        {true, DQ_R2_OFFLINE, true, true, DQ_ROTATE_HADAMARD},  {true, DQ_R2_ONLINE, true, true, DQ_ROTATE_RANDOM},
    };
    fixture f;
    fixture_open(&f, "cpu", 2);
    for (int i = 0; i < MODELS; i++) {
        expected e;
        read_expected(&f, names[i], &e);
        dq_model *base = open_tiny(&f, names[i]), *plain = fused(base);
        for (size_t c = 0; c < sizeof cases / sizeof *cases; c++) {
            dq_rotation_set *set =
                make_set(&f, plain, cases[c].r1, cases[c].r2, cases[c].r3, cases[c].r4, cases[c].mode);
            dq_model *m = rotated(plain, set);
            double d = logits_difference(m, &e);
            if (!(d < 2e-4)) print_message("%s, case %zu: %g\n", names[i], c, d);
            assert_true(d < 2e-4);
            dq_rotation_set_free(set);
            assert_true(logits_difference(m, &e) < 2e-4); /* the set was copied */
            dq_model_release(m);
        }
        dq_model_release(plain);
        dq_model_release(base);
    }
    fixture_close(&f);
}

/* A wrong matrix must show: rotating with something that is not orthogonal changes the logits. */
static void a_broken_rotation_changes_logits(void **state)
{
    (void)state;
    fixture f;
    expected e;
    fixture_open(&f, "cpu", 1);
    read_expected(&f, "mha", &e);
    dq_model *base = open_tiny(&f, "mha"), *plain = fused(base);
    dq_rotation_set *set = make_set(&f, plain, true, DQ_R2_OFFLINE, false, false, DQ_ROTATE_RANDOM);
    set->r1[5] += 0.5;
    dq_model *m = rotated(plain, set);
    assert_true(logits_difference(m, &e) > 1e-2);
    dq_model_release(m);
    set->r1[5] -= 0.5;
    set->r2[1] += 0.5;
    m = rotated(plain, set);
    assert_true(logits_difference(m, &e) > 1e-2);
    dq_model_release(m);
    dq_rotation_set_free(set);
    dq_model_release(plain);
    dq_model_release(base);
    fixture_close(&f);
}

/* W_g <- R2_g^T W_g R1 and b_g <- R2_g^T b_g of v_proj, written out. */
static void v_proj_written_out(void **state)
{
    (void)state;
    fixture f;
    fixture_open(&f, "ref", 1);
    dq_model *base = open_tiny(&f, "bias"), *plain = fused(base);
    dq_rotation_set *set = make_set(&f, plain, true, DQ_R2_OFFLINE, false, false, DQ_ROTATE_RANDOM);
    dq_model *m = rotated(plain, set);
    const dq_arch *a = dq_model_arch(m);
    int64_t h = a->hidden, d = a->head_dim, kv = a->kv_heads;
    dq_linear before, after;
    float *w = malloc((size_t)(kv * d * h) * 4), *got = malloc((size_t)(kv * d * h) * 4), b[64], got_b[64];
    double *x = malloc((size_t)(kv * d * h) * 8);
    assert_int_equal(dq_model_read_linear(plain, 1, DQ_V_PROJ, &before), DQ_OK);
    assert_int_equal(dq_model_read_linear(m, 1, DQ_V_PROJ, &after), DQ_OK);
    assert_int_equal(dq_tensor_download(&before.weight, w), DQ_OK);
    assert_int_equal(dq_tensor_download(&after.weight, got), DQ_OK);
    assert_int_equal(dq_tensor_download(&before.bias, b), DQ_OK);
    assert_int_equal(dq_tensor_download(&after.bias, got_b), DQ_OK);
    for (int64_t g = 0; g < kv; g++) {
        const double *r2 = set->r2 + (kv + g) * d * d; /* layer 1 */
        for (int64_t i = 0; i < d; i++) {
            double bias = 0;
            for (int64_t k = 0; k < d; k++) bias += r2[k * d + i] * (double)b[g * d + k];
            assert_true(fabs(bias - (double)got_b[g * d + i]) < 1e-6);
            for (int64_t c = 0; c < h; c++) {
                double sum = 0;
                for (int64_t k = 0; k < d; k++) sum += r2[k * d + i] * (double)w[(g * d + k) * h + c];
                x[(g * d + i) * h + c] = sum;
            }
        }
    }
    for (int64_t r = 0; r < kv * d; r++)
        for (int64_t c = 0; c < h; c++) {
            double sum = 0;
            for (int64_t k = 0; k < h; k++) sum += x[r * h + k] * set->r1[k * h + c];
            assert_true(fabs(sum - (double)got[r * h + c]) < 1e-5);
        }
    dq_tensor_free(&before.weight);
    dq_tensor_free(&before.bias);
    dq_tensor_free(&after.weight);
    dq_tensor_free(&after.bias);
    free(w);
    free(got);
    free(x);
    dq_rotation_set_free(set);
    dq_model_release(m);
    dq_model_release(plain);
    dq_model_release(base);
    fixture_close(&f);
}

static void centering(void **state)
{
    (void)state;
    fixture f;
    float a[96 * 48], b[96 * 48];
    dq_tensor rows;
    dq_model *m;
    fixture_open(&f, "cpu", 1);
    dq_model *base = open_tiny(&f, "tied"), *plain = fused(base);
    assert_int_equal(dq_model_derive_fused(plain, true, &m), DQ_OK);
    assert_int_equal(dq_model_read_rows(plain, DQ_EMBED, 0, 96, &rows), DQ_OK);
    assert_int_equal(dq_tensor_download(&rows, a), DQ_OK);
    dq_tensor_free(&rows);
    assert_int_equal(dq_model_read_rows(m, DQ_EMBED, 0, 96, &rows), DQ_OK);
    assert_int_equal(dq_tensor_download(&rows, b), DQ_OK);
    dq_tensor_free(&rows);
    for (int r = 0; r < 96; r++) {
        double mean = 0;
        for (int c = 0; c < 48; c++) mean += (double)a[r * 48 + c] / 48;
        for (int c = 0; c < 48; c++) assert_true(fabs((double)a[r * 48 + c] - mean - (double)b[r * 48 + c]) < 1e-6);
    }
    /* the head is not centered, and fused once */
    assert_int_equal(dq_model_read_rows(plain, DQ_HEAD, 0, 96, &rows), DQ_OK);
    assert_int_equal(dq_tensor_download(&rows, a), DQ_OK);
    dq_tensor_free(&rows);
    assert_int_equal(dq_model_read_rows(m, DQ_HEAD, 0, 96, &rows), DQ_OK);
    assert_int_equal(dq_tensor_download(&rows, b), DQ_OK);
    dq_tensor_free(&rows);
    assert_memory_equal(a, b, sizeof a);
    dq_model_release(m);
    dq_model_release(plain);
    dq_model_release(base);
    fixture_close(&f);
}

static void wrong_order_is_refused(void **state)
{
    (void)state;
    fixture f;
    dq_model *m;
    fixture_open(&f, "ref", 1);
    dq_model *base = open_tiny(&f, "mha"), *plain = fused(base);
    dq_rotation_set *set = make_set(&f, plain, true, DQ_R2_NONE, false, false, DQ_ROTATE_RANDOM);
    assert_int_equal(dq_model_derive_rotated(base, set, &m), DQ_E_STATE);
    dq_error_reset();
    dq_model *once = rotated(plain, set);
    assert_int_equal(dq_model_derive_rotated(once, set, &m), DQ_E_STATE);
    dq_error_reset();
    assert_int_equal(dq_model_derive_fused(once, true, &m), DQ_E_STATE);
    dq_error_reset();
    dq_model *other = open_tiny(&f, "gqa"), *other_fused = fused(other);
    assert_int_equal(dq_model_derive_rotated(other_fused, set, &m), DQ_E_MISMATCH);
    assert_non_null(strstr(dq_error_text(), "hidden 48"));
    dq_error_reset();
    dq_rotation_set_free(set);
    dq_model_release(other_fused);
    dq_model_release(other);
    dq_model_release(once);
    dq_model_release(plain);
    dq_model_release(base);
    fixture_close(&f);
}

/* A row has the same bits whether it is read alone or with others, and whatever the number of threads. */
static void rows_do_not_depend_on_their_neighbours(void **state)
{
    (void)state;
    float all[96 * 48], one[48], first_run[96 * 48];
    for (int threads = 1; threads <= 2; threads++) {
        fixture f;
        dq_tensor t;
        fixture_open(&f, "cpu", threads);
        dq_model *base = open_tiny(&f, "mha"), *plain = fused(base);
        dq_rotation_set *set = make_set(&f, plain, true, DQ_R2_NONE, false, false, DQ_ROTATE_RANDOM);
        dq_model *m = rotated(plain, set);
        assert_int_equal(dq_model_read_rows(m, DQ_HEAD, 0, 96, &t), DQ_OK);
        assert_int_equal(dq_tensor_download(&t, all), DQ_OK);
        dq_tensor_free(&t);
        for (int r = 0; r < 96; r += 19) {
            assert_int_equal(dq_model_read_rows(m, DQ_HEAD, r, 1, &t), DQ_OK);
            assert_int_equal(dq_tensor_download(&t, one), DQ_OK);
            dq_tensor_free(&t);
            assert_memory_equal(one, all + r * 48, sizeof one);
        }
        if (threads == 1) memcpy(first_run, all, sizeof all);
        assert_memory_equal(first_run, all, sizeof all);
        dq_rotation_set_free(set);
        dq_model_release(m);
        dq_model_release(plain);
        dq_model_release(base);
        fixture_close(&f);
    }
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(fusing_keeps_logits),
        cmocka_unit_test(every_rotation_keeps_logits),
        cmocka_unit_test(a_broken_rotation_changes_logits),
        cmocka_unit_test(v_proj_written_out),
        cmocka_unit_test(centering),
        cmocka_unit_test(wrong_order_is_refused),
        cmocka_unit_test(rows_do_not_depend_on_their_neighbours),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
