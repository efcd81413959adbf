/* The quantization kernels of one instruction set: this file is compiled by quant_avx512.c, quant_avx2.c and
 * quant_plain.c, each of which gets its own table. SPDX-License-Identifier: Apache-2.0 */
#include <stdbool.h>

#include "backend/cpu/quantize.h"
#include "backend/cpu/vec.h"

#define REAL float
#define VEC vf
#define LANES VF
#define LOG_LANES (VF == 16 ? 4 : VF == 8 ? 3 : 2)
#define V(name) vf_##name
#define FN(name) name##_f32
#include "backend/cpu/fwht_kernel.h"

#define REAL double
#define VEC vd
#define LANES VD
#define LOG_LANES (VD == 8 ? 3 : VD == 4 ? 2 : 1)
#define V(name) vd_##name
#define FN(name) name##_f64
#include "backend/cpu/fwht_kernel.h"

#include "backend/cpu/fake_quant_kernel.h"
#include "backend/cpu/levels_kernel.h"
#include "backend/cpu/codes_kernel.h"
#include "backend/cpu/grid_kernel.h"
#include "backend/cpu/gptq_kernel.h"

const dq_quant_kernels DQ_ISA(dq_quant_kernels) = {
    .vector_bytes = sizeof(vf),
    .fwht_f32 = fwht_f32,
    .fwht_f64 = fwht_f64,
    .fwht_strided_f32 = fwht_strided_f32,
    .fwht_strided_f64 = fwht_strided_f64,
    .mix_f32 = mix_f32,
    .mix_f64 = mix_f64,
    .fake_quant = fake_quant,
    .levels_columns = levels_columns,
    .levels_row = levels_row,
    .row_range = row_range,
    .row_ends = row_ends,
    .row_inside = row_inside,
    .quantize = quantize,
    .dequantize = dequantize,
    .grid_range = grid_range,
    .grid_error = grid_error,
    .gptq_rows = gptq_rows,
};
