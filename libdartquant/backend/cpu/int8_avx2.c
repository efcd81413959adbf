/* Products of rounded x with packed codes, for AVX2. SPDX-License-Identifier: Apache-2.0 */
#if defined(__x86_64__)
#include "backend/cpu/int8_kernel.h"
#else
typedef int dq_no_int8_avx2; /* a translation unit may not be empty */
#endif
