/* Packed linears of many rows under DQ_MATH_BF16: x is packed once; a task makes tiles of a pair of panels of weights, which stay
 * in its cache, and multiplies all rows of x. SPDX-License-Identifier: Apache-2.0 */
#include "backend/cpu/gemm_packed.h"
#include "backend/cpu/packed_linear.h"

enum {
    BLOCK = 256,       /* rows of x at a time */
    A_BYTES = 32 << 20 /* of x packed at a time */
};

typedef struct tiles_job {
    const dq_packed_job *p;
    const dq_packed_kernels *kernels;
    uint16_t *a;
    int64_t row0, rows; /* of x, packed in a */
    char *scratch;      /* of a thread: a pair of panels, then a panel's weights as floats */
    size_t scratch_each;
} tiles_job;

static void tiles_task(void *arg, int64_t i, int thread)
{
    const tiles_job *j = arg;
    const dq_packed_job *p = j->p;
    int64_t n = p->n, first = i * DQ_PAIR, outs = dq_min64(DQ_PAIR, p->y->cols - first);
    uint16_t *b = (uint16_t *)(void *)(j->scratch + (size_t)thread * j->scratch_each);
    float *floats = (float *)(void *)((char *)b + dq_packed_bytes(DQ_PAIR, n));
    for (int64_t panel = 0; panel < DQ_PAIR; panel += DQ_PANEL) {
        dq_view v = {.mem = floats, .rows = dq_min64(DQ_PANEL, outs - panel), .cols = n, .stride = n, .dtype = DQ_F32};
        if (v.rows < 0) v.rows = 0;
        for (int64_t r = 0; r < v.rows; r++) {
            dq_packed_w w = dq_packed_from(p, first + panel + r);
            p->kernels->dequantize(&w, p->d->bits, n, p->d->group, floats + r * n);
        }
        dq_pack_source s = {&v, false, 0, v.rows, n};
        j->kernels->pack_b(&s, 0, dq_packed_at(b, panel, n));
    }
    for (int64_t r = 0; r < j->rows; r += BLOCK)
        j->kernels->block(dq_packed_at(j->a, r, n), b, dq_packed_tiles(n), dq_min64(BLOCK, j->rows - r), outs, 1,
                          (float)p->d->beta, dq_view_f32(p->y, j->row0 + r) + first, p->y->stride);
}

dq_status dq_packed_tiles_linear(dq_cpu_dev *dev, const dq_packed_job *p, const dq_view *x)
{
    const dq_host *host = dev->ref.host;
    tiles_job j = {.p = p, .kernels = dq_cpu_packed(dev)};
    int64_t n = p->n, chunk = dq_packed_chunk(x->rows, n, A_BYTES, BLOCK);
    size_t a_bytes = dq_packed_bytes(chunk, n);
    j.scratch_each = dq_packed_bytes(DQ_PAIR, n) + ((size_t)(DQ_PANEL * n) * sizeof(float) + 63) / 64 * 64;
    j.a = dq_cpu_scratch_take(dev, a_bytes + j.scratch_each * (size_t)dev->threads);
    if (!j.a) return DQ_E_NOMEM;
    j.scratch = (char *)j.a + a_bytes;
    for (j.row0 = 0; j.row0 < x->rows; j.row0 += chunk) {
        j.rows = dq_min64(chunk, x->rows - j.row0);
        dq_pack_source s = {x, false, j.row0, j.rows, n};
        dq_packed_pack(dev, &s, false, j.a);
        host->run(host->self, dq_ceil_div(p->y->cols, DQ_PAIR), tiles_task, &j);
    }
    dq_cpu_scratch_give(dev, j.a);
    return DQ_OK;
}
