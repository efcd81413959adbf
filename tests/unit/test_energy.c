/* quant: what is read from the lower triangle of a Hessian, and how often a linear's solution makes the host wait.
 * SPDX-License-Identifier: Apache-2.0 */
#include <math.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stdlib.h>
#include <string.h>
#include <cmocka.h>

#include "base/status.h"
#include "models.h"
#include "quant/parts.h"

#define OK(call)                                                                                                       \
    do {                                                                                                               \
        if ((call) != DQ_OK) fail_msg("%s: %s", #call, dq_error_text());                                               \
    } while (0)

enum { N = 600, ROWS = 17 }; /* two blocks of 256 and a rest */

static int waits;
static dq_backend plain;

static dq_status count_dot(void *dev, const dq_view *x, const dq_view *y, double *out)
{
    waits++;
    return plain.dot(dev, x, y, out);
}
static dq_status count_download(void *dev, void *dst, void *mem, uint64_t offset, uint64_t bytes)
{
    waits++;
    return plain.download(dev, dst, mem, offset, bytes);
}
static dq_status count_find(void *dev, const dq_view *x, int64_t *index)
{
    waits++;
    return plain.find_nonfinite(dev, x, index);
}

static void counting_open(fixture *f)
{
    plain = *dq_builtin_backend("cpu");
    dq_backend table = plain;
    table.dot = count_dot;
    table.download = count_download;
    table.find_nonfinite = count_find;
    OK(dq_env_init(&f->env, NULL, 2));
    OK(dq_device_open_table(&f->env, &table, "", DQ_POLICY_FORBID, &f->dev));
    waits = 0;
}

static float draw(uint32_t *state)
{
    *state = *state * 1664525u + 1013904223u;
    return (float)(*state >> 8) / 8388608.0f - 1.0f;
}

/* Integers, whose products and sums are exact. */
static float *integers(int64_t count, uint32_t seed)
{
    float *x = malloc((size_t)count * sizeof *x);
    assert_non_null(x);
    for (int64_t i = 0; i < count; i++) x[i] = rintf(3 * draw(&seed));
    return x;
}

static void mirrored(void **state)
{
    (void)state;
    static const int64_t sizes[] = {1, 5, 256, 257, N};
    fixture f;
    counting_open(&f);
    for (size_t k = 0; k < sizeof sizes / sizeof *sizes; k++) {
        int64_t n = sizes[k];
        uint32_t seed = 9;
        float *h = malloc((size_t)(n * n) * sizeof *h), *got = malloc((size_t)(n * n) * sizeof *got);
        dq_tensor t;
        for (int64_t i = 0; i < n * n; i++) h[i] = draw(&seed) * 1e6f; /* anything above the diagonal */
        OK(dq_tensor_from_host(f.dev, DQ_F32, n, n, h, &t));
        OK(dq_hessian_mirror(&t));
        assert_int_equal(waits, 0);
        OK(dq_tensor_download(&t, got));
        waits = 0;
        for (int64_t i = 0; i < n; i++)
            for (int64_t j = 0; j < n; j++) assert_true(got[i * n + j] == h[i >= j ? i * n + j : j * n + i]);
        dq_tensor_free(&t);
        free(h);
        free(got);
    }
    fixture_close(&f);
}

static void energy(void **state)
{
    (void)state;
    fixture f;
    counting_open(&f);
    float *d = integers(ROWS * N, 3), *h = integers(N * N, 4);
    dq_tensor dt, ht, scratch;
    double want = 0, got;
    for (int r = 0; r < ROWS; r++)
        for (int i = 0; i < N; i++)
            for (int j = 0; j < N; j++)
                want += (double)d[r * N + i] * (double)d[r * N + j] * (double)h[i >= j ? i * N + j : j * N + i];
    OK(dq_tensor_from_host(f.dev, DQ_F32, ROWS, N, d, &dt));
    OK(dq_tensor_from_host(f.dev, DQ_F32, N, N, h, &ht));
    OK(dq_tensor_alloc(f.dev, DQ_F32, ROWS, N, &scratch));
    OK(dq_hessian_energy(&dt, &ht, DQ_MATH_F32, &scratch, &got));
    assert_int_equal(waits, 1);
    assert_true(got == want);
    dq_tensor_free(&dt);
    dq_tensor_free(&ht);
    dq_tensor_free(&scratch);
    free(d);
    free(h);
    fixture_close(&f);
}

/* However many columns there are. */
static int waits_of_gptq(int64_t n)
{
    fixture f;
    dq_weight_spec spec = plain_scheme().w;
    dq_gptq_plan plan = {0};
    dq_codes codes;
    dq_tensor w, h;
    uint32_t seed = 5;
    double error;
    counting_open(&f);
    spec.method = DQ_WEIGHT_GPTQ;
    spec.bits = 4;
    spec.group = 64;
    spec.percdamp = 0.01;
    float *host = malloc((size_t)(n * n) * sizeof *host);
    for (int64_t i = 0; i < n * n; i++) host[i] = i / n == i % n ? (float)n : draw(&seed);
    OK(dq_tensor_from_host(f.dev, DQ_F32, n, n, host, &h));
    OK(dq_tensor_from_host(f.dev, DQ_F32, ROWS, n, host, &w));
    OK(dq_gptq_plan_make(&spec, &h, &plan));
    waits = 0;
    OK(dq_gptq_solve(&spec, &plan, &w, &codes, &error));
    int found = waits;
    assert_true(error > 1e-5 && error < 0.1);
    dq_codes_free(&codes);
    dq_gptq_plan_free(&plan);
    dq_tensor_free(&w);
    dq_tensor_free(&h);
    free(host);
    fixture_close(&f);
    return found;
}

static void a_linear_waits_thrice(void **state)
{
    (void)state;
    assert_int_equal(waits_of_gptq(128), 3);
    assert_int_equal(waits_of_gptq(N / 64 * 64), 3);
}

int main(void)
{
    const struct CMUnitTest tests[] = {cmocka_unit_test(mirrored), cmocka_unit_test(energy),
                                       cmocka_unit_test(a_linear_waits_thrice)};
    return cmocka_run_group_tests(tests, NULL, NULL);
}
