/* Integer codes in the form of op packed_linear. SPDX-License-Identifier: Apache-2.0 */
#ifndef DQ_GENERATE_PACK_H
#define DQ_GENERATE_PACK_H

#include "generate/arena.h"
#include "model/model.h"

/* Rows of weights in host memory as the op stores them; zero, minimum, order may be NULL. */
typedef struct dq_host_packed {
    int bits;
    int64_t out, columns, group, groups;
    int64_t row_bytes;
    uint8_t *codes;         /* [out, row_bytes] */
    float *scale, *minimum; /* [out, groups] */
    uint8_t *zero;
    int32_t *order; /* [columns] */
} dq_host_packed;
void dq_host_packed_free(dq_host_packed *p);

/* `minimum`: [out, groups] or NULL, as dq_model_read_blocks gives it. *packed = false, and nothing made, when groups are so
 * uneven that padding them would cost more than a quarter. */
dq_status dq_pack_codes(const dq_host_codes *codes, const float *minimum, dq_host_packed *out, bool *packed);
/* Rounds F32 [out, in] to symmetric groups of 8-bit codes. */
dq_status dq_pack_rows8(const dq_tensor *rows, dq_host_packed *out);
/* Whether one op can take the rows of both. */
bool dq_packs_join(const dq_host_packed *a, const dq_host_packed *b);
/* The rows of `count` packs that join, below each other, on the device: scales in F16 where that is exact. */
dq_status dq_pack_upload(dq_arena *arena, const dq_host_packed *parts, int count, dq_packed_weight *out);
/* The same values in F16 or BF16 where every one of them is exact there; else the tensor as it is. Takes over `t`. */
dq_status dq_narrow_exact(dq_tensor *t);
/* Bytes of the weights of a linear. */
uint64_t dq_linear_bytes(const dq_linear *l);

#endif
