/* Loss of rotated rows, and orthogonal factors of stacks of matrices: every device against the reference.
 * SPDX-License-Identifier: Apache-2.0 */
#include "pair.h"

/* ---- loss and gradient ---- */

typedef struct loss_case {
    dq_rotation_loss_desc d;
    int64_t rows;
    dq_dtype dtype;
    bool weighted;
    bool lattice; /* inputs whose products and sums are exact in fp32, so that codes and signs agree everywhere */
} loss_case;

/* Multiples of 1/8 up to 1, every fifth zero. */
static made *make_lattice(run_ctx *c, dq_dtype dtype, int64_t rows, int64_t cols)
{
    double *values = malloc((size_t)(rows * cols) * sizeof *values + 8);
    for (int64_t i = 0; i < rows * cols; i++)
        values[i] = next_below(c, 5) == 0 ? 0 : (double)(next_below(c, 17) - 8) / 8;
    made *m = make_values(c, dtype, rows, cols, values);
    free(values);
    return m;
}

/* Rows of very different size, one of zeros. */
static made *make_rows(run_ctx *c, const loss_case *p)
{
    int64_t cols = p->d.heads * p->d.n;
    double *values = random_values(c, p->rows * cols);
    for (int64_t i = 0; i < p->rows * cols; i++) values[i] *= i / cols == 3 ? 0 : 1 + (double)(i / cols % 5);
    made *m = make_values(c, p->dtype, p->rows, cols, values);
    free(values);
    return m;
}

/* Entries about as large as those of an orthogonal matrix. */
static made *make_stack(run_ctx *c, int64_t groups, int64_t n)
{
    double *values = random_values(c, groups * n * n);
    for (int64_t i = 0; i < groups * n * n; i++) values[i] *= sqrt(3.0 / (double)n);
    made *m = make_values(c, DQ_F32, groups * n, n, values);
    free(values);
    return m;
}

static void loss_run(run_ctx *c, const void *params)
{
    const loss_case *p = params;
    dq_rotation_loss_desc d = p->d;
    int64_t n = d.n, cols = d.heads * n;
    bool bf16 = d.math == DQ_MATH_BF16;
    if (c->alternate) d.math = DQ_MATH_F32;
    made *x = p->lattice ? make_lattice(c, p->dtype, p->rows, cols) : make_rows(c, p);
    made *r = p->lattice ? make_lattice(c, DQ_F32, d.groups * n, n) : make_stack(c, d.groups, n);
    made *weight = make_random(c, DQ_F32, 1, p->rows), *row_loss = make_constant(c, DQ_F32, 1, p->rows, NAN);
    made *grad = make_constant(c, DQ_F32, d.groups * n, n, NAN), *more = make_random(c, DQ_F32, d.groups * n, n);
    const dq_tensor *w = p->weighted ? &weight->view : NULL;
    double loss = NAN, alone = NAN, again = NAN;
    must(dq_op_rotation_loss(&d, &x->view, w, &r->view, NULL, &row_loss->view, &alone));
    must(dq_op_rotation_loss(&d, &x->view, w, &r->view, &grad->view, NULL, &loss));
    d.beta = -0.5;
    d.shift = 0.75;
    must(dq_op_rotation_loss(&d, &x->view, w, &r->view, &more->view, &row_loss->view, &again));
    double scale =
        fabs(d.scale) * sqrt((double)(p->rows * d.heads / d.groups) + 1) * (d.relative ? 1.0 / (double)cols : 1);
    if (d.kind == DQ_LOSS_RANGE)
        scale *= 1 + (double)d.group / 8; /* the slope at the ends of the range grows with it */
    const band *value = band_of("rotation_loss", bf16 ? "loss, bf16 math" : "loss");
    const band *slope = band_of("rotation_loss", bf16 ? "bf16 math" : "f32");
    double size = fabs(d.scale) * (double)(p->rows * cols) * (d.relative ? 1.0 / (double)cols : 1);
    keep_number(c, "loss", loss, value, size);
    keep_number(c, "loss without gradient", alone, value, size);
    keep_number(c, "loss with beta", again, value, size);
    keep(c, "row_loss", row_loss, value, d.relative ? 1 : (double)cols);
    keep(c, "grad", grad, slope, 5 * scale);
    keep(c, "grad with beta and shift", more, slope, 25 * scale + 1);
}

static void run_losses(const int64_t shapes[][4], int count, int64_t seed, bool every_kind)
{
    static const dq_dtype dtypes[] = {DQ_F32, DQ_BF16, DQ_F16};
    for (int i = 0; i < count; i++)
        for (int kind = 0; kind <= DQ_LOSS_SNAP; kind += every_kind ? 1 : DQ_LOSS_QUANT)
            for (int math = 0; math < 2; math++) {
                int64_t n = shapes[i][1], at = seed + i + kind + math;
                loss_case p = {.d = {.kind = kind,
                                     .math = math,
                                     .n = n,
                                     .heads = (int32_t)shapes[i][2],
                                     .groups = (int32_t)shapes[i][3],
                                     .group = at % 3 == 0   ? n
                                              : at % 3 == 1 ? n * shapes[i][2]
                                                            : (n % 2 ? n : n / 2),
                                     .bits = 3 + (int32_t)(at % 3),
                                     .symmetric = (int32_t)(at / 2 % 2),
                                     .clip = at % 2 ? 1 : 0.9f,
                                     .relative = (int32_t)(at % 2),
                                     .scale = 0.25 + 0.5 * (double)(at % 4)},
                               .rows = shapes[i][0],
                               .dtype = dtypes[at % 3],
                               .weighted = at % 3 == 1,
                               .lattice = kind >= DQ_LOSS_QUANT || at % 4 == 0};
                char label[120];
                snprintf(label, sizeof label, "rotation_loss %d [%d, %d x %d in %d] %s%s", kind, (int)p.rows, p.d.heads,
                         (int)n, p.d.groups, dq_dtype_name(p.dtype), math ? " bf16" : "");
                run_case_with(label, loss_run, &p, (int)(at % LAYOUTS), math == DQ_MATH_BF16, NULL);
            }
    finish_cases();
}

static void rotation_loss(void **state)
{
    (void)state;
    static const int64_t shapes[][4] = {{1, 1, 1, 1},   {0, 8, 2, 1},   {7, 16, 1, 1},  {5, 33, 2, 2},
                                        {70, 24, 6, 2}, {90, 40, 3, 3}, {19, 65, 4, 1}, {35, 128, 1, 1}};
    run_losses(shapes, 8, 0, true);
    run_losses(shapes, 8, 1, true);
}

/* How rows are cut in blocks, spans and chunks is the same for all kinds: Whip and one of groups. */
static void rotation_loss_larger(void **state)
{
    (void)state;
    static const int64_t shapes[][4] = {{530, 33, 1, 1}, {1100, 16, 2, 1}, {12, 289, 1, 1}};
    run_losses(shapes, 3, 2, false);
}

/* ---- orthogonal factors ---- */

typedef struct stack_case {
    int64_t groups, n;
    dq_dtype dtype;
    int math;
    double spread; /* around an orthogonal matrix; 0: 0.7 */
} stack_case;

/* Well conditioned: diagonally dominant after an exchange of columns. */
static made *make_conditioned(run_ctx *c, const stack_case *p)
{
    int64_t n = p->n;
    double *values = random_values(c, p->groups * n * n);
    for (int64_t i = 0; i < p->groups * n * n; i++) {
        int64_t row = i / n % n, col = i % n;
        values[i] = values[i] * (p->spread > 0 ? p->spread : 0.7) / sqrt((double)n) +
                    ((col + 1) % n == row ? (row % 2 ? 1 : -1) : 0);
    }
    made *m = make_values(c, p->dtype, p->groups * n, n, values);
    free(values);
    return m;
}

static void factor_run(run_ctx *c, const void *params)
{
    const stack_case *p = params;
    const char *type = p->dtype == DQ_F64 ? "f64" : "f32";
    int64_t rows = p->groups * p->n;
    made *a = make_conditioned(c, p), *dq = make_random(c, p->dtype, rows, p->n);
    made *q = make_constant(c, p->dtype, rows, p->n, NAN), *r = make_constant(c, p->dtype, rows, p->n, NAN);
    made *alone = make_constant(c, p->dtype, rows, p->n, NAN), *da = make_constant(c, p->dtype, rows, p->n, NAN);
    must(dq_op_qr_batch(p->groups, &a->view, &q->view, &r->view));
    must(dq_op_qr_batch(p->groups, &a->view, &alone->view, NULL));
    must(dq_op_qr_grad(p->groups, &q->view, &r->view, &dq->view, &da->view));
    keep(c, "q", q, band_of("qr", type), 1);
    keep(c, "r", r, band_of("qr", type), 1);
    keep(c, "q without r", alone, band_of("qr", type), 1);
    keep(c, "da", da, band_of("qr_grad", type), sqrt((double)p->n));
    keep(c, "a untouched", a, band_of("diag", "f32"), 1);
}

static void polar_run(run_ctx *c, const void *params)
{
    const stack_case *p = params;
    bool f64 = p->dtype == DQ_F64;
    made *a = make_conditioned(c, p), *u = make_constant(c, p->dtype, p->groups * p->n, p->n, NAN);
    double error = NAN;
    must(dq_op_polar(p->groups, p->math, &a->view, &u->view, &error));
    keep_number(c, "error", error, band_of("polar", f64 ? "error, f64" : "error"), 1);
    keep(c, "u", u, band_of("polar", f64 ? "f64" : p->math == DQ_MATH_BF16 ? "bf16 math" : "f32"), 1);
}

static void stacks(void **state)
{
    (void)state;
    static const int64_t sizes[][2] = {{1, 1}, {3, 2}, {2, 5}, {4, 33}, {3, 64}, {1, 128}, {1, 257}};
    for (int i = 0; i < 7; i++)
        for (int f64 = 0; f64 < 2; f64++) {
            stack_case p = {sizes[i][0], sizes[i][1], f64 ? DQ_F64 : DQ_F32, DQ_MATH_F32, 0};
            char label[80];
            snprintf(label, sizeof label, "%d x %s order %d", (int)p.groups, dq_dtype_name(p.dtype), (int)p.n);
            if (p.n < 100 || !f64)
                run_case(label, factor_run, &p, (i + f64) % LAYOUTS); /* the reference takes its time */
            run_case(label, polar_run, &p, (i + f64) % LAYOUTS);
            p.math = DQ_MATH_BF16;
            if (p.n < 64) run_case(label, polar_run, &p, (i + f64) % LAYOUTS);
            p.math = DQ_MATH_F32;
            p.spread = 0.1; /* as steps of learning leave it: some devices have a quicker way */
            for (int math = DQ_MATH_F32; math <= DQ_MATH_BF16 && p.n < 100; math++) {
                p.math = math;
                run_case(label, polar_run, &p, (i + f64) % LAYOUTS);
            }
        }
    finish_cases();
}

/* A matrix without a polar factor is reported, not returned. */
static void polar_of_singular(void **state)
{
    (void)state;
    float zero_row[9] = {1, 2, 3, 0, 0, 0, 4, 5, 7}, nan_at[9] = {1, 0, 0, 0, NAN, 0, 0, 0, 1};
    for (int t = -1; t < target_count; t++)
        for (int bad = 0; bad < 2; bad++) {
            dq_tensor a, u;
            double error = 0;
            must(dq_tensor_from_host(t < 0 ? reference : targets[t][1].dev, DQ_F32, 3, 3, bad ? nan_at : zero_row, &a));
            must(dq_tensor_alloc(a.dev, DQ_F32, 3, 3, &u));
            must(dq_op_polar(1, DQ_MATH_F32, &a, &u, &error));
            assert_true(isinf(error) && error > 0);
            dq_tensor_free(&a);
            dq_tensor_free(&u);
        }
}

/* ---- optimisers ---- */

/* Three steps from moments of zero, and one of a gradient that vanishes. */
static void adam_run(run_ctx *c, const void *params)
{
    const int64_t *shape = params;
    made *mean = make_constant(c, DQ_F32, shape[0], shape[1], 0);
    made *square = make_constant(c, DQ_F32, shape[0], shape[1], 0), *g = NULL;
    for (int t = 1; t <= 3; t++) {
        g = make_random(c, DQ_F32, shape[0], shape[1]);
        must(dq_op_adam(0.9, 0.999, sqrt(1 - pow(0.999, t)), 1e-8, &g->view, &mean->view, &square->view));
    }
    made *zero = make_constant(c, DQ_F32, shape[0], shape[1], 0),
         *still = make_constant(c, DQ_F32, shape[0], shape[1], 0);
    made *none = make_constant(c, DQ_F32, shape[0], shape[1], 0);
    must(dq_op_adam(0.9, 0.999, 1, 1e-8, &zero->view, &still->view, &none->view));
    keep(c, "direction", g, band_of("adam", "direction"), 1);
    keep(c, "mean", mean, band_of("adam", "moments"), 1);
    keep(c, "square", square, band_of("adam", "moments"), 1);
    keep(c, "no gradient", zero, band_of("fill", "any"), 1);
}

static void adam(void **state)
{
    (void)state;
    static const int64_t shapes[][2] = {{1, 1}, {3, 7}, {40, 40}, {2, 40000}, {257, 256}};
    for (int i = 0; i < 5; i++) {
        char label[40];
        snprintf(label, sizeof label, "adam [%d, %d]", (int)shapes[i][0], (int)shapes[i][1]);
        for (int layout = 0; layout < LAYOUTS; layout++) run_case(label, adam_run, shapes[i], layout);
    }
    finish_cases();
}

static void adam_refuses_nonsense(void **state)
{
    (void)state;
    dq_tensor a, b, wide;
    must(dq_tensor_alloc(reference, DQ_F32, 3, 4, &a));
    must(dq_tensor_alloc(reference, DQ_F32, 3, 4, &b));
    must(dq_tensor_alloc(reference, DQ_F64, 3, 4, &wide));
    assert_int_equal(dq_op_adam(0.9, 0.999, 1, 1e-8, &a, &b, &b), DQ_E_INVALID);
    assert_int_equal(dq_op_adam(0.9, 0.999, 1, 1e-8, &a, &b, &wide), DQ_E_INVALID);
    dq_tensor part = dq_tensor_rows(&wide, 0, 2);
    assert_int_equal(dq_op_adam(0.9, 0.999, 1, 1e-8, &a, &b, &part), DQ_E_INVALID);
    assert_int_equal(dq_op_adam(0.9, 1, 1, 1e-8, &a, &b, &wide), DQ_E_INVALID);
    assert_int_equal(dq_op_adam(0.9, 0.999, 0, 1e-8, &a, &b, &wide), DQ_E_INVALID);
    dq_tensor_free(&a);
    dq_tensor_free(&b);
    dq_tensor_free(&wide);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(adam),          cmocka_unit_test(adam_refuses_nonsense),
        cmocka_unit_test(rotation_loss), cmocka_unit_test(rotation_loss_larger),
        cmocka_unit_test(stacks),        cmocka_unit_test(polar_of_singular),
    };
    return cmocka_run_group_tests_name("conformance: fitting rotations", tests, open_all, close_all);
}
