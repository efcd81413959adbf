/* Tables of quantization levels on [-1, 1] and what KVQuant (Hooper et al., arXiv 2401.18079) learns from calibration data:
 * ranges as percentiles, non-uniform levels (NUQ), Q-Norm. SPDX-License-Identifier: Apache-2.0 */
#ifndef DQ_QUANT_LEVELS_H
#define DQ_QUANT_LEVELS_H

#include "base/env.h"
#include "base/scheme.h"

/* -1 + 2 i / (n - 1). */
void dq_levels_uniform(int64_t n, float *out);
/* Quantiles of the normal distribution (QLoRA, Dettmers et al., arXiv 2305.14314, as its authors' program builds them):
 * with p = 1 - (1/32 + 1/30) / 2, n/2 positive ones Phi^-1(p + i (1/2 - p) / (n/2)), n/2 - 1 negative ones
 * -Phi^-1(p + i (1/2 - p) / (n/2 - 1)), all over the largest, and 0. n: a power of two, at least 4. */
void dq_levels_normal(int64_t n, float *out);

/* lo, hi: the shares outliers/2 and 1 - outliers/2 of x as NumPy's linear percentiles, rounded to float; outliers 0 gives
 * smallest and largest. x is reordered (selection, expected linear time; the same order every time). n > 0, no NaN. */
void dq_percentiles(float *x, int64_t n, double outliers, float *lo, float *hi);
/* The element that stands at `rank` once x is sorted; x is reordered: none before it is larger, none behind it smaller. */
float dq_select(float *x, int64_t n, int64_t rank);

/* Weights and weighted sums of numbers in bins of equal width on [-1, 1]. Numbers outside are not counted. */
enum { DQ_LEVEL_BINS = 1 << 16 };
typedef struct dq_histogram {
    double weight[DQ_LEVEL_BINS], sum[DQ_LEVEL_BINS];
} dq_histogram;
static inline void dq_histogram_add(dq_histogram *h, float u, double weight)
{
    if (!(u >= -1 && u <= 1)) return;
    int32_t bin = (int32_t)((u + 1.0f) * (DQ_LEVEL_BINS / 2));
    if (bin == DQ_LEVEL_BINS) bin--;
    h->weight[bin] += weight;
    h->sum[bin] += weight * (double)u;
}
/* h += other */
void dq_histogram_merge(dq_histogram *h, const dq_histogram *other);

/* Levels (ascending, all different) with a small sum of weight * (u - nearest level)^2: Lloyd's iteration on the bins, at most
 * 50 times, from the optimum on DQ_LEVEL_COARSE coarse bins (dynamic programming), narrow ones where the weight is. Where there
 * are fewer different numbers than levels, the others lie in the middle of the widest gaps; nothing counted gives
 * dq_levels_uniform. */
enum { DQ_LEVEL_COARSE = 1024, DQ_LLOYD_ITERATIONS = 50 };
dq_status dq_levels_fit(dq_env *env, const dq_histogram *h, int64_t n, float *out);
/* The sum over the histogram, bins taken as their means. */
double dq_levels_error(const dq_histogram *h, int64_t n, const float *levels);

/* Q-Norm: scale and offset that give the levels of the counted numbers their mean and standard deviation; 1 and 0 where the
 * levels do not vary. */
void dq_levels_norm(const dq_histogram *h, int64_t n, const float *levels, float norm[2]);

#endif
