/* transform_config of compressed-tensors as a rotation set. SPDX-License-Identifier: Apache-2.0 */
#ifndef DQ_MODEL_TRANSFORMS_H
#define DQ_MODEL_TRANSFORMS_H

#include "base/rotation_set.h"
#include "formats/quant_config.h"
#include "model/arch.h"

/* What must run online, as R3 and R4; *out = NULL when nothing must. Transforms of weights are in the weights already.
 * Online transforms at other places are refused by name. */
dq_status dq_transforms_read(dq_source *source, const dq_quant_config *config, const dq_arch *arch,
                             dq_rotation_set **out);
/* Largest order of which the matrix is stored. */
enum { DQ_TRANSFORM_MATRIX_LIMIT = 16384 };

#endif
