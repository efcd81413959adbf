/* The int8-packed layout of Diffulex: 4 bits, groups along the outputs, a scale and a zero point for every column of a group.
 * Its own quantizers lose more than needed (docs/formats.md); these round to nearest on the same grid.
 * SPDX-License-Identifier: Apache-2.0 */
#include <math.h>
#include <stdio.h>
#include <string.h>

#include "base/status.h"
#include "export/parts.h"
#include "io/formats.h"

enum { GROUP = 128 };

typedef struct packed {
    int64_t out, in, group, groups, half;
    uint8_t *codes, *zeros; /* [out, half], [groups, half] */
    float *scales;          /* [groups, in] */
    int32_t *index;         /* [out] */
} packed;

static void packed_free(packed *q)
{
    dq_free(q->codes);
    dq_free(q->zeros);
    dq_free(q->scales);
    dq_free(q->index);
}

static dq_status packed_alloc(dq_env *env, int64_t out, int64_t in, packed *q)
{
    *q = (packed){.out = out, .in = in, .group = GROUP, .groups = (out + GROUP - 1) / GROUP, .half = (in + 1) / 2};
    q->codes = dq_alloc(env, (size_t)(q->out * q->half));
    q->zeros = dq_alloc(env, (size_t)(q->groups * q->half));
    q->scales = dq_alloc(env, (size_t)(q->groups * q->in) * sizeof *q->scales);
    q->index = dq_alloc(env, (size_t)q->out * sizeof *q->index);
    if (!q->codes || !q->zeros || !q->scales || !q->index) return DQ_E_NOMEM;
    memset(q->codes, 0x88, (size_t)(q->out * q->half)); /* code 8 stands for zero, the padding of odd widths too */
    memset(q->zeros, 0x88, (size_t)(q->groups * q->half));
    for (int64_t n = 0; n < out; n++) q->index[n] = (int32_t)(n / GROUP);
    return DQ_OK;
}

/* v in -8..7 */
static void put_nibble(uint8_t *row, int64_t k, int v)
{
    int shift = (int)(k % 2) * 4;
    row[k / 2] = (uint8_t)((row[k / 2] & ~(15 << shift)) | (v + 8) << shift);
}

static int clamp_code(float v) { return v < -8.0f ? -8 : v > 7.0f ? 7 : (int)v; }

/* One column of one group. W = (q + z) s: symmetric with z = 0, or from the smallest value on. */
static void quantize_column(const float *w, bool minimum, int64_t g, int64_t k, packed *q)
{
    int64_t first = g * q->group, end = first + q->group < q->out ? first + q->group : q->out;
    float low = 0.0f, high = 0.0f;
    for (int64_t n = first; n < end; n++) {
        low = fminf(low, w[n * q->in + k]);
        high = fmaxf(high, w[n * q->in + k]);
    }
    float s = minimum ? (high - low) / 15.0f : fmaxf(-low, high) / 7.5f;
    if (s == 0.0f) s = 1.0f;
    int z = minimum ? clamp_code(rintf(low / s) + 8.0f) : 0;
    q->scales[g * q->in + k] = s;
    put_nibble(q->zeros + g * q->half, k, z);
    for (int64_t n = first; n < end; n++)
        put_nibble(q->codes + n * q->half, k, clamp_code(rintf(w[n * q->in + k] / s) - (float)z));
}

static dq_status put_packed(dq_sink *sink, const char *name, const packed *q)
{
    static const int32_t bits = 4, group = GROUP;
    char full[DQ_TENSOR_NAME + 16];
    DQ_TRY(dq_sink_put(sink, name, ".qweight", DQ_I8, q->out, q->half, q->codes));
    DQ_TRY(dq_sink_put(sink, name, ".qzeros", DQ_I8, q->groups, q->half, q->zeros));
    DQ_TRY(dq_sink_put(sink, name, ".scales", DQ_F32, q->groups, q->in, q->scales));
    DQ_TRY(dq_sink_put(sink, name, ".g_idx", DQ_I32, 0, q->out, q->index));
    snprintf(full, sizeof full, "%s.group_size", name);
    DQ_TRY(sink->ops->add(sink, full, DQ_I32, 0, NULL, &group, 4));
    snprintf(full, sizeof full, "%s.bits", name);
    return sink->ops->add(sink, full, DQ_I32, 0, NULL, &bits, 4);
}

static dq_status put_linear(const dq_export_plan *p, dq_sink *sink, int64_t layer, dq_role role, json_t *modules)
{
    const dq_arch *a = dq_model_arch(p->model);
    char name[DQ_TENSOR_NAME];
    int64_t rows, cols;
    float *weight = NULL, *bias = NULL;
    packed q = {0};
    dq_status status;
    dq_arch_shape(a, role, &rows, &cols);
    dq_arch_module_name(a, role, layer, name, sizeof name);
    DQ_GO(dq_export_linear_f32(p, layer, role, &weight, &bias));
    DQ_GO(packed_alloc(p->env, rows, cols, &q));
    for (int64_t g = 0; g < q.groups; g++)
        for (int64_t k = 0; k < cols; k++) quantize_column(weight, p->spec->minimum, g, k, &q);
    DQ_GO(put_packed(sink, name, &q));
    json_t *entry = json_pack("{s:s, s:I, s:I, s:i, s:i}", "name", name, "out_features", (json_int_t)rows,
                              "in_features", (json_int_t)cols, "group_size", GROUP, "bits", 4);
    if (!entry || json_array_append_new(modules, entry) != 0) status = dq_fail(DQ_E_NOMEM, "out of memory");
done:
    packed_free(&q);
    dq_free(weight);
    dq_free(bias);
    return status;
}

dq_status dq_export_diffulex(const dq_export_plan *p, const char *dir)
{
    const char *kind = p->spec->minimum ? "awq" : "gptq";
    char stem[40], file[48];
    dq_sink *sink = NULL;
    json_t *modules = json_array();
    dq_status status;
    snprintf(stem, sizeof stem, "model_quantized_%s", kind);
    snprintf(file, sizeof file, "quantization_metadata_%s.json", kind);
    DQ_GO(modules ? DQ_OK : dq_fail(DQ_E_NOMEM, "out of memory"));
    DQ_GO(dq_safetensors_sink(p->env, dir, stem, UINT64_MAX, &sink));
    DQ_GO(sink->ops->set_metadata(sink, "format", "pt"));
    for (int64_t layer = 0; layer < dq_model_arch(p->model)->layers; layer++)
        for (int role = 0; role < DQ_LINEARS; role++) DQ_GO(put_linear(p, sink, layer, (dq_role)role, modules));
    DQ_GO(sink->ops->finish(sink));
    status = dq_export_write_json(p->env, dir, file,
                                  json_pack("{s:s, s:i, s:i, s:O}", "quant_format", kind, "group_size", GROUP, "bits",
                                            4, "quantized_modules", modules));
done:
    if (sink) sink->ops->free(sink);
    json_decref(modules);
    return status;
}
