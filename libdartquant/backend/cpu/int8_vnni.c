/* Products of rounded x with packed codes, for AVX-512 with VNNI. SPDX-License-Identifier: Apache-2.0 */
#if defined(__x86_64__)
#include "backend/cpu/int8_kernel.h"
#else
typedef int dq_no_int8_vnni; /* a translation unit may not be empty */
#endif
