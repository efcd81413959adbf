/* The header of one safetensors file. SPDX-License-Identifier: Apache-2.0 */
#ifndef DQ_IO_SAFETENSORS_H
#define DQ_IO_SAFETENSORS_H

#include "base/source.h"
#include "io/file.h"
#include "io/json.h"

typedef struct dq_st_header {
    json_t *root;
    json_t *metadata;        /* borrowed, NULL = none */
    dq_tensor_info *tensors; /* in the header's order; names borrowed from root; offsets count from the file's start */
    size_t count;
} dq_st_header;

/* Checks everything there is to check. *h starts zeroed; clear it also after a failure. */
dq_status dq_st_header_parse(dq_env *env, const dq_map *map, uint64_t *data_start, dq_st_header *h);
void dq_st_header_clear(dq_st_header *h);

#endif
