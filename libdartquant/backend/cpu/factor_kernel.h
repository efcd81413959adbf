/* The GPTQ factor in one precision, on tiles whose partition depends on the order alone. Included by factor.c with REAL, FN(name)
 * and the routines of that precision (GEMM ...) defined. Matrices here are column-major.
 *
 * With J the reversal of rows or columns: J A J = L L^T gives A = (J L J)(J L J)^T with J L J upper triangular, so
 * u = (J L J)^-1 = J L^-1 J is the upper factor with inv(A) = u^T u. One Cholesky and one triangular inverse, where Cholesky,
 * inverse, Cholesky does three times the work. SPDX-License-Identifier: Apache-2.0 */

typedef struct FN(job) {
    const dq_view *h, *u;
    const int32_t *perm;
    double damp;
    int64_t n, ld;
    REAL *a;          /* [n][ld]: J A J, then L, in the lower triangle */
    REAL *inverses;   /* of L's diagonal blocks, [n/PANEL][PANEL][PANEL] */
    REAL *strip;      /* [threads][(ld + PANEL) * INVERSE] */
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
            j->a[r + c * j->ld] = (REAL)value;
        }
        double d = dq_view_f32(j->h, q)[q];
        j->a[c + c * j->ld] = (REAL)((d == 0 ? 1.0 : d) + j->damp);
    }
}

/* L21 = A21 L11^-T for some rows below the diagonal block, through the block's inverse: a product runs several times
 * faster than a triangular solve. */
static void FN(solve)(void *arg, int64_t i, int thread)
{
    const FN(job) *j = arg;
    int64_t r0 = j->k + j->block + i * TILE, rows = dq_least(TILE, j->n - r0), ld = j->ld;
    const REAL *inverse = j->inverses + j->k * PANEL;
    REAL *a = j->a + r0 + j->k * ld, *old = j->strip + (int64_t)thread * (ld + PANEL) * INVERSE;
    for (int64_t c = 0; c < j->block; c++) memcpy(old + c * rows, a + c * ld, (size_t)rows * sizeof *a);
    GEMM(CblasColMajor, CblasNoTrans, CblasTrans, (int)rows, (int)j->block, (int)j->block, 1, old, (int)rows, inverse,
         PANEL, 0, a, (int)ld);
}

/* A22 -= L21 L21^T on one tile of the lower triangle. */
static void FN(update)(void *arg, int64_t i, int thread)
{
    (void)thread;
    const FN(job) *j = arg;
    int64_t first = j->k + j->block, row = 0;
    while ((row + 1) * (row + 2) / 2 <= i) row++;
    int64_t col = i - row * (row + 1) / 2, n = j->n, ld = j->ld, r0 = first + row * TILE, c0 = first + col * TILE;
    int rows = (int)dq_least(TILE, n - r0), cols = (int)dq_least(TILE, n - c0), depth = (int)j->block;
    const REAL *left = j->a + r0 + j->k * ld, *right = j->a + c0 + j->k * ld;
    REAL *out = j->a + r0 + c0 * ld;
    if (row == col)
        SYRK(CblasColMajor, CblasLower, CblasNoTrans, rows, depth, -1, left, (int)ld, 1, out, (int)ld);
    else
        GEMM(CblasColMajor, CblasNoTrans, CblasTrans, rows, cols, depth, -1, left, (int)ld, right, (int)ld, 1, out,
             (int)ld);
}

/* Inverse of the diagonal block just factored, zeros above its diagonal. */
static void FN(invert_block)(FN(job) * j, const REAL *diagonal)
{
    REAL *inverse = j->inverses + j->k * PANEL;
    int block = (int)j->block;
    memset(inverse, 0, (size_t)(j->block * PANEL) * sizeof *inverse);
    for (int64_t c = 0; c < j->block; c++) inverse[c + c * PANEL] = 1;
    TRSM(CblasColMajor, CblasLeft, CblasLower, CblasNoTrans, CblasNonUnit, block, block, 1, diagonal, (int)j->ld,
         inverse, PANEL);
}

/* 0, or the 1-based column of the flipped matrix whose pivot is not a positive finite number. */
static int64_t FN(cholesky)(const dq_host *host, FN(job) * j)
{
    int64_t n = j->n;
    for (j->k = 0; j->k < n; j->k += j->block) {
        j->block = dq_least(PANEL, n - j->k);
        REAL *diagonal = j->a + j->k + j->k * j->ld;
        int order = (int)j->block, ld = (int)j->ld, info = 0;
        POTRF("L", &order, diagonal, &ld, &info, 1);
        if (info > 0) return j->k + info;
        for (int64_t i = 0; i < j->block; i++) {
            REAL pivot = diagonal[i + i * ld]; /* a NaN or an infinity may pass unnoticed by the library */
            if (!(pivot > 0) || !isfinite(pivot)) return j->k + i + 1;
        }
        FN(invert_block)(j, diagonal);
        int64_t rest = n - j->k - j->block, tiles = (rest + TILE - 1) / TILE;
        host->run(host->self, tiles, FN(solve), j);
        host->run(host->self, tiles * (tiles + 1) / 2, FN(update), j);
    }
    return 0;
}

/* Columns [c0, c0 + INVERSE) of L^-1 by forward substitution in blocks, stored as columns of u from the right. Row r of
 * the strip x is row c0 + r of the matrix; INVERSE is a multiple of PANEL. */
static void FN(inverse)(void *arg, int64_t i, int thread)
{
    const FN(job) *j = arg;
    int64_t n = j->n, ld = j->ld, c0 = i * INVERSE, cols = dq_least(INVERSE, n - c0);
    REAL *x = j->strip + (int64_t)thread * (ld + PANEL) * INVERSE, *sum = x + ld * INVERSE;
    for (int64_t r = c0; r < n; r += PANEL) {
        int rows = (int)dq_least(PANEL, n - r), width = (int)cols;
        memset(sum, 0, (size_t)(PANEL * cols) * sizeof *sum);
        for (int64_t c = r - c0; c < r - c0 + rows && c < cols; c++) sum[(c + c0 - r) + c * PANEL] = 1;
        if (r > c0)
            GEMM(CblasColMajor, CblasNoTrans, CblasNoTrans, rows, width, (int)(r - c0), -1, j->a + r + c0 * ld, (int)ld,
                 x, (int)ld, 1, sum, PANEL);
        GEMM(CblasColMajor, CblasNoTrans, CblasNoTrans, rows, width, rows, 1, j->inverses + r * PANEL, PANEL, sum,
             PANEL, 0, x + (r - c0), (int)ld);
    }
    for (int64_t r = 0; r < n; r++) {
        float *u = dq_view_f32(j->u, n - 1 - r) + (n - c0 - cols);
        for (int64_t c = cols - 1; c >= 0; c--) *u++ = r < c0 + c ? 0.0f : (float)x[(r - c0) + c * ld];
    }
}

static dq_status FN(factor)(dq_cpu_dev *dev, const dq_view *h, const int32_t *perm, double damp, const dq_view *u,
                            int64_t *info)
{
    const dq_host *host = dev->ref.host;
    int64_t n = h->rows;
    FN(job) j = {.h = h, .u = u, .perm = perm, .damp = damp, .n = n};
    j.ld = (n + 15) / 16 * 16 + 16; /* columns a power of two apart would share cache sets */
    size_t ld = (size_t)j.ld, square = ld * (size_t)n, inverses = ld * PANEL;
    size_t strips = (ld + PANEL) * INVERSE * (size_t)dev->threads, bytes;
    if (__builtin_mul_overflow(square + inverses + strips, sizeof(REAL), &bytes))
        return host->fail(host->self, DQ_E_NOMEM, 0, "gptq_factor: the matrix is too large");
    j.a = host->alloc(host->self, bytes); /* seldom needed and large: not from the scratch that is kept */
    if (!j.a) return DQ_E_NOMEM;
    j.inverses = j.a + square;
    j.strip = j.inverses + inverses;
    dq_blas_enter();
    host->run(host->self, (n + ASSEMBLE - 1) / ASSEMBLE, FN(assemble), &j);
    int64_t failed = FN(cholesky)(host, &j);
    if (failed == 0) host->run(host->self, (n + INVERSE - 1) / INVERSE, FN(inverse), &j);
    dq_blas_leave();
    host->free(host->self, j.a);
    *info = failed == 0 ? 0 : n - failed + 1;
    return DQ_OK;
}

#undef REAL
#undef GEMM
#undef SYRK
#undef TRSM
#undef POTRF
#undef FN
