/* Memory of the jobs, as the allocator counts it: the same on every machine. The bound is the one the program prints:
 *   1.3 x (weights + boundary activations + one layer in fp32 + its Hessians) + FIXED,
 * with so many windows that activations are most of it and FIXED (scratch of products and of reading, which has a ceiling
 * of its own) cannot hide a second copy of them. SPDX-License-Identifier: Apache-2.0 */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>

#include <cmocka.h>

#include "dartquant.h"
#include "ok.h"

#define MODEL "tests/data/tiny"
enum { SEQLEN = 64, WINDOWS = 1024, FIXED = 4 << 20 };

typedef struct bed {
    dq_config *config;
    dq_context *ctx;
    dq_model *model;
    dq_dataset *set;
} bed;

static void set_text(bed *b, const char *name, const char *value) { OK(dq_config_set(b->config, name, value)); }

static void bed_open(bed *b)
{
    char text[16];
    OK(dq_config_new(&b->config));
    set_text(b, "threads", "1");
    snprintf(text, sizeof text, "%d", SEQLEN);
    set_text(b, "seqlen", text);
    snprintf(text, sizeof text, "%d", WINDOWS);
    set_text(b, "nsamples", text);
    set_text(b, "limit", text);
    OK(dq_context_new(b->config, NULL, &b->ctx));
    OK(dq_model_open(b->ctx, MODEL, &b->model));
    size_t count = (size_t)SEQLEN * (WINDOWS + 1);
    int32_t *ids = malloc(count * sizeof *ids);
    assert_non_null(ids);
    for (size_t i = 0; i < count; i++) ids[i] = (int32_t)(i * 7919 % 97);
    OK(dq_dataset_from_ids(b->ctx, ids, count, "ids", &b->set));
    free(ids);
}

static void bed_close(bed *b)
{
    dq_dataset_free(b->set);
    dq_model_free(b->model);
    dq_context_free(b->ctx);
    dq_config_free(b->config);
}

static double fact(bed *b, const char *key)
{
    int64_t value = 0;
    OK(dq_model_get_int(b->model, key, &value));
    return (double)value;
}

static double activations(bed *b) { return 4.0 * SEQLEN * WINDOWS * fact(b, "hidden_size"); }

static double bound(bed *b, int hessians)
{
    double h = fact(b, "hidden_size"), m = fact(b, "intermediate_size"), d = fact(b, "head_dim");
    double q = fact(b, "num_attention_heads") * d, kv = fact(b, "num_key_value_heads") * d, weights = 0;
    for (int64_t i = 0; i < dq_model_tensor_count(b->model); i++) {
        dq_tensor_desc t = {.struct_size = sizeof t};
        OK(dq_model_tensor_info(b->model, i, &t));
        weights += (double)t.bytes;
    }
    double layer = 4 * (2 * q * h + 2 * kv * h + 3 * m * h), solve = hessians ? 4 * (2 * h * h + q * q + m * m) : 0;
    return 1.3 * (weights + activations(b) + layer + solve) + FIXED;
}

static void check_peak(bed *b, int hessians, const char *what)
{
    double peak = (double)dq_context_memory_peak(b->ctx), most = bound(b, hessians);
    assert_true(peak > activations(b)); /* the counter counts */
    if (peak > most) fail_msg("%s: peak of %.1f MB, the bound is %.1f MB", what, peak / 1e6, most / 1e6);
    /* and the bound means something: one more copy of the activations would break it */
    assert_true(peak + activations(b) > most);
}

static void measure(bed *b, dq_model *model)
{
    dq_evaluator *e = NULL;
    double ppl = 0;
    OK(dq_evaluator_new(model, b->config, &e));
    OK(dq_evaluator_bind(e, b->set));
    OK(dq_evaluator_run(e, NULL, NULL, NULL));
    OK(dq_evaluator_get_float(e, "ppl", &ppl));
    assert_true(ppl > 1);
    dq_evaluator_free(e);
}

static void perplexity(void **state)
{
    (void)state;
    bed b;
    bed_open(&b);
    measure(&b, b.model);
    check_peak(&b, 0, "perplexity");
    bed_close(&b);
}

/* Quantizing, and measuring while the quantizer and its report are still there. */
static void quantizing(void **state)
{
    (void)state;
    bed b;
    dq_quantizer *q = NULL;
    dq_model *out = NULL;
    const char *report = NULL;
    bed_open(&b);
    set_text(&b, "w_bits", "4");
    OK(dq_quantizer_new(b.model, b.config, &q));
    OK(dq_quantizer_bind(q, b.set));
    OK(dq_quantizer_run(q, NULL, NULL, NULL));
    check_peak(&b, 1, "quantizing");
    OK(dq_quantizer_take_model(q, &out));
    measure(&b, out);
    check_peak(&b, 1, "measuring the result");
    OK(dq_quantizer_report(q, &report));
    dq_model_free(out);
    dq_quantizer_free(q);
    bed_close(&b);
}

/* No folder for the temporary file: the codes stay in memory when they may, else the job says why not. */
static void without_a_folder(void **state)
{
    (void)state;
    static const struct {
        const char *budget;
        dq_status expected;
    } cases[] = {{"0", DQ_OK}, {"1000", DQ_E_IO}};
    for (size_t i = 0; i < sizeof cases / sizeof *cases; i++) {
        dq_config *config = NULL;
        dq_context *ctx = NULL;
        dq_model *model = NULL, *out = NULL;
        dq_quantizer *q = NULL;
        OK(dq_config_new(&config));
        OK(dq_config_set(config, "temp_dir", "/nonexistent/folder"));
        OK(dq_config_set(config, "memory_budget", cases[i].budget));
        OK(dq_config_set(config, "w_bits", "4"));
        OK(dq_config_set(config, "w_rtn", "true"));
        OK(dq_context_new(config, NULL, &ctx));
        OK(dq_model_open(ctx, MODEL, &model));
        OK(dq_quantizer_new(model, config, &q));
        assert_int_equal(dq_quantizer_run(q, NULL, NULL, NULL), cases[i].expected);
        if (cases[i].expected == DQ_OK)
            OK(dq_quantizer_take_model(q, &out));
        else
            assert_string_equal(dq_error_file(), "/nonexistent/folder");
        dq_model_free(out);
        dq_quantizer_free(q);
        dq_model_free(model);
        dq_context_free(ctx);
        dq_config_free(config);
    }
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(perplexity),
        cmocka_unit_test(quantizing),
        cmocka_unit_test(without_a_folder),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
