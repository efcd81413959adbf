/* The services every room works with: memory, threads, log. One dq_env lives in each dq_context.
 * SPDX-License-Identifier: Apache-2.0 */
#ifndef DQ_BASE_ENV_H
#define DQ_BASE_ENV_H

#include <stdatomic.h>
#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "dartquant/context.h"
#include "dartquant/types.h"

typedef struct dq_env {
    dq_allocator allocator;
    dq_log_fn log;
    void *log_user;
    dq_runner runner; /* run == NULL: the built-in pool */
    struct dq_pool *pool;
    int threads;
    uint64_t memory_budget; /* bytes the jobs may keep resident beyond the minimum; 0 = automatic */
    atomic_uint_least64_t memory_now;
    atomic_uint_least64_t memory_peak;
} dq_env;

/* `services` may be NULL (malloc, silent, built-in threads). threads <= 0 means one per online processor. */
dq_status dq_env_init(dq_env *env, const dq_services *services, int threads);
void dq_env_clear(dq_env *env);

/* 64-byte aligned, counted. dq_alloc leaves the memory uninitialised, dq_calloc zeroes it; both record an error when
 * they return NULL. Size zero gives a valid pointer. dq_free accepts NULL and finds its environment itself. */
void *dq_alloc(dq_env *env, size_t bytes);
void *dq_calloc(dq_env *env, size_t count, size_t size);
void *dq_realloc(dq_env *env, void *ptr, size_t bytes);
void dq_free(void *ptr);
/* The environment a block of dq_alloc belongs to. */
dq_env *dq_env_of(const void *ptr);
char *dq_strdup(dq_env *env, const char *s);
char *dq_strndup(dq_env *env, const char *s, size_t n);
/* printf into fresh memory; NULL (error recorded) when out of memory. */
char *dq_asprintf(dq_env *env, const char *fmt, ...) __attribute__((format(printf, 2, 3)));

/* *out = a * b or a + b; false when it does not fit. */
static inline bool dq_mul_ok(size_t a, size_t b, size_t *out) { return !__builtin_mul_overflow(a, b, out); }
static inline bool dq_add_ok(size_t a, size_t b, size_t *out) { return !__builtin_add_overflow(a, b, out); }

void dq_log(dq_env *env, int level, const char *fmt, ...) __attribute__((format(printf, 3, 4)));

/* Calls task(arg, i, thread) for i in [0, count) on up to env->threads threads; returns when all are done. Tasks
 * must not depend on which thread runs them, so that results do not depend on the number of threads. */
typedef void (*dq_task_fn)(void *arg, int64_t i, int thread);
void dq_run(dq_env *env, int64_t count, dq_task_fn task, void *arg);
static inline int dq_threads(const dq_env *env) { return env->threads; }

#endif
