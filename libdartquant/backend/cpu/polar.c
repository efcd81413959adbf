/* Orthogonal polar factors by products alone: X <- X (a I + b X^T X + c (X^T X)^2) with the polynomial that is best for
 * the singular values still possible, from the interval [l, u] (Polar Express, arXiv 2505.16932), until the quintic
 * Newton-Schulz step finishes; large fp32 matrices far from orthogonal go through halley.c first. Small
 * matrices run in fp64, one per task. SPDX-License-Identifier: Apache-2.0 */
#include <cblas.h>
#include <float.h>
#include <limits.h>
#include <math.h>

#include "backend/cpu/fit.h"

enum { ALONE = 256, TERMS = 4, HALLEY_FROM = 512, GRAM = 256 };
#define GOOD 8   /* entries of X^T X that may be off by so many units of rounding */
#define NEAR 0.3 /* spread of X^T X from which Newton-Schulz steps converge at once */

/* ---- the polynomial ---- */

/* x of the TERMS equations m x = 1; m is destroyed. */
static void solve(double m[TERMS][TERMS], double x[TERMS])
{
    for (int k = 0; k < TERMS; k++) x[k] = 1;
    for (int k = 0; k < TERMS; k++) {
        int best = k;
        for (int i = k; i < TERMS; i++)
            if (fabs(m[i][k]) > fabs(m[best][k])) best = i;
        for (int j = 0; j < TERMS; j++) {
            double t = m[k][j];
            m[k][j] = m[best][j];
            m[best][j] = t;
        }
        double t = x[k];
        x[k] = x[best];
        x[best] = t;
        for (int i = k + 1; i < TERMS; i++) {
            double f = m[i][k] / m[k][k];
            for (int j = k; j < TERMS; j++) m[i][j] -= f * m[k][j];
            x[i] -= f * x[k];
        }
    }
    for (int k = TERMS - 1; k >= 0; k--) {
        for (int j = k + 1; j < TERMS; j++) x[k] -= m[k][j] * x[j];
        x[k] /= m[k][k];
    }
}

/* The odd quintic nearest to 1 on [l, u] (Remez exchange), and the interval it maps to. */
static void best_quintic(double *l, double *u, double p[3])
{
    double lo = *l, hi = *u, q = (3 * lo + hi) / 4, r = (lo + 3 * hi) / 4, error = 2;
    if (lo / hi > 1 - 1e-4) {
        p[0] = 15.0 / 8 / hi, p[1] = -10.0 / 8 / (hi * hi * hi), p[2] = 3.0 / 8 / (hi * hi * hi * hi * hi);
        *l = *u = 1;
        return;
    }
    for (int step = 0; step < 50; step++) {
        const double at[TERMS] = {lo, q, r, hi};
        double m[TERMS][TERMS], x[TERMS];
        for (int i = 0; i < TERMS; i++) {
            double a = at[i], a2 = a * a;
            m[i][0] = a, m[i][1] = a * a2, m[i][2] = a * a2 * a2, m[i][3] = i % 2 ? -1 : 1;
        }
        solve(m, x);
        for (int i = 0; i < 3; i++) p[i] = x[i];
        double root = sqrt(fmax(0, 9 * p[1] * p[1] - 20 * p[0] * p[2]));
        q = sqrt((-3 * p[1] - root) / (10 * p[2]));
        r = sqrt((-3 * p[1] + root) / (10 * p[2]));
        if (fabs(x[3] - error) < 1e-14) break;
        error = x[3];
    }
    *l = lo * (p[0] + lo * lo * (p[1] + lo * lo * p[2]));
    *u = 2 - *l;
}

/* ---- iterations ---- */

#define REAL double
#define P(name) cblas_d##name
#define FN(name) name##_f64
#define DTYPE DQ_F64
#define EPSILON DBL_EPSILON
#define LAST 1e-5
#include "backend/cpu/polar_kernel.h"

#define REAL float
#define P(name) cblas_s##name
#define FN(name) name##_f32
#define DTYPE DQ_F32
#define EPSILON FLT_EPSILON
#define LAST 3e-3
#include "backend/cpu/polar_kernel.h"

/* ---- the op ---- */

typedef struct stack_job {
    dq_cpu_dev *dev;
    const dq_view *a, *u;
    int64_t n;
    double *work;  /* [threads][4][n][n] */
    double *error; /* [groups] */
} stack_job;

static void stack_task(void *arg, int64_t g, int thread)
{
    const stack_job *j = arg;
    int64_t n = j->n;
    solver_f64 s = {.dev = j->dev, .n = n, .alone = true, .x = j->work + thread * 4 * n * n};
    bool single = j->a->dtype == DQ_F32;
    for (int64_t i = 0; i < n * n; i++)
        s.x[i] = single ? dq_view_f32(j->a, g * n + i / n)[i % n] : dq_view_f64(j->a, g * n + i / n)[i % n];
    bool good = polar_f64(&s);
    for (int64_t i = 0; good && i < n * n; i++) {
        if (single)
            s.x[i] = dq_view_f32(j->u, g * n + i / n)[i % n] = (float)s.x[i];
        else
            dq_view_f64(j->u, g * n + i / n)[i % n] = s.x[i];
    }
    j->error[g] = good ? deviation_f64(&s) : INFINITY; /* of what was written */
}

/* One matrix per task; *error is the largest. */
static dq_status small_matrices(dq_cpu_dev *dev, int64_t groups, const dq_view *a, const dq_view *u, double *error)
{
    const dq_host *host = dev->ref.host;
    stack_job j = {.dev = dev, .a = a, .u = u, .n = a->cols};
    int64_t work = 4 * j.n * j.n * dev->threads;
    j.work = dq_cpu_scratch_take(dev, (size_t)(work + groups) * sizeof(double));
    if (!j.work) return DQ_E_NOMEM;
    j.error = j.work + work;
    dq_blas_enter();
    host->run(host->self, groups, stack_task, &j);
    dq_blas_leave();
    *error = 0;
    for (int64_t g = 0; g < groups; g++) *error = fmax(*error, j.error[g]);
    dq_cpu_scratch_give(dev, j.work);
    return DQ_OK;
}

dq_status dq_cpu_polar(void *device, int64_t groups, int32_t math, const dq_view *a, const dq_view *u, double *error)
{
    dq_cpu_dev *dev = device;
    int64_t n = a->cols;
    if (n <= ALONE) return small_matrices(dev, groups, a, u, error);
    (void)math; /* products of bf16 would save little */
    bool halley = a->dtype == DQ_F32 && n >= HALLEY_FROM;
    void *work = dq_cpu_scratch_take(dev, (halley ? 5 : 4) * (size_t)(n * n) * (a->dtype == DQ_F64 ? 8 : 4));
    if (!work) return DQ_E_NOMEM;
    dq_status status = DQ_OK;
    *error = 0;
    for (int64_t g = 0; g < groups && status == DQ_OK; g++) {
        double worst = 0;
        if (a->dtype == DQ_F64) {
            solver_f64 s = {.dev = dev, .n = n, .x = work};
            status = large_f64(&s, a, u, g, &worst);
        } else {
            solver_f32 s = {.dev = dev, .n = n, .x = work};
            status = large_f32(&s, a, u, g, &worst);
        }
        *error = fmax(*error, worst);
    }
    dq_cpu_scratch_give(dev, work);
    return status;
}
