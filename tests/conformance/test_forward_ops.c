/* Conformance of products and transformer ops. SPDX-License-Identifier: Apache-2.0 */
#include "pair.h"

/* ---- gemm ---- */

typedef struct gemm_case {
    int64_t m, n, k;
    bool trans_a, trans_b;
    dq_dtype a, b, c;
    double alpha, beta;
    int math;
} gemm_case;

static void gemm_run(run_ctx *c, const void *params)
{
    const gemm_case *p = params;
    bool bf16 = p->math == DQ_MATH_BF16;
    made *a = make_random(c, p->a, p->trans_a ? p->k : p->m, p->trans_a ? p->m : p->k);
    made *b = make_random(c, p->b, p->trans_b ? p->n : p->k, p->trans_b ? p->k : p->n);
    /* With beta 0 the old contents must not matter. */
    made *y = p->beta == 0 ? make_constant(c, p->c, p->m, p->n, NAN) : make_random(c, p->c, p->m, p->n);
    must(dq_op_gemm(p->trans_a, p->trans_b, p->alpha, &a->view, &b->view, p->beta, &y->view,
                    c->alternate ? DQ_MATH_F32 : p->math));
    bool halves = bf16 || (p->a == p->b && p->a != DQ_F32);
    const band *limit = band_of("gemm", p->c == DQ_F64 ? "f64" : halves ? "bf16 math" : "f32");
    double longer = p->c != DQ_F64 && halves ? 1 + (double)p->k / 1000 : 1;
    keep(c, "c", y, limit, fabs(p->alpha) * sqrt((double)p->k + 1) * longer + fabs(p->beta));
}

static void gemm_one(gemm_case p, const int64_t *size, int layout)
{
    char label[120];
    p.m = size[0], p.n = size[1], p.k = size[2];
    snprintf(label, sizeof label, "gemm %s x %s%s %s%s [%d, %d, %d] beta %g", dq_dtype_name(p.a), dq_dtype_name(p.b),
             p.math ? " bf16 math" : "", p.trans_a ? "T" : "N", p.trans_b ? "T" : "N", (int)p.m, (int)p.n, (int)p.k,
             p.beta);
    run_case_with(label, gemm_run, &p, layout, p.math == DQ_MATH_BF16 && p.c != DQ_F64, NULL);
}

static void gemm_over(gemm_case p)
{
    static const int64_t sizes[][3] = {{1, 1, 1},     {1, 17, 5},     {4, 3, 0},     {0, 3, 4},
                                       {33, 65, 127}, {130, 70, 257}, {5, 515, 64},  {64, 128, 576},
                                       {257, 33, 31}, {2, 2, 1030},   {20, 37, 1500}};
    for (size_t i = 0; i < sizeof sizes / sizeof sizes[0]; i++) gemm_one(p, sizes[i], (int)(i % LAYOUTS));
}

static void gemm(void **state)
{
    (void)state;
    for (int trans = 0; trans < 4; trans++) {
        gemm_case p = {.trans_a = trans & 1, .trans_b = trans >> 1, .a = DQ_F32, .b = DQ_F32, .c = DQ_F32, .alpha = 1};
        gemm_over(p);
        p.alpha = -0.5, p.beta = 0.75;
        gemm_over(p);
    }
    finish_cases();
}

static void gemm_mixed(void **state)
{
    (void)state;
    static const dq_dtype types[][2] = {{DQ_F32, DQ_BF16}, {DQ_BF16, DQ_BF16}, {DQ_F32, DQ_F16}, {DQ_F16, DQ_BF16}};
    for (int i = 0; i < 4; i++)
        for (int trans_b = 0; trans_b < 2; trans_b++) {
            gemm_case p = {
                .trans_b = trans_b, .a = types[i][0], .b = types[i][1], .c = DQ_F32, .alpha = 1, .beta = trans_b};
            gemm_over(p);
        }
    finish_cases();
}

static void gemm_bf16(void **state)
{
    (void)state;
    static const dq_dtype types[][2] = {{DQ_F32, DQ_F32}, {DQ_F32, DQ_BF16}, {DQ_BF16, DQ_BF16}, {DQ_F32, DQ_F16}};
    for (int i = 0; i < 4; i++)
        for (int trans = 0; trans < 4; trans++) {
            gemm_case p = {.trans_a = trans & 1,
                           .trans_b = trans >> 1,
                           .a = types[i][0],
                           .b = types[i][1],
                           .c = DQ_F32,
                           .alpha = 1,
                           .beta = trans == 2,
                           .math = DQ_MATH_BF16};
            gemm_over(p);
        }
    finish_cases();
}

static void gemm_f64(void **state)
{
    (void)state;
    for (int trans = 0; trans < 4; trans++) {
        gemm_case p = {.trans_a = trans & 1,
                       .trans_b = trans >> 1,
                       .a = DQ_F64,
                       .b = DQ_F64,
                       .c = DQ_F64,
                       .alpha = 1,
                       .beta = trans == 1,
                       .math = trans == 3 ? DQ_MATH_BF16 : DQ_MATH_F32};
        gemm_over(p);
    }
    finish_cases();
}

/* Several blocks in each direction. */
static void gemm_large(void **state)
{
    (void)state;
    static const int64_t sizes[][3] = {{530, 800, 70}, {70, 270, 1100}};
    static const dq_dtype types[][3] = {{DQ_F32, DQ_F32, DQ_F32}, {DQ_F32, DQ_BF16, DQ_F32}, {DQ_F64, DQ_F64, DQ_F64}};
    for (int i = 0; i < 2; i++)
        for (int t = 0; t < 3; t++)
            for (int math = 0; math < (t < 2 ? 2 : 1); math++) {
                gemm_case p = {.trans_a = t == 1,
                               .trans_b = t != 2,
                               .a = types[t][0],
                               .b = types[t][1],
                               .c = types[t][2],
                               .alpha = 1,
                               .beta = i,
                               .math = math};
                gemm_one(p, sizes[i], i);
            }
    finish_cases();
}

/* ---- norm, rope, activation ---- */

typedef struct row_case {
    int64_t rows, cols, head_dim, positions;
    int kind;
    double size;
} row_case;

static made *make_scaled(run_ctx *c, int64_t rows, int64_t cols, double size)
{
    double *values = random_values(c, rows * cols);
    for (int64_t i = 0; i < rows * cols; i++) values[i] *= size;
    made *m = make_values(c, DQ_F32, rows, cols, values);
    free(values);
    return m;
}

static void rmsnorm_run(run_ctx *c, const void *params)
{
    const row_case *p = params;
    const band *b = band_of("rmsnorm", "f32");
    made *x = make_scaled(c, p->rows, p->cols, p->size);
    made *w = make_random(c, DQ_F32, 1, p->cols);
    made *y = make_constant(c, DQ_F32, p->rows, p->cols, NAN);
    must(dq_op_rmsnorm(&x->view, NULL, 1e-5, &y->view));
    keep(c, "no weight", y, b, 1);
    must(dq_op_rmsnorm(&x->view, &w->view, 1e-6, &x->view));
    keep(c, "in place", x, b, 1);
}

static void layernorm_run(run_ctx *c, const void *params)
{
    const row_case *p = params;
    const band *b = band_of("layernorm", "f32");
    made *x = make_scaled(c, p->rows, p->cols, p->size);
    made *w = make_random(c, DQ_F32, 1, p->cols), *bias = make_random(c, DQ_F32, 1, p->cols);
    made *y = make_constant(c, DQ_F32, p->rows, p->cols, NAN);
    must(dq_op_layernorm(&x->view, NULL, NULL, 1e-5, &y->view));
    keep(c, "no weight, no bias", y, b, 1);
    must(dq_op_layernorm(&x->view, &w->view, NULL, 1e-6, &y->view));
    keep(c, "no bias", y, b, 1);
    must(dq_op_layernorm(&x->view, &w->view, &bias->view, 1e-6, &x->view));
    keep(c, "in place", x, b, 1);
}

/* A mean far from zero must not cost the digits of what is left. */
static void layernorm_far_run(run_ctx *c, const void *params)
{
    const row_case *p = params;
    double *values = random_values(c, p->rows * p->cols);
    for (int64_t i = 0; i < p->rows * p->cols; i++) values[i] += p->size;
    made *x = make_values(c, DQ_F32, p->rows, p->cols, values), *y = make_constant(c, DQ_F32, p->rows, p->cols, NAN);
    free(values);
    must(dq_op_layernorm(&x->view, NULL, NULL, 1e-5, &y->view));
    keep(c, "far mean", y, band_of("layernorm", "f32"), 1);
}

/* `far`: another run of the same shapes, of more than one column. */
static void norms(const char *name, case_fn run, case_fn far)
{
    static const int64_t sizes[][2] = {{1, 1},    {1, 5},    {3, 16},   {0, 8},    {7, 576},
                                       {2, 1031}, {33, 100}, {70, 576}, {2, 12288}};
    static const double magnitude[] = {1, 1e-4, 3000};
    for (size_t i = 0; i < sizeof sizes / sizeof sizes[0]; i++)
        for (int k = 0; k < 3; k++) {
            row_case p = {.rows = sizes[i][0], .cols = sizes[i][1], .size = magnitude[k]};
            char label[80];
            snprintf(label, sizeof label, "%s [%d, %d] size %g", name, (int)p.rows, (int)p.cols, p.size);
            run_case(label, run, &p, k);
            if (far && p.cols > 1) run_case(label, far, &p, k);
        }
    finish_cases();
}

static void rmsnorm(void **state)
{
    (void)state;
    norms("rmsnorm", rmsnorm_run, NULL);
}

static void layernorm(void **state)
{
    (void)state;
    norms("layernorm", layernorm_run, layernorm_far_run);
}

static void rope_run(run_ctx *c, const void *params)
{
    const row_case *p = params;
    int64_t half = p->head_dim / 2;
    double *cs = random_values(c, p->positions * half), *sn = random_values(c, p->positions * half);
    for (int64_t i = 0; i < p->positions * half; i++) {
        double angle = 10 * cs[i];
        cs[i] = cos(angle), sn[i] = sin(angle);
    }
    made *x = make_random(c, DQ_F32, p->rows, p->cols);
    made *cosines = make_values(c, DQ_F32, p->positions, half, cs);
    made *sines = make_values(c, DQ_F32, p->positions, half, sn);
    must(dq_op_rope(&cosines->view, &sines->view, p->head_dim, &x->view));
    keep(c, "x", x, band_of("rope", "f32"), 1);
    free(cs);
    free(sn);
}

static void rope(void **state)
{
    (void)state;
    static const row_case cases[] = {{1, 2, 2, 1, 0, 0},        {6, 3 * 64, 64, 3, 0, 0}, {5, 2 * 10, 10, 5, 0, 0},
                                     {0, 64, 64, 4, 0, 0},      {8, 128, 128, 4, 0, 0},   {3, 5 * 6, 6, 7, 0, 0},
                                     {40, 9 * 80, 80, 20, 0, 0}};
    for (size_t i = 0; i < sizeof cases / sizeof cases[0]; i++)
        for (int layout = 0; layout < LAYOUTS; layout++) {
            char label[80];
            snprintf(label, sizeof label, "rope [%d, %d] head_dim %d", (int)cases[i].rows, (int)cases[i].cols,
                     (int)cases[i].head_dim);
            run_case(label, rope_run, &cases[i], layout);
        }
    finish_cases();
}

static void activation_run(run_ctx *c, const void *params)
{
    const row_case *p = params;
    const band *b = band_of("activation", "f32");
    made *gate = make_scaled(c, p->rows, p->cols, p->size);
    made *up = make_random(c, DQ_F32, p->rows, p->cols);
    made *y = make_constant(c, DQ_F32, p->rows, p->cols, NAN);
    must(dq_op_activation(p->kind, &gate->view, NULL, &y->view));
    keep(c, "plain", y, b, 1);
    must(dq_op_activation(p->kind, &gate->view, &up->view, &y->view));
    keep(c, "gated", y, b, 1);
    must(dq_op_activation(p->kind, &gate->view, &up->view, &up->view));
    keep(c, "into up", up, b, 1);
    must(dq_op_activation(p->kind, &gate->view, &y->view, &gate->view));
    keep(c, "into gate", gate, b, p->size < 1 ? 1 : p->size);
}

static void activation(void **state)
{
    (void)state;
    static const int64_t sizes[][2] = {{1, 1}, {3, 17}, {0, 8}, {5, 1536}, {33, 31}};
    static const double magnitude[] = {1, 12, 200};
    for (int kind = DQ_ACT_SILU; kind <= DQ_ACT_RELU; kind++)
        for (int i = 0; i < 5; i++)
            for (int k = 0; k < 3; k++) {
                row_case p = {.rows = sizes[i][0], .cols = sizes[i][1], .kind = kind, .size = magnitude[k]};
                char label[80];
                snprintf(label, sizeof label, "activation %d [%d, %d] size %g", kind, (int)p.rows, (int)p.cols, p.size);
                run_case(label, activation_run, &p, k);
            }
    finish_cases();
}

/* ---- attention ---- */

static void attention_run(run_ctx *c, const void *params)
{
    dq_attention_desc d = *(const dq_attention_desc *)params;
    int64_t rows = d.seqlen * 2;
    if (d.scale < 0) rows = 0, d.scale = 1;
    double size = d.scale > 1 ? 3 : 1; /* sharp softmax */
    made *q = make_scaled(c, rows, (int64_t)d.heads * d.head_dim, size);
    made *k = make_scaled(c, rows, (int64_t)d.kv_heads * d.head_dim, size);
    made *v = make_random(c, DQ_F32, rows, (int64_t)d.kv_heads * d.head_dim);
    made *o = make_constant(c, DQ_F32, rows, (int64_t)d.heads * d.head_dim, NAN);
    must(dq_op_attention(&d, &q->view, &k->view, &v->view, &o->view));
    keep(c, "o", o, band_of("attention", d.math ? "bf16 math" : "f32"), d.scale > 1 && !d.math ? 10 : 1);
}

static void attention(void **state)
{
    (void)state;
    /* seqlen, heads, kv_heads, head_dim, window, scale, math; scale -1: no rows */
    static const dq_attention_desc cases[] = {
        {1, 1, 1, 1, 0, 1.0f, 0},     {7, 2, 1, 4, 0, 0.5f, 0},       {65, 3, 3, 64, 0, 0.125f, 0},
        {129, 4, 2, 20, 0, 0.25f, 0}, {200, 6, 2, 64, 33, 0.125f, 0}, {33, 2, 2, 80, 1, 0.2f, 0},
        {300, 1, 1, 128, 0, 0.1f, 0}, {50, 4, 1, 16, 64, 2.0f, 0},    {5, 2, 1, 8, 0, -1.0f, 0},
        {65, 3, 3, 64, 0, 0.125f, 1}, {200, 6, 2, 64, 33, 0.125f, 1}, {131, 4, 2, 20, 0, 0.25f, 1},
        {140, 4, 2, 128, 0, 0.1f, 1}, {270, 2, 2, 96, 70, 0.1f, 1},   {70, 2, 1, 256, 0, 0.1f, 0},
        {40, 2, 1, 160, 9, 0.1f, 1},
    };
    for (size_t i = 0; i < sizeof cases / sizeof cases[0]; i++)
        for (int layout = 0; layout < 2; layout++) {
            const dq_attention_desc *d = &cases[i];
            char label[100];
            snprintf(label, sizeof label, "attention seqlen %d heads %d/%d head_dim %d window %d%s", (int)d->seqlen,
                     d->heads, d->kv_heads, d->head_dim, d->window, d->math ? " bf16 math" : "");
            run_case(label, attention_run, d, layout);
        }
    finish_cases();
}

/* ---- head ---- */

typedef struct head_case {
    int64_t rows, depth, vocab, tile;
    dq_dtype w;
    int math;
} head_case;

static void head_run(run_ctx *c, const void *params)
{
    const head_case *p = params;
    made *x = make_random(c, DQ_F32, p->rows, p->depth);
    made *w = make_random(c, p->w, p->vocab, p->depth);
    double *values = random_values(c, p->rows * 3);
    for (int64_t r = 0; r < p->rows; r++) values[r] = r % 4 == 3 ? -1 : (double)next_below(c, p->vocab);
    made *targets_of = make_values(c, DQ_I32, 1, p->rows, values);
    for (int64_t r = 0; r < p->rows; r++) values[3 * r] = values[3 * r + 2] = -INFINITY, values[3 * r + 1] = 0;
    made *s = make_values(c, DQ_F64, p->rows, 3, values);
    free(values);
    for (int64_t first = 0; first < p->vocab; first += p->tile) {
        int64_t count = p->vocab - first < p->tile ? p->vocab - first : p->tile;
        dq_tensor part = dq_tensor_rows(&w->view, first, count);
        must(dq_op_head_nll(&x->view, &part, &targets_of->view, first, &s->view, c->alternate ? DQ_MATH_F32 : p->math));
    }
    keep(c, "state", s, band_of("head_nll", p->math ? "bf16 math" : "f32"), sqrt((double)p->depth));
}

static void head_nll(void **state)
{
    (void)state;
    static const head_case cases[] = {
        {1, 1, 1, 1, DQ_F32, 0},         {5, 17, 33, 8, DQ_F32, 0},     {33, 64, 1000, 1000, DQ_F32, 0},
        {0, 8, 9, 9, DQ_F32, 0},         {9, 576, 130, 50, DQ_BF16, 0}, {130, 31, 257, 100, DQ_F16, 0},
        {33, 64, 1000, 300, DQ_F32, 1},  {9, 576, 130, 50, DQ_BF16, 1}, {3, 8, 9001, 9001, DQ_F32, 0},
        {2, 40, 8600, 4300, DQ_BF16, 1},
    };
    for (size_t i = 0; i < sizeof cases / sizeof cases[0]; i++)
        for (int layout = 0; layout < 2; layout++) {
            const head_case *p = &cases[i];
            char label[100];
            snprintf(label, sizeof label, "head_nll [%d, %d] vocabulary %d of %s%s", (int)p->rows, (int)p->depth,
                     (int)p->vocab, dq_dtype_name(p->w), p->math ? " bf16 math" : "");
            run_case_with(label, head_run, p, layout, p->math == DQ_MATH_BF16, NULL);
        }
    finish_cases();
}

typedef struct compare_case {
    int64_t rows, vocab, tile;
} compare_case;

static void compare_run(run_ctx *c, const void *params)
{
    static const double start[7] = {-INFINITY, 0, 0, -INFINITY, 0, -1, -1};
    const compare_case *p = params;
    made *a = make_random(c, DQ_F32, p->rows, p->vocab), *b = make_random(c, DQ_F32, p->rows, p->vocab);
    double *values = random_values(c, p->rows * 7);
    for (int64_t i = 0; i < p->rows * 7; i++) values[i] = start[i % 7];
    made *s = make_values(c, DQ_F64, p->rows, 7, values);
    free(values);
    for (int64_t first = 0; first < p->vocab; first += p->tile) {
        int64_t count = p->vocab - first < p->tile ? p->vocab - first : p->tile;
        dq_tensor x = dq_tensor_slice(&a->view, 0, p->rows, first, count);
        dq_tensor y = dq_tensor_slice(&b->view, 0, p->rows, first, count);
        must(dq_op_compare_logits(&x, &y, first, &s->view));
    }
    keep(c, "state", s, band_of("compare_logits", "f32"), sqrt((double)p->vocab));
}

static void compare_logits(void **state)
{
    (void)state;
    static const compare_case cases[] = {{1, 1, 1}, {5, 33, 8}, {0, 9, 9}, {19, 1000, 1000}, {33, 5000, 1700}};
    for (size_t i = 0; i < sizeof cases / sizeof cases[0]; i++)
        for (int layout = 0; layout < 2; layout++) {
            char label[100];
            snprintf(label, sizeof label, "compare_logits [%d, %d] by %d", (int)cases[i].rows, (int)cases[i].vocab,
                     (int)cases[i].tile);
            run_case(label, compare_run, &cases[i], layout);
        }
    finish_cases();
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(gemm),       cmocka_unit_test(gemm_mixed), cmocka_unit_test(gemm_bf16),
        cmocka_unit_test(gemm_large), cmocka_unit_test(gemm_f64),   cmocka_unit_test(rmsnorm),
        cmocka_unit_test(layernorm),  cmocka_unit_test(rope),       cmocka_unit_test(activation),
        cmocka_unit_test(attention),  cmocka_unit_test(head_nll),   cmocka_unit_test(compare_logits),
    };
    return cmocka_run_group_tests_name("conformance: forward", tests, open_all, close_all);
}
