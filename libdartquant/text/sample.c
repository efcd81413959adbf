/* Calibration windows as the GPTQ and QuaRot loaders draw them: Python's random.seed(seed), then per sample
 * random.randint. SPDX-License-Identifier: Apache-2.0 */
#include <string.h>

#include "base/rng.h"
#include "base/status.h"
#include "text/dataset.h"

/* random.randint(0, length - seqlen - 1): the last window of a text is never drawn. */
static int64_t draw_start(dq_rng *rng, int64_t length, int64_t seqlen)
{
    return (int64_t)dq_rng_below(rng, (uint64_t)(length - seqlen));
}

/* A document at random until one holds a window, then the window. Where a document has exactly one window, it is
 * taken without a draw (the original fails there: its range is empty). */
static int64_t draw_in_documents(dq_rng *rng, const dq_token_stream *s, int64_t seqlen)
{
    for (;;) {
        int64_t d = (int64_t)dq_rng_below(rng, (uint64_t)s->document_count);
        int64_t length = s->documents[d + 1] - s->documents[d];
        if (length < seqlen) continue;
        return s->documents[d] + (length > seqlen ? draw_start(rng, length, seqlen) : 0);
    }
}

static dq_status check(const dq_token_stream *s, int64_t nsamples, int64_t seqlen)
{
    if (nsamples < 1 || seqlen < 1)
        return dq_fail(DQ_E_INVALID, "%lld samples of %lld tokens", (long long)nsamples, (long long)seqlen);
    if (!s->documents) {
        if ((int64_t)s->ids.count > seqlen) return DQ_OK;
        return dq_fail(DQ_E_TEXT, "'%.200s' has %zu tokens; drawing windows of %lld needs at least %lld", s->name,
                       s->ids.count, (long long)seqlen, (long long)seqlen + 1);
    }
    if (seqlen < s->document_min)
        return dq_fail(DQ_E_INVALID, "'%.200s' was read for windows of %lld tokens or more, %lld were asked for",
                       s->name, (long long)s->document_min, (long long)seqlen);
    int64_t longest = 0;
    for (int64_t d = 0; d < s->document_count; d++)
        if (s->documents[d + 1] - s->documents[d] > longest) longest = s->documents[d + 1] - s->documents[d];
    if (longest >= seqlen) return DQ_OK;
    return dq_fail(DQ_E_TEXT, "the longest of the %lld documents of '%.200s' has %lld tokens, a window %lld",
                   (long long)s->document_count, s->name, (long long)longest, (long long)seqlen);
}

dq_status dq_stream_sample(dq_env *env, const dq_token_stream *stream, uint64_t seed, int64_t nsamples, int64_t seqlen,
                           dq_ids *out)
{
    DQ_TRY(check(stream, nsamples, seqlen));
    size_t count, bytes;
    if (!dq_mul_ok((size_t)nsamples, (size_t)seqlen, &count) || !dq_mul_ok(count, sizeof(int32_t), &bytes))
        return dq_fail(DQ_E_NOMEM, "%lld windows of %lld tokens do not fit in memory", (long long)nsamples,
                       (long long)seqlen);
    int32_t *ids = dq_alloc(env, bytes);
    if (!ids) return DQ_E_NOMEM;
    dq_rng rng;
    dq_rng_seed_python(&rng, seed);
    for (int64_t i = 0; i < nsamples; i++) {
        int64_t start = stream->documents ? draw_in_documents(&rng, stream, seqlen)
                                          : draw_start(&rng, (int64_t)stream->ids.count, seqlen);
        memcpy(ids + i * seqlen, stream->ids.data + start, (size_t)seqlen * sizeof *ids);
    }
    *out = (dq_ids){ids, count};
    return DQ_OK;
}
