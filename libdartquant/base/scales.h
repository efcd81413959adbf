/* Channel scales of AWQ for one model, layer by layer. SPDX-License-Identifier: Apache-2.0 */
#ifndef DQ_BASE_SCALES_H
#define DQ_BASE_SCALES_H

#include "base/env.h"

/* The four inputs of a block's linears. The o_proj input has kv_heads * head_dim scales: query heads that share a value
 * head share its scales. */
enum { DQ_SCALE_QKV, DQ_SCALE_O, DQ_SCALE_GATE_UP, DQ_SCALE_DOWN, DQ_SCALE_SITES };

typedef struct dq_scales {
    int64_t layers;
    int64_t width[DQ_SCALE_SITES];
    int64_t total; /* sum of the widths */
    float *values; /* [layers, total], positive and finite */
} dq_scales;

/* All one. */
dq_status dq_scales_new(dq_env *env, int64_t layers, const int64_t width[DQ_SCALE_SITES], dq_scales **out);
dq_status dq_scales_copy(dq_env *env, const dq_scales *scales, dq_scales **out);
void dq_scales_free(dq_scales *scales); /* NULL is accepted */
float *dq_scales_at(const dq_scales *scales, int64_t layer, int site);

#endif
