/* Greedy choice, temperature, top-k and top-p (nucleus sampling, arXiv 1904.09751). SPDX-License-Identifier: Apache-2.0 */
#include "generate/sampler.h"

#include <math.h>
#include <stdlib.h>

#include "base/status.h"

typedef struct candidate {
    float logit;
    int32_t id;
} candidate;

dq_status dq_sampling_check(const dq_sampling *s)
{
    if (!(s->temperature >= 0) || !isfinite(s->temperature))
        return dq_fail(DQ_E_INVALID, "temperature %g, 0 or more is possible", s->temperature);
    if (s->top_k < 0) return dq_fail(DQ_E_INVALID, "top_k %lld, 0 or more is possible", (long long)s->top_k);
    if (!(s->top_p > 0 && s->top_p <= 1)) return dq_fail(DQ_E_INVALID, "top_p %g is not in (0, 1]", s->top_p);
    return DQ_OK;
}

static dq_status best(const float *logits, int64_t vocab, int32_t *out)
{
    int64_t at = 0;
    for (int64_t i = 0; i < vocab; i++) {
        if (!isfinite(logits[i])) return dq_fail(DQ_E_NONFINITE, "the logit of token %lld is not finite", (long long)i);
        if (logits[i] > logits[at]) at = i;
    }
    *out = (int32_t)at;
    return DQ_OK;
}

static int by_logit(const void *a, const void *b)
{
    const candidate *x = a, *y = b;
    if (x->logit != y->logit) return x->logit > y->logit ? -1 : 1;
    return x->id < y->id ? -1 : x->id > y->id;
}

/* SplitMix64 (Steele, Lea and Flood 2014) of the three numbers: a stream for each sequence without a state to keep. */
static uint64_t mix(uint64_t x)
{
    x += 0x9e3779b97f4a7c15u;
    x = (x ^ x >> 30) * 0xbf58476d1ce4e5b9u;
    x = (x ^ x >> 27) * 0x94d049bb133111ebu;
    return x ^ x >> 31;
}

static double uniform(uint64_t seed, int64_t sequence, int64_t position)
{
    uint64_t bits = mix(mix(mix(seed) ^ (uint64_t)sequence) ^ (uint64_t)position);
    return (double)(bits >> 11) * 0x1p-53;
}

/* How many of the sorted candidates it takes for their probabilities (in weight) to reach the share. */
static int64_t cut(const double *weight, int64_t n, double share)
{
    double total = 0, sum = 0;
    for (int64_t i = 0; i < n; i++) total += weight[i];
    for (int64_t i = 0; i < n; i++) {
        sum += weight[i];
        if (sum >= share * total) return i + 1;
    }
    return n;
}

static int32_t draw(const candidate *c, const double *weight, int64_t n, double u)
{
    double total = 0, sum = 0;
    for (int64_t i = 0; i < n; i++) total += weight[i];
    for (int64_t i = 0; i < n; i++) {
        sum += weight[i];
        if (u * total < sum) return c[i].id;
    }
    return c[n - 1].id;
}

dq_status dq_sample(dq_env *env, const dq_sampling *s, const float *logits, int64_t vocab, int64_t sequence,
                    int64_t position, int32_t *out)
{
    int32_t top = 0;
    DQ_TRY(best(logits, vocab, &top));
    if (s->temperature == 0 || s->top_k == 1) {
        *out = top;
        return DQ_OK;
    }
    candidate *c = dq_alloc(env, (size_t)vocab * (sizeof *c + sizeof(double)));
    if (!c) return DQ_E_NOMEM;
    double *weight = (double *)(void *)(c + vocab);
    int64_t n = 0;
    for (int64_t i = 0; i < vocab; i++) /* what is left out has e^-60 of the largest's probability */
        if ((double)logits[i] - logits[top] > -60 * s->temperature) c[n++] = (candidate){logits[i], (int32_t)i};
    qsort(c, (size_t)n, sizeof *c, by_logit);
    if (s->top_k > 0 && s->top_k < n) n = s->top_k;
    for (int64_t i = 0; i < n; i++) weight[i] = exp(((double)c[i].logit - c[0].logit) / s->temperature);
    if (s->top_p < 1) n = cut(weight, n, s->top_p);
    *out = draw(c, weight, n, uniform(s->seed, sequence, position));
    dq_free(c);
    return DQ_OK;
}
