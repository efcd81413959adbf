/* Pieces of weight quantization, shared by the files of this room. SPDX-License-Identifier: Apache-2.0 */
#ifndef DQ_QUANT_PARTS_H
#define DQ_QUANT_PARTS_H

#include "quant/quantize.h"

/* ---- grid.c ---- */
/* Values of the options, not yet of a matrix. */
dq_status dq_weight_spec_check(const dq_weight_spec *spec);
/* Grid for groups of `group` columns. */
dq_grid_desc dq_weight_grid_desc(const dq_weight_spec *spec, int64_t group);
/* Columns per group in a row of `in` columns. */
int64_t dq_weight_group(const dq_weight_spec *spec, int64_t in);
/* Codes, scales and zeros for a weight [out, in]; no group index. */
dq_status dq_codes_alloc(dq_device *dev, const dq_weight_spec *spec, int64_t out, int64_t in, dq_codes *codes);
/* w = the values of the codes. */
dq_status dq_codes_dequantize(const dq_codes *codes, dq_tensor *w);

/* ---- rtn.c ---- */
dq_status dq_rtn_solve(const dq_weight_spec *spec, const dq_tensor *w, dq_codes *out, double *error);

/* ---- gptq_plan.c ---- */
enum { DQ_GPTQ_BLOCK = 128 }; /* columns that are rounded before the others hear of it */
/* Everything that depends on the Hessian only, so that q, k, v and gate, up share it. */
typedef struct dq_gptq_plan {
    dq_env *env;
    const dq_tensor *h; /* borrowed */
    int64_t n;
    int32_t *perm, *inverse;             /* act_order: column at each place, place of each column; NULL = as they lie */
    dq_tensor perm_index, inverse_index; /* the same on the device */
    dq_tensor alive;                     /* F32 [1, n]: 0 for dead columns, else 1; empty when none is dead */
    dq_tensor added_root;                /* F32 [1, n]: square root of what was added to each diagonal entry */
    double damping;                      /* mean of what was added as a share of the mean diagonal */
    dq_tensor u;                         /* F32 [n, n]: inv(damped H) = u^T u, in permuted order; or: */
    bool rooted;                         /* u is the root of the damped H (gptq_root) with blocks of DQ_GPTQ_BLOCK */
} dq_gptq_plan;

dq_status dq_gptq_plan_make(const dq_weight_spec *spec, const dq_tensor *h, dq_gptq_plan *out);
void dq_gptq_plan_free(dq_gptq_plan *plan);

/* ---- gptq.c ---- */
/* w is overwritten. error: tr(dW H dW^T) / tr(W H W^T). */
dq_status dq_gptq_solve(const dq_weight_spec *spec, const dq_gptq_plan *plan, dq_tensor *w, dq_codes *out,
                        double *error);

/* ---- energy.c ---- */
/* The strict upper triangle becomes the mirror image of the lower one. */
dq_status dq_hessian_mirror(dq_tensor *h);
/* tr(D H D^T) from the lower triangle of h, whose other numbers are finite; d F32 [rows, n]; math: DQ_MATH_* of the products.
 * product: like d, overwritten with D H but for the order of its terms. The host waits once. */
dq_status dq_hessian_energy(const dq_tensor *d, const dq_tensor *h, int math, dq_tensor *product, double *out);

#endif
