/* A small fork-join pool: caller and workers take task numbers from a shared counter. Between rounds workers look for
 * the next one for a moment before they sleep on a condition variable: ops follow each other closely, and a wake-up
 * costs more than a small op. The caller waits only for workers that have entered its round: on a busy machine one may
 * not get a processor for many milliseconds, in which the caller does the work alone.
 * SPDX-License-Identifier: Apache-2.0 */
#include "base/pool.h"

#include <pthread.h>
#include <sched.h>
#include <time.h>

#include "base/status.h"

struct dq_pool {
    pthread_mutex_t lock;
    pthread_cond_t work; /* a new round began, or shutdown */
    pthread_cond_t idle; /* the last worker of a round went to sleep */
    pthread_t *workers;
    int threads;
    int started;     /* workers running */
    atomic_int busy; /* workers inside the current round */
    atomic_uint_least64_t round;
    atomic_int caller_cpu; /* where the caller of the current round runs, -1 = unknown */
    bool stop;
    bool running; /* a round is under way: nested or concurrent calls run serially */
    bool open;    /* it still has tasks for workers that come now */
    dq_task_fn task;
    void *arg;
    int64_t count;
    atomic_int_least64_t next;
};

typedef struct worker_arg {
    dq_pool *pool;
    int thread;
    uint64_t seen; /* the round before the worker was started */
} worker_arg;

enum { SPIN_NANOSECONDS = 200000 };

static bool spin_is_over(const struct timespec *start)
{
    struct timespec t;
    sched_yield(); /* whoever else needs this processor gets it */
    clock_gettime(CLOCK_MONOTONIC, &t);
    return (t.tv_sec - start->tv_sec) * 1000000000LL + (t.tv_nsec - start->tv_nsec) > SPIN_NANOSECONDS;
}

/* Waits a moment for the next round. */
static void spin_for_round(dq_pool *pool, uint64_t seen)
{
    struct timespec start;
    clock_gettime(CLOCK_MONOTONIC, &start);
    while (atomic_load(&pool->round) == seen && !spin_is_over(&start)) {
    }
}

/* Waits a moment for workers that are still at their last task. */
static void spin_for_workers(dq_pool *pool)
{
    struct timespec start;
    clock_gettime(CLOCK_MONOTONIC, &start);
    while (atomic_load(&pool->busy) > 0 && !spin_is_over(&start)) {
    }
}

static int current_cpu(void)
{
#if defined(__linux__)
    return sched_getcpu();
#else
    return -1;
#endif
}

/* Some schedulers wake a thread on its waker's processor and leave it there although another one idles: half the speed.
 * Forbidding that processor for an instant moves the thread; its affinity is unchanged afterwards. */
static void leave_callers_cpu(dq_pool *pool)
{
#if defined(__linux__)
    int cpu = atomic_load(&pool->caller_cpu);
    if (cpu < 0 || cpu >= CPU_SETSIZE || sched_getcpu() != cpu) return;
    cpu_set_t mine, others;
    if (sched_getaffinity(0, sizeof mine, &mine) != 0 || CPU_COUNT(&mine) < pool->threads) return;
    others = mine;
    CPU_CLR((size_t)cpu, &others);
    if (CPU_COUNT(&others) > 0 && sched_setaffinity(0, sizeof others, &others) == 0)
        sched_setaffinity(0, sizeof mine, &mine);
#else
    (void)pool;
#endif
}

static void drain(dq_pool *pool, int thread)
{
    for (;;) {
        int64_t i = atomic_fetch_add(&pool->next, 1);
        if (i >= pool->count) return;
        pool->task(pool->arg, i, thread);
    }
}

static void *worker_main(void *opaque)
{
    worker_arg *self = opaque;
    dq_pool *pool = self->pool;
    int thread = self->thread;
    uint64_t seen = self->seen;
    dq_free(self);
    pthread_mutex_lock(&pool->lock);
    for (;;) {
        while (!pool->stop && atomic_load(&pool->round) == seen) pthread_cond_wait(&pool->work, &pool->lock);
        if (pool->stop) break;
        seen = atomic_load(&pool->round);
        if (pool->open) {
            atomic_fetch_add(&pool->busy, 1);
            pthread_mutex_unlock(&pool->lock);
            leave_callers_cpu(pool);
            drain(pool, thread);
            pthread_mutex_lock(&pool->lock);
            if (atomic_fetch_sub(&pool->busy, 1) == 1) pthread_cond_signal(&pool->idle);
            if (pool->stop) break;
        }
        pthread_mutex_unlock(&pool->lock);
        spin_for_round(pool, seen);
        pthread_mutex_lock(&pool->lock);
    }
    pthread_mutex_unlock(&pool->lock);
    return NULL;
}

dq_status dq_pool_new(dq_env *env, int threads, dq_pool **out)
{
    dq_pool *pool = dq_calloc(env, 1, sizeof *pool);
    if (!pool) return DQ_E_NOMEM;
    pool->workers = dq_calloc(env, (size_t)threads, sizeof *pool->workers);
    if (!pool->workers) {
        dq_free(pool);
        return DQ_E_NOMEM;
    }
    pool->threads = threads;
    pthread_mutex_init(&pool->lock, NULL);
    pthread_cond_init(&pool->work, NULL);
    pthread_cond_init(&pool->idle, NULL);
    *out = pool;
    return DQ_OK;
}

void dq_pool_free(dq_pool *pool)
{
    if (!pool) return;
    pthread_mutex_lock(&pool->lock);
    pool->stop = true;
    pthread_cond_broadcast(&pool->work);
    pthread_mutex_unlock(&pool->lock);
    for (int i = 0; i < pool->started; i++) pthread_join(pool->workers[i], NULL);
    pthread_cond_destroy(&pool->work);
    pthread_cond_destroy(&pool->idle);
    pthread_mutex_destroy(&pool->lock);
    dq_free(pool->workers);
    dq_free(pool);
}

/* Workers that cannot be started are simply missing: the caller drains alone. Called under the lock. */
static void start_workers(dq_env *env, dq_pool *pool)
{
    while (pool->started < pool->threads - 1) {
        worker_arg *arg = dq_alloc(env, sizeof *arg);
        if (!arg) return;
        *arg = (worker_arg){pool, pool->started + 1, atomic_load(&pool->round)};
        if (pthread_create(&pool->workers[pool->started], NULL, worker_main, arg) != 0) {
            dq_free(arg);
            return;
        }
        pool->started++;
    }
}

static void run_serial(int64_t count, dq_task_fn task, void *arg)
{
    for (int64_t i = 0; i < count; i++) task(arg, i, 0);
}

static void pool_run(dq_pool *pool, int64_t count, dq_task_fn task, void *arg)
{
    pthread_mutex_lock(&pool->lock);
    if (pool->running) {
        pthread_mutex_unlock(&pool->lock);
        run_serial(count, task, arg);
        return;
    }
    pool->running = true;
    pool->task = task;
    pool->arg = arg;
    pool->count = count;
    pool->open = true;
    atomic_store(&pool->next, 0);
    atomic_store(&pool->caller_cpu, current_cpu());
    atomic_fetch_add(&pool->round, 1);
    pthread_cond_broadcast(&pool->work);
    pthread_mutex_unlock(&pool->lock);

    drain(pool, 0);
    pthread_mutex_lock(&pool->lock);
    pool->open = false;
    if (atomic_load(&pool->busy) > 0) {
        pthread_mutex_unlock(&pool->lock);
        spin_for_workers(pool);
        pthread_mutex_lock(&pool->lock);
    }
    while (atomic_load(&pool->busy) > 0) pthread_cond_wait(&pool->idle, &pool->lock);
    pool->running = false;
    pthread_mutex_unlock(&pool->lock);
}

void dq_run(dq_env *env, int64_t count, dq_task_fn task, void *arg)
{
    if (count <= 0) return;
    if (env->runner.run) {
        env->runner.run(env->runner.user, count, task, arg);
        return;
    }
    if (count == 1 || env->threads == 1 || !env->pool) {
        run_serial(count, task, arg);
        return;
    }
    dq_pool *pool = env->pool;
    pthread_mutex_lock(&pool->lock);
    if (!pool->running) start_workers(env, pool);
    pthread_mutex_unlock(&pool->lock);
    pool_run(pool, count, task, arg);
}
