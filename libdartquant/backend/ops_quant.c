/* Checked entry points of the quantization, Hadamard and factorization ops. SPDX-License-Identifier: Apache-2.0 */
#include <math.h>

#include "backend/device_internal.h"
#include "base/status.h"

/* ---- activations ---- */

dq_status dq_check_fake_quant(const char *op, const dq_fake_quant_desc *d, int64_t cols)
{
    if (d->bits < 2 || d->bits > 15) return dq_fail(DQ_E_INVALID, "%s: %d bits, must be 2..15", op, d->bits);
    if (d->group < 1 || cols % d->group != 0)
        return dq_fail(DQ_E_INVALID, "%s: groups of %lld do not divide %lld columns", op, (long long)d->group,
                       (long long)cols);
    if (!(d->clip > 0 && d->clip <= 1))
        return dq_fail(DQ_E_INVALID, "%s: clip ratio %g, must be in (0, 1]", op, (double)d->clip);
    return DQ_OK;
}

DQ_OP_CALLER(fake_quant) { return DQ_SLOT(fake_quant, args, v[0], v[1]); }

dq_status dq_op_fake_quant(const dq_fake_quant_desc *d, const dq_tensor *x, dq_tensor *y)
{
    dq_op_call call = {DQ_OP_FAKE_QUANT, "fake_quant", call_fake_quant, d, 2, {{"x", x, DQ_READ}, {"y", y, DQ_WRITE}}};
    DQ_TRY(dq_check_operands(&call, 0));
    for (int i = 0; i < 2; i++) DQ_TRY(dq_check_dtype(&call, i, i < 1 ? DQ_MASK_F32 : DQ_MASK_F32_BF16));
    DQ_TRY(dq_check_shape(&call, 1, x->view.rows, x->view.cols));
    DQ_TRY(dq_check_fake_quant("fake_quant", d, x->view.cols));
    return dq_view_is_empty(&y->view) ? DQ_OK : dq_op_dispatch_bf16(&call, 1, NULL);
}

DQ_OP_CALLER(hadamard) { return DQ_SLOT(hadamard, args, v[0], v[1]); }

dq_status dq_check_hadamard(const char *op, const dq_hadamard_desc *d, int64_t cols)
{
    int64_t power = d->n > 0 && d->k > 0 && d->n % d->k == 0 ? d->n / d->k : 0;
    if (power < 1 || (power & (power - 1)) != 0)
        return dq_fail(DQ_E_INVALID, "%s: order %lld is not %lld times a power of two", op, (long long)d->n,
                       (long long)d->k);
    if (d->k > 1 && !d->hk) return dq_fail(DQ_E_INVALID, "%s: no table for k = %lld", op, (long long)d->k);
    int64_t period;
    if (d->inner < 1 || __builtin_mul_overflow(d->n, d->inner, &period) || cols % period != 0)
        return dq_fail(DQ_E_INVALID, "%s: order %lld x inner %lld does not divide %lld columns", op, (long long)d->n,
                       (long long)d->inner, (long long)cols);
    if (!isfinite(d->scale)) return dq_fail(DQ_E_INVALID, "%s: the scale is not finite", op);
    return DQ_OK;
}

dq_status dq_op_hadamard(const dq_hadamard_desc *d, const dq_tensor *x, dq_tensor *y)
{
    dq_op_call call = {DQ_OP_HADAMARD, "hadamard", call_hadamard, d, 2, {{"x", x, DQ_READ}, {"y", y, DQ_WRITE}}};
    DQ_TRY(dq_check_operands(&call, 0));
    DQ_TRY(dq_check_dtype(&call, 0, DQ_MASK_F32_F64));
    DQ_TRY(dq_check_same_dtype(&call, 0, 1));
    DQ_TRY(dq_check_shape(&call, 1, x->view.rows, x->view.cols));
    DQ_TRY(dq_check_hadamard("hadamard", d, x->view.cols));
    return dq_view_is_empty(&y->view) ? DQ_OK : dq_op_dispatch(&call);
}

/* ---- Hessians and factorizations ---- */

typedef struct syrk_args {
    double alpha, beta;
} syrk_args;

DQ_OP_CALLER(syrk)
{
    const syrk_args *s = args;
    return DQ_SLOT(syrk, s->alpha, v[0], s->beta, v[1]);
}

dq_status dq_op_syrk(double alpha, const dq_tensor *x, double beta, dq_tensor *h)
{
    syrk_args args = {alpha, beta};
    /* The upper triangle stays, so h is read even when beta is 0. */
    dq_op_call call = {DQ_OP_SYRK, "syrk", call_syrk, &args, 2, {{"x", x, DQ_READ}, {"h", h, DQ_READ_WRITE}}};
    DQ_TRY(dq_check_operands(&call, 0));
    DQ_TRY(dq_check_dtype(&call, 0, DQ_MASK_F32_HALVES));
    DQ_TRY(dq_check_dtype(&call, 1, DQ_MASK_F32));
    DQ_TRY(dq_check_shape(&call, 1, x->view.cols, x->view.cols));
    if (dq_view_same(&x->view, &h->view)) return dq_fail(DQ_E_INVALID, "syrk: h cannot replace x");
    return dq_view_is_empty(&h->view) ? DQ_OK : dq_op_dispatch(&call);
}

DQ_OP_CALLER(diag)
{
    (void)args;
    return DQ_SLOT(diag, v[0], v[1]);
}

dq_status dq_op_diag(const dq_tensor *h, dq_tensor *v)
{
    dq_op_call call = {DQ_OP_DIAG, "diag", call_diag, NULL, 2, {{"h", h, DQ_READ}, {"v", v, DQ_WRITE}}};
    DQ_TRY(dq_check_operands(&call, 0));
    for (int i = 0; i < 2; i++) DQ_TRY(dq_check_dtype(&call, i, DQ_MASK_F32));
    DQ_TRY(dq_check_shape(&call, 0, h->view.rows, h->view.rows));
    DQ_TRY(dq_check_shape(&call, 1, 1, h->view.cols));
    return dq_view_is_empty(&v->view) ? DQ_OK : dq_op_dispatch(&call);
}

typedef struct factor_args {
    double damp;
    int64_t block; /* of gptq_root */
    int64_t *info;
} factor_args;

DQ_OP_CALLER(gptq_factor)
{
    const factor_args *f = args;
    return DQ_SLOT(gptq_factor, v[0], v[1], f->damp, v[2], f->info);
}

DQ_OP_CALLER(gptq_root)
{
    const factor_args *f = args;
    return DQ_SLOT(gptq_root, v[0], v[1], f->damp, f->block, v[2], f->info);
}

/* Operands 0 h, 1 perm, 2 the result. */
static dq_status check_factor(const dq_op_call *call)
{
    const factor_args *f = call->args;
    const dq_view *h = &call->operands[0].tensor->view;
    DQ_TRY(dq_check_operands(call, 1u << 1));
    DQ_TRY(dq_check_dtype(call, 0, DQ_MASK_F32));
    DQ_TRY(dq_check_dtype(call, 1, DQ_MASK_I32));
    DQ_TRY(dq_check_dtype(call, 2, DQ_MASK_F32));
    DQ_TRY(dq_check_shape(call, 0, h->rows, h->rows));
    DQ_TRY(dq_check_shape(call, 1, 1, h->rows));
    DQ_TRY(dq_check_shape(call, 2, h->rows, h->rows));
    if (!(f->damp >= 0) || !isfinite(f->damp))
        return dq_fail(DQ_E_INVALID, "%s: damping %g must be finite and >= 0", call->name, f->damp);
    if (dq_view_same(h, dq_operand_view(call, 2)))
        return dq_fail(DQ_E_INVALID, "%s: %s cannot replace h", call->name, call->operands[2].role);
    return DQ_OK;
}

dq_status dq_op_gptq_factor(const dq_tensor *h, const dq_tensor *perm, double damp, dq_tensor *u, int64_t *info)
{
    int64_t pivot = 0;
    factor_args args = {damp, 0, &pivot};
    dq_op_call call = {DQ_OP_GPTQ_FACTOR,
                       "gptq_factor",
                       call_gptq_factor,
                       &args,
                       3,
                       {{"h", h, DQ_READ}, {"perm", perm, DQ_READ}, {"u", u, DQ_WRITE}}};
    DQ_TRY(check_factor(&call));
    if (!dq_view_is_empty(&h->view)) DQ_TRY(dq_op_dispatch(&call));
    *info = pivot;
    return DQ_OK;
}

dq_status dq_op_gptq_root(const dq_tensor *h, const dq_tensor *perm, double damp, int64_t block, dq_tensor *root,
                          int64_t *info, bool *served)
{
    int64_t pivot = 0;
    factor_args args = {damp, block, &pivot};
    dq_op_call call = {
        DQ_OP_GPTQ_ROOT, "gptq_root", call_gptq_root,
        &args,           3,           {{"h", h, DQ_READ}, {"perm", perm, DQ_READ}, {"root", root, DQ_WRITE}}};
    DQ_TRY(check_factor(&call));
    if (block < 1) return dq_fail(DQ_E_INVALID, "gptq_root: blocks of %lld columns", (long long)block);
    *served = true;
    if (!dq_view_is_empty(&h->view)) DQ_TRY(dq_op_dispatch_fused(&call, served));
    *info = pivot;
    return DQ_OK;
}

DQ_OP_CALLER(qr)
{
    (void)args;
    return DQ_SLOT(qr, v[0], v[1], v[2]);
}

dq_status dq_op_qr(const dq_tensor *a, dq_tensor *q, dq_tensor *r)
{
    dq_op_call call = {DQ_OP_QR, "qr", call_qr, NULL, 3, {{"a", a, DQ_READ}, {"q", q, DQ_WRITE}, {"r", r, DQ_WRITE}}};
    DQ_TRY(dq_check_operands(&call, 1u << 2));
    DQ_TRY(dq_check_dtype(&call, 0, DQ_MASK_F32_F64));
    for (int i = 0; i < 3; i++) {
        DQ_TRY(dq_check_same_dtype(&call, 0, i));
        DQ_TRY(dq_check_shape(&call, i, a->view.rows, a->view.rows));
        for (int j = 0; j < i; j++)
            if (!dq_tensor_is_empty(call.operands[i].tensor) &&
                dq_view_same(dq_operand_view(&call, i), dq_operand_view(&call, j)))
                return dq_fail(DQ_E_INVALID, "qr: %s and %s must be different", call.operands[j].role,
                               call.operands[i].role);
    }
    return dq_view_is_empty(&a->view) ? DQ_OK : dq_op_dispatch(&call);
}

/* ---- weights ---- */

static dq_status check_grid(const char *op, const dq_grid_desc *d)
{
    if (d->bits < 2 || d->bits > 8) return dq_fail(DQ_E_INVALID, "%s: %d bits, must be 2..8", op, d->bits);
    if (d->group < 1) return dq_fail(DQ_E_INVALID, "%s: groups of %lld columns", op, (long long)d->group);
    return DQ_OK;
}

static int64_t groups_of(const dq_grid_desc *d, int64_t cols) { return cols / d->group + (cols % d->group != 0); }

DQ_OP_CALLER(weight_grid) { return DQ_SLOT(weight_grid, args, v[0], v[1], v[2]); }

dq_status dq_op_weight_grid(const dq_grid_desc *d, const dq_tensor *w, dq_tensor *scale, dq_tensor *zero)
{
    dq_op_call call = {DQ_OP_WEIGHT_GRID,
                       "weight_grid",
                       call_weight_grid,
                       d,
                       3,
                       {{"w", w, DQ_READ}, {"scale", scale, DQ_WRITE}, {"zero", zero, DQ_WRITE}}};
    DQ_TRY(dq_check_operands(&call, 0));
    DQ_TRY(check_grid("weight_grid", d));
    for (int i = 0; i < 3; i++) DQ_TRY(dq_check_dtype(&call, i, DQ_MASK_F32));
    for (int i = 1; i < 3; i++) DQ_TRY(dq_check_shape(&call, i, w->view.rows, groups_of(d, w->view.cols)));
    if (d->search_steps < 0 || (d->search_steps > 0 && (d->search_grid < d->search_steps || !(d->search_norm > 0) ||
                                                        !isfinite(d->search_norm))))
        return dq_fail(
            DQ_E_INVALID,
            "weight_grid: clip search of %d steps on a grid of %d with norm %g (0 <= steps <= grid, norm > 0)",
            d->search_steps, d->search_grid, (double)d->search_norm);
    if (dq_view_same(&scale->view, &zero->view))
        return dq_fail(DQ_E_INVALID, "weight_grid: scale and zero must be different");
    return dq_view_is_empty(&w->view) ? DQ_OK : dq_op_dispatch(&call);
}

/* scale, zero, group_index are operands s, s+1, s+2; `cols` columns of weights read them. */
static dq_status check_parameters(const dq_op_call *call, const dq_grid_desc *d, int s, int64_t rows, int64_t cols)
{
    bool indexed = !dq_tensor_is_empty(call->operands[s + 2].tensor);
    int64_t groups = indexed ? dq_operand_view(call, s)->cols : groups_of(d, cols);
    DQ_TRY(check_grid(call->name, d));
    for (int i = s; i < s + 2; i++) {
        DQ_TRY(dq_check_dtype(call, i, DQ_MASK_F32));
        DQ_TRY(dq_check_shape(call, i, rows, groups));
    }
    DQ_TRY(dq_check_dtype(call, s + 2, DQ_MASK_I32));
    return dq_check_shape(call, s + 2, 1, cols);
}

DQ_OP_CALLER(quantize_weight) { return DQ_SLOT(quantize_weight, args, v[0], v[1], v[2], v[3], v[4]); }

dq_status dq_op_quantize_weight(const dq_grid_desc *d, const dq_tensor *w, const dq_tensor *scale,
                                const dq_tensor *zero, const dq_tensor *group_index, dq_tensor *codes)
{
    dq_op_call call = {DQ_OP_QUANTIZE_WEIGHT,
                       "quantize_weight",
                       call_quantize_weight,
                       d,
                       5,
                       {{"w", w, DQ_READ},
                        {"scale", scale, DQ_READ},
                        {"zero", zero, DQ_READ},
                        {"group_index", group_index, DQ_READ},
                        {"codes", codes, DQ_WRITE}}};
    DQ_TRY(dq_check_operands(&call, 1u << 3));
    DQ_TRY(dq_check_dtype(&call, 0, DQ_MASK_F32));
    DQ_TRY(dq_check_dtype(&call, 4, DQ_MASK_U8));
    DQ_TRY(check_parameters(&call, d, 1, w->view.rows, w->view.cols));
    DQ_TRY(dq_check_shape(&call, 4, w->view.rows, w->view.cols));
    return dq_view_is_empty(&codes->view) ? DQ_OK : dq_op_dispatch(&call);
}

DQ_OP_CALLER(dequantize_weight) { return DQ_SLOT(dequantize_weight, args, v[0], v[1], v[2], v[3], v[4]); }

dq_status dq_op_dequantize_weight(const dq_grid_desc *d, const dq_tensor *codes, const dq_tensor *scale,
                                  const dq_tensor *zero, const dq_tensor *group_index, dq_tensor *w)
{
    dq_op_call call = {DQ_OP_DEQUANTIZE_WEIGHT,
                       "dequantize_weight",
                       call_dequantize_weight,
                       d,
                       5,
                       {{"codes", codes, DQ_READ},
                        {"scale", scale, DQ_READ},
                        {"zero", zero, DQ_READ},
                        {"group_index", group_index, DQ_READ},
                        {"w", w, DQ_WRITE}}};
    DQ_TRY(dq_check_operands(&call, 1u << 3));
    DQ_TRY(dq_check_dtype(&call, 0, DQ_MASK_U8));
    DQ_TRY(dq_check_dtype(&call, 4, DQ_MASK_F32));
    DQ_TRY(check_parameters(&call, d, 1, codes->view.rows, codes->view.cols));
    DQ_TRY(dq_check_shape(&call, 4, codes->view.rows, codes->view.cols));
    return dq_view_is_empty(&w->view) ? DQ_OK : dq_op_dispatch(&call);
}

DQ_OP_CALLER(gptq_block) { return DQ_SLOT(gptq_block, args, v[0], v[1], v[2], v[3], v[4], v[5], v[6]); }

dq_status dq_op_gptq_block(const dq_grid_desc *d, dq_tensor *w, const dq_tensor *u, const dq_tensor *scale,
                           const dq_tensor *zero, const dq_tensor *group_index, dq_tensor *codes, dq_tensor *err)
{
    dq_op_call call = {DQ_OP_GPTQ_BLOCK,
                       "gptq_block",
                       call_gptq_block,
                       d,
                       7,
                       {{"w", w, DQ_READ_WRITE},
                        {"u", u, DQ_READ},
                        {"scale", scale, DQ_READ},
                        {"zero", zero, DQ_READ},
                        {"group_index", group_index, DQ_READ},
                        {"codes", codes, DQ_WRITE},
                        {"err", err, DQ_WRITE}}};
    DQ_TRY(dq_check_operands(&call, 0));
    for (int i = 0; i < 2; i++) DQ_TRY(dq_check_dtype(&call, i, DQ_MASK_F32));
    DQ_TRY(dq_check_shape(&call, 1, w->view.cols, w->view.cols));
    DQ_TRY(check_parameters(&call, d, 2, w->view.rows, w->view.cols));
    DQ_TRY(dq_check_dtype(&call, 5, DQ_MASK_U8));
    DQ_TRY(dq_check_dtype(&call, 6, DQ_MASK_F32));
    for (int i = 5; i < 7; i++) DQ_TRY(dq_check_shape(&call, i, w->view.rows, w->view.cols));
    if (dq_view_same(&w->view, &err->view)) return dq_fail(DQ_E_INVALID, "gptq_block: err cannot replace w");
    return dq_view_is_empty(&w->view) ? DQ_OK : dq_op_dispatch(&call);
}
