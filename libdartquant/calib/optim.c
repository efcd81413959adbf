/* State of an optimiser on the orthogonal group, QR-Orth and polar-mm. SPDX-License-Identifier: Apache-2.0 */
#include "calib/optim.h"

#include <math.h>
#include <string.h>

#include "base/status.h"

/* Adam's second decay and guard, as PyTorch has them (Kingma and Ba, arXiv 1412.6980). */
#define ADAM_BETA2 0.999
#define ADAM_EPSILON 1e-8
/* Share of the target's size that polar-mm adds of the present rotation: directions that a batch says nothing about stay. */
#define MM_PROXIMAL 1e-3

dq_status dq_optim_init(dq_optim *o, dq_device *dev, const dq_fit_spec *spec, dq_fit_method method,
                        const float *rotation)
{
    dq_env *env = dq_device_env(dev);
    int64_t n = spec->orbit.n, rows = n * spec->orbit.groups;
    dq_status status = DQ_E_NOMEM;
    *o = (dq_optim){.dev = dev,
                    .orbit = spec->orbit,
                    .method = method,
                    .kind = spec->optim,
                    .momentum = spec->momentum,
                    .mm_memory = spec->mm_memory,
                    .math = spec->math,
                    .count = rows * n};
    size_t count = (size_t)o->count;
    o->z = dq_alloc(env, count * sizeof(float));
    o->first = dq_calloc(env, count, sizeof(float));
    o->second = dq_calloc(env, count, sizeof(float));
    o->host = dq_alloc(env, count * sizeof(float));
    if (!o->z || !o->first || !o->second || !o->host) goto done;
    memcpy(o->z, rotation, count * sizeof(float));
    DQ_GO(dq_tensor_alloc(dev, DQ_F32, rows, n, &o->r));
    DQ_GO(dq_tensor_alloc(dev, DQ_F32, rows, n, &o->scratch_a));
    DQ_GO(dq_tensor_alloc(dev, DQ_F32, rows, n, &o->scratch_b));
    DQ_GO(dq_tensor_alloc(dev, DQ_F32, rows, n, &o->upper));
    DQ_GO(dq_optim_refresh(o));
    return DQ_OK;
done:
    dq_optim_clear(o);
    return status;
}

void dq_optim_clear(dq_optim *o)
{
    dq_free(o->z);
    dq_free(o->first);
    dq_free(o->second);
    dq_free(o->host);
    dq_tensor_free(&o->r);
    dq_tensor_free(&o->upper);
    dq_tensor_free(&o->scratch_a);
    dq_tensor_free(&o->scratch_b);
    *o = (dq_optim){0};
}

dq_status dq_optim_refresh(dq_optim *o)
{
    if (o->method != DQ_FIT_QR) return dq_tensor_upload(&o->r, o->z);
    DQ_TRY(dq_tensor_upload(&o->scratch_a, o->z));
    return dq_op_qr_batch(o->orbit.groups, &o->scratch_a, &o->r, &o->upper);
}

/* ---- rules ---- */

/* PyTorch's SGD without damping or weight decay: v <- momentum v + g (the first v is g), step lr v. */
static void sgd(dq_optim *o, float *slope, double lr)
{
    float momentum = o->steps > 1 ? (float)o->momentum : 0.0f, rate = (float)lr;
    for (int64_t i = 0; i < o->count; i++) {
        o->first[i] = momentum * o->first[i] + slope[i];
        slope[i] = rate * o->first[i];
    }
}

static void adam(dq_optim *o, float *slope, double lr)
{
    double t = (double)o->steps;
    float beta1 = (float)o->momentum, beta2 = (float)ADAM_BETA2;
    float root = (float)sqrt(1 - pow(ADAM_BETA2, t)), rate = (float)(lr / (1 - pow(o->momentum, t)));
    for (int64_t i = 0; i < o->count; i++) {
        o->first[i] += (1 - beta1) * (slope[i] - o->first[i]);
        o->second[i] = beta2 * o->second[i] + (1 - beta2) * slope[i] * slope[i];
        slope[i] = rate * o->first[i] / (sqrtf(o->second[i]) / root + (float)ADAM_EPSILON);
    }
}

void dq_optim_direction(dq_optim *o, float *slope, double lr)
{
    if (o->kind == DQ_FIT_ADAM)
        adam(o, slope, lr);
    else
        sgd(o, slope, lr);
}

/* ---- QR-Orth ---- */

/* Z moves freely; R is its Q factor, and the gradient comes back through the factorization: dZ = Q C U^-T with C the strict
 * lower triangle of G - G^T, G = Q^T dR (Walter, Lehmann, arXiv 1009.6112). */
static dq_status qr_orth_step(dq_optim *o, dq_tensor *grad, double lr)
{
    DQ_TRY(dq_op_qr_grad(o->orbit.groups, &o->r, &o->upper, grad, &o->scratch_a));
    DQ_TRY(dq_tensor_download(&o->scratch_a, o->host));
    dq_optim_direction(o, o->host, lr);
    for (int64_t i = 0; i < o->count; i++) o->z[i] -= o->host[i];
    return dq_optim_refresh(o);
}

/* ---- polar-mm ---- */

static double root_mean_square(const float *x, int64_t count)
{
    double sum = 0;
    for (int64_t i = 0; i < count; i++) sum += (double)x[i] * x[i];
    return sqrt(sum / (double)count);
}

/* A loss l(o) of curvature at most k lies below its tangent at the present o plus k/2 |o' - o|^2; over rotations, which keep
 * |o'|, that bound is least at the polar factor of X^T (k o - dl/do) (docs/numerics.md). `grad` is minus this matrix. */
static dq_status polar_mm_step(dq_optim *o, dq_tensor *grad)
{
    double error = 0;
    int64_t square = o->orbit.n * o->orbit.n;
    float memory = o->steps > 1 ? (float)o->mm_memory : 0.0f;
    DQ_TRY(dq_tensor_download(grad, o->host));
    for (int64_t i = 0; i < o->count; i++) o->first[i] = memory * o->first[i] - (1 - memory) * o->host[i];
    for (int64_t g = 0; g < o->orbit.groups; g++) {
        const float *target = o->first + g * square, *now = o->z + g * square;
        float *sum = o->host + g * square;
        double size = root_mean_square(target, square) * sqrt((double)o->orbit.n);
        float stay = size > 0 ? (float)(MM_PROXIMAL * size) : 1.0f; /* no information at all: nothing moves */
        for (int64_t i = 0; i < square; i++) sum[i] = target[i] + stay * now[i];
    }
    DQ_TRY(dq_tensor_upload(&o->scratch_a, o->host));
    DQ_TRY(dq_op_polar(o->orbit.groups, o->math, &o->scratch_a, &o->r, &error));
    if (!(error < 1e-3))
        return dq_fail(DQ_E_NUMERIC, "polar-mm: the target has no polar factor (orthogonality error %g)", error);
    return dq_tensor_download(&o->r, o->z);
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
