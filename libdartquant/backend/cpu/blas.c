/* OpenBLAS's process-wide thread count, borrowed and put back.
 * SPDX-License-Identifier: Apache-2.0 */
#include <cblas.h>
#include <pthread.h>

#include "backend/cpu/cpu.h"

static pthread_mutex_t lock = PTHREAD_MUTEX_INITIALIZER;
static int users;
static int host_threads;

void dq_blas_enter(void)
{
    pthread_mutex_lock(&lock);
    if (users++ == 0) {
        host_threads = openblas_get_num_threads();
        if (host_threads != 1) openblas_set_num_threads(1);
    }
    pthread_mutex_unlock(&lock);
}

void dq_blas_leave(void)
{
    pthread_mutex_lock(&lock);
    if (--users == 0 && host_threads != 1) openblas_set_num_threads(host_threads);
    pthread_mutex_unlock(&lock);
}
