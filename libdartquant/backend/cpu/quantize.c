/* Registers the quantization, Hadamard, factorization and data movement ops of the CPU backend, and holds the small ones.
 * SPDX-License-Identifier: Apache-2.0 */
#include "backend/cpu/quantize.h"

enum { TASK_ELEMENTS = 65536 };

const dq_quant_kernels *dq_cpu_quant_kernels(const dq_cpu_dev *dev)
{
#if defined(__x86_64__)
    if (dev->simd == DQ_SIMD_AVX512) return &dq_quant_kernels_avx512;
    if (dev->simd == DQ_SIMD_AVX2) return &dq_quant_kernels_avx2;
#endif
    (void)dev;
    return &dq_quant_kernels_plain;
}

static int64_t rows_per_task(int64_t cols) { return cols >= TASK_ELEMENTS ? 1 : TASK_ELEMENTS / cols; }

/* ---- fake quantization ---- */

typedef struct fake_job {
    const dq_quant_kernels *kernels;
    const dq_fake_quant_desc *d;
    const dq_view *x, *y;
    int64_t rows_per_task;
} fake_job;

static void fake_task(void *arg, int64_t i, int thread)
{
    (void)thread;
    const fake_job *j = arg;
    int64_t end = dq_least((i + 1) * j->rows_per_task, j->x->rows);
    for (int64_t r = i * j->rows_per_task; r < end; r++)
        j->kernels->fake_quant(j->d, j->x->cols, dq_view_f32(j->x, r), dq_view_f32(j->y, r));
}

static dq_status cpu_fake_quant(void *device, const dq_fake_quant_desc *d, const dq_view *x, const dq_view *y)
{
    dq_cpu_dev *dev = device;
    const dq_host *host = dev->ref.host;
    if (x->rows == 0 || x->cols == 0) return DQ_OK;
    fake_job j = {dq_cpu_quant_kernels(dev), d, x, y, rows_per_task(x->cols)};
    host->run(host->self, (x->rows + j.rows_per_task - 1) / j.rows_per_task, fake_task, &j);
    return DQ_OK;
}

/* ---- data movement ---- */

typedef struct gather_job {
    const dq_view *x, *y;
    const int32_t *index;
    int64_t rows_per_task;
} gather_job;

static void gather_task(void *arg, int64_t i, int thread)
{
    (void)thread;
    const gather_job *j = arg;
    int64_t end = dq_least((i + 1) * j->rows_per_task, j->y->rows), cols = j->y->cols;
    const int32_t *from = j->index;
    for (int64_t r = i * j->rows_per_task; r < end; r++) {
        const uint32_t *x = dq_view_at(j->x, r, 0, 4);
        uint32_t *y = dq_view_at(j->y, r, 0, 4);
        for (int64_t c = 0; c < cols; c++) y[c] = x[from[c]];
    }
}

/* Four-byte elements are the common case (weights); the rest, and every refusal, is the reference's. */
static dq_status cpu_gather_cols(void *device, const dq_view *x, const dq_view *index, const dq_view *y)
{
    dq_cpu_dev *dev = device;
    const dq_host *host = dev->ref.host;
    const int32_t *from = dq_view_i32(index, 0);
    bool good = (x->dtype == DQ_F32 || x->dtype == DQ_I32 || x->dtype == DQ_U32) && y->cols > 0 && y->rows > 0;
    for (int64_t c = 0; good && c < y->cols; c++) good = from[c] >= 0 && from[c] < x->cols;
    if (!good) return dq_ref_backend()->gather_cols(device, x, index, y);
    gather_job j = {x, y, from, rows_per_task(y->cols)};
    host->run(host->self, (y->rows + j.rows_per_task - 1) / j.rows_per_task, gather_task, &j);
    return DQ_OK;
}

static dq_status cpu_diag(void *device, const dq_view *h, const dq_view *v)
{
    if (h->dtype != DQ_F32 || v->dtype != DQ_F32) return dq_ref_backend()->diag(device, h, v);
    float *out = dq_view_f32(v, 0);
    for (int64_t c = 0; c < h->cols; c++) out[c] = dq_view_f32(h, c)[c];
    return DQ_OK;
}

void dq_cpu_fill_quantize(dq_backend *table)
{
    table->fake_quant = cpu_fake_quant;
    table->levels_quant = dq_cpu_levels_quant;
    table->hadamard = dq_cpu_hadamard;
    table->weight_grid = dq_cpu_weight_grid;
    table->quantize_weight = dq_cpu_quantize_weight;
    table->dequantize_weight = dq_cpu_dequantize_weight;
    table->gptq_block = dq_cpu_gptq_block;
    table->syrk = dq_cpu_syrk;
    table->gptq_factor = dq_cpu_gptq_factor;
    table->qr = dq_cpu_qr;
    table->gather_cols = cpu_gather_cols;
    table->diag = cpu_diag;
}
