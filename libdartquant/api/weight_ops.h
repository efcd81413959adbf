/* What weights and KV caches share. SPDX-License-Identifier: Apache-2.0 */
#ifndef DQ_API_WEIGHT_OPS_H
#define DQ_API_WEIGHT_OPS_H

#include "model/model.h"

/* dq_dequantize_weight from inside a public function. */
dq_status dq_dequantize_rows(dq_env *env, const uint8_t *codes, const float *scale, const float *zero,
                             const int32_t *g_idx, int64_t out, int64_t in, int64_t group, float *w);

/* Codes on a device as the host's arrays: codes [out, in], scale and zero [out, groups], g_idx [in]. Untouched on
 * failure. */
dq_status dq_copy_codes(dq_env *env, const dq_codes *c, uint8_t *codes, float *scale, float *zero, int32_t *g_idx);

#endif
