/* The error GPTQ minimises: tr(D H D^T) = sum over calibration inputs of |D x|^2. SPDX-License-Identifier: Apache-2.0 */
#include "base/status.h"
#include "quant/parts.h"

enum { BLOCK = 256 };

/* Both triangles of the diagonal block [c0, c0 + n) of h. */
static dq_status mirrored_block(const dq_tensor *h, int64_t c0, int64_t n, float *host, dq_tensor *out)
{
    dq_tensor block = dq_tensor_slice(h, c0, n, c0, n);
    DQ_TRY(dq_tensor_download(&block, host));
    for (int64_t i = 0; i < n; i++)
        for (int64_t j = i + 1; j < n; j++) host[i * n + j] = host[j * n + i];
    return dq_tensor_from_host(h->dev, DQ_F32, n, n, host, out);
}

dq_status dq_hessian_mirror(dq_tensor *h)
{
    dq_status status = DQ_OK;
    int64_t n = h->view.rows;
    float *tile = dq_alloc(dq_device_env(h->dev), (size_t)(BLOCK * BLOCK) * sizeof *tile);
    float *turned = dq_alloc(dq_device_env(h->dev), (size_t)(BLOCK * BLOCK) * sizeof *turned);
    if (!tile || !turned) DQ_GO(DQ_E_NOMEM);
    for (int64_t r0 = 0; r0 < n; r0 += BLOCK)
        for (int64_t c0 = 0; c0 <= r0; c0 += BLOCK) {
            int64_t rows = n - r0 < BLOCK ? n - r0 : BLOCK, cols = n - c0 < BLOCK ? n - c0 : BLOCK;
            dq_tensor from = dq_tensor_slice(h, r0, rows, c0, cols), to = dq_tensor_slice(h, c0, cols, r0, rows);
            DQ_GO(dq_tensor_download(&from, tile));
            for (int64_t i = 0; i < cols; i++)
                for (int64_t j = 0; j < rows; j++)
                    turned[i * rows + j] = r0 > c0 || j >= i ? tile[j * cols + i] : tile[i * cols + j];
            DQ_GO(dq_tensor_upload(&to, turned));
        }
done:
    dq_free(tile);
    dq_free(turned);
    return status;
}

dq_status dq_hessian_energy(const dq_tensor *d, const dq_tensor *h, bool whole, int math, double *out)
{
    dq_status status;
    int64_t rows = d->view.rows, n = d->view.cols, width = n < BLOCK ? n : BLOCK;
    dq_tensor product = {0}, mirrored = {0};
    double total = 0;
    float *host = dq_alloc(dq_device_env(d->dev), (size_t)(width * width) * sizeof *host);
    if (!host) return DQ_E_NOMEM;
    DQ_GO(dq_tensor_alloc(d->dev, DQ_F32, rows, width, &product));
    for (int64_t c0 = 0; c0 < n; c0 += width) {
        int64_t cols = n - c0 < width ? n - c0 : width, below = c0 + cols;
        dq_tensor here = dq_tensor_slice(d, 0, rows, c0, cols), p = dq_tensor_slice(&product, 0, rows, 0, cols);
        dq_tensor diagonal = dq_tensor_slice(h, c0, cols, c0, cols);
        double part;
        if (!whole) DQ_GO(mirrored_block(h, c0, cols, host, &mirrored));
        DQ_GO(dq_op_gemm(false, false, 1.0, &here, whole ? &diagonal : &mirrored, 0.0, &p, math));
        dq_tensor_free(&mirrored);
        DQ_GO(dq_op_dot(&p, &here, &part));
        total += part;
        if (below == n) continue;
        dq_tensor rest = dq_tensor_slice(d, 0, rows, below, n - below);
        dq_tensor lower = dq_tensor_slice(h, below, n - below, c0, cols);
        DQ_GO(dq_op_gemm(false, false, 1.0, &rest, &lower, 0.0, &p, math));
        DQ_GO(dq_op_dot(&p, &here, &part));
        total += 2 * part; /* the strict upper part is the mirror image */
    }
    *out = total;
done:
    dq_tensor_free(&mirrored);
    dq_tensor_free(&product);
    dq_free(host);
    return status;
}
