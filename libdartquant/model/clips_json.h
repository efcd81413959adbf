/* Clip ratios as JSON: in manifests, reports and checkpoints. SPDX-License-Identifier: Apache-2.0 */
#ifndef DQ_MODEL_CLIPS_JSON_H
#define DQ_MODEL_CLIPS_JSON_H

#include <jansson.h>

#include "base/clips.h"

/* {"q_k_v": [a ratio for each layer], ...} for the places that have ratios of their own; NULL when out of memory. */
json_t *dq_clips_to_json(const dq_clips *clips);
/* Checks every value; `path` names the file in errors, may be NULL. */
dq_status dq_clips_from_json(dq_env *env, const json_t *object, int64_t layers, const char *path, dq_clips **out);

#endif
