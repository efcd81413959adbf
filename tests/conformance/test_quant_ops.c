/* Conformance of quantization, Hadamard transforms and factorizations. SPDX-License-Identifier: Apache-2.0 */
#include "pair.h"
#include "quant/quantize.h"

/* ---- fake quantization: defined in fp32, so equal ---- */

typedef struct quant_case {
    dq_fake_quant_desc d;
    int64_t rows, cols;
} quant_case;

/* Rows of every awkward kind, then ordinary ones. */
static double awkward(run_ctx *c, int64_t row, int64_t col)
{
    double u = next_uniform(c);
    switch (row % 12) {
        case 0: return 0;   /* all zero */
        case 1: return 0.3; /* constant */
        case 2: return -1.7;
        case 3: return 1 + fabs(u); /* one sign */
        case 4: return -1 - fabs(u);
        case 5: return col % 2 ? 7 : (double)(col % 16) / 2 - 3.5; /* ties for 4 bits symmetric */
        case 6: return col % 5 ? 0.5 * (double)(col % 31) : 0;     /* ties for asymmetric grids */
        case 7: return u * 1e-30;
        case 8: return u * 1e30;
        case 9: return u * 1e-40;           /* subnormal */
        case 10: return col == 0 ? 300 : u; /* outlier */
        default: return u;
    }
}

static void fake_quant_run(run_ctx *c, const void *params)
{
    const quant_case *p = params;
    const band *b = band_of("fake_quant", "f32");
    double *values = malloc((size_t)(p->rows * p->cols) * sizeof *values + 8);
    for (int64_t i = 0; i < p->rows * p->cols; i++) values[i] = awkward(c, i / p->cols, i % p->cols);
    made *x = make_values(c, DQ_F32, p->rows, p->cols, values);
    made *y = make_constant(c, DQ_F32, p->rows, p->cols, NAN);
    free(values);
    must(dq_op_fake_quant(&p->d, &x->view, &y->view));
    keep(c, "y", y, b, 1);
    must(dq_op_fake_quant(&p->d, &x->view, &x->view));
    keep(c, "in place", x, b, 1);
}

static void fake_quant(void **state)
{
    (void)state;
    static const int64_t sizes[][3] = {{24, 64, 64},    {12, 129, 129}, {13, 96, 32},     {25, 30, 10},
                                       {0, 8, 8},       {12, 7, 1},     {80, 1024, 1024}, {12, 48, 3},
                                       {3, 4096, 4096}, {9, 384, 192},  {2, 6000, 6000},  {1, 9216, 9216}};
    static const int bits[] = {2, 3, 4, 8, 15};
    static const float clips[] = {1.0f, 0.9f, 0.73f};
    for (int i = 0; i < 12; i++)
        for (int b = 0; b < 5; b++)
            for (int mode = 0; mode < 4; mode++) {
                int pick = (i + b + mode) % 3;
                quant_case p = {{bits[b], mode & 1, sizes[i][2], clips[pick], mode >> 1}, sizes[i][0], sizes[i][1]};
                char label[120];
                snprintf(label, sizeof label, "fake_quant [%d, %d] bits %d %s group %d clip %g%s", (int)p.rows,
                         (int)p.cols, p.d.bits, p.d.symmetric ? "sym" : "asym", (int)p.d.group, (double)p.d.clip,
                         p.d.zero_in_range ? " zero in range" : "");
                run_case(label, fake_quant_run, &p, pick);
            }
    finish_cases();
}

/* ---- Hadamard ---- */

typedef struct hadamard_case {
    int64_t rows, blocks, n, k, inner;
    int transpose;
    dq_dtype dtype;
} hadamard_case;

static void hadamard_run(run_ctx *c, const void *params)
{
    const hadamard_case *p = params;
    int8_t *hk = malloc((size_t)(p->k * p->k));
    for (int64_t i = 0; i < p->k * p->k; i++) hk[i] = next_below(c, 2) ? 1 : -1;
    dq_hadamard_desc d = {.n = p->n,
                          .k = p->k,
                          .hk = p->k > 1 ? hk : NULL,
                          .inner = p->inner,
                          .transpose = p->transpose,
                          .scale = 1 / sqrt((double)p->n)};
    int64_t cols = p->blocks * p->n * p->inner;
    made *x = make_random(c, p->dtype, p->rows, cols);
    made *y = make_constant(c, p->dtype, p->rows, cols, NAN);
    const band *b = band_of("hadamard", p->dtype == DQ_F64 ? "f64" : "f32");
    must(dq_op_hadamard(&d, &x->view, &y->view));
    keep(c, "y", y, b, 1);
    must(dq_op_hadamard(&d, &x->view, &x->view));
    keep(c, "in place", x, b, 1);
    free(hk);
}

static void hadamard(void **state)
{
    (void)state;
    static const hadamard_case cases[] = {
        {1, 1, 1, 1, 1, 0, 0},    {3, 5, 2, 1, 1, 0, 0},       {5, 3, 64, 1, 1, 0, 0},  {7, 1, 128, 1, 1, 1, 0},
        {2, 1, 4096, 1, 1, 0, 0}, {2, 1, 12, 12, 1, 0, 0},     {3, 2, 24, 12, 1, 1, 0}, {2, 1, 1536, 12, 1, 0, 0},
        {2, 1, 448, 28, 1, 1, 0}, {1, 1, 688, 172, 1, 0, 0},   {3, 1, 8, 1, 64, 0, 0},  {4, 2, 3, 3, 20, 0, 0},
        {2, 1, 36, 9, 16, 1, 0},  {0, 1, 64, 1, 1, 0, 0},      {33, 4, 16, 1, 1, 0, 0}, {70, 1, 1024, 1, 1, 0, 0},
        {2, 2, 20, 20, 7, 1, 0},  {3, 1, 11008, 172, 1, 1, 0},
    };
    for (size_t i = 0; i < sizeof cases / sizeof cases[0]; i++)
        for (int f64 = 0; f64 < 2; f64++)
            for (int layout = 0; layout < LAYOUTS; layout++) {
                hadamard_case p = cases[i];
                if (f64 && p.n > 8192) continue; /* more than a card need serve in fp64 */
                p.dtype = f64 ? DQ_F64 : DQ_F32;
                char label[100];
                snprintf(label, sizeof label, "hadamard %s order %d = %d x 2^m, %d blocks, inner %d%s",
                         dq_dtype_name(p.dtype), (int)p.n, (int)p.k, (int)p.blocks, (int)p.inner,
                         p.transpose ? ", transposed" : "");
                run_case(label, hadamard_run, &p, layout);
            }
    finish_cases();
}

/* ---- Hessian ---- */

typedef struct square_case {
    int64_t n, tokens;
    dq_dtype dtype;
    bool option;
} square_case;

static void syrk_run(run_ctx *c, const void *params)
{
    const square_case *p = params;
    made *x = make_random(c, p->dtype, p->tokens, p->n);
    const band *b = band_of("syrk", p->tokens > 200 && !dq_tensor_in_reach(&x->view) ? "long sums" : "f32");
    made *h = p->option ? make_random(c, DQ_F32, p->n, p->n) : make_constant(c, DQ_F32, p->n, p->n, NAN);
    double scale = 0.5 * sqrt((double)p->tokens + 1) + 1;
    must(dq_op_syrk(0.5, &x->view, p->option ? 0.25 : 0, &h->view));
    keep(c, "h", h, b, scale);
    made *v = make_constant(c, DQ_F32, 1, p->n, NAN);
    must(dq_op_diag(&h->view, &v->view));
    keep(c, "diag", v, b, scale);
}

static void syrk(void **state)
{
    (void)state;
    static const int64_t sizes[][2] = {{1, 1},     {5, 3},    {33, 100},  {64, 0},
                                       {130, 257}, {257, 64}, {96, 1000}, {401, 2100}};
    static const dq_dtype types[] = {DQ_F32, DQ_BF16, DQ_F16};
    for (int i = 0; i < 8; i++)
        for (int t = 0; t < 3; t++)
            for (int beta = 0; beta < (i == 7 ? 1 : 2); beta++) {
                square_case p = {sizes[i][0], sizes[i][1], types[t], beta};
                char label[80];
                snprintf(label, sizeof label, "syrk %s [%d, %d]%s", dq_dtype_name(p.dtype), (int)p.tokens, (int)p.n,
                         beta ? " added" : "");
                run_case(label, syrk_run, &p, (i + t) % LAYOUTS);
            }
    finish_cases();
}

/* ---- factorizations ---- */

/* Lower triangle of a well conditioned matrix (identity plus a symmetric random matrix of norm about 1/3); NaN above, which
 * must not be read. A dead column is zero. */
static made *make_hessian(run_ctx *c, int64_t n, bool dead)
{
    double *h = random_values(c, n * n);
    for (int64_t i = 0; i < n; i++)
        for (int64_t j = 0; j < n; j++) {
            double *at = &h[i * n + j];
            if (j > i)
                *at = NAN;
            else if (dead && (i == n / 2 || j == n / 2))
                *at = 0;
            else
                *at = 0.3 * *at / sqrt((double)n) + (i == j);
        }
    made *m = make_values(c, DQ_F32, n, n, h);
    free(h);
    return m;
}

/* The root by the device, or by the reference where it has only gptq_factor. */
static void root_of(const made *h, const made *perm, int64_t block, made *out)
{
    bool served = false;
    int64_t info = -5, n = h->view.view.rows;
    dq_tensor a = {0}, p = {0}, r = {0};
    must(dq_op_gptq_root(&h->view, perm ? &perm->view : NULL, 0.01, block, &out->view, &info, &served));
    assert_true(!served || info == 0);
    if (served) return;
    float *host = malloc((size_t)(n * n) * sizeof *host);
    int32_t *order = malloc((size_t)n * sizeof *order);
    must(dq_tensor_download(&h->view, host));
    must(dq_tensor_from_host(reference, DQ_F32, n, n, host, &a));
    if (perm) must(dq_tensor_download(&perm->view, order));
    if (perm) must(dq_tensor_from_host(reference, DQ_I32, 1, n, order, &p));
    must(dq_tensor_alloc(reference, DQ_F32, n, n, &r));
    must(dq_op_gptq_root(&a, perm ? &p : NULL, 0.01, block, &r, &info, &served));
    assert_true(served && info == 0);
    must(dq_tensor_download(&r, host));
    must(dq_tensor_upload(&out->view, host));
    dq_tensor_free(&a);
    dq_tensor_free(&p);
    dq_tensor_free(&r);
    free(host);
    free(order);
}

static void factor_run(run_ctx *c, const void *params)
{
    const square_case *p = params;
    made *h = make_hessian(c, p->n, p->option);
    double *order = malloc((size_t)p->n * sizeof *order);
    for (int64_t i = 0; i < p->n; i++) order[i] = (double)i;
    for (int64_t i = p->n - 1; i > 0; i--) {
        int64_t j = next_below(c, i + 1);
        double swap = order[i];
        order[i] = order[j], order[j] = swap;
    }
    made *perm = make_values(c, DQ_I32, 1, p->n, order);
    free(order);
    made *u = make_constant(c, DQ_F32, p->n, p->n, NAN), *v = make_constant(c, DQ_F32, p->n, p->n, NAN);
    int64_t info = -5;
    const band *b = band_of("gptq_factor", "f32");
    must(dq_op_gptq_factor(&h->view, NULL, 0.01, &u->view, &info));
    assert_int_equal(info, 0);
    keep(c, "u", u, b, 1);
    must(dq_op_gptq_factor(&h->view, &perm->view, 0.01, &v->view, &info));
    assert_int_equal(info, 0);
    keep(c, "u permuted", v, b, 1);
    made *root = make_constant(c, DQ_F32, p->n, p->n, NAN), *other = make_constant(c, DQ_F32, p->n, p->n, NAN);
    root_of(h, NULL, 128, root);
    keep(c, "root", root, b, 1);
    root_of(h, perm, 48, other);
    keep(c, "root permuted", other, b, 1);
    keep(c, "h untouched", h, band_of("diag", "f32"), 1);
}

static void gptq_factor(void **state)
{
    (void)state;
    static const int64_t sizes[] = {1, 2, 17, 64, 130, 193, 411};
    for (int i = 0; i < 7; i++)
        for (int dead = 0; dead < 2; dead++) {
            square_case p = {.n = sizes[i], .option = dead};
            char label[60];
            snprintf(label, sizeof label, "gptq_factor order %d%s", (int)p.n, dead ? " with a dead column" : "");
            run_case(label, factor_run, &p, (i + dead) % LAYOUTS);
        }
    finish_cases();
}

/* The pivots run from the last to the first: the one that fails is reported, counted from 1. */
static void gptq_factor_reports_pivot(void **state)
{
    (void)state;
    float h[9] = {1, 0, 0, 0, -2, 0, 0, 0, 3}, nan_at[9] = {1, 0, 0, 0, 1, 0, 0, 0, NAN};
    for (int t = -1; t < target_count; t++) {
        dq_device *dev = t < 0 ? reference : targets[t][1].dev;
        dq_tensor a, b, u;
        int64_t info = -5;
        must(dq_tensor_from_host(dev, DQ_F32, 3, 3, h, &a));
        must(dq_tensor_from_host(dev, DQ_F32, 3, 3, nan_at, &b));
        must(dq_tensor_alloc(dev, DQ_F32, 3, 3, &u));
        must(dq_op_gptq_factor(&a, NULL, 0.5, &u, &info));
        assert_int_equal(info, 2);
        must(dq_op_gptq_factor(&b, NULL, 0.5, &u, &info));
        assert_int_not_equal(info, 0);
        must(dq_op_gptq_factor(&a, NULL, 2.5, &u, &info)); /* enough damping */
        assert_int_equal(info, 0);
        dq_tensor_free(&a);
        dq_tensor_free(&b);
        dq_tensor_free(&u);
    }
}

static void qr_run(run_ctx *c, const void *params)
{
    const square_case *p = params;
    const band *b = band_of("qr", p->dtype == DQ_F64 ? "f64" : "f32");
    made *a = make_random(c, p->dtype, p->n, p->n);
    made *q = make_constant(c, p->dtype, p->n, p->n, NAN), *r = make_constant(c, p->dtype, p->n, p->n, NAN);
    made *q2 = make_constant(c, p->dtype, p->n, p->n, NAN);
    must(dq_op_qr(&a->view, &q->view, &r->view));
    must(dq_op_qr(&a->view, &q2->view, NULL));
    keep(c, "q", q, b, 1);
    keep(c, "r", r, b, sqrt((double)p->n));
    keep(c, "q without r", q2, b, 1);
    keep(c, "a untouched", a, band_of("diag", "f32"), 1);
}

static void qr(void **state)
{
    (void)state;
    static const int64_t sizes[] = {1, 2, 5, 33, 64, 129, 200};
    for (int i = 0; i < 7; i++)
        for (int f64 = 0; f64 < 2; f64++) {
            square_case p = {.n = sizes[i], .dtype = f64 ? DQ_F64 : DQ_F32};
            char label[60];
            snprintf(label, sizeof label, "qr %s order %d", dq_dtype_name(p.dtype), (int)p.n);
            run_case(label, qr_run, &p, (i + f64) % LAYOUTS);
        }
    finish_cases();
}

/* ---- weights ---- */

typedef struct weight_case {
    dq_grid_desc d;
    int64_t rows, cols;
    bool indexed;
} weight_case;

static int64_t groups_in(const weight_case *p) { return (p->cols + p->d.group - 1) / p->d.group; }

static made *make_weights(run_ctx *c, const weight_case *p)
{
    double *values = random_values(c, p->rows * p->cols);
    for (int64_t r = 0; r < p->rows; r++)
        for (int64_t k = 0; k < p->cols; k++) {
            double *w = &values[r * p->cols + k];
            *w = *w * *w * *w * 0.1; /* heavy tails, so that clipping pays */
            if (r % 9 == 1) *w = 0;
            if (r % 9 == 3) *w = fabs(*w);
            if (r % 9 == 5) *w = -fabs(*w);
            if (r % 9 == 7) *w *= 1e-7; /* below the smallest range */
        }
    made *m = make_values(c, DQ_F32, p->rows, p->cols, values);
    free(values);
    return m;
}

/* Error of the grid the device chose, in fp64 on the device's own scale and zero. */
static double chosen_error(const dq_grid_desc *d, const float *w, int64_t n, float scale, float zero)
{
    float top = (float)((1 << d->bits) - 1);
    double sum = 0;
    for (int64_t i = 0; i < n; i++) {
        float code = fminf(fmaxf(rintf(w[i] / scale) + zero, 0), top);
        sum += pow(fabsf(scale * (code - zero) - w[i]), d->search_norm);
    }
    return sum;
}

static void weight_run(run_ctx *c, const void *params)
{
    const weight_case *p = params;
    int64_t groups = groups_in(p);
    made *w = make_weights(c, p);
    made *s = make_constant(c, DQ_F32, p->rows, groups, NAN), *z = make_constant(c, DQ_F32, p->rows, groups, NAN);
    dq_grid_desc plain = p->d;
    plain.search_steps = 0;
    must(dq_op_weight_grid(&plain, &w->view, &s->view, &z->view));
    keep(c, "scale", s, band_of("weight_grid", "f32"), 1);
    keep(c, "zero", z, band_of("weight_grid", "f32"), 1);

    double *index = malloc((size_t)p->cols * sizeof *index + 8);
    for (int64_t k = 0; k < p->cols; k++) index[k] = (double)next_below(c, groups ? groups : 1);
    made *g = make_values(c, DQ_I32, 1, p->cols, index);
    free(index);
    const dq_tensor *group_index = p->indexed ? &g->view : NULL;
    made *codes = make_constant(c, DQ_U8, p->rows, p->cols, 99);
    made *back = make_constant(c, DQ_F32, p->rows, p->cols, NAN);
    must(dq_op_quantize_weight(&p->d, &w->view, &s->view, &z->view, group_index, &codes->view));
    keep(c, "codes", codes, band_of("quantize_weight", "u8"), 1);
    must(dq_op_dequantize_weight(&p->d, &codes->view, &s->view, &z->view, group_index, &back->view));
    keep(c, "dequantized", back, band_of("dequantize_weight", "f32"), 1);
}

static const int64_t weight_sizes[][3] = {{1, 1, 1}, {9, 64, 64},    {19, 129, 32}, {10, 7, 16},
                                          {0, 8, 8}, {33, 257, 128}, {9, 30, 1},    {150, 512, 512}};

static void weights(void **state)
{
    (void)state;
    for (int i = 0; i < 8; i++)
        for (int bits = 2; bits <= 8; bits += i % 2 + 1)
            for (int mode = 0; mode < 4; mode++) {
                weight_case p = {{.bits = bits, .symmetric = mode & 1, .group = weight_sizes[i][2]},
                                 weight_sizes[i][0],
                                 weight_sizes[i][1],
                                 mode >> 1};
                char label[100];
                snprintf(label, sizeof label, "weights [%d, %d] bits %d %s group %d%s", (int)p.rows, (int)p.cols, bits,
                         p.d.symmetric ? "sym" : "asym", (int)p.d.group, p.indexed ? " indexed" : "");
                run_case(label, weight_run, &p, (i + bits) % LAYOUTS);
            }
    finish_cases();
}

/* Two candidates may be within rounding of each other, so the chosen range is judged by its error. */
static void search_run(run_ctx *c, const void *params)
{
    const weight_case *p = params;
    int64_t groups = groups_in(p);
    made *w = make_weights(c, p);
    made *s = make_constant(c, DQ_F32, p->rows, groups, 77), *z = make_constant(c, DQ_F32, p->rows, groups, 77);
    must(dq_op_weight_grid(&p->d, &w->view, &s->view, &z->view));
    float *values = malloc((size_t)(p->rows * p->cols) * 4 + 8);
    float *scale = malloc((size_t)(p->rows * groups) * 4 + 8), *zero = malloc((size_t)(p->rows * groups) * 4 + 8);
    double *errors = malloc((size_t)(p->rows * groups) * 8 + 8);
    must(dq_tensor_download(&w->view, values));
    must(dq_tensor_download(&s->view, scale));
    must(dq_tensor_download(&z->view, zero));
    for (int64_t i = 0; i < p->rows * groups; i++) {
        int64_t r = i / groups, first = i % groups * p->d.group;
        int64_t n = p->cols - first < p->d.group ? p->cols - first : p->d.group;
        errors[i] = chosen_error(&p->d, values + r * p->cols + first, n, scale[i], zero[i]);
    }
    keep_bytes(c, "error", DQ_F64, p->rows * groups, groups ? groups : 1, (unsigned char *)errors,
               band_of("weight_grid", "search"), 1);
    keep(c, "scale", s, band_of("weight_grid", "f32"), 1);
    keep(c, "zero", z, band_of("weight_grid", "f32"), 1);
    free(values);
    free(scale);
    free(zero);
}

/* Errors within the band; scale and zero exactly equal except in at most 1 group of 50 (and always at least 1). */
static bool compare_search(const outputs *want, const outputs *got, bool *ok)
{
    int64_t different = 0, n = want->item[1].count;
    for (int64_t i = 0; i < want->item[0].count; i++) {
        double w = get_element(DQ_F64, want->item[0].bytes, i), g = get_element(DQ_F64, got->item[0].bytes, i);
        if (!(g <= w * (1 + want->item[0].relative))) *ok = false;
    }
    for (int64_t i = 0; i < n; i++)
        different += get_element(DQ_F32, want->item[1].bytes, i) != get_element(DQ_F32, got->item[1].bytes, i) ||
                     get_element(DQ_F32, want->item[2].bytes, i) != get_element(DQ_F32, got->item[2].bytes, i);
    if (different > 1 + n / 50) *ok = false;
    return true;
}

static void weight_search(void **state)
{
    (void)state;
    static const float norms[] = {2.4f, 2.0f, 1.0f};
    for (int i = 0; i < 7; i++) /* the largest is left to the benchmarks */
        for (int bits = 2; bits <= 8; bits += 2)
            for (int symmetric = 0; symmetric < 2; symmetric++) {
                weight_case p = {{bits, symmetric, weight_sizes[i][2], 80, 100,
                                  norms[bits == 2   ? 1
                                        : bits == 6 ? 2
                                                    : 0],
                                  0},
                                 weight_sizes[i][0],
                                 weight_sizes[i][1],
                                 false};
                char label[100];
                snprintf(label, sizeof label, "clip search [%d, %d] bits %d %s group %d norm %g", (int)p.rows,
                         (int)p.cols, bits, symmetric ? "sym" : "asym", (int)p.d.group, (double)p.d.search_norm);
                run_case_with(label, search_run, &p, (i + bits) % LAYOUTS, false, compare_search);
            }
    finish_cases();
}

static void block_run(run_ctx *c, const void *params)
{
    const weight_case *p = params;
    int64_t n = p->cols, groups = groups_in(p);
    made *w = make_weights(c, p);
    double *u = random_values(c, n * n), *index = malloc((size_t)n * sizeof *index);
    for (int64_t i = 0; i < n; i++)
        for (int64_t j = 0; j < n; j++) {
            if (j < i)
                u[i * n + j] = 0;
            else if (j > i)
                u[i * n + j] *= 0.2;
            else
                u[i * n + j] = 1 + 0.5 * fabs(u[i * n + j]);
        }
    for (int64_t k = 0; k < n; k++) index[k] = (double)(k / p->d.group);
    made *factor = make_values(c, DQ_F32, n, n, u), *g = make_values(c, DQ_I32, 1, n, index);
    free(u);
    free(index);
    made *s = make_constant(c, DQ_F32, p->rows, groups, NAN), *z = make_constant(c, DQ_F32, p->rows, groups, NAN);
    must(dq_op_weight_grid(&p->d, &w->view, &s->view, &z->view));
    made *codes = make_constant(c, DQ_U8, p->rows, n, 99), *err = make_constant(c, DQ_F32, p->rows, n, NAN);
    must(dq_op_gptq_block(&p->d, &w->view, &factor->view, &s->view, &z->view, &g->view, &codes->view, &err->view));
    keep(c, "codes", codes, band_of("quantize_weight", "u8"), 1);
    keep(c, "w", w, band_of("gptq_block", "f32"), 1);
    keep(c, "err", err, band_of("gptq_block", "f32"), 1);
}

/* A code at a tie may fall the other way, which changes the rest of its row: such rows (at most 1 in 50, always at least
 * 1) are left out, all others must have equal codes and values within the band. */
static bool compare_block(const outputs *want, const outputs *got, bool *ok)
{
    const output *codes = &want->item[0];
    int64_t cols = codes->cols, rows = cols ? codes->count / cols : 0, different = 0;
    for (int64_t r = 0; r < rows; r++) {
        if (memcmp(codes->bytes + r * cols, got->item[0].bytes + r * cols, (size_t)cols) != 0) {
            different++;
            continue;
        }
        for (int o = 1; o < 3; o++)
            for (int64_t i = r * cols; i < (r + 1) * cols; i++)
                if (!within(&want->item[o], get_element(DQ_F32, want->item[o].bytes, i),
                            get_element(DQ_F32, got->item[o].bytes, i)))
                    *ok = false;
    }
    if (different > 1 + rows / 50) *ok = false;
    return true;
}

static void gptq_block(void **state)
{
    (void)state;
    static const int64_t sizes[][3] = {{1, 1, 1},    {9, 16, 16}, {33, 128, 128}, {70, 128, 32},
                                       {17, 37, 10}, {0, 8, 8},   {260, 64, 64},  {5, 100, 1}};
    for (int i = 0; i < 8; i++)
        for (int bits = 2; bits <= 8; bits += 2)
            for (int symmetric = 0; symmetric < 2; symmetric++) {
                weight_case p = {
                    {.bits = bits, .symmetric = symmetric, .group = sizes[i][2]}, sizes[i][0], sizes[i][1], true};
                char label[100];
                snprintf(label, sizeof label, "gptq_block [%d, %d] bits %d %s group %d", (int)p.rows, (int)p.cols, bits,
                         symmetric ? "sym" : "asym", (int)p.d.group);
                run_case_with(label, block_run, &p, (i + bits) % LAYOUTS, false, compare_block);
            }
    finish_cases();
}

/* ---- GPTQ of a linear, by whichever factor the device has ---- */

typedef struct linear_case {
    int64_t out, in, group;
    bool act_order, static_groups;
} linear_case;

static void linear_run(run_ctx *c, const void *params)
{
    const linear_case *p = params;
    dq_weight_spec spec = {.bits = 4,
                           .method = DQ_WEIGHT_GPTQ,
                           .group = p->group,
                           .symmetric = true,
                           .percdamp = 0.01,
                           .act_order = p->act_order,
                           .static_groups = p->static_groups};
    double error = NAN, damping = NAN;
    dq_codes codes = {0};
    made *x = make_random(c, DQ_F32, 2 * p->in, p->in), *h = make_constant(c, DQ_F32, p->in, p->in, 0);
    made *w = make_random(c, DQ_F32, p->out, p->in);
    must(dq_op_syrk(1, &x->view, 0, &h->view));
    must(dq_quantize_linear(&spec, &w->view, &h->view, &codes, &error, &damping));
    dq_codes_free(&codes);
    keep_number(c, "error", error, band_of("gptq", "error of a linear"), 1);
}

static void gptq_linear(void **state)
{
    (void)state;
    static const linear_case cases[] = {{24, 300, -1, false, false}, {24, 300, 32, false, false},
                                        {17, 390, 128, true, false}, {24, 300, 64, true, true},
                                        {9, 300, 100, true, false},  {5, 128, 16, false, false},
                                        {8, 257, -1, true, false}};
    for (size_t i = 0; i < sizeof cases / sizeof *cases; i++) {
        char label[100];
        snprintf(label, sizeof label, "GPTQ of %d x %d, groups of %d%s%s", (int)cases[i].out, (int)cases[i].in,
                 (int)cases[i].group, cases[i].act_order ? ", reordered" : "",
                 cases[i].static_groups ? ", static" : "");
        run_case(label, linear_run, &cases[i], 0);
    }
    finish_cases();
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(fake_quant),
        cmocka_unit_test(hadamard),
        cmocka_unit_test(syrk),
        cmocka_unit_test(gptq_factor),
        cmocka_unit_test(gptq_factor_reports_pivot),
        cmocka_unit_test(gptq_linear),
        cmocka_unit_test(qr),
        cmocka_unit_test(weights),
        cmocka_unit_test(weight_search),
        cmocka_unit_test(gptq_block),
    };
    return cmocka_run_group_tests_name("conformance: quantization", tests, open_all, close_all);
}
