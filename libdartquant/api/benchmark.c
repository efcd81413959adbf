/* dartquant/benchmark.h: times the device's operations through the same checked functions the jobs use.
 * SPDX-License-Identifier: Apache-2.0 */
#include "dartquant/benchmark.h"

#include <math.h>
#include <stdio.h>

#include "api/check.h"
#include "api/handles.h"
#include "base/rng.h"
#include "io/json.h"

enum { TOKENS = 1024, WIDTH = 1024, HEAD_DIM = 64, HEADS = WIDTH / HEAD_DIM };

/* Operands by use; ops take what they need. */
typedef struct bench {
    dq_context *ctx;
    double seconds; /* per operation */
    dq_progress progress;
    json_t *ops;
    double sgemm_gflops;
    dq_tensor x, y, w;     /* F32 [TOKENS, WIDTH] twice, [WIDTH, WIDTH] */
    dq_tensor k, v;        /* F32 [TOKENS, WIDTH] */
    dq_tensor norm;        /* F32 [1, WIDTH] */
    dq_tensor cos, sin;    /* F32 [TOKENS, HEAD_DIM / 2] */
    dq_tensor h, u;        /* F32 [WIDTH, WIDTH]: a positive definite matrix and its factor */
    dq_tensor scale, zero; /* F32 [WIDTH, WIDTH / 128] */
    dq_tensor codes;       /* U8 [WIDTH, WIDTH] */
} bench;

typedef dq_status (*bench_fn)(bench *b);

typedef struct bench_op {
    const char *name, *shape;
    bench_fn run;
    double work; /* what one run does, in billions of `unit` times a second */
    const char *unit;
} bench_op;

#define MATRIX ((double)TOKENS * WIDTH)
#define SQUARE ((double)WIDTH * WIDTH)

static dq_status run_sgemm(bench *b) { return dq_op_gemm(false, true, 1, &b->x, &b->w, 0, &b->y, DQ_MATH_F32); }
static dq_status run_gemm_bf16(bench *b) { return dq_op_gemm(false, true, 1, &b->x, &b->w, 0, &b->y, DQ_MATH_BF16); }

static dq_status run_attention(bench *b)
{
    dq_attention_desc d = {.seqlen = TOKENS,
                           .heads = HEADS,
                           .kv_heads = HEADS,
                           .head_dim = HEAD_DIM,
                           .scale = 0.125f,
                           .math = DQ_MATH_F32};
    return dq_op_attention(&d, &b->x, &b->k, &b->v, &b->y);
}

static dq_status run_rmsnorm(bench *b) { return dq_op_rmsnorm(&b->x, &b->norm, 1e-5, &b->y); }
static dq_status run_rope(bench *b) { return dq_op_rope(&b->cos, &b->sin, HEAD_DIM, &b->k); }
static dq_status run_activation(bench *b) { return dq_op_activation(DQ_ACT_SILU, &b->x, &b->v, &b->y); }

static dq_status run_hadamard(bench *b)
{
    dq_hadamard_desc d = {.n = WIDTH, .k = 1, .inner = 1, .scale = 1.0 / 32.0};
    return dq_op_hadamard(&d, &b->x, &b->y);
}

static dq_status run_fake_quant(bench *b)
{
    dq_fake_quant_desc d = {.bits = 4, .group = WIDTH, .clip = 0.9f, .zero_in_range = 1};
    return dq_op_fake_quant(&d, &b->x, &b->y);
}

static dq_status run_syrk(bench *b) { return dq_op_syrk(1, &b->x, 0, &b->u); }

static dq_status run_factor(bench *b)
{
    int64_t info = 0;
    return dq_op_gptq_factor(&b->h, NULL, 0.1, &b->u, &info);
}

static const dq_grid_desc plain_grid = {.bits = 4, .symmetric = 1, .group = 128};
static const dq_grid_desc clip_grid = {
    .bits = 4, .symmetric = 1, .group = 128, .search_steps = 80, .search_grid = 100, .search_norm = 2.4f};

static dq_status run_clip_search(bench *b) { return dq_op_weight_grid(&clip_grid, &b->w, &b->scale, &b->zero); }

static dq_status run_quantize(bench *b)
{
    return dq_op_quantize_weight(&plain_grid, &b->w, &b->scale, &b->zero, NULL, &b->codes);
}

/* Multiply and add count as two. Attention: half of QK^T and PV is masked. Memory-bound operations are rated by bytes
 * read and written, the clip search (80 ranges, a power each) by weights. */
static const bench_op ops[] = {
    {"sgemm", "1024x1024x1024", run_sgemm, 2 * MATRIX *WIDTH, "GFLOP/s"},
    {"gemm_bf16", "1024x1024x1024", run_gemm_bf16, 2 * MATRIX *WIDTH, "GFLOP/s"},
    {"attention", "1024 tokens, 16 heads of 64, causal", run_attention, 2 * MATRIX *TOKENS, "GFLOP/s"},
    {"syrk", "1024x1024 from 1024 rows", run_syrk, SQUARE *TOKENS, "GFLOP/s"},
    {"gptq_factor", "1024x1024", run_factor, SQUARE *WIDTH, "GFLOP/s"},
    {"rmsnorm", "1024x1024", run_rmsnorm, 8 * MATRIX, "GB/s"},
    {"rope", "1024x1024, heads of 64", run_rope, 8 * MATRIX, "GB/s"},
    {"silu_gate", "1024x1024", run_activation, 12 * MATRIX, "GB/s"},
    {"hadamard", "1024 of 1024x1024", run_hadamard, 8 * MATRIX, "GB/s"},
    {"fake_quant", "1024x1024, 4 bits per token", run_fake_quant, 8 * MATRIX, "GB/s"},
    {"clip_search", "1024x1024, groups of 128, 80 steps", run_clip_search, 1000 * SQUARE, "Mweights/s"},
    {"quantize_weight", "1024x1024, groups of 128", run_quantize, 5 * SQUARE, "GB/s"},
};
enum { OPS = sizeof ops / sizeof *ops };

/* ---- operands ---- */

static dq_status random_tensor(bench *b, int64_t rows, int64_t cols, uint64_t seed, dq_tensor *out)
{
    size_t count = (size_t)(rows * cols);
    float *host = dq_alloc(&b->ctx->env, count * sizeof *host);
    if (!host) return DQ_E_NOMEM;
    dq_rng rng;
    dq_rng_seed_torch(&rng, seed);
    for (size_t i = 0; i < count; i++) host[i] = (float)dq_rng_u32(&rng) * 0x1p-31f - 1.0f;
    dq_status status = dq_tensor_from_host(b->ctx->dev, DQ_F32, rows, cols, host, out);
    dq_free(host);
    return status;
}

static dq_status prepare(bench *b)
{
    dq_device *dev = b->ctx->dev;
    DQ_TRY(random_tensor(b, TOKENS, WIDTH, 1, &b->x));
    DQ_TRY(random_tensor(b, WIDTH, WIDTH, 2, &b->w));
    DQ_TRY(random_tensor(b, TOKENS, WIDTH, 3, &b->k));
    DQ_TRY(random_tensor(b, TOKENS, WIDTH, 4, &b->v));
    DQ_TRY(random_tensor(b, 1, WIDTH, 5, &b->norm));
    DQ_TRY(random_tensor(b, TOKENS, HEAD_DIM / 2, 6, &b->cos));
    DQ_TRY(random_tensor(b, TOKENS, HEAD_DIM / 2, 7, &b->sin));
    /* k stays bounded however often RoPE is applied to it in place: a true rotation by a fixed angle. */
    DQ_TRY(dq_op_fill(0.6, &b->cos));
    DQ_TRY(dq_op_fill(0.8, &b->sin));
    DQ_TRY(dq_tensor_alloc(dev, DQ_F32, TOKENS, WIDTH, &b->y));
    DQ_TRY(dq_tensor_alloc(dev, DQ_F32, WIDTH, WIDTH, &b->h));
    DQ_TRY(dq_tensor_alloc(dev, DQ_F32, WIDTH, WIDTH, &b->u));
    DQ_TRY(dq_tensor_alloc(dev, DQ_F32, WIDTH, WIDTH / 128, &b->scale));
    DQ_TRY(dq_tensor_alloc(dev, DQ_F32, WIDTH, WIDTH / 128, &b->zero));
    DQ_TRY(dq_tensor_alloc(dev, DQ_U8, WIDTH, WIDTH, &b->codes));
    DQ_TRY(dq_op_syrk(1.0 / TOKENS, &b->x, 0, &b->h));
    return dq_op_weight_grid(&plain_grid, &b->w, &b->scale, &b->zero);
}

static void clear(bench *b)
{
    dq_tensor *all[] = {&b->x,   &b->y, &b->w, &b->k,     &b->v,    &b->norm, &b->cos,
                        &b->sin, &b->h, &b->u, &b->scale, &b->zero, &b->codes};
    for (size_t i = 0; i < sizeof all / sizeof *all; i++) dq_tensor_free(all[i]);
    json_decref(b->ops);
}

/* ---- timing ---- */

/* Reading one element makes the host wait for everything enqueued before. */
static dq_status wait(bench *b)
{
    float one;
    dq_tensor corner = dq_tensor_slice(&b->y, 0, 1, 0, 1);
    return dq_tensor_download(&corner, &one);
}

static dq_status time_op(bench *b, const bench_op *op)
{
    double best = INFINITY, begin = dq_now();
    int runs = 0;
    DQ_TRY(dq_op_fill(0, &b->y));
    do {
        DQ_TRY(dq_progress_check(&b->progress));
        double start = dq_now();
        dq_status status = op->run(b);
        if (status == DQ_E_UNSUPPORTED) return DQ_OK; /* absent from the list, as from the device */
        DQ_TRY(status);
        DQ_TRY(wait(b));
        double seconds = dq_now() - start;
        if (seconds < best) best = seconds;
        runs++;
    } while (runs < 3 || dq_now() - begin < b->seconds);
    double rate = op->work / best * 1e-9;
    if (op == ops) b->sgemm_gflops = rate;
    json_array_append_new(b->ops, json_pack("{s:s, s:s, s:f, s:i, s:f, s:s}", "name", op->name, "shape", op->shape,
                                            "seconds", best, "runs", runs, "rate", rate, "unit", op->unit));
    return DQ_OK;
}

static dq_status run(bench *b, char **out)
{
    DQ_TRY(prepare(b));
    for (int i = 0; i < OPS; i++) {
        DQ_TRY(dq_progress_report(&b->progress, "operations", (uint64_t)i, OPS, NAN));
        DQ_TRY(time_op(b, &ops[i]));
    }
    DQ_TRY(dq_progress_report(&b->progress, "operations", OPS, OPS, NAN));
    json_t *object = json_pack("{s:s, s:i, s:f, s:O}", "device", b->ctx->device_name, "threads",
                               dq_threads(&b->ctx->env), "sgemm_gflops", b->sgemm_gflops, "ops", b->ops);
    dq_status status = dq_json_dump(&b->ctx->env, object, false, out);
    json_decref(object);
    return status;
}

dq_status dq_benchmark_ops(dq_context *ctx, double seconds, const dq_cancel *cancel, dq_progress_fn progress,
                           void *user, const char **out)
{
    DQ_ENTER_CONTEXT(ctx, ctx && out);
    if (!(seconds >= 0 && seconds <= 3600)) return dq_fail(DQ_E_INVALID, "%g seconds per operation", seconds);
    bench b = {.ctx = ctx, .seconds = seconds > 0 ? seconds : 0.2, .ops = json_array()};
    b.progress = dq_progress_make(cancel, progress, user);
    char *text = NULL;
    dq_status status = run(&b, &text);
    clear(&b);
    DQ_TRY(status);
    dq_free(ctx->benchmark_json);
    ctx->benchmark_json = text;
    *out = text;
    return DQ_OK;
}
