/* Weights to codes and back, and the GPTQ column block: rows in parallel.
 * SPDX-License-Identifier: Apache-2.0 */
#include <stdio.h>

#include "backend/cpu/quantize.h"

enum { TASK_WEIGHTS = 65536, GPTQ_TASK_ROWS = 64 };

/* Group of every column must exist. */
static dq_status check_index(const dq_host *host, const dq_view *index, int64_t groups, const char *op)
{
    if (!index) return DQ_OK;
    const int32_t *g = dq_view_i32(index, 0);
    for (int64_t c = 0; c < index->cols; c++) {
        if (g[c] >= 0 && g[c] < groups) continue;
        char message[128];
        snprintf(message, sizeof message, "%s: index %lld is %d, outside 0..%lld", op, (long long)c, (int)g[c],
                 (long long)groups - 1);
        return host->fail(host->self, DQ_E_INVALID, 0, message);
    }
    return DQ_OK;
}

typedef struct codes_job {
    const dq_quant_kernels *kernels;
    const dq_grid_desc *d;
    const dq_view *w, *scale, *zero, *codes;
    const int32_t *index;
    int64_t rows_per_task;
    bool back; /* codes to weights */
} codes_job;

static void codes_task(void *arg, int64_t i, int thread)
{
    (void)thread;
    const codes_job *j = arg;
    int64_t end = dq_least((i + 1) * j->rows_per_task, j->w->rows);
    dq_code_row row = {.index = j->index, .cols = j->w->cols, .group = j->d->group};
    row.top = (float)((1 << j->d->bits) - 1);
    for (int64_t r = i * j->rows_per_task; r < end; r++) {
        row.scale = dq_view_f32(j->scale, r);
        row.zero = dq_view_f32(j->zero, r);
        if (j->back)
            j->kernels->dequantize(&row, dq_view_u8(j->codes, r), dq_view_f32(j->w, r));
        else
            j->kernels->quantize(&row, dq_view_f32(j->w, r), dq_view_u8(j->codes, r));
    }
}

static void run_codes(dq_cpu_dev *dev, codes_job *j)
{
    const dq_host *host = dev->ref.host;
    if (j->w->rows == 0 || j->w->cols == 0) return;
    j->kernels = dq_cpu_quant_kernels(dev);
    j->rows_per_task = j->w->cols >= TASK_WEIGHTS ? 1 : TASK_WEIGHTS / j->w->cols;
    host->run(host->self, (j->w->rows + j->rows_per_task - 1) / j->rows_per_task, codes_task, j);
}

dq_status dq_cpu_quantize_weight(void *device, const dq_grid_desc *d, const dq_view *w, const dq_view *scale,
                                 const dq_view *zero, const dq_view *group_index, const dq_view *codes)
{
    dq_cpu_dev *dev = device;
    dq_status status = check_index(dev->ref.host, group_index, scale->cols, "quantize_weight");
    if (status != DQ_OK) return status;
    codes_job j = {.d = d, .w = w, .scale = scale, .zero = zero, .codes = codes};
    j.index = group_index ? dq_view_i32(group_index, 0) : NULL;
    run_codes(dev, &j);
    return DQ_OK;
}

dq_status dq_cpu_dequantize_weight(void *device, const dq_grid_desc *d, const dq_view *codes, const dq_view *scale,
                                   const dq_view *zero, const dq_view *group_index, const dq_view *w)
{
    dq_cpu_dev *dev = device;
    dq_status status = check_index(dev->ref.host, group_index, scale->cols, "dequantize_weight");
    if (status != DQ_OK) return status;
    codes_job j = {.d = d, .w = w, .scale = scale, .zero = zero, .codes = codes, .back = true};
    j.index = group_index ? dq_view_i32(group_index, 0) : NULL;
    run_codes(dev, &j);
    return DQ_OK;
}

/* ---- GPTQ column block ---- */

typedef struct block_run {
    const dq_quant_kernels *kernels;
    dq_gptq_job job;
    char *scratch;
    size_t scratch_each;
} block_run;

static void block_task(void *arg, int64_t i, int thread)
{
    const block_run *run = arg;
    int64_t r0 = i * GPTQ_TASK_ROWS, rows = dq_least(GPTQ_TASK_ROWS, run->job.w->rows - r0);
    run->kernels->gptq_rows(&run->job, r0, rows, run->scratch + (size_t)thread * run->scratch_each);
}

dq_status dq_cpu_gptq_block(void *device, const dq_grid_desc *d, const dq_view *w, const dq_view *u,
                            const dq_view *scale, const dq_view *zero, const dq_view *group_index, const dq_view *codes,
                            const dq_view *err)
{
    dq_cpu_dev *dev = device;
    const dq_host *host = dev->ref.host;
    dq_status status = check_index(host, group_index, scale->cols, "gptq_block");
    if (status != DQ_OK) return status;
    if (w->rows == 0 || w->cols == 0) return DQ_OK;
    size_t cols = (size_t)w->cols, each = (DQ_GPTQ_SCRATCH(cols) + 63) / 64 * 64, wide, all;
    if (__builtin_mul_overflow(cols * cols, sizeof(double), &wide) ||
        __builtin_add_overflow(wide + 64, each * (size_t)dev->threads, &all))
        return host->fail(host->self, DQ_E_NOMEM, 0, "gptq_block: the block is too large");
    double *factor = dq_cpu_scratch_take(dev, all);
    if (!factor) return DQ_E_NOMEM;
    for (size_t i = 0; i < cols; i++)
        for (size_t k = 0; k < cols; k++) factor[i * cols + k] = dq_view_f32(u, (int64_t)i)[k];
    block_run run = {.kernels = dq_cpu_quant_kernels(dev), .scratch_each = each};
    run.job = (dq_gptq_job){.w = w, .scale = scale, .zero = zero, .codes = codes, .err = err, .u = factor};
    run.job.index = dq_view_i32(group_index, 0);
    run.job.cols = w->cols;
    run.job.top = (double)((1 << d->bits) - 1);
    run.scratch = (char *)factor + (wide + 63) / 64 * 64;
    host->run(host->self, (w->rows + GPTQ_TASK_ROWS - 1) / GPTQ_TASK_ROWS, block_task, &run);
    dq_cpu_scratch_give(dev, factor);
    return DQ_OK;
}
