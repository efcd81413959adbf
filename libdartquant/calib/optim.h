/* Methods that walk on the orthogonal group: a gradient goes in, the next rotation comes out. What costs n^3 runs on the
 * device, what costs n^2 on the host, where the state lives. SPDX-License-Identifier: Apache-2.0 */
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
    /* The state: the free matrices Z (QR-Orth) or the rotations themselves; velocity, Adam's mean or polar-mm's target;
     * Adam's mean square. F32 [groups * n, n] each. */
    float *z, *first, *second;
    float *host;                    /* scratch */
    dq_tensor r;                    /* F32 [groups * n, n]: the rotations that stand for z */
    dq_tensor upper;                /* QR-Orth: the triangular factors of z */
    dq_tensor scratch_a, scratch_b; /* like r */
} dq_optim;

/* Starts at rotation F32 [groups * n, n], host memory, with no history. */
dq_status dq_optim_init(dq_optim *o, dq_device *dev, const dq_fit_spec *spec, dq_fit_method method,
                        const float *rotation);
void dq_optim_clear(dq_optim *o);
/* One step from grad F32 [groups * n, n] = d loss / d R at o->r; for polar-mm d loss / d R - c * curvature * X^T O. grad is
 * overwritten. DQ_E_NUMERIC when a matrix cannot be brought back to the group; the state is then undefined. */
dq_status dq_optim_step(dq_optim *o, dq_tensor *grad, double lr);
/* After z, first, second and steps were replaced: r follows. */
dq_status dq_optim_refresh(dq_optim *o);

/* ---- for the files of the methods ---- */
/* z, first and second by one rule of the optimiser from `slope`, which becomes the step to subtract. */
void dq_optim_direction(dq_optim *o, float *slope, double lr);
dq_status dq_optim_tangent_step(dq_optim *o, dq_tensor *grad, double lr);

#endif
