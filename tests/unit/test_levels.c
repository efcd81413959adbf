/* Level tables, the fit of non-uniform levels, percentiles and Q-Norm against goldens of another program (make_levels.py).
 * SPDX-License-Identifier: Apache-2.0 */
#include <math.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <cmocka.h>

#include "fixture.h"
#include "io/formats.h"
#include "ok.h"
#include "quant/levels.h"

enum { N = 500 };
static const char *const names[] = {"normal", "two", "skew"};

static const void *raw(dq_source *s, const char *name, void *out, size_t bytes)
{
    int64_t t = dq_source_find(s, name);
    assert_true(t >= 0 && s->tensors[t].bytes == bytes);
    OK(dq_source_read_raw(s, t, 0, bytes, out));
    return out;
}

static dq_source *open_golden(fixture *f)
{
    dq_source *s = NULL;
    fixture_open(f, "ref", 1);
    OK(dq_safetensors_open(&f->env, "tests/data/quant/levels.safetensors", &s));
    return s;
}

static dq_histogram *histogram_of(dq_source *s, const char *name)
{
    float u[N], w[N];
    char key[64];
    dq_histogram *h = calloc(1, sizeof *h);
    assert_non_null(h);
    snprintf(key, sizeof key, "%s.u", name);
    raw(s, key, u, sizeof u);
    snprintf(key, sizeof key, "%s.w", name);
    raw(s, key, w, sizeof w);
    for (int i = 0; i < N; i++) dq_histogram_add(h, u[i], (double)w[i]);
    return h;
}

/* The error of the exact optimum is reached; where the optimum is not a close call, so are its centres. */
static void fit_finds_the_optimum(void **state)
{
    (void)state;
    fixture f;
    dq_source *s = open_golden(&f);
    int close = 0;
    for (int i = 0; i < 3; i++) {
        dq_histogram *h = histogram_of(s, names[i]);
        for (int64_t k = 4; k <= 16; k *= 2) {
            char key[64];
            double wanted[16], least;
            float got[16], uniform[16];
            snprintf(key, sizeof key, "%s.%d", names[i], (int)k);
            raw(s, key, wanted, (size_t)k * 8);
            snprintf(key, sizeof key, "%s.%d.error", names[i], (int)k);
            raw(s, key, &least, sizeof least);
            OK(dq_levels_fit(&f.env, h, k, got));
            double error = dq_levels_error(h, k, got), worst = 0;
            assert_true(error < 1.01 * least && error > 0.99 * least);
            dq_levels_uniform(k, uniform);
            assert_true(error < 0.7 * dq_levels_error(h, k, uniform));
            for (int64_t j = 0; j < k; j++) worst = fmax(worst, fabs((double)got[j] - wanted[j]));
            for (int64_t j = 1; j < k; j++) assert_true(got[j] > got[j - 1]);
            close += worst < 1e-4;
        }
        free(h);
    }
    assert_true(close >= 6); /* of 9 */
    dq_source_free(s);
    fixture_close(&f);
}

static void few_numbers(void **state)
{
    (void)state;
    fixture f;
    fixture_open(&f, "ref", 1);
    dq_histogram *h = calloc(1, sizeof *h);
    float got[8], uniform[8];
    OK(dq_levels_fit(&f.env, h, 8, got));
    dq_levels_uniform(8, uniform);
    assert_memory_equal(got, uniform, sizeof got);
    dq_histogram_add(h, 0.5f, 3);
    dq_histogram_add(h, -1.0f, 2);
    dq_histogram_add(h, 1.0f, 1);
    dq_histogram_add(h, 1.0001f, 1e9); /* outside */
    dq_histogram_add(h, NAN, 1e9);
    OK(dq_levels_fit(&f.env, h, 4, got)); /* three are enough; the fourth halves the widest gap */
    assert_true(got[0] == -1.0f && got[1] == -0.25f && got[2] == 0.5f && got[3] == 1.0f);
    OK(dq_levels_fit(&f.env, h, 8, got));
    for (int i = 1; i < 8; i++) assert_true(got[i] > got[i - 1]);
    assert_true(dq_levels_error(h, 8, got) < 1e-12);
    /* numbers closer than a coarse bin, then all in one bin */
    memset(h, 0, sizeof *h);
    for (int i = 0; i < 6; i++) dq_histogram_add(h, 0.25f + (float)i * 1e-4f, 1);
    OK(dq_levels_fit(&f.env, h, 4, got));
    assert_true(dq_levels_error(h, 4, got) < 6e-8);
    memset(h, 0, sizeof *h);
    dq_histogram_add(h, 0, 1);
    OK(dq_levels_fit(&f.env, h, 8, got));
    assert_true(dq_levels_error(h, 8, got) == 0);
    for (int i = 1; i < 8; i++) assert_true(got[i] > got[i - 1] && got[i] <= 1);
    /* beside one number that outweighs the others by more than a sum of doubles can tell, these keep a level nearby */
    memset(h, 0, sizeof *h);
    dq_histogram_add(h, -0.5f, 1);
    for (int i = 0; i < 20; i++) dq_histogram_add(h, (float)i / 20, 1e-20);
    OK(dq_levels_fit(&f.env, h, 8, got));
    float heavy = 2;
    for (int i = 0; i < 8; i++) heavy = fminf(heavy, fabsf(got[i] + 0.5f));
    assert_true(heavy == 0);
    for (int i = 1; i < 8; i++) assert_true(got[i] > got[i - 1]);
    for (int i = 0; i < 20; i++) {
        float nearest = 2;
        for (int k = 0; k < 8; k++) nearest = fminf(nearest, fabsf(got[k] - (float)i / 20));
        assert_true(nearest < 0.4f);
    }
    memset(h, 0, sizeof *h);
    float many[256];
    for (int i = 0; i < 5000; i++) dq_histogram_add(h, (float)sin(i * 0.7), 1 + i % 3);
    OK(dq_levels_fit(&f.env, h, 256, many));
    for (int i = 1; i < 256; i++) assert_true(many[i] > many[i - 1]);
    free(h);
    fixture_close(&f);
}

static void tables(void **state)
{
    (void)state;
    fixture f;
    dq_source *s = open_golden(&f);
    for (int bits = 2; bits <= 5; bits++) {
        char key[32];
        double wanted[32];
        float got[32];
        int n = 1 << bits;
        snprintf(key, sizeof key, "normalfloat.%d", bits);
        raw(s, key, wanted, (size_t)n * 8);
        dq_levels_normal(n, got);
        for (int i = 0; i < n; i++) assert_true(fabs((double)got[i] - wanted[i]) < 1e-7);
        dq_levels_uniform(n, got);
        assert_true(got[0] == -1 && got[n - 1] == 1 && fabsf(got[1] - got[0] - 2.0f / (float)(n - 1)) < 1e-6f);
    }
    dq_source_free(s);
    fixture_close(&f);
}

static void percentiles(void **state)
{
    (void)state;
    static const char *const shares[] = {"0.0", "0.01", "0.1"};
    fixture f;
    dq_source *s = open_golden(&f);
    for (int i = 0; i < 3; i++)
        for (int k = 0; k < 3; k++) {
            float u[N], lo, hi;
            double wanted[2];
            char key[64];
            snprintf(key, sizeof key, "%s.u", names[i]);
            raw(s, key, u, sizeof u);
            snprintf(key, sizeof key, "%s.percentiles.%s", names[i], shares[k]);
            raw(s, key, wanted, sizeof wanted);
            dq_percentiles(u, N, atof(shares[k]), &lo, &hi);
            assert_true(lo == (float)wanted[0] && hi == (float)wanted[1]);
        }
    /* selection against sorting, on data that is sorted, constant, or of few values */
    for (int kind = 0; kind < 4; kind++)
        for (int64_t rank = 0; rank < 97; rank++) {
            float x[97];
            for (int i = 0; i < 97; i++)
                x[i] = kind == 0 ? (float)i : kind == 1 ? (float)(96 - i) : kind == 2 ? 3 : (float)(i * 7 % 5);
            float wanted = kind < 2 ? (float)rank : kind == 2 ? 3 : -1;
            for (int v = 0, below = 0; wanted < 0 && v < 5; v++) {
                for (int i = 0; i < 97; i++) below += i * 7 % 5 == v;
                if (rank < below) wanted = (float)v;
            }
            assert_true(dq_select(x, 97, rank) == wanted);
        }
    float one = 4, lo, hi;
    dq_percentiles(&one, 1, 0.5, &lo, &hi);
    assert_true(lo == 4 && hi == 4);
    dq_source_free(s);
    fixture_close(&f);
}

static void norms(void **state)
{
    (void)state;
    fixture f;
    dq_source *s = open_golden(&f);
    for (int i = 0; i < 3; i++) {
        dq_histogram *h = histogram_of(s, names[i]);
        for (int k = 4; k <= 16; k *= 2) {
            char key[64];
            double wanted[2], levels[16];
            float table[16], norm[2];
            snprintf(key, sizeof key, "%s.%d", names[i], k);
            raw(s, key, levels, (size_t)k * 8);
            snprintf(key, sizeof key, "%s.%d.norm", names[i], k);
            raw(s, key, wanted, sizeof wanted);
            for (int j = 0; j < k; j++) table[j] = (float)levels[j];
            dq_levels_norm(h, k, table, norm);
            assert_true(fabs((double)norm[0] - wanted[0]) < 1e-4 && fabs((double)norm[1] - wanted[1]) < 1e-4);
        }
        free(h);
    }
    dq_histogram *h = calloc(1, sizeof *h);
    float table[2] = {-1, 1}, norm[2];
    dq_levels_norm(h, 2, table, norm);
    assert_true(norm[0] == 1 && norm[1] == 0);
    dq_histogram_add(h, 0.9f, 1); /* one number does not vary */
    dq_levels_norm(h, 2, table, norm);
    assert_true(norm[0] == 1 && norm[1] == 0);
    free(h);
    dq_source_free(s);
    fixture_close(&f);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(fit_finds_the_optimum), cmocka_unit_test(few_numbers), cmocka_unit_test(tables),
        cmocka_unit_test(percentiles),           cmocka_unit_test(norms),
    };
    return cmocka_run_group_tests_name("levels", tests, NULL, NULL);
}
