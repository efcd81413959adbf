/* Inside of the export: the plan of a job and its steps. SPDX-License-Identifier: Apache-2.0 */
#ifndef DQ_EXPORT_PARTS_H
#define DQ_EXPORT_PARTS_H

#include "base/progress.h"
#include "export/export.h"
#include "io/json.h"
#include "model/manifest.h"

/* What was found out before writing. */
typedef struct dq_export_plan {
    dq_model *model;
    const dq_export_spec *spec;
    dq_env *env;
    dq_dtype dtype;       /* of embedding, head, norms and biases */
    dq_dtype scale_dtype; /* of scales of code formats */
    bool symmetric;       /* all linears are */
    bool act_order;       /* some linear has a group index */
    int bits;             /* of the first linear with codes */
    int64_t group;        /* of it; -1 = one group per row */
    json_t *rules;        /* CODES: [{name, bits, group}] of linears that differ from the first; bits 0 = no codes */
    dq_progress *progress;
} dq_export_plan;

/* Everything that can be refused is refused here. */
dq_status dq_export_check(dq_model *model, const dq_export_spec *spec, dq_export_plan *plan);
void dq_export_plan_clear(dq_export_plan *plan);
/* The layout of one linear as the plan writes it. */
dq_layout dq_export_layout(const dq_export_plan *plan, const dq_host_codes *c);
/* Codes of a linear with the scales the file holds. */
dq_status dq_export_read_codes(const dq_export_plan *plan, int64_t layer, dq_role role, dq_host_codes *out);

/* Tensors of a Hugging Face folder. */
dq_status dq_export_tensors(const dq_export_plan *plan, dq_sink *sink);
/* Diffulex: the quantized linears as a second file with its metadata. */
dq_status dq_export_diffulex(const dq_export_plan *plan, const char *dir);
/* A weight of whatever kind, as F32 in host memory: a linear, or a norm of ones. */
dq_status dq_export_linear_f32(const dq_export_plan *plan, int64_t layer, dq_role role, float **weight, float **bias);
dq_status dq_export_norm_f32(const dq_export_plan *plan, int64_t layer, dq_role role, float **out);
/* NULL where the family's norms have none. */
dq_status dq_export_norm_bias_f32(const dq_export_plan *plan, int64_t layer, dq_role role, float **out);
dq_status dq_export_rows(const dq_export_plan *plan, dq_role role, int64_t first, int64_t count, dq_dtype dtype,
                         void *out);
void dq_narrow(dq_dtype dtype, const float *in, int64_t count, void *out);

/* config.json, quantize_config.json, tokenizer files. */
dq_status dq_export_files(const dq_export_plan *plan, const char *dir);
dq_status dq_export_write_json(dq_env *env, const char *dir, const char *file, json_t *value); /* takes `value` */
/* From the keys tokenizer.* of a GGUF source; *written is false where the way of cutting words is not known here. */
dq_status dq_export_tokenizer_json(dq_env *env, const dq_source *gguf, const char *dir, bool *written);
/* Opens `path` again and compares it with the model. */
dq_status dq_export_verify(const dq_export_plan *plan, const char *path);
dq_status dq_export_gguf(const dq_export_plan *plan, const char *path);

#endif
