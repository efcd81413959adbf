/* Kernels of generation in plain C. SPDX-License-Identifier: Apache-2.0 */
#include "backend/cpu/decode_kernel.h"
