/* Speed of the CPU backend's forward kernels, each measured in turns with its yardstick in the same run: products and
 * attention beside OpenBLAS sgemm of as many flops on as many threads, data movement beside memcpy of as many bytes.
 * Usage: bench_kernels [--simd LEVEL] [--threads N] [--clock cpu] [--reps N] [NAME-PREFIX ...]
 * --clock cpu measures one thread in processor time, which means something even on a busy machine.
 * SPDX-License-Identifier: Apache-2.0 */
#include <cblas.h>
#include <math.h>

#include "backend/cpu/cpu.h"
#include "base/half.h"
#include "bench.h"
#include "env_host.h"

/* ---- device ---- */

static dq_host host;
static const dq_backend *b;
static void *dev;

static dq_view make(dq_dtype dtype, int64_t rows, int64_t cols)
{
    static uint32_t seed = 1;
    int64_t size = dtype == DQ_F64 ? 8 : dtype == DQ_BF16 ? 2 : 4;
    dq_view v = {.rows = rows, .cols = cols, .stride = cols, .dtype = dtype};
    must(b->alloc(dev, (uint64_t)(rows * cols * size), &v.mem));
    for (int64_t i = 0; i < rows * cols; i++) {
        seed = seed * 1664525u + 1013904223u;
        float x = (float)(int32_t)seed * 0x1p-31f;
        if (dtype == DQ_F64) ((double *)v.mem)[i] = x;
        if (dtype == DQ_F32) ((float *)v.mem)[i] = x;
        if (dtype == DQ_BF16) ((uint16_t *)v.mem)[i] = dq_f32_to_bf16(x);
        if (dtype == DQ_I32) ((int32_t *)v.mem)[i] = (int32_t)i;
    }
    return v;
}

/* ---- yardsticks ---- */

typedef struct yardstick {
    int64_t m, n, k; /* sgemm, or 0 */
    size_t bytes;    /* memcpy: read plus written */
    float *x, *y, *z;
} yardstick;

static yardstick sgemm_like(int64_t m, int64_t n, int64_t k)
{
    yardstick p = {.m = m, .n = n, .k = k};
    p.x = make(DQ_F32, m, k).mem;
    p.y = make(DQ_F32, n, k).mem;
    p.z = make(DQ_F32, m, n).mem;
    return p;
}

static yardstick memcpy_like(size_t bytes)
{
    yardstick p = {.bytes = bytes};
    p.x = make(DQ_F32, 1, (int64_t)(bytes / 8)).mem;
    p.y = make(DQ_F32, 1, (int64_t)(bytes / 8)).mem;
    return p;
}

static void copy_task(void *arg, int64_t i, int thread)
{
    yardstick *p = arg;
    (void)thread;
    size_t n = p->bytes / 2, at = (size_t)i << 17;
    memcpy((char *)p->y + at, (char *)p->x + at, n - at < 1u << 17 ? n - at : 1u << 17);
}

static void yardstick_run(void *arg)
{
    yardstick *p = arg;
    if (p->m) {
        cblas_sgemm(CblasRowMajor, CblasNoTrans, CblasTrans, (int)p->m, (int)p->n, (int)p->k, 1, p->x, (int)p->k, p->y,
                    (int)p->k, 0, p->z, (int)p->n);
    } else {
        dq_run(&env, (int64_t)((p->bytes / 2 + (1u << 17) - 1) >> 17), copy_task, p);
    }
}

static void yardstick_free(yardstick *p)
{
    dq_free(p->x);
    dq_free(p->y);
    dq_free(p->z);
}

/* ---- measuring ---- */

/* Returns the median seconds of one call. */
static double compare(const char *name, body run, void *arg, yardstick *p)
{
    timing peer, ours = measure(run, arg, yardstick_run, p, true, &peer);
    double work = p->m ? 2e-9 * (double)p->m * (double)p->n * (double)p->k : 1e-9 * (double)p->bytes;
    printf("%-34s %9.3f %9.3f ms %8.1f %8.1f %s | %s %8.1f %8.1f | ratio %5.2f\n", name, 1e3 * ours.least,
           1e3 * ours.median, work / ours.least, work / ours.median, p->m ? "GF/s" : "GB/s", p->m ? "sgemm " : "memcpy",
           work / peer.least, work / peer.median, peer.median / ours.median);
    fflush(stdout);
    return ours.median;
}

/* ---- kernels ---- */

typedef struct call {
    dq_view x, w, v, y;
    dq_attention_desc d;
    int32_t math, kind;
} call;

static void free_call(call *c)
{
    dq_free(c->x.mem);
    dq_free(c->w.mem);
    dq_free(c->v.mem);
    dq_free(c->y.mem);
}

static void run_gemm(void *arg)
{
    call *c = arg;
    must(b->gemm(dev, 0, 1, 1, &c->x, &c->w, 0, &c->y, c->math));
}

static double bench_gemm(const char *prefix, int64_t m, int64_t n, int64_t k, int32_t math, dq_dtype weights)
{
    char name[64];
    snprintf(name, sizeof name, "%s.%s.w%s %lldx%lldx%lld", prefix, math ? "bf16" : "f32", weights ? "bf16" : "f32",
             (long long)m, (long long)n, (long long)k);
    if (!want(name)) return 0;
    call c = {.x = make(DQ_F32, m, k), .w = make(weights, n, k), .y = make(DQ_F32, m, n), .math = math};
    yardstick p = sgemm_like(m, n, k);
    double t = compare(name, run_gemm, &c, &p);
    yardstick_free(&p);
    free_call(&c);
    return t;
}

static void run_attention(void *arg)
{
    call *c = arg;
    must(b->attention(dev, &c->d, &c->x, &c->w, &c->v, &c->y));
}

static double bench_attention(int64_t n, int heads, int kv, int dim, int32_t math)
{
    char name[64];
    snprintf(name, sizeof name, "attention.%s %lld %d/%dx%d", math ? "bf16" : "f32", (long long)n, heads, kv, dim);
    if (!want(name)) return 0;
    call c = {.x = make(DQ_F32, n, heads * dim), .w = make(DQ_F32, n, kv * dim), .v = make(DQ_F32, n, kv * dim)};
    c.y = make(DQ_F32, n, heads * dim);
    c.d = (dq_attention_desc){n, heads, kv, dim, 0, 1 / sqrtf((float)dim), math};
    /* Causal: 2 * 2 * dim flops for each of n (n + 1) / 2 pairs and head. */
    yardstick p = sgemm_like(n, (n + 1) / 2, 2 * dim * heads);
    double t = compare(name, run_attention, &c, &p);
    yardstick_free(&p);
    free_call(&c);
    return t;
}

static void run_nll(void *arg)
{
    call *c = arg;
    must(b->head_nll(dev, &c->x, &c->w, &c->v, 0, &c->y, c->math));
}

static double bench_nll(int64_t m, int64_t vocab, int64_t k, int32_t math, dq_dtype weights)
{
    char name[64];
    snprintf(name, sizeof name, "head.%s.w%s %lldx%lldx%lld", math ? "bf16" : "f32", weights ? "bf16" : "f32",
             (long long)m, (long long)vocab, (long long)k);
    if (!want(name)) return 0;
    call c = {.x = make(DQ_F32, m, k), .w = make(weights, vocab, k), .v = make(DQ_I32, 1, m), .y = make(DQ_F64, m, 3)};
    c.math = math;
    yardstick p = sgemm_like(m, vocab, k);
    double t = compare(name, run_nll, &c, &p);
    yardstick_free(&p);
    free_call(&c);
    return t;
}

static void run_norm(void *arg)
{
    call *c = arg;
    must(b->rmsnorm(dev, &c->x, &c->v, 1e-5, &c->y));
}
static void run_activation(void *arg)
{
    call *c = arg;
    must(b->activation(dev, c->kind, &c->x, &c->w, &c->y));
}
static void run_axpy(void *arg)
{
    call *c = arg;
    must(b->axpy(dev, 1e-3, &c->x, &c->y));
}
static void run_rope(void *arg)
{
    call *c = arg;
    must(b->rope(dev, &c->w, &c->v, 64, &c->y));
}
static void run_convert(void *arg)
{
    call *c = arg;
    must(b->convert(dev, &c->x, &c->y));
}
static void run_nonfinite(void *arg)
{
    call *c = arg;
    int64_t index;
    must(b->find_nonfinite(dev, &c->x, &index));
}

/* Streams counted: what the op must read and write once. */
static double bench_stream(const char *name, body fn, call c, size_t bytes)
{
    double t = 0;
    if (want(name)) {
        yardstick p = memcpy_like(bytes);
        t = compare(name, fn, &c, &p);
        yardstick_free(&p);
    }
    free_call(&c);
    return t;
}

/* One 2048-token forward pass with head of a model shaped like SmolLM2-135M, from the kernels' medians. */
static void smollm2(int32_t math, dq_dtype weights)
{
    enum { N = 2048, H = 576, KV = 192, FF = 1536, V = 49152, LAYERS = 30 };
    double q = bench_gemm("smollm2.qo", N, H, H, math, weights), kv = bench_gemm("smollm2.kv", N, KV, H, math, weights);
    double gate = bench_gemm("smollm2.gate_up", N, FF, H, math, weights);
    double down = bench_gemm("smollm2.down", N, H, FF, math, weights);
    double attention = bench_attention(N, 9, 3, 64, math), head = bench_nll(N, V, H, math, weights);
    size_t hidden = (size_t)N * H * 4, inter = (size_t)N * FF * 4;
    double norm =
        bench_stream("smollm2.rmsnorm", run_norm,
                     (call){.x = make(DQ_F32, N, H), .v = make(DQ_F32, 1, H), .y = make(DQ_F32, N, H)}, 2 * hidden);
    double act =
        bench_stream("smollm2.silu", run_activation,
                     (call){.x = make(DQ_F32, N, FF), .w = make(DQ_F32, N, FF), .y = make(DQ_F32, N, FF)}, 3 * inter);
    double add =
        bench_stream("smollm2.axpy", run_axpy, (call){.x = make(DQ_F32, N, H), .y = make(DQ_F32, N, H)}, 3 * hidden);
    double rope =
        bench_stream("smollm2.rope", run_rope,
                     (call){.w = make(DQ_F32, N, 32), .v = make(DQ_F32, N, 32), .y = make(DQ_F32, N, H)}, 2 * hidden);
    if (wanted_count) return;
    double products = LAYERS * (2 * q + 2 * kv + 2 * gate + down) + head;
    double rest = LAYERS * (2 * norm + act + 2 * add + rope * (H + KV) / H),
           total = products + LAYERS * attention + rest;
    double flops = 2.0 * N * (LAYERS * (2.0 * H * H + 2.0 * H * KV + 3.0 * H * FF) + (double)H * V) +
                   LAYERS * 9 * 4.0 * 64 * N * (N + 1) / 2;
    printf("smollm2 %s forward of 2048 tokens from medians: products %.0f ms, attention %.0f ms, rest %.0f ms; "
           "%.1f Gflop at %.1f GF/s, %.0f tokens/s\n",
           math ? "bf16" : "f32", 1e3 * products, 1e3 * LAYERS * attention, 1e3 * rest, 1e-9 * flops,
           1e-9 * flops / total, N / total);
}

int main(int argc, char **argv)
{
    bench_options(argc, argv, 7);
    host = env_host(&env);
    b = dq_cpu_backend();
    char options[64];
    snprintf(options, sizeof options, "simd=%s", simd);
    must(b->open(&host, options, &dev));
    openblas_set_num_threads(dq_threads(&env));
    dq_device_info info;
    must(b->info(dev, &info));
    printf("%s; %s\ncolumns: minimum and median ms; rate at minimum and median; the yardstick's rates\n", info.name,
           info.description);
    smollm2(DQ_MATH_F32, DQ_F32);
    smollm2(DQ_MATH_BF16, DQ_F32);
    smollm2(DQ_MATH_BF16, DQ_BF16);
    bench_gemm("square", 2048, 2048, 2048, DQ_MATH_F32, DQ_F32);
    bench_gemm("square", 2048, 2048, 2048, DQ_MATH_BF16, DQ_F32);
    bench_gemm("square", 2048, 2048, 2048, DQ_MATH_BF16, DQ_BF16);
    bench_gemm("llama.down", 2048, 4096, 11008, DQ_MATH_BF16, DQ_BF16);
    bench_attention(2048, 8, 2, 128, DQ_MATH_F32);
    bench_attention(2048, 8, 2, 128, DQ_MATH_BF16);
    bench_attention(2048, 8, 8, 80, DQ_MATH_F32);
    for (int kind = 0; kind < 4; kind++) {
        static const char *const names[] = {"activation.silu", "activation.gelu", "activation.gelu_tanh",
                                            "activation.relu"};
        bench_stream(names[kind], run_activation,
                     (call){.x = make(DQ_F32, 4096, 4096),
                            .w = make(DQ_F32, 4096, 4096),
                            .y = make(DQ_F32, 4096, 4096),
                            .kind = kind},
                     (size_t)3 * 4096 * 4096 * 4);
    }
    size_t n = (size_t)4096 * 4096;
    bench_stream("convert.bf16_f32", run_convert, (call){.x = make(DQ_BF16, 4096, 4096), .y = make(DQ_F32, 4096, 4096)},
                 6 * n);
    bench_stream("convert.f32_bf16", run_convert, (call){.x = make(DQ_F32, 4096, 4096), .y = make(DQ_BF16, 4096, 4096)},
                 6 * n);
    bench_stream("find_nonfinite", run_nonfinite, (call){.x = make(DQ_F32, 4096, 4096)}, 4 * n);
    b->close(dev);
    dq_env_clear(&env);
    return 0;
}
