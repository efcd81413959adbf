/* The CPU backend's forward ops against the reference table: every SIMD level this machine has, one thread against
 * several (same bits), odd shapes, strided views, all option strings. SPDX-License-Identifier: Apache-2.0 */
#include <math.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include <cmocka.h>

#include "backend/cpu/cpu.h"
#include "base/env.h"
#include "base/half.h"
#include "base/status.h"
#include "env_host.h"

typedef struct machine {
    dq_env env;
    dq_host host;
    const dq_backend *b;
    void *dev;
} machine;

static dq_status machine_try(machine *m, const dq_backend *b, const char *options, int threads)
{
    assert_int_equal(dq_env_init(&m->env, NULL, threads), DQ_OK);
    m->host = env_host(&m->env);
    m->b = b;
    m->dev = NULL;
    return b->open(&m->host, options, &m->dev);
}

static void machine_close(machine *m)
{
    if (m->dev) m->b->close(m->dev);
    dq_env_clear(&m->env);
    assert_int_equal(atomic_load(&m->env.memory_now), 0);
}

enum { MAX_LEVELS = 4 };
static const char *levels[MAX_LEVELS];
static int level_count;
static machine ref, one[MAX_LEVELS], many[MAX_LEVELS];

static int open_all(void **state)
{
    (void)state;
    static const char *const all[MAX_LEVELS] = {"simd=plain", "simd=avx2", "simd=avx512", "simd=amx"};
    assert_int_equal(machine_try(&ref, dq_ref_backend(), "", 1), DQ_OK);
    for (int i = 0; i < MAX_LEVELS; i++) {
        machine *m = &one[level_count];
        dq_status status = machine_try(m, dq_cpu_backend(), all[i], 1);
        if (status != DQ_OK) {
            assert_int_equal(status, DQ_E_UNSUPPORTED);
            machine_close(m);
            printf("note: %s is not available here\n", all[i]);
            continue;
        }
        assert_int_equal(machine_try(&many[level_count], dq_cpu_backend(), all[i], 3), DQ_OK);
        levels[level_count++] = all[i];
    }
    return level_count > 0 ? 0 : -1;
}

static int close_all(void **state)
{
    (void)state;
    machine_close(&ref);
    for (int i = 0; i < level_count; i++) {
        machine_close(&one[i]);
        machine_close(&many[i]);
    }
    return 0;
}

/* ---- data ---- */

static uint32_t seed = 1;
static float uniform(void) /* in [-1, 1) */
{
    seed = seed * 1664525u + 1013904223u;
    return (float)(int32_t)seed * 0x1p-31f;
}

static int64_t size_of(dq_dtype t) { return t == DQ_F64 ? 8 : t == DQ_F32 || t == DQ_I32 ? 4 : 2; }

/* A view on fresh memory of random numbers, `pad` extra columns in each row, and 8 bytes of offset. */
static dq_view make(dq_dtype dtype, int64_t rows, int64_t cols, int64_t pad)
{
    dq_view v = {.offset = 8, .rows = rows, .cols = cols, .stride = cols + pad, .dtype = dtype};
    int64_t n = rows * v.stride;
    v.mem = malloc((size_t)(n * size_of(dtype) + 16));
    assert_non_null(v.mem);
    for (int64_t i = 0; i < n; i++) {
        float x = uniform();
        void *at = (char *)v.mem + 8 + i * size_of(dtype);
        if (dtype == DQ_F64) *(double *)at = x;
        if (dtype == DQ_F32) *(float *)at = x;
        if (dtype == DQ_BF16) *(uint16_t *)at = dq_f32_to_bf16(x);
        if (dtype == DQ_F16) *(uint16_t *)at = dq_f32_to_f16(x);
    }
    return v;
}

static size_t bytes_of(const dq_view *v) { return (size_t)(v->rows * v->stride * size_of(v->dtype) + 8); }

static dq_view copy(const dq_view *v)
{
    dq_view c = *v;
    c.mem = malloc(bytes_of(v) + 8);
    assert_non_null(c.mem);
    memcpy(c.mem, v->mem, bytes_of(v));
    return c;
}

static double at(const dq_view *v, int64_t r, int64_t c)
{
    if (v->dtype == DQ_F64) return dq_view_f64(v, r)[c];
    if (v->dtype == DQ_F32) return dq_view_f32(v, r)[c];
    uint16_t h = *(uint16_t *)dq_view_at(v, r, c, 2);
    return v->dtype == DQ_BF16 ? dq_bf16_to_f32(h) : dq_f16_to_f32(h);
}

/* Every element within absolute + relative bands; elements between rows untouched. */
static void check(const char *what, const dq_view *got, const dq_view *want, double absolute, double relative)
{
    for (int64_t r = 0; r < got->rows; r++) {
        for (int64_t c = 0; c < got->stride && (c < got->cols || r + 1 < got->rows); c++) {
            double a = at(got, r, c), b = at(want, r, c);
            double band = c < got->cols ? absolute + relative * fabs(b) : 0;
            if ((isnan(a) && isnan(b)) || a == b) continue;
            if (!(fabs(a - b) <= band))
                fail_msg("%s: [%lld][%lld] is %.9g, reference %.9g", what, (long long)r, (long long)c, a, b);
        }
    }
}

/* Runs `call` on the reference, then on each level with one and with three threads. `out` is restored in between. */
typedef dq_status (*call_fn)(const machine *m, void *args, const dq_view *out);
static void compare(const char *name, call_fn call, void *args, const dq_view *out, double absolute, double relative)
{
    dq_view want = copy(out), a = copy(out), b = copy(out);
    assert_int_equal(call(&ref, args, &want), DQ_OK);
    for (int i = 0; i < level_count; i++) {
        char what[160];
        snprintf(what, sizeof what, "%s %s", levels[i], name);
        memcpy(a.mem, out->mem, bytes_of(out));
        memcpy(b.mem, out->mem, bytes_of(out));
        assert_int_equal(call(&one[i], args, &a), DQ_OK);
        assert_int_equal(call(&many[i], args, &b), DQ_OK);
        if (memcmp(a.mem, b.mem, bytes_of(out)) != 0) fail_msg("%s: differs with the number of threads", what);
        check(what, &a, &want, absolute, relative);
    }
    free(want.mem);
    free(a.mem);
    free(b.mem);
}

/* ---- products ---- */

typedef struct gemm_args {
    int32_t ta, tb, math;
    double alpha, beta;
    dq_view a, b;
} gemm_args;

static dq_status call_gemm(const machine *m, void *p, const dq_view *out)
{
    gemm_args *g = p;
    return m->b->gemm(m->dev, g->ta, g->tb, g->alpha, &g->a, &g->b, g->beta, out, g->math);
}

static void one_gemm(int64_t m, int64_t n, int64_t k, int flags, dq_dtype ab, dq_dtype c, int32_t math, int64_t pad)
{
    gemm_args g = {.ta = flags & 1, .tb = flags >> 1 & 1, .math = math, .alpha = 1, .beta = 0};
    if (flags & 4) g.alpha = -0.75, g.beta = 0.5;
    g.a = g.ta ? make(ab, k, m, pad) : make(ab, m, k, pad);
    g.b = g.tb ? make(ab, n, k, pad) : make(ab, k, n, pad);
    dq_view out = make(c, m, n, pad);
    char name[128];
    snprintf(name, sizeof name, "gemm %lldx%lldx%lld flags %d types %d %d math %d", (long long)m, (long long)n,
             (long long)k, flags, ab, c, math);
    /* Operands are rounded alike on both sides; only the order and width of the sums differ. */
    double band = c == DQ_F64 ? 1e-13 : 2e-6;
    compare(name, call_gemm, &g, &out, band * sqrt((double)k + 1), 1e-5 * (c == DQ_F32));
    free(g.a.mem);
    free(g.b.mem);
    free(out.mem);
}

static void test_gemm(void **state)
{
    (void)state;
    static const int64_t shapes[][3] = {{1, 1, 1},    {0, 5, 3},    {3, 0, 2},    {4, 5, 0},      {17, 33, 31},
                                        {64, 48, 80}, {1, 300, 70}, {257, 3, 65}, {100, 130, 513}};
    for (size_t s = 0; s < sizeof shapes / sizeof shapes[0]; s++) {
        for (int flags = 0; flags < 8; flags++) {
            int64_t m = shapes[s][0], n = shapes[s][1], k = shapes[s][2], pad = flags & 1 ? 3 : 0;
            one_gemm(m, n, k, flags, DQ_F32, DQ_F32, DQ_MATH_F32, pad);
            one_gemm(m, n, k, flags, DQ_F64, DQ_F64, DQ_MATH_F32, pad);
            one_gemm(m, n, k, flags, DQ_BF16, DQ_F32, DQ_MATH_F32, pad);
            one_gemm(m, n, k, flags, DQ_F16, DQ_F32, DQ_MATH_F32, pad);
            one_gemm(m, n, k, flags, DQ_F32, DQ_F32, DQ_MATH_BF16, pad);
            one_gemm(m, n, k, flags, DQ_BF16, DQ_F32, DQ_MATH_BF16, pad);
        }
    }
    /* Larger than one block of every kernel in each direction. */
    one_gemm(530, 70, 96, 2, DQ_F32, DQ_F32, DQ_MATH_BF16, 0);
    one_gemm(40, 1100, 64, 2, DQ_F32, DQ_F32, DQ_MATH_F32, 0);
    one_gemm(40, 600, 64, 2, DQ_F32, DQ_F32, DQ_MATH_BF16, 5);
    one_gemm(33, 40, 4500, 2, DQ_F32, DQ_F32, DQ_MATH_BF16, 0);
    one_gemm(33, 40, 4500, 6, DQ_F32, DQ_F32, DQ_MATH_BF16, 0);
}

/* ---- attention ---- */

typedef struct attention_args {
    dq_attention_desc d;
    dq_view q, k, v;
} attention_args;

static dq_status call_attention(const machine *m, void *p, const dq_view *out)
{
    attention_args *t = p;
    return m->b->attention(m->dev, &t->d, &t->q, &t->k, &t->v, out);
}

static void one_attention(int64_t sequences, int64_t seqlen, int heads, int kv, int dim, int window, int32_t math)
{
    attention_args t = {.d = {seqlen, heads, kv, dim, window, 2.5f / sqrtf((float)dim), math}};
    int64_t rows = sequences * seqlen, pad = dim % 2 ? 3 : 0;
    t.q = make(DQ_F32, rows, heads * dim, pad);
    t.k = make(DQ_F32, rows, kv * dim, pad);
    t.v = make(DQ_F32, rows, kv * dim, 0);
    dq_view out = make(DQ_F32, rows, heads * dim, pad);
    char name[128];
    snprintf(name, sizeof name, "attention %lldx%lld heads %d/%d dim %d window %d math %d", (long long)sequences,
             (long long)seqlen, heads, kv, dim, window, math);
    /* bf16: besides q, k and v the probabilities may be rounded (2^-9). */
    compare(name, call_attention, &t, &out, math == DQ_MATH_BF16 ? 4e-3 : 3e-6, 0);
    free(t.q.mem);
    free(t.k.mem);
    free(t.v.mem);
    free(out.mem);
}

static void test_attention(void **state)
{
    (void)state;
    static const int dims[] = {1, 8, 20, 33, 64, 80, 128};
    for (size_t i = 0; i < sizeof dims / sizeof dims[0]; i++) {
        for (int32_t math = DQ_MATH_F32; math <= DQ_MATH_BF16; math++) {
            one_attention(1, 1, 2, 1, dims[i], 0, math);
            one_attention(2, 37, 2, 2, dims[i], 0, math);
            one_attention(1, 150, 3, 1, dims[i], 0, math);
            one_attention(1, 150, 3, 1, dims[i], 40, math);
            one_attention(2, 130, 2, 1, dims[i], 1, math);
        }
    }
    one_attention(1, 300, 4, 2, 64, 0, DQ_MATH_F32);
    one_attention(1, 300, 4, 2, 64, 0, DQ_MATH_BF16);
    one_attention(1, 300, 1, 1, 64, 130, DQ_MATH_F32);
    one_attention(1, 300, 1, 1, 64, 130, DQ_MATH_BF16);
    one_attention(0, 16, 1, 1, 16, 0, DQ_MATH_F32);
}

/* ---- streaming cross-entropy ---- */

typedef struct nll_args {
    dq_view x, w, targets;
    int64_t first;
    int32_t math;
} nll_args;

static dq_status call_nll(const machine *m, void *p, const dq_view *out)
{
    nll_args *t = p;
    return m->b->head_nll(m->dev, &t->x, &t->w, &t->targets, t->first, out, t->math);
}

static void one_nll(int64_t rows, int64_t vocab, int64_t dim, dq_dtype type, int32_t math, bool fresh)
{
    nll_args t = {.x = make(DQ_F32, rows, dim, 2), .w = make(type, vocab, dim, 0), .first = 7, .math = math};
    t.targets = make(DQ_I32, 1, rows > 0 ? rows : 1, 0);
    t.targets.cols = rows;
    for (int64_t r = 0; r < rows; r++) /* some targets before, inside and after the tile, some none */
        dq_view_i32(&t.targets, 0)[r] = r % 5 == 4 ? -1 : (int32_t)(r * 97 % (vocab + 20));
    dq_view out = make(DQ_F64, rows, 3, 0);
    for (int64_t r = 0; r < rows; r++) {
        double *s = dq_view_f64(&out, r);
        s[0] = fresh ? -INFINITY : 1.5;
        s[1] = fresh ? 0 : 12.25;
        s[2] = fresh ? -INFINITY : 0.125;
    }
    char name[128];
    snprintf(name, sizeof name, "head_nll %lldx%lldx%lld type %d math %d", (long long)rows, (long long)vocab,
             (long long)dim, type, math);
    compare(name, call_nll, &t, &out, 3e-6 * sqrt((double)dim), 1e-4);
    free(t.x.mem);
    free(t.w.mem);
    free(t.targets.mem);
    free(out.mem);
}

static void test_head_nll(void **state)
{
    (void)state;
    for (int i = 0; i < 8; i++) {
        dq_dtype type = i & 1 ? DQ_BF16 : DQ_F32;
        int32_t math = i & 2 ? DQ_MATH_BF16 : DQ_MATH_F32;
        one_nll(1, 1, 16, type, math, i & 4);
        one_nll(37, 301, 40, type, math, i & 4);
        one_nll(300, 70, 33, type, math, i & 4);
        one_nll(5, 5000, 16, type, math, i & 4);
    }
    one_nll(0, 10, 16, DQ_F32, DQ_MATH_F32, true);
    one_nll(3, 40, 16, DQ_F16, DQ_MATH_F32, true);
}

/* ---- comparison of logits ---- */

typedef struct compare_args {
    dq_view a, b;
} compare_args;

static dq_status call_compare(const machine *m, void *p, const dq_view *out)
{
    compare_args *t = p;
    return m->b->compare_logits(m->dev, &t->a, &t->b, 11, out);
}

static void one_compare(int64_t rows, int64_t vocab, bool fresh)
{
    static const double start[7] = {-INFINITY, 0, 0, -INFINITY, 0, -1, -1}, middle[7] = {.5, 3, .25, -1, 2, 4, 9};
    compare_args t = {.a = make(DQ_F32, rows, vocab, 3), .b = make(DQ_F32, rows, vocab, 0)};
    dq_view out = make(DQ_F64, rows, 7, 1);
    for (int64_t r = 0; r < rows; r++) memcpy(dq_view_f64(&out, r), fresh ? start : middle, sizeof start);
    char name[128];
    snprintf(name, sizeof name, "compare_logits %lldx%lld", (long long)rows, (long long)vocab);
    compare(name, call_compare, &t, &out, 1e-5, 1e-5);
    free(t.a.mem);
    free(t.b.mem);
    free(out.mem);
}

static void test_compare_logits(void **state)
{
    (void)state;
    for (int fresh = 0; fresh < 2; fresh++) {
        one_compare(1, 1, fresh);
        one_compare(37, 301, fresh);
        one_compare(16, 1024, fresh);
        one_compare(17, 3333, fresh);
        one_compare(0, 5, fresh);
    }
}

/* ---- norm, RoPE, activation ---- */

typedef struct row_args {
    dq_view x, v, w;
    double scalar;
    int64_t head_dim;
    int32_t kind;
    bool none, in_place;
} row_args;

static dq_status call_norm(const machine *m, void *p, const dq_view *out)
{
    row_args *t = p;
    return m->b->rmsnorm(m->dev, t->in_place ? out : &t->x, t->none ? NULL : &t->v, 1e-5, out);
}
static dq_status call_layernorm(const machine *m, void *p, const dq_view *out)
{
    row_args *t = p;
    const dq_view *weight = t->none ? NULL : &t->v;
    return m->b->layernorm(m->dev, t->in_place ? out : &t->x, weight, weight, 1e-5, out);
}
static dq_status call_rope(const machine *m, void *p, const dq_view *out)
{
    row_args *t = p;
    return m->b->rope(m->dev, &t->x, &t->v, t->head_dim, out);
}
static dq_status call_activation(const machine *m, void *p, const dq_view *out)
{
    row_args *t = p;
    return m->b->activation(m->dev, t->kind, t->in_place ? out : &t->x, t->none ? NULL : &t->w, out);
}

static const int64_t widths[] = {1, 7, 16, 100, 576, 1537};

static void test_norm_rope_activation(void **state)
{
    (void)state;
    for (size_t i = 0; i < sizeof widths / sizeof widths[0]; i++) {
        int64_t n = widths[i];
        for (int mode = 0; mode < 4; mode++) {
            row_args t = {.x = make(DQ_F32, 70, n, 3), .v = make(DQ_F32, 1, n, 0), .w = make(DQ_F32, 70, n, 1)};
            t.none = mode & 1;
            t.in_place = mode & 2;
            for (int64_t r = 0; r < 70; r++) /* both tails of the activations */
                for (int64_t c = 0; c < n; c++) dq_view_f32(&t.x, r)[c] *= c % 3 ? 4.0f : 30.0f;
            dq_view out = copy(&t.x);
            compare("rmsnorm", call_norm, &t, &out, 0, 4e-7);
            compare("layernorm", call_layernorm, &t, &out, 5e-7, 4e-7);
            for (t.kind = 0; t.kind < 4; t.kind++) compare("activation", call_activation, &t, &out, 1e-12, 3e-6);
            free(out.mem);
            free(t.x.mem);
            free(t.v.mem);
            free(t.w.mem);
        }
    }
    for (int64_t half = 1; half < 40; half += 13) {
        row_args t = {.x = make(DQ_F32, 11, half, 1), .v = make(DQ_F32, 11, half, 0), .head_dim = 2 * half};
        dq_view out = make(DQ_F32, 33, 6 * half, 5);
        compare("rope", call_rope, &t, &out, 3e-7, 0);
        free(out.mem);
        free(t.x.mem);
        free(t.v.mem);
    }
}

/* ---- elementwise ---- */

static dq_status call_convert(const machine *m, void *p, const dq_view *out)
{
    return m->b->convert(m->dev, &((row_args *)p)->x, out);
}
static dq_status call_axpy(const machine *m, void *p, const dq_view *out)
{
    return m->b->axpy(m->dev, ((row_args *)p)->scalar, &((row_args *)p)->x, out);
}
static dq_status call_scale(const machine *m, void *p, const dq_view *out)
{
    row_args *t = p;
    return m->b->scale_cols(m->dev, t->in_place ? out : &t->x, &t->v, out);
}
static dq_status call_fill(const machine *m, void *p, const dq_view *out)
{
    return m->b->fill(m->dev, ((row_args *)p)->scalar, out);
}
static dq_status call_gather(const machine *m, void *p, const dq_view *out)
{
    return m->b->gather_rows(m->dev, &((row_args *)p)->x, &((row_args *)p)->v, out);
}

static void test_elementwise(void **state)
{
    (void)state;
    static const dq_dtype types[] = {DQ_F64, DQ_F32, DQ_F16, DQ_BF16};
    for (int f = 0; f < 4; f++) {
        for (int g = 0; g < 4; g++) {
            row_args t = {.x = make(types[f], 37, 1001, 3)};
            if (types[f] == DQ_F32) { /* every class of number */
                static const float odd[] = {0.0f,  -0.0f,   1e-45f,   3e-8f,     6e-5f, 65519.9f,    65520.0f,
                                            1e38f, 3.4e38f, INFINITY, -INFINITY, NAN,   1.00390625f, 1.01171875f};
                memcpy(dq_view_f32(&t.x, 0), odd, sizeof odd);
            }
            dq_view out = make(types[g], 37, 1001, 1);
            compare("convert", call_convert, &t, &out, 0, 0);
            free(out.mem);
            free(t.x.mem);
        }
    }
    for (int i = 0; i < 8; i++) {
        dq_dtype type = i & 1 ? DQ_F64 : DQ_F32;
        row_args t = {.x = make(type, i & 2 ? 1 : 45, 1777, 1), .scalar = -0.37};
        dq_view out = make(type, 45, 1777, i & 4 ? 0 : 9);
        compare("axpy", call_axpy, &t, &out, 2e-7, 0);
        compare("fill", call_fill, &t, &out, 0, 0);
        t.x.rows = out.rows = i & 2 ? 1 : 45;
        t.v = make(type, 1, 1777, 0);
        t.in_place = i & 4;
        compare("scale_cols", call_scale, &t, &out, 0, 0);
        free(t.v.mem);
        t.v = make(DQ_I32, 1, out.rows, 0);
        for (int64_t r = 0; r < out.rows; r++) dq_view_i32(&t.v, 0)[r] = (int32_t)(r * 7 % t.x.rows);
        compare("gather_rows", call_gather, &t, &out, 0, 0);
        dq_view_i32(&t.v, 0)[0] = (int32_t)t.x.rows;
        assert_int_equal(call_gather(&one[0], &t, &out), DQ_E_INVALID);
        free(t.v.mem);
        free(out.mem);
        free(t.x.mem);
    }
}

static void test_find_and_dot(void **state)
{
    (void)state;
    static const dq_dtype types[] = {DQ_F64, DQ_F32, DQ_F16, DQ_BF16};
    for (int f = 0; f < 4; f++) {
        dq_view x = make(types[f], 130, 1003, 5), y = make(types[f], 130, 1003, 0);
        for (int i = 0; i < level_count; i++) {
            int64_t index = 0;
            assert_int_equal(many[i].b->find_nonfinite(many[i].dev, &x, &index), DQ_OK);
            assert_int_equal(index, -1);
        }
        int64_t spots[][2] = {{129, 1002}, {40, 0}, {40, 1002}, {3, 500}};
        for (int s = 0; s < 4; s++) { /* not every new one comes before the others */
            void *p = dq_view_at(&x, spots[s][0], spots[s][1], size_of(types[f]));
            if (types[f] == DQ_F64) *(double *)p = s & 1 ? (double)NAN : -INFINITY;
            if (types[f] == DQ_F32) *(float *)p = s & 1 ? NAN : -INFINITY;
            if (types[f] == DQ_F16) *(uint16_t *)p = s & 1 ? 0x7e01 : 0xfc00;
            if (types[f] == DQ_BF16) *(uint16_t *)p = s & 1 ? 0x7fc1 : 0xff80;
            for (int i = 0; i < level_count; i++) {
                int64_t got = 0, want = 0;
                assert_int_equal(ref.b->find_nonfinite(ref.dev, &x, &want), DQ_OK);
                assert_int_equal(many[i].b->find_nonfinite(many[i].dev, &x, &got), DQ_OK);
                assert_int_equal(got, want);
            }
        }
        free(x.mem);
        x = make(types[f], 130, 1003, 5);
        for (int i = 0; i < level_count && f < 2; i++) {
            double want = 0, a = 0, b = 0;
            assert_int_equal(ref.b->dot(ref.dev, &x, &y, &want), DQ_OK);
            assert_int_equal(one[i].b->dot(one[i].dev, &x, &y, &a), DQ_OK);
            assert_int_equal(many[i].b->dot(many[i].dev, &x, &y, &b), DQ_OK);
            assert_true(memcmp(&a, &b, sizeof a) == 0);
            assert_true(fabs(a - want) <= 1e-11 * 130 * 1003);
        }
        free(x.mem);
        free(y.mem);
    }
}

/* ---- device ---- */

static void test_options(void **state)
{
    (void)state;
    static const struct {
        const char *options;
        const char *message;
    } bad[] = {{"simd=sse", "'sse' is not one of"}, {"simd=", "unknown option 'simd='"}, {"fast=1", "'fast=1'"}};
    for (size_t i = 0; i < sizeof bad / sizeof bad[0]; i++) {
        machine m;
        assert_int_equal(machine_try(&m, dq_cpu_backend(), bad[i].options, 1), DQ_E_INVALID);
        if (!strstr(dq_error_text(), bad[i].message)) fail_msg("message is: %s", dq_error_text());
        machine_close(&m);
    }
    for (int i = 0; i < level_count; i++) {
        dq_device_info info;
        assert_int_equal(one[i].b->info(one[i].dev, &info), DQ_OK);
        assert_true(strncmp(info.name, "cpu:", 4) == 0);
        printf("%s -> %s; %s\n", levels[i], info.name, info.description);
    }
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_options),      cmocka_unit_test(test_elementwise),
        cmocka_unit_test(test_find_and_dot), cmocka_unit_test(test_norm_rope_activation),
        cmocka_unit_test(test_gemm),         cmocka_unit_test(test_attention),
        cmocka_unit_test(test_head_nll),     cmocka_unit_test(test_compare_logits),
    };
    return cmocka_run_group_tests(tests, open_all, close_all);
}
