/* QR of a square matrix, F64 or F32. SPDX-License-Identifier: Apache-2.0 */
#include <limits.h>
#include <string.h>

#include "backend/cpu/lapack.h"
#include "backend/cpu/quantize.h"

/* Columns in a panel, columns of the rest in a task, edge of the pieces copied. */
enum { PANEL = 64, TILE = 128, COPY = 32 };

#define REAL double
#define P(name) d##name
#define FN(name) name##_f64
#include "backend/cpu/qr_kernel.h"

#define REAL float
#define P(name) s##name
#define FN(name) name##_f32
#include "backend/cpu/qr_kernel.h"

dq_status dq_cpu_qr(void *device, const dq_view *a, const dq_view *q, const dq_view *r)
{
    if (a->rows == 0) return DQ_OK;
    if (a->rows > INT_MAX) return dq_ref_backend()->qr(device, a, q, r);
    return a->dtype == DQ_F64 ? qr_f64(device, a, q, r) : qr_f32(device, a, q, r);
}
