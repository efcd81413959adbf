/* backend: what a device does itself, what runs on the host and what fails: the policy, counts, errors, memory.
 * SPDX-License-Identifier: Apache-2.0 */
#include <math.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <cmocka.h>

#include "base/status.h"
#include "fake_backend.h"
#include "fake_env.h"
#include "ok.h"
#include "refusing_heap.h"

/* ---- slots that answer badly ---- */

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

/* ---- policy ---- */

static void forbid(void **state)
{
    (void)state;
    dq_device *dev;
    dq_backend t = fake_backend();
    t.fill = says_no;
    OK(dq_device_open_table(&env, &t, "", DQ_POLICY_FORBID, &dev));
    dq_tensor x = counting_tensor(dev, 2, 2, 1), y = counting_tensor(dev, 2, 2, 9);
    assert_fails(dq_op_axpy(1, &x, &y), DQ_E_UNSUPPORTED, "op axpy is not supported by device fake:0");
    assert_string_equal(dq_error_backend(), "fake:0");
    assert_fails(dq_op_fill(4, &y), DQ_E_UNSUPPORTED, "values above three");
    assert_int_equal(dq_error_vendor_code(), 9);
    float got[4];
    OK(dq_tensor_download(&y, got));
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
        env_log.warnings = 0;
        OK(dq_device_open_table(&env, &t, "", policy, &dev));
        dq_tensor x = counting_tensor(dev, 4, 4, 0), y = counting_tensor(dev, 2, 2, 1);
        dq_tensor part = dq_tensor_slice(&x, 1, 2, 1, 2);
        for (int i = 0; i < 3; i++) OK(dq_op_axpy(1, &y, &part));
        assert_int_equal(env_log.warnings, policy == DQ_POLICY_WARN ? 1 : 0);
        assert_int_equal(dq_device_fallbacks(dev), 3);
        OK(dq_op_fill(4, &y));
        assert_int_equal(env_log.warnings, policy == DQ_POLICY_WARN ? 2 : 0);
        if (policy == DQ_POLICY_WARN) assert_non_null(strstr(env_log.last, "op fill runs on the host"));
        assert_int_equal(dq_device_fallbacks(dev), 4);
        float got[16];
        OK(dq_tensor_download(&x, got));
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
    t.fill = fake_fill;
    OK(dq_device_open_table(&env, &t, "", DQ_POLICY_WARN, &dev));
    dq_tensor x = counting_tensor(dev, 3, 3, 0);
    int64_t moved = fake.uploads + fake.downloads;
    OK(dq_op_fill(2.5, &x));
    assert_int_equal(fake.uploads + fake.downloads, moved);
    assert_int_equal(dq_device_fallbacks(dev), 0);
    float got[9];
    OK(dq_tensor_download(&x, got));
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
    OK(dq_device_open_table(&env, &t, "", DQ_POLICY_ALLOW, &dev));
    dq_tensor x = counting_tensor(dev, 3, 3, 0);
    int64_t moved = fake.uploads + fake.downloads;
    OK(dq_op_axpy(1, &x, &x));
    assert_int_equal(fake.uploads + fake.downloads, moved);
    assert_int_equal(fake.syncs, 1);
    assert_int_equal(dq_device_fallbacks(dev), 1);
    float got[9];
    OK(dq_tensor_download(&x, got));
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
        OK(dq_device_open_table(&env, &t, "", DQ_POLICY_ALLOW, &dev));
        dq_tensor x = counting_tensor(dev, 2, 2, 1);
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
    OK(dq_device_open_table(&env, &t, "", DQ_POLICY_FORBID, &dev));
    dq_tensor x = counting_tensor(dev, 2, 2, 1), y = counting_tensor(dev, 2, 2, 1);
    assert_fails(dq_op_fill(4, &x), DQ_E_UNSUPPORTED, "values above three");
    assert_fails(dq_op_convert(&x, &y), DQ_E_UNSUPPORTED, "op convert");
    assert_null(strstr(dq_error_text(), "three"));
    dq_tensor_free(&x);
    dq_tensor_free(&y);
    dq_device_close(dev);
    t.fill = silent_no;
    OK(dq_device_open_table(&env, &t, "", DQ_POLICY_ALLOW, &dev));
    x = counting_tensor(dev, 2, 2, 1);
    OK(dq_op_fill(4, &x));
    assert_int_equal(dq_device_fallbacks(dev), 1);
    dq_tensor_free(&x);
    dq_device_close(dev);
}

static void transfers_fail_during_fallback(void **state)
{
    (void)state;
    dq_device *dev;
    dq_backend t = fake_backend();
    OK(dq_device_open_table(&env, &t, "", DQ_POLICY_ALLOW, &dev));
    dq_tensor x = counting_tensor(dev, 2, 2, 1), y = counting_tensor(dev, 2, 2, 1);
    fake.fail_download = 2;
    assert_fails(dq_op_axpy(1, &x, &y), DQ_E_BACKEND, "lost a download");
    assert_int_equal(dq_error_vendor_code(), 42);
    fake.fail_upload = 1;
    assert_fails(dq_op_axpy(1, &x, &y), DQ_E_BACKEND, "lost an upload");
    int32_t bad[] = {0, 5};
    dq_tensor index;
    OK(dq_tensor_from_host(dev, DQ_I32, 1, 2, bad, &index));
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
    dq_services services = {.struct_size = sizeof services, .abi = 1, .allocator = {refuse_alloc, refuse_free, NULL}};
    dq_env e;
    OK(dq_env_init(&e, &services, 1));
    int failed = 0;
    heap.for_good = 1;
    for (int i = 1;; i++) {
        heap.calls = 0;
        heap.fail_at = i;
        dq_status status = small_job(&e);
        heap.fail_at = 0;
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
    assert_int_equal(heap.live, 0);
}

#define TEST(name) cmocka_unit_test_setup_teardown(name, env_setup, env_teardown)

int main(void)
{
    const struct CMUnitTest tests[] = {
        TEST(forbid),
        TEST(warn_and_allow),
        TEST(own_ops_stay),
        TEST(host_pointer_is_used),
        TEST(errors_are_no_fallback),
        TEST(messages_do_not_linger),
        TEST(transfers_fail_during_fallback),
        TEST(every_allocation_fails_once),
    };
    return cmocka_run_group_tests_name("device fallback", tests, NULL, NULL);
}
