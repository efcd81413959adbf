/* Adam's moments: elementwise, some rows in a task. SPDX-License-Identifier: Apache-2.0 */
#include <math.h>

#include "backend/cpu/fit.h"

enum { TASK_NUMBERS = 32768 };

typedef struct adam_job {
    float gain, beta2, rest, root, epsilon; /* 1 - beta1, beta2, 1 - beta2 */
    const dq_view *g, *mean, *square;
    int64_t rows; /* in a task */
} adam_job;

static void adam_task(void *arg, int64_t i, int thread)
{
    (void)thread;
    const adam_job *j = arg;
    int64_t end = dq_min64(j->g->rows, (i + 1) * j->rows), cols = j->g->cols;
    for (int64_t r = i * j->rows; r < end; r++) {
        float *restrict g = dq_view_f32(j->g, r), *restrict mean = dq_view_f32(j->mean, r);
        float *restrict square = dq_view_f32(j->square, r);
        for (int64_t c = 0; c < cols; c++) {
            mean[c] += j->gain * (g[c] - mean[c]);
            square[c] = j->beta2 * square[c] + j->rest * g[c] * g[c];
            g[c] = mean[c] / (sqrtf(square[c]) / j->root + j->epsilon);
        }
    }
}

dq_status dq_cpu_adam(void *device, double beta1, double beta2, double root, double epsilon, const dq_view *g,
                      const dq_view *mean, const dq_view *square)
{
    const dq_cpu_dev *dev = device;
    const dq_host *host = dev->ref.host;
    adam_job j = {.gain = (float)(1 - beta1),
                  .beta2 = (float)beta2,
                  .rest = (float)(1 - beta2),
                  .root = (float)root,
                  .epsilon = (float)epsilon,
                  .g = g,
                  .mean = mean,
                  .square = square,
                  .rows = dq_max64(1, TASK_NUMBERS / g->cols)};
    host->run(host->self, dq_ceil_div(g->rows, j.rows), adam_task, &j);
    return DQ_OK;
}
