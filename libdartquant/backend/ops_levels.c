/* Checked quantization to given levels. SPDX-License-Identifier: Apache-2.0 */
#include <math.h>

#include "backend/device_internal.h"
#include "base/status.h"

enum { X, RANGE, LEVELS, POSITION, Y };

DQ_OP_CALLER(levels_quant) { return DQ_SLOT(levels_quant, args, v[X], v[RANGE], v[LEVELS], v[POSITION], v[Y]); }

static dq_status check_desc(const dq_levels_quant_desc *d, bool has_range, bool has_position)
{
    if (has_range == (d->per_row != 0))
        return dq_fail(DQ_E_INVALID, "levels_quant: ranges are given for columns and measured for rows; this is per %s",
                       d->per_row ? "row, with a tensor range" : "column, without a tensor range");
    if (d->per_row && !(d->outliers >= 0 && d->outliers < 1))
        return dq_fail(DQ_E_INVALID, "levels_quant: a share of outliers of %g, must be in [0, 1)", d->outliers);
    if (d->sink < 0 || (d->sink > 0 && !has_position && d->seqlen < 1))
        return dq_fail(DQ_E_INVALID, "levels_quant: %d sink tokens in sequences of %lld", d->sink,
                       (long long)d->seqlen);
    if (!isfinite(d->norm_scale) || !isfinite(d->norm_offset))
        return dq_fail(DQ_E_INVALID, "levels_quant: Q-Norm of %g and %g is not finite", (double)d->norm_scale,
                       (double)d->norm_offset);
    return DQ_OK;
}

dq_status dq_op_levels_quant(const dq_levels_quant_desc *d, const dq_tensor *x, const dq_tensor *range,
                             const dq_tensor *levels, const dq_tensor *position, dq_tensor *y)
{
    dq_op_call call = {DQ_OP_LEVELS_QUANT,
                       "levels_quant",
                       call_levels_quant,
                       d,
                       5,
                       {{"x", x, DQ_READ},
                        {"range", range, DQ_READ},
                        {"levels", levels, DQ_READ},
                        {"position", position, DQ_READ},
                        {"y", y, DQ_WRITE}}};
    DQ_TRY(dq_check_operands(&call, 1u << RANGE | 1u << POSITION));
    for (int i = X; i <= Y; i++) DQ_TRY(dq_check_dtype(&call, i, i == POSITION ? DQ_MASK_I32 : DQ_MASK_F32));
    DQ_TRY(dq_check_shape(&call, RANGE, 2, x->view.cols));
    DQ_TRY(dq_check_shape(&call, LEVELS, 1, -1));
    DQ_TRY(dq_check_shape(&call, POSITION, 1, x->view.rows));
    DQ_TRY(dq_check_shape(&call, Y, x->view.rows, x->view.cols));
    DQ_TRY(check_desc(d, !dq_tensor_is_empty(range), !dq_tensor_is_empty(position)));
    if (levels->view.cols < 2 || levels->view.cols > 256)
        return dq_fail(DQ_E_INVALID, "levels_quant: %lld levels, 2 to 256 are possible", (long long)levels->view.cols);
    for (int i = RANGE; i <= LEVELS; i++)
        if (!dq_tensor_is_empty(call.operands[i].tensor) && dq_view_same(dq_operand_view(&call, i), &y->view))
            return dq_fail(DQ_E_INVALID, "levels_quant: y cannot replace %s", call.operands[i].role);
    return dq_view_is_empty(&y->view) ? DQ_OK : dq_op_dispatch(&call);
}
