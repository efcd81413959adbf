/* calib: a fit gives the same bits for any number of threads and after any interruption. SPDX-License-Identifier: Apache-2.0 */
#include <math.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <cmocka.h>

#include "fit_job.h"

static dq_fit_spec long_spec(int heads)
{
    dq_fit_spec spec = heads > 1 ? usual_spec(16, 4, 2) : usual_spec(32, 1, 1);
    spec.batch = 500;
    spec.epochs = 3;
    spec.accumulation = 2;
    spec.quant_steps = 3;
    return spec;
}

static void threads_change_nothing(void **state)
{
    (void)state;
    for (int heads = 1; heads <= 4; heads += 3)
        for (int adam = 0; adam < 2; adam++) {
            double r[2][1024] = {{0}};
            for (int i = 0; i < 2; i++) {
                fit_job j;
                dq_fit_spec spec = long_spec(heads);
                spec.optim = adam ? DQ_FIT_ADAM : DQ_FIT_SGD;
                spec.loss.kind = adam ? DQ_FIT_SWD_CHANNEL : DQ_FIT_WHIP;
                open_job(&j, i ? 3 : 1, &spec);
                run_fit(j.fit);
                OK(dq_fit_result(j.fit, r[i]));
                close_job(&j);
            }
            assert_memory_equal(r[0], r[1], sizeof r[0]);
        }
}

static void resumed_fits_reach_the_same_bits(void **state)
{
    static const dq_fit_method methods[] = {DQ_FIT_QR, DQ_FIT_CAYLEY, DQ_FIT_POLAR_MM};
    (void)state;
    for (int m = 0; m < 3; m++) {
        dq_fit_spec spec = long_spec(m == 1 ? 4 : 1);
        spec.method = methods[m];
        spec.optim = m == 1 ? DQ_FIT_ADAM : DQ_FIT_SGD;
        fit_job whole;
        double expected[1024], got[1024];
        open_job(&whole, 2, &spec);
        run_fit(whole.fit);
        OK(dq_fit_result(whole.fit, expected));
        int64_t steps = dq_fit_steps_done(whole.fit);
        assert_int_equal(steps, 12);
        for (int64_t stop = 0; stop < steps; stop++) {
            fit_job first, second;
            void *bytes = NULL;
            size_t size = 0;
            bool done = false;
            open_job(&first, 2, &spec);
            for (int64_t i = 0; i < stop; i++) OK(dq_fit_step(first.fit, &done));
            OK(dq_fit_export(first.fit, &bytes, &size));
            open_job(&second, 1, &spec);
            OK(dq_fit_import(second.fit, bytes, size));
            run_fit(second.fit);
            OK(dq_fit_result(second.fit, got));
            assert_memory_equal(got, expected, (size_t)(spec.orbit.n * spec.orbit.n * spec.orbit.groups) * sizeof *got);
            dq_fit_report a, b;
            OK(dq_fit_get_report(whole.fit, &a));
            OK(dq_fit_get_report(second.fit, &b));
            assert_memory_equal(a.kinds, b.kinds, sizeof a.kinds);
            assert_int_equal(a.best_step, b.best_step);
            for (int64_t i = 0; i < steps; i++) assert_true(a.history[i].loss == b.history[i].loss);
            dq_free(bytes);
            close_job(&first);
            close_job(&second);
        }
        close_job(&whole);
    }
}

static void foreign_states_are_refused(void **state)
{
    (void)state;
    fit_job a, c;
    void *bytes = NULL;
    size_t size = 0;
    dq_fit_spec spec = long_spec(1), other = long_spec(4);
    open_job(&a, 1, &spec);
    open_job(&c, 1, &other);
    OK(dq_fit_export(a.fit, &bytes, &size));
    assert_int_equal(dq_fit_import(c.fit, bytes, size), DQ_E_MISMATCH);
    assert_int_equal(dq_fit_import(a.fit, bytes, size - 1), DQ_E_FORMAT);
    assert_int_equal(dq_fit_import(a.fit, bytes, 40), DQ_E_FORMAT);
    ((char *)bytes)[0] ^= 1;
    assert_int_equal(dq_fit_import(a.fit, bytes, size), DQ_E_FORMAT);
    dq_free(bytes);
    run_fit(a.fit);
    OK(dq_fit_export(a.fit, &bytes, &size));
    assert_int_equal(((char *)bytes)[76], 1); /* done: a fit that is not has no place behind its last step */
    ((char *)bytes)[76] = 0;
    fit_job fresh;
    open_job(&fresh, 1, &spec);
    assert_int_equal(dq_fit_import(fresh.fit, bytes, size), DQ_E_FORMAT);
    close_job(&fresh);
    dq_free(bytes);
    close_job(&a);
    close_job(&c);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(threads_change_nothing),
        cmocka_unit_test(resumed_fits_reach_the_same_bits),
        cmocka_unit_test(foreign_states_are_refused),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
