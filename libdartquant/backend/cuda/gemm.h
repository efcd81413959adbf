/* Products that files share. SPDX-License-Identifier: Apache-2.0 */
#ifndef DQ_CUDA_GEMM_H
#define DQ_CUDA_GEMM_H

#include "backend/cuda/kernel.h"

cudaDataType_t dq_cuda_blas_type(dq_dtype dtype);
cublasComputeType_t dq_cuda_compute_type(const dq_cuda_device *dev, dq_dtype dtype);

/* h = beta h + alpha left^T right, lower triangle alone; both [rows, n] of one type. numbers: {alpha, beta, 1, 0} in fp32, on
 * the card when `on_card`; beta once more for our own kernel. */
dq_status dq_cuda_lower_product(dq_cuda_device *dev, const void *left, const void *right, dq_dtype dtype, int64_t rows,
                                int64_t n, int64_t stride, const float *numbers, bool on_card, double beta,
                                const dq_view *h);
/* The same for fp32 inputs, split in two numbers of 16 bits. */
dq_status dq_cuda_syrk_split(dq_cuda_device *dev, double alpha, const dq_view *x, double beta, const dq_view *h);

#endif
