/* The stages of a decoder block. SPDX-License-Identifier: Apache-2.0 */
#include "graph/block.h"

#include <math.h>

#include "base/status.h"

static dq_status check_rows(const dq_tensor *h, const dq_workspace *ws)
{
    if (h->view.rows == ws->x.view.rows) return DQ_OK;
    return dq_fail(DQ_E_INTERNAL, "block: %lld rows in a workspace of %lld", (long long)h->view.rows,
                   (long long)ws->x.view.rows);
}

static dq_status norm(const dq_block_spec *s, const dq_tensor *weight, const dq_tensor *bias, const dq_tensor *h,
                      dq_workspace *ws)
{
    DQ_TRY(check_rows(h, ws));
    return dq_norm_apply(s, weight, bias, h, &ws->x);
}

/* With the layer's own clip ratio, where it has one. */
static dq_act_spec own_spec(const dq_act_spec *spec, const dq_block *b, int site)
{
    dq_act_spec own = *spec;
    if (b->clip[site] > 0) own.clip = b->clip[site];
    return own;
}

static dq_status quantize(const dq_act_spec *spec, const dq_block *b, int site, const char *what, const dq_tensor *x,
                          dq_tensor *y, const dq_tensor **out)
{
    dq_act_spec own = own_spec(spec, b, site);
    return dq_fake_quant_apply(&own, what, x, y, out);
}

/* One of the linears that read the input with that clip ratio: all or none of them have int8 weights. */
static bool reads_codes(const dq_block *b, int site)
{
    int linear = site == DQ_CLIP_QKV    ? DQ_BLOCK_Q
                 : site == DQ_CLIP_O    ? DQ_BLOCK_O
                 : site == DQ_CLIP_DOWN ? DQ_BLOCK_DOWN
                                        : DQ_BLOCK_UP;
    return dq_linear_is_int8(&b->linear[linear]);
}

/* Where the input of int8 weights goes, which is to be made of x: in ws.codes cut to its width, and its grid. */
static dq_status place_codes(const dq_workspace *ws, const dq_tensor *x, dq_tensor *codes, dq_tensor *grid)
{
    if (dq_tensor_is_empty(&ws->codes)) return dq_fail(DQ_E_INTERNAL, "block: a workspace without room for codes");
    *grid = dq_tensor_rows(&ws->grid, 0, x->view.rows);
    *codes = dq_tensor_slice(&ws->codes, 0, x->view.rows, 0, x->view.cols);
    return DQ_OK;
}

static dq_status code_input(const dq_block_spec *s, const dq_block *b, int site, const char *what, const dq_tensor *x,
                            dq_workspace *ws, dq_tensor *slice, const dq_tensor **out)
{
    dq_act_spec own = own_spec(&s->scheme.a, b, site);
    dq_tensor grid;
    DQ_TRY(place_codes(ws, x, slice, &grid));
    *out = slice;
    return dq_quantize_rows_apply(&own, what, x, slice, &grid);
}

/* y (+)= l(x), x as the functions here make it. */
static dq_status multiply(const dq_block_spec *s, const dq_linear *l, const dq_tensor *x, const dq_workspace *ws,
                          bool accumulate, dq_tensor *y)
{
    if (!dq_linear_is_int8(l)) return dq_linear_forward(l, x, accumulate, s->math, y);
    dq_tensor grid = dq_tensor_rows(&ws->grid, 0, x->view.rows);
    return dq_linear_forward_codes(l, x, &grid, accumulate, y);
}

/* A linear's input as its products read it, in ws.xq cut to its width: fake-quantized, or rounded where that is worth a copy
 * because `several` products read it; else x itself. */
static dq_status product_input(const dq_block_spec *s, const dq_block *b, int site, const char *what,
                               const dq_tensor *x, bool several, dq_workspace *ws, dq_tensor *slice,
                               const dq_tensor **out)
{
    bool rounds = s->scheme.a.bits >= 16 && ws->rounds && several;
    if (reads_codes(b, site)) return code_input(s, b, site, what, x, ws, slice, out);
    if (s->scheme.a.bits < 16 || rounds) *slice = dq_tensor_slice(&ws->xq, 0, x->view.rows, 0, x->view.cols);
    if (!rounds) return quantize(&s->scheme.a, b, site, what, x, slice, out);
    *out = slice;
    return dq_op_convert(x, slice);
}

/* The norm of h as the products of `site` read it, where nobody looks at what lies between. */
static dq_status norm_input(const dq_block_spec *s, const dq_block *b, int site, const char *what,
                            const dq_tensor *weight, const dq_tensor *bias, const dq_tensor *h, dq_workspace *ws,
                            dq_tensor *slice, const dq_tensor **out)
{
    bool quantized = s->scheme.a.bits < 16, one_op = s->layer_norm || dq_tensor_is_empty(bias);
    if (!one_op || !(quantized || ws->rounds)) {
        DQ_TRY(norm(s, weight, bias, h, ws));
        return product_input(s, b, site, what, &ws->x, true, ws, slice, out);
    }
    dq_act_spec own = own_spec(&s->scheme.a, b, site);
    DQ_TRY(check_rows(h, ws));
    if (reads_codes(b, site)) {
        dq_tensor grid;
        DQ_TRY(place_codes(ws, h, slice, &grid));
        *out = slice;
        return dq_norm_rows_apply(s, &own, what, h, weight, bias, &ws->x, slice, &grid);
    }
    *slice = dq_tensor_slice(&ws->xq, 0, h->view.rows, 0, h->view.cols);
    *out = slice;
    if (!quantized) return dq_norm_apply(s, weight, bias, h, slice);
    return dq_norm_quant_apply(s, &own, what, h, weight, bias, slice);
}

dq_status dq_block_attn_in(const dq_block_spec *s, const dq_block *b, const dq_tensor *h, dq_workspace *ws)
{
    return norm(s, &b->attn_norm, &b->attn_norm_bias, h, ws);
}

static float attention_scale(const dq_block_spec *s) { return (float)(1.0 / sqrt((double)s->head_dim)); }

static dq_status attend(const dq_block_spec *s, const dq_tensor *k, const dq_tensor *v, const dq_workspace *ws,
                        dq_tensor *o)
{
    dq_attention_desc d = {.seqlen = s->seqlen,
                           .heads = s->heads,
                           .kv_heads = s->kv_heads,
                           .head_dim = s->head_dim,
                           .window = s->window,
                           .scale = attention_scale(s),
                           .math = s->math};
    return dq_op_attention(&d, &ws->q, k, v, o);
}

/* Keys and values are read back as the cache stores them, also those of this call. */
static dq_status attend_cached(const dq_block_spec *s, dq_kv_cache *cache, const dq_tensor *k, const dq_tensor *v,
                               const dq_workspace *ws, dq_tensor *o)
{
    dq_kv_attention_desc d = {.kv = cache->desc, .heads = s->heads, .scale = attention_scale(s)};
    DQ_TRY(dq_op_kv_store(&cache->desc, k, &s->slot, &cache->k, &cache->k_grid));
    DQ_TRY(dq_op_kv_store(&cache->desc, v, &s->slot, &cache->v, &cache->v_grid));
    return dq_op_kv_attention(&d, &ws->q, &cache->k, &cache->k_grid, &cache->v, &cache->v_grid, &s->span, o);
}

/* The norm of each head by itself (Qwen3); x may be columns of a wider tensor. */
static dq_status head_norm(const dq_block_spec *s, const dq_tensor *weight, const dq_tensor *x)
{
    if (dq_tensor_is_empty(weight)) return DQ_OK;
    dq_tensor heads = dq_tensor_split_rows(x, s->head_dim);
    if (!dq_tensor_is_empty(&heads)) return dq_op_rmsnorm(&heads, weight, s->norm_eps, &heads);
    for (int64_t c = 0; c < x->view.cols; c += s->head_dim) {
        dq_tensor head = dq_tensor_slice(x, 0, x->view.rows, c, s->head_dim);
        DQ_TRY(dq_op_rmsnorm(&head, weight, s->norm_eps, &head));
    }
    return DQ_OK;
}

/* KVQuant, in place. Values: a range for each token over all heads; keys: the calibrated ones of the channels. */
static dq_status quantize_levels(const dq_block_spec *s, const dq_block *b, bool values, dq_tensor *x)
{
    const dq_kvquant_spec *q = &s->scheme.kvquant;
    const dq_kv_level_tables *t = &b->levels;
    const dq_tensor *levels = values ? &t->v : &t->k;
    if ((values ? s->scheme.v.bits : s->scheme.k.bits) >= 16) return DQ_OK;
    if (dq_tensor_is_empty(levels))
        return dq_fail(DQ_E_INTERNAL, "block: no levels for %s", values ? "values" : "keys");
    dq_levels_quant_desc d = {.per_row = values,
                              .keep_outliers = q->outliers > 0,
                              .outliers = values ? q->outliers : 0,
                              .seqlen = s->seqlen,
                              .sink = q->sink,
                              .norm_scale = t->norm[values ? 2 : 0],
                              .norm_offset = t->norm[values ? 3 : 1]};
    return dq_op_levels_quant(&d, x, values ? NULL : &t->k_range, levels,
                              dq_tensor_is_empty(&s->position) ? NULL : &s->position, x);
}

dq_status dq_block_keys_values(const dq_block_spec *s, const dq_block *b, dq_workspace *ws)
{
    DQ_TRY(dq_linear_forward(&b->linear[DQ_BLOCK_K], &ws->x, false, s->math, &ws->k));
    DQ_TRY(dq_linear_forward(&b->linear[DQ_BLOCK_V], &ws->x, false, s->math, &ws->v));
    return head_norm(s, &b->k_norm, &ws->k);
}

/* From the input of q, k, v, as products read it, to o. */
static dq_status attention_of(const dq_block_spec *s, const dq_block *b, const dq_tensor *x, dq_workspace *ws,
                              dq_tensor *o)
{
    const dq_tensor *k, *v;
    dq_act_spec keys = own_spec(&s->scheme.k, b, DQ_CLIP_KEYS);
    if (!dq_linear_is_empty(&b->qkv)) {
        DQ_TRY(multiply(s, &b->qkv, x, ws, false, &ws->qkv));
    } else {
        DQ_TRY(multiply(s, &b->linear[DQ_BLOCK_Q], x, ws, false, &ws->q));
        DQ_TRY(multiply(s, &b->linear[DQ_BLOCK_K], x, ws, false, &ws->k));
        DQ_TRY(multiply(s, &b->linear[DQ_BLOCK_V], x, ws, false, &ws->v));
    }
    DQ_TRY(head_norm(s, &b->q_norm, &ws->q));
    DQ_TRY(head_norm(s, &b->k_norm, &ws->k));
    if (s->scheme.kvquant.on) {
        DQ_TRY(quantize_levels(s, b, true, &ws->v));
        DQ_TRY(quantize_levels(s, b, false, &ws->k));
        keys.bits = 16;
        v = &ws->v;
    } else {
        DQ_TRY(quantize(&s->scheme.v, b, DQ_CLIP_VALUES, "values", &ws->v, &ws->v, &v));
    }
    if (!dq_tensor_is_empty(&s->cos)) { /* else positions are in the embedding */
        DQ_TRY(dq_op_rope(&s->cos, &s->sin, s->head_dim, &ws->q));
        DQ_TRY(dq_op_rope(&s->cos, &s->sin, s->head_dim, &ws->k));
    }
    if (s->r3) DQ_TRY(dq_hadamard_apply(s->r3, 1, &ws->q));
    DQ_TRY(dq_hadamard_quant_apply(s->r3, &keys, "keys", &ws->k, &ws->k, &k));
    DQ_TRY(b->cache ? attend_cached(s, b->cache, k, v, ws, o) : attend(s, k, v, ws, o));
    return s->r2_heads ? dq_hadamard_apply(s->r2_heads, s->head_dim, o) : DQ_OK;
}

/* From the residual stream to o. */
static dq_status attention_from(const dq_block_spec *s, const dq_block *b, const dq_tensor *h, dq_workspace *ws,
                                dq_tensor *o)
{
    dq_tensor slice;
    const dq_tensor *x;
    DQ_TRY(norm_input(s, b, DQ_CLIP_QKV, "q, k, v input", &b->attn_norm, &b->attn_norm_bias, h, ws, &slice, &x));
    return attention_of(s, b, x, ws, o);
}

dq_status dq_block_to_attn(const dq_block_spec *s, const dq_block *b, const dq_tensor *h, dq_workspace *ws)
{
    return attention_from(s, b, h, ws, &ws->a);
}

dq_status dq_block_attn(const dq_block_spec *s, const dq_block *b, dq_workspace *ws)
{
    dq_tensor slice = {0};
    const dq_tensor *x;
    DQ_TRY(product_input(s, b, DQ_CLIP_QKV, "q, k, v input", &ws->x, true, ws, &slice, &x));
    return attention_of(s, b, x, ws, &ws->a);
}

dq_status dq_block_attn_out(const dq_block_spec *s, const dq_block *b, const dq_tensor *a, dq_workspace *ws,
                            dq_tensor *h)
{
    dq_tensor slice = {0};
    const dq_tensor *x;
    DQ_TRY(check_rows(h, ws));
    DQ_TRY(product_input(s, b, DQ_CLIP_O, "o_proj input", a, false, ws, &slice, &x));
    return multiply(s, &b->linear[DQ_BLOCK_O], x, ws, true, h);
}

dq_status dq_block_mlp_in(const dq_block_spec *s, const dq_block *b, const dq_tensor *h, dq_workspace *ws)
{
    return norm(s, &b->mlp_norm, &b->mlp_norm_bias, h, ws);
}

/* From the input of gate, up, as products read it, to y before R4. */
static dq_status activated(const dq_block_spec *s, const dq_block *b, const dq_tensor *x, dq_workspace *ws,
                           dq_tensor *y)
{
    if (s->no_gate) {
        DQ_TRY(multiply(s, &b->linear[DQ_BLOCK_UP], x, ws, false, &ws->gate));
    } else if (!dq_linear_is_empty(&b->gate_up)) {
        DQ_TRY(multiply(s, &b->gate_up, x, ws, false, &ws->gate_up));
    } else {
        DQ_TRY(multiply(s, &b->linear[DQ_BLOCK_GATE], x, ws, false, &ws->gate));
        DQ_TRY(multiply(s, &b->linear[DQ_BLOCK_UP], x, ws, false, &ws->up));
    }
    return dq_op_activation(s->activation, &ws->gate, s->no_gate ? NULL : &ws->up, y);
}

dq_status dq_block_mlp(const dq_block_spec *s, const dq_block *b, dq_workspace *ws)
{
    dq_tensor slice = {0};
    const dq_tensor *x;
    DQ_TRY(product_input(s, b, DQ_CLIP_GATE_UP, "gate, up input", &ws->x, !s->no_gate, ws, &slice, &x));
    DQ_TRY(activated(s, b, x, ws, &ws->gate));
    return s->r4 ? dq_hadamard_apply(s->r4, 1, &ws->gate) : DQ_OK;
}

/* From the residual stream to y before R4. */
static dq_status activated_from(const dq_block_spec *s, const dq_block *b, const dq_tensor *h, dq_workspace *ws,
                                dq_tensor *y)
{
    dq_tensor slice;
    const dq_tensor *x;
    DQ_TRY(norm_input(s, b, DQ_CLIP_GATE_UP, "gate, up input", &b->mlp_norm, &b->mlp_norm_bias, h, ws, &slice, &x));
    return activated(s, b, x, ws, y);
}

dq_status dq_block_to_mlp(const dq_block_spec *s, const dq_block *b, const dq_tensor *h, dq_workspace *ws)
{
    DQ_TRY(activated_from(s, b, h, ws, &ws->gate));
    return s->r4 ? dq_hadamard_apply(s->r4, 1, &ws->gate) : DQ_OK;
}

/* Where the quantized input of down_proj goes: `up` is free once the activation is computed. */
static dq_tensor *down_input(dq_workspace *ws) { return ws->rounds ? &ws->act : &ws->up; }

dq_status dq_block_mlp_out(const dq_block_spec *s, const dq_block *b, dq_workspace *ws, dq_tensor *h)
{
    dq_tensor slice;
    const dq_tensor *x;
    DQ_TRY(check_rows(h, ws));
    if (reads_codes(b, DQ_CLIP_DOWN))
        DQ_TRY(code_input(s, b, DQ_CLIP_DOWN, "down_proj input", &ws->gate, ws, &slice, &x));
    else
        DQ_TRY(quantize(&s->scheme.a, b, DQ_CLIP_DOWN, "down_proj input", &ws->gate, down_input(ws), &x));
    return multiply(s, &b->linear[DQ_BLOCK_DOWN], x, ws, true, h);
}

/* The input of down_proj from ws.gate before R4, as its product reads it. */
static dq_status rotated_input(const dq_block_spec *s, const dq_block *b, dq_workspace *ws, dq_tensor *slice,
                               const dq_tensor **out)
{
    static const char what[] = "down_proj input";
    dq_act_spec own = own_spec(&s->scheme.a, b, DQ_CLIP_DOWN);
    dq_tensor grid;
    if (!reads_codes(b, DQ_CLIP_DOWN))
        return dq_hadamard_quant_apply(s->r4, &own, what, &ws->gate, down_input(ws), out);
    DQ_TRY(place_codes(ws, &ws->gate, slice, &grid));
    *out = slice;
    return dq_hadamard_rows_apply(s->r4, &own, what, &ws->gate, slice, &grid);
}

/* mlp_in, mlp and mlp_out in a row. */
static dq_status mlp_forward(const dq_block_spec *s, const dq_block *b, dq_workspace *ws, dq_tensor *h)
{
    dq_tensor slice;
    const dq_tensor *x;
    if (ws->rounds && s->scheme.a.bits >= 16 && !s->r4) {
        DQ_TRY(activated_from(s, b, h, ws, &ws->act));
        x = &ws->act;
    } else {
        DQ_TRY(activated_from(s, b, h, ws, &ws->gate));
        DQ_TRY(rotated_input(s, b, ws, &slice, &x));
    }
    return multiply(s, &b->linear[DQ_BLOCK_DOWN], x, ws, true, h);
}

dq_status dq_block_forward(const dq_block_spec *s, const dq_block *b, dq_workspace *ws, dq_tensor *h)
{
    bool o_alone = ws->rounds && s->scheme.a.bits >= 16 && !s->r2_heads && !b->cache;
    dq_tensor o = o_alone ? dq_tensor_slice(&ws->xq, 0, h->view.rows, 0, ws->a.view.cols)
                          : dq_tensor_rows(&ws->a, 0, h->view.rows);
    DQ_TRY(attention_from(s, b, h, ws, &o)); /* which needs its input no more when it writes */
    DQ_TRY(dq_block_attn_out(s, b, &o, ws, h));
    int64_t step = ws->gate.view.rows;
    if (step < 1) return dq_fail(DQ_E_INTERNAL, "block: a workspace without room for the MLP");
    for (int64_t r = 0; r < h->view.rows; r += step) {
        int64_t rows = h->view.rows - r < step ? h->view.rows - r : step;
        dq_tensor part = dq_tensor_rows(h, r, rows);
        dq_workspace cut = dq_workspace_rows(ws, rows);
        DQ_TRY(mlp_forward(s, b, &cut, &part));
    }
    return DQ_OK;
}
