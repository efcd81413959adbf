/* A device without room for the hidden states of all windows: they wait in memory of the host, and the numbers are those of a
 * large device to the bit. SPDX-License-Identifier: Apache-2.0 */
#include <setjmp.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>
#include <cmocka.h>

#include "farsim_jobs.h"

/* 300 windows: 1.2 MB of hidden states, more than is left beside a layer. */
enum { MANY = 300, TOKENS = MANY * SEQLEN, STEPS = 2 };
static const char large[] = "farsim";

static char dir[64];

static int set_up(void **state)
{
    (void)state;
    strcpy(dir, "/tmp/dq_test_small.XXXXXX");
    return mkdtemp(dir) ? 0 : -1;
}

static int tear_down(void **state)
{
    (void)rmdir(dir); /* unless the checkpoint took it along */
    return farsim_no_leaks(state);
}

static host_bench open_place(const char *backend)
{
    char settings[128];
    snprintf(settings, sizeof settings, "seqlen=%d nsamples=%d w_bits=4 w_groupsize=32 a_bits=4 k_bits=4 v_bits=4",
             SEQLEN, MANY);
    return host_bench_on(context_on(backend, "allow"), settings, TOKENS, true);
}

/* ---- perplexity ---- */

typedef struct outcome {
    double ppl, kl;
    uint64_t downloads;
} outcome;

/* The model beside itself; with `resume` some steps are done twice, from a checkpoint. */
static outcome measure_at(const char *backend, bool resume)
{
    host_bench p = open_place(backend);
    outcome o;
    dq_reference *reference = NULL;
    dq_evaluator *e = host_evaluator(&p, p.model);
    OK(dq_evaluator_keep_reference(e, 1));
    OK(dq_evaluator_run(e, NULL, NULL, NULL));
    OK(dq_evaluator_take_reference(e, &reference));
    dq_evaluator_free(e);
    e = host_evaluator(&p, p.model);
    OK(dq_evaluator_set_reference(e, reference));
    if (resume) {
        int32_t done = 0;
        for (int i = 0; i < STEPS; i++) OK(dq_evaluator_step(e, NULL, NULL, NULL, &done));
        OK(dq_evaluator_checkpoint(e, dir));
        OK(dq_evaluator_step(e, NULL, NULL, NULL, &done));
        dq_evaluator_free(e);
        e = host_evaluator(&p, p.model);
        OK(dq_evaluator_set_reference(e, reference));
        OK(dq_evaluator_restore(e, dir));
        OK(dq_checkpoint_remove(p.ctx, dir));
    }
    OK(dq_evaluator_run(e, NULL, NULL, NULL));
    OK(dq_evaluator_get_float(e, "ppl", &o.ppl));
    OK(dq_evaluator_get_float(e, "kl", &o.kl));
    o.downloads = counters_of(p.ctx).downloads;
    dq_reference_free(reference);
    dq_evaluator_free(e);
    host_bench_close(&p);
    return o;
}

static void evaluator(void **state)
{
    (void)state;
    outcome want = measure_at(large, false);
    outcome got = measure_at("farsim:limit=3300000", true);
    assert_true(got.ppl == want.ppl && got.kl == want.kl && want.kl < 1e-9);
    /* every layer of two runs brings every window back */
    assert_true(got.downloads > want.downloads + 2 * LAYERS * MANY);
}

/* ---- GPTQ ---- */

static outcome quantize_at(const char *backend, bool resume)
{
    host_bench p = open_place(backend);
    outcome o;
    dq_quantizer *q = NULL;
    OK(dq_quantizer_new(p.model, p.config, &q));
    OK(dq_quantizer_bind(q, p.set));
    if (resume) {
        int32_t done = 0;
        OK(dq_quantizer_checkpoint(q, dir));
        for (int i = 0; i < STEPS; i++) OK(dq_quantizer_step(q, NULL, NULL, NULL, &done));
        OK(dq_quantizer_checkpoint(q, dir));
        dq_quantizer_free(q);
        OK(dq_quantizer_new(p.model, p.config, &q));
        OK(dq_quantizer_bind(q, p.set));
        OK(dq_quantizer_restore(q, dir));
    }
    OK(dq_quantizer_run(q, NULL, NULL, NULL));
    if (resume) OK(dq_checkpoint_remove(p.ctx, dir));
    OK(dq_quantizer_get_float(q, "mean_error", &o.ppl));
    OK(dq_quantizer_get_float(q, "max_error", &o.kl));
    o.downloads = counters_of(p.ctx).downloads;
    dq_quantizer_free(q);
    host_bench_close(&p);
    return o;
}

static void quantizer(void **state)
{
    (void)state;
    outcome want = quantize_at(large, false);
    outcome got = quantize_at("farsim:limit=6500000", true);
    assert_true(got.ppl == want.ppl && got.kl == want.kl && want.ppl > 0);
    assert_true(got.downloads > want.downloads);
}

/* Less than a layer needs is still an error. */
static void too_small(void **state)
{
    (void)state;
    double ppl = 0;
    dq_context *far = context_on("farsim:limit=100000", "forbid");
    assert_error(run_ppl(far, &ppl), DQ_E_DEVICE_MEMORY, CODE_OOM, "farsim:0", "of 100000 bytes are in use");
    dq_context_free(far);
}

int main(void)
{
#define T(name) cmocka_unit_test_setup_teardown(name, set_up, tear_down)
    const struct CMUnitTest tests[] = {T(evaluator), T(quantizer), T(too_small)};
    return cmocka_run_group_tests(tests, farsim_setup, NULL);
}
