/* Linears and the small transforms in front of them. SPDX-License-Identifier: Apache-2.0 */
#include <math.h>

#include "base/status.h"
#include "graph/block.h"

dq_status dq_weight_narrow(dq_tensor *w, int math)
{
    dq_tensor narrow;
    if (!(math & DQ_MATH_BF16) || dq_tensor_is_empty(w) || w->view.dtype != DQ_F32 || dq_tensor_in_reach(w))
        return DQ_OK;
    DQ_TRY(dq_tensor_alloc(w->dev, DQ_BF16, w->view.rows, w->view.cols, &narrow));
    dq_status status = dq_op_convert(w, &narrow);
    dq_tensor_free(status == DQ_OK ? w : &narrow);
    if (status == DQ_OK) *w = narrow;
    return status;
}

dq_status dq_linear_forward(const dq_linear *l, const dq_tensor *x, bool accumulate, int math, dq_tensor *y)
{
    double beta = accumulate ? 1.0 : 0.0;
    if (dq_tensor_is_empty(&l->packed.codes)) {
        DQ_TRY(dq_op_gemm(false, true, 1.0, x, &l->weight, beta, y, math & ~DQ_MATH_INT8));
    } else {
        const dq_packed_weight *w = &l->packed;
        dq_packed_desc d = {.bits = w->bits, .math = math, .group = w->group, .beta = beta};
        DQ_TRY(dq_op_packed_linear(&d, x, &w->codes, &w->scale, &w->zero, &w->order, y));
    }
    return dq_tensor_is_empty(&l->bias) ? DQ_OK : dq_op_axpy(1.0, &l->bias, y);
}

dq_status dq_linear_forward_codes(const dq_linear *l, const dq_tensor *codes, const dq_tensor *grid, bool accumulate,
                                  dq_tensor *y)
{
    DQ_TRY(dq_op_int8_linear(accumulate ? 1.0 : 0.0, codes, grid, &l->int8.codes, &l->int8.grid, y));
    return dq_tensor_is_empty(&l->bias) ? DQ_OK : dq_op_axpy(1.0, &l->bias, y);
}

static const dq_tensor *present(const dq_tensor *t) { return dq_tensor_is_empty(t) ? NULL : t; }

dq_status dq_norm_apply(const dq_block_spec *s, const dq_tensor *weight, const dq_tensor *bias, const dq_tensor *x,
                        dq_tensor *y)
{
    if (s->layer_norm) return dq_op_layernorm(x, present(weight), present(bias), s->norm_eps, y);
    DQ_TRY(dq_op_rmsnorm(x, present(weight), s->norm_eps, y));
    return dq_tensor_is_empty(bias) ? DQ_OK : dq_op_axpy(1.0, bias, y);
}

dq_status dq_final_norm_apply(const dq_block_spec *s, const dq_tensor *weight, const dq_tensor *bias, dq_tensor *x)
{
    dq_tensor along = {0};
    dq_status status;
    if (s->layer_norm || dq_tensor_is_empty(bias)) return dq_norm_apply(s, weight, bias, x, x);
    DQ_GO(dq_tensor_alloc(x->dev, DQ_F32, x->view.rows, 1, &along));
    DQ_GO(dq_op_gemm(false, true, 1.0, x, bias, 0.0, &along, DQ_MATH_F32));
    DQ_GO(dq_op_gemm(false, false, -1.0, &along, bias, 1.0, x, DQ_MATH_F32));
    status = dq_norm_apply(s, weight, bias, x, x);
done:
    dq_tensor_free(&along);
    return status;
}

/* The grid of fewer than 16 bits that `spec` puts on rows of `cols` columns. */
static dq_status grid_of(const dq_act_spec *spec, const char *what, int64_t cols, dq_fake_quant_desc *out)
{
    int64_t group = spec->group > 0 ? spec->group : cols;
    if (cols % group != 0)
        return dq_fail(DQ_E_INVALID, "quantization of the %s: group size %lld does not divide its %lld columns", what,
                       (long long)group, (long long)cols);
    *out = (dq_fake_quant_desc){.bits = spec->bits,
                                .symmetric = spec->symmetric,
                                .group = group,
                                .clip = (float)spec->clip,
                                .zero_in_range = spec->group <= 0};
    return DQ_OK;
}

dq_status dq_fake_quant_apply(const dq_act_spec *spec, const char *what, const dq_tensor *x, dq_tensor *y,
                              const dq_tensor **out)
{
    dq_fake_quant_desc d;
    *out = spec->bits >= 16 ? x : y;
    if (spec->bits >= 16) return DQ_OK;
    DQ_TRY(grid_of(spec, what, x->view.cols, &d));
    return dq_op_fake_quant(&d, x, y);
}

dq_status dq_quantize_rows_apply(const dq_act_spec *spec, const char *what, const dq_tensor *x, dq_tensor *codes,
                                 dq_tensor *grid)
{
    dq_fake_quant_desc d;
    DQ_TRY(grid_of(spec, what, x->view.cols, &d));
    return dq_op_quantize_rows(&d, x, codes, grid);
}

dq_status dq_norm_rows_apply(const dq_block_spec *s, const dq_act_spec *spec, const char *what, const dq_tensor *h,
                             const dq_tensor *weight, const dq_tensor *bias, dq_tensor *between, dq_tensor *codes,
                             dq_tensor *grid)
{
    dq_fake_quant_desc d;
    DQ_TRY(grid_of(spec, what, h->view.cols, &d));
    if (s->layer_norm)
        return dq_op_layernorm_rows(h, present(weight), present(bias), s->norm_eps, &d, between, codes, grid);
    return dq_op_rmsnorm_rows(h, present(weight), s->norm_eps, &d, between, codes, grid);
}

dq_status dq_norm_quant_apply(const dq_block_spec *s, const dq_act_spec *spec, const char *what, const dq_tensor *h,
                              const dq_tensor *weight, const dq_tensor *bias, dq_tensor *y)
{
    dq_fake_quant_desc d;
    DQ_TRY(grid_of(spec, what, h->view.cols, &d));
    if (s->layer_norm) return dq_op_layernorm_quant(h, present(weight), present(bias), s->norm_eps, &d, y);
    return dq_op_rmsnorm_quant(h, present(weight), s->norm_eps, &d, y);
}

static dq_hadamard_desc desc_of(const dq_hadamard *h, int64_t inner)
{
    return (dq_hadamard_desc){.n = h->n, .k = h->k, .hk = h->hk, .inner = inner, .scale = 1.0 / sqrt((double)h->n)};
}

dq_status dq_hadamard_apply(const dq_hadamard *h, int64_t inner, dq_tensor *x)
{
    dq_hadamard_desc d = desc_of(h, inner);
    return dq_op_hadamard(&d, x, x);
}

dq_status dq_hadamard_quant_apply(const dq_hadamard *h, const dq_act_spec *spec, const char *what, dq_tensor *x,
                                  dq_tensor *y, const dq_tensor **out)
{
    dq_fake_quant_desc d;
    if (!h) return dq_fake_quant_apply(spec, what, x, y, out);
    *out = spec->bits >= 16 ? x : y;
    if (spec->bits >= 16) return dq_hadamard_apply(h, 1, x);
    DQ_TRY(grid_of(spec, what, x->view.cols, &d));
    dq_hadamard_desc t = desc_of(h, 1);
    return dq_op_hadamard_quant(&t, &d, x, y);
}

dq_status dq_hadamard_rows_apply(const dq_hadamard *h, const dq_act_spec *spec, const char *what, dq_tensor *x,
                                 dq_tensor *codes, dq_tensor *grid)
{
    dq_fake_quant_desc d;
    if (!h) return dq_quantize_rows_apply(spec, what, x, codes, grid);
    DQ_TRY(grid_of(spec, what, x->view.cols, &d));
    dq_hadamard_desc t = desc_of(h, 1);
    return dq_op_hadamard_rows(&t, &d, x, x, codes, grid);
}

dq_status dq_divide_rows(const float *by, dq_tensor *w)
{
    dq_tensor factor = {0};
    dq_status status;
    DQ_GO(dq_tensor_alloc(w->dev, w->view.dtype, 1, w->view.cols, &factor));
    for (int64_t i = 0; i < w->view.rows; i++) {
        dq_tensor row = dq_tensor_rows(w, i, 1);
        if (by[i] == 1.0f) continue;
        DQ_GO(dq_op_fill(1.0 / (double)by[i], &factor));
        DQ_GO(dq_op_scale_cols(&row, &factor, &row));
    }
done:
    dq_tensor_free(&factor);
    return status;
}

static dq_status check_act(const dq_act_spec *spec, const char *what, int64_t cols)
{
    if (spec->bits == 16) return DQ_OK;
    if (spec->bits < 2 || spec->bits > 15)
        return dq_fail(DQ_E_INVALID, "quantization of the %s: %d bits, 2 to 16 are possible", what, spec->bits);
    if (!(spec->clip > 0.0 && spec->clip <= 1.0))
        return dq_fail(DQ_E_INVALID, "quantization of the %s: clip ratio %g is not in (0, 1]", what, spec->clip);
    if (spec->group != -1 && (spec->group < 1 || cols % spec->group != 0))
        return dq_fail(DQ_E_INVALID, "quantization of the %s: group size %lld does not divide its %lld columns", what,
                       (long long)spec->group, (long long)cols);
    return DQ_OK;
}

dq_status dq_block_spec_check(const dq_block_spec *s)
{
    const dq_scheme *q = &s->scheme;
    DQ_TRY(check_act(&q->a, "q, k, v and gate, up inputs", s->hidden));
    DQ_TRY(check_act(&q->a, "o_proj input", (int64_t)s->heads * s->head_dim));
    DQ_TRY(check_act(&q->a, "down_proj input", s->intermediate));
    DQ_TRY(check_act(&q->k, "keys", (int64_t)s->kv_heads * s->head_dim));
    return check_act(&q->v, "values", (int64_t)s->kv_heads * s->head_dim);
}
