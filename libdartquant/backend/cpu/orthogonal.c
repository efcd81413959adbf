/* QR of stacks of matrices and the derivative through it. Small matrices are taken one per task by kernels of our own,
 * large ones one after the other with all threads. SPDX-License-Identifier: Apache-2.0 */
#include <cblas.h>
#include <limits.h>

#include "backend/cpu/fit.h"

/* Largest order of one matrix per task, and of our own QR; rows of the derivative in a task. */
enum { ALONE = 256, SMALL_QR = 160, ROWS = 64 };

static dq_view matrix_of(const dq_view *stack, int64_t g)
{
    int64_t size = stack->dtype == DQ_F64 ? 8 : 4;
    return dq_view_slice(stack, g * stack->cols, stack->cols, 0, stack->cols, size);
}

#define REAL double
#define P(name) cblas_d##name
#define FN(name) name##_f64
#include "backend/cpu/orthogonal_kernel.h"

#define REAL float
#define P(name) cblas_s##name
#define FN(name) name##_f32
#include "backend/cpu/orthogonal_kernel.h"

dq_status dq_cpu_qr_batch(void *device, int64_t groups, const dq_view *a, const dq_view *q, const dq_view *r)
{
    dq_status status = DQ_OK;
    if (a->cols <= SMALL_QR)
        return a->dtype == DQ_F64 ? qr_each_f64(device, groups, a, q, r) : qr_each_f32(device, groups, a, q, r);
    for (int64_t g = 0; g < groups && status == DQ_OK; g++) {
        dq_view ag = matrix_of(a, g), qg = matrix_of(q, g), rg = r ? matrix_of(r, g) : qg;
        status = dq_cpu_qr(device, &ag, &qg, r ? &rg : NULL);
    }
    return status;
}

dq_status dq_cpu_qr_grad(void *device, int64_t groups, const dq_view *q, const dq_view *r, const dq_view *dq,
                         const dq_view *da)
{
    if (q->stride > INT_MAX || r->stride > INT_MAX || dq->stride > INT_MAX || da->stride > INT_MAX)
        return dq_ref_backend()->qr_grad(device, groups, q, r, dq, da);
    return q->dtype == DQ_F64 ? grad_f64(device, groups, q, r, dq, da) : grad_f32(device, groups, q, r, dq, da);
}
