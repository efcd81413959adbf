/* The fp32 attention kernel for AVX2. SPDX-License-Identifier: Apache-2.0 */
#if defined(__x86_64__)
#include "backend/cpu/attention_kernel.h"
#endif
