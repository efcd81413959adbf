/* Clip ratios of one model. SPDX-License-Identifier: Apache-2.0 */
#include "base/clips.h"

#include <string.h>

#include "base/status.h"

const char *dq_clip_site_name(int site)
{
    static const char *const names[DQ_CLIP_SITES] = {"q_k_v", "o", "gate_up", "down", "keys", "values"};
    return names[site];
}

static size_t bytes_of(int64_t layers) { return sizeof(dq_clips) + (size_t)layers * sizeof(double[DQ_CLIP_SITES]); }

dq_status dq_clips_new(dq_env *env, int64_t layers, dq_clips **out)
{
    dq_clips *c = dq_calloc(env, 1, bytes_of(layers));
    if (!c) return DQ_E_NOMEM;
    c->layers = layers;
    *out = c;
    return DQ_OK;
}

dq_status dq_clips_copy(dq_env *env, const dq_clips *clips, dq_clips **out)
{
    dq_clips *c = NULL;
    if (clips) {
        DQ_TRY(dq_clips_new(env, clips->layers, &c));
        memcpy(c, clips, bytes_of(clips->layers));
    }
    *out = c;
    return DQ_OK;
}

void dq_clips_free(dq_clips *clips) { dq_free(clips); }
