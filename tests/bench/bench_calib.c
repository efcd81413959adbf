/* Speed of what fitting rotations costs: one optimiser step (loss and gradient of all rows, derivative through QR, update,
 * QR) and its parts, one JSON object a line. peer_calib.py prints PyTorch's times for the same "case" and "shape".
 * The rate counts the two products alone.
 * Usage: bench_calib [--simd LEVEL] [--threads N] [--reps N] [--clock wall|cpu] [CASE-PREFIX ...]
 * SPDX-License-Identifier: Apache-2.0 */
#include <cblas.h>
#include <math.h>

#include "base/rng.h"
#include "bench.h"

static dq_device *dev;

static dq_tensor make(dq_dtype dtype, int64_t rows, int64_t cols) { return bench_tensor(dev, dtype, rows, cols); }

/* Uniform in (-1, 1) times scale. */
static dq_tensor noise(dq_dtype dtype, int64_t rows, int64_t cols, float scale)
{
    dq_tensor t = make(DQ_F32, rows, cols);
    float *x = malloc((size_t)(rows * cols) * sizeof *x);
    dq_rng rng;
    dq_rng_seed_torch(&rng, 1);
    for (int64_t i = 0; i < rows * cols; i++) x[i] = scale * (float)(dq_rng_u32(&rng) * 0x1p-31 - 1);
    must(dq_tensor_upload(&t, x));
    free(x);
    if (dtype == DQ_F32) return t;
    dq_tensor narrow = make(dtype, rows, cols);
    must(dq_op_convert(&t, &narrow));
    dq_tensor_free(&t);
    return narrow;
}

/* ---- steps of QR-Orth ---- */

typedef struct step_case {
    dq_rotation_loss_desc d;
    dq_tensor x, z, q, r, grad, dz;
} step_case;

static void run_pass(void *arg)
{
    step_case *c = arg;
    double loss;
    must(dq_op_rotation_loss(&c->d, &c->x, NULL, &c->q, &c->grad, NULL, &loss));
}

static void run_value(void *arg)
{
    step_case *c = arg;
    double loss;
    must(dq_op_rotation_loss(&c->d, &c->x, NULL, &c->q, NULL, NULL, &loss));
}

static void run_qr(void *arg)
{
    step_case *c = arg;
    must(dq_op_qr_batch(c->d.groups, &c->z, &c->q, &c->r));
}

static void run_grad(void *arg)
{
    step_case *c = arg;
    must(dq_op_qr_grad(c->d.groups, &c->q, &c->r, &c->grad, &c->dz));
}

static void run_step(void *arg)
{
    step_case *c = arg;
    run_qr(c);
    run_pass(c);
    run_grad(c);
    must(dq_op_axpy(-1e-3, &c->dz, &c->z));
}

static void bench_steps(const char *prefix, int64_t rows, int64_t n, int heads, int groups, dq_dtype dtype, int math)
{
    char name[64], shape[64];
    const char *kind = math == DQ_MATH_BF16 ? "bf16" : dtype == DQ_BF16 ? "f32 of bf16 rows" : "f32";
    step_case c = {.d = {.kind = DQ_LOSS_WHIP,
                         .math = math,
                         .n = n,
                         .heads = heads,
                         .groups = groups,
                         .group = n,
                         .scale = 1.0 / (double)rows}};
    double flops = 4.0 * (double)rows * heads * (double)n * (double)n;
    if (!want_some(prefix)) return;
    c.x = noise(dtype, rows, heads * n, 1.7f);
    c.z = noise(DQ_F32, groups * n, n, (float)sqrt(3.0 / (double)n));
    c.q = make(DQ_F32, groups * n, n), c.r = make(DQ_F32, groups * n, n);
    c.grad = make(DQ_F32, groups * n, n), c.dz = make(DQ_F32, groups * n, n);
    run_qr(&c);
    run_pass(&c);
    snprintf(shape, sizeof shape, "%lldx%dx%lld, %d", (long long)rows, heads, (long long)n, groups);
    snprintf(name, sizeof name, "%s step %s", prefix, kind);
    report(name, shape, run_step, NULL, &c, flops / 1e9, "GF/s");
    snprintf(name, sizeof name, "%s pass %s", prefix, kind);
    report(name, shape, run_pass, NULL, &c, flops / 1e9, "GF/s");
    snprintf(name, sizeof name, "%s loss %s", prefix, kind);
    report(name, shape, run_value, NULL, &c, flops / 2 / 1e9, "GF/s");
    dq_tensor *all[] = {&c.x, &c.z, &c.q, &c.r, &c.grad, &c.dz};
    for (size_t i = 0; i < sizeof all / sizeof all[0]; i++) dq_tensor_free(all[i]);
}

/* ---- factors ---- */

typedef struct polar_case {
    int64_t groups;
    int math;
    dq_tensor a, u;
} polar_case;

static void run_polar(void *arg)
{
    polar_case *c = arg;
    double error;
    must(dq_op_polar(c->groups, c->math, &c->a, &c->u, &error));
}

static void bench_factors(int64_t groups, int64_t n)
{
    char shape[64];
    if (!want_some("qr") && !want_some("polar")) return;
    step_case c = {.d = {.groups = (int32_t)groups}};
    c.z = noise(DQ_F32, groups * n, n, (float)sqrt(3.0 / (double)n));
    c.grad = noise(DQ_F32, groups * n, n, 1);
    c.q = make(DQ_F32, groups * n, n), c.r = make(DQ_F32, groups * n, n), c.dz = make(DQ_F32, groups * n, n);
    snprintf(shape, sizeof shape, "%lldx%lldx%lld", (long long)groups, (long long)n, (long long)n);
    report("qr", shape, run_qr, NULL, &c, 8.0 / 3 * (double)(groups * n) * (double)n * (double)n / 1e9, "GF/s");
    run_qr(&c);
    report("qr_grad", shape, run_grad, NULL, &c, 4.0 * (double)(groups * n) * (double)n * (double)n / 1e9, "GF/s");
    polar_case p = {groups, DQ_MATH_F32, c.z, c.q};
    report("polar f32", shape, run_polar, NULL, &p, 0, NULL);
    p.math = DQ_MATH_BF16;
    report("polar bf16", shape, run_polar, NULL, &p, 0, NULL);
    dq_tensor *all[] = {&c.z, &c.q, &c.r, &c.grad, &c.dz};
    for (size_t i = 0; i < sizeof all / sizeof all[0]; i++) dq_tensor_free(all[i]);
}

/* Singular values from 1 down to 1 / condition, in equal ratios. */
static void bench_large_polar(int64_t n, double condition)
{
    char shape[64];
    polar_case p = {.groups = 1, .math = DQ_MATH_F32};
    if (!want_some("polar of condition")) return;
    p.a = noise(DQ_F32, n, n, 1), p.u = make(DQ_F32, n, n);
    must(dq_op_qr_batch(1, &p.a, &p.u, NULL));
    float *x = malloc((size_t)(n * n) * sizeof *x);
    must(dq_tensor_download(&p.u, x));
    for (int64_t i = 0; i < n * n; i++) x[i] *= (float)pow(condition, -(double)(i / n) / (double)(n - 1));
    must(dq_tensor_upload(&p.a, x));
    free(x);
    snprintf(shape, sizeof shape, "%lldx%lld", (long long)n, (long long)n);
    report("polar of condition 1e4", shape, run_polar, NULL, &p, 0, NULL);
    dq_tensor_free(&p.a);
    dq_tensor_free(&p.u);
}

int main(int argc, char **argv)
{
    static const struct {
        const char *name;
        int64_t rows, n;
        int heads, groups;
    } steps[] = {{"r1 576", 65536, 576, 1, 1},
                 {"r1 2048", 16384, 2048, 1, 1},
                 {"r2 64", 16384, 64, 9, 3},
                 {"r2 128", 16384, 128, 8, 8}};
    bench_options(argc, argv, 5);
    dev = bench_device(openblas_get_config());
    for (size_t s = 0; s < sizeof steps / sizeof steps[0]; s++) {
        bench_steps(steps[s].name, steps[s].rows, steps[s].n, steps[s].heads, steps[s].groups, DQ_F32, DQ_MATH_F32);
        bench_steps(steps[s].name, steps[s].rows, steps[s].n, steps[s].heads, steps[s].groups, DQ_BF16, DQ_MATH_F32);
        bench_steps(steps[s].name, steps[s].rows, steps[s].n, steps[s].heads, steps[s].groups, DQ_BF16, DQ_MATH_BF16);
    }
    bench_factors(1, 576);
    bench_factors(90, 64);
    bench_factors(8, 128);
    bench_factors(1, 1024);
    bench_large_polar(2048, 1e4);
    if (wanted_count) bench_large_polar(4096, 1e4);
    dq_device_close(dev);
    dq_env_clear(&env);
    return 0;
}
