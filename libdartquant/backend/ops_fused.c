/* Checked entry points of ops that are two others in one pass over memory. SPDX-License-Identifier: Apache-2.0 */
#include "backend/device_internal.h"
#include "base/status.h"

typedef struct norm_args {
    double eps;
    const dq_fake_quant_desc *quant;
} norm_args;

DQ_OP_CALLER(rmsnorm_quant)
{
    const norm_args *n = args;
    return DQ_SLOT(rmsnorm_quant, v[0], v[1], n->eps, n->quant, v[2]);
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
    for (int i = 0; i < 3; i++) DQ_TRY(dq_check_dtype(&call, i, DQ_MASK_F32));
    DQ_TRY(dq_check_shape(&call, 1, 1, x->view.cols));
    DQ_TRY(dq_check_shape(&call, 2, x->view.rows, x->view.cols));
    DQ_TRY(dq_check_eps("rmsnorm_quant", eps));
    DQ_TRY(dq_check_fake_quant("rmsnorm_quant", d, x->view.cols));
    if (dq_view_is_empty(&y->view)) return DQ_OK;
    bool served;
    DQ_TRY(dq_op_dispatch_fused(&call, &served));
    if (served) return DQ_OK;
    DQ_TRY(dq_op_rmsnorm(x, weight, eps, y));
    return dq_op_fake_quant(d, y, y);
}

typedef struct hadamard_args {
    const dq_hadamard_desc *hadamard;
    const dq_fake_quant_desc *quant;
} hadamard_args;

DQ_OP_CALLER(hadamard_quant)
{
    const hadamard_args *h = args;
    return DQ_SLOT(hadamard_quant, h->hadamard, h->quant, v[0], v[1]);
}

dq_status dq_op_hadamard_quant(const dq_hadamard_desc *h, const dq_fake_quant_desc *d, const dq_tensor *x, dq_tensor *y)
{
    hadamard_args args = {h, d};
    dq_op_call call = {
        DQ_OP_HADAMARD_QUANT, "hadamard_quant", call_hadamard_quant, &args, 2, {{"x", x, DQ_READ}, {"y", y, DQ_WRITE}}};
    DQ_TRY(dq_check_operands(&call, 0));
    for (int i = 0; i < 2; i++) DQ_TRY(dq_check_dtype(&call, i, DQ_MASK_F32));
    DQ_TRY(dq_check_shape(&call, 1, x->view.rows, x->view.cols));
    DQ_TRY(dq_check_hadamard("hadamard_quant", h, x->view.cols));
    DQ_TRY(dq_check_fake_quant("hadamard_quant", d, x->view.cols));
    if (dq_view_is_empty(&y->view)) return DQ_OK;
    bool served;
    DQ_TRY(dq_op_dispatch_fused(&call, &served));
    if (served) return DQ_OK;
    DQ_TRY(dq_op_hadamard(h, x, y));
    return dq_op_fake_quant(d, y, y);
}
