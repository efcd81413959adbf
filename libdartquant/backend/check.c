/* Checks on the operands of an op, so that backends need none. SPDX-License-Identifier: Apache-2.0 */
#include <stdio.h>
#include <string.h>

#include "backend/device_internal.h"
#include "base/status.h"

bool dq_view_same(const dq_view *a, const dq_view *b)
{
    return a->mem == b->mem && a->offset == b->offset && a->rows == b->rows && a->cols == b->cols &&
           a->dtype == b->dtype && (a->stride == b->stride || a->rows <= 1);
}

/* Bytes from the first element to behind the last. */
static uint64_t span(const dq_view *v)
{
    return ((uint64_t)(v->rows - 1) * (uint64_t)v->stride + (uint64_t)v->cols) * dq_dtype_size(v->dtype);
}

/* Slices of one matrix share a stride: side by side their spans mix but their columns do not. */
static bool overlap(const dq_view *a, const dq_view *b)
{
    if (a->mem != b->mem || dq_view_is_empty(a) || dq_view_is_empty(b)) return false;
    if (a->offset + span(a) <= b->offset || b->offset + span(b) <= a->offset) return false;
    uint64_t size = dq_dtype_size(a->dtype), pitch = (uint64_t)a->stride * size;
    if (size != dq_dtype_size(b->dtype) || a->stride != b->stride) return true;
    uint64_t a0 = a->offset % pitch, b0 = b->offset % pitch;
    uint64_t a1 = a0 + (uint64_t)a->cols * size, b1 = b0 + (uint64_t)b->cols * size;
    return a0 < b1 && b0 < a1;
}

static dq_status check_overlap(const dq_op_call *call, int i, int j)
{
    const dq_operand *a = &call->operands[i], *b = &call->operands[j];
    if (!((a->access | b->access) & DQ_WRITE)) return DQ_OK;
    if (dq_view_same(&a->tensor->view, &b->tensor->view) || !overlap(&a->tensor->view, &b->tensor->view)) return DQ_OK;
    return dq_fail(DQ_E_INVALID, "%s: %s and %s overlap without being the same view", call->name, a->role, b->role);
}

dq_status dq_check_operands(const dq_op_call *call, unsigned optional_mask)
{
    const dq_device *dev = NULL;
    for (int i = 0; i < call->count; i++) {
        const dq_operand *o = &call->operands[i];
        if (dq_tensor_is_empty(o->tensor)) {
            if (optional_mask & (1u << i)) continue;
            return dq_fail(DQ_E_INVALID, "%s: tensor %s is missing", call->name, o->role);
        }
        const dq_view *v = &o->tensor->view;
        if (o->tensor->on_host)
            return dq_fail(DQ_E_INTERNAL, "%s: tensor %s lies in memory of the host", call->name, o->role);
        if (!dev) dev = o->tensor->dev;
        if (o->tensor->dev != dev)
            return dq_fail(DQ_E_INVALID, "%s: tensor %s belongs to device %s, tensor %s to device %s (another owner)",
                           call->name, o->role, o->tensor->dev->name, call->operands[0].role, dev->name);
        if (v->rows < 0 || v->cols < 0 || (v->rows > 1 && v->stride < v->cols))
            return dq_fail(DQ_E_INVALID, "%s: tensor %s has the impossible shape [%lld, %lld] with stride %lld",
                           call->name, o->role, (long long)v->rows, (long long)v->cols, (long long)v->stride);
        for (int j = 0; j < i; j++)
            if (!dq_tensor_is_empty(call->operands[j].tensor)) DQ_TRY(check_overlap(call, j, i));
    }
    return DQ_OK;
}

dq_status dq_check_shape(const dq_op_call *call, int operand, int64_t rows, int64_t cols)
{
    const dq_operand *o = &call->operands[operand];
    if (dq_tensor_is_empty(o->tensor)) return DQ_OK;
    const dq_view *v = &o->tensor->view;
    if ((rows < 0 || v->rows == rows) && (cols < 0 || v->cols == cols)) return DQ_OK;
    char want_rows[24] = "any", want_cols[24] = "any";
    if (rows >= 0) snprintf(want_rows, sizeof want_rows, "%lld", (long long)rows);
    if (cols >= 0) snprintf(want_cols, sizeof want_cols, "%lld", (long long)cols);
    return dq_fail(DQ_E_INVALID, "%s: tensor %s is [%lld, %lld], must be [%s, %s]", call->name, o->role,
                   (long long)v->rows, (long long)v->cols, want_rows, want_cols);
}

dq_status dq_check_dtype(const dq_op_call *call, int operand, unsigned mask)
{
    const dq_operand *o = &call->operands[operand];
    if (dq_tensor_is_empty(o->tensor)) return DQ_OK;
    dq_dtype dtype = o->tensor->view.dtype;
    if (dtype >= 0 && dtype <= DQ_DTYPE_OTHER && (mask & DQ_MASK(dtype))) return DQ_OK;
    char allowed[128] = "";
    for (dq_dtype t = 0; t <= DQ_DTYPE_OTHER; t++)
        if (mask & DQ_MASK(t)) {
            size_t used = strlen(allowed);
            snprintf(allowed + used, sizeof allowed - used, "%s%s", used ? ", " : "", dq_dtype_name(t));
        }
    return dq_fail(DQ_E_INVALID, "%s: tensor %s is %s, must be %s", call->name, o->role, dq_dtype_name(dtype), allowed);
}

dq_status dq_check_same_dtype(const dq_op_call *call, int a, int b)
{
    const dq_operand *x = &call->operands[a], *y = &call->operands[b];
    if (dq_tensor_is_empty(x->tensor) || dq_tensor_is_empty(y->tensor)) return DQ_OK;
    if (x->tensor->view.dtype == y->tensor->view.dtype) return DQ_OK;
    return dq_fail(DQ_E_INVALID, "%s: tensor %s is %s but tensor %s is %s", call->name, x->role,
                   dq_dtype_name(x->tensor->view.dtype), y->role, dq_dtype_name(y->tensor->view.dtype));
}
