/* A host's allocator that counts and refuses when told to. One for each test program. SPDX-License-Identifier: Apache-2.0 */
#ifndef DQ_TESTS_REFUSING_HEAP_H
#define DQ_TESTS_REFUSING_HEAP_H

#include <stddef.h>

/* live: blocks that are not freed. The call number fail_at is refused (0: none), with for_good every later one, too. */
extern struct refusing_heap {
    long live, calls, fail_at;
    int for_good;
} heap;

/* For dq_allocator; `user` is not looked at. */
void *refuse_alloc(void *user, size_t bytes);
void refuse_free(void *user, void *ptr, size_t bytes);

#endif
