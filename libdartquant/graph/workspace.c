/* Scratch memory of a block. SPDX-License-Identifier: Apache-2.0 */
#include <string.h>

#include "base/status.h"
#include "graph/block.h"

dq_status dq_workspace_alloc(dq_device *dev, const dq_block_spec *spec, int64_t rows, dq_workspace *out)
{
    if (rows <= 0 || rows % spec->seqlen != 0)
        return dq_fail(DQ_E_INVALID, "a workspace of %lld tokens is not a whole number of sequences of %lld",
                       (long long)rows, (long long)spec->seqlen);
    int64_t heads = (int64_t)spec->heads * spec->head_dim;
    int64_t kv = (int64_t)spec->kv_heads * spec->head_dim;
    bool quantized = spec->scheme.a.bits < 16;
    dq_workspace ws;
    dq_status status;
    memset(&ws, 0, sizeof ws);
    DQ_GO(dq_tensor_alloc(dev, DQ_F32, rows, spec->hidden, &ws.x));
    if (quantized) DQ_GO(dq_tensor_alloc(dev, DQ_F32, rows, heads > spec->hidden ? heads : spec->hidden, &ws.xq));
    DQ_GO(dq_tensor_alloc(dev, DQ_F32, rows, heads, &ws.q));
    DQ_GO(dq_tensor_alloc(dev, DQ_F32, rows, kv, &ws.k));
    DQ_GO(dq_tensor_alloc(dev, DQ_F32, rows, kv, &ws.v));
    DQ_GO(dq_tensor_alloc(dev, DQ_F32, rows, heads, &ws.a));
    DQ_GO(dq_tensor_alloc(dev, DQ_F32, rows, spec->intermediate, &ws.gate));
    DQ_GO(dq_tensor_alloc(dev, DQ_F32, rows, spec->intermediate, &ws.up));
    *out = ws;
    return DQ_OK;
done:
    dq_workspace_free(&ws);
    return status;
}

void dq_workspace_free(dq_workspace *ws)
{
    dq_tensor *all[] = {&ws->x, &ws->xq, &ws->q, &ws->k, &ws->v, &ws->a, &ws->gate, &ws->up};
    for (size_t i = 0; i < sizeof all / sizeof *all; i++) dq_tensor_free(all[i]);
}

void dq_block_free(dq_block *block)
{
    dq_tensor_free(&block->attn_norm);
    dq_tensor_free(&block->mlp_norm);
    for (int i = 0; i < DQ_BLOCK_LINEARS; i++) {
        dq_tensor_free(&block->linear[i].weight);
        dq_tensor_free(&block->linear[i].bias);
    }
}
