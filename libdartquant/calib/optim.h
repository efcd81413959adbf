/* Methods that walk on the orthogonal group: a gradient goes in, the next rotation comes out. State and steps are the
 * device's; the host sees single numbers. SPDX-License-Identifier: Apache-2.0 */
#ifndef DQ_CALIB_OPTIM_H
#define DQ_CALIB_OPTIM_H

#include "calib/fit.h"

typedef struct dq_optim {
    dq_device *dev;
    dq_orbit orbit;
    dq_fit_method method;
    dq_fit_optim kind;
    double momentum;  /* Adam: beta1 */
    double mm_memory; /* polar-mm: weight of the old target */
    int math;
    int64_t count; /* numbers in all matrices: groups * n * n */
    int64_t steps; /* done with this state */
    /* F32 [groups * n, n] each; those that the method has no use for are empty. */
    dq_tensor r;       /* the rotations; with z and the moments they are the state */
    dq_tensor z;       /* QR-Orth: the free matrices, r is their Q factor */
    dq_tensor first;   /* velocity, Adam's mean or polar-mm's target */
    dq_tensor second;  /* Adam's mean square */
    dq_tensor upper;   /* triangular factors; Cayley: scratch */
    dq_tensor slope;   /* the gradient that a rule sees, not for polar-mm */
    dq_tensor columns; /* F32 [1, n]: one factor for all columns */
} dq_optim;

/* Starts at rotation F32 [groups * n, n], host memory, with no history. */
dq_status dq_optim_init(dq_optim *o, dq_device *dev, const dq_fit_spec *spec, dq_fit_method method,
                        const float *rotation);
void dq_optim_clear(dq_optim *o);
/* One step from grad F32 [groups * n, n] = d loss / d R at o->r; for polar-mm d loss / d R - c * curvature * X^T O. grad is
 * overwritten. DQ_E_NUMERIC when a matrix cannot be brought back to the group; the state is then undefined. */
dq_status dq_optim_step(dq_optim *o, dq_tensor *grad, double lr);
/* The tensors that are the state beside `steps`: their number, at most DQ_OPTIM_STATE. */
enum { DQ_OPTIM_STATE = 3 };
int dq_optim_state(dq_optim *o, dq_tensor *out[DQ_OPTIM_STATE]);
/* After they were replaced: the rest follows. */
dq_status dq_optim_refresh(dq_optim *o);

/* ---- for the files of the methods ---- */
/* Moments by the optimiser's rule from o->slope. The step to subtract is *rate times *step (a view of slope or first). */
dq_status dq_optim_direction(dq_optim *o, double lr, dq_tensor *step, double *rate);
dq_status dq_optim_tangent_step(dq_optim *o, dq_tensor *grad, double lr);
/* x times `by`. */
dq_status dq_optim_scale(dq_optim *o, double by, dq_tensor *x);

#endif
