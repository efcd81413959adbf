/* SPDX-License-Identifier: Apache-2.0 */
#include "text/lines.h"

#include "base/status.h"

/* A line is held in memory whole; a data set as large as this one is not meant for calibration. */
static const uint64_t max_line = UINT64_C(1) << 28, max_text = UINT64_C(8) << 30;
enum { CHUNK = 1 << 18 };

static voidpf z_alloc(voidpf env, uInt items, uInt size)
{
    size_t bytes;
    return dq_mul_ok(items, size, &bytes) ? dq_alloc(env, bytes) : Z_NULL;
}
static void z_free(voidpf env, voidpf ptr)
{
    (void)env;
    dq_free(ptr);
}

dq_status dq_lines_open(dq_env *env, const char *path, dq_lines *out)
{
    *out = (dq_lines){.env = env, .path = path, .buffer = {.env = env}};
    DQ_TRY(dq_map_open(env, path, &out->map));
    out->gzip = out->map.size >= 2 && out->map.data[0] == 0x1f && out->map.data[1] == 0x8b;
    if (!out->gzip) {
        if (!dq_path_ends_with(path, ".gz")) return DQ_OK;
        dq_map_close(&out->map);
        return dq_error_in_file(dq_fail(DQ_E_FORMAT, "not a gzip file, although it is called .gz"), path);
    }
    out->z.zalloc = z_alloc;
    out->z.zfree = z_free;
    out->z.opaque = env;
    int rc = inflateInit2(&out->z, 15 + 16); /* gzip header expected */
    if (rc != Z_OK) {
        dq_map_close(&out->map);
        return dq_fail(rc == Z_MEM_ERROR ? DQ_E_NOMEM : DQ_E_INTERNAL, "zlib: inflateInit2 gives %d", rc);
    }
    out->started = true;
    out->z.next_in = (Bytef *)(uintptr_t)out->map.data;
    return DQ_OK;
}

void dq_lines_close(dq_lines *r)
{
    if (r->started) inflateEnd(&r->z);
    r->started = false;
    dq_map_close(&r->map);
    dq_bytes_clear(&r->buffer);
}

static size_t consumed(const dq_lines *r) { return (size_t)(r->z.next_in - r->map.data); }

/* Inflates one chunk behind the buffer's content; r->ended at the end of the file. */
static dq_status inflate_more(dq_lines *r)
{
    if (r->at > 0) { /* keep only what has not been handed out */
        memmove(r->buffer.data, r->buffer.data + r->at, r->buffer.size - r->at);
        r->buffer.size -= r->at;
        r->at = 0;
    }
    DQ_TRY(dq_bytes_reserve(&r->buffer, CHUNK));
    uint64_t left = r->map.size - consumed(r);
    r->z.avail_in = left > CHUNK ? CHUNK : (uInt)left;
    r->z.next_out = (Bytef *)r->buffer.data + r->buffer.size;
    r->z.avail_out = CHUNK;
    int rc = inflate(&r->z, Z_NO_FLUSH);
    size_t got = CHUNK - r->z.avail_out;
    r->buffer.size += got;
    r->total += got;
    left = r->map.size - consumed(r);
    dq_status status = DQ_OK;
    if (rc == Z_MEM_ERROR)
        status = dq_fail(DQ_E_NOMEM, "no memory for inflating");
    else if (rc == Z_STREAM_END && left == 0)
        r->ended = true;
    else if (rc == Z_STREAM_END)
        rc = inflateReset(&r->z); /* another member follows */
    else if (rc == Z_BUF_ERROR || (rc == Z_OK && left == 0 && got == 0))
        status = dq_fail(DQ_E_TRUNCATED, "gzip data end early");
    else if (rc != Z_OK)
        status = dq_fail(DQ_E_FORMAT, "damaged gzip data: %s", r->z.msg ? r->z.msg : "unknown error");
    if (status == DQ_OK && r->total > max_text)
        status = dq_fail(DQ_E_FORMAT, "the text unpacks to more than %llu bytes", (unsigned long long)max_text);
    return dq_error_in_file(dq_error_at_byte(status, consumed(r)), r->path);
}

dq_status dq_lines_next(dq_lines *r, const char **line, size_t *bytes)
{
    size_t searched = 0;
    for (;;) {
        const char *text = r->gzip ? r->buffer.data : (const char *)r->map.data;
        size_t left = (r->gzip ? r->buffer.size : (size_t)r->map.size) - r->at;
        const char *end = left > searched ? memchr(text + r->at + searched, '\n', left - searched) : NULL;
        if (end || !r->gzip || r->ended) {
            *line = left ? text + r->at : NULL;
            *bytes = end ? (size_t)(end - *line) + 1 : left;
            r->at += *bytes;
            r->number += left > 0;
            return DQ_OK;
        }
        if (left > max_line)
            return dq_error_in_file(dq_fail(DQ_E_FORMAT, "line %lld is longer than %llu bytes",
                                            (long long)r->number + 1, (unsigned long long)max_line),
                                    r->path);
        searched = left;
        DQ_TRY(inflate_more(r));
    }
}

dq_status dq_lines_rest(dq_lines *r, dq_bytes *out)
{
    while (r->gzip) {
        DQ_TRY(dq_bytes_add(out, r->buffer.data + r->at, r->buffer.size - r->at));
        r->at = r->buffer.size;
        if (r->ended) return DQ_OK;
        DQ_TRY(inflate_more(r));
    }
    size_t left = (size_t)r->map.size - r->at;
    DQ_TRY(dq_bytes_add(out, left ? (const char *)r->map.data + r->at : NULL, left));
    r->at += left;
    return DQ_OK;
}
