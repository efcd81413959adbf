/* GGUF block types, written: from integer codes without loss where they fit, from floats by rounding. The types are
 * described in docs/formats.md; reading them is io/gguf_dequant.c. SPDX-License-Identifier: Apache-2.0 */
#ifndef DQ_FORMATS_GGUF_BLOCKS_H
#define DQ_FORMATS_GGUF_BLOCKS_H

#include "formats/host_codes.h"

typedef enum dq_gguf_block {
    DQ_GGUF_OUT_F32,
    DQ_GGUF_OUT_F16,
    DQ_GGUF_OUT_BF16,
    DQ_GGUF_OUT_Q8_0,
    DQ_GGUF_OUT_Q4_0,
    DQ_GGUF_OUT_Q4_1,
    DQ_GGUF_OUT_Q5_0,
    DQ_GGUF_OUT_Q5_1,
    DQ_GGUF_OUT_Q4_K,
    DQ_GGUF_OUT_Q6_K,
    DQ_GGUF_OUT_TYPES
} dq_gguf_block;

/* "q4_0" in any case; false when unknown. */
bool dq_gguf_block_find(const char *name, dq_gguf_block *out);
const char *dq_gguf_block_name(dq_gguf_block type);
bool dq_gguf_block_is_quantized(dq_gguf_block type);
uint32_t dq_gguf_block_id(dq_gguf_block type);        /* GGML's number of the type */
uint32_t dq_gguf_block_file_type(dq_gguf_block type); /* general.file_type */
int64_t dq_gguf_block_elements(dq_gguf_block type);
uint64_t dq_gguf_block_bytes(dq_gguf_block type, int64_t elements);

/* Whether the codes become blocks of that type without loss (Q4_1 and Q5_1: but for the rounding of scale * zero to F16);
 * otherwise *why says what is in the way. */
bool dq_gguf_block_holds(dq_gguf_block type, const dq_host_codes *c, const char **why);
/* "gguf:q4_0": the type that holds them, or NULL. */
const char *dq_gguf_block_for(const dq_host_codes *c);
/* Row n of the codes. */
void dq_gguf_encode_codes(dq_gguf_block type, const dq_host_codes *c, int64_t n, uint8_t *out);
/* `count` floats, a multiple of the block. */
void dq_gguf_encode(dq_gguf_block type, const float *x, int64_t count, uint8_t *out);

#endif
