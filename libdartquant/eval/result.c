/* From the sums of the last step to the results. SPDX-License-Identifier: Apache-2.0 */
#include <math.h>

#include "base/status.h"
#include "eval/job.h"

/* Means of the windows from the states of head_nll; a window without a finite loss is an error. `hits` counts targets
 * with the largest logit. */
static dq_status window_means(const dq_perplexity_job *r, const double *state, double *out, int64_t *hits)
{
    for (int64_t w = 0; w < r->windows; w++) {
        double sum = 0.0;
        for (int64_t i = 0; i < r->seqlen - 1; i++) {
            const double *s = state + (w * r->seqlen + i) * 3;
            double nll = log(s[1]) + s[0] - s[2];
            if (!isfinite(nll))
                return dq_fail(DQ_E_NONFINITE, "window %lld of %lld: the loss of token %lld is not finite",
                               (long long)w, (long long)r->windows, (long long)(w * r->seqlen + i + 1));
            sum += nll;
            *hits += s[2] >= s[0];
        }
        out[w] = sum / (double)(r->seqlen - 1);
    }
    return DQ_OK;
}

static dq_status collect(const dq_perplexity_job *r, dq_perplexity *out)
{
    int64_t hits = 0;
    double *state = dq_alloc(r->env, (size_t)(r->windows * r->seqlen) * 3 * sizeof *state);
    double *means = dq_alloc(r->env, (size_t)r->windows * sizeof *means);
    dq_status status = state && means ? dq_tensor_download(&r->state, state) : DQ_E_NOMEM;
    if (status == DQ_OK) status = window_means(r, state, means, &hits);
    dq_free(state);
    if (status != DQ_OK) {
        dq_free(means);
        return status;
    }
    double sum = 0.0;
    for (int64_t w = 0; w < r->windows; w++) sum += means[w];
    out->window_nll = means;
    out->nll = sum / (double)r->windows;
    out->ppl = exp(out->nll);
    out->accuracy = (double)hits / (double)(r->windows * (r->seqlen - 1));
    return DQ_OK;
}

/* The divergence of each position that predicts a token of its window, from the sums of compare_logits. Rounding may
 * leave it a little below zero where the two models agree. */
static dq_status compare(const dq_perplexity_job *r, const double *pairs, dq_perplexity *out)
{
    double sum = 0.0;
    int64_t same = 0, count = r->windows * (r->seqlen - 1);
    for (int64_t t = 0; t < r->windows * r->seqlen; t++) {
        const double *s = pairs + 7 * t;
        if ((t + 1) % r->seqlen == 0) continue;
        double kl = s[2] / s[1] - (log(s[1]) + s[0]) + (log(s[4]) + s[3]);
        if (!isfinite(kl))
            return dq_fail(DQ_E_NONFINITE,
                           "window %lld of %lld: the divergence from the reference after token %lld is not finite",
                           (long long)(t / r->seqlen), (long long)r->windows, (long long)t);
        if (kl < 0) kl = 0;
        if (kl > out->kl_max) out->kl_max = kl;
        sum += kl;
        same += s[5] == s[6];
    }
    out->compared = true;
    out->kl = sum / (double)count;
    out->agreement = (double)same / (double)count;
    return DQ_OK;
}

static dq_status collect_pairs(const dq_perplexity_job *r, dq_perplexity *out)
{
    double *pairs = dq_alloc(r->env, (size_t)(r->windows * r->seqlen) * 7 * sizeof *pairs);
    dq_status status = pairs ? dq_tensor_download(&r->pairs, pairs) : DQ_E_NOMEM;
    if (status == DQ_OK) status = compare(r, pairs, out);
    dq_free(pairs);
    return status;
}

dq_status dq_perplexity_job_result(const dq_perplexity_job *r, dq_perplexity *out)
{
    dq_perplexity result = {.windows = r->windows, .seqlen = r->seqlen, .tokens = r->windows * r->seqlen};
    dq_status status;
    if (r->position != r->steps) return dq_fail(DQ_E_STATE, "the evaluation is not finished");
    if (r->reference) DQ_TRY(collect_pairs(r, &result));
    DQ_TRY(collect(r, &result));
    status = dq_model_count_integers(r->model, &r->spec, &result.integers);
    if (status != DQ_OK) {
        dq_free(result.window_nll);
        return status;
    }
    result.seconds = r->seconds;
    *out = result;
    return DQ_OK;
}
