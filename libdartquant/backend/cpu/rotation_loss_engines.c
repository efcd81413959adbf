/* The two ways to multiply in a pass over rotated rows. SPDX-License-Identifier: Apache-2.0 */
#include <cblas.h>
#include <string.h>

#include "backend/cpu/gemm_packed.h"
#include "backend/cpu/rotation_loss.h"

static dq_view head_of(const dq_loss_pass *p, const dq_loss_block *b, int64_t head, int64_t heads)
{
    return dq_view_slice(p->x, b->first, b->rows, head * p->n, heads * p->n, p->x->dtype == DQ_F32 ? 4 : 2);
}

/* ---- fp32: the store holds rows as they come, [depth][heads * n] ---- */

static size_t f32_pack_bytes(const dq_loss_pass *p)
{
    (void)p;
    return 64;
}

static size_t f32_block_bytes(const dq_loss_pass *p)
{
    return p->x->dtype == DQ_F32 ? 64 : (size_t)(p->block * p->unit * p->n) * sizeof(float);
}

static size_t f32_store_bytes(const dq_loss_pass *p, int64_t depth, int64_t heads)
{
    size_t bytes = (size_t)(depth * heads * p->n) * sizeof(float);
    return dq_ceil_div((int64_t)bytes, 64) * 128;
}

static void f32_pack(const dq_loss_pass *p, int64_t group, int64_t first, int64_t end)
{
    (void)p, (void)group, (void)first, (void)end;
}

/* The unit's part of the block in fp32. */
static const float *wide_rows(const dq_loss_pass *p, const dq_loss_block *b, int64_t head0, int64_t *stride)
{
    dq_view x = head_of(p, b, head0, p->unit);
    const dq_row_kernels *k = dq_cpu_rows(p->dev);
    *stride = x.dtype == DQ_F32 ? x.stride : x.cols;
    if (x.dtype == DQ_F32) return dq_view_f32(&x, 0);
    for (int64_t r = 0; r < x.rows; r++)
        (x.dtype == DQ_BF16 ? k->bf16_to_f32 : k->f16_to_f32)(dq_view_at(&x, r, 0, 2), (float *)b->packed + r * x.cols,
                                                              x.cols);
    return b->packed;
}

static void f32_rotate(const dq_loss_pass *p, const dq_loss_block *b, int64_t head0)
{
    int64_t stride, n = p->n;
    const float *x = wide_rows(p, b, head0, &stride);
    for (int64_t h = 0; h < p->unit; h++)
        cblas_sgemm(CblasRowMajor, CblasNoTrans, CblasNoTrans, (int)b->rows, (int)n, (int)n, 1, x + h * n, (int)stride,
                    dq_view_f32(p->r, (head0 + h) / p->share * n), (int)p->r->stride, 0, b->o + h * n,
                    (int)p->row_floats);
}

static void f32_keep(const dq_loss_pass *p, const dq_loss_block *b, int64_t head0, const dq_loss_store *s, int64_t at)
{
    int64_t stride, width = (s->whole ? p->heads : p->unit) * p->n, first = s->whole ? head0 * p->n : 0;
    const float *x = wide_rows(p, b, head0, &stride);
    size_t bytes = (size_t)(p->unit * p->n) * sizeof(float);
    for (int64_t r = 0; r < b->rows; r++) {
        int64_t to = (at + r) * width + first;
        memcpy((float *)s->x + to, x + r * stride, bytes);
        memcpy((float *)s->slope + to, b->o + r * p->row_floats, bytes);
    }
}

static void f32_accumulate(const dq_loss_pass *p, const dq_loss_store *s, int64_t depth, int64_t head, int64_t r0,
                           int64_t rows, int64_t c0, int64_t cols, float *c, int64_t ldc)
{
    int64_t width = (s->whole ? p->heads : p->unit) * p->n;
    int64_t at = (s->whole ? head : head % p->unit) * p->n;
    cblas_sgemm(CblasRowMajor, CblasTrans, CblasNoTrans, (int)rows, (int)cols, (int)depth, 1,
                (const float *)s->x + at + r0, (int)width, (const float *)s->slope + at + c0, (int)width, 1, c,
                (int)ldc);
}

const dq_loss_engine dq_loss_engine_f32 = {f32_pack_bytes, f32_block_bytes, f32_store_bytes, f32_pack,
                                           f32_rotate,     f32_keep,        f32_accumulate};

/* ---- tiles: panels of bf16 terms, one set for each head ---- */

static dq_fit_panels panels_of(void *at, int64_t index, int64_t rows, int64_t depth, int terms)
{
    dq_fit_panels v = {.panel = depth / DQ_TILE_DEPTH * DQ_TILE_ELEMENTS, .terms = terms};
    v.term = rows / DQ_PANEL * v.panel;
    v.at = (uint16_t *)at + index * v.term * terms;
    return v;
}

static dq_fit_panels rotation_of(const dq_loss_pass *p, int64_t group)
{
    return panels_of(p->r_packed, group, p->padded, p->padded, p->terms);
}

static size_t tiles_pack_bytes(const dq_loss_pass *p)
{
    return (size_t)(p->heads / p->share * p->padded * p->padded * p->terms) * sizeof(uint16_t);
}

static size_t tiles_block_bytes(const dq_loss_pass *p)
{
    return (size_t)(p->unit * p->block * p->padded * p->x_terms) * sizeof(uint16_t);
}

static size_t tiles_store_bytes(const dq_loss_pass *p, int64_t depth, int64_t heads)
{
    int terms = p->terms > p->x_terms ? p->terms : p->x_terms;
    return 2 * (size_t)(depth * heads * p->padded * terms) * sizeof(uint16_t);
}

static void tiles_pack(const dq_loss_pass *p, int64_t group, int64_t from, int64_t end)
{
    dq_fit_panels to = rotation_of(p, group);
    for (int64_t k = from; k < end; k += 2) {
        const float *first = k < p->n ? dq_view_f32(p->r, group * p->n + k) : NULL;
        const float *second = k + 1 < p->n ? dq_view_f32(p->r, group * p->n + k + 1) : NULL;
        p->tiles->pack_pair(first, second, p->n, p->padded, k, &to);
    }
}

static dq_fit_panels rows_of(const dq_loss_pass *p, const dq_loss_block *b, int64_t h)
{
    return panels_of(b->packed, h, p->block, p->padded, p->x_terms);
}

/* A head's padding columns are overwritten by the next head; the last one's lie behind the row. */
static void tiles_rotate(const dq_loss_pass *p, const dq_loss_block *b, int64_t head0)
{
    int64_t rows = dq_ceil_div(b->rows, DQ_PAIR) * DQ_PAIR;
    for (int64_t h = 0; h < p->unit; h++) {
        dq_fit_panels x = rows_of(p, b, h), r = rotation_of(p, (head0 + h) / p->share);
        dq_view v = head_of(p, b, head0 + h, 1);
        p->tiles->pack_rows(&v, &x);
        p->tiles->product(&x, &r, p->padded / DQ_TILE_DEPTH, rows, p->padded, false, b->o + h * p->n, p->row_floats);
    }
}

static void tiles_keep(const dq_loss_pass *p, const dq_loss_block *b, int64_t head0, const dq_loss_store *s, int64_t at)
{
    int64_t rows = dq_ceil_div(b->rows, DQ_PAIR) * DQ_PAIR, to = s->whole ? head0 : 0;
    for (int64_t h = 0; h < p->unit; h++) {
        dq_fit_panels from = rows_of(p, b, h), x = panels_of(s->x, to + h, p->padded, s->depth, p->x_terms);
        dq_fit_panels slope = panels_of(s->slope, to + h, p->padded, s->depth, p->terms);
        p->tiles->transpose(&from, rows, p->padded, at, &x);
        for (int64_t r = 0; r < rows; r += 2) {
            const float *first = r < b->rows ? b->o + r * p->row_floats + h * p->n : NULL;
            const float *second = r + 1 < b->rows ? b->o + (r + 1) * p->row_floats + h * p->n : NULL;
            p->tiles->pack_pair(first, second, p->n, p->padded, at + r, &slope);
        }
    }
}

static void tiles_accumulate(const dq_loss_pass *p, const dq_loss_store *s, int64_t depth, int64_t head, int64_t r0,
                             int64_t rows, int64_t c0, int64_t cols, float *c, int64_t ldc)
{
    int64_t index = s->whole ? head : head % p->unit;
    dq_fit_panels x = panels_of(s->x, index, p->padded, s->depth, p->x_terms);
    dq_fit_panels slope = panels_of(s->slope, index, p->padded, s->depth, p->terms);
    x.at += r0 / DQ_PANEL * x.panel;
    slope.at += c0 / DQ_PANEL * slope.panel;
    p->tiles->product(&x, &slope, dq_packed_tiles(depth), rows, cols, true, c, ldc);
}

const dq_loss_engine dq_loss_engine_tiles = {tiles_pack_bytes, tiles_block_bytes, tiles_store_bytes, tiles_pack,
                                             tiles_rotate,     tiles_keep,        tiles_accumulate};
