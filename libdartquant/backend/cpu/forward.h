/* Inside of the CPU backend's forward part: the ops, and the row kernels each SIMD level supplies.
 * SPDX-License-Identifier: Apache-2.0 */
#ifndef DQ_BACKEND_CPU_FORWARD_H
#define DQ_BACKEND_CPU_FORWARD_H

#include "backend/cpu/cpu.h"

static inline int64_t dq_min64(int64_t a, int64_t b) { return a < b ? a : b; }
static inline int64_t dq_max64(int64_t a, int64_t b) { return a > b ? a : b; }
static inline int64_t dq_ceil_div(int64_t a, int64_t b) { return (a + b - 1) / b; }

/* gemm.c */
dq_status dq_cpu_gemm(void *device, int32_t trans_a, int32_t trans_b, double alpha, const dq_view *a, const dq_view *b,
                      double beta, const dq_view *c, int32_t math);

#endif
