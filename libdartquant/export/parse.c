/* Names of export formats. SPDX-License-Identifier: Apache-2.0 */
#include <string.h>
#include <strings.h>

#include "base/status.h"
#include "export/export.h"

static const struct {
    const char *name;
    dq_export_spec spec;
} known[] = {
    {"gptq", {.kind = DQ_EXPORT_CODES, .layout = DQ_LAYOUT_GPTQ}},
    {"gptq_v2", {.kind = DQ_EXPORT_CODES, .layout = DQ_LAYOUT_GPTQ_V2}},
    {"awq", {.kind = DQ_EXPORT_CODES, .layout = DQ_LAYOUT_AWQ_GEMM}},
    {"compressed-tensors", {.kind = DQ_EXPORT_CODES, .layout = DQ_LAYOUT_CT_PACKED}},
    {"compressed-tensors:pack-quantized", {.kind = DQ_EXPORT_CODES, .layout = DQ_LAYOUT_CT_PACKED}},
    {"compressed-tensors:int-quantized", {.kind = DQ_EXPORT_CODES, .layout = DQ_LAYOUT_CT_INT}},
    {"hf", {.kind = DQ_EXPORT_HF, .dtype = DQ_DTYPE_OTHER}},
    {"hf:f32", {.kind = DQ_EXPORT_HF, .dtype = DQ_F32}},
    {"hf:f16", {.kind = DQ_EXPORT_HF, .dtype = DQ_F16}},
    {"hf:bf16", {.kind = DQ_EXPORT_HF, .dtype = DQ_BF16}},
    {"diffulex-gptq", {.kind = DQ_EXPORT_DIFFULEX, .dtype = DQ_DTYPE_OTHER}},
    {"diffulex-awq", {.kind = DQ_EXPORT_DIFFULEX, .dtype = DQ_DTYPE_OTHER, .minimum = true}},
};

dq_status dq_export_parse(const char *format, dq_export_spec *out)
{
    for (size_t i = 0; i < sizeof known / sizeof *known; i++) {
        if (strcasecmp(format, known[i].name) != 0) continue;
        *out = known[i].spec;
        out->name = known[i].name;
        return DQ_OK;
    }
    dq_export_spec spec = {.kind = DQ_EXPORT_GGUF, .name = "gguf"};
    if (strncasecmp(format, "gguf:", 5) == 0 && dq_gguf_block_find(format + 5, &spec.block)) {
        *out = spec;
        return DQ_OK;
    }
    return dq_fail(DQ_E_INVALID,
                   "\"%.60s\" is no export format (gptq, gptq_v2, awq, compressed-tensors, "
                   "compressed-tensors:int-quantized, gguf:f32|f16|bf16|q8_0|q4_0|q4_1|q5_0|q5_1|q4_k|q6_k, "
                   "diffulex-gptq, diffulex-awq, hf, hf:f32|f16|bf16)",
                   format);
}
