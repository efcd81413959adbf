/* Loading a model for generation. SPDX-License-Identifier: Apache-2.0 */
#include "generate/resident.h"

#include <string.h>

#include "base/status.h"
#include "generate/pack.h"

enum { TILE_ROWS = 8192, INT8_RUN = 32 /* columns: dq_packed_desc */ };

dq_status dq_resident_new(dq_model *model, int head_bits, dq_resident **out)
{
    const dq_arch *a = dq_model_arch(model);
    dq_env *env = dq_device_env(dq_model_device(model));
    if (head_bits != 8 && head_bits != 16)
        return dq_fail(DQ_E_INVALID, "head of %d bits, 8 or 16 are possible", head_bits);
    dq_resident *r = dq_calloc(env, 1, sizeof *r);
    if (!r) return DQ_E_NOMEM;
    r->model = dq_model_retain(model);
    r->env = env;
    r->head_bits = head_bits;
    r->arena.dev = dq_model_device(model);
    r->layers = a->layers;
    r->tiles = (a->vocab + TILE_ROWS - 1) / TILE_ROWS;
    r->blocks = dq_calloc(env, (size_t)r->layers, sizeof *r->blocks);
    r->head = dq_calloc(env, (size_t)r->tiles, sizeof *r->head);
    bool own_embed = dq_model_transforms_rows(model);
    if (own_embed) r->embed = dq_calloc(env, (size_t)r->tiles, sizeof *r->embed);
    if (!r->blocks || !r->head || (own_embed && !r->embed)) {
        dq_resident_free(r);
        return DQ_E_NOMEM;
    }
    *out = r;
    return DQ_OK;
}

void dq_resident_free(dq_resident *r)
{
    if (!r) return;
    for (int64_t i = 0; r->blocks && i < r->layers; i++) dq_block_free(&r->blocks[i]);
    for (int64_t i = 0; r->head && i < r->tiles; i++) dq_linear_free(&r->head[i]);
    for (int64_t i = 0; r->embed && i < r->tiles; i++) dq_tensor_free(&r->embed[i]);
    dq_tensor_free(&r->norm);
    dq_tensor_free(&r->norm_bias);
    dq_tensor_free(&r->positions);
    dq_arena_free(&r->arena);
    dq_free(r->blocks);
    dq_free(r->head);
    dq_free(r->embed);
    dq_model_release(r->model);
    dq_free(r);
}

/* ---- loading ---- */

/* Codes of a quantized model, or blocks of codes in the file. */
static dq_status read_packed(dq_resident *r, int64_t layer, dq_role role, dq_host_packed *out, bool *packed)
{
    dq_codes codes = {0};
    dq_host_codes host = {0};
    float *minimum = NULL;
    int64_t rows, cols;
    bool found = true;
    dq_status status;
    *packed = false;
    if (dq_model_has_codes(r->model, layer, role)) {
        DQ_GO(dq_model_read_codes(r->model, layer, role, &codes));
        DQ_GO(dq_codes_to_host(r->env, &codes, &host));
        dq_codes_free(&codes);
    } else {
        dq_arch_shape(dq_model_arch(r->model), role, &rows, &cols);
        DQ_GO(dq_model_read_blocks(r->model, layer, role, 0, rows, &host, &minimum, &found));
    }
    if (found) DQ_GO(dq_pack_codes(&host, minimum, out, packed));
done:
    dq_host_codes_free(&host);
    dq_free(minimum);
    dq_codes_free(&codes);
    return status;
}

static dq_status load_alone(dq_resident *r, int64_t layer, dq_role role, const dq_host_packed *p, bool packed,
                            dq_linear *l)
{
    if (packed) {
        DQ_TRY(dq_pack_upload(&r->arena, p, 1, &l->packed));
        return dq_model_read_bias(r->model, layer, role, &l->bias);
    }
    DQ_TRY(dq_model_read_linear(r->model, layer, role, l));
    return dq_narrow_exact(&l->weight);
}

/* The biases of linears [first, first + count) behind each other; stays empty where they have none. */
static dq_status join_biases(dq_resident *r, int64_t layer, int first, int count, dq_tensor *out)
{
    const dq_arch *a = dq_model_arch(r->model);
    int64_t rows[3], cols, total = 0;
    dq_status status = DQ_OK;
    dq_tensor all = {0}, bias = {0};
    if (!dq_arch_has_bias(a, (dq_role)first)) return DQ_OK;
    for (int i = 0; i < count; total += rows[i++]) dq_arch_shape(a, (dq_role)(first + i), &rows[i], &cols);
    DQ_GO(dq_tensor_alloc(dq_model_device(r->model), DQ_F32, 1, total, &all));
    for (int i = 0, at = 0; i < count; at += (int)rows[i++]) {
        dq_tensor part = dq_tensor_slice(&all, 0, 1, at, rows[i]);
        DQ_GO(dq_model_read_bias(r->model, layer, (dq_role)(first + i), &bias));
        DQ_GO(dq_op_convert(&bias, &part));
        dq_tensor_free(&bias);
    }
    *out = all;
    all = (dq_tensor){0};
done:
    dq_tensor_free(&bias);
    dq_tensor_free(&all);
    return status;
}

/* Linears [first, first + count) read the same input: one op for all where their codes allow. */
static dq_status load_group(dq_resident *r, int64_t layer, int first, int count, dq_block *b, dq_linear *joined)
{
    const dq_arch *a = dq_model_arch(r->model);
    dq_host_packed parts[3] = {{0}};
    bool packed[3] = {false}, join = joined != NULL;
    dq_status status;
    for (int i = 0; i < count; i++) {
        dq_role role = (dq_role)(first + i);
        DQ_GO(read_packed(r, layer, role, &parts[i], &packed[i]));
        join = join && packed[i] && dq_packs_join(&parts[0], &parts[i]) &&
               dq_arch_has_bias(a, role) == dq_arch_has_bias(a, (dq_role)first);
    }
    if (join) {
        DQ_GO(dq_pack_upload(&r->arena, parts, count, &joined->packed));
        DQ_GO(join_biases(r, layer, first, count, &joined->bias));
    } else {
        for (int i = 0; i < count; i++)
            DQ_GO(load_alone(r, layer, (dq_role)(first + i), &parts[i], packed[i], &b->linear[first + i]));
    }
done:
    for (int i = 0; i < count; i++) dq_host_packed_free(&parts[i]);
    return status;
}

static dq_status load_layer(dq_resident *r, int64_t layer)
{
    dq_block b;
    dq_status status;
    DQ_TRY(dq_model_load_frame(r->model, layer, &b));
    DQ_GO(load_group(r, layer, DQ_BLOCK_Q, 3, &b, &b.qkv));
    DQ_GO(load_group(r, layer, DQ_BLOCK_O, 1, &b, NULL));
    if (dq_arch_is_gated(dq_model_arch(r->model)))
        DQ_GO(load_group(r, layer, DQ_BLOCK_GATE, 2, &b, &b.gate_up));
    else
        DQ_GO(load_group(r, layer, DQ_BLOCK_UP, 1, &b, NULL));
    DQ_GO(load_group(r, layer, DQ_BLOCK_DOWN, 1, &b, NULL));
    for (int i = 0; i < DQ_BLOCK_LINEARS; i++) r->bytes += dq_linear_bytes(&b.linear[i]);
    r->bytes += dq_linear_bytes(&b.qkv) + dq_linear_bytes(&b.gate_up);
    r->blocks[layer] = b;
    r->loaded++;
    return DQ_OK;
done:
    dq_block_free(&b);
    return status;
}

/* The head's rows: blocks of codes as they are, or rounded to codes where asked for, or the narrowest exact type. */
static dq_status load_head(dq_resident *r, int64_t first, int64_t rows, dq_linear *l)
{
    dq_host_codes codes = {0};
    dq_host_packed p = {0};
    float *minimum = NULL;
    bool found = false, packed = false;
    dq_status status;
    DQ_GO(dq_model_read_blocks(r->model, 0, DQ_HEAD, first, rows, &codes, &minimum, &found));
    if (found) DQ_GO(dq_pack_codes(&codes, minimum, &p, &packed));
    if (!packed) {
        DQ_GO(dq_model_read_rows(r->model, DQ_HEAD, first, rows, &l->weight));
        if (r->head_bits == 8) DQ_GO(dq_pack_rows8(&l->weight, &p));
        packed = r->head_bits == 8;
    }
    if (packed) {
        dq_tensor_free(&l->weight);
        status = dq_pack_upload(&r->arena, &p, 1, &l->packed);
    } else {
        status = dq_narrow_exact(&l->weight);
    }
done:
    dq_host_codes_free(&codes);
    dq_host_packed_free(&p);
    dq_free(minimum);
    return status;
}

static dq_status load_tile(dq_resident *r, int64_t tile)
{
    int64_t first = tile * TILE_ROWS, left = dq_model_arch(r->model)->vocab - first;
    int64_t rows = left < TILE_ROWS ? left : TILE_ROWS;
    dq_linear l = {0};
    dq_tensor embed = {0};
    dq_status status;
    DQ_GO(load_head(r, first, rows, &l));
    if (r->embed) {
        DQ_GO(dq_model_read_rows(r->model, DQ_EMBED, first, rows, &embed));
        DQ_GO(dq_narrow_exact(&embed));
        r->bytes += dq_linear_bytes(&(dq_linear){.weight = embed});
        r->embed[tile] = embed;
        embed = (dq_tensor){0};
    }
    r->bytes += dq_linear_bytes(&l);
    r->head[tile] = l;
    l = (dq_linear){0};
    r->head_loaded++;
done:
    dq_tensor_free(&embed);
    dq_linear_free(&l);
    return status;
}

/* Final norm and positions. What was read before a failure is read again. */
static dq_status load_ends(dq_resident *r)
{
    const dq_arch *a = dq_model_arch(r->model);
    dq_tensor_free(&r->norm);
    dq_tensor_free(&r->norm_bias);
    DQ_TRY(dq_model_read_norm(r->model, 0, DQ_FINAL_NORM, &r->norm)); /* stays empty where it is fused */
    DQ_TRY(dq_model_read_norm_bias(r->model, 0, DQ_FINAL_NORM, &r->norm_bias));
    if (!dq_arch_learns_positions(a)) return DQ_OK;
    return dq_model_read_rows(r->model, DQ_POSITIONS, DQ_POSITION_OFFSET, a->max_positions, &r->positions);
}

int64_t dq_resident_steps(const dq_resident *r) { return r->layers + r->tiles; }

dq_status dq_resident_load(dq_resident *r, bool *done)
{
    if (r->loaded < r->layers)
        DQ_TRY(load_layer(r, r->loaded));
    else if (r->head_loaded < r->tiles)
        DQ_TRY(load_tile(r, r->head_loaded));
    if (r->loaded == r->layers && r->head_loaded == r->tiles && !r->ready) {
        DQ_TRY(load_ends(r));
        r->ready = true;
    }
    *done = r->ready;
    return DQ_OK;
}

static void count_int8(const dq_linear *l, dq_int8_linears *n)
{
    if (dq_linear_is_empty(l)) return;
    if (dq_tensor_is_empty(&l->packed.codes))
        n->plain++;
    else if (l->packed.group % INT8_RUN == 0 || l->packed.scale.view.cols == 1)
        n->possible++;
    else
        n->uneven++;
}

dq_int8_linears dq_resident_int8(const dq_resident *r)
{
    dq_int8_linears n = {0}, head = {0};
    for (int64_t l = 0; l < r->layers; l++) {
        for (int i = 0; i < DQ_BLOCK_LINEARS; i++) count_int8(&r->blocks[l].linear[i], &n);
        count_int8(&r->blocks[l].qkv, &n);
        count_int8(&r->blocks[l].gate_up, &n);
    }
    for (int64_t i = 0; i < r->tiles; i++) count_int8(&r->head[i], &head);
    n.head = head.possible > 0;
    return n;
}

/* ---- the two ends ---- */

/* Where the rows of the embedding stand, one table per tile; NULL = not in memory. */
static const dq_tensor *table_of(const dq_resident *r, int64_t tile)
{
    if (r->embed) return &r->embed[tile];
    const dq_tensor *rows = &r->head[tile].weight;
    return dq_model_arch(r->model)->tied && !dq_tensor_is_empty(rows) ? rows : NULL;
}

dq_status dq_resident_embed(dq_resident *r, const int32_t *ids, int64_t count, dq_tensor *h)
{
    if (!table_of(r, 0)) return dq_model_embed_tokens(r->model, ids, count, h);
    for (int64_t i = 0; i < count; i++) {
        dq_tensor from = dq_tensor_rows(table_of(r, ids[i] / TILE_ROWS), ids[i] % TILE_ROWS, 1);
        dq_tensor to = dq_tensor_rows(h, i, 1);
        DQ_TRY(dq_op_convert(&from, &to));
    }
    return DQ_OK;
}

dq_status dq_resident_logits(dq_resident *r, const dq_tensor *x, int math, float *out)
{
    int64_t vocab = dq_model_arch(r->model)->vocab, rows = x->view.rows;
    dq_tensor logits = {0};
    DQ_TRY(dq_tensor_alloc(x->dev, DQ_F32, rows, vocab, &logits));
    dq_status status = DQ_OK;
    for (int64_t tile = 0; status == DQ_OK && tile < r->tiles; tile++) {
        int64_t first = tile * TILE_ROWS, n = vocab - first < TILE_ROWS ? vocab - first : TILE_ROWS;
        dq_tensor part = dq_tensor_slice(&logits, 0, rows, first, n);
        status = dq_linear_forward(&r->head[tile], x, false, math, &part);
    }
    if (status == DQ_OK) status = dq_tensor_download(&logits, out);
    dq_tensor_free(&logits);
    return status;
}
