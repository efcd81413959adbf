/* Random orthogonal matrices and the measure of orthogonality. SPDX-License-Identifier: Apache-2.0 */
#include "rotation/parts.h"

#include <math.h>

#include "base/status.h"

/* Row i = s_i * (column i of H)^T / sqrt(n), H = HK (x) Sylvester (QuaRot's random_hadamard_matrix). */
static void signed_hadamard(const dq_hadamard *h, dq_rng *rng, double *out)
{
    int64_t n = h->n, s = n / h->k;
    double unit = 1.0 / sqrt((double)n);
    for (int64_t i = 0; i < n; i++) {
        double value = (dq_rng_u32(rng) & 1u) ? unit : -unit;
        for (int64_t j = 0; j < n; j++) {
            int8_t core = h->hk ? h->hk[(j / s) * h->k + i / s] : 1;
            int odd = __builtin_popcountll((unsigned long long)((i % s) & (j % s))) & 1;
            out[i * n + j] = (core < 0) != (odd != 0) ? -value : value;
        }
    }
}

/* Haar-distributed Q (Stewart 1980): the signs of diag R make the factorization unique. */
static dq_status gaussian_orthogonal(dq_device *dev, int64_t n, dq_rng *rng, double *out)
{
    dq_status status = DQ_OK;
    dq_tensor a = {0}, q = {0}, r = {0};
    double *row = dq_alloc(dq_device_env(dev), (size_t)n * sizeof *row);
    if (!row) return DQ_E_NOMEM;
    for (int64_t i = 0; i < n * n; i++) out[i] = dq_rng_normal(rng);
    DQ_GO(dq_tensor_from_host(dev, DQ_F64, n, n, out, &a));
    DQ_GO(dq_tensor_alloc(dev, DQ_F64, n, n, &q));
    DQ_GO(dq_tensor_alloc(dev, DQ_F64, n, n, &r));
    DQ_GO(dq_op_qr(&a, &q, &r));
    DQ_GO(dq_tensor_download(&q, out));
    for (int64_t j = 0; j < n; j++) {
        double diagonal;
        dq_tensor entry = dq_tensor_slice(&r, j, 1, j, 1);
        DQ_GO(dq_tensor_download(&entry, &diagonal));
        row[j] = diagonal < 0 ? -1.0 : 1.0;
    }
    for (int64_t i = 0; i < n; i++)
        for (int64_t j = 0; j < n; j++) out[i * n + j] *= row[j];
done:
    dq_tensor_free(&a);
    dq_tensor_free(&q);
    dq_tensor_free(&r);
    dq_free(row);
    return status;
}

dq_status dq_rotation_draw(dq_device *dev, dq_rotate_mode mode, int64_t n, dq_rng *rng, double *out)
{
    dq_env *env = dq_device_env(dev);
    dq_hadamard h = {0};
    bool have = false;
    if (mode == DQ_ROTATE_HADAMARD) {
        dq_status status = dq_hadamard_make(env, n, false, &h);
        if (status != DQ_OK && status != DQ_E_UNSUPPORTED) return status;
        have = status == DQ_OK;
        if (!have) {
            dq_error_reset();
            if (out)
                dq_log(env, DQ_LOG_WARNING, "no Hadamard matrix of order %lld: using a random orthogonal one",
                       (long long)n);
        }
    }
    dq_status status = DQ_OK;
    if (!out) {
        int64_t words = have ? n : 4 * n * n; /* a normal number takes two 53-bit uniforms */
        for (int64_t i = 0; i < words; i++) (void)dq_rng_u32(rng);
    } else if (have) {
        signed_hadamard(&h, rng, out);
    } else {
        status = gaussian_orthogonal(dev, n, rng, out);
    }
    dq_hadamard_clear(&h);
    return status;
}

dq_status dq_rotation_matrix_error(dq_device *dev, const double *r, int64_t n, double *out)
{
    enum { BLOCK = 256 };
    dq_status status = DQ_OK;
    dq_tensor a = {0}, g = {0};
    double worst = 0;
    int64_t width = n < BLOCK ? n : BLOCK;
    double *product = dq_alloc(dq_device_env(dev), (size_t)(width * n) * sizeof *product);
    if (!product) return DQ_E_NOMEM;
    DQ_GO(dq_tensor_from_host(dev, DQ_F64, n, n, r, &a));
    DQ_GO(dq_tensor_alloc(dev, DQ_F64, width, n, &g));
    for (int64_t c0 = 0; c0 < n; c0 += width) {
        int64_t rows = n - c0 < width ? n - c0 : width;
        dq_tensor columns = dq_tensor_slice(&a, 0, n, c0, rows), part = dq_tensor_rows(&g, 0, rows);
        DQ_GO(dq_op_gemm(true, false, 1.0, &columns, &a, 0.0, &part, DQ_MATH_F32));
        DQ_GO(dq_tensor_download(&part, product));
        for (int64_t i = 0; i < rows; i++)
            for (int64_t j = 0; j < n; j++) {
                double e = fabs(product[i * n + j] - (j == c0 + i ? 1.0 : 0.0));
                if (!(e <= worst)) worst = isnan(worst) ? worst : e; /* keeps a NaN */
            }
    }
    *out = worst;
done:
    dq_tensor_free(&a);
    dq_tensor_free(&g);
    dq_free(product);
    return status;
}
