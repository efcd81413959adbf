/* The reference backend against NumPy, PyTorch and transformers (tests/golden/make_ops.py): as close as storing the
 * result in fp32 allows, and equal where the arithmetic is defined in fp32. SPDX-License-Identifier: Apache-2.0 */
#include <math.h>
#include <stdarg.h>
#include <setjmp.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <cmocka.h>

#include "backend/device.h"
#include "base/half.h"
#include "base/status.h"
#include "golden.h"

static dq_env env;
static dq_device *dev;

static int open_ref(void **state)
{
    (void)state;
    if (dq_env_init(&env, NULL, 1) != DQ_OK) return -1;
    return dq_device_open(&env, "ref", "", DQ_POLICY_FORBID, &dev);
}

static int close_ref(void **state)
{
    (void)state;
    dq_device_close(dev);
    dq_env_clear(&env);
    return atomic_load(&env.memory_now) == 0 ? 0 : -1;
}

static void must(dq_status status)
{
    if (status != DQ_OK) fail_msg("%s", dq_error_text());
}

static dq_tensor input(const golden *g, const char *name)
{
    const golden_array *a = golden_find(g, name);
    dq_tensor t;
    must(dq_tensor_from_host(dev, a->dtype, a->rows, a->cols, a->data, &t));
    return t;
}

static dq_tensor empty(dq_dtype dtype, int64_t rows, int64_t cols)
{
    dq_tensor t;
    must(dq_tensor_alloc(dev, dtype, rows, cols, &t));
    return t;
}

static double value(const golden_array *a, int64_t i)
{
    switch (a->dtype) {
        case DQ_F64: return ((const double *)a->data)[i];
        case DQ_F32: return ((const float *)a->data)[i];
        case DQ_U8: return ((const uint8_t *)a->data)[i];
        case DQ_I32: return ((const int32_t *)a->data)[i];
        default: return ((const uint16_t *)a->data)[i];
    }
}

/* Half a unit of fp32 in the result plus `absolute` for cancellation inside the op. Frees the tensor. */
static void check(dq_tensor *t, const golden *g, const char *name, double absolute)
{
    const golden_array *want = golden_find(g, name);
    golden_array got = {.dtype = t->view.dtype, .data = malloc((size_t)(want->rows * want->cols) * 8)};
    assert_int_equal(t->view.rows, want->rows);
    assert_int_equal(t->view.cols, want->cols);
    must(dq_tensor_download(t, got.data));
    double unit = t->view.dtype == DQ_F64 ? 0 : 0x1.0001p-24;
    for (int64_t i = 0; i < want->rows * want->cols; i++) {
        double a = value(want, i), b = value(&got, i);
        if (!(fabs(a - b) <= unit * fabs(a) + absolute))
            fail_msg("%s[%lld][%lld] is %.17g, expected %.17g", name, (long long)(i / want->cols),
                     (long long)(i % want->cols), b, a);
    }
    free(got.data);
    dq_tensor_free(t);
}

/* The same to the last bit, up to the sign of zero. Frees the tensor. */
static void check_equal(dq_tensor *t, const golden *g, const char *name)
{
    const golden_array *want = golden_find(g, name);
    golden_array got = {.dtype = t->view.dtype, .data = malloc((size_t)(want->rows * want->cols) * 8)};
    assert_int_equal(t->view.dtype, want->dtype);
    must(dq_tensor_download(t, got.data));
    for (int64_t i = 0; i < want->rows * want->cols; i++)
        if (value(want, i) != value(&got, i))
            fail_msg("%s[%lld][%lld] is %.9g, expected %.9g", name, (long long)(i / want->cols),
                     (long long)(i % want->cols), value(&got, i), value(want, i));
    free(got.data);
    dq_tensor_free(t);
}

static void half(void **state)
{
    (void)state;
    golden g = golden_load("half");
    const golden_array *x = golden_find(&g, "f64"), *z = golden_find(&g, "f32");
    dq_tensor a = input(&g, "f64"), b = input(&g, "f32");
    dq_tensor f16 = empty(DQ_F16, 1, x->cols), bf16 = empty(DQ_BF16, 1, z->cols);
    must(dq_op_convert(&a, &f16));
    must(dq_op_convert(&b, &bf16));
    uint16_t bits[1024];
    assert_true(x->cols <= 1024 && z->cols <= 1024);
    must(dq_tensor_download(&f16, bits));
    assert_memory_equal(bits, golden_find(&g, "f16")->data, (size_t)x->cols * 2);
    must(dq_tensor_download(&bf16, bits));
    assert_memory_equal(bits, golden_find(&g, "bf16")->data, (size_t)z->cols * 2);
    /* Rounding fp64 to bf16 once, not twice: just above a tie. */
    assert_int_equal(dq_f64_to_bf16(1 + 0x1p-8 + 0x1p-45), 0x3f81);
    assert_int_equal(dq_f64_to_bf16(1 + 0x1p-8), 0x3f80);
    assert_int_equal(dq_f64_to_bf16(-1e300), 0xff80);
    dq_tensor *all[] = {&a, &b, &f16, &bf16};
    for (int i = 0; i < 4; i++) dq_tensor_free(all[i]);
    golden_free(&g);
}

static void gemm(void **state)
{
    (void)state;
    golden g = golden_load("gemm");
    dq_tensor a = input(&g, "a"), b = input(&g, "b"), c = input(&g, "c"), d = input(&g, "c"), x = input(&g, "x");
    must(dq_op_gemm(false, false, 0.5, &a, &b, -0.25, &c, DQ_MATH_F32));
    check(&c, &g, "want", 1e-14);
    must(dq_op_gemm(false, false, 0.5, &a, &b, -0.25, &d, DQ_MATH_BF16));
    check(&d, &g, "want_bf16", 1e-14);
    dq_tensor gram = empty(DQ_F32, 9, 9), lower = empty(DQ_F32, 9, 9);
    must(dq_op_gemm(true, false, 1, &x, &x, 0, &gram, DQ_MATH_F32));
    must(dq_op_fill(0, &lower));
    must(dq_op_syrk(1, &x, 0, &lower));
    float full[81], low[81];
    must(dq_tensor_download(&gram, full));
    must(dq_tensor_download(&lower, low));
    for (int i = 0; i < 9; i++)
        for (int j = 0; j < 9; j++) assert_true(low[i * 9 + j] == (j <= i ? full[i * 9 + j] : 0));
    check(&gram, &g, "gram", 1e-14);
    dq_tensor_free(&lower);
    dq_tensor_free(&a);
    dq_tensor_free(&b);
    dq_tensor_free(&x);
    golden_free(&g);
}

static void attention(void **state)
{
    (void)state;
    golden g = golden_load("attention");
    dq_tensor q = input(&g, "q"), k = input(&g, "k"), v = input(&g, "v");
    for (int window = 0; window <= 5; window += 5) {
        dq_attention_desc d = {
            .seqlen = 13, .heads = 6, .kv_heads = 2, .head_dim = 16, .window = window, .scale = 0.25f};
        dq_tensor o = empty(DQ_F32, q.view.rows, q.view.cols);
        must(dq_op_attention(&d, &q, &k, &v, &o));
        check(&o, &g, window ? "window5" : "window0", 1e-14);
    }
    dq_tensor_free(&q);
    dq_tensor_free(&k);
    dq_tensor_free(&v);
    golden_free(&g);
}

static void rope(void **state)
{
    (void)state;
    golden g = golden_load("rope");
    dq_tensor x = input(&g, "x"), cosines = input(&g, "cos"), sines = input(&g, "sin");
    must(dq_op_rope(&cosines, &sines, 16, &x));
    check(&x, &g, "want", 1e-15);
    dq_tensor_free(&cosines);
    dq_tensor_free(&sines);
    golden_free(&g);
}

static void rmsnorm(void **state)
{
    (void)state;
    golden g = golden_load("rmsnorm");
    dq_tensor x = input(&g, "x"), w = input(&g, "weight");
    dq_tensor y = empty(DQ_F32, x.view.rows, x.view.cols);
    must(dq_op_rmsnorm(&x, NULL, 1e-5, &y));
    check(&y, &g, "plain", 0);
    must(dq_op_rmsnorm(&x, &w, 1e-5, &x));
    check(&x, &g, "want", 0);
    dq_tensor_free(&w);
    golden_free(&g);
}

static void layernorm(void **state)
{
    (void)state;
    golden g = golden_load("layernorm");
    dq_tensor x = input(&g, "x"), w = input(&g, "weight"), b = input(&g, "bias");
    dq_tensor y = empty(DQ_F32, x.view.rows, x.view.cols);
    must(dq_op_layernorm(&x, NULL, NULL, 1e-5, &y));
    check(&y, &g, "plain", 1e-12);
    must(dq_op_layernorm(&x, &w, &b, 1e-5, &x));
    check(&x, &g, "want", 1e-12);
    dq_tensor_free(&w);
    dq_tensor_free(&b);
    golden_free(&g);
}

static void activation(void **state)
{
    (void)state;
    static const char *const names[] = {"act0", "act1", "act2", "act3"};
    golden g = golden_load("activation");
    dq_tensor gate = input(&g, "gate"), up = input(&g, "up");
    for (int kind = 0; kind < 4; kind++) {
        dq_tensor y = empty(DQ_F32, gate.view.rows, gate.view.cols);
        must(dq_op_activation(kind, &gate, &up, &y));
        check(&y, &g, names[kind], 1e-14);
    }
    must(dq_op_activation(DQ_ACT_SILU, &gate, NULL, &gate));
    check(&gate, &g, "plain0", 1e-14);
    dq_tensor_free(&up);
    golden_free(&g);
}

static void hadamard(void **state)
{
    (void)state;
    golden g = golden_load("hadamard");
    int8_t hk[144];
    for (int i = 0; i < 144; i++) hk[i] = (int8_t)value(golden_find(&g, "hk"), i);
    dq_tensor x = input(&g, "x"), across = input(&g, "across");
    dq_hadamard_desc d = {.n = 96, .k = 12, .hk = hk, .inner = 1, .scale = 1 / sqrt(96)};
    dq_tensor y = empty(DQ_F32, x.view.rows, x.view.cols);
    must(dq_op_hadamard(&d, &x, &y));
    check(&y, &g, "want", 1e-14);
    d.transpose = 1;
    must(dq_op_hadamard(&d, &x, &x));
    check(&x, &g, "transposed", 1e-14);
    dq_hadamard_desc heads = {.n = 8, .k = 1, .inner = 5, .scale = 1 / sqrt(8)};
    must(dq_op_hadamard(&heads, &across, &across));
    check(&across, &g, "mixed", 1e-14);
    golden_free(&g);
}

static void fake_quant(void **state)
{
    (void)state;
    golden g = golden_load("fake_quant");
    const golden_array *cases = golden_find(&g, "cases");
    dq_tensor x = input(&g, "x");
    for (int64_t i = 0; i < cases->rows; i++) {
        const int32_t *c = (const int32_t *)cases->data + i * 5;
        char name[32];
        snprintf(name, sizeof name, "y%lld", (long long)i);
        dq_fake_quant_desc d = {c[0], c[1], c[2], (float)c[3] / 100, c[4]};
        dq_tensor y = empty(DQ_F32, x.view.rows, x.view.cols);
        must(dq_op_fake_quant(&d, &x, &y));
        check_equal(&y, &g, name);
    }
    dq_tensor_free(&x);
    golden_free(&g);
}

static void weight_grid(void **state)
{
    (void)state;
    golden g = golden_load("weight_grid");
    const golden_array *cases = golden_find(&g, "cases");
    dq_tensor w = input(&g, "w");
    for (int64_t i = 0; i < cases->rows; i++) {
        const int32_t *c = (const int32_t *)cases->data + i * 4;
        dq_grid_desc d = {.bits = c[0],
                          .symmetric = c[1],
                          .group = c[2],
                          .search_steps = c[3],
                          .search_grid = 100,
                          .search_norm = 2.4f};
        int64_t groups = (w.view.cols + d.group - 1) / d.group;
        dq_tensor s = empty(DQ_F32, w.view.rows, groups), z = empty(DQ_F32, w.view.rows, groups);
        dq_tensor codes = empty(DQ_U8, w.view.rows, w.view.cols), back = empty(DQ_F32, w.view.rows, w.view.cols);
        must(dq_op_weight_grid(&d, &w, &s, &z));
        must(dq_op_quantize_weight(&d, &w, &s, &z, NULL, &codes));
        must(dq_op_dequantize_weight(&d, &codes, &s, &z, NULL, &back));
        dq_tensor *results[] = {&s, &z, &codes, &back};
        static const char *const names[] = {"scale", "zero", "codes", "back"};
        for (int k = 0; k < 4; k++) {
            char name[32];
            snprintf(name, sizeof name, "%s%lld", names[k], (long long)i);
            check_equal(results[k], &g, name);
        }
    }
    dq_tensor_free(&w);
    golden_free(&g);
}

/* Against Cholesky, inverse, Cholesky: the two differ by the conditioning only. */
static void gptq_factor(void **state)
{
    (void)state;
    golden g = golden_load("gptq");
    dq_tensor h = input(&g, "h"), perm = input(&g, "perm");
    double damp = value(golden_find(&g, "damp"), 0);
    for (int i = 0; i < 2; i++) {
        dq_tensor u = empty(DQ_F32, h.view.rows, h.view.cols);
        int64_t info = -1;
        must(dq_op_gptq_factor(&h, i ? &perm : NULL, damp, &u, &info));
        assert_int_equal(info, 0);
        check(&u, &g, i ? "u_perm" : "u", 1e-13);
    }
    dq_tensor_free(&h);
    dq_tensor_free(&perm);
    golden_free(&g);
}

static void gptq_block(void **state)
{
    (void)state;
    golden g = golden_load("gptq");
    dq_tensor w = input(&g, "w"), u = input(&g, "u32"), s = input(&g, "scale"), z = input(&g, "zero");
    dq_tensor index = input(&g, "index");
    dq_tensor codes = empty(DQ_U8, w.view.rows, w.view.cols), err = empty(DQ_F32, w.view.rows, w.view.cols);
    dq_grid_desc d = {.bits = 4, .group = 8};
    must(dq_op_gptq_block(&d, &w, &u, &s, &z, &index, &codes, &err));
    check_equal(&codes, &g, "codes");
    check(&err, &g, "err", 1e-14);
    check(&w, &g, "w_after", 1e-14);
    dq_tensor_free(&u);
    dq_tensor_free(&s);
    dq_tensor_free(&z);
    dq_tensor_free(&index);
    golden_free(&g);
}

/* The vocabulary in tiles of several sizes gives the cross-entropy of the whole. */
static void head_nll(void **state)
{
    (void)state;
    golden g = golden_load("head_nll");
    dq_tensor x = input(&g, "x"), w = input(&g, "w"), targets = input(&g, "targets");
    int64_t rows = x.view.rows, vocab = w.view.rows;
    for (int64_t tile = 7; tile <= vocab; tile += 43) {
        dq_tensor s = empty(DQ_F64, rows, 3);
        for (int c = 0; c < 3; c++) {
            dq_tensor column = dq_tensor_slice(&s, 0, rows, c, 1);
            must(dq_op_fill(c == 1 ? 0 : -INFINITY, &column));
        }
        for (int64_t first = 0; first < vocab; first += tile) {
            dq_tensor part = dq_tensor_rows(&w, first, vocab - first < tile ? vocab - first : tile);
            must(dq_op_head_nll(&x, &part, &targets, first, &s, DQ_MATH_F32));
        }
        double sums[27];
        must(dq_tensor_download(&s, sums));
        for (int64_t r = 0; r < rows; r++) {
            double nll = log(sums[3 * r + 1]) + sums[3 * r] - sums[3 * r + 2];
            assert_true(fabs(nll - value(golden_find(&g, "nll"), r)) < 1e-12);
        }
        dq_tensor_free(&s);
    }
    dq_tensor_free(&x);
    dq_tensor_free(&w);
    dq_tensor_free(&targets);
    golden_free(&g);
}

/* The divergence and the largest logits of the whole vocabulary from tiles of several sizes. */
static void compare_logits(void **state)
{
    (void)state;
    golden g = golden_load("compare_logits");
    dq_tensor a = input(&g, "a"), b = input(&g, "b");
    int64_t rows = a.view.rows, vocab = a.view.cols;
    static const double start[7] = {-INFINITY, 0, 0, -INFINITY, 0, -1, -1};
    for (int64_t tile = 1; tile <= vocab; tile += 37) {
        dq_tensor s = empty(DQ_F64, rows, 7);
        double sums[7 * 7];
        for (int c = 0; c < 7; c++) {
            dq_tensor column = dq_tensor_slice(&s, 0, rows, c, 1);
            must(dq_op_fill(start[c], &column));
        }
        for (int64_t first = 0; first < vocab; first += tile) {
            int64_t n = vocab - first < tile ? vocab - first : tile;
            dq_tensor x = dq_tensor_slice(&a, 0, rows, first, n), y = dq_tensor_slice(&b, 0, rows, first, n);
            must(dq_op_compare_logits(&x, &y, first, &s));
        }
        must(dq_tensor_download(&s, sums));
        for (int64_t r = 0; r < rows; r++) {
            const double *v = sums + 7 * r;
            double kl = v[2] / v[1] - (log(v[1]) + v[0]) + (log(v[4]) + v[3]);
            assert_true(fabs(kl - value(golden_find(&g, "kl"), r)) < 1e-13);
            assert_true(v[5] == value(golden_find(&g, "best_a"), r) && v[6] == value(golden_find(&g, "best_b"), r));
        }
        dq_tensor_free(&s);
    }
    dq_tensor_free(&a);
    dq_tensor_free(&b);
    golden_free(&g);
}

static void qr(void **state)
{
    (void)state;
    golden g = golden_load("qr");
    dq_tensor a = input(&g, "a");
    dq_tensor q = empty(DQ_F64, 20, 20), r = empty(DQ_F64, 20, 20);
    must(dq_op_qr(&a, &q, &r));
    check(&q, &g, "q", 1e-13);
    check(&r, &g, "r", 1e-13);
    dq_tensor_free(&a);
    golden_free(&g);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(half),        cmocka_unit_test(gemm),        cmocka_unit_test(attention),
        cmocka_unit_test(rope),        cmocka_unit_test(rmsnorm),     cmocka_unit_test(layernorm),
        cmocka_unit_test(activation),  cmocka_unit_test(hadamard),    cmocka_unit_test(fake_quant),
        cmocka_unit_test(weight_grid), cmocka_unit_test(gptq_factor), cmocka_unit_test(gptq_block),
        cmocka_unit_test(head_nll),    cmocka_unit_test(qr),          cmocka_unit_test(compare_logits),
    };
    return cmocka_run_group_tests_name("reference ops", tests, open_ref, close_ref);
}
