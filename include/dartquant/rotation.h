/* libdartquant: sets of rotations R1..R4 for a model's sizes. Since 1.0.
 * R1 rotates the residual stream, R2 each value head, R3 queries and keys after RoPE, R4 the input of down_proj.
 * SpinQuant, arXiv 2405.16406; QuaRot, arXiv 2404.00456; DartQuant, arXiv 2511.04063.
 * SPDX-License-Identifier: Apache-2.0 */
#ifndef DARTQUANT_ROTATION_H
#define DARTQUANT_ROTATION_H

#include "dartquant/types.h"

#ifdef __cplusplus
extern "C" {
#endif

/* Makes the rotations that `config` (NULL = defaults) asks for, with the sizes of `model`: use_r1, use_r2, use_r3,
 * use_r4, rotate_mode, seed, and r1_path / r2_path to load learnt ones (.safetensors, .pt, SpinQuant's R.bin). The
 * model itself is not touched; the set can be used with any model of the same sizes.
 * Errors: DQ_E_INVALID, DQ_E_UNSUPPORTED (no Hadamard matrix of a needed order), DQ_E_IO, DQ_E_FORMAT, DQ_E_MISMATCH
 * (file for other sizes), DQ_E_NUMERIC (loaded matrix not orthogonal), DQ_E_NONFINITE, DQ_E_NOMEM. */
DQ_API dq_status dq_rotation_new(dq_model *model, const dq_config *config, dq_rotation **out);
/* NULL is accepted. */
DQ_API void dq_rotation_free(dq_rotation *rotation);
/* Writes R1 and R2 to one file that r1_path and r2_path accept; the name's ending says how. ".safetensors": tensors "R1"
 * F64 [hidden, hidden] and "model.layers.{i}.self_attn.R2" F64 [kv_heads, head_dim, head_dim], where they come from as
 * metadata. ".pt": a PyTorch dictionary of the same names in F32, as DartQuant's scripts read it for R1 and for R2.
 * ".bin": SpinQuant's R.bin, whose R2 are F32 [head_dim, head_dim].
 * Errors: DQ_E_INVALID (another ending), DQ_E_UNSUPPORTED (.bin and R2 that differ between the heads of a layer),
 * DQ_E_STATE (neither R1 nor R2), DQ_E_IO, DQ_E_NOMEM. */
DQ_API dq_status dq_rotation_save(const dq_rotation *rotation, const char *path);
/* JSON text: which parts exist, their orders and origin, and the sizes of the model. *out is owned by the rotation. Errors: DQ_E_INVALID. */
DQ_API dq_status dq_rotation_describe(const dq_rotation *rotation, const char **out);
/* *out = largest |(R^T R - I)| entry over R1 and all R2; 0 when there are none. Errors: DQ_E_INVALID. */
DQ_API dq_status dq_rotation_error(const dq_rotation *rotation, double *out);
/* Copies matrices row by row to out, capacity in numbers: layer -1 is R1 [hidden, hidden], others R2 of that layer
 * [kv_heads, head_dim, head_dim] (sizes: dq_rotation_describe). Row vectors turn: x R.
 * Errors: DQ_E_INVALID (no such layer, capacity), DQ_E_NOTFOUND (the set has no such matrix). */
DQ_API dq_status dq_rotation_copy(const dq_rotation *rotation, int64_t layer, double *out, size_t capacity);

#ifdef __cplusplus
}
#endif
#endif
