/* Packed linears of some rows in fp32: a few rows of weights at a time become floats in the cache, as far as fits there, and
 * meet all rows of x. SPDX-License-Identifier: Apache-2.0 */
#include "backend/cpu/packed_linear.h"

enum {
    OUT_ROWS = 16,           /* rows of weights in a task, */
    CACHED_FLOATS = 10 << 10 /* of which so many floats are made at a time */
};

typedef struct some_job {
    const dq_packed_job *p;
    int64_t lanes, chunk; /* blocks of a row at a time */
    float *x;             /* [rows][stride] */
    float *scratch;       /* of a thread: [OUT_ROWS][chunk] */
} some_job;

static void x_task(void *arg, int64_t row, int thread)
{
    const some_job *j = arg;
    (void)thread;
    dq_packed_spread_x(j->p, row, j->lanes, j->x + row * j->p->few.stride);
}

static int64_t block_floats(const some_job *j) { return j->lanes * (32 / j->p->d->bits); }

static void some_task(void *arg, int64_t i, int thread)
{
    const some_job *j = arg;
    const dq_packed_job *p = j->p;
    const dq_packed_x *x = &p->few;
    int64_t each = block_floats(j), first = i * OUT_ROWS, outs = dq_min64(OUT_ROWS, p->y->cols - first);
    dq_dots d = {.w = j->scratch + thread * OUT_ROWS * j->chunk * each,
                 .w_stride = j->chunk * each,
                 .x_stride = x->stride,
                 .y = dq_view_f32(p->y, 0) + first,
                 .y_stride = p->y->stride,
                 .rows = p->y->rows,
                 .outs = outs,
                 .alpha = 1,
                 .beta = (float)p->d->beta};
    for (int64_t b = 0; b < x->blocks; b += j->chunk) {
        int64_t end = dq_min64(x->blocks, b + j->chunk);
        for (int64_t o = 0; o < outs; o++) {
            dq_packed_w w = dq_packed_from(p, first + o);
            p->kernels->spread(x, b, end, &w, p->d->bits, (float *)d.w + o * d.w_stride);
        }
        d.x = j->x + b * each;
        d.n = (end - b) * each;
        p->kernels->dots(&d);
        d.beta = 1;
    }
}

dq_status dq_packed_some(dq_cpu_dev *dev, dq_packed_job *p)
{
    const dq_host *host = dev->ref.host;
    some_job j = {.p = p, .lanes = p->kernels->lanes};
    int64_t each = block_floats(&j), rows = p->x->rows;
    p->few.blocks = dq_ceil_div(p->n, each);
    p->few.stride = p->few.blocks * each;
    p->few.groups = p->groups;
    p->few.row_bytes = p->codes->cols;
    int64_t chunks = dq_ceil_div(p->few.stride, CACHED_FLOATS / OUT_ROWS), all = p->few.blocks * j.lanes;
    j.chunk = dq_ceil_div(p->few.blocks, chunks);
    int64_t words = rows * p->few.stride + dev->threads * OUT_ROWS * j.chunk * each + all + p->few.blocks;
    float *memory = dq_cpu_scratch_take(dev, (size_t)words * sizeof *memory);
    if (!memory) return DQ_E_NOMEM;
    j.x = memory;
    j.scratch = memory + rows * p->few.stride;
    int32_t *lane_group = (int32_t *)(void *)(j.scratch + dev->threads * OUT_ROWS * j.chunk * each);
    dq_packed_place_lanes(p, j.lanes, lane_group, lane_group + all);
    p->few.lane_group = lane_group;
    p->few.block_group = lane_group + all;
    host->run(host->self, rows, x_task, &j);
    host->run(host->self, dq_ceil_div(p->y->cols, OUT_ROWS), some_task, &j);
    dq_cpu_scratch_give(dev, memory);
    return DQ_OK;
}
