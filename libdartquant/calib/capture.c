/* Walking the calibration windows through the layers and showing what linears read. SPDX-License-Identifier: Apache-2.0 */
#include "calib/capture.h"

#include <math.h>
#include <string.h>

#include "base/status.h"

enum { CHUNK_TOKENS = 2048, MLP_TOKENS = 512 };

const char *dq_site_name(dq_site site)
{
    static const char *const names[DQ_SITES] = {"self_attn_q_proj", "self_attn_o_proj", "mlp_up_proj"};
    return names[site];
}

int64_t dq_site_width(const dq_arch *arch, dq_site site)
{
    return site == DQ_SITE_O ? arch->heads * arch->head_dim : arch->hidden;
}

/* ---- numbers that are none ---- */

static dq_status not_finite(const dq_capture *c, const char *what, int64_t token)
{
    return dq_fail(DQ_E_NONFINITE, "layer %lld: the %s of token %lld in window %lld is NaN or infinite",
                   (long long)c->layer, what, (long long)(token % c->seqlen), (long long)(token / c->seqlen));
}

static dq_status check_finite(const dq_capture *c, const char *what, int64_t first, const dq_tensor *x)
{
    int64_t index = -1;
    DQ_TRY(dq_op_find_nonfinite(x, &index));
    return index < 0 ? DQ_OK : not_finite(c, what, first + index / x->view.cols);
}

/* ---- norms ---- */

typedef struct norm_task {
    const float *rows;
    int64_t cols;
    double *out;
} norm_task;

static void row_norm(void *arg, int64_t i, int thread)
{
    (void)thread;
    const norm_task *t = arg;
    const float *row = t->rows + i * t->cols;
    double sum = 0;
    for (int64_t k = 0; k < t->cols; k++) sum += (double)row[k] * (double)row[k];
    t->out[i] = sqrt(sum);
}

static dq_status measure_here(dq_capture *c, int64_t first, const dq_tensor *rows)
{
    int64_t n = rows->view.rows, cols = rows->view.cols;
    float *host = dq_alloc(c->env, (size_t)n * (size_t)cols * sizeof *host); /* one chunk of a tensor that exists */
    if (!host) return DQ_E_NOMEM;
    dq_status status = dq_tensor_download(rows, host);
    if (status == DQ_OK) dq_run(c->env, n, row_norm, &(norm_task){host, cols, c->norms + first});
    dq_free(host);
    return status;
}

/* Where the host cannot look, so that only the norms cross the bus: x^2 = relu(x) x + relu(-x) (-x), and its product with ones. */
typedef struct squares {
    dq_tensor positive, negative; /* F32 [STEP, hidden] */
    dq_tensor minus, ones;        /* F32 [1, hidden] */
    dq_tensor sums;               /* F32 [rows, 1] */
} squares;
enum { STEP = 512 };

static dq_status square_rows(squares *s, const dq_tensor *x, dq_tensor *sums)
{
    dq_tensor p = dq_tensor_rows(&s->positive, 0, x->view.rows), n = dq_tensor_rows(&s->negative, 0, x->view.rows);
    DQ_TRY(dq_op_activation(DQ_ACT_RELU, x, x, &p));
    DQ_TRY(dq_op_scale_cols(x, &s->minus, &n));
    DQ_TRY(dq_op_activation(DQ_ACT_RELU, &n, &n, &n));
    DQ_TRY(dq_op_axpy(1.0, &n, &p));
    return dq_op_gemm(false, true, 1.0, &p, &s->ones, 0.0, sums, DQ_MATH_F32);
}

static dq_status measure_there(dq_capture *c, int64_t first, const dq_tensor *rows)
{
    int64_t n = rows->view.rows, cols = rows->view.cols, step = n < STEP ? n : STEP;
    squares s = {0};
    dq_status status = DQ_OK;
    float *host = dq_alloc(c->env, (size_t)n * sizeof *host);
    if (!host) return DQ_E_NOMEM;
    DQ_GO(dq_tensor_alloc(c->dev, DQ_F32, step, cols, &s.positive));
    DQ_GO(dq_tensor_alloc(c->dev, DQ_F32, step, cols, &s.negative));
    DQ_GO(dq_tensor_alloc(c->dev, DQ_F32, 1, cols, &s.minus));
    DQ_GO(dq_tensor_alloc(c->dev, DQ_F32, 1, cols, &s.ones));
    DQ_GO(dq_tensor_alloc(c->dev, DQ_F32, n, 1, &s.sums));
    DQ_GO(dq_op_fill(-1.0, &s.minus));
    DQ_GO(dq_op_fill(1.0, &s.ones));
    for (int64_t r = 0; r < n; r += step) {
        int64_t count = n - r < step ? n - r : step;
        dq_tensor part = dq_tensor_rows(rows, r, count), sums = dq_tensor_rows(&s.sums, r, count);
        DQ_GO(square_rows(&s, &part, &sums));
    }
    DQ_GO(dq_tensor_download(&s.sums, host));
    for (int64_t i = 0; i < n; i++) c->norms[first + i] = sqrt((double)host[i]);
done:
    dq_tensor_free(&s.positive);
    dq_tensor_free(&s.negative);
    dq_tensor_free(&s.minus);
    dq_tensor_free(&s.ones);
    dq_tensor_free(&s.sums);
    dq_free(host);
    return status;
}

static dq_status measure(dq_capture *c, int64_t first, const dq_tensor *rows)
{
    return dq_tensor_in_reach(rows) ? measure_here(c, first, rows) : measure_there(c, first, rows);
}

/* ---- chunks ---- */

static int64_t chunk_rows(const dq_capture *c, int64_t first)
{
    return c->tokens - first < c->chunk ? c->tokens - first : c->chunk;
}

/* Nobody reads what the last MLP makes. */
static bool is_last(const dq_capture *c) { return c->layer + 1 == dq_model_arch(c->model)->layers; }

/* Inputs are not looked through: what is not finite there is not finite in the result either, which is looked through once a
 * chunk. */
static dq_status show(const dq_capture *c, const dq_visitor *v, dq_site site, int64_t first, const dq_tensor *x)
{
    return v->inputs ? v->inputs(v->arg, &(dq_inputs){c->layer, first, site, x}) : DQ_OK;
}

static dq_status attention(dq_capture *c, const dq_visitor *v, const dq_block *b, dq_workspace *ws, int64_t first,
                           dq_tensor *h)
{
    DQ_TRY(dq_block_attn_in(&c->spec, b, h, ws));
    DQ_TRY(show(c, v, DQ_SITE_ATTN, first, &ws->x));
    DQ_TRY(dq_block_attn(&c->spec, b, ws));
    DQ_TRY(show(c, v, DQ_SITE_O, first, &ws->a));
    return dq_block_attn_out(&c->spec, b, &ws->a, ws, h);
}

/* The MLP knows no neighbours and runs in pieces. */
static dq_status mlp(dq_capture *c, const dq_visitor *v, const dq_block *b, dq_workspace *ws, int64_t first,
                     dq_tensor *h)
{
    int64_t step = ws->x.view.rows;
    for (int64_t r = 0; r < h->view.rows; r += step) {
        int64_t rows = h->view.rows - r < step ? h->view.rows - r : step;
        dq_tensor part = dq_tensor_rows(h, r, rows);
        dq_workspace cut = dq_workspace_rows(ws, rows);
        DQ_TRY(dq_block_mlp_in(&c->spec, b, &part, &cut));
        DQ_TRY(show(c, v, DQ_SITE_MLP, first + r, &cut.x));
        if (is_last(c)) continue;
        DQ_TRY(dq_block_mlp(&c->spec, b, &cut));
        DQ_TRY(dq_block_mlp_out(&c->spec, b, &cut, &part));
    }
    DQ_TRY(check_finite(c, "result", first, h));
    return c->wants_norms ? measure(c, first, h) : DQ_OK; /* this layer's were looked at when it began */
}

/* ---- halves ---- */

typedef struct half {
    int first, last; /* linears */
    dq_status (*alloc)(dq_device *dev, const dq_block_spec *spec, int64_t rows, dq_workspace *out);
    dq_status (*run)(dq_capture *c, const dq_visitor *v, const dq_block *b, dq_workspace *ws, int64_t first,
                     dq_tensor *h);
} half;

static const half halves[] = {{DQ_BLOCK_Q, DQ_BLOCK_O, dq_workspace_alloc_attention, attention},
                              {DQ_BLOCK_GATE, DQ_BLOCK_DOWN, dq_workspace_alloc_mlp, mlp}};
enum { MLP_HALF = 1 };

static dq_status load_half(const dq_capture *c, const half *part, dq_block *b)
{
    DQ_TRY(dq_model_load_frame(c->model, c->layer, b));
    for (int i = part->first; i <= part->last; i++)
        if (dq_arch_has(dq_model_arch(c->model), (dq_role)i) && (i != DQ_BLOCK_DOWN || !is_last(c)))
            DQ_TRY(dq_model_read_linear(c->model, c->layer, (dq_role)i, &b->linear[i]));
    return DQ_OK;
}

/* All windows through one half. */
static dq_status walk(dq_capture *c, const dq_visitor *v, const half *part)
{
    bool mlp_half = part == &halves[MLP_HALF];
    int64_t most = mlp_half && c->chunk > MLP_TOKENS ? MLP_TOKENS : c->chunk;
    dq_status status;
    dq_block block;
    dq_workspace ws;
    memset(&block, 0, sizeof block);
    memset(&ws, 0, sizeof ws);
    DQ_GO(load_half(c, part, &block));
    if (v->weights) DQ_GO(v->weights(v->arg, c->layer, &block));
    DQ_GO(part->alloc(c->dev, &c->spec, most, &ws));
    for (int64_t first = 0; first < c->tokens; first += c->chunk) {
        dq_tensor h;
        int64_t rows = chunk_rows(c, first), half_done = (c->tokens * mlp_half + first + rows) / 2;
        dq_workspace cut = mlp_half ? ws : dq_workspace_rows(&ws, rows);
        DQ_GO(dq_hidden_take(&c->hidden, first, rows, true, &h));
        DQ_GO(part->run(c, v, &block, &cut, first, &h));
        DQ_GO(dq_hidden_put(&c->hidden, first, &h));
        if (v->tick) DQ_GO(v->tick(v->arg, half_done));
    }
done:
    dq_workspace_free(&ws);
    dq_block_free(&block);
    return status;
}

dq_status dq_capture_layer(dq_capture *c, const dq_visitor *v)
{
    if (v->begin) DQ_TRY(v->begin(v->arg, c->layer));
    for (size_t i = 0; i < sizeof halves / sizeof *halves; i++) DQ_TRY(walk(c, v, &halves[i]));
    c->layer++;
    return DQ_OK;
}

/* ---- lifetime ---- */

dq_status dq_capture_check_model(dq_model *model)
{
    const dq_scheme *scheme = dq_model_scheme(model);
    if (!dq_model_is_fused(model)) return dq_fail(DQ_E_STATE, "calibration needs a model with fused norms");
    if (dq_model_rotations(model)) return dq_fail(DQ_E_STATE, "the model is rotated already");
    if (scheme) return dq_fail(DQ_E_STATE, "the model is quantized already");
    return DQ_OK;
}

static dq_status check_windows(const dq_arch *arch, const int32_t *windows, int64_t nsamples, int64_t seqlen)
{
    size_t tokens;
    if (!windows || nsamples < 1 || seqlen < 1)
        return dq_fail(DQ_E_INVALID, "calibration windows are needed: %lld of %lld tokens given", (long long)nsamples,
                       (long long)seqlen);
    if (!dq_mul_ok((size_t)nsamples, (size_t)seqlen, &tokens) || tokens > INT32_MAX)
        return dq_fail(DQ_E_INVALID, "%lld calibration windows of %lld tokens are too many", (long long)nsamples,
                       (long long)seqlen);
    for (size_t i = 0; i < tokens; i++)
        if (windows[i] < 0 || windows[i] >= arch->vocab)
            return dq_fail(DQ_E_MISMATCH, "token %d is outside the model's vocabulary of %lld", windows[i],
                           (long long)arch->vocab);
    return DQ_OK;
}

static dq_status embed(dq_capture *c, const int32_t *windows)
{
    for (int64_t first = 0; first < c->tokens; first += c->chunk) {
        dq_tensor h;
        DQ_TRY(dq_hidden_take(&c->hidden, first, chunk_rows(c, first), false, &h));
        DQ_TRY(dq_model_embed(c->model, windows + first, h.view.rows, c->seqlen, &h));
        DQ_TRY(check_finite(c, "embedding", first, &h));
        DQ_TRY(dq_hidden_put(&c->hidden, first, &h));
        if (c->wants_norms) DQ_TRY(measure(c, first, &h));
    }
    return DQ_OK;
}

dq_status dq_capture_new(dq_model *model, const int32_t *windows, int64_t nsamples, int64_t seqlen, int math,
                         uint64_t most, const char *folder, bool norms, dq_capture **out)
{
    const dq_arch *arch = dq_model_arch(model);
    dq_device *dev = dq_model_device(model);
    dq_status status;
    DQ_TRY(dq_capture_check_model(model));
    DQ_TRY(check_windows(arch, windows, nsamples, seqlen));
    dq_capture *c = dq_calloc(dq_device_env(dev), 1, sizeof *c);
    if (!c) return DQ_E_NOMEM;
    int64_t per_chunk = seqlen < CHUNK_TOKENS ? CHUNK_TOKENS / seqlen : 1;
    c->env = dq_device_env(dev);
    c->dev = dev;
    c->model = dq_model_retain(model);
    c->nsamples = nsamples;
    c->seqlen = seqlen;
    c->tokens = nsamples * seqlen;
    c->chunk = (per_chunk < nsamples ? per_chunk : nsamples) * seqlen;
    c->wants_norms = norms;
    DQ_GO(dq_model_block_spec(model, seqlen, math, &c->spec));
    const dq_hidden_room room = {.spare = dq_layer_room(arch, c->chunk), .most = most, .folder = folder};
    DQ_GO(dq_hidden_open(dev, c->tokens, arch->hidden, c->chunk, &room, &c->hidden));
    if (norms) c->norms = dq_alloc(c->env, (size_t)c->tokens * sizeof *c->norms);
    if (norms && !c->norms) DQ_GO(DQ_E_NOMEM);
    DQ_GO(embed(c, windows));
    *out = c;
    return DQ_OK;
done:
    dq_capture_free(c);
    return status;
}

dq_status dq_capture_resume(dq_capture *c, int64_t layer)
{
    if (layer < 0 || layer > dq_model_arch(c->model)->layers)
        return dq_fail(DQ_E_INVALID, "a pass cannot go on at layer %lld", (long long)layer);
    c->layer = layer;
    for (int64_t first = 0; c->wants_norms && first < c->tokens; first += c->chunk) {
        dq_tensor h;
        DQ_TRY(dq_hidden_take(&c->hidden, first, chunk_rows(c, first), true, &h));
        DQ_TRY(measure(c, first, &h));
    }
    return DQ_OK;
}

void dq_capture_free(dq_capture *c)
{
    if (!c) return;
    dq_block_spec_clear(&c->spec);
    dq_hidden_close(&c->hidden);
    dq_model_release(c->model);
    dq_free(c->norms);
    dq_free(c);
}
