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

dq_status dq_op_quantize_rows(const dq_fake_quant_desc *d, const dq_tensor *x, dq_tensor *codes, dq_tensor *grid)
{
    dq_op_call call = {DQ_OP_QUANTIZE_ROWS,
                       "quantize_rows",
                       call_quantize_rows,
                       d,
                       3,
                       {{"x", x, DQ_READ}, {"codes", codes, DQ_WRITE}, {"grid", grid, DQ_WRITE}}};
    DQ_TRY(dq_check_operands(&call, 0));
    DQ_TRY(dq_check_dtype(&call, 0, DQ_MASK_F32));
    DQ_TRY(dq_check_dtype(&call, 1, DQ_MASK_I8));
    DQ_TRY(dq_check_dtype(&call, 2, DQ_MASK_F32));
    DQ_TRY(dq_check_shape(&call, 1, x->view.rows, x->view.cols));
    DQ_TRY(dq_check_shape(&call, 2, x->view.rows, 3));
    DQ_TRY(check_columns(call.name, x->view.cols));
    DQ_TRY(dq_check_fake_quant(call.name, d, x->view.cols));
    if (d->bits > 8 || d->group != x->view.cols || !(d->symmetric || d->zero_in_range))
        return dq_fail(DQ_E_INVALID,
                       "quantize_rows: %d bits, groups of %lld of %lld columns, %s; at most 8, whole rows and a range "
                       "with zero are possible",
                       d->bits, (long long)d->group, (long long)x->view.cols,
                       d->symmetric       ? "symmetric"
                       : d->zero_in_range ? "zero in range"
                                          : "any range");
    return dq_view_is_empty(&x->view) ? DQ_OK : dq_op_dispatch(&call);
}

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
