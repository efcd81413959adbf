/* Device memory with an owner. SPDX-License-Identifier: Apache-2.0 */
#include <string.h>

#include "backend/device_internal.h"
#include "base/status.h"

/* Bytes of rows x cols elements. */
static dq_status tensor_bytes(dq_dtype dtype, int64_t rows, int64_t cols, size_t *out)
{
    size_t size = dq_dtype_size(dtype), count;
    if (size == 0) return dq_fail(DQ_E_INVALID, "tensor: %s has no fixed element size", dq_dtype_name(dtype));
    if (rows < 0 || cols < 0)
        return dq_fail(DQ_E_INVALID, "tensor: negative shape [%lld, %lld]", (long long)rows, (long long)cols);
    if (!dq_mul_ok((size_t)rows, (size_t)cols, &count) || !dq_mul_ok(count, size, out) || *out > INT64_MAX)
        return dq_fail(DQ_E_NOMEM, "tensor: %s [%lld, %lld] does not fit in memory", dq_dtype_name(dtype),
                       (long long)rows, (long long)cols);
    return DQ_OK;
}

dq_status dq_tensor_alloc(dq_device *dev, dq_dtype dtype, int64_t rows, int64_t cols, dq_tensor *out)
{
    size_t bytes = 0;
    DQ_TRY(tensor_bytes(dtype, rows, cols, &bytes));
    void *mem = NULL;
    DQ_TRY(dq_device_usable(dev));
    dq_device_begin(dev);
    dq_status status = dq_device_finish(dev, dev->table.alloc(dev->state, bytes, &mem), "alloc", "");
    if (status != DQ_OK)
        return dq_error_append(status, " (tensor %s [%lld, %lld] of %zu bytes)", dq_dtype_name(dtype), (long long)rows,
                               (long long)cols, bytes);
    if (!mem)
        return dq_error_in_backend(dq_fail(DQ_E_BACKEND, "alloc of %zu bytes succeeded without memory", bytes),
                                   dev->name, 0);
    dev->tensors++;
    *out = (dq_tensor){dev, {mem, 0, rows, cols, cols, dtype, 0}, true, false};
    return DQ_OK;
}

dq_status dq_tensor_alloc_host(dq_device *dev, dq_dtype dtype, int64_t rows, int64_t cols, dq_tensor *out)
{
    size_t bytes = 0;
    DQ_TRY(tensor_bytes(dtype, rows, cols, &bytes));
    void *mem = dq_alloc(dev->env, bytes);
    if (!mem)
        return dq_error_append(DQ_E_NOMEM, " (tensor %s [%lld, %lld])", dq_dtype_name(dtype), (long long)rows,
                               (long long)cols);
    dev->tensors++;
    *out = (dq_tensor){dev, {mem, 0, rows, cols, cols, dtype, 0}, true, true};
    return DQ_OK;
}

void *dq_tensor_host_row(const dq_tensor *t, int64_t row)
{
    const dq_view *v = &t->view;
    return (char *)v->mem + v->offset + (uint64_t)(row * v->stride) * dq_dtype_size(v->dtype);
}

void dq_tensor_free(dq_tensor *t)
{
    if (!t) return;
    if (t->dev && t->owns) {
        t->dev->tensors--;
        if (t->on_host)
            dq_free(t->view.mem);
        else
            t->dev->table.free(t->dev->state, t->view.mem);
    }
    memset(t, 0, sizeof *t);
}

bool dq_tensor_in_reach(const dq_tensor *t)
{
    const dq_backend *table = &t->dev->table;
    if (t->on_host) return true;
    return table->host_pointer && table->host_pointer(t->dev->state, t->view.mem);
}

dq_tensor dq_tensor_slice(const dq_tensor *t, int64_t r0, int64_t rows, int64_t c0, int64_t cols)
{
    dq_tensor slice = {0};
    if (dq_tensor_is_empty(t)) return slice;
    const dq_view *v = &t->view;
    /* Out of range gives an empty tensor, which every op refuses by name. */
    if (r0 < 0 || rows < 0 || r0 > v->rows || rows > v->rows - r0) return slice;
    if (c0 < 0 || cols < 0 || c0 > v->cols || cols > v->cols - c0) return slice;
    slice.dev = t->dev;
    slice.on_host = t->on_host;
    slice.view = *v;
    slice.view.offset += (uint64_t)(r0 * v->stride + c0) * dq_dtype_size(v->dtype);
    slice.view.rows = rows;
    slice.view.cols = cols;
    return slice;
}

dq_tensor dq_tensor_split_rows(const dq_tensor *t, int64_t cols)
{
    dq_tensor split = dq_tensor_rows(t, 0, t->view.rows);
    const dq_view *v = &t->view;
    if (cols < 1 || v->cols % cols != 0 || (v->stride != v->cols && v->rows != 1)) return (dq_tensor){0};
    split.view.rows = v->rows * (v->cols / cols);
    split.view.cols = split.view.stride = cols;
    return split;
}

/* Copies between packed host memory and the view, in one piece where the rows touch. Exactly one of src, dst is set. */
static dq_status copy_rows(const dq_tensor *t, const char *src, char *dst)
{
    dq_device *dev = t->dev;
    const dq_view *v = &t->view;
    if (dq_view_is_empty(v)) return DQ_OK;
    uint64_t size = dq_dtype_size(v->dtype);
    bool packed = v->stride == v->cols || v->rows == 1;
    int64_t pieces = packed ? 1 : v->rows;
    uint64_t bytes = size * (uint64_t)v->cols * (uint64_t)(packed ? v->rows : 1);
    for (int64_t i = 0; t->on_host && i < pieces; i++) {
        char *here = dq_tensor_host_row(t, i);
        if (src)
            memcpy(here, src + (uint64_t)i * bytes, bytes);
        else
            memcpy(dst + (uint64_t)i * bytes, here, bytes);
    }
    if (t->on_host) return DQ_OK;
    DQ_TRY(dq_device_usable(dev));
    dq_device_begin(dev);
    for (int64_t i = 0; i < pieces; i++) {
        uint64_t at = v->offset + (uint64_t)i * (uint64_t)v->stride * size;
        dq_status status = src ? dev->table.upload(dev->state, v->mem, at, src + (uint64_t)i * bytes, bytes)
                               : dev->table.download(dev->state, dst + (uint64_t)i * bytes, v->mem, at, bytes);
        status = dq_device_finish(dev, status, src ? "upload" : "download", "");
        if (status != DQ_OK)
            return dq_error_append(status, " (%s of %llu bytes, %s [%lld, %lld])", src ? "upload" : "download",
                                   (unsigned long long)bytes, dq_dtype_name(v->dtype), (long long)v->rows,
                                   (long long)v->cols);
        *(src ? &dev->counters.uploads : &dev->counters.downloads) += 1;
        *(src ? &dev->counters.upload_bytes : &dev->counters.download_bytes) += bytes;
    }
    return DQ_OK;
}

dq_status dq_tensor_upload(dq_tensor *t, const void *src)
{
    if (dq_tensor_is_empty(t)) return dq_fail(DQ_E_INVALID, "upload: the tensor is empty");
    if (!src && !dq_view_is_empty(&t->view)) return dq_fail(DQ_E_INVALID, "upload: the source is NULL");
    return copy_rows(t, src, NULL);
}

dq_status dq_tensor_download(const dq_tensor *t, void *dst)
{
    if (dq_tensor_is_empty(t)) return dq_fail(DQ_E_INVALID, "download: the tensor is empty");
    if (!dst && !dq_view_is_empty(&t->view)) return dq_fail(DQ_E_INVALID, "download: the target is NULL");
    return copy_rows(t, NULL, dst);
}

dq_status dq_tensor_from_host(dq_device *dev, dq_dtype dtype, int64_t rows, int64_t cols, const void *src,
                              dq_tensor *out)
{
    dq_tensor t = {0};
    DQ_TRY(dq_tensor_alloc(dev, dtype, rows, cols, &t));
    dq_status status = dq_tensor_upload(&t, src);
    if (status != DQ_OK) {
        dq_tensor_free(&t);
        return status;
    }
    *out = t;
    return DQ_OK;
}
