/* State of an optimiser on the orthogonal group, QR-Orth and polar-mm. SPDX-License-Identifier: Apache-2.0 */
#include "calib/optim.h"

#include <math.h>

#include "base/status.h"

/* Adam's second decay and guard, as PyTorch has them (Kingma and Ba, arXiv 1412.6980). */
#define ADAM_BETA2 0.999
#define ADAM_EPSILON 1e-8
/* Share of the target's size that polar-mm adds of the present rotation: directions that a batch says nothing about stay. */
#define MM_PROXIMAL 1e-3

/* ---- state ---- */

static dq_status alloc_tensors(dq_optim *o)
{
    int64_t n = o->orbit.n, rows = n * o->orbit.groups;
    dq_fit_method m = o->method;
    bool factors = m == DQ_FIT_QR || m == DQ_FIT_QR_RETRACTION || m == DQ_FIT_CAYLEY;
    struct {
        dq_tensor *tensor;
        bool wanted;
    } const all[] = {{&o->r, true},        {&o->z, m == DQ_FIT_QR},
                     {&o->first, true},    {&o->second, m != DQ_FIT_POLAR_MM && o->kind == DQ_FIT_ADAM},
                     {&o->upper, factors}, {&o->slope, m != DQ_FIT_POLAR_MM}};
    for (size_t i = 0; i < sizeof all / sizeof *all; i++)
        if (all[i].wanted) DQ_TRY(dq_tensor_alloc(o->dev, DQ_F32, rows, n, all[i].tensor));
    return dq_tensor_alloc(o->dev, DQ_F32, 1, n, &o->columns);
}

dq_status dq_optim_init(dq_optim *o, dq_device *dev, const dq_fit_spec *spec, dq_fit_method method,
                        const float *rotation)
{
    dq_status status;
    *o = (dq_optim){.dev = dev,
                    .orbit = spec->orbit,
                    .method = method,
                    .kind = spec->optim,
                    .momentum = spec->momentum,
                    .mm_memory = spec->mm_memory,
                    .math = spec->math,
                    .count = spec->orbit.groups * spec->orbit.n * spec->orbit.n};
    DQ_GO(alloc_tensors(o));
    DQ_GO(dq_tensor_upload(method == DQ_FIT_QR ? &o->z : &o->r, rotation));
    DQ_GO(dq_op_fill(0, &o->first));
    if (!dq_tensor_is_empty(&o->second)) DQ_GO(dq_op_fill(0, &o->second));
    DQ_GO(dq_optim_refresh(o));
    return DQ_OK;
done:
    dq_optim_clear(o);
    return status;
}

void dq_optim_clear(dq_optim *o)
{
    dq_tensor *const all[] = {&o->r, &o->z, &o->first, &o->second, &o->upper, &o->slope, &o->columns};
    for (size_t i = 0; i < sizeof all / sizeof *all; i++) dq_tensor_free(all[i]);
    *o = (dq_optim){0};
}

int dq_optim_state(dq_optim *o, dq_tensor *out[DQ_OPTIM_STATE])
{
    out[0] = o->method == DQ_FIT_QR ? &o->z : &o->r;
    out[1] = &o->first;
    out[2] = &o->second;
    return dq_tensor_is_empty(&o->second) ? 2 : 3;
}

dq_status dq_optim_refresh(dq_optim *o)
{
    return o->method == DQ_FIT_QR ? dq_op_qr_batch(o->orbit.groups, &o->z, &o->r, &o->upper) : DQ_OK;
}

/* ---- rules ---- */

dq_status dq_optim_scale(dq_optim *o, double by, dq_tensor *x)
{
    DQ_TRY(dq_op_fill(by, &o->columns));
    return dq_op_scale_cols(x, &o->columns, x);
}

/* PyTorch's SGD without damping or weight decay: v <- momentum v + g (the first v is g), step lr v. */
static dq_status sgd(dq_optim *o)
{
    if (o->steps == 1 || o->momentum == 0) return dq_op_convert(&o->slope, &o->first);
    DQ_TRY(dq_optim_scale(o, o->momentum, &o->first));
    return dq_op_axpy(1, &o->slope, &o->first);
}

dq_status dq_optim_direction(dq_optim *o, double lr, dq_tensor *step, double *rate)
{
    bool adam = o->kind == DQ_FIT_ADAM;
    double t = (double)o->steps;
    *rate = adam ? lr / (1 - pow(o->momentum, t)) : lr;
    *step = dq_tensor_rows(adam ? &o->slope : &o->first, 0, o->r.view.rows);
    if (!adam) return sgd(o);
    return dq_op_adam(o->momentum, ADAM_BETA2, sqrt(1 - pow(ADAM_BETA2, t)), ADAM_EPSILON, &o->slope, &o->first,
                      &o->second);
}

/* ---- QR-Orth ---- */

/* Z moves freely; R is its Q factor, and the gradient comes back through the factorization: dZ = Q C U^-T with C the strict
 * lower triangle of G - G^T, G = Q^T dR (Walter, Lehmann, arXiv 1009.6112). */
static dq_status qr_orth_step(dq_optim *o, dq_tensor *grad, double lr)
{
    dq_tensor step;
    double rate;
    DQ_TRY(dq_op_qr_grad(o->orbit.groups, &o->r, &o->upper, grad, &o->slope));
    DQ_TRY(dq_optim_direction(o, lr, &step, &rate));
    DQ_TRY(dq_op_axpy(-rate, &step, &o->z));
    return dq_optim_refresh(o);
}

/* ---- polar-mm ---- */

/* A loss l(o) of curvature at most k lies below its tangent at the present o plus k/2 |o' - o|^2; over rotations, which keep
 * |o'|, that bound is least at the polar factor of X^T (k o - dl/do) (docs/numerics.md). `grad` is minus this matrix. */
static dq_status polar_mm_step(dq_optim *o, dq_tensor *grad)
{
    double error = 0, memory = o->steps > 1 ? o->mm_memory : 0;
    int64_t n = o->orbit.n;
    DQ_TRY(memory > 0 ? dq_optim_scale(o, memory, &o->first) : dq_op_fill(0, &o->first));
    DQ_TRY(dq_op_axpy(memory - 1, grad, &o->first));
    DQ_TRY(dq_op_convert(&o->first, grad));
    for (int64_t g = 0; g < o->orbit.groups; g++) {
        dq_tensor target = dq_tensor_rows(grad, g * n, n), now = dq_tensor_rows(&o->r, g * n, n);
        double square = 0; /* its root over sqrt(n): the size that an entry of a rotation has, times n */
        DQ_TRY(dq_op_dot(&target, &target, &square));
        /* no information at all: nothing moves */
        DQ_TRY(dq_op_axpy(square > 0 ? MM_PROXIMAL * sqrt(square / (double)n) : 1, &now, &target));
    }
    DQ_TRY(dq_op_polar(o->orbit.groups, o->math, grad, &o->r, &error));
    return error < 1e-3
               ? DQ_OK
               : dq_fail(DQ_E_NUMERIC, "polar-mm: the target has no polar factor (orthogonality error %g)", error);
}

dq_status dq_optim_step(dq_optim *o, dq_tensor *grad, double lr)
{
    o->steps++;
    switch (o->method) {
        case DQ_FIT_QR: return qr_orth_step(o, grad, lr);
        case DQ_FIT_POLAR_MM: return polar_mm_step(o, grad);
        default: return dq_optim_tangent_step(o, grad, lr);
    }
}
