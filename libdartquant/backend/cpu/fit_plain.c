/* Kernels that fit rotations, in plain C. SPDX-License-Identifier: Apache-2.0 */
#include "backend/cpu/fit_kernel.h"
