/* A residual stream in memory or in a file. SPDX-License-Identifier: Apache-2.0 */
#include "calib/stream.h"

#include <string.h>

#include "base/status.h"

static dq_status spooled(dq_stream *s, uint64_t bytes, const char *folder)
{
    dq_env *env = dq_device_env(s->dev);
    size_t piece = (size_t)s->chunk * (size_t)s->cols * sizeof(float);
    DQ_TRY(dq_spool_open(env, folder, bytes, &s->spool));
    s->buffer = dq_calloc(env, 1, piece);
    if (!s->buffer) return DQ_E_NOMEM;
    for (uint64_t done = 0, at; done < bytes; done += piece)
        DQ_TRY(dq_spool_append(&s->spool, s->buffer, bytes - done < piece ? bytes - done : piece, &at));
    return dq_tensor_alloc(s->dev, DQ_F32, s->chunk, s->cols, &s->piece);
}

dq_status dq_stream_open(dq_device *dev, int64_t rows, int64_t cols, int64_t chunk, uint64_t most, const char *folder,
                         dq_stream *out)
{
    dq_stream s = {.dev = dev, .rows = rows, .cols = cols, .chunk = chunk < rows ? chunk : rows};
    size_t bytes;
    if (!dq_mul_ok((size_t)rows, (size_t)cols, &bytes) || !dq_mul_ok(bytes, sizeof(float), &bytes) || bytes > INT64_MAX)
        return dq_fail(DQ_E_NOMEM, "activations of %lld tokens are too many", (long long)rows);
    dq_status status =
        bytes <= most || !folder[0] ? dq_tensor_alloc(dev, DQ_F32, rows, cols, &s.all) : spooled(&s, bytes, folder);
    if (status == DQ_OK)
        *out = s;
    else
        dq_stream_close(&s);
    return status;
}

void dq_stream_close(dq_stream *s)
{
    dq_tensor_free(&s->all);
    dq_tensor_free(&s->piece);
    dq_spool_close(&s->spool);
    dq_free(s->buffer);
    memset(s, 0, sizeof *s);
}

static uint64_t bytes_of(const dq_stream *s, int64_t rows)
{
    return (uint64_t)rows * (uint64_t)s->cols * sizeof(float);
}

dq_status dq_stream_take(dq_stream *s, int64_t first, int64_t count, bool read, dq_tensor *out)
{
    if (!dq_spool_is_open(&s->spool)) {
        *out = dq_tensor_rows(&s->all, first, count);
        return DQ_OK;
    }
    *out = dq_tensor_rows(&s->piece, 0, count);
    if (!read) return DQ_OK;
    DQ_TRY(dq_spool_read(&s->spool, bytes_of(s, first), bytes_of(s, count), s->buffer));
    return dq_tensor_upload(out, s->buffer);
}

dq_status dq_stream_put(dq_stream *s, int64_t first, const dq_tensor *rows)
{
    if (!dq_spool_is_open(&s->spool)) return DQ_OK; /* they are where they belong */
    DQ_TRY(dq_tensor_download(rows, s->buffer));
    return dq_spool_write(&s->spool, bytes_of(s, first), s->buffer, bytes_of(s, rows->view.rows));
}
