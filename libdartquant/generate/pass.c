/* Tokens through the model, against the caches. SPDX-License-Identifier: Apache-2.0 */
#include <string.h>

#include "base/status.h"
#include "generate/job.h"

/* What the rows of a pass need besides their hidden states. */
typedef struct pass {
    const dq_pass_row *rows;
    int64_t count, wanted;
    dq_block_spec spec; /* with this pass's cos, sin, slot, span and position */
    dq_tensor hidden;
} pass;

static void pass_clear(pass *p)
{
    dq_tensor_free(&p->spec.cos);
    dq_tensor_free(&p->spec.sin);
    dq_tensor_free(&p->spec.slot);
    dq_tensor_free(&p->spec.span);
    dq_tensor_free(&p->spec.position);
    dq_tensor_free(&p->hidden);
}

static dq_status gather_rope(dq_generate_job *j, const dq_tensor *position, pass *p)
{
    dq_device *dev = dq_model_device(j->model);
    int64_t half = j->block.cos.view.cols;
    DQ_TRY(dq_tensor_alloc(dev, DQ_F32, p->count, half, &p->spec.cos));
    DQ_TRY(dq_tensor_alloc(dev, DQ_F32, p->count, half, &p->spec.sin));
    DQ_TRY(dq_op_gather_rows(&j->block.cos, position, &p->spec.cos));
    return dq_op_gather_rows(&j->block.sin, position, &p->spec.sin);
}

static dq_status add_positions(dq_generate_job *j, const dq_tensor *position, dq_tensor *hidden)
{
    dq_tensor rows = {0};
    DQ_TRY(dq_tensor_alloc(hidden->dev, DQ_F32, hidden->view.rows, hidden->view.cols, &rows));
    dq_status status = dq_op_gather_rows(&j->resident->positions, position, &rows);
    if (status == DQ_OK) status = dq_op_axpy(1.0, &rows, hidden);
    dq_tensor_free(&rows);
    return status;
}

/* Slots: sequence s has [s * capacity, (s + 1) * capacity). The rows of `hidden` are there. */
static dq_status place_rows(dq_generate_job *j, pass *p)
{
    dq_device *dev = dq_model_device(j->model);
    int64_t n = p->count, window = j->block.window;
    int32_t *host = dq_alloc(j->env, (size_t)n * 4 * sizeof *host);
    dq_tensor *position = &p->spec.position;
    dq_status status;
    if (!host) return DQ_E_NOMEM;
    int32_t *slot = host + n, *first = host + 2 * n, *seen = host + 3 * n;
    for (int64_t r = 0; r < n; r++) {
        int64_t at = p->rows[r].position, from = window > 0 && at >= window ? at - window + 1 : 0;
        int64_t base = p->rows[r].sequence * j->capacity;
        host[r] = (int32_t)at;
        slot[r] = (int32_t)(base + at);
        first[r] = (int32_t)(base + from);
        seen[r] = (int32_t)(at - from + 1);
    }
    DQ_GO(dq_tensor_from_host(dev, DQ_I32, 1, n, host, position));
    DQ_GO(dq_tensor_from_host(dev, DQ_I32, 1, n, slot, &p->spec.slot));
    DQ_GO(dq_tensor_from_host(dev, DQ_I32, 2, n, first, &p->spec.span));
    status = dq_arch_learns_positions(dq_model_arch(j->model)) ? add_positions(j, position, &p->hidden)
                                                               : gather_rope(j, position, p);
done:
    dq_free(host);
    return status;
}

static dq_status embed(dq_generate_job *j, pass *p)
{
    int32_t *ids = dq_alloc(j->env, (size_t)p->count * sizeof *ids);
    if (!ids) return DQ_E_NOMEM;
    for (int64_t r = 0; r < p->count; r++) ids[r] = p->rows[r].id;
    dq_status status =
        dq_tensor_alloc(dq_model_device(j->model), DQ_F32, p->count, dq_model_arch(j->model)->hidden, &p->hidden);
    if (status == DQ_OK) status = dq_resident_embed(j->resident, ids, p->count, &p->hidden);
    dq_free(ids);
    return status;
}

static dq_status make_room(dq_generate_job *j, int64_t rows)
{
    if (j->ws_rows >= rows) return DQ_OK;
    dq_block_spec each = j->block;
    each.seqlen = 1;
    dq_workspace_free(&j->ws);
    j->ws_rows = 0;
    DQ_TRY(dq_workspace_alloc_joined(dq_model_device(j->model), &each, rows, &j->ws));
    j->ws_rows = rows;
    return DQ_OK;
}

/* The wanted rows, normed, through the head. */
static dq_status finish(dq_generate_job *j, pass *p, float **logits)
{
    const dq_arch *a = dq_model_arch(j->model);
    dq_tensor index = {0}, x = {0};
    dq_status status;
    float *out = NULL;
    int32_t *at = dq_alloc(j->env, (size_t)p->wanted * sizeof *at);
    if (!at) return DQ_E_NOMEM;
    for (int64_t r = 0, n = 0; r < p->count; r++)
        if (p->rows[r].last) at[n++] = (int32_t)r;
    out = dq_alloc(j->env, (size_t)(p->wanted * a->vocab) * sizeof *out);
    status = DQ_E_NOMEM;
    if (!out) goto done;
    DQ_GO(dq_tensor_from_host(dq_model_device(j->model), DQ_I32, 1, p->wanted, at, &index));
    DQ_GO(dq_tensor_alloc(dq_model_device(j->model), DQ_F32, p->wanted, a->hidden, &x));
    DQ_GO(dq_op_gather_rows(&p->hidden, &index, &x));
    DQ_GO(dq_final_norm_apply(&p->spec, &j->resident->norm, &j->resident->norm_bias, &x));
    DQ_GO(dq_resident_logits(j->resident, &x, j->spec.math, out));
    *logits = out;
    out = NULL;
done:
    dq_tensor_free(&index);
    dq_tensor_free(&x);
    dq_free(out);
    dq_free(at);
    return status;
}

dq_status dq_generate_pass(dq_generate_job *j, const dq_pass_row *rows, int64_t count, dq_progress *progress,
                           float **logits)
{
    pass p = {.rows = rows, .count = count, .spec = j->block};
    dq_status status;
    p.spec.cos = p.spec.sin = p.spec.slot = p.spec.span = p.spec.position = (dq_tensor){0};
    for (int64_t r = 0; r < count; r++) p.wanted += rows[r].last;
    *logits = NULL;
    DQ_GO(make_room(j, count));
    DQ_GO(embed(j, &p));
    DQ_GO(place_rows(j, &p));
    dq_workspace ws = dq_workspace_rows(&j->ws, count);
    for (int64_t layer = 0; layer < j->resident->layers; layer++) {
        dq_block block = j->resident->blocks[layer];
        block.cache = &j->caches[layer];
        DQ_GO(dq_progress_check(progress));
        DQ_GO(dq_block_forward(&p.spec, &block, &ws, &p.hidden));
    }
    if (p.wanted > 0) status = finish(j, &p, logits);
done:
    pass_clear(&p);
    return status;
}
