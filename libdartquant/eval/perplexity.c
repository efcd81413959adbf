/* Perplexity, layers outside and windows inside: the hidden states of all windows stay, one layer at a time is
 * read, and the head meets the loss tile by tile. SPDX-License-Identifier: Apache-2.0 */
#include "eval/perplexity.h"

#include <math.h>
#include <string.h>

#include "base/status.h"
#include "eval/job.h"

/* Rows of the head at a time: so many bytes of fp32, at most 8192. */
enum { TILE_ROWS = 8192, TILE_BYTES = 64 << 20 };

static const char STAGE_LAYERS[] = "perplexity";
static const char STAGE_HEAD[] = "perplexity head";

typedef dq_perplexity_job run;

static dq_tensor window_of(const dq_tensor *t, const run *r, int64_t w)
{
    return dq_tensor_rows(t, w * r->seqlen, r->seqlen);
}

static dq_status run_layer(run *r, int64_t layer, dq_workspace *ws)
{
    dq_block block;
    dq_status status = DQ_OK;
    uint64_t units = (uint64_t)(dq_model_arch(r->model)->layers * r->windows);
    DQ_TRY(dq_model_load_forward(r->model, layer, &r->spec, &block));
    for (int64_t w = 0; w < r->windows; w++) {
        dq_tensor h;
        DQ_GO(dq_hidden_take(&r->hidden, w * r->seqlen, r->seqlen, true, &h));
        DQ_GO(dq_block_forward(&r->spec, &block, ws, &h));
        DQ_GO(dq_hidden_put(&r->hidden, w * r->seqlen, &h));
        DQ_GO(dq_progress_report(r->progress, STAGE_LAYERS, (uint64_t)(layer * r->windows + w + 1), units, NAN));
    }
done:
    dq_block_free(&block);
    return status;
}

static dq_status layer_step(run *r)
{
    dq_workspace ws;
    dq_status status;
    memset(&ws, 0, sizeof ws);
    DQ_GO(dq_workspace_alloc_forward(dq_model_device(r->model), &r->spec, r->seqlen, &ws));
    DQ_GO(run_layer(r, r->position, &ws));
done:
    dq_workspace_free(&ws);
    return status;
}

/* Each position predicts the next token of its window; the last one predicts nothing. */
static dq_status upload_targets(run *r)
{
    int64_t n = r->windows * r->seqlen;
    int32_t *targets = dq_alloc(r->env, (size_t)n * sizeof *targets);
    if (!targets) return DQ_E_NOMEM;
    for (int64_t i = 0; i < n; i++) targets[i] = (i + 1) % r->seqlen != 0 ? r->ids[i + 1] : -1;
    dq_status status = dq_tensor_from_host(dq_model_device(r->model), DQ_I32, 1, n, targets, &r->targets);
    dq_free(targets);
    return status;
}

static dq_status start_loss(run *r)
{
    int64_t n = r->windows * r->seqlen;
    DQ_TRY(upload_targets(r));
    DQ_TRY(dq_tensor_alloc(dq_model_device(r->model), DQ_F64, n, 3, &r->state));
    DQ_TRY(dq_op_fill(-INFINITY, &r->state));
    dq_tensor sum = dq_tensor_slice(&r->state, 0, n, 1, 1);
    DQ_TRY(dq_op_fill(0.0, &sum));
    return r->reference ? dq_perplexity_start_pairs(r) : DQ_OK;
}

static int64_t tile_rows(const dq_arch *arch)
{
    int64_t tile = TILE_BYTES / 4 / arch->hidden / 256 * 256;
    return tile < 256 ? 256 : tile > TILE_ROWS ? TILE_ROWS : tile;
}

/* What comes after the layers: sums of all tokens, a tile of two heads and the logits of a piece from both. */
static uint64_t head_room(const dq_arch *arch, int64_t tokens)
{
    int64_t tile = tile_rows(arch);
    return (uint64_t)(tokens * (3 + 7) * 8 + tokens * 4 + 2 * tile * arch->hidden * 4 +
                      2 * DQ_PERPLEXITY_PIECE * tile * 4);
}

/* Where there is room, the head's tiles find all states rounded as their products would round them, each time again; states
 * that wait in memory of the host travel once, too. */
static dq_status round_states(run *r)
{
    dq_device *dev = dq_model_device(r->model);
    const dq_arch *arch = dq_model_arch(r->model);
    int64_t tokens = r->windows * r->seqlen, visit = dq_hidden_visit(&r->hidden, r->seqlen);
    uint64_t bytes = (uint64_t)tokens * (uint64_t)arch->hidden * 2, spare = head_room(arch, tokens), left;
    if (!dq_tensor_is_empty(&r->rounded) || !(r->spec.math & DQ_MATH_BF16) || !dq_device_rounds_inputs(dev))
        return DQ_OK;
    DQ_TRY(dq_device_memory_left(dev, &left));
    if (left == UINT64_MAX || bytes > left || spare > left - bytes) return DQ_OK;
    DQ_TRY(dq_tensor_alloc(dev, DQ_BF16, tokens, arch->hidden, &r->rounded));
    for (int64_t first = 0; first < tokens; first += visit) {
        int64_t rows = tokens - first < visit ? tokens - first : visit;
        dq_tensor h, to = dq_tensor_rows(&r->rounded, first, rows);
        DQ_TRY(dq_hidden_take(&r->hidden, first, rows, true, &h));
        DQ_TRY(dq_op_convert(&h, &to));
    }
    return DQ_OK;
}

dq_status dq_perplexity_head_input(run *r, int64_t first, int64_t rows, dq_tensor *out)
{
    if (dq_tensor_is_empty(&r->rounded)) return dq_hidden_take(&r->hidden, first, rows, true, out);
    *out = dq_tensor_rows(&r->rounded, first, rows);
    return DQ_OK;
}

static dq_status run_tile(run *r, int64_t first, int64_t rows)
{
    dq_tensor w = {0};
    dq_status status = DQ_OK;
    DQ_TRY(round_states(r));
    DQ_TRY(dq_model_read_head(r->model, first, rows, r->spec.math, &w));
    for (int64_t i = 0; i < r->windows; i++) {
        dq_tensor h, state = window_of(&r->state, r, i);
        DQ_GO(dq_perplexity_head_input(r, i * r->seqlen, r->seqlen, &h));
        dq_tensor targets = dq_tensor_slice(&r->targets, 0, 1, i * r->seqlen, r->seqlen);
        DQ_GO(dq_op_head_nll(&h, &w, &targets, first, &state, r->spec.math));
        DQ_GO(dq_progress_check(r->progress));
    }
    if (r->reference) DQ_GO(dq_perplexity_compare_tile(r, first, &w));
done:
    dq_tensor_free(&w);
    return status;
}

static dq_status final_norm(run *r)
{
    int64_t visit = dq_hidden_visit(&r->hidden, r->seqlen), tokens = r->windows * r->seqlen;
    for (int64_t first = 0; first < tokens; first += visit) {
        dq_tensor h;
        DQ_TRY(dq_hidden_take(&r->hidden, first, tokens - first < visit ? tokens - first : visit, true, &h));
        DQ_TRY(dq_model_final_norm(r->model, &r->spec, &h));
        DQ_TRY(dq_hidden_put(&r->hidden, first, &h));
    }
    return DQ_OK;
}

/* One tile of the vocabulary; the first brings the final norm and the fresh states. */
static dq_status head_step(run *r)
{
    const dq_arch *arch = dq_model_arch(r->model);
    int64_t first = (r->position - arch->layers) * r->tile;
    int64_t rows = arch->vocab - first < r->tile ? arch->vocab - first : r->tile;
    if (first == 0) {
        DQ_TRY(final_norm(r));
        DQ_TRY(start_loss(r));
    }
    DQ_TRY(run_tile(r, first, rows));
    return dq_progress_report(r->progress, STAGE_HEAD, (uint64_t)(first + rows), (uint64_t)arch->vocab, NAN);
}

static dq_status check(const dq_model *model, int64_t count, int64_t seqlen, int64_t limit)
{
    const dq_arch *a = dq_model_arch(model);
    if (seqlen < 2) return dq_fail(DQ_E_INVALID, "windows of %lld tokens, at least 2 are needed", (long long)seqlen);
    if (seqlen > INT32_MAX) return dq_fail(DQ_E_INVALID, "windows of %lld tokens", (long long)seqlen);
    if (limit < 0) return dq_fail(DQ_E_INVALID, "a limit of %lld windows", (long long)limit);
    if (count < seqlen)
        return dq_fail(DQ_E_TEXT, "the text has %lld tokens, one window needs %lld", (long long)count,
                       (long long)seqlen);
    size_t rows, bytes;
    if (!dq_mul_ok((size_t)count, (size_t)a->hidden, &rows) || !dq_mul_ok(rows, sizeof(float), &bytes))
        return dq_fail(DQ_E_NOMEM, "hidden states of %lld tokens overflow", (long long)count);
    return DQ_OK;
}

dq_status dq_perplexity_open_states(const dq_model *model, int64_t tokens, int64_t seqlen, dq_hidden *out)
{
    const dq_arch *arch = dq_model_arch(model);
    /* pieces of the comparison must fit in one visit, too */
    int64_t chunk = seqlen > DQ_PERPLEXITY_PIECE ? seqlen : DQ_PERPLEXITY_PIECE;
    uint64_t layer = dq_layer_room(arch, chunk), head = head_room(arch, tokens);
    const dq_hidden_room room = {.spare = layer > head ? layer : head, .most = UINT64_MAX, .folder = ""};
    return dq_hidden_open(dq_model_device(model), tokens, arch->hidden, chunk, &room, out);
}

static dq_status embed(run *r)
{
    int64_t visit = dq_hidden_visit(&r->hidden, r->seqlen), tokens = r->windows * r->seqlen;
    for (int64_t first = 0; first < tokens; first += visit) {
        int64_t rows = tokens - first < visit ? tokens - first : visit;
        dq_tensor h;
        DQ_TRY(dq_hidden_take(&r->hidden, first, rows, false, &h));
        DQ_TRY(dq_model_embed(r->model, r->ids + first, rows, r->seqlen, &h));
        DQ_TRY(dq_hidden_put(&r->hidden, first, &h));
    }
    return DQ_OK;
}

dq_status dq_perplexity_job_new(dq_model *model, const int32_t *ids, int64_t count, int64_t seqlen, int64_t limit,
                                int math, dq_perplexity_job **out)
{
    const dq_arch *arch = dq_model_arch(model);
    dq_device *dev = dq_model_device(model);
    double start = dq_now();
    dq_status status;
    DQ_TRY(check(model, count, seqlen, limit));
    if (arch->max_positions > 0 && seqlen > arch->max_positions)
        dq_log(dq_device_env(dev), DQ_LOG_WARNING, "windows of %lld tokens, but the model was made for %lld positions",
               (long long)seqlen, (long long)arch->max_positions);
    run *r = dq_calloc(dq_device_env(dev), 1, sizeof *r);
    if (!r) return DQ_E_NOMEM;
    r->env = dq_device_env(dev);
    r->model = dq_model_retain(model);
    r->seqlen = seqlen;
    r->windows = count / seqlen;
    if (limit > 0 && r->windows > limit) r->windows = limit;
    r->tile = tile_rows(arch);
    r->steps = arch->layers + (arch->vocab + r->tile - 1) / r->tile;
    size_t bytes = (size_t)(r->windows * seqlen) * sizeof *ids;
    r->ids = dq_alloc(r->env, bytes);
    DQ_GO(r->ids ? DQ_OK : DQ_E_NOMEM);
    memcpy(r->ids, ids, bytes);
    DQ_GO(dq_model_block_spec(model, seqlen, math, &r->spec));
    DQ_GO(dq_perplexity_open_states(model, r->windows * seqlen, seqlen, &r->hidden));
    DQ_GO(embed(r));
    r->seconds = dq_now() - start;
    *out = r;
    return DQ_OK;
done:
    dq_perplexity_job_free(r);
    return status;
}

void dq_perplexity_job_free(dq_perplexity_job *r)
{
    if (!r) return;
    dq_hidden_close(&r->hidden);
    dq_tensor_free(&r->rounded);
    dq_tensor_free(&r->targets);
    dq_tensor_free(&r->state);
    dq_tensor_free(&r->pairs);
    dq_block_spec_clear(&r->spec);
    dq_model_release(r->model);
    dq_free(r->ids);
    dq_free(r);
}

dq_status dq_perplexity_job_step(dq_perplexity_job *r, dq_progress *progress, bool *finished)
{
    if (r->failed) return dq_fail(DQ_E_STATE, "the evaluation failed before and cannot go on");
    if (r->position == r->steps) return dq_fail(DQ_E_STATE, "the evaluation is finished already");
    double start = dq_now();
    r->progress = progress;
    dq_status status = r->position < dq_model_arch(r->model)->layers ? layer_step(r) : head_step(r);
    r->progress = NULL;
    r->failed = status != DQ_OK; /* the hidden states are somewhere between two layers */
    DQ_TRY(status);
    r->seconds += dq_now() - start;
    *finished = ++r->position == r->steps;
    return DQ_OK;
}

int64_t dq_perplexity_job_position(const dq_perplexity_job *r) { return r->position; }
double dq_perplexity_job_seconds(const dq_perplexity_job *r) { return r->seconds; }

int dq_perplexity_job_tensors(const dq_perplexity_job *r, dq_tensor out[DQ_PERPLEXITY_TENSORS])
{
    const dq_tensor hidden = dq_hidden_tensor(&r->hidden), *const all[] = {&hidden, &r->state, &r->pairs};
    int count = 0;
    for (int i = 0; i < DQ_PERPLEXITY_TENSORS && !dq_tensor_is_empty(all[i]); i++)
        out[count++] = dq_tensor_rows(all[i], 0, all[i]->view.rows);
    return count;
}

dq_status dq_perplexity_job_compare(dq_perplexity_job *r, dq_reference_states *reference)
{
    const dq_arch *a = dq_model_arch(r->model), *b = dq_model_arch(reference->model);
    if (r->position != 0) return dq_fail(DQ_E_STATE, "the evaluation has begun: a reference comes before");
    if (a->vocab != b->vocab)
        return dq_fail(DQ_E_MISMATCH, "the reference has a vocabulary of %lld, the model of %lld", (long long)b->vocab,
                       (long long)a->vocab);
    if (r->windows != reference->windows || r->seqlen != reference->seqlen)
        return dq_fail(DQ_E_MISMATCH, "the reference was evaluated on %lld windows of %lld tokens, not %lld of %lld",
                       (long long)reference->windows, (long long)reference->seqlen, (long long)r->windows,
                       (long long)r->seqlen);
    r->reference = reference;
    return DQ_OK;
}

dq_status dq_perplexity_job_take_states(dq_perplexity_job *r, dq_hidden *out)
{
    if (r->position != r->steps) return dq_fail(DQ_E_STATE, "the evaluation is not finished");
    *out = r->hidden;
    r->hidden = (dq_hidden){0};
    return DQ_OK;
}

dq_status dq_perplexity_job_seek(dq_perplexity_job *r, int64_t position, double seconds)
{
    if (r->position != 0 || position < 1 || position >= r->steps)
        return dq_fail(DQ_E_INVALID, "step %lld of an evaluation of %lld", (long long)position, (long long)r->steps);
    if (position > dq_model_arch(r->model)->layers) DQ_TRY(start_loss(r));
    r->position = position;
    r->seconds += seconds;
    return DQ_OK;
}

dq_status dq_perplexity_run(dq_model *model, const int32_t *ids, int64_t count, int64_t seqlen, int64_t limit, int math,
                            dq_progress *progress, dq_perplexity *out)
{
    dq_perplexity_job *job;
    dq_status status = DQ_OK;
    DQ_TRY(dq_perplexity_job_new(model, ids, count, seqlen, limit, math, &job));
    for (bool finished = false; status == DQ_OK && !finished;)
        status = dq_perplexity_job_step(job, progress, &finished);
    if (status == DQ_OK) status = dq_perplexity_job_result(job, out);
    dq_perplexity_job_free(job);
    return status;
}
