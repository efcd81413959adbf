/* Part of polar.c, in one precision: REAL, DTYPE, EPSILON, P(name) (a BLAS routine), FN(name) and LAST, the spread from which
 * one more step is enough, are defined. SPDX-License-Identifier: Apache-2.0 */

typedef struct FN(solver) {
    dq_cpu_dev *dev;
    int64_t n;
    REAL *x;    /* x, X^T X, its polynomial, the next x: four matrices one after the other */
    bool alone; /* on one thread */
    /* Of x as it was when deviation was asked last: largest entry of X^T X - I; its Frobenius norm, at least as large as the
     * distance of any singular value's square from 1; the largest norm of a row of it. */
    double off, spread, row;
    dq_status status;
} FN(solver);

static REAL *FN(matrix)(const FN(solver) * s, int i) { return s->x + i * s->n * s->n; }

/* c = alpha op(a) b + beta c */
static void FN(multiply)(FN(solver) * s, bool trans_a, double alpha, int a, int b, double beta, int c)
{
    int n = (int)s->n;
    REAL *pa = FN(matrix)(s, a), *pb = FN(matrix)(s, b), *pc = FN(matrix)(s, c);
    if (s->alone) {
        P(gemm)
        (CblasRowMajor, trans_a ? CblasTrans : CblasNoTrans, CblasNoTrans, n, n, n, (REAL)alpha, pa, n, pb, n,
         (REAL)beta, pc, n);
        return;
    }
    dq_view va = {pa, 0, n, n, n, DTYPE, 0}, vb = va, vc = va;
    vb.mem = pb;
    vc.mem = pc;
    if (s->status == DQ_OK) s->status = dq_cpu_gemm(s->dev, trans_a, 0, alpha, &va, &vb, beta, &vc, DQ_MATH_F32);
}

/* A block of X^T X on or below the diagonal, and its mirror image. */
static void FN(gram_task)(void *arg, int64_t i, int thread)
{
    const FN(solver) *s = arg;
    int64_t row = 0, n = s->n;
    (void)thread;
    while ((row + 1) * (row + 2) / 2 <= i) row++;
    int64_t r = row * GRAM, c = (i - row * (row + 1) / 2) * GRAM, rows = dq_min64(GRAM, n - r),
            cols = dq_min64(GRAM, n - c);
    const REAL *x = FN(matrix)(s, 0);
    REAL *g = FN(matrix)(s, 1);
    P(gemm)
    (CblasRowMajor, CblasTrans, CblasNoTrans, (int)rows, (int)cols, (int)n, 1, x + r, (int)n, x + c, (int)n, 0,
     g + r * n + c, (int)n);
    for (int64_t b = 0; r != c && b < cols; b++)
        for (int64_t a = 0; a < rows; a++) g[(c + b) * n + r + a] = g[(r + a) * n + c + b];
}

static void FN(gram)(FN(solver) * s)
{
    const dq_host *host = s->dev->ref.host;
    int64_t blocks = dq_ceil_div(s->n, GRAM);
    if (s->alone) {
        FN(multiply)(s, true, 1, 0, 0, 0, 1);
        return;
    }
    dq_blas_enter();
    host->run(host->self, blocks * (blocks + 1) / 2, FN(gram_task), s);
    dq_blas_leave();
}

/* X^T X goes to matrix 1; the largest distance of an entry from I, infinity for NaN. */
static double FN(deviation)(FN(solver) * s)
{
    const REAL *g = FN(matrix)(s, 1);
    double worst = 0, sum = 0, row = 0;
    FN(gram)(s);
    for (int64_t i = 0; i < s->n; i++) {
        double line = 0;
        for (int64_t j = 0; j < s->n; j++) {
            double d = fabs((double)g[i * s->n + j] - (i == j));
            if (!(d <= worst)) worst = isnan(d) ? INFINITY : d;
            line += d * d;
        }
        sum += line;
        row = fmax(row, line);
    }
    s->row = sqrt(row);
    s->spread = sqrt(sum);
    return s->off = worst;
}

/* x (p0 I + p1 G + p2 G^2), G in matrix 1. */
static void FN(step)(FN(solver) * s, const double p[3])
{
    int64_t square = s->n * s->n;
    REAL *g = FN(matrix)(s, 1), *y = FN(matrix)(s, 2), *next = FN(matrix)(s, 3);
    for (int64_t i = 0; i < square; i++) y[i] = p[2] == 0 ? (REAL)p[1] * g[i] : g[i];
    if (p[2] != 0) FN(multiply)(s, false, p[2], 1, 1, p[1], 2);
    for (int64_t i = 0; i < s->n; i++) y[i * s->n + i] += (REAL)p[0];
    FN(multiply)(s, false, 1, 0, 2, 0, 3);
    for (int64_t i = 0; i < square; i++) s->x[i] = next[i];
}

/* Divides x by a bound of its largest singular value, from X^T X in matrix 1; false when there is none. */
static bool FN(normalize)(FN(solver) * s)
{
    const REAL *g = FN(matrix)(s, 1);
    double frobenius = 0, row_sum = 0;
    for (int64_t i = 0; i < s->n; i++) {
        double sum = 0;
        for (int64_t j = 0; j < s->n; j++) sum += fabs((double)g[i * s->n + j]);
        row_sum = fmax(row_sum, sum);
        frobenius += (double)g[i * s->n + i];
    }
    double bound = sqrt(fmin(frobenius, row_sum)) * (1 + 1e-3);
    if (!(bound > 0) || isinf(bound) || isinf((double)(REAL)(1 / bound))) return false;
    for (int64_t i = 0; i < s->n * s->n; i++) s->x[i] = (REAL)((double)s->x[i] / bound);
    return true;
}

/* The polar factor replaces x. Singular values below `l` grow by p[0] in a step; when those that are not rounding noise
 * would have arrived and the matrix still is not orthogonal, it is singular. */
static bool FN(polar)(FN(solver) * s)
{
    static const double cubic[3] = {1.5, -0.5, 0}; /* takes E = X^T X - I to about -3/4 E^2 */
    double l = 1e-3, u = 1, growth = 1;
    bool near = FN(deviation)(s) < INFINITY && s->spread < NEAR;
    if (s->off <= GOOD * EPSILON) return true;
    if (!near && !FN(normalize)(s)) return false;
    for (int i = 0; i < 100 && s->status == DQ_OK; i++) {
        double p[3];
        if (i > 0 || !near) FN(deviation)(s);
        if (isinf(s->off)) return false;
        if (s->off <= GOOD * EPSILON) return true;
        if (l >= 1 && s->spread > 0.5) l = 1e-2, u = 1;
        bool last = s->spread < LAST;
        if (last || near) l = u = 1;
        best_quintic(&l, &u, p);
        FN(step)(s, s->row * s->row < 2 * EPSILON ? cubic : p);
        if (last) {
            FN(deviation)(s);
            return true;
        }
        growth *= p[0];
        if (growth > 0.25 / EPSILON && s->spread > 0.9) return false;
    }
    return false;
}

/* Matrix g of the stacks; the library's threads share each product. */
static dq_status FN(large)(FN(solver) * s, const dq_view *a, const dq_view *u, int64_t g, double *error)
{
    int64_t n = s->n;
    for (int64_t i = 0; i < n; i++) {
        const REAL *row = dq_view_at(a, g * n + i, 0, sizeof(REAL));
        for (int64_t c = 0; c < n; c++) s->x[i * n + c] = row[c];
    }
    bool good = true;
    if (sizeof(REAL) == sizeof(float) && n >= HALLEY_FROM) {
        FN(deviation)(s);
        if (s->status == DQ_OK && !(s->spread < NEAR))
            s->status = dq_cpu_halley(s->dev, n, (float *)s->x, FN(matrix)(s, 1), &good);
    }
    good = good && FN(polar)(s);
    *error = good ? s->off : INFINITY;
    for (int64_t i = 0; i < n && good && s->status == DQ_OK; i++) {
        REAL *row = dq_view_at(u, g * n + i, 0, sizeof(REAL));
        for (int64_t c = 0; c < n; c++) row[c] = s->x[i * n + c];
    }
    return s->status;
}

#undef REAL
#undef P
#undef FN
#undef DTYPE
#undef EPSILON
#undef LAST
