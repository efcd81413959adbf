/* Dynamic fake quantization of one row, fp32 with one rounding per operation: the same bits as the reference, whose
 * comparisons (and so its handling of NaN) the order of the operands of min and max reproduces. Part of
 * quant_kernels.h. SPDX-License-Identifier: Apache-2.0 */

#include "backend/cpu/range_kernel.h"

VEC_INLINE vf round_symmetric(vf x, vf scale, vf bottom, vf top)
{
    return scale * vf_min(top, vf_max(bottom, vf_rint(x / scale)));
}

VEC_INLINE vf round_asymmetric(vf x, vf scale, vf zero, vf top)
{
    return scale * (vf_min(top, vf_max(vf_zero(), vf_rint(x / scale) + zero)) - zero);
}

static void quantize_symmetric(const float *x, float *y, int64_t n, float absmax, int bits)
{
    float maxq = (float)((1 << (bits - 1)) - 1), s = absmax / maxq;
    if (s == 0) s = 1;
    vf scale = vf_set1(s), top = vf_set1(maxq), bottom = vf_set1(-maxq - 1);
    int64_t i = 0;
    for (; i + VF <= n; i += VF) vf_store(y + i, round_symmetric(vf_load(x + i), scale, bottom, top));
    if (i < n) vf_store_n(y + i, round_symmetric(vf_load_n(x + i, n - i), scale, bottom, top), n - i);
}

static void quantize_asymmetric(const float *x, float *y, int64_t n, float lo, float hi, int bits)
{
    if (lo == 0 && hi == 0) {
        lo = -1;
        hi = 1;
    }
    float maxq = (float)((1 << bits) - 1), s = (hi - lo) / maxq;
    if (s == 0) { /* empty range: nothing to quantize against */
        if (x != y) memcpy(y, x, (size_t)n * sizeof *y);
        return;
    }
    vf scale = vf_set1(s), zero = vf_set1(rintf(-lo / s)), top = vf_set1(maxq);
    int64_t i = 0;
    for (; i + VF <= n; i += VF) vf_store(y + i, round_asymmetric(vf_load(x + i), scale, zero, top));
    if (i < n) vf_store_n(y + i, round_asymmetric(vf_load_n(x + i, n - i), scale, zero, top), n - i);
}

static void fake_quant(const dq_fake_quant_desc *d, int64_t cols, const float *x, float *y)
{
    for (int64_t c = 0; c < cols; c += d->group) {
        float lo, hi;
        find_range(x + c, d->group, &lo, &hi);
        if (d->zero_in_range) {
            if (lo > 0) lo = 0;
            if (hi < 0) hi = 0;
        }
        lo *= d->clip;
        hi *= d->clip;
        if (d->symmetric)
            quantize_symmetric(x + c, y + c, d->group, fmaxf(fabsf(lo), fabsf(hi)), d->bits);
        else
            quantize_asymmetric(x + c, y + c, d->group, lo, hi, d->bits);
    }
}
