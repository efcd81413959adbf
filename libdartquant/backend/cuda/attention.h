/* Attention's fast path. SPDX-License-Identifier: Apache-2.0 */
#ifndef DQ_CUDA_ATTENTION_H
#define DQ_CUDA_ATTENTION_H

#include "backend/cuda/device.h"

/* DQ_MATH_BF16 and head_dim up to 128: on tensor cores, where a block finds the shared memory. */
bool dq_cuda_attention_mma_fits(const dq_cuda_device *dev, const dq_attention_desc *d);
dq_status dq_cuda_attention_mma(dq_cuda_device *dev, const dq_attention_desc *d, const dq_view *q, const dq_view *k,
                                const dq_view *v, const dq_view *o);

#endif
