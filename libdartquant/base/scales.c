/* Channel scales of one model. SPDX-License-Identifier: Apache-2.0 */
#include "base/scales.h"

#include <string.h>

#include "base/status.h"

dq_status dq_scales_new(dq_env *env, int64_t layers, const int64_t width[DQ_SCALE_SITES], dq_scales **out)
{
    int64_t total = 0;
    size_t count, bytes;
    for (int site = 0; site < DQ_SCALE_SITES; site++) total += width[site];
    if (!dq_mul_ok((size_t)layers, (size_t)total, &count) || !dq_mul_ok(count, sizeof(float), &bytes))
        return dq_fail(DQ_E_NOMEM, "channel scales of %lld layers are too many", (long long)layers);
    dq_scales *s = dq_calloc(env, 1, sizeof *s);
    if (!s) return DQ_E_NOMEM;
    s->layers = layers;
    s->total = total;
    memcpy(s->width, width, sizeof s->width);
    s->values = dq_alloc(env, bytes);
    if (!s->values) {
        dq_free(s);
        return DQ_E_NOMEM;
    }
    for (size_t i = 0; i < count; i++) s->values[i] = 1.0f;
    *out = s;
    return DQ_OK;
}

dq_status dq_scales_copy(dq_env *env, const dq_scales *scales, dq_scales **out)
{
    dq_scales *s = NULL;
    DQ_TRY(dq_scales_new(env, scales->layers, scales->width, &s));
    memcpy(s->values, scales->values, (size_t)(scales->layers * scales->total) * sizeof *s->values);
    *out = s;
    return DQ_OK;
}

void dq_scales_free(dq_scales *scales)
{
    if (scales) dq_free(scales->values);
    dq_free(scales);
}

float *dq_scales_at(const dq_scales *scales, int64_t layer, int site)
{
    float *at = scales->values + layer * scales->total;
    for (int i = 0; i < site; i++) at += scales->width[i];
    return at;
}
