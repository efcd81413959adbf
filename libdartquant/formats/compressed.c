/* compressed-tensors with integers. pack-quantized: weight_packed I32 [out, words] of q + 2^(bits-1), weight_scale,
 * weight_zero_point I32 [words, groups] packed down the columns, weight_g_idx, weight_shape I64 [2]. int-quantized: weight
 * I8 [out, in], weight_zero_point I8 like the scale. W = (q - zero_point) * scale. SPDX-License-Identifier: Apache-2.0 */
#include <string.h>

#include "base/status.h"
#include "formats/fields.h"
#include "formats/layout.h"

static dq_field_order order_of(const dq_packed *p) { return p->padded ? DQ_FIELDS_PADDED : DQ_FIELDS_DENSE; }

/* The scale: [out, groups], or one number for the whole tensor. */
static dq_status bind_scale(const dq_source *source, const char *name, dq_packed *p)
{
    const dq_layout *l = &p->layout;
    p->group = l->group > 0 && l->group < p->in ? l->group : p->in;
    p->groups = (p->in + p->group - 1) / p->group;
    DQ_TRY(dq_part_need(source, name, ".weight_scale", &p->part[DQ_PART_SCALES]));
    return dq_part_check(source, p->part[DQ_PART_SCALES], DQ_F32, l->per_tensor ? 1 : p->out, p->groups);
}

static dq_status bind_shape(dq_source *source, const char *name, dq_packed *p)
{
    int64_t t, shape[2];
    DQ_TRY(dq_part_need(source, name, ".weight_shape", &p->part[DQ_PART_SHAPE]));
    t = p->part[DQ_PART_SHAPE];
    const dq_tensor_info *info = &source->tensors[t];
    if (info->dtype == DQ_I32 && info->bytes == 8) { /* some writers keep 32 bits */
        int32_t narrow[2];
        DQ_TRY(dq_source_read_raw(source, t, 0, 8, narrow));
        shape[0] = narrow[0];
        shape[1] = narrow[1];
    } else {
        DQ_TRY(dq_part_check(source, t, DQ_I64, 1, 2));
        DQ_TRY(dq_source_read_raw(source, t, 0, 16, shape));
    }
    if (shape[0] < 1 || shape[1] < 1 || shape[0] > 1 << 28 || shape[1] > 1 << 28)
        return dq_fail(DQ_E_FORMAT, "weight_shape is [%lld, %lld]", (long long)shape[0], (long long)shape[1]);
    p->out = shape[0];
    p->in = shape[1];
    return DQ_OK;
}

/* Symmetric weights have no zero points. Old writers stored them all the same, as bytes; others than 0 contradict. */
static dq_status check_symmetric(dq_source *source, const char *name)
{
    int64_t t = dq_part_find(source, name, ".weight_zero_point");
    void *data;
    if (t < 0 || source->tensors[t].bytes == 0) return DQ_OK;
    DQ_TRY(dq_part_read(source, t, &data));
    const uint8_t *bytes = data;
    uint64_t i = 0;
    while (i < source->tensors[t].bytes && bytes[i] == 0) i++;
    dq_free(data);
    if (i == source->tensors[t].bytes) return DQ_OK;
    dq_status status =
        dq_fail(DQ_E_MISMATCH, "the configuration says symmetric, but a zero point that is not 0 is stored");
    return dq_error_in_tensor(dq_error_in_file(status, source->tensors[t].file), source->tensors[t].name);
}

static dq_status bind_packed(const dq_source *source, const char *name, int64_t in, dq_packed *p)
{
    int bits = p->layout.bits;
    if (bits < 2 || bits > 8) return dq_fail(DQ_E_UNSUPPORTED, "%d bits; 2 to 8 are known", bits);
    DQ_TRY(dq_part_need(source, name, ".weight_packed", &p->part[DQ_PART_WEIGHT]));
    DQ_TRY(bind_shape((dq_source *)(uintptr_t)source, name, p));
    if (in > 0 && in != p->in)
        return dq_fail(DQ_E_MISMATCH, "weight_shape has %lld columns, the model needs %lld", (long long)p->in,
                       (long long)in);
    int64_t words = dq_info_cols(&source->tensors[p->part[DQ_PART_WEIGHT]]);
    int64_t dense = dq_fields_words(DQ_FIELDS_DENSE, bits, p->in);
    int64_t padded = dq_fields_words(DQ_FIELDS_PADDED, bits, p->in);
    p->padded = words == padded && words != dense;
    DQ_TRY(dq_part_check(source, p->part[DQ_PART_WEIGHT], DQ_I32, p->out, p->padded ? padded : dense));
    DQ_TRY(bind_scale(source, name, p));
    if (p->layout.symmetric) {
        DQ_TRY(check_symmetric((dq_source *)(uintptr_t)source, name));
    } else {
        DQ_TRY(dq_part_need(source, name, ".weight_zero_point", &p->part[DQ_PART_ZEROS]));
        int64_t rows = dq_fields_words(order_of(p), bits, p->layout.per_tensor ? 1 : p->out);
        DQ_TRY(dq_part_check(source, p->part[DQ_PART_ZEROS], DQ_I32, rows, p->groups));
    }
    p->part[DQ_PART_GROUP_INDEX] = dq_part_find(source, name, ".weight_g_idx");
    if (p->part[DQ_PART_GROUP_INDEX] < 0) return DQ_OK;
    return dq_part_check(source, p->part[DQ_PART_GROUP_INDEX], DQ_I32, 1, p->in);
}

static dq_status read_scale(dq_source *source, const dq_packed *p, dq_host_codes *c)
{
    float *scales;
    DQ_TRY(dq_part_read_floats(source, p->part[DQ_PART_SCALES], &scales));
    for (int64_t i = 0; i < c->out * c->groups; i++) c->scale[i] = scales[p->layout.per_tensor ? i % c->groups : i];
    dq_free(scales);
    return DQ_OK;
}

static dq_fields weight_fields(dq_field_order order, int bits, int64_t out, int64_t in)
{
    return (dq_fields){order, bits, out, in, dq_fields_words(order, bits, in), 1, in, 1};
}

static dq_fields zero_fields(dq_field_order order, int bits, int64_t out, int64_t groups)
{
    return (dq_fields){order, bits, groups, out, 1, groups, 1, groups};
}

static dq_status read_packed(dq_source *source, const dq_packed *p, dq_host_codes *c)
{
    void *data;
    DQ_TRY(dq_part_read(source, p->part[DQ_PART_WEIGHT], &data));
    dq_fields f = weight_fields(order_of(p), c->bits, c->out, c->in);
    dq_fields_unpack(c->env, &f, data, c->codes);
    dq_free(data);
    DQ_TRY(read_scale(source, p, c));
    if (p->part[DQ_PART_ZEROS] >= 0) {
        DQ_TRY(dq_part_read(source, p->part[DQ_PART_ZEROS], &data));
        f = zero_fields(order_of(p), c->bits, p->layout.per_tensor ? 1 : c->out, c->groups);
        dq_fields_unpack(c->env, &f, data, c->zero);
        dq_free(data);
        for (int64_t i = c->groups; p->layout.per_tensor && i < c->out * c->groups; i++) c->zero[i] = c->zero[0];
    }
    if (p->part[DQ_PART_GROUP_INDEX] < 0) return DQ_OK;
    DQ_TRY(dq_part_read(source, p->part[DQ_PART_GROUP_INDEX], &data));
    c->group_index = data;
    return DQ_OK;
}

static dq_status write_packed(dq_sink *sink, const char *name, const dq_layout *l, dq_dtype scale_dtype,
                              const dq_host_codes *c)
{
    int64_t shape[2] = {c->out, c->in};
    dq_field_order order = DQ_FIELDS_DENSE;
    dq_fields f = weight_fields(order, c->bits, c->out, c->in);
    DQ_TRY(dq_sink_put_words(sink, name, ".weight_packed", &f, c->codes, c->out, f.line_step));
    DQ_TRY(dq_sink_put_scales(sink, name, ".weight_scale", scale_dtype, false, c));
    DQ_TRY(dq_sink_put(sink, name, ".weight_shape", DQ_I64, 0, 2, shape));
    if (!l->symmetric) {
        f = zero_fields(order, c->bits, c->out, c->groups);
        DQ_TRY(dq_sink_put_words(sink, name, ".weight_zero_point", &f, c->zero, dq_fields_words(order, c->bits, c->out),
                                 c->groups));
    }
    if (!c->group_index) return DQ_OK;
    return dq_sink_put(sink, name, ".weight_g_idx", DQ_I32, 0, c->in, c->group_index);
}

const dq_layout_ops dq_ct_packed_ops = {bind_packed, read_packed, write_packed};

/* ---- int-quantized ---- */

static dq_status bind_int(const dq_source *source, const char *name, int64_t in, dq_packed *p)
{
    if (p->layout.bits < 2 || p->layout.bits > 8)
        return dq_fail(DQ_E_UNSUPPORTED, "%d bits; 2 to 8 are known", p->layout.bits);
    DQ_TRY(dq_part_need(source, name, ".weight", &p->part[DQ_PART_WEIGHT]));
    const dq_tensor_info *w = &source->tensors[p->part[DQ_PART_WEIGHT]];
    if (w->dtype != DQ_I8 || w->ndim != 2 || (in > 0 && w->shape[1] != in) || w->shape[0] < 1 || w->shape[1] < 1)
        return dq_part_refuse(source, p->part[DQ_PART_WEIGHT], "I8 [out, in]");
    p->out = w->shape[0];
    p->in = w->shape[1];
    DQ_TRY(bind_scale(source, name, p));
    if (p->layout.symmetric) return check_symmetric((dq_source *)(uintptr_t)source, name);
    DQ_TRY(dq_part_need(source, name, ".weight_zero_point", &p->part[DQ_PART_ZEROS]));
    return dq_part_check(source, p->part[DQ_PART_ZEROS], DQ_I8, p->layout.per_tensor ? 1 : p->out, p->groups);
}

/* Signed to unsigned in place; a value outside the width is an error. */
static dq_status shift_values(const int8_t *in, int64_t count, int bits, const char *what, uint8_t *out)
{
    int middle = 1 << (bits - 1);
    for (int64_t i = 0; i < count; i++) {
        if (in[i] < -middle || in[i] >= middle)
            return dq_fail(DQ_E_FORMAT, "%s %lld is %d, which %d bits do not hold", what, (long long)i, in[i], bits);
        out[i] = (uint8_t)(in[i] + middle);
    }
    return DQ_OK;
}

static dq_status read_int(dq_source *source, const dq_packed *p, dq_host_codes *c)
{
    void *data;
    DQ_TRY(dq_part_read(source, p->part[DQ_PART_WEIGHT], &data));
    dq_status status = shift_values(data, c->out * c->in, c->bits, "weight", c->codes);
    dq_free(data);
    DQ_TRY(status);
    DQ_TRY(read_scale(source, p, c));
    if (p->part[DQ_PART_ZEROS] < 0) return DQ_OK;
    DQ_TRY(dq_part_read(source, p->part[DQ_PART_ZEROS], &data));
    int64_t count = p->layout.per_tensor ? c->groups : c->out * c->groups;
    status = shift_values(data, count, c->bits, "zero point", c->zero);
    dq_free(data);
    for (int64_t i = count; status == DQ_OK && i < c->out * c->groups; i++) c->zero[i] = c->zero[0];
    return status;
}

static dq_status put_signed(dq_sink *sink, const char *name, const char *suffix, int64_t rows, int64_t cols, int bits,
                            const uint8_t *values)
{
    int8_t *data = dq_alloc(sink->env, (size_t)(rows * cols));
    if (!data) return DQ_E_NOMEM;
    for (int64_t i = 0; i < rows * cols; i++) data[i] = (int8_t)(values[i] - (1 << (bits - 1)));
    dq_status status = dq_sink_put(sink, name, suffix, DQ_I8, rows, cols, data);
    dq_free(data);
    return status;
}

static dq_status write_int(dq_sink *sink, const char *name, const dq_layout *l, dq_dtype scale_dtype,
                           const dq_host_codes *c)
{
    DQ_TRY(put_signed(sink, name, ".weight", c->out, c->in, c->bits, c->codes));
    DQ_TRY(dq_sink_put_scales(sink, name, ".weight_scale", scale_dtype, false, c));
    if (l->symmetric) return DQ_OK;
    return put_signed(sink, name, ".weight_zero_point", c->out, c->groups, c->bits, c->zero);
}

const dq_layout_ops dq_ct_int_ops = {bind_int, read_int, write_int};

/* ---- float-quantized: FP8 with scales, read as fp32 ---- */

static int64_t count_blocks(int64_t n, int64_t size) { return (n + size - 1) / size; }

static dq_status bind_float(const dq_source *source, const char *name, int64_t in, dq_packed *p)
{
    const dq_layout *l = &p->layout;
    DQ_TRY(dq_part_need(source, name, ".weight", &p->part[DQ_PART_WEIGHT]));
    DQ_TRY(dq_part_need(source, name, ".weight_scale", &p->part[DQ_PART_SCALES]));
    const dq_tensor_info *w = &source->tensors[p->part[DQ_PART_WEIGHT]];
    if (w->dtype != DQ_F8_E4M3 || w->ndim != 2 || (in > 0 && w->shape[1] != in) || w->shape[0] < 1 || w->shape[1] < 1)
        return dq_part_refuse(source, p->part[DQ_PART_WEIGHT], "F8_E4M3 [out, in]");
    p->out = w->shape[0];
    p->in = w->shape[1];
    p->group = l->group > 0 && l->group < p->in ? l->group : p->in;
    p->groups = count_blocks(p->in, p->group);
    int64_t rows = l->per_tensor ? 1 : l->block_rows > 0 ? count_blocks(p->out, l->block_rows) : p->out;
    return dq_part_check(source, p->part[DQ_PART_SCALES], DQ_F32, rows, p->groups);
}

dq_status dq_ct_float_rows(dq_source *source, const dq_packed *p, int64_t first, int64_t count, float *out)
{
    const dq_layout *l = &p->layout;
    DQ_TRY(dq_source_read_rows(source, p->part[DQ_PART_WEIGHT], first, count, out));
    float *scale = dq_alloc(source->env, (size_t)p->groups * sizeof *scale);
    if (!scale) return DQ_E_NOMEM;
    dq_status status = DQ_OK;
    for (int64_t n = first; status == DQ_OK && n < first + count; n++, out += p->in) {
        int64_t row = l->per_tensor ? 0 : l->block_rows > 0 ? n / l->block_rows : n;
        status = dq_source_read_rows(source, p->part[DQ_PART_SCALES], row, 1, scale);
        for (int64_t k = 0; status == DQ_OK && k < p->in; k++) out[k] *= scale[k / p->group];
    }
    dq_free(scale);
    return status;
}

const dq_layout_ops dq_ct_float_ops = {bind_float, NULL, NULL};
