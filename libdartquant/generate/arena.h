/* Memory for weights that stay: pieces of large allocations, which a system can back with large pages.
 * SPDX-License-Identifier: Apache-2.0 */
#ifndef DQ_GENERATE_ARENA_H
#define DQ_GENERATE_ARENA_H

#include "backend/device.h"

typedef struct dq_arena {
    dq_device *dev;
    dq_tensor *chunks;
    int64_t count;
    /* the chunk being filled */
    void *mem;
    int64_t size, used;
} dq_arena;

/* A tensor that lives as long as the arena; contents undefined. */
dq_status dq_arena_take(dq_arena *arena, dq_dtype dtype, int64_t rows, int64_t cols, dq_tensor *out);
void dq_arena_free(dq_arena *arena);

#endif
