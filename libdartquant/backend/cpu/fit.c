/* Registers the ops of the CPU backend that fit rotations. SPDX-License-Identifier: Apache-2.0 */
#include "backend/cpu/fit.h"

void dq_cpu_fill_fit(dq_backend *table) { table->rotation_loss = dq_cpu_rotation_loss; }
