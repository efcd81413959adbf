/* Householder QR in one precision, blocked as LAPACK's geqrf and orgqr, with the block reflectors applied to fixed tiles of
 * columns in parallel. Included by qr.c with REAL, P(name) (LAPACK prefix) and FN(name) defined. Matrices here are
 * column-major. SPDX-License-Identifier: Apache-2.0 */

typedef struct FN(job) {
    const dq_view *a, *q, *r;
    int64_t n;
    REAL *v; /* [n][n]: a, then reflectors below the diagonal and r above */
    REAL *y; /* [n][n]: q */
    REAL *tau, *t, *work;
    REAL *target; /* v or y: what the block reflector is applied to */
    const char *trans;
    int64_t k, width, first; /* the panel at hand, and the first column to work on */
} FN(job);

static void FN(load)(void *arg, int64_t i, int thread)
{
    (void)thread;
    const FN(job) *j = arg;
    int64_t end = dq_least((i + 1) * COPY, j->n);
    for (int64_t c0 = i * COPY, r0 = 0; r0 < j->n; r0 += COPY) /* square pieces keep both sides in cache */
        for (int64_t r = r0; r < dq_least(r0 + COPY, j->n); r++) {
            const REAL *row = dq_view_at(j->a, r, 0, sizeof(REAL));
            for (int64_t c = c0; c < end; c++) {
                j->v[r + c * j->n] = row[c];
                j->y[r + c * j->n] = r == c;
            }
        }
}

static void FN(save)(void *arg, int64_t i, int thread)
{
    (void)thread;
    const FN(job) *j = arg;
    int64_t end = dq_least((i + 1) * COPY, j->n);
    for (int64_t r0 = i * COPY, c0 = 0; c0 < j->n; c0 += COPY)
        for (int64_t r = r0; r < end; r++) {
            REAL *q = dq_view_at(j->q, r, 0, sizeof(REAL));
            REAL *upper = j->r ? dq_view_at(j->r, r, 0, sizeof(REAL)) : NULL;
            for (int64_t c = c0; c < dq_least(c0 + COPY, j->n); c++) {
                q[c] = j->y[r + c * j->n];
                if (upper) upper[c] = c < r ? 0 : j->v[r + c * j->n];
            }
        }
}

static void FN(apply)(void *arg, int64_t i, int thread)
{
    const FN(job) *j = arg;
    int64_t c0 = j->first + i * TILE, n = j->n;
    int rows = (int)(n - j->k), cols = (int)dq_least(TILE, n - c0), width = (int)j->width, ld = (int)n, tile = TILE;
    int panel = PANEL;
    P(larfb_)
    ("L", j->trans, "F", "C", &rows, &cols, &width, j->v + j->k + j->k * n, &ld, j->t, &panel,
     j->target + j->k + c0 * n, &ld, j->work + (int64_t)thread * TILE * PANEL, &tile, 1, 1, 1, 1);
}

/* The triangular factor of the panel's block reflector. */
static void FN(make_t)(FN(job) * j)
{
    int rows = (int)(j->n - j->k), width = (int)j->width, ld = (int)j->n, panel = PANEL;
    P(larft_)("F", "C", &rows, &width, j->v + j->k + j->k * j->n, &ld, j->tau + j->k, j->t, &panel, 1, 1);
}

static void FN(householder)(const dq_host *host, FN(job) * j)
{
    int64_t n = j->n;
    j->target = j->v;
    j->trans = "T";
    for (j->k = 0; j->k < n; j->k += PANEL) {
        j->width = dq_least(PANEL, n - j->k);
        int rows = (int)(n - j->k), width = (int)j->width, ld = (int)n, lwork = TILE * PANEL, info;
        P(geqrf_)(&rows, &width, j->v + j->k + j->k * n, &ld, j->tau + j->k, j->work, &lwork, &info);
        j->first = j->k + j->width;
        if (j->first == n) break;
        FN(make_t)(j);
        host->run(host->self, (n - j->first + TILE - 1) / TILE, FN(apply), j);
    }
    j->target = j->y;
    j->trans = "N";
    for (j->k = (n - 1) / PANEL * PANEL; j->k >= 0; j->k -= PANEL) {
        j->width = dq_least(PANEL, n - j->k);
        j->first = j->k;
        FN(make_t)(j);
        host->run(host->self, (n - j->first + TILE - 1) / TILE, FN(apply), j);
    }
}

static dq_status FN(qr)(dq_cpu_dev *dev, const dq_view *a, const dq_view *q, const dq_view *r)
{
    const dq_host *host = dev->ref.host;
    int64_t n = a->rows;
    size_t square = (size_t)n * (size_t)n, work = (size_t)TILE * PANEL * (size_t)dev->threads, all;
    if (__builtin_mul_overflow(2 * square + (size_t)n + PANEL * PANEL + work, sizeof(REAL), &all))
        return host->fail(host->self, DQ_E_NOMEM, 0, "qr: the matrix is too large");
    FN(job) j = {.a = a, .q = q, .r = r, .n = n};
    j.v = dq_cpu_scratch_take(dev, all);
    if (!j.v) return DQ_E_NOMEM;
    j.y = j.v + square;
    j.work = j.y + square;
    j.t = j.work + work;
    j.tau = j.t + PANEL * PANEL;
    dq_blas_enter();
    host->run(host->self, (n + COPY - 1) / COPY, FN(load), &j);
    FN(householder)(host, &j);
    host->run(host->self, (n + COPY - 1) / COPY, FN(save), &j);
    dq_blas_leave();
    dq_cpu_scratch_give(dev, j.v);
    return DQ_OK;
}

#undef REAL
#undef P
#undef FN
