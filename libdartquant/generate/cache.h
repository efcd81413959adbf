/* Keys and values of past tokens of all layers. SPDX-License-Identifier: Apache-2.0 */
#ifndef DQ_GENERATE_CACHE_H
#define DQ_GENERATE_CACHE_H

#include "model/model.h"

typedef enum dq_kv_format { DQ_KV_F32, DQ_KV_F16, DQ_KV_BF16, DQ_KV_INT8, DQ_KV_INT4, DQ_KV_E4M3 } dq_kv_format;

/* `slots` tokens in each of `layers` caches. */
dq_status dq_kv_caches_new(dq_device *dev, dq_kv_format format, const dq_arch *arch, int64_t slots, dq_kv_cache **out,
                           uint64_t *bytes);
void dq_kv_caches_free(dq_kv_cache *caches, int64_t layers); /* NULL is accepted */

#endif
