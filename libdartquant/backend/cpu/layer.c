/* RMS norm, layer norm, rotary embedding and activation, by blocks of rows. SPDX-License-Identifier: Apache-2.0 */
#include "backend/cpu/forward.h"

enum { BLOCK = 32768 }; /* elements in a task */

typedef struct layer_job {
    const dq_row_kernels *kernels;
    const dq_view *x, *y;     /* of rope: x only */
    const dq_view *weight;    /* norms */
    const dq_view *bias;      /* layer norm */
    const dq_view *cos, *sin; /* rope */
    const dq_view *gate, *up; /* activation */
    double eps;
    int64_t head_dim;
    int32_t kind;
    int64_t rows, row_block;
} layer_job;

static dq_status run_rows(dq_cpu_dev *dev, layer_job *j, void (*task)(void *, int64_t, int), const dq_view *shape)
{
    const dq_host *host = dev->ref.host;
    if (shape->rows == 0 || shape->cols == 0) return DQ_OK;
    j->kernels = dq_cpu_rows(dev);
    j->rows = shape->rows;
    j->row_block = dq_max64(1, BLOCK / shape->cols);
    host->run(host->self, dq_ceil_div(j->rows, j->row_block), task, j);
    return DQ_OK;
}

static void norm_task(void *arg, int64_t i, int thread)
{
    const layer_job *j = arg;
    (void)thread;
    const float *weight = j->weight ? dq_view_f32(j->weight, 0) : NULL;
    for (int64_t r = i * j->row_block; r < dq_min64(j->rows, (i + 1) * j->row_block); r++)
        j->kernels->rmsnorm(dq_view_f32(j->x, r), weight, j->eps, dq_view_f32(j->y, r), j->x->cols);
}

dq_status dq_cpu_rmsnorm(void *device, const dq_view *x, const dq_view *weight, double eps, const dq_view *y)
{
    layer_job j = {.x = x, .weight = weight, .eps = eps, .y = y};
    return run_rows(device, &j, norm_task, x);
}

static void layernorm_task(void *arg, int64_t i, int thread)
{
    const layer_job *j = arg;
    (void)thread;
    const float *weight = j->weight ? dq_view_f32(j->weight, 0) : NULL;
    const float *bias = j->bias ? dq_view_f32(j->bias, 0) : NULL;
    for (int64_t r = i * j->row_block; r < dq_min64(j->rows, (i + 1) * j->row_block); r++)
        j->kernels->layernorm(dq_view_f32(j->x, r), weight, bias, j->eps, dq_view_f32(j->y, r), j->x->cols);
}

dq_status dq_cpu_layernorm(void *device, const dq_view *x, const dq_view *weight, const dq_view *bias, double eps,
                           const dq_view *y)
{
    layer_job j = {.x = x, .weight = weight, .bias = bias, .eps = eps, .y = y};
    return run_rows(device, &j, layernorm_task, x);
}

static void rope_task(void *arg, int64_t i, int thread)
{
    const layer_job *j = arg;
    (void)thread;
    for (int64_t r = i * j->row_block; r < dq_min64(j->rows, (i + 1) * j->row_block); r++) {
        int64_t position = r % j->cos->rows;
        const float *c = dq_view_f32(j->cos, position), *s = dq_view_f32(j->sin, position);
        float *x = dq_view_f32(j->x, r);
        for (int64_t h = 0; h < j->x->cols; h += j->head_dim) j->kernels->rope(x + h, c, s, j->head_dim / 2);
    }
}

dq_status dq_cpu_rope(void *device, const dq_view *cos, const dq_view *sin, int64_t head_dim, const dq_view *x)
{
    layer_job j = {.x = x, .cos = cos, .sin = sin, .head_dim = head_dim};
    return run_rows(device, &j, rope_task, x);
}

static void activation_task(void *arg, int64_t i, int thread)
{
    const layer_job *j = arg;
    (void)thread;
    for (int64_t r = i * j->row_block; r < dq_min64(j->rows, (i + 1) * j->row_block); r++)
        j->kernels->activation[j->kind](dq_view_f32(j->gate, r), j->up ? dq_view_f32(j->up, r) : NULL,
                                        dq_view_f32(j->y, r), j->y->cols);
}

dq_status dq_cpu_activation(void *device, int32_t kind, const dq_view *gate, const dq_view *up, const dq_view *y)
{
    if (kind < DQ_ACT_SILU || kind > DQ_ACT_RELU) return dq_ref_backend()->activation(device, kind, gate, up, y);
    layer_job j = {.kind = kind, .gate = gate, .up = up, .y = y};
    return run_rows(device, &j, activation_task, y);
}
