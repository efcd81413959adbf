/* The clip search's inner loop: the error of one candidate grid on one weight group. Errors serve only to discard
 * candidates; those that come close to the best are decided in the reference's own arithmetic (weight_grid.c). Part of
 * quant_kernels.h. SPDX-License-Identifier: Apache-2.0 */

/* Range of n weights extended to contain 0; NaN is skipped. */
static void grid_range(const float *w, int64_t n, float *lo, float *hi)
{
    vf low = vf_zero(), high = vf_zero();
    int64_t i = 0;
    for (; i + VF <= n; i += VF) {
        vf x = vf_load(w + i);
        low = vf_min(x, low);
        high = vf_max(x, high);
    }
    if (i < n) {
        vf x = vf_load_n(w + i, n - i);
        low = vf_min(x, low);
        high = vf_max(x, high);
    }
    *lo = vf_hmin(low);
    *hi = vf_hmax(high);
}

/* log2 of x > 0, absolute error below 3e-7: exponent + polynomial in the mantissa (our own least-maximum fit on [1, 2)). */
VEC_INLINE vf log2_fast(vf x)
{
    vf u = vf_mantissa(x) - vf_set1(1.0f);
    vf p = vf_set1(-0.012671106494963169f);
    p = vf_madd(p, u, vf_set1(0.06483931094408035f));
    p = vf_madd(p, u, vf_set1(-0.15704622864723206f));
    p = vf_madd(p, u, vf_set1(0.25716590881347656f));
    p = vf_madd(p, u, vf_set1(-0.35379987955093384f));
    p = vf_madd(p, u, vf_set1(0.4801312983036041f));
    p = vf_madd(p, u, vf_set1(-0.7213143110275269f));
    p = vf_madd(p, u, vf_set1(1.4426947832107544f));
    return vf_madd(p, u, vf_exponent(x));
}

/* 2^x, relative error below 2e-7 (our own fit on [-1/2, 1/2]). */
VEC_INLINE vf exp2_fast(vf x)
{
    vf n = vf_rint(x), f = x - n;
    vf p = vf_set1(0.0013409993844106793f);
    p = vf_madd(p, f, vf_set1(0.009676036424934864f));
    p = vf_madd(p, f, vf_set1(0.05550297349691391f));
    p = vf_madd(p, f, vf_set1(0.2402210682630539f));
    p = vf_madd(p, f, vf_set1(0.6931472420692444f));
    p = vf_madd(p, f, vf_set1(1.0000001192092896f));
    return vf_scale2(p, n);
}

/* |t - code|^norm in units of the step, t = w / scale; the floor keeps the logarithm finite and is far below notice. */
VEC_INLINE vf step_error(vf w, vf inverse, vf bottom, vf top, vf norm)
{
    vf t = w * inverse;
    vf code = vf_min(top, vf_max(bottom, vf_rint(t)));
    vf difference = vf_max(vf_set1(0x1p-40f), vf_abs(t - code));
    return exp2_fast(norm * log2_fast(difference));
}

/* sum |w/scale - code|^norm with code = clamp(rint(w/scale), bottom, top); gives up, returning some value above `limit`,
 * once the partial sum exceeds it. */
static float grid_error(const float *w, int64_t n, const dq_grid_candidate *c, float limit)
{
    enum { LOOK = 64 };
    vf inverse = vf_set1(1.0f / c->scale), bottom = vf_set1(c->bottom), top = vf_set1(c->top), norm = vf_set1(c->norm);
    vf sum[4] = {vf_zero(), vf_zero(), vf_zero(), vf_zero()};
    int64_t i = 0, whole = n / (4 * VF) * (4 * VF);
    while (i < whole) {
        int64_t end = whole - i < LOOK ? whole : i + LOOK;
        for (; i < end; i += 4 * VF) {
            _Pragma("GCC unroll 4") for (int k = 0; k < 4; k++) sum[k] =
                sum[k] + step_error(vf_load(w + i + k * VF), inverse, bottom, top, norm);
        }
        if (i == n) break;
        float partial = vf_sum((sum[0] + sum[1]) + (sum[2] + sum[3]));
        if (partial > limit) return partial;
    }
    for (; i + VF <= n; i += VF) sum[0] = sum[0] + step_error(vf_load(w + i), inverse, bottom, top, norm);
    if (i < n) {
        vf e = step_error(vf_load_n(w + i, n - i), inverse, bottom, top, norm);
        sum[1] = sum[1] + vf_keep_n(e, vf_zero(), n - i);
    }
    return vf_sum((sum[0] + sum[1]) + (sum[2] + sum[3]));
}
