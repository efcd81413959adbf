/* An allocator for dq_env that gives so many blocks and no more. One for each test program. SPDX-License-Identifier: Apache-2.0 */
#ifndef DQ_TESTS_LIMITED_HEAP_H
#define DQ_TESTS_LIMITED_HEAP_H

#include <stdint.h>
#include <stdlib.h>

static int64_t allowed = INT64_MAX;
static void *limited_alloc(void *user, size_t bytes)
{
    (void)user;
    return allowed-- > 0 ? malloc(bytes) : NULL;
}
static void limited_free(void *user, void *ptr, size_t bytes)
{
    (void)user;
    (void)bytes;
    free(ptr);
}

#endif
