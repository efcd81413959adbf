/* One call of packed_linear on the CPU. SPDX-License-Identifier: Apache-2.0 */
#ifndef DQ_BACKEND_CPU_PACKED_LINEAR_H
#define DQ_BACKEND_CPU_PACKED_LINEAR_H

#include "backend/cpu/decode.h"

typedef struct dq_packed_job {
    const dq_packed_desc *d;
    const dq_view *x, *codes, *scale, *zero, *order, *y;
    const dq_decode_kernels *kernels;
    int64_t n, groups;
    /* few rows */
    dq_packed_fn product;
    int64_t rows_per_task;
    dq_packed_x few;
    int64_t first;
    /* many rows */
    float *panel;
    int64_t panel_first, panel_rows;
} dq_packed_job;

/* x[row][order[j]], the columns that the codes stand for. */
static inline float dq_packed_x_at(const dq_packed_job *p, int64_t row, int64_t j)
{
    const float *x = dq_view_f32(p->x, row);
    if (!p->order) return x[j];
    int32_t from = dq_view_i32(p->order, 0)[j];
    return from < 0 ? 0.0f : x[from];
}

/* The weights from row o on. */
dq_packed_w dq_packed_from(const dq_packed_job *p, int64_t o);
/* Row `row` of x in the order of dq_packed_x. */
void dq_packed_spread_x(const dq_packed_job *p, int64_t row, int64_t lanes, float *x);
/* Where the lanes of a block find their group. */
void dq_packed_place_lanes(dq_packed_job *p, int64_t lanes, int32_t *lane_group, int32_t *block_group);
dq_status dq_packed_few(dq_cpu_dev *dev, dq_packed_job *p);
/* packed_some.c */
dq_status dq_packed_some(dq_cpu_dev *dev, dq_packed_job *p);
/* packed_tiles.c: under DQ_MATH_BF16 where the processor multiplies bf16; x has the columns of the codes in their order. */
dq_status dq_packed_tiles_linear(dq_cpu_dev *dev, const dq_packed_job *p, const dq_view *x);

#endif
