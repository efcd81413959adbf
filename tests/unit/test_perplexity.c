/* eval: the protocol of perplexity. SPDX-License-Identifier: Apache-2.0 */
#include <math.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <cmocka.h>

#include "base/status.h"
#include "eval/perplexity.h"
#include "io/json.h"
#include "models.h"

static dq_perplexity run_ok(dq_model *m, const int32_t *ids, int64_t count, int64_t seqlen, int64_t limit)
{
    dq_perplexity p;
    dq_status status = dq_perplexity_run(m, ids, count, seqlen, limit, DQ_MATH_F32, NULL, &p);
    if (status != DQ_OK) print_message("%s\n", dq_error_text());
    assert_int_equal(status, DQ_OK);
    return p;
}

static bool no_head(const char *name, int64_t rows, int64_t cols, float *values, void *arg)
{
    (void)arg;
    if (strcmp(name, "lm_head.weight") == 0) memset(values, 0, (size_t)(rows * cols) * 4);
    return true;
}

/* All tokens equally likely: the perplexity is the size of the vocabulary. */
static void uniform_model(void **state)
{
    (void)state;
    fixture f;
    dq_model *m;
    int32_t ids[50];
    fixture_open(&f, "cpu", 2);
    for (int i = 0; i < 50; i++) ids[i] = i * 7 % 96;
    assert_int_equal(changed_model(&f, "mha", no_head, NULL, &m), DQ_OK);
    dq_perplexity p = run_ok(m, ids, 50, 16, 0);
    assert_true(fabs(p.ppl - 96.0) < 1e-9);
    assert_int_equal(p.windows, 3);
    assert_int_equal(p.tokens, 48);
    dq_free(p.window_nll);
    dq_model_release(m);
    fixture_close(&f);
}

/* One window is the loss that transformers gives; two windows do not see each other; the tail is dropped. */
static void windows_and_limit(void **state)
{
    (void)state;
    fixture f;
    expected e;
    int32_t ids[64];
    fixture_open(&f, "cpu", 2);
    read_expected(&f, "gqa", &e);
    dq_model *m = open_tiny(&f, "gqa");
    dq_perplexity p = run_ok(m, e.ids, e.tokens, e.tokens, 0);
    assert_int_equal(p.windows, 1);
    assert_true(fabs(p.nll - e.nll) < 1e-5);
    assert_true(fabs(p.ppl - exp(p.nll)) < 1e-12 * p.ppl);
    assert_true(p.window_nll[0] == p.nll);
    double first = p.nll;
    dq_free(p.window_nll);

    for (int i = 0; i < 24; i++) ids[i] = e.ids[23 - i];
    memcpy(ids + 24, e.ids, 24 * sizeof *ids);
    for (int i = 48; i < 64; i++) ids[i] = 1;
    p = run_ok(m, ids, 64, 24, 0);
    assert_int_equal(p.windows, 2);
    assert_true(p.window_nll[1] == first);
    assert_true(fabs(p.nll - (p.window_nll[0] + p.window_nll[1]) / 2) < 1e-12);
    double reversed = p.window_nll[0];
    dq_free(p.window_nll);
    p = run_ok(m, ids, 64, 24, 1);
    assert_int_equal(p.windows, 1);
    assert_true(p.nll == reversed);
    dq_free(p.window_nll);
    dq_model_release(m);
    fixture_close(&f);
}

static void threads_give_the_same_bits(void **state)
{
    (void)state;
    double nll[3];
    for (int threads = 1; threads <= 3; threads++) {
        fixture f;
        expected e;
        fixture_open(&f, "cpu", threads);
        read_expected(&f, "tied", &e);
        dq_model *m = open_tiny(&f, "tied");
        dq_perplexity p = run_ok(m, e.ids, e.tokens, 12, 0);
        nll[threads - 1] = p.nll;
        dq_free(p.window_nll);
        dq_model_release(m);
        fixture_close(&f);
    }
    assert_true(nll[0] == nll[1] && nll[0] == nll[2]);
}

/* Finite weights whose products overflow fp32 in the residual stream. */
static bool huge_down(const char *name, int64_t rows, int64_t cols, float *values, void *arg)
{
    (void)arg;
    if (strcmp(name, "model.layers.1.mlp.down_proj.weight") == 0)
        for (int64_t i = 0; i < rows * cols; i++) values[i] = 3e38f;
    return true;
}

static int32_t stop_at_once(void *user, const dq_progress_event *event)
{
    assert_true(event->index <= event->total);
    ++*(int *)user;
    return 1;
}

static void what_is_refused(void **state)
{
    (void)state;
    fixture f;
    expected e;
    dq_model *m;
    dq_perplexity p;
    fixture_open(&f, "cpu", 1);
    read_expected(&f, "mha", &e);
    dq_model *good = open_tiny(&f, "mha");
    assert_int_equal(dq_perplexity_run(good, e.ids, 10, 11, 0, DQ_MATH_F32, NULL, &p), DQ_E_TEXT);
    dq_error_reset();
    assert_int_equal(dq_perplexity_run(good, e.ids, 10, 1, 0, DQ_MATH_F32, NULL, &p), DQ_E_INVALID);
    dq_error_reset();
    assert_int_equal(dq_perplexity_run(good, e.ids, 10, 5, -1, DQ_MATH_F32, NULL, &p), DQ_E_INVALID);
    dq_error_reset();
    int calls = 0;
    dq_progress progress = {.fn = stop_at_once, .user = &calls};
    assert_int_equal(dq_perplexity_run(good, e.ids, 24, 12, 0, DQ_MATH_F32, &progress, &p), DQ_E_CANCELLED);
    assert_int_equal(calls, 1);
    dq_error_reset();
    dq_model_release(good);

    assert_int_equal(changed_model(&f, "mha", huge_down, NULL, &m), DQ_OK);
    assert_int_equal(dq_perplexity_run(m, e.ids, 24, 12, 0, DQ_MATH_F32, NULL, &p), DQ_E_NONFINITE);
    assert_non_null(strstr(dq_error_text(), "window 0 of 2"));
    dq_error_reset();
    dq_model_release(m);
    fixture_close(&f);
}

/* The published figures of a small trained model, where the shared data is. */
static void stories(void **state)
{
    (void)state;
    fixture f;
    dq_model *m;
    json_t *o;
    int32_t ids[512];
    if (!open_stories(&f, &m, &o)) return;
    const json_t *logits = json_object_get(o, "logits"), *given = json_object_get(logits, "ids");
    const json_t *last = json_object_get(logits, "last_position");
    size_t n = json_array_size(given);
    assert_true(n > 4 && n <= 512 && json_array_size(last) == 512);
    for (size_t i = 0; i < n; i++) ids[i] = (int32_t)json_integer_value(json_array_get(given, i));
    float *out = malloc(n * 512 * sizeof *out);
    assert_int_equal(dq_model_forward_logits(m, ids, (int64_t)n, DQ_MATH_F32, out), DQ_OK);
    /* the loss of one window from its logits, and from the evaluator */
    double nll = 0.0;
    for (size_t i = 0; i + 1 < n; i++) {
        double sum = 0.0;
        for (size_t v = 0; v < 512; v++) sum += exp((double)out[i * 512 + v]);
        nll += log(sum) - (double)out[i * 512 + (size_t)ids[i + 1]];
    }
    for (size_t v = 0; v < 512; v++)
        assert_true(fabs((double)out[(n - 1) * 512 + v] - json_real_value(json_array_get(last, v))) < 1e-4);
    dq_perplexity p = run_ok(m, ids, (int64_t)n, (int64_t)n, 0);
    assert_true(fabs(p.nll - nll / (double)(n - 1)) < 1e-5);
    dq_free(p.window_nll);
    free(out);
    json_decref(o);
    dq_model_release(m);
    fixture_close(&f);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(uniform_model),
        cmocka_unit_test(windows_and_limit),
        cmocka_unit_test(threads_give_the_same_bits),
        cmocka_unit_test(what_is_refused),
        cmocka_unit_test(stories),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
