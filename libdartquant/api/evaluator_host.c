/* dartquant/evaluator.h: perplexity from the host's logits. SPDX-License-Identifier: Apache-2.0 */
#include <math.h>

#include "api/check.h"
#include "api/evaluator_job.h"
#include "api/score.h"

dq_status dq_evaluator_copy_ids(const dq_evaluator *e, int64_t window, int32_t *out, size_t capacity)
{
    DQ_ENTER_CONTEXT(e->ctx, e && out);
    if (!e->ids) return dq_fail(DQ_E_STATE, "dq_evaluator_copy_ids before dq_evaluator_bind");
    int64_t windows = e->count / e->seqlen;
    if (window < 0 || window >= windows)
        return dq_fail(DQ_E_NOTFOUND, "window %lld of %lld", (long long)window, (long long)windows);
    if (capacity < (size_t)e->seqlen)
        return dq_fail(DQ_E_INVALID, "room for %zu ids, a window has %lld", capacity, (long long)e->seqlen);
    memcpy(out, e->ids + window * e->seqlen, (size_t)e->seqlen * sizeof *out);
    return DQ_OK;
}

/* Of one window: the mean loss, and how many targets have the largest logit. */
static dq_status window_loss(dq_evaluator *e, int64_t window, const float *logits, dq_host_window *out)
{
    int64_t n = e->seqlen - 1; /* the last position predicts nothing */
    double *nll = dq_alloc(&e->ctx->env, (size_t)n * sizeof *nll), sum = 0;
    int32_t *best = dq_alloc(&e->ctx->env, (size_t)n * sizeof *best);
    const int32_t *targets = e->ids + window * e->seqlen + 1;
    int64_t hits = 0;
    dq_status status =
        nll && best ? dq_score_rows(&e->ctx->env, logits, n, e->vocab, e->vocab, targets, nll, best) : DQ_E_NOMEM;
    for (int64_t i = 0; status == DQ_OK && i < n; i++) {
        const float *row = logits + i * e->vocab;
        sum += nll[i];
        hits += row[targets[i]] >= row[best[i]];
    }
    dq_free(nll);
    dq_free(best);
    if (status == DQ_OK) *out = (dq_host_window){sum / (double)n, hits};
    return status;
}

static dq_status finish_host(dq_evaluator *e, int64_t windows)
{
    dq_perplexity r = {.windows = windows, .seqlen = e->seqlen, .tokens = windows * e->seqlen};
    r.window_nll = dq_alloc(&e->ctx->env, (size_t)windows * sizeof *r.window_nll);
    if (!r.window_nll) return DQ_E_NOMEM;
    int64_t hits = 0;
    for (int64_t w = 0; w < windows; w++) {
        r.window_nll[w] = e->losses[w].nll;
        r.nll += e->losses[w].nll;
        hits += e->losses[w].hits;
    }
    r.nll /= (double)windows;
    r.ppl = exp(r.nll);
    r.accuracy = (double)hits / (double)(windows * (e->seqlen - 1));
    return dq_evaluator_publish(e, r);
}

dq_status dq_evaluator_add_logits(dq_evaluator *e, int64_t window, const float *logits, size_t capacity, int32_t *done)
{
    DQ_ENTER_CONTEXT(e->ctx, e && logits && done);
    int64_t windows = e->count / e->seqlen;
    size_t needed;
    dq_host_window loss = {0};
    if (e->model) return dq_fail(DQ_E_STATE, "this evaluator runs its own model: dq_evaluator_new_host takes logits");
    if (!e->ids) return dq_fail(DQ_E_STATE, "dq_evaluator_add_logits before dq_evaluator_bind");
    if (window < 0 || window >= windows)
        return dq_fail(DQ_E_NOTFOUND, "window %lld of %lld", (long long)window, (long long)windows);
    if (!dq_mul_ok((size_t)e->seqlen, (size_t)e->vocab, &needed) || capacity < needed)
        return dq_fail(DQ_E_INVALID, "%zu logits, a window has %lld x %lld", capacity, (long long)e->seqlen,
                       (long long)e->vocab);
    if (!e->losses) {
        e->losses = dq_alloc(&e->ctx->env, (size_t)windows * sizeof *e->losses);
        if (!e->losses) return DQ_E_NOMEM;
        for (int64_t w = 0; w < windows; w++) e->losses[w] = (dq_host_window){NAN, 0};
    }
    DQ_TRY(window_loss(e, window, logits, &loss));
    if (isnan(e->losses[window].nll)) e->losses_count++;
    e->losses[window] = loss;
    if (e->losses_count == windows) DQ_TRY(finish_host(e, windows));
    *done = e->losses_count == windows;
    return DQ_OK;
}
