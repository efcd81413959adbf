/* Sliced Wasserstein distances along the channels, and losses of the host: what needs a batch as a whole.
 * SPDX-License-Identifier: Apache-2.0 */
#include <math.h>
#include <string.h>

#include "base/half.h"
#include "base/status.h"
#include "calib/loss.h"

/* ---- sorting ---- */

/* Ascending as floats, stable: key in the high half, place in the low. Radix sort in four passes of 8 bits of the key; the
 * counters of two passes of 16 would spill the cache. */
static void sort_pairs(uint64_t *a, uint64_t *scratch, int64_t n)
{
    for (int shift = 32; shift < 64; shift += 8) {
        int64_t start[257] = {0};
        for (int64_t i = 0; i < n; i++) start[((a[i] >> shift) & 255) + 1]++;
        for (int b = 0; b < 256; b++) start[b + 1] += start[b];
        for (int64_t i = 0; i < n; i++) scratch[start[(a[i] >> shift) & 255]++] = a[i];
        uint64_t *swap = a;
        a = scratch;
        scratch = swap;
    }
}

/* Bits whose order as integers is that of the floats. */
static uint64_t pair(float x, int64_t place)
{
    uint32_t u = dq_f32_bits(x);
    u = u & 0x80000000u ? ~u : u | 0x80000000u;
    return (uint64_t)u << 32 | (uint32_t)place;
}

/* ---- quantiles ---- */

/* Inverse of the normal distribution function: algorithm AS 241, PPND16 (Wichura 1988). */
static double ratio(const double *a, const double *b, double r)
{
    double p = a[7], q = b[6];
    for (int i = 6; i >= 0; i--) p = p * r + a[i];
    for (int i = 5; i >= 0; i--) q = q * r + b[i];
    return p / (q * r + 1);
}

static double normal_quantile(double p)
{
    static const double a[] = {3.3871328727963666080e0, 1.3314166789178437745e2, 1.9715909503065514427e3,
                               1.3731693765509461125e4, 4.5921953931549871457e4, 6.7265770927008700853e4,
                               3.3430575583588128105e4, 2.5090809287301226727e3};
    static const double b[] = {4.2313330701600911252e1, 6.8718700749205790830e2, 5.3941960214247511077e3,
                               2.1213794301586595867e4, 3.9307895800092710610e4, 2.8729085735721942674e4,
                               5.2264952788528545610e3};
    static const double c[] = {1.42343711074968357734e0,  4.63033784615654529590e0, 5.76949722146069140550e0,
                               3.64784832476320460504e0,  1.27045825245236838258e0, 2.41780725177450611770e-1,
                               2.27238449892691845833e-2, 7.74545014278341407640e-4};
    static const double d[] = {2.05319162663775882187e0,  1.67638483018380384940e0,  6.89767334985100004550e-1,
                               1.48103976427480074590e-1, 1.51986665636164571966e-2, 5.47593808499534494600e-4,
                               1.05075007164441684324e-9};
    static const double e[] = {6.65790464350110377720e0,  5.46378491116411436990e0,  1.78482653991729133580e0,
                               2.96560571828504891230e-1, 2.65321895265761230930e-2, 1.24266094738807843860e-3,
                               2.71155556874348757815e-5, 2.01033439929228813265e-7};
    static const double f[] = {5.99832206555887937690e-1, 1.36929880922735805310e-1, 1.48753612908506148525e-2,
                               7.86869131145613259100e-4, 1.84631831751005468180e-5, 1.42151175831644588870e-7,
                               2.04426310338993978564e-15};
    double q = p - 0.5;
    if (fabs(q) <= 0.425) return q * ratio(a, b, 0.180625 - q * q);
    double r = sqrt(-log(q < 0 ? p : 1 - p));
    double x = r <= 5 ? ratio(c, d, r - 1.6) : ratio(e, f, r - 5);
    return q < 0 ? -x : x;
}

/* Quantiles for n sorted numbers of RMS 1: uniform on [-sqrt 3, sqrt 3], both ends included, or Gaussian at
 * (k - 1/2) / n kept in [1e-6, 1 - 1e-6]. */
static void make_targets(bool gauss, int64_t n, double *out)
{
    double half = sqrt(3.0);
    for (int64_t k = 0; k < n; k++) {
        double p = ((double)k + 0.5) / (double)n;
        if (p < 1e-6) p = 1e-6;
        if (p > 1 - 1e-6) p = 1 - 1e-6;
        out[k] = gauss ? normal_quantile(p) : n > 1 ? half * (2 * (double)k / (double)(n - 1) - 1) : -half;
    }
}

/* ---- one distribution ---- */

typedef struct swd_job {
    const float *o;
    float *grad;
    int64_t rows, cols;
    const double *targets; /* [rows], or [rows * cols] when all numbers are one distribution */
    double *values;        /* [cols] or [1] */
    uint64_t *pairs;       /* [threads][2 * numbers of one distribution] */
} swd_job;

/* Numbers o[first + k * step], k < n: mean of squared distances to the targets scaled by their RMS, which counts as a
 * constant in the gradient. */
static double distance(const swd_job *j, int64_t first, int64_t step, int64_t n, double share, uint64_t *pairs)
{
    const float *o = j->o + first;
    double square = 0, sum = 0;
    for (int64_t k = 0; k < n; k++) {
        square += (double)o[k * step] * o[k * step];
        pairs[k] = pair(o[k * step], k);
    }
    double rms = sqrt(square / (double)n);
    sort_pairs(pairs, pairs + n, n);
    for (int64_t k = 0; k < n; k++) {
        int64_t at = (int64_t)(uint32_t)pairs[k] * step;
        double d = (double)o[at] - rms * j->targets[k];
        sum += d * d;
        if (j->grad) j->grad[first + at] = (float)(2 * share * d / (double)n);
    }
    return sum / (double)n;
}

static void one_channel(void *arg, int64_t c, int thread)
{
    swd_job *j = arg;
    j->values[c] = distance(j, c, j->cols, j->rows, 1.0 / (double)j->cols, j->pairs + 2 * j->rows * thread);
}

static dq_status swd(dq_env *env, dq_fit_loss kind, const float *o, int64_t rows, int64_t cols, float *grad,
                     double *value)
{
    bool whole = kind == DQ_FIT_SWD;
    int64_t n = whole ? rows * cols : rows;
    size_t threads = whole ? 1 : (size_t)dq_threads(env);
    double sum = 0;
    if (rows > INT32_MAX / cols)
        return dq_fail(DQ_E_INVALID, "%s: a batch of %lld x %lld numbers is too large", dq_loss_name(kind),
                       (long long)rows, (long long)cols);
    dq_status status = DQ_E_NOMEM;
    double *targets = dq_alloc(env, (size_t)n * sizeof *targets);
    double *values = dq_alloc(env, (size_t)cols * sizeof *values);
    uint64_t *pairs = dq_alloc(env, threads * 2 * (size_t)n * sizeof *pairs);
    if (!targets || !values || !pairs) goto done;
    make_targets(kind == DQ_FIT_SWD_GAUSS, n, targets);
    swd_job job = {o, grad, rows, cols, targets, values, pairs};
    if (whole) {
        sum = distance(&job, 0, 1, n, 1, pairs);
    } else {
        dq_run(env, cols, one_channel, &job);
        for (int64_t c = 0; c < cols; c++) sum += values[c] / (double)cols;
    }
    *value = sum;
    status = DQ_OK;
done:
    dq_free(targets);
    dq_free(values);
    dq_free(pairs);
    return status;
}

dq_status dq_loss_of_batch(dq_env *env, const dq_loss *loss, const float *o, int64_t rows, int64_t cols, float *grad,
                           double *value)
{
    if (loss->kind != DQ_FIT_HOST) return swd(env, loss->kind, o, rows, cols, grad, value);
    double number = NAN;
    dq_status status = loss->fn(loss->user, o, rows, cols, grad, &number);
    if (status > 0) status = DQ_E_INVALID;
    if (status != DQ_OK)
        return dq_fail(status, "the host's loss failed with status %d for %lld rows", (int)status, (long long)rows);
    *value = number;
    return DQ_OK;
}
