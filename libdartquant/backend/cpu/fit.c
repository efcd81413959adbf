/* Registers the ops of the CPU backend that fit rotations. SPDX-License-Identifier: Apache-2.0 */
#include "backend/cpu/fit.h"

void dq_cpu_fill_fit(dq_backend *table)
{
    table->rotation_loss = dq_cpu_rotation_loss;
    table->qr_batch = dq_cpu_qr_batch;
    table->qr_grad = dq_cpu_qr_grad;
    table->polar = dq_cpu_polar;
    table->adam = dq_cpu_adam;
}
