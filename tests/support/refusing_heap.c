/* A host's allocator that counts and refuses when told to. SPDX-License-Identifier: Apache-2.0 */
#include "refusing_heap.h"

#include <stdlib.h>

struct refusing_heap heap;

void *refuse_alloc(void *user, size_t bytes)
{
    (void)user;
    long call = __atomic_add_fetch(&heap.calls, 1, __ATOMIC_SEQ_CST);
    if (heap.fail_at && (call == heap.fail_at || (heap.for_good && call > heap.fail_at))) return NULL;
    void *p = malloc(bytes);
    if (p) __atomic_add_fetch(&heap.live, 1, __ATOMIC_SEQ_CST);
    return p;
}

void refuse_free(void *user, void *ptr, size_t bytes)
{
    (void)user;
    (void)bytes;
    __atomic_sub_fetch(&heap.live, 1, __ATOMIC_SEQ_CST);
    free(ptr);
}
