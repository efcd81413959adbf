/* calib: training of one rotation follows PyTorch step by step, and every method and loss learns. SPDX-License-Identifier: Apache-2.0 */
#include <math.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <cmocka.h>

#include "fit_job.h"
#include "golden.h"

/* ---- PyTorch ---- */

typedef struct training {
    const char *rows, *run;
    int64_t n;
    int32_t heads, groups;
    dq_fit_optim optim;
    dq_fit_loss loss;
    double lr;
    bool cosine;
} training;

static void follow(const golden *g, const char *backend, const training *t)
{
    char name[32];
    fixture f;
    dq_fit *fit = NULL;
    dq_fit_report report;
    fixture_open(&f, backend, 2);
    snprintf(name, sizeof name, "%s_x", t->rows);
    const golden_array *x = golden_find(g, name);
    dq_rows *rows = new_rows(&f, x->cols, DQ_F32, 1 << 20, 0);
    add_rows(&f, rows, DQ_ROWS_ACTIVATION, x->data, x->rows);
    OK(dq_rows_seal(rows));
    dq_fit_spec spec = usual_spec(t->n, t->heads, t->groups);
    spec.optim = t->optim;
    spec.loss.kind = t->loss;
    spec.lr = t->lr;
    spec.cosine = t->cosine;
    spec.epochs = 20;
    spec.batch = x->rows;
    snprintf(name, sizeof name, "%s_start", t->rows);
    OK(dq_fit_new(f.dev, &spec, rows, golden_find(g, name)->data, &fit));
    run_fit(fit);
    OK(dq_fit_get_report(fit, &report));
    assert_int_equal(report.steps, 20);
    snprintf(name, sizeof name, "%s_loss", t->run);
    const double *expected = golden_find(g, name)->data;
    for (int i = 0; i < 20; i++)
        if (!(fabs(report.history[i].loss - expected[i]) <= 1e-4 * expected[i]))
            fail_msg("%s, step %d: loss %.8g, PyTorch has %.8g", t->run, i, report.history[i].loss, expected[i]);
    assert_true(report.loss_after < report.loss_before);
    assert_true(report.orthogonality <= 1e-12);
    dq_fit_free(fit);
    dq_rows_free(rows);
    fixture_close(&f);
}

static void training_follows_pytorch(void **state)
{
    static const training runs[] = {
        {"r1", "r1_sgd", 24, 1, 1, DQ_FIT_SGD, DQ_FIT_WHIP, 0.02, true},
        {"r1", "r1_adam", 24, 1, 1, DQ_FIT_ADAM, DQ_FIT_WHIP, 0.01, false},
        {"r2", "r2_sgd", 8, 4, 2, DQ_FIT_SGD, DQ_FIT_WHIP, 0.02, true},
        {"r2", "r2_adam", 8, 4, 2, DQ_FIT_ADAM, DQ_FIT_WHIP, 0.01, false},
        {"r1", "r1_swd", 24, 1, 1, DQ_FIT_SGD, DQ_FIT_SWD, 0.5, false},
    };
    (void)state;
    golden g = golden_load("calib_train");
    for (size_t i = 0; i < sizeof runs / sizeof *runs; i++) {
        follow(&g, "cpu", &runs[i]);
        follow(&g, "fake", &runs[i]);
    }
    golden_free(&g);
}

/* ---- learning ---- */

/* Loss per channel of random rows of RMS 1 is about 0.52; every method must take a good part of what is to be had. */
static void every_method_learns(void **state)
{
    static const struct {
        dq_fit_method method;
        dq_fit_optim optim;
        double lr;
    } ways[] = {{DQ_FIT_QR, DQ_FIT_SGD, 0.02},
                {DQ_FIT_QR, DQ_FIT_ADAM, 0.005},
                {DQ_FIT_QR_RETRACTION, DQ_FIT_SGD, 0.02},
                {DQ_FIT_QR_RETRACTION, DQ_FIT_ADAM, 0.01},
                {DQ_FIT_CAYLEY, DQ_FIT_SGD, 0.02},
                {DQ_FIT_NEWTON_SCHULZ, DQ_FIT_SGD, 0.02},
                {DQ_FIT_POLAR_MM, DQ_FIT_SGD, 0}};
    static const dq_orbit orbits[] = {{32, 1, 1}, {16, 4, 2}};
    (void)state;
    for (size_t o = 0; o < 2; o++)
        for (size_t w = 0; w < sizeof ways / sizeof *ways; w++) {
            fit_job j;
            dq_fit_report r;
            double matrix[2 * 32 * 32];
            dq_fit_spec spec = usual_spec(orbits[o].n, orbits[o].heads, orbits[o].groups);
            spec.method = ways[w].method;
            spec.optim = ways[w].optim;
            spec.lr = ways[w].lr;
            spec.batch = 300;
            open_job(&j, 2, &spec);
            run_fit(j.fit);
            OK(dq_fit_get_report(j.fit, &r));
            OK(dq_fit_result(j.fit, matrix));
            check_orthogonal(matrix, spec.orbit.n, spec.orbit.groups);
            double gain = 1 - r.loss_after / r.loss_before;
            if (!(gain > 0.02)) fail_msg("method %d optim %d: gain %g", ways[w].method, ways[w].optim, gain);
            assert_true(r.diverged_step == -1 && r.best_step > 0);
            assert_int_equal(r.kinds[DQ_ROWS_SINK].rows_train, 22);
            assert_int_equal(r.kinds[DQ_ROWS_SINK].rows_held_out, 2);
            assert_int_equal(r.kinds[DQ_ROWS_ACTIVATION].rows_held_out, 300);
            assert_true(r.kinds[DQ_ROWS_ACTIVATION].error_after < r.kinds[DQ_ROWS_ACTIVATION].error_before);
            close_job(&j);
        }
}

/* On full batches with the full curvature the loss never rises. */
static void majorisation_is_monotone(void **state)
{
    static const dq_fit_loss kinds[] = {DQ_FIT_WHIP, DQ_FIT_VARIANCE, DQ_FIT_QUANT, DQ_FIT_SWD_CHANNEL};
    (void)state;
    for (int k = 0; k < 4; k++) {
        fit_job j;
        dq_fit_report r;
        dq_fit_spec spec = usual_spec(24, 1, 1);
        spec.method = DQ_FIT_POLAR_MM;
        spec.loss = (dq_loss){.kind = kinds[k], .quant = {.bits = 4, .clip = 0.9}};
        spec.mm_boldness = 1;
        spec.mm_memory = 0;
        spec.batch = 3000;
        open_job(&j, 2, &spec);
        run_fit(j.fit);
        OK(dq_fit_get_report(j.fit, &r));
        for (int64_t i = 1; i < r.steps; i++)
            if (!(r.history[i].loss <= r.history[i - 1].loss * (1 + 1e-5)))
                fail_msg("%s: %g after %g", dq_loss_name(kinds[k]), r.history[i].loss, r.history[i - 1].loss);
        close_job(&j);
    }
}

static void finish_lowers_the_quantization_error(void **state)
{
    (void)state;
    fit_job j;
    dq_fit_report r;
    dq_fit_spec spec = usual_spec(32, 1, 1);
    spec.method = DQ_FIT_POLAR_MM;
    spec.batch = 3000;
    open_job(&j, 2, &spec);
    run_fit(j.fit);
    OK(dq_fit_get_report(j.fit, &r));
    double before = r.kinds[DQ_ROWS_ACTIVATION].error_after;
    close_job(&j);
    spec.quant_steps = 12;
    open_job(&j, 2, &spec);
    run_fit(j.fit);
    OK(dq_fit_get_report(j.fit, &r));
    assert_int_equal(r.steps, r.steps_total);
    assert_true(r.history[r.steps - 1].finish && !r.history[0].finish);
    assert_true(r.kinds[DQ_ROWS_ACTIVATION].error_after < before);
    close_job(&j);
}

/* The default recipe in small: every phase lowers the error. */
static void range_and_snap_learn(void **state)
{
    static const dq_orbit orbits[] = {{32, 1, 1}, {16, 4, 2}};
    (void)state;
    for (size_t o = 0; o < 2; o++) {
        double error[2], sinks[2];
        for (int phase = 0; phase < 2; phase++) {
            fit_job j;
            dq_fit_report r;
            dq_fit_spec spec = usual_spec(orbits[o].n, orbits[o].heads, orbits[o].groups);
            spec.method = DQ_FIT_POLAR_MM;
            spec.unit_rows = spec.never_worse = true;
            spec.epochs = 4;
            spec.batch = 400;
            spec.quant_steps = phase ? 32 : 0;
            for (int k = 0; k < DQ_ROW_KINDS; k++) spec.finish[k].kind = k == DQ_ROWS_SINK ? DQ_FIT_SNAP : DQ_FIT_RANGE;
            spec.finish_boldness = 0.25;
            spec.finish_memory = 0.8;
            open_job(&j, 2, &spec);
            run_fit(j.fit);
            OK(dq_fit_get_report(j.fit, &r));
            assert_false(r.kept_start);
            error[phase] = r.kinds[DQ_ROWS_ACTIVATION].error_after / r.kinds[DQ_ROWS_ACTIVATION].error_before;
            sinks[phase] = r.kinds[DQ_ROWS_SINK].error_after / r.kinds[DQ_ROWS_SINK].error_before;
            close_job(&j);
        }
        print_message("n %d: error %.3f of the start's, then %.3f; sinks %.3f, %.3f\n", (int)orbits[o].n, error[0],
                      error[1], sinks[0], sinks[1]);
        assert_true(error[0] < 1 && error[1] < error[0]);
    }
}

/* Whip upside down: it grows towards spikes, and the error with it. */
static dq_status spikes(void *user, const float *o, int64_t rows, int64_t cols, float *grad, double *loss)
{
    double sum = 0;
    (void)user;
    for (int64_t i = 0; i < rows * cols; i++) {
        sum += fabs((double)o[i]) / (double)rows;
        if (grad) grad[i] = (o[i] > 0 ? 1.0f : -1.0f) / (float)rows;
    }
    *loss = sum;
    return DQ_OK;
}

static void never_worse_than_the_start(void **state)
{
    (void)state;
    for (int guard = 0; guard < 2; guard++) {
        fit_job j;
        dq_fit_report r;
        double before[1024], matrix[1024];
        dq_fit_spec spec = usual_spec(32, 1, 1);
        spec.loss = (dq_loss){.kind = DQ_FIT_HOST, .fn = spikes};
        spec.lr = 0.005;
        spec.batch = 500;
        spec.epochs = 6;
        spec.never_worse = guard;
        open_job(&j, 1, &spec);
        OK(dq_fit_result(j.fit, before));
        run_fit(j.fit);
        OK(dq_fit_get_report(j.fit, &r));
        OK(dq_fit_result(j.fit, matrix));
        const dq_fit_kind_report *a = &r.kinds[DQ_ROWS_ACTIVATION];
        if (guard) {
            assert_true(r.kept_start && r.rejected_error > a->error_before && a->error_after == a->error_before);
            assert_memory_equal(matrix, before, sizeof matrix);
        } else {
            assert_true(!r.kept_start && r.loss_after < r.loss_before && a->error_after > a->error_before);
        }
        close_job(&j);
    }
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(training_follows_pytorch), cmocka_unit_test(every_method_learns),
        cmocka_unit_test(majorisation_is_monotone), cmocka_unit_test(finish_lowers_the_quantization_error),
        cmocka_unit_test(range_and_snap_learn),     cmocka_unit_test(never_worse_than_the_start),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
