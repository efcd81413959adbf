/* Conformance of ops that are two others in one pass: the same bits as the two, on whatever device, and no fallback.
 * SPDX-License-Identifier: Apache-2.0 */
#include "pair.h"

typedef struct fused_case {
    int64_t rows, blocks, n, k; /* cols = blocks * n; k == 0: an RMS norm, -1: a layer norm */
    int64_t group;
    int bits, symmetric;
    bool whole; /* shapes that a device with the slot has to serve itself */
} fused_case;

/* y = fused, z = one after the other, z - y = 0. */
static void keep_difference(run_ctx *c, made *y, made *z)
{
    must(dq_op_axpy(-1, &y->view, &z->view));
    keep(c, "two ops less one", z, band_of("fused", "f32"), 1);
}

/* Counters of the device before the fused call, between, and after the two. */
typedef struct counts {
    uint64_t ops[3], fallbacks[3];
} counts;

static void count(const run_ctx *c, counts *n, int at)
{
    n->ops[at] = dq_device_get_counters(c->dev)->ops;
    n->fallbacks[at] = dq_device_fallbacks(c->dev);
}

/* A device without the slot takes the two ops; that is no fallback of its own. */
static void check_counts(const run_ctx *c, const fused_case *p, const counts *n)
{
    uint64_t fused = n->ops[1] - n->ops[0], two = n->ops[2] - n->ops[1];
    bool one = p->whole && p->rows > 0 && strcmp(dq_device_backend(c->dev), "cuda") == 0;
    if (one)
        assert_int_equal(fused, 1);
    else
        assert_true(fused == two || fused == 1);
    assert_true(n->fallbacks[1] - n->fallbacks[0] <= n->fallbacks[2] - n->fallbacks[1]);
}

static dq_fake_quant_desc grid_of(const fused_case *p)
{
    return (dq_fake_quant_desc){p->bits, p->symmetric, p->group, 0.9f, p->group == p->blocks * p->n};
}

static void fused_norm(const fused_case *p, const dq_tensor *x, const dq_tensor *w, const dq_tensor *b, dq_tensor *y)
{
    dq_fake_quant_desc d = grid_of(p);
    must(p->k ? dq_op_layernorm_quant(x, w, b, 1e-5, &d, y) : dq_op_rmsnorm_quant(x, w, 1e-5, &d, y));
}

static void norm_run(run_ctx *c, const void *params)
{
    const fused_case *p = params;
    dq_fake_quant_desc d = grid_of(p);
    made *x = make_random(c, DQ_F32, p->rows, p->n), *weight = make_random(c, DQ_F32, 1, p->n);
    made *bias = make_random(c, DQ_F32, 1, p->n);
    made *y = make_constant(c, DQ_F32, p->rows, p->n, NAN), *z = make_constant(c, DQ_F32, p->rows, p->n, NAN);
    for (int weighted = 0; weighted < 2; weighted++) {
        const dq_tensor *w = weighted ? &weight->view : NULL, *b = weighted ? &bias->view : NULL;
        counts n;
        count(c, &n, 0);
        fused_norm(p, &x->view, w, b, &y->view);
        count(c, &n, 1);
        must(p->k ? dq_op_layernorm(&x->view, w, b, 1e-5, &z->view) : dq_op_rmsnorm(&x->view, w, 1e-5, &z->view));
        must(dq_op_fake_quant(&d, &z->view, &z->view));
        count(c, &n, 2);
        check_counts(c, p, &n);
        keep_difference(c, y, z);
    }
    fused_norm(p, &y->view, NULL, NULL, &z->view); /* and again, of values on a grid */
    fused_norm(p, &y->view, NULL, NULL, &y->view);
    keep_difference(c, y, z);
}

static void hadamard_run(run_ctx *c, const void *params)
{
    const fused_case *p = params;
    dq_fake_quant_desc d = grid_of(p);
    int8_t *hk = malloc((size_t)(p->k * p->k));
    for (int64_t i = 0; i < p->k * p->k; i++) hk[i] = next_below(c, 2) ? 1 : -1;
    dq_hadamard_desc h = {p->n, p->k, p->k > 1 ? hk : NULL, 1, 0, (int32_t)(p->rows % 2), 1 / sqrt((double)p->n)};
    int64_t cols = p->blocks * p->n;
    made *x = make_random(c, DQ_F32, p->rows, cols);
    made *y = make_constant(c, DQ_F32, p->rows, cols, NAN), *z = make_constant(c, DQ_F32, p->rows, cols, NAN);
    counts n;
    count(c, &n, 0);
    must(dq_op_hadamard_quant(&h, &d, &x->view, &y->view));
    count(c, &n, 1);
    must(dq_op_hadamard(&h, &x->view, &z->view));
    must(dq_op_fake_quant(&d, &z->view, &z->view));
    count(c, &n, 2);
    check_counts(c, p, &n);
    keep_difference(c, y, z);
    must(dq_op_hadamard_quant(&h, &d, &x->view, &x->view));
    must(dq_op_axpy(-1, &x->view, &y->view));
    keep(c, "in place", y, band_of("fused", "f32"), 1);
    free(hk);
}

static void run_cases(const char *name, case_fn run, const fused_case *cases, size_t count)
{
    static const int bits[] = {4, 8, 3};
    for (size_t i = 0; i < count; i++)
        for (int layout = 0; layout < LAYOUTS; layout++) {
            fused_case p = cases[i];
            p.bits = bits[(i + (size_t)layout) % 3];
            p.symmetric = (int)(i + (size_t)layout) % 2;
            char label[120];
            snprintf(label, sizeof label, "%s [%d, %d x %d] table %d group %d bits %d %s", name, (int)p.rows,
                     (int)p.blocks, (int)p.n, (int)p.k, (int)p.group, p.bits, p.symmetric ? "sym" : "asym");
            run_case(label, run, &p, layout);
        }
    finish_cases();
}

static void norms(const char *name, int64_t k)
{
    fused_case cases[] = {
        {5, 1, 64, k, 64, 0, 0, true}, {3, 1, 577, k, 577, 0, 0, true},     {7, 1, 4096, k, 4096, 0, 0, true},
        {4, 1, 96, k, 32, 0, 0, true}, {2, 1, 30, k, 10, 0, 0, true},       {0, 1, 8, k, 8, 0, 0, true},
        {1, 1, 1, k, 1, 0, 0, true},   {2, 1, 12288, k, 12288, 0, 0, true},
    };
    run_cases(name, norm_run, cases, sizeof cases / sizeof cases[0]);
}

static void rmsnorm_quant(void **state)
{
    (void)state;
    norms("rmsnorm_quant", 0);
}

static void layernorm_quant(void **state)
{
    (void)state;
    norms("layernorm_quant", -1);
}

static void hadamard_quant(void **state)
{
    (void)state;
    static const fused_case cases[] = {
        {3, 5, 64, 1, 64, 0, 0, true},      {2, 1, 4096, 1, 4096, 0, 0, true}, {35, 4, 128, 1, 128, 0, 0, true},
        {2, 1, 8192, 1, 8192, 0, 0, true},  {3, 1, 448, 28, 448, 0, 0, true},  {1, 2, 1536, 12, 1536, 0, 0, true},
        {2, 1, 7168, 28, 7168, 0, 0, true}, {3, 2, 64, 1, 128, 0, 0, false},   {2, 1, 11008, 172, 11008, 0, 1, true},
        {2, 1, 688, 172, 688, 0, 0, false}, {3, 1, 64, 1, 16, 0, 0, false},    {0, 1, 64, 1, 64, 0, 0, true},
        {5, 3, 16, 1, 16, 0, 0, false},
    };
    run_cases("hadamard_quant", hadamard_run, cases, sizeof cases / sizeof cases[0]);
}

int main(void)
{
    const struct CMUnitTest tests[] = {cmocka_unit_test(rmsnorm_quant), cmocka_unit_test(layernorm_quant),
                                       cmocka_unit_test(hadamard_quant)};
    return cmocka_run_group_tests_name("conformance: fused ops", tests, open_all, close_all);
}
