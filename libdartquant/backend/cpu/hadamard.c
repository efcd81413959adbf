/* Hadamard transform over rows: butterflies for the 2^m part, then the k x k table. One task is a run of whole
 * transforms, so the bits do not depend on threads. SPDX-License-Identifier: Apache-2.0 */
#include <string.h>

#include "backend/cpu/quantize.h"

enum { TASK_ELEMENTS = 32768 };

typedef struct hadamard_job {
    const dq_quant_kernels *kernels;
    const dq_view *x, *y;
    int64_t element;     /* bytes */
    int64_t unit;        /* elements of one transform with its inner axis: n * inner */
    int64_t outer, rows; /* transforms in a row, rows; a packed matrix counts as one long row */
    int64_t per_task;
    int64_t k, block, inner; /* block: elements between the k blocks, 2^m * inner */
    int log_p;
    const uint8_t *pick;
    char *scratch;
    size_t scratch_each;
    double scale;
} hadamard_job;

/* The butterflies of `total` contiguous elements, or of one transform when the axis is strided. */
static void butterflies(const hadamard_job *j, const char *x, char *y, int64_t total)
{
    double scale = j->k == 1 ? j->scale : 1.0;
    if (j->inner == 1 || j->log_p == 0) {
        if (j->element == 4)
            j->kernels->fwht_f32((const void *)x, (void *)y, total, j->log_p, (float)scale);
        else
            j->kernels->fwht_f64((const void *)x, (void *)y, total, j->log_p, scale);
        return;
    }
    int64_t step = j->block * j->element;
    for (int64_t b = 0; b < j->k; b++, x += step, y += step) {
        if (j->element == 4)
            j->kernels->fwht_strided_f32((const void *)x, (void *)y, j->inner, j->log_p, (float)scale);
        else
            j->kernels->fwht_strided_f64((const void *)x, (void *)y, j->inner, j->log_p, scale);
    }
}

static void mix_blocks(const hadamard_job *j, const char *x, char *y, void *scratch)
{
    if (j->element == 4)
        j->kernels->mix_f32((const void *)x, (void *)y, j->block, j->k, j->pick, scratch, (float)j->scale);
    else
        j->kernels->mix_f64((const void *)x, (void *)y, j->block, j->k, j->pick, scratch, j->scale);
}

static void transform_run(const hadamard_job *j, const char *x, char *y, int64_t count, void *scratch)
{
    if (j->k == 1 && j->inner == 1) {
        butterflies(j, x, y, count * j->unit);
        return;
    }
    int64_t bytes = j->unit * j->element;
    for (int64_t i = 0; i < count; i++, x += bytes, y += bytes) {
        const char *from = x;
        if (j->inner > 1 && x != y) { /* many strided streams into cold memory are slower than a copy first */
            memcpy(y, x, (size_t)bytes);
            from = y;
        }
        if (j->log_p > 0 || j->k == 1) {
            butterflies(j, from, y, j->unit);
            from = y;
        }
        if (j->k > 1) mix_blocks(j, from, y, scratch);
    }
}

static void hadamard_task(void *arg, int64_t i, int thread)
{
    const hadamard_job *j = arg;
    int64_t u = i * j->per_task, end = dq_least(u + j->per_task, j->rows * j->outer);
    void *scratch = j->scratch ? j->scratch + (size_t)thread * j->scratch_each : NULL;
    while (u < end) {
        int64_t row = u / j->outer, col = u % j->outer, run = dq_least(j->outer - col, end - u);
        transform_run(j, dq_view_at(j->x, row, col * j->unit, j->element),
                      dq_view_at(j->y, row, col * j->unit, j->element), run, scratch);
        u += run;
    }
}

/* The choices of mix (fwht_kernel.h): bit i of a choice is set where the table is negative. */
static void make_picks(const dq_hadamard_desc *d, unsigned unit, uint8_t *pick)
{
    int64_t k = d->k, groups = (k + 3) / 4, padded = groups * 4;
    for (int64_t a = 0; a < padded; a++)
        for (int64_t g = 0; g < groups; g++) {
            unsigned bits = 0;
            for (int64_t i = 0; i < 4; i++) {
                int64_t b = 4 * g + i;
                if (a >= k || b >= k) continue;
                int8_t sign = d->transpose ? d->hk[b * k + a] : d->hk[a * k + b];
                if (sign < 0) bits |= 1u << i;
            }
            int64_t first = a / 8 * 8, together = padded - first < 8 ? 4 : 8;
            pick[first * groups + g * together + a % 8] = (uint8_t)(bits * unit);
        }
}

dq_status dq_cpu_hadamard(void *device, const dq_hadamard_desc *d, const dq_view *x, const dq_view *y)
{
    dq_cpu_dev *dev = device;
    const dq_host *host = dev->ref.host;
    hadamard_job j = {.kernels = dq_cpu_quant_kernels(dev), .x = x, .y = y, .k = d->k, .inner = d->inner};
    int64_t p = d->n / d->k;
    if (p * d->k != d->n || (p & (p - 1)) != 0)
        return host->fail(host->self, DQ_E_INVALID, 0, "hadamard: n is not k times a power of two");
    if (x->rows == 0 || x->cols == 0) return DQ_OK;
    while ((int64_t)1 << j.log_p < p) j.log_p++;
    j.element = x->dtype == DQ_F64 ? 8 : 4;
    j.scale = d->scale;
    j.block = p * d->inner;
    j.unit = d->n * d->inner;
    j.outer = x->cols / j.unit;
    j.rows = x->rows;
    if (x->stride == x->cols && y->stride == y->cols) {
        j.outer *= j.rows;
        j.rows = 1;
    }
    j.per_task = j.unit >= TASK_ELEMENTS ? 1 : TASK_ELEMENTS / j.unit;
    uint8_t *pick = NULL;
    if (d->k > 1) {
        size_t groups = ((size_t)d->k + 3) / 4, picks = (groups * groups * 4 + 63) / 64 * 64;
        j.scratch_each = DQ_MIX_SCRATCH(d->k);
        pick = dq_cpu_scratch_take(dev, picks + j.scratch_each * (size_t)dev->threads);
        if (!pick) return DQ_E_NOMEM;
        make_picks(d, (unsigned)j.kernels->vector_bytes / 8, pick);
        j.pick = pick;
        j.scratch = (char *)pick + picks;
    }
    host->run(host->self, (j.rows * j.outer + j.per_task - 1) / j.per_task, hadamard_task, &j);
    dq_cpu_scratch_give(dev, pick);
    return DQ_OK;
}
