/* Jobs on a device whose memory is out of reach give the reference's numbers, op for op and byte for byte. Through the
 * installed headers and the shared library alone. SPDX-License-Identifier: Apache-2.0 */
#include <math.h>
#include <pthread.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <cmocka.h>

#include "farsim_jobs.h"

static void perplexity_like_the_reference(void **state)
{
    (void)state;
    double want = 0, got = 0;
    dq_context *ref = context_on("ref", "forbid"), *far = context_on("farsim", "forbid");
    assert_string_equal(dq_context_device_name(far), "farsim:0");
    assert_non_null(strstr(dq_context_device_json(far), "\"farsim\""));
    OK(run_ppl(ref, &want));
    OK(run_ppl(far, &got));
    assert_near(got, want, 1e-6);
    dq_device_counters r = counters_of(ref), f = counters_of(far);
    assert_int_equal(f.uploads, PPL_UPLOADS);
    assert_int_equal(f.downloads, PPL_DOWNLOADS);
    assert_int_equal(f.download_bytes, WINDOWS * SEQLEN * 3 * sizeof(double));
    assert_int_equal(f.fallbacks, 0);
    assert_memory_equal(&r, &f, sizeof r);
    dq_context_free(ref);
    dq_context_free(far);
}

static void pipeline_like_the_reference(void **state)
{
    (void)state;
    results want, got;
    dq_context *ref = context_on("ref", "forbid"), *far = context_on("farsim", "forbid");
    OK(run_pipeline(ref, "", &want));
    OK(run_pipeline(far, "", &got));
    assert_near(got.rotated, want.rotated, 1e-6);
    assert_near(got.quantized, want.quantized, 1e-3);
    assert_near(got.bits, want.bits, 0);
    dq_device_counters r = counters_of(ref), f = counters_of(far);
    assert_int_equal(f.fallbacks, 0);
    /* The same copies byte for byte; where memory is plenty, attention is computed once and kept. */
    assert_true(f.ops < r.ops);
    f.ops = r.ops;
    assert_memory_equal(&r, &f, sizeof r);
    dq_context_free(ref);
    dq_context_free(far);
}

/* One scale a row and a token: what is measured last are products of integers, the same work and the same numbers on both. Built
 * without them the device leaves them to the host, which is counted. */
static void integers_like_the_reference(void **state)
{
    (void)state;
    static const char whole[] = "w_groupsize=-1 w_rtn=true a_bits=8 a_asym=true";
    results want, got, without;
    dq_context *ref = context_on("ref", "forbid"), *far = context_on("farsim", "forbid");
    dq_context *lacking = context_on("farsim:missing=int8_linear", "allow");
    OK(run_pipeline(ref, whole, &want));
    OK(run_pipeline(far, whole, &got));
    OK(run_pipeline(lacking, whole, &without));
    assert_near(got.quantized, want.quantized, 1e-3);
    assert_near(without.quantized, got.quantized, 0);
    dq_device_counters r = counters_of(ref), f = counters_of(far);
    assert_memory_equal(&r, &f, sizeof r);
    assert_int_equal(f.fallbacks, 0);
    assert_int_equal(counters_of(lacking).fallbacks, LAYERS * 7 * WINDOWS);
    farsim_log.warnings = 0;
    dq_context_free(ref);
    dq_context_free(far);
    dq_context_free(lacking);
}

/* KVQuant's calibration and the levels of keys and values, with nothing on the host. */
static dq_status run_kvquant(dq_context *ctx, double *ppl)
{
    dq_model *model = host_open_tiny(ctx), *result = NULL;
    dq_config *config = host_config("kv_method=kvquant k_bits=3 v_bits=3 nsamples=2 seqlen=16 kv_outliers=0.05");
    dq_dataset *set = host_ids(ctx, IDS);
    dq_quantizer *q = NULL;
    OK(dq_quantizer_new(model, config, &q));
    OK(dq_quantizer_bind(q, set));
    dq_status status = dq_quantizer_run(q, NULL, NULL, NULL);
    if (status == DQ_OK) status = dq_quantizer_take_model(q, &result);
    if (status == DQ_OK) status = measure(ctx, result, ppl);
    dq_model_free(result);
    dq_quantizer_free(q);
    dq_dataset_free(set);
    dq_config_free(config);
    dq_model_free(model);
    return status;
}

static void kvquant_like_the_reference(void **state)
{
    (void)state;
    double want = 0, got = 0, full = 0;
    dq_context *ref = context_on("ref", "forbid"), *far = context_on("farsim", "forbid");
    OK(run_ppl(ref, &full));
    OK(run_kvquant(ref, &want));
    OK(run_kvquant(far, &got));
    assert_near(got, want, 1e-6);
    assert_true(want != full);
    assert_int_equal(counters_of(far).fallbacks, 0);
    dq_context_free(ref);
    dq_context_free(far);
}

/* What one device saved, another opens. */
static void saved_model_moves_on(void **state)
{
    (void)state;
    char dir[] = "/tmp/dq-farsim-XXXXXX", extra[64], command[64];
    double moved = 0;
    results far_results;
    assert_non_null(mkdtemp(dir));
    snprintf(extra, sizeof extra, "save_qmodel_path=%s", dir);
    dq_context *far = context_on("farsim", "forbid"), *ref = context_on("ref", "forbid");
    OK(run_pipeline(far, extra, &far_results));
    dq_model *model = NULL;
    OK(dq_model_open(ref, dir, &model));
    OK(measure(ref, model, &moved));
    assert_near(moved, far_results.quantized, 1e-4);
    dq_model_free(model);
    dq_context_free(far);
    dq_context_free(ref);
    snprintf(command, sizeof command, "rm -r '%s'", dir);
    assert_int_equal(system(command), 0);
}

static void *thread_main(void *out)
{
    dq_context *ctx = NULL;
    dq_config *config = config_of("farsim:depth=11", "forbid");
    dq_status status = dq_context_new(config, &farsim_services, &ctx);
    if (status == DQ_OK) status = run_pipeline(ctx, "", out);
    dq_context_free(ctx);
    dq_config_free(config);
    return status == DQ_OK ? out : NULL;
}

/* Two devices of one plug-in know nothing of each other. */
static void two_contexts_in_two_threads(void **state)
{
    (void)state;
    results want, got[2];
    pthread_t threads[2];
    dq_context *far = context_on("farsim", "forbid");
    OK(run_pipeline(far, "", &want));
    dq_context_free(far);
    for (int i = 0; i < 2; i++) assert_int_equal(pthread_create(&threads[i], NULL, thread_main, &got[i]), 0);
    for (int i = 0; i < 2; i++) {
        void *done = NULL;
        assert_int_equal(pthread_join(threads[i], &done), 0);
        assert_non_null(done);
        assert_true(got[i].rotated == want.rotated && got[i].quantized == want.quantized);
    }
}

/* ---- the functions for hosts with a forward pass of their own ---- */

enum { ROWS = 24, COLS = 96, OUT = 40, GROUPS = 3 };

typedef struct pieces {
    uint8_t codes[OUT * COLS];
    float scale[OUT * GROUPS], zero[OUT * GROUPS], activations[ROWS * COLS], turned[ROWS * COLS];
    double error, nll[ROWS];
} pieces;

/* The functions for hosts with a forward pass of their own. */
static void run_pieces(dq_context *ctx, pieces *out)
{
    float x[ROWS * COLS], w[OUT * COLS];
    int32_t index[COLS], targets[ROWS];
    for (int i = 0; i < ROWS * COLS; i++) x[i] = (float)sin(i * 0.37) + (float)(i % 11) / 10;
    for (int i = 0; i < OUT * COLS; i++) w[i] = (float)cos(i * 0.73) / 4;
    for (int i = 0; i < ROWS; i++) targets[i] = i * 3;
    dq_hessian *hessian = NULL;
    dq_config *config = host_config("w_bits=4 w_groupsize=32 percdamp=0.1");
    OK(dq_hessian_new(ctx, COLS, &hessian));
    OK(dq_hessian_add(hessian, x, ROWS, COLS, DQ_F32));
    OK(dq_quantize_weight(ctx, config, w, OUT, COLS, hessian, out->codes, out->scale, out->zero, index, &out->error,
                          NULL));
    memcpy(out->activations, x, sizeof x);
    OK(dq_fake_quantize(ctx, out->activations, ROWS, COLS, 4, 32, 0, 0.9));
    memcpy(out->turned, x, sizeof x);
    OK(dq_apply_hadamard(ctx, 12, out->turned, ROWS, COLS, 0)); /* with a 12 x 12 table that the device must copy */
    OK(dq_score_logits(ctx, x, ROWS, COLS, COLS, targets, out->nll, NULL));
    dq_hessian_free(hessian);
    dq_config_free(config);
}

static void pieces_below_the_jobs(void **state)
{
    (void)state;
    pieces want, got;
    dq_context *ref = context_on("ref", "forbid"), *far = context_on("farsim:depth=100", "warn");
    run_pieces(ref, &want);
    run_pieces(far, &got);
    int other = 0;
    for (int i = 0; i < OUT * COLS; i++) other += want.codes[i] != got.codes[i];
    assert_true(other <= 4);                  /* ties */
    assert_near(got.error, want.error, 1e-2); /* the energy that scales it may come from bf16 products */
    assert_memory_equal(want.activations, got.activations, sizeof want.activations);
    for (int i = 0; i < ROWS * COLS; i++) assert_true(fabsf(got.turned[i] - want.turned[i]) < 1e-5f);
    for (int i = 0; i < ROWS; i++) assert_near(got.nll[i], want.nll[i], 1e-6);
    dq_context_free(ref);
    dq_context_free(far);
}

int main(void)
{
#define T(name) cmocka_unit_test_teardown(name, farsim_no_leaks)
    const struct CMUnitTest tests[] = {
        T(perplexity_like_the_reference), T(pipeline_like_the_reference), T(integers_like_the_reference),
        T(kvquant_like_the_reference),    T(saved_model_moves_on),        T(two_contexts_in_two_threads),
        T(pieces_below_the_jobs),
    };
    return cmocka_run_group_tests(tests, farsim_setup, NULL);
}
