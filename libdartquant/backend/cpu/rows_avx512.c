/* Row kernels for AVX-512. SPDX-License-Identifier: Apache-2.0 */
#if defined(__x86_64__)
#include "backend/cpu/rows_kernel.h"
#endif
