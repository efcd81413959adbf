/* Level tables that need no data, percentiles by selection, Q-Norm. SPDX-License-Identifier: Apache-2.0 */
#include "quant/levels.h"

#include <math.h>

void dq_levels_uniform(int64_t n, float *out)
{
    for (int64_t i = 0; i < n; i++) out[i] = (float)(-1.0 + 2.0 * (double)i / (double)(n - 1));
}

/* Phi^-1 for p in (1/2, 1): Newton's method on Phi, which is concave there, from the left: no step goes too far. */
static double normal_quantile(double p)
{
    static const double root_half = 0.70710678118654752440, root_2pi = 2.50662827463100050242;
    double x = 0;
    for (int i = 0; i < 60; i++) {
        double step = (p - 0.5 * erfc(-x * root_half)) * root_2pi * exp(0.5 * x * x);
        x += step;
        if (fabs(step) < 1e-15) break;
    }
    return x;
}

void dq_levels_normal(int64_t n, float *out)
{
    double p = 1 - 0.5 * (1.0 / 32 + 1.0 / 30), largest = normal_quantile(p);
    int64_t half = n / 2;
    for (int64_t i = 0; i < half; i++) {
        double positive = p + (double)i * (0.5 - p) / (double)half;
        out[n - 1 - i] = (float)(normal_quantile(positive) / largest);
        if (i == half - 1) continue;
        double negative = p + (double)i * (0.5 - p) / (double)(half - 1);
        out[i] = (float)(-normal_quantile(negative) / largest);
    }
    out[half - 1] = 0;
}

/* ---- percentiles ---- */

static void swap(float *a, float *b)
{
    float t = *a;
    *a = *b;
    *b = t;
}

static float median3(float a, float b, float c)
{
    if ((a <= b) == (b <= c)) return b;
    return (b <= a) == (a <= c) ? a : c;
}

/* Hoare's selection; the pivot is the median of three elements drawn by a fixed generator, so that no order of the data is
 * known to be slow. */
float dq_select(float *x, int64_t n, int64_t rank)
{
    uint64_t state = 0x9e3779b97f4a7c15u;
    int64_t first = 0, last = n - 1;
    while (first < last) {
        float pick[3];
        for (int i = 0; i < 3; i++) {
            state = state * 6364136223846793005u + 1442695040888963407u;
            pick[i] = x[first + (int64_t)((state >> 33) % (uint64_t)(last - first + 1))];
        }
        float pivot = median3(pick[0], pick[1], pick[2]);
        int64_t i = first, j = last;
        while (i <= j) {
            while (x[i] < pivot) i++;
            while (x[j] > pivot) j--;
            if (i <= j) swap(&x[i++], &x[j--]);
        }
        if (rank <= j)
            last = j;
        else if (rank >= i)
            first = i;
        else
            break; /* between the two parts all equal the pivot */
    }
    return x[rank];
}

/* The element at `at`, which may lie between two: linear interpolation. */
static double interpolated(float *x, int64_t n, double at)
{
    int64_t rank = (int64_t)floor(at);
    if (rank > n - 1) rank = n - 1;
    double below = dq_select(x, n, rank), part = at - (double)rank;
    if (rank == n - 1 || part <= 0) return below;
    float above = x[rank + 1];
    for (int64_t i = rank + 2; i < n; i++)
        if (x[i] < above) above = x[i];
    return below + part * ((double)above - below);
}

void dq_percentiles(float *x, int64_t n, double outliers, float *lo, float *hi)
{
    float least = x[0], most = x[0];
    for (int64_t i = 1; i < n; i++) {
        if (x[i] < least) least = x[i];
        if (x[i] > most) most = x[i];
    }
    *lo = least;
    *hi = most;
    if (outliers <= 0) return;
    *lo = (float)interpolated(x, n, 0.5 * outliers * (double)(n - 1));
    *hi = (float)interpolated(x, n, (1 - 0.5 * outliers) * (double)(n - 1));
}

/* ---- Q-Norm ---- */

void dq_levels_norm(const dq_histogram *h, int64_t n, const float *levels, float norm[2])
{
    double weight = 0, sum[2] = {0}, square[2] = {0};
    int64_t at = 0;
    for (int64_t b = 0; b < DQ_LEVEL_BINS; b++) {
        if (!(h->weight[b] > 0)) continue;
        double u = h->sum[b] / h->weight[b];
        while (at + 1 < n && fabs(u - (double)levels[at + 1]) < fabs(u - (double)levels[at])) at++;
        double q = levels[at];
        weight += h->weight[b];
        sum[0] += h->weight[b] * u;
        sum[1] += h->weight[b] * q;
        square[0] += h->weight[b] * u * u;
        square[1] += h->weight[b] * q * q;
    }
    norm[0] = 1;
    norm[1] = 0;
    if (!(weight > 0)) return;
    double mean[2], deviation[2];
    for (int i = 0; i < 2; i++) {
        mean[i] = sum[i] / weight;
        deviation[i] = sqrt(fmax(0, square[i] / weight - mean[i] * mean[i]));
    }
    if (!(deviation[1] > 1e-9) || !(deviation[0] > 1e-9)) return;
    norm[0] = (float)(deviation[0] / deviation[1]);
    norm[1] = (float)(mean[0] - mean[1] * deviation[0] / deviation[1]);
}
