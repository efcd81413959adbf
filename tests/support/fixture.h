/* A device with the environment it needs. SPDX-License-Identifier: Apache-2.0 */
#ifndef DQ_TESTS_FIXTURE_H
#define DQ_TESTS_FIXTURE_H

#include "backend/device.h"
#include "base/env.h"

typedef struct fixture {
    dq_env env;
    dq_device *dev;
} fixture;

/* device: "ref" or "cpu", also with options as in "cpu:simd=plain", and no way over the host; or "fake", whose memory the host
 * cannot touch and whose every op goes that way. Opening asserts success, closing that nothing leaked. */
void fixture_open(fixture *f, const char *device, int threads);
/* The same on the services of a host. */
void fixture_open_with(fixture *f, const dq_services *services, const char *device, int threads);
void fixture_close(fixture *f);

/* What lies in a tensor, for the caller to free. */
void *host_copy(const dq_tensor *t);

#endif
