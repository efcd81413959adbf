/* SPDX-License-Identifier: Apache-2.0 */
#ifndef DQ_API_TENSORS_H
#define DQ_API_TENSORS_H

#include "base/source.h"
#include "dartquant/tensors.h"

/* Describes tensor `index` of a source in the public form. */
dq_status dq_describe_tensor(const dq_source *source, int64_t index, dq_tensor_desc *out);

#endif
