/* AWQ: 4 bits, zero points as they are, no g_idx. GEMM (AutoAWQ): qweight I32 [in, out / 8], qzeros I32 [groups, out / 8],
 * scales [groups, out]. GEMV: qweight I32 [out, in / 8], qzeros I32 [out, z], scales [out, 8 z]. SPDX-License-Identifier: Apache-2.0 */
#include <string.h>

#include "base/status.h"
#include "formats/fields.h"
#include "formats/layout.h"

static dq_status bind_parts(const dq_source *source, const char *name, dq_packed *p)
{
    if (p->layout.bits != 4) return dq_fail(DQ_E_UNSUPPORTED, "AWQ with %d bits; 4 are known", p->layout.bits);
    DQ_TRY(dq_part_need(source, name, ".qweight", &p->part[DQ_PART_WEIGHT]));
    DQ_TRY(dq_part_need(source, name, ".qzeros", &p->part[DQ_PART_ZEROS]));
    DQ_TRY(dq_part_need(source, name, ".scales", &p->part[DQ_PART_SCALES]));
    return dq_part_matrix(source, p->part[DQ_PART_WEIGHT], DQ_I32, "a matrix of I32");
}

static dq_status set_groups(const dq_source *source, int64_t in, dq_packed *p)
{
    if (in > 0 && p->in != in) return dq_part_refuse(source, p->part[DQ_PART_WEIGHT], "a linear of another width");
    p->group = p->layout.group > 0 && p->layout.group < p->in ? p->layout.group : p->in;
    p->groups = (p->in + p->group - 1) / p->group;
    return DQ_OK;
}

static dq_status bind_gemm(const dq_source *source, const char *name, int64_t in, dq_packed *p)
{
    DQ_TRY(bind_parts(source, name, p));
    const dq_tensor_info *w = &source->tensors[p->part[DQ_PART_WEIGHT]];
    p->in = w->shape[0];
    p->out = w->shape[1] * 8;
    DQ_TRY(set_groups(source, in, p));
    DQ_TRY(dq_part_check(source, p->part[DQ_PART_ZEROS], DQ_I32, p->groups, p->out / 8));
    return dq_part_check(source, p->part[DQ_PART_SCALES], DQ_F32, p->groups, p->out);
}

static dq_status unpack(dq_source *source, int64_t part, const dq_fields *f, uint8_t *values)
{
    void *words;
    DQ_TRY(dq_part_read(source, part, &words));
    dq_fields_unpack(source->env, f, words, values);
    dq_free(words);
    return DQ_OK;
}

static dq_fields gemm_weight(int64_t out, int64_t in)
{
    return (dq_fields){DQ_FIELDS_AWQ, 4, in, out, out / 8, 1, 1, in};
}

static dq_fields gemm_zeros(int64_t out, int64_t groups)
{
    return (dq_fields){DQ_FIELDS_AWQ, 4, groups, out, out / 8, 1, 1, groups};
}

static dq_status read_gemm(dq_source *source, const dq_packed *p, dq_host_codes *c)
{
    float *scales;
    dq_fields weight = gemm_weight(c->out, c->in), zeros = gemm_zeros(c->out, c->groups);
    DQ_TRY(unpack(source, p->part[DQ_PART_WEIGHT], &weight, c->codes));
    DQ_TRY(unpack(source, p->part[DQ_PART_ZEROS], &zeros, c->zero));
    DQ_TRY(dq_part_read_floats(source, p->part[DQ_PART_SCALES], &scales));
    dq_transpose_params(scales, c->groups, c->out, c->scale);
    dq_free(scales);
    return DQ_OK;
}

static dq_status write_gemm(dq_sink *sink, const char *name, const dq_layout *l, dq_dtype scale_dtype,
                            const dq_host_codes *c)
{
    (void)l;
    dq_fields weight = gemm_weight(c->out, c->in), zeros = gemm_zeros(c->out, c->groups);
    DQ_TRY(dq_sink_put_words(sink, name, ".qweight", &weight, c->codes, c->in, c->out / 8));
    DQ_TRY(dq_sink_put_words(sink, name, ".qzeros", &zeros, c->zero, c->groups, c->out / 8));
    return dq_sink_put_scales(sink, name, ".scales", scale_dtype, true, c);
}

const dq_layout_ops dq_awq_gemm_ops = {bind_gemm, read_gemm, write_gemm};

/* ---- GEMV ---- */

/* Words of zero points per row: AutoAWQ's calculate_zeros_width, also a file's padding of scales. */
static int64_t zeros_width(int64_t in, int64_t group)
{
    int64_t multiple = group >= 128 ? 1 : group == 64 ? 2 : 4;
    int64_t base = (in / group + 7) / 8;
    return (base + multiple - 1) / multiple * multiple;
}

static dq_status bind_gemv(const dq_source *source, const char *name, int64_t in, dq_packed *p)
{
    DQ_TRY(bind_parts(source, name, p));
    const dq_tensor_info *w = &source->tensors[p->part[DQ_PART_WEIGHT]];
    p->out = w->shape[0];
    p->in = w->shape[1] * 8;
    DQ_TRY(set_groups(source, in, p));
    int64_t width = zeros_width(p->in, p->group);
    DQ_TRY(dq_part_check(source, p->part[DQ_PART_ZEROS], DQ_I32, p->out, width));
    return dq_part_check(source, p->part[DQ_PART_SCALES], DQ_F32, p->out, 8 * width);
}

static dq_fields gemv_weight(int64_t out, int64_t in)
{
    return (dq_fields){DQ_FIELDS_DENSE, 4, out, in, in / 8, 1, in, 1};
}

static dq_fields gemv_zeros(int64_t out, int64_t groups, int64_t width)
{
    return (dq_fields){DQ_FIELDS_DENSE, 4, out, groups, width, 1, groups, 1};
}

static dq_status read_gemv(dq_source *source, const dq_packed *p, dq_host_codes *c)
{
    float *scales;
    int64_t width = zeros_width(c->in, c->group);
    dq_fields weight = gemv_weight(c->out, c->in), zeros = gemv_zeros(c->out, c->groups, width);
    DQ_TRY(unpack(source, p->part[DQ_PART_WEIGHT], &weight, c->codes));
    DQ_TRY(unpack(source, p->part[DQ_PART_ZEROS], &zeros, c->zero));
    DQ_TRY(dq_part_read_floats(source, p->part[DQ_PART_SCALES], &scales));
    for (int64_t n = 0; n < c->out; n++)
        memcpy(c->scale + n * c->groups, scales + n * 8 * width, (size_t)c->groups * sizeof *scales);
    dq_free(scales);
    return DQ_OK;
}

static dq_status write_gemv(dq_sink *sink, const char *name, const dq_layout *l, dq_dtype scale_dtype,
                            const dq_host_codes *c)
{
    (void)l;
    int64_t width = zeros_width(c->in, c->group);
    dq_fields weight = gemv_weight(c->out, c->in), zeros = gemv_zeros(c->out, c->groups, width);
    DQ_TRY(dq_sink_put_words(sink, name, ".qweight", &weight, c->codes, c->out, c->in / 8));
    DQ_TRY(dq_sink_put_words(sink, name, ".qzeros", &zeros, c->zero, c->out, width));
    dq_host_codes padded = {.env = c->env, .out = c->out, .groups = 8 * width};
    padded.scale = dq_calloc(c->env, (size_t)(c->out * padded.groups), sizeof *padded.scale);
    if (!padded.scale) return DQ_E_NOMEM;
    for (int64_t n = 0; n < c->out; n++)
        memcpy(padded.scale + n * padded.groups, c->scale + n * c->groups, (size_t)c->groups * sizeof *c->scale);
    dq_status status = dq_sink_put_scales(sink, name, ".scales", scale_dtype, false, &padded);
    dq_free(padded.scale);
    return status;
}

const dq_layout_ops dq_awq_gemv_ops = {bind_gemv, read_gemv, write_gemv};
