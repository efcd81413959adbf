/* Products of a few rows with the rows of a matrix: the matrix is read once, without packing it.
 * SPDX-License-Identifier: Apache-2.0 */
#include "backend/cpu/decode.h"

enum { TASK_BYTES = 64 << 10 };

typedef struct few {
    const dq_decode_kernels *kernels;
    const dq_view *a, *b, *c;
    bool round; /* numbers of b to bf16; those of a are */
    float alpha, beta;
    int64_t rows_per_task, size;
} few;

static void few_task(void *arg, int64_t i, int thread)
{
    const few *f = arg;
    (void)thread;
    for (int64_t o = i * f->rows_per_task; o < dq_min64((i + 1) * f->rows_per_task, f->b->rows); o++) {
        float out[DQ_DECODE_ROWS];
        f->kernels->dense(dq_view_f32(f->a, 0), f->a->stride, f->a->rows, dq_view_at(f->b, o, 0, f->size), f->b->dtype,
                          f->round, f->a->cols, out);
        for (int64_t r = 0; r < f->a->rows; r++) {
            float *c = dq_view_f32(f->c, r) + o;
            *c = f->beta != 0 ? f->alpha * out[r] + f->beta * *c : f->alpha * out[r];
        }
    }
}

dq_status dq_cpu_gemm_few(dq_cpu_dev *dev, double alpha, const dq_view *a, const dq_view *b, double beta,
                          const dq_view *c, int32_t math)
{
    const dq_host *host = dev->ref.host;
    few f = {.kernels = dq_cpu_decode(dev), .a = a, .b = b, .c = c, .alpha = (float)alpha, .beta = (float)beta};
    dq_view rounded;
    float *scratch = NULL;
    if (math == DQ_MATH_BF16 && a->cols > 0) {
        scratch = dq_cpu_scratch_take(dev, (size_t)(a->rows * a->cols) * sizeof *scratch);
        if (!scratch) return DQ_E_NOMEM;
        rounded = dq_cpu_widen(dev, a, math, scratch);
        f.a = &rounded;
        f.round = true;
    }
    f.size = b->dtype == DQ_F32 ? 4 : 2;
    f.rows_per_task = dq_max64(1, TASK_BYTES / f.size / dq_max64(1, a->cols));
    host->run(host->self, dq_ceil_div(b->rows, f.rows_per_task), few_task, &f);
    dq_cpu_scratch_give(dev, scratch);
    return DQ_OK;
}
