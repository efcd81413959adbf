/* Non-uniform levels: weighted k-means in one dimension. Clusters of sorted numbers are intervals, so a run of bins is all
 * that has to be known of one, and sums over it are differences of prefix sums.
 * SPDX-License-Identifier: Apache-2.0 */
#include <math.h>
#include <stdlib.h>
#include <string.h>

#include "base/status.h"
#include "quant/levels.h"

enum { COARSE = DQ_LEVEL_COARSE, ROOM = COARSE + 2, MOST_LEVELS = 256 };
/* Bins that hold less than this share of all weight have no part in the start: differences of prefix sums lose them. */
static const double NEGLIGIBLE = 1e-12;

void dq_histogram_merge(dq_histogram *h, const dq_histogram *other)
{
    for (int64_t b = 0; b < DQ_LEVEL_BINS; b++) {
        h->weight[b] += other->weight[b];
        h->sum[b] += other->sum[b];
    }
}

double dq_levels_error(const dq_histogram *h, int64_t n, const float *levels)
{
    double error = 0;
    int64_t at = 0;
    for (int64_t b = 0; b < DQ_LEVEL_BINS; b++) {
        if (!(h->weight[b] > 0)) continue;
        double u = h->sum[b] / h->weight[b];
        while (at + 1 < n && fabs(u - (double)levels[at + 1]) < fabs(u - (double)levels[at])) at++;
        error += h->weight[b] * (u - (double)levels[at]) * (u - (double)levels[at]);
    }
    return error;
}

/* ---- start: the optimum on coarse bins ---- */

typedef struct fit {
    int64_t n; /* levels */
    double level[MOST_LEVELS];
    /* prefix sums: of the coarse bins that hold something, then of all bins */
    double *weight, *sum;
    /* of the dynamic program: best[c] for the first c coarse bins in k clusters, and where the last cluster begins */
    double square[ROOM], best[2][ROOM];
    int64_t count; /* coarse bins that hold something */
    uint16_t *begin;
} fit;

/* Squared error of coarse bins [a, b) around their mean. */
static double spread(const fit *f, int64_t a, int64_t b)
{
    double w = f->weight[b] - f->weight[a], s = f->sum[b] - f->sum[a];
    double e = f->square[b] - f->square[a] - (w > 0 ? s * s / w : 0);
    return e > 0 ? e : 0;
}

/* best[k & 1][c] for c in [from, to], whose last clusters begin in [low, high]: where they begin rises with c, so the middle
 * one halves the range of the others. */
static void divide(fit *f, int64_t k, int64_t from, int64_t to, int64_t low, int64_t high)
{
    if (from > to) return;
    int64_t c = (from + to) / 2, at = low, end = high < c - 1 ? high : c - 1;
    double least = INFINITY;
    for (int64_t b = low; b <= end; b++) {
        double e = f->best[(k - 1) & 1][b] + spread(f, b, c);
        if (e >= least) continue;
        least = e;
        at = b;
    }
    f->best[k & 1][c] = least;
    f->begin[k * ROOM + c] = (uint16_t)at;
    divide(f, k, from, c - 1, low, at);
    divide(f, k, c + 1, to, at, high);
}

/* More coarse bins hold something than there are levels: every cluster has one at least. */
static void start_optimal(fit *f)
{
    for (int64_t c = 1; c <= f->count; c++) f->best[1][c] = spread(f, 0, c);
    for (int64_t k = 2; k <= f->n; k++) divide(f, k, k, f->count, k - 1, f->count - 1);
    for (int64_t k = f->n, end = f->count; k > 0; k--) {
        int64_t first = k > 1 ? f->begin[k * ROOM + end] : 0;
        f->level[k - 1] = (f->sum[end] - f->sum[first]) / (f->weight[end] - f->weight[first]);
        end = first;
    }
}

/* `have` sorted levels become n: each new one lies in the middle of the widest gap, the ends of [-1, 1] counted. */
static void fill_gaps(fit *f, int64_t have)
{
    for (; have < f->n; have++) {
        int64_t at = 0;
        double widest = -1, middle = 0;
        for (int64_t i = 0; i <= have; i++) {
            double low = i > 0 ? f->level[i - 1] : -1, high = i < have ? f->level[i] : 1;
            if (high - low <= widest) continue;
            widest = high - low;
            middle = 0.5 * (low + high);
            at = i;
        }
        memmove(f->level + at + 1, f->level + at, (size_t)(have - at) * sizeof *f->level);
        f->level[at] = middle;
    }
}

/* A coarse bin ends where it holds so much, or is so wide: narrow ones where the weight is. */
static void gather_coarse(fit *f, const dq_histogram *h)
{
    double total = 0, w = 0, s = 0;
    int64_t width = 0;
    f->count = 0;
    f->weight[0] = f->sum[0] = f->square[0] = 0;
    for (int64_t b = 0; b < DQ_LEVEL_BINS; b++) total += h->weight[b];
    for (int64_t b = 0; b < DQ_LEVEL_BINS; b++) {
        w += h->weight[b];
        s += h->sum[b];
        bool full = w * (COARSE / 2) >= total || ++width == 2 * (DQ_LEVEL_BINS / COARSE) || b == DQ_LEVEL_BINS - 1;
        if (!full) continue;
        if (w > NEGLIGIBLE * total) {
            int64_t i = f->count++;
            f->level[i < f->n ? i : 0] = s / w; /* should they be few */
            f->weight[i + 1] = f->weight[i] + w;
            f->sum[i + 1] = f->sum[i] + s;
            f->square[i + 1] = f->square[i] + s * s / w;
        }
        w = s = 0;
        width = 0;
    }
}

/* ---- Lloyd ---- */

/* The first bin that is nearer to the upper one of two levels: a boundary inside a bin goes to its lower edge, or its upper
 * one, whichever is nearer. */
static int64_t boundary(double low, double high)
{
    double at = (0.5 * (low + high) + 1) * (DQ_LEVEL_BINS / 2);
    int64_t bin = (int64_t)floor(at + 0.5);
    return bin < 0 ? 0 : bin > DQ_LEVEL_BINS ? DQ_LEVEL_BINS : bin;
}

static void prefix_sums(fit *f, const dq_histogram *h)
{
    f->weight[0] = f->sum[0] = 0;
    for (int64_t b = 0; b < DQ_LEVEL_BINS; b++) {
        f->weight[b + 1] = f->weight[b] + h->weight[b];
        f->sum[b + 1] = f->sum[b] + h->sum[b];
    }
}

/* An empty cluster keeps its level. */
static bool iterate(fit *f)
{
    bool moved = false;
    int64_t first = 0;
    double next[MOST_LEVELS];
    for (int64_t k = 0; k < f->n; k++) {
        int64_t end = k + 1 < f->n ? boundary(f->level[k], f->level[k + 1]) : DQ_LEVEL_BINS;
        double w = f->weight[end] - f->weight[first], s = f->sum[end] - f->sum[first];
        next[k] = f->level[k];
        if (w > 0 && end > first) {
            /* rounding of the sums must not carry a level out of its bins */
            double low = -1 + 2.0 * (double)first / DQ_LEVEL_BINS, high = -1 + 2.0 * (double)end / DQ_LEVEL_BINS;
            next[k] = fmin(fmax(s / w, low), high);
        }
        moved = moved || fabs(next[k] - f->level[k]) > 1e-9;
        first = end;
    }
    memcpy(f->level, next, (size_t)f->n * sizeof *next);
    return moved;
}

/* As floats, ascending and all different, on [-1, 1]. */
static void put_levels(const fit *f, float *out)
{
    for (int64_t k = 0; k < f->n; k++) {
        out[k] = (float)f->level[k];
        if (k > 0 && !(out[k] > out[k - 1])) out[k] = nextafterf(out[k - 1], 2.0f);
    }
    float most = 1;
    for (int64_t k = f->n - 1; k >= 0 && out[k] > most; k--) {
        out[k] = most;
        most = nextafterf(most, -2.0f);
    }
}

dq_status dq_levels_fit(dq_env *env, const dq_histogram *h, int64_t n, float *out)
{
    if (n < 2 || n > MOST_LEVELS) return dq_fail(DQ_E_INTERNAL, "a fit of %lld levels", (long long)n);
    fit *f = dq_calloc(env, 1, sizeof *f);
    dq_status status = DQ_E_NOMEM;
    if (!f) return status;
    f->n = n;
    f->weight = dq_alloc(env, (DQ_LEVEL_BINS + 1) * sizeof *f->weight);
    f->sum = dq_alloc(env, (DQ_LEVEL_BINS + 1) * sizeof *f->sum);
    f->begin = dq_alloc(env, (size_t)(n + 1) * ROOM * sizeof *f->begin);
    if (f->weight && f->sum && f->begin) {
        status = DQ_OK;
        gather_coarse(f, h);
        if (f->count == 0) {
            dq_levels_uniform(n, out);
        } else {
            if (f->count > n)
                start_optimal(f);
            else
                fill_gaps(f, f->count);
            prefix_sums(f, h);
            for (int i = 0; i < DQ_LLOYD_ITERATIONS && iterate(f); i++) continue;
            put_levels(f, out);
        }
    }
    dq_free(f->begin);
    dq_free(f->sum);
    dq_free(f->weight);
    dq_free(f);
    return status;
}
