/* Integer codes in the form of op packed_linear. SPDX-License-Identifier: Apache-2.0 */
#ifndef DQ_GENERATE_PACK_H
#define DQ_GENERATE_PACK_H

#include "model/model.h"

/* *packed = false, and nothing made, when groups are so uneven that padding them would cost more than a quarter. */
dq_status dq_pack_codes(dq_device *dev, const dq_host_codes *codes, dq_packed_weight *out, bool *packed);
/* Rounds F32 [out, in] to symmetric groups of 8-bit codes and packs them. */
dq_status dq_pack_rows8(const dq_tensor *rows, dq_packed_weight *out);
/* The same values in F16 or BF16 where every one of them is exact there; else the tensor as it is. Takes over `t`. */
dq_status dq_narrow_exact(dq_tensor *t);
/* Bytes of the weights of a linear. */
uint64_t dq_linear_bytes(const dq_linear *l);

#endif
