/* The CPU backend's quantization kernels against the reference, at every SIMD level this machine has, with 1 and 3
 * threads: bit for bit where backend/cpu promises it. SPDX-License-Identifier: Apache-2.0 */
#include <math.h>
#include <stdarg.h>
#include <setjmp.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <cmocka.h>

#include "backend/cpu/cpu.h"
#include "backend/device.h"
#include "base/rng.h"
#include "base/status.h"

static const char *const levels[] = {"simd=plain", "simd=avx2", "simd=avx512"};

typedef struct bench {
    dq_env env[2];
    dq_device *ref;
    dq_device *cpu[2]; /* 1 and 3 threads */
    dq_rng rng;
} bench;

static void ok(dq_status status)
{
    if (status != DQ_OK) fail_msg("%s", dq_error_text());
}

static void open_bench(bench *b, int level)
{
    ok(dq_env_init(&b->env[0], NULL, 1));
    ok(dq_env_init(&b->env[1], NULL, 3));
    ok(dq_device_open(&b->env[0], "ref", "", DQ_POLICY_FORBID, &b->ref));
    for (int i = 0; i < 2; i++) ok(dq_device_open(&b->env[i], "cpu", levels[level], DQ_POLICY_FORBID, &b->cpu[i]));
    dq_rng_seed_torch(&b->rng, 7);
}

static void close_bench(bench *b)
{
    dq_device_close(b->ref);
    for (int i = 0; i < 2; i++) dq_device_close(b->cpu[i]);
    for (int i = 0; i < 2; i++) dq_env_clear(&b->env[i]);
}

static int usable_levels(void)
{
    bool vnni, bf16, amx;
    return (int)dq_cpu_detect(&vnni, &bf16, &amx) + 1;
}

static float uniform(bench *b) { return (float)((double)dq_rng_u32(&b->rng) / 4294967296.0 * 2 - 1); }

/* Roughly Gaussian, with an outlier here and there. */
static void fill_random(bench *b, float *x, int64_t n)
{
    for (int64_t i = 0; i < n; i++) {
        x[i] = uniform(b) + uniform(b) + uniform(b);
        if (dq_rng_u32(&b->rng) % 97 == 0) x[i] *= 8;
    }
}

static dq_device *device(bench *b, int which) { return which == 0 ? b->ref : b->cpu[which - 1]; }

/* A tensor `pad` columns wider than asked, so that rows are strided; `whole` owns the memory. */
static dq_tensor padded(dq_device *dev, dq_dtype dtype, int64_t rows, int64_t cols, int64_t pad, dq_tensor *whole)
{
    ok(dq_tensor_alloc(dev, dtype, rows, cols + pad, whole));
    return dq_tensor_slice(whole, 0, rows, 0, cols);
}

static void same_bits(const void *a, const void *b, size_t bytes, const char *what)
{
    if (memcmp(a, b, bytes) != 0) fail_msg("%s: bits differ", what);
}

/* ---- fake quantization ---- */

static void fake_quant_case(bench *b, const dq_fake_quant_desc *d, int64_t rows, int64_t cols, bool in_place)
{
    size_t bytes = (size_t)(rows * cols) * sizeof(float);
    float *x = malloc(bytes), *y[3];
    fill_random(b, x, rows * cols);
    for (int64_t i = 0; i < cols && i < d->group; i++) x[i] = 0; /* an all-zero group */
    if (rows > 1)
        for (int64_t i = 0; i < d->group; i++) x[cols + i] = 0.75f; /* an empty range */
    for (int w = 0; w < 3; w++) {
        dq_tensor whole_x, whole_y = {0}, tx = padded(device(b, w), DQ_F32, rows, cols, 3, &whole_x), ty = tx;
        if (!in_place) ty = padded(device(b, w), DQ_F32, rows, cols, 5, &whole_y);
        ok(dq_tensor_upload(&tx, x));
        ok(dq_op_fake_quant(d, &tx, &ty));
        y[w] = malloc(bytes);
        ok(dq_tensor_download(&ty, y[w]));
        dq_tensor_free(&whole_x);
        dq_tensor_free(&whole_y);
    }
    for (int w = 1; w < 3; w++) same_bits(y[0], y[w], bytes, "fake_quant");
    for (int w = 0; w < 3; w++) free(y[w]);
    free(x);
}

static void fake_quant(void **state)
{
    (void)state;
    static const int64_t shapes[][2] = {{24, 24}, {96, 32}, {61, 61}, {130, 13}, {1, 1}, {200, 8}, {576, 64}};
    for (int level = 0; level < usable_levels(); level++) {
        bench b;
        open_bench(&b, level);
        for (size_t s = 0; s < sizeof shapes / sizeof shapes[0]; s++)
            for (int bits = 2; bits <= 8; bits += 2)
                for (int flags = 0; flags < 8; flags++) {
                    dq_fake_quant_desc d = {.bits = bits, .symmetric = flags & 1, .group = shapes[s][1]};
                    d.clip = flags & 2 ? 0.9f : 1.0f;
                    d.zero_in_range = flags >> 2 & 1;
                    fake_quant_case(&b, &d, 5, shapes[s][0], bits == 4);
                }
        close_bench(&b);
    }
}

/* ---- Hadamard ---- */

static int legendre(int64_t a, int64_t q)
{
    a = ((a % q) + q) % q;
    if (a == 0) return 0;
    for (int64_t i = 1; i < q; i++)
        if (i * i % q == a) return 1;
    return -1;
}

/* Paley I for prime q = k - 1. */
static int8_t *paley(int64_t k)
{
    int8_t *h = malloc((size_t)(k * k));
    for (int64_t i = 0; i < k; i++)
        for (int64_t j = 0; j < k; j++) {
            int sign = i == 0 ? (j == 0 ? 1 : -1) : j == 0 ? 1 : i == j ? 1 : legendre(i - j, k - 1);
            h[i * k + j] = (int8_t)sign;
        }
    return h;
}

static void hadamard_case(bench *b, dq_hadamard_desc *d, int64_t rows, int64_t outer, dq_dtype dtype, void *previous)
{
    int64_t cols = outer * d->n * d->inner, count = rows * cols;
    size_t size = dtype == DQ_F64 ? 8 : 4, bytes = (size_t)count * size;
    float *x = malloc((size_t)count * sizeof *x);
    void *wide = malloc(bytes), *y[4];
    fill_random(b, x, count);
    for (int64_t i = 0; i < count; i++) {
        if (dtype == DQ_F64)
            ((double *)wide)[i] = x[i];
        else
            ((float *)wide)[i] = x[i];
    }
    for (int w = 0; w < 4; w++) { /* the last in place */
        dq_tensor whole_x, whole_y = {0}, tx = padded(device(b, w % 3), dtype, rows, cols, w, &whole_x), ty = tx;
        if (w > 0) ty = padded(device(b, w % 3), dtype, rows, cols, 0, &whole_y);
        ok(dq_tensor_upload(&tx, wide));
        ok(dq_op_hadamard(d, &tx, &ty));
        y[w] = malloc(bytes);
        ok(dq_tensor_download(&ty, y[w]));
        dq_tensor_free(&whole_x);
        dq_tensor_free(&whole_y);
    }
    same_bits(y[1], y[2], bytes, "hadamard threads");
    double worst = 0, most = 0, epsilon = dtype == DQ_F64 ? 0x1p-52 : 0x1p-23;
    for (int64_t i = 0; i < count; i++) {
        double a = dtype == DQ_F64 ? ((double *)y[0])[i] : ((float *)y[0])[i];
        double c = dtype == DQ_F64 ? ((double *)y[1])[i] : ((float *)y[1])[i];
        worst = fmax(worst, fabs(a - c));
        most = fmax(most, fabs(a));
    }
    if (!(worst <= 8 * epsilon * most)) fail_msg("hadamard n=%d: %g of %g", (int)d->n, worst, most);
    /* The same bits at every level: levels run the same cases in the same order. */
    if (previous) {
        uint64_t sum = 0, *slot = previous;
        for (size_t i = 0; i < bytes; i++) sum = sum * 1099511628211u + ((unsigned char *)y[1])[i];
        if (*slot == 0)
            *slot = sum;
        else if (*slot != sum)
            fail_msg("hadamard n=%d: levels differ", (int)d->n);
    }
    for (int w = 0; w < 4; w++) free(y[w]);
    free(wide);
    free(x);
}

static void hadamard(void **state)
{
    (void)state;
    static const struct {
        int64_t k, p, inner, outer, rows;
    } cases[] = {{1, 1, 1, 5, 3},     {1, 2, 1, 7, 3},    {1, 4, 1, 3, 2},    {1, 8, 1, 3, 5},    {1, 16, 1, 3, 5},
                 {1, 32, 1, 3, 5},    {1, 64, 1, 1, 9},   {1, 128, 1, 9, 3},  {1, 256, 1, 1, 3},  {1, 512, 1, 2, 3},
                 {1, 1024, 1, 1, 3},  {1, 2048, 1, 1, 2}, {1, 4096, 1, 1, 2}, {1, 8192, 1, 1, 2}, {1, 16384, 1, 1, 2},
                 {1, 32768, 1, 1, 1}, {1, 4, 7, 2, 3},    {1, 8, 64, 2, 3},   {1, 32, 13, 1, 3},  {1, 64, 33, 1, 2},
                 {12, 1, 1, 2, 3},    {12, 1, 64, 1, 3},  {12, 2, 5, 2, 3},   {12, 128, 1, 1, 3}, {20, 4, 1, 2, 3},
                 {12, 64, 3, 1, 2},   {60, 16, 1, 1, 2},  {140, 8, 1, 1, 2},  {684, 2, 1, 1, 1}};
    enum { CASES = sizeof cases / sizeof cases[0] };
    static uint64_t sums[CASES][2][2];
    memset(sums, 0, sizeof sums);
    for (int level = 0; level < usable_levels(); level++) {
        bench b;
        open_bench(&b, level);
        for (int c = 0; c < CASES; c++) {
            int8_t *hk = cases[c].k > 1 ? paley(cases[c].k) : NULL;
            for (int transpose = 0; transpose < 2; transpose++)
                for (int wide = 0; wide < 2; wide++) {
                    dq_hadamard_desc d = {.n = cases[c].k * cases[c].p, .k = cases[c].k, .hk = hk};
                    d.inner = cases[c].inner;
                    d.transpose = transpose;
                    d.scale = 1 / sqrt((double)d.n);
                    hadamard_case(&b, &d, cases[c].rows, cases[c].outer, wide ? DQ_F64 : DQ_F32,
                                  &sums[c][transpose][wide]);
                }
            free(hk);
        }
        close_bench(&b);
    }
}

/* ---- weight grids and codes ---- */

typedef struct grid_result {
    float *scale, *zero, *w;
    uint8_t *codes;
} grid_result;

static void run_grid(dq_device *dev, const dq_grid_desc *d, const float *w, const int32_t *index, int64_t rows,
                     int64_t cols, grid_result *r)
{
    int64_t groups = (cols + d->group - 1) / d->group;
    dq_tensor whole, tw = padded(dev, DQ_F32, rows, cols, 2, &whole), s, z, c, gi, back;
    ok(dq_tensor_upload(&tw, w));
    ok(dq_tensor_alloc(dev, DQ_F32, rows, groups, &s));
    ok(dq_tensor_alloc(dev, DQ_F32, rows, groups, &z));
    ok(dq_tensor_alloc(dev, DQ_U8, rows, cols, &c));
    ok(dq_tensor_alloc(dev, DQ_F32, rows, cols, &back));
    ok(dq_tensor_from_host(dev, DQ_I32, 1, cols, index, &gi));
    ok(dq_op_weight_grid(d, &tw, &s, &z));
    bool indexed = d->bits % 2 == 0;
    ok(dq_op_quantize_weight(d, &tw, &s, &z, indexed ? &gi : NULL, &c));
    ok(dq_op_dequantize_weight(d, &c, &s, &z, indexed ? &gi : NULL, &back));
    r->scale = malloc((size_t)(rows * groups) * 4);
    r->zero = malloc((size_t)(rows * groups) * 4);
    r->codes = malloc((size_t)(rows * cols));
    r->w = malloc((size_t)(rows * cols) * 4);
    ok(dq_tensor_download(&s, r->scale));
    ok(dq_tensor_download(&z, r->zero));
    ok(dq_tensor_download(&c, r->codes));
    ok(dq_tensor_download(&back, r->w));
    dq_tensor *all[] = {&whole, &s, &z, &c, &gi, &back};
    for (size_t i = 0; i < sizeof all / sizeof all[0]; i++) dq_tensor_free(all[i]);
}

static void grid_case(bench *b, const dq_grid_desc *d, int64_t rows, int64_t cols)
{
    float *w = malloc((size_t)(rows * cols) * sizeof *w);
    int32_t *index = malloc((size_t)cols * sizeof *index);
    int64_t groups = (cols + d->group - 1) / d->group;
    fill_random(b, w, rows * cols);
    for (int64_t c = 0; c < cols; c++) {
        index[c] = (int32_t)((c * 7 + 3) % groups);
        w[c] *= 0.02f;
        if (rows > 2) w[2 * cols + c] = 0;
        if (rows > 3) w[3 * cols + c] = 0.5f * (float)(c % 3);
    }
    grid_result r[3];
    for (int i = 0; i < 3; i++) run_grid(device(b, i), d, w, index, rows, cols, &r[i]);
    for (int i = 1; i < 3; i++) {
        same_bits(r[0].scale, r[i].scale, (size_t)(rows * groups) * 4, "weight_grid scale");
        same_bits(r[0].zero, r[i].zero, (size_t)(rows * groups) * 4, "weight_grid zero");
        same_bits(r[0].codes, r[i].codes, (size_t)(rows * cols), "quantize_weight");
        same_bits(r[0].w, r[i].w, (size_t)(rows * cols) * 4, "dequantize_weight");
    }
    for (int i = 0; i < 3; i++) free(r[i].scale), free(r[i].zero), free(r[i].codes), free(r[i].w);
    free(index);
    free(w);
}

static void weight_grid(void **state)
{
    (void)state;
    static const int64_t shapes[][2] = {{61, 61}, {128, 32}, {100, 48}, {257, 128}, {5, 5}, {1, 1}};
    for (int level = 0; level < usable_levels(); level++) {
        bench b;
        open_bench(&b, level);
        for (size_t s = 0; s < sizeof shapes / sizeof shapes[0]; s++)
            for (int bits = 2; bits <= 8; bits++)
                for (int flags = 0; flags < 4; flags++) {
                    dq_grid_desc d = {.bits = bits, .symmetric = flags & 1, .group = shapes[s][1]};
                    if (flags & 2) d.search_steps = 80, d.search_grid = 100, d.search_norm = bits == 5 ? 2.0f : 2.4f;
                    grid_case(&b, &d, 21, shapes[s][0]);
                }
        close_bench(&b);
    }
}

/* ---- GPTQ block ---- */

static void gptq_case(bench *b, const dq_grid_desc *d, int64_t rows, int64_t cols, int64_t groups)
{
    size_t n = (size_t)(rows * cols);
    float *w = malloc(n * 4), *u = calloc((size_t)(cols * cols), 4), *s = malloc((size_t)(rows * groups) * 4),
          *z = malloc((size_t)(rows * groups) * 4), *out_w[3], *out_e[3];
    uint8_t *out_c[3];
    int32_t *index = malloc((size_t)cols * sizeof *index);
    fill_random(b, w, rows * cols);
    for (int64_t i = 0; i < cols; i++) {
        index[i] = (int32_t)(i * 5 / 3 % groups);
        for (int64_t j = i; j < cols; j++) u[i * cols + j] = i == j ? 1 + 0.5f * uniform(b) : 0.2f * uniform(b);
    }
    for (int64_t i = 0; i < rows * groups; i++) {
        s[i] = 0.2f + 0.1f * uniform(b);
        z[i] = d->symmetric ? (float)(1 << (d->bits - 1)) : (float)(i % (1 << d->bits));
    }
    for (int i = 0; i < 3; i++) {
        dq_device *dev = device(b, i);
        dq_tensor whole, whole_e, tw = padded(dev, DQ_F32, rows, cols, 9, &whole);
        dq_tensor te = padded(dev, DQ_F32, rows, cols, 1, &whole_e), tu, ts, tz, ti, tc;
        ok(dq_tensor_upload(&tw, w));
        ok(dq_tensor_from_host(dev, DQ_F32, cols, cols, u, &tu));
        ok(dq_tensor_from_host(dev, DQ_F32, rows, groups, s, &ts));
        ok(dq_tensor_from_host(dev, DQ_F32, rows, groups, z, &tz));
        ok(dq_tensor_from_host(dev, DQ_I32, 1, cols, index, &ti));
        ok(dq_tensor_alloc(dev, DQ_U8, rows, cols, &tc));
        ok(dq_op_gptq_block(d, &tw, &tu, &ts, &tz, &ti, &tc, &te));
        out_w[i] = malloc(n * 4), out_e[i] = malloc(n * 4), out_c[i] = malloc(n);
        ok(dq_tensor_download(&tw, out_w[i]));
        ok(dq_tensor_download(&te, out_e[i]));
        ok(dq_tensor_download(&tc, out_c[i]));
        dq_tensor *all[] = {&whole, &whole_e, &tu, &ts, &tz, &ti, &tc};
        for (size_t k = 0; k < sizeof all / sizeof all[0]; k++) dq_tensor_free(all[k]);
    }
    for (int i = 1; i < 3; i++) {
        same_bits(out_c[0], out_c[i], n, "gptq_block codes");
        same_bits(out_w[0], out_w[i], n * 4, "gptq_block w");
        same_bits(out_e[0], out_e[i], n * 4, "gptq_block err");
    }
    for (int i = 0; i < 3; i++) free(out_w[i]), free(out_e[i]), free(out_c[i]);
    free(w), free(u), free(s), free(z), free(index);
}

static void gptq_block(void **state)
{
    (void)state;
    static const int64_t shapes[][3] = {{1, 1, 1}, {3, 7, 2}, {16, 16, 1}, {70, 128, 1}, {33, 128, 4}, {131, 37, 5}};
    for (int level = 0; level < usable_levels(); level++) {
        bench b;
        open_bench(&b, level);
        for (size_t i = 0; i < sizeof shapes / sizeof shapes[0]; i++)
            for (int bits = 2; bits <= 8; bits += 2) {
                dq_grid_desc d = {.bits = bits, .symmetric = bits == 4, .group = shapes[i][1]};
                gptq_case(&b, &d, shapes[i][0], shapes[i][1], shapes[i][2]);
            }
        close_bench(&b);
    }
}

/* ---- factorizations over many tiles ---- */

/* h = diag(d) + v v^T, so that products with h need no n^3 work. Checks u^T (u (h z)) = z, also where the factor is found
 * in fp32 (orders above 4096), and the same bits with 1 and 3 threads. */
static void factor_case(bench *b, int64_t n, bool permuted, double band)
{
    size_t square = (size_t)(n * n);
    float *h = malloc(square * 4), *u[2];
    double *d = malloc((size_t)n * 8), *v = malloc((size_t)n * 8), *z = malloc((size_t)n * 8),
           *y = malloc((size_t)n * 8);
    double *t = calloc((size_t)n, 8), *back = calloc((size_t)n, 8), vz = 0, worst = 0;
    int32_t *perm = malloc((size_t)n * sizeof *perm);
    for (int64_t i = 0; i < n; i++) {
        d[i] = 2 + uniform(b);
        v[i] = uniform(b);
        z[i] = uniform(b);
        perm[i] = (int32_t)((i * 11 + 3) % n); /* 11 divides none of the orders used */
    }
    for (int64_t i = 0; i < n; i++)
        for (int64_t j = 0; j <= i; j++) h[i * n + j] = (float)(v[i] * v[j] + (i == j ? d[i] : 0));
    for (int k = 0; k < 2; k++) {
        dq_tensor th, tu, tp;
        int64_t info = -1;
        ok(dq_tensor_from_host(b->cpu[k], DQ_F32, n, n, h, &th));
        ok(dq_tensor_from_host(b->cpu[k], DQ_I32, 1, n, perm, &tp));
        ok(dq_tensor_alloc(b->cpu[k], DQ_F32, n, n, &tu));
        ok(dq_op_gptq_factor(&th, permuted ? &tp : NULL, 0.5, &tu, &info));
        assert_int_equal(info, 0);
        u[k] = malloc(square * 4);
        ok(dq_tensor_download(&tu, u[k]));
        dq_tensor_free(&th), dq_tensor_free(&tu), dq_tensor_free(&tp);
    }
    same_bits(u[0], u[1], square * 4, "gptq_factor threads");
    for (int64_t i = 0; i < n; i++) vz += v[permuted ? perm[i] : i] * z[i];
    for (int64_t i = 0; i < n; i++) {
        int64_t p = permuted ? perm[i] : i;
        y[i] = (d[p] + 0.5) * z[i] + v[p] * vz;
    }
    for (int64_t i = 0; i < n; i++)
        for (int64_t j = i; j < n; j++) t[i] += (double)u[0][i * n + j] * y[j];
    for (int64_t i = 0; i < n; i++)
        for (int64_t j = 0; j < n; j++) {
            if (j < i)
                assert_true(u[0][i * n + j] == 0);
            else
                back[j] += (double)u[0][i * n + j] * t[i];
        }
    for (int64_t i = 0; i < n; i++) worst = fmax(worst, fabs(back[i] - z[i]));
    if (!(worst < band)) fail_msg("gptq_factor order %d: off by %g", (int)n, worst);
    free(h), free(u[0]), free(u[1]), free(d), free(v), free(z), free(y), free(t), free(back), free(perm);
}

static void factor(void **state)
{
    (void)state;
    bench b;
    open_bench(&b, 0); /* OpenBLAS does the work at every level */
    factor_case(&b, 127, false, 1e-4);
    factor_case(&b, 700, true, 1e-4);
    factor_case(&b, 1103, false, 1e-4);
    factor_case(&b, 4112, false, 1e-2);
    close_bench(&b);
}

/* h accumulated over token chunks and tiles against the reference. */
static void syrk(void **state)
{
    (void)state;
    enum { TOKENS = 2100, N = 530 };
    bench b;
    open_bench(&b, 0);
    float *x = malloc(sizeof(float) * TOKENS * N), *h[3];
    fill_random(&b, x, (int64_t)TOKENS * N);
    for (int w = 0; w < 3; w++) {
        dq_tensor whole, tx = padded(device(&b, w), DQ_F32, TOKENS, N, 6, &whole), th;
        ok(dq_tensor_upload(&tx, x));
        ok(dq_tensor_alloc(device(&b, w), DQ_F32, N, N, &th));
        ok(dq_op_fill(0.25, &th));
        ok(dq_op_syrk(0.5, &tx, 2, &th));
        h[w] = malloc(sizeof(float) * N * N);
        ok(dq_tensor_download(&th, h[w]));
        dq_tensor_free(&whole), dq_tensor_free(&th);
    }
    same_bits(h[1], h[2], sizeof(float) * N * N, "syrk threads");
    for (int i = 0; i < N; i++)
        for (int j = 0; j < N; j++) {
            float got = h[1][i * N + j], expected = h[0][i * N + j];
            if (j > i)
                assert_true(got == 0.25f); /* the upper triangle stays */
            else if (!(fabsf(got - expected) <= 2e-6f * (float)TOKENS))
                fail_msg("syrk: %g, reference %g", got, expected);
        }
    for (int w = 0; w < 3; w++) free(h[w]);
    free(x);
    close_bench(&b);
}

static void qr(void **state)
{
    (void)state;
    enum { N = 300 };
    bench b;
    open_bench(&b, 0);
    float *x = malloc(sizeof(float) * N * N);
    double *wide = malloc(sizeof(double) * N * N), *q[3], *r[3];
    fill_random(&b, x, (int64_t)N * N);
    for (int i = 0; i < N * N; i++) wide[i] = x[i];
    for (int w = 0; w < 3; w++) {
        dq_tensor a, tq, tr;
        ok(dq_tensor_from_host(device(&b, w), DQ_F64, N, N, wide, &a));
        ok(dq_tensor_alloc(device(&b, w), DQ_F64, N, N, &tq));
        ok(dq_tensor_alloc(device(&b, w), DQ_F64, N, N, &tr));
        ok(dq_op_qr(&a, &tq, &tr));
        q[w] = malloc(sizeof(double) * N * N), r[w] = malloc(sizeof(double) * N * N);
        ok(dq_tensor_download(&tq, q[w]));
        ok(dq_tensor_download(&tr, r[w]));
        dq_tensor_free(&a), dq_tensor_free(&tq), dq_tensor_free(&tr);
    }
    same_bits(q[1], q[2], sizeof(double) * N * N, "qr threads");
    for (int i = 0; i < N * N; i++) {
        assert_true(fabs(q[0][i] - q[1][i]) < 1e-10);
        assert_true(fabs(r[0][i] - r[1][i]) < 1e-9);
    }
    for (int w = 0; w < 3; w++) free(q[w]), free(r[w]);
    free(x), free(wide);
    close_bench(&b);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(fake_quant), cmocka_unit_test(hadamard), cmocka_unit_test(weight_grid),
        cmocka_unit_test(gptq_block), cmocka_unit_test(factor),   cmocka_unit_test(syrk),
        cmocka_unit_test(qr),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
