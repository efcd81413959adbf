/* Row kernels in plain C. SPDX-License-Identifier: Apache-2.0 */
#include "backend/cpu/rows_kernel.h"
