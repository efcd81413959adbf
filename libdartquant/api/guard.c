/* SPDX-License-Identifier: Apache-2.0 */
#include "api/guard.h"

#include <stdbool.h>
#include <stdlib.h>

#include "api/handles.h"
#include "base/status.h"

typedef struct dq_put_off {
    struct dq_put_off *next;
    void (*destroy)(void *object);
    void *object;
} dq_put_off;

/* A number that no other running thread has: cheaper than asking the system. */
static uintptr_t this_thread(void)
{
    static _Thread_local char mark;
    return (uintptr_t)&mark;
}

static bool take(dq_guard *guard, const char *function)
{
    uintptr_t nobody = 0;
    if (!atomic_compare_exchange_strong(&guard->owner, &nobody, this_thread())) return false;
    atomic_store_explicit(&guard->function, function, memory_order_relaxed);
    return true;
}

static void destroy_put_off(dq_guard *guard)
{
    for (dq_put_off *p = atomic_exchange(&guard->off, NULL), *next; p; p = next) {
        next = p->next;
        p->destroy(p->object);
        free(p);
    }
}

/* What is put off between the look at the list and the opening of the door is seen by the second look, here or there. */
static void give_back(dq_guard *guard)
{
    do {
        destroy_put_off(guard);
        atomic_store_explicit(&guard->function, NULL, memory_order_relaxed);
        atomic_store(&guard->owner, 0);
    } while (atomic_load(&guard->off) && take(guard, "freeing"));
}

dq_status dq_context_enter(const dq_context *public, const char *function, dq_context **held)
{
    dq_context *ctx = (dq_context *)(uintptr_t) public;
    if (take(&ctx->guard, function)) {
        *held = dq_context_retain(ctx);
        return DQ_OK;
    }
    bool mine = atomic_load(&ctx->guard.owner) == this_thread();
    const char *inside = atomic_load_explicit(&ctx->guard.function, memory_order_relaxed);
    if (mine)
        return dq_fail(DQ_E_STATE, "%s: called from inside a callback of %s, on the same context", function,
                       inside ? inside : "another call");
    return dq_fail(DQ_E_STATE,
                   "%s: another thread is inside %s on the same context (or this is a task of its runner): one call at "
                   "a time per context",
                   function, inside ? inside : "a call");
}

void dq_context_leave(dq_context **held)
{
    if (!*held) return;
    give_back(&(*held)->guard);
    dq_context_release(*held);
}

void dq_context_discard(dq_context *ctx, void (*destroy)(void *object), void *object)
{
    dq_context_retain(ctx);
    if (take(&ctx->guard, "freeing")) {
        destroy(object);
        give_back(&ctx->guard);
        dq_context_release(ctx);
        return;
    }
    dq_put_off *p = malloc(sizeof *p);
    if (p) {
        *p = (dq_put_off){atomic_load(&ctx->guard.off), destroy, object};
        while (!atomic_compare_exchange_weak(&ctx->guard.off, &p->next, p)) {
        }
        if (take(&ctx->guard, "freeing")) give_back(&ctx->guard); /* the call left meanwhile */
    } else {
        dq_log(&ctx->env, DQ_LOG_ERROR, "out of memory: an object that was freed during a call stays");
    }
    dq_context_release(ctx);
}
