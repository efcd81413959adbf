/* backend: opening tables, tensors and slices of them, what every op checks before a backend sees it.
 * SPDX-License-Identifier: Apache-2.0 */
#include <math.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <cmocka.h>

#include "fake_backend.h"
#include "fake_env.h"
#include "ok.h"
#include "refusing_heap.h"

/* ---- tables ---- */

static void invalid_tables(void **state)
{
    (void)state;
    dq_device *dev = (dq_device *)&env_log.warnings;
    assert_fails(dq_device_open_table(&env, NULL, "", DQ_POLICY_ALLOW, &dev), DQ_E_INVALID, "NULL");
    dq_backend t = fake_backend();
    t.abi = 2;
    assert_fails(dq_device_open_table(&env, &t, "", DQ_POLICY_ALLOW, &dev), DQ_E_INVALID, "abi 2");
    t = fake_backend();
    t.struct_size = 40;
    assert_fails(dq_device_open_table(&env, &t, "", DQ_POLICY_ALLOW, &dev), DQ_E_INVALID, "struct_size 40");
    t = fake_backend();
    t.name = NULL;
    assert_fails(dq_device_open_table(&env, &t, "", DQ_POLICY_ALLOW, &dev), DQ_E_INVALID, "no name");
    const struct {
        const char *name;
        size_t offset;
    } slots[] = {{"open", offsetof(dq_backend, open)},         {"close", offsetof(dq_backend, close)},
                 {"info", offsetof(dq_backend, info)},         {"alloc", offsetof(dq_backend, alloc)},
                 {"free", offsetof(dq_backend, free)},         {"upload", offsetof(dq_backend, upload)},
                 {"download", offsetof(dq_backend, download)}, {"sync", offsetof(dq_backend, sync)}};
    for (size_t i = 0; i < sizeof slots / sizeof slots[0]; i++) {
        char text[40];
        t = fake_backend();
        memset((char *)&t + slots[i].offset, 0, sizeof(void (*)(void)));
        snprintf(text, sizeof text, "mandatory slot '%s'", slots[i].name);
        assert_fails(dq_device_open_table(&env, &t, "", DQ_POLICY_ALLOW, &dev), DQ_E_INVALID, text);
    }
    assert_ptr_equal(dev, &env_log.warnings); /* untouched */
}

static void opening_fails(void **state)
{
    (void)state;
    dq_device *dev = NULL;
    dq_backend t = fake_backend();
    assert_fails(dq_device_open_table(&env, &t, "fail", DQ_POLICY_ALLOW, &dev), DQ_E_DEVICE_LOST, "told to fail");
    assert_string_equal(dq_error_backend(), "fake");
    assert_int_equal(dq_error_vendor_code(), 4711);
    assert_fails(dq_device_open(&env, "tpu", "", DQ_POLICY_ALLOW, &dev), DQ_E_NOTFOUND, "'tpu'");
    assert_fails(dq_device_open(&env, NULL, "", DQ_POLICY_ALLOW, &dev), DQ_E_NOTFOUND, "(null)");
    assert_fails(dq_device_open(&env, "ref", "simd=avx2", DQ_POLICY_ALLOW, &dev), DQ_E_INVALID, "simd=avx2");
    assert_fails(dq_device_open(&env, "cpu", "simd=sse9", DQ_POLICY_ALLOW, &dev), DQ_E_INVALID, "sse9");
    assert_fails(dq_device_open(&env, "cpu", "colour=red", DQ_POLICY_ALLOW, &dev), DQ_E_INVALID, "colour=red");
    assert_null(dev);
}

static void opening_by_name(void **state)
{
    (void)state;
    static const char *const names[][2] = {{"ref", "ref"}, {"cpu", "cpu:"}, {"auto", "cpu:"}};
    for (int i = 0; i < 3; i++) {
        dq_device *dev;
        dq_device_info info;
        OK(dq_device_open(&env, names[i][0], NULL, DQ_POLICY_FORBID, &dev));
        OK(dq_device_get_info(dev, &info));
        assert_int_equal(strncmp(info.name, names[i][1], strlen(names[i][1])), 0);
        assert_true(info.description[0] != '\0');
        assert_ptr_equal(dq_device_env(dev), &env);
        dq_device_close(dev);
    }
    dq_device_close(NULL);
}

/* A backend built against an older header: the table ends before the op slots, whatever lies behind. */
static void shorter_table(void **state)
{
    (void)state;
    dq_device *dev;
    dq_backend t = fake_backend();
    t.fill = fake_fill;
    t.struct_size = offsetof(dq_backend, fill);
    OK(dq_device_open_table(&env, &t, "", DQ_POLICY_FORBID, &dev));
    dq_tensor x = counting_tensor(dev, 2, 2, 1);
    assert_fails(dq_op_fill(5, &x), DQ_E_UNSUPPORTED, "op fill");
    dq_tensor_free(&x);
    dq_device_close(dev);
}

/* ---- tensors ---- */

static void slices(void **state)
{
    (void)state;
    dq_device *dev;
    dq_backend t = fake_backend();
    float got[20];
    OK(dq_device_open_table(&env, &t, "", DQ_POLICY_ALLOW, &dev));
    dq_tensor x = counting_tensor(dev, 4, 5, 0);
    dq_tensor part = dq_tensor_slice(&x, 1, 2, 3, 2);
    OK(dq_tensor_download(&part, got));
    const float expected[] = {8, 9, 13, 14};
    assert_memory_equal(got, expected, sizeof expected);
    const float fresh[] = {-1, -2, -3, -4};
    OK(dq_tensor_upload(&part, fresh));
    OK(dq_tensor_download(&x, got));
    for (int i = 0; i < 20; i++) {
        float want = i == 8 ? -1 : i == 9 ? -2 : i == 13 ? -3 : i == 14 ? -4 : (float)i;
        assert_true(got[i] == want);
    }
    dq_tensor whole = dq_tensor_slice(&x, 0, 4, 0, 5), none = dq_tensor_rows(&x, 4, 0);
    assert_false(dq_tensor_is_empty(&whole));
    assert_false(dq_tensor_is_empty(&none)); /* a tensor with no rows */
    static const int64_t outside[][4] = {{0, 5, 0, 5}, {4, 1, 0, 5},  {-1, 1, 0, 5},        {0, 4, 1, 5},
                                         {0, 4, 6, 0}, {0, -1, 0, 5}, {INT64_MAX, 1, 0, 5}, {1, INT64_MAX, 0, 5}};
    for (size_t i = 0; i < sizeof outside / sizeof outside[0]; i++) {
        dq_tensor bad = dq_tensor_slice(&x, outside[i][0], outside[i][1], outside[i][2], outside[i][3]);
        assert_true(dq_tensor_is_empty(&bad));
        assert_fails(dq_op_fill(1, &bad), DQ_E_INVALID, "tensor y is missing");
        assert_fails(dq_tensor_download(&bad, got), DQ_E_INVALID, "empty");
    }
    dq_tensor_free(&part); /* borrows: nothing is freed */
    assert_int_equal(fake.blocks, 1);
    dq_tensor_free(&x);
    assert_true(dq_tensor_is_empty(&x));
    dq_tensor_free(&x);
    dq_tensor_free(NULL);
    dq_device_close(dev);
}

static void impossible_tensors(void **state)
{
    (void)state;
    dq_device *dev;
    dq_tensor t = {0};
    OK(dq_device_open(&env, "ref", "", DQ_POLICY_FORBID, &dev));
    assert_fails(dq_tensor_alloc(dev, DQ_F32, -1, 3, &t), DQ_E_INVALID, "[-1, 3]");
    assert_fails(dq_tensor_alloc(dev, DQ_BLOCK, 1, 3, &t), DQ_E_INVALID, "BLOCK");
    assert_fails(dq_tensor_alloc(dev, DQ_F64, INT64_MAX, 3, &t), DQ_E_NOMEM, "does not fit");
    dq_device_close(dev);

    dq_services services = {.struct_size = sizeof services, .abi = 1, .allocator = {refuse_alloc, refuse_free, NULL}};
    dq_env poor;
    OK(dq_env_init(&poor, &services, 1));
    OK(dq_device_open(&poor, "ref", "", DQ_POLICY_FORBID, &dev));
    heap.fail_at = heap.calls + 1;
    heap.for_good = 1;
    assert_fails(dq_tensor_alloc(dev, DQ_F32, 1000, 2, &t), DQ_E_NOMEM, "no memory for a tensor of 8000 bytes");
    assert_true(dq_tensor_is_empty(&t));
    heap.fail_at = 0;
    dq_device_close(dev);
    dq_env_clear(&poor);
}

/* ---- checks ---- */

static void owners_and_shapes(void **state)
{
    (void)state;
    dq_device *one, *two;
    OK(dq_device_open(&env, "ref", "", DQ_POLICY_FORBID, &one));
    OK(dq_device_open(&env, "ref", "", DQ_POLICY_FORBID, &two));
    dq_tensor a = counting_tensor(one, 2, 3, 0), b = counting_tensor(one, 3, 4, 0), c = counting_tensor(one, 2, 4, 0),
              foreign = counting_tensor(two, 3, 4, 0);
    dq_tensor h = counting_tensor(one, 3, 3, 1), f64, codes;
    OK(dq_tensor_alloc(one, DQ_F64, 2, 3, &f64));
    OK(dq_tensor_alloc(one, DQ_U8, 2, 3, &codes));
    assert_fails(dq_op_gemm(0, 0, 1, &a, &foreign, 0, &c, 0), DQ_E_INVALID, "another owner");
    assert_fails(dq_op_gemm(0, 1, 1, &a, &b, 0, &c, 0), DQ_E_INVALID, "gemm: tensor b is [3, 4], must be [3, 3]");
    assert_fails(dq_op_gemm(0, 0, 1, &a, &b, 0, &a, 0), DQ_E_INVALID, "tensor c is [2, 3], must be [2, 4]");
    assert_fails(dq_op_gemm(0, 0, 1, &f64, &b, 0, &c, 0), DQ_E_INVALID, "tensor a is F64, must be F32, F16, BF16");
    assert_fails(dq_op_gemm(0, 0, 1, &a, &h, 0, &a, 0), DQ_E_INVALID, "cannot replace");
    assert_fails(dq_op_gemm(0, 0, 1, &a, &b, 0, &c, 7), DQ_E_INVALID, "DQ_MATH");
    assert_fails(dq_op_gemm(0, 0, 1, &a, NULL, 0, &c, 0), DQ_E_INVALID, "tensor b is missing");
    assert_fails(dq_op_axpy(1, &b, &c), DQ_E_INVALID, "tensor x is [3, 4], must be [2, 4]");
    assert_fails(dq_op_fill(0.5, &codes), DQ_E_INVALID, "does not fit in U8");
    assert_fails(dq_op_fill(256, &codes), DQ_E_INVALID, "does not fit in U8");
    assert_fails(dq_op_convert(&a, &codes), DQ_E_INVALID, "tensor y is U8");
    assert_fails(dq_op_rope(&a, &a, 3, &b), DQ_E_INVALID, "head_dim 3");
    assert_fails(dq_op_rmsnorm(&a, NULL, -1, &a), DQ_E_INVALID, "eps -1");
    assert_fails(dq_op_layernorm(&a, NULL, NULL, -1, &a), DQ_E_INVALID, "eps -1");
    assert_fails(dq_op_layernorm(&a, NULL, &b, 1e-5, &a), DQ_E_INVALID, "tensor bias is [3, 4], must be [1, 3]");
    assert_fails(dq_op_activation(9, &a, NULL, &a), DQ_E_INVALID, "DQ_ACT");
    dq_attention_desc d = {.seqlen = 2, .heads = 3, .kv_heads = 2, .head_dim = 1, .scale = 1};
    assert_fails(dq_op_attention(&d, &a, &a, &a, &f64), DQ_E_INVALID, "tensor o is F64");
    assert_fails(dq_op_attention(&d, &a, &a, &a, &c), DQ_E_INVALID, "3 heads, 2 kv_heads");
    d.kv_heads = 3, d.seqlen = 4;
    assert_fails(dq_op_attention(&d, &a, &a, &a, &c), DQ_E_INVALID, "sequences of 4");
    dq_fake_quant_desc q = {.bits = 16, .group = 3, .clip = 1};
    assert_fails(dq_op_fake_quant(&q, &a, &a), DQ_E_INVALID, "16 bits");
    q.bits = 4, q.group = 2;
    assert_fails(dq_op_fake_quant(&q, &a, &a), DQ_E_INVALID, "groups of 2 do not divide 3");
    q.group = 3, q.clip = 0;
    assert_fails(dq_op_fake_quant(&q, &a, &a), DQ_E_INVALID, "clip ratio 0");
    dq_hadamard_desc had = {.n = 6, .k = 2, .inner = 1, .scale = 1};
    assert_fails(dq_op_hadamard(&had, &a, &a), DQ_E_INVALID, "order 6 is not 2 times a power of two");
    had.n = 3, had.k = 3;
    assert_fails(dq_op_hadamard(&had, &a, &a), DQ_E_INVALID, "no table");
    had.n = 4, had.k = 1;
    assert_fails(dq_op_hadamard(&had, &a, &a), DQ_E_INVALID, "does not divide 3 columns");
    dq_grid_desc g = {.bits = 9, .group = 3};
    assert_fails(dq_op_weight_grid(&g, &a, &b, &c), DQ_E_INVALID, "9 bits");
    g.bits = 4, g.group = 2;
    assert_fails(dq_op_weight_grid(&g, &a, &b, &c), DQ_E_INVALID, "tensor scale is [3, 4], must be [2, 2]");
    assert_fails(dq_op_syrk(1, &a, 0, &c), DQ_E_INVALID, "must be [3, 3]");
    int64_t info = 99;
    assert_fails(dq_op_gptq_factor(&h, NULL, NAN, &h, &info), DQ_E_INVALID, "damping");
    assert_fails(dq_op_gptq_factor(&h, NULL, 0, &h, &info), DQ_E_INVALID, "cannot replace");
    assert_int_equal(info, 99);
    assert_fails(dq_op_qr(&h, &h, NULL), DQ_E_INVALID, "must be different");
    dq_tensor *all[] = {&a, &b, &c, &foreign, &h, &f64, &codes};
    for (size_t i = 0; i < sizeof all / sizeof all[0]; i++) dq_tensor_free(all[i]);
    dq_device_close(one);
    dq_device_close(two);
}

static void overlaps(void **state)
{
    (void)state;
    dq_device *dev;
    OK(dq_device_open(&env, "ref", "", DQ_POLICY_FORBID, &dev));
    dq_tensor x = counting_tensor(dev, 4, 6, 0);
    dq_tensor left = dq_tensor_slice(&x, 0, 4, 0, 3), right = dq_tensor_slice(&x, 0, 4, 3, 3);
    dq_tensor middle = dq_tensor_slice(&x, 0, 4, 2, 3), top = dq_tensor_rows(&x, 0, 2),
              bottom = dq_tensor_rows(&x, 2, 2);
    dq_tensor mixed = dq_tensor_rows(&x, 1, 2);
    OK(dq_op_convert(&left, &right)); /* side by side */
    OK(dq_op_convert(&top, &bottom));
    OK(dq_op_axpy(1, &left, &left)); /* the same view */
    assert_fails(dq_op_convert(&left, &middle), DQ_E_INVALID, "x and y overlap");
    assert_fails(dq_op_convert(&top, &mixed), DQ_E_INVALID, "overlap");
    dq_tensor_free(&x);
    dq_device_close(dev);
}

#define TEST(name) cmocka_unit_test_setup_teardown(name, env_setup, env_teardown)

int main(void)
{
    const struct CMUnitTest tests[] = {
        TEST(invalid_tables), TEST(opening_fails),      TEST(opening_by_name),   TEST(shorter_table),
        TEST(slices),         TEST(impossible_tensors), TEST(owners_and_shapes), TEST(overlaps),
    };
    return cmocka_run_group_tests_name("device checks", tests, NULL, NULL);
}
