/* Losses of rotated rows and a QR of small matrices, for one instruction set: compiled by fit_avx512.c, fit_avx2.c and
 * fit_plain.c. Sums run over fixed lanes; every SPAN elements they go to fp64.
 * SPDX-License-Identifier: Apache-2.0 */
#include "backend/cpu/fit.h"
#include "backend/cpu/range_kernel.h"
#include "backend/cpu/vec_exp.h"

enum { SPAN = 1024 };

/* exp(-|o|), and w (-sign(o) exp(-|o|) + shift o) with sign(0) = 0. */
VEC_INLINE vf whip_value(vf o) { return vf_exp2(vf_max(vf_set1(-200.0f), vf_abs(o) * vf_set1(-1.44269504f))); }
VEC_INLINE vf whip_slope(vf o, vf e, vf w, vf shift) { return w * vf_nmadd(vf_set1(1), vf_sign_of(e, o), shift * o); }

static double whip(const float *o, int64_t n, float weight, float shift, float *slope)
{
    vf w = vf_set1(weight), s = vf_set1(shift);
    double total = 0;
    for (int64_t at = 0; at < n; at += SPAN) {
        int64_t end = at + SPAN < n ? at + SPAN : n, i = at;
        vf sum = vf_zero();
        for (; i + VF <= end; i += VF) {
            vf x = vf_load(o + i), e = whip_value(x);
            sum = sum + e;
            if (slope) vf_store(slope + i, whip_slope(x, e, w, s));
        }
        if (i < end) {
            vf x = vf_load_n(o + i, end - i), e = whip_value(x);
            sum = sum + vf_keep_n(e, vf_zero(), end - i);
            if (slope) vf_store_n(slope + i, whip_slope(x, e, w, s), end - i);
        }
        total += (double)vf_sum(sum);
    }
    return total;
}

static double mean_of(const float *o, int64_t n)
{
    double total = 0;
    for (int64_t at = 0; at < n; at += SPAN) {
        int64_t end = at + SPAN < n ? at + SPAN : n;
        vf sum = vf_zero();
        for (int64_t i = at; i < end; i += VF) sum = sum + vf_load_n(o + i, end - i);
        total += (double)vf_sum(sum);
    }
    return total / (double)n;
}

/* sums[k] = sum of (o - mean)^(k+2), k < 3. */
static void moments(const float *o, int64_t n, float mean, double sums[3])
{
    vf m = vf_set1(mean);
    sums[0] = sums[1] = sums[2] = 0;
    for (int64_t at = 0; at < n; at += SPAN) {
        int64_t end = at + SPAN < n ? at + SPAN : n;
        vf s2 = vf_zero(), s3 = vf_zero(), s4 = vf_zero();
        for (int64_t i = at; i < end; i += VF) {
            vf d = vf_keep_n(vf_load_n(o + i, end - i) - m, vf_zero(), end - i), square = d * d;
            s2 = s2 + square;
            s3 = vf_madd(square, d, s3);
            s4 = vf_madd(square, square, s4);
        }
        sums[0] += (double)vf_sum(s2);
        sums[1] += (double)vf_sum(s3);
        sums[2] += (double)vf_sum(s4);
    }
}

/* slope = weight (cube d^3 + line d + constant + shift o), d = o - mean. */
static void slopes(const float *o, int64_t n, float mean, double cube, double line, double constant, float weight,
                   float shift, float *slope)
{
    vf m = vf_set1(mean), c3 = vf_set1((float)cube), c1 = vf_set1((float)line), c0 = vf_set1((float)constant);
    vf w = vf_set1(weight), s = vf_set1(shift);
    for (int64_t i = 0; i < n; i += VF) {
        vf x = vf_load_n(o + i, n - i), d = x - m;
        vf_store_n(slope + i, w * vf_madd(s, x, vf_madd(d, vf_madd(c3, d * d, c1), c0)), n - i);
    }
}

static double kurtosis(const float *o, int64_t n, float weight, float shift, float *slope)
{
    double s[3], size = (double)n;
    float mean = (float)mean_of(o, n);
    moments(o, n, mean, s);
    bool flat = s[0] == 0;
    double f = flat ? 0 : 4 * size / (s[0] * s[0]);
    if (slope) slopes(o, n, mean, f, flat ? 0 : -f * s[2] / s[0], -f * s[1] / size, weight, shift, slope);
    return flat ? 0 : size * s[2] / (s[0] * s[0]);
}

static double variance(const float *o, int64_t n, float weight, float shift, float *slope)
{
    double s[3], size = (double)n;
    float mean = (float)mean_of(o, n);
    moments(o, n, mean, s);
    if (slope) slopes(o, n, mean, 0, 2 / size, 0, weight, shift, slope);
    return s[0] / size;
}

/* ---- quantization ---- */

/* Where the range comes from, as the reference has it. */
typedef struct ends {
    int64_t high, low;
} ends;

/* The first place of a value that is there; 0 when it is not (NaN). */
static int64_t place_of(const float *o, int64_t n, float value)
{
    int64_t i = 0;
    for (; i + 64 <= n; i += 64) {
        int found = 0;
        for (int k = 0; k < 64; k++) found |= o[i + k] == value;
        if (found) break;
    }
    for (; i < n; i++)
        if (o[i] == value) return i;
    return 0;
}

static ends find_ends(const float *o, int64_t n, bool symmetric)
{
    float lo, hi;
    find_range(o, n, &lo, &hi);
    if (symmetric) {
        int64_t at = place_of(o, n, fabsf(lo) > fabsf(hi) ? lo : hi);
        return (ends){at, at};
    }
    return (ends){place_of(o, n, hi), place_of(o, n, lo)};
}

/* sums = sum max(0, o - top)^2 + sum min(0, o - bottom)^2, sum max(0, o - top), sum min(0, o - bottom). */
static void outside(const float *o, int64_t n, float top, float bottom, float weight, float shift, double sums[3],
                    float *slope)
{
    vf t = vf_set1(top), b = vf_set1(bottom), w = vf_set1(weight), twice = vf_set1(2), s = vf_set1(shift);
    sums[0] = sums[1] = sums[2] = 0;
    for (int64_t at = 0; at < n; at += SPAN) {
        int64_t end = at + SPAN < n ? at + SPAN : n;
        vf squares = vf_zero(), above = vf_zero(), below = vf_zero();
        for (int64_t i = at; i < end; i += VF) {
            vf x = vf_load_n(o + i, end - i);
            vf high = vf_keep_n(vf_max(vf_zero(), x - t), vf_zero(), end - i); /* of NaN max and min give the second */
            vf low = vf_keep_n(vf_min(vf_zero(), x - b), vf_zero(), end - i), off = high + low;
            squares = vf_madd(high, high, vf_madd(low, low, squares));
            above = above + high;
            below = below + low;
            if (slope) vf_store_n(slope + i, w * vf_madd(s, x, twice * off), end - i);
        }
        sums[0] += (double)vf_sum(squares);
        sums[1] += (double)vf_sum(above);
        sums[2] += (double)vf_sum(below);
    }
}

static double range(const dq_rotation_loss_desc *d, const float *o, int64_t n, float weight, float shift, float *slope)
{
    ends e = find_ends(o, n, d->symmetric);
    double high = o[e.high], low = o[e.low], clip = d->clip, size = (double)n, sums[3];
    double levels = d->symmetric ? (1 << (d->bits - 1)) - 1 : (1 << d->bits) - 1;
    double width = d->symmetric ? fabs(high) : high - low, step = clip * width / levels;
    double top = clip * (d->symmetric ? width : high), bottom = d->symmetric ? -(levels + 1) * step : clip * low;
    outside(o, n, (float)top, (float)bottom, weight, shift, sums, slope);
    double wider = size * step * clip / (6 * levels);
    if (slope && d->symmetric) {
        double s = wider - 2 * clip * sums[1] + 2 * clip * (levels + 1) / levels * sums[2];
        slope[e.high] += weight * (float)(high < 0 ? -s : s);
    } else if (slope) {
        slope[e.high] += weight * (float)(wider - 2 * clip * sums[1]);
        slope[e.low] += weight * (float)(-wider - 2 * clip * sums[2]);
    }
    return size * step * step / 12 + sums[0];
}

static double quantization(const dq_rotation_loss_desc *d, const dq_quant_kernels *quant, const float *o, int64_t n,
                           float weight, float shift, float *line, float *slope)
{
    dq_fake_quant_desc grid = {.bits = d->bits, .symmetric = d->symmetric, .group = d->group, .clip = d->clip};
    vf twice = vf_set1(2), w = vf_set1(weight), s = vf_set1(shift);
    double total = 0;
    quant->fake_quant(&grid, n, o, line);
    for (int64_t at = 0; d->kind == DQ_LOSS_SNAP && at < n; at += d->group) {
        ends e = find_ends(o + at, d->group, d->symmetric);
        line[at + e.high] = o[at + e.high];
        line[at + e.low] = o[at + e.low];
    }
    for (int64_t at = 0; at < n; at += SPAN) {
        int64_t end = at + SPAN < n ? at + SPAN : n;
        vf sum = vf_zero();
        for (int64_t i = at; i < end; i += VF) {
            vf x = vf_load_n(o + i, end - i), e = x - vf_load_n(line + i, end - i);
            sum = vf_madd(e, e, sum);
            if (slope) vf_store_n(slope + i, w * vf_madd(s, x, twice * e), end - i);
        }
        total += (double)vf_sum(sum);
    }
    return total;
}

static double loss(const dq_rotation_loss_desc *d, const dq_quant_kernels *quant, const float *o, int64_t cols,
                   float weight, float shift, float *line, float *slope)
{
    double sum = 0;
    int64_t g = d->group;
    if (d->kind == DQ_LOSS_WHIP) return whip(o, cols, weight, shift, slope);
    if (d->kind == DQ_LOSS_QUANT || d->kind == DQ_LOSS_SNAP)
        return quantization(d, quant, o, cols, weight, shift, line, slope);
    for (int64_t at = 0; at < cols; at += g) {
        float *out = slope ? slope + at : NULL;
        switch (d->kind) {
            case DQ_LOSS_KURTOSIS: sum += kurtosis(o + at, g, weight, shift, out); break;
            case DQ_LOSS_RANGE: sum += range(d, o + at, g, weight, shift, out); break;
            default: sum += variance(o + at, g, weight, shift, out); break;
        }
    }
    return sum;
}

#define REAL float
#define VEC vf
#define LANES VF
#define V(name) vf_##name
#define FN(name) name##_f32
#include "backend/cpu/small_qr_kernel.h"

#define REAL double
#define VEC vd
#define LANES VD
#define V(name) vd_##name
#define FN(name) name##_f64
#include "backend/cpu/small_qr_kernel.h"

const dq_fit_kernels DQ_ISA(dq_fit) = {loss, small_qr_f32, small_qr_f64};
