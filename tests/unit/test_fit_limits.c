/* calib: where a fit ends early or cannot begin: divergence, nothing more to gain, few dimensions, wrong requests. SPDX-License-Identifier: Apache-2.0 */
#include <math.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <cmocka.h>

#include "base/rng.h"
#include "fit_job.h"

static void divergence_keeps_the_last_good(void **state)
{
    (void)state;
    fit_job j;
    dq_fit_report r;
    double matrix[1024];
    dq_fit_spec spec = usual_spec(32, 1, 1);
    spec.lr = 1e30;
    spec.batch = 500;
    open_job(&j, 1, &spec);
    run_fit(j.fit);
    OK(dq_fit_get_report(j.fit, &r));
    OK(dq_fit_result(j.fit, matrix));
    check_orthogonal(matrix, 32, 1);
    assert_true(r.diverged_step > 0 && r.steps < r.steps_total);
    assert_true(r.loss_after <= r.loss_before);
    close_job(&j);
}

/* From a good start a rate that is too high leads back to chance. */
static void loss_above_the_start_is_divergence(void **state)
{
    (void)state;
    fit_job j;
    dq_fit *again = NULL;
    dq_fit_report r;
    double matrix[1024];
    dq_fit_spec spec = usual_spec(32, 1, 1);
    spec.batch = 500;
    spec.method = DQ_FIT_POLAR_MM; /* well below chance */
    spec.epochs = 30;
    open_job(&j, 1, &spec);
    run_fit(j.fit);
    OK(dq_fit_result(j.fit, matrix));
    spec.method = DQ_FIT_NEWTON_SCHULZ; /* QR-Orth recovers: Z grows, and with it the step shrinks */
    spec.lr = 3;
    OK(dq_fit_new(j.f.dev, &spec, j.rows, matrix, &again));
    run_fit(again);
    OK(dq_fit_get_report(again, &r));
    assert_true(r.diverged_step > 0 && r.steps < r.steps_total);
    assert_true(r.loss_after == r.loss_before && r.best_step == 0);
    dq_fit_free(again);
    close_job(&j);
}

static void stops_when_held_out_rows_gain_nothing(void **state)
{
    (void)state;
    fit_job j;
    dq_fit_report r;
    dq_fit_spec spec = usual_spec(32, 1, 1);
    spec.method = DQ_FIT_POLAR_MM;
    spec.batch = 3000;
    spec.epochs = 400;
    spec.patience = 3;
    open_job(&j, 2, &spec);
    run_fit(j.fit);
    OK(dq_fit_get_report(j.fit, &r));
    assert_true(r.stopped_early && r.steps < 400);
    assert_int_equal(r.best_step, r.steps - 3);
    close_job(&j);
}

/* Rows that span four of 32 dimensions. */
static void rank_deficient_rows(void **state)
{
    static const dq_fit_method methods[] = {DQ_FIT_QR, DQ_FIT_NEWTON_SCHULZ, DQ_FIT_POLAR_MM};
    (void)state;
    float *x = calloc(200 * 32, sizeof *x);
    dq_rng rng;
    dq_rng_seed_torch(&rng, 4);
    for (int i = 0; i < 200; i++)
        for (int k = 0; k < 4; k++) x[i * 32 + 7 * k] = (float)dq_rng_normal(&rng) * 2.8f;
    for (int m = 0; m < 3; m++) {
        fixture f;
        dq_fit *fit = NULL;
        dq_fit_report r;
        double matrix[1024];
        dq_fit_spec spec = usual_spec(32, 1, 1);
        spec.method = methods[m];
        fixture_open(&f, "cpu", 1);
        dq_rows *rows = new_rows(&f, 32, DQ_F32, 1 << 20, 0);
        add_rows(&f, rows, DQ_ROWS_ACTIVATION, x, 200);
        OK(dq_rows_seal(rows));
        OK(dq_fit_new(f.dev, &spec, rows, NULL, &fit));
        run_fit(fit);
        OK(dq_fit_get_report(fit, &r));
        OK(dq_fit_result(fit, matrix));
        check_orthogonal(matrix, 32, 1);
        assert_true(r.loss_after < r.loss_before);
        dq_fit_free(fit);
        dq_rows_free(rows);
        fixture_close(&f);
    }
    free(x);
}

static void the_original_programs_ways(void **state)
{
    (void)state;
    fit_job j;
    dq_fit_report r;
    dq_fit_spec spec = usual_spec(16, 4, 2);
    spec.compat = true;
    spec.weight[DQ_ROWS_SINK] = spec.weight[DQ_ROWS_WEIGHT] = 0;
    spec.batch = 3000;
    spec.accumulation = 2; /* one batch an epoch: upstream never steps */
    open_job(&j, 1, &spec);
    bool done = false;
    assert_true(dq_fit_done(j.fit));
    OK(dq_fit_step(j.fit, &done));
    OK(dq_fit_get_report(j.fit, &r));
    assert_true(done && r.steps == 0 && r.loss_after == r.loss_before);
    close_job(&j);
    spec.accumulation = 1;
    spec.epochs = 4;
    open_job(&j, 1, &spec);
    run_fit(j.fit);
    OK(dq_fit_get_report(j.fit, &r));
    assert_int_equal(r.steps, 4);
    assert_int_equal(r.best_step, 3); /* the rotation before the last step */
    close_job(&j);
}

static void precise_refusals(void **state)
{
    (void)state;
    fixture f;
    dq_fit *fit = NULL;
    float zeros[64] = {0};
    double skewed[64] = {0};
    fixture_open(&f, "cpu", 1);
    dq_rows *rows = new_rows(&f, 8, DQ_F32, 1 << 16, 0);
    dq_fit_spec spec = usual_spec(8, 1, 1);
    assert_int_equal(dq_fit_new(f.dev, &spec, rows, NULL, &fit), DQ_E_STATE);
    assert_int_equal(dq_rows_seal(rows), DQ_E_INVALID);
    add_rows(&f, rows, DQ_ROWS_ACTIVATION, zeros, 8);
    OK(dq_rows_seal(rows));
    assert_int_equal(dq_fit_new(f.dev, &spec, rows, NULL, &fit), DQ_E_INVALID);
    assert_non_null(strstr(dq_error_text(), "8 activation rows are zero"));
    for (int i = 0; i < 8; i++) skewed[9 * i] = i == 3 ? 1.25 : 1;
    assert_int_equal(dq_fit_new(f.dev, &spec, rows, skewed, &fit), DQ_E_NUMERIC);
    assert_non_null(strstr(dq_error_text(), "0.5625"));
    spec.method = DQ_FIT_POLAR_MM;
    spec.loss.kind = DQ_FIT_KURTOSIS;
    assert_int_equal(dq_fit_new(f.dev, &spec, rows, NULL, &fit), DQ_E_INVALID);
    assert_non_null(strstr(dq_error_text(), "kurtosis"));
    spec = usual_spec(4, 3, 1);
    assert_int_equal(dq_fit_new(f.dev, &spec, rows, NULL, &fit), DQ_E_INVALID);
    assert_null(fit);
    dq_rows_free(rows);
    fixture_close(&f);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(divergence_keeps_the_last_good),
        cmocka_unit_test(loss_above_the_start_is_divergence),
        cmocka_unit_test(stops_when_held_out_rows_gain_nothing),
        cmocka_unit_test(rank_deficient_rows),
        cmocka_unit_test(the_original_programs_ways),
        cmocka_unit_test(precise_refusals),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
