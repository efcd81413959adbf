/* Scratch memory of a block. SPDX-License-Identifier: Apache-2.0 */
#include <string.h>

#include "base/status.h"
#include "graph/block.h"

/* gate and up take no more memory than the layer's weights: 2 rows * inter <= 3 hidden * inter, in whole steps that keep the
 * products efficient. The cut depends on the shape alone. */
enum { MLP_STEP = 512, MLP_LEAST = 1024 };

static int64_t piece_rows(const dq_block_spec *spec, int64_t rows)
{
    int64_t most = spec->hidden * 3 / 2 / MLP_STEP * MLP_STEP;
    if (most < MLP_LEAST) most = MLP_LEAST;
    return rows < most ? rows : most;
}

dq_workspace dq_workspace_rows(const dq_workspace *ws, int64_t rows)
{
    dq_workspace cut = *ws;
    dq_tensor *all[] = {&cut.x,  &cut.xq,  &cut.q,   &cut.k,       &cut.v,     &cut.a,   &cut.gate,
                        &cut.up, &cut.act, &cut.qkv, &cut.gate_up, &cut.codes, &cut.grid};
    for (size_t i = 0; i < sizeof all / sizeof *all; i++)
        if (!dq_tensor_is_empty(all[i]))
            *all[i] = dq_tensor_rows(all[i], 0, rows < all[i]->view.rows ? rows : all[i]->view.rows);
    return cut;
}

static dq_status alloc_attention(dq_device *dev, const dq_block_spec *spec, int64_t rows, bool joined, dq_workspace *ws)
{
    int64_t heads = (int64_t)spec->heads * spec->head_dim;
    int64_t kv = (int64_t)spec->kv_heads * spec->head_dim;
    DQ_TRY(dq_tensor_alloc(dev, DQ_F32, rows, heads, &ws->a));
    if (joined) {
        DQ_TRY(dq_tensor_alloc(dev, DQ_F32, rows, heads + 2 * kv, &ws->qkv));
        ws->q = dq_tensor_slice(&ws->qkv, 0, rows, 0, heads);
        ws->k = dq_tensor_slice(&ws->qkv, 0, rows, heads, kv);
        ws->v = dq_tensor_slice(&ws->qkv, 0, rows, heads + kv, kv);
        return DQ_OK;
    }
    DQ_TRY(dq_tensor_alloc(dev, DQ_F32, rows, heads, &ws->q));
    DQ_TRY(dq_tensor_alloc(dev, DQ_F32, rows, kv, &ws->k));
    return dq_tensor_alloc(dev, DQ_F32, rows, kv, &ws->v);
}

static dq_status alloc_mlp(dq_device *dev, const dq_block_spec *spec, int64_t rows, bool joined, dq_workspace *ws)
{
    if (joined) {
        DQ_TRY(dq_tensor_alloc(dev, DQ_F32, rows, 2 * spec->intermediate, &ws->gate_up));
        ws->gate = dq_tensor_slice(&ws->gate_up, 0, rows, 0, spec->intermediate);
        ws->up = dq_tensor_slice(&ws->gate_up, 0, rows, spec->intermediate, spec->intermediate);
        return DQ_OK;
    }
    DQ_TRY(dq_tensor_alloc(dev, DQ_F32, rows, spec->intermediate, &ws->gate));
    return dq_tensor_alloc(dev, DQ_F32, rows, spec->intermediate, &ws->up);
}

static dq_status alloc_codes(dq_device *dev, const dq_block_spec *spec, int64_t rows, dq_workspace *ws)
{
    int64_t widest = (int64_t)spec->heads * spec->head_dim;
    if (widest < spec->hidden) widest = spec->hidden;
    if (widest < spec->intermediate) widest = spec->intermediate;
    DQ_TRY(dq_tensor_alloc(dev, DQ_I8, rows, widest, &ws->codes));
    return dq_tensor_alloc(dev, DQ_F32, rows, 3, &ws->grid);
}

/* mlp_rows: of gate and up, 0 = none. */
static dq_status alloc(dq_device *dev, const dq_block_spec *spec, int64_t rows, bool attention, int64_t mlp_rows,
                       bool joined, dq_workspace *out)
{
    if (rows <= 0 || (attention && rows % spec->seqlen != 0))
        return dq_fail(DQ_E_INVALID, "a workspace of %lld tokens is not a whole number of sequences of %lld",
                       (long long)rows, (long long)spec->seqlen);
    int64_t heads = (int64_t)spec->heads * spec->head_dim;
    dq_workspace ws;
    dq_status status;
    memset(&ws, 0, sizeof ws);
    ws.rounds = !joined && (spec->math & DQ_MATH_BF16) && dq_device_rounds_inputs(dev);
    bool quantized = spec->scheme.a.bits < 16;
    DQ_GO(dq_tensor_alloc(dev, DQ_F32, rows, spec->hidden, &ws.x));
    if (quantized || ws.rounds)
        DQ_GO(dq_tensor_alloc(dev, ws.rounds ? DQ_BF16 : DQ_F32, rows, heads > spec->hidden ? heads : spec->hidden,
                              &ws.xq));
    if (attention) DQ_GO(alloc_attention(dev, spec, rows, joined, &ws));
    if (mlp_rows > 0) DQ_GO(alloc_mlp(dev, spec, mlp_rows, joined, &ws));
    if (mlp_rows > 0 && ws.rounds &&
        (quantized || attention)) /* stages of an MLP alone leave rounding to the product */
        DQ_GO(dq_tensor_alloc(dev, DQ_BF16, mlp_rows, spec->intermediate, &ws.act));
    if (spec->codes) DQ_GO(alloc_codes(dev, spec, rows, &ws));
    *out = ws;
    return DQ_OK;
done:
    dq_workspace_free(&ws);
    return status;
}

dq_status dq_workspace_alloc(dq_device *dev, const dq_block_spec *spec, int64_t rows, dq_workspace *out)
{
    return alloc(dev, spec, rows, true, rows, false, out);
}

dq_status dq_workspace_alloc_forward(dq_device *dev, const dq_block_spec *spec, int64_t rows, dq_workspace *out)
{
    return alloc(dev, spec, rows, true, piece_rows(spec, rows), false, out);
}

dq_status dq_workspace_alloc_joined(dq_device *dev, const dq_block_spec *spec, int64_t rows, dq_workspace *out)
{
    return alloc(dev, spec, rows, true, piece_rows(spec, rows), true, out);
}

dq_status dq_workspace_alloc_attention(dq_device *dev, const dq_block_spec *spec, int64_t rows, dq_workspace *out)
{
    return alloc(dev, spec, rows, true, 0, false, out);
}

dq_status dq_workspace_alloc_mlp(dq_device *dev, const dq_block_spec *spec, int64_t rows, dq_workspace *out)
{
    return alloc(dev, spec, rows, false, rows, false, out);
}

void dq_workspace_free(dq_workspace *ws)
{
    dq_tensor *all[] = {&ws->x,  &ws->xq,  &ws->q,   &ws->k,       &ws->v,     &ws->a,   &ws->gate,
                        &ws->up, &ws->act, &ws->qkv, &ws->gate_up, &ws->codes, &ws->grid};
    for (size_t i = 0; i < sizeof all / sizeof *all; i++) dq_tensor_free(all[i]);
}

void dq_packed_weight_free(dq_packed_weight *w)
{
    dq_tensor_free(&w->codes);
    dq_tensor_free(&w->scale);
    dq_tensor_free(&w->zero);
    dq_tensor_free(&w->order);
}

void dq_int8_weight_free(dq_int8_weight *w)
{
    dq_tensor_free(&w->codes);
    dq_tensor_free(&w->grid);
}

void dq_linear_free(dq_linear *l)
{
    dq_tensor_free(&l->weight);
    dq_tensor_free(&l->bias);
    dq_packed_weight_free(&l->packed);
    dq_int8_weight_free(&l->int8);
}

void dq_block_free(dq_block *block)
{
    dq_tensor_free(&block->attn_norm);
    dq_tensor_free(&block->mlp_norm);
    dq_tensor_free(&block->q_norm);
    dq_tensor_free(&block->k_norm);
    dq_tensor_free(&block->attn_norm_bias);
    dq_tensor_free(&block->mlp_norm_bias);
    for (int i = 0; i < DQ_BLOCK_LINEARS; i++) dq_linear_free(&block->linear[i]);
    dq_linear_free(&block->qkv);
    dq_linear_free(&block->gate_up);
    dq_tensor_free(&block->levels.k_range);
    dq_tensor_free(&block->levels.k);
    dq_tensor_free(&block->levels.v);
}
