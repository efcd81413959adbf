/* Losses of rotated rows o = x R, with gradients. A table of functions; docs/numerics.md "Learnt rotations" has the
 * formulas and their sources. SPDX-License-Identifier: Apache-2.0 */
#ifndef DQ_CALIB_LOSS_H
#define DQ_CALIB_LOSS_H

#include "backend/device.h"

typedef enum dq_loss_kind {
    DQ_LOSS_WHIP,        /* sum_i exp(-|o_i|) per row (DartQuant, arXiv 2511.04063) */
    DQ_LOSS_SWD,         /* mean (sorted o - uniform quantiles)^2 over all numbers of a batch */
    DQ_LOSS_SWD_CHANNEL, /* the same per channel over the rows of a batch, mean over channels */
    DQ_LOSS_SWD_GAUSS,   /* per channel against Gaussian quantiles */
    DQ_LOSS_KURTOSIS,    /* mean o^4 / (mean o^2)^2 per row (KurTail) */
    DQ_LOSS_VARIANCE,    /* mean o^2 - (mean |o|)^2 per row: variance of magnitudes */
    DQ_LOSS_QUANT_MSE,   /* mean (o - Q(o))^2 per row, Q(o) held fixed in the gradient */
    DQ_LOSS_HOST         /* registered by the host */
} dq_loss_kind;
enum { DQ_LOSS_KINDS = DQ_LOSS_HOST }; /* in the table */

/* Value and gradient of a host's loss: o F32 [rows, cols] rotated rows; *loss = its value for this batch, a mean over
 * rows; grad F32 [rows, cols] = d loss / d o. */
typedef dq_status (*dq_host_loss_fn)(void *user, const float *o, int64_t rows, int64_t cols, float *grad, double *loss);

typedef struct dq_loss {
    dq_loss_kind kind;
    dq_fake_quant_desc quant; /* QUANT_MSE */
    dq_host_loss_fn fn;       /* HOST */
    void *user;
    double
        curvature; /* HOST: upper bound of d2 loss_row / d o_i^2 for polar-mm, 0 = unknown; others: dq_loss_curvature */
} dq_loss;

/* The sizes of one problem: rows [*, heads * n], head h turns by matrix h / (heads / groups). R1: heads = groups = 1. */
typedef struct dq_orbit {
    int64_t n;
    int32_t heads, groups;
} dq_orbit;
static inline int64_t dq_orbit_width(const dq_orbit *o) { return o->n * o->heads; }

const char *dq_loss_name(dq_loss_kind kind);
/* Depends on rows together, so the batch must be rotated whole. */
bool dq_loss_couples_rows(dq_loss_kind kind);
/* Largest second derivative along any o_i of the loss of one row, 0 = unbounded or unknown. */
double dq_loss_curvature(const dq_loss *loss, int64_t width);

/* Mean loss over the rows of o F32 [rows, cols], host memory; grad = d loss / d o or NULL. o is not changed. */
dq_status dq_loss_of_rows(dq_env *env, const dq_loss *loss, const float *o, int64_t rows, int64_t cols, float *grad,
                          double *value);

/* The same through a rotation: x [rows, heads * n] F32, F16 or BF16, r F32 [groups * n, n]. *value = mean loss over the
 * rows; grad F32 [groups * n, n] = beta * grad + weight * d value / d R (NULL: value only). Losses local to a row run tile
 * by tile and the rotated batch never exists whole. DQ_E_NONFINITE when the value is not finite. */
dq_status dq_loss_of_rotation(const dq_loss *loss, const dq_orbit *orbit, const dq_tensor *x, const dq_tensor *r,
                              double weight, double beta, dq_tensor *grad, int math, double *value);
/* Mean over rows of |o - Q(o)|^2 / |o|^2 (rows of zeros count 0): relative quantization error. */
dq_status dq_quant_error_of_rotation(const dq_fake_quant_desc *quant, const dq_orbit *orbit, const dq_tensor *x,
                                     const dq_tensor *r, int math, double *value);

#endif
