/* Hadamard transforms: the way for common shapes. SPDX-License-Identifier: Apache-2.0 */
#ifndef DQ_CUDA_HADAMARD_H
#define DQ_CUDA_HADAMARD_H

#include "backend/cuda/kernel.h"

bool dq_cuda_hadamard_is_fast(const dq_cuda_device *dev, const dq_hadamard_desc *d, const dq_view *x);
/* hk: the table on the card. grid: quantize every vector on its way out, or NULL; y may then be BF16. */
dq_status dq_cuda_hadamard_fast(dq_cuda_device *dev, const dq_hadamard_desc *d, const int8_t *hk,
                                const dq_fake_quant_desc *grid, const dq_view *x, const dq_view *y,
                                const dq_view *code_grid);

#endif
