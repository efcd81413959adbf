/* A job whose device is lost goes on on another backend from its checkpoint, through the installed headers and the shared
 * library alone. SPDX-License-Identifier: Apache-2.0 */
#include <setjmp.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>
#include <cmocka.h>

#include "farsim_jobs.h"

static const char *const takers[] = {"cpu", "ref"};
static char dir[64];

static int set_up(void **state)
{
    (void)state;
    strcpy(dir, "/tmp/dq_test_resume.XXXXXX");
    return mkdtemp(dir) ? 0 : -1;
}

/* ---- one device with its model, data and options ---- */

static host_bench open_place(const char *backend, const char *mode)
{
    char settings[128];
    snprintf(settings, sizeof settings,
             "seqlen=%d nsamples=3 w_bits=4 w_groupsize=32 a_bits=4 k_bits=4 v_bits=4 seed=3 rotate_mode=%s", SEQLEN,
             mode);
    return host_bench_on(context_on(backend, "allow"), settings, IDS, true); /* farsim has no qr */
}

static long long ops_of(const host_bench *p) { return (long long)counters_of(p->ctx).ops; }

static double finish_evaluator(dq_evaluator *e)
{
    double ppl = 0;
    OK(dq_evaluator_run(e, NULL, NULL, NULL));
    OK(dq_evaluator_get_float(e, "ppl", &ppl));
    dq_evaluator_free(e);
    return ppl;
}

typedef struct outcome {
    double ppl, error, bits;
} outcome;

static outcome finish_quantizer(const host_bench *p, dq_quantizer *q)
{
    outcome o;
    dq_model *model = NULL;
    OK(dq_quantizer_run(q, NULL, NULL, NULL));
    OK(dq_quantizer_take_model(q, &model));
    OK(dq_quantizer_get_float(q, "bits_per_weight", &o.bits));
    OK(dq_quantizer_get_float(q, "mean_error", &o.error));
    o.ppl = finish_evaluator(host_evaluator(p, model));
    dq_model_free(model);
    dq_quantizer_free(q);
    return o;
}

/* ---- checks ---- */

static void assert_lost(dq_status status)
{
    assert_int_equal(status, DQ_E_DEVICE_LOST);
    assert_string_equal(dq_error_backend(), "farsim:0");
}

static void assert_warned(const char *taker)
{
    assert_int_equal(farsim_log.warnings, 1);
    assert_non_null(strstr(farsim_log.last, "written on farsim:0"));
    assert_non_null(strstr(farsim_log.last, taker));
    farsim_log.warnings = 0;
}

/* ---- GPTQ ---- */

enum { STEPS = 2 }; /* done before the device goes, each with a checkpoint */

static dq_status quantize_until_lost(const char *backend, const char *mode, long long *ops)
{
    host_bench p = open_place(backend, mode);
    dq_quantizer *q = host_quantizer(&p);
    int32_t done = 0;
    dq_status status = dq_quantizer_checkpoint(q, dir);
    for (int i = 0; i < STEPS && status == DQ_OK; i++) {
        status = dq_quantizer_step(q, NULL, NULL, NULL, &done);
        if (status == DQ_OK) status = dq_quantizer_checkpoint(q, dir);
    }
    assert_int_equal(status, DQ_OK);
    *ops = ops_of(&p);
    status = dq_quantizer_step(q, NULL, NULL, NULL, &done);
    if (status != DQ_OK) assert_lost(status);
    dq_quantizer_free(q);
    host_bench_close(&p);
    return status;
}

static void quantizer(void **state)
{
    (void)state;
    static const char *const modes[] = {"hadamard", "random"};
    for (int m = 0; m < 2; m++) {
        long long ops = 0;
        char backend[64];
        host_bench p = open_place("ref", modes[m]);
        outcome want = finish_quantizer(&p, host_quantizer(&p)), got;
        host_bench_close(&p);
        assert_int_equal(quantize_until_lost("farsim", modes[m], &ops), DQ_OK);
        snprintf(backend, sizeof backend, "farsim:lost_at=%lld", ops + 20);
        for (int t = 0; t < 2; t++) {
            double layers = 0;
            assert_int_equal(quantize_until_lost(backend, modes[m], &ops), DQ_E_DEVICE_LOST);
            p = open_place(takers[t], modes[m]);
            dq_quantizer *q = host_quantizer(&p);
            farsim_log.warnings = 0;
            OK(dq_quantizer_restore(q, dir));
            assert_warned(dq_context_device_name(p.ctx));
            OK(dq_quantizer_get_float(q, "layers_done", &layers));
            assert_true(layers == STEPS);
            got = finish_quantizer(&p, q);
            print_message("%s, GPTQ goes on on %s: perplexity %.9g, on ref alone %.9g; mean error %.6g, %.6g\n",
                          modes[m], takers[t], got.ppl, want.ppl, got.error, want.error);
            assert_near(got.ppl, want.ppl, 1e-3);
            assert_near(got.error, want.error, 1e-3);
            assert_true(got.bits == want.bits);
            OK(dq_checkpoint_remove(p.ctx, dir));
            host_bench_close(&p);
        }
    }
}

/* ---- perplexity ---- */

static dq_status measure_until_lost(const char *backend, long long *ops)
{
    host_bench p = open_place(backend, "hadamard");
    dq_evaluator *e = host_evaluator(&p, p.model);
    int32_t done = 0;
    dq_status status = DQ_OK;
    for (int i = 0; i < STEPS && status == DQ_OK; i++) {
        status = dq_evaluator_step(e, NULL, NULL, NULL, &done);
        if (status == DQ_OK) status = dq_evaluator_checkpoint(e, dir);
    }
    assert_int_equal(status, DQ_OK);
    *ops = ops_of(&p);
    while (status == DQ_OK && !done) /* nothing in a layer waits: it may be the sums of the loss that never come */
        status = dq_evaluator_step(e, NULL, NULL, NULL, &done);
    if (status != DQ_OK) assert_lost(status);
    dq_evaluator_free(e);
    host_bench_close(&p);
    return status;
}

static void evaluator(void **state)
{
    (void)state;
    long long ops = 0;
    char backend[64];
    host_bench p = open_place("ref", "hadamard");
    double want = finish_evaluator(host_evaluator(&p, p.model));
    host_bench_close(&p);
    assert_int_equal(measure_until_lost("farsim", &ops), DQ_OK);
    snprintf(backend, sizeof backend, "farsim:depth=1,lost_at=%lld", ops + 5);
    for (int t = 0; t < 2; t++) {
        assert_int_equal(measure_until_lost(backend, &ops), DQ_E_DEVICE_LOST);
        p = open_place(takers[t], "hadamard");
        dq_evaluator *e = host_evaluator(&p, p.model);
        farsim_log.warnings = 0;
        OK(dq_evaluator_restore(e, dir));
        assert_warned(dq_context_device_name(p.ctx));
        double got = finish_evaluator(e);
        print_message("perplexity goes on on %s: %.9g, on ref alone %.9g\n", takers[t], got, want);
        assert_near(got, want, 1e-5);
        OK(dq_checkpoint_remove(p.ctx, dir));
        host_bench_close(&p);
    }
}

int main(void)
{
    const struct CMUnitTest tests[] = {cmocka_unit_test_setup_teardown(quantizer, set_up, farsim_no_leaks),
                                       cmocka_unit_test_setup_teardown(evaluator, set_up, farsim_no_leaks)};
    return cmocka_run_group_tests(tests, farsim_setup, NULL);
}
