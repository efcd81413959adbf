/* The factor GPTQ needs from a Hessian, in fp64 while that is cheap, else in fp32 with fp64 as the second try.
 * SPDX-License-Identifier: Apache-2.0 */
#include <cblas.h>
#include <limits.h>
#include <math.h>
#include <stdio.h>
#include <string.h>

#include "backend/cpu/lapack.h"
#include "backend/cpu/quantize.h"

/* Columns assembled by a task, width of a Cholesky panel, tile of its update, columns of the inverse in a task (a multiple
 * of PANEL). */
enum { ASSEMBLE = 32, PANEL = 128, TILE = 512, INVERSE = 128 };

/* Up to this order fp64: it costs twice the time and memory of fp32 (order 2048: 0.16 s against 0.08 s on one core), little
 * beside what the factor is for, and it makes a failed pivot mean an indefinite matrix. */
enum { DOUBLE_ORDER = 4096 };

#define REAL double
#define GEMM cblas_dgemm
#define SYRK cblas_dsyrk
#define TRSM cblas_dtrsm
#define POTRF dpotrf_
#define FN(name) name##_f64
#include "backend/cpu/factor_kernel.h"

#define REAL float
#define GEMM cblas_sgemm
#define SYRK cblas_ssyrk
#define TRSM cblas_strsm
#define POTRF spotrf_
#define FN(name) name##_f32
#include "backend/cpu/factor_kernel.h"

dq_status dq_cpu_gptq_factor(void *device, const dq_view *h, const dq_view *perm, double damp, const dq_view *u,
                             int64_t *info)
{
    dq_cpu_dev *dev = device;
    const dq_host *host = dev->ref.host;
    const int32_t *order = perm ? dq_view_i32(perm, 0) : NULL;
    int64_t n = h->rows;
    for (int64_t i = 0; order && i < n; i++) {
        if (order[i] >= 0 && order[i] < n) continue;
        char message[128];
        snprintf(message, sizeof message, "gptq_factor: perm[%lld] is %d, outside 0..%lld", (long long)i, (int)order[i],
                 (long long)n - 1);
        return host->fail(host->self, DQ_E_INVALID, 0, message);
    }
    *info = 0;
    if (n == 0) return DQ_OK;
    if (n > INT_MAX) return dq_ref_backend()->gptq_factor(device, h, perm, damp, u, info);
    if (n > DOUBLE_ORDER) {
        dq_status status = factor_f32(dev, h, order, damp, u, info);
        if (status != DQ_OK || *info == 0) return status;
    }
    return factor_f64(dev, h, order, damp, u, info);
}
