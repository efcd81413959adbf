/* Packed linears of few rows: the codes are read as they lie, once for up to eight rows of x.
 * SPDX-License-Identifier: Apache-2.0 */
#include <string.h>

#include "backend/cpu/packed_linear.h"

enum {
    TASK_CODES = 16 << 10, /* codes in a task, in */
    SOME_ROWS = 16         /* rows of weights at a time, of which a task has a multiple */
};

dq_packed_w dq_packed_from(const dq_packed_job *p, int64_t o)
{
    int64_t size = p->scale->dtype == DQ_F16 ? 2 : 4;
    dq_packed_w w = {.codes = dq_view_u8(p->codes, o), .scale = dq_view_at(p->scale, o, 0, size), .half = size == 2};
    w.code_stride = p->codes->stride;
    w.scale_stride = p->scale->stride * size;
    if (!p->zero) return w;
    w.minimum = p->zero->dtype != DQ_U8;
    w.zero = dq_view_at(p->zero, o, 0, w.minimum ? size : 1);
    w.zero_stride = p->zero->stride * (w.minimum ? size : 1);
    return w;
}

void dq_packed_spread_x(const dq_packed_job *p, int64_t row, int64_t lanes, float *x)
{
    int64_t per = 32 / p->d->bits;
    for (int64_t b = 0, j = 0; b < p->few.blocks; b++)
        for (int64_t l = 0; l < lanes; l++)
            for (int64_t i = 0; i < per; i++, j++)
                x[(b * per + i) * lanes + l] = j < p->n ? dq_packed_x_at(p, row, j) : 0.0f;
}

static void spread_row(const dq_packed_job *p, int64_t row, int64_t lanes, float *x, float *sum)
{
    dq_packed_spread_x(p, row, lanes, x);
    for (int64_t g = 0; g < p->groups; g++) {
        double total = 0;
        for (int64_t j = g * p->d->group; j < dq_min64(p->n, (g + 1) * p->d->group); j++)
            total += dq_packed_x_at(p, row, j);
        sum[g] = (float)total;
    }
}

static void few_task(void *arg, int64_t i, int thread)
{
    const dq_packed_job *p = arg;
    (void)thread;
    int64_t end = dq_min64((i + 1) * p->rows_per_task, p->y->cols);
    float out[SOME_ROWS][DQ_DECODE_ROWS];
    for (int64_t o = i * p->rows_per_task; o < end; o += SOME_ROWS) {
        int64_t n = dq_min64(SOME_ROWS, end - o);
        dq_packed_w w = dq_packed_from(p, o);
        p->product(&p->few, &w, n, out);
        for (int64_t r = 0; r < p->few.rows; r++) {
            float *y = dq_view_f32(p->y, p->first + r) + o, beta = (float)p->d->beta;
            for (int64_t k = 0; k < n; k++) y[k] = p->d->beta != 0 ? beta * y[k] + out[k][r] : out[k][r];
        }
    }
}

void dq_packed_place_lanes(dq_packed_job *p, int64_t lanes, int32_t *lane_group, int32_t *block_group)
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

/* Rounded rows: codes, scales and starts of lanes, sums of what the codes stand for. */
static void round_row(const dq_packed_job *p, const dq_int8_kernels *k, int64_t row, int8_t *codes, float *scale,
                      int32_t *start, float *sum)
{
    int64_t per = 32 / p->d->bits, block = k->lanes * per, middle = p->d->bits == 4 ? 8 : k->signed8 ? 0 : 128;
    for (int64_t g = 0; g < p->groups; g++) sum[g] = 0;
    for (int64_t first = 0; first < p->few.stride; first += DQ_INT8_RUN) {
        float x[DQ_INT8_RUN], s;
        int8_t q[DQ_INT8_RUN];
        int32_t total = 0;
        for (int64_t i = 0; i < DQ_INT8_RUN; i++) x[i] = first + i < p->n ? dq_packed_x_at(p, row, first + i) : 0.0f;
        s = k->round(x, q);
        for (int64_t i = 0; i < DQ_INT8_RUN; i++) {
            int64_t j = first + i, at = j % block;
            if (p->d->bits == 4) at = at % 2 * (block / 2) + at / 2;
            codes[j / block * block + at] = q[i];
            if (j % per == 0) {
                scale[j / per] = s;
                start[j / per] = 0;
            }
            start[j / per] -= (int32_t)middle * q[i];
            total += q[i];
        }
        if (first < p->n) sum[dq_min64(first / p->d->group, p->groups - 1)] += s * (float)total;
    }
}

/* Memory of a call: floats and bytes for `rows` rows of x, then where lanes find their groups. */
typedef struct few_memory {
    float *x, *sum, *lane_scale;
    int32_t *lane_start, *lane_group, *block_group;
    int8_t *codes;
} few_memory;

static float *take_memory(dq_cpu_dev *dev, const dq_packed_job *p, int64_t rows, int64_t lanes, bool rounded,
                          few_memory *m)
{
    int64_t all = p->few.blocks * lanes, values = rounded ? p->few.stride / 4 : p->few.stride;
    int64_t words = rows * (values + p->groups + (rounded ? 2 * all : 0)) + all + p->few.blocks;
    float *memory = dq_cpu_scratch_take(dev, (size_t)words * sizeof *memory);
    if (!memory) return NULL;
    m->x = memory;
    m->codes = (int8_t *)memory;
    m->sum = memory + rows * values;
    m->lane_scale = m->sum + rows * p->groups;
    m->lane_start = (int32_t *)(void *)(m->lane_scale + (rounded ? rows * all : 0));
    m->lane_group = m->lane_start + (rounded ? rows * all : 0);
    m->block_group = m->lane_group + all;
    return memory;
}

/* Whether no run of columns that x is rounded in lies in two groups. */
static bool rounds(const dq_packed_job *p)
{
    return (p->d->math & DQ_MATH_INT8) && (p->d->group % DQ_INT8_RUN == 0 || p->groups == 1);
}

static void few_part(const dq_host *host, dq_packed_job *p, const dq_int8_kernels *int8, int64_t lanes,
                     const few_memory *m)
{
    int64_t all = p->few.blocks * lanes;
    for (int64_t r = 0; r < p->few.rows; r++) {
        if (int8)
            round_row(p, int8, p->first + r, m->codes + r * p->few.stride, m->lane_scale + r * all,
                      m->lane_start + r * all, m->sum + r * p->groups);
        else
            spread_row(p, p->first + r, lanes, m->x + r * p->few.stride, m->sum + r * p->groups);
    }
    host->run(host->self, dq_ceil_div(p->y->cols, p->rows_per_task), few_task, p);
}

dq_status dq_packed_few(dq_cpu_dev *dev, dq_packed_job *p)
{
    const dq_int8_kernels *int8 = rounds(p) ? dq_cpu_int8(dev) : NULL;
    int64_t lanes = int8 ? int8->lanes : p->kernels->lanes, block = lanes * (32 / p->d->bits);
    int64_t rows = dq_min64(DQ_DECODE_ROWS, p->x->rows), step = int8 ? dq_max64(block, DQ_INT8_RUN) : block;
    few_memory m;
    p->few.stride = dq_ceil_div(p->n, step) * step;
    p->few.blocks = p->few.stride / block;
    p->few.groups = p->groups;
    p->few.row_bytes = p->codes->cols;
    float *memory = take_memory(dev, p, rows, lanes, int8 != NULL, &m);
    if (!memory) return DQ_E_NOMEM;
    dq_packed_place_lanes(p, lanes, m.lane_group, m.block_group);
    p->few.x = m.x;
    p->few.codes = m.codes;
    p->few.sum = m.sum;
    p->few.lane_scale = m.lane_scale;
    p->few.lane_start = m.lane_start;
    p->few.lane_group = m.lane_group;
    p->few.block_group = m.block_group;
    if (int8)
        p->product = p->d->bits == 4 ? int8->packed4 : int8->packed8;
    else
        p->product = p->d->bits == 4 ? p->kernels->packed4 : p->kernels->packed8;
    p->rows_per_task = dq_ceil_div(dq_max64(1, TASK_CODES / p->n), SOME_ROWS) * SOME_ROWS;
    for (p->first = 0; p->first < p->x->rows; p->first += p->few.rows) {
        p->few.rows = dq_min64(rows, p->x->rows - p->first);
        few_part(dev->ref.host, p, int8, lanes, &m);
    }
    dq_cpu_scratch_give(dev, memory);
    return DQ_OK;
}
