/* Memory and log of an environment. SPDX-License-Identifier: Apache-2.0 */
#include "base/env.h"

#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <unistd.h>

#include "base/open_struct.h"
#include "base/pool.h"
#include "base/status.h"

#define ALIGNMENT ((size_t)64)

/* Stands right before every block; the raw pointer is what the allocator gave. */
typedef struct block_header {
    dq_env *env;
    void *raw;
    size_t raw_bytes;
    size_t bytes;
} block_header;

_Static_assert(sizeof(block_header) <= ALIGNMENT, "a header fits in one alignment unit");

/* Weights and activations are read from end to end: on large pages, where the system gives them when asked, that is up to a
 * half faster than on small ones. */
enum { LARGE_PAGE = 2 << 20, LARGE = 2 * LARGE_PAGE };

static void *default_alloc(void *user, size_t bytes)
{
    (void)user;
#if defined(MADV_HUGEPAGE)
    if (bytes >= LARGE && bytes <= SIZE_MAX - LARGE_PAGE) {
        void *ptr = NULL;
        if (posix_memalign(&ptr, LARGE_PAGE, bytes) != 0) return NULL;
        madvise(ptr, bytes / LARGE_PAGE * LARGE_PAGE, MADV_HUGEPAGE); /* a wish: without it all works as well */
        return ptr;
    }
#endif
    return malloc(bytes);
}

static void default_free(void *user, void *ptr, size_t bytes)
{
    (void)user;
    (void)bytes;
    free(ptr);
}

static dq_status take_services(dq_env *env, const dq_services *services)
{
    dq_services s;
    DQ_TRY(DQ_TAKE_STRUCT(&s, services, dq_services, log_user));
    if (s.abi != 1) return dq_fail(DQ_E_INVALID, "dq_services: abi is %u, this library knows 1", s.abi);
    if (!s.allocator.alloc != !s.allocator.free)
        return dq_fail(DQ_E_INVALID, "dq_services: allocator needs both alloc and free, or neither");
    if (s.runner.run && s.runner.threads < 1)
        return dq_fail(DQ_E_INVALID, "dq_services: runner.threads must be at least 1");
    if (s.allocator.alloc) env->allocator = s.allocator;
    env->runner = s.runner;
    env->log = s.log;
    env->log_user = s.log_user;
    return DQ_OK;
}

dq_status dq_env_init(dq_env *env, const dq_services *services, int threads)
{
    memset(env, 0, sizeof *env);
    env->allocator = (dq_allocator){default_alloc, default_free, NULL};
    if (services) DQ_TRY(take_services(env, services));
    if (env->runner.run) {
        env->threads = env->runner.threads;
        return DQ_OK;
    }
    if (threads <= 0) {
        long online = sysconf(_SC_NPROCESSORS_ONLN);
        threads = online > 0 && online < 1024 ? (int)online : 1;
    }
    env->threads = threads;
    return dq_pool_new(env, threads, &env->pool);
}

void dq_env_clear(dq_env *env)
{
    dq_pool_free(env->pool);
    env->pool = NULL;
}

static block_header *header_of(void *ptr) { return (block_header *)((char *)ptr - ALIGNMENT); }

void *dq_alloc(dq_env *env, size_t bytes)
{
    size_t raw_bytes;
    void *raw = NULL;
    if (dq_add_ok(bytes, 2 * ALIGNMENT, &raw_bytes)) raw = env->allocator.alloc(env->allocator.user, raw_bytes);
    if (!raw) {
        dq_fail(DQ_E_NOMEM, "out of memory: %zu bytes refused", bytes);
        return NULL;
    }
    uintptr_t start = ((uintptr_t)raw + 2 * ALIGNMENT - 1) & ~(uintptr_t)(ALIGNMENT - 1);
    block_header *header = header_of((void *)start);
    *header = (block_header){env, raw, raw_bytes, bytes};
    uint64_t now = atomic_fetch_add(&env->memory_now, bytes) + bytes;
    uint64_t peak = atomic_load(&env->memory_peak);
    while (now > peak && !atomic_compare_exchange_weak(&env->memory_peak, &peak, now)) {
    }
    return (void *)start;
}

void *dq_calloc(dq_env *env, size_t count, size_t size)
{
    size_t bytes;
    if (!dq_mul_ok(count, size, &bytes)) {
        dq_fail(DQ_E_NOMEM, "out of memory: %zu x %zu bytes overflow", count, size);
        return NULL;
    }
    void *ptr = dq_alloc(env, bytes);
    if (ptr) memset(ptr, 0, bytes);
    return ptr;
}

void *dq_realloc(dq_env *env, void *ptr, size_t bytes)
{
    void *fresh = dq_alloc(env, bytes);
    if (!fresh) return NULL;
    if (ptr) {
        size_t old = header_of(ptr)->bytes;
        memcpy(fresh, ptr, old < bytes ? old : bytes);
        dq_free(ptr);
    }
    return fresh;
}

void dq_free(void *ptr)
{
    if (!ptr) return;
    block_header header = *header_of(ptr);
    atomic_fetch_sub(&header.env->memory_now, header.bytes);
    header.env->allocator.free(header.env->allocator.user, header.raw, header.raw_bytes);
}

dq_env *dq_env_of(const void *ptr) { return header_of((void *)ptr)->env; }

char *dq_strndup(dq_env *env, const char *s, size_t n)
{
    char *copy = dq_alloc(env, n + 1);
    if (copy) {
        memcpy(copy, s, n);
        copy[n] = '\0';
    }
    return copy;
}

char *dq_strdup(dq_env *env, const char *s) { return dq_strndup(env, s, strlen(s)); }

char *dq_asprintf(dq_env *env, const char *fmt, ...)
{
    va_list args;
    va_start(args, fmt);
    int n = vsnprintf(NULL, 0, fmt, args);
    va_end(args);
    char *text = n < 0 ? NULL : dq_alloc(env, (size_t)n + 1);
    if (!text) return NULL;
    va_start(args, fmt);
    vsnprintf(text, (size_t)n + 1, fmt, args);
    va_end(args);
    return text;
}

void dq_log(dq_env *env, int level, const char *fmt, ...)
{
    if (!env->log) return;
    char text[1024];
    va_list args;
    va_start(args, fmt);
    vsnprintf(text, sizeof text, fmt, args);
    va_end(args);
    env->log(env->log_user, level, text);
}
