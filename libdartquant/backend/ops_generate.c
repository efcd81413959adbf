/* Checked ops of generation: packed linears, cached keys and values. SPDX-License-Identifier: Apache-2.0 */
#include <math.h>

#include "backend/device_internal.h"
#include "base/status.h"

/* ---- packed linear ---- */

DQ_OP_CALLER(packed_linear) { return DQ_SLOT(packed_linear, args, v[0], v[1], v[2], v[3], v[4], v[5]); }

static dq_status check_packed(const dq_packed_desc *d)
{
    DQ_TRY(dq_check_math("packed_linear", d->math & ~DQ_MATH_INT8));
    if (d->bits != 4 && d->bits != 8)
        return dq_fail(DQ_E_INVALID, "packed_linear: codes of %d bits, 4 or 8 are possible", d->bits);
    if (d->group < 8 || d->group % 8 != 0)
        return dq_fail(DQ_E_INVALID, "packed_linear: groups of %lld columns, multiples of 8 are possible",
                       (long long)d->group);
    if (!isfinite(d->beta)) return dq_fail(DQ_E_INVALID, "packed_linear: beta is not finite");
    return DQ_OK;
}

dq_status dq_op_packed_linear(const dq_packed_desc *d, const dq_tensor *x, const dq_tensor *codes,
                              const dq_tensor *scale, const dq_tensor *zero, const dq_tensor *order, dq_tensor *y)
{
    dq_op_call call = {DQ_OP_PACKED_LINEAR,
                       "packed_linear",
                       call_packed_linear,
                       d,
                       6,
                       {{"x", x, DQ_READ},
                        {"codes", codes, DQ_READ},
                        {"scale", scale, DQ_READ},
                        {"zero", zero, DQ_READ},
                        {"order", order, DQ_READ},
                        {"y", y, d->beta != 0 ? DQ_READ_WRITE : DQ_WRITE}}};
    DQ_TRY(check_packed(d));
    DQ_TRY(dq_check_operands(&call, 1u << 3 | 1u << 4));
    const unsigned halves = DQ_MASK_F32 | DQ_MASK(DQ_F16), scales = DQ_MASK(scale->view.dtype);
    const unsigned types[] = {DQ_MASK_F32, DQ_MASK_U8, halves, DQ_MASK_U8 | scales, DQ_MASK_I32, DQ_MASK_F32};
    for (int i = 0; i < 6; i++)
        if (!dq_tensor_is_empty(call.operands[i].tensor)) DQ_TRY(dq_check_dtype(&call, i, types[i]));
    int64_t n = dq_tensor_is_empty(order) ? x->view.cols : order->view.cols, out = y->view.cols;
    int64_t groups = n / d->group + (n % d->group != 0);
    DQ_TRY(dq_check_shape(&call, 1, out, d->bits == 8 ? n : n / 2 + n % 2));
    DQ_TRY(dq_check_shape(&call, 2, out, groups));
    if (!dq_tensor_is_empty(zero)) DQ_TRY(dq_check_shape(&call, 3, out, groups));
    if (!dq_tensor_is_empty(order)) DQ_TRY(dq_check_shape(&call, 4, 1, n));
    DQ_TRY(dq_check_shape(&call, 5, x->view.rows, out));
    if (n < 1) return dq_fail(DQ_E_INVALID, "packed_linear: no columns");
    return dq_view_is_empty(&y->view) ? DQ_OK : dq_op_dispatch(&call);
}

/* ---- keys and values ---- */

static dq_status check_kv(const char *op, const dq_kv_desc *d)
{
    if (d->kind != DQ_KV_FLOAT && d->kind != DQ_KV_INT && d->kind != DQ_KV_FP8)
        return dq_fail(DQ_E_INVALID, "%s: unknown storage %d", op, d->kind);
    if (d->heads < 1 || d->head_dim < 1) return dq_fail(DQ_E_INVALID, "%s: %d heads of %d", op, d->heads, d->head_dim);
    if (d->kind == DQ_KV_INT && d->bits != 4 && d->bits != 8)
        return dq_fail(DQ_E_INVALID, "%s: codes of %d bits, 4 or 8 are possible", op, d->bits);
    if (d->kind == DQ_KV_INT && d->bits == 4 && d->head_dim % 2 != 0)
        return dq_fail(DQ_E_INVALID, "%s: codes of 4 bits with an odd head size of %d", op, d->head_dim);
    return DQ_OK;
}

/* The cache in operand i, its grid in operand i + 1. */
static dq_status check_cache(const dq_op_call *call, const dq_kv_desc *d, int i)
{
    int64_t width = (int64_t)d->heads * d->head_dim, slots = dq_operand_view(call, i)->rows;
    bool given = !dq_tensor_is_empty(call->operands[i + 1].tensor);
    DQ_TRY(dq_check_dtype(call, i, d->kind == DQ_KV_FLOAT ? (unsigned)DQ_MASK_F32_HALVES : (unsigned)DQ_MASK_U8));
    DQ_TRY(dq_check_shape(call, i, -1, d->kind == DQ_KV_INT && d->bits == 4 ? width / 2 : width));
    if (given != (d->kind == DQ_KV_INT))
        return dq_fail(DQ_E_INVALID, "%s: %s belongs to integer codes and to nothing else", call->name,
                       call->operands[i + 1].role);
    if (!given) return DQ_OK;
    DQ_TRY(dq_check_dtype(call, i + 1, DQ_MASK_F32));
    return dq_check_shape(call, i + 1, slots, 2 * (int64_t)d->heads);
}

DQ_OP_CALLER(kv_store) { return DQ_SLOT(kv_store, args, v[0], v[1], v[2], v[3]); }

dq_status dq_op_kv_store(const dq_kv_desc *d, const dq_tensor *x, const dq_tensor *slot, dq_tensor *cache,
                         dq_tensor *grid)
{
    dq_op_call call = {
        DQ_OP_KV_STORE,
        "kv_store",
        call_kv_store,
        d,
        4,
        {{"x", x, DQ_READ}, {"slot", slot, DQ_READ}, {"cache", cache, DQ_READ_WRITE}, {"grid", grid, DQ_READ_WRITE}}};
    DQ_TRY(check_kv(call.name, d));
    DQ_TRY(dq_check_operands(&call, 1u << 3));
    DQ_TRY(dq_check_dtype(&call, 0, DQ_MASK_F32));
    DQ_TRY(dq_check_dtype(&call, 1, DQ_MASK_I32));
    DQ_TRY(dq_check_shape(&call, 0, -1, (int64_t)d->heads * d->head_dim));
    DQ_TRY(dq_check_shape(&call, 1, 1, x->view.rows));
    DQ_TRY(check_cache(&call, d, 2));
    return dq_view_is_empty(&x->view) ? DQ_OK : dq_op_dispatch(&call);
}

DQ_OP_CALLER(kv_attention) { return DQ_SLOT(kv_attention, args, v[0], v[1], v[2], v[3], v[4], v[5], v[6]); }

dq_status dq_op_kv_attention(const dq_kv_attention_desc *d, const dq_tensor *q, const dq_tensor *k,
                             const dq_tensor *k_grid, const dq_tensor *v, const dq_tensor *v_grid,
                             const dq_tensor *span, dq_tensor *o)
{
    dq_op_call call = {DQ_OP_KV_ATTENTION,
                       "kv_attention",
                       call_kv_attention,
                       d,
                       7,
                       {{"q", q, DQ_READ},
                        {"k", k, DQ_READ},
                        {"k_grid", k_grid, DQ_READ},
                        {"v", v, DQ_READ},
                        {"v_grid", v_grid, DQ_READ},
                        {"span", span, DQ_READ},
                        {"o", o, DQ_WRITE}}};
    DQ_TRY(check_kv(call.name, &d->kv));
    if (d->heads < 1 || d->heads % d->kv.heads != 0 || !isfinite(d->scale))
        return dq_fail(DQ_E_INVALID, "kv_attention: %d heads over %d, scale %g", d->heads, d->kv.heads, d->scale);
    DQ_TRY(dq_check_operands(&call, 1u << 2 | 1u << 4));
    int64_t rows = q->view.rows, width = (int64_t)d->heads * d->kv.head_dim;
    DQ_TRY(dq_check_dtype(&call, 0, DQ_MASK_F32));
    DQ_TRY(dq_check_dtype(&call, 5, DQ_MASK_I32));
    DQ_TRY(dq_check_dtype(&call, 6, DQ_MASK_F32));
    DQ_TRY(dq_check_shape(&call, 0, rows, width));
    DQ_TRY(check_cache(&call, &d->kv, 1));
    DQ_TRY(check_cache(&call, &d->kv, 3));
    DQ_TRY(dq_check_shape(&call, 3, k->view.rows, -1));
    DQ_TRY(dq_check_shape(&call, 5, 2, rows));
    DQ_TRY(dq_check_shape(&call, 6, rows, width));
    if (k->view.dtype != v->view.dtype)
        return dq_fail(DQ_E_INVALID, "kv_attention: keys and values are stored differently");
    if (dq_view_same(&o->view, &q->view)) return dq_fail(DQ_E_INVALID, "kv_attention: the output cannot replace q");
    return dq_view_is_empty(&o->view) ? DQ_OK : dq_op_dispatch(&call);
}
