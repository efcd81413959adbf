/* Scale and zero point of weight groups, with the clip search of GPTQ (arXiv 2210.17323) and QuaRot.
 * SPDX-License-Identifier: Apache-2.0 */
#include <math.h>

#include "backend/ref/ops.h"

typedef struct weight_range {
    float lo, hi; /* lo <= 0 <= hi */
    float absmax; /* at least 1e-5 */
} weight_range;

static const float smallest_range = 1e-5f;

static weight_range find_range(const float *w, int64_t n)
{
    weight_range range = {0, 0, 0};
    for (int64_t i = 0; i < n; i++) {
        range.lo = fminf(range.lo, w[i]);
        range.hi = fmaxf(range.hi, w[i]);
    }
    range.absmax = fmaxf(fmaxf(-range.lo, range.hi), smallest_range);
    return range;
}

/* Parameters of the range shrunk by p. */
static void grid_of(const dq_grid_desc *d, const weight_range *range, float p, float *scale, float *zero)
{
    if (d->symmetric) {
        *scale = p * range->absmax / (float)((1 << (d->bits - 1)) - 1);
        *zero = (float)(1 << (d->bits - 1));
        return;
    }
    float lo = p * range->lo, hi = p * range->hi;
    *scale = fmaxf(hi - lo, smallest_range) / (float)((1 << d->bits) - 1);
    *zero = rintf(-lo / *scale) + 0.0f; /* never -0 */
}

/* sum |q(w) - w|^norm; q(w) and the difference are fp32, the power and the sum fp64. */
static double grid_error(const dq_grid_desc *d, const float *w, int64_t n, float scale, float zero)
{
    float top = (float)((1 << d->bits) - 1);
    double sum = 0;
    for (int64_t i = 0; i < n; i++) {
        float code = fminf(fmaxf(rintf(w[i] / scale) + zero, 0), top);
        float difference = scale * (code - zero) - w[i];
        sum += pow(fabsf(difference), d->search_norm);
    }
    return sum;
}

/* Of equal errors the largest range wins: it comes first and only a strictly smaller error replaces it. */
static void search(const dq_grid_desc *d, const float *w, int64_t n, float *scale, float *zero)
{
    weight_range range = find_range(w, n);
    grid_of(d, &range, 1.0f, scale, zero);
    double best = INFINITY;
    for (int32_t i = 0; i < d->search_steps; i++) {
        float s, z;
        grid_of(d, &range, (float)(1.0 - (double)i / d->search_grid), &s, &z);
        double error = grid_error(d, w, n, s, z);
        if (error < best) {
            best = error;
            *scale = s;
            *zero = z;
        }
    }
}

dq_status dq_ref_weight_grid(void *dev, const dq_grid_desc *d, const dq_view *w, const dq_view *scale,
                             const dq_view *zero)
{
    (void)dev;
    for (int64_t r = 0; r < w->rows; r++)
        for (int64_t g = 0; g < scale->cols; g++) {
            int64_t first = g * d->group;
            int64_t n = w->cols - first < d->group ? w->cols - first : d->group;
            search(d, dq_view_f32(w, r) + first, n, dq_view_f32(scale, r) + g, dq_view_f32(zero, r) + g);
        }
    return DQ_OK;
}
