/* Kernels of generation, for AVX-512. SPDX-License-Identifier: Apache-2.0 */
#if defined(__x86_64__)
#include "backend/cpu/decode_kernel.h"
#else
typedef int dq_no_decode_avx512; /* a translation unit may not be empty */
#endif
