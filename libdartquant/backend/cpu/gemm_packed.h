/* Products of operands rounded to bf16 and packed in tiles of 16 x 32, the shape AMX takes. A panel is 16 rows of A, or
 * 16 columns of B, over the whole depth: [depth / 32] tiles of 1 KiB, zero padded. Panels come in pairs.
 *   A tile: [16 rows][32 deep]            B tile: [16 pairs of depth][16 columns][2] (Intel's VNNI layout)
 * SPDX-License-Identifier: Apache-2.0 */
#ifndef DQ_BACKEND_CPU_GEMM_PACKED_H
#define DQ_BACKEND_CPU_GEMM_PACKED_H

#include "backend/cpu/forward.h"

enum { DQ_PANEL = 16, DQ_PAIR = 2 * DQ_PANEL, DQ_TILE_DEPTH = 32, DQ_TILE_ELEMENTS = DQ_PANEL * DQ_TILE_DEPTH };

/* An operand as [rows, depth]; rows are A's rows or B's columns. */
typedef struct dq_pack_source {
    const dq_view *v; /* F32, BF16 or F16 */
    bool depth_first; /* element (row, k) stands in row k, column `row` of the view */
    int64_t row0;     /* first row */
    int64_t rows, depth;
} dq_pack_source;

typedef struct dq_packed_kernels {
    /* One panel; rows outside the source are zero. */
    void (*pack_a)(const dq_pack_source *s, int64_t panel, uint16_t *tiles);
    void (*pack_b)(const dq_pack_source *s, int64_t panel, uint16_t *tiles);
    /* c = alpha * A B + beta * c over rows x cols; a and b are the first of as many panels as needed. */
    void (*block)(const uint16_t *a, const uint16_t *b, int64_t tiles, int64_t rows, int64_t cols, float alpha,
                  float beta, float *c, int64_t ldc);
} dq_packed_kernels;

extern const dq_packed_kernels dq_packed_bf16, dq_packed_amx;
void dq_pack_a_bf16(const dq_pack_source *s, int64_t panel, uint16_t *tiles);
void dq_pack_b_bf16(const dq_pack_source *s, int64_t panel, uint16_t *tiles);

/* NULL when this device has no bf16 products. */
static inline const dq_packed_kernels *dq_cpu_packed(const dq_cpu_dev *dev)
{
#if defined(__x86_64__)
    if (dev->amx) return &dq_packed_amx;
    if (dev->bf16) return &dq_packed_bf16;
#endif
    (void)dev;
    return NULL;
}

static inline int64_t dq_packed_tiles(int64_t depth) { return dq_ceil_div(depth, DQ_TILE_DEPTH); }
/* Rows whose panels fill about `bytes`: a multiple of `step`, at least one step, not more than `rows` needs. */
static inline int64_t dq_packed_chunk(int64_t rows, int64_t depth, int64_t bytes, int64_t step)
{
    int64_t fit = bytes / (dq_max64(1, dq_packed_tiles(depth)) * DQ_TILE_DEPTH * 2);
    return dq_min64(dq_max64(step, fit / step * step), dq_ceil_div(rows, DQ_PAIR) * DQ_PAIR);
}
static inline size_t dq_packed_bytes(int64_t rows, int64_t depth)
{
    return (size_t)(dq_ceil_div(rows, DQ_PAIR) * 2 * dq_packed_tiles(depth)) * DQ_TILE_ELEMENTS * 2;
}
/* All panels of s, in parallel. */
void dq_packed_pack(dq_cpu_dev *dev, const dq_pack_source *s, bool is_b, uint16_t *out);
/* First tile of the panel that holds `row`. */
static inline uint16_t *dq_packed_at(uint16_t *panels, int64_t row, int64_t depth)
{
    return panels + row / DQ_PANEL * dq_packed_tiles(depth) * DQ_TILE_ELEMENTS;
}

/* c[0..n) = alpha * x + beta * c; with beta 0 the old content does not matter. */
static inline void dq_packed_put(const float *x, int64_t n, float alpha, float beta, float *c)
{
    if (beta == 0) {
        for (int64_t i = 0; i < n; i++) c[i] = alpha * x[i];
    } else {
        for (int64_t i = 0; i < n; i++) c[i] = alpha * x[i] + beta * c[i];
    }
}

dq_status dq_packed_gemm(dq_cpu_dev *dev, bool trans_a, bool trans_b, float alpha, const dq_view *a, const dq_view *b,
                         float beta, const dq_view *c);

#endif
