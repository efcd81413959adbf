/* Hidden states from token ids. Only the rows in use are read, each once per chunk.
 * SPDX-License-Identifier: Apache-2.0 */
#include <stdlib.h>
#include <string.h>

#include "base/status.h"
#include "model/internal.h"

/* One group of neighbouring vocabulary rows is read at a time. */
enum { GROUP = 256, MIN_TABLE_BYTES = 64 << 20 };

typedef struct lookup {
    int32_t *unique;   /* ascending ids of the chunk */
    int32_t *position; /* [vocab] id -> index in `unique`, -1 = unused */
    int64_t unique_count;
    dq_tensor table; /* F32 [unique_count, hidden] */
} lookup;

/* Takes tokens until `limit` different ones are found; gives how many were taken. */
static int64_t collect(const int32_t *ids, int64_t count, int64_t vocab, int64_t limit, lookup *l)
{
    int64_t taken = 0, found = 0;
    memset(l->position, 0xff, (size_t)vocab * sizeof *l->position);
    for (; taken < count; taken++) {
        if (l->position[ids[taken]] >= 0) continue;
        if (found == limit) break;
        l->position[ids[taken]] = 0;
        found++;
    }
    l->unique_count = 0;
    for (int64_t id = 0; id < vocab; id++) {
        if (l->position[id] < 0) continue;
        l->position[id] = (int32_t)l->unique_count;
        l->unique[l->unique_count++] = (int32_t)id;
    }
    return taken;
}

/* table[first..] = the rows `unique[first, first + n)`, which lie in one group of the vocabulary. */
static dq_status read_group(dq_model *m, lookup *l, int64_t first, int64_t n)
{
    int32_t offsets[GROUP];
    dq_tensor rows = {0}, index = {0};
    dq_status status;
    int64_t low = l->unique[first];
    for (int64_t i = 0; i < n; i++) offsets[i] = l->unique[first + i] - (int32_t)low;
    DQ_GO(dq_model_read_rows(m, DQ_EMBED, low, l->unique[first + n - 1] - low + 1, &rows));
    DQ_GO(dq_tensor_from_host(m->dev, DQ_I32, 1, n, offsets, &index));
    dq_tensor part = dq_tensor_rows(&l->table, first, n);
    status = dq_op_gather_rows(&rows, &index, &part);
done:
    dq_tensor_free(&rows);
    dq_tensor_free(&index);
    return status;
}

static dq_status fill_table(dq_model *m, lookup *l)
{
    dq_tensor_free(&l->table);
    DQ_TRY(dq_tensor_alloc(m->dev, DQ_F32, l->unique_count, m->arch.hidden, &l->table));
    for (int64_t i = 0; i < l->unique_count;) {
        int64_t n = 1;
        while (i + n < l->unique_count && l->unique[i + n] / GROUP == l->unique[i] / GROUP) n++;
        DQ_TRY(read_group(m, l, i, n));
        i += n;
    }
    return DQ_OK;
}

static dq_status place(dq_model *m, const int32_t *ids, const lookup *l, dq_tensor *hidden)
{
    int64_t count = hidden->view.rows;
    dq_tensor index = {0};
    int32_t *at = dq_alloc(m->env, (size_t)count * sizeof *at);
    if (!at) return DQ_E_NOMEM;
    for (int64_t i = 0; i < count; i++) at[i] = l->position[ids[i]];
    dq_status status = dq_tensor_from_host(m->dev, DQ_I32, 1, count, at, &index);
    if (status == DQ_OK) status = dq_op_gather_rows(&l->table, &index, hidden);
    dq_tensor_free(&index);
    dq_free(at);
    return status;
}

dq_status dq_embed_limited(dq_model *model, const int32_t *ids, int64_t count, int64_t limit, dq_tensor *hidden)
{
    int64_t vocab = model->arch.vocab;
    dq_status status = DQ_OK;
    lookup l = {0};
    l.unique = dq_alloc(model->env, (size_t)vocab * sizeof *l.unique);
    l.position = dq_alloc(model->env, (size_t)vocab * sizeof *l.position);
    if (!l.unique || !l.position) status = DQ_E_NOMEM;
    for (int64_t i = 0; status == DQ_OK && i < count;) {
        int64_t taken = collect(ids + i, count - i, vocab, limit, &l);
        dq_tensor part = dq_tensor_rows(hidden, i, taken);
        status = fill_table(model, &l);
        if (status == DQ_OK) status = place(model, ids + i, &l, &part);
        i += taken;
    }
    dq_tensor_free(&l.table);
    dq_free(l.unique);
    dq_free(l.position);
    return status;
}

dq_status dq_model_embed_tokens(dq_model *model, const int32_t *ids, int64_t count, dq_tensor *hidden)
{
    int64_t vocab = model->arch.vocab, row_bytes = model->arch.hidden * 4;
    if (hidden->view.rows != count || hidden->view.cols != model->arch.hidden)
        return dq_fail(DQ_E_INVALID, "embedding of %lld tokens into %lld rows", (long long)count,
                       (long long)hidden->view.rows);
    for (int64_t i = 0; i < count; i++)
        if (ids[i] < 0 || ids[i] >= vocab)
            return dq_fail(DQ_E_MISMATCH, "token %lld has id %d, the model's vocabulary ends at %lld", (long long)i,
                           ids[i], (long long)vocab - 1);
    /* The table takes a quarter of the hidden states at most, unless that is little anyway. */
    int64_t bytes = count * row_bytes / 4 > MIN_TABLE_BYTES ? count * row_bytes / 4 : MIN_TABLE_BYTES;
    return dq_embed_limited(model, ids, count, bytes / row_bytes > GROUP ? bytes / row_bytes : GROUP, hidden);
}

/* Every window begins at position 0. */
static dq_status add_positions(dq_model *model, int64_t count, int64_t seqlen, dq_tensor *hidden)
{
    dq_tensor table = {0};
    dq_status status = DQ_OK;
    if (seqlen < 1 || seqlen > model->arch.max_positions)
        return dq_fail(DQ_E_INVALID, "windows of %lld tokens, but the model has learned %lld positions",
                       (long long)seqlen, (long long)model->arch.max_positions);
    DQ_TRY(dq_model_read_rows(model, DQ_POSITIONS, DQ_POSITION_OFFSET, seqlen, &table));
    for (int64_t first = 0; status == DQ_OK && first < count; first += seqlen) {
        int64_t rows = count - first < seqlen ? count - first : seqlen;
        dq_tensor from = dq_tensor_rows(&table, 0, rows), to = dq_tensor_rows(hidden, first, rows);
        status = dq_op_axpy(1.0, &from, &to);
    }
    dq_tensor_free(&table);
    return status;
}

dq_status dq_model_embed(dq_model *model, const int32_t *ids, int64_t count, int64_t seqlen, dq_tensor *hidden)
{
    DQ_TRY(dq_model_embed_tokens(model, ids, count, hidden));
    return dq_arch_learns_positions(&model->arch) ? add_positions(model, count, seqlen, hidden) : DQ_OK;
}
