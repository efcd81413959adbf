/* AWQ "GEMV-fast" (llm-awq version 2): qweight I16 [out / 4, in], scales and qzeros [8 z, out], qzeros = -zero * scale.
 * Element (n, k) is nibble (k % 32) / 8 of word [n / 4][k / 64 * 64 + n % 4 * 16 + k % 64 / 32 * 8 + k % 8].
 * SPDX-License-Identifier: Apache-2.0 */
#include <math.h>

#include "base/half.h"
#include "base/status.h"
#include "formats/layout.h"

static int64_t word_of(int64_t n, int64_t k, int64_t in)
{
    return n / 4 * in + k / 64 * 64 + n % 4 * 16 + k % 64 / 32 * 8 + k % 8;
}

static int nibble_of(int64_t k) { return (int)(k % 32 / 8) * 4; }

static int64_t padded_groups(const dq_packed *p)
{
    int64_t multiple = p->group >= 128 ? 1 : p->group == 64 ? 2 : 4;
    int64_t base = (p->in / p->group + 7) / 8;
    return 8 * ((base + multiple - 1) / multiple * multiple);
}

static dq_status bind(const dq_source *source, const char *name, int64_t in, dq_packed *p)
{
    if (p->layout.bits != 4) return dq_fail(DQ_E_UNSUPPORTED, "AWQ with %d bits; 4 are known", p->layout.bits);
    DQ_TRY(dq_part_need(source, name, ".qweight", &p->part[DQ_PART_WEIGHT]));
    DQ_TRY(dq_part_need(source, name, ".qzeros", &p->part[DQ_PART_ZEROS]));
    DQ_TRY(dq_part_need(source, name, ".scales", &p->part[DQ_PART_SCALES]));
    const dq_tensor_info *w = &source->tensors[p->part[DQ_PART_WEIGHT]];
    DQ_TRY(dq_part_matrix(source, p->part[DQ_PART_WEIGHT], DQ_I16, "I16 [out / 4, in]"));
    p->in = w->shape[1];
    p->out = w->shape[0] * 4;
    if (p->in % 64 != 0 || (in > 0 && in != p->in))
        return dq_part_refuse(source, p->part[DQ_PART_WEIGHT], "I16 [out / 4, in], in a multiple of 64,");
    p->group = p->layout.group > 0 && p->layout.group < p->in ? p->layout.group : p->in;
    p->groups = (p->in + p->group - 1) / p->group;
    DQ_TRY(dq_part_check(source, p->part[DQ_PART_SCALES], DQ_F32, padded_groups(p), p->out));
    return dq_part_check(source, p->part[DQ_PART_ZEROS], DQ_F32, padded_groups(p), p->out);
}

/* The zero point is rounded away from what rounding -zero * scale to 16 bits has done to it. */
static dq_status zeros_from(const float *scaled, dq_host_codes *c)
{
    for (int64_t g = 0; g < c->groups; g++)
        for (int64_t n = 0; n < c->out; n++) {
            float s = c->scale[n * c->groups + g], z = s != 0.0f ? -scaled[g * c->out + n] / s : 0.0f;
            if (!(z > -0.26f && z < 15.26f && fabsf(z - rintf(z)) < 0.26f))
                return dq_fail(DQ_E_FORMAT, "the zero point of row %lld, group %lld is %g", (long long)n, (long long)g,
                               (double)z);
            c->zero[n * c->groups + g] = (uint8_t)rintf(z);
        }
    return DQ_OK;
}

static dq_status read(dq_source *source, const dq_packed *p, dq_host_codes *c)
{
    void *data;
    float *values;
    DQ_TRY(dq_part_read(source, p->part[DQ_PART_WEIGHT], &data));
    const uint16_t *words = data;
    for (int64_t n = 0; n < c->out; n++)
        for (int64_t k = 0; k < c->in; k++) c->codes[n * c->in + k] = words[word_of(n, k, c->in)] >> nibble_of(k) & 15;
    dq_free(data);
    DQ_TRY(dq_part_read_floats(source, p->part[DQ_PART_SCALES], &values));
    dq_transpose_params(values, c->groups, c->out, c->scale);
    dq_free(values);
    DQ_TRY(dq_part_read_floats(source, p->part[DQ_PART_ZEROS], &values));
    dq_status status = zeros_from(values, c);
    dq_free(values);
    return status;
}

static dq_status put_params(dq_sink *sink, const char *name, const dq_packed *p, dq_dtype dtype, const dq_host_codes *c,
                            bool zeros)
{
    dq_host_codes t = {.env = c->env, .out = c->out, .groups = padded_groups(p)};
    t.scale = dq_calloc(c->env, (size_t)(t.out * t.groups), sizeof *t.scale);
    if (!t.scale) return DQ_E_NOMEM;
    for (int64_t n = 0; n < c->out; n++)
        for (int64_t g = 0; g < c->groups; g++) {
            float s = c->scale[n * c->groups + g];
            t.scale[n * t.groups + g] = zeros ? -(float)c->zero[n * c->groups + g] * s : s;
        }
    dq_status status = dq_sink_put_scales(sink, name, zeros ? ".qzeros" : ".scales", dtype, true, &t);
    dq_free(t.scale);
    return status;
}

static dq_status write(dq_sink *sink, const char *name, const dq_layout *l, dq_dtype scale_dtype,
                       const dq_host_codes *c)
{
    dq_packed p = {.layout = *l, .in = c->in, .out = c->out, .group = c->group, .groups = c->groups};
    if (c->out % 4 != 0) return dq_fail(DQ_E_UNSUPPORTED, "%lld rows are no multiple of 4", (long long)c->out);
    uint16_t *words = dq_calloc(c->env, (size_t)(c->out / 4 * c->in), sizeof *words);
    if (!words) return DQ_E_NOMEM;
    for (int64_t n = 0; n < c->out; n++)
        for (int64_t k = 0; k < c->in; k++)
            words[word_of(n, k, c->in)] |= (uint16_t)(c->codes[n * c->in + k] << nibble_of(k));
    dq_status status = dq_sink_put(sink, name, ".qweight", DQ_I16, c->out / 4, c->in, words);
    dq_free(words);
    DQ_TRY(status);
    DQ_TRY(put_params(sink, name, &p, scale_dtype, c, false));
    return put_params(sink, name, &p, scale_dtype, c, true);
}

const dq_layout_ops dq_awq_fast_ops = {bind, read, write};
