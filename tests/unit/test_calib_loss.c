/* calib: losses of rotated rows and their gradients, against PyTorch, finite differences and known bounds.
 * SPDX-License-Identifier: Apache-2.0 */
#include <math.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <cmocka.h>

#include "base/rng.h"
#include "base/status.h"
#include "calib/loss.h"
#include "fixture.h"
#include "golden.h"
#include "ok.h"

static fixture f;

static int open_device(void **state)
{
    (void)state;
    fixture_open(&f, "cpu", 2);
    return 0;
}

static int close_device(void **state)
{
    (void)state;
    fixture_close(&f);
    return 0;
}

static const dq_fit_loss batch_losses[] = {DQ_FIT_SWD, DQ_FIT_SWD_CHANNEL, DQ_FIT_SWD_GAUSS};

/* ---- PyTorch ---- */

static void sliced_losses_match_pytorch(void **state)
{
    static const char *const names[] = {"swd", "swd_channel", "swd_gauss"};
    (void)state;
    golden g = golden_load("calib_losses");
    const golden_array *o = golden_find(&g, "o");
    int64_t count = o->rows * o->cols;
    float *grad = malloc((size_t)count * sizeof *grad);
    for (int i = 0; i < 3; i++) {
        char name[32];
        double value = 0;
        dq_loss loss = {.kind = batch_losses[i]};
        OK(dq_loss_of_batch(&f.env, &loss, o->data, o->rows, o->cols, grad, &value));
        const double *expected = golden_find(&g, names[i])->data;
        assert_true(fabs(value - expected[0]) <= 1e-12 * expected[0]);
        snprintf(name, sizeof name, "%s_grad", names[i]);
        const double *slope = golden_find(&g, name)->data;
        for (int64_t k = 0; k < count; k++) assert_true(fabs(grad[k] - slope[k]) <= 1e-8 + 1e-6 * fabs(slope[k]));
    }
    free(grad);
    golden_free(&g);
}

/* d loss / d R of the losses that one row decides, on both devices, against autograd in fp64 (make_calib.py). */
static void row_losses_match_pytorch(void **state)
{
    static const struct {
        const char *name;
        dq_fit_loss kind;
        int symmetric;
    } losses[] = {{"whip", DQ_FIT_WHIP, 0},       {"kurtosis", DQ_FIT_KURTOSIS, 0}, {"variance", DQ_FIT_VARIANCE, 0},
                  {"quant", DQ_FIT_QUANT, 0},     {"quant_sym", DQ_FIT_QUANT, 1},   {"range", DQ_FIT_RANGE, 0},
                  {"range_sym", DQ_FIT_RANGE, 1}, {"snap", DQ_FIT_SNAP, 0},         {"snap_sym", DQ_FIT_SNAP, 1}};
    static const char *const backends[] = {"ref", "cpu"};
    const dq_orbit orbit = {6, 4, 2};
    (void)state;
    golden g = golden_load("calib_grads");
    const golden_array *x = golden_find(&g, "x"), *r = golden_find(&g, "r");
    for (int d = 0; d < 2; d++) {
        dq_device *on = NULL;
        dq_tensor tx, tr, tg;
        float got[12 * 6];
        OK(dq_device_open(&f.env, backends[d], "", DQ_POLICY_FORBID, &on));
        OK(dq_tensor_from_host(on, DQ_F32, x->rows, x->cols, x->data, &tx));
        OK(dq_tensor_from_host(on, DQ_F32, 12, 6, r->data, &tr));
        OK(dq_tensor_alloc(on, DQ_F32, 12, 6, &tg));
        for (size_t k = 0; k < 2 * sizeof losses / sizeof *losses; k++) {
            char name[32], slope[40];
            double value = 0;
            dq_loss loss = {.kind = losses[k / 2].kind,
                            .relative = k % 2,
                            .quant = {.bits = 4, .symmetric = losses[k / 2].symmetric, .clip = 0.9}};
            snprintf(name, sizeof name, "%s%s", losses[k / 2].name, k % 2 ? "_rel" : "");
            snprintf(slope, sizeof slope, "%s_grad", name);
            OK(dq_loss_of_rotation(&loss, &orbit, &tx, &tr, 1, 0, 0, &tg, DQ_MATH_F32, &value));
            OK(dq_tensor_download(&tg, got));
            double want = *(const double *)golden_find(&g, name)->data, largest = 0;
            const double *grad = golden_find(&g, slope)->data;
            if (!(fabs(value - want) <= 1e-6 * want))
                fail_msg("%s on %s: %.9g, PyTorch has %.9g", name, backends[d], value, want);
            for (int i = 0; i < 72; i++) largest = fmax(largest, fabs(grad[i]));
            for (int i = 0; i < 72; i++)
                if (!(fabs(got[i] - grad[i]) <= 5e-6 * largest))
                    fail_msg("%s on %s: slope %d is %.9g, PyTorch has %.9g", name, backends[d], i, (double)got[i],
                             grad[i]);
        }
        dq_tensor_free(&tx);
        dq_tensor_free(&tr);
        dq_tensor_free(&tg);
        dq_device_close(on);
    }
    golden_free(&g);
}

/* ---- finite differences ---- */

/* Root mean square of the numbers of one channel, or of all (cols = 0). */
static double rms_of(const float *o, int rows, int cols, int channel)
{
    double sum = 0;
    for (int i = 0; i < rows * cols; i++)
        if (channel < 0 || i % cols == channel) sum += (double)o[i] * o[i];
    return sqrt(sum / (channel < 0 ? rows * cols : rows));
}

/* The sliced losses count the scale of their targets as a constant; moving one number moves it, so what that does is taken
 * off the difference: targets are t = o - N grad / 2, d loss / d RMS = -2/N sum (o - t) t / RMS, d RMS / d o = o / (n RMS). */
static void sliced_gradients_match_differences(void **state)
{
    enum { ROWS = 23, COLS = 5, COUNT = ROWS * COLS };
    (void)state;
    float o[COUNT], grad[COUNT];
    dq_rng rng;
    dq_rng_seed_torch(&rng, 21);
    for (int i = 0; i < COUNT; i++) o[i] = (float)(dq_rng_normal(&rng) * (1 + i % COLS));
    for (int k = 0; k < 3; k++) {
        dq_loss loss = {.kind = batch_losses[k]};
        double value;
        OK(dq_loss_of_batch(&f.env, &loss, o, ROWS, COLS, grad, &value));
        for (int i = 0; i < COUNT; i += 3) {
            int channel = batch_losses[k] == DQ_FIT_SWD ? -1 : i % COLS, members = channel < 0 ? COUNT : ROWS;
            double rms = rms_of(o, ROWS, COLS, channel), by_scale = 0, side[2];
            for (int j = 0; j < COUNT; j++) {
                double off = (double)COUNT * grad[j] / 2, target = o[j] - off;
                if (channel < 0 || j % COLS == channel) by_scale -= 2.0 / COUNT * off * target / rms;
            }
            const float kept = o[i], step = 0x1p-13f;
            for (int s = 0; s < 2; s++) {
                o[i] = s ? kept - step : kept + step;
                OK(dq_loss_of_batch(&f.env, &loss, o, ROWS, COLS, NULL, &side[s]));
            }
            double difference = (side[0] - side[1]) / ((double)(kept + step) - (double)(kept - step));
            o[i] = kept;
            double want = difference - by_scale * kept / (members * rms);
            if (!(fabs(grad[i] - want) <= 1e-5 * (1 + fabs(want))))
                fail_msg("%s: slope %d is %g, by differences %g", dq_loss_name(loss.kind), i, (double)grad[i], want);
        }
    }
}

typedef struct problem {
    dq_orbit orbit;
    int64_t rows;
    float *x, *r;
    dq_tensor tx, tr;
} problem;

static void make_problem(problem *p, int64_t n, int32_t heads, int32_t groups, int64_t rows)
{
    dq_rng rng;
    dq_rng_seed_torch(&rng, 11);
    *p = (problem){.orbit = {n, heads, groups}, .rows = rows};
    int64_t width = n * heads;
    p->x = malloc((size_t)(rows * width) * sizeof *p->x);
    p->r = malloc((size_t)(groups * n * n) * sizeof *p->r);
    for (int64_t i = 0; i < rows * width; i++) p->x[i] = (float)dq_rng_normal(&rng);
    for (int64_t i = 0; i < groups * n * n; i++) p->r[i] = (float)(dq_rng_normal(&rng) / sqrt((double)n));
    OK(dq_tensor_from_host(f.dev, DQ_F32, rows, width, p->x, &p->tx));
    OK(dq_tensor_from_host(f.dev, DQ_F32, groups * n, n, p->r, &p->tr));
}

static void free_problem(problem *p)
{
    dq_tensor_free(&p->tx);
    dq_tensor_free(&p->tr);
    free(p->x);
    free(p->r);
}

/* The value with one entry of R moved. */
static double value_at(problem *p, const dq_loss *loss, int64_t at, float r)
{
    double value = 0;
    float old = p->r[at];
    p->r[at] = r;
    OK(dq_tensor_upload(&p->tr, p->r));
    OK(dq_loss_of_rotation(loss, &p->orbit, &p->tx, &p->tr, 1, 0, 0, NULL, DQ_MATH_F32, &value));
    p->r[at] = old;
    return value;
}

/* d loss / d R against central differences for every loss that is smooth enough. */
static void gradients_match_differences(void **state)
{
    static const dq_fit_loss kinds[] = {DQ_FIT_WHIP, DQ_FIT_KURTOSIS, DQ_FIT_VARIANCE};
    (void)state;
    problem p;
    make_problem(&p, 8, 4, 2, 50);
    dq_tensor grad = {0};
    float slope[2 * 8 * 8];
    OK(dq_tensor_alloc(f.dev, DQ_F32, 16, 8, &grad));
    for (int k = 0; k < 3; k++)
        for (int relative = 0; relative < 2; relative++) {
            dq_loss loss = {.kind = kinds[k], .relative = relative != 0};
            double value = 0, worst = 0, largest = 0;
            OK(dq_tensor_upload(&p.tr, p.r));
            OK(dq_loss_of_rotation(&loss, &p.orbit, &p.tx, &p.tr, 1, 0, 0, &grad, DQ_MATH_F32, &value));
            OK(dq_tensor_download(&grad, slope));
            for (int64_t i = 0; i < 128; i += 5) {
                float step = 2e-3f, up = p.r[i] + step, down = p.r[i] - step;
                double d = (value_at(&p, &loss, i, up) - value_at(&p, &loss, i, down)) / ((double)up - down);
                worst = fmax(worst, fabs(d - slope[i]));
                largest = fmax(largest, fabs(slope[i]));
            }
            if (!(worst <= 2e-2 * largest)) fail_msg("%s: %g of %g", dq_loss_name(kinds[k]), worst, largest);
        }
    dq_tensor_free(&grad);
    free_problem(&p);
}

/* What the host composes agrees with autograd (above) once it went through the rotation: chain rule by hand. */
static void rotation_of_a_batch_loss(void **state)
{
    (void)state;
    problem p;
    make_problem(&p, 6, 4, 2, 21);
    dq_tensor grad = {0};
    int64_t width = 24;
    float o[21 * 24], slope[21 * 24], got[72];
    OK(dq_tensor_alloc(f.dev, DQ_F32, 12, 6, &grad));
    for (int64_t t = 0; t < p.rows; t++)
        for (int64_t c = 0; c < width; c++) {
            double sum = 0;
            for (int64_t k = 0; k < 6; k++)
                sum += (double)p.x[t * width + c / 6 * 6 + k] * p.r[(c / 12 * 6 + k) * 6 + c % 6];
            o[t * width + c] = (float)sum;
        }
    for (int i = 0; i < 3; i++) {
        dq_loss loss = {.kind = batch_losses[i]};
        double value = 0, expected = 0, shift = 0.25;
        OK(dq_loss_of_batch(&f.env, &loss, o, p.rows, width, slope, &expected));
        OK(dq_op_fill(2, &grad));
        OK(dq_loss_of_rotation(&loss, &p.orbit, &p.tx, &p.tr, 3, shift, 0.5, &grad, DQ_MATH_F32, &value));
        OK(dq_tensor_download(&grad, got));
        assert_true(fabs(value - expected) <= 1e-5 * expected);
        for (int64_t at = 0; at < 72; at++) {
            int64_t g = at / 36, row = at / 6 % 6, col = at % 6;
            double sum = 0;
            for (int64_t t = 0; t < p.rows; t++)
                for (int64_t h = 2 * g; h < 2 * g + 2; h++) {
                    int64_t c = t * width + h * 6;
                    sum += p.x[c + row] * ((double)slope[c + col] + shift / (double)p.rows * o[c + col]);
                }
            assert_true(fabs(got[at] - (1 + 3 * sum)) < 1e-4);
        }
    }
    dq_tensor_free(&grad);
    free_problem(&p);
}

/* The gradient of the quantization error pulls every number to its level: half a step towards the levels is downhill. */
static void quantization_error_pulls_to_levels(void **state)
{
    (void)state;
    problem p;
    make_problem(&p, 16, 1, 1, 40);
    dq_tensor grad = {0};
    float slope[256];
    double before = 0, after = 0, norm = 0;
    dq_loss loss = {.kind = DQ_FIT_QUANT, .quant = {.bits = 4, .clip = 1}};
    OK(dq_tensor_alloc(f.dev, DQ_F32, 16, 16, &grad));
    OK(dq_loss_of_rotation(&loss, &p.orbit, &p.tx, &p.tr, 1, 0, 0, &grad, DQ_MATH_F32, &before));
    OK(dq_tensor_download(&grad, slope));
    for (int i = 0; i < 256; i++) norm += (double)slope[i] * slope[i];
    for (int i = 0; i < 256; i++) p.r[i] -= (float)(1e-3 * slope[i] / sqrt(norm));
    OK(dq_tensor_upload(&p.tr, p.r));
    OK(dq_loss_of_rotation(&loss, &p.orbit, &p.tx, &p.tr, 1, 0, 0, NULL, DQ_MATH_F32, &after));
    assert_true(after < before);
    assert_true((before - after) > 0.5 * 1e-3 * sqrt(norm));
    dq_tensor_free(&grad);
    free_problem(&p);
}

/* ---- bounds (docs/numerics.md) ---- */

/* Whip per channel of rows of RMS 1 with the identity as rotation. */
static double whip_of(const float *x, int64_t rows, int64_t n)
{
    dq_tensor tx = {0}, tr = {0};
    dq_orbit orbit = {n, 1, 1};
    dq_loss loss = {.kind = DQ_FIT_WHIP};
    double value = 0;
    float *r = calloc((size_t)(n * n), sizeof *r);
    for (int64_t i = 0; i < n; i++) r[i * n + i] = 1;
    OK(dq_tensor_from_host(f.dev, DQ_F32, rows, n, x, &tx));
    OK(dq_tensor_from_host(f.dev, DQ_F32, n, n, r, &tr));
    OK(dq_loss_of_rotation(&loss, &orbit, &tx, &tr, 1, 0, 0, NULL, DQ_MATH_F32, &value));
    dq_tensor_free(&tx);
    dq_tensor_free(&tr);
    free(r);
    return value / (double)n;
}

static void whip_of_known_distributions(void **state)
{
    enum { ROWS = 512, N = 256 };
    static const double expected[] = {0.3679, 0.4752, 0.5232, 0.5858}; /* two points, uniform, Gaussian, Laplace */
    (void)state;
    float *x = malloc(ROWS * N * sizeof *x);
    dq_rng rng;
    dq_rng_seed_torch(&rng, 5);
    for (int kind = 0; kind < 4; kind++) {
        for (int i = 0; i < ROWS * N; i++) {
            double u = dq_rng_uniform(&rng), sign = dq_rng_u32(&rng) & 1 ? 1 : -1;
            x[i] = (float)(kind == 0   ? sign
                           : kind == 1 ? sqrt(3.0) * (2 * u - 1)
                           : kind == 2 ? dq_rng_normal(&rng)
                                       : -sign * log(1 - u) / sqrt(2.0));
        }
        assert_true(fabs(whip_of(x, ROWS, N) - expected[kind]) < 2e-3);
    }
    free(x);
}

/* n exp(-RMS) <= loss <= n for any row: the bound is met by rows of equal magnitudes, n is approached by one spike. */
static void whip_stays_in_its_bounds(void **state)
{
    enum { N = 64 };
    (void)state;
    dq_rng rng;
    dq_rng_seed_torch(&rng, 6);
    float x[N];
    for (int trial = 0; trial < 200; trial++) {
        double square = 0, scale = exp(2 * dq_rng_normal(&rng)), power = 1 + 6 * dq_rng_uniform(&rng);
        for (int i = 0; i < N; i++) {
            double v = dq_rng_normal(&rng);
            x[i] = (float)(scale * copysign(pow(fabs(v), power), v));
            square += (double)x[i] * x[i];
        }
        double loss = whip_of(x, 1, N);
        assert_true(loss <= 1 + 1e-6);
        assert_true(loss >= exp(-sqrt(square / N)) - 1e-6);
    }
    for (int i = 0; i < N; i++) x[i] = i ? 0.0f : 8.0f;
    assert_true(fabs(whip_of(x, 1, N) - (63 + exp(-8)) / 64) < 1e-6);
}

/* ---- the host's own ---- */

static dq_status square_loss(void *user, const float *o, int64_t rows, int64_t cols, float *grad, double *loss)
{
    double sum = 0;
    (*(int *)user)++;
    for (int64_t i = 0; i < rows * cols; i++) {
        sum += (double)o[i] * o[i];
        if (grad) grad[i] = (float)(2 * o[i] / (double)rows);
    }
    *loss = sum / (double)rows;
    return DQ_OK;
}

static dq_status failing_loss(void *user, const float *o, int64_t rows, int64_t cols, float *grad, double *loss)
{
    (void)user, (void)o, (void)rows, (void)cols, (void)grad, (void)loss;
    return DQ_E_CANCELLED;
}

static void loss_of_the_host(void **state)
{
    (void)state;
    int calls = 0;
    float o[6] = {1, -2, 3, 0, 0.5f, 1}, grad[6];
    double value = 0;
    dq_loss loss = {.kind = DQ_FIT_HOST, .fn = square_loss, .user = &calls, .curvature = 2};
    OK(dq_loss_of_batch(&f.env, &loss, o, 2, 3, grad, &value));
    assert_int_equal(calls, 1);
    assert_true(fabs(value - 15.25 / 2) < 1e-12 && grad[2] == 3.0f);
    assert_true(dq_loss_curvature(&loss, 3) == 2);
    loss.fn = failing_loss;
    assert_int_equal(dq_loss_of_batch(&f.env, &loss, o, 2, 3, NULL, &value), DQ_E_CANCELLED);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(sliced_losses_match_pytorch),
        cmocka_unit_test(row_losses_match_pytorch),
        cmocka_unit_test(sliced_gradients_match_differences),
        cmocka_unit_test(gradients_match_differences),
        cmocka_unit_test(rotation_of_a_batch_loss),
        cmocka_unit_test(quantization_error_pulls_to_levels),
        cmocka_unit_test(whip_of_known_distributions),
        cmocka_unit_test(whip_stays_in_its_bounds),
        cmocka_unit_test(loss_of_the_host),
    };
    return cmocka_run_group_tests(tests, open_device, close_device);
}
