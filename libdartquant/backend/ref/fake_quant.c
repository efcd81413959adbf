/* Dynamic fake quantization (QuaRot, arXiv 2404.00456). fp32, one rounding per operation: every backend must give
 * exactly these values. SPDX-License-Identifier: Apache-2.0 */
#include <math.h>

#include "backend/ref/ops.h"

static dq_ref_grid symmetric(float absmax, int32_t bits)
{
    float maxq = (float)((1 << (bits - 1)) - 1);
    dq_ref_grid g = {absmax / maxq, 0, -maxq - 1, maxq};
    if (g.scale == 0) g.scale = 1; /* all zero, or so small that nothing is left */
    return g;
}

static dq_ref_grid asymmetric(float lo, float hi, int32_t bits)
{
    float maxq = (float)((1 << bits) - 1);
    if (lo == 0 && hi == 0) {
        lo = -1;
        hi = 1;
    }
    dq_ref_grid g = {(hi - lo) / maxq, 0, 0, maxq};
    if (g.scale != 0) g.zero = rintf(-lo / g.scale);
    return g;
}

dq_ref_grid dq_ref_grid_of(const dq_fake_quant_desc *d, const float *x, int64_t n)
{
    float lo = x[0], hi = x[0];
    for (int64_t i = 1; i < n; i++) {
        if (x[i] < lo) lo = x[i];
        if (x[i] > hi) hi = x[i];
    }
    if (d->zero_in_range) {
        if (lo > 0) lo = 0;
        if (hi < 0) hi = 0;
    }
    lo *= d->clip;
    hi *= d->clip;
    return d->symmetric ? symmetric(fmaxf(fabsf(lo), fabsf(hi)), d->bits) : asymmetric(lo, hi, d->bits);
}

void dq_ref_quantize_group(const dq_fake_quant_desc *d, const float *x, float *y, int64_t n)
{
    dq_ref_grid g = dq_ref_grid_of(d, x, n);
    for (int64_t i = 0; i < n; i++) {
        if (g.scale == 0) /* empty range: nothing to quantize against */
            y[i] = x[i];
        else if (d->symmetric)
            y[i] = g.scale * dq_ref_clamp(rintf(x[i] / g.scale), g.lo, g.hi);
        else
            y[i] = g.scale * (dq_ref_clamp(rintf(x[i] / g.scale) + g.zero, g.lo, g.hi) - g.zero);
    }
}

dq_status dq_ref_fake_quant(void *dev, const dq_fake_quant_desc *d, const dq_view *x, const dq_view *y)
{
    (void)dev;
    for (int64_t r = 0; r < x->rows; r++)
        for (int64_t c = 0; c < x->cols; c += d->group)
            dq_ref_quantize_group(d, dq_view_f32(x, r) + c, dq_view_f32(y, r) + c, d->group);
    return DQ_OK;
}
