/* Comparison of two models' logits: blocks of a row in fp32, merged in fp64 in the order of the vocabulary.
 * SPDX-License-Identifier: Apache-2.0 */
#include <math.h>

#include "backend/cpu/forward.h"

enum { COLUMNS = 1024, /* short enough that fp32 sums lose nothing that matters */ ROWS = 16 /* in a task */ };

typedef struct compare_job {
    const dq_row_kernels *kernels;
    const dq_view *a, *b, *state;
    int64_t first;
} compare_job;

static double index_of(const float *x, float top, int64_t first)
{
    int64_t i = 0;
    while (x[i] != top) i++;
    return (double)(first + i);
}

/* Column c on, n logits of a row into its state. */
static void add_block(const compare_job *j, const float *a, const float *b, int64_t n, int64_t first, double *s)
{
    float top_a, top_b;
    double sum_a, sum_b;
    j->kernels->max_sumexp(a, n, &top_a, &sum_a);
    j->kernels->max_sumexp(b, n, &top_b, &sum_b);
    double gap = j->kernels->expected_gap(a, b, top_a, n);
    if ((double)top_a > s[0]) s[5] = index_of(a, top_a, first);
    if ((double)top_b > s[3]) s[6] = index_of(b, top_b, first);
    double max_a = (double)top_a > s[0] ? (double)top_a : s[0], max_b = (double)top_b > s[3] ? (double)top_b : s[3];
    double old = s[0] == -INFINITY ? 0.0 : exp(s[0] - max_a), new = exp((double)top_a - max_a);
    s[1] = s[1] * old + sum_a * new;
    s[2] = s[2] * old + gap * new;
    s[0] = max_a;
    s[4] = (s[3] == -INFINITY ? 0.0 : s[4] * exp(s[3] - max_b)) + sum_b * exp((double)top_b - max_b);
    s[3] = max_b;
}

static void compare_task(void *arg, int64_t i, int thread)
{
    const compare_job *j = arg;
    (void)thread;
    for (int64_t r = i * ROWS; r < dq_min64(j->a->rows, (i + 1) * ROWS); r++) {
        const float *a = dq_view_f32(j->a, r), *b = dq_view_f32(j->b, r);
        double *s = dq_view_f64(j->state, r);
        for (int64_t c = 0; c < j->a->cols; c += COLUMNS)
            add_block(j, a + c, b + c, dq_min64(COLUMNS, j->a->cols - c), j->first + c, s);
    }
}

dq_status dq_cpu_compare_logits(void *device, const dq_view *a, const dq_view *b, int64_t first, const dq_view *state)
{
    dq_cpu_dev *dev = device;
    const dq_host *host = dev->ref.host;
    compare_job j = {dq_cpu_rows(dev), a, b, state, first};
    host->run(host->self, dq_ceil_div(a->rows, ROWS), compare_task, &j);
    return DQ_OK;
}
