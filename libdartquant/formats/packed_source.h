/* A quantized checkpoint as a source of tensors: what is stored as codes is found by the name of the linear, what is stored
 * in a way only its layout knows (FP8 with scales, Diffulex) reads like any weight. SPDX-License-Identifier: Apache-2.0 */
#ifndef DQ_FORMATS_PACKED_SOURCE_H
#define DQ_FORMATS_PACKED_SOURCE_H

#include "formats/quant_config.h"

/* `quantized`: a second source whose tensors replace those of `base`, NULL = `base` holds everything. Both are taken over,
 * also on failure. Every quantized linear is bound and its shapes are checked. */
dq_status dq_packed_source_open(dq_source *base, dq_source *quantized, const dq_quant_config *config, dq_source **out);
/* NULL when the source is no such checkpoint, or that linear has no codes in it. */
const dq_packed *dq_packed_source_find(const dq_source *source, const char *linear);
dq_status dq_packed_source_read(dq_source *source, const char *linear, dq_host_codes *out);
/* What holds for the linears as a whole: the largest width, the first's group and symmetry; false when the source is no
 * checkpoint or holds no codes. */
bool dq_packed_source_summary(const dq_source *source, dq_layout *out);

#endif
