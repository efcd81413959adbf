/* Registers the products and transformer ops of the CPU backend.
 * SPDX-License-Identifier: Apache-2.0 */
#include "backend/cpu/cpu.h"
#include "backend/cpu/forward.h"

void dq_cpu_fill_forward(dq_backend *table) { table->gemm = dq_cpu_gemm; }
