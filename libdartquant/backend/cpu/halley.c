/* Large ill-conditioned matrices on their way to the polar factor: Halley's iteration with the weights that are best for
 * the singular values still possible (QDWH: Nakatsukasa, Bai, Gygi, SIAM J. Matrix Anal. Appl. 31, 2010), each step a
 * Cholesky factorization of I + c X^T X. Where c is large that matrix is as badly conditioned as X^T X: such a step runs
 * in fp64. SPDX-License-Identifier: Apache-2.0 */
#include <cblas.h>
#include <math.h>
#include <stdatomic.h>
#include <stdlib.h>
#include <string.h>

#include "backend/cpu/fit.h"
#include "backend/cpu/lapack.h"

enum { BLOCK = 256, SOLVE_ROWS = 128, MOST_STEPS = 40, POWER_STEPS = 8 };
/* Smallest singular value, beside the largest, that the first steps count on; less takes more steps. */
#define SMALLEST 1e-4
#define EXACT_ABOVE 100.0 /* c from which a step runs in fp64 */

#define REAL float
#define P(name) cblas_s##name
#define LAPACK(name) s##name##_
#define FN(name) name##_f32
#include "backend/cpu/halley_kernel.h"

#define REAL double
#define P(name) cblas_d##name
#define LAPACK(name) d##name##_
#define FN(name) name##_f64
#include "backend/cpu/halley_kernel.h"

/* ---- the largest singular value ---- */

/* out = a v, or a^T v when `turned`. */
static void multiply(const float *a, int64_t n, bool turned, const double *v, double *out)
{
    for (int64_t i = 0; i < n; i++) out[i] = 0;
    for (int64_t i = 0; i < n; i++) {
        const float *line = a + i * n;
        double sum[8] = {0};
        for (int64_t j = 0; turned && j < n; j++) out[j] += v[i] * (double)line[j];
        for (int64_t j = 0; !turned && j < n; j += 8)
            for (int64_t k = 0; k < 8 && j + k < n; k++) sum[k] += v[j + k] * (double)line[j + k];
        if (!turned) out[i] = ((sum[0] + sum[1]) + (sum[2] + sum[3])) + ((sum[4] + sum[5]) + (sum[6] + sum[7]));
    }
}

static double norm_of(const double *v, int64_t n)
{
    double sum = 0;
    for (int64_t i = 0; i < n; i++) sum += v[i] * v[i];
    return sqrt(sum);
}

/* Some steps of the power method: near the norm from below, within a factor or two. The iteration forgives both. */
static double largest_singular_value(const float *x, int64_t n, double *v, double *w)
{
    double size = 0;
    uint32_t state = 1;
    for (int64_t i = 0; i < n; i++) {
        state = state * 1664525u + 1013904223u;
        v[i] = (double)state * 0x1p-31 - 1;
    }
    for (int step = 0; step < POWER_STEPS; step++) {
        double scale = 1 / norm_of(v, n);
        for (int64_t i = 0; i < n; i++) v[i] *= scale;
        multiply(x, n, false, v, w);
        size = norm_of(w, n);
        if (!(size > 0) || isinf(size)) return size;
        multiply(x, n, true, w, v);
    }
    return size;
}

/* ---- iterations ---- */

/* Weights of a step when all singular values lie in [*l, 1]; *l becomes where the smallest goes. */
static void weights(double *l, double *a, double *b, double *c)
{
    double l2 = *l * *l, d = cbrt(4 * (1 - l2) / (l2 * l2)), root = sqrt(1 + d);
    *a = root + 0.5 * sqrt(fmax(0, 8 - 4 * d + 8 * (2 - l2) / (l2 * root)));
    *b = (*a - 1) * (*a - 1) / 4;
    *c = *a + *b - 1;
    *l = fmin(1, *l * (*a + *b * l2) / (1 + *c * l2));
}

static bool exact_step(const dq_host *host, float *x, void *work, float *lines, int64_t n, double a, double b, double c,
                       double *spread)
{
    step_f64 s = {.n = n, .x = work, .g = (double *)work + n * n, .lines = (double *)(void *)lines};
    for (int64_t i = 0; i < n * n; i++) s.x[i] = x[i];
    bool good = halley_step_f64(&s, host, a, b, c, spread);
    for (int64_t i = 0; i < n * n && good; i++) x[i] = (float)s.x[i];
    return good;
}

static bool iterate(const dq_host *host, float *x, void *work, float *lines, int64_t n)
{
    double l = SMALLEST, growth = 1;
    step_f32 s = {.n = n, .x = x, .g = work, .lines = lines};
    for (int i = 0; i < MOST_STEPS; i++) {
        double a = 3, b = 1, c = 3, spread = INFINITY, before = l;
        if (l < 1 - 1e-4) weights(&l, &a, &b, &c);
        bool good = c > EXACT_ABOVE ? exact_step(host, x, work, lines, n, a, b, c, &spread)
                                    : halley_step_f32(&s, host, a, b, c, &spread);
        if (!good) return false;
        if (spread < DQ_HALLEY_NEAR) return true;
        growth *= a;
        if (growth > 1e8 && spread > 0.9) return false;   /* what has not arrived is rounding noise */
        if (before >= 1 - 1e-4 && spread > 0.9) l = 1e-2; /* smaller values than thought */
    }
    return false;
}

dq_status dq_cpu_halley(dq_cpu_dev *dev, int64_t n, float *x, void *work, bool *good)
{
    const dq_host *host = dev->ref.host;
    size_t lines = (size_t)(dev->threads * SOLVE_ROWS * n) * sizeof(double);
    double *v = dq_cpu_scratch_take(dev, lines + 2 * (size_t)n * sizeof *v);
    if (!v) return DQ_E_NOMEM;
    double size = largest_singular_value(x, n, v, v + n);
    *good = size > 0 && !isinf(size) && !isinf((double)(float)(1 / size));
    if (*good) {
        for (int64_t i = 0; i < n * n; i++) x[i] = (float)((double)x[i] / (1.1 * size));
        dq_blas_enter();
        *good = iterate(host, x, work, (float *)(void *)(v + 2 * n), n);
        dq_blas_leave();
    }
    dq_cpu_scratch_give(dev, v);
    return DQ_OK;
}
