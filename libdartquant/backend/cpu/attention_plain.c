/* The fp32 attention kernel in plain C. SPDX-License-Identifier: Apache-2.0 */
#include "backend/cpu/attention_kernel.h"
