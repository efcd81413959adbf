/* Data movement and elementwise ops: the views are cut into blocks of about the L1 or L2 cache's size, one task each.
 * SPDX-License-Identifier: Apache-2.0 */
#include <stdatomic.h>
#include <string.h>

#include "backend/cpu/forward.h"
#include "base/dtype.h"
#include "base/half.h"

enum { BLOCK = 32768 }; /* elements in a task */

/* A matrix cut in blocks; the cut depends on the shape alone. */
typedef struct grid {
    int64_t rows, cols;
    int64_t row_block, col_block, col_blocks, count;
} grid;

static grid make_grid(int64_t rows, int64_t cols)
{
    grid g = {.rows = rows, .cols = cols};
    if (rows == 0 || cols == 0) return g;
    g.col_block = dq_min64(cols, BLOCK);
    g.row_block = dq_max64(1, BLOCK / g.col_block);
    g.col_blocks = dq_ceil_div(cols, g.col_block);
    g.count = dq_ceil_div(rows, g.row_block) * g.col_blocks;
    return g;
}

/* The block of task i: rows [r0, r1), columns [c0, c0 + n). */
typedef struct block {
    int64_t r0, r1, c0, n;
} block;

static block block_at(const grid *g, int64_t i)
{
    block b = {.r0 = i / g->col_blocks * g->row_block, .c0 = i % g->col_blocks * g->col_block};
    b.r1 = dq_min64(g->rows, b.r0 + g->row_block);
    b.n = dq_min64(g->col_block, g->cols - b.c0);
    return b;
}

/* y = f(x, v) by whole rows of a block. Each op sets one of the functions. */
typedef struct job {
    grid grid;
    const dq_view *x, *v, *y;
    int64_t x_size, y_size;
    double scalar;
    bool broadcast; /* x has one row for all of y's */
    void (*unary)(const void *x, void *y, int64_t n);
    void (*axpy)(double alpha, const void *x, void *y, int64_t n);
    void (*binary)(const void *x, const void *v, void *y, int64_t n);
} job;

static void job_task(void *arg, int64_t i, int thread)
{
    const job *j = arg;
    (void)thread;
    block b = block_at(&j->grid, i);
    for (int64_t r = b.r0; r < b.r1; r++) {
        void *y = dq_view_at(j->y, r, b.c0, j->y_size);
        const void *x = dq_view_at(j->x, j->broadcast ? 0 : r, b.c0, j->x_size);
        if (j->unary) {
            j->unary(x, y, b.n);
        } else if (j->axpy) {
            j->axpy(j->scalar, x, y, b.n);
        } else {
            j->binary(x, dq_view_at(j->v, 0, b.c0, j->x_size), y, b.n);
        }
    }
}

static dq_status run_job(dq_cpu_dev *dev, job *j)
{
    const dq_host *host = dev->ref.host;
    j->grid = make_grid(j->y->rows, j->y->cols);
    host->run(host->self, j->grid.count, job_task, j);
    return DQ_OK;
}

/* ---- fill ---- */

static void fill_task(void *arg, int64_t i, int thread)
{
    const job *j = arg;
    (void)thread;
    block b = block_at(&j->grid, i);
    for (int64_t r = b.r0; r < b.r1; r++) {
        if (j->y_size == 8) {
            double *y = dq_view_f64(j->y, r) + b.c0;
            for (int64_t c = 0; c < b.n; c++) y[c] = j->scalar;
        } else {
            float *y = dq_view_f32(j->y, r) + b.c0, value = (float)j->scalar;
            for (int64_t c = 0; c < b.n; c++) y[c] = value;
        }
    }
}

dq_status dq_cpu_fill(void *device, double value, const dq_view *y)
{
    dq_cpu_dev *dev = device;
    const dq_host *host = dev->ref.host;
    if (y->dtype != DQ_F32 && y->dtype != DQ_F64) return dq_ref_backend()->fill(device, value, y);
    job j = {.y = y, .y_size = (int64_t)dq_dtype_size(y->dtype), .scalar = value};
    j.grid = make_grid(y->rows, y->cols);
    host->run(host->self, j.grid.count, fill_task, &j);
    return DQ_OK;
}

/* ---- convert, axpy, scale_cols ---- */

static void copy1(const void *x, void *y, int64_t n) { memcpy(y, x, (size_t)n); }
static void copy2(const void *x, void *y, int64_t n) { memcpy(y, x, (size_t)n * 2); }
static void copy4(const void *x, void *y, int64_t n) { memcpy(y, x, (size_t)n * 4); }
static void copy8(const void *x, void *y, int64_t n) { memcpy(y, x, (size_t)n * 8); }

/* Weights on their way to double precision; memory decides. */
static void bf16_to_f64(const void *x, void *y, int64_t n)
{
    const uint16_t *from = x;
    double *to = y;
    for (int64_t i = 0; i < n; i++) to[i] = (double)dq_bf16_to_f32(from[i]);
}
static void f16_to_f64(const void *x, void *y, int64_t n)
{
    const uint16_t *from = x;
    double *to = y;
    for (int64_t i = 0; i < n; i++) to[i] = (double)dq_f16_to_f32(from[i]);
}

/* The kernel for a pair of types; NULL for the rare pairs, which the reference converts. */
static void (*converter(const dq_row_kernels *k, dq_dtype from, dq_dtype to))(const void *, void *, int64_t)
{
    if (from == to) {
        int64_t size = (int64_t)dq_dtype_size(from);
        return size == 8 ? copy8 : size == 4 ? copy4 : size == 2 ? copy2 : size == 1 ? copy1 : NULL;
    }
    if (from == DQ_BF16 && to == DQ_F32) return k->bf16_to_f32;
    if (from == DQ_F16 && to == DQ_F32) return k->f16_to_f32;
    if (from == DQ_F64 && to == DQ_F32) return k->f64_to_f32;
    if (from == DQ_F32 && to == DQ_BF16) return k->f32_to_bf16;
    if (from == DQ_F32 && to == DQ_F16) return k->f32_to_f16;
    if (from == DQ_F32 && to == DQ_F64) return k->f32_to_f64;
    if (from == DQ_BF16 && to == DQ_F64) return bf16_to_f64;
    if (from == DQ_F16 && to == DQ_F64) return f16_to_f64;
    return NULL;
}

dq_status dq_cpu_convert(void *device, const dq_view *x, const dq_view *y)
{
    dq_cpu_dev *dev = device;
    job j = {.x = x, .y = y, .x_size = (int64_t)dq_dtype_size(x->dtype), .y_size = (int64_t)dq_dtype_size(y->dtype)};
    j.unary = converter(dq_cpu_rows(dev), x->dtype, y->dtype);
    if (!j.unary) return dq_ref_backend()->convert(device, x, y);
    return run_job(dev, &j);
}

dq_status dq_cpu_axpy(void *device, double alpha, const dq_view *x, const dq_view *y)
{
    dq_cpu_dev *dev = device;
    const dq_row_kernels *k = dq_cpu_rows(dev);
    job j = {.x = x, .y = y, .x_size = (int64_t)dq_dtype_size(x->dtype), .scalar = alpha};
    j.y_size = j.x_size;
    j.broadcast = x->rows == 1;
    j.axpy = x->dtype == DQ_F64 ? k->axpy_f64 : k->axpy_f32;
    return run_job(dev, &j);
}

dq_status dq_cpu_scale_cols(void *device, const dq_view *x, const dq_view *v, const dq_view *y)
{
    dq_cpu_dev *dev = device;
    const dq_row_kernels *k = dq_cpu_rows(dev);
    job j = {.x = x, .v = v, .y = y, .x_size = (int64_t)dq_dtype_size(x->dtype)};
    j.y_size = j.x_size;
    j.binary = x->dtype == DQ_F64 ? k->mul_f64 : k->mul_f32;
    return run_job(dev, &j);
}

/* ---- gather_rows ---- */

static void gather_task(void *arg, int64_t i, int thread)
{
    const job *j = arg;
    (void)thread;
    const int32_t *index = dq_view_i32(j->v, 0);
    block b = block_at(&j->grid, i);
    for (int64_t r = b.r0; r < b.r1; r++)
        memcpy(dq_view_at(j->y, r, b.c0, j->y_size), dq_view_at(j->x, index[r], b.c0, j->x_size),
               (size_t)(b.n * j->x_size));
}

dq_status dq_cpu_gather_rows(void *device, const dq_view *x, const dq_view *index, const dq_view *y)
{
    dq_cpu_dev *dev = device;
    const dq_host *host = dev->ref.host;
    const int32_t *at = dq_view_i32(index, 0);
    for (int64_t i = 0; i < y->rows; i++) /* the reference names the bad entry */
        if (at[i] < 0 || at[i] >= x->rows) return dq_ref_backend()->gather_rows(device, x, index, y);
    job j = {.x = x,
             .v = index,
             .y = y,
             .x_size = (int64_t)dq_dtype_size(x->dtype),
             .y_size = (int64_t)dq_dtype_size(y->dtype)};
    if (j.x_size == 0) return dq_ref_backend()->gather_rows(device, x, index, y);
    j.grid = make_grid(y->rows, y->cols);
    host->run(host->self, j.grid.count, gather_task, &j);
    return DQ_OK;
}

/* ---- find_nonfinite ---- */

typedef struct search {
    grid grid;
    const dq_view *x;
    const dq_row_kernels *kernels;
    atomic_int_least64_t first; /* INT64_MAX = none yet */
} search;

static int nonfinite(const search *s, const void *x, int64_t n)
{
    switch (s->x->dtype) {
        case DQ_F64: return s->kernels->nonfinite_f64(x, n);
        case DQ_F32: return s->kernels->nonfinite_f32(x, n);
        case DQ_BF16: return s->kernels->nonfinite_16(x, n, 0x7f80);
        default: return s->kernels->nonfinite_16(x, n, 0x7c00);
    }
}

static void search_task(void *arg, int64_t i, int thread)
{
    search *s = arg;
    (void)thread;
    block b = block_at(&s->grid, i);
    int64_t size = (int64_t)dq_dtype_size(s->x->dtype);
    for (int64_t r = b.r0; r < b.r1; r++) {
        if (!nonfinite(s, dq_view_at(s->x, r, b.c0, size), b.n)) continue;
        int64_t c = b.c0;
        while (!nonfinite(s, dq_view_at(s->x, r, c, size), 1)) c++;
        int64_t found = r * s->x->cols + c, known = atomic_load(&s->first);
        while (found < known && !atomic_compare_exchange_weak(&s->first, &known, found)) {
        }
        return;
    }
}

dq_status dq_cpu_find_nonfinite(void *device, const dq_view *x, int64_t *index)
{
    dq_cpu_dev *dev = device;
    const dq_host *host = dev->ref.host;
    search s = {.grid = make_grid(x->rows, x->cols), .x = x, .kernels = dq_cpu_rows(dev)};
    atomic_init(&s.first, INT64_MAX);
    host->run(host->self, s.grid.count, search_task, &s);
    int64_t first = atomic_load(&s.first);
    *index = first == INT64_MAX ? -1 : first;
    return DQ_OK;
}

/* ---- dot ---- */

typedef struct dot_job {
    grid grid;
    const dq_view *x, *y;
    double (*dot)(const void *x, const void *y, int64_t n);
    double *partial; /* one per block, added up in order */
} dot_job;

static void dot_task(void *arg, int64_t i, int thread)
{
    const dot_job *j = arg;
    (void)thread;
    int64_t size = (int64_t)dq_dtype_size(j->x->dtype);
    block b = block_at(&j->grid, i);
    double sum = 0;
    for (int64_t r = b.r0; r < b.r1; r++)
        sum += j->dot(dq_view_at(j->x, r, b.c0, size), dq_view_at(j->y, r, b.c0, size), b.n);
    j->partial[i] = sum;
}

dq_status dq_cpu_dot(void *device, const dq_view *x, const dq_view *y, double *out)
{
    dq_cpu_dev *dev = device;
    const dq_host *host = dev->ref.host;
    const dq_row_kernels *k = dq_cpu_rows(dev);
    dot_job j = {.grid = make_grid(x->rows, x->cols), .x = x, .y = y};
    j.dot = x->dtype == DQ_F64 ? k->dot_f64 : k->dot_f32;
    j.partial = dq_cpu_scratch_take(dev, (size_t)j.grid.count * sizeof(double));
    if (!j.partial) return DQ_E_NOMEM;
    host->run(host->self, j.grid.count, dot_task, &j);
    double sum = 0;
    for (int64_t i = 0; i < j.grid.count; i++) sum += j.partial[i];
    dq_cpu_scratch_give(dev, j.partial);
    *out = sum;
    return DQ_OK;
}
