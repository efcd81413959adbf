/* Wrong on purpose: two threads add to one number. run_sanitizers.sh sees to it that this is noticed.
 * SPDX-License-Identifier: Apache-2.0 */
#include <pthread.h>

static int number;

static void *add(void *arg)
{
    for (int i = 0; i < 1000; i++) number += *(int *)arg;
    return NULL;
}

int main(void)
{
    pthread_t thread;
    int one = 1;
    if (pthread_create(&thread, NULL, add, &one) != 0) return 1;
    add(&one);
    pthread_join(thread, NULL);
    return 0;
}
