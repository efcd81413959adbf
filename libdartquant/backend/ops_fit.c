/* Checked entry points of the ops that fit rotations. SPDX-License-Identifier: Apache-2.0 */
#include <math.h>

#include "backend/device_internal.h"
#include "base/status.h"

/* ---- loss and gradient of rotated rows ---- */

typedef struct loss_args {
    const dq_rotation_loss_desc *d;
    double *loss;
} loss_args;

DQ_OP_CALLER(rotation_loss)
{
    const loss_args *a = args;
    return DQ_SLOT(rotation_loss, a->d, v[0], v[1], v[2], v[3], v[4], a->loss);
}

static dq_status compose_loss(const dq_op_call *call)
{
    const loss_args *a = call->args;
    const dq_operand *v = call->operands;
    return dq_compose_rotation_loss(a->d, v[0].tensor, v[1].tensor, v[2].tensor, v[3].tensor, v[4].tensor, a->loss);
}

static dq_status check_loss_desc(const dq_rotation_loss_desc *d, int64_t cols)
{
    int64_t width;
    if (d->kind < DQ_LOSS_WHIP || d->kind > DQ_LOSS_SNAP)
        return dq_fail(DQ_E_INVALID, "rotation_loss: there is no loss %d", d->kind);
    if (d->n < 1 || d->heads < 1 || d->groups < 1 || d->heads % d->groups != 0 ||
        __builtin_mul_overflow(d->n, (int64_t)d->heads, &width) || width != cols)
        return dq_fail(DQ_E_INVALID, "rotation_loss: %d heads of %lld columns in %d groups, rows have %lld columns",
                       d->heads, (long long)d->n, d->groups, (long long)cols);
    if (d->group < 1 || (d->n % d->group != 0 && (d->group % d->n != 0 || width % d->group != 0)))
        return dq_fail(DQ_E_INVALID, "rotation_loss: groups of %lld columns do not fit %d heads of %lld",
                       (long long)d->group, d->heads, (long long)d->n);
    if (d->kind >= DQ_LOSS_QUANT && (d->bits < 2 || d->bits > 15))
        return dq_fail(DQ_E_INVALID, "rotation_loss: %d bits, must be 2..15", d->bits);
    if (d->kind >= DQ_LOSS_QUANT && !(d->clip > 0 && d->clip <= 1))
        return dq_fail(DQ_E_INVALID, "rotation_loss: clip ratio %g, must be in (0, 1]", (double)d->clip);
    if (!isfinite(d->scale) || !isfinite(d->beta) || !isfinite(d->shift))
        return dq_fail(DQ_E_INVALID, "rotation_loss: scale %g, beta %g and shift %g must be finite", d->scale, d->beta,
                       d->shift);
    return DQ_OK;
}

dq_status dq_op_rotation_loss(const dq_rotation_loss_desc *d, const dq_tensor *x, const dq_tensor *weight,
                              const dq_tensor *r, dq_tensor *grad, dq_tensor *row_loss, double *loss)
{
    double value = 0;
    loss_args args = {d, &value};
    dq_op_call call = {DQ_OP_ROTATION_LOSS,
                       "rotation_loss",
                       call_rotation_loss,
                       &args,
                       5,
                       {{"x", x, DQ_READ},
                        {"weight", weight, DQ_READ},
                        {"r", r, DQ_READ},
                        {"grad", grad, d->beta == 0 ? DQ_WRITE : DQ_READ_WRITE},
                        {"row_loss", row_loss, DQ_WRITE}}};
    DQ_TRY(dq_check_operands(&call, 1u << 1 | 1u << 3 | 1u << 4));
    DQ_TRY(dq_check_dtype(&call, 0, DQ_MASK_F32_HALVES));
    for (int i = 1; i < 5; i++) DQ_TRY(dq_check_dtype(&call, i, DQ_MASK_F32));
    DQ_TRY(dq_check_math("rotation_loss", d->math));
    DQ_TRY(check_loss_desc(d, x->view.cols));
    for (int i = 1; i < 5; i += 3) DQ_TRY(dq_check_shape(&call, i, 1, x->view.rows));
    for (int i = 2; i < 4; i++) DQ_TRY(dq_check_shape(&call, i, d->groups * d->n, d->n));
    for (int i = 3; i < 5; i++)
        for (int j = 0; j < i; j++)
            if (!dq_tensor_is_empty(call.operands[i].tensor) && !dq_tensor_is_empty(call.operands[j].tensor) &&
                dq_view_same(dq_operand_view(&call, i), dq_operand_view(&call, j)))
                return dq_fail(DQ_E_INVALID, "rotation_loss: %s cannot replace %s", call.operands[i].role,
                               call.operands[j].role);
    if (x->view.rows == 0) call.operands[4].tensor = NULL;
    DQ_TRY(dq_op_dispatch_or(&call, x->view.rows > 0 ? compose_loss : NULL));
    *loss = value;
    return DQ_OK;
}

/* ---- stacks of square matrices ---- */

/* Every given operand is a stack of `groups` square matrices like operand 0, of its type, and outputs replace nothing. */
static dq_status check_stacks(const dq_op_call *call, int64_t groups)
{
    const dq_view *first = dq_operand_view(call, 0);
    int64_t rows;
    DQ_TRY(dq_check_dtype(call, 0, DQ_MASK_F32_F64));
    if (groups < 1 || __builtin_mul_overflow(groups, first->cols, &rows) || rows != first->rows)
        return dq_fail(DQ_E_INVALID, "%s: tensor %s is [%lld, %lld], not a stack of %lld square matrices", call->name,
                       call->operands[0].role, (long long)first->rows, (long long)first->cols, (long long)groups);
    for (int i = 1; i < call->count; i++) {
        DQ_TRY(dq_check_same_dtype(call, 0, i));
        DQ_TRY(dq_check_shape(call, i, first->rows, first->cols));
        for (int j = 0; j < i; j++)
            if (((call->operands[i].access | call->operands[j].access) & DQ_WRITE) &&
                !dq_tensor_is_empty(call->operands[i].tensor) && !dq_tensor_is_empty(call->operands[j].tensor) &&
                dq_view_same(dq_operand_view(call, i), dq_operand_view(call, j)))
                return dq_fail(DQ_E_INVALID, "%s: %s and %s must be different", call->name, call->operands[j].role,
                               call->operands[i].role);
    }
    return DQ_OK;
}

DQ_OP_CALLER(qr_batch) { return DQ_SLOT(qr_batch, *(const int64_t *)args, v[0], v[1], v[2]); }

dq_status dq_op_qr_batch(int64_t groups, const dq_tensor *a, dq_tensor *q, dq_tensor *r)
{
    dq_op_call call = {DQ_OP_QR_BATCH, "qr_batch", call_qr_batch,
                       &groups,        3,          {{"a", a, DQ_READ}, {"q", q, DQ_WRITE}, {"r", r, DQ_WRITE}}};
    DQ_TRY(dq_check_operands(&call, 1u << 2));
    DQ_TRY(check_stacks(&call, groups));
    return dq_view_is_empty(&a->view) ? DQ_OK : dq_op_dispatch(&call);
}

DQ_OP_CALLER(qr_grad) { return DQ_SLOT(qr_grad, *(const int64_t *)args, v[0], v[1], v[2], v[3]); }

dq_status dq_op_qr_grad(int64_t groups, const dq_tensor *q, const dq_tensor *r, const dq_tensor *dq, dq_tensor *da)
{
    dq_op_call call = {
        DQ_OP_QR_GRAD, "qr_grad", call_qr_grad,
        &groups,       4,         {{"q", q, DQ_READ}, {"r", r, DQ_READ}, {"dq", dq, DQ_READ}, {"da", da, DQ_WRITE}}};
    DQ_TRY(dq_check_operands(&call, 0));
    DQ_TRY(check_stacks(&call, groups));
    return dq_view_is_empty(&q->view) ? DQ_OK : dq_op_dispatch(&call);
}

typedef struct polar_args {
    int64_t groups;
    int math;
    double *error;
} polar_args;

DQ_OP_CALLER(polar)
{
    const polar_args *p = args;
    return DQ_SLOT(polar, p->groups, p->math, v[0], v[1], p->error);
}

dq_status dq_op_polar(int64_t groups, int math, const dq_tensor *a, dq_tensor *u, double *error)
{
    double deviation = 0;
    polar_args args = {groups, math, &deviation};
    dq_op_call call = {DQ_OP_POLAR, "polar", call_polar, &args, 2, {{"a", a, DQ_READ}, {"u", u, DQ_WRITE}}};
    DQ_TRY(dq_check_operands(&call, 0));
    DQ_TRY(dq_check_math("polar", math));
    DQ_TRY(check_stacks(&call, groups));
    if (!dq_view_is_empty(&a->view)) DQ_TRY(dq_op_dispatch(&call));
    *error = deviation;
    return DQ_OK;
}

/* ---- optimisers ---- */

typedef struct adam_args {
    double beta1, beta2, root, epsilon;
} adam_args;

DQ_OP_CALLER(adam)
{
    const adam_args *a = args;
    return DQ_SLOT(adam, a->beta1, a->beta2, a->root, a->epsilon, v[0], v[1], v[2]);
}

dq_status dq_op_adam(double beta1, double beta2, double root, double epsilon, dq_tensor *g, dq_tensor *mean,
                     dq_tensor *square)
{
    adam_args args = {beta1, beta2, root, epsilon};
    dq_op_call call = {
        DQ_OP_ADAM, "adam",
        call_adam,  &args,
        3,          {{"g", g, DQ_READ_WRITE}, {"mean", mean, DQ_READ_WRITE}, {"square", square, DQ_READ_WRITE}}};
    DQ_TRY(dq_check_operands(&call, 0));
    if (!(beta1 >= 0 && beta1 < 1 && beta2 >= 0 && beta2 < 1 && root > 0 && epsilon >= 0))
        return dq_fail(DQ_E_INVALID, "adam: betas %g and %g must be in [0, 1), root %g above 0, epsilon %g not below",
                       beta1, beta2, root, epsilon);
    for (int i = 0; i < 3; i++) {
        DQ_TRY(dq_check_dtype(&call, i, DQ_MASK_F32));
        DQ_TRY(dq_check_shape(&call, i, g->view.rows, g->view.cols));
        for (int j = 0; j < i; j++)
            if (dq_view_same(dq_operand_view(&call, i), dq_operand_view(&call, j)))
                return dq_fail(DQ_E_INVALID, "adam: %s and %s must be different", call.operands[j].role,
                               call.operands[i].role);
    }
    return dq_view_is_empty(&g->view) ? DQ_OK : dq_op_dispatch(&call);
}

/* ---- products of all heads ---- */

dq_status dq_rotate_heads(int64_t n, int64_t heads, int64_t groups, const dq_tensor *x, const dq_tensor *r,
                          const dq_tensor *o, int math)
{
    int64_t rows = x->view.rows;
    for (int64_t h = 0; h < heads; h++) {
        dq_tensor in = dq_tensor_slice(x, 0, rows, h * n, n), out = dq_tensor_slice(o, 0, rows, h * n, n);
        dq_tensor matrix = dq_tensor_rows(r, h / (heads / groups) * n, n);
        DQ_TRY(dq_op_gemm(false, false, 1, &in, &matrix, 0, &out, math));
    }
    return DQ_OK;
}

dq_status dq_rotate_heads_back(int64_t n, int64_t heads, int64_t groups, const dq_tensor *x, const dq_tensor *slope,
                               double alpha, double beta, const dq_tensor *grad, int math)
{
    int64_t rows = x->view.rows, share = heads / groups;
    for (int64_t h = 0; h < heads; h++) {
        dq_tensor in = dq_tensor_slice(x, 0, rows, h * n, n), out = dq_tensor_slice(slope, 0, rows, h * n, n);
        dq_tensor matrix = dq_tensor_rows(grad, h / share * n, n);
        DQ_TRY(dq_op_gemm(true, false, alpha, &in, &out, h % share ? 1 : beta, &matrix, math));
    }
    return DQ_OK;
}
