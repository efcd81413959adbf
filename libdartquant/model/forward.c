/* What a run of a model needs besides its weights, and logits of a short sequence. SPDX-License-Identifier: Apache-2.0 */
#include <string.h>

#include "base/status.h"
#include "model/internal.h"

enum { HEAD_ROWS = 8192 };

static const dq_hadamard *present(const dq_hadamard *h) { return h->n > 0 ? h : NULL; }

static dq_status upload_rope(dq_model *model, int64_t seqlen, dq_block_spec *spec)
{
    int64_t half = model->arch.head_dim / 2;
    size_t elements, bytes;
    if (dq_arch_learns_positions(&model->arch)) return DQ_OK;
    if (!dq_mul_ok((size_t)seqlen, (size_t)half, &elements) || !dq_mul_ok(elements, 2 * sizeof(float), &bytes))
        return dq_fail(DQ_E_NOMEM, "RoPE tables of %lld positions overflow", (long long)seqlen);
    float *table = dq_alloc(model->env, bytes);
    if (!table) return DQ_E_NOMEM;
    dq_arch_rope_table(&model->arch, dq_model_root(model)->rope_divisor, seqlen, table, table + elements);
    dq_status status = dq_tensor_from_host(model->dev, DQ_F32, seqlen, half, table, &spec->cos);
    if (status == DQ_OK) status = dq_tensor_from_host(model->dev, DQ_F32, seqlen, half, table + elements, &spec->sin);
    dq_free(table);
    return status;
}

dq_status dq_model_block_spec(dq_model *model, int64_t seqlen, int math, dq_block_spec *out)
{
    const dq_arch *a = &model->arch;
    const dq_rotation_set *r = model->rotations;
    dq_block_spec spec;
    dq_status status;
    if (seqlen < 1) return dq_fail(DQ_E_INVALID, "sequences of %lld tokens", (long long)seqlen);
    if (dq_arch_learns_positions(a) && seqlen > a->max_positions)
        return dq_fail(DQ_E_INVALID, "sequences of %lld tokens, but the model has learned %lld positions",
                       (long long)seqlen, (long long)a->max_positions);
    memset(&spec, 0, sizeof spec);
    spec.hidden = a->hidden;
    spec.intermediate = a->intermediate;
    spec.seqlen = seqlen;
    spec.heads = (int)a->heads;
    spec.kv_heads = (int)a->kv_heads;
    spec.head_dim = (int)a->head_dim;
    spec.window = (int)a->window;
    spec.norm_eps = a->norm_eps;
    spec.layer_norm = model->layer_norm;
    spec.activation = a->activation;
    spec.no_gate = !dq_arch_is_gated(a);
    spec.math = math & ~DQ_MATH_CODES;
    if (model->scheme)
        spec.scheme = *model->scheme;
    else
        spec.scheme.w.bits = spec.scheme.a.bits = spec.scheme.k.bits = spec.scheme.v.bits = 16;
    if (r) {
        /* Turning queries and keys alike leaves their products as they are: only quantized keys gain from it, and not
         * those whose channels have ranges of their own (KVQuant), which are quantized before RoPE. */
        if (spec.scheme.k.bits < 16 && !spec.scheme.kvquant.on) spec.r3 = present(&r->r3);
        spec.r4 = present(&r->r4);
        spec.r2_heads = r->r2_mode == DQ_R2_ONLINE ? present(&r->r2_heads) : NULL;
    }
    spec.codes = (math & DQ_MATH_CODES) && spec.scheme.a.bits <= 8 && spec.scheme.a.group <= 0 &&
                 dq_device_has_integers(model->dev);
    DQ_GO(dq_block_spec_check(&spec));
    DQ_GO(upload_rope(model, seqlen, &spec));
    *out = spec;
    return DQ_OK;
done:
    dq_block_spec_clear(&spec);
    return status;
}

void dq_block_spec_clear(dq_block_spec *spec)
{
    dq_tensor_free(&spec->cos);
    dq_tensor_free(&spec->sin);
}

/* Runs h through all blocks and the final norm. */
static dq_status run_layers(dq_model *model, const dq_block_spec *spec, dq_tensor *h)
{
    dq_workspace ws;
    dq_block block;
    dq_status status;
    memset(&ws, 0, sizeof ws);
    memset(&block, 0, sizeof block);
    DQ_GO(dq_workspace_alloc_forward(model->dev, spec, h->view.rows, &ws));
    for (int64_t layer = 0; layer < model->arch.layers; layer++) {
        DQ_GO(dq_model_load_forward(model, layer, spec, &block));
        DQ_GO(dq_block_forward(spec, &block, &ws, h));
        dq_block_free(&block);
    }
    status = dq_model_final_norm(model, spec, h);
done:
    dq_block_free(&block);
    dq_workspace_free(&ws);
    return status;
}

/* Logits of one tile of the vocabulary into columns [first, first + rows) of out. */
static dq_status head_tile(dq_model *model, const dq_tensor *h, int64_t first, int64_t rows, int math, float *out)
{
    int64_t count = h->view.rows, vocab = model->arch.vocab;
    dq_tensor w = {0}, logits = {0};
    dq_status status;
    float *host = dq_alloc(model->env, (size_t)(count * rows) * sizeof *host);
    if (!host) return DQ_E_NOMEM;
    DQ_GO(dq_model_read_head(model, first, rows, math, &w));
    DQ_GO(dq_tensor_alloc(model->dev, DQ_F32, count, rows, &logits));
    DQ_GO(dq_op_gemm(false, true, 1.0, h, &w, 0.0, &logits, math));
    DQ_GO(dq_tensor_download(&logits, host));
    for (int64_t i = 0; i < count; i++) memcpy(out + i * vocab + first, host + i * rows, (size_t)rows * sizeof *host);
done:
    dq_free(host);
    dq_tensor_free(&w);
    dq_tensor_free(&logits);
    return status;
}

dq_status dq_model_forward_logits(dq_model *model, const int32_t *ids, int64_t count, int math, float *out)
{
    dq_block_spec spec;
    dq_tensor h = {0};
    dq_status status;
    if (count < 1) return dq_fail(DQ_E_INVALID, "logits of no tokens");
    DQ_TRY(dq_model_block_spec(model, count, math, &spec));
    DQ_GO(dq_tensor_alloc(model->dev, DQ_F32, count, model->arch.hidden, &h));
    DQ_GO(dq_model_embed(model, ids, count, count, &h));
    DQ_GO(run_layers(model, &spec, &h));
    for (int64_t first = 0; first < model->arch.vocab; first += HEAD_ROWS) {
        int64_t left = model->arch.vocab - first;
        DQ_GO(head_tile(model, &h, first, left < HEAD_ROWS ? left : HEAD_ROWS, spec.math, out));
    }
done:
    dq_tensor_free(&h);
    dq_block_spec_clear(&spec);
    return status;
}
