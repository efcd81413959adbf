/* Steps along the tangent R A, A skew-symmetric, and three ways back to the orthogonal group: QR factor, Cayley transform,
 * polar factor. Momentum and Adam work on A, which needs no transport. (Absil, Mahony, Sepulchre, Optimization Algorithms
 * on Matrix Manifolds, 2008, sections 4.1 and 8.1; Li, Fuxin, Todorovic, arXiv 2002.01113.) SPDX-License-Identifier: Apache-2.0 */
#include <math.h>

#include "base/status.h"
#include "calib/optim.h"

enum { CAYLEY_TERMS = 6 };

static dq_tensor matrix_of(const dq_tensor *stack, const dq_optim *o, int64_t g)
{
    return dq_tensor_rows(stack, g * o->orbit.n, o->orbit.n);
}

/* c = alpha op(a) b + beta c for each matrix of the stacks. */
static dq_status products(const dq_optim *o, bool trans, double alpha, const dq_tensor *a, const dq_tensor *b,
                          double beta, dq_tensor *c)
{
    for (int64_t g = 0; g < o->orbit.groups; g++) {
        dq_tensor x = matrix_of(a, o, g), y = matrix_of(b, o, g), z = matrix_of(c, o, g);
        DQ_TRY(dq_op_gemm(trans, false, alpha, &x, &y, beta, &z, o->math));
    }
    return DQ_OK;
}

static dq_status to_polar(dq_optim *o, const dq_tensor *y)
{
    double error = 0;
    DQ_TRY(dq_op_polar(o->orbit.groups, o->math, y, &o->r, &error));
    if (!(error < 1e-3))
        return dq_fail(DQ_E_NUMERIC, "a step left the orthogonal group (error %g): the learning rate is too high",
                       error);
    return DQ_OK;
}

/* Columns of r by the signs on the diagonal of upper. */
static dq_status turn_columns(dq_optim *o, float *signs, const dq_tensor *upper, dq_tensor *r)
{
    DQ_TRY(dq_op_diag(upper, &o->columns));
    DQ_TRY(dq_tensor_download(&o->columns, signs));
    for (int64_t j = 0; j < o->orbit.n; j++) signs[j] = signs[j] >= 0 ? 1 : -1;
    DQ_TRY(dq_tensor_upload(&o->columns, signs));
    return dq_op_scale_cols(r, &o->columns, r);
}

/* The Q factor whose triangle has a positive diagonal, so that small steps move R little. */
static dq_status to_q_factor(dq_optim *o, const dq_tensor *y)
{
    dq_status status = DQ_OK;
    DQ_TRY(dq_op_qr_batch(o->orbit.groups, y, &o->r, &o->upper));
    float *signs = dq_alloc(dq_device_env(o->dev), (size_t)o->orbit.n * sizeof *signs);
    if (!signs) return DQ_E_NOMEM;
    for (int64_t g = 0; g < o->orbit.groups && status == DQ_OK; g++) {
        dq_tensor upper = matrix_of(&o->upper, o, g), r = matrix_of(&o->r, o, g);
        status = turn_columns(o, signs, &upper, &r);
    }
    dq_free(signs);
    return status;
}

/* Bound of the largest singular value of any of the skew-symmetric matrices a: the root of the Frobenius norm of their
 * squares. square: like a, overwritten. */
static dq_status norm_bound(const dq_optim *o, const dq_tensor *a, dq_tensor *square, double *bound)
{
    DQ_TRY(products(o, false, 1, a, a, 0, square));
    *bound = 0;
    for (int64_t g = 0; g < o->orbit.groups; g++) {
        dq_tensor m = matrix_of(square, o, g);
        double sum = 0;
        DQ_TRY(dq_op_dot(&m, &m, &sum));
        *bound = fmax(*bound, sqrt(sqrt(sum)));
    }
    return DQ_OK;
}

/* R (I + B/2)^-1 (I - B/2), B = rate A, by the fixed point Y = R - (R + Y) B/2, which shrinks errors by |B|/2: longer steps
 * are cut to |B| = 1, and the polar factor takes the rest of the error off the group. y: scratch. */
static dq_status cayley(dq_optim *o, double rate, const dq_tensor *a, dq_tensor *y)
{
    dq_tensor *sum = &o->upper;
    double bound = 0;
    DQ_TRY(norm_bound(o, a, sum, &bound));
    if (rate * bound > 1) rate = 1 / bound;
    DQ_TRY(dq_op_convert(&o->r, y));
    for (int term = 0; term < CAYLEY_TERMS; term++) {
        DQ_TRY(dq_op_convert(&o->r, sum));
        DQ_TRY(dq_op_axpy(1, y, sum));
        DQ_TRY(dq_op_convert(&o->r, y));
        DQ_TRY(products(o, false, -0.5 * rate, sum, a, 1, y));
    }
    return to_polar(o, y);
}

dq_status dq_optim_tangent_step(dq_optim *o, dq_tensor *grad, double lr)
{
    dq_tensor a;
    double rate;
    /* A = R^T G - G^T R: the gradient along R A, in the scale of QR-Orth's. */
    DQ_TRY(products(o, true, 1, &o->r, grad, 0, &o->slope));
    DQ_TRY(products(o, true, -1, grad, &o->r, 1, &o->slope));
    DQ_TRY(dq_optim_direction(o, lr, &a, &rate));
    if (o->method == DQ_FIT_CAYLEY) return cayley(o, rate, &a, grad);
    DQ_TRY(dq_op_convert(&o->r, grad));
    DQ_TRY(products(o, false, -rate, &o->r, &a, 1, grad));
    return o->method == DQ_FIT_NEWTON_SCHULZ ? to_polar(o, grad) : to_q_factor(o, grad);
}
