/* quant: what must hold for RTN and GPTQ of one linear by any implementation, and what they say to bad input.
 * SPDX-License-Identifier: Apache-2.0 */
#include <math.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <cmocka.h>

#include "base/rng.h"
#include "fixture.h"
#include "ok.h"
#include "quant/parts.h"
#include "refusing_heap.h"

/* ---- made-up problems ---- */

typedef struct problem {
    int64_t out, in;
    dq_tensor w, h;
} problem;

/* Correlated inputs: a few strong directions plus noise of uneven size. */
static void make_problem(fixture *f, int64_t out, int64_t in, problem *p)
{
    enum { TOKENS = 300, STRONG = 12 };
    dq_rng rng;
    dq_rng_seed_torch(&rng, 11);
    float *w = malloc((size_t)(out * in) * 4), *x = malloc((size_t)(TOKENS * in) * 4);
    double *mix = malloc((size_t)(STRONG * in) * 8), *size = malloc((size_t)in * 8);
    for (int64_t i = 0; i < out * in; i++) w[i] = (float)(0.05 * dq_rng_normal(&rng));
    for (int64_t i = 0; i < STRONG * in; i++) mix[i] = dq_rng_normal(&rng);
    for (int64_t i = 0; i < in; i++) size[i] = exp(0.8 * dq_rng_normal(&rng));
    for (int64_t t = 0; t < TOKENS; t++) {
        double z[STRONG];
        for (int k = 0; k < STRONG; k++) z[k] = dq_rng_normal(&rng);
        for (int64_t i = 0; i < in; i++) {
            double v = 0.7 * dq_rng_normal(&rng);
            for (int k = 0; k < STRONG; k++) v += z[k] * mix[k * in + i];
            x[t * in + i] = (float)(v * size[i]);
        }
    }
    dq_tensor xt;
    *p = (problem){.out = out, .in = in};
    OK(dq_tensor_from_host(f->dev, DQ_F32, out, in, w, &p->w));
    OK(dq_tensor_from_host(f->dev, DQ_F32, TOKENS, in, x, &xt));
    OK(dq_tensor_alloc(f->dev, DQ_F32, in, in, &p->h));
    OK(dq_op_fill(0, &p->h));
    OK(dq_op_syrk(1.0, &xt, 1.0, &p->h));
    dq_tensor_free(&xt);
    free(w), free(x), free(mix), free(size);
}

static void free_problem(problem *p)
{
    dq_tensor_free(&p->w);
    dq_tensor_free(&p->h);
}

static dq_tensor copy_of(const dq_tensor *t)
{
    dq_tensor c;
    OK(dq_tensor_alloc(t->dev, t->view.dtype, t->view.rows, t->view.cols, &c));
    OK(dq_op_convert(t, &c));
    return c;
}

static void solve(const dq_weight_spec *spec, const dq_tensor *w, const dq_tensor *h, dq_codes *codes, double *error,
                  double *damping)
{
    dq_tensor scratch = copy_of(w);
    OK(dq_quantize_linear(spec, &scratch, h, codes, error, damping));
    dq_tensor_free(&scratch);
}

static void assert_same_codes(const dq_codes *a, const dq_codes *b)
{
    const dq_tensor *x[] = {&a->codes, &a->scale, &a->zero}, *y[] = {&b->codes, &b->scale, &b->zero};
    for (int i = 0; i < 3; i++) {
        void *p = host_copy(x[i]), *q = host_copy(y[i]);
        assert_int_equal(x[i]->view.cols, y[i]->view.cols);
        assert_memory_equal(p, q, (size_t)(x[i]->view.rows * x[i]->view.cols) * dq_dtype_size(x[i]->view.dtype));
        free(p), free(q);
    }
}

/* tr(dW H dW^T) / tr(W H W^T) from the definition. */
static double true_error(const dq_tensor *w, const dq_tensor *h, const dq_codes *codes)
{
    dq_tensor d, product;
    double change, energy;
    OK(dq_tensor_alloc(w->dev, DQ_F32, codes->out, codes->in, &d));
    OK(dq_tensor_alloc(w->dev, DQ_F32, codes->out, codes->in, &product));
    OK(dq_codes_dequantize(codes, &d));
    OK(dq_op_axpy(-1.0, w, &d));
    OK(dq_hessian_energy(&d, h, DQ_MATH_F32, &product, &change));
    OK(dq_hessian_energy(w, h, DQ_MATH_F32, &product, &energy));
    dq_tensor_free(&d);
    dq_tensor_free(&product);
    return change / energy;
}

static void diagonal_hessian(fixture *f, int64_t n, bool identity, dq_tensor *h)
{
    float *values = calloc((size_t)(n * n), 4);
    for (int64_t i = 0; i < n; i++) values[i * n + i] = identity ? 1.0f : (float)(1 + (i * 7919) % 101);
    OK(dq_tensor_from_host(f->dev, DQ_F32, n, n, values, h));
    free(values);
}

static void identity_hessian_gives_rtn(void **state)
{
    (void)state;
    fixture f;
    fixture_open(&f, "ref", 1);
    problem p;
    make_problem(&f, 9, 150, &p);
    dq_tensor h;
    diagonal_hessian(&f, p.in, true, &h);
    for (int k = 0; k < 16; k++) {
        dq_weight_spec spec = {.bits = 3 + (k & 1), .symmetric = k & 2, .group = k & 4 ? 32 : -1, .clip_search = k & 8};
        dq_codes rtn, gptq;
        double e, damping;
        solve(&spec, &p.w, NULL, &rtn, &e, &damping);
        spec.method = DQ_WEIGHT_GPTQ;
        spec.percdamp = 0.01;
        double weighted;
        solve(&spec, &p.w, &h, &gptq, &weighted, &damping);
        assert_same_codes(&rtn, &gptq);
        assert_true(fabs(weighted - e) < 1e-4 * e); /* both errors are |dW|^2 / |W|^2 here */
        dq_codes_free(&rtn);
        dq_codes_free(&gptq);
    }
    dq_tensor_free(&h);
    free_problem(&p);
    fixture_close(&f);
}

static void order_is_irrelevant_for_a_diagonal_hessian(void **state)
{
    (void)state;
    fixture f;
    fixture_open(&f, "ref", 1);
    problem p;
    make_problem(&f, 5, 140, &p);
    dq_tensor h;
    diagonal_hessian(&f, p.in, false, &h);
    for (int k = 0; k < 4; k++) {
        dq_weight_spec spec = {.bits = 4,
                               .method = DQ_WEIGHT_GPTQ,
                               .group = k & 1 ? 24 : -1,
                               .symmetric = k & 2,
                               .static_groups = true,
                               .percdamp = 0.01};
        dq_codes plain, ordered;
        double e, damping;
        solve(&spec, &p.w, &h, &plain, &e, &damping);
        spec.act_order = true;
        solve(&spec, &p.w, &h, &ordered, &e, &damping);
        assert_same_codes(&plain, &ordered);
        assert_true(dq_tensor_is_empty(&ordered.group_index));
        dq_codes_free(&plain);
        dq_codes_free(&ordered);
    }
    dq_tensor_free(&h);
    free_problem(&p);
    fixture_close(&f);
}

static void gptq_beats_rtn_and_reports_the_true_error(void **state)
{
    (void)state;
    static const char *const backends[] = {"ref", "cpu"};
    static const int64_t shapes[][2] = {{24, 96}, {17, 300}, {1, 130}, {40, 128}};
    for (int i = 0; i < 2; i++) {
        fixture f;
        fixture_open(&f, backends[i], 2);
        for (int s = 0; s < 4; s++) {
            problem p;
            make_problem(&f, shapes[s][0], shapes[s][1], &p);
            for (int k = 0; k < 16; k++) {
                dq_weight_spec spec = {.bits = k & 1 ? 4 : 3,
                                       .group = k & 2 ? 32 : -1,
                                       .act_order = k & 4,
                                       .clip_search = k & 8,
                                       .percdamp = 0.01};
                dq_codes rtn, gptq;
                double e, damping;
                solve(&spec, &p.w, NULL, &rtn, &e, &damping);
                double before = true_error(&p.w, &p.h, &rtn);
                spec.method = DQ_WEIGHT_GPTQ;
                solve(&spec, &p.w, &p.h, &gptq, &e, &damping);
                double after = true_error(&p.w, &p.h, &gptq);
                if (!(after < 0.6 * before)) fail_msg("GPTQ error %g, RTN %g", after, before);
                if (!(fabs(after - e) < 2e-3 * after)) fail_msg("reported %g, true %g", e, after);
                dq_codes_free(&rtn);
                dq_codes_free(&gptq);
            }
            free_problem(&p);
        }
        fixture_close(&f);
    }
}

static void threads_do_not_matter(void **state)
{
    (void)state;
    uint8_t *first = NULL;
    for (int threads = 1; threads <= 4; threads++) {
        fixture f;
        fixture_open(&f, "cpu", threads);
        problem p;
        make_problem(&f, 70, 333, &p);
        dq_weight_spec spec = {
            .bits = 4, .method = DQ_WEIGHT_GPTQ, .group = 64, .act_order = true, .clip_search = true, .percdamp = 0.01};
        dq_codes codes;
        double e, damping;
        solve(&spec, &p.w, &p.h, &codes, &e, &damping);
        uint8_t *got = host_copy(&codes.codes);
        if (first) assert_memory_equal(first, got, 70 * 333);
        if (first)
            free(got);
        else
            first = got;
        dq_codes_free(&codes);
        free_problem(&p);
        fixture_close(&f);
    }
    free(first);
}

/* ---- trouble ---- */

static void upload_square(fixture *f, int64_t n, const float *values, dq_tensor *h)
{
    OK(dq_tensor_from_host(f->dev, DQ_F32, n, n, values, h));
}

static void damping_is_raised_until_it_works(void **state)
{
    (void)state;
    fixture f;
    fixture_open(&f, "ref", 1);
    float wv[6] = {0.1f, -0.2f, 0.3f, 0.4f, 0.25f, -0.15f};
    /* eigenvalues 1 +- 1.05, 1: needs damping above 0.05 */
    float mild[9] = {1, 0, 0, 1.05f, 1, 0, 0, 0, 1};
    /* far from positive definite: only raised diagonal entries help */
    float wild[9] = {1, 0, 0, 90, 1, 0, 90, -90, 1};
    /* rank one, no damping asked for */
    float flat[9] = {1, 1, 1, 1, 1, 1, 1, 1, 1};
    struct {
        float *h;
        double percdamp, least, most;
    } cases[] = {
        {mild, 0.01, 0.0999, 0.1001}, {wild, 0.01, 10.0, 1000.0}, {flat, 0.0, 1e-8, 1e-2}, {flat, 0.01, 0.01, 0.01}};
    for (int i = 0; i < 4; i++) {
        dq_tensor h, w;
        upload_square(&f, 3, cases[i].h, &h);
        OK(dq_tensor_from_host(f.dev, DQ_F32, 2, 3, wv, &w));
        dq_weight_spec spec = {.bits = 4, .method = DQ_WEIGHT_GPTQ, .group = -1, .percdamp = cases[i].percdamp};
        dq_codes codes;
        double e, damping;
        OK(dq_quantize_linear(&spec, &w, &h, &codes, &e, &damping));
        if (!(damping >= cases[i].least && damping <= cases[i].most)) fail_msg("case %d: damping %g", i, damping);
        dq_codes_free(&codes);
        dq_tensor_free(&w);
        dq_tensor_free(&h);
    }
    fixture_close(&f);
}

static void dead_inputs_get_zero_weights(void **state)
{
    (void)state;
    fixture f;
    fixture_open(&f, "ref", 1);
    float wv[4] = {0.1f, 77.0f, -0.2f, 0.05f}, hv[16] = {2, 0, 0, 0, 0, 0, 0, 0, 1, 0, 3, 0, 0.5f, 0, 0.25f, 1};
    for (int symmetric = 0; symmetric < 2; symmetric++) {
        dq_tensor h, w, back;
        upload_square(&f, 4, hv, &h);
        OK(dq_tensor_from_host(f.dev, DQ_F32, 1, 4, wv, &w));
        dq_weight_spec spec = {
            .bits = 4, .method = DQ_WEIGHT_GPTQ, .group = -1, .symmetric = symmetric, .percdamp = 0.01};
        dq_codes codes;
        double e, damping;
        OK(dq_quantize_linear(&spec, &w, &h, &codes, &e, &damping));
        OK(dq_tensor_alloc(f.dev, DQ_F32, 1, 4, &back));
        OK(dq_codes_dequantize(&codes, &back));
        float *v = host_copy(&back), *scale = host_copy(&codes.scale);
        assert_true(v[1] == 0.0f);
        assert_true(scale[0] < 0.05f); /* 77 did not widen the range */
        free(v), free(scale);
        dq_codes_free(&codes);
        dq_tensor_free(&back);
        dq_tensor_free(&w);
        dq_tensor_free(&h);
    }
    fixture_close(&f);
}

static void expect_refusal(fixture *f, const dq_weight_spec *spec, const float *wv, const float *hv, dq_status status,
                           const char *text)
{
    dq_tensor h = {0}, w;
    if (hv) upload_square(f, 3, hv, &h);
    OK(dq_tensor_from_host(f->dev, DQ_F32, 2, 3, wv, &w));
    dq_codes codes = {.bits = -5};
    double e, damping;
    assert_int_equal(dq_quantize_linear(spec, &w, hv ? &h : NULL, &codes, &e, &damping), status);
    if (!strstr(dq_error_text(), text)) fail_msg("\"%s\" not in \"%s\"", text, dq_error_text());
    assert_int_equal(codes.bits, -5); /* untouched */
    dq_tensor_free(&w);
    dq_tensor_free(&h);
}

static void bad_input_is_refused(void **state)
{
    (void)state;
    fixture f;
    fixture_open(&f, "ref", 1);
    uint64_t before = atomic_load(&f.env.memory_now);
    const float w[6] = {0.1f, 0.2f, 0.3f, 0.4f, 0.5f, 0.6f}, h[9] = {1, 0, 0, 0, 1, 0, 0, 0, 1};
    const float nan_w[6] = {0.1f, 0.2f, 0.3f, NAN, 0.5f, 0.6f}, nan_h[9] = {1, 0, 0, NAN, 1, 0, 0, 0, 1};
    const float inf_h[9] = {1, 0, 0, 0, INFINITY, 0, 0, 0, 1}, negative[9] = {1, 0, 0, 0, -1, 0, 0, 0, 1};
    dq_weight_spec good = {.bits = 4, .method = DQ_WEIGHT_GPTQ, .group = -1, .percdamp = 0.01}, s;
    expect_refusal(&f, &good, w, nan_h, DQ_E_NONFINITE, "(1, 0)");
    expect_refusal(&f, &good, w, inf_h, DQ_E_NONFINITE, "(1, 1)");
    expect_refusal(&f, &good, nan_w, h, DQ_E_NONFINITE, "weight entry (1, 0)");
    expect_refusal(&f, &good, w, negative, DQ_E_INVALID, "diagonal entry 1 is negative");
    expect_refusal(&f, &good, w, NULL, DQ_E_INVALID, "Hessian");
    s = good, s.bits = 9, expect_refusal(&f, &s, w, h, DQ_E_INVALID, "9");
    s = good, s.bits = 1, expect_refusal(&f, &s, w, h, DQ_E_INVALID, "bits");
    s = good, s.bits = 16, expect_refusal(&f, &s, w, h, DQ_E_INVALID, "16");
    s = good, s.group = 0, expect_refusal(&f, &s, w, h, DQ_E_INVALID, "group size");
    s = good, s.percdamp = NAN, expect_refusal(&f, &s, w, h, DQ_E_INVALID, "percdamp");
    s = good, s.percdamp = -1, expect_refusal(&f, &s, w, h, DQ_E_INVALID, "percdamp");
    assert_int_equal(atomic_load(&f.env.memory_now), before);
    fixture_close(&f);
}

static void every_allocation_may_fail(void **state)
{
    (void)state;
    fixture f;
    dq_services services = {.struct_size = sizeof services, .abi = 1, .allocator = {refuse_alloc, refuse_free, NULL}};
    heap.for_good = 1;
    fixture_open_with(&f, &services, "ref", 1);
    problem p;
    make_problem(&f, 3, 20, &p);
    float wild[400] = {0};
    for (int i = 0; i < 20; i++)
        for (int j = 0; j <= i; j++) wild[i * 20 + j] = i == j ? 1.0f : 50.0f;
    for (int method = 0; method < 3; method++) {
        if (method == 2) OK(dq_tensor_upload(&p.h, wild)); /* through the raised diagonal */
        dq_weight_spec spec = {.bits = 4,
                               .method = method ? DQ_WEIGHT_GPTQ : DQ_WEIGHT_RTN,
                               .group = 8,
                               .act_order = true,
                               .percdamp = 0.01};
        bool worked = false;
        for (long n = 1; !worked; n++) {
            dq_tensor w = copy_of(&p.w);
            uint64_t before = atomic_load(&f.env.memory_now);
            dq_codes codes;
            double e, damping;
            heap.calls = 0;
            heap.fail_at = n;
            dq_status status = dq_quantize_linear(&spec, &w, method ? &p.h : NULL, &codes, &e, &damping);
            heap.fail_at = 0;
            worked = status == DQ_OK;
            if (worked)
                dq_codes_free(&codes);
            else if (status != DQ_E_NOMEM && status != DQ_E_DEVICE_MEMORY)
                fail_msg("%s", dq_error_text());
            assert_int_equal(atomic_load(&f.env.memory_now), before);
            assert_true(n < 1000);
            dq_tensor_free(&w);
        }
    }
    free_problem(&p);
    fixture_close(&f);
    assert_int_equal(heap.live, 0);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(identity_hessian_gives_rtn),
        cmocka_unit_test(order_is_irrelevant_for_a_diagonal_hessian),
        cmocka_unit_test(gptq_beats_rtn_and_reports_the_true_error),
        cmocka_unit_test(threads_do_not_matter),
        cmocka_unit_test(damping_is_raised_until_it_works),
        cmocka_unit_test(dead_inputs_get_zero_weights),
        cmocka_unit_test(bad_input_is_refused),
        cmocka_unit_test(every_allocation_may_fail),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
