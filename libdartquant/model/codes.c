/* Integer codes of a linear as tensors of a store; the layout stands in docs/formats.md, "Saved models".
 * SPDX-License-Identifier: Apache-2.0 */
#include <math.h>
#include <stdatomic.h>
#include <stdio.h>
#include <string.h>

#include "base/status.h"
#include "formats/packed_source.h"
#include "model/internal.h"

/* name.layout: I64 [LAYOUT_FIELDS] */
enum { LAYOUT_VERSION, LAYOUT_BITS, LAYOUT_SYMMETRIC, LAYOUT_OUT, LAYOUT_IN, LAYOUT_GROUP, LAYOUT_FIELDS };
enum { ROWS_PER_TASK = 16 };

static const char *const suffixes[] = {"layout", "codes", "scales", "zeros", "g_idx"};

static const char *part_name(const char *name, const char *suffix, char *buf, size_t size)
{
    size_t n = strlen(name);
    if (n > 7 && strcmp(name + n - 7, ".weight") == 0) n -= 7;
    snprintf(buf, size, "%.*s.%s", (int)n, name, suffix);
    return buf;
}

void dq_codes_free(dq_codes *codes)
{
    dq_tensor_free(&codes->codes);
    dq_tensor_free(&codes->scale);
    dq_tensor_free(&codes->zero);
    dq_tensor_free(&codes->group_index);
}

bool dq_codes_exist(const dq_source *store, const char *name)
{
    char buf[DQ_TENSOR_NAME];
    if (dq_packed_source_find(store, name)) return true;
    return dq_source_find(store, part_name(name, "layout", buf, sizeof buf)) >= 0;
}

uint64_t dq_codes_bytes(const dq_source *store, const char *name)
{
    char buf[DQ_TENSOR_NAME];
    uint64_t bytes = 0;
    const dq_packed *foreign = dq_packed_source_find(store, name);
    if (foreign) return foreign->bytes;
    for (size_t i = 0; i < sizeof suffixes / sizeof *suffixes; i++) {
        int64_t t = dq_source_find(store, part_name(name, suffixes[i], buf, sizeof buf));
        if (t >= 0) bytes += store->tensors[t].bytes;
    }
    return bytes;
}

static int64_t packed_bytes(int64_t in, int bits) { return (in * bits + 7) / 8; }

typedef struct pack_job {
    uint8_t *packed, *codes;
    int64_t out, in;
    int bits;
    atomic_bool too_large; /* some code has more bits */
} pack_job;

/* Code c of a row occupies the bits [c * bits, (c + 1) * bits) of the row, low bits first. */
static void pack_any(const uint8_t *codes, int64_t in, int bits, uint8_t *packed)
{
    uint32_t word = 0;
    int filled = 0;
    for (int64_t c = 0; c < in; c++) {
        word |= (uint32_t)codes[c] << filled;
        for (filled += bits; filled >= 8; filled -= 8, word >>= 8) *packed++ = (uint8_t)word;
    }
    if (filled > 0) *packed = (uint8_t)word;
}

/* The loops that compilers make wide; returns all codes or'ed. */
static uint8_t pack_row(const uint8_t *codes, int64_t in, int bits, uint8_t *packed)
{
    uint8_t all = 0;
    for (int64_t c = 0; c < in; c++) all |= codes[c];
    if (bits == 4 && in % 2 == 0)
        for (int64_t c = 0; c < in / 2; c++) packed[c] = (uint8_t)(codes[2 * c] | codes[2 * c + 1] << 4);
    else if (bits == 8)
        memcpy(packed, codes, (size_t)in);
    else
        pack_any(codes, in, bits, packed);
    return all;
}

static void unpack_row(const uint8_t *packed, int64_t in, int bits, uint8_t *codes)
{
    uint32_t word = 0, mask = (1u << bits) - 1u;
    int filled = 0;
    for (int64_t c = 0; c < in; c++) {
        if (filled < bits) {
            word |= (uint32_t)*packed++ << filled;
            filled += 8;
        }
        codes[c] = (uint8_t)(word & mask);
        word >>= bits;
        filled -= bits;
    }
}

static void pack_task(void *arg, int64_t i, int thread)
{
    (void)thread;
    pack_job *j = arg;
    int64_t end = (i + 1) * ROWS_PER_TASK < j->out ? (i + 1) * ROWS_PER_TASK : j->out;
    for (int64_t r = i * ROWS_PER_TASK; r < end; r++)
        if (pack_row(j->codes + r * j->in, j->in, j->bits, j->packed + r * packed_bytes(j->in, j->bits)) >> j->bits)
            j->too_large = true;
}

static void unpack_task(void *arg, int64_t i, int thread)
{
    (void)thread;
    pack_job *j = arg;
    int64_t end = (i + 1) * ROWS_PER_TASK < j->out ? (i + 1) * ROWS_PER_TASK : j->out;
    for (int64_t r = i * ROWS_PER_TASK; r < end; r++)
        unpack_row(j->packed + r * packed_bytes(j->in, j->bits), j->in, j->bits, j->codes + r * j->in);
}

static dq_status add(dq_sink *sink, const char *name, const char *suffix, dq_dtype dtype, int64_t rows, int64_t cols,
                     const void *data)
{
    char buf[DQ_TENSOR_NAME];
    int64_t shape[2] = {rows, cols};
    int ndim = rows > 0 ? 2 : 1;
    uint64_t elements = (uint64_t)(rows > 0 ? rows : 1) * (uint64_t)cols;
    return sink->ops->add(sink, part_name(name, suffix, buf, sizeof buf), dtype, ndim, ndim == 2 ? shape : shape + 1,
                          data, elements * dq_dtype_size(dtype));
}

static dq_status too_large(const char *name, const dq_codes *c, const uint8_t *codes)
{
    while (!(*codes >> c->bits)) codes++;
    return dq_error_in_tensor(dq_fail(DQ_E_INVALID, "code %d does not fit in %d bits", *codes, c->bits), name);
}

static dq_status write_codes(dq_sink *sink, const char *name, const dq_codes *c)
{
    dq_env *env = sink->env;
    int64_t width = packed_bytes(c->in, c->bits);
    uint8_t *codes = dq_alloc(env, (size_t)(c->out * c->in));
    uint8_t *packed = dq_alloc(env, (size_t)(c->out * width));
    dq_status status = codes && packed ? dq_tensor_download(&c->codes, codes) : DQ_E_NOMEM;
    if (status == DQ_OK) {
        pack_job job = {packed, codes, c->out, c->in, c->bits, false};
        dq_run(env, (c->out + ROWS_PER_TASK - 1) / ROWS_PER_TASK, pack_task, &job);
        status = job.too_large ? too_large(name, c, codes) : add(sink, name, "codes", DQ_U8, c->out, width, packed);
    }
    dq_free(codes);
    dq_free(packed);
    return status;
}

/* Scales as they are; zeros as bytes, left out when all are the middle of the range as in symmetric grids. */
static dq_status write_grid(dq_sink *sink, const char *name, const dq_codes *c)
{
    int64_t n = c->out * c->groups;
    float middle = (float)(1 << (c->bits - 1));
    bool trivial = true;
    dq_status status = DQ_OK;
    float *values = dq_alloc(sink->env, (size_t)n * sizeof *values);
    uint8_t *zeros = dq_alloc(sink->env, (size_t)n);
    if (!values || !zeros) {
        status = DQ_E_NOMEM;
        goto done;
    }
    DQ_GO(dq_tensor_download(&c->scale, values));
    DQ_GO(add(sink, name, "scales", DQ_F32, c->out, c->groups, values));
    DQ_GO(dq_tensor_download(&c->zero, values));
    for (int64_t i = 0; i < n; i++) {
        if (!(values[i] >= 0.0f && values[i] <= 255.0f && values[i] == rintf(values[i]))) {
            status = dq_error_in_tensor(
                dq_fail(DQ_E_INVALID, "zero point %g is no integer in 0..255", (double)values[i]), name);
            goto done;
        }
        zeros[i] = (uint8_t)values[i];
        if (values[i] != middle) trivial = false;
    }
    if (!trivial) status = add(sink, name, "zeros", DQ_U8, c->out, c->groups, zeros);
done:
    dq_free(values);
    dq_free(zeros);
    return status;
}

static dq_status write_group_index(dq_sink *sink, const char *name, const dq_codes *c)
{
    if (dq_tensor_is_empty(&c->group_index)) return DQ_OK;
    int32_t *index = dq_alloc(sink->env, (size_t)c->in * sizeof *index);
    if (!index) return DQ_E_NOMEM;
    dq_status status = dq_tensor_download(&c->group_index, index);
    if (status == DQ_OK) status = add(sink, name, "g_idx", DQ_I32, 0, c->in, index);
    dq_free(index);
    return status;
}

dq_status dq_codes_write(dq_sink *sink, const char *name, const dq_codes *c)
{
    int64_t layout[LAYOUT_FIELDS] = {[LAYOUT_VERSION] = 1,  [LAYOUT_BITS] = c->bits, [LAYOUT_SYMMETRIC] = c->symmetric,
                                     [LAYOUT_OUT] = c->out, [LAYOUT_IN] = c->in,     [LAYOUT_GROUP] = c->group};
    if (c->bits < 2 || c->bits > 8) return dq_fail(DQ_E_INVALID, "codes of %d bits, 2 to 8 are possible", c->bits);
    DQ_TRY(add(sink, name, "layout", DQ_I64, 0, LAYOUT_FIELDS, layout));
    DQ_TRY(write_codes(sink, name, c));
    DQ_TRY(write_grid(sink, name, c));
    return write_group_index(sink, name, c);
}

/* ---- reading ---- */

/* Finds a part, checks type and shape (rows 0 = vector), copies it into fresh memory. Absent optional: *out = NULL. */
static dq_status fetch(dq_env *env, dq_source *store, const char *name, const char *suffix, dq_dtype dtype,
                       int64_t rows, int64_t cols, bool required, void **out)
{
    char buf[DQ_TENSOR_NAME];
    int64_t t = dq_source_find(store, part_name(name, suffix, buf, sizeof buf));
    *out = NULL;
    if (t < 0) return required ? dq_source_need(store, buf, &t) : DQ_OK;
    const dq_tensor_info *info = &store->tensors[t];
    uint64_t bytes = (uint64_t)(rows > 0 ? rows : 1) * (uint64_t)cols * dq_dtype_size(dtype);
    bool fits = info->dtype == dtype && info->ndim == (rows > 0 ? 2 : 1) && info->bytes == bytes &&
                (rows > 0 ? info->shape[0] == rows && info->shape[1] == cols : info->shape[0] == cols);
    if (!fits) {
        dq_status status = dq_fail(DQ_E_MISMATCH, "a tensor of type %s and %llu bytes where %s [%lld, %lld] belongs",
                                   info->type_name, (unsigned long long)info->bytes, dq_dtype_name(dtype),
                                   (long long)(rows > 0 ? rows : 1), (long long)cols);
        return dq_error_in_tensor(dq_error_in_file(status, info->file), info->name);
    }
    void *data = dq_alloc(env, (size_t)bytes);
    if (!data) return DQ_E_NOMEM;
    dq_status status = dq_source_read_raw(store, t, 0, bytes, data);
    dq_source_release(store, t);
    if (status != DQ_OK) {
        dq_free(data);
        return status;
    }
    *out = data;
    return DQ_OK;
}

static dq_status bad(const char *name, const char *what, double value)
{
    return dq_error_in_tensor(dq_fail(DQ_E_FORMAT, "%s %g is not possible", what, value), name);
}

static dq_status read_layout(dq_env *env, dq_source *store, const char *name, dq_codes *c)
{
    void *data;
    int64_t f[LAYOUT_FIELDS];
    DQ_TRY(fetch(env, store, name, "layout", DQ_I64, 0, LAYOUT_FIELDS, true, &data));
    memcpy(f, data, sizeof f);
    dq_free(data);
    if (f[LAYOUT_VERSION] != 1) return bad(name, "version of the code layout", (double)f[LAYOUT_VERSION]);
    if (f[LAYOUT_BITS] < 2 || f[LAYOUT_BITS] > 8) return bad(name, "number of bits", (double)f[LAYOUT_BITS]);
    if (f[LAYOUT_SYMMETRIC] != 0 && f[LAYOUT_SYMMETRIC] != 1)
        return bad(name, "symmetric flag", (double)f[LAYOUT_SYMMETRIC]);
    if (f[LAYOUT_OUT] < 1 || f[LAYOUT_OUT] > 1 << 28) return bad(name, "row count", (double)f[LAYOUT_OUT]);
    if (f[LAYOUT_IN] < 1 || f[LAYOUT_IN] > 1 << 28) return bad(name, "column count", (double)f[LAYOUT_IN]);
    if (f[LAYOUT_GROUP] < 1 || f[LAYOUT_GROUP] > f[LAYOUT_IN]) return bad(name, "group size", (double)f[LAYOUT_GROUP]);
    c->bits = (int)f[LAYOUT_BITS];
    c->symmetric = f[LAYOUT_SYMMETRIC] == 1;
    c->out = f[LAYOUT_OUT];
    c->in = f[LAYOUT_IN];
    c->group = f[LAYOUT_GROUP];
    c->groups = (c->in + c->group - 1) / c->group;
    return DQ_OK;
}

/* Makes room only once the file is known to hold what the layout promises. */
static dq_status read_codes(dq_env *env, dq_source *store, const char *name, dq_host_codes *h)
{
    void *packed;
    DQ_TRY(fetch(env, store, name, "codes", DQ_U8, h->out, packed_bytes(h->in, h->bits), true, &packed));
    dq_status status = dq_host_codes_alloc(env, h);
    if (status == DQ_OK) {
        pack_job job = {packed, h->codes, h->out, h->in, h->bits, false};
        dq_run(env, (h->out + ROWS_PER_TASK - 1) / ROWS_PER_TASK, unpack_task, &job);
    }
    dq_free(packed);
    return status;
}

static dq_status read_grid(dq_source *store, const char *name, dq_host_codes *h)
{
    void *scales, *zeros;
    DQ_TRY(fetch(h->env, store, name, "scales", DQ_F32, h->out, h->groups, true, &scales));
    dq_free(h->scale);
    h->scale = scales;
    for (int64_t i = 0; i < h->out * h->groups; i++)
        if (!isfinite(h->scale[i]))
            return dq_error_in_tensor(dq_fail(DQ_E_NONFINITE, "scale %lld is not finite", (long long)i), name);
    DQ_TRY(fetch(h->env, store, name, "zeros", DQ_U8, h->out, h->groups, false, &zeros));
    if (!zeros) return DQ_OK; /* all the middle of the range, as they are */
    dq_free(h->zero);
    h->zero = zeros;
    return DQ_OK;
}

static dq_status read_group_index(dq_source *store, const char *name, dq_host_codes *h)
{
    void *data;
    DQ_TRY(fetch(h->env, store, name, "g_idx", DQ_I32, 0, h->in, false, &data));
    h->group_index = data;
    for (int64_t i = 0; data && i < h->in; i++)
        if (h->group_index[i] < 0 || h->group_index[i] >= h->groups) return bad(name, "group index", h->group_index[i]);
    return DQ_OK;
}

/* ---- host codes ---- */

dq_status dq_codes_from_host(dq_device *dev, const dq_host_codes *h, dq_codes *out)
{
    dq_codes c = {.bits = h->bits, .out = h->out, .in = h->in, .groups = h->groups, .group = h->group};
    dq_status status;
    int64_t n = h->out * h->groups;
    c.symmetric = h->symmetric;
    float *zeros = dq_alloc(dq_device_env(dev), (size_t)n * sizeof *zeros);
    if (!zeros) return DQ_E_NOMEM;
    for (int64_t i = 0; i < n; i++) zeros[i] = h->zero[i];
    DQ_GO(dq_tensor_from_host(dev, DQ_U8, h->out, h->in, h->codes, &c.codes));
    DQ_GO(dq_tensor_from_host(dev, DQ_F32, h->out, h->groups, h->scale, &c.scale));
    DQ_GO(dq_tensor_from_host(dev, DQ_F32, h->out, h->groups, zeros, &c.zero));
    if (h->group_index) DQ_GO(dq_tensor_from_host(dev, DQ_I32, 1, h->in, h->group_index, &c.group_index));
    *out = c;
    c = (dq_codes){0};
done:
    dq_codes_free(&c);
    dq_free(zeros);
    return status;
}

dq_status dq_codes_to_host(dq_env *env, const dq_codes *c, dq_host_codes *out)
{
    dq_host_codes h = {.bits = c->bits, .out = c->out, .in = c->in, .group = c->group};
    float *zeros = NULL;
    dq_status status;
    DQ_GO(dq_host_codes_alloc(env, &h));
    zeros = dq_alloc(env, (size_t)(h.out * h.groups) * sizeof *zeros);
    if (zeros && !dq_tensor_is_empty(&c->group_index))
        h.group_index = dq_alloc(env, (size_t)h.in * sizeof *h.group_index);
    if (!zeros || (!h.group_index && !dq_tensor_is_empty(&c->group_index))) {
        status = DQ_E_NOMEM;
        goto done;
    }
    DQ_GO(dq_tensor_download(&c->codes, h.codes));
    DQ_GO(dq_tensor_download(&c->scale, h.scale));
    DQ_GO(dq_tensor_download(&c->zero, zeros));
    if (h.group_index) DQ_GO(dq_tensor_download(&c->group_index, h.group_index));
    for (int64_t i = 0; i < h.out * h.groups; i++) h.zero[i] = (uint8_t)zeros[i];
    dq_host_codes_find_symmetry(&h);
    dq_host_codes_normalize(&h);
    *out = h;
    memset(&h, 0, sizeof h);
done:
    dq_host_codes_free(&h);
    dq_free(zeros);
    return status;
}

dq_status dq_codes_read_layout(dq_env *env, dq_source *store, const char *name, dq_codes *out)
{
    memset(out, 0, sizeof *out);
    if (!dq_packed_source_find(store, name)) return read_layout(env, store, name, out);
    dq_host_codes h;
    DQ_TRY(dq_packed_source_read(store, name, &h));
    *out = (dq_codes){.bits = h.bits, .out = h.out, .in = h.in, .groups = h.groups, .group = h.group};
    out->symmetric = h.symmetric;
    dq_host_codes_free(&h);
    return DQ_OK;
}

dq_status dq_codes_read_host(dq_env *env, dq_source *store, const char *name, dq_host_codes *out)
{
    dq_codes c;
    dq_status status;
    if (dq_packed_source_find(store, name)) return dq_packed_source_read(store, name, out);
    DQ_TRY(read_layout(env, store, name, &c));
    dq_host_codes h = {.bits = c.bits, .out = c.out, .in = c.in, .group = c.group};
    DQ_TRY(read_codes(env, store, name, &h));
    h.symmetric = c.symmetric;
    DQ_GO(read_grid(store, name, &h));
    DQ_GO(read_group_index(store, name, &h));
    *out = h;
    return DQ_OK;
done:
    dq_host_codes_free(&h);
    return status;
}

dq_status dq_codes_read(dq_device *dev, dq_source *store, const char *name, dq_codes *out)
{
    dq_host_codes h;
    DQ_TRY(dq_codes_read_host(dq_device_env(dev), store, name, &h));
    dq_status status = dq_codes_from_host(dev, &h, out);
    dq_host_codes_free(&h);
    return status;
}

dq_status dq_codes_count_groups(dq_env *env, dq_source *store, const char *name, int64_t *groups)
{
    dq_codes c = {0};
    const dq_packed *foreign = dq_packed_source_find(store, name);
    if (!foreign) DQ_TRY(read_layout(env, store, name, &c));
    *groups = foreign ? foreign->groups : c.groups;
    return DQ_OK;
}
