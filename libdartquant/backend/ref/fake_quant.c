/* Dynamic fake quantization (QuaRot, arXiv 2404.00456). fp32, one rounding per operation: every backend must give
 * exactly these values. SPDX-License-Identifier: Apache-2.0 */
#include <math.h>

#include "backend/ref/ops.h"

static float clampf(float x, float lo, float hi) { return x < lo ? lo : x > hi ? hi : x; }

static void symmetric(const float *x, float *y, int64_t n, float absmax, int32_t bits)
{
    float maxq = (float)((1 << (bits - 1)) - 1);
    float scale = absmax / maxq;
    if (scale == 0) scale = 1; /* all zero, or so small that nothing is left */
    for (int64_t i = 0; i < n; i++) y[i] = scale * clampf(rintf(x[i] / scale), -maxq - 1, maxq);
}

static void asymmetric(const float *x, float *y, int64_t n, float lo, float hi, int32_t bits)
{
    float maxq = (float)((1 << bits) - 1);
    if (lo == 0 && hi == 0) {
        lo = -1;
        hi = 1;
    }
    float scale = (hi - lo) / maxq;
    if (scale == 0) { /* empty range: nothing to quantize against */
        for (int64_t i = 0; i < n; i++) y[i] = x[i];
        return;
    }
    float zero = rintf(-lo / scale);
    for (int64_t i = 0; i < n; i++) y[i] = scale * (clampf(rintf(x[i] / scale) + zero, 0, maxq) - zero);
}

void dq_ref_quantize_group(const dq_fake_quant_desc *d, const float *x, float *y, int64_t n)
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
    if (d->symmetric)
        symmetric(x, y, n, fmaxf(fabsf(lo), fabsf(hi)), d->bits);
    else
        asymmetric(x, y, n, lo, hi, d->bits);
}

dq_status dq_ref_fake_quant(void *dev, const dq_fake_quant_desc *d, const dq_view *x, const dq_view *y)
{
    (void)dev;
    for (int64_t r = 0; r < x->rows; r++)
        for (int64_t c = 0; c < x->cols; c += d->group)
            dq_ref_quantize_group(d, dq_view_f32(x, r) + c, dq_view_f32(y, r) + c, d->group);
    return DQ_OK;
}
