/* Quantization kernels in plain C. SPDX-License-Identifier: Apache-2.0 */
#include "backend/cpu/quant_kernels.h"
