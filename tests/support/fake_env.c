/* SPDX-License-Identifier: Apache-2.0 */
#include "fake_env.h"

#include <setjmp.h>
#include <stdarg.h>
#include <stdio.h>
#include <string.h>
#include <cmocka.h>

#include "fake_backend.h"
#include "ok.h"

dq_env env;
struct env_log env_log;

static void log_line(void *user, int32_t level, const char *text)
{
    (void)user;
    if (level != DQ_LOG_WARNING) return;
    env_log.warnings++;
    snprintf(env_log.last, sizeof env_log.last, "%s", text);
}

int env_setup(void **state)
{
    (void)state;
    dq_services services = {.struct_size = sizeof services, .abi = 1, .log = log_line};
    memset(&fake, 0, sizeof fake);
    env_log.warnings = 0;
    return dq_env_init(&env, &services, 2);
}

int env_teardown(void **state)
{
    (void)state;
    dq_env_clear(&env);
    assert_int_equal(atomic_load(&env.memory_now), 0);
    assert_int_equal(fake.blocks, 0);
    assert_int_equal(fake.devices, 0);
    return 0;
}

dq_tensor counting_tensor(dq_device *dev, int64_t rows, int64_t cols, float first)
{
    float values[64];
    dq_tensor t;
    assert_true(rows * cols <= 64);
    for (int i = 0; i < rows * cols; i++) values[i] = first + (float)i;
    OK(dq_tensor_from_host(dev, DQ_F32, rows, cols, values, &t));
    return t;
}

dq_status fake_fill(void *dev, double value, const dq_view *y)
{
    char *base = fake_block(dev, y->mem);
    float v = (float)value;
    for (int64_t r = 0; r < y->rows; r++)
        for (int64_t c = 0; c < y->cols; c++)
            memcpy(base + y->offset + (size_t)(r * y->stride + c) * sizeof v, &v, sizeof v);
    return DQ_OK;
}
