/* dartquant/calibrator.h: jobs for rows of the host, through public functions alone. SPDX-License-Identifier: Apache-2.0 */
#include <math.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <cmocka.h>

#include "dartquant.h"
#include "scratch.h"
#include "ok.h"

enum { N = 16, ROWS = 1200 };

static dq_context *ctx;
static float rows[ROWS * N];

static int open_context(void **state)
{
    (void)state;
    unsigned long long s = 7;
    for (int r = 0; r < ROWS; r++) {
        double v[N], square = 0;
        for (int i = 0; i < N; i++) {
            s = s * 6364136223846793005ull + 1442695040888963407ull;
            double u = (double)(s >> 11) / 9007199254740992.0 * 2 - 1;
            v[i] = u * u * u * (i % 4 == 0 ? 6 : 1);
        }
        for (int i = 0; i < N; i++) {
            rows[r * N + i] = (float)(v[i] + 0.5 * v[(3 * i + 1) % N]);
            square += (double)rows[r * N + i] * rows[r * N + i];
        }
        for (int i = 0; i < N; i++) rows[r * N + i] /= (float)sqrt(square / N);
    }
    OK(dq_context_new(NULL, NULL, &ctx));
    return scratch_open();
}

static int close_context(void **state)
{
    (void)state;
    dq_context_free(ctx);
    scratch_close();
    return 0;
}

static dq_config *options(const char *text)
{
    dq_config *config = NULL;
    char copy[256], *save = NULL;
    OK(dq_config_new(&config));
    snprintf(copy, sizeof copy, "%s", text);
    for (char *word = strtok_r(copy, " ", &save); word; word = strtok_r(NULL, " ", &save)) {
        char *value = strchr(word, '=');
        *value++ = 0;
        OK(dq_config_set(config, word, value));
    }
    return config;
}

/* A job that has all rows: one R1 of N, or two matrices of N / 4 for four heads. */
static dq_calibrator *job_of(const char *text, int heads)
{
    dq_calibrator *job = NULL;
    dq_config *config = options(text);
    OK(dq_calibrator_new_rows(ctx, config, N / heads, heads, heads > 1 ? 2 : 1, &job));
    OK(dq_calibrator_add_rows(job, DQ_CALIBRATION_ACTIVATIONS, rows, 700, N, DQ_F32));
    OK(dq_calibrator_add_rows(job, DQ_CALIBRATION_ACTIVATIONS, rows + 700 * N, 250, 2 * N,
                              DQ_F32)); /* every other one */
    OK(dq_calibrator_add_rows(job, DQ_CALIBRATION_SINKS, rows, 4, N, DQ_F32));
    dq_config_free(config);
    return job;
}

static double float_of(dq_calibrator *job, const char *key)
{
    double x = NAN;
    OK(dq_calibrator_get_float(job, key, &x));
    return x;
}

static void matrices_of(dq_calibrator *job, double out[N * N]) { OK(dq_calibrator_copy_rotation(job, out, N * N)); }

/* ---- the whole way ---- */

static int32_t watch(void *user, const dq_progress_event *e)
{
    (*(int *)user)++;
    assert_non_null(strstr(e->stage, "fit R"));
    assert_true(e->index <= e->total && e->metric > 0);
    assert_true(e->orthogonality_error > 0 && e->orthogonality_error < 1e-4);
    return 0;
}

static void learns_r1_and_r2(void **state)
{
    (void)state;
    for (int heads = 1; heads <= 4; heads += 3) {
        int events = 0;
        double r[N * N];
        const char *report = NULL;
        dq_calibrator *job = job_of("ep=8 quant_steps=4", heads);
        OK(dq_calibrator_run(job, NULL, watch, &events));
        assert_true(events >= 1);
        matrices_of(job, r);
        int n = N / heads;
        for (int m = 0; m < (heads > 1 ? 2 : 1); m++)
            for (int i = 0; i < n; i++)
                for (int j = 0; j <= i; j++) {
                    double sum = 0;
                    for (int k = 0; k < n; k++) sum += r[(m * n + k) * n + i] * r[(m * n + k) * n + j];
                    assert_true(fabs(sum - (i == j)) <= 1e-12);
                }
        if (heads == 1) assert_true(float_of(job, "loss_after") < float_of(job, "loss_before"));
        assert_true(float_of(job, "error_after") <= (heads == 1 ? 0.98 : 1) * float_of(job, "error_before"));
        assert_true(float_of(job, "orthogonality_error") <= 1e-12);
        assert_true(float_of(job, "steps_done") == float_of(job, "steps_total"));
        OK(dq_calibrator_report(job, &report));
        assert_non_null(strstr(report, heads > 1 ? "\"name\":\"R2\"" : "\"name\":\"R1\""));
        assert_non_null(strstr(report, "\"kind\":\"sink\""));
        assert_non_null(strstr(report, "\"finish\":true"));
        assert_non_null(strstr(report, "\"diverged\":null"));
        if (heads == 1) assert_non_null(strstr(report, "\"rejected_error\":null"));
        assert_int_equal(dq_calibrator_run(job, NULL, NULL, NULL), DQ_E_STATE);
        dq_calibrator_free(job);
    }
}

/* From the identity, a fit of no epochs gives it back. */
static void starts_where_told(void **state)
{
    (void)state;
    double eye[N * N] = {0}, r[N * N];
    for (int i = 0; i < N; i++) eye[i * N + i] = i % 3 ? 1 : -1;
    dq_calibrator *job = job_of("ep=0 quant_steps=0", 1);
    OK(dq_calibrator_set_initial(job, eye, N * N));
    OK(dq_calibrator_run(job, NULL, NULL, NULL));
    matrices_of(job, r);
    for (int i = 0; i < N * N; i++) assert_true(fabs(r[i] - eye[i]) < 1e-14);
    dq_calibrator_free(job);
    job = job_of("", 1);
    eye[3] = 0.5;
    assert_int_equal(dq_calibrator_set_initial(job, eye, N * N), DQ_E_NUMERIC);
    assert_non_null(strstr(dq_error_text(), "= 0.5"));
    eye[3] = NAN;
    assert_int_equal(dq_calibrator_set_initial(job, eye, N * N), DQ_E_NONFINITE);
    assert_int_equal(dq_calibrator_set_initial(job, eye, 5), DQ_E_INVALID);
    dq_calibrator_free(job);
}

/* ---- a loss of the host ---- */

/* Sum of fourth powers: what kurtosis measures where every row has the same norm. */
static dq_status fourth_powers(void *user, const float *o, int64_t count, int64_t cols, float *grad, double *loss)
{
    double sum = 0;
    (*(int *)user)++;
    for (int64_t i = 0; i < count * cols; i++) {
        double x = o[i];
        sum += x * x * x * x;
        if (grad) grad[i] = (float)(4 * x * x * x / (double)count);
    }
    *loss = sum / (double)count;
    return DQ_OK;
}

static dq_status refuses(void *user, const float *o, int64_t count, int64_t cols, float *grad, double *loss)
{
    (void)user, (void)o, (void)count, (void)cols, (void)grad, (void)loss;
    return DQ_E_UNSUPPORTED;
}

static void minimises_a_loss_of_the_host(void **state)
{
    (void)state;
    int calls = 0;
    const char *report = NULL;
    dq_rotation_loss loss = {.struct_size = sizeof loss,
                             .abi = DQ_ROTATION_LOSS_ABI,
                             .user = &calls,
                             .name = "fourth powers",
                             .evaluate = fourth_powers};
    dq_calibrator *job = job_of("method=qr lr=0.005 ep=30 quant_steps=0", 1);
    OK(dq_calibrator_set_loss(job, &loss));
    OK(dq_calibrator_run(job, NULL, NULL, NULL));
    assert_true(calls > 20);
    assert_true(float_of(job, "loss_after") < 0.97 * float_of(job, "loss_before"));
    OK(dq_calibrator_report(job, &report));
    assert_non_null(strstr(report, "\"loss\":\"fourth powers\""));
    dq_calibrator_free(job);
    job = job_of("", 1); /* polar-mm: the curvature is not known */
    OK(dq_calibrator_set_loss(job, &loss));
    assert_int_equal(dq_calibrator_run(job, NULL, NULL, NULL), DQ_E_INVALID);
    assert_non_null(strstr(dq_error_text(), "curvature"));
    loss.evaluate = refuses;
    loss.curvature = 1;
    OK(dq_calibrator_set_loss(job, &loss));
    assert_int_equal(dq_calibrator_run(job, NULL, NULL, NULL), DQ_E_UNSUPPORTED);
    loss.abi = 9;
    assert_int_equal(dq_calibrator_set_loss(job, &loss), DQ_E_INVALID);
    dq_calibrator_free(job);
}

/* ---- interruptions ---- */

static const char LONG[] = "method=qr optim=adam lr=0.005 ep=6 bsz=1 seqlen=256 quant_steps=3";

static void resumes_to_the_same_bits(void **state)
{
    (void)state;
    double whole[N * N], resumed[N * N];
    int32_t done = 0;
    dq_calibrator *job = job_of(LONG, 1);
    OK(dq_calibrator_run(job, NULL, NULL, NULL));
    matrices_of(job, whole);
    int steps = (int)float_of(job, "steps_done");
    dq_calibrator_free(job);
    for (int stop = 1; stop < steps; stop += 5) {
        job = job_of(LONG, 1);
        assert_int_equal(dq_calibrator_checkpoint(job, scratch_dir()), DQ_E_STATE);
        for (int i = 0; i < stop; i++) {
            OK(dq_calibrator_step(job, NULL, NULL, NULL, &done));
            OK(dq_calibrator_checkpoint(job, scratch_dir()));
        }
        dq_calibrator_free(job);
        job = job_of(LONG, 1);
        OK(dq_calibrator_restore(job, scratch_dir()));
        assert_int_equal((int)float_of(job, "steps_done"), stop);
        OK(dq_calibrator_run(job, NULL, NULL, NULL));
        matrices_of(job, resumed);
        assert_memory_equal(whole, resumed, sizeof whole);
        dq_calibrator_free(job);
    }
}

static void other_jobs_checkpoints_are_refused(void **state)
{
    (void)state;
    int32_t done = 0;
    dq_calibrator *job = job_of(LONG, 1);
    OK(dq_calibrator_step(job, NULL, NULL, NULL, &done));
    OK(dq_calibrator_checkpoint(job, scratch_dir()));
    dq_calibrator_free(job);
    job = job_of(LONG, 1);
    OK(dq_calibrator_add_rows(job, DQ_CALIBRATION_SINKS, rows, 1, N, DQ_F32));
    assert_int_equal(dq_calibrator_restore(job, scratch_dir()), DQ_E_MISMATCH);
    assert_non_null(strstr(dq_error_text(), "rows is"));
    OK(dq_calibrator_add_rows(job, DQ_CALIBRATION_SINKS, rows, 1, N, DQ_F32)); /* the job is as it was */
    OK(dq_calibrator_run(job, NULL, NULL, NULL));
    assert_int_equal(dq_calibrator_restore(job, scratch_dir()), DQ_E_STATE);
    dq_calibrator_free(job);
    job = job_of("method=cayley", 1);
    assert_int_equal(dq_calibrator_restore(job, scratch_dir()), DQ_E_MISMATCH);
    assert_non_null(strstr(dq_error_text(), "method is qr there and cayley here"));
    scratch_empty();
    assert_int_equal(dq_calibrator_restore(job, scratch_dir()), DQ_E_NOTFOUND);
    dq_calibrator_free(job);
}

static int32_t stop_at_three(void *user, const dq_progress_event *e)
{
    (void)user;
    return e->index >= 3;
}

static void can_be_cancelled(void **state)
{
    (void)state;
    int32_t done = 0;
    dq_cancel *cancel = NULL;
    double r[N * N];
    dq_calibrator *job = job_of(LONG, 1);
    OK(dq_cancel_new(&cancel));
    assert_int_equal(dq_calibrator_run(job, NULL, stop_at_three, NULL), DQ_E_CANCELLED);
    assert_int_equal(dq_calibrator_step(job, NULL, NULL, NULL, &done), DQ_E_STATE);
    assert_true(float_of(job, "steps_done") >= 3);
    matrices_of(job, r); /* the best so far */
    dq_calibrator_free(job);
    job = job_of(LONG, 1);
    dq_cancel_set(cancel);
    assert_int_equal(dq_calibrator_step(job, cancel, NULL, NULL, &done), DQ_E_CANCELLED);
    dq_calibrator_free(job);
    dq_cancel_free(cancel);
}

/* ---- refusals ---- */

static void precise_refusals(void **state)
{
    (void)state;
    dq_calibrator *job = NULL;
    double r[N * N], x;
    float bad[2 * N];
    memcpy(bad, rows, sizeof bad);
    bad[N + 5] = INFINITY;
    assert_int_equal(dq_calibrator_new_rows(ctx, NULL, 1, 1, 1, &job), DQ_E_INVALID);
    assert_int_equal(dq_calibrator_new_rows(ctx, NULL, 8, 6, 4, &job), DQ_E_INVALID);
    dq_config *config = options("sink_weight=0.6 weight_weight=0.4");
    assert_int_equal(dq_calibrator_new_rows(ctx, config, 8, 1, 1, &job), DQ_E_INVALID);
    assert_null(job);
    dq_config_free(config);
    OK(dq_calibrator_new_rows(ctx, NULL, N, 1, 1, &job));
    assert_int_equal(dq_calibrator_run(job, NULL, NULL, NULL), DQ_E_STATE);
    assert_non_null(strstr(dq_error_text(), "dq_calibrator_add_rows"));
    assert_int_equal(dq_calibrator_add_rows(job, 0, bad, 2, N, DQ_F32), DQ_E_NONFINITE);
    assert_non_null(strstr(dq_error_text(), "activation row (1, 5)"));
    assert_int_equal(dq_calibrator_add_rows(job, 3, rows, 2, N, DQ_F32), DQ_E_INVALID);
    assert_int_equal(dq_calibrator_add_rows(job, 0, rows, 2, N - 1, DQ_F32), DQ_E_INVALID);
    assert_int_equal(dq_calibrator_add_rows(job, 0, rows, 0, N, DQ_F32), DQ_E_INVALID);
    assert_int_equal(dq_calibrator_add_rows(job, 0, rows, 2, N, DQ_I32), DQ_E_UNSUPPORTED);
    assert_int_equal(dq_calibrator_copy_rotation(job, r, N * N), DQ_E_STATE);
    assert_int_equal(dq_calibrator_get_float(job, "loss_after", &x), DQ_E_STATE);
    assert_int_equal(dq_calibrator_get_float(job, "nonsense", &x), DQ_E_NOTFOUND);
    memset(bad, 0, sizeof bad);
    OK(dq_calibrator_add_rows(job, 0, bad, 2, N, DQ_F32));
    assert_int_equal(dq_calibrator_run(job, NULL, NULL, NULL), DQ_E_INVALID);
    assert_non_null(strstr(dq_error_text(), "2 activation rows are zero"));
    OK(dq_calibrator_add_rows(job, 0, rows, 100, N, DQ_F32)); /* now there is something */
    OK(dq_calibrator_run(job, NULL, NULL, NULL));
    assert_int_equal(dq_calibrator_add_rows(job, 0, rows, 2, N, DQ_F32), DQ_E_STATE);
    assert_int_equal(dq_calibrator_copy_rotation(job, r, N * N - 1), DQ_E_INVALID);
    dq_calibrator_free(job);
    dq_calibrator_free(NULL);
}

static void upstream_takes_its_steps(void **state)
{
    (void)state;
    const char *report = NULL;
    dq_calibrator *job = job_of("compat=upstream", 1);
    OK(dq_calibrator_run(job, NULL, NULL, NULL));
    assert_true(float_of(job, "steps_done") == 10); /* one batch an epoch */
    OK(dq_calibrator_report(job, &report));
    assert_null(strstr(report, "sink"));
    assert_non_null(strstr(report, "\"best_step\":9"));
    dq_calibrator_free(job);
    job = job_of("compat=upstream", 4); /* R2 at the defaults of the original program never moves */
    OK(dq_calibrator_run(job, NULL, NULL, NULL));
    assert_true(float_of(job, "steps_done") == 0);
    dq_calibrator_free(job);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(learns_r1_and_r2),
        cmocka_unit_test(starts_where_told),
        cmocka_unit_test(minimises_a_loss_of_the_host),
        cmocka_unit_test(resumes_to_the_same_bits),
        cmocka_unit_test(other_jobs_checkpoints_are_refused),
        cmocka_unit_test(can_be_cancelled),
        cmocka_unit_test(precise_refusals),
        cmocka_unit_test(upstream_takes_its_steps),
    };
    return cmocka_run_group_tests(tests, open_context, close_context);
}
