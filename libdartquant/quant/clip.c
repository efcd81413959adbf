/* The pass over the calibration windows that the search of clip ratios takes its rows from. The error of a linear's input
 * is the plain squared one: weighting it by the Gram matrix of the weights, which makes it the error of the output, chose
 * ratios of higher perplexity (docs/numerics.md). Errors of keys are weighted by the Gram matrix of the queries (errors of
 * attention scores), those of values by that of o_proj's columns. SPDX-License-Identifier: Apache-2.0 */
#include "quant/clip.h"

#include <math.h>
#include <string.h>

#include "base/status.h"

/* Windows are enough for so many tokens, rows are drawn from all of them. */
enum { MOST_TOKENS = 8192, MOST_ROWS = 512 };

static const char STAGE[] = "clip ratios";

struct dq_clip_job {
    dq_env *env;
    dq_device *dev;
    dq_model *model;
    dq_scheme scheme;
    unsigned wanted;
    int math;
    int64_t windows, seqlen, rows; /* rows drawn of each window */
    int64_t layer;
    bool failed;
    dq_block_spec spec;
    dq_tensor hidden;                /* F32 [windows * seqlen, hidden] */
    dq_tensor index;                 /* I32 [1, rows] within a window */
    dq_tensor sample[DQ_CLIP_SITES]; /* F32 [windows * rows, width] */
    dq_tensor queries;               /* the same of the queries, for keys */
    dq_clips *clips;
    double seconds;
};

/* ---- Gram matrices ---- */

/* g += w^T w over columns [first, first + n) of w. */
static dq_status add_gram(const dq_tensor *w, int64_t first, int math, dq_tensor *g)
{
    dq_tensor part = dq_tensor_slice(w, 0, w->view.rows, first, g->view.cols);
    return dq_op_gemm(true, false, 1.0, &part, &part, 1.0, g, math);
}

/* For each kv head the sum over its query heads. */
static dq_status head_grams(const dq_clip_job *j, const dq_tensor *w, dq_tensor *out)
{
    int64_t n = j->spec.head_dim, share = j->spec.heads / j->spec.kv_heads;
    DQ_TRY(dq_tensor_alloc(j->dev, DQ_F32, j->spec.kv_heads * n, n, out));
    DQ_TRY(dq_op_fill(0, out));
    for (int64_t h = 0; h < j->spec.heads; h++) {
        dq_tensor g = dq_tensor_rows(out, h / share * n, n);
        DQ_TRY(add_gram(w, h * n, j->math, &g));
    }
    return DQ_OK;
}

/* Empty (plain squared error) for inputs of linears, and for values that are rotated across heads before o_proj reads
 * them. */
static dq_status gram_of(const dq_clip_job *j, const dq_block *b, int site, dq_tensor *out)
{
    if (site == DQ_CLIP_KEYS) return head_grams(j, &j->queries, out);
    if (site == DQ_CLIP_VALUES && !j->spec.r2_heads) return head_grams(j, &b->linear[DQ_BLOCK_O].weight, out);
    return DQ_OK;
}

/* ---- one layer ---- */

static bool wants(const dq_clip_job *j, int site) { return (j->wanted >> site & 1) != 0; }

static dq_status draw(const dq_clip_job *j, int64_t window, const dq_tensor *from, dq_tensor *sample)
{
    if (dq_tensor_is_empty(sample)) return DQ_OK;
    dq_tensor to = dq_tensor_rows(sample, window * j->rows, j->rows);
    return dq_op_gather_rows(from, &j->index, &to);
}

static dq_status walk_window(dq_clip_job *j, const dq_block *b, int64_t window, dq_workspace *ws)
{
    dq_tensor h = dq_tensor_rows(&j->hidden, window * j->seqlen, j->seqlen), *s = j->sample;
    DQ_TRY(dq_block_attn_in(&j->spec, b, &h, ws));
    DQ_TRY(draw(j, window, &ws->x, &s[DQ_CLIP_QKV]));
    DQ_TRY(dq_block_attn(&j->spec, b, ws));
    DQ_TRY(draw(j, window, &ws->q, &j->queries));
    DQ_TRY(draw(j, window, &ws->k, &s[DQ_CLIP_KEYS]));
    DQ_TRY(draw(j, window, &ws->v, &s[DQ_CLIP_VALUES]));
    DQ_TRY(draw(j, window, &ws->a, &s[DQ_CLIP_O]));
    DQ_TRY(dq_block_attn_out(&j->spec, b, &ws->a, ws, &h));
    DQ_TRY(dq_block_mlp_in(&j->spec, b, &h, ws));
    DQ_TRY(draw(j, window, &ws->x, &s[DQ_CLIP_GATE_UP]));
    DQ_TRY(dq_block_mlp(&j->spec, b, ws));
    DQ_TRY(draw(j, window, &ws->gate, &s[DQ_CLIP_DOWN]));
    return dq_block_mlp_out(&j->spec, b, ws, &h);
}

static dq_status search_site(dq_clip_job *j, const dq_block *b, int site)
{
    static const char *const what[] = {"q, k, v input",   "o_proj input", "gate, up input",
                                       "down_proj input", "keys",         "values"};
    const dq_act_spec *spec = site == DQ_CLIP_KEYS     ? &j->scheme.k
                              : site == DQ_CLIP_VALUES ? &j->scheme.v
                                                       : &j->scheme.a;
    dq_tensor gram = {0};
    dq_status status = gram_of(j, b, site, &gram);
    if (status == DQ_OK)
        status =
            dq_clip_search(spec, what[site], &j->sample[site], &gram, j->math, NULL, &j->clips->ratio[j->layer][site]);
    dq_tensor_free(&gram);
    return status;
}

static dq_status run_layer(dq_clip_job *j, dq_progress *progress)
{
    dq_block block;
    dq_workspace ws;
    dq_status status;
    uint64_t units = (uint64_t)(dq_model_arch(j->model)->layers * j->windows);
    memset(&ws, 0, sizeof ws);
    DQ_TRY(dq_model_load_block(j->model, j->layer, &block));
    DQ_GO(dq_workspace_alloc(j->dev, &j->spec, j->seqlen, &ws));
    for (int64_t w = 0; w < j->windows; w++) {
        DQ_GO(walk_window(j, &block, w, &ws));
        DQ_GO(dq_progress_report(progress, STAGE, (uint64_t)(j->layer * j->windows + w + 1), units, NAN));
    }
    dq_workspace_free(&ws);
    for (int site = 0; site < DQ_CLIP_SITES; site++)
        if (wants(j, site)) DQ_GO(search_site(j, &block, site));
done:
    dq_workspace_free(&ws);
    dq_block_free(&block);
    return status;
}

/* ---- the job ---- */

/* Nothing is quantized on the way; keys are rotated as they will be. */
static dq_status make_spec(dq_clip_job *j)
{
    const dq_rotation_set *r = dq_model_rotations(j->model);
    dq_scheme *s = &j->spec.scheme;
    DQ_TRY(dq_model_block_spec(j->model, j->seqlen, j->math, &j->spec));
    s->a.bits = s->k.bits = s->v.bits = 16;
    j->spec.r3 = r && r->r3.n > 0 ? &r->r3 : NULL;
    return DQ_OK;
}

/* The first position, where the attention sink is, and others at equal distances. */
static dq_status make_index(dq_clip_job *j)
{
    int32_t *index = dq_alloc(j->env, (size_t)j->rows * sizeof *index);
    if (!index) return DQ_E_NOMEM;
    for (int64_t i = 0; i < j->rows; i++) index[i] = (int32_t)(i * j->seqlen / j->rows);
    dq_status status = dq_tensor_from_host(j->dev, DQ_I32, 1, j->rows, index, &j->index);
    dq_free(index);
    return status;
}

static dq_status alloc_samples(dq_clip_job *j)
{
    const dq_arch *a = dq_model_arch(j->model);
    int64_t n = j->windows * j->rows, heads = a->heads * a->head_dim, kv = a->kv_heads * a->head_dim;
    const int64_t width[DQ_CLIP_SITES] = {a->hidden, heads, a->hidden, a->intermediate, kv, kv};
    for (int site = 0; site < DQ_CLIP_SITES; site++)
        if (wants(j, site)) DQ_TRY(dq_tensor_alloc(j->dev, DQ_F32, n, width[site], &j->sample[site]));
    return wants(j, DQ_CLIP_KEYS) ? dq_tensor_alloc(j->dev, DQ_F32, n, heads, &j->queries) : DQ_OK;
}

dq_status dq_clip_job_new(dq_model *model, const dq_scheme *scheme, unsigned wanted, const int32_t *windows,
                          int64_t nsamples, int64_t seqlen, int math, dq_clip_job **out)
{
    dq_device *dev = dq_model_device(model);
    dq_status status;
    double start = dq_now();
    if (!windows || nsamples < 1 || seqlen < 1)
        return dq_fail(DQ_E_INVALID, "the search of clip ratios needs calibration windows");
    dq_clip_job *j = dq_calloc(dq_device_env(dev), 1, sizeof *j);
    if (!j) return DQ_E_NOMEM;
    j->env = dq_device_env(dev);
    j->dev = dev;
    j->model = dq_model_retain(model);
    j->scheme = *scheme;
    j->wanted = wanted;
    j->math = math;
    j->seqlen = seqlen;
    j->windows = seqlen >= MOST_TOKENS ? 1 : MOST_TOKENS / seqlen;
    if (j->windows > nsamples) j->windows = nsamples;
    j->rows = j->windows >= MOST_ROWS ? 1 : MOST_ROWS / j->windows;
    if (j->rows > seqlen) j->rows = seqlen;
    DQ_GO(make_spec(j));
    DQ_GO(make_index(j));
    DQ_GO(alloc_samples(j));
    DQ_GO(dq_clips_new(j->env, dq_model_arch(model)->layers, &j->clips));
    DQ_GO(dq_tensor_alloc(dev, DQ_F32, j->windows * seqlen, dq_model_arch(model)->hidden, &j->hidden));
    DQ_GO(dq_model_embed(model, windows, j->windows * seqlen, seqlen, &j->hidden));
    j->seconds = dq_now() - start;
    *out = j;
    return DQ_OK;
done:
    dq_clip_job_free(j);
    return status;
}

void dq_clip_job_free(dq_clip_job *j)
{
    if (!j) return;
    dq_tensor_free(&j->hidden);
    dq_tensor_free(&j->index);
    dq_tensor_free(&j->queries);
    for (int site = 0; site < DQ_CLIP_SITES; site++) dq_tensor_free(&j->sample[site]);
    dq_block_spec_clear(&j->spec);
    dq_model_release(j->model);
    dq_clips_free(j->clips);
    dq_free(j);
}

dq_status dq_clip_job_step(dq_clip_job *j, dq_progress *progress, bool *finished)
{
    double start = dq_now();
    if (j->failed || !j->clips || j->layer == j->clips->layers)
        return dq_fail(DQ_E_STATE, "the search of clip ratios cannot go on");
    dq_status status = run_layer(j, progress);
    j->failed = status != DQ_OK;
    DQ_TRY(status);
    j->seconds += dq_now() - start;
    *finished = ++j->layer == j->clips->layers;
    return DQ_OK;
}

dq_clips *dq_clip_job_take(dq_clip_job *j)
{
    dq_clips *clips = j->clips;
    j->clips = NULL;
    return clips;
}

double dq_clip_job_seconds(const dq_clip_job *j) { return j->seconds; }
