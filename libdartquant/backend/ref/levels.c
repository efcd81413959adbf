/* Quantization to given levels (KVQuant, arXiv 2401.18079). fp32, one rounding per operation: every backend must give
 * exactly these values. SPDX-License-Identifier: Apache-2.0 */
#include <math.h>
#include <stdlib.h>
#include <string.h>

#include "backend/ref/ops.h"

typedef struct job {
    const dq_levels_quant_desc *d;
    const float *level;
    int64_t levels;
} job;

/* The nearest level of x in the range [lo, hi]. */
static float quantize(const job *j, float x, float lo, float hi)
{
    float z = (hi + lo) * 0.5f, r = (hi - lo) * 0.5f;
    if (x != x) return x;
    if (r == 0) return z;
    float u = (x - z) / r;
    int64_t i = 0;
    while (i + 1 < j->levels && (j->level[i] + j->level[i + 1]) * 0.5f < u) i++;
    return (j->level[i] * j->d->norm_scale + j->d->norm_offset) * r + z;
}

static int ascending(const void *a, const void *b)
{
    float x = *(const float *)a, y = *(const float *)b;
    return (x > y) - (x < y);
}

/* From `first`, f of the way to `next`. */
static float between(float first, float next, double f)
{
    if (f == 0 || isinf(first) || first == next) return first;
    return (float)(first + f * ((double)next - first));
}

typedef struct row_range {
    float lo, hi;    /* to be quantized in */
    float low, high; /* at and beyond these are outliers, where there are any */
} row_range;

/* `a`: the row in order; overwritten. */
static row_range find_range(double outliers, float *a, int64_t n)
{
    row_range t = {a[0], a[n - 1], a[0], a[n - 1]};
    if (outliers == 0) return t;
    double p = outliers * 0.5 * (double)(n - 1), f = p - floor(p);
    int64_t i = (int64_t)p;
    t.low = between(a[i], f > 0 ? a[i + 1] : a[i], f);
    t.high = between(a[n - 1 - i], f > 0 ? a[n - 2 - i] : a[n - 1 - i], f);
    float median = a[(n - 1) / 2];
    t.lo = t.hi = median;
    for (i = 0; i < n; i++) {
        float v = a[i] <= t.low || a[i] >= t.high ? median : a[i];
        if (v < t.lo) t.lo = v;
        if (v > t.hi) t.hi = v;
    }
    return t;
}

static void quantize_row(const job *j, const float *x, float *y, int64_t n, float *sorted)
{
    bool whole = true;
    for (int64_t c = 0; c < n; c++) whole = whole && x[c] == x[c];
    if (!whole) {
        for (int64_t c = 0; c < n; c++) y[c] = NAN;
        return;
    }
    memcpy(sorted, x, (size_t)n * sizeof *x);
    qsort(sorted, (size_t)n, sizeof *x, ascending);
    row_range t = find_range(j->d->outliers, sorted, n);
    bool keep = j->d->keep_outliers && j->d->outliers > 0;
    for (int64_t c = 0; c < n; c++)
        y[c] = keep && (x[c] <= t.low || x[c] >= t.high) ? x[c] : quantize(j, x[c], t.lo, t.hi);
}

static void quantize_columns(const job *j, const float *x, const float *lo, const float *hi, float *y, int64_t n)
{
    for (int64_t c = 0; c < n; c++)
        y[c] = j->d->keep_outliers && (x[c] < lo[c] || x[c] > hi[c]) ? x[c] : quantize(j, x[c], lo[c], hi[c]);
}

dq_status dq_ref_levels_quant(void *dev, const dq_levels_quant_desc *d, const dq_view *x, const dq_view *range,
                              const dq_view *levels, const dq_view *position, const dq_view *y)
{
    const job j = {d, dq_view_f32(levels, 0), levels->cols};
    const int32_t *at = position ? dq_view_i32(position, 0) : NULL;
    float *sorted = d->per_row ? dq_ref_scratch(dev, x->cols, sizeof *sorted) : NULL;
    if (d->per_row && !sorted) return DQ_E_NOMEM;
    for (int64_t r = 0; r < x->rows; r++) {
        const float *in = dq_view_f32(x, r);
        float *out = dq_view_f32(y, r);
        int64_t place = at ? at[r] : d->sink > 0 ? r % d->seqlen : 0;
        if (place < d->sink)
            memmove(out, in, (size_t)x->cols * sizeof *out);
        else if (d->per_row)
            quantize_row(&j, in, out, x->cols, sorted);
        else
            quantize_columns(&j, in, dq_view_f32(range, 0), dq_view_f32(range, 1), out, x->cols);
    }
    dq_ref_release(dev, sorted);
    return DQ_OK;
}
