/* Inside of the CPU backend's ops that fit rotations. SPDX-License-Identifier: Apache-2.0 */
#ifndef DQ_BACKEND_CPU_FIT_H
#define DQ_BACKEND_CPU_FIT_H

#include "backend/cpu/forward.h"
#include "backend/cpu/quantize.h"

enum { DQ_FIT_LANES = 16 }; /* of the widest vectors */

/* Kernels of one instruction set. */
typedef struct dq_fit_kernels {
    /* The loss of d of `cols` columns, a multiple of d->group (any number for WHIP), unweighted; slope = weight (dL/do +
     * shift o) unless it is NULL; slope may be o. line: room for `cols` floats. */
    double (*loss)(const dq_rotation_loss_desc *d, const dq_quant_kernels *quant, const float *o, int64_t cols,
                   float weight, float shift, float *line, float *slope);
    /* Householder QR of a matrix of order n in columns ld apart (a multiple of DQ_FIT_LANES, zeros from n on): a becomes
     * r, its upper triangle alone being meant, q the orthogonal factor, with the signs of LAPACK's geqrf. v: [n][ld],
     * tau: [n] values of workspace. */
    void (*qr_f32)(float *a, float *q, float *v, float *tau, int64_t n, int64_t ld);
    void (*qr_f64)(double *a, double *q, double *v, double *tau, int64_t n, int64_t ld);
} dq_fit_kernels;

extern const dq_fit_kernels dq_fit_plain, dq_fit_avx2, dq_fit_avx512;

/* bf16 panels of gemm_packed.h for operands in several terms: the first is the value rounded to bf16, the next what is
 * left of it, rounded again; three hold all 24 bits. */
typedef struct dq_fit_panels {
    uint16_t *at;
    int64_t panel; /* elements from a panel to the next */
    int64_t term;  /* elements from a term's panels to the next term's */
    int terms;
} dq_fit_panels;

typedef struct dq_fit_tiles {
    /* A panels of rows x cols of v, an F32, F16 or BF16 view, padded with zeros to whole tiles and pairs of panels. */
    void (*pack_rows)(const dq_view *v, const dq_fit_panels *to);
    /* Rows `row`, `row + 1` (row even) of a B operand, each n values (NULL: zeros), zeros up to n_padded. */
    void (*pack_pair)(const float *first, const float *second, int64_t n, int64_t n_padded, int64_t row,
                      const dq_fit_panels *to);
    /* A panels of the transpose of what A panels hold: rows, cols multiples of 32; the rows become depth from
     * `to_depth` on, a multiple of 32. */
    void (*transpose)(const dq_fit_panels *from, int64_t rows, int64_t cols, int64_t to_depth, const dq_fit_panels *to);
    /* c (+)= A B over `tiles` tiles of depth, leaving out products of terms too small to matter. Only rows x cols of c
     * are touched. */
    void (*product)(const dq_fit_panels *a, const dq_fit_panels *b, int64_t tiles, int64_t rows, int64_t cols, bool add,
                    float *c, int64_t ldc);
} dq_fit_tiles;

extern const dq_fit_tiles dq_fit_tiles_amx;

/* halley.c. Brings x [n][n], contiguous, near its polar factor: the Frobenius norm of x^T x - I is below DQ_HALLEY_NEAR.
 * work: 4 n^2 floats. *good is false for matrices singular to working precision or not finite; x is then undefined. */
#define DQ_HALLEY_NEAR 0.05
dq_status dq_cpu_halley(dq_cpu_dev *dev, int64_t n, float *x, void *work, bool *good);

/* fit.c, rotation_loss.c, orthogonal.c, polar.c, adam.c */
void dq_cpu_fill_fit(dq_backend *table);
dq_status dq_cpu_qr_batch(void *device, int64_t groups, const dq_view *a, const dq_view *q, const dq_view *r);
dq_status dq_cpu_qr_grad(void *device, int64_t groups, const dq_view *q, const dq_view *r, const dq_view *dq,
                         const dq_view *da);
dq_status dq_cpu_polar(void *device, int64_t groups, int32_t math, const dq_view *a, const dq_view *u, double *error);
dq_status dq_cpu_rotation_loss(void *device, const dq_rotation_loss_desc *d, const dq_view *x, const dq_view *weight,
                               const dq_view *r, const dq_view *grad, const dq_view *row_loss, double *loss);
dq_status dq_cpu_adam(void *device, double beta1, double beta2, double root, double epsilon, const dq_view *g,
                      const dq_view *mean, const dq_view *square);

#endif
