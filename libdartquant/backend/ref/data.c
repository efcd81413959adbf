/* Elementwise ops and data movement. SPDX-License-Identifier: Apache-2.0 */
#include <math.h>
#include <string.h>

#include "backend/ref/ops.h"

static dq_status bad_dtype(void *dev, const char *op, dq_dtype dtype)
{
    return dq_ref_fail(dev, DQ_E_UNSUPPORTED, "%s: element type %d is not served", op, (int)dtype);
}

dq_status dq_ref_fill(void *dev, double value, const dq_view *y)
{
    int64_t size = (int64_t)dq_dtype_size(y->dtype);
    if (dq_ref_is_float(y->dtype)) {
        for (int64_t r = 0; r < y->rows; r++)
            for (int64_t c = 0; c < y->cols; c++) dq_ref_put(y, r, c, value);
        return DQ_OK;
    }
    if (y->dtype != DQ_U8 && y->dtype != DQ_I32) return bad_dtype(dev, "fill", y->dtype);
    bool fits = y->dtype == DQ_U8 ? value >= 0 && value <= UINT8_MAX : value >= INT32_MIN && value <= INT32_MAX;
    if (!fits || value != floor(value))
        return dq_ref_fail(dev, DQ_E_INVALID, "fill: %g does not fit in the integer element type", value);
    for (int64_t r = 0; r < y->rows; r++)
        for (int64_t c = 0; c < y->cols; c++) {
            void *at = dq_view_at(y, r, c, size);
            if (y->dtype == DQ_U8)
                *(uint8_t *)at = (uint8_t)value;
            else
                *(int32_t *)at = (int32_t)value;
        }
    return DQ_OK;
}

dq_status dq_ref_convert(void *dev, const dq_view *x, const dq_view *y)
{
    int64_t size = (int64_t)dq_dtype_size(x->dtype);
    if (x->dtype == y->dtype) {
        if (size == 0) return bad_dtype(dev, "convert", x->dtype);
        for (int64_t r = 0; r < x->rows; r++)
            if (x->cols > 0) memmove(dq_view_at(y, r, 0, size), dq_view_at(x, r, 0, size), (size_t)(x->cols * size));
        return DQ_OK;
    }
    if (!dq_ref_is_float(x->dtype)) return bad_dtype(dev, "convert", x->dtype);
    if (!dq_ref_is_float(y->dtype)) return bad_dtype(dev, "convert", y->dtype);
    for (int64_t r = 0; r < x->rows; r++)
        for (int64_t c = 0; c < x->cols; c++) dq_ref_put(y, r, c, dq_ref_get(x, r, c));
    return DQ_OK;
}

dq_status dq_ref_axpy(void *dev, double alpha, const dq_view *x, const dq_view *y)
{
    (void)dev;
    for (int64_t r = 0; r < y->rows; r++) {
        int64_t from = x->rows == 1 ? 0 : r;
        for (int64_t c = 0; c < y->cols; c++) dq_ref_put(y, r, c, dq_ref_get(y, r, c) + alpha * dq_ref_get(x, from, c));
    }
    return DQ_OK;
}

dq_status dq_ref_scale_cols(void *dev, const dq_view *x, const dq_view *v, const dq_view *y)
{
    (void)dev;
    for (int64_t r = 0; r < x->rows; r++)
        for (int64_t c = 0; c < x->cols; c++) dq_ref_put(y, r, c, dq_ref_get(x, r, c) * dq_ref_get(v, 0, c));
    return DQ_OK;
}

dq_status dq_ref_gather_rows(void *dev, const dq_view *x, const dq_view *index, const dq_view *y)
{
    int64_t size = (int64_t)dq_dtype_size(x->dtype);
    if (size == 0) return bad_dtype(dev, "gather_rows", x->dtype);
    dq_status status = dq_ref_check_index(dev, index, x->rows, "gather_rows");
    if (status != DQ_OK) return status;
    const int32_t *from = dq_view_i32(index, 0);
    for (int64_t r = 0; r < y->rows; r++)
        if (y->cols > 0) memcpy(dq_view_at(y, r, 0, size), dq_view_at(x, from[r], 0, size), (size_t)(y->cols * size));
    return DQ_OK;
}

dq_status dq_ref_gather_cols(void *dev, const dq_view *x, const dq_view *index, const dq_view *y)
{
    int64_t size = (int64_t)dq_dtype_size(x->dtype);
    if (size == 0) return bad_dtype(dev, "gather_cols", x->dtype);
    dq_status status = dq_ref_check_index(dev, index, x->cols, "gather_cols");
    if (status != DQ_OK) return status;
    const int32_t *from = dq_view_i32(index, 0);
    for (int64_t r = 0; r < y->rows; r++)
        for (int64_t c = 0; c < y->cols; c++)
            memcpy(dq_view_at(y, r, c, size), dq_view_at(x, r, from[c], size), (size_t)size);
    return DQ_OK;
}

dq_status dq_ref_find_nonfinite(void *dev, const dq_view *x, int64_t *index)
{
    (void)dev;
    for (int64_t r = 0; r < x->rows; r++)
        for (int64_t c = 0; c < x->cols; c++)
            if (!isfinite(dq_ref_get(x, r, c))) {
                *index = r * x->cols + c;
                return DQ_OK;
            }
    *index = -1;
    return DQ_OK;
}

dq_status dq_ref_dot(void *dev, const dq_view *x, const dq_view *y, double *out)
{
    (void)dev;
    double sum = 0;
    for (int64_t r = 0; r < x->rows; r++)
        for (int64_t c = 0; c < x->cols; c++) sum += dq_ref_get(x, r, c) * dq_ref_get(y, r, c);
    *out = sum;
    return DQ_OK;
}

dq_status dq_ref_diag(void *dev, const dq_view *h, const dq_view *v)
{
    (void)dev;
    for (int64_t c = 0; c < h->cols; c++) dq_ref_put(v, 0, c, dq_ref_get(h, c, c));
    return DQ_OK;
}
