/* Writing a model in the formats of other programs. What a format cannot hold is refused before anything is written; a
 * folder appears whole or not at all, after it was opened again and its codes compared. SPDX-License-Identifier: Apache-2.0 */
#ifndef DQ_EXPORT_EXPORT_H
#define DQ_EXPORT_EXPORT_H

#include "formats/gguf_blocks.h"
#include "formats/layout.h"
#include "model/model.h"

typedef enum dq_export_kind {
    DQ_EXPORT_HF,      /* floating weights, everything fused */
    DQ_EXPORT_CODES,   /* GPTQ, AWQ, compressed-tensors: `layout` */
    DQ_EXPORT_GGUF,    /* `block` */
    DQ_EXPORT_DIFFULEX /* quantized anew from the weights: `minimum` chooses its awq variant */
} dq_export_kind;

typedef struct dq_export_spec {
    const char *name; /* as asked for */
    dq_export_kind kind;
    dq_layout_kind layout;
    dq_gguf_block block;
    dq_dtype dtype; /* HF: F16, BF16, F32; DQ_DTYPE_OTHER = as the source */
    bool minimum;
    uint64_t part_size;
} dq_export_spec;

/* "gptq", "gptq_v2", "awq", "compressed-tensors", "compressed-tensors:int-quantized", "gguf:q4_0", ..., "diffulex-gptq",
 * "diffulex-awq", "hf", "hf:bf16", ... */
dq_status dq_export_parse(const char *format, dq_export_spec *out);
/* Writes folder `dir`, which must not exist or be empty; for GGUF a path that ends in .gguf names the file itself. */
dq_status dq_export_model(dq_model *model, const dq_export_spec *spec, const char *dir, dq_progress *progress);

#endif
