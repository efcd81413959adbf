/* The GPTQ factor in one precision, on tiles whose partition depends on the order alone. Included by factor.c with REAL, P(name)
 * (BLAS and LAPACK prefix) and FN(name) defined. Matrices here are column-major.
 *
 * With J the reversal of rows or columns: J A J = L L^T gives A = (J L J)(J L J)^T with J L J upper triangular, so
 * u = (J L J)^-1 = J L^-1 J is the upper factor with inv(A) = u^T u. One Cholesky and one triangular inverse, where Cholesky,
 * inverse, Cholesky does three times the work. SPDX-License-Identifier: Apache-2.0 */

typedef struct FN(job) {
    const dq_view *h, *u;
    const int32_t *perm;
    double damp;
    int64_t n;
    REAL *a;          /* [n][n]: J A J, then L, in the lower triangle */
    REAL *strip;      /* [threads][n * INVERSE] */
    int64_t k, block; /* the panel at hand: first column and width */
} FN(job);

/* Columns of the flipped, damped, permuted matrix. */
static void FN(assemble)(void *arg, int64_t i, int thread)
{
    (void)thread;
    const FN(job) *j = arg;
    int64_t n = j->n, end = dq_least((i + 1) * ASSEMBLE, n);
    for (int64_t c = i * ASSEMBLE; c < end; c++) {
        int64_t q = n - 1 - c;
        if (j->perm) q = j->perm[q];
        for (int64_t r = c; r < n; r++) {
            int64_t p = n - 1 - r;
            if (j->perm) p = j->perm[p];
            float value = p >= q ? dq_view_f32(j->h, p)[q] : dq_view_f32(j->h, q)[p];
            j->a[r + c * n] = (REAL)value;
        }
        double d = dq_view_f32(j->h, q)[q];
        j->a[c + c * n] = (REAL)((d == 0 ? 1.0 : d) + j->damp);
    }
}

/* L21 = A21 L11^-T for a few rows below the diagonal block. */
static void FN(solve)(void *arg, int64_t i, int thread)
{
    (void)thread;
    const FN(job) *j = arg;
    int64_t r0 = j->k + j->block + i * TILE, rows = dq_least(TILE, j->n - r0);
    P(trsm)
    (CblasColMajor, CblasRight, CblasLower, CblasTrans, CblasNonUnit, (int)rows, (int)j->block, 1,
     j->a + j->k + j->k * j->n, (int)j->n, j->a + r0 + j->k * j->n, (int)j->n);
}

/* A22 -= L21 L21^T on one tile of the lower triangle. */
static void FN(update)(void *arg, int64_t i, int thread)
{
    (void)thread;
    const FN(job) *j = arg;
    int64_t first = j->k + j->block, row = 0;
    while ((row + 1) * (row + 2) / 2 <= i) row++;
    int64_t col = i - row * (row + 1) / 2, n = j->n, r0 = first + row * TILE, c0 = first + col * TILE;
    int rows = (int)dq_least(TILE, n - r0), cols = (int)dq_least(TILE, n - c0), depth = (int)j->block;
    const REAL *left = j->a + r0 + j->k * n, *right = j->a + c0 + j->k * n;
    REAL *out = j->a + r0 + c0 * n;
    if (row == col)
        P(syrk)(CblasColMajor, CblasLower, CblasNoTrans, rows, depth, -1, left, (int)n, 1, out, (int)n);
    else
        P(gemm)
        (CblasColMajor, CblasNoTrans, CblasTrans, rows, cols, depth, -1, left, (int)n, right, (int)n, 1, out, (int)n);
}

/* 0, or the 1-based column of the flipped matrix whose pivot is not a positive finite number. */
static int64_t FN(cholesky)(const dq_host *host, FN(job) * j)
{
    int64_t n = j->n;
    for (j->k = 0; j->k < n; j->k += j->block) {
        j->block = dq_least(PANEL, n - j->k);
        REAL *diagonal = j->a + j->k + j->k * n;
        int order = (int)j->block, ld = (int)n, info = 0;
        P(lapack_potrf)("L", &order, diagonal, &ld, &info, 1);
        if (info > 0) return j->k + info;
        for (int64_t i = 0; i < j->block; i++) {
            REAL pivot = diagonal[i + i * n]; /* a NaN or an infinity may pass unnoticed by the library */
            if (!(pivot > 0) || !isfinite(pivot)) return j->k + i + 1;
        }
        int64_t rest = n - j->k - j->block, tiles = (rest + TILE - 1) / TILE;
        host->run(host->self, tiles, FN(solve), j);
        host->run(host->self, tiles * (tiles + 1) / 2, FN(update), j);
    }
    return 0;
}

/* INVERSE columns of L^-1, stored as columns of u from the right. */
static void FN(inverse)(void *arg, int64_t i, int thread)
{
    const FN(job) *j = arg;
    int64_t n = j->n, c0 = i * INVERSE, cols = dq_least(INVERSE, n - c0), rows = n - c0;
    REAL *x = j->strip + (int64_t)thread * n * INVERSE;
    memset(x, 0, (size_t)(rows * cols) * sizeof *x);
    for (int64_t c = 0; c < cols; c++) x[c + c * rows] = 1;
    P(trsm)
    (CblasColMajor, CblasLeft, CblasLower, CblasNoTrans, CblasNonUnit, (int)rows, (int)cols, 1, j->a + c0 + c0 * n,
     (int)n, x, (int)rows);
    for (int64_t r = 0; r < n; r++) {
        float *u = dq_view_f32(j->u, n - 1 - r) + (n - c0 - cols);
        for (int64_t c = cols - 1; c >= 0; c--) *u++ = r < c0 + c ? 0.0f : (float)x[(r - c0) + c * rows];
    }
}

static dq_status FN(factor)(dq_cpu_dev *dev, const dq_view *h, const int32_t *perm, double damp, const dq_view *u,
                            int64_t *info)
{
    const dq_host *host = dev->ref.host;
    int64_t n = h->rows;
    FN(job) j = {.h = h, .u = u, .perm = perm, .damp = damp, .n = n};
    size_t square, all;
    if (__builtin_mul_overflow((size_t)n * (size_t)n, sizeof(REAL), &square) ||
        __builtin_add_overflow(square + 64, (size_t)n * INVERSE * (size_t)dev->threads * sizeof(REAL), &all))
        return host->fail(host->self, DQ_E_NOMEM, 0, "gptq_factor: the matrix is too large");
    j.a = dq_cpu_scratch_take(dev, all);
    if (!j.a) return DQ_E_NOMEM;
    j.strip = j.a + (square + 63) / 64 * 64 / sizeof(REAL);
    dq_blas_enter();
    host->run(host->self, (n + ASSEMBLE - 1) / ASSEMBLE, FN(assemble), &j);
    int64_t failed = FN(cholesky)(host, &j);
    if (failed == 0) host->run(host->self, (n + INVERSE - 1) / INVERSE, FN(inverse), &j);
    dq_blas_leave();
    dq_cpu_scratch_give(dev, j.a);
    *info = failed == 0 ? 0 : n - failed + 1;
    return DQ_OK;
}

#undef REAL
#undef P
#undef FN
