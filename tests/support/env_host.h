/* What a backend is given when a test opens it without the device layer. SPDX-License-Identifier: Apache-2.0 */
#ifndef DQ_TESTS_ENV_HOST_H
#define DQ_TESTS_ENV_HOST_H

#include "base/env.h"
#include "dartquant/backend.h"

/* Memory, threads and error record of `env`. */
dq_host env_host(dq_env *env);

#endif
