/* Operands of fp32 products that are not stored as plain fp32. SPDX-License-Identifier: Apache-2.0 */
#include "backend/cpu/forward.h"

typedef struct widen_job {
    const dq_row_kernels *kernels;
    const dq_view *x;
    bool round;
    dq_view y;
    int64_t row_block;
} widen_job;

void dq_cpu_widen_row(const dq_row_kernels *kernels, const dq_view *x, int64_t r, bool round, float *y)
{
    int64_t n = x->cols;
    if (x->dtype == DQ_BF16) kernels->bf16_to_f32(dq_view_at(x, r, 0, 2), y, n);
    if (x->dtype == DQ_F16) kernels->f16_to_f32(dq_view_at(x, r, 0, 2), y, n);
    if (x->dtype == DQ_F32) kernels->round_bf16(dq_view_f32(x, r), y, n);
    if (x->dtype == DQ_F16 && round) kernels->round_bf16(y, y, n);
}

static void widen_task(void *arg, int64_t i, int thread)
{
    const widen_job *j = arg;
    (void)thread;
    for (int64_t r = i * j->row_block; r < dq_min64(j->x->rows, (i + 1) * j->row_block); r++)
        dq_cpu_widen_row(j->kernels, j->x, r, j->round, dq_view_f32(&j->y, r));
}

dq_view dq_cpu_widen(dq_cpu_dev *dev, const dq_view *v, int32_t math, float *out)
{
    const dq_host *host = dev->ref.host;
    widen_job j = {.kernels = dq_cpu_rows(dev), .x = v, .round = math == DQ_MATH_BF16};
    j.y = (dq_view){.mem = out, .rows = v->rows, .cols = v->cols, .stride = v->cols, .dtype = DQ_F32};
    j.row_block = dq_max64(1, 32768 / dq_max64(1, v->cols));
    host->run(host->self, dq_ceil_div(v->rows, j.row_block), widen_task, &j);
    return j.y;
}
