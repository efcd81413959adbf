/* Speed of a backend's ops at the sizes that count (docs/benchmarks: G1 to G5), each beside its roofline: copy bandwidth and
 * product rates measured in the same run. One JSON object a line.
 * Usage: bench_ops --backend NAME|PATH[:OPTIONS] [--tiny] [--seconds X] [PREFIX ...]
 * SPDX-License-Identifier: Apache-2.0 */
#include <math.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "backend/device.h"
#include "base/half.h"
#include "base/status.h"
#include "quant/parts.h"

static dq_env env;
static dq_device *dev;
static bool tiny;
static double budget = 0.4;                   /* seconds for one figure */
static double copy_rate, bf16_rate, f32_rate; /* bytes and operations a second */
static char **wanted;
static int wanted_count;

static void must(dq_status status)
{
    if (status == DQ_OK) return;
    fprintf(stderr, "%s\n", dq_error_text());
    exit(1);
}

static bool selected(const char *id)
{
    for (int i = 0; i < wanted_count; i++)
        if (strncmp(id, wanted[i], strlen(wanted[i])) == 0) return true;
    return wanted_count == 0;
}

/* ---- operands ---- */

static dq_tensor make(dq_dtype dtype, int64_t rows, int64_t cols)
{
    dq_tensor t = {0};
    must(dq_tensor_alloc(dev, dtype, rows, cols, &t));
    return t;
}

/* Random, never zeros: a stretch of random numbers that is uploaded again and again. */
static dq_tensor filled(dq_dtype dtype, int64_t rows, int64_t cols)
{
    enum { STRETCH = 1 << 22 };
    static float *host;
    static uint32_t seed = 1;
    if (!host) {
        host = malloc((STRETCH + 4096) * sizeof *host);
        for (int64_t i = 0; host && i < STRETCH + 4096; i++) {
            seed = seed * 1664525u + 1013904223u;
            host[i] = (float)(int32_t)seed * 0x1p-31f;
        }
    }
    dq_tensor t = make(dtype, rows, cols);
    int64_t step = STRETCH / cols < 1 ? 1 : STRETCH / cols;
    if (cols > STRETCH) must(dq_fail(DQ_E_INVALID, "rows of %lld elements", (long long)cols));
    dq_tensor wide = make(DQ_F32, step < rows ? step : rows, cols);
    for (int64_t r = 0; r < rows; r += step) {
        int64_t n = rows - r < step ? rows - r : step;
        dq_tensor part = dq_tensor_rows(&t, r, n), from = dq_tensor_rows(&wide, 0, n);
        must(dq_tensor_upload(&from, host + r / step * 61 % 4096));
        must(dq_op_convert(&from, &part));
    }
    dq_tensor_free(&wide);
    return t;
}

/* ---- measuring ---- */

typedef dq_status (*work_fn)(void *arg);

/* Reading one element makes the host wait for all that is queued. */
static void drain(const dq_tensor *t)
{
    char one[8];
    dq_tensor corner = dq_tensor_slice(t, 0, 1, 0, 1);
    must(dq_tensor_download(&corner, one));
}

static int by_value(const void *a, const void *b)
{
    double x = *(const double *)a, y = *(const double *)b;
    return (x > y) - (x < y);
}

/* Median seconds of a call over five batches, after a first call that does not count. */
static double seconds_of(work_fn fn, void *arg, const dq_tensor *result)
{
    double batch[5];
    must(fn(arg));
    drain(result);
    double start = dq_now();
    must(fn(arg));
    drain(result);
    double once = dq_now() - start;
    int runs = once > 0 ? (int)(budget / 5 / once) : 1;
    runs = runs < 1 ? 1 : runs > 1000 ? 1000 : runs;
    for (int b = 0; b < 5; b++) {
        start = dq_now();
        for (int i = 0; i < runs; i++) must(fn(arg));
        drain(result);
        batch[b] = (dq_now() - start) / runs;
    }
    qsort(batch, 5, sizeof *batch, by_value);
    return batch[2];
}

/* `flops` and `bytes`: the least that the job needs; the larger of both times is its roofline. `rate`: of its products. */
static void report(const char *id, const char *what, double seconds, double flops, double rate, double bytes)
{
    double floor = flops > 0 && rate > 0 ? flops / rate : 0;
    if (bytes > 0 && copy_rate > 0 && bytes / copy_rate > floor) floor = bytes / copy_rate;
    printf("{\"id\": \"%s\", \"what\": \"%s\", \"seconds\": %.6g, \"flops\": %.6g, \"bytes\": %.6g, \"tflops\": %.4g, "
           "\"gbytes_s\": %.4g, \"roofline_seconds\": %.6g, \"of_roofline\": %.4g}\n",
           id, what, seconds, flops, bytes, flops / seconds * 1e-12, bytes / seconds * 1e-9, floor, floor / seconds);
    fflush(stdout);
}

/* ---- rooflines ---- */

typedef struct product {
    dq_tensor a, b, c;
    int math;
} product;

static dq_status do_product(void *arg)
{
    product *p = arg;
    return dq_op_gemm(false, true, 1, &p->a, &p->b, 0, &p->c, p->math);
}

static dq_status do_copy(void *arg)
{
    product *p = arg;
    return dq_op_convert(&p->a, &p->c);
}

static double product_rate(const char *id, dq_dtype dtype, int64_t n)
{
    product p = {filled(dtype, n, n), filled(dtype, n, n), make(DQ_F32, n, n), DQ_MATH_F32};
    double seconds = seconds_of(do_product, &p, &p.c), flops = 2.0 * (double)n * (double)n * (double)n;
    report(id, dtype == DQ_BF16 ? "bf16 product" : "fp32 product", seconds, flops, 0, 0);
    dq_tensor_free(&p.a);
    dq_tensor_free(&p.b);
    dq_tensor_free(&p.c);
    return flops / seconds;
}

static void rooflines(void)
{
    int64_t rows = tiny ? 256 : 65536, cols = tiny ? 64 : 8192;
    product p = {.a = filled(DQ_F32, rows, cols), .c = make(DQ_F32, rows, cols)};
    double seconds = seconds_of(do_copy, &p, &p.c), bytes = 8.0 * (double)rows * (double)cols;
    report("R-copy", "copy on the device, read plus written", seconds, 0, 0, bytes);
    copy_rate = bytes / seconds;
    dq_tensor_free(&p.a);
    dq_tensor_free(&p.c);
    bf16_rate = product_rate("R-bf16", DQ_BF16, tiny ? 64 : 8192);
    f32_rate = product_rate("R-f32", DQ_F32, tiny ? 64 : 8192);
}

/* ---- G1: Hessians ---- */

static dq_status do_syrk(void *arg)
{
    product *p = arg;
    return dq_op_syrk(1, &p->a, 0, &p->c);
}

static void hessian(int64_t n, int64_t tokens, dq_dtype dtype)
{
    char what[80];
    product p = {.a = filled(dtype, tokens, n), .c = make(DQ_F32, n, n)};
    snprintf(what, sizeof what, "Hessian of %lld, %lld %s tokens", (long long)n, (long long)tokens,
             dq_dtype_name(dtype));
    double seconds = seconds_of(do_syrk, &p, &p.c);
    double flops = (double)n * (double)(n + 1) * (double)tokens;
    report("G1", what, seconds, flops, dtype == DQ_F32 ? f32_rate : bf16_rate, 0);
    dq_tensor_free(&p.a);
    dq_tensor_free(&p.c);
}

/* ---- G2: orthogonal factors ---- */

typedef struct square {
    dq_tensor a, q, r, d, g;
} square;

static dq_status do_polar(void *arg)
{
    square *s = arg;
    double error;
    return dq_op_polar(1, DQ_MATH_F32, &s->a, &s->q, &error);
}

static dq_status do_qr_pair(void *arg)
{
    square *s = arg;
    DQ_TRY(dq_op_qr_batch(1, &s->a, &s->q, &s->r));
    return dq_op_qr_grad(1, &s->q, &s->r, &s->d, &s->g);
}

static void orthogonal(int64_t n)
{
    char what[80];
    double order = (double)n;
    square s = {filled(DQ_F32, n, n), make(DQ_F32, n, n), make(DQ_F32, n, n), filled(DQ_F32, n, n), make(DQ_F32, n, n)};
    snprintf(what, sizeof what, "QR and its derivative, order %lld", (long long)n);
    report("G2", what, seconds_of(do_qr_pair, &s, &s.g), 7 * order * order * order, f32_rate, 0);
    snprintf(what, sizeof what, "polar factor of a random matrix, order %lld", (long long)n);
    report("G2", what, seconds_of(do_polar, &s, &s.q), 8 * order * order * order, f32_rate, 0);
    /* As in the middle of learning: orthogonal but for a small step. */
    must(dq_op_convert(&s.q, &s.a));
    must(dq_op_axpy(0.1 / sqrt(order), &s.d, &s.a));
    snprintf(what, sizeof what, "polar factor near an orthogonal matrix, order %lld", (long long)n);
    report("G2", what, seconds_of(do_polar, &s, &s.q), 8 * order * order * order, f32_rate, 0);
    dq_tensor_free(&s.a), dq_tensor_free(&s.q), dq_tensor_free(&s.r), dq_tensor_free(&s.d), dq_tensor_free(&s.g);
}

/* ---- G3: GPTQ of one weight ---- */

typedef struct solve {
    dq_weight_spec spec;
    dq_tensor original, w, h;
    dq_gptq_plan plan;
} solve;

static dq_status do_solve(void *arg)
{
    solve *s = arg;
    dq_codes codes = {0};
    double error, damping;
    DQ_TRY(dq_op_convert(&s->original, &s->w));
    DQ_TRY(dq_quantize_linear(&s->spec, &s->w, &s->h, &codes, &error, &damping));
    dq_codes_free(&codes);
    return DQ_OK;
}

static dq_status do_plan(void *arg)
{
    solve *s = arg;
    dq_gptq_plan_free(&s->plan);
    return dq_gptq_plan_make(&s->spec, &s->h, &s->plan);
}

static void gptq(int64_t out, int64_t in, int64_t group)
{
    char what[96];
    solve s = {.spec = {.bits = 4,
                        .method = DQ_WEIGHT_GPTQ,
                        .group = group,
                        .symmetric = true,
                        .clip_search = group > 0,
                        .percdamp = 0.1,
                        .vocab_dtype = DQ_F32}};
    int64_t tokens = 2 * in;
    s.original = filled(DQ_F32, out, in);
    s.w = make(DQ_F32, out, in);
    s.h = make(DQ_F32, in, in);
    dq_tensor x = filled(DQ_BF16, tokens, in);
    must(dq_op_fill(0, &s.h));
    must(dq_op_syrk(2.0, &x, 0, &s.h));
    dq_tensor_free(&x);
    double seconds = seconds_of(do_plan, &s, &s.plan.u), n = (double)in;
    snprintf(what, sizeof what, "factor of order %lld", (long long)in);
    report("G3", what, seconds, n * n * n / 3, f32_rate, 0);
    dq_gptq_plan_free(&s.plan);
    snprintf(what, sizeof what, "GPTQ of %lld x %lld, %s", (long long)out, (long long)in,
             group > 0 ? "groups of 128 with range search" : "one range a row");
    seconds = seconds_of(do_solve, &s, &s.w);
    report("G3", what, seconds, (double)out * n * n + n * n * n / 3, f32_rate, 0);
    dq_tensor_free(&s.original), dq_tensor_free(&s.w), dq_tensor_free(&s.h);
}

/* ---- G4: Hadamard, quantizers and other work that is bound by memory ---- */

typedef struct rows {
    dq_tensor x, y, z, v, b, cos, sin; /* b: BF16 */
    dq_hadamard_desc h;
    dq_fake_quant_desc q;
} rows;

static dq_status do_hadamard(void *arg)
{
    rows *r = arg;
    return dq_op_hadamard(&r->h, &r->x, &r->y);
}
static dq_status do_fake_quant(void *arg)
{
    rows *r = arg;
    return dq_op_fake_quant(&r->q, &r->x, &r->y);
}
static dq_status do_hadamard_quant(void *arg)
{
    rows *r = arg;
    return dq_op_hadamard_quant(&r->h, &r->q, &r->x, &r->y);
}
static dq_status do_norm_quant(void *arg)
{
    rows *r = arg;
    return dq_op_rmsnorm_quant(&r->x, NULL, 1e-5, &r->q, &r->y);
}
static dq_status do_rmsnorm(void *arg)
{
    rows *r = arg;
    return dq_op_rmsnorm(&r->x, &r->v, 1e-5, &r->y);
}
static dq_status do_activation(void *arg)
{
    rows *r = arg;
    return dq_op_activation(DQ_ACT_SILU, &r->x, &r->z, &r->y);
}
static dq_status do_norm_bf16(void *arg)
{
    rows *r = arg;
    return dq_op_rmsnorm(&r->x, &r->v, 1e-5, &r->b);
}
static dq_status do_activation_bf16(void *arg)
{
    rows *r = arg;
    return dq_op_activation(DQ_ACT_SILU, &r->x, &r->z, &r->b);
}
static dq_status do_rope(void *arg)
{
    rows *r = arg;
    return dq_op_rope(&r->cos, &r->sin, 2 * r->cos.view.cols, &r->y);
}

/* Some matrix of +-1 serves for timing: its values do not matter. */
static const int8_t *signs(int64_t k)
{
    static int8_t table[172 * 172];
    for (int64_t i = 0; i < k * k; i++) table[i] = i * i / 7 % 2 ? 1 : -1;
    return k > 1 ? table : NULL;
}

static void row_work(int64_t n, int64_t k, int64_t elements)
{
    char what[80];
    rows r = {.x = filled(DQ_F32, elements / n, n), .y = make(DQ_F32, elements / n, n)};
    double bytes = 8.0 * (double)(elements / n) * (double)n;
    r.h = (dq_hadamard_desc){.n = n, .k = k, .hk = signs(k), .inner = 1, .scale = 1 / sqrt((double)n)};
    r.q = (dq_fake_quant_desc){.bits = 4, .group = n, .clip = 0.9f, .zero_in_range = 1};
    snprintf(what, sizeof what, "Hadamard of order %lld = %lld x %lld", (long long)n, (long long)k, (long long)(n / k));
    report("G4", what, seconds_of(do_hadamard, &r, &r.y), 0, 0, bytes);
    snprintf(what, sizeof what, "Hadamard of order %lld, then 4-bit rounding", (long long)n);
    report("G4", what, seconds_of(do_hadamard_quant, &r, &r.y), 0, 0, bytes);
    snprintf(what, sizeof what, "4-bit rounding of rows of %lld", (long long)n);
    report("G4", what, seconds_of(do_fake_quant, &r, &r.y), 0, 0, bytes);
    snprintf(what, sizeof what, "RMS norm of rows of %lld, then 4-bit rounding", (long long)n);
    report("G4", what, seconds_of(do_norm_quant, &r, &r.y), 0, 0, bytes);
    dq_tensor_free(&r.x), dq_tensor_free(&r.y);
}

static void forward_work(int64_t tokens, int64_t n)
{
    int64_t dim = tiny ? 16 : 128;
    rows r = {.x = filled(DQ_F32, tokens, n),
              .y = make(DQ_F32, tokens, n),
              .z = filled(DQ_F32, tokens, n),
              .v = filled(DQ_F32, 1, n),
              .b = make(DQ_BF16, tokens, n),
              .cos = make(DQ_F32, tokens, dim / 2),
              .sin = make(DQ_F32, tokens, dim / 2)};
    double bytes = 4.0 * (double)tokens * (double)n;
    must(dq_op_fill(0.6, &r.cos));
    must(dq_op_fill(0.8, &r.sin));
    report("F", "RMS norm", seconds_of(do_rmsnorm, &r, &r.y), 0, 0, 2 * bytes);
    report("F", "gated activation", seconds_of(do_activation, &r, &r.y), 0, 0, 3 * bytes);
    report("F", "RMS norm, bf16 out", seconds_of(do_norm_bf16, &r, &r.b), 0, 0, 1.5 * bytes);
    report("F", "gated activation, bf16 out", seconds_of(do_activation_bf16, &r, &r.b), 0, 0, 2.5 * bytes);
    report("F", "rotary embedding", seconds_of(do_rope, &r, &r.y), 0, 0, 2 * bytes);
    dq_tensor_free(&r.x), dq_tensor_free(&r.y), dq_tensor_free(&r.z);
    dq_tensor_free(&r.v), dq_tensor_free(&r.b), dq_tensor_free(&r.cos), dq_tensor_free(&r.sin);
}

/* ---- keys and values on levels (KVQuant) ---- */

typedef struct on_levels {
    dq_levels_quant_desc d;
    dq_tensor x, range, levels, y;
} on_levels;

static dq_status do_levels(void *arg)
{
    on_levels *l = arg;
    return dq_op_levels_quant(&l->d, &l->x, l->d.per_row ? NULL : &l->range, &l->levels, NULL, &l->y);
}

/* Three bits, the first token exact: keys in ranges that all numbers lie in, values with 1 % outliers. */
static void levels_work(int64_t tokens, int64_t n)
{
    const float table[8] = {-1, -0.7f, -0.4f, -0.1f, 0.1f, 0.4f, 0.7f, 1};
    on_levels l = {.x = filled(DQ_F32, tokens, n), .range = make(DQ_F32, 2, n), .levels = make(DQ_F32, 1, 8)};
    dq_tensor lo = dq_tensor_rows(&l.range, 0, 1), hi = dq_tensor_rows(&l.range, 1, 1);
    l.y = make(DQ_F32, tokens, n);
    l.d = (dq_levels_quant_desc){.keep_outliers = 1, .seqlen = tokens, .sink = 1, .norm_scale = 1};
    must(dq_op_fill(-2, &lo));
    must(dq_op_fill(2, &hi));
    must(dq_tensor_upload(&l.levels, table));
    double bytes = 8.0 * (double)tokens * (double)n;
    report("F", "keys on 8 levels, by column", seconds_of(do_levels, &l, &l.y), 0, 0, bytes);
    l.d.per_row = 1;
    report("F", "values on 8 levels, by row", seconds_of(do_levels, &l, &l.y), 0, 0, bytes);
    l.d.outliers = 0.01;
    report("F", "values on 8 levels, 1 % outliers", seconds_of(do_levels, &l, &l.y), 0, 0, bytes);
    dq_tensor_free(&l.x), dq_tensor_free(&l.range), dq_tensor_free(&l.levels), dq_tensor_free(&l.y);
}

typedef struct head {
    dq_tensor x, w, targets, state;
} head;

static dq_status do_head(void *arg)
{
    head *h = arg;
    return dq_op_head_nll(&h->x, &h->w, &h->targets, 0, &h->state, DQ_MATH_BF16);
}

/* A window's loss over a tile of the vocabulary. */
static void head_work(int64_t tokens, int64_t n, int64_t tile)
{
    head h = {filled(DQ_BF16, tokens, n), filled(DQ_BF16, tile, n), make(DQ_I32, 1, tokens), make(DQ_F64, tokens, 3)};
    dq_tensor sum = dq_tensor_slice(&h.state, 0, tokens, 1, 1);
    must(dq_op_fill(0, &h.targets));
    must(dq_op_fill(-INFINITY, &h.state));
    must(dq_op_fill(0, &sum));
    double flops = 2.0 * (double)tokens * (double)n * (double)tile;
    report("F", "loss of 2048 tokens over 4096 words", seconds_of(do_head, &h, &h.state), flops, bf16_rate, 0);
    dq_tensor_free(&h.x), dq_tensor_free(&h.w), dq_tensor_free(&h.targets), dq_tensor_free(&h.state);
}

/* ---- products of integers ---- */

typedef struct codes {
    dq_tensor x, between, q, q_grid, w, w_grid, y;
    dq_fake_quant_desc d;
    dq_hadamard_desc h;
    double beta;
} codes;

static dq_status do_rows(void *arg)
{
    codes *c = arg;
    return dq_op_quantize_rows(&c->d, &c->x, &c->q, &c->q_grid);
}
static dq_status do_norm_rows(void *arg)
{
    codes *c = arg;
    return dq_op_rmsnorm_rows(&c->x, NULL, 1e-5, &c->d, &c->between, &c->q, &c->q_grid);
}
static dq_status do_hadamard_rows(void *arg)
{
    codes *c = arg;
    return dq_op_hadamard_rows(&c->h, &c->d, &c->x, &c->between, &c->q, &c->q_grid);
}
static dq_status do_int8_linear(void *arg)
{
    codes *c = arg;
    return dq_op_int8_linear(c->beta, &c->q, &c->q_grid, &c->w, &c->w_grid, &c->y);
}

/* A linear of a quantized model, from its input on; integers are taken to be twice as fast as bf16. */
static void integers(int64_t tokens, int64_t in, int64_t k, int64_t out, double beta)
{
    char what[100];
    codes c = {.x = filled(DQ_F32, tokens, in), .between = make(DQ_F32, tokens, in), .beta = beta};
    double n = (double)tokens * (double)in, flops = 2 * n * (double)out;
    c.d = (dq_fake_quant_desc){.bits = 8, .group = in, .clip = 0.9f, .zero_in_range = 1};
    c.h = (dq_hadamard_desc){.n = in, .k = k, .hk = signs(k), .inner = 1, .scale = 1 / sqrt((double)in)};
    c.q = make(DQ_I8, out, in), c.q_grid = make(DQ_F32, out, 3); /* the weights first, in the same way */
    dq_tensor w = c.x, x = filled(DQ_F32, out, in);
    c.x = x;
    must(do_rows(&c));
    c.w = c.q, c.w_grid = c.q_grid, c.x = w;
    dq_tensor_free(&x);
    c.q = make(DQ_I8, tokens, in), c.q_grid = make(DQ_F32, tokens, 3), c.y = filled(DQ_F32, tokens, out);
    snprintf(what, sizeof what, "rows of %lld to 8-bit codes", (long long)in);
    report("I", what, seconds_of(do_rows, &c, &c.q_grid), 0, 0, 5 * n);
    snprintf(what, sizeof what, "RMS norm of rows of %lld, to 8-bit codes", (long long)in);
    report("I", what, seconds_of(do_norm_rows, &c, &c.q_grid), 0, 0, 5 * n);
    snprintf(what, sizeof what, "Hadamard of order %lld, to 8-bit codes", (long long)in);
    report("I", what, seconds_of(do_hadamard_rows, &c, &c.q_grid), 0, 0, 5 * n);
    snprintf(what, sizeof what, "integer product of %lld x %lld by %lld%s", (long long)tokens, (long long)in,
             (long long)out, beta != 0 ? ", added" : "");
    report("I", what, seconds_of(do_int8_linear, &c, &c.y), flops, 2 * bf16_rate, 0);
    dq_tensor *all[] = {&c.x, &c.between, &c.q, &c.q_grid, &c.w, &c.w_grid, &c.y};
    for (size_t i = 0; i < sizeof all / sizeof *all; i++) dq_tensor_free(all[i]);
}

/* ---- attention ---- */

typedef struct attend {
    dq_attention_desc d;
    dq_tensor q, k, v, o;
} attend;

static dq_status do_attention(void *arg)
{
    attend *a = arg;
    return dq_op_attention(&a->d, &a->q, &a->k, &a->v, &a->o);
}

static void attention(int64_t seqlen, int heads, int kv_heads, int dim)
{
    attend a = {
        .d = {.seqlen = seqlen, .heads = heads, .kv_heads = kv_heads, .head_dim = dim, .scale = 1 / sqrtf((float)dim)}};
    int64_t tokens = 2 * seqlen;
    a.q = filled(DQ_F32, tokens, (int64_t)heads * dim);
    a.k = filled(DQ_F32, tokens, (int64_t)kv_heads * dim);
    a.v = filled(DQ_F32, tokens, (int64_t)kv_heads * dim);
    a.o = make(DQ_F32, tokens, (int64_t)heads * dim);
    for (int math = DQ_MATH_F32; math <= DQ_MATH_BF16; math++) {
        char what[96];
        a.d.math = math;
        snprintf(what, sizeof what, "attention %s, 2 x %lld tokens, %d heads of %d", math ? "bf16" : "fp32",
                 (long long)seqlen, heads, dim);
        double flops = 2.0 * (double)tokens * (double)(seqlen + 1) * heads * dim;
        report("F", what, seconds_of(do_attention, &a, &a.o), flops, math ? bf16_rate : f32_rate, 0);
    }
    dq_tensor_free(&a.q), dq_tensor_free(&a.k), dq_tensor_free(&a.v), dq_tensor_free(&a.o);
}

/* ---- G5: one step of learning R1 ---- */

typedef struct step {
    dq_rotation_loss_desc d;
    dq_tensor x, r, g, u;
} step;

static dq_status do_step(void *arg)
{
    step *s = arg;
    double loss, error;
    DQ_TRY(dq_op_rotation_loss(&s->d, &s->x, NULL, &s->r, &s->g, NULL, &loss));
    DQ_TRY(dq_op_axpy(-1e-3, &s->g, &s->r));
    DQ_TRY(dq_op_polar(1, s->d.math, &s->r, &s->u, &error));
    return dq_op_convert(&s->u, &s->r);
}

static void rotation_step(int64_t n, int64_t tokens)
{
    double error, order = (double)n;
    step s = {
        .x = filled(DQ_BF16, tokens, n), .r = filled(DQ_F32, n, n), .g = make(DQ_F32, n, n), .u = make(DQ_F32, n, n)};
    must(dq_op_polar(1, DQ_MATH_F32, &s.r, &s.u, &error));
    must(dq_op_convert(&s.u, &s.r));
    for (int math = DQ_MATH_F32; math <= DQ_MATH_BF16; math++) {
        char what[80];
        s.d = (dq_rotation_loss_desc){.kind = DQ_LOSS_WHIP,
                                      .math = math,
                                      .n = n,
                                      .heads = 1,
                                      .groups = 1,
                                      .group = n,
                                      .scale = 1 / ((double)tokens * order)};
        snprintf(what, sizeof what, "R1 step of width %lld, %lld rows, %s", (long long)n, (long long)tokens,
                 math ? "bf16" : "fp32");
        double flops = 4.0 * (double)tokens * order * order + 8 * order * order * order;
        report("G5", what, seconds_of(do_step, &s, &s.r), flops, math ? bf16_rate : f32_rate, 0);
    }
    dq_tensor_free(&s.x), dq_tensor_free(&s.r), dq_tensor_free(&s.g), dq_tensor_free(&s.u);
}

/* ---- the program ---- */

static void run_all(void)
{
    static const int64_t orders[][2] = {{128, 1},   {1024, 1},   {4096, 1},   {8192, 1},
                                        {16384, 1}, {14336, 28}, {11008, 172}};
    rooflines();
    if (selected("G1")) {
        hessian(tiny ? 48 : 4096, tiny ? 64 : 262144, DQ_BF16);
        hessian(tiny ? 48 : 4096, tiny ? 64 : 65536, DQ_F32);
        hessian(tiny ? 80 : 14336, tiny ? 64 : 65536, DQ_BF16);
        if (!tiny) hessian(14336, 16384, DQ_F32);
    }
    if (selected("F")) {
        attention(tiny ? 32 : 2048, tiny ? 2 : 32, tiny ? 1 : 8, tiny ? 16 : 128);
        forward_work(tiny ? 32 : 32768, tiny ? 64 : 4096);
        levels_work(tiny ? 32 : 32768, tiny ? 64 : 1024);
        head_work(tiny ? 32 : 2048, tiny ? 64 : 4096, tiny ? 96 : 4096);
    }
    if (selected("I") && dq_device_has_integers(dev)) {
        integers(tiny ? 32 : 2048, tiny ? 64 : 4096, 1, tiny ? 48 : 4096, 1);
        if (!tiny) integers(2048, 4096, 1, 1024, 0);
        if (!tiny) integers(2048, 4096, 1, 14336, 0);
        integers(tiny ? 32 : 2048, tiny ? 448 : 14336, 28, tiny ? 64 : 4096, 1);
    }
    if (selected("G4"))
        for (size_t i = 0; i < (tiny ? 2 : sizeof orders / sizeof *orders); i++)
            row_work(orders[i][0], orders[i][1], tiny ? 4096 : (int64_t)1 << 28);
    if (selected("G3")) {
        gptq(tiny ? 48 : 4096, tiny ? 64 : 4096, -1);
        gptq(tiny ? 48 : 4096, tiny ? 64 : 4096, tiny ? 32 : 128);
        if (!tiny) gptq(4096, 14336, -1);
    }
    if (selected("G5")) rotation_step(tiny ? 32 : 4096, tiny ? 64 : 131072);
    if (selected("G2")) orthogonal(tiny ? 32 : 4096);
}

int main(int argc, char **argv)
{
    const char *backend = "cpu";
    wanted = argv;
    for (int i = 1; i < argc; i++) {
        if (strcmp(argv[i], "--backend") == 0 && i + 1 < argc)
            backend = argv[++i];
        else if (strcmp(argv[i], "--seconds") == 0 && i + 1 < argc)
            budget = atof(argv[++i]);
        else if (strcmp(argv[i], "--tiny") == 0)
            tiny = true;
        else
            wanted[wanted_count++] = argv[i];
    }
    char name[4096];
    const char *options = strchr(backend, ':');
    snprintf(name, sizeof name, "%.*s", (int)strcspn(backend, ":"), backend);
    must(dq_env_init(&env, NULL, 0));
    must(dq_device_open(&env, name, options ? options + 1 : "", DQ_POLICY_FORBID, &dev));
    run_all();
    dq_device_close(dev);
    dq_env_clear(&env);
    return 0;
}
