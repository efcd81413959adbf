/* Making rotation sets (copying and freeing them: base/rotation_set.h). SPDX-License-Identifier: Apache-2.0 */
#ifndef DQ_ROTATION_ROTATION_H
#define DQ_ROTATION_ROTATION_H

#include "backend/device.h"
#include "base/rotation_set.h"
#include "model/arch.h"

/* Hadamard of order n = k * 2^m by the constructions of docs/numerics.md: the tabulated orders first (upstream's order
 * of testing), then Paley I / II; when n has none, block-diagonal blocks of the largest order found
 * (out->blocks > 1) if allow_blocks, else DQ_E_UNSUPPORTED. */
dq_status dq_hadamard_make(dq_env *env, int64_t n, bool allow_blocks, dq_hadamard *out);
/* The dense +-1 matrix of one block [n, n], unnormalised. */
void dq_hadamard_dense(const dq_hadamard *h, int8_t *out);

typedef enum dq_rotate_mode { DQ_ROTATE_HADAMARD = 0, DQ_ROTATE_RANDOM = 1 } dq_rotate_mode;

typedef struct dq_rotation_options {
    bool use_r1, use_r3, use_r4;
    dq_r2_mode use_r2;
    dq_rotate_mode mode;
    uint64_t seed;
    const char *r1_path, *r2_path; /* NULL = made from the seed; .safetensors, .pt, .bin (SpinQuant R.bin) */
} dq_rotation_options;

dq_status dq_rotation_set_make(dq_device *dev, const dq_arch *arch, const dq_rotation_options *o,
                               dq_rotation_set **out);
/* Largest |(R^T R - I)_ij| over R1 and all R2; 0 when there is neither. */
dq_status dq_rotation_set_error(dq_device *dev, const dq_rotation_set *set, double *out);
/* By the name's ending. .safetensors: tensors "R1" F64 and "model.layers.{i}.self_attn.R2" F64 [kv_heads, d, d], origin and
 * manifest as metadata; .pt: the same as a PyTorch dictionary of F32 (DartQuant's two files in one); .bin: SpinQuant's R.bin,
 * R2 F32 [d, d], refused when the heads of a layer differ. */
dq_status dq_rotation_set_save(const dq_rotation_set *set, const char *path);

#endif
