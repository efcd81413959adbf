/* calib: fitting one rotation. Training follows PyTorch step by step; every method learns; nothing depends on threads, and
 * an interrupted fit goes on to the same bits. SPDX-License-Identifier: Apache-2.0 */
#include <math.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <cmocka.h>

#include "base/rng.h"
#include "base/status.h"
#include "calib/fit.h"
#include "fake_backend.h"
#include "golden.h"

#define OK(expr)                                                                                                       \
    do {                                                                                                               \
        if ((expr) != DQ_OK) fail_msg("%s: %s", #expr, dq_error_text());                                               \
    } while (0)

typedef struct bench {
    dq_env env;
    dq_device *dev;
} bench;

static void open_bench(bench *b, const char *backend, int threads)
{
    OK(dq_env_init(&b->env, NULL, threads));
    if (strcmp(backend, "fake") != 0) {
        OK(dq_device_open(&b->env, backend, "", DQ_POLICY_ALLOW, &b->dev));
        return;
    }
    static dq_backend table; /* memory the host cannot touch */
    table = fake_backend();
    OK(dq_device_open_table(&b->env, &table, "", DQ_POLICY_ALLOW, &b->dev));
}

static void close_bench(bench *b)
{
    dq_device_close(b->dev);
    dq_env_clear(&b->env);
}

/* ---- material ---- */

static dq_rows *new_rows(bench *b, int64_t width, dq_dtype dtype, uint64_t budget, double held_out)
{
    dq_rows *rows = NULL;
    dq_rows_spec spec = {
        .width = width, .dtype = dtype, .budget = budget, .share = {0.6, 0.1, 0.3}, .held_out = held_out, .seed = 3};
    OK(dq_rows_new(b->dev, &spec, &rows));
    return rows;
}

static void add_rows(bench *b, dq_rows *rows, dq_row_kind kind, const float *x, int64_t count)
{
    dq_tensor t = {0};
    OK(dq_tensor_from_host(b->dev, DQ_F32, count, dq_rows_get_spec(rows)->width, x, &t));
    OK(dq_rows_add(rows, kind, &t));
    dq_tensor_free(&t);
}

/* Heavy-tailed sources behind a mixing matrix, RMS 1: a rotation finds the sources' opposite. */
static float *heavy_rows(int64_t count, int64_t width, uint64_t seed)
{
    dq_rng rng;
    float *x = malloc((size_t)(count * width) * sizeof *x);
    double *mix = malloc((size_t)(width * width) * sizeof *mix), *source = malloc((size_t)width * sizeof *source);
    dq_rng_seed_torch(&rng, 1);
    for (int64_t i = 0; i < width * width; i++) mix[i] = 0.25 * dq_rng_normal(&rng) + (i % (width + 1) == 0);
    dq_rng_seed_torch(&rng, seed);
    for (int64_t t = 0; t < count; t++) {
        double square = 0;
        for (int64_t k = 0; k < width; k++) {
            double v = dq_rng_normal(&rng);
            source[k] = v * v * v * (k % 5 == 0 ? 4 : 0.5);
        }
        for (int64_t c = 0; c < width; c++) {
            double sum = 0;
            for (int64_t k = 0; k < width; k++) sum += source[k] * mix[k * width + c];
            x[t * width + c] = (float)sum;
            square += sum * sum;
        }
        for (int64_t c = 0; c < width; c++) x[t * width + c] /= (float)sqrt(square / (double)width);
    }
    free(mix);
    free(source);
    return x;
}

static dq_fit_spec usual_spec(int64_t n, int32_t heads, int32_t groups)
{
    dq_quant_target target = {.bits = 4, .clip = 0.9};
    dq_loss procrustes = {.kind = DQ_FIT_QUANT, .quant = target, .relative = true};
    return (dq_fit_spec){.orbit = {n, heads, groups},
                         .finish = {procrustes, procrustes, procrustes},
                         .finish_boldness = 1,
                         .method = DQ_FIT_QR,
                         .loss = {.kind = DQ_FIT_WHIP},
                         .lr = 0.02,
                         .momentum = 0.9,
                         .epochs = 10,
                         .accumulation = 1,
                         .mm_boldness = 0.25,
                         .mm_memory = 0.5,
                         .weight = {0.75, 0.05, 0.2},
                         .quant = {target, target, target}};
}

static void run(dq_fit *fit)
{
    for (bool done = dq_fit_done(fit); !done;) OK(dq_fit_step(fit, &done));
}

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
    bench b;
    dq_fit *fit = NULL;
    dq_fit_report report;
    open_bench(&b, backend, 2);
    snprintf(name, sizeof name, "%s_x", t->rows);
    const golden_array *x = golden_find(g, name);
    dq_rows *rows = new_rows(&b, x->cols, DQ_F32, 1 << 20, 0);
    add_rows(&b, rows, DQ_ROWS_ACTIVATION, x->data, x->rows);
    OK(dq_rows_seal(rows));
    dq_fit_spec spec = usual_spec(t->n, t->heads, t->groups);
    spec.optim = t->optim;
    spec.loss.kind = t->loss;
    spec.lr = t->lr;
    spec.cosine = t->cosine;
    spec.epochs = 20;
    spec.batch = x->rows;
    snprintf(name, sizeof name, "%s_start", t->rows);
    OK(dq_fit_new(b.dev, &spec, rows, golden_find(g, name)->data, &fit));
    run(fit);
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
    close_bench(&b);
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

/* A fit on three kinds of rows, R2-shaped when heads > 1. */
typedef struct job {
    bench b;
    dq_rows *rows;
    dq_fit *fit;
} job;

static void open_job_on(job *j, const char *backend, int threads, const dq_fit_spec *spec)
{
    int64_t width = dq_orbit_width(&spec->orbit);
    float *x = heavy_rows(3000, width, 2), *sinks = heavy_rows(24, width, 7), *weights = heavy_rows(700, width, 9);
    open_bench(&j->b, backend, threads);
    j->rows = new_rows(&j->b, width, DQ_BF16, 1 << 22, 0.1);
    add_rows(&j->b, j->rows, DQ_ROWS_ACTIVATION, x, 3000);
    add_rows(&j->b, j->rows, DQ_ROWS_SINK, sinks, 24);
    add_rows(&j->b, j->rows, DQ_ROWS_WEIGHT, weights, 700);
    OK(dq_rows_seal(j->rows));
    OK(dq_fit_new(j->b.dev, spec, j->rows, NULL, &j->fit));
    free(x);
    free(sinks);
    free(weights);
}

static void open_job(job *j, int threads, const dq_fit_spec *spec) { open_job_on(j, "cpu", threads, spec); }

static void close_job(job *j)
{
    dq_fit_free(j->fit);
    dq_rows_free(j->rows);
    close_bench(&j->b);
}

static void check_orthogonal(const double *r, int64_t n, int32_t groups)
{
    for (int32_t g = 0; g < groups; g++, r += n * n)
        for (int64_t i = 0; i < n; i++)
            for (int64_t j = 0; j <= i; j++) {
                double sum = 0;
                for (int64_t k = 0; k < n; k++) sum += r[k * n + i] * r[k * n + j];
                assert_true(fabs(sum - (i == j)) <= 1e-12);
            }
}

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
            job j;
            dq_fit_report r;
            double matrix[2 * 32 * 32];
            dq_fit_spec spec = usual_spec(orbits[o].n, orbits[o].heads, orbits[o].groups);
            spec.method = ways[w].method;
            spec.optim = ways[w].optim;
            spec.lr = ways[w].lr;
            spec.batch = 300;
            open_job(&j, 2, &spec);
            run(j.fit);
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
        job j;
        dq_fit_report r;
        dq_fit_spec spec = usual_spec(24, 1, 1);
        spec.method = DQ_FIT_POLAR_MM;
        spec.loss = (dq_loss){.kind = kinds[k], .quant = {.bits = 4, .clip = 0.9}};
        spec.mm_boldness = 1;
        spec.mm_memory = 0;
        spec.batch = 3000;
        open_job(&j, 2, &spec);
        run(j.fit);
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
    job j;
    dq_fit_report r;
    dq_fit_spec spec = usual_spec(32, 1, 1);
    spec.method = DQ_FIT_POLAR_MM;
    spec.batch = 3000;
    open_job(&j, 2, &spec);
    run(j.fit);
    OK(dq_fit_get_report(j.fit, &r));
    double before = r.kinds[DQ_ROWS_ACTIVATION].error_after;
    close_job(&j);
    spec.quant_steps = 12;
    open_job(&j, 2, &spec);
    run(j.fit);
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
            job j;
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
            run(j.fit);
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
        job j;
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
        run(j.fit);
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

/* ---- the same bits ---- */

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
                job j;
                dq_fit_spec spec = long_spec(heads);
                spec.optim = adam ? DQ_FIT_ADAM : DQ_FIT_SGD;
                spec.loss.kind = adam ? DQ_FIT_SWD_CHANNEL : DQ_FIT_WHIP;
                open_job(&j, i ? 3 : 1, &spec);
                run(j.fit);
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
        job whole;
        double expected[1024], got[1024];
        open_job(&whole, 2, &spec);
        run(whole.fit);
        OK(dq_fit_result(whole.fit, expected));
        int64_t steps = dq_fit_steps_done(whole.fit);
        assert_int_equal(steps, 12);
        for (int64_t stop = 0; stop < steps; stop++) {
            job first, second;
            void *bytes = NULL;
            size_t size = 0;
            bool done = false;
            open_job(&first, 2, &spec);
            for (int64_t i = 0; i < stop; i++) OK(dq_fit_step(first.fit, &done));
            OK(dq_fit_export(first.fit, &bytes, &size));
            open_job(&second, 1, &spec);
            OK(dq_fit_import(second.fit, bytes, size));
            run(second.fit);
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
    job a, c;
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
    close_job(&a);
    close_job(&c);
}

/* ---- trouble ---- */

static void divergence_keeps_the_last_good(void **state)
{
    (void)state;
    job j;
    dq_fit_report r;
    double matrix[1024];
    dq_fit_spec spec = usual_spec(32, 1, 1);
    spec.lr = 1e30;
    spec.batch = 500;
    open_job(&j, 1, &spec);
    run(j.fit);
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
    job j;
    dq_fit *again = NULL;
    dq_fit_report r;
    double matrix[1024];
    dq_fit_spec spec = usual_spec(32, 1, 1);
    spec.batch = 500;
    spec.method = DQ_FIT_POLAR_MM; /* well below chance */
    spec.epochs = 30;
    open_job(&j, 1, &spec);
    run(j.fit);
    OK(dq_fit_result(j.fit, matrix));
    spec.method = DQ_FIT_NEWTON_SCHULZ; /* QR-Orth recovers: Z grows, and with it the step shrinks */
    spec.lr = 3;
    OK(dq_fit_new(j.b.dev, &spec, j.rows, matrix, &again));
    run(again);
    OK(dq_fit_get_report(again, &r));
    assert_true(r.diverged_step > 0 && r.steps < r.steps_total);
    assert_true(r.loss_after == r.loss_before && r.best_step == 0);
    dq_fit_free(again);
    close_job(&j);
}

static void stops_when_held_out_rows_gain_nothing(void **state)
{
    (void)state;
    job j;
    dq_fit_report r;
    dq_fit_spec spec = usual_spec(32, 1, 1);
    spec.method = DQ_FIT_POLAR_MM;
    spec.batch = 3000;
    spec.epochs = 400;
    spec.patience = 3;
    open_job(&j, 2, &spec);
    run(j.fit);
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
        bench b;
        dq_fit *fit = NULL;
        dq_fit_report r;
        double matrix[1024];
        dq_fit_spec spec = usual_spec(32, 1, 1);
        spec.method = methods[m];
        open_bench(&b, "cpu", 1);
        dq_rows *rows = new_rows(&b, 32, DQ_F32, 1 << 20, 0);
        add_rows(&b, rows, DQ_ROWS_ACTIVATION, x, 200);
        OK(dq_rows_seal(rows));
        OK(dq_fit_new(b.dev, &spec, rows, NULL, &fit));
        run(fit);
        OK(dq_fit_get_report(fit, &r));
        OK(dq_fit_result(fit, matrix));
        check_orthogonal(matrix, 32, 1);
        assert_true(r.loss_after < r.loss_before);
        dq_fit_free(fit);
        dq_rows_free(rows);
        close_bench(&b);
    }
    free(x);
}

static void the_original_programs_ways(void **state)
{
    (void)state;
    job j;
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
    run(j.fit);
    OK(dq_fit_get_report(j.fit, &r));
    assert_int_equal(r.steps, 4);
    assert_int_equal(r.best_step, 3); /* the rotation before the last step */
    close_job(&j);
}

static void precise_refusals(void **state)
{
    (void)state;
    bench b;
    dq_fit *fit = NULL;
    float zeros[64] = {0};
    double skewed[64] = {0};
    open_bench(&b, "cpu", 1);
    dq_rows *rows = new_rows(&b, 8, DQ_F32, 1 << 16, 0);
    dq_fit_spec spec = usual_spec(8, 1, 1);
    assert_int_equal(dq_fit_new(b.dev, &spec, rows, NULL, &fit), DQ_E_STATE);
    assert_int_equal(dq_rows_seal(rows), DQ_E_INVALID);
    add_rows(&b, rows, DQ_ROWS_ACTIVATION, zeros, 8);
    OK(dq_rows_seal(rows));
    assert_int_equal(dq_fit_new(b.dev, &spec, rows, NULL, &fit), DQ_E_INVALID);
    assert_non_null(strstr(dq_error_text(), "8 activation rows are zero"));
    for (int i = 0; i < 8; i++) skewed[9 * i] = i == 3 ? 1.25 : 1;
    assert_int_equal(dq_fit_new(b.dev, &spec, rows, skewed, &fit), DQ_E_NUMERIC);
    assert_non_null(strstr(dq_error_text(), "0.5625"));
    spec.method = DQ_FIT_POLAR_MM;
    spec.loss.kind = DQ_FIT_KURTOSIS;
    assert_int_equal(dq_fit_new(b.dev, &spec, rows, NULL, &fit), DQ_E_INVALID);
    assert_non_null(strstr(dq_error_text(), "kurtosis"));
    spec = usual_spec(4, 3, 1);
    assert_int_equal(dq_fit_new(b.dev, &spec, rows, NULL, &fit), DQ_E_INVALID);
    assert_null(fit);
    dq_rows_free(rows);
    close_bench(&b);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(training_follows_pytorch),
        cmocka_unit_test(every_method_learns),
        cmocka_unit_test(majorisation_is_monotone),
        cmocka_unit_test(finish_lowers_the_quantization_error),
        cmocka_unit_test(range_and_snap_learn),
        cmocka_unit_test(never_worse_than_the_start),
        cmocka_unit_test(threads_change_nothing),
        cmocka_unit_test(resumed_fits_reach_the_same_bits),
        cmocka_unit_test(foreign_states_are_refused),
        cmocka_unit_test(divergence_keeps_the_last_good),
        cmocka_unit_test(loss_above_the_start_is_divergence),
        cmocka_unit_test(stops_when_held_out_rows_gain_nothing),
        cmocka_unit_test(rank_deficient_rows),
        cmocka_unit_test(the_original_programs_ways),
        cmocka_unit_test(precise_refusals),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
