/* GPTQ as AutoGPTQ and GPTQModel store it: qweight I32 [in * bits / 32, out], a stream down each column; qzeros I32
 * [groups, out * bits / 32]; scales [groups, out]; g_idx I32 [in], possibly empty. Version 1 stores zero points minus one.
 * SPDX-License-Identifier: Apache-2.0 */
#include <stdio.h>
#include <string.h>

#include "base/status.h"
#include "formats/fields.h"
#include "formats/layout.h"

static dq_field_order order_of(const dq_layout *l)
{
    return l->kind == DQ_LAYOUT_GPTQ_PLANAR ? DQ_FIELDS_PLANAR : DQ_FIELDS_DENSE;
}

static dq_fields weight_fields(const dq_layout *l, int64_t out, int64_t in)
{
    return (dq_fields){order_of(l), l->bits, out, in, 1, out, in, 1};
}

static dq_fields zero_fields(const dq_layout *l, int64_t out, int64_t groups)
{
    return (dq_fields){order_of(l), l->bits, groups, out, dq_fields_words(order_of(l), l->bits, out), 1, 1, groups};
}

static dq_status bind_group_index(const dq_source *source, const char *name, dq_packed *p)
{
    int64_t t = dq_part_find(source, name, ".g_idx");
    if (t < 0 || source->tensors[t].bytes == 0) return DQ_OK;
    p->part[DQ_PART_GROUP_INDEX] = t;
    return dq_part_check(source, t, DQ_I32, 1, p->in);
}

static dq_status bind(const dq_source *source, const char *name, int64_t in, dq_packed *p)
{
    const dq_layout *l = &p->layout;
    int64_t *part = p->part;
    if (l->bits < 2 || l->bits > 8 || (l->kind != DQ_LAYOUT_GPTQ_PLANAR && l->bits > 4 && l->bits != 8))
        return dq_fail(DQ_E_UNSUPPORTED, "%d bits; %s has 2, 3, 4 or 8", l->bits, dq_layout_name(l->kind));
    DQ_TRY(dq_part_need(source, name, ".qweight", &part[DQ_PART_WEIGHT]));
    DQ_TRY(dq_part_need(source, name, ".qzeros", &part[DQ_PART_ZEROS]));
    DQ_TRY(dq_part_need(source, name, ".scales", &part[DQ_PART_SCALES]));
    const dq_tensor_info *w = &source->tensors[part[DQ_PART_WEIGHT]];
    DQ_TRY(dq_part_matrix(source, part[DQ_PART_WEIGHT], DQ_I32, "a matrix of I32"));
    int64_t words = w->shape[0];
    p->out = w->shape[1];
    p->in = in > 0 ? in : words * 32 / l->bits;
    if (words < 1 || p->out < 1 || dq_fields_words(order_of(l), l->bits, p->in) != words ||
        !dq_fields_fit(order_of(l), l->bits, p->in) || p->out * l->bits % 32 != 0) {
        char what[96];
        snprintf(what, sizeof what, "a linear of %lld columns with %d bits", (long long)p->in, l->bits);
        return dq_part_refuse(source, part[DQ_PART_WEIGHT], what);
    }
    p->group = l->group > 0 && l->group < p->in ? l->group : p->in;
    p->groups = (p->in + p->group - 1) / p->group;
    DQ_TRY(dq_part_check(source, part[DQ_PART_SCALES], DQ_F32, p->groups, p->out));
    DQ_TRY(
        dq_part_check(source, part[DQ_PART_ZEROS], DQ_I32, p->groups, dq_fields_words(order_of(l), l->bits, p->out)));
    return bind_group_index(source, name, p);
}

/* Symmetric grids have one zero point, by which files that carry the wrong version show: what is stored, all alike, is
 * 2^(bits-1) - 1 in version 1 and 2^(bits-1) in version 2. */
static dq_status zero_offset(const dq_packed *p, const dq_host_codes *c, int *out)
{
    int middle = 1 << (c->bits - 1), first = c->zero[0];
    *out = p->layout.kind == DQ_LAYOUT_GPTQ;
    if (!p->layout.symmetric) return DQ_OK;
    for (int64_t i = 0; i < c->out * c->groups; i++)
        if (c->zero[i] != first || (first != middle && first != middle - 1))
            return dq_fail(DQ_E_MISMATCH,
                           "the configuration says symmetric, but the stored zero point of row %lld, group %lld is %d",
                           (long long)(i / c->groups), (long long)(i % c->groups), c->zero[i]);
    *out = first == middle - 1;
    return DQ_OK;
}

static dq_status read_zeros(dq_source *source, const dq_packed *p, dq_host_codes *c)
{
    void *words;
    int offset;
    unsigned mask = (1u << c->bits) - 1u;
    DQ_TRY(dq_part_read(source, p->part[DQ_PART_ZEROS], &words));
    dq_fields f = zero_fields(&p->layout, c->out, c->groups);
    dq_fields_unpack(c->env, &f, words, c->zero);
    dq_free(words);
    DQ_TRY(zero_offset(p, c, &offset));
    for (int64_t i = 0; offset && i < c->out * c->groups; i++) {
        if (c->zero[i] == mask && p->layout.strict_zero)
            return dq_fail(DQ_E_FORMAT, "row %lld, group %lld: a stored zero point of all ones",
                           (long long)(i / c->groups), (long long)(i % c->groups));
        c->zero[i] = (uint8_t)((c->zero[i] + 1u) & mask);
    }
    return DQ_OK;
}

static dq_status read(dq_source *source, const dq_packed *p, dq_host_codes *c)
{
    void *words, *index;
    float *scales;
    DQ_TRY(dq_part_read(source, p->part[DQ_PART_WEIGHT], &words));
    dq_fields f = weight_fields(&p->layout, c->out, c->in);
    dq_fields_unpack(c->env, &f, words, c->codes);
    dq_free(words);
    DQ_TRY(dq_part_read_floats(source, p->part[DQ_PART_SCALES], &scales));
    dq_transpose_params(scales, c->groups, c->out, c->scale);
    dq_free(scales);
    DQ_TRY(read_zeros(source, p, c));
    if (p->part[DQ_PART_GROUP_INDEX] < 0) return DQ_OK;
    DQ_TRY(dq_part_read(source, p->part[DQ_PART_GROUP_INDEX], &index));
    c->group_index = index;
    return DQ_OK;
}

static dq_status write_zeros(dq_sink *sink, const char *name, const dq_layout *l, const dq_host_codes *c)
{
    uint8_t *zeros = dq_alloc(c->env, (size_t)(c->out * c->groups));
    if (!zeros) return DQ_E_NOMEM;
    for (int64_t i = 0; i < c->out * c->groups; i++)
        zeros[i] = (uint8_t)(c->zero[i] - (l->kind == DQ_LAYOUT_GPTQ ? 1 : 0));
    dq_fields f = zero_fields(l, c->out, c->groups);
    dq_status status = dq_sink_put_words(sink, name, ".qzeros", &f, zeros, c->groups, f.line_step);
    dq_free(zeros);
    return status;
}

static dq_status write(dq_sink *sink, const char *name, const dq_layout *layout, dq_dtype scale_dtype,
                       const dq_host_codes *c)
{
    dq_layout l = *layout;
    l.bits = c->bits;
    dq_fields f = weight_fields(&l, c->out, c->in);
    DQ_TRY(dq_sink_put_words(sink, name, ".qweight", &f, c->codes, dq_fields_words(f.order, c->bits, c->in), c->out));
    DQ_TRY(write_zeros(sink, name, &l, c));
    DQ_TRY(dq_sink_put_scales(sink, name, ".scales", scale_dtype, true, c));
    int32_t *index = dq_alloc(c->env, (size_t)c->in * sizeof *index);
    if (!index) return DQ_E_NOMEM;
    for (int64_t k = 0; k < c->in; k++) index[k] = (int32_t)dq_host_codes_group_of(c, k);
    dq_status status = dq_sink_put(sink, name, ".g_idx", DQ_I32, 0, c->in, index);
    dq_free(index);
    return status;
}

const dq_layout_ops dq_gptq_ops = {bind, read, write};
