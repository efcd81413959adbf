/* Hidden states on the device, in host memory or in a file. SPDX-License-Identifier: Apache-2.0 */
#include "model/hidden.h"

#include <string.h>

#include "base/status.h"

dq_status dq_device_memory_left(dq_device *dev, uint64_t *out)
{
    dq_device_info info;
    DQ_TRY(dq_device_get_info(dev, &info));
    *out = info.memory_total ? info.memory_free : UINT64_MAX;
    return DQ_OK;
}

uint64_t dq_layer_room(const dq_arch *a, int64_t rows)
{
    uint64_t weights = 0, largest = 0;
    for (int n = 0; n < dq_arch_linears(a); n++) {
        int64_t out, in;
        dq_arch_shape(a, dq_arch_linear(a, n), &out, &in);
        uint64_t numbers = (uint64_t)out * (uint64_t)in;
        weights += numbers;
        if (numbers > largest) largest = numbers;
    }
    uint64_t columns =
        (uint64_t)(2 * a->hidden + 3 * a->heads * a->head_dim + 2 * a->kv_heads * a->head_dim + 2 * a->intermediate);
    return (4 * weights + 8 * largest + 4 * columns * (uint64_t)rows) / 4 * 5;
}

static dq_status spooled(dq_hidden *h, uint64_t bytes, const char *folder)
{
    dq_env *env = dq_device_env(h->dev);
    size_t piece = (size_t)h->chunk * (size_t)h->cols * sizeof(float);
    DQ_TRY(dq_spool_open(env, folder, bytes, &h->spool));
    h->buffer = dq_calloc(env, 1, piece);
    if (!h->buffer) return DQ_E_NOMEM;
    for (uint64_t done = 0, at; done < bytes; done += piece)
        DQ_TRY(dq_spool_append(&h->spool, h->buffer, bytes - done < piece ? bytes - done : piece, &at));
    return DQ_OK;
}

static bool fits(uint64_t bytes, uint64_t spare, uint64_t left) { return bytes <= left && spare <= left - bytes; }

/* `piece` is there: memory of the host's own is one place, that of a device another. */
static dq_status place(dq_hidden *h, uint64_t bytes, const dq_hidden_room *room)
{
    bool near = dq_tensor_in_reach(&h->piece), resident = bytes <= room->most || !room->folder[0];
    uint64_t left = UINT64_MAX;
    if (!near) DQ_TRY(dq_device_memory_left(h->dev, &left));
    if (near ? resident : fits(bytes, room->spare, left)) {
        dq_status status = dq_tensor_alloc(h->dev, DQ_F32, h->rows, h->cols, &h->all);
        if (status == DQ_OK) dq_tensor_free(&h->piece);
        if (near || left != UINT64_MAX || status != DQ_E_DEVICE_MEMORY) return status;
        dq_error_reset(); /* a device that does not say what it has was asked too much */
    }
    return resident ? dq_tensor_alloc_host(h->dev, DQ_F32, h->rows, h->cols, &h->all) : spooled(h, bytes, room->folder);
}

dq_status dq_hidden_open(dq_device *dev, int64_t rows, int64_t cols, int64_t chunk, const dq_hidden_room *room,
                         dq_hidden *out)
{
    dq_hidden h = {.dev = dev, .rows = rows, .cols = cols, .chunk = chunk < rows ? chunk : rows};
    size_t bytes;
    if (!dq_mul_ok((size_t)rows, (size_t)cols, &bytes) || !dq_mul_ok(bytes, sizeof(float), &bytes) || bytes > INT64_MAX)
        return dq_fail(DQ_E_NOMEM, "activations of %lld tokens are too many", (long long)rows);
    dq_status status = dq_tensor_alloc(dev, DQ_F32, h.chunk, cols, &h.piece);
    if (status == DQ_OK) status = place(&h, bytes, room);
    if (status == DQ_OK)
        *out = h;
    else
        dq_hidden_close(&h);
    return status;
}

void dq_hidden_close(dq_hidden *h)
{
    dq_tensor_free(&h->all);
    dq_tensor_free(&h->piece);
    dq_spool_close(&h->spool);
    dq_free(h->buffer);
    memset(h, 0, sizeof *h);
}

static uint64_t bytes_of(const dq_hidden *h, int64_t rows)
{
    return (uint64_t)rows * (uint64_t)h->cols * sizeof(float);
}

dq_status dq_hidden_take(dq_hidden *h, int64_t first, int64_t count, bool read, dq_tensor *out)
{
    if (dq_tensor_is_empty(&h->piece)) {
        *out = dq_tensor_rows(&h->all, first, count);
        return DQ_OK;
    }
    *out = dq_tensor_rows(&h->piece, 0, count);
    if (!read) return DQ_OK;
    if (!dq_spool_is_open(&h->spool)) return dq_tensor_upload(out, dq_tensor_host_row(&h->all, first));
    DQ_TRY(dq_spool_read(&h->spool, bytes_of(h, first), bytes_of(h, count), h->buffer));
    return dq_tensor_upload(out, h->buffer);
}

dq_status dq_hidden_put(dq_hidden *h, int64_t first, const dq_tensor *rows)
{
    if (dq_tensor_is_empty(&h->piece)) return DQ_OK; /* they are where they belong */
    if (!dq_spool_is_open(&h->spool)) return dq_tensor_download(rows, dq_tensor_host_row(&h->all, first));
    DQ_TRY(dq_tensor_download(rows, h->buffer));
    return dq_spool_write(&h->spool, bytes_of(h, first), h->buffer, bytes_of(h, rows->view.rows));
}

dq_tensor dq_hidden_tensor(const dq_hidden *h) { return dq_tensor_rows(&h->all, 0, h->rows); }
