/* Searched clip ratios: the search against brute force, and through the public header what a job does with them: reports,
 * saves, resumes. SPDX-License-Identifier: Apache-2.0 */
#include <math.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <cmocka.h>

#include "base/status.h"
#include "host_model.h"
#include "io/json.h"
#include "models.h"
#include "quant/clip.h"
#include "scratch.h"

#define AUTO                                                                                                           \
    "w_bits=4 w_rtn=true a_bits=4 a_asym=true a_clip_ratio=auto k_bits=4 k_asym=true k_groupsize=0 "                   \
    "k_clip_ratio=auto v_bits=4 v_clip_ratio=0.95 nsamples=6 seqlen=32 limit=4"

static float gaussian(uint32_t *state)
{
    float sum = 0;
    for (int i = 0; i < 12; i++) {
        *state = *state * 1664525u + 1013904223u;
        sum += (float)(*state >> 8) * 0x1p-24f;
    }
    return sum - 6;
}

/* ---- the search ---- */

enum { ROWS = 19, N = 24, GROUPS = 2 };

/* The definition of backend.h for one range per row, in fp32. */
static void fake_quant_row(const float *x, int bits, bool symmetric, float clip, float *y)
{
    float low = 0, high = 0;
    for (int i = 0; i < N * GROUPS; i++) {
        low = fminf(low, x[i]);
        high = fmaxf(high, x[i]);
    }
    low *= clip;
    high *= clip;
    float most = symmetric ? (float)((1 << (bits - 1)) - 1) : (float)((1 << bits) - 1);
    float scale = symmetric ? fmaxf(fabsf(low), fabsf(high)) / most : (high - low) / most;
    float zero = symmetric ? 0 : rintf(-low / scale);
    for (int i = 0; i < N * GROUPS; i++) {
        float code = rintf(x[i] / scale) + zero;
        code = symmetric ? fminf(fmaxf(code, -most - 1), most) : fminf(fmaxf(code, 0), most);
        y[i] = scale * (code - zero);
    }
}

static double brute_error(const float *x, const float *gram, int bits, bool symmetric, double clip)
{
    double sum = 0;
    float y[N * GROUPS];
    for (int r = 0; r < ROWS; r++) {
        fake_quant_row(x + r * N * GROUPS, bits, symmetric, (float)clip, y);
        for (int i = 0; i < N * GROUPS; i++) y[i] -= x[r * N * GROUPS + i];
        for (int g = 0; g < GROUPS; g++)
            for (int i = 0; i < N; i++)
                for (int k = 0; k < N; k++)
                    sum += (double)y[g * N + i] * (double)y[g * N + k] *
                           (gram ? (double)gram[(g * N + i) * N + k] : (double)(i == k));
    }
    return sum;
}

/* w^T w of some random rows, so that it is a Gram matrix. */
static void make_gram(float *gram, uint32_t *seed)
{
    memset(gram, 0, sizeof(float) * GROUPS * N * N);
    for (int g = 0; g < GROUPS; g++)
        for (int row = 0; row < 7; row++) {
            float w[N];
            for (int i = 0; i < N; i++) w[i] = gaussian(seed) * (float)(1 + i % 5);
            for (int i = 0; i < N * N; i++) gram[g * N * N + i] += w[i / N] * w[i % N];
        }
}

static void one_search(const fixture *f, int bits, bool symmetric, bool weighted, uint32_t seed)
{
    float x[ROWS * N * GROUPS], gram[GROUPS * N * N];
    double errors[DQ_CLIP_CANDIDATES], best = 0, least = INFINITY, wanted = 0;
    dq_tensor tx, tg = {0};
    dq_act_spec spec = {.bits = bits, .group = -1, .symmetric = symmetric, .clip = 1.0};
    for (int i = 0; i < ROWS * N * GROUPS; i++) x[i] = gaussian(&seed);
    make_gram(gram, &seed);
    OK(dq_tensor_from_host(f->dev, DQ_F32, ROWS, N * GROUPS, x, &tx));
    if (weighted) OK(dq_tensor_from_host(f->dev, DQ_F32, GROUPS * N, N, gram, &tg));
    OK(dq_clip_search(&spec, "rows", &tx, &tg, DQ_MATH_F32, errors, &best));
    for (int i = 0; i < DQ_CLIP_CANDIDATES; i++) {
        double error = brute_error(x, weighted ? gram : NULL, bits, symmetric, dq_clip_candidate(i));
        assert_true(fabs(errors[i] / error - 1) < 1e-4);
        if (error < least) {
            least = error;
            wanted = dq_clip_candidate(i);
        }
    }
    assert_true(best == wanted);
    assert_true(least < errors[0]); /* not simply the first */
    dq_tensor_free(&tx);
    dq_tensor_free(&tg);
}

static void finds_the_optimum(void **state)
{
    (void)state;
    static const char *const devices[] = {"cpu", "ref"};
    for (int i = 0; i < 2; i++) {
        fixture f;
        fixture_open(&f, devices[i], 2);
        for (uint32_t k = 0; k < 8; k++) one_search(&f, 2 + (int)(k & 1), k & 2, k & 4, 11 + k);
        fixture_close(&f);
    }
}

static void names_what_is_not_finite(void **state)
{
    (void)state;
    fixture f;
    float x[2 * N] = {0};
    dq_tensor t, none = {0};
    dq_act_spec spec = {.bits = 4, .group = -1, .clip = 1.0};
    double best = 0;
    fixture_open(&f, "cpu", 1);
    x[N + 3] = NAN;
    OK(dq_tensor_from_host(f.dev, DQ_F32, 2, N, x, &t));
    assert_int_equal(dq_clip_search(&spec, "keys", &t, &none, DQ_MATH_F32, NULL, &best), DQ_E_NONFINITE);
    assert_non_null(strstr(dq_error_text(), "keys"));
    dq_error_reset();
    dq_tensor_free(&t);
    fixture_close(&f);
}

/* ---- jobs ---- */

/* Runs the job; its clip ratios as text (free), and the result's perplexity. */
static char *finish_job(host_bench *b, dq_quantizer *q, double *ppl)
{
    const char *report = NULL;
    dq_model *model = NULL;
    json_t *o = NULL;
    OK(dq_quantizer_run(q, NULL, NULL, NULL));
    OK(dq_quantizer_report(q, &report));
    OK(dq_json_parse(report, strlen(report), NULL, &o));
    const json_t *clips = json_object_get(json_object_get(o, "scheme"), "clip_ratios");
    assert_true(json_is_object(clips));
    char *text = json_dumps(clips, 0);
    json_decref(o);
    OK(dq_quantizer_take_model(q, &model));
    dq_quantizer_free(q);
    *ppl = host_perplexity(model, b->config, b->set);
    dq_model_free(model);
    return text;
}

/* Places that were asked for, a ratio per layer, and not all alike. */
static void check_ratios(const char *text)
{
    json_t *o = json_loads(text, 0, NULL), *list, *ratio;
    const char *key;
    size_t i;
    double low = 1, high = 0;
    assert_int_equal(json_object_size(o), 5);
    assert_null(json_object_get(o, "values"));
    json_object_foreach(o, key, list)
    {
        assert_int_equal(json_array_size(list), 4);
        json_array_foreach(list, i, ratio)
        {
            low = fmin(low, json_number_value(ratio));
            high = fmax(high, json_number_value(ratio));
        }
    }
    assert_true(low >= 0.5 && high <= 1 && low < high);
    json_decref(o);
}

/* The same ratios for any number of threads; and other numbers than with the fixed ratio. */
static void same_for_any_threads(void **state)
{
    (void)state;
    char *first = NULL;
    double ppl[4];
    for (int threads = 1; threads <= 3; threads++) {
        host_bench b = host_bench_open(AUTO, threads, true);
        char *text = finish_job(&b, host_calibrated_quantizer(&b), &ppl[threads]);
        check_ratios(text);
        if (!first) first = strdup(text);
        assert_string_equal(text, first);
        assert_true(ppl[threads] == ppl[1]);
        free(text);
        host_bench_close(&b);
    }
    free(first);
}

/* Saved, opened again, saved from memory: the same bits; and a reader is told that the manifest is a newer one. */
static void saved_models_keep_them(void **state)
{
    (void)state;
    char dir[400], path[440];
    double ppl, saved;
    host_bench b = host_bench_open(AUTO, 2, true);
    snprintf(dir, sizeof dir, "%s/saved", scratch_dir());
    snprintf(path, sizeof path, "%s/dartquant.json", dir);
    char *clips = finish_job(&b, host_calibrated_quantizer(&b), &ppl);
    OK(dq_config_set(b.config, "save_qmodel_path", dir));
    char *again = finish_job(&b, host_calibrated_quantizer(&b), &saved);
    assert_string_equal(clips, again);
    assert_true(saved == ppl);
    dq_model *model = NULL;
    OK(dq_model_open(b.ctx, dir, &model));
    assert_true(host_perplexity(model, b.config, b.set) == ppl);
    dq_model_free(model);
    json_error_t error;
    json_t *o = json_load_file(path, 0, &error);
    assert_int_equal(json_integer_value(json_object_get(o, "version")), 2);
    json_t *list = json_object_get(json_object_get(json_object_get(o, "quantization"), "clip_ratios"), "o");
    json_array_set_new(list, 1, json_real(1.5));
    assert_int_equal(json_dump_file(o, path, 0), 0);
    json_decref(o);
    assert_int_equal(dq_model_open(b.ctx, dir, &model), DQ_E_FORMAT);
    assert_non_null(strstr(dq_error_text(), "clip_ratios"));
    free(clips);
    free(again);
    host_bench_close(&b);
}

/* Stopped after every number of steps of the search and of the job itself. */
static void resumes_to_the_same_bits(void **state)
{
    (void)state;
    char dir[400];
    double wanted, ppl;
    host_bench a = host_bench_open(AUTO, 2, true);
    char *clips = finish_job(&a, host_calibrated_quantizer(&a), &wanted);
    host_bench_close(&a);
    for (int stop = 0; stop < 8; stop++) { /* 4 layers of search, 4 of weights */
        snprintf(dir, sizeof dir, "%s/stop%d", scratch_dir(), stop);
        host_bench b = host_bench_open(AUTO, 1, true);
        dq_quantizer *q = host_calibrated_quantizer(&b);
        host_checkpoint_steps(q, stop, dir);
        dq_quantizer_free(q);
        host_bench_close(&b);
        b = host_bench_open(AUTO, 3, true);
        q = host_calibrated_quantizer(&b);
        OK(dq_quantizer_restore(q, dir));
        char *again = finish_job(&b, q, &ppl);
        assert_string_equal(again, clips);
        assert_true(ppl == wanted);
        free(again);
        host_bench_close(&b);
    }
    free(clips);
}

/* Only activations change: a model whose weights stay as they are, or are quantized already. */
static void without_weights(void **state)
{
    (void)state;
    double fixed, searched;
    host_bench b = host_bench_open("a_bits=3 a_asym=true seqlen=32 limit=4 nsamples=6", 2, true);
    dq_quantizer *q = NULL;
    dq_model *model = NULL;
    OK(dq_quantizer_new(b.model, b.config, &q));
    OK(dq_quantizer_run(q, NULL, NULL, NULL));
    OK(dq_quantizer_take_model(q, &model));
    fixed = host_perplexity(model, b.config, b.set);
    dq_quantizer_free(q);
    OK(dq_config_set(b.config, "a_clip_ratio", "Auto"));
    OK(dq_quantizer_new(b.model, b.config, &q));
    assert_int_equal(dq_quantizer_run(q, NULL, NULL, NULL), DQ_E_STATE);
    assert_non_null(strstr(dq_error_text(), "clip ratios"));
    OK(dq_quantizer_bind(q, b.set)); /* still possible */
    free(finish_job(&b, q, &searched));
    assert_true(searched != fixed);
    /* ratios of its own on a model that has some */
    OK(dq_config_set(b.config, "a_clip_ratio", "1"));
    OK(dq_quantizer_new(model, b.config, &q));
    OK(dq_quantizer_run(q, NULL, NULL, NULL));
    dq_model *back = NULL;
    OK(dq_quantizer_take_model(q, &back));
    assert_true(host_perplexity(back, b.config, b.set) == fixed);
    dq_quantizer_free(q);
    dq_model_free(back);
    dq_model_free(model);
    double value = 1;
    OK(dq_config_set(b.config, "k_clip_ratio", "auto"));
    OK(dq_config_get_float(b.config, "k_clip_ratio", &value));
    assert_true(value == 0);
    assert_int_equal(dq_config_set(b.config, "k_clip_ratio", "0"), DQ_E_INVALID);
    assert_int_equal(dq_config_set(b.config, "k_clip_ratio", "automatic"), DQ_E_INVALID);
    assert_non_null(strstr(dq_error_text(), "nor auto"));
    assert_int_equal(dq_config_set(b.config, "percdamp", "auto"), DQ_E_INVALID);
    host_bench_close(&b);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test_teardown(finds_the_optimum, host_no_leaks),
        cmocka_unit_test_teardown(names_what_is_not_finite, host_no_leaks),
        cmocka_unit_test_teardown(same_for_any_threads, host_no_leaks),
        cmocka_unit_test_teardown(saved_models_keep_them, host_no_leaks),
        cmocka_unit_test_teardown(resumes_to_the_same_bits, host_no_leaks),
        cmocka_unit_test_teardown(without_weights, host_no_leaks),
    };
    return cmocka_run_group_tests_name("clip ratios", tests, scratch_setup, scratch_teardown);
}
