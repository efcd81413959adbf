/* Products of rounded x with packed codes, without special instructions. SPDX-License-Identifier: Apache-2.0 */
#include "backend/cpu/int8_kernel.h"
