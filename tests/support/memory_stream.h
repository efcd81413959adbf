/* A job's state kept in memory. SPDX-License-Identifier: Apache-2.0 */
#ifndef DQ_TESTS_MEMORY_STREAM_H
#define DQ_TESTS_MEMORY_STREAM_H

#include <stddef.h>

#include "dartquant/types.h"

typedef struct memory_stream {
    char *data; /* grows; the test frees it */
    size_t size, at;
} memory_stream;

/* For dq_put and dq_get with a memory_stream as arg. Reading goes on at `at`; there is no more: DQ_E_TRUNCATED. */
dq_status memory_put(void *arg, const void *data, uint64_t bytes);
dq_status memory_get(void *arg, void *data, uint64_t bytes);

#endif
