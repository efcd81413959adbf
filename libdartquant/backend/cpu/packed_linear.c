/* Packed linears: few rows read the codes as they lie (packed_few.c), some rows make floats of them in the cache (packed_some.c),
 * many rows multiply panels of dequantized weights, in bf16 tile by tile (packed_tiles.c).
 * SPDX-License-Identifier: Apache-2.0 */
#include <string.h>

#include "backend/cpu/gemm_packed.h"
#include "backend/cpu/packed_linear.h"
#include "backend/ref/ops.h"

enum {
    SOME_ROWS = 8,         /* from here on floats in the cache are worth their making, */
    MANY_ROWS = 24,        /* and from here on panels */
    PANEL_BYTES = 4 << 20, /* of dequantized weights at a time, */
    PANEL_ROWS = 64,       /* but not fewer rows than this */
    DEQUANT_ROWS = 8       /* rows of a panel in a task */
};

/* ---- many rows ---- */

static void dequant_task(void *arg, int64_t i, int thread)
{
    const dq_packed_job *p = arg;
    (void)thread;
    for (int64_t r = i * DEQUANT_ROWS; r < dq_min64((i + 1) * DEQUANT_ROWS, p->panel_rows); r++) {
        dq_packed_w w = dq_packed_from(p, p->panel_first + r);
        p->kernels->dequantize(&w, p->d->bits, p->n, p->d->group, p->panel + r * p->n);
    }
}

static void order_task(void *arg, int64_t r, int thread)
{
    const dq_packed_job *p = arg;
    (void)thread;
    float *to = p->panel + r * p->n;
    for (int64_t j = 0; j < p->n; j++) to[j] = dq_packed_x_at(p, r, j);
}

static dq_status panels(dq_cpu_dev *dev, dq_packed_job *p, const dq_view *x, int64_t rows)
{
    const dq_host *host = dev->ref.host;
    dq_view w = {.mem = p->panel, .cols = p->n, .stride = p->n, .dtype = DQ_F32};
    for (p->panel_first = 0; p->panel_first < p->y->cols; p->panel_first += rows) {
        p->panel_rows = dq_min64(rows, p->y->cols - p->panel_first);
        host->run(host->self, dq_ceil_div(p->panel_rows, DEQUANT_ROWS), dequant_task, p);
        w.rows = p->panel_rows;
        dq_view y = dq_view_slice(p->y, 0, p->y->rows, p->panel_first, p->panel_rows, 4);
        dq_status status = dq_cpu_gemm(dev, 0, 1, 1.0, x, &w, p->d->beta, &y, p->d->math & ~DQ_MATH_INT8);
        if (status != DQ_OK) return status;
    }
    return DQ_OK;
}

/* Columns of x in the order of the codes, in fresh scratch. */
static dq_status ordered(dq_cpu_dev *dev, dq_packed_job *p, dq_view *x)
{
    const dq_host *host = dev->ref.host;
    float *copy = dq_cpu_scratch_take(dev, (size_t)(p->x->rows * p->n) * sizeof *copy);
    if (!copy) return DQ_E_NOMEM;
    p->panel = copy;
    host->run(host->self, p->x->rows, order_task, p);
    *x = (dq_view){.mem = copy, .rows = p->x->rows, .cols = p->n, .stride = p->n, .dtype = DQ_F32};
    return DQ_OK;
}

static dq_status many_rows(dq_cpu_dev *dev, dq_packed_job *p)
{
    dq_view x = *p->x;
    int64_t rows = dq_min64(p->y->cols, dq_max64(PANEL_ROWS, PANEL_BYTES / 4 / p->n / PANEL_ROWS * PANEL_ROWS));
    dq_status status = p->order ? ordered(dev, p, &x) : DQ_OK;
    if (status != DQ_OK) return status;
    if ((p->d->math & DQ_MATH_BF16) && dq_cpu_packed(dev)) {
        status = dq_packed_tiles_linear(dev, p, &x);
    } else {
        p->panel = dq_cpu_scratch_take(dev, (size_t)(rows * p->n) * sizeof *p->panel);
        status = p->panel ? panels(dev, p, &x, rows) : DQ_E_NOMEM;
        dq_cpu_scratch_give(dev, p->panel);
    }
    if (p->order) dq_cpu_scratch_give(dev, x.mem);
    return status;
}

dq_status dq_cpu_packed_linear(void *device, const dq_packed_desc *d, const dq_view *x, const dq_view *codes,
                               const dq_view *scale, const dq_view *zero, const dq_view *order, const dq_view *y)
{
    dq_cpu_dev *dev = device;
    dq_packed_job p = {.d = d, .x = x, .codes = codes, .scale = scale, .zero = zero, .order = order, .y = y};
    dq_status status = dq_ref_check_order(dev, order, x->cols);
    if (status != DQ_OK) return status;
    p.kernels = dq_cpu_decode(dev);
    p.n = order ? order->cols : x->cols;
    p.groups = scale->cols;
    if (x->rows < SOME_ROWS || (x->rows < MANY_ROWS && (d->math & DQ_MATH_INT8))) return dq_packed_few(dev, &p);
    bool some = x->rows < MANY_ROWS || (x->rows <= DQ_SOME_ROWS && !(d->math & DQ_MATH_BF16));
    return some ? dq_packed_some(dev, &p) : many_rows(dev, &p);
}
