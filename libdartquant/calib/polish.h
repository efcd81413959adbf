/* From fp32 rotations to such that are orthogonal in double precision. SPDX-License-Identifier: Apache-2.0 */
#ifndef DQ_CALIB_POLISH_H
#define DQ_CALIB_POLISH_H

#include "backend/device.h"

/* The nearest orthogonal matrices to `start` (F32 [groups * n, n], host memory) as a fresh F64 tensor; *error = the largest
 * |(R^T R - I)_ij| of them. Takes one matrix of that kind beside the result. */
dq_status dq_polish(dq_device *dev, int32_t groups, int64_t n, const float *start, dq_tensor *out, double *error);

#endif
