/* Between rotation_loss.c, which cuts a pass in blocks of rows, and the two ways to multiply: fp32 through OpenBLAS, and
 * bf16 terms through AMX. SPDX-License-Identifier: Apache-2.0 */
#ifndef DQ_BACKEND_CPU_ROTATION_LOSS_H
#define DQ_BACKEND_CPU_ROTATION_LOSS_H

#include "backend/cpu/fit.h"

/* Rotated rows and what the gradient needs of them: for each head x^T and dL/do, of at most `depth` rows. */
typedef struct dq_loss_store {
    void *x, *slope;
    int64_t depth;
    bool whole; /* all heads, or the unit at hand alone */
} dq_loss_store;

typedef struct dq_loss_pass {
    dq_cpu_dev *dev;
    const dq_rotation_loss_desc *d;
    const dq_view *x, *weight, *r, *grad, *row_loss;
    const dq_fit_kernels *kernels;
    const dq_quant_kernels *quant;
    const dq_fit_tiles *tiles; /* NULL: fp32 */
    int x_terms, terms;        /* of x, and of r and dL/do */
    int64_t n, padded;         /* order, and rounded up to whole pairs of panels */
    int64_t heads, share;      /* heads per group */
    int64_t unit;              /* heads a loss sees together */
    int64_t block;             /* rows taken at a time */
    int64_t row_floats;        /* in a row of rotated values of a unit */
    void *r_packed;
    const struct dq_loss_engine *engine;
    size_t thread_bytes; /* workspace of a thread */
    char *workspace;
    double *block_loss;
} dq_loss_pass;

typedef struct dq_loss_engine dq_loss_engine;

/* A block of rows at work, in the workspace of its thread. */
typedef struct dq_loss_block {
    int64_t first, rows;
    float *o;     /* [block][row_floats] */
    float *line;  /* [width] */
    double *sum;  /* [block] loss of each row so far */
    double *per;  /* [block] 1 / |x|^2, or 1 */
    void *packed; /* x as the product takes it */
} dq_loss_block;

struct dq_loss_engine {
    size_t (*pack_bytes)(const dq_loss_pass *p);                                /* of r */
    size_t (*block_bytes)(const dq_loss_pass *p);                               /* of dq_loss_block.packed */
    size_t (*store_bytes)(const dq_loss_pass *p, int64_t depth, int64_t heads); /* x and slopes; a multiple of 128 */
    /* Rows [first, end) of a group's r, even numbers up to `padded`. */
    void (*pack)(const dq_loss_pass *p, int64_t group, int64_t first, int64_t end);
    /* o = x r for the heads of a unit. */
    void (*rotate)(const dq_loss_pass *p, const dq_loss_block *b, int64_t head0);
    /* Slopes of the unit's rows stand in o: keep them, and x, from row `at` (a multiple of 32) of the store on. */
    void (*keep)(const dq_loss_pass *p, const dq_loss_block *b, int64_t head0, const dq_loss_store *s, int64_t at);
    /* c += x_h^T slope_h over the first `depth` rows, for rows [r0, +rows) and columns [c0, +cols) of the product. */
    void (*accumulate)(const dq_loss_pass *p, const dq_loss_store *s, int64_t depth, int64_t head, int64_t r0,
                       int64_t rows, int64_t c0, int64_t cols, float *c, int64_t ldc);
};

extern const dq_loss_engine dq_loss_engine_f32, dq_loss_engine_tiles;

#endif
