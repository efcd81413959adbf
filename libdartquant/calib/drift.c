/* SPDX-License-Identifier: Apache-2.0 */
#include "calib/drift.h"

#include <math.h>

#include "base/status.h"
#include "calib/fit_job.h"

enum { BLOCK = 512 }; /* columns of R that are compared with all others at a time */

/* The rows [first, first + rows) of R^T R - I right of the diagonal's blocks; NaN stays NaN. */
static double largest(const float *product, int64_t rows, int64_t cols)
{
    double most = 0;
    for (int64_t i = 0; i < rows; i++)
        for (int64_t k = 0; k < cols; k++) {
            double e = fabs((double)product[i * cols + k] - (i == k));
            if (!(e <= most)) most = e;
        }
    return most;
}

static dq_status block_error(const dq_tensor *r, int64_t first, int64_t rows, double *error)
{
    int64_t n = r->view.cols, cols = n - first;
    dq_tensor left = dq_tensor_slice(r, 0, n, first, rows), right = dq_tensor_slice(r, 0, n, first, cols);
    dq_tensor product = {0};
    dq_status status;
    float *host = dq_alloc(dq_device_env(r->dev), (size_t)(rows * cols) * sizeof *host);
    if (!host) return DQ_E_NOMEM;
    DQ_GO(dq_tensor_alloc(r->dev, DQ_F32, rows, cols, &product));
    DQ_GO(dq_op_gemm(true, false, 1, &left, &right, 0, &product, DQ_MATH_F32));
    DQ_GO(dq_tensor_download(&product, host));
    *error = largest(host, rows, cols);
done:
    dq_tensor_free(&product);
    dq_free(host);
    return status;
}

dq_status dq_fit_drift(const dq_fit *f, double *error)
{
    int64_t n = f->spec.orbit.n;
    double most = 0, e = 0;
    for (int64_t g = 0; g < f->spec.orbit.groups; g++) {
        dq_tensor r = dq_tensor_rows(&f->optim.r, g * n, n);
        for (int64_t first = 0; first < n; first += BLOCK) {
            DQ_TRY(block_error(&r, first, n - first < BLOCK ? n - first : BLOCK, &e));
            if (!(e <= most)) most = e;
        }
    }
    *error = most;
    return DQ_OK;
}

dq_status dq_fit_report_progress(const dq_fit *f, dq_progress *progress, const char *stage, uint64_t index,
                                 uint64_t total)
{
    double error = NAN;
    if (dq_progress_due(progress, stage, index, total)) DQ_TRY(dq_fit_drift(f, &error));
    return dq_progress_report_fit(progress, stage, index, total, f->steps ? f->last_loss : NAN, error);
}
