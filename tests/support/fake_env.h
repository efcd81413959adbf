/* The environment on which tests open fake devices: warnings are counted, and nothing may be left after a test.
 * SPDX-License-Identifier: Apache-2.0 */
#ifndef DQ_TESTS_FAKE_ENV_H
#define DQ_TESTS_FAKE_ENV_H

#include "backend/device.h"
#include "base/env.h"

extern dq_env env;
extern struct env_log {
    int warnings;
    char last[256];
} env_log;

/* A test's setup and teardown. */
int env_setup(void **state);
int env_teardown(void **state);

/* At most 64 numbers: first, first + 1, ... */
dq_tensor counting_tensor(dq_device *dev, int64_t rows, int64_t cols, float first);
/* The op fill, for memory of a fake device. */
dq_status fake_fill(void *dev, double value, const dq_view *y);

#endif
