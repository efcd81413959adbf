/* Checked ops on rows of integer codes. SPDX-License-Identifier: Apache-2.0 */
#include <math.h>

#include "backend/device_internal.h"
#include "base/status.h"

static dq_status check_columns(const char *op, int64_t cols)
{
    if (cols >= 1 && cols <= DQ_INT8_COLUMNS) return DQ_OK;
    return dq_fail(DQ_E_INVALID, "%s: rows of %lld codes, 1 to %d are possible", op, (long long)cols, DQ_INT8_COLUMNS);
}

DQ_OP_CALLER(quantize_rows) { return DQ_SLOT(quantize_rows, args, v[0], v[1], v[2]); }

/* Operand 0 is x, the last two codes and grid. */
static dq_status check_rows(const dq_op_call *call, const dq_fake_quant_desc *d)
{
    const dq_view *x = dq_operand_view(call, 0);
    int codes = call->count - 2;
    for (int i = 0; i < call->count; i++)
        DQ_TRY(dq_check_dtype(call, i, i == codes ? (unsigned)DQ_MASK_I8 : (unsigned)DQ_MASK_F32));
    DQ_TRY(dq_check_shape(call, codes, x->rows, x->cols));
    DQ_TRY(dq_check_shape(call, codes + 1, x->rows, 3));
    DQ_TRY(check_columns(call->name, x->cols));
    DQ_TRY(dq_check_fake_quant(call->name, d, x->cols));
    if (d->bits <= 8 && d->group == x->cols && (d->symmetric || d->zero_in_range)) return DQ_OK;
    return dq_fail(DQ_E_INVALID,
                   "%s: %d bits, groups of %lld of %lld columns, %s; at most 8, whole rows and a range with zero are "
                   "possible",
                   call->name, d->bits, (long long)d->group, (long long)x->cols,
                   d->symmetric       ? "symmetric"
                   : d->zero_in_range ? "zero in range"
                                      : "any range");
}

dq_status dq_op_quantize_rows(const dq_fake_quant_desc *d, const dq_tensor *x, dq_tensor *codes, dq_tensor *grid)
{
    dq_op_call call = {DQ_OP_QUANTIZE_ROWS,
                       "quantize_rows",
                       call_quantize_rows,
                       d,
                       3,
                       {{"x", x, DQ_READ}, {"codes", codes, DQ_WRITE}, {"grid", grid, DQ_WRITE}}};
    DQ_TRY(dq_check_operands(&call, 0));
    DQ_TRY(check_rows(&call, d));
    return dq_view_is_empty(&x->view) ? DQ_OK : dq_op_dispatch(&call);
}

/* ---- in one pass with what makes the rows ---- */

typedef struct rows_args {
    double eps;
    const dq_hadamard_desc *hadamard;
    const dq_fake_quant_desc *quant;
} rows_args;

DQ_OP_CALLER(rmsnorm_rows)
{
    const rows_args *a = args;
    return DQ_SLOT(rmsnorm_rows, v[0], v[1], a->eps, a->quant, v[2], v[3]);
}

DQ_OP_CALLER(layernorm_rows)
{
    const rows_args *a = args;
    return DQ_SLOT(layernorm_rows, v[0], v[1], v[2], a->eps, a->quant, v[3], v[4]);
}

DQ_OP_CALLER(hadamard_rows)
{
    const rows_args *a = args;
    return DQ_SLOT(hadamard_rows, a->hadamard, a->quant, v[0], v[1], v[2]);
}

/* Vectors between x and codes are those of a norm. */
static dq_status run_fused(const dq_op_call *call, unsigned optional_mask, bool *served)
{
    const rows_args *a = call->args;
    const dq_view *x = dq_operand_view(call, 0);
    DQ_TRY(dq_check_operands(call, optional_mask));
    DQ_TRY(check_rows(call, a->quant));
    for (int i = 1; i < call->count - 2; i++) DQ_TRY(dq_check_shape(call, i, 1, x->cols));
    *served = dq_view_is_empty(x);
    return *served ? DQ_OK : dq_op_dispatch_fused(call, served);
}

dq_status dq_op_rmsnorm_rows(const dq_tensor *x, const dq_tensor *weight, double eps, const dq_fake_quant_desc *d,
                             dq_tensor *between, dq_tensor *codes, dq_tensor *grid)
{
    rows_args args = {eps, NULL, d};
    dq_op_call call = {
        DQ_OP_RMSNORM_ROWS,
        "rmsnorm_rows",
        call_rmsnorm_rows,
        &args,
        4,
        {{"x", x, DQ_READ}, {"weight", weight, DQ_READ}, {"codes", codes, DQ_WRITE}, {"grid", grid, DQ_WRITE}}};
    bool served;
    DQ_TRY(dq_check_eps(call.name, eps));
    DQ_TRY(run_fused(&call, 1u << 1, &served));
    if (served) return DQ_OK;
    DQ_TRY(dq_op_rmsnorm(x, weight, eps, between));
    return dq_op_quantize_rows(d, between, codes, grid);
}

dq_status dq_op_layernorm_rows(const dq_tensor *x, const dq_tensor *weight, const dq_tensor *bias, double eps,
                               const dq_fake_quant_desc *d, dq_tensor *between, dq_tensor *codes, dq_tensor *grid)
{
    rows_args args = {eps, NULL, d};
    dq_op_call call = {DQ_OP_LAYERNORM_ROWS,
                       "layernorm_rows",
                       call_layernorm_rows,
                       &args,
                       5,
                       {{"x", x, DQ_READ},
                        {"weight", weight, DQ_READ},
                        {"bias", bias, DQ_READ},
                        {"codes", codes, DQ_WRITE},
                        {"grid", grid, DQ_WRITE}}};
    bool served;
    DQ_TRY(dq_check_eps(call.name, eps));
    DQ_TRY(run_fused(&call, 1u << 1 | 1u << 2, &served));
    if (served) return DQ_OK;
    DQ_TRY(dq_op_layernorm(x, weight, bias, eps, between));
    return dq_op_quantize_rows(d, between, codes, grid);
}

dq_status dq_op_hadamard_rows(const dq_hadamard_desc *h, const dq_fake_quant_desc *d, const dq_tensor *x,
                              dq_tensor *between, dq_tensor *codes, dq_tensor *grid)
{
    rows_args args = {0, h, d};
    dq_op_call call = {DQ_OP_HADAMARD_ROWS,
                       "hadamard_rows",
                       call_hadamard_rows,
                       &args,
                       3,
                       {{"x", x, DQ_READ}, {"codes", codes, DQ_WRITE}, {"grid", grid, DQ_WRITE}}};
    bool served;
    if (!dq_tensor_is_empty(x)) DQ_TRY(dq_check_hadamard(call.name, h, x->view.cols));
    DQ_TRY(run_fused(&call, 0, &served));
    if (served) return DQ_OK;
    DQ_TRY(dq_op_hadamard(h, x, between));
    return dq_op_quantize_rows(d, between, codes, grid);
}

/* ---- products ---- */

DQ_OP_CALLER(int8_linear)
{
    const double *beta = args;
    return DQ_SLOT(int8_linear, *beta, v[0], v[1], v[2], v[3], v[4]);
}

dq_status dq_op_int8_linear(double beta, const dq_tensor *x, const dq_tensor *x_grid, const dq_tensor *w,
                            const dq_tensor *w_grid, dq_tensor *y)
{
    dq_op_call call = {DQ_OP_INT8_LINEAR,
                       "int8_linear",
                       call_int8_linear,
                       &beta,
                       5,
                       {{"x", x, DQ_READ},
                        {"x_grid", x_grid, DQ_READ},
                        {"w", w, DQ_READ},
                        {"w_grid", w_grid, DQ_READ},
                        {"y", y, beta != 0 ? DQ_READ_WRITE : DQ_WRITE}}};
    DQ_TRY(dq_check_operands(&call, 0));
    for (int i = 0; i < 5; i++) DQ_TRY(dq_check_dtype(&call, i, i == 0 || i == 2 ? DQ_MASK_I8 : DQ_MASK_F32));
    DQ_TRY(dq_check_shape(&call, 1, x->view.rows, 3));
    DQ_TRY(dq_check_shape(&call, 2, -1, x->view.cols));
    DQ_TRY(dq_check_shape(&call, 3, w->view.rows, 3));
    DQ_TRY(dq_check_shape(&call, 4, x->view.rows, w->view.rows));
    DQ_TRY(check_columns(call.name, x->view.cols));
    if (!isfinite(beta)) return dq_fail(DQ_E_INVALID, "int8_linear: beta is not finite");
    return dq_view_is_empty(&y->view) ? DQ_OK : dq_op_dispatch(&call);
}
