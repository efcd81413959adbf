/* A small fork-join pool: workers sleep on a condition variable and take task numbers from a shared counter.
 * SPDX-License-Identifier: Apache-2.0 */
#include "base/pool.h"

#include <pthread.h>

#include "base/status.h"

struct dq_pool {
    pthread_mutex_t lock;
    pthread_cond_t work;  /* a new round began, or shutdown */
    pthread_cond_t idle;  /* the last worker of a round went to sleep */
    pthread_t *workers;
    int threads;
    int started;          /* workers running */
    int busy;             /* workers still inside the current round */
    uint64_t round;
    bool stop;
    bool running;         /* a round is under way: nested or concurrent calls run serially */
    dq_task_fn task;
    void *arg;
    int64_t count;
    atomic_int_least64_t next;
};

typedef struct worker_arg {
    dq_pool *pool;
    int thread;
} worker_arg;

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
    dq_free(self);
    uint64_t seen = 0;
    pthread_mutex_lock(&pool->lock);
    for (;;) {
        while (!pool->stop && pool->round == seen) pthread_cond_wait(&pool->work, &pool->lock);
        if (pool->stop) break;
        seen = pool->round;
        pthread_mutex_unlock(&pool->lock);
        drain(pool, thread);
        pthread_mutex_lock(&pool->lock);
        if (--pool->busy == 0) pthread_cond_signal(&pool->idle);
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
        *arg = (worker_arg){pool, pool->started + 1};
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
    atomic_store(&pool->next, 0);
    pool->busy = pool->started;
    pool->round++;
    pthread_cond_broadcast(&pool->work);
    pthread_mutex_unlock(&pool->lock);

    drain(pool, 0);

    pthread_mutex_lock(&pool->lock);
    while (pool->busy > 0) pthread_cond_wait(&pool->idle, &pool->lock);
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
