/* Loss of rotated rows and its gradient in the rotation, fp64 inside. SPDX-License-Identifier: Apache-2.0 */
#include <math.h>

#include "backend/ref/ops.h"

typedef struct pass {
    const dq_rotation_loss_desc *d;
    const dq_view *r;
    int64_t width;
    double *x, *o, *slope; /* one row: input, rotated, dL/do */
    double *grad;          /* [groups*n, n], or NULL */
    float *single, *grid;  /* QUANT, SNAP: o and q as fp32 */
} pass;

static void rotate(const pass *p)
{
    int64_t n = p->d->n, share = p->d->heads / p->d->groups;
    for (int64_t h = 0; h < p->d->heads; h++) {
        double *o = p->o + h * n;
        for (int64_t c = 0; c < n; c++) o[c] = 0;
        for (int64_t k = 0; k < n; k++) {
            double x = p->x[h * n + k];
            for (int64_t c = 0; c < n; c++) o[c] += x * dq_ref_operand(p->r, h / share * n + k, c, p->d->math);
        }
    }
}

static double whip(const double *o, double *slope, int64_t n)
{
    double sum = 0;
    for (int64_t i = 0; i < n; i++) {
        double e = exp(-fabs(o[i]));
        sum += e;
        slope[i] = o[i] > 0 ? -e : o[i] < 0 ? e : 0 * o[i];
    }
    return sum;
}

static double kurtosis(const double *o, double *slope, int64_t n)
{
    double mean = 0, s2 = 0, s3 = 0, s4 = 0;
    for (int64_t i = 0; i < n; i++) mean += o[i] / (double)n;
    for (int64_t i = 0; i < n; i++) {
        double d = o[i] - mean;
        s2 += d * d;
        s3 += d * d * d;
        s4 += d * d * d * d;
    }
    for (int64_t i = 0; i < n; i++) {
        double d = o[i] - mean;
        slope[i] = s2 == 0 ? 0 : 4 * (double)n / (s2 * s2) * (d * d * d - s3 / (double)n - s4 / s2 * d);
    }
    return s2 == 0 ? 0 : (double)n * s4 / (s2 * s2);
}

static double variance(const double *o, double *slope, int64_t n)
{
    double mean = 0, s2 = 0;
    for (int64_t i = 0; i < n; i++) mean += o[i] / (double)n;
    for (int64_t i = 0; i < n; i++) {
        s2 += (o[i] - mean) * (o[i] - mean);
        slope[i] = 2 * (o[i] - mean) / (double)n;
    }
    return s2 / (double)n;
}

/* Where the range comes from: the first of the largest and of the smallest values; symmetric: of the largest magnitude,
 * twice. */
typedef struct ends {
    int64_t high, low;
} ends;

static ends find_ends(const double *o, int64_t n, int32_t symmetric)
{
    ends e = {0, 0};
    for (int64_t i = 1; i < n; i++) {
        if (o[i] > o[e.high]) e.high = i;
        if (o[i] < o[e.low]) e.low = i;
    }
    if (symmetric) e.high = e.low = fabs(o[e.low]) > fabs(o[e.high]) ? e.low : e.high;
    return e;
}

static double range(const dq_rotation_loss_desc *d, const double *o, double *slope, int64_t n)
{
    ends e = find_ends(o, n, d->symmetric);
    double levels = d->symmetric ? (1 << (d->bits - 1)) - 1 : (1 << d->bits) - 1, clip = d->clip, above = 0, below = 0;
    double width = d->symmetric ? fabs(o[e.high]) : o[e.high] - o[e.low], step = clip * width / levels;
    double top = clip * (d->symmetric ? width : o[e.high]);
    double bottom = d->symmetric ? -(levels + 1) * step : clip * o[e.low], sum = (double)n * step * step / 12;
    for (int64_t i = 0; i < n; i++) {
        double high = o[i] - top, low = o[i] - bottom;
        high = high <= 0 ? 0 : high; /* NaN stays */
        low = low >= 0 ? 0 : low;
        sum += high * high + low * low;
        above += high;
        below += low;
        slope[i] = 2 * (high + low);
    }
    double wider = (double)n * step * clip / (6 * levels);
    if (d->symmetric) {
        double s = wider - 2 * clip * above + 2 * clip * (levels + 1) / levels * below;
        slope[e.high] += o[e.high] < 0 ? -s : s;
    } else {
        slope[e.high] += wider - 2 * clip * above;
        slope[e.low] += -wider - 2 * clip * below;
    }
    return sum;
}

static double quantization(const pass *p, int64_t at, double *slope, int64_t n)
{
    const dq_rotation_loss_desc *d = p->d;
    dq_fake_quant_desc grid = {.bits = d->bits, .symmetric = d->symmetric, .group = n, .clip = d->clip};
    double sum = 0;
    for (int64_t i = 0; i < n; i++) p->single[i] = (float)p->o[at + i];
    dq_ref_quantize_group(&grid, p->single, p->grid, n);
    if (d->kind == DQ_LOSS_SNAP) {
        ends e = find_ends(p->o + at, n, d->symmetric);
        p->grid[e.high] = p->single[e.high];
        p->grid[e.low] = p->single[e.low];
    }
    for (int64_t i = 0; i < n; i++) {
        double error = (double)p->single[i] - p->grid[i];
        sum += error * error;
        slope[i] = 2 * error;
    }
    return sum;
}

static double loss_of_row(const pass *p)
{
    double sum = 0;
    int64_t n = p->d->group;
    for (int64_t at = 0; at < p->width; at += n) {
        const double *o = p->o + at;
        double *slope = p->slope + at;
        switch (p->d->kind) {
            case DQ_LOSS_WHIP: sum += whip(o, slope, n); break;
            case DQ_LOSS_KURTOSIS: sum += kurtosis(o, slope, n); break;
            case DQ_LOSS_VARIANCE: sum += variance(o, slope, n); break;
            case DQ_LOSS_RANGE: sum += range(p->d, o, slope, n); break;
            default: sum += quantization(p, at, slope, n); break;
        }
    }
    return sum;
}

double dq_ref_loss_of_row(const dq_rotation_loss_desc *d, int64_t width, double *o, double *slope, float *scratch)
{
    pass p = {.d = d, .width = width, .o = o, .slope = slope, .single = scratch, .grid = scratch + width};
    return loss_of_row(&p);
}

static void add_gradient(const pass *p, double weight)
{
    int64_t n = p->d->n, share = p->d->heads / p->d->groups;
    for (int64_t i = 0; i < p->width; i++) {
        double s = weight * (p->slope[i] + p->d->shift * p->o[i]);
        p->slope[i] = p->d->math == DQ_MATH_BF16 ? dq_bf16_to_f32(dq_f32_to_bf16((float)s)) : s;
    }
    for (int64_t h = 0; h < p->d->heads; h++)
        for (int64_t k = 0; k < n; k++) {
            double x = p->x[h * n + k], *grad = p->grad + (h / share * n + k) * n;
            const double *slope = p->slope + h * n;
            for (int64_t c = 0; c < n; c++) grad[c] += x * slope[c];
        }
}

static double run_pass(const pass *p, const dq_view *x, const dq_view *weight, const dq_view *row_loss)
{
    double total = 0;
    for (int64_t r = 0; r < x->rows; r++) {
        double norm = 0, w = weight ? dq_view_f32(weight, 0)[r] : 1;
        for (int64_t i = 0; i < p->width; i++) {
            double exact = dq_ref_get(x, r, i);
            p->x[i] = dq_ref_operand(x, r, i, p->d->math);
            norm += exact * exact;
        }
        double per = !p->d->relative ? 1 : norm == 0 ? 0 : 1 / norm;
        rotate(p);
        double loss = loss_of_row(p) * per;
        if (row_loss) dq_view_f32(row_loss, 0)[r] = (float)loss;
        total += w * loss;
        if (p->grad) add_gradient(p, p->d->scale * w * per);
    }
    return total;
}

dq_status dq_ref_rotation_loss(void *dev, const dq_rotation_loss_desc *d, const dq_view *x, const dq_view *weight,
                               const dq_view *r, const dq_view *grad, const dq_view *row_loss, double *loss)
{
    int64_t width = x->cols, stack = grad ? r->rows * d->n : 0;
    pass p = {.d = d, .r = r, .width = width};
    p.x = dq_ref_scratch(dev, 4 * width + stack, sizeof(double));
    if (!p.x) return DQ_E_NOMEM;
    p.o = p.x + width;
    p.slope = p.o + width;
    p.single = (float *)(p.slope + width);
    p.grid = p.single + width;
    if (grad) p.grad = p.x + 4 * width;
    for (int64_t i = 0; i < stack; i++) p.grad[i] = 0;
    *loss = d->scale * run_pass(&p, x, weight, row_loss);
    for (int64_t i = 0; i < stack; i++) {
        float *out = dq_view_f32(grad, i / d->n) + i % d->n;
        *out = (float)(p.grad[i] + (d->beta == 0 ? 0 : d->beta * *out));
    }
    dq_ref_release(dev, p.x);
    return DQ_OK;
}
