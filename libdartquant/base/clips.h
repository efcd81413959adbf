/* Clip ratios of one model, layer by layer. SPDX-License-Identifier: Apache-2.0 */
#ifndef DQ_BASE_CLIPS_H
#define DQ_BASE_CLIPS_H

#include "base/env.h"
#include "base/scheme.h"

/* Where a block quantizes values, by what reads them or what they are: "q_k_v", "o", "gate_up", "down", "keys",
 * "values". */
const char *dq_clip_site_name(int site);
/* All zero: the scheme's own ratios. */
dq_status dq_clips_new(dq_env *env, int64_t layers, dq_clips **out);
dq_status dq_clips_copy(dq_env *env, const dq_clips *clips, dq_clips **out); /* NULL gives NULL */
void dq_clips_free(dq_clips *clips);                                         /* NULL is accepted */

#endif
