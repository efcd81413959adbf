/* Registers the products and transformer ops of the CPU backend. SPDX-License-Identifier: Apache-2.0 */
#include "backend/cpu/decode.h"

void dq_cpu_fill_forward(dq_backend *table)
{
    table->fill = dq_cpu_fill;
    table->convert = dq_cpu_convert;
    table->axpy = dq_cpu_axpy;
    table->scale_cols = dq_cpu_scale_cols;
    table->gather_rows = dq_cpu_gather_rows;
    table->find_nonfinite = dq_cpu_find_nonfinite;
    table->dot = dq_cpu_dot;
    table->gemm = dq_cpu_gemm;
    table->attention = dq_cpu_attention;
    table->head_nll = dq_cpu_head_nll;
    table->compare_logits = dq_cpu_compare_logits;
    table->packed_linear = dq_cpu_packed_linear;
    table->kv_attention = dq_cpu_kv_attention;
    table->rmsnorm = dq_cpu_rmsnorm;
    table->layernorm = dq_cpu_layernorm;
    table->rope = dq_cpu_rope;
    table->activation = dq_cpu_activation;
}
