/* The built-in thread pool behind dq_run. SPDX-License-Identifier: Apache-2.0 */
#ifndef DQ_BASE_POOL_H
#define DQ_BASE_POOL_H

#include "base/env.h"

typedef struct dq_pool dq_pool;

/* `threads` includes the caller; workers start on first use. */
dq_status dq_pool_new(dq_env *env, int threads, dq_pool **out);
void dq_pool_free(dq_pool *pool);

#endif
