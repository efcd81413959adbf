/* The pass over the calibration windows that KVQuant's ranges and levels come from. What is counted goes to a fixed number of
 * histograms by place (strips of channels, of a window's tokens), which are added up in order.
 * SPDX-License-Identifier: Apache-2.0 */
#include "quant/kv_job.h"

#include <math.h>
#include <string.h>

#include "base/status.h"
#include "model/hidden.h"
#include "quant/levels.h"

enum { CHUNK_TOKENS = 2048, STRIPS = 16 };
static const uint64_t LEAST_KEYS = (uint64_t)64 << 20;
static const char STAGE[] = "keys and values";

struct dq_kv_job {
    dq_env *env;
    dq_device *dev;
    dq_model *model;
    dq_scheme scheme;
    int64_t tokens, seqlen, sink, channels;
    int64_t chunk;   /* tokens in one go: whole windows */
    int64_t counted; /* tokens that are no sinks */
    int64_t slice;   /* channels whose keys are in memory at a time; 0 = keys are left alone */
    bool fits_keys, fits_values;
    int64_t layer;
    bool failed;
    dq_block_spec spec;
    dq_hidden hidden;
    float *rows;              /* [chunk, channels] from the device */
    float *keys;              /* [slice, counted] */
    float *scratch;           /* [STRIPS, channels] */
    dq_histogram *histograms; /* [STRIPS] */
    dq_kv_tables *tables;
    double seconds;
};

bool dq_kv_needs_data(const dq_scheme *s)
{
    if (!dq_scheme_has_levels(s)) return false;
    return s->k.bits < 16 || s->kvquant.levels == DQ_KV_LEVELS_NUQ || s->kvquant.qnorm;
}

static void fixed_levels(dq_kv_levels kind, int64_t layers, int64_t n, float *out)
{
    for (int64_t l = 0; n > 0 && l < layers; l++)
        if (kind == DQ_KV_LEVELS_NF)
            dq_levels_normal(n, out + l * n);
        else
            dq_levels_uniform(n, out + l * n);
}

dq_status dq_kv_tables_begin(dq_model *model, const dq_scheme *scheme, dq_kv_tables **out)
{
    const dq_arch *a = dq_model_arch(model);
    dq_env *env = dq_device_env(dq_model_device(model));
    DQ_TRY(dq_kv_tables_new(env, scheme, a->layers, a->kv_heads * a->head_dim, out));
    fixed_levels(scheme->kvquant.levels, a->layers, (*out)->k_levels, (*out)->k);
    fixed_levels(scheme->kvquant.levels, a->layers, (*out)->v_levels, (*out)->v);
    return DQ_OK;
}

/* ---- counting ---- */

/* Numbers in [lo, hi], or between the two, as parts of the half range. */
static void count(dq_histogram *h, const float *x, int64_t n, float lo, float hi)
{
    float z = 0.5f * (hi + lo), r = 0.5f * (hi - lo);
    double weight = (double)r * (double)r;
    if (!(r > 0) || !isfinite(r)) return;
    for (int64_t i = 0; i < n; i++)
        if (x[i] >= lo && x[i] <= hi) dq_histogram_add(h, (x[i] - z) / r, weight);
}

typedef struct key_task {
    dq_kv_job *j;
    int64_t first, end; /* channels that are in memory */
} key_task;

/* The channels of one strip: ranges, then counts. */
static void count_keys(void *arg, int64_t strip, int thread)
{
    const key_task *t = arg;
    dq_kv_job *j = t->j;
    int64_t from = strip * j->channels / STRIPS, to = (strip + 1) * j->channels / STRIPS;
    float *lo = j->tables->ranges + 2 * j->layer * j->channels, *hi = lo + j->channels;
    (void)thread;
    for (int64_t c = from > t->first ? from : t->first; c < to && c < t->end; c++) {
        float *x = j->keys + (c - t->first) * j->counted;
        dq_percentiles(x, j->counted, j->scheme.kvquant.outliers, &lo[c], &hi[c]);
        if (j->fits_keys) count(&j->histograms[strip], x, j->counted, lo[c], hi[c]);
    }
}

/* A token's values as op levels_quant sees them: outliers, then the range of the others and of the median that takes the
 * outliers' place. */
static void count_token(dq_histogram *h, const float *x, int64_t n, double outliers, float *scratch)
{
    float lo, hi;
    memcpy(scratch, x, (size_t)n * sizeof *x);
    dq_percentiles(scratch, n, outliers, &lo, &hi);
    if (outliers <= 0) {
        count(h, x, n, lo, hi);
        return;
    }
    float median = dq_select(scratch, n, (n - 1) / 2), least = median, most = median;
    int64_t inside = 0;
    for (int64_t i = 0; i < n; i++) {
        if (x[i] <= lo || x[i] >= hi) continue;
        scratch[inside++] = x[i];
        if (x[i] < least) least = x[i];
        if (x[i] > most) most = x[i];
    }
    count(h, scratch, inside, least, most);
}

/* The tokens of one strip of a window. */
static void count_values(void *arg, int64_t strip, int thread)
{
    const key_task *t = arg; /* first: row of the window in `rows` */
    dq_kv_job *j = t->j;
    int64_t from = strip * j->seqlen / STRIPS, to = (strip + 1) * j->seqlen / STRIPS;
    (void)thread;
    for (int64_t i = from > j->sink ? from : j->sink; i < to; i++)
        count_token(&j->histograms[strip], j->rows + (t->first + i) * j->channels, j->channels,
                    j->scheme.kvquant.outliers, j->scratch + strip * j->channels);
}

/* Levels and Q-Norm from what was counted. */
static dq_status fit(dq_kv_job *j, bool values)
{
    int64_t n = values ? j->tables->v_levels : j->tables->k_levels;
    float *levels = (values ? j->tables->v : j->tables->k) + j->layer * n;
    for (int i = 1; i < STRIPS; i++) dq_histogram_merge(&j->histograms[0], &j->histograms[i]);
    if (j->scheme.kvquant.levels == DQ_KV_LEVELS_NUQ) DQ_TRY(dq_levels_fit(j->env, &j->histograms[0], n, levels));
    if (j->scheme.kvquant.qnorm)
        dq_levels_norm(&j->histograms[0], n, levels, j->tables->norms + 4 * j->layer + (values ? 2 : 0));
    return DQ_OK;
}

/* ---- one layer ---- */

static int64_t rows_at(const dq_kv_job *j, int64_t first)
{
    return j->tokens - first < j->chunk ? j->tokens - first : j->chunk;
}

/* Keys or values of the chunk that begins at `first`, in j->rows. */
static dq_status fetch(dq_kv_job *j, const dq_block *b, int64_t first, bool values, dq_workspace *all)
{
    dq_tensor h;
    int64_t bad;
    dq_workspace ws = dq_workspace_rows(all, rows_at(j, first));
    DQ_TRY(dq_hidden_take(&j->hidden, first, rows_at(j, first), true, &h));
    DQ_TRY(dq_block_attn_in(&j->spec, b, &h, &ws));
    DQ_TRY(dq_block_keys_values(&j->spec, b, &ws));
    const dq_tensor *x = values ? &ws.v : &ws.k;
    DQ_TRY(dq_op_find_nonfinite(x, &bad));
    if (bad >= 0)
        return dq_fail(DQ_E_NONFINITE, "%s %lld of token %lld of the calibration windows in layer %lld is not finite",
                       values ? "value" : "key", (long long)(bad % j->channels), (long long)(first + bad / j->channels),
                       (long long)j->layer);
    return dq_tensor_download(x, j->rows);
}

/* Channels [first, end) of the chunk's keys, token by token, into their places. */
static void scatter(dq_kv_job *j, int64_t chunk, const key_task *t)
{
    for (int64_t r = 0; r < rows_at(j, chunk); r++) {
        int64_t at = (chunk + r) % j->seqlen - j->sink, window = (chunk + r) / j->seqlen;
        const float *row = j->rows + r * j->channels;
        if (at < 0) continue;
        float *to = j->keys + window * (j->seqlen - j->sink) + at;
        for (int64_t c = t->first; c < t->end; c++) to[(c - t->first) * j->counted] = row[c];
    }
}

static dq_status tick(const dq_kv_job *j, dq_progress *progress)
{
    return dq_progress_report(progress, STAGE, (uint64_t)j->layer, (uint64_t)dq_model_arch(j->model)->layers, NAN);
}

static dq_status learn_keys(dq_kv_job *j, const dq_block *b, dq_workspace *ws, dq_progress *progress)
{
    memset(j->histograms, 0, STRIPS * sizeof *j->histograms);
    for (int64_t first = 0; first < j->channels; first += j->slice) {
        key_task t = {j, first, first + j->slice < j->channels ? first + j->slice : j->channels};
        for (int64_t chunk = 0; chunk < j->tokens; chunk += j->chunk) {
            DQ_TRY(fetch(j, b, chunk, false, ws));
            scatter(j, chunk, &t);
            DQ_TRY(tick(j, progress));
        }
        dq_run(j->env, STRIPS, count_keys, &t);
    }
    return j->fits_keys ? fit(j, false) : DQ_OK;
}

static dq_status learn_values(dq_kv_job *j, const dq_block *b, dq_workspace *ws, dq_progress *progress)
{
    memset(j->histograms, 0, STRIPS * sizeof *j->histograms);
    for (int64_t chunk = 0; chunk < j->tokens; chunk += j->chunk) {
        DQ_TRY(fetch(j, b, chunk, true, ws));
        for (int64_t row = 0; row < rows_at(j, chunk); row += j->seqlen)
            dq_run(j->env, STRIPS, count_values, &(key_task){j, row, 0});
        DQ_TRY(tick(j, progress));
    }
    return fit(j, true);
}

static dq_status advance(dq_kv_job *j, const dq_block *b, dq_workspace *all, dq_progress *progress)
{
    for (int64_t chunk = 0; chunk < j->tokens; chunk += j->chunk) {
        dq_tensor h;
        dq_workspace ws = dq_workspace_rows(all, rows_at(j, chunk));
        DQ_TRY(dq_hidden_take(&j->hidden, chunk, rows_at(j, chunk), true, &h));
        DQ_TRY(dq_block_forward(&j->spec, b, &ws, &h));
        DQ_TRY(dq_hidden_put(&j->hidden, chunk, &h));
        DQ_TRY(tick(j, progress));
    }
    return DQ_OK;
}

static dq_status run_layer(dq_kv_job *j, dq_progress *progress)
{
    dq_block block;
    dq_workspace ws;
    dq_status status;
    memset(&ws, 0, sizeof ws);
    DQ_TRY(dq_model_load_block(j->model, j->layer, &block));
    DQ_GO(dq_workspace_alloc_forward(j->dev, &j->spec, j->chunk, &ws));
    if (j->slice) DQ_GO(learn_keys(j, &block, &ws, progress));
    if (j->fits_values) DQ_GO(learn_values(j, &block, &ws, progress));
    if (j->layer + 1 < j->tables->layers) status = advance(j, &block, &ws, progress);
done:
    dq_workspace_free(&ws);
    dq_block_free(&block);
    return status;
}

/* ---- the job ---- */

/* Nothing is quantized on the way. R3 turns queries and keys alike. */
static dq_status make_spec(dq_kv_job *j, int math)
{
    dq_scheme *s = &j->spec.scheme;
    DQ_TRY(dq_model_block_spec(j->model, j->seqlen, math, &j->spec));
    s->a.bits = s->k.bits = s->v.bits = 16;
    s->kvquant.on = false;
    j->spec.r3 = NULL;
    return DQ_OK;
}

static dq_status open_hidden(dq_kv_job *j, const int32_t *windows)
{
    const dq_arch *a = dq_model_arch(j->model);
    const dq_hidden_room room = {.spare = dq_layer_room(a, j->chunk), .most = UINT64_MAX, .folder = ""};
    DQ_TRY(dq_hidden_open(j->dev, j->tokens, a->hidden, j->chunk, &room, &j->hidden));
    for (int64_t first = 0; first < j->tokens; first += j->chunk) {
        dq_tensor part;
        DQ_TRY(dq_hidden_take(&j->hidden, first, rows_at(j, first), false, &part));
        DQ_TRY(dq_model_embed(j->model, windows + first, part.view.rows, j->seqlen, &part));
        DQ_TRY(dq_hidden_put(&j->hidden, first, &part));
    }
    return DQ_OK;
}

static dq_status make_room(dq_kv_job *j)
{
    uint64_t budget = j->env->memory_budget, hidden = (uint64_t)(j->tokens * j->spec.hidden) * sizeof(float);
    size_t bytes, keys;
    if (!budget) budget = hidden > LEAST_KEYS ? hidden : LEAST_KEYS;
    if (j->scheme.k.bits < 16) {
        uint64_t most = budget / ((uint64_t)j->counted * sizeof(float));
        j->slice = most < 1 ? 1 : most < (uint64_t)j->channels ? (int64_t)most : j->channels;
    }
    if (!dq_mul_ok((size_t)(j->chunk * j->channels), sizeof(float), &bytes) ||
        !dq_mul_ok((size_t)j->slice, (size_t)j->counted * sizeof(float), &keys))
        return dq_fail(DQ_E_NOMEM, "keys of %lld tokens overflow", (long long)j->tokens);
    j->rows = dq_alloc(j->env, bytes);
    j->keys = j->rows ? dq_alloc(j->env, keys) : NULL;
    j->scratch = j->keys ? dq_alloc(j->env, (size_t)(STRIPS * j->channels) * sizeof(float)) : NULL;
    j->histograms = j->scratch ? dq_alloc(j->env, STRIPS * sizeof *j->histograms) : NULL;
    return j->histograms ? DQ_OK : DQ_E_NOMEM;
}

static dq_status check_windows(const dq_scheme *s, const int32_t *windows, int64_t nsamples, int64_t seqlen)
{
    size_t tokens;
    if (!windows || nsamples < 1 || seqlen < 1)
        return dq_fail(DQ_E_INVALID, "calibration of keys and values needs windows");
    if (!dq_mul_ok((size_t)nsamples, (size_t)seqlen, &tokens) || tokens > INT32_MAX)
        return dq_fail(DQ_E_INVALID, "%lld calibration windows of %lld tokens are too many", (long long)nsamples,
                       (long long)seqlen);
    if (s->kvquant.sink >= seqlen)
        return dq_fail(DQ_E_INVALID, "kv_sink = %d leaves nothing of calibration windows of %lld tokens",
                       (int)s->kvquant.sink, (long long)seqlen);
    return DQ_OK;
}

dq_status dq_kv_job_new(dq_model *model, const dq_scheme *scheme, const int32_t *windows, int64_t nsamples,
                        int64_t seqlen, int math, dq_kv_job **out)
{
    const dq_arch *a = dq_model_arch(model);
    dq_env *env = dq_device_env(dq_model_device(model));
    int64_t together = seqlen < CHUNK_TOKENS ? CHUNK_TOKENS / (seqlen > 0 ? seqlen : 1) : 1;
    double start = dq_now();
    dq_status status;
    DQ_TRY(check_windows(scheme, windows, nsamples, seqlen));
    dq_kv_job *j = dq_calloc(env, 1, sizeof *j);
    if (!j) return DQ_E_NOMEM;
    j->env = env;
    j->dev = dq_model_device(model);
    j->model = dq_model_retain(model);
    j->scheme = *scheme;
    j->seqlen = seqlen;
    j->tokens = nsamples * seqlen;
    j->sink = scheme->kvquant.sink;
    j->counted = nsamples * (seqlen - j->sink);
    j->chunk = (together < nsamples ? together : nsamples) * seqlen;
    j->channels = a->kv_heads * a->head_dim;
    bool fits = scheme->kvquant.levels == DQ_KV_LEVELS_NUQ || scheme->kvquant.qnorm;
    j->fits_keys = fits && scheme->k.bits < 16;
    j->fits_values = fits && scheme->v.bits < 16;
    DQ_GO(dq_kv_tables_begin(model, scheme, &j->tables));
    DQ_GO(make_spec(j, math));
    DQ_GO(make_room(j));
    DQ_GO(open_hidden(j, windows));
    j->seconds = dq_now() - start;
    *out = j;
    return DQ_OK;
done:
    dq_kv_job_free(j);
    return status;
}

void dq_kv_job_free(dq_kv_job *j)
{
    if (!j) return;
    dq_hidden_close(&j->hidden);
    dq_block_spec_clear(&j->spec);
    dq_free(j->rows);
    dq_free(j->keys);
    dq_free(j->scratch);
    dq_free(j->histograms);
    dq_kv_tables_free(j->tables);
    dq_model_release(j->model);
    dq_free(j);
}

dq_status dq_kv_job_step(dq_kv_job *j, dq_progress *progress, bool *finished)
{
    double start = dq_now();
    if (j->failed || !j->tables || j->layer == j->tables->layers)
        return dq_fail(DQ_E_STATE, "the calibration of keys and values cannot go on");
    dq_status status = run_layer(j, progress);
    j->failed = status != DQ_OK;
    DQ_TRY(status);
    j->seconds += dq_now() - start;
    *finished = ++j->layer == j->tables->layers;
    return DQ_OK;
}

dq_kv_tables *dq_kv_job_take(dq_kv_job *j)
{
    dq_kv_tables *tables = j->tables;
    j->tables = NULL;
    return tables;
}

double dq_kv_job_seconds(const dq_kv_job *j) { return j->seconds; }
