/* Rows of integer codes and their exact products: equal to the bit on every device that has them, and to what fake_quant and
 * a product in fp64 give. SPDX-License-Identifier: Apache-2.0 */
#include "pair.h"

/* A CPU without the ops has nobody to take them over: its devices may not use the host. Nothing is kept, nothing compared. */
static bool is_left_out(const run_ctx *c)
{
    return strcmp(dq_device_backend(c->dev), "cpu") == 0 && !dq_device_has_integers(c->dev);
}

static bool nothing_kept(const outputs *want, const outputs *got, bool *ok)
{
    (void)want;
    *ok = true;
    return got->count == 0;
}

/* ---- codes ---- */

typedef struct rows_case {
    int64_t rows, cols;
    int bits, symmetric;
    float clip;
    enum { PLAIN, POSITIVE, EQUAL, ZEROS, TINY, HUGE_ONES, NOT_FINITE } kind;
} rows_case;

static double value_of(const rows_case *p, double x, int64_t i)
{
    switch (p->kind) {
        case POSITIVE: return x + 3;
        case EQUAL: return 0.3f;
        case ZEROS: return 0;
        case TINY: return (double)((i % 3) * 1.4e-45f);
        case HUGE_ONES: return x * 3.3e38;
        case NOT_FINITE: return i % 7 == 3 ? (i % 2 ? NAN : -INFINITY) : x;
        default: return x;
    }
}

/* scale * (code - zero) is what fake_quant gives, on the device itself; the sum is that of the codes. */
static void check_values(run_ctx *c, const dq_fake_quant_desc *d, const made *x, const made *codes, const made *grid)
{
    int64_t rows = x->view.view.rows, cols = x->view.view.cols;
    made *y = make_constant(c, DQ_F32, rows, cols, NAN);
    int8_t *q = malloc((size_t)(rows * cols));
    float *g = malloc((size_t)rows * 3 * sizeof *g), *want = malloc((size_t)(rows * cols) * sizeof *want);
    must(dq_op_fake_quant(d, &x->view, &y->view));
    must(dq_tensor_download(&codes->view, q));
    must(dq_tensor_download(&grid->view, g));
    must(dq_tensor_download(&y->view, want));
    for (int64_t r = 0; r < rows; r++) {
        int64_t sum = 0;
        for (int64_t k = 0; k < cols; k++) {
            float got = g[3 * r] * ((float)q[r * cols + k] - g[3 * r + 1]), wanted = want[r * cols + k];
            sum += q[r * cols + k];
            assert_true(got == wanted || (isnan(g[3 * r]) && isnan(got)) || (isnan(got) && isnan(wanted)) ||
                        (fabsf(wanted) < 1e-42f && got == 0));
        }
        assert_true((float)sum == g[3 * r + 2]);
    }
    free(q);
    free(g);
    free(want);
}

static void rows_run(run_ctx *c, const void *params)
{
    const rows_case *p = params;
    if (is_left_out(c)) return;
    double *values = random_values(c, p->rows * p->cols);
    for (int64_t i = 0; i < p->rows * p->cols; i++) values[i] = value_of(p, values[i], i);
    made *x = make_values(c, DQ_F32, p->rows, p->cols, values);
    free(values);
    made *codes = make_constant(c, DQ_I8, p->rows, p->cols, 5), *grid = make_constant(c, DQ_F32, p->rows, 3, 9);
    dq_fake_quant_desc d = {p->bits, p->symmetric, p->cols, p->clip, !p->symmetric || p->rows % 2};
    must(dq_op_quantize_rows(&d, &x->view, &codes->view, &grid->view));
    keep(c, "codes", codes, band_of("quantize_rows", "any"), 1);
    keep(c, "grid", grid, band_of("quantize_rows", "any"), 1);
    if (p->rows > 0) check_values(c, &d, x, codes, grid);
}

static void quantize_rows(void **state)
{
    (void)state;
    static const rows_case cases[] = {
        {5, 64, 8, 0, 0.9f, PLAIN},     {3, 577, 4, 1, 1, PLAIN},    {4, 4096, 4, 0, 1, PLAIN},
        {2, 1028, 8, 1, 0.7f, PLAIN},   {1, 1, 8, 0, 1, PLAIN},      {2, 3, 2, 1, 1, PLAIN},
        {7, 100, 3, 0, 1, POSITIVE},    {6, 100, 8, 1, 1, POSITIVE}, {3, 40, 4, 0, 1, EQUAL},
        {3, 40, 8, 1, 1, ZEROS},        {3, 40, 8, 0, 1, ZEROS},     {2, 36, 8, 0, 0.5f, TINY},
        {2, 36, 8, 1, 1, TINY},         {3, 48, 8, 0, 1, HUGE_ONES}, {3, 48, 8, 1, 1, HUGE_ONES},
        {3, 48, 4, 0, 1, NOT_FINITE},   {4, 2, 4, 1, 1, NOT_FINITE}, {0, 8, 4, 1, 1, PLAIN},
        {1, 131071, 8, 0, 1, POSITIVE}, {1, 131068, 8, 1, 1, PLAIN},
    };
    for (size_t i = 0; i < sizeof cases / sizeof cases[0]; i++)
        for (int layout = 0; layout < LAYOUTS; layout++) {
            const rows_case *p = &cases[i];
            char label[120];
            snprintf(label, sizeof label, "quantize_rows [%d, %d] bits %d %s kind %d", (int)p->rows, (int)p->cols,
                     p->bits, p->symmetric ? "sym" : "asym", (int)p->kind);
            run_case_with(label, rows_run, p, layout, false, nothing_kept);
        }
    finish_cases();
}

/* ---- in one pass ---- */

typedef struct fused_case {
    enum { RMS, LAYER, HADAMARD } kind;
    int64_t rows, cols, k;
    int bits, symmetric;
    bool whole; /* served by a device that has the slot; always so behind norms */
} fused_case;

static uint64_t ops_of(const run_ctx *c) { return dq_device_get_counters(c->dev)->ops; }

/* What two ops give, less what one gives, is nothing. */
static void keep_nothing(run_ctx *c, const made *codes, const made *grid, const made *codes2, made *grid2)
{
    int64_t rows = codes->view.view.rows, cols = codes->view.view.cols;
    int8_t *a = malloc((size_t)(rows * cols)), *b = malloc((size_t)(rows * cols));
    must(dq_tensor_download(&codes->view, a));
    must(dq_tensor_download(&codes2->view, b));
    assert_memory_equal(a, b, (size_t)(rows * cols));
    must(dq_op_axpy(-1, &grid->view, &grid2->view));
    keep(c, "grid of two ops less that of one", grid2, band_of("fused", "f32"), 1);
    free(a);
    free(b);
}

static void fused_run(run_ctx *c, const void *params)
{
    const fused_case *p = params;
    if (is_left_out(c)) return;
    made *x = make_random(c, DQ_F32, p->rows, p->cols), *weight = make_random(c, DQ_F32, 1, p->cols);
    made *bias = make_random(c, DQ_F32, 1, p->cols), *between = make_constant(c, DQ_F32, p->rows, p->cols, 3);
    made *codes[2], *grid[2];
    int8_t *hk = malloc((size_t)(p->k * p->k) + 1);
    for (int64_t i = 0; i < p->k * p->k; i++) hk[i] = next_below(c, 2) ? 1 : -1;
    dq_hadamard_desc h = {p->cols, p->k ? p->k : 1, p->k > 1 ? hk : NULL, 1, 0, 0, 1 / sqrt((double)p->cols)};
    dq_fake_quant_desc d = {p->bits, p->symmetric, p->cols, 0.9f, 1};
    for (int i = 0; i < 2; i++) {
        codes[i] = make_constant(c, DQ_I8, p->rows, p->cols, 5);
        grid[i] = make_constant(c, DQ_F32, p->rows, 3, 9);
    }
    uint64_t before = ops_of(c), fallbacks = dq_device_fallbacks(c->dev);
    if (p->kind == RMS)
        must(dq_op_rmsnorm_rows(&x->view, p->rows % 2 ? &weight->view : NULL, 1e-5, &d, &between->view, &codes[0]->view,
                                &grid[0]->view));
    else if (p->kind == LAYER)
        must(dq_op_layernorm_rows(&x->view, &weight->view, p->rows % 2 ? &bias->view : NULL, 1e-5, &d, &between->view,
                                  &codes[0]->view, &grid[0]->view));
    else
        must(dq_op_hadamard_rows(&h, &d, &x->view, &between->view, &codes[0]->view, &grid[0]->view));
    bool cuda = strcmp(dq_device_backend(c->dev), "cuda") == 0;
    if (p->rows > 0) assert_int_equal(ops_of(c) - before, cuda && p->whole ? 1 : 2);
    if (cuda) assert_int_equal(dq_device_fallbacks(c->dev), fallbacks);
    if (p->kind == RMS)
        must(dq_op_rmsnorm(&x->view, p->rows % 2 ? &weight->view : NULL, 1e-5, &between->view));
    else if (p->kind == LAYER)
        must(dq_op_layernorm(&x->view, &weight->view, p->rows % 2 ? &bias->view : NULL, 1e-5, &between->view));
    else
        must(dq_op_hadamard(&h, &x->view, &between->view));
    if (p->rows > 0) must(dq_op_quantize_rows(&d, &between->view, &codes[1]->view, &grid[1]->view));
    if (p->rows > 0) keep_nothing(c, codes[0], grid[0], codes[1], grid[1]);
    free(hk);
}

static void rows_in_one_pass(void **state)
{
    (void)state;
    static const fused_case cases[] = {
        {RMS, 5, 64, 0, 8, 0, true},        {RMS, 4, 577, 0, 4, 1, true},        {RMS, 3, 4096, 0, 4, 0, true},
        {RMS, 0, 8, 0, 8, 1, true},         {RMS, 1, 1, 0, 8, 0, true},          {LAYER, 5, 96, 0, 8, 0, true},
        {LAYER, 4, 31, 0, 3, 1, true},      {LAYER, 3, 2052, 0, 8, 1, true},     {HADAMARD, 3, 64, 1, 8, 0, true},
        {HADAMARD, 70, 128, 1, 4, 1, true}, {HADAMARD, 2, 4096, 1, 8, 0, true},  {HADAMARD, 2, 8192, 1, 4, 1, true},
        {HADAMARD, 3, 448, 28, 8, 1, true}, {HADAMARD, 2, 7168, 28, 4, 0, true}, {HADAMARD, 2, 688, 172, 8, 0, false},
        {HADAMARD, 5, 16, 1, 8, 0, false},
    };
    for (size_t i = 0; i < sizeof cases / sizeof cases[0]; i++)
        for (int layout = 0; layout < LAYOUTS; layout++) {
            const fused_case *p = &cases[i];
            char label[120];
            snprintf(label, sizeof label, "rows of kind %d [%d, %d] table %d bits %d %s", (int)p->kind, (int)p->rows,
                     (int)p->cols, (int)p->k, p->bits, p->symmetric ? "sym" : "asym");
            run_case_with(label, fused_run, p, layout, false, nothing_kept);
        }
    finish_cases();
}

/* ---- products ---- */

typedef struct linear_case {
    int64_t rows, in, out;
    double beta;
    int zeros;    /* 0 = none, else up to so far from 0 */
    bool extreme; /* all codes are -128 */
} linear_case;

/* Codes, and a grid with their true sums. */
static void make_coded(run_ctx *c, const linear_case *p, int64_t rows, int64_t cols, made **codes, made **grid)
{
    double *q = malloc((size_t)(rows * cols) * sizeof *q + 8), *g = random_values(c, 3 * rows);
    for (int64_t i = 0; i < rows * cols; i++) q[i] = p->extreme ? -128 : (double)(next_below(c, 256) - 128);
    for (int64_t r = 0; r < rows; r++) {
        g[3 * r + 1] = p->zeros ? (double)(next_below(c, 2 * p->zeros + 1) - p->zeros) : 0;
        g[3 * r + 2] = 0;
        for (int64_t k = 0; k < cols; k++) g[3 * r + 2] += q[r * cols + k];
    }
    *codes = make_values(c, DQ_I8, rows, cols, q);
    *grid = make_values(c, DQ_F32, rows, 3, g);
    free(q);
    free(g);
}

static void linear_run(run_ctx *c, const void *params)
{
    const linear_case *p = params;
    if (is_left_out(c)) return;
    made *x, *x_grid, *w, *w_grid;
    make_coded(c, p, p->rows, p->in, &x, &x_grid);
    make_coded(c, p, p->out, p->in, &w, &w_grid);
    made *y = p->beta != 0 ? make_random(c, DQ_F32, p->rows, p->out) : make_constant(c, DQ_F32, p->rows, p->out, NAN);
    must(dq_op_int8_linear(p->beta, &x->view, &x_grid->view, &w->view, &w_grid->view, &y->view));
    keep(c, "y", y, band_of("int8_linear", "f32"), 1);
}

static void int8_linear(void **state)
{
    (void)state;
    static const linear_case cases[] = {
        {1, 1, 1, 0, 0, false},        {5, 64, 32, 0, 0, false},       {64, 128, 64, 1, 128, false},
        {65, 132, 68, 0, 255, false},  {3, 577, 33, -0.5, 128, false}, {130, 40, 200, 1, 20, false},
        {1, 4096, 8, 0, 128, false},   {7, 31, 129, 1, 255, false},    {200, 32, 4, 0, 0, false},
        {2, 131071, 2, 0, 0, true},    {4, 131068, 4, 1, 255, true},   {0, 16, 8, 0, 0, false},
        {16, 256, 100, 0, 128, false},
    };
    for (size_t i = 0; i < sizeof cases / sizeof cases[0]; i++)
        for (int layout = 0; layout < LAYOUTS; layout++) {
            const linear_case *p = &cases[i];
            if (p->extreme && layout > 0) continue; /* long rows take long where a card is played */
            char label[120];
            snprintf(label, sizeof label, "int8_linear %d x %d x %d, beta %g, zeros within %d%s", (int)p->rows,
                     (int)p->out, (int)p->in, p->beta, p->zeros, p->extreme ? ", all -128" : "");
            run_case_with(label, linear_run, p, layout, false, nothing_kept);
        }
    finish_cases();
}

/* More rows than a card takes at once: the same as those rows alone. */
static void many_rows(void **state)
{
    (void)state;
    enum { ROWS = 1100, SOME = 7, IN = 8, OUT = 8200 };
    for (int i = 0; i < target_count; i++) {
        dq_device *dev = targets[i][0].dev;
        if (!dq_device_has_integers(dev) || strcmp(dq_device_backend(dev), "farsim") == 0) continue;
        dq_tensor x, xg, w, wg, y, part;
        int8_t *codes = malloc(OUT * IN);
        float *grid = malloc(OUT * 3 * sizeof *grid), *all = malloc((size_t)ROWS * OUT * sizeof *all);
        float *last = malloc((size_t)SOME * OUT * sizeof *last);
        for (int k = 0; k < OUT * IN; k++) codes[k] = (int8_t)(k * 37 % 251 - 125);
        for (int r = 0; r < OUT; r++) {
            grid[3 * r] = 0.01f * (float)(r % 13);
            grid[3 * r + 1] = (float)(r % 5);
            grid[3 * r + 2] = 0;
            for (int k = 0; k < IN; k++) grid[3 * r + 2] += codes[r * IN + k];
        }
        must(dq_tensor_from_host(dev, DQ_I8, ROWS, IN, codes, &x));
        must(dq_tensor_from_host(dev, DQ_F32, ROWS, 3, grid, &xg));
        must(dq_tensor_from_host(dev, DQ_I8, OUT, IN, codes, &w));
        must(dq_tensor_from_host(dev, DQ_F32, OUT, 3, grid, &wg));
        must(dq_tensor_alloc(dev, DQ_F32, ROWS, OUT, &y));
        must(dq_tensor_alloc(dev, DQ_F32, SOME, OUT, &part));
        must(dq_op_int8_linear(0, &x, &xg, &w, &wg, &y));
        dq_tensor few = dq_tensor_rows(&x, ROWS - SOME, SOME), few_grid = dq_tensor_rows(&xg, ROWS - SOME, SOME);
        must(dq_op_int8_linear(0, &few, &few_grid, &w, &wg, &part));
        must(dq_tensor_download(&y, all));
        must(dq_tensor_download(&part, last));
        assert_memory_equal(all + (size_t)(ROWS - SOME) * OUT, last, (size_t)SOME * OUT * sizeof *last);
        dq_tensor *made_here[] = {&x, &xg, &w, &wg, &y, &part};
        for (size_t t = 0; t < sizeof made_here / sizeof *made_here; t++) dq_tensor_free(made_here[t]);
        free(codes);
        free(grid);
        free(all);
        free(last);
    }
}

/* The reference itself: quantized rows times quantized weights, against fp64 products of the floats they stand for. */
static void codes_are_floats(void **state)
{
    (void)state;
    enum { ROWS = 5, IN = 96, OUT = 7 };
    for (int symmetric = 0; symmetric < 2; symmetric++) {
        run_ctx c = {.dev = reference, .rng = 7};
        dq_fake_quant_desc d = {4, symmetric, IN, 0.9f, 1};
        made *x = make_random(&c, DQ_F32, ROWS, IN), *w = make_random(&c, DQ_F32, OUT, IN);
        made *xq = make_constant(&c, DQ_I8, ROWS, IN, 0), *wq = make_constant(&c, DQ_I8, OUT, IN, 0);
        made *xg = make_constant(&c, DQ_F32, ROWS, 3, 0), *wg = make_constant(&c, DQ_F32, OUT, 3, 0);
        made *y = make_constant(&c, DQ_F32, ROWS, OUT, NAN), *z = make_constant(&c, DQ_F32, ROWS, OUT, NAN);
        float got[ROWS * OUT], want[ROWS * OUT];
        must(dq_op_quantize_rows(&d, &x->view, &xq->view, &xg->view));
        must(dq_op_quantize_rows(&d, &w->view, &wq->view, &wg->view));
        must(dq_op_int8_linear(0, &xq->view, &xg->view, &wq->view, &wg->view, &y->view));
        must(dq_op_fake_quant(&d, &x->view, &x->view));
        must(dq_op_fake_quant(&d, &w->view, &w->view));
        must(dq_op_gemm(false, true, 1, &x->view, &w->view, 0, &z->view, DQ_MATH_F32));
        must(dq_tensor_download(&y->view, got));
        must(dq_tensor_download(&z->view, want));
        for (int i = 0; i < ROWS * OUT; i++) assert_true(fabsf(got[i] - want[i]) <= 4e-6f);
        for (int i = 0; i < c.tensor_count; i++) dq_tensor_free(&c.tensors[i].parent);
    }
}

/* What no device is asked. */
static void refused(void **state)
{
    (void)state;
    run_ctx c = {.dev = reference, .rng = 7};
    made *x = make_random(&c, DQ_F32, 2, 8), *codes = make_constant(&c, DQ_I8, 2, 8, 0);
    made *grid = make_constant(&c, DQ_F32, 2, 3, 0), *y = make_constant(&c, DQ_F32, 2, 2, 0);
    const dq_fake_quant_desc bad[] = {
        {9, 1, 8, 1, 1}, {8, 1, 4, 1, 1}, {8, 0, 8, 1, 0}, {1, 1, 8, 1, 1}, {8, 1, 8, 0, 1}};
    for (size_t i = 0; i < sizeof bad / sizeof *bad; i++)
        assert_int_equal(dq_op_quantize_rows(&bad[i], &x->view, &codes->view, &grid->view), DQ_E_INVALID);
    dq_fake_quant_desc d = {8, 1, 8, 1, 1};
    assert_int_equal(dq_op_quantize_rows(&d, &x->view, &x->view, &grid->view), DQ_E_INVALID);
    assert_int_equal(dq_op_quantize_rows(&d, &x->view, &codes->view, &y->view), DQ_E_INVALID);
    assert_int_equal(dq_op_int8_linear(NAN, &codes->view, &grid->view, &codes->view, &grid->view, &y->view),
                     DQ_E_INVALID);
    assert_int_equal(dq_op_int8_linear(0, &codes->view, &grid->view, &codes->view, &y->view, &y->view), DQ_E_INVALID);
    made *wide = make_constant(&c, DQ_I8, 1, DQ_INT8_COLUMNS + 1, 0), *one = make_constant(&c, DQ_F32, 1, 3, 0);
    made *number = make_constant(&c, DQ_F32, 1, 1, 0);
    assert_int_equal(dq_op_int8_linear(0, &wide->view, &one->view, &wide->view, &one->view, &number->view),
                     DQ_E_INVALID);
    assert_non_null(strstr(dq_error_text(), "131072 codes, 1 to 131071"));
    for (int i = 0; i < c.tensor_count; i++) dq_tensor_free(&c.tensors[i].parent);
}

int main(void)
{
    const struct CMUnitTest tests[] = {cmocka_unit_test(quantize_rows),    cmocka_unit_test(int8_linear),
                                       cmocka_unit_test(many_rows),        cmocka_unit_test(rows_in_one_pass),
                                       cmocka_unit_test(codes_are_floats), cmocka_unit_test(refused)};
    return cmocka_run_group_tests_name("conformance: products of integers", tests, open_all, close_all);
}
