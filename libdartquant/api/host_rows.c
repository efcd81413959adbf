/* SPDX-License-Identifier: Apache-2.0 */
#include "api/host_rows.h"

#include <math.h>
#include <string.h>

#include "base/status.h"

enum { CHUNK_ROWS = 2048 }; /* that go to the device at a time */

static bool is_finite(dq_dtype dtype, const void *row, int64_t i)
{
    if (dtype == DQ_F32) return isfinite(((const float *)row)[i]);
    uint16_t exponent = dtype == DQ_F16 ? 0x7c00 : 0x7f80;
    return (((const uint16_t *)row)[i] & exponent) != exponent;
}

dq_status dq_host_rows_check(const dq_host_rows *r, const char *what)
{
    size_t bytes;
    if (r->dtype != DQ_F32 && r->dtype != DQ_F16 && r->dtype != DQ_BF16)
        return dq_fail(DQ_E_UNSUPPORTED, "%ss of type %s: F32, F16 and BF16 are possible", what,
                       dq_dtype_name(r->dtype));
    if (r->rows < 1 || r->stride < r->width || !dq_mul_ok((size_t)r->rows, (size_t)r->stride * 4, &bytes))
        return dq_fail(DQ_E_INVALID, "%lld %ss of %lld numbers, %lld elements apart", (long long)r->rows, what,
                       (long long)r->width, (long long)r->stride);
    for (int64_t row = 0; row < r->rows; row++) {
        const char *at = (const char *)r->x + (size_t)(row * r->stride) * dq_dtype_size(r->dtype);
        for (int64_t i = 0; i < r->width; i++)
            if (!is_finite(r->dtype, at, i))
                return dq_fail(DQ_E_NONFINITE, "%s (%lld, %lld) is NaN or Inf", what, (long long)row, (long long)i);
    }
    return DQ_OK;
}

/* Rows from..from+count on the device; through `packed` when there are gaps between them. */
static dq_status chunk_to_device(dq_context *ctx, const dq_host_rows *r, int64_t from, int64_t count, char *packed,
                                 dq_tensor *out)
{
    size_t size = dq_dtype_size(r->dtype), width = (size_t)r->width * size, pitch = (size_t)r->stride * size;
    const char *x = (const char *)r->x + (size_t)from * pitch;
    if (packed)
        for (int64_t i = 0; i < count; i++) memcpy(packed + (size_t)i * width, x + (size_t)i * pitch, width);
    return dq_tensor_from_host(ctx->dev, r->dtype, count, r->width, packed ? packed : x, out);
}

dq_status dq_host_rows_each(dq_context *ctx, const dq_host_rows *r, dq_status (*fn)(void *arg, const dq_tensor *x),
                            void *arg)
{
    int64_t most = r->rows < CHUNK_ROWS ? r->rows : CHUNK_ROWS;
    char *packed = NULL;
    if (r->stride != r->width && !(packed = dq_alloc(&ctx->env, (size_t)(most * r->width) * dq_dtype_size(r->dtype))))
        return DQ_E_NOMEM;
    dq_status status = DQ_OK;
    for (int64_t at = 0; at < r->rows && status == DQ_OK; at += most) {
        int64_t count = r->rows - at < most ? r->rows - at : most;
        dq_tensor t = {0};
        status = chunk_to_device(ctx, r, at, count, packed, &t);
        if (status == DQ_OK) status = fn(arg, &t);
        dq_tensor_free(&t);
    }
    dq_free(packed);
    return status;
}
