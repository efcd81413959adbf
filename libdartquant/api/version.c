/* dartquant/version.h. SPDX-License-Identifier: Apache-2.0 */
#include "dartquant/version.h"

const char *dq_version_string(void) { return DQ_VERSION_STRING; }
int32_t dq_version_number(void) { return DQ_VERSION_NUMBER; }
int32_t dq_abi_version(void) { return DQ_ABI_VERSION; }
