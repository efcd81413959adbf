/* dartquant/tensor_ops.h: losses of the host's logits. SPDX-License-Identifier: Apache-2.0 */
#include "api/score.h"

#include <math.h>

#include "api/check.h"
#include "api/handles.h"
#include "dartquant/tensor_ops.h"

typedef struct score_job {
    const float *logits;
    int64_t vocab, row_stride;
    const int32_t *targets;
    double *nll;
    int32_t *best;
} score_job;

static void score_row(void *arg, int64_t r, int thread)
{
    (void)thread;
    const score_job *j = arg;
    const float *x = j->logits + r * j->row_stride;
    int64_t best = 0;
    double sum = 0, poison = 0;
    for (int64_t i = 1; i < j->vocab; i++)
        if (x[i] > x[best]) best = i;
    for (int64_t i = 0; i < j->vocab; i++) {
        sum += exp((double)x[i] - (double)x[best]);
        poison += isnan(x[i]) ? 1 : 0; /* comparisons pass NaN over */
    }
    if (j->best) j->best[r] = (int32_t)best;
    double lse = log(sum) + (double)x[best];
    if (poison > 0 || !isfinite(lse))
        j->nll[r] = NAN;
    else
        j->nll[r] = j->targets[r] < 0 ? 0.0 : lse - (double)x[j->targets[r]];
}

dq_status dq_score_rows(dq_env *env, const float *logits, int64_t rows, int64_t vocab, int64_t row_stride,
                        const int32_t *targets, double *nll, int32_t *best)
{
    score_job job = {logits, vocab, row_stride, targets, nll, best};
    for (int64_t r = 0; r < rows; r++)
        if (targets[r] < -1 || targets[r] >= vocab)
            return dq_fail(DQ_E_MISMATCH, "target %d of row %lld is outside the vocabulary of %lld", targets[r],
                           (long long)r, (long long)vocab);
    dq_run(env, rows, score_row, &job);
    for (int64_t r = 0; r < rows; r++)
        if (!isfinite(nll[r]))
            return dq_fail(DQ_E_NONFINITE, "the loss of row %lld is not finite: its logits hold NaN or Inf",
                           (long long)r);
    return DQ_OK;
}

dq_status dq_score_logits(dq_context *ctx, const float *logits, int64_t rows, int64_t vocab, int64_t row_stride,
                          const int32_t *targets, double *nll, int32_t *best)
{
    DQ_ENTER_CONTEXT(ctx, ctx && logits && targets && nll);
    size_t bytes;
    if (rows < 1 || vocab < 1 || vocab > INT32_MAX || row_stride < vocab ||
        !dq_mul_ok((size_t)rows, (size_t)row_stride * 8, &bytes))
        return dq_fail(DQ_E_INVALID, "logits of %lld x %lld, %lld elements apart", (long long)rows, (long long)vocab,
                       (long long)row_stride);
    double *losses = dq_alloc(&ctx->env, (size_t)rows * sizeof *losses);
    int32_t *largest = losses ? dq_alloc(&ctx->env, (size_t)rows * sizeof *largest) : NULL;
    dq_status status = largest ? DQ_OK : DQ_E_NOMEM;
    if (status == DQ_OK) status = dq_score_rows(&ctx->env, logits, rows, vocab, row_stride, targets, losses, largest);
    if (status == DQ_OK) memcpy(nll, losses, (size_t)rows * sizeof *nll);
    if (status == DQ_OK && best) memcpy(best, largest, (size_t)rows * sizeof *best);
    dq_free(losses);
    dq_free(largest);
    return status;
}
