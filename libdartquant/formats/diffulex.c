/* The int8-packed layout of Diffulex (January 2026): qweight I8 [out, ceil(in / 2)], byte j = (q[2j] + 8) | (q[2j+1] + 8)
 * << 4; qzeros likewise [groups, ceil(in / 2)]; scales F32 [groups, in] (or [groups], [groups, 1]); g_idx I32 [out]. Groups
 * run along the outputs: W[n, k] = (q[n, k] + qz[g, k]) * s[g, k], g = g_idx[n] or n / group. SPDX-License-Identifier: Apache-2.0 */
#include <math.h>
#include <string.h>

#include "base/status.h"
#include "formats/layout.h"

static dq_status check_scales(const dq_source *source, const dq_packed *p)
{
    int64_t t = p->part[DQ_PART_SCALES];
    const dq_tensor_info *s = &source->tensors[t];
    bool vector = s->ndim == 1 && s->shape[0] == p->groups,
         column = s->ndim == 2 && s->shape[0] == p->groups && s->shape[1] == 1;
    if (s->dtype != DQ_F32) return dq_part_refuse(source, t, "F32, which this layout's scales are,");
    return vector || column ? DQ_OK : dq_part_check(source, t, DQ_F32, p->groups, p->in);
}

static dq_status bind(const dq_source *source, const char *name, int64_t in, dq_packed *p)
{
    DQ_TRY(dq_part_need(source, name, ".qweight", &p->part[DQ_PART_WEIGHT]));
    DQ_TRY(dq_part_need(source, name, ".qzeros", &p->part[DQ_PART_ZEROS]));
    DQ_TRY(dq_part_need(source, name, ".scales", &p->part[DQ_PART_SCALES]));
    const dq_tensor_info *w = &source->tensors[p->part[DQ_PART_WEIGHT]];
    DQ_TRY(dq_part_matrix(source, p->part[DQ_PART_WEIGHT], DQ_I8, "I8 [out, in / 2]"));
    p->out = w->shape[0];
    p->in = in > 0 ? in : w->shape[1] * 2;
    if ((p->in + 1) / 2 != w->shape[1])
        return dq_part_refuse(source, p->part[DQ_PART_WEIGHT], "a linear of another width");
    p->group = p->layout.group > 0 && p->layout.group < p->out ? p->layout.group : p->out;
    p->groups = (p->out + p->group - 1) / p->group;
    DQ_TRY(dq_part_check(source, p->part[DQ_PART_ZEROS], DQ_I8, p->groups, (p->in + 1) / 2));
    DQ_TRY(check_scales(source, p));
    p->part[DQ_PART_GROUP_INDEX] = dq_part_find(source, name, ".g_idx");
    if (p->part[DQ_PART_GROUP_INDEX] < 0) return DQ_OK;
    if (source->tensors[p->part[DQ_PART_GROUP_INDEX]].bytes == 0) {
        p->part[DQ_PART_GROUP_INDEX] = -1;
        return DQ_OK;
    }
    return dq_part_check(source, p->part[DQ_PART_GROUP_INDEX], DQ_I32, 1, p->out);
}

static int nibble(const uint8_t *packed, int64_t k) { return (packed[k / 2] >> (k % 2 * 4) & 15) - 8; }

typedef struct row_scratch {
    uint8_t *codes, *zeros;
    float *scales;
} row_scratch;

static dq_status read_row(dq_source *source, const dq_packed *p, int64_t n, row_scratch *s, float *out)
{
    int64_t half = (p->in + 1) / 2;
    int32_t g = (int32_t)(n / p->group);
    if (p->part[DQ_PART_GROUP_INDEX] >= 0)
        DQ_TRY(dq_source_read_raw(source, p->part[DQ_PART_GROUP_INDEX], (uint64_t)n * 4, 4, &g));
    if (g < 0 || g >= p->groups)
        return dq_error_in_tensor(dq_error_in_file(dq_fail(DQ_E_FORMAT, "g_idx[%lld] is %d, there are %lld groups",
                                                           (long long)n, g, (long long)p->groups),
                                                   source->tensors[p->part[DQ_PART_GROUP_INDEX]].file),
                                  source->tensors[p->part[DQ_PART_GROUP_INDEX]].name);
    const dq_tensor_info *t = &source->tensors[p->part[DQ_PART_SCALES]];
    uint64_t width = t->bytes / 4 / (uint64_t)p->groups;
    DQ_TRY(dq_source_read_raw(source, p->part[DQ_PART_WEIGHT], (uint64_t)(n * half), (uint64_t)half, s->codes));
    DQ_TRY(dq_source_read_raw(source, p->part[DQ_PART_ZEROS], (uint64_t)(g * half), (uint64_t)half, s->zeros));
    DQ_TRY(dq_source_read_raw(source, p->part[DQ_PART_SCALES], (uint64_t)g * width * 4, width * 4, s->scales));
    for (int64_t k = 0; k < p->in; k++)
        out[k] = (float)(nibble(s->codes, k) + nibble(s->zeros, k)) * s->scales[width > 1 ? k : 0];
    return DQ_OK;
}

dq_status dq_diffulex_rows(dq_source *source, const dq_packed *p, int64_t first, int64_t count, float *out)
{
    size_t half = (size_t)(p->in + 1) / 2;
    row_scratch s = {dq_alloc(source->env, half), dq_alloc(source->env, half),
                     dq_alloc(source->env, (size_t)p->in * sizeof(float))};
    dq_status status = s.codes && s.zeros && s.scales ? DQ_OK : DQ_E_NOMEM;
    for (int64_t n = first; status == DQ_OK && n < first + count; n++, out += p->in)
        status = read_row(source, p, n, &s, out);
    dq_free(s.codes);
    dq_free(s.zeros);
    dq_free(s.scales);
    return status;
}

const dq_layout_ops dq_diffulex_ops = {bind, NULL, NULL};
