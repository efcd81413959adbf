/* libdartquant: version numbers of the header and of the loaded library. Since 1.0.
 * SPDX-License-Identifier: Apache-2.0 */
#ifndef DARTQUANT_VERSION_H
#define DARTQUANT_VERSION_H

#include "dartquant/types.h"

#ifdef __cplusplus
extern "C" {
#endif

/* Version of these headers. */
#define DQ_VERSION_MAJOR 1
#define DQ_VERSION_MINOR 0
#define DQ_VERSION_PATCH 0
/* major * 10000 + minor * 100 + patch, for comparisons. */
#define DQ_VERSION_NUMBER (DQ_VERSION_MAJOR * 10000 + DQ_VERSION_MINOR * 100 + DQ_VERSION_PATCH)
/* Generation of the binary interface: the number in libdartquant.so.N. Within one generation symbols, struct layouts
 * and enumerators are only added. */
#define DQ_ABI_VERSION 1

/* The loaded library's version as text, "1.0.0". Static; any thread; cannot fail. */
DQ_API const char *dq_version_string(void);
/* The loaded library's DQ_VERSION_NUMBER: compare with the header's to find a library older than the program. */
DQ_API int32_t dq_version_number(void);
/* The loaded library's DQ_ABI_VERSION. */
DQ_API int32_t dq_abi_version(void);

#ifdef __cplusplus
}
#endif
#endif
