/* Walking the calibration windows through one layer. SPDX-License-Identifier: Apache-2.0 */
#include "quant/walk.h"

#include <string.h>

#include "base/progress.h"
#include "base/status.h"

enum { CHUNK_TOKENS = 2048 };

/* ---- chunks ---- */

typedef struct chunk {
    int64_t first, rows;
    dq_tensor hidden;
    dq_workspace ws; /* slices */
} chunk;

static int64_t rows_at(const dq_walk *w, int64_t first)
{
    return w->tokens - first < w->chunk ? w->tokens - first : w->chunk;
}

static dq_status chunk_at(dq_walk *w, int64_t first, chunk *out)
{
    *out = (chunk){.first = first, .rows = rows_at(w, first)};
    out->ws = dq_workspace_rows(&w->ws, out->rows);
    return dq_hidden_take(&w->hidden, first, out->rows, true, &out->hidden);
}

/* Puts `slot` on the chunk's place in `kept` when there is one; false: the workspace holds it, until the next chunk. */
static bool place_in_kept(const dq_walk *w, const chunk *c, dq_tensor *slot)
{
    int64_t cols = slot->view.cols, rows = dq_tensor_is_empty(&w->kept) ? 0 : w->kept.view.cols / cols;
    if (c->first + c->rows > rows) return false;
    dq_tensor all = w->kept;
    all.owns = false;
    all.view.rows = rows;
    all.view.cols = all.view.stride = cols;
    *slot = dq_tensor_rows(&all, c->first, c->rows);
    return true;
}

/* ---- what happens to a chunk ---- */

typedef dq_status (*chunk_fn)(dq_walk *w, const dq_block *b, chunk *c, const dq_tensor **input);

static dq_status attn_in(dq_walk *w, const dq_block *b, chunk *c, const dq_tensor **input)
{
    *input = &c->ws.x;
    return dq_block_attn_in(&w->spec, b, &c->hidden, &c->ws);
}

static dq_status attn(dq_walk *w, const dq_block *b, chunk *c, const dq_tensor **input)
{
    place_in_kept(w, c, &c->ws.a);
    *input = &c->ws.a;
    return dq_block_to_attn(&w->spec, b, &c->hidden, &c->ws);
}

static dq_status mlp_in(dq_walk *w, const dq_block *b, chunk *c, const dq_tensor **input)
{
    if (!place_in_kept(w, c, &c->ws.a)) {
        DQ_TRY(dq_block_to_attn(&w->spec, b, &c->hidden, &c->ws));
    }
    DQ_TRY(dq_block_attn_out(&w->spec, b, &c->ws.a, &c->ws, &c->hidden));
    DQ_TRY(dq_hidden_put(&w->hidden, c->first, &c->hidden));
    *input = &c->ws.x;
    return dq_block_mlp_in(&w->spec, b, &c->hidden, &c->ws);
}

static dq_status mlp(dq_walk *w, const dq_block *b, chunk *c, const dq_tensor **input)
{
    place_in_kept(w, c, &c->ws.gate);
    *input = &c->ws.gate;
    return dq_block_to_mlp(&w->spec, b, &c->hidden, &c->ws);
}

static dq_status mlp_out(dq_walk *w, const dq_block *b, chunk *c, const dq_tensor **input)
{
    *input = NULL;
    if (!place_in_kept(w, c, &c->ws.gate)) {
        DQ_TRY(dq_block_to_mlp(&w->spec, b, &c->hidden, &c->ws));
    }
    DQ_TRY(dq_block_mlp_out(&w->spec, b, &c->ws, &c->hidden));
    return dq_hidden_put(&w->hidden, c->first, &c->hidden);
}

/* mean |x| over all tokens, a few rows at a time: |x| = 2 relu(x) - x. */
static dq_status add_magnitude(dq_walk *w, const dq_tensor *x)
{
    enum { ROWS = 256 };
    dq_status status;
    dq_tensor ones = {0}, part = {0};
    DQ_GO(dq_tensor_alloc(w->dev, DQ_F32, ROWS, x->view.cols, &ones));
    DQ_GO(dq_tensor_alloc(w->dev, DQ_F32, ROWS, x->view.cols, &part));
    DQ_GO(dq_op_fill(1.0, &ones));
    for (int64_t r = 0; r < x->view.rows; r += ROWS) {
        int64_t n = x->view.rows - r < ROWS ? x->view.rows - r : ROWS;
        dq_tensor from = dq_tensor_rows(x, r, n), to = dq_tensor_rows(&part, 0, n), one = dq_tensor_rows(&ones, 0, n);
        dq_tensor column = dq_tensor_slice(&ones, 0, n, 0, 1);
        DQ_GO(dq_op_activation(DQ_ACT_RELU, &from, &one, &to));
        DQ_GO(dq_op_axpy(-0.5, &from, &to));
        DQ_GO(dq_op_gemm(true, false, 2.0 / (double)w->tokens, &column, &to, 1.0, w->magnitude, DQ_MATH_F32));
    }
done:
    dq_tensor_free(&ones);
    dq_tensor_free(&part);
    return status;
}

/* h += 2 / nsamples x^T x. Where products round their inputs, x is what they read: rounded, one product of 16 bits instead of
 * the three that fp32 takes on tensor cores. */
static dq_status add_hessian(dq_walk *w, const dq_tensor *x, dq_tensor *h)
{
    double alpha = 2.0 / (double)w->nsamples;
    dq_tensor narrow = {0};
    if (!(w->spec.math & DQ_MATH_BF16) || !dq_device_rounds_inputs(w->dev)) return dq_op_syrk(alpha, x, 1.0, h);
    DQ_TRY(dq_tensor_alloc(w->dev, DQ_BF16, x->view.rows, x->view.cols, &narrow));
    dq_status status = dq_op_convert(x, &narrow);
    if (status == DQ_OK) status = dq_op_syrk(alpha, &narrow, 1.0, h);
    dq_tensor_free(&narrow);
    return status;
}

/* fn over all windows; the input that it names goes into the Hessian. */
static dq_status all_chunks(dq_walk *w, const dq_block *b, chunk_fn fn, dq_tensor *h, dq_walk_tick tick)
{
    for (int64_t first = 0; first < w->tokens; first += w->chunk) {
        chunk c;
        const dq_tensor *input;
        double start = dq_now();
        DQ_TRY(chunk_at(w, first, &c));
        DQ_TRY(fn(w, b, &c, &input));
        double middle = dq_now();
        if (h) DQ_TRY(add_hessian(w, input, h));
        if (h && w->magnitude) DQ_TRY(add_magnitude(w, input));
        w->seconds_forward += middle - start;
        w->seconds_hessian += dq_now() - middle;
        DQ_TRY(tick.fn(tick.arg));
    }
    return DQ_OK;
}

/* Between two passes the solver needs the room that the workspace has during one. */
static dq_status attention_pass(dq_walk *w, const dq_block *b, chunk_fn fn, dq_tensor *h, dq_walk_tick tick)
{
    dq_status status = dq_workspace_alloc_attention(w->dev, &w->spec, w->chunk, &w->ws);
    if (status == DQ_OK) status = all_chunks(w, b, fn, h, tick);
    dq_workspace_free(&w->ws);
    return status;
}

static dq_status mlp_pass(dq_walk *w, const dq_block *b, chunk_fn fn, dq_tensor *h, dq_walk_tick tick)
{
    dq_status status = dq_workspace_alloc_mlp(w->dev, &w->spec, w->chunk, &w->ws);
    if (status == DQ_OK) status = all_chunks(w, b, fn, h, tick);
    dq_workspace_free(&w->ws);
    return status;
}

dq_status dq_walk_qkv(dq_walk *walk, const dq_block *block, dq_tensor *h, dq_walk_tick tick)
{
    return attention_pass(walk, block, attn_in, h, tick);
}

dq_status dq_walk_o(dq_walk *walk, const dq_block *block, dq_tensor *h, dq_walk_tick tick)
{
    return attention_pass(walk, block, attn, h, tick);
}

dq_status dq_walk_gate_up(dq_walk *walk, const dq_block *block, dq_tensor *h, dq_walk_tick tick)
{
    return attention_pass(walk, block, mlp_in, h, tick);
}

dq_status dq_walk_down(dq_walk *walk, const dq_block *block, dq_tensor *h, dq_walk_tick tick)
{
    return mlp_pass(walk, block, mlp, h, tick);
}

dq_status dq_walk_finish(dq_walk *walk, const dq_block *block, dq_walk_tick tick)
{
    return mlp_pass(walk, block, mlp_out, NULL, tick);
}

/* ---- lifetime ---- */

/* Calibration sees full-precision activations; online R2 and R4 stay, R3 changes nothing without K quantization. */
static dq_status make_spec(dq_model *model, int64_t seqlen, int math, dq_block_spec *spec)
{
    DQ_TRY(dq_model_block_spec(model, seqlen, math, spec));
    spec->scheme.a.bits = spec->scheme.k.bits = spec->scheme.v.bits = 16;
    spec->r3 = NULL;
    return DQ_OK;
}

static dq_status make_kept(dq_walk *w, uint64_t budget, uint64_t spare)
{
    const dq_block_spec *s = &w->spec;
    uint64_t left;
    if (!dq_hidden_in_reach(&w->hidden)) {
        DQ_TRY(dq_device_memory_left(w->dev, &left));
        if (left != UINT64_MAX) budget = left > spare ? left - spare : 0;
    }
    int64_t heads = (int64_t)s->heads * s->head_dim;
    int64_t most = w->tokens * (heads > s->intermediate ? heads : s->intermediate);
    int64_t elements = budget / 4 < (uint64_t)most ? (int64_t)(budget / 4) : most;
    if (elements < w->chunk * heads) return DQ_OK; /* not even one chunk */
    dq_status status = dq_tensor_alloc(w->dev, DQ_F32, 1, elements, &w->kept);
    if (status != DQ_E_DEVICE_MEMORY) return status;
    dq_error_reset(); /* what would have been kept is computed again */
    return DQ_OK;
}

dq_status dq_walk_new(dq_model *model, const int32_t *windows, int64_t nsamples, int64_t seqlen, int math,
                      uint64_t budget, uint64_t spare, dq_walk **out)
{
    dq_device *dev = dq_model_device(model);
    dq_env *env = dq_device_env(dev);
    dq_status status;
    int64_t per_chunk = seqlen < CHUNK_TOKENS ? CHUNK_TOKENS / seqlen : 1;
    dq_walk *w = dq_calloc(env, 1, sizeof *w);
    if (!w) return DQ_E_NOMEM;
    w->env = env;
    w->dev = dev;
    w->nsamples = nsamples;
    w->tokens = nsamples * seqlen;
    w->chunk = (per_chunk < nsamples ? per_chunk : nsamples) * seqlen;
    DQ_GO(make_spec(model, seqlen, math, &w->spec));
    const dq_hidden_room room = {.spare = spare, .most = UINT64_MAX, .folder = ""};
    DQ_GO(dq_hidden_open(dev, w->tokens, w->spec.hidden, w->chunk, &room, &w->hidden));
    DQ_GO(make_kept(w, budget, spare));
    for (int64_t first = 0; first < w->tokens; first += w->chunk) {
        dq_tensor part;
        DQ_GO(dq_hidden_take(&w->hidden, first, rows_at(w, first), false, &part));
        DQ_GO(dq_model_embed(model, windows + first, part.view.rows, seqlen, &part));
        DQ_GO(dq_hidden_put(&w->hidden, first, &part));
    }
    *out = w;
    return DQ_OK;
done:
    dq_walk_free(w);
    return status;
}

void dq_walk_free(dq_walk *walk)
{
    if (!walk) return;
    dq_block_spec_clear(&walk->spec);
    dq_workspace_free(&walk->ws);
    dq_hidden_close(&walk->hidden);
    dq_tensor_free(&walk->kept);
    dq_free(walk);
}
