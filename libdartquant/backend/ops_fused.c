/* Checked entry points of ops that are two others in one pass over memory. SPDX-License-Identifier: Apache-2.0 */
#include "backend/device_internal.h"
#include "base/status.h"

/* ---- behind a norm ---- */

typedef struct norm_args {
    double eps;
    const dq_fake_quant_desc *quant;
} norm_args;

/* What is the same for both: operand 0 is x, the last one y, vectors between them. */
static dq_status check_norm_quant(const dq_op_call *call)
{
    const norm_args *n = call->args;
    const dq_view *x = &call->operands[0].tensor->view;
    int y = call->count - 1;
    for (int i = 0; i <= y; i++) DQ_TRY(dq_check_dtype(call, i, i < y ? DQ_MASK_F32 : DQ_MASK_F32_BF16));
    for (int i = 1; i < y; i++) DQ_TRY(dq_check_shape(call, i, 1, x->cols));
    DQ_TRY(dq_check_shape(call, y, x->rows, x->cols));
    DQ_TRY(dq_check_eps(call->name, n->eps));
    return dq_check_fake_quant(call->name, n->quant, x->cols);
}

DQ_OP_CALLER(rmsnorm_quant)
{
    const norm_args *n = args;
    return DQ_SLOT(rmsnorm_quant, v[0], v[1], n->eps, n->quant, v[2]);
}

static dq_status run_rmsnorm_quant(const dq_op_call *call)
{
    const norm_args *n = call->args;
    dq_tensor y = *call->operands[2].tensor;
    bool served;
    DQ_TRY(dq_op_dispatch_fused(call, &served));
    if (served) return DQ_OK;
    DQ_TRY(dq_op_rmsnorm(call->operands[0].tensor, call->operands[1].tensor, n->eps, &y));
    return dq_op_fake_quant(n->quant, &y, &y);
}

dq_status dq_op_rmsnorm_quant(const dq_tensor *x, const dq_tensor *weight, double eps, const dq_fake_quant_desc *d,
                              dq_tensor *y)
{
    norm_args args = {eps, d};
    dq_op_call call = {DQ_OP_RMSNORM_QUANT,
                       "rmsnorm_quant",
                       call_rmsnorm_quant,
                       &args,
                       3,
                       {{"x", x, DQ_READ}, {"weight", weight, DQ_READ}, {"y", y, DQ_WRITE}}};
    DQ_TRY(dq_check_operands(&call, 1u << 1));
    DQ_TRY(check_norm_quant(&call));
    return dq_view_is_empty(&y->view) ? DQ_OK : dq_op_dispatch_bf16(&call, 2, run_rmsnorm_quant);
}

DQ_OP_CALLER(layernorm_quant)
{
    const norm_args *n = args;
    return DQ_SLOT(layernorm_quant, v[0], v[1], v[2], n->eps, n->quant, v[3]);
}

static dq_status run_layernorm_quant(const dq_op_call *call)
{
    const norm_args *n = call->args;
    const dq_operand *o = call->operands;
    dq_tensor y = *o[3].tensor;
    bool served;
    DQ_TRY(dq_op_dispatch_fused(call, &served));
    if (served) return DQ_OK;
    DQ_TRY(dq_op_layernorm(o[0].tensor, o[1].tensor, o[2].tensor, n->eps, &y));
    return dq_op_fake_quant(n->quant, &y, &y);
}

dq_status dq_op_layernorm_quant(const dq_tensor *x, const dq_tensor *weight, const dq_tensor *bias, double eps,
                                const dq_fake_quant_desc *d, dq_tensor *y)
{
    norm_args args = {eps, d};
    dq_op_call call = {DQ_OP_LAYERNORM_QUANT,
                       "layernorm_quant",
                       call_layernorm_quant,
                       &args,
                       4,
                       {{"x", x, DQ_READ}, {"weight", weight, DQ_READ}, {"bias", bias, DQ_READ}, {"y", y, DQ_WRITE}}};
    DQ_TRY(dq_check_operands(&call, 1u << 1 | 1u << 2));
    DQ_TRY(check_norm_quant(&call));
    return dq_view_is_empty(&y->view) ? DQ_OK : dq_op_dispatch_bf16(&call, 3, run_layernorm_quant);
}

/* ---- behind a Hadamard transform ---- */

typedef struct hadamard_args {
    const dq_hadamard_desc *hadamard;
    const dq_fake_quant_desc *quant;
} hadamard_args;

DQ_OP_CALLER(hadamard_quant)
{
    const hadamard_args *h = args;
    return DQ_SLOT(hadamard_quant, h->hadamard, h->quant, v[0], v[1]);
}

static dq_status run_hadamard_quant(const dq_op_call *call)
{
    const hadamard_args *h = call->args;
    dq_tensor y = *call->operands[1].tensor;
    bool served;
    DQ_TRY(dq_op_dispatch_fused(call, &served));
    if (served) return DQ_OK;
    DQ_TRY(dq_op_hadamard(h->hadamard, call->operands[0].tensor, &y));
    return dq_op_fake_quant(h->quant, &y, &y);
}

dq_status dq_op_hadamard_quant(const dq_hadamard_desc *h, const dq_fake_quant_desc *d, const dq_tensor *x, dq_tensor *y)
{
    hadamard_args args = {h, d};
    dq_op_call call = {
        DQ_OP_HADAMARD_QUANT, "hadamard_quant", call_hadamard_quant, &args, 2, {{"x", x, DQ_READ}, {"y", y, DQ_WRITE}}};
    DQ_TRY(dq_check_operands(&call, 0));
    for (int i = 0; i < 2; i++) DQ_TRY(dq_check_dtype(&call, i, i < 1 ? DQ_MASK_F32 : DQ_MASK_F32_BF16));
    DQ_TRY(dq_check_shape(&call, 1, x->view.rows, x->view.cols));
    DQ_TRY(dq_check_hadamard("hadamard_quant", h, x->view.cols));
    DQ_TRY(dq_check_fake_quant("hadamard_quant", d, x->view.cols));
    return dq_view_is_empty(&y->view) ? DQ_OK : dq_op_dispatch_bf16(&call, 1, run_hadamard_quant);
}
