/* What the layouts share. SPDX-License-Identifier: Apache-2.0 */
#include "formats/layout.h"

#include <math.h>
#include <stdio.h>
#include <string.h>

#include "base/dtype.h"
#include "base/half.h"
#include "base/status.h"

enum { NAME = 256 };

static const struct {
    const char *name, *suffix;
    const dq_layout_ops *ops;
} layouts[DQ_LAYOUT_KINDS] = {
    [DQ_LAYOUT_GPTQ] = {"gptq", ".qweight", &dq_gptq_ops},
    [DQ_LAYOUT_GPTQ_V2] = {"gptq_v2", ".qweight", &dq_gptq_ops},
    [DQ_LAYOUT_GPTQ_PLANAR] = {"gptq_p", ".qweight", &dq_gptq_ops},
    [DQ_LAYOUT_AWQ_GEMM] = {"awq (gemm)", ".qweight", &dq_awq_gemm_ops},
    [DQ_LAYOUT_AWQ_GEMV] = {"awq (gemv)", ".qweight", &dq_awq_gemv_ops},
    [DQ_LAYOUT_AWQ_GEMV_FAST] = {"awq (gemv_fast)", ".qweight", &dq_awq_fast_ops},
    [DQ_LAYOUT_CT_PACKED] = {"compressed-tensors pack-quantized", ".weight_packed", &dq_ct_packed_ops},
    [DQ_LAYOUT_CT_INT] = {"compressed-tensors int-quantized", ".weight_scale", &dq_ct_int_ops},
    [DQ_LAYOUT_CT_FLOAT] = {"compressed-tensors float-quantized", ".weight_scale", &dq_ct_float_ops},
    [DQ_LAYOUT_DIFFULEX] = {"Diffulex int8-packed", ".qweight", &dq_diffulex_ops},
};

const char *dq_layout_name(dq_layout_kind kind) { return layouts[kind].name; }
const char *dq_layout_suffix(dq_layout_kind kind) { return layouts[kind].suffix; }

/* ---- parts ---- */

int64_t dq_part_find(const dq_source *source, const char *name, const char *suffix)
{
    char buf[NAME];
    if ((size_t)snprintf(buf, sizeof buf, "%s%s", name, suffix) >= sizeof buf) return -1;
    return dq_source_find(source, buf);
}

dq_status dq_part_need(const dq_source *source, const char *name, const char *suffix, int64_t *out)
{
    char buf[NAME];
    snprintf(buf, sizeof buf, "%s%s", name, suffix);
    *out = dq_part_find(source, name, suffix);
    return *out >= 0 ? DQ_OK : dq_error_in_tensor(dq_fail(DQ_E_NOTFOUND, "the tensor is missing"), buf);
}

dq_status dq_part_refuse(const dq_source *source, int64_t tensor, const char *what)
{
    const dq_tensor_info *t = &source->tensors[tensor];
    dq_status status = dq_fail(DQ_E_MISMATCH, "%s [%lld, %lld] where %s belongs", t->type_name,
                               (long long)dq_info_rows(t), (long long)dq_info_cols(t), what);
    return dq_error_in_tensor(dq_error_in_file(status, t->file), t->name);
}

dq_status dq_part_check(const dq_source *source, int64_t tensor, dq_dtype dtype, int64_t rows, int64_t cols)
{
    const dq_tensor_info *t = &source->tensors[tensor];
    char what[96];
    bool floats = dtype == DQ_F32 && dq_part_is_float(source, tensor);
    if ((t->dtype == dtype || floats) && t->ndim <= 2 && dq_info_rows(t) == rows && dq_info_cols(t) == cols)
        return DQ_OK;
    snprintf(what, sizeof what, "%s [%lld, %lld]", dtype == DQ_F32 ? "a floating type" : dq_dtype_name(dtype),
             (long long)rows, (long long)cols);
    return dq_part_refuse(source, tensor, what);
}

dq_status dq_part_matrix(const dq_source *source, int64_t tensor, dq_dtype dtype, const char *what)
{
    const dq_tensor_info *t = &source->tensors[tensor];
    if (t->dtype == dtype && t->ndim == 2 && t->shape[0] > 0 && t->shape[1] > 0) return DQ_OK;
    return dq_part_refuse(source, tensor, what);
}

bool dq_part_is_float(const dq_source *source, int64_t tensor)
{
    dq_dtype t = source->tensors[tensor].dtype;
    return t == DQ_F32 || t == DQ_F16 || t == DQ_BF16;
}

dq_status dq_part_read(dq_source *source, int64_t tensor, void **out)
{
    const dq_tensor_info *t = &source->tensors[tensor];
    void *data = dq_alloc(source->env, (size_t)t->bytes);
    if (!data) return DQ_E_NOMEM;
    dq_status status = dq_source_read_raw(source, tensor, 0, t->bytes, data);
    dq_source_release(source, tensor);
    if (status != DQ_OK)
        dq_free(data);
    else
        *out = data;
    return status;
}

dq_status dq_part_read_floats(dq_source *source, int64_t tensor, float **out)
{
    const dq_tensor_info *t = &source->tensors[tensor];
    int64_t rows = dq_info_rows(t);
    float *data = dq_alloc(source->env, (size_t)(rows * dq_info_cols(t)) * sizeof *data);
    if (!data) return DQ_E_NOMEM;
    dq_status status = dq_source_read_rows(source, tensor, 0, rows, data);
    dq_source_release(source, tensor);
    if (status != DQ_OK)
        dq_free(data);
    else
        *out = data;
    return status;
}

void dq_transpose_params(const float *in, int64_t groups, int64_t rows, float *out)
{
    for (int64_t g = 0; g < groups; g++)
        for (int64_t n = 0; n < rows; n++) out[n * groups + g] = in[g * rows + n];
}

/* ---- the whole linear ---- */

dq_status dq_packed_bind(const dq_source *source, const char *name, const dq_layout *layout, int64_t in, dq_packed *out)
{
    dq_packed p;
    memset(&p, 0, sizeof p);
    p.layout = *layout;
    for (int i = 0; i < DQ_PARTS; i++) p.part[i] = -1;
    dq_status status = dq_error_in_tensor(layouts[layout->kind].ops->bind(source, name, in, &p), name);
    if (status != DQ_OK)
        return p.part[DQ_PART_WEIGHT] < 0 ? status
                                          : dq_error_in_file(status, source->tensors[p.part[DQ_PART_WEIGHT]].file);
    for (int i = 0; i < DQ_PARTS; i++)
        if (p.part[i] >= 0) p.bytes += source->tensors[p.part[i]].bytes;
    *out = p;
    return DQ_OK;
}

dq_status dq_packed_read(dq_source *source, const char *name, const dq_packed *p, dq_host_codes *out)
{
    dq_host_codes c;
    memset(&c, 0, sizeof c);
    c.bits = p->layout.bits;
    c.out = p->out;
    c.in = p->in;
    c.group = p->group;
    if (!dq_layout_gives_codes(p->layout.kind))
        return dq_error_in_tensor(dq_fail(DQ_E_STATE, "%s holds no codes", dq_layout_name(p->layout.kind)), name);
    DQ_TRY(dq_host_codes_alloc(source->env, &c));
    dq_status status = layouts[p->layout.kind].ops->read(source, p, &c);
    if (status == DQ_OK) status = dq_host_codes_check(&c);
    if (status != DQ_OK) {
        dq_host_codes_free(&c);
        return dq_error_in_file(dq_error_in_tensor(status, name), source->tensors[p->part[DQ_PART_WEIGHT]].file);
    }
    dq_host_codes_find_symmetry(&c);
    dq_host_codes_normalize(&c);
    *out = c;
    return DQ_OK;
}

dq_status dq_packed_rows(dq_source *source, const dq_packed *p, int64_t first, int64_t count, float *out)
{
    return p->layout.kind == DQ_LAYOUT_CT_FLOAT ? dq_ct_float_rows(source, p, first, count, out)
                                                : dq_diffulex_rows(source, p, first, count, out);
}

/* ---- writing ---- */

dq_status dq_sink_put(dq_sink *sink, const char *name, const char *suffix, dq_dtype dtype, int64_t rows, int64_t cols,
                      const void *data)
{
    char buf[NAME];
    int64_t shape[2] = {rows, cols};
    uint64_t bytes = (uint64_t)(rows > 0 ? rows : 1) * (uint64_t)cols * dq_dtype_size(dtype);
    if ((size_t)snprintf(buf, sizeof buf, "%s%s", name, suffix) >= sizeof buf)
        return dq_error_in_tensor(dq_fail(DQ_E_INVALID, "the name is too long"), name);
    return sink->ops->add(sink, buf, dtype, rows > 0 ? 2 : 1, rows > 0 ? shape : shape + 1, data, bytes);
}

dq_status dq_sink_put_words(dq_sink *sink, const char *name, const char *suffix, const dq_fields *f,
                            const uint8_t *values, int64_t rows, int64_t cols)
{
    uint32_t *words = dq_calloc(sink->env, (size_t)(rows * cols), sizeof *words);
    if (!words) return DQ_E_NOMEM;
    dq_fields_pack(sink->env, f, values, words);
    dq_status status = dq_sink_put(sink, name, suffix, DQ_I32, rows, cols, words);
    dq_free(words);
    return status;
}

static float round_scale(float s, dq_dtype dtype)
{
    if (dtype == DQ_F16) return dq_f16_to_f32(dq_f32_to_f16(s));
    return dtype == DQ_BF16 ? dq_bf16_to_f32(dq_f32_to_bf16(s)) : s;
}

dq_status dq_round_scales(dq_host_codes *c, dq_dtype dtype)
{
    for (int64_t i = 0; i < c->out * c->groups; i++) {
        float s = c->scale[i], r = round_scale(s, dtype);
        if (!isfinite(r) || (r == 0.0f && s != 0.0f))
            return dq_fail(DQ_E_NONFINITE, "the scale %g of row %lld, group %lld cannot be stored as %s", (double)s,
                           (long long)(i / c->groups), (long long)(i % c->groups), dq_dtype_name(dtype));
        c->scale[i] = r;
    }
    return DQ_OK;
}

dq_status dq_sink_put_scales(dq_sink *sink, const char *name, const char *suffix, dq_dtype dtype, bool transposed,
                             const dq_host_codes *c)
{
    int64_t count = c->out * c->groups;
    size_t size = dq_dtype_size(dtype);
    uint8_t *data = dq_alloc(c->env, (size_t)count * size);
    if (!data) return DQ_E_NOMEM;
    for (int64_t i = 0; i < count; i++) {
        int64_t at = transposed ? i % c->groups * c->out + i / c->groups : i;
        uint16_t half = dtype == DQ_F16 ? dq_f32_to_f16(c->scale[i]) : dq_f32_to_bf16(c->scale[i]);
        memcpy(data + (size_t)at * size, dtype == DQ_F32 ? (const void *)&c->scale[i] : (const void *)&half, size);
    }
    dq_status status =
        dq_sink_put(sink, name, suffix, dtype, transposed ? c->groups : c->out, transposed ? c->out : c->groups, data);
    dq_free(data);
    return status;
}

dq_status dq_packed_write(dq_sink *sink, const char *name, const dq_layout *layout, dq_dtype scale_dtype,
                          const dq_host_codes *c)
{
    DQ_TRY(dq_error_in_tensor(dq_layout_check(layout, c), name));
    return dq_error_in_tensor(layouts[layout->kind].ops->write(sink, name, layout, scale_dtype, c), name);
}

static dq_status need_multiple(const char *what, int64_t value, int64_t of, const char *format)
{
    if (value % of == 0) return DQ_OK;
    return dq_fail(DQ_E_UNSUPPORTED,
                   "%s needs a multiple of %lld %s, there are %lld; compressed-tensors or the library's own format "
                   "take any size",
                   format, (long long)of, what, (long long)value);
}

static dq_status check_awq(const dq_layout *l, const dq_host_codes *c)
{
    const char *name = dq_layout_name(l->kind);
    if (c->bits != 4)
        return dq_fail(DQ_E_UNSUPPORTED,
                       "AWQ holds 4 bits only, these codes have %d; gptq and compressed-tensors take "
                       "them",
                       c->bits);
    if (c->group_index)
        return dq_fail(DQ_E_UNSUPPORTED, "AWQ has no g_idx, which act-order without static groups needs; gptq and "
                                         "compressed-tensors have one");
    if (c->groups > 1 && c->in % c->group != 0)
        return dq_fail(DQ_E_UNSUPPORTED,
                       "%s needs groups that divide the %lld input columns, %lld does not; another group size does, or "
                       "gptq and compressed-tensors take any",
                       name, (long long)c->in, (long long)c->group);
    if (l->kind != DQ_LAYOUT_AWQ_GEMV_FAST) return need_multiple("output rows", c->out, 8, name);
    return need_multiple("input columns", c->in, 64, name);
}

dq_status dq_layout_check(const dq_layout *l, const dq_host_codes *c)
{
    const char *name = dq_layout_name(l->kind);
    switch (l->kind) {
        case DQ_LAYOUT_GPTQ:
        case DQ_LAYOUT_GPTQ_V2:
            if (c->bits > 4 && c->bits != 8)
                return dq_fail(DQ_E_UNSUPPORTED,
                               "gptq holds 2, 3, 4 or 8 bits, these codes have %d; compressed-tensors takes them",
                               c->bits);
            if (l->kind == DQ_LAYOUT_GPTQ && !c->symmetric)
                return dq_fail(DQ_E_UNSUPPORTED, "gptq (version 1) cannot hold every zero point of asymmetric grids; "
                                                 "use gptq_v2, awq or compressed-tensors");
            DQ_TRY(need_multiple("input columns", c->in, 32, name));
            return need_multiple("output rows", c->out, 32, name);
        case DQ_LAYOUT_AWQ_GEMM:
        case DQ_LAYOUT_AWQ_GEMV:
        case DQ_LAYOUT_AWQ_GEMV_FAST: return check_awq(l, c);
        case DQ_LAYOUT_CT_INT:
            if (!c->group_index) return DQ_OK;
            return dq_fail(DQ_E_UNSUPPORTED, "int-quantized has no g_idx; pack-quantized (compressed-tensors) has one");
        default: return DQ_OK;
    }
}
