/* Checked entry points of the data movement, elementwise and transformer ops. SPDX-License-Identifier: Apache-2.0 */
#include <math.h>

#include "backend/device_internal.h"
#include "base/status.h"

/* ---- fill, convert, axpy, scale_cols ---- */

DQ_OP_CALLER(fill) { return DQ_SLOT(fill, *(const double *)args, v[0]); }

dq_status dq_op_fill(double value, dq_tensor *y)
{
    dq_op_call call = {DQ_OP_FILL, "fill", call_fill, &value, 1, {{"y", y, DQ_WRITE}}};
    DQ_TRY(dq_check_operands(&call, 0));
    DQ_TRY(dq_check_dtype(&call, 0, DQ_MASK_FLOATS | DQ_MASK_U8 | DQ_MASK_I32));
    dq_dtype dtype = y->view.dtype;
    bool integer = dtype == DQ_U8 || dtype == DQ_I32;
    double lo = dtype == DQ_U8 ? 0 : INT32_MIN, hi = dtype == DQ_U8 ? UINT8_MAX : INT32_MAX;
    if (integer && !(value >= lo && value <= hi && value == floor(value)))
        return dq_fail(DQ_E_INVALID, "fill: %g does not fit in %s", value, dq_dtype_name(dtype));
    return dq_view_is_empty(&y->view) ? DQ_OK : dq_op_dispatch(&call);
}

DQ_OP_CALLER(convert)
{
    (void)args;
    return DQ_SLOT(convert, v[0], v[1]);
}

dq_status dq_op_convert(const dq_tensor *x, dq_tensor *y)
{
    dq_op_call call = {DQ_OP_CONVERT, "convert", call_convert, NULL, 2, {{"x", x, DQ_READ}, {"y", y, DQ_WRITE}}};
    DQ_TRY(dq_check_operands(&call, 0));
    if (x->view.dtype != y->view.dtype) {
        DQ_TRY(dq_check_dtype(&call, 0, DQ_MASK_FLOATS));
        DQ_TRY(dq_check_dtype(&call, 1, DQ_MASK_FLOATS));
    }
    DQ_TRY(dq_check_shape(&call, 1, x->view.rows, x->view.cols));
    return dq_view_is_empty(&y->view) ? DQ_OK : dq_op_dispatch(&call);
}

DQ_OP_CALLER(axpy) { return DQ_SLOT(axpy, *(const double *)args, v[0], v[1]); }

dq_status dq_op_axpy(double alpha, const dq_tensor *x, dq_tensor *y)
{
    dq_op_call call = {DQ_OP_AXPY, "axpy", call_axpy, &alpha, 2, {{"x", x, DQ_READ}, {"y", y, DQ_READ_WRITE}}};
    DQ_TRY(dq_check_operands(&call, 0));
    DQ_TRY(dq_check_dtype(&call, 1, DQ_MASK_F32_F64));
    DQ_TRY(dq_check_same_dtype(&call, 0, 1));
    DQ_TRY(dq_check_shape(&call, 0, x->view.rows == 1 ? 1 : y->view.rows, y->view.cols));
    return dq_view_is_empty(&y->view) ? DQ_OK : dq_op_dispatch(&call);
}

DQ_OP_CALLER(scale_cols)
{
    (void)args;
    return DQ_SLOT(scale_cols, v[0], v[1], v[2]);
}

dq_status dq_op_scale_cols(const dq_tensor *x, const dq_tensor *v, dq_tensor *y)
{
    dq_op_call call = {DQ_OP_SCALE_COLS,
                       "scale_cols",
                       call_scale_cols,
                       NULL,
                       3,
                       {{"x", x, DQ_READ}, {"v", v, DQ_READ}, {"y", y, DQ_WRITE}}};
    DQ_TRY(dq_check_operands(&call, 0));
    DQ_TRY(dq_check_dtype(&call, 0, DQ_MASK_F32_F64));
    DQ_TRY(dq_check_same_dtype(&call, 0, 1));
    DQ_TRY(dq_check_same_dtype(&call, 0, 2));
    DQ_TRY(dq_check_shape(&call, 1, 1, x->view.cols));
    DQ_TRY(dq_check_shape(&call, 2, x->view.rows, x->view.cols));
    return dq_view_is_empty(&y->view) ? DQ_OK : dq_op_dispatch(&call);
}

/* ---- gathers and reductions ---- */

DQ_OP_CALLER(gather_rows)
{
    (void)args;
    return DQ_SLOT(gather_rows, v[0], v[1], v[2]);
}

dq_status dq_op_gather_rows(const dq_tensor *x, const dq_tensor *index, dq_tensor *y)
{
    dq_op_call call = {DQ_OP_GATHER_ROWS,
                       "gather_rows",
                       call_gather_rows,
                       NULL,
                       3,
                       {{"x", x, DQ_READ}, {"index", index, DQ_READ}, {"y", y, DQ_WRITE}}};
    DQ_TRY(dq_check_operands(&call, 0));
    DQ_TRY(dq_check_dtype(&call, 1, DQ_MASK_I32));
    DQ_TRY(dq_check_same_dtype(&call, 0, 2));
    DQ_TRY(dq_check_shape(&call, 1, 1, y->view.rows));
    DQ_TRY(dq_check_shape(&call, 2, -1, x->view.cols));
    return dq_view_is_empty(&y->view) ? DQ_OK : dq_op_dispatch(&call);
}

DQ_OP_CALLER(gather_cols)
{
    (void)args;
    return DQ_SLOT(gather_cols, v[0], v[1], v[2]);
}

dq_status dq_op_gather_cols(const dq_tensor *x, const dq_tensor *index, dq_tensor *y)
{
    dq_op_call call = {DQ_OP_GATHER_COLS,
                       "gather_cols",
                       call_gather_cols,
                       NULL,
                       3,
                       {{"x", x, DQ_READ}, {"index", index, DQ_READ}, {"y", y, DQ_WRITE}}};
    DQ_TRY(dq_check_operands(&call, 0));
    DQ_TRY(dq_check_dtype(&call, 1, DQ_MASK_I32));
    DQ_TRY(dq_check_same_dtype(&call, 0, 2));
    DQ_TRY(dq_check_shape(&call, 1, 1, y->view.cols));
    DQ_TRY(dq_check_shape(&call, 2, x->view.rows, -1));
    return dq_view_is_empty(&y->view) ? DQ_OK : dq_op_dispatch(&call);
}

DQ_OP_CALLER(find_nonfinite) { return DQ_SLOT(find_nonfinite, v[0], *(int64_t *const *)args); }

dq_status dq_op_find_nonfinite(const dq_tensor *x, int64_t *index)
{
    int64_t found = -1, *out = &found;
    dq_op_call call = {DQ_OP_FIND_NONFINITE, "find_nonfinite", call_find_nonfinite, &out, 1, {{"x", x, DQ_READ}}};
    DQ_TRY(dq_check_operands(&call, 0));
    DQ_TRY(dq_check_dtype(&call, 0, DQ_MASK_FLOATS));
    if (!dq_view_is_empty(&x->view)) DQ_TRY(dq_op_dispatch(&call));
    *index = found;
    return DQ_OK;
}

DQ_OP_CALLER(dot) { return DQ_SLOT(dot, v[0], v[1], *(double *const *)args); }

dq_status dq_op_dot(const dq_tensor *x, const dq_tensor *y, double *out)
{
    double sum = 0, *target = &sum;
    dq_op_call call = {DQ_OP_DOT, "dot", call_dot, &target, 2, {{"x", x, DQ_READ}, {"y", y, DQ_READ}}};
    DQ_TRY(dq_check_operands(&call, 0));
    DQ_TRY(dq_check_dtype(&call, 0, DQ_MASK_F32_F64));
    DQ_TRY(dq_check_same_dtype(&call, 0, 1));
    DQ_TRY(dq_check_shape(&call, 1, x->view.rows, x->view.cols));
    if (!dq_view_is_empty(&x->view)) DQ_TRY(dq_op_dispatch(&call));
    *out = sum;
    return DQ_OK;
}

/* ---- products ---- */

dq_status dq_check_math(const char *op, int math)
{
    if (math == DQ_MATH_F32 || math == DQ_MATH_BF16) return DQ_OK;
    return dq_fail(DQ_E_INVALID, "%s: %d is no DQ_MATH_* value", op, math);
}

typedef struct gemm_args {
    bool trans_a, trans_b;
    double alpha, beta;
    int math;
} gemm_args;

DQ_OP_CALLER(gemm)
{
    const gemm_args *g = args;
    return DQ_SLOT(gemm, g->trans_a, g->trans_b, g->alpha, v[0], v[1], g->beta, v[2], g->math);
}

dq_status dq_op_gemm(bool trans_a, bool trans_b, double alpha, const dq_tensor *a, const dq_tensor *b, double beta,
                     dq_tensor *c, int math)
{
    gemm_args args = {trans_a, trans_b, alpha, beta, math};
    dq_op_call call = {
        DQ_OP_GEMM, "gemm", call_gemm,
        &args,      3,      {{"a", a, DQ_READ}, {"b", b, DQ_READ}, {"c", c, beta == 0 ? DQ_WRITE : DQ_READ_WRITE}}};
    DQ_TRY(dq_check_operands(&call, 0));
    DQ_TRY(dq_check_math("gemm", math));
    DQ_TRY(dq_check_dtype(&call, 2, DQ_MASK_F32_F64));
    unsigned inputs = c->view.dtype == DQ_F64 ? (unsigned)DQ_MASK_F64 : (unsigned)DQ_MASK_F32_HALVES;
    DQ_TRY(dq_check_dtype(&call, 0, inputs));
    DQ_TRY(dq_check_dtype(&call, 1, inputs));
    int64_t m = trans_a ? a->view.cols : a->view.rows, k = trans_a ? a->view.rows : a->view.cols;
    int64_t n = trans_b ? b->view.rows : b->view.cols;
    DQ_TRY(dq_check_shape(&call, 1, trans_b ? n : k, trans_b ? k : n));
    DQ_TRY(dq_check_shape(&call, 2, m, n));
    if (dq_view_same(&c->view, &a->view) || dq_view_same(&c->view, &b->view))
        return dq_fail(DQ_E_INVALID, "gemm: the result cannot replace an operand");
    return dq_view_is_empty(&c->view) ? DQ_OK : dq_op_dispatch(&call);
}

/* ---- transformer ---- */

dq_status dq_check_eps(const char *op, double eps)
{
    if (eps >= 0 && isfinite(eps)) return DQ_OK;
    return dq_fail(DQ_E_INVALID, "%s: eps %g must be finite and >= 0", op, eps);
}

DQ_OP_CALLER(rmsnorm) { return DQ_SLOT(rmsnorm, v[0], v[1], *(const double *)args, v[2]); }

dq_status dq_op_rmsnorm(const dq_tensor *x, const dq_tensor *weight, double eps, dq_tensor *y)
{
    dq_op_call call = {DQ_OP_RMSNORM, "rmsnorm", call_rmsnorm,
                       &eps,          3,         {{"x", x, DQ_READ}, {"weight", weight, DQ_READ}, {"y", y, DQ_WRITE}}};
    DQ_TRY(dq_check_operands(&call, 1u << 1));
    for (int i = 0; i < 3; i++) DQ_TRY(dq_check_dtype(&call, i, i < 2 ? DQ_MASK_F32 : DQ_MASK_F32_BF16));
    DQ_TRY(dq_check_shape(&call, 1, 1, x->view.cols));
    DQ_TRY(dq_check_shape(&call, 2, x->view.rows, x->view.cols));
    DQ_TRY(dq_check_eps("rmsnorm", eps));
    return dq_view_is_empty(&y->view) ? DQ_OK : dq_op_dispatch_bf16(&call, 2, NULL);
}

DQ_OP_CALLER(layernorm) { return DQ_SLOT(layernorm, v[0], v[1], v[2], *(const double *)args, v[3]); }

dq_status dq_op_layernorm(const dq_tensor *x, const dq_tensor *weight, const dq_tensor *bias, double eps, dq_tensor *y)
{
    dq_op_call call = {DQ_OP_LAYERNORM,
                       "layernorm",
                       call_layernorm,
                       &eps,
                       4,
                       {{"x", x, DQ_READ}, {"weight", weight, DQ_READ}, {"bias", bias, DQ_READ}, {"y", y, DQ_WRITE}}};
    DQ_TRY(dq_check_operands(&call, 1u << 1 | 1u << 2));
    for (int i = 0; i < 4; i++) DQ_TRY(dq_check_dtype(&call, i, i < 3 ? DQ_MASK_F32 : DQ_MASK_F32_BF16));
    for (int i = 1; i < 3; i++) DQ_TRY(dq_check_shape(&call, i, 1, x->view.cols));
    DQ_TRY(dq_check_shape(&call, 3, x->view.rows, x->view.cols));
    DQ_TRY(dq_check_eps("layernorm", eps));
    return dq_view_is_empty(&y->view) ? DQ_OK : dq_op_dispatch_bf16(&call, 3, NULL);
}

DQ_OP_CALLER(rope) { return DQ_SLOT(rope, v[1], v[2], *(const int64_t *)args, v[0]); }

dq_status dq_op_rope(const dq_tensor *cos, const dq_tensor *sin, int64_t head_dim, dq_tensor *x)
{
    dq_op_call call = {DQ_OP_ROPE, "rope", call_rope,
                       &head_dim,  3,      {{"x", x, DQ_READ_WRITE}, {"cos", cos, DQ_READ}, {"sin", sin, DQ_READ}}};
    DQ_TRY(dq_check_operands(&call, 0));
    for (int i = 0; i < 3; i++) DQ_TRY(dq_check_dtype(&call, i, DQ_MASK_F32));
    if (head_dim < 2 || head_dim % 2 != 0 || x->view.cols % head_dim != 0)
        return dq_fail(DQ_E_INVALID, "rope: head_dim %lld must be even and divide the %lld columns of x",
                       (long long)head_dim, (long long)x->view.cols);
    if (cos->view.rows < 1) return dq_fail(DQ_E_INVALID, "rope: the tables of cos and sin have no position");
    DQ_TRY(dq_check_shape(&call, 1, -1, head_dim / 2));
    DQ_TRY(dq_check_shape(&call, 2, cos->view.rows, head_dim / 2));
    return dq_view_is_empty(&x->view) ? DQ_OK : dq_op_dispatch(&call);
}

DQ_OP_CALLER(activation) { return DQ_SLOT(activation, *(const int32_t *)args, v[0], v[1], v[2]); }

dq_status dq_op_activation(int kind, const dq_tensor *gate, const dq_tensor *up, dq_tensor *y)
{
    int32_t args = kind;
    dq_op_call call = {DQ_OP_ACTIVATION,
                       "activation",
                       call_activation,
                       &args,
                       3,
                       {{"gate", gate, DQ_READ}, {"up", up, DQ_READ}, {"y", y, DQ_WRITE}}};
    DQ_TRY(dq_check_operands(&call, 1u << 1));
    for (int i = 0; i < 3; i++) DQ_TRY(dq_check_dtype(&call, i, i < 2 ? DQ_MASK_F32 : DQ_MASK_F32_BF16));
    for (int i = 1; i < 3; i++) DQ_TRY(dq_check_shape(&call, i, gate->view.rows, gate->view.cols));
    if (kind < DQ_ACT_SILU || kind > DQ_ACT_RELU)
        return dq_fail(DQ_E_INVALID, "activation: %d is no DQ_ACT_* value", kind);
    return dq_view_is_empty(&y->view) ? DQ_OK : dq_op_dispatch_bf16(&call, 2, NULL);
}

DQ_OP_CALLER(attention) { return DQ_SLOT(attention, args, v[0], v[1], v[2], v[3]); }

static dq_status check_attention(const dq_attention_desc *d, int64_t rows)
{
    DQ_TRY(dq_check_math("attention", d->math));
    if (d->heads < 1 || d->kv_heads < 1 || d->heads % d->kv_heads != 0 || d->head_dim < 1)
        return dq_fail(DQ_E_INVALID, "attention: %d heads, %d kv_heads, head_dim %d do not fit together", d->heads,
                       d->kv_heads, d->head_dim);
    if (d->seqlen < 1 || rows % d->seqlen != 0)
        return dq_fail(DQ_E_INVALID, "attention: %lld rows are no whole number of sequences of %lld tokens",
                       (long long)rows, (long long)d->seqlen);
    if (d->window < 0) return dq_fail(DQ_E_INVALID, "attention: window %d is negative", d->window);
    if (!isfinite(d->scale)) return dq_fail(DQ_E_INVALID, "attention: the scale is not finite");
    return DQ_OK;
}

dq_status dq_op_attention(const dq_attention_desc *d, const dq_tensor *q, const dq_tensor *k, const dq_tensor *v,
                          dq_tensor *o)
{
    dq_op_call call = {DQ_OP_ATTENTION,
                       "attention",
                       call_attention,
                       d,
                       4,
                       {{"q", q, DQ_READ}, {"k", k, DQ_READ}, {"v", v, DQ_READ}, {"o", o, DQ_WRITE}}};
    DQ_TRY(dq_check_operands(&call, 0));
    for (int i = 0; i < 4; i++) DQ_TRY(dq_check_dtype(&call, i, i < 3 ? DQ_MASK_F32 : DQ_MASK_F32_BF16));
    DQ_TRY(check_attention(d, q->view.rows));
    int64_t rows = q->view.rows;
    for (int i = 0; i < 4; i++) {
        int64_t heads = i == 0 || i == 3 ? d->heads : d->kv_heads;
        DQ_TRY(dq_check_shape(&call, i, rows, heads * d->head_dim));
        if (i < 3 && dq_view_same(&o->view, dq_operand_view(&call, i)))
            return dq_fail(DQ_E_INVALID, "attention: the output cannot replace %s", call.operands[i].role);
    }
    return dq_view_is_empty(&o->view) ? DQ_OK : dq_op_dispatch_bf16(&call, 3, NULL);
}

typedef struct head_args {
    int64_t first;
    int math;
} head_args;

DQ_OP_CALLER(head_nll)
{
    const head_args *h = args;
    return DQ_SLOT(head_nll, v[0], v[1], v[2], h->first, v[3], h->math);
}

dq_status dq_op_head_nll(const dq_tensor *x, const dq_tensor *w, const dq_tensor *targets, int64_t first,
                         dq_tensor *state, int math)
{
    head_args args = {first, math};
    dq_op_call call = {
        DQ_OP_HEAD_NLL,
        "head_nll",
        call_head_nll,
        &args,
        4,
        {{"x", x, DQ_READ}, {"w", w, DQ_READ}, {"targets", targets, DQ_READ}, {"state", state, DQ_READ_WRITE}}};
    DQ_TRY(dq_check_operands(&call, 0));
    DQ_TRY(dq_check_math("head_nll", math));
    DQ_TRY(dq_check_dtype(&call, 0, math == DQ_MATH_BF16 ? DQ_MASK_F32_BF16 : DQ_MASK_F32));
    DQ_TRY(dq_check_dtype(&call, 1, DQ_MASK_F32_HALVES));
    DQ_TRY(dq_check_dtype(&call, 2, DQ_MASK_I32));
    DQ_TRY(dq_check_dtype(&call, 3, DQ_MASK_F64));
    DQ_TRY(dq_check_shape(&call, 1, -1, x->view.cols));
    DQ_TRY(dq_check_shape(&call, 2, 1, x->view.rows));
    DQ_TRY(dq_check_shape(&call, 3, x->view.rows, 3));
    if (first < 0) return dq_fail(DQ_E_INVALID, "head_nll: the tile starts at %lld", (long long)first);
    if (dq_view_is_empty(&state->view) || dq_view_is_empty(&w->view)) return DQ_OK;
    return dq_op_dispatch_bf16(&call, 0, NULL);
}

DQ_OP_CALLER(compare_logits) { return DQ_SLOT(compare_logits, v[0], v[1], *(const int64_t *)args, v[2]); }

dq_status dq_op_compare_logits(const dq_tensor *a, const dq_tensor *b, int64_t first, dq_tensor *state)
{
    dq_op_call call = {DQ_OP_COMPARE_LOGITS,
                       "compare_logits",
                       call_compare_logits,
                       &first,
                       3,
                       {{"a", a, DQ_READ}, {"b", b, DQ_READ}, {"state", state, DQ_READ_WRITE}}};
    DQ_TRY(dq_check_operands(&call, 0));
    for (int i = 0; i < 2; i++) DQ_TRY(dq_check_dtype(&call, i, DQ_MASK_F32));
    DQ_TRY(dq_check_dtype(&call, 2, DQ_MASK_F64));
    DQ_TRY(dq_check_shape(&call, 1, a->view.rows, a->view.cols));
    DQ_TRY(dq_check_shape(&call, 2, a->view.rows, 7));
    if (first < 0) return dq_fail(DQ_E_INVALID, "compare_logits: the tile starts at %lld", (long long)first);
    return dq_view_is_empty(&a->view) ? DQ_OK : dq_op_dispatch(&call);
}
