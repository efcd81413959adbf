/* Levels of keys and values, from the definition in backend.h. SPDX-License-Identifier: Apache-2.0 */
#include <math.h>
#include <stdlib.h>
#include <string.h>

#include "farsim.h"

static int order(const void *a, const void *b)
{
    float x = *(const float *)a, y = *(const float *)b;
    return (x > y) - (x < y);
}

static float level_of(const dq_levels_quant_desc *d, const far_mat *levels, float x, float lo, float hi)
{
    const float *l = far_f32(levels, 0);
    float z = 0.5f * (hi + lo), r = 0.5f * (hi - lo), u = (x - z) / r;
    int64_t best = levels->cols - 1;
    if (isnan(x)) return x;
    if (r == 0) return z;
    while (best > 0 && !(u > 0.5f * (l[best - 1] + l[best]))) best--;
    float level = l[best] * d->norm_scale;
    level += d->norm_offset;
    level *= r;
    return level + z;
}

/* `part` of the way from one of two neighbours to the other. */
static float mix(float from, float to, double part)
{
    return part == 0 || isinf(from) || from == to ? from : (float)(from + part * ((double)to - from));
}

/* Bounds of outliers, range of the others with the median; false where the row holds a NaN. */
static bool row_range(double share, const float *x, int64_t n, float *sorted, float bound[2], float range[2])
{
    memcpy(sorted, x, (size_t)n * sizeof *x);
    for (int64_t i = 0; i < n; i++)
        if (isnan(x[i])) return false;
    qsort(sorted, (size_t)n, sizeof *x, order);
    range[0] = sorted[0];
    range[1] = sorted[n - 1];
    if (share == 0) return true;
    double place = share * 0.5 * (double)(n - 1), part = place - floor(place);
    int64_t i = (int64_t)place, step = part > 0;
    bound[0] = mix(sorted[i], sorted[i + step], part);
    bound[1] = mix(sorted[n - 1 - i], sorted[n - 1 - i - step], part);
    range[0] = range[1] = sorted[(n - 1) / 2];
    for (i = 0; i < n; i++) {
        if (x[i] <= bound[0] || x[i] >= bound[1]) continue;
        range[0] = fminf(range[0], x[i]);
        range[1] = fmaxf(range[1], x[i]);
    }
    return true;
}

void far_k_levels_quant(far_dev *dev, far_cmd *c)
{
    const dq_levels_quant_desc *d = &c->d.levels;
    const far_mat *x = &c->mat[0], *range = &c->mat[1], *levels = &c->mat[2], *position = &c->mat[3], *y = &c->mat[4];
    float *sorted = malloc((size_t)x->cols * sizeof *sorted);
    if (!sorted) far_break(dev, DQ_E_DEVICE_MEMORY, FAR_OUT_OF_MEMORY, "no room for a row");
    for (int64_t r = 0; sorted && r < x->rows; r++) {
        const float *in = far_f32(x, r);
        float *out = far_f32(y, r), own[2] = {0}, bound[2] = {-INFINITY, INFINITY};
        double place = position->at ? far_get(position, 0, r) : d->sink > 0 ? (double)(r % d->seqlen) : 0;
        if (place < d->sink) {
            memmove(out, in, (size_t)x->cols * sizeof *in);
            continue;
        }
        bool whole = !d->per_row || row_range(d->outliers, in, x->cols, sorted, bound, own);
        bool keep = d->keep_outliers && (!d->per_row || d->outliers > 0);
        for (int64_t k = 0; k < x->cols; k++) {
            float lo = d->per_row ? own[0] : far_f32(range, 0)[k], hi = d->per_row ? own[1] : far_f32(range, 1)[k];
            bool outside = d->per_row ? in[k] <= bound[0] || in[k] >= bound[1] : in[k] < lo || in[k] > hi;
            out[k] = !whole ? NAN : keep && outside ? in[k] : level_of(d, levels, in[k], lo, hi);
        }
    }
    free(sorted);
}
