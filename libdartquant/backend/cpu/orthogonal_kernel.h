/* Part of orthogonal.c, in one precision: REAL, P(name) (a BLAS routine) and FN(name) are defined.
 * SPDX-License-Identifier: Apache-2.0 */

/* ---- QR, one matrix per task ---- */

typedef struct FN(qr_job) {
    const dq_fit_kernels *kernels;
    const dq_view *a, *q, *r;
    int64_t n, ld;
    REAL *work; /* [threads][3 n ld + n rounded up] */
    int64_t per_thread;
} FN(qr_job);

static void FN(qr_task)(void *arg, int64_t g, int thread)
{
    const FN(qr_job) *j = arg;
    int64_t n = j->n, ld = j->ld;
    REAL *a = j->work + thread * j->per_thread, *q = a + n * ld, *v = q + n * ld, *tau = v + n * ld;
    for (int64_t c = 0; c < n; c++)
        for (int64_t i = n; i < ld; i++) a[c * ld + i] = 0;
    for (int64_t i = 0; i < n; i++) {
        const REAL *row = dq_view_at(j->a, g * n + i, 0, sizeof(REAL));
        for (int64_t c = 0; c < n; c++) a[c * ld + i] = row[c];
    }
    if (sizeof(REAL) == 8)
        j->kernels->qr_f64((double *)a, (double *)q, (double *)v, (double *)tau, n, ld);
    else
        j->kernels->qr_f32((float *)a, (float *)q, (float *)v, (float *)tau, n, ld);
    for (int64_t i = 0; i < n; i++) {
        REAL *row = dq_view_at(j->q, g * n + i, 0, sizeof(REAL));
        REAL *upper = j->r ? dq_view_at(j->r, g * n + i, 0, sizeof(REAL)) : NULL;
        for (int64_t c = 0; c < n; c++) row[c] = q[c * ld + i];
        for (int64_t c = 0; upper && c < n; c++) upper[c] = c < i ? 0 : a[c * ld + i];
    }
}

static dq_status FN(qr_each)(dq_cpu_dev *dev, int64_t groups, const dq_view *a, const dq_view *q, const dq_view *r)
{
    const dq_host *host = dev->ref.host;
    FN(qr_job) j = {.kernels = DQ_CPU_PICK(dev, dq_fit), .a = a, .q = q, .r = r, .n = a->cols};
    j.ld = dq_ceil_div(j.n, DQ_FIT_LANES) * DQ_FIT_LANES;
    j.per_thread = 3 * j.n * j.ld + j.ld;
    j.work = dq_cpu_scratch_take(dev, (size_t)(j.per_thread * dev->threads) * sizeof(REAL));
    if (!j.work) return DQ_E_NOMEM;
    host->run(host->self, groups, FN(qr_task), &j);
    dq_cpu_scratch_give(dev, j.work);
    return DQ_OK;
}

/* ---- derivative: G = q^T dq, C = strict lower (G - G^T), da = q C r^-T ---- */

typedef struct FN(grad_job) {
    const dq_view *q, *r, *dq, *da;
    int64_t n, pieces;
    REAL *g; /* [groups][n][n]: G, then C in the lower triangle */
} FN(grad_job);

static REAL *FN(at)(const dq_view *v, int64_t row) { return dq_view_at(v, row, 0, sizeof(REAL)); }

static void FN(product_task)(void *arg, int64_t g, int thread)
{
    const FN(grad_job) *j = arg;
    int n = (int)j->n;
    (void)thread;
    P(gemm)
    (CblasRowMajor, CblasTrans, CblasNoTrans, n, n, n, 1, FN(at)(j->q, g * n), (int)j->q->stride, FN(at)(j->dq, g * n),
     (int)j->dq->stride, 0, j->g + g * n * n, n);
}

/* Only the lower triangle is written and only the upper one is read of other rows. */
static void FN(skew_task)(void *arg, int64_t i, int thread)
{
    const FN(grad_job) *j = arg;
    int64_t n = j->n, row0 = i % j->pieces * ROWS;
    REAL *g = j->g + i / j->pieces * n * n;
    (void)thread;
    for (int64_t c0 = 0; c0 < row0 + ROWS && c0 < n; c0 += ROWS)
        for (int64_t r = row0; r < dq_min64(row0 + ROWS, n); r++)
            for (int64_t c = c0; c <= dq_min64(r, c0 + ROWS - 1); c++)
                g[r * n + c] = c == r ? 0 : g[r * n + c] - g[c * n + r];
}

static void FN(solve_task)(void *arg, int64_t i, int thread)
{
    const FN(grad_job) *j = arg;
    int64_t n = j->n, group = i / j->pieces, row0 = group * n + i % j->pieces * ROWS;
    int rows = (int)dq_min64(ROWS, (group + 1) * n - row0), order = (int)n, ld = (int)j->da->stride;
    (void)thread;
    for (int64_t r = row0; r < row0 + rows; r++)
        for (int64_t c = 0; c < n; c++) FN(at)(j->da, r)[c] = FN(at)(j->q, r)[c];
    P(trmm)
    (CblasRowMajor, CblasRight, CblasLower, CblasNoTrans, CblasNonUnit, rows, order, 1, j->g + group * n * n, order,
     FN(at)(j->da, row0), ld);
    P(trsm)
    (CblasRowMajor, CblasRight, CblasUpper, CblasTrans, CblasNonUnit, rows, order, 1, FN(at)(j->r, group * n),
     (int)j->r->stride, FN(at)(j->da, row0), ld);
}

static dq_status FN(grad)(dq_cpu_dev *dev, int64_t groups, const dq_view *q, const dq_view *r, const dq_view *dq,
                          const dq_view *da)
{
    const dq_host *host = dev->ref.host;
    FN(grad_job) j = {.q = q, .r = r, .dq = dq, .da = da, .n = q->cols, .pieces = dq_ceil_div(q->cols, ROWS)};
    int64_t n = j.n;
    dq_status status = DQ_OK;
    j.g = dq_cpu_scratch_take(dev, (size_t)(groups * n * n) * sizeof(REAL));
    if (!j.g) return DQ_E_NOMEM;
    dq_blas_enter();
    if (n <= ALONE) host->run(host->self, groups, FN(product_task), &j);
    for (int64_t g = 0; n > ALONE && g < groups && status == DQ_OK; g++) {
        dq_view qg = matrix_of(q, g), dqg = matrix_of(dq, g), c = {j.g + g * n * n, 0, n, n, n, q->dtype, 0};
        status = dq_cpu_gemm(dev, 1, 0, 1, &qg, &dqg, 0, &c, DQ_MATH_F32);
    }
    if (status == DQ_OK) {
        host->run(host->self, groups * j.pieces, FN(skew_task), &j);
        host->run(host->self, groups * j.pieces, FN(solve_task), &j);
    }
    dq_blas_leave();
    dq_cpu_scratch_give(dev, j.g);
    return status;
}

#undef REAL
#undef P
#undef FN
