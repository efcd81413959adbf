/* The definitions behind the ops that fit rotations: derivatives against differences, known values and bounds of the
 * losses, refusals, and the memory of a pass over wide rows. The conformance tests compare devices with the reference.
 * SPDX-License-Identifier: Apache-2.0 */
#include <math.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stdlib.h>
#include <string.h>
#include <cmocka.h>

#include "backend/device.h"
#include "base/rng.h"
#include "base/status.h"
#include "fake_backend.h"
#include "golden.h"

static dq_env env;
static dq_device *devices[2]; /* ref, cpu */

static void must(dq_status status)
{
    if (status != DQ_OK) print_error("%s: %s\n", dq_status_name(status), dq_error_text());
    assert_int_equal(status, DQ_OK);
}

static int open_devices(void **state)
{
    (void)state;
    must(dq_env_init(&env, NULL, 2));
    must(dq_device_open(&env, "ref", "", DQ_POLICY_FORBID, &devices[0]));
    must(dq_device_open(&env, "cpu", "", DQ_POLICY_FORBID, &devices[1]));
    return 0;
}

static int close_devices(void **state)
{
    (void)state;
    for (int i = 0; i < 2; i++) dq_device_close(devices[i]);
    dq_env_clear(&env);
    assert_int_equal(atomic_load(&env.memory_now), 0);
    return 0;
}

static float *noise(int64_t count, double scale, uint64_t seed)
{
    float *x = malloc((size_t)count * sizeof *x);
    dq_rng rng;
    dq_rng_seed_torch(&rng, seed);
    for (int64_t i = 0; i < count; i++) x[i] = (float)(scale * (dq_rng_u32(&rng) * 0x1p-31 - 1));
    return x;
}

static dq_tensor put(dq_device *dev, int64_t rows, int64_t cols, const float *x)
{
    dq_tensor t;
    must(dq_tensor_from_host(dev, DQ_F32, rows, cols, x, &t));
    return t;
}

/* ---- losses ---- */

static double loss_of(dq_device *dev, const dq_rotation_loss_desc *d, int64_t rows, const float *x, const float *w,
                      const float *r, float *grad)
{
    double loss = NAN;
    dq_tensor tx = put(dev, rows, d->heads * d->n, x), tr = put(dev, d->groups * d->n, d->n, r), tw, tg;
    tw = put(dev, 1, rows, w);
    must(dq_tensor_alloc(dev, DQ_F32, d->groups * d->n, d->n, &tg));
    must(dq_op_rotation_loss(d, &tx, &tw, &tr, grad ? &tg : NULL, NULL, &loss));
    if (grad) must(dq_tensor_download(&tg, grad));
    dq_tensor_free(&tx), dq_tensor_free(&tr), dq_tensor_free(&tw), dq_tensor_free(&tg);
    return loss;
}

/* Central differences of the reference's fp64 loss in single entries of r; steps that fp32 holds exactly. */
static void gradients_are_derivatives(void **state)
{
    (void)state;
    enum { N = 6, HEADS = 4, GROUPS = 2, ROWS = 9 };
    float *x = noise(ROWS * HEADS * N, 1.5, 1), *w = noise(ROWS, 1, 2), *r = noise(GROUPS * N * N, 0.7, 3);
    float grad[GROUPS * N * N];
    static const struct {
        int kind, symmetric;
    } losses[] = {
        {DQ_LOSS_WHIP, 0}, {DQ_LOSS_KURTOSIS, 0}, {DQ_LOSS_VARIANCE, 0}, {DQ_LOSS_RANGE, 0}, {DQ_LOSS_RANGE, 1}};
    for (int k = 0; k < 5; k++)
        for (int64_t group = 3; group <= 24; group *= 2)
            for (int relative = 0; relative < 2; relative++) {
                dq_rotation_loss_desc d = {.kind = losses[k].kind,
                                           .symmetric = losses[k].symmetric,
                                           .bits = 3,
                                           .clip = 0.75f,
                                           .n = N,
                                           .heads = HEADS,
                                           .groups = GROUPS,
                                           .group = group,
                                           .relative = relative,
                                           .scale = 0.5};
                loss_of(devices[0], &d, ROWS, x, w, r, grad);
                double largest = 0;
                for (int i = 0; i < GROUPS * N * N; i++) largest = fmax(largest, fabs(grad[i]));
                for (int i = 0; i < GROUPS * N * N; i += 5) {
                    float kept = r[i], up = kept + 0x1p-16f, down = kept - 0x1p-16f;
                    r[i] = up;
                    double above = loss_of(devices[0], &d, ROWS, x, w, r, NULL);
                    r[i] = down;
                    double below = loss_of(devices[0], &d, ROWS, x, w, r, NULL);
                    r[i] = kept;
                    double want = (above - below) / ((double)up - (double)down);
                    if (!(fabs(want - grad[i]) <= 1e-4 * largest + 1e-9))
                        print_error("loss %d %d, group %d, relative %d: %g, by differences %g\n", losses[k].kind,
                                    losses[k].symmetric, (int)group, relative, (double)grad[i], want);
                    assert_true(fabs(want - grad[i]) <= 1e-4 * largest + 1e-9);
                }
            }
    free(x), free(w), free(r);
}

/* `shift` adds shift |o|^2 / 2 to what is differentiated: for R = I and one head that is shift x^T W x. */
static void shift_adds_the_second_moment(void **state)
{
    (void)state;
    enum { N = 5, ROWS = 7 };
    float *x = noise(ROWS * N, 1, 4), *w = noise(ROWS, 1, 5), eye[N * N] = {0}, plain[N * N], shifted[N * N];
    for (int i = 0; i < N; i++) eye[i * N + i] = 1;
    for (int t = 0; t < 2; t++) {
        dq_rotation_loss_desc d = {.n = N, .heads = 1, .groups = 1, .group = N, .scale = 2};
        loss_of(devices[t], &d, ROWS, x, w, eye, plain);
        d.shift = 0.25;
        loss_of(devices[t], &d, ROWS, x, w, eye, shifted);
        for (int i = 0; i < N * N; i++) {
            double want = 0;
            for (int r = 0; r < ROWS; r++) want += 0.5 * (double)w[r] * x[r * N + i / N] * x[r * N + i % N];
            assert_true(fabs(shifted[i] - plain[i] - want) < 1e-5);
        }
    }
    free(x), free(w);
}

/* Of a row of RMS 1, Whip per channel is 1/e for values +-1 and 1/n + (1 - 1/n) exp(-0) at worst; kurtosis is 1 and n. */
static void known_values(void **state)
{
    (void)state;
    enum { N = 64 };
    float flat[N], spike[N] = {0}, one = 1, *eye = calloc(N * N, sizeof *eye);
    for (int i = 0; i < N; i++) flat[i] = i % 2 ? 1 : -1, eye[i * N + i] = 1;
    spike[7] = 8;
    for (int t = 0; t < 2; t++) {
        dq_rotation_loss_desc d = {.n = N, .heads = 1, .groups = 1, .group = N, .scale = 1};
        assert_true(fabs(loss_of(devices[t], &d, 1, flat, &one, eye, NULL) / N - exp(-1)) < 1e-6);
        assert_true(fabs(loss_of(devices[t], &d, 1, spike, &one, eye, NULL) - (N - 1 + exp(-8))) < 1e-4);
        d.kind = DQ_LOSS_KURTOSIS;
        assert_true(fabs(loss_of(devices[t], &d, 1, flat, &one, eye, NULL) - 1) < 1e-5);
        assert_true(fabs(loss_of(devices[t], &d, 1, spike, &one, eye, NULL) - (N - 2 + 1.0 / (N - 1))) < 1e-3);
        d.kind = DQ_LOSS_QUANT;
        d.bits = 4, d.clip = 1, d.symmetric = 1;
        assert_true(loss_of(devices[t], &d, 1, flat, &one, eye, NULL) < 1e-9); /* both ends are on the grid */
    }
    free(eye);
}

/* A row of 8 numbers on 2-bit grids. Asymmetric, clip 1/2: step 1/2 (range -1 .. 2), top 1, bottom -1/2, so that 2 lies 1
 * above, 1.5 lies 1/2 above and -1 lies 1/2 below. Symmetric, clip 1/2: step, top 1, bottom -2. */
static void range_and_snap_by_hand(void **state)
{
    (void)state;
    enum { N = 8 };
    const float x[N] = {0.5f, 2, -1, 1.5f, 0, 0.75f, -0.5f, 2};
    float one = 1, eye[N * N] = {0}, grad[N * N], slope[N];
    for (int i = 0; i < N; i++) eye[i * N + i] = 1;
    for (int t = 0; t < 2; t++) {
        dq_rotation_loss_desc d = {.kind = DQ_LOSS_RANGE, .n = N, .heads = 1, .groups = 1, .group = N, .scale = 1};
        d.bits = 2, d.clip = 0.5f;
        double want = 8 * 0.25 / 12 + 1 + 0.25 + 0.25 + 1;
        assert_true(fabs(loss_of(devices[t], &d, 1, x, &one, eye, grad) - want) < 1e-6);
        for (int i = 0; i < N; i++) slope[i] = grad[i] * 2; /* x[0] = 1/2 times dL/do */
        double wider = 8 * 0.5 * 0.5 / (6 * 3);
        const double expected[N] = {0, 2 + wider - 2.5, -1 - wider + 0.5, 1, 0, 0, 0, 2};
        for (int i = 0; i < N; i++) assert_true(fabs(slope[i] - expected[i]) < 1e-6);
        d.symmetric = 1;
        want = 8.0 / 12 + 1 + 0.25 + 1;
        assert_true(fabs(loss_of(devices[t], &d, 1, x, &one, eye, grad) - want) < 1e-6);
        assert_true(fabs(grad[1] * 2 - (2 + 8 * 0.5 / 6 - 2.5)) < 1e-6 && fabs(grad[7] * 2 - 2) < 1e-6);
        d.kind = DQ_LOSS_SNAP, d.symmetric = 0, d.clip = 1; /* step 1: 0.5 to 0, 1.5 to 2, 0.75 to 1, -0.5 to 0 */
        want = 3 * 0.25 + 0.0625;
        assert_true(fabs(loss_of(devices[t], &d, 1, x, &one, eye, grad) - want) < 1e-6);
        d.clip = 0.5f; /* step 1/2 from -1/2 to 1: the second 2 is clipped, the first and -1 keep their value */
        want = 1 + 0.25 + 0.0625;
        assert_true(fabs(loss_of(devices[t], &d, 1, x, &one, eye, grad) - want) < 1e-6);
        assert_true(grad[1] == 0 && grad[2] == 0 && fabs(grad[7] * 2 - 2) < 1e-6);
        d.symmetric = 1; /* step 1 from -2 to 1: only the first 2 keeps its value */
        assert_true(loss_of(devices[t], &d, 1, x, &one, eye, grad) > 1.5 && grad[1] == 0 && grad[7] != 0);
    }
}

static void nan_is_passed_on(void **state)
{
    (void)state;
    float x[8] = {1, 2, NAN, 4, 5, 6, 7, 8}, one = 1, eye[64] = {0}, grad[64];
    for (int i = 0; i < 8; i++) eye[i * 8 + i] = 1;
    for (int t = 0; t < 2; t++)
        for (int kind = DQ_LOSS_WHIP; kind <= DQ_LOSS_SNAP; kind++) {
            dq_rotation_loss_desc d = {.kind = kind, .n = 8, .heads = 1, .groups = 1, .group = 8, .scale = 1};
            d.bits = 4, d.clip = 0.9f;
            assert_true(isnan(loss_of(devices[t], &d, 1, x, &one, eye, grad)));
            assert_true(isnan(grad[2 * 8 + 2]));
        }
}

static void refusals(void **state)
{
    (void)state;
    dq_device *dev = devices[1];
    double loss = 7;
    float *zeros = calloc(64 * 64, sizeof *zeros);
    dq_tensor x = put(dev, 4, 64, zeros), r = put(dev, 32, 32, zeros), grad = put(dev, 32, 32, zeros);
    const dq_rotation_loss_desc good = {
        .n = 32, .heads = 2, .groups = 1, .group = 32, .scale = 1, .bits = 4, .clip = 1};
    dq_rotation_loss_desc bad[9];
    for (int i = 0; i < 9; i++) bad[i] = good;
    bad[0].kind = 6, bad[1].n = 16, bad[2].groups = 2, bad[3].group = 5, bad[4].group = 96, bad[5].scale = NAN;
    bad[6].math = 2, bad[7].kind = bad[8].kind = DQ_LOSS_QUANT, bad[7].bits = 1, bad[8].clip = 0;
    must(dq_op_rotation_loss(&good, &x, NULL, &r, &grad, NULL, &loss));
    for (int i = 0; i < 9; i++) {
        loss = 7;
        assert_int_equal(dq_op_rotation_loss(&bad[i], &x, NULL, &r, &grad, NULL, &loss), DQ_E_INVALID);
        assert_true(loss == 7);
    }
    assert_int_equal(dq_op_rotation_loss(&good, &x, NULL, &r, &r, NULL, &loss), DQ_E_INVALID);
    assert_int_equal(dq_op_qr_batch(3, &r, &grad, NULL), DQ_E_INVALID);
    assert_int_equal(dq_op_qr_batch(1, &r, &r, NULL), DQ_E_INVALID);
    assert_int_equal(dq_op_polar(0, DQ_MATH_F32, &r, &grad, &loss), DQ_E_INVALID);
    assert_int_equal(dq_op_polar(1, 5, &r, &grad, &loss), DQ_E_INVALID);
    dq_tensor_free(&x), dq_tensor_free(&r), dq_tensor_free(&grad);
    free(zeros);
}

/* ---- factors ---- */

static double product_of(const double *a, const double *b, int64_t n)
{
    double sum = 0;
    for (int64_t i = 0; i < n * n; i++) sum += a[i] * b[i];
    return sum;
}

static void qr_grad_is_the_derivative(void **state)
{
    (void)state;
    enum { N = 7, SQUARE = N * N };
    double a[SQUARE], c[SQUARE], q[SQUARE], da[SQUARE], other[SQUARE];
    dq_rng rng;
    dq_rng_seed_torch(&rng, 9);
    for (int i = 0; i < SQUARE; i++) a[i] = dq_rng_u32(&rng) * 0x1p-31 - 1, c[i] = dq_rng_u32(&rng) * 0x1p-31 - 1;
    for (int t = 0; t < 2; t++) {
        dq_tensor ta, tq, tr, tc, td;
        must(dq_tensor_from_host(devices[t], DQ_F64, N, N, a, &ta));
        must(dq_tensor_from_host(devices[t], DQ_F64, N, N, c, &tc));
        must(dq_tensor_alloc(devices[t], DQ_F64, N, N, &tq));
        must(dq_tensor_alloc(devices[t], DQ_F64, N, N, &tr));
        must(dq_tensor_alloc(devices[t], DQ_F64, N, N, &td));
        must(dq_op_qr_batch(1, &ta, &tq, &tr));
        must(dq_op_qr_grad(1, &tq, &tr, &tc, &td));
        must(dq_tensor_download(&td, da));
        for (int i = 0; i < SQUARE; i += 3) { /* loss = <c, q> */
            double f[2];
            for (int side = 0; side < 2; side++) {
                memcpy(other, a, sizeof other);
                other[i] += side ? -1e-6 : 1e-6;
                must(dq_tensor_upload(&ta, other));
                must(dq_op_qr_batch(1, &ta, &tq, NULL));
                must(dq_tensor_download(&tq, q));
                f[side] = product_of(c, q, N);
            }
            assert_true(fabs((f[0] - f[1]) / 2e-6 - da[i]) < 1e-6);
        }
        dq_tensor_free(&ta), dq_tensor_free(&tq), dq_tensor_free(&tr), dq_tensor_free(&tc), dq_tensor_free(&td);
    }
}

/* A batch of two against autograd through torch.linalg.qr (make_calib.py). */
static void qr_grad_matches_pytorch(void **state)
{
    (void)state;
    enum { N = 9, COUNT = 2 * N * N };
    golden g = golden_load("calib_qr");
    const double *want = golden_find(&g, "grad")->data;
    for (int t = 0; t < 2; t++) {
        double got[COUNT];
        dq_tensor tz, tc, tq, tr, td;
        must(dq_tensor_from_host(devices[t], DQ_F64, 2 * N, N, golden_find(&g, "z")->data, &tz));
        must(dq_tensor_from_host(devices[t], DQ_F64, 2 * N, N, golden_find(&g, "c")->data, &tc));
        must(dq_tensor_alloc(devices[t], DQ_F64, 2 * N, N, &tq));
        must(dq_tensor_alloc(devices[t], DQ_F64, 2 * N, N, &tr));
        must(dq_tensor_alloc(devices[t], DQ_F64, 2 * N, N, &td));
        must(dq_op_qr_batch(2, &tz, &tq, &tr));
        must(dq_op_qr_grad(2, &tq, &tr, &tc, &td));
        must(dq_tensor_download(&td, got));
        for (int i = 0; i < COUNT; i++)
            if (!(fabs(got[i] - want[i]) <= 1e-9 * (1 + fabs(want[i]))))
                fail_msg("%d: %g, PyTorch has %g", i, got[i], want[i]);
        dq_tensor_free(&tz), dq_tensor_free(&tc), dq_tensor_free(&tq), dq_tensor_free(&tr), dq_tensor_free(&td);
    }
    golden_free(&g);
}

/* u^T a is symmetric and positive on the diagonal, for a matrix with singular values from 1 down to 1/condition. */
static void check_polar(int64_t n, double condition, int math, double near)
{
    float *a = noise(n * n, 1, 11), *u = malloc((size_t)(n * n) * sizeof *u);
    double *h = malloc((size_t)(n * n) * sizeof *h), error = NAN, off = 0;
    dq_tensor ta = put(devices[1], n, n, a), q, tu;
    must(dq_tensor_alloc(devices[1], DQ_F32, n, n, &q));
    must(dq_tensor_alloc(devices[1], DQ_F32, n, n, &tu));
    must(dq_op_qr_batch(1, &ta, &q, NULL)); /* columns of an orthogonal matrix, scaled, times another one */
    must(dq_tensor_download(&q, a));
    for (int64_t i = 0; i < n * n; i++) a[i] *= (float)pow(condition, -(double)(i % n) / (double)(n - 1));
    dq_tensor scaled = put(devices[1], n, n, a);
    must(dq_op_gemm(false, true, 1, &scaled, &q, 0, &ta, DQ_MATH_F32));
    must(dq_op_polar(1, math, &ta, &tu, &error));
    must(dq_op_gemm(true, false, 1, &tu, &ta, 0, &q, DQ_MATH_F32));
    must(dq_tensor_download(&q, u));
    for (int64_t i = 0; i < n * n; i++) h[i] = u[i];
    for (int64_t i = 0; i < n; i++) {
        for (int64_t j = 0; j < i; j++) off = fmax(off, fabs(h[i * n + j] - h[j * n + i]));
        assert_true(h[i * n + i] > 0);
    }
    if (!(error < 4e-6) || !(off < near))
        print_error("order %d, condition %g, math %d: error %g, asymmetry %g\n", (int)n, condition, math, error, off);
    assert_true(error < 4e-6);
    assert_true(off < near);
    dq_tensor_free(&ta), dq_tensor_free(&q), dq_tensor_free(&tu), dq_tensor_free(&scaled);
    free(a), free(u), free(h);
}

/* Also of an order that takes the other way. */
static void polar_of_large_singular(void **state)
{
    (void)state;
    enum { N = 530 };
    for (int bad = 0; bad < 3; bad++) {
        float *a = noise(N * N, 1, 6);
        double error = 0;
        for (int i = 0; i < N; i++) a[7 * N + i] = bad == 0 ? 0 : bad == 1 ? a[9 * N + i] : a[7 * N + i];
        if (bad == 2) a[77] = NAN;
        dq_tensor x = put(devices[1], N, N, a), u = put(devices[1], N, N, a);
        must(dq_op_polar(1, DQ_MATH_F32, &x, &u, &error));
        assert_true(isinf(error));
        dq_tensor_free(&x), dq_tensor_free(&u);
        free(a);
    }
}

static void polar_of_bad_condition(void **state)
{
    (void)state;
    static const int64_t orders[] = {16, 130, 300, 520};
    for (int i = 0; i < 4; i++)
        for (double condition = 1; condition < 2e5; condition *= 100) {
            check_polar(orders[i], condition, DQ_MATH_F32, 2e-6);
            check_polar(orders[i], condition, DQ_MATH_BF16, 5e-2);
        }
}

/* ---- the border ---- */

/* A table made for 1.0 ends before these slots: they run on the host and are counted. */
static void tables_of_1_0_fall_back(void **state)
{
    (void)state;
    dq_backend old = fake_backend();
    dq_device *dev;
    float eye[4] = {1, 0, 0, 1}, x[4] = {1, -1, 2, 0}, u[4];
    double loss, error;
    old.struct_size = (uint32_t)offsetof(dq_backend, rotation_loss);
    must(dq_device_open_table(&env, &old, "", DQ_POLICY_ALLOW, &dev));
    dq_tensor tx = put(dev, 2, 2, x), r = put(dev, 2, 2, eye), q = put(dev, 2, 2, eye), da = put(dev, 2, 2, eye);
    const dq_rotation_loss_desc d = {.n = 2, .heads = 1, .groups = 1, .group = 2, .scale = 1};
    must(dq_op_rotation_loss(&d, &tx, NULL, &r, NULL, NULL, &loss));
    assert_true(fabs(loss - (2 * exp(-1) + exp(-2) + 1)) < 1e-12);
    must(dq_op_qr_batch(1, &tx, &q, &r));
    must(dq_op_qr_grad(1, &q, &r, &tx, &da));
    must(dq_op_polar(1, DQ_MATH_F32, &r, &q, &error));
    must(dq_tensor_download(&q, u));
    assert_true(error < 1e-6 && fabs(fabs(u[0]) - 1) < 1); /* an orthogonal matrix came back */
    assert_int_equal(dq_device_fallbacks(dev), 4);
    dq_tensor_free(&tx), dq_tensor_free(&r), dq_tensor_free(&q), dq_tensor_free(&da);
    dq_device_close(dev);
}

/* Wide rows: one sum for the gradient however many threads, and workspace for some blocks of rows. Besides the tensors
 * a pass may hold r again as three bf16 terms and as much as that in rows. */
static void wide_rows_fit_in_memory(void **state)
{
    (void)state;
    enum { N = 4096, ROWS = 96 };
    dq_env own;
    dq_device *dev;
    dq_tensor x, r, grad;
    double loss;
    must(dq_env_init(&own, NULL, 8));
    must(dq_device_open(&own, "cpu", "", DQ_POLICY_FORBID, &dev));
    must(dq_tensor_alloc(dev, DQ_BF16, ROWS, N, &x));
    must(dq_tensor_alloc(dev, DQ_F32, N, N, &r));
    must(dq_tensor_alloc(dev, DQ_F32, N, N, &grad));
    must(dq_op_fill(0.5, &x));
    must(dq_op_fill(0, &r));
    dq_rotation_loss_desc d = {.n = N, .heads = 1, .groups = 1, .group = N, .scale = 1, .math = DQ_MATH_BF16};
    must(dq_op_rotation_loss(&d, &x, NULL, &r, &grad, NULL, &loss));
    assert_true(fabs(loss - (double)N * ROWS) < 1e-3 * N * ROWS);
    uint64_t tensors = (uint64_t)N * N * 8 + (uint64_t)N * ROWS * 2, peak = (uint64_t)atomic_load(&own.memory_peak);
    if (peak >= tensors + (uint64_t)N * N * 4)
        print_error("peak %llu, tensors %llu\n", (unsigned long long)peak, (unsigned long long)tensors);
    assert_true(peak < tensors + (uint64_t)N * N * 4);
    dq_tensor_free(&x), dq_tensor_free(&r), dq_tensor_free(&grad);
    dq_device_close(dev);
    dq_env_clear(&own);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(gradients_are_derivatives),
        cmocka_unit_test(shift_adds_the_second_moment),
        cmocka_unit_test(known_values),
        cmocka_unit_test(range_and_snap_by_hand),
        cmocka_unit_test(nan_is_passed_on),
        cmocka_unit_test(refusals),
        cmocka_unit_test(qr_grad_is_the_derivative),
        cmocka_unit_test(qr_grad_matches_pytorch),
        cmocka_unit_test(polar_of_bad_condition),
        cmocka_unit_test(polar_of_large_singular),
        cmocka_unit_test(tables_of_1_0_fall_back),
        cmocka_unit_test(wide_rows_fit_in_memory),
    };
    return cmocka_run_group_tests_name("ops that fit rotations", tests, open_devices, close_devices);
}
