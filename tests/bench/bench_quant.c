/* Speed of the quantization ops, one JSON object a line. Where there is a natural yardstick (memcpy of the same bytes,
 * OpenBLAS of the same flops with all threads) it runs in turns with the op, and "ratio" is yardstick time / op time of
 * the medians. peer_quant.py prints the PyTorch times of the cases of the same "case" and "shape".
 * Usage: bench_quant [--simd LEVEL] [--threads N] [--reps N] [--clock wall|cpu] [CASE-PREFIX ...]
 * SPDX-License-Identifier: Apache-2.0 */
#include <cblas.h>
#include <math.h>

#include "base/rng.h"
#include "bench.h"

static dq_device *dev;

static dq_tensor make(dq_dtype dtype, int64_t rows, int64_t cols) { return bench_tensor(dev, dtype, rows, cols); }

static dq_tensor gaussian(int64_t rows, int64_t cols, float scale)
{
    dq_tensor t;
    must(dq_tensor_alloc(dev, DQ_F32, rows, cols, &t));
    float *x = malloc((size_t)(rows * cols) * sizeof *x);
    dq_rng rng;
    dq_rng_seed_torch(&rng, 1);
    for (int64_t i = 0; i < rows * cols; i++) { /* a sum of uniforms: quick, and normal enough */
        double s = -6;
        for (int k = 0; k < 12; k++) s += dq_rng_u32(&rng) * 0x1p-32;
        x[i] = scale * (float)s;
    }
    must(dq_tensor_upload(&t, x));
    free(x);
    return t;
}

/* ---- memory-bound ops ---- */

typedef struct stream_case {
    dq_tensor x, y;
    dq_hadamard_desc hadamard;
    dq_fake_quant_desc fake;
} stream_case;

static void copy_task(void *arg, int64_t i, int thread)
{
    (void)thread;
    stream_case *c = arg;
    size_t bytes = (size_t)c->x.view.rows * (size_t)c->x.view.cols * (c->x.view.dtype == DQ_F64 ? 8 : 4) / 64;
    memcpy((char *)c->y.view.mem + (size_t)i * bytes, (char *)c->x.view.mem + (size_t)i * bytes, bytes);
}
static void run_copy(void *arg) { dq_run(&env, 64, copy_task, arg); }
static void run_hadamard(void *arg)
{
    stream_case *c = arg;
    must(dq_op_hadamard(&c->hadamard, &c->x, &c->y));
}
static void run_hadamard_in_place(void *arg)
{
    stream_case *c = arg;
    must(dq_op_hadamard(&c->hadamard, &c->x, &c->x));
}
static void run_fake(void *arg)
{
    stream_case *c = arg;
    must(dq_op_fake_quant(&c->fake, &c->x, &c->y));
}

/* Any symmetric-looking table of +-1 serves for timing. */
static void random_table(int8_t *hk, int64_t k)
{
    dq_rng rng;
    dq_rng_seed_torch(&rng, 3);
    for (int64_t i = 0; i < k * k; i++) hk[i] = dq_rng_u32(&rng) & 1 ? 1 : -1;
}

static void bench_hadamard(void)
{
    static const struct {
        int k, p, inner;
    } cases[] = {{1, 64, 1},   {1, 128, 1},  {1, 256, 1},   {1, 512, 1},   {1, 1024, 1}, {1, 2048, 1},
                 {1, 4096, 1}, {1, 8192, 1}, {1, 16384, 1}, {1, 32, 128},  {1, 8, 64},   {12, 128, 1},
                 {36, 16, 1},  {12, 1, 64},  {28, 512, 1},  {28, 1024, 1}, {172, 64, 1}, {108, 128, 1}};
    if (!want_some("hadamard")) return;
    for (size_t i = 0; i < sizeof cases / sizeof cases[0]; i++) {
        static int8_t hk[172 * 172];
        stream_case c = {
            .hadamard = {.n = cases[i].k * cases[i].p, .k = cases[i].k, .hk = hk, .inner = cases[i].inner}};
        int64_t cols = c.hadamard.n * c.hadamard.inner, rows = (16 << 20) / cols;
        char shape[64];
        random_table(hk, cases[i].k);
        c.hadamard.scale = 1 / sqrt((double)c.hadamard.n);
        c.x = make(DQ_F32, rows, cols);
        c.y = make(DQ_F32, rows, cols);
        double bytes = 8.0 * (double)(rows * cols);
        snprintf(shape, sizeof shape, "%dx%d inner %d", cases[i].k, cases[i].p, cases[i].inner);
        report("hadamard", shape, run_hadamard, run_copy, &c, bytes / 1e9, "GB/s");
        report("hadamard_in_place", shape, run_hadamard_in_place, run_copy, &c, bytes / 1e9, "GB/s");
        dq_tensor_free(&c.x);
        dq_tensor_free(&c.y);
    }
}

static void bench_fake_quant(void)
{
    static const int groups[][2] = {{4096, 4096}, {4096, 128}, {576, 576}, {512, 64}};
    if (!want_some("fake_quant")) return;
    for (size_t i = 0; i < sizeof groups / sizeof groups[0]; i++)
        for (int symmetric = 0; symmetric < 2; symmetric++) {
            int64_t cols = groups[i][0], rows = (16 << 20) / cols;
            stream_case c = {.fake = {4, symmetric, groups[i][1], 0.9f, 1}};
            char shape[64];
            c.x = gaussian(rows, cols, 1);
            c.y = make(DQ_F32, rows, cols);
            snprintf(shape, sizeof shape, "%dx%d group %d %s", (int)rows, (int)cols, groups[i][1],
                     symmetric ? "sym" : "asym");
            report("fake_quant", shape, run_fake, run_copy, &c, 8.0 * (double)(rows * cols) / 1e9, "GB/s");
            dq_tensor_free(&c.x);
            dq_tensor_free(&c.y);
        }
}

/* ---- products and factorizations ---- */

typedef struct linear_case {
    dq_tensor x, h, u;
    float *host_a, *host_b;
    double *host_d;
} linear_case;

static void run_syrk(void *arg)
{
    linear_case *c = arg;
    must(dq_op_syrk(1, &c->x, 1, &c->h));
}
static void blas_syrk(void *arg)
{
    linear_case *c = arg;
    int n = (int)c->x.view.cols, t = (int)c->x.view.rows;
    openblas_set_num_threads(dq_threads(&env));
    cblas_ssyrk(CblasRowMajor, CblasLower, CblasTrans, n, t, 1, c->host_a, n, 1, c->host_b, n);
    openblas_set_num_threads(1);
}

static void bench_syrk(void)
{
    static const int cases[][3] = {{2048, 576, DQ_F32},  {2048, 1536, DQ_F32}, {2048, 2048, DQ_F32},
                                   {2048, 4096, DQ_F32}, {2048, 576, DQ_BF16}, {2048, 2048, DQ_BF16}};
    if (!want_some("syrk")) return;
    for (size_t i = 0; i < sizeof cases / sizeof cases[0]; i++) {
        int64_t t = cases[i][0], n = cases[i][1];
        dq_tensor x = gaussian(t, n, 1);
        linear_case c = {.x = x, .h = make(DQ_F32, n, n)};
        if (cases[i][2] != DQ_F32) {
            c.x = make(cases[i][2], t, n);
            must(dq_op_convert(&x, &c.x));
        }
        c.host_a = malloc((size_t)(t * n) * 4);
        c.host_b = calloc((size_t)(n * n), 4);
        must(dq_tensor_download(&x, c.host_a));
        char shape[64];
        snprintf(shape, sizeof shape, "%dx%d %s", (int)t, (int)n, cases[i][2] == DQ_F32 ? "f32" : "bf16");
        report("syrk", shape, run_syrk, blas_syrk, &c, (double)t * (double)n * (double)n / 1e9, "GF/s");
        free(c.host_a), free(c.host_b);
        if (cases[i][2] != DQ_F32) dq_tensor_free(&c.x);
        dq_tensor_free(&x);
        dq_tensor_free(&c.h);
    }
}

static dq_tensor hessian(int64_t n)
{
    dq_tensor x = gaussian(2 * n, n, 1), h = make(DQ_F32, n, n);
    must(dq_op_syrk(1.0 / (double)n, &x, 0, &h));
    dq_tensor_free(&x);
    return h;
}

static void run_factor(void *arg)
{
    linear_case *c = arg;
    int64_t info;
    must(dq_op_gptq_factor(&c->h, NULL, 0.02, &c->u, &info));
    if (info != 0) fprintf(stderr, "gptq_factor: pivot %lld\n", (long long)info);
}

static void bench_factor(void)
{
    static const int orders[] = {576, 1536, 2048, 4096, 4608};
    if (!want_some("factor")) return;
    for (size_t i = 0; i < sizeof orders / sizeof orders[0]; i++) {
        int64_t n = orders[i];
        linear_case c = {.h = hessian(n), .u = make(DQ_F32, n, n)};
        char shape[64];
        snprintf(shape, sizeof shape, "%d", (int)n);
        report("factor", shape, run_factor, NULL, &c, 2.0 / 3 * pow((double)n, 3) / 1e9, "GF/s");
        dq_tensor_free(&c.h);
        dq_tensor_free(&c.u);
    }
}

static void run_qr(void *arg)
{
    linear_case *c = arg;
    must(dq_op_qr(&c->x, &c->u, NULL));
}

static void bench_qr(void)
{
    static const int cases[][2] = {{576, DQ_F32}, {576, DQ_F64}, {2048, DQ_F32}, {2048, DQ_F64}, {4096, DQ_F32}};
    if (!want_some("qr")) return;
    for (size_t i = 0; i < sizeof cases / sizeof cases[0]; i++) {
        int64_t n = cases[i][0];
        dq_tensor x = gaussian(n, n, 1);
        linear_case c = {.x = make(cases[i][1], n, n), .u = make(cases[i][1], n, n)};
        must(dq_op_convert(&x, &c.x));
        char shape[64];
        snprintf(shape, sizeof shape, "%d %s", (int)n, cases[i][1] == DQ_F32 ? "f32" : "f64");
        report("qr", shape, run_qr, NULL, &c, 8.0 / 3 * pow((double)n, 3) / 1e9, "GF/s");
        dq_tensor_free(&x);
        dq_tensor_free(&c.x);
        dq_tensor_free(&c.u);
    }
}

/* ---- weights ---- */

typedef struct weight_case {
    dq_grid_desc grid;
    dq_tensor w0, w, h, u, scale, zero, index, codes, err;
} weight_case;

static void run_grid(void *arg)
{
    weight_case *c = arg;
    must(dq_op_weight_grid(&c->grid, &c->w0, &c->scale, &c->zero));
}

static void bench_grid(void)
{
    static const int cases[][3] = {{2048, 2048, 2048}, {2048, 2048, 128}, {576, 1536, 1536}};
    if (!want_some("grid")) return;
    for (size_t i = 0; i < sizeof cases / sizeof cases[0]; i++)
        for (int symmetric = 0; symmetric < 2; symmetric++) {
            int64_t out = cases[i][0], in = cases[i][1], group = cases[i][2];
            weight_case c = {.grid = {4, symmetric, group, 80, 100, 2.4f, 0}, .w0 = gaussian(out, in, 0.02f)};
            c.scale = make(DQ_F32, out, in / group);
            c.zero = make(DQ_F32, out, in / group);
            char shape[64];
            snprintf(shape, sizeof shape, "%dx%d group %d %s", (int)out, (int)in, (int)group,
                     symmetric ? "sym" : "asym");
            report("grid", shape, run_grid, NULL, &c, (double)(out * in) * 80 / 1e9, "G weight-steps/s");
            dq_tensor_free(&c.w0);
            dq_tensor_free(&c.scale);
            dq_tensor_free(&c.zero);
        }
}

/* Blocks of 128 columns, each followed by the trailing update as a product. */
static void run_columns(void *arg)
{
    weight_case *c = arg;
    int64_t n = c->w.view.cols, rows = c->w.view.rows;
    must(dq_op_convert(&c->w0, &c->w));
    for (int64_t j = 0; j < n; j += 128) {
        int64_t block = n - j < 128 ? n - j : 128, rest = n - j - block;
        dq_tensor w = dq_tensor_slice(&c->w, 0, rows, j, block), u = dq_tensor_slice(&c->u, j, block, j, block);
        dq_tensor index = dq_tensor_slice(&c->index, 0, 1, j, block);
        dq_tensor codes = dq_tensor_slice(&c->codes, 0, rows, j, block);
        dq_tensor err = dq_tensor_slice(&c->err, 0, rows, 0, block);
        must(dq_op_gptq_block(&c->grid, &w, &u, &c->scale, &c->zero, &index, &codes, &err));
        if (rest == 0) break;
        dq_tensor later = dq_tensor_slice(&c->w, 0, rows, j + block, rest);
        dq_tensor row = dq_tensor_slice(&c->u, j, block, j + block, rest);
        must(dq_op_gemm(false, false, -1, &err, &row, 1, &later, DQ_MATH_F32));
    }
}

static void run_gptq(void *arg)
{
    weight_case *c = arg;
    int64_t info;
    must(dq_op_gptq_factor(&c->h, NULL, 0.02, &c->u, &info));
    run_columns(arg);
}

static void bench_gptq(void)
{
    static const int orders[] = {576, 2048, 4096};
    if (!want_some("gptq")) return;
    for (size_t i = 0; i < sizeof orders / sizeof orders[0]; i++) {
        int64_t n = orders[i];
        weight_case c = {.grid = {4, 1, n, 0, 0, 0, 0}, .w0 = gaussian(n, n, 0.02f), .h = hessian(n)};
        c.w = make(DQ_F32, n, n), c.u = make(DQ_F32, n, n), c.codes = make(DQ_U8, n, n), c.err = make(DQ_F32, n, 128);
        c.scale = make(DQ_F32, n, 1), c.zero = make(DQ_F32, n, 1), c.index = make(DQ_I32, 1, n);
        must(dq_op_weight_grid(&c.grid, &c.w0, &c.scale, &c.zero));
        char shape[64];
        snprintf(shape, sizeof shape, "%dx%d", (int)n, (int)n);
        report("gptq", shape, run_gptq, NULL, &c, (double)n * (double)n / 1e6, "M weights/s");
        report("gptq_columns", shape, run_columns, NULL, &c, (double)n * (double)n / 1e6, "M weights/s");
        dq_tensor *all[] = {&c.w0, &c.w, &c.h, &c.u, &c.scale, &c.zero, &c.index, &c.codes, &c.err};
        for (size_t k = 0; k < sizeof all / sizeof all[0]; k++) dq_tensor_free(all[k]);
    }
}

int main(int argc, char **argv)
{
    bench_options(argc, argv, 7);
    dev = bench_device(openblas_get_config());
    bench_hadamard();
    bench_fake_quant();
    bench_syrk();
    bench_factor();
    bench_qr();
    bench_grid();
    bench_gptq();
    dq_device_close(dev);
    dq_env_clear(&env);
    return 0;
}
