/* Losses of rotated rows o = x R, with gradients; docs/numerics.md, "Learnt rotations", has the formulas and their
 * sources. SPDX-License-Identifier: Apache-2.0 */
#ifndef DQ_CALIB_LOSS_H
#define DQ_CALIB_LOSS_H

#include "backend/device.h"

/* The first six are decided by each row alone and run inside the device's rotation_loss. */
typedef enum dq_fit_loss {
    DQ_FIT_WHIP,        /* sum exp(-|o|) of a row (DartQuant, arXiv 2511.04063) */
    DQ_FIT_KURTOSIS,    /* width S4 / S2^2 of a row, Sk = sum (o - mean)^k (KurTail) */
    DQ_FIT_VARIANCE,    /* S2 / width of a row */
    DQ_FIT_QUANT,       /* sum (o - Q(o))^2 of a row, Q(o) held fixed in the gradient */
    DQ_FIT_RANGE,       /* the error to be expected of a row from its clipped range */
    DQ_FIT_SNAP,        /* as QUANT, without the elements that give the range: they keep their value */
    DQ_FIT_SWD,         /* mean (sorted o - uniform quantiles)^2 over all numbers of a batch */
    DQ_FIT_SWD_CHANNEL, /* the same per channel over the rows of a batch, mean over channels */
    DQ_FIT_SWD_GAUSS,   /* per channel against Gaussian quantiles */
    DQ_FIT_HOST,        /* registered by the host */
    DQ_FIT_LOSSES
} dq_fit_loss;

/* The quantizer of rotated rows: dq_fake_quant_desc without zero_in_range. */
typedef struct dq_quant_target {
    int32_t bits; /* 2..15 */
    int32_t symmetric;
    int64_t group; /* columns; 0 = the whole row */
    double clip;
} dq_quant_target;

/* Value and gradient of a host's loss: o F32 [rows, cols] rotated rows; *loss = its value for this batch, a mean over
 * rows; grad F32 [rows, cols] = d loss / d o, or NULL. */
typedef dq_status (*dq_host_loss_fn)(void *user, const float *o, int64_t rows, int64_t cols, float *grad, double *loss);

typedef struct dq_loss {
    dq_fit_loss kind;
    dq_quant_target quant; /* QUANT, RANGE, SNAP */
    bool relative;         /* row-local kinds: each row's loss divided by |x|^2 */
    dq_host_loss_fn fn;    /* HOST */
    void *user;
    double curvature; /* HOST: see dq_loss_curvature */
} dq_loss;

/* The sizes of one problem: rows [*, heads * n], head h turns by matrix h / (heads / groups). R1: heads = groups = 1. */
typedef struct dq_orbit {
    int64_t n;
    int32_t heads, groups;
} dq_orbit;
static inline int64_t dq_orbit_width(const dq_orbit *o) { return o->n * o->heads; }

/* "whip", "kurtosis", "variance", "quant-mse", "range", "snap", "swd", "swd-channel", "swd-gauss", "host". */
const char *dq_loss_name(dq_fit_loss kind);
/* Depends on the rows of a batch together, or on the host: the batch is rotated whole. */
bool dq_loss_takes_batch(dq_fit_loss kind);
/* Upper bound of the second derivative of one row's loss along any o_i; 0 = unbounded or unknown. RANGE and SNAP have none:
 * for them it is the unit that mm_boldness was measured in. */
double dq_loss_curvature(const dq_loss *loss, int64_t width);

/* For losses that take a batch: their value for o F32 [rows, cols] in host memory, and grad = d value / d o (or NULL).
 * One SWD batch has at most 2^31 numbers. */
dq_status dq_loss_of_batch(dq_env *env, const dq_loss *loss, const float *o, int64_t rows, int64_t cols, float *grad,
                           double *value);

/* Any loss through a rotation: x [rows, heads * n] F32, F16 or BF16, r F32 [groups * n, n]. *value = mean loss over the
 * rows; grad F32 [groups * n, n] = beta * grad + weight * d (value + shift |o|^2 / 2 per row) / d R, or NULL. */
dq_status dq_loss_of_rotation(const dq_loss *loss, const dq_orbit *orbit, const dq_tensor *x, const dq_tensor *r,
                              double weight, double shift, double beta, dq_tensor *grad, int math, double *value);
/* Mean over rows of |o - Q(o)|^2 / |o|^2 (rows of zeros count 0): the relative quantization error. */
dq_status dq_quant_error_of_rotation(const dq_quant_target *quant, const dq_orbit *orbit, const dq_tensor *x,
                                     const dq_tensor *r, int math, double *value);

#endif
