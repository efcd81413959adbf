/* One call at a time per context: who is inside, and what was freed meanwhile. docs/threading.md is the rule.
 * SPDX-License-Identifier: Apache-2.0 */
#ifndef DQ_API_GUARD_H
#define DQ_API_GUARD_H

#include <stdatomic.h>

#include "dartquant/types.h"

struct dq_put_off;

/* Part of every context; all zero = nobody inside. */
typedef struct dq_guard {
    _Atomic(uintptr_t) owner;         /* the thread inside, 0 = none */
    _Atomic(const char *) function;   /* what it called */
    _Atomic(struct dq_put_off *) off; /* objects to free when it leaves */
} dq_guard;

/* Takes the context for the calling thread and keeps it alive; DQ_E_STATE when a call is under way, in this thread (the
 * caller is a callback) or in another. */
dq_status dq_context_enter(const dq_context *ctx, const char *function, dq_context **held);
/* Frees what was put off, then lets the next call in. NULL inside is accepted. */
void dq_context_leave(dq_context **held);
/* Calls destroy(object) now, or when the call under way leaves: an object may be freed at any time and in any thread. */
void dq_context_discard(dq_context *ctx, void (*destroy)(void *object), void *object);

/* First line of every public function that returns a status and uses an object of a context: DQ_ENTER, then the context is
 * held until the function returns. `context` is evaluated only when `required` is true. */
#define DQ_ENTER_CONTEXT(context, required)                                                                            \
    DQ_ENTER(required);                                                                                                \
    dq_context *dq_held_ __attribute__((cleanup(dq_context_leave))) = NULL;                                            \
    DQ_TRY(dq_context_enter((context), __func__, &dq_held_))

#endif
