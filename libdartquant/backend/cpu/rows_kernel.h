/* Row kernels, compiled once per SIMD level. Plain loops are left to the compiler's vectorizer; what it may not reorder
 * (reductions) or has no instruction for (exp) is written with vec.h. SPDX-License-Identifier: Apache-2.0 */
#include "backend/cpu/forward.h"
#include "backend/cpu/vec_exp.h"
#include "base/half.h"

/* ---- conversion ---- */

static void bf16_to_f32(const void *src, void *dst, int64_t n)
{
    const uint16_t *x = src;
    float *y = dst;
    for (int64_t i = 0; i < n; i++) y[i] = dq_bf16_to_f32(x[i]);
}

static void f32_to_bf16(const void *src, void *dst, int64_t n)
{
    const float *x = src;
    uint16_t *y = dst;
    for (int64_t i = 0; i < n; i++) { /* dq_f32_to_bf16 without a branch */
        uint32_t u = dq_f32_bits(x[i]);
        uint32_t rounded = (u + 0x7fffu + ((u >> 16) & 1u)) >> 16, quiet = (u >> 16) | 0x40u;
        y[i] = (uint16_t)((u & 0x7fffffffu) > 0x7f800000u ? quiet : rounded);
    }
}

static void round_bf16(const void *src, void *dst, int64_t n)
{
    const float *x = src;
    float *y = dst;
    for (int64_t i = 0; i < n; i++) {
        uint32_t u = dq_f32_bits(x[i]);
        uint32_t rounded = u + 0x7fffu + ((u >> 16) & 1u);
        y[i] = dq_f32_from_bits(((u & 0x7fffffffu) > 0x7f800000u ? u | 0x400000u : rounded) & 0xffff0000u);
    }
}

static void f16_to_f32(const void *src, void *dst, int64_t n)
{
    const uint16_t *x = src;
    float *y = dst;
    int64_t i = 0;
#if VF == 16
    for (; i + 16 <= n; i += 16) _mm512_storeu_ps(y + i, _mm512_cvtph_ps(_mm256_loadu_si256((const __m256i *)(x + i))));
#elif VF == 8
    for (; i + 8 <= n; i += 8) _mm256_storeu_ps(y + i, _mm256_cvtph_ps(_mm_loadu_si128((const __m128i *)(x + i))));
#endif
    for (; i < n; i++) y[i] = dq_f16_to_f32(x[i]);
}

static void f32_to_f16(const void *src, void *dst, int64_t n)
{
    const float *x = src;
    uint16_t *y = dst;
    for (int64_t i = 0; i < n; i++) y[i] = dq_f32_to_f16(x[i]);
}

static void f32_to_f64(const void *src, void *dst, int64_t n)
{
    const float *x = src;
    double *y = dst;
    for (int64_t i = 0; i < n; i++) y[i] = x[i];
}

static void f64_to_f32(const void *src, void *dst, int64_t n)
{
    const double *x = src;
    float *y = dst;
    for (int64_t i = 0; i < n; i++) y[i] = (float)x[i];
}

/* ---- elementwise ---- */

static void axpy_f32(double alpha, const void *src, void *dst, int64_t n)
{
    const float *x = src;
    float *y = dst, a = (float)alpha;
    for (int64_t i = 0; i < n; i++) y[i] += a * x[i];
}

static void axpy_f64(double alpha, const void *src, void *dst, int64_t n)
{
    const double *x = src;
    double *y = dst;
    for (int64_t i = 0; i < n; i++) y[i] += alpha * x[i];
}

static void mul_f32(const void *src, const void *factor, void *dst, int64_t n)
{
    const float *x = src, *v = factor;
    float *y = dst;
    int64_t i = 0;
    for (; i + VF <= n; i += VF) vf_store(y + i, vf_load(x + i) * vf_load(v + i)); /* y may be x */
    for (; i < n; i++) y[i] = x[i] * v[i];
}

static void mul_f64(const void *src, const void *factor, void *dst, int64_t n)
{
    const double *x = src, *v = factor;
    double *y = dst;
    for (int64_t i = 0; i < n; i++) y[i] = x[i] * v[i];
}

/* Sixteen running sums; the products of floats are exact in double. */
static double dot_f32(const void *left, const void *right, int64_t n)
{
    const float *x = left, *y = right;
    double s[16] = {0}, sum = 0;
    int64_t i = 0;
    for (; i + 16 <= n; i += 16)
        for (int j = 0; j < 16; j++) s[j] += (double)x[i + j] * (double)y[i + j];
    for (; i < n; i++) s[i % 16] += (double)x[i] * (double)y[i];
    for (int j = 0; j < 16; j++) sum += s[j];
    return sum;
}

static double dot_f64(const void *left, const void *right, int64_t n)
{
    const double *x = left, *y = right;
    double s[16] = {0}, sum = 0;
    int64_t i = 0;
    for (; i + 16 <= n; i += 16)
        for (int j = 0; j < 16; j++) s[j] += x[i + j] * y[i + j];
    for (; i < n; i++) s[i % 16] += x[i] * y[i];
    for (int j = 0; j < 16; j++) sum += s[j];
    return sum;
}

/* Whether any element's exponent is all ones. */
static int nonfinite_16(const void *src, int64_t n, uint16_t exponent)
{
    const uint16_t *x = src;
    int found = 0;
    for (int64_t i = 0; i < n; i++) found |= (x[i] & exponent) == exponent;
    return found;
}

static int nonfinite_f32(const void *src, int64_t n)
{
    const uint32_t *x = src;
    int found = 0;
    for (int64_t i = 0; i < n; i++) found |= (x[i] & 0x7f800000u) == 0x7f800000u;
    return found;
}

static int nonfinite_f64(const void *src, int64_t n)
{
    const uint64_t *x = src, exponent = 0x7ff0000000000000u;
    int found = 0;
    for (int64_t i = 0; i < n; i++) found |= (x[i] & exponent) == exponent;
    return found;
}

/* ---- norm, RoPE, activation ---- */

static void rmsnorm(const float *x, const float *weight, double eps, float *y, int64_t n)
{
    enum { BLOCK = 512 }; /* fp32 partial sums stay short; the blocks add up in fp64 */
    double sum = 0;
    for (int64_t b = 0; b < n; b += BLOCK) {
        int64_t end = b + BLOCK < n ? b + BLOCK : n, i = b;
        vf s0 = vf_zero(), s1 = s0, s2 = s0, s3 = s0;
        for (; i + 4 * VF <= end; i += 4 * VF) {
            vf a = vf_load(x + i), c = vf_load(x + i + VF), d = vf_load(x + i + 2 * VF), e = vf_load(x + i + 3 * VF);
            s0 = vf_madd(a, a, s0);
            s1 = vf_madd(c, c, s1);
            s2 = vf_madd(d, d, s2);
            s3 = vf_madd(e, e, s3);
        }
        for (; i < end; i += VF) {
            vf a = vf_load_n(x + i, dq_min64(VF, end - i));
            s0 = vf_madd(a, a, s0);
        }
        sum += (double)vf_sum((s0 + s1) + (s2 + s3));
    }
    vf r = vf_set1((float)(1.0 / sqrt(sum / (double)n + eps)));
    for (int64_t i = 0; i < n; i += VF) {
        int64_t m = dq_min64(VF, n - i);
        vf v = vf_load_n(x + i, m) * r;
        if (weight) v *= vf_load_n(weight + i, m);
        vf_store_n(y + i, v, m);
    }
}

/* x less a mean given as the sum of two floats, so that a mean far from zero costs no digits of what is left. */
static inline vf less_mean(vf x, vf high, vf low) { return (x - high) - low; }

/* Sum of (x - mean), or of its square, over n elements: fp32 within a block, fp64 from block to block. */
static inline double centered_sum(const float *x, int64_t n, double mean, bool square)
{
    enum { BLOCK = 512 };
    float high = (float)mean;
    vf h = vf_set1(high), l = vf_set1((float)(mean - (double)high));
    double sum = 0;
    for (int64_t b = 0; b < n; b += BLOCK) {
        int64_t end = b + BLOCK < n ? b + BLOCK : n;
        vf s[2] = {vf_zero(), vf_zero()};
        for (int64_t i = b, k = 0; i < end; i += VF, k ^= 1) {
            int64_t m = dq_min64(VF, end - i);
            vf d = vf_keep_n(less_mean(vf_load_n(x + i, m), h, l), vf_zero(), m);
            if (square)
                s[k] = vf_madd(d, d, s[k]);
            else
                s[k] += d;
        }
        sum += (double)vf_sum(s[0] + s[1]);
    }
    return sum;
}

static void layernorm(const float *x, const float *weight, const float *bias, double eps, float *y, int64_t n)
{
    double mean = centered_sum(x, n, 0.0, false) / (double)n;
    mean += centered_sum(x, n, mean, false) / (double)n; /* what rounding left of it */
    double factor = 1.0 / sqrt(centered_sum(x, n, mean, true) / (double)n + eps);
    float high = (float)mean;
    vf h = vf_set1(high), l = vf_set1((float)(mean - (double)high)), f = vf_set1((float)factor);
    for (int64_t i = 0; i < n; i += VF) {
        int64_t m = dq_min64(VF, n - i);
        vf v = less_mean(vf_load_n(x + i, m), h, l) * f;
        if (weight) v *= vf_load_n(weight + i, m);
        if (bias) v += vf_load_n(bias + i, m);
        vf_store_n(y + i, v, m);
    }
}

/* (x1, x2) becomes (x1 cos - x2 sin, x2 cos + x1 sin) for one head of 2 * half elements. */
static void rope(float *restrict x, const float *restrict c, const float *restrict s, int64_t half)
{
    float *restrict hi = x + half;
    for (int64_t i = 0; i < half; i++) {
        float a = x[i], b = hi[i];
        x[i] = a * c[i] - b * s[i];
        hi[i] = b * c[i] + a * s[i];
    }
}

/* x / (1 + e^-t): SiLU with t = x, tanh-GELU with t = 2 sqrt(2/pi) (x + 0.044715 x^3). */
VEC_INLINE vf gate_by(vf x, vf t) { return x / (vf_set1(1.0f) + vf_exp(vf_zero() - t)); }

VEC_INLINE vf silu(vf x) { return gate_by(x, x); }

VEC_INLINE vf gelu_tanh(vf x)
{
    return gate_by(x, vf_madd(x * x * x, vf_set1(0.044715f), x) * vf_set1(1.5957691216057308f));
}

/* x Phi(x) = max(x, 0) - |x| erfc(z) / 2 at z = |x| / sqrt 2, with the rational Chebyshev fit of erfc in Numerical
 * Recipes (relative error 1.2e-7). */
VEC_INLINE vf gelu(vf x)
{
    static const float c[9] = {0.17087277f,  -0.82215223f, 1.48851587f, -1.13520398f, 0.27886807f,
                               -0.18628806f, 0.09678418f,  0.37409196f, 1.00002368f};
    vf magnitude = vf_abs(x), z = magnitude * vf_set1(0.70710678118654752f);
    vf t = vf_set1(1.0f) / vf_madd(z, vf_set1(0.5f), vf_set1(1.0f));
    vf p = vf_set1(c[0]);
    for (int i = 1; i < 9; i++) p = vf_madd(p, t, vf_set1(c[i]));
    vf half = t * vf_exp(vf_nmadd(z, z, vf_madd(p, t, vf_set1(-1.26551223f)))) * vf_set1(0.5f);
    return vf_nmadd(magnitude, half, vf_max(vf_zero(), x));
}

VEC_INLINE vf relu(vf x) { return vf_max(vf_zero(), x); } /* in this order a NaN stays */

#define ACTIVATION(name)                                                                                               \
    static void act_##name(const float *gate, const float *up, float *y, int64_t n)                                    \
    {                                                                                                                  \
        int64_t i = 0;                                                                                                 \
        for (; i + VF <= n; i += VF) {                                                                                 \
            vf v = name(vf_load(gate + i));                                                                            \
            if (up) v *= vf_load(up + i);                                                                              \
            vf_store(y + i, v);                                                                                        \
        }                                                                                                              \
        if (i < n) {                                                                                                   \
            vf v = name(vf_load_n(gate + i, n - i));                                                                   \
            if (up) v *= vf_load_n(up + i, n - i);                                                                     \
            vf_store_n(y + i, v, n - i);                                                                               \
        }                                                                                                              \
    }
ACTIVATION(silu)
ACTIVATION(gelu)
ACTIVATION(gelu_tanh)
ACTIVATION(relu)

/* ---- cross-entropy ---- */

/* Maximum of x and sum of e^(x - maximum); n > 0. A NaN anywhere makes the sum NaN. */
static void max_sumexp(const float *x, int64_t n, float *max, double *sum)
{
    vf m = vf_set1(x[0]);
    int64_t i = 0;
    for (; i + VF <= n; i += VF) m = vf_max(vf_load(x + i), m);
    float top = vf_hmax(m);
    for (; i < n; i++) top = x[i] > top ? x[i] : top;
    vf s0 = vf_zero(), s1 = s0, shift = vf_set1(top);
    for (i = 0; i + 2 * VF <= n; i += 2 * VF) {
        s0 += vf_exp(vf_load(x + i) - shift);
        s1 += vf_exp(vf_load(x + i + VF) - shift);
    }
    for (; i < n; i += VF) {
        int64_t left = dq_min64(VF, n - i);
        s0 += vf_keep_n(vf_exp(vf_load_n(x + i, left) - shift), vf_zero(), left);
    }
    *max = top;
    *sum = (double)vf_sum(s0 + s1);
}

static double expected_gap(const float *a, const float *b, float top, int64_t n)
{
    vf s = vf_zero(), shift = vf_set1(top);
    int64_t i = 0;
    for (; i + VF <= n; i += VF) {
        vf x = vf_load(a + i);
        s = vf_madd(vf_exp(x - shift), x - vf_load(b + i), s);
    }
    if (i < n) {
        vf x = vf_load_n(a + i, n - i);
        s += vf_keep_n(vf_exp(x - shift) * (x - vf_load_n(b + i, n - i)), vf_zero(), n - i);
    }
    return (double)vf_sum(s);
}

const dq_row_kernels DQ_ISA(dq_rows) = {
    .bf16_to_f32 = bf16_to_f32,
    .f32_to_bf16 = f32_to_bf16,
    .round_bf16 = round_bf16,
    .f16_to_f32 = f16_to_f32,
    .f32_to_f16 = f32_to_f16,
    .f32_to_f64 = f32_to_f64,
    .f64_to_f32 = f64_to_f32,
    .axpy_f32 = axpy_f32,
    .axpy_f64 = axpy_f64,
    .mul_f32 = mul_f32,
    .mul_f64 = mul_f64,
    .dot_f32 = dot_f32,
    .dot_f64 = dot_f64,
    .nonfinite_16 = nonfinite_16,
    .nonfinite_f32 = nonfinite_f32,
    .nonfinite_f64 = nonfinite_f64,
    .rmsnorm = rmsnorm,
    .layernorm = layernorm,
    .rope = rope,
    .activation = {act_silu, act_gelu, act_gelu_tanh, act_relu},
    .max_sumexp = max_sumexp,
    .expected_gap = expected_gap,
};
