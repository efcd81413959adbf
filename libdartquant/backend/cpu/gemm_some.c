/* Products of some rows with rows of a matrix of half precision in fp32: rows of the matrix are widened into the cache, as far
 * as fits there, and meet all rows of x. SPDX-License-Identifier: Apache-2.0 */
#include <string.h>

#include "backend/cpu/decode.h"

enum {
    OUT_ROWS = 16,       /* rows of the matrix in a task, */
    CACHED_COLUMNS = 640 /* widened so far at a time */
};

typedef struct some {
    const dq_decode_kernels *kernels;
    const dq_row_kernels *rows;
    const dq_view *a, *b, *c;
    float *x;       /* [a->rows][stride], zero behind the columns */
    float *scratch; /* of a thread: [OUT_ROWS][chunk] */
    int64_t stride, chunk;
    float alpha, beta;
} some;

static void x_task(void *arg, int64_t r, int thread)
{
    const some *s = arg;
    float *x = s->x + r * s->stride;
    (void)thread;
    memcpy(x, dq_view_f32(s->a, r), (size_t)s->a->cols * sizeof *x);
    memset(x + s->a->cols, 0, (size_t)(s->stride - s->a->cols) * sizeof *x);
}

static void some_task(void *arg, int64_t i, int thread)
{
    const some *s = arg;
    int64_t first = i * OUT_ROWS, outs = dq_min64(OUT_ROWS, s->b->rows - first);
    float *w = s->scratch + thread * OUT_ROWS * s->chunk;
    dq_dots d = {.w = w, .w_stride = s->chunk, .x_stride = s->stride, .rows = s->a->rows, .outs = outs};
    d.y = dq_view_f32(s->c, 0) + first;
    d.y_stride = s->c->stride;
    d.alpha = s->alpha;
    d.beta = s->beta;
    for (int64_t k = 0; k < s->stride; k += s->chunk) {
        int64_t n = dq_min64(s->chunk, s->a->cols - k);
        d.n = dq_min64(s->chunk, s->stride - k);
        for (int64_t o = 0; o < outs; o++) {
            dq_view row = dq_view_slice(s->b, first + o, 1, k, n, 2);
            dq_cpu_widen_row(s->rows, &row, 0, false, w + o * s->chunk);
            memset(w + o * s->chunk + n, 0, (size_t)(d.n - n) * sizeof *w);
        }
        d.x = s->x + k;
        s->kernels->dots(&d);
        d.beta = 1;
    }
}

dq_status dq_cpu_gemm_some(dq_cpu_dev *dev, double alpha, const dq_view *a, const dq_view *b, double beta,
                           const dq_view *c)
{
    const dq_host *host = dev->ref.host;
    some s = {.kernels = dq_cpu_decode(dev), .rows = dq_cpu_rows(dev), .a = a, .b = b, .c = c};
    int64_t lanes = s.kernels->lanes;
    s.stride = dq_ceil_div(a->cols, lanes) * lanes;
    s.chunk = dq_ceil_div(dq_ceil_div(s.stride, dq_ceil_div(s.stride, CACHED_COLUMNS)), lanes) * lanes;
    s.alpha = (float)alpha;
    s.beta = (float)beta;
    s.x = dq_cpu_scratch_take(dev, (size_t)(a->rows * s.stride + dev->threads * OUT_ROWS * s.chunk) * sizeof *s.x);
    if (!s.x) return DQ_E_NOMEM;
    s.scratch = s.x + a->rows * s.stride;
    host->run(host->self, a->rows, x_task, &s);
    host->run(host->self, dq_ceil_div(b->rows, OUT_ROWS), some_task, &s);
    dq_cpu_scratch_give(dev, s.x);
    return DQ_OK;
}
