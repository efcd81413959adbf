/* Products under DQ_MATH_BF16 where the processor multiplies bf16: both operands are rounded and packed, then blocks of
 * C are computed in parallel. SPDX-License-Identifier: Apache-2.0 */
#include "backend/cpu/gemm_packed.h"

enum {
    BLOCK = 256,        /* rows and columns of C in a task */
    A_BYTES = 32 << 20, /* packed at a time */
    B_BYTES = 16 << 20
};

/* ---- packing ---- */

typedef struct pack_job {
    const dq_pack_source *s;
    void (*pack)(const dq_pack_source *s, int64_t panel, uint16_t *tiles);
    uint16_t *out;
    int64_t panels, per_task;
} pack_job;

static void pack_task(void *arg, int64_t i, int thread)
{
    const pack_job *j = arg;
    (void)thread;
    for (int64_t p = i * j->per_task; p < dq_min64(j->panels, (i + 1) * j->per_task); p++)
        j->pack(j->s, p, dq_packed_at(j->out, p * DQ_PANEL, j->s->depth));
}

void dq_packed_pack(dq_cpu_dev *dev, const dq_pack_source *s, bool is_b, uint16_t *out)
{
    const dq_host *host = dev->ref.host;
    const dq_packed_kernels *k = dq_cpu_packed(dev);
    pack_job j = {.s = s, .pack = is_b ? k->pack_b : k->pack_a, .out = out};
    j.panels = dq_ceil_div(s->rows, DQ_PAIR) * 2;
    j.per_task = dq_max64(1, 256 / dq_max64(1, dq_packed_tiles(s->depth))); /* some 256 KiB */
    host->run(host->self, dq_ceil_div(j.panels, j.per_task), pack_task, &j);
}

/* ---- products ---- */

typedef struct product {
    const dq_packed_kernels *kernels;
    uint16_t *a, *b;
    float alpha, beta;
    const dq_view *c;
    int64_t row0, rows, col0, cols; /* this chunk of C */
    int64_t depth, col_blocks;
} product;

static void product_task(void *arg, int64_t i, int thread)
{
    const product *p = arg;
    (void)thread;
    int64_t r = i / p->col_blocks * BLOCK, c = i % p->col_blocks * BLOCK;
    p->kernels->block(dq_packed_at(p->a, r, p->depth), dq_packed_at(p->b, c, p->depth), dq_packed_tiles(p->depth),
                      dq_min64(BLOCK, p->rows - r), dq_min64(BLOCK, p->cols - c), p->alpha, p->beta,
                      dq_view_f32(p->c, p->row0 + r) + p->col0 + c, p->c->stride);
}

dq_status dq_packed_gemm(dq_cpu_dev *dev, bool trans_a, bool trans_b, float alpha, const dq_view *a, const dq_view *b,
                         float beta, const dq_view *c)
{
    const dq_host *host = dev->ref.host;
    int64_t m = c->rows, n = c->cols, depth = trans_a ? a->rows : a->cols;
    int64_t m_chunk = dq_packed_chunk(m, depth, A_BYTES, BLOCK), n_chunk = dq_packed_chunk(n, depth, B_BYTES, BLOCK);
    size_t a_bytes = dq_packed_bytes(m_chunk, depth);
    product p = {.kernels = dq_cpu_packed(dev), .alpha = alpha, .beta = beta, .c = c, .depth = depth};
    p.a = dq_cpu_scratch_take(dev, a_bytes + dq_packed_bytes(n_chunk, depth) + 64);
    if (!p.a) return DQ_E_NOMEM;
    p.b = p.a + a_bytes / sizeof *p.a;
    for (p.row0 = 0; p.row0 < m; p.row0 += m_chunk) {
        p.rows = dq_min64(m_chunk, m - p.row0);
        dq_pack_source sa = {a, trans_a, p.row0, p.rows, depth};
        dq_packed_pack(dev, &sa, false, p.a);
        for (p.col0 = 0; p.col0 < n; p.col0 += n_chunk) {
            p.cols = dq_min64(n_chunk, n - p.col0);
            dq_pack_source sb = {b, !trans_b, p.col0, p.cols, depth};
            if (n_chunk < n || p.row0 == 0) dq_packed_pack(dev, &sb, true, p.b);
            p.col_blocks = dq_ceil_div(p.cols, BLOCK);
            host->run(host->self, dq_ceil_div(p.rows, BLOCK) * p.col_blocks, product_task, &p);
        }
    }
    dq_cpu_scratch_give(dev, p.a);
    return DQ_OK;
}
