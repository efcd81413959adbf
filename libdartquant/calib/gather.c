/* Drawing rows. SPDX-License-Identifier: Apache-2.0 */
#include "calib/gather.h"

#include <math.h>
#include <stdlib.h>
#include <string.h>

#include "base/rng.h"
#include "base/status.h"

/* Numbers of random streams: three sites and the two kinds of weight rows per layer. */
enum { STREAM_WEIGHTS = DQ_SITES, STREAMS = DQ_SITES + 2 };

/* Only rows of zeros are far from RMS 1 with this under the root; they stay zeros. */
#define TINY 1e-30

dq_status dq_draw_stratified(dq_env *env, uint64_t seed, uint64_t stream, int64_t total, int64_t want, int32_t **out,
                             int64_t *count)
{
    dq_rng rng;
    if (want > total) want = total;
    int32_t *list = dq_alloc(env, (size_t)(want > 0 ? want : 1) * sizeof *list);
    if (!list) return DQ_E_NOMEM;
    dq_rng_seed_python(&rng, (seed * UINT64_C(0x9e3779b97f4a7c15)) ^ (stream + 1));
    for (int64_t i = 0; i < want; i++) {
        int64_t low = i * total / want, high = (i + 1) * total / want; /* both factors below 2^31 */
        list[i] = (int32_t)(low + (int64_t)dq_rng_below(&rng, (uint64_t)(high - low)));
    }
    *out = list;
    *count = want;
    return DQ_OK;
}

/* Part number i of `parts` of `whole`: they sum up to it. */
static int64_t share(int64_t whole, int64_t i, int64_t parts)
{
    return (int64_t)((__int128)whole * (i + 1) / parts - (__int128)whole * i / parts);
}

void dq_gather_clear(dq_gather *g)
{
    for (int s = 0; s < DQ_SITES; s++) {
        dq_free(g->picks[s]);
        g->picks[s] = NULL;
        g->count[s] = 0;
    }
    dq_free(g->sinks);
    g->sinks = NULL;
    g->sink_count = 0;
}

/* ---- sinks ---- */

static int ascending(const void *a, const void *b)
{
    double x = *(const double *)a, y = *(const double *)b;
    return (x > y) - (x < y);
}

static dq_status median_of(dq_env *env, const double *values, int64_t n, double *out)
{
    double *sorted = dq_alloc(env, (size_t)n * sizeof *sorted);
    if (!sorted) return DQ_E_NOMEM;
    memcpy(sorted, values, (size_t)n * sizeof *sorted);
    qsort(sorted, (size_t)n, sizeof *sorted, ascending);
    *out = n % 2 ? sorted[n / 2] : (sorted[n / 2 - 1] + sorted[n / 2]) / 2;
    dq_free(sorted);
    return DQ_OK;
}

static dq_status find_sinks(dq_gather *g, const double *norms)
{
    double median;
    int64_t n = 0;
    if (!norms || !(g->sink_ratio > 0) || !g->r1 || dq_rows_capacity(g->r1, DQ_ROWS_SINK) == 0) return DQ_OK;
    DQ_TRY(median_of(g->env, norms, g->tokens, &median));
    for (int64_t t = 0; t < g->tokens; t++) n += norms[t] > g->sink_ratio * median;
    if (n == 0) return DQ_OK;
    g->sinks = dq_alloc(g->env, (size_t)n * sizeof *g->sinks);
    if (!g->sinks) return DQ_E_NOMEM;
    for (int64_t t = 0; t < g->tokens; t++)
        if (norms[t] > g->sink_ratio * median) g->sinks[g->sink_count++] = (int32_t)t;
    return DQ_OK;
}

/* ---- activations ---- */

/* Tokens to keep at a site. Sinks have a store of their own: positions are drawn among the others. */
static dq_status draw_site(dq_gather *g, int64_t layer, dq_site site, int64_t want, bool skip_sinks)
{
    int64_t others = skip_sinks ? g->tokens - g->sink_count : g->o_tokens ? g->o_tokens : g->tokens;
    DQ_TRY(dq_draw_stratified(g->env, g->seed, (uint64_t)layer * STREAMS + (uint64_t)site, others, want,
                              &g->picks[site], &g->count[site]));
    int64_t passed = 0; /* sinks before the pick */
    for (int64_t i = 0; skip_sinks && i < g->count[site]; i++) {
        while (passed < g->sink_count && g->sinks[passed] <= g->picks[site][i] + passed) passed++;
        g->picks[site][i] += (int32_t)passed;
    }
    return DQ_OK;
}

/* Everything that will come to a set is known before. */
static dq_status expect_rows(dq_gather *g)
{
    const dq_arch *a = g->arch;
    int64_t turned = (a->heads + 2 * a->kv_heads) * a->head_dim + 2 * a->intermediate;
    if (g->r1) DQ_TRY(dq_rows_expect(g->r1, DQ_ROWS_ACTIVATION, 2 * a->layers * g->tokens));
    if (g->r1) DQ_TRY(dq_rows_expect(g->r1, DQ_ROWS_WEIGHT, a->layers * turned));
    if (g->r2) DQ_TRY(dq_rows_expect(g->r2, DQ_ROWS_ACTIVATION, g->o_tokens ? g->o_tokens : g->tokens));
    return g->r2 ? dq_rows_expect(g->r2, DQ_ROWS_WEIGHT, a->hidden) : DQ_OK;
}

dq_status dq_gather_begin(dq_gather *g, int64_t layer, const double *norms)
{
    dq_gather_clear(g);
    DQ_TRY(expect_rows(g));
    DQ_TRY(find_sinks(g, norms));
    if (g->r1) {
        int64_t most = dq_rows_capacity(g->r1, DQ_ROWS_ACTIVATION), strata = 2 * g->arch->layers;
        DQ_TRY(draw_site(g, layer, DQ_SITE_ATTN, share(most, 2 * layer, strata), true));
        DQ_TRY(draw_site(g, layer, DQ_SITE_MLP, share(most, 2 * layer + 1, strata), true));
    }
    if (g->r2) DQ_TRY(draw_site(g, layer, DQ_SITE_O, dq_rows_capacity(g->r2, DQ_ROWS_ACTIVATION), false));
    return DQ_OK;
}

/* Rows list[0 .. count) - shift of x, in memory of their own. */
static dq_status pick_rows(dq_env *env, const dq_tensor *x, const int32_t *list, int64_t count, int32_t shift,
                           dq_tensor *out)
{
    dq_status status = DQ_OK;
    dq_tensor index = {0}, rows = {0};
    int32_t *local = dq_alloc(env, (size_t)count * sizeof *local);
    if (!local) return DQ_E_NOMEM;
    for (int64_t i = 0; i < count; i++) local[i] = list[i] - shift;
    DQ_GO(dq_tensor_from_host(x->dev, DQ_I32, 1, count, local, &index));
    DQ_GO(dq_tensor_alloc(x->dev, x->view.dtype, count, x->view.cols, &rows));
    DQ_GO(dq_op_gather_rows(x, &index, &rows));
    *out = rows;
    rows = (dq_tensor){0};
done:
    dq_tensor_free(&index);
    dq_tensor_free(&rows);
    dq_free(local);
    return status;
}

/* Those of the ascending list that lie in [first, first + rows of x). */
static dq_status keep_listed(dq_gather *g, dq_rows *to, dq_row_kind kind, const int32_t *list, int64_t count,
                             int64_t first, const dq_tensor *x)
{
    int64_t begin = 0, end;
    dq_tensor rows = {0};
    while (begin < count && list[begin] < first) begin++;
    for (end = begin; end < count && list[end] < first + x->view.rows; end++) {
    }
    if (begin == end) return DQ_OK;
    DQ_TRY(pick_rows(g->env, x, list + begin, end - begin, (int32_t)first, &rows));
    dq_status status = dq_rows_add_finite(to, kind, &rows);
    dq_tensor_free(&rows);
    return status;
}

dq_status dq_gather_inputs(dq_gather *g, const dq_inputs *in)
{
    dq_rows *to = in->site == DQ_SITE_O ? g->r2 : g->r1;
    if (!to) return DQ_OK;
    DQ_TRY(keep_listed(g, to, DQ_ROWS_ACTIVATION, g->picks[in->site], g->count[in->site], in->first, in->x));
    /* What a massive token feeds to the others are its keys and values; its own way through the MLP hardly matters. */
    if (in->site != DQ_SITE_ATTN) return DQ_OK;
    return keep_listed(g, to, DQ_ROWS_SINK, g->sinks, g->sink_count, in->first, in->x);
}

/* ---- weights ---- */

/* Rows of a weight, in pieces of `width` columns of RMS 1, joined again. */
static dq_status add_weight_rows(dq_gather *g, dq_rows *to, const dq_tensor *w, const int32_t *list, int64_t count,
                                 int64_t first, int64_t width)
{
    dq_tensor rows = {0};
    if (count == 0) return DQ_OK;
    DQ_TRY(pick_rows(g->env, w, list, count, (int32_t)first, &rows));
    dq_tensor pieces = rows; /* contiguous: a row of heads is as many rows of one head */
    pieces.owns = false;
    pieces.view.rows = count * (w->view.cols / width);
    pieces.view.cols = pieces.view.stride = width;
    dq_status status = dq_op_rmsnorm(&pieces, NULL, TINY, &pieces);
    if (status == DQ_OK) status = dq_rows_add_finite(to, DQ_ROWS_WEIGHT, &rows);
    dq_tensor_free(&rows);
    return status;
}

/* An even draw from the rows of several linears as if they lay one after the other; those in memory give theirs. */
static dq_status draw_weights(dq_gather *g, int64_t layer, int stream, dq_rows *to, int64_t want, const dq_block *block,
                              const int *linears, int n, int64_t width)
{
    int64_t rows[DQ_BLOCK_LINEARS], cols, total = 0, count = 0, first = 0, i = 0;
    int32_t *list = NULL;
    dq_status status = DQ_OK;
    for (int k = 0; k < n; k++) {
        dq_arch_shape(g->arch, (dq_role)linears[k], &rows[k], &cols);
        if (!dq_arch_has(g->arch, (dq_role)linears[k])) rows[k] = 0;
        total += rows[k];
    }
    DQ_TRY(
        dq_draw_stratified(g->env, g->seed, (uint64_t)layer * STREAMS + (uint64_t)stream, total, want, &list, &count));
    for (int k = 0; k < n && status == DQ_OK; k++) {
        const dq_tensor *w = &block->linear[linears[k]].weight;
        int64_t end = i, next = first + rows[k];
        while (end < count && list[end] < next) end++;
        if (!dq_tensor_is_empty(w)) status = add_weight_rows(g, to, w, list + i, end - i, first, width);
        i = end;
        first = next;
    }
    dq_free(list);
    return status;
}

dq_status dq_gather_weights(dq_gather *g, int64_t layer, const dq_block *block)
{
    static const int readers[] = {DQ_BLOCK_Q, DQ_BLOCK_K, DQ_BLOCK_V, DQ_BLOCK_GATE, DQ_BLOCK_UP}, o[] = {DQ_BLOCK_O};
    if (g->r1 && dq_rows_capacity(g->r1, DQ_ROWS_WEIGHT) > 0) {
        int64_t want = share(dq_rows_capacity(g->r1, DQ_ROWS_WEIGHT), layer, g->arch->layers);
        DQ_TRY(draw_weights(g, layer, STREAM_WEIGHTS, g->r1, want, block, readers, 5, g->arch->hidden));
    }
    if (g->r2 && dq_rows_capacity(g->r2, DQ_ROWS_WEIGHT) > 0) {
        int64_t want = dq_rows_capacity(g->r2, DQ_ROWS_WEIGHT);
        DQ_TRY(draw_weights(g, layer, STREAM_WEIGHTS + 1, g->r2, want, block, o, 1, g->arch->head_dim));
    }
    return DQ_OK;
}
