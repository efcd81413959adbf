/* SPDX-License-Identifier: Apache-2.0 */
#include "fixture.h"

#include <setjmp.h>
#include <stdarg.h>
#include <stdlib.h>
#include <string.h>
#include <cmocka.h>

#include "base/status.h"
#include "fake_backend.h"
#include "ok.h"

void fixture_open_with(fixture *f, const dq_services *services, const char *device, int threads)
{
    static dq_backend table;
    const char *colon = strchr(device, ':');
    char name[16] = "";
    OK(dq_env_init(&f->env, services, threads));
    if (strcmp(device, "fake") == 0) {
        table = fake_backend();
        OK(dq_device_open_table(&f->env, &table, "", DQ_POLICY_ALLOW, &f->dev));
        return;
    }
    strncpy(name, device, colon ? (size_t)(colon - device) : sizeof name - 1);
    OK(dq_device_open(&f->env, name, colon ? colon + 1 : "", DQ_POLICY_FORBID, &f->dev));
}

void fixture_open(fixture *f, const char *device, int threads) { fixture_open_with(f, NULL, device, threads); }

void fixture_close(fixture *f)
{
    dq_device_close(f->dev);
    dq_env_clear(&f->env);
    assert_int_equal(atomic_load(&f->env.memory_now), 0);
}

void *host_copy(const dq_tensor *t)
{
    void *data = malloc((size_t)(t->view.rows * t->view.cols) * dq_dtype_size(t->view.dtype));
    OK(dq_tensor_download(t, data));
    return data;
}
