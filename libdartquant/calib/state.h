/* The state of a job as a sequence of bytes. SPDX-License-Identifier: Apache-2.0 */
#ifndef DQ_CALIB_STATE_H
#define DQ_CALIB_STATE_H

#include "backend/device.h"

/* Where bytes go, and where they come back from in the same order. */
typedef struct dq_put {
    dq_status (*fn)(void *arg, const void *data, uint64_t bytes);
    void *arg;
} dq_put;
typedef struct dq_get {
    dq_status (*fn)(void *arg, void *data, uint64_t bytes);
    void *arg;
} dq_get;

static inline dq_status dq_put_bytes(const dq_put *put, const void *data, uint64_t bytes)
{
    return put->fn(put->arg, data, bytes);
}
static inline dq_status dq_get_bytes(const dq_get *get, void *data, uint64_t bytes)
{
    return get->fn(get->arg, data, bytes);
}
/* A tensor's numbers piece by piece; nothing for an empty tensor. */
dq_status dq_put_tensor(dq_env *env, const dq_put *put, const dq_tensor *t);
dq_status dq_get_tensor(dq_env *env, const dq_get *get, dq_tensor *t);

#endif
