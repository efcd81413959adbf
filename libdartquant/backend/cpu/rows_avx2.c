/* Row kernels for AVX2, FMA and F16C. SPDX-License-Identifier: Apache-2.0 */
#if defined(__x86_64__)
#include "backend/cpu/rows_kernel.h"
#endif
