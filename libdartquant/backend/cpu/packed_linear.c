/* Packed linears: few rows read the codes as they lie, many rows multiply panels of dequantized weights.
 * SPDX-License-Identifier: Apache-2.0 */
#include <string.h>

#include "backend/cpu/decode.h"
#include "backend/ref/ops.h"

enum {
    MANY_ROWS = 24,        /* from here on panels are worth their making */
    TASK_CODES = 16 << 10, /* codes in a task */
    PANEL_BYTES = 4 << 20, /* of dequantized weights at a time, */
    PANEL_ROWS = 64,       /* but not fewer rows than this */
    DEQUANT_ROWS = 8       /* rows of a panel in a task */
};

typedef struct packed {
    const dq_packed_desc *d;
    const dq_view *x, *codes, *scale, *zero, *order, *y;
    const dq_decode_kernels *kernels;
    int64_t n, groups;
    int64_t rows_per_task;
    /* few rows */
    dq_packed_x few;
    int64_t first;
    /* many rows */
    char *scratch;
    size_t scratch_each;
    float *panel;
    int64_t panel_first, panel_rows;
} packed;

/* x[row][order[j]], the columns that the codes stand for. */
static float x_at(const packed *p, int64_t row, int64_t j)
{
    const float *x = dq_view_f32(p->x, row);
    if (!p->order) return x[j];
    int32_t from = dq_view_i32(p->order, 0)[j];
    return from < 0 ? 0.0f : x[from];
}

/* Row o of the weights. */
static dq_packed_w weights_of(const packed *p, int64_t o)
{
    bool half = p->scale->dtype == DQ_F16;
    dq_packed_w w = {.codes = dq_view_u8(p->codes, o), .scale = dq_view_at(p->scale, o, 0, half ? 2 : 4), .half = half};
    if (p->zero) {
        w.minimum = p->zero->dtype != DQ_U8;
        w.zero = dq_view_at(p->zero, o, 0, !w.minimum ? 1 : half ? 2 : 4);
    }
    return w;
}

/* ---- few rows ---- */

static void spread_row(const packed *p, int64_t row, int64_t lanes, float *x, float *sum)
{
    int64_t per = 32 / p->d->bits;
    for (int64_t b = 0, j = 0; b < p->few.blocks; b++)
        for (int64_t l = 0; l < lanes; l++)
            for (int64_t i = 0; i < per; i++, j++) x[(b * per + i) * lanes + l] = j < p->n ? x_at(p, row, j) : 0.0f;
    for (int64_t g = 0; g < p->groups; g++) {
        double total = 0;
        for (int64_t j = g * p->d->group; j < dq_min64(p->n, (g + 1) * p->d->group); j++) total += x_at(p, row, j);
        sum[g] = (float)total;
    }
}

static void few_task(void *arg, int64_t i, int thread)
{
    const packed *p = arg;
    (void)thread;
    int64_t end = dq_min64((i + 1) * p->rows_per_task, p->y->cols);
    for (int64_t o = i * p->rows_per_task; o < end; o++) {
        float out[DQ_DECODE_ROWS];
        dq_packed_w w = weights_of(p, o);
        (p->d->bits == 4 ? p->kernels->packed4 : p->kernels->packed8)(&p->few, &w, out);
        for (int64_t r = 0; r < p->few.rows; r++) {
            float *y = dq_view_f32(p->y, p->first + r) + o;
            *y = p->d->beta != 0 ? (float)p->d->beta * *y + out[r] : out[r];
        }
    }
}

/* Where the lanes of a block find their group. */
static void place_lanes(packed *p, int64_t lanes, int32_t *lane_group, int32_t *block_group)
{
    int64_t per = 32 / p->d->bits;
    for (int64_t b = 0; b < p->few.blocks; b++) {
        int64_t first = b * lanes * per / p->d->group;
        block_group[b] = (int32_t)first;
        for (int64_t l = 0; l < lanes; l++) {
            int64_t group = dq_min64((b * lanes + l) * per / p->d->group, p->groups - 1);
            lane_group[b * lanes + l] = (int32_t)(group - first);
        }
    }
}

static dq_status few_rows(dq_cpu_dev *dev, packed *p)
{
    const dq_host *host = dev->ref.host;
    int64_t lanes = p->kernels->lanes, block = lanes * (32 / p->d->bits);
    p->few.blocks = dq_ceil_div(p->n, block);
    p->few.stride = p->few.blocks * block;
    p->few.groups = p->groups;
    p->few.row_bytes = p->codes->cols;
    int64_t rows = dq_min64(DQ_DECODE_ROWS, p->x->rows);
    int64_t words = rows * (p->few.stride + p->groups) + p->few.blocks * (lanes + 1);
    float *x = dq_cpu_scratch_take(dev, (size_t)words * sizeof *x);
    if (!x) return DQ_E_NOMEM;
    float *sum = x + rows * p->few.stride;
    int32_t *lane_group = (int32_t *)(void *)(sum + rows * p->groups),
            *block_group = lane_group + p->few.blocks * lanes;
    place_lanes(p, lanes, lane_group, block_group);
    p->few.x = x;
    p->few.sum = sum;
    p->few.lane_group = lane_group;
    p->few.block_group = block_group;
    p->rows_per_task = dq_max64(1, TASK_CODES / p->n);
    for (p->first = 0; p->first < p->x->rows; p->first += p->few.rows) {
        p->few.rows = dq_min64(rows, p->x->rows - p->first);
        for (int64_t r = 0; r < p->few.rows; r++)
            spread_row(p, p->first + r, lanes, x + r * p->few.stride, sum + r * p->groups);
        host->run(host->self, dq_ceil_div(p->y->cols, p->rows_per_task), few_task, p);
    }
    dq_cpu_scratch_give(dev, x);
    return DQ_OK;
}

/* ---- many rows ---- */

void dq_cpu_unpack(const uint8_t *codes, int bits, int64_t n, uint8_t *out)
{
    int64_t j = 0;
    if (bits == 8) {
        memcpy(out, codes, (size_t)n);
        return;
    }
    for (; j + 8 <= n; j += 8) { /* eight halves of bytes spread over eight bytes */
        uint32_t word;
        memcpy(&word, codes + j / 2, sizeof word);
        uint64_t w = word;
        w = (w | w << 16) & 0x0000ffff0000ffffu;
        w = (w | w << 8) & 0x00ff00ff00ff00ffu;
        w = (w | w << 4) & 0x0f0f0f0f0f0f0f0fu;
        memcpy(out + j, &w, sizeof w);
    }
    for (; j < n; j++) out[j] = j & 1 ? codes[j / 2] >> 4 : codes[j / 2] & 15;
}

static void dequant_task(void *arg, int64_t i, int thread)
{
    const packed *p = arg;
    uint8_t *bytes = (uint8_t *)p->scratch + (size_t)thread * p->scratch_each;
    for (int64_t r = i * DEQUANT_ROWS; r < dq_min64((i + 1) * DEQUANT_ROWS, p->panel_rows); r++) {
        dq_packed_w w = weights_of(p, p->panel_first + r);
        dq_cpu_unpack(w.codes, p->d->bits, p->n, bytes);
        p->kernels->dequantize(&w, p->d->bits, bytes, p->n, p->d->group, p->panel + r * p->n);
    }
}

static void order_task(void *arg, int64_t r, int thread)
{
    const packed *p = arg;
    (void)thread;
    float *to = p->panel + r * p->n;
    for (int64_t j = 0; j < p->n; j++) to[j] = x_at(p, r, j);
}

static dq_status panels(dq_cpu_dev *dev, packed *p, const dq_view *x, int64_t rows)
{
    const dq_host *host = dev->ref.host;
    dq_view w = {.mem = p->panel, .cols = p->n, .stride = p->n, .dtype = DQ_F32};
    for (p->panel_first = 0; p->panel_first < p->y->cols; p->panel_first += rows) {
        p->panel_rows = dq_min64(rows, p->y->cols - p->panel_first);
        host->run(host->self, dq_ceil_div(p->panel_rows, DEQUANT_ROWS), dequant_task, p);
        w.rows = p->panel_rows;
        dq_view y = dq_view_slice(p->y, 0, p->y->rows, p->panel_first, p->panel_rows, 4);
        dq_status status = dq_cpu_gemm(dev, 0, 1, 1.0, x, &w, p->d->beta, &y, p->d->math);
        if (status != DQ_OK) return status;
    }
    return DQ_OK;
}

/* Columns of x in the order of the codes, in fresh scratch. */
static dq_status ordered(dq_cpu_dev *dev, packed *p, dq_view *x)
{
    const dq_host *host = dev->ref.host;
    float *copy = dq_cpu_scratch_take(dev, (size_t)(p->x->rows * p->n) * sizeof *copy);
    if (!copy) return DQ_E_NOMEM;
    p->panel = copy;
    host->run(host->self, p->x->rows, order_task, p);
    *x = (dq_view){.mem = copy, .rows = p->x->rows, .cols = p->n, .stride = p->n, .dtype = DQ_F32};
    return DQ_OK;
}

static dq_status many_rows(dq_cpu_dev *dev, packed *p)
{
    dq_view x = *p->x;
    int64_t rows = dq_min64(p->y->cols, dq_max64(PANEL_ROWS, PANEL_BYTES / 4 / p->n / PANEL_ROWS * PANEL_ROWS));
    dq_status status = p->order ? ordered(dev, p, &x) : DQ_OK;
    if (status != DQ_OK) return status;
    p->scratch_each = ((size_t)p->n + 127) / 64 * 64;
    size_t floats = ((size_t)(rows * p->n) * sizeof(float) + 63) / 64 * 64;
    char *scratch = dq_cpu_scratch_take(dev, floats + p->scratch_each * (size_t)dev->threads);
    status = DQ_E_NOMEM;
    if (scratch) {
        p->panel = (float *)(void *)scratch;
        p->scratch = scratch + floats;
        status = panels(dev, p, &x, rows);
    }
    dq_cpu_scratch_give(dev, scratch);
    if (p->order) dq_cpu_scratch_give(dev, x.mem);
    return status;
}

dq_status dq_cpu_packed_linear(void *device, const dq_packed_desc *d, const dq_view *x, const dq_view *codes,
                               const dq_view *scale, const dq_view *zero, const dq_view *order, const dq_view *y)
{
    dq_cpu_dev *dev = device;
    packed p = {.d = d, .x = x, .codes = codes, .scale = scale, .zero = zero, .order = order, .y = y};
    dq_status status = dq_ref_check_order(dev, order, x->cols);
    if (status != DQ_OK) return status;
    p.kernels = dq_cpu_decode(dev);
    p.n = order ? order->cols : x->cols;
    p.groups = scale->cols;
    return x->rows < MANY_ROWS ? few_rows(dev, &p) : many_rows(dev, &p);
}
