/* What the JSON files beside a checkpoint say about its quantization: GPTQ (quantize_config.json), AWQ (quant_config.json),
 * compressed-tensors, all of them as quantization_config in config.json too. SPDX-License-Identifier: Apache-2.0 */
#ifndef DQ_FORMATS_QUANT_CONFIG_H
#define DQ_FORMATS_QUANT_CONFIG_H

#include "base/scheme.h"
#include "formats/layout.h"
#include "io/json.h"

typedef enum dq_quant_method { DQ_METHOD_GPTQ, DQ_METHOD_AWQ, DQ_METHOD_CT, DQ_METHOD_DIFFULEX } dq_quant_method;

typedef struct dq_quant_config {
    dq_env *env;
    dq_quant_method method;
    dq_layout layout; /* of linears without a rule of their own (GPTQ, AWQ) */
    bool act_order;
    dq_act_spec input; /* quantization of the linears' inputs; bits 16 = none */
    json_t *json;
    char *path; /* of the file, for messages; may be NULL */
} dq_quant_config;

/* Keeps a reference to `json`. Unknown methods, widths and formats are refused by name. */
dq_status dq_quant_config_new(dq_env *env, json_t *json, const char *path, dq_quant_config **out);
void dq_quant_config_free(dq_quant_config *config); /* NULL is accepted */
/* Whether the configuration quantizes that linear, and how. */
dq_status dq_quant_config_layout(const dq_quant_config *config, const char *module, bool *quantized, dq_layout *out);
const char *dq_quant_method_name(dq_quant_method method);

/* Python's re.match: a match at the beginning. DQ_E_FORMAT for what is no regular expression. */
dq_status dq_pattern_matches(dq_env *env, const char *pattern, const char *text, bool *out);
/* A list of targets of compressed-tensors: exact names, the class "Linear", or "re:" and a regular expression. */
dq_status dq_targets_match(dq_env *env, const json_t *targets, const char *module, bool *out);

#endif
