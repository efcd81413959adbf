/* Steps along the tangent R A, A skew-symmetric, and three ways back to the orthogonal group: QR factor, Cayley transform,
 * polar factor. Momentum and Adam work on A, which needs no transport. (Absil, Mahony, Sepulchre, Optimization Algorithms
 * on Matrix Manifolds, 2008, sections 4.1 and 8.1; Li, Fuxin, Todorovic, arXiv 2002.01113.) SPDX-License-Identifier: Apache-2.0 */
#include <math.h>
#include <string.h>

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

/* host = A = R^T G - G^T R: the gradient along R A, in the scale of QR-Orth's. */
static dq_status skew_gradient(dq_optim *o, const dq_tensor *grad)
{
    int64_t n = o->orbit.n;
    DQ_TRY(products(o, true, 1, &o->r, grad, 0, &o->scratch_a));
    DQ_TRY(dq_tensor_download(&o->scratch_a, o->host));
    for (int64_t g = 0; g < o->orbit.groups; g++) {
        float *a = o->host + g * n * n;
        for (int64_t i = 0; i < n; i++) {
            a[i * n + i] = 0;
            for (int64_t j = 0; j < i; j++) {
                float d = a[i * n + j] - a[j * n + i];
                a[i * n + j] = d;
                a[j * n + i] = -d;
            }
        }
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
    return dq_tensor_download(&o->r, o->z);
}

/* The Q factor whose triangle has a positive diagonal, so that small steps move R little. */
static dq_status to_q_factor(dq_optim *o, const dq_tensor *y)
{
    int64_t n = o->orbit.n;
    DQ_TRY(dq_op_qr_batch(o->orbit.groups, y, &o->r, &o->upper));
    DQ_TRY(dq_tensor_download(&o->r, o->z));
    DQ_TRY(dq_tensor_download(&o->upper, o->host));
    for (int64_t g = 0; g < o->orbit.groups; g++)
        for (int64_t j = 0; j < n; j++) {
            if (o->host[(g * n + j) * n + j] >= 0) continue;
            for (int64_t i = 0; i < n; i++) o->z[(g * n + i) * n + j] *= -1;
        }
    return dq_tensor_upload(&o->r, o->z);
}

/* Bound of the largest singular value of any of the matrices: Frobenius norm or largest sum of a row, whichever is less. */
static double norm_bound(const dq_optim *o, const float *a)
{
    int64_t n = o->orbit.n;
    double worst = 0;
    for (int64_t g = 0; g < o->orbit.groups; g++) {
        double square = 0, longest = 0;
        for (int64_t i = 0; i < n; i++) {
            double sum = 0;
            for (int64_t j = 0; j < n; j++) {
                double x = a[(g * n + i) * n + j];
                sum += fabs(x);
                square += x * x;
            }
            if (sum > longest) longest = sum;
        }
        double bound = fmin(sqrt(square), longest);
        if (bound > worst) worst = bound;
    }
    return worst;
}

/* R (I + A/2)^-1 (I - A/2) by the fixed point Y = R - (R + Y) A/2, which shrinks errors by |A|/2: longer steps are cut to
 * |A| = 1, and the polar factor takes the rest of the error off the group. */
static dq_status cayley(dq_optim *o)
{
    double bound = norm_bound(o, o->host), share = bound > 1 ? 1 / bound : 1;
    DQ_TRY(dq_tensor_upload(&o->scratch_b, o->host));
    dq_tensor *y = &o->upper, *sum = &o->scratch_a;
    DQ_TRY(dq_op_convert(&o->r, y));
    for (int term = 0; term < CAYLEY_TERMS; term++) {
        DQ_TRY(dq_op_convert(&o->r, sum));
        DQ_TRY(dq_op_axpy(1, y, sum));
        DQ_TRY(dq_op_convert(&o->r, y));
        DQ_TRY(products(o, false, -0.5 * share, sum, &o->scratch_b, 1, y));
    }
    return to_polar(o, y);
}

dq_status dq_optim_tangent_step(dq_optim *o, dq_tensor *grad, double lr)
{
    DQ_TRY(skew_gradient(o, grad));
    dq_optim_direction(o, o->host, lr);
    if (o->method == DQ_FIT_CAYLEY) return cayley(o);
    DQ_TRY(dq_tensor_upload(&o->scratch_b, o->host));
    DQ_TRY(dq_op_convert(&o->r, &o->scratch_a));
    DQ_TRY(products(o, false, -1, &o->r, &o->scratch_b, 1, &o->scratch_a));
    return o->method == DQ_FIT_NEWTON_SCHULZ ? to_polar(o, &o->scratch_a) : to_q_factor(o, &o->scratch_a);
}
