/* Part of halley.c, in one precision: REAL, P(name) (a BLAS routine), LAPACK(name) and FN(name) are defined.
 * SPDX-License-Identifier: Apache-2.0 */

typedef struct FN(step) {
    int64_t n, column; /* order; block column of the factorization under way */
    REAL *x, *g;       /* [n][n] each; of g the lower triangle */
    REAL *lines;       /* [threads][SOLVE_ROWS][n] */
    double keep, turn, c;
    atomic_int failed;
} FN(step);

static int FN(block)(const FN(step) * s, int64_t at) { return (int)dq_min64(BLOCK, s->n - at); }

/* One block of the lower triangle of I + c x^T x. */
static void FN(gram_task)(void *arg, int64_t i, int thread)
{
    (void)thread;
    FN(step) *s = arg;
    int64_t row = 0;
    while ((row + 1) * (row + 2) / 2 <= i) row++;
    int64_t r = row * BLOCK, c = (i - row * (row + 1) / 2) * BLOCK, n = s->n;
    P(gemm)
    (CblasRowMajor, CblasTrans, CblasNoTrans, FN(block)(s, r), FN(block)(s, c), (int)n, (REAL)s->c, s->x + r, (int)n,
     s->x + c, (int)n, 0, s->g + r * n + c, (int)n);
    for (int64_t k = r; r == c && k < r + FN(block)(s, r); k++) s->g[k * n + k] += 1;
}

/* Block `i` of the column under way, down from the diagonal, less what the columns to its left account for. */
static void FN(update_task)(void *arg, int64_t i, int thread)
{
    (void)thread;
    FN(step) *s = arg;
    int64_t c = s->column * BLOCK, r = c + i * BLOCK, n = s->n;
    P(gemm)
    (CblasRowMajor, CblasNoTrans, CblasTrans, FN(block)(s, r), FN(block)(s, c), (int)c, -1, s->g + r * n, (int)n,
     s->g + c * n, (int)n, 1, s->g + r * n + c, (int)n);
}

static void FN(panel_task)(void *arg, int64_t i, int thread)
{
    (void)thread;
    FN(step) *s = arg;
    int64_t c = s->column * BLOCK, r = c + (i + 1) * BLOCK, n = s->n;
    P(trsm)
    (CblasRowMajor, CblasRight, CblasLower, CblasTrans, CblasNonUnit, FN(block)(s, r), FN(block)(s, c), 1,
     s->g + c * n + c, (int)n, s->g + r * n + c, (int)n);
}

/* g = l l^T, block column by block column; false when it is not positive definite. */
static bool FN(factor)(FN(step) * s, const dq_host *host)
{
    int64_t blocks = dq_ceil_div(s->n, BLOCK);
    for (s->column = 0; s->column < blocks; s->column++) {
        int64_t c = s->column * BLOCK;
        int order = FN(block)(s, c), ld = (int)s->n, info = 0;
        if (c > 0) host->run(host->self, blocks - s->column, FN(update_task), s);
        LAPACK(potrf)("U", &order, s->g + c * s->n + c, &ld, &info, 1); /* columns there are rows here */
        if (info != 0) return false;
        host->run(host->self, blocks - s->column - 1, FN(panel_task), s);
    }
    return true;
}

/* Some rows of x become keep x + turn x (l l^T)^-1. */
static void FN(solve_task)(void *arg, int64_t i, int thread)
{
    FN(step) *s = arg;
    int64_t n = s->n, first = i * SOLVE_ROWS, rows = dq_min64(SOLVE_ROWS, n - first);
    REAL *x = s->x + first * n, *y = s->lines + thread * SOLVE_ROWS * n, keep = (REAL)s->keep, turn = (REAL)s->turn;
    memcpy(y, x, (size_t)(rows * n) * sizeof *y);
    P(trsm)
    (CblasRowMajor, CblasRight, CblasLower, CblasTrans, CblasNonUnit, (int)rows, (int)n, 1, s->g, (int)n, y, (int)n);
    P(trsm)
    (CblasRowMajor, CblasRight, CblasLower, CblasNoTrans, CblasNonUnit, (int)rows, (int)n, 1, s->g, (int)n, y, (int)n);
    int finite = 1;
    for (int64_t k = 0; k < rows * n; k++) {
        x[k] = keep * x[k] + turn * y[k];
        finite &= x[k] - x[k] == 0;
    }
    if (!finite) atomic_store(&s->failed, 1);
}

/* Frobenius norm of x^T x - I, out of g = I + c x^T x. */
static double FN(spread)(const FN(step) * s)
{
    double sum = 0;
    for (int64_t i = 0; i < s->n; i++) {
        const REAL *g = s->g + i * s->n;
        double line = 0, d = ((double)g[i] - 1) / s->c - 1;
        for (int64_t j = 0; j < i; j++) line += (double)g[j] * (double)g[j];
        sum += 2 * line / (s->c * s->c) + d * d;
    }
    return sqrt(sum);
}

/* x (a + b x^T x) (I + c x^T x)^-1 replaces x, unless it is near its end; *spread is that of x before. */
static bool FN(halley_step)(FN(step) * s, const dq_host *host, double a, double b, double c, double *spread)
{
    int64_t blocks = dq_ceil_div(s->n, BLOCK);
    s->c = c;
    s->keep = b / c;
    s->turn = a - b / c;
    host->run(host->self, blocks * (blocks + 1) / 2, FN(gram_task), s);
    *spread = FN(spread)(s);
    if (*spread < DQ_HALLEY_NEAR) return true; /* products alone are quicker from here */
    if (!FN(factor)(s, host)) return false;
    host->run(host->self, dq_ceil_div(s->n, SOLVE_ROWS), FN(solve_task), s);
    return !atomic_load(&s->failed);
}

#undef REAL
#undef P
#undef LAPACK
#undef FN
