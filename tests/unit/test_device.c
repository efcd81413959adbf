/* backend: opening tables, tensors, checks of ops, and the way over the host. SPDX-License-Identifier: Apache-2.0 */
#include <math.h>
#include <stdarg.h>
#include <setjmp.h>
#include <stddef.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <cmocka.h>

#include "backend/device.h"
#include "backend/ref/ref.h"
#include "base/status.h"
#include "fake_backend.h"

static int warnings;
static char last_warning[256];

static void log_line(void *user, int32_t level, const char *text)
{
    (void)user;
    if (level != DQ_LOG_WARNING) return;
    warnings++;
    snprintf(last_warning, sizeof last_warning, "%s", text);
}

static dq_env env;

static int set_up(void **state)
{
    (void)state;
    dq_services services = {.struct_size = sizeof services, .abi = 1, .log = log_line};
    memset(&fake, 0, sizeof fake);
    warnings = 0;
    return dq_env_init(&env, &services, 2);
}

/* Whatever a test did, nothing may be left. */
static int tear_down(void **state)
{
    (void)state;
    dq_env_clear(&env);
    assert_int_equal(atomic_load(&env.memory_now), 0);
    assert_int_equal(fake.blocks, 0);
    assert_int_equal(fake.devices, 0);
    return 0;
}

#define assert_fails(call, status, text)                                                                               \
    do {                                                                                                               \
        assert_int_equal(call, status);                                                                                \
        assert_int_equal(dq_error_last(), status);                                                                     \
        if (!strstr(dq_error_text(), text)) {                                                                          \
            print_error("error text: %s\n", dq_error_text());                                                          \
            fail();                                                                                                    \
        }                                                                                                              \
    } while (0)
#define assert_ok(call) assert_int_equal(call, DQ_OK)

static dq_tensor tensor(dq_device *dev, int64_t rows, int64_t cols, float first)
{
    float values[64];
    dq_tensor t;
    assert_true(rows * cols <= 64);
    for (int i = 0; i < rows * cols; i++) values[i] = first + (float)i;
    assert_ok(dq_tensor_from_host(dev, DQ_F32, rows, cols, values, &t));
    return t;
}

/* An allocator that refuses after a number of requests. */
typedef struct budget {
    int left; /* allocations until one fails; -1 = never */
} budget;

static void *budget_alloc(void *user, size_t bytes)
{
    budget *b = user;
    if (b->left == 0) return NULL;
    if (b->left > 0) b->left--;
    return malloc(bytes);
}

static void budget_free(void *user, void *ptr, size_t bytes)
{
    (void)user;
    (void)bytes;
    free(ptr);
}

/* ---- tables ---- */

static void invalid_tables(void **state)
{
    (void)state;
    dq_device *dev = (dq_device *)&warnings;
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
    assert_ptr_equal(dev, &warnings); /* untouched */
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
        assert_ok(dq_device_open(&env, names[i][0], NULL, DQ_POLICY_FORBID, &dev));
        assert_ok(dq_device_get_info(dev, &info));
        assert_int_equal(strncmp(info.name, names[i][1], strlen(names[i][1])), 0);
        assert_true(info.description[0] != '\0');
        assert_ptr_equal(dq_device_env(dev), &env);
        dq_device_close(dev);
    }
    dq_device_close(NULL);
}

static dq_status fill_slot(void *dev, double value, const dq_view *y)
{
    char *base = fake_block(dev, y->mem);
    for (int64_t r = 0; r < y->rows; r++)
        for (int64_t c = 0; c < y->cols; c++) {
            float v = (float)value;
            memcpy(base + y->offset + (size_t)(r * y->stride + c) * 4, &v, 4);
        }
    return DQ_OK;
}

/* A backend built against an older header: the table ends before the op slots, whatever lies behind. */
static void shorter_table(void **state)
{
    (void)state;
    dq_device *dev;
    dq_backend t = fake_backend();
    t.fill = fill_slot;
    t.struct_size = offsetof(dq_backend, fill);
    assert_ok(dq_device_open_table(&env, &t, "", DQ_POLICY_FORBID, &dev));
    dq_tensor x = tensor(dev, 2, 2, 1);
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
    assert_ok(dq_device_open_table(&env, &t, "", DQ_POLICY_ALLOW, &dev));
    dq_tensor x = tensor(dev, 4, 5, 0);
    dq_tensor part = dq_tensor_slice(&x, 1, 2, 3, 2);
    assert_ok(dq_tensor_download(&part, got));
    const float expected[] = {8, 9, 13, 14};
    assert_memory_equal(got, expected, sizeof expected);
    const float fresh[] = {-1, -2, -3, -4};
    assert_ok(dq_tensor_upload(&part, fresh));
    assert_ok(dq_tensor_download(&x, got));
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
    assert_ok(dq_device_open(&env, "ref", "", DQ_POLICY_FORBID, &dev));
    assert_fails(dq_tensor_alloc(dev, DQ_F32, -1, 3, &t), DQ_E_INVALID, "[-1, 3]");
    assert_fails(dq_tensor_alloc(dev, DQ_BLOCK, 1, 3, &t), DQ_E_INVALID, "BLOCK");
    assert_fails(dq_tensor_alloc(dev, DQ_F64, INT64_MAX, 3, &t), DQ_E_NOMEM, "does not fit");
    dq_device_close(dev);

    budget b = {-1};
    dq_services services = {.struct_size = sizeof services, .abi = 1, .allocator = {budget_alloc, budget_free, &b}};
    dq_env poor;
    assert_ok(dq_env_init(&poor, &services, 1));
    assert_ok(dq_device_open(&poor, "ref", "", DQ_POLICY_FORBID, &dev));
    b.left = 0;
    assert_fails(dq_tensor_alloc(dev, DQ_F32, 1000, 2, &t), DQ_E_NOMEM, "no memory for a tensor of 8000 bytes");
    assert_true(dq_tensor_is_empty(&t));
    b.left = -1;
    dq_device_close(dev);
    dq_env_clear(&poor);
}

/* ---- checks ---- */

static void owners_and_shapes(void **state)
{
    (void)state;
    dq_device *one, *two;
    assert_ok(dq_device_open(&env, "ref", "", DQ_POLICY_FORBID, &one));
    assert_ok(dq_device_open(&env, "ref", "", DQ_POLICY_FORBID, &two));
    dq_tensor a = tensor(one, 2, 3, 0), b = tensor(one, 3, 4, 0), c = tensor(one, 2, 4, 0),
              foreign = tensor(two, 3, 4, 0);
    dq_tensor h = tensor(one, 3, 3, 1), f64, codes;
    assert_ok(dq_tensor_alloc(one, DQ_F64, 2, 3, &f64));
    assert_ok(dq_tensor_alloc(one, DQ_U8, 2, 3, &codes));
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
    assert_ok(dq_device_open(&env, "ref", "", DQ_POLICY_FORBID, &dev));
    dq_tensor x = tensor(dev, 4, 6, 0);
    dq_tensor left = dq_tensor_slice(&x, 0, 4, 0, 3), right = dq_tensor_slice(&x, 0, 4, 3, 3);
    dq_tensor middle = dq_tensor_slice(&x, 0, 4, 2, 3), top = dq_tensor_rows(&x, 0, 2),
              bottom = dq_tensor_rows(&x, 2, 2);
    dq_tensor mixed = dq_tensor_rows(&x, 1, 2);
    assert_ok(dq_op_convert(&left, &right)); /* side by side */
    assert_ok(dq_op_convert(&top, &bottom));
    assert_ok(dq_op_axpy(1, &left, &left)); /* the same view */
    assert_fails(dq_op_convert(&left, &middle), DQ_E_INVALID, "x and y overlap");
    assert_fails(dq_op_convert(&top, &mixed), DQ_E_INVALID, "overlap");
    dq_tensor_free(&x);
    dq_device_close(dev);
}

/* ---- policy ---- */

static dq_status says_no(void *dev, double value, const dq_view *y)
{
    (void)value;
    (void)y;
    const dq_host *host = fake_host(dev);
    return (host->fail)(host->self, DQ_E_UNSUPPORTED, 9, "values above three");
}

static dq_status silent_no(void *dev, double value, const dq_view *y)
{
    (void)dev;
    (void)value;
    (void)y;
    return DQ_E_UNSUPPORTED;
}

static dq_status breaks(void *dev, double value, const dq_view *y)
{
    (void)value;
    (void)y;
    const dq_host *host = fake_host(dev);
    return (host->fail)(host->self, DQ_E_BACKEND, 77, "cable pulled");
}

static dq_status breaks_silently(void *dev, double value, const dq_view *y)
{
    (void)dev;
    (void)value;
    (void)y;
    return DQ_E_DEVICE_LOST;
}

static void fail_in_task(void *arg, int64_t i, int thread)
{
    (void)thread;
    const dq_host *host = arg;
    if (i == 63) (host->fail)(host->self, DQ_E_BACKEND, 5, "said by a worker");
}

static dq_status breaks_on_worker(void *dev, double value, const dq_view *y)
{
    (void)value;
    (void)y;
    const dq_host *host = fake_host(dev);
    host->run(host->self, 64, fail_in_task, (void *)host);
    return DQ_E_BACKEND;
}

static void forbid(void **state)
{
    (void)state;
    dq_device *dev;
    dq_backend t = fake_backend();
    t.fill = says_no;
    assert_ok(dq_device_open_table(&env, &t, "", DQ_POLICY_FORBID, &dev));
    dq_tensor x = tensor(dev, 2, 2, 1), y = tensor(dev, 2, 2, 9);
    assert_fails(dq_op_axpy(1, &x, &y), DQ_E_UNSUPPORTED, "op axpy is not supported by device fake:0");
    assert_string_equal(dq_error_backend(), "fake:0");
    assert_fails(dq_op_fill(4, &y), DQ_E_UNSUPPORTED, "values above three");
    assert_int_equal(dq_error_vendor_code(), 9);
    float got[4];
    assert_ok(dq_tensor_download(&y, got));
    for (int i = 0; i < 4; i++) assert_true(got[i] == 9 + (float)i);
    assert_int_equal(dq_device_fallbacks(dev), 0);
    dq_tensor_free(&x);
    dq_tensor_free(&y);
    dq_device_close(dev);
}

static void warn_and_allow(void **state)
{
    (void)state;
    for (int policy = DQ_POLICY_WARN; policy <= DQ_POLICY_ALLOW; policy++) {
        dq_device *dev;
        dq_backend t = fake_backend();
        t.fill = says_no;
        warnings = 0;
        assert_ok(dq_device_open_table(&env, &t, "", policy, &dev));
        dq_tensor x = tensor(dev, 4, 4, 0), y = tensor(dev, 2, 2, 1);
        dq_tensor part = dq_tensor_slice(&x, 1, 2, 1, 2);
        for (int i = 0; i < 3; i++) assert_ok(dq_op_axpy(1, &y, &part));
        assert_int_equal(warnings, policy == DQ_POLICY_WARN ? 1 : 0);
        assert_int_equal(dq_device_fallbacks(dev), 3);
        assert_ok(dq_op_fill(4, &y));
        assert_int_equal(warnings, policy == DQ_POLICY_WARN ? 2 : 0);
        if (policy == DQ_POLICY_WARN) assert_non_null(strstr(last_warning, "op fill runs on the host"));
        assert_int_equal(dq_device_fallbacks(dev), 4);
        float got[16];
        assert_ok(dq_tensor_download(&x, got));
        for (int i = 0; i < 16; i++) { /* 3 * y was added inside, nothing outside */
            int r = i / 4 - 1, c = i % 4 - 1;
            bool inside = r >= 0 && r < 2 && c >= 0 && c < 2;
            assert_true(got[i] == (float)i + (inside ? 3 * (float)(1 + 2 * r + c) : 0));
        }
        dq_tensor_free(&x);
        dq_tensor_free(&y);
        dq_device_close(dev);
    }
}

/* What the device does itself is neither counted nor moved. */
static void own_ops_stay(void **state)
{
    (void)state;
    dq_device *dev;
    dq_backend t = fake_backend();
    t.fill = fill_slot;
    assert_ok(dq_device_open_table(&env, &t, "", DQ_POLICY_WARN, &dev));
    dq_tensor x = tensor(dev, 3, 3, 0);
    int64_t moved = fake.uploads + fake.downloads;
    assert_ok(dq_op_fill(2.5, &x));
    assert_int_equal(fake.uploads + fake.downloads, moved);
    assert_int_equal(dq_device_fallbacks(dev), 0);
    float got[9];
    assert_ok(dq_tensor_download(&x, got));
    for (int i = 0; i < 9; i++) assert_true(got[i] == 2.5f);
    dq_tensor_free(&x);
    dq_device_close(dev);
}

static void *reachable(void *dev, void *mem) { return fake_block(dev, mem); }

/* Memory the host can touch is used in place, after a sync. */
static void host_pointer_is_used(void **state)
{
    (void)state;
    dq_device *dev;
    dq_backend t = fake_backend();
    t.host_pointer = reachable;
    assert_ok(dq_device_open_table(&env, &t, "", DQ_POLICY_ALLOW, &dev));
    dq_tensor x = tensor(dev, 3, 3, 0);
    int64_t moved = fake.uploads + fake.downloads;
    assert_ok(dq_op_axpy(1, &x, &x));
    assert_int_equal(fake.uploads + fake.downloads, moved);
    assert_int_equal(fake.syncs, 1);
    assert_int_equal(dq_device_fallbacks(dev), 1);
    float got[9];
    assert_ok(dq_tensor_download(&x, got));
    for (int i = 0; i < 9; i++) assert_true(got[i] == 2 * (float)i);
    dq_tensor_free(&x);
    dq_device_close(dev);
}

static void errors_are_no_fallback(void **state)
{
    (void)state;
    static const struct {
        dq_status (*fill)(void *dev, double value, const dq_view *y);
        dq_status status;
        const char *text;
        int64_t code;
    } cases[] = {{breaks, DQ_E_BACKEND, "cable pulled", 77},
                 {breaks_silently, DQ_E_DEVICE_LOST, "fill failed with DQ_E_DEVICE_LOST and no message", 0},
                 {breaks_on_worker, DQ_E_BACKEND, "said by a worker", 5}};
    for (int i = 0; i < 3; i++) {
        dq_device *dev;
        dq_backend t = fake_backend();
        t.fill = cases[i].fill;
        assert_ok(dq_device_open_table(&env, &t, "", DQ_POLICY_ALLOW, &dev));
        dq_tensor x = tensor(dev, 2, 2, 1);
        assert_fails(dq_op_fill(4, &x), cases[i].status, cases[i].text);
        assert_string_equal(dq_error_backend(), "fake:0");
        assert_int_equal(dq_error_vendor_code(), cases[i].code);
        assert_int_equal(dq_device_fallbacks(dev), 0);
        dq_tensor_free(&x);
        dq_device_close(dev);
    }
}

/* A stale message of an earlier "not supported" must not colour a later error. */
static void messages_do_not_linger(void **state)
{
    (void)state;
    dq_device *dev;
    dq_backend t = fake_backend();
    t.fill = says_no;
    t.convert = NULL;
    assert_ok(dq_device_open_table(&env, &t, "", DQ_POLICY_FORBID, &dev));
    dq_tensor x = tensor(dev, 2, 2, 1), y = tensor(dev, 2, 2, 1);
    assert_fails(dq_op_fill(4, &x), DQ_E_UNSUPPORTED, "values above three");
    assert_fails(dq_op_convert(&x, &y), DQ_E_UNSUPPORTED, "op convert");
    assert_null(strstr(dq_error_text(), "three"));
    dq_tensor_free(&x);
    dq_tensor_free(&y);
    dq_device_close(dev);
    t.fill = silent_no;
    assert_ok(dq_device_open_table(&env, &t, "", DQ_POLICY_ALLOW, &dev));
    x = tensor(dev, 2, 2, 1);
    assert_ok(dq_op_fill(4, &x));
    assert_int_equal(dq_device_fallbacks(dev), 1);
    dq_tensor_free(&x);
    dq_device_close(dev);
}

static void transfers_fail_during_fallback(void **state)
{
    (void)state;
    dq_device *dev;
    dq_backend t = fake_backend();
    assert_ok(dq_device_open_table(&env, &t, "", DQ_POLICY_ALLOW, &dev));
    dq_tensor x = tensor(dev, 2, 2, 1), y = tensor(dev, 2, 2, 1);
    fake.fail_download = 2;
    assert_fails(dq_op_axpy(1, &x, &y), DQ_E_BACKEND, "lost a download");
    assert_int_equal(dq_error_vendor_code(), 42);
    fake.fail_upload = 1;
    assert_fails(dq_op_axpy(1, &x, &y), DQ_E_BACKEND, "lost an upload");
    int32_t bad[] = {0, 5};
    dq_tensor index;
    assert_ok(dq_tensor_from_host(dev, DQ_I32, 1, 2, bad, &index));
    assert_fails(dq_op_gather_rows(&x, &index, &y), DQ_E_INVALID, "index[1] is 5");
    assert_string_equal(dq_error_backend(), "ref");
    dq_tensor_free(&index);
    dq_tensor_free(&x);
    dq_tensor_free(&y);
    dq_device_close(dev);
}

/* ---- out of memory ---- */

static dq_status small_job(dq_env *e)
{
    dq_device *dev = NULL;
    dq_backend t = fake_backend();
    dq_tensor h = {0}, u = {0};
    static const float values[9] = {2, 0, 0, 1, 3, 0, 0, 1, 4};
    int64_t info;
    dq_status status;
    DQ_GO(dq_device_open_table(e, &t, "", DQ_POLICY_ALLOW, &dev));
    DQ_GO(dq_tensor_from_host(dev, DQ_F32, 3, 3, values, &h));
    DQ_GO(dq_tensor_alloc(dev, DQ_F32, 3, 3, &u));
    DQ_GO(dq_op_gptq_factor(&h, NULL, 0, &u, &info));
done:
    dq_tensor_free(&h);
    dq_tensor_free(&u);
    dq_device_close(dev);
    return status;
}

static void every_allocation_fails_once(void **state)
{
    (void)state;
    budget b = {-1};
    dq_services services = {.struct_size = sizeof services, .abi = 1, .allocator = {budget_alloc, budget_free, &b}};
    dq_env e;
    assert_ok(dq_env_init(&e, &services, 1));
    int failed = 0;
    for (int i = 0;; i++) {
        b.left = i;
        dq_status status = small_job(&e);
        b.left = -1;
        assert_int_equal(fake.blocks, 0);
        assert_int_equal(fake.devices, 0);
        if (status == DQ_OK) break;
        assert_int_equal(status, DQ_E_NOMEM);
        assert_true(dq_error_text()[0] != '\0');
        failed++;
    }
    assert_true(failed >= 6); /* device, ref, fake, two staged operands, scratch */
    dq_env_clear(&e);
    assert_int_equal(atomic_load(&e.memory_now), 0);
}

#define TEST(name) cmocka_unit_test_setup_teardown(name, set_up, tear_down)

int main(void)
{
    const struct CMUnitTest tests[] = {
        TEST(invalid_tables),
        TEST(opening_fails),
        TEST(opening_by_name),
        TEST(shorter_table),
        TEST(slices),
        TEST(impossible_tensors),
        TEST(owners_and_shapes),
        TEST(overlaps),
        TEST(forbid),
        TEST(warn_and_allow),
        TEST(own_ops_stay),
        TEST(host_pointer_is_used),
        TEST(errors_are_no_fallback),
        TEST(messages_do_not_linger),
        TEST(transfers_fail_during_fallback),
        TEST(every_allocation_fails_once),
    };
    return cmocka_run_group_tests_name("device", tests, NULL, NULL);
}
