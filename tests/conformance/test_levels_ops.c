/* Conformance of quantization to given levels: the reference's values everywhere. SPDX-License-Identifier: Apache-2.0 */
#include "pair.h"

typedef enum kind { PLAIN, COARSE, EQUAL, SPARSE, WITH_NAN, WITH_INF, TINY, HUGE_ONES, HALVES, KINDS } kind;

typedef struct levels_case {
    int64_t rows, cols;
    int levels;
    int per_row, keep;
    double outliers;
    int64_t seqlen;
    int sink;
    bool positions, norm;
    kind kind;
} levels_case;

static double value_of(const levels_case *p, double x, int64_t i)
{
    switch (p->kind) {
        case COARSE: return floor(x * 4) / 4; /* many equal ones, many on a threshold */
        case EQUAL: return p->per_row ? (double)(i / p->cols) - 1.5 : (double)(i % p->cols) - 1.5;
        case SPARSE: return i % 5 ? 0 : x; /* more than half at a threshold; both zeros */
        case WITH_NAN: return i % 37 == 11 ? NAN : x;
        case WITH_INF: return i % 29 == 7 ? INFINITY : i % 41 == 3 ? -INFINITY : x;
        case TINY: return x * 1e-44;
        case HUGE_ONES: return x * 1.6e38;
        case HALVES: return floor(x * 33) / 32; /* on the middles of uniform levels */
        default: return x;
    }
}

/* Two of three kinds of levels: uniform ones, and random ones in order, of which some are equal. */
static made *make_levels(run_ctx *c, const levels_case *p)
{
    double v[256], last = -1;
    for (int i = 0; i < p->levels; i++) {
        v[i] = p->kind % 2 ? last : -1 + 2.0 * i / (p->levels - 1);
        last += (double)next_below(c, 4) / p->levels;
    }
    return make_values(c, DQ_F32, 1, p->levels, v);
}

static made *make_range(run_ctx *c, const levels_case *p)
{
    double *v = random_values(c, 2 * p->cols);
    double scale = p->kind == TINY ? 1e-44 : p->kind == HUGE_ONES ? 1.6e38 : 1;
    for (int64_t k = 0; k < p->cols; k++) {
        double middle = p->kind == HALVES ? 0 : v[k] * 0.3, half = p->kind == HALVES ? 1 : fabs(v[p->cols + k]) * 0.7;
        if (k % 7 == 3) half = 0;
        v[k] = (middle - half) * scale;
        v[p->cols + k] = (middle + half) * scale;
        if (p->kind == EQUAL) v[k] = v[p->cols + k] = (double)k - 1.5;
        if (p->kind == WITH_INF && k % 11 == 5) v[p->cols + k] = INFINITY;
    }
    made *m = make_values(c, DQ_F32, 2, p->cols, v);
    free(v);
    return m;
}

static void levels_run(run_ctx *c, const void *params)
{
    const levels_case *p = params;
    double *values = random_values(c, p->rows * p->cols);
    for (int64_t i = 0; i < p->rows * p->cols; i++) values[i] = value_of(p, values[i], i);
    made *x = make_values(c, DQ_F32, p->rows, p->cols, values);
    free(values);
    made *levels = make_levels(c, p), *range = p->per_row ? NULL : make_range(c, p);
    made *position = p->positions ? make_index(c, p->rows, 2 * p->sink + 2) : NULL;
    made *y = make_constant(c, DQ_F32, p->rows, p->cols, NAN);
    dq_levels_quant_desc d = {.per_row = p->per_row,
                              .keep_outliers = p->keep,
                              .outliers = p->outliers,
                              .seqlen = p->seqlen,
                              .sink = p->sink,
                              .norm_scale = p->norm ? 1.0625f : 1,
                              .norm_offset = p->norm ? -0.03f : 0};
    const dq_tensor *r = range ? &range->view : NULL, *at = position ? &position->view : NULL;
    uint64_t ops = dq_device_get_counters(c->dev)->ops;
    must(dq_op_levels_quant(&d, &x->view, r, &levels->view, at, &y->view));
    assert_int_equal(dq_device_get_counters(c->dev)->ops, ops + (p->rows > 0));
    keep(c, "y", y, band_of("levels_quant", "f32"), 1);
    must(dq_op_levels_quant(&d, &x->view, r, &levels->view, at, &x->view));
    keep(c, "in place", x, band_of("levels_quant", "f32"), 1);
}

static void run_levels(const levels_case *p, int layout)
{
    char label[160];
    snprintf(label, sizeof label, "levels_quant [%d, %d] per %s, %d levels, outliers %g %s, sink %d/%d%s%s, kind %d",
             (int)p->rows, (int)p->cols, p->per_row ? "row" : "column", p->levels, p->outliers,
             p->keep ? "kept" : "held", p->sink, (int)p->seqlen, p->positions ? " by position" : "",
             p->norm ? ", Q-Norm" : "", (int)p->kind);
    run_case(label, levels_run, p, layout);
}

/* Every combination of what the descriptor says, the numbers of levels and the kinds of values turning with it. */
static void combinations(void **state)
{
    (void)state;
    static const int levels[] = {16, 4, 8, 2, 256, 5, 32, 100, 3, 64};
    static const int64_t cols[] = {37, 1, 130, 64, 20};
    int n = 0;
    for (int per_row = 0; per_row < 2; per_row++)
        for (int keep_them = 0; keep_them < 2; keep_them++)
            for (int sink = 0; sink < 3; sink++)
                for (int norm = 0; norm < 2; norm++)
                    for (int share = 0; share <= per_row * 2; share++, n++) {
                        static const double shares[] = {0, 0.1, 0.7};
                        levels_case p = {.rows = 5 + n % 3,
                                         .cols = cols[n % 5],
                                         .levels = levels[n % 10],
                                         .per_row = per_row,
                                         .keep = keep_them,
                                         .outliers = shares[share],
                                         .seqlen = sink ? 3 : 0,
                                         .sink = sink,
                                         .positions = n % 4 == 3,
                                         .norm = norm,
                                         .kind = (kind)(n % KINDS)};
                        run_levels(&p, n % LAYOUTS);
                    }
    finish_cases();
}

/* Every kind of values in rows and columns, with few outliers and with many. */
static void kinds(void **state)
{
    (void)state;
    static const double shares[] = {0, 0.01, 0.25, 0.999};
    for (int k = 0; k < KINDS; k++)
        for (int per_row = 0; per_row < 2; per_row++)
            for (int s = 0; s < (per_row ? 4 : 1); s++)
                for (int64_t cols = 1; cols < 300; cols = cols * 3 + 1) {
                    levels_case p = {4, cols, 16, per_row, (int)cols % 2, shares[s], 1, 0, false, false, (kind)k};
                    run_levels(&p, (k + s) % LAYOUTS);
                }
    finish_cases();
}

/* Widths at which devices choose another way, and the paper's settings. */
static void sizes(void **state)
{
    (void)state;
    static const levels_case cases[] = {
        {3, 1024, 8, 1, 1, 0.01, 1, 0, false, false, PLAIN},   {2, 4096, 16, 1, 1, 0.01, 4, 1, false, true, PLAIN},
        {2, 5000, 4, 1, 1, 0.01, 1, 0, false, true, PLAIN},    {2, 4097, 4, 1, 1, 0.01, 1, 0, false, false, PLAIN},
        {1, 20000, 8, 1, 0, 0.05, 1, 0, false, false, SPARSE}, {1, 9000, 8, 1, 1, 0, 1, 0, false, false, PLAIN},
        {70, 1024, 8, 0, 1, 0, 35, 1, false, false, PLAIN},    {9, 4099, 4, 0, 1, 0, 3, 1, false, true, PLAIN},
        {300, 12, 256, 0, 0, 0, 1, 0, false, false, PLAIN},    {500, 3, 256, 1, 1, 0.01, 1, 0, false, false, PLAIN},
        {3, 577, 4, 1, 1, 0.01, 1, 0, false, false, COARSE},   {2, 2048, 4, 1, 1, 0.01, 1, 0, false, false, SPARSE},
        {0, 64, 16, 1, 1, 0.01, 1, 0, false, false, PLAIN},    {0, 64, 16, 0, 1, 0, 1, 0, false, false, PLAIN},
        {2, 2048, 8, 1, 1, 1e-9, 1, 0, false, false, PLAIN},   {2, 201, 8, 1, 1, 0.01, 1, 0, false, false, PLAIN},
        {2, 2048, 8, 1, 0, 0.1, 1, 0, false, false, WITH_INF}, {3, 1500, 8, 1, 0, 0.01, 1, 0, false, false, COARSE},
    };
    for (size_t i = 0; i < sizeof cases / sizeof cases[0]; i++)
        for (int layout = 0; layout < LAYOUTS; layout++) run_levels(&cases[i], layout);
    finish_cases();
}

static dq_status refuse(run_ctx *c, dq_levels_quant_desc d, int levels, int64_t range_rows, bool replace_range)
{
    made *x = make_random(c, DQ_F32, 2, 6), *l = make_constant(c, DQ_F32, 1, levels, 0);
    made *range = range_rows ? make_constant(c, DQ_F32, range_rows, 6, 0) : NULL;
    made *at = make_index(c, 3, 2);
    return dq_op_levels_quant(&d, &x->view, range ? &range->view : NULL, &l->view, d.seqlen < 0 ? &at->view : NULL,
                              replace_range ? &range->view : &x->view);
}

static void refused_run(run_ctx *c, const void *params)
{
    (void)params;
    const dq_levels_quant_desc row = {1, 1, 0.01, 1, 0, 1, 0}, column = {0, 1, 0, 1, 0, 1, 0};
    dq_levels_quant_desc many = row, sink = row, loose = row, norm = row, at = row;
    many.outliers = 1;
    sink.sink = -1;
    loose.sink = 1;
    loose.seqlen = 0;
    norm.norm_scale = INFINITY;
    at.seqlen = -1;
    const struct {
        dq_levels_quant_desc d;
        int levels;
        int64_t range_rows;
        bool replaces;
        const char *text;
    } wrong[] = {{row, 4, 2, false, "per row, with a tensor range"},
                 {column, 4, 0, false, "without a tensor range"},
                 {column, 4, 3, false, "must be [2, 6]"},
                 {row, 1, 0, false, "1 levels, 2 to 256"},
                 {row, 257, 0, false, "257 levels"},
                 {many, 4, 0, false, "share of outliers of 1"},
                 {sink, 4, 0, false, "-1 sink tokens"},
                 {loose, 4, 0, false, "1 sink tokens in sequences of 0"},
                 {norm, 4, 0, false, "is not finite"},
                 {at, 4, 0, false, "position is [1, 3], must be [1, 2]"},
                 {column, 4, 2, true, "y cannot replace range"}};
    for (size_t i = 0; i < sizeof wrong / sizeof wrong[0]; i++) {
        for (int t = 0; t < c->tensor_count; t++) dq_tensor_free(&c->tensors[t].parent);
        c->tensor_count = 0;
        assert_int_equal(refuse(c, wrong[i].d, wrong[i].levels, wrong[i].range_rows, wrong[i].replaces), DQ_E_INVALID);
        if (!strstr(dq_error_text(), wrong[i].text)) fail_msg("%s: %s", wrong[i].text, dq_error_text());
    }
}

static void refusals(void **state)
{
    (void)state;
    run_case("levels_quant refuses", refused_run, NULL, 0);
    finish_cases();
}

int main(void)
{
    const struct CMUnitTest tests[] = {cmocka_unit_test(combinations), cmocka_unit_test(kinds), cmocka_unit_test(sizes),
                                       cmocka_unit_test(refusals)};
    return cmocka_run_group_tests_name("conformance: quantization to levels", tests, open_all, close_all);
}
