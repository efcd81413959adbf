/* SPDX-License-Identifier: Apache-2.0 */
#include "env_host.h"

#include "base/status.h"

static void *take(void *self, size_t bytes) { return dq_alloc(self, bytes); }

static void give_back(void *self, void *ptr)
{
    (void)self;
    dq_free(ptr);
}

static void run(void *self, int64_t count, void (*task)(void *, int64_t, int), void *arg)
{
    dq_run(self, count, task, arg);
}

static int threads(void *self) { return dq_threads(self); }

static dq_status record(void *self, dq_status status, int64_t code, const char *message)
{
    (void)self;
    (void)code;
    return dq_fail(status, "%s", message);
}

dq_host env_host(dq_env *env)
{
    return (dq_host){sizeof(dq_host), DQ_BACKEND_ABI, env, take, give_back, run, threads, record};
}
