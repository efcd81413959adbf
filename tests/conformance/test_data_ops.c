/* Conformance of elementwise ops, data movement and reductions. SPDX-License-Identifier: Apache-2.0 */
#include "pair.h"

typedef struct shape_case {
    int64_t rows, cols;
    dq_dtype dtype, to;
} shape_case;

static const int64_t shapes[][2] = {{1, 1}, {1, 7}, {3, 17}, {5, 64}, {33, 129}, {0, 5}, {4, 0}, {2, 1031}, {40, 1031}};
enum { SHAPES = sizeof shapes / sizeof shapes[0] };
static const dq_dtype floats[] = {DQ_F32, DQ_F64, DQ_F16, DQ_BF16};

/* Runs fn over all shapes and layouts for one dtype pair. */
static void over_shapes(const char *op, case_fn fn, dq_dtype dtype, dq_dtype to)
{
    for (int i = 0; i < SHAPES; i++)
        for (int layout = 0; layout < LAYOUTS; layout++) {
            shape_case p = {shapes[i][0], shapes[i][1], dtype, to};
            char label[100];
            snprintf(label, sizeof label, "%s %s -> %s [%d, %d]", op, dq_dtype_name(dtype), dq_dtype_name(to),
                     (int)p.rows, (int)p.cols);
            run_case(label, fn, &p, layout);
        }
}

static const char *float_name(dq_dtype t) { return t == DQ_F64 ? "f64" : "f32"; }

static void fill_case(run_ctx *c, const void *params)
{
    const shape_case *p = params;
    made *y = make_constant(c, p->dtype, p->rows, p->cols, 3);
    bool integer = p->dtype == DQ_U8 || p->dtype == DQ_I32;
    must(dq_op_fill(integer ? 201 : 1.0 / 3, &y->view));
    keep(c, "y", y, band_of("fill", "any"), 1);
    if (integer) return;
    made *z = make_constant(c, p->dtype, p->rows, p->cols, 3);
    must(dq_op_fill(-INFINITY, &z->view));
    keep(c, "z", z, band_of("fill", "any"), 1);
}

static void fill(void **state)
{
    (void)state;
    static const dq_dtype types[] = {DQ_F32, DQ_F64, DQ_F16, DQ_BF16, DQ_U8, DQ_I32};
    for (size_t i = 0; i < sizeof types / sizeof types[0]; i++) over_shapes("fill", fill_case, types[i], types[i]);
    finish_cases();
}

/* Values where rounding is delicate: ties, double rounding, subnormals of the 16-bit types, overflow, NaN. */
static double delicate(run_ctx *c, int64_t i)
{
    static const double special[] = {0.0,
                                     -0.0,
                                     INFINITY,
                                     -INFINITY,
                                     NAN,
                                     65504,
                                     65519.99,
                                     65520,
                                     1e39,
                                     -1e39,
                                     1e-8,
                                     6e-8,
                                     3e-8,
                                     2.98023223876953125e-8,
                                     1 + 0x1p-11,
                                     1 + 3 * 0x1p-11,
                                     1 + 0x1p-8,
                                     1 + 3 * 0x1p-8,
                                     1 + 0x1p-11 + 0x1p-40,
                                     1 + 0x1p-8 + 0x1p-40,
                                     1e-40,
                                     1e-310};
    if (i % 3 == 0) return special[(i / 3) % (int64_t)(sizeof special / sizeof special[0])];
    return next_uniform(c) * ldexp(1.0, (int)next_below(c, 40) - 20) * (1 + 0x1p-30);
}

static void convert_case(run_ctx *c, const void *params)
{
    const shape_case *p = params;
    double *values = malloc((size_t)(p->rows * p->cols) * sizeof *values + 8);
    bool integer = p->dtype == DQ_U8 || p->dtype == DQ_I32;
    for (int64_t i = 0; i < p->rows * p->cols; i++) values[i] = integer ? (double)next_below(c, 256) : delicate(c, i);
    made *x = make_values(c, p->dtype, p->rows, p->cols, values);
    made *y = make_constant(c, p->to, p->rows, p->cols, 3);
    free(values);
    must(dq_op_convert(&x->view, &y->view));
    keep(c, "y", y, band_of("convert", "any"), 1);
}

static void convert(void **state)
{
    (void)state;
    for (int i = 0; i < 4; i++)
        for (int j = 0; j < 4; j++) over_shapes("convert", convert_case, floats[i], floats[j]);
    over_shapes("convert", convert_case, DQ_U8, DQ_U8);
    over_shapes("convert", convert_case, DQ_I32, DQ_I32);
    finish_cases();
}

static void axpy_case(run_ctx *c, const void *params)
{
    const shape_case *p = params;
    const band *b = band_of("axpy", float_name(p->dtype));
    made *x = make_random(c, p->dtype, p->rows, p->cols);
    made *row = make_random(c, p->dtype, 1, p->cols);
    made *y = make_random(c, p->dtype, p->rows, p->cols);
    must(dq_op_axpy(-0.7, &x->view, &y->view));
    keep(c, "y", y, b, 1.7);
    must(dq_op_axpy(1.0, &row->view, &y->view));
    keep(c, "y + row", y, b, 4.4);
}

static void axpy(void **state)
{
    (void)state;
    over_shapes("axpy", axpy_case, DQ_F32, DQ_F32);
    over_shapes("axpy", axpy_case, DQ_F64, DQ_F64);
    finish_cases();
}

static void scale_cols_case(run_ctx *c, const void *params)
{
    const shape_case *p = params;
    const band *b = band_of("scale_cols", float_name(p->dtype));
    made *x = make_random(c, p->dtype, p->rows, p->cols);
    made *v = make_random(c, p->dtype, 1, p->cols);
    made *y = make_constant(c, p->dtype, p->rows, p->cols, NAN);
    must(dq_op_scale_cols(&x->view, &v->view, &y->view));
    keep(c, "y", y, b, 1);
    must(dq_op_scale_cols(&x->view, &v->view, &x->view));
    keep(c, "in place", x, b, 1);
}

static void scale_cols(void **state)
{
    (void)state;
    over_shapes("scale_cols", scale_cols_case, DQ_F32, DQ_F32);
    over_shapes("scale_cols", scale_cols_case, DQ_F64, DQ_F64);
    finish_cases();
}

static void gather_case(run_ctx *c, const void *params)
{
    const shape_case *p = params;
    int64_t from_rows = 11, from_cols = 13;
    made *x = make_random(c, p->dtype, from_rows, p->cols);
    made *rows = make_index(c, p->rows, from_rows);
    made *y = make_constant(c, p->dtype, p->rows, p->cols, 3);
    must(dq_op_gather_rows(&x->view, &rows->view, &y->view));
    keep(c, "rows", y, band_of("gather", "any"), 1);
    made *w = make_random(c, p->dtype, p->rows, from_cols);
    made *cols = make_index(c, p->cols, from_cols);
    made *z = make_constant(c, p->dtype, p->rows, p->cols, 3);
    must(dq_op_gather_cols(&w->view, &cols->view, &z->view));
    keep(c, "cols", z, band_of("gather", "any"), 1);
}

static void gather(void **state)
{
    (void)state;
    static const dq_dtype types[] = {DQ_F32, DQ_F64, DQ_BF16, DQ_U8, DQ_I32};
    for (size_t i = 0; i < sizeof types / sizeof types[0]; i++) over_shapes("gather", gather_case, types[i], types[i]);
    finish_cases();
}

/* A device with a queue may see a bad index late, but never hands out the result. */
static void refused_now_or_later(dq_status status, const dq_tensor *y)
{
    float out[4];
    if (status == DQ_OK) status = dq_tensor_download(y, out);
    assert_int_equal(status, DQ_E_INVALID);
    assert_non_null(strstr(dq_error_text(), "index["));
}

static void gather_refuses_bad_index(void **state)
{
    (void)state;
    float x[6] = {0};
    static const int32_t bad[][2] = {{0, 2}, {-1, 0}, {1, INT32_MAX}};
    for (int t = -1; t < target_count; t++)
        for (int i = 0; i < 3; i++) {
            dq_device *dev = t < 0 ? reference : targets[t][1].dev;
            dq_tensor a, index, y;
            must(dq_tensor_from_host(dev, DQ_F32, 2, 2, x, &a));
            must(dq_tensor_from_host(dev, DQ_I32, 1, 2, bad[i], &index));
            must(dq_tensor_alloc(dev, DQ_F32, 2, 2, &y));
            refused_now_or_later(dq_op_gather_rows(&a, &index, &y), &y);
            refused_now_or_later(dq_op_gather_cols(&a, &index, &y), &y);
            dq_tensor_free(&a);
            dq_tensor_free(&index);
            dq_tensor_free(&y);
        }
}

static void nonfinite_case(run_ctx *c, const void *params)
{
    const shape_case *p = params;
    int64_t n = p->rows * p->cols;
    double *values = random_values(c, n);
    for (int round = 0; round < 3; round++) {
        static const char *const names[] = {"finite", "one", "two"};
        if (round > 0 && n > 0) values[next_below(c, n)] = round == 1 ? -INFINITY : NAN;
        made *x = make_values(c, p->dtype, p->rows, p->cols, values);
        int64_t at = -5;
        must(dq_op_find_nonfinite(&x->view, &at));
        keep_number(c, names[round], (double)at, band_of("find_nonfinite", "any"), 1);
    }
    free(values);
}

static void find_nonfinite(void **state)
{
    (void)state;
    for (int i = 0; i < 4; i++) over_shapes("find_nonfinite", nonfinite_case, floats[i], floats[i]);
    finish_cases();
}

static void dot_case(run_ctx *c, const void *params)
{
    const shape_case *p = params;
    made *x = make_random(c, p->dtype, p->rows, p->cols);
    made *y = make_random(c, p->dtype, p->rows, p->cols);
    double sum = -5;
    must(dq_op_dot(&x->view, &y->view, &sum));
    keep_number(c, "dot", sum, band_of("dot", float_name(p->dtype)), (double)(p->rows * p->cols));
}

static void dot(void **state)
{
    (void)state;
    over_shapes("dot", dot_case, DQ_F32, DQ_F32);
    over_shapes("dot", dot_case, DQ_F64, DQ_F64);
    finish_cases();
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(fill),       cmocka_unit_test(convert),        cmocka_unit_test(axpy),
        cmocka_unit_test(scale_cols), cmocka_unit_test(gather),         cmocka_unit_test(gather_refuses_bad_index),
        cmocka_unit_test(dot),        cmocka_unit_test(find_nonfinite),
    };
    return cmocka_run_group_tests_name("conformance: data", tests, open_all, close_all);
}
