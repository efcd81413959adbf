/* calib: a fit on a device with memory of its own keeps its matrices there. The device is the reference behind hidden memory.
 * SPDX-License-Identifier: Apache-2.0 */
#include <math.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <cmocka.h>

#include "backend/ref/ref.h"
#include "base/rng.h"
#include "base/status.h"
#include "calib/fit.h"
#include "fake_backend.h"
#include "ok.h"

enum { N = 24, HEADS = 4, GROUPS = 2, ROWS = 900 };

/* ---- the device ---- */

static void *ref_state; /* opened and closed with the device */
static dq_status (*open_fake)(const dq_host *host, const char *options, void **dev);
static void (*close_fake)(void *dev);

static dq_status far_open(const dq_host *host, const char *options, void **dev)
{
    dq_status status = dq_ref_backend()->open(host, "", &ref_state);
    return status == DQ_OK ? open_fake(host, options, dev) : status;
}

static void far_close(void *dev)
{
    dq_ref_backend()->close(ref_state);
    close_fake(dev);
}

static dq_view near(void *dev, const dq_view *v)
{
    dq_view there = *v;
    there.mem = fake_block(dev, v->mem);
    return there;
}
#define HERE(v)                                                                                                        \
    dq_view v##_near = near(dev, v ? v : &(dq_view){.mem = (void *)1});                                                \
    if (v) v = &v##_near
#define REF (dq_ref_backend())

static dq_status far_fill(void *dev, double value, const dq_view *y)
{
    HERE(y);
    return REF->fill(ref_state, value, y);
}
static dq_status far_convert(void *dev, const dq_view *x, const dq_view *y)
{
    HERE(x);
    HERE(y);
    return REF->convert(ref_state, x, y);
}
static dq_status far_axpy(void *dev, double alpha, const dq_view *x, const dq_view *y)
{
    HERE(x);
    HERE(y);
    return REF->axpy(ref_state, alpha, x, y);
}
static dq_status far_scale_cols(void *dev, const dq_view *x, const dq_view *v, const dq_view *y)
{
    HERE(x);
    HERE(v);
    HERE(y);
    return REF->scale_cols(ref_state, x, v, y);
}
static dq_status far_gather_rows(void *dev, const dq_view *x, const dq_view *index, const dq_view *y)
{
    HERE(x);
    HERE(index);
    HERE(y);
    return REF->gather_rows(ref_state, x, index, y);
}
static dq_status far_find_nonfinite(void *dev, const dq_view *x, int64_t *index)
{
    HERE(x);
    return REF->find_nonfinite(ref_state, x, index);
}
static dq_status far_dot(void *dev, const dq_view *x, const dq_view *y, double *out)
{
    HERE(x);
    HERE(y);
    return REF->dot(ref_state, x, y, out);
}
static dq_status far_diag(void *dev, const dq_view *h, const dq_view *v)
{
    HERE(h);
    HERE(v);
    return REF->diag(ref_state, h, v);
}
static dq_status far_gemm(void *dev, int32_t ta, int32_t tb, double alpha, const dq_view *a, const dq_view *b,
                          double beta, const dq_view *c, int32_t math)
{
    HERE(a);
    HERE(b);
    HERE(c);
    return REF->gemm(ref_state, ta, tb, alpha, a, b, beta, c, math);
}
static dq_status far_rotation_loss(void *dev, const dq_rotation_loss_desc *d, const dq_view *x, const dq_view *weight,
                                   const dq_view *r, const dq_view *grad, const dq_view *row_loss, double *loss)
{
    HERE(x);
    HERE(weight);
    HERE(r);
    HERE(grad);
    HERE(row_loss);
    return REF->rotation_loss(ref_state, d, x, weight, r, grad, row_loss, loss);
}
static dq_status far_qr_batch(void *dev, int64_t groups, const dq_view *a, const dq_view *q, const dq_view *r)
{
    HERE(a);
    HERE(q);
    HERE(r);
    return REF->qr_batch(ref_state, groups, a, q, r);
}
static dq_status far_qr_grad(void *dev, int64_t groups, const dq_view *q, const dq_view *r, const dq_view *dq,
                             const dq_view *da)
{
    HERE(q);
    HERE(r);
    HERE(dq);
    HERE(da);
    return REF->qr_grad(ref_state, groups, q, r, dq, da);
}
static dq_status far_polar(void *dev, int64_t groups, int32_t math, const dq_view *a, const dq_view *u, double *error)
{
    HERE(a);
    HERE(u);
    return REF->polar(ref_state, groups, math, a, u, error);
}
static dq_status far_adam(void *dev, double beta1, double beta2, double root, double epsilon, const dq_view *g,
                          const dq_view *mean, const dq_view *square)
{
    HERE(g);
    HERE(mean);
    HERE(square);
    return REF->adam(ref_state, beta1, beta2, root, epsilon, g, mean, square);
}

static dq_backend far_table(void)
{
    dq_backend t = fake_backend();
    open_fake = t.open;
    close_fake = t.close;
    t.open = far_open;
    t.close = far_close;
    t.fill = far_fill;
    t.convert = far_convert;
    t.axpy = far_axpy;
    t.scale_cols = far_scale_cols;
    t.gather_rows = far_gather_rows;
    t.find_nonfinite = far_find_nonfinite;
    t.dot = far_dot;
    t.diag = far_diag;
    t.gemm = far_gemm;
    t.rotation_loss = far_rotation_loss;
    t.qr_batch = far_qr_batch;
    t.qr_grad = far_qr_grad;
    t.polar = far_polar;
    t.adam = far_adam;
    return t;
}

/* ---- fits ---- */

typedef struct bench {
    dq_env env;
    dq_device *dev;
    dq_rows *rows;
} bench;

/* Heavy-tailed rows: some numbers are far larger than the others. */
static dq_rows *make_rows(dq_device *dev)
{
    enum { WIDTH = N * HEADS };
    static float x[ROWS * WIDTH];
    dq_rng rng;
    dq_rows *rows = NULL;
    dq_tensor t = {0};
    dq_rows_spec spec = {.width = WIDTH, .dtype = DQ_F32, .budget = 1 << 20, .share = {1}, .seed = 3};
    dq_rng_seed_torch(&rng, 5);
    for (int i = 0; i < ROWS * WIDTH; i++) x[i] = (float)(dq_rng_normal(&rng) * (i % 7 ? 0.5 : 3));
    OK(dq_rows_new(dev, &spec, &rows));
    OK(dq_tensor_from_host(dev, DQ_F32, ROWS, WIDTH, x, &t));
    OK(dq_rows_add(rows, DQ_ROWS_ACTIVATION, &t));
    dq_tensor_free(&t);
    OK(dq_rows_seal(rows));
    return rows;
}

static void open_bench(bench *b, bool far)
{
    static dq_backend table;
    table = far_table();
    OK(dq_env_init(&b->env, NULL, 1));
    OK(far ? dq_device_open_table(&b->env, &table, "", DQ_POLICY_FORBID, &b->dev)
           : dq_device_open(&b->env, "ref", "", DQ_POLICY_FORBID, &b->dev));
    b->rows = make_rows(b->dev);
}

static void close_bench(bench *b)
{
    dq_rows_free(b->rows);
    dq_device_close(b->dev);
    dq_env_clear(&b->env);
}

static dq_fit *new_fit(bench *b, dq_fit_method method, dq_fit_optim optim)
{
    dq_fit *fit = NULL;
    dq_quant_target target = {.bits = 4, .clip = 0.9};
    dq_fit_spec spec = {.orbit = {N, HEADS, GROUPS},
                        .method = method,
                        .loss = {.kind = DQ_FIT_WHIP},
                        .optim = optim,
                        .lr = 0.01,
                        .momentum = 0.9,
                        .epochs = 2,
                        .batch = ROWS / 5,
                        .accumulation = 1,
                        .mm_boldness = 0.25,
                        .mm_memory = 0.5,
                        .weight = {1, 0, 0},
                        .quant = {target, target, target}};
    OK(dq_fit_new(b->dev, &spec, b->rows, NULL, &fit));
    return fit;
}

static void step(dq_fit *fit)
{
    bool done;
    OK(dq_fit_step(fit, &done));
}

static void matrices_stay_on_the_device(void **state)
{
    (void)state;
    static double there[GROUPS * N * N], here[GROUPS * N * N];
    for (int method = DQ_FIT_QR; method <= DQ_FIT_POLAR_MM; method++)
        for (int optim = DQ_FIT_SGD; optim <= DQ_FIT_ADAM; optim++) {
            bench far, plain;
            open_bench(&far, true);
            open_bench(&plain, false);
            dq_fit *a = new_fit(&plain, (dq_fit_method)method, (dq_fit_optim)optim);
            while (!dq_fit_done(a)) step(a);
            OK(dq_fit_result(a, here));

            dq_fit *b = new_fit(&far, (dq_fit_method)method, (dq_fit_optim)optim);
            step(b); /* the order of the epoch's rows goes there */
            const dq_device_counters *c = dq_device_get_counters(far.dev);
            uint64_t down = c->download_bytes, up = c->upload_bytes;
            for (int i = 0; i < 3; i++) step(b);
            /* signs of columns, at most */
            assert_in_range(c->download_bytes - down, 0, 3 * GROUPS * N * sizeof(float));
            assert_in_range(c->upload_bytes - up, 0, 3 * GROUPS * N * sizeof(float));
            while (!dq_fit_done(b)) step(b);
            OK(dq_fit_result(b, there));
            assert_memory_equal(here, there, sizeof here);
            assert_int_equal(dq_device_fallbacks(far.dev), 0);
            dq_fit_free(a);
            dq_fit_free(b);
            close_bench(&far);
            close_bench(&plain);
        }
}

/* ---- a device that multiplies but knows no loss ---- */

static int products;

static dq_status counted_gemm(void *dev, int32_t ta, int32_t tb, double alpha, const dq_view *a, const dq_view *b,
                              double beta, const dq_view *c, int32_t math)
{
    products++;
    return far_gemm(dev, ta, tb, alpha, a, b, beta, c, math);
}

typedef struct answer {
    float grad[GROUPS * N * N], rows[ROWS];
    double loss;
} answer;

static void ask(dq_device *dev, const dq_rotation_loss_desc *d, dq_dtype dtype, bool weighted, answer *out)
{
    enum { WIDTH = N * HEADS };
    static float x[ROWS * WIDTH], r[GROUPS * N * N], w[ROWS];
    dq_tensor wide, tx, tr, tw, tg, tl;
    dq_rng rng;
    dq_rng_seed_torch(&rng, 8);
    for (int i = 0; i < ROWS * WIDTH; i++) x[i] = i / WIDTH == 3 ? 0 : (float)dq_rng_normal(&rng);
    for (int i = 0; i < GROUPS * N * N; i++) out->grad[i] = r[i] = (float)dq_rng_normal(&rng) / 5;
    for (int i = 0; i < ROWS; i++) w[i] = (float)(i % 4) / 2;
    OK(dq_tensor_from_host(dev, DQ_F32, ROWS, WIDTH, x, &wide));
    OK(dq_tensor_alloc(dev, dtype, ROWS, WIDTH, &tx));
    OK(dq_op_convert(&wide, &tx));
    OK(dq_tensor_from_host(dev, DQ_F32, GROUPS * N, N, r, &tr));
    OK(dq_tensor_from_host(dev, DQ_F32, 1, ROWS, w, &tw));
    OK(dq_tensor_from_host(dev, DQ_F32, GROUPS * N, N, out->grad, &tg));
    OK(dq_tensor_alloc(dev, DQ_F32, 1, ROWS, &tl));
    OK(dq_op_rotation_loss(d, &tx, weighted ? &tw : NULL, &tr, &tg, &tl, &out->loss));
    OK(dq_tensor_download(&tg, out->grad));
    OK(dq_tensor_download(&tl, out->rows));
    dq_tensor *const all[] = {&wide, &tx, &tr, &tw, &tg, &tl};
    for (int i = 0; i < 6; i++) dq_tensor_free(all[i]);
}

static double difference(const float *a, const float *b, int n)
{
    double most = 0, size = 0;
    for (int i = 0; i < n; i++) {
        most = fmax(most, fabs((double)a[i] - b[i]));
        size = fmax(size, fabs((double)b[i]));
    }
    return most / size;
}

static void losses_without_an_op_multiply_there(void **state)
{
    (void)state;
    static answer far, again, want;
    dq_backend table = far_table();
    table.rotation_loss = NULL;
    table.gemm = counted_gemm;
    for (int kind = DQ_LOSS_WHIP; kind <= DQ_LOSS_SNAP; kind++)
        for (int threads = 1; threads <= 3; threads += 2) {
            dq_env env;
            dq_device *dev, *ref;
            dq_rotation_loss_desc d = {.kind = kind,
                                       .n = N,
                                       .heads = HEADS,
                                       .groups = GROUPS,
                                       .group = kind % 2 ? N : N * HEADS,
                                       .bits = 4,
                                       .clip = 0.9f,
                                       .symmetric = kind % 2,
                                       .relative = kind % 3 == 0,
                                       .scale = 0.3,
                                       .beta = -0.5,
                                       .shift = 0.25};
            OK(dq_env_init(&env, NULL, threads));
            OK(dq_device_open_table(&env, &table, "", DQ_POLICY_ALLOW, &dev));
            OK(dq_device_open(&env, "ref", "", DQ_POLICY_FORBID, &ref));
            /* rounding moves codes of QUANT and SNAP: their gradients jump, in few places */
            double band = kind == DQ_LOSS_QUANT || kind == DQ_LOSS_SNAP ? 2e-2 : 1e-5;
            products = 0;
            ask(dev, &d, kind % 2 ? DQ_BF16 : DQ_F32, kind > 1, &far);
            assert_int_equal(products, 2 * HEADS);
            assert_int_equal(dq_device_fallbacks(dev), 1);
            ask(ref, &d, kind % 2 ? DQ_BF16 : DQ_F32, kind > 1, &want);
            assert_true(fabs(far.loss - want.loss) < 1e-5 * fabs(want.loss));
            assert_true(difference(far.grad, want.grad, GROUPS * N * N) < band);
            assert_true(difference(far.rows, want.rows, ROWS) < band);
            if (threads > 1) assert_memory_equal(&far, &again, sizeof far);
            memcpy(&again, &far, sizeof far);
            dq_device_close(dev);
            dq_device_close(ref);
            dq_env_clear(&env);
        }
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(losses_without_an_op_multiply_there),
        cmocka_unit_test(matrices_stay_on_the_device),
    };
    return cmocka_run_group_tests_name("calib: fits on a far device", tests, NULL, NULL);
}
