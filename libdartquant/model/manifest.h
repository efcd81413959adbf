/* Records of a model as JSON: the same objects stand in manifests and in what `info` prints.
 * SPDX-License-Identifier: Apache-2.0 */
#ifndef DQ_MODEL_MANIFEST_H
#define DQ_MODEL_MANIFEST_H

#include "io/json.h"
#include "model/internal.h"

/* Writers give a new reference, NULL when out of memory. Readers check every value; `path` names the file in errors. */
json_t *dq_arch_to_json(const dq_arch *arch);
dq_status dq_arch_from_json(const json_t *object, const char *path, dq_arch *out);
/* From the content of a Hugging Face config.json; its quantization_config is not looked at. */
dq_status dq_arch_from_hf_json(const json_t *config, const char *path, dq_arch *out);
/* A root from the tensors of a Hugging Face folder, quantized by other tools or not. `config`: config.json; `dir`: where
 * other JSON files may be, NULL = nowhere. Takes over `source`, also on failure. */
dq_status dq_model_from_hf(dq_device *dev, const json_t *config, const char *dir, const char *config_path,
                           dq_source *source, dq_model **out);
/* config.json as Hugging Face tools know it; `dtype`: "float16", ... */
json_t *dq_hf_config_json(const dq_arch *arch, const char *dtype);
/* Files of a folder that belong to the tokenizer and to generation; ends with NULL. */
extern const char *const dq_tokenizer_files[];
json_t *dq_scheme_to_json(const dq_scheme *scheme);
/* Without clip ratios and tables of KVQuant: they are read by themselves. */
dq_status dq_scheme_from_json(const json_t *object, const char *path, dq_scheme *out);
/* Orders of the transforms only; the matrices are folded and the tables of the online ones are tensors. */
json_t *dq_rotations_to_json(const dq_rotation_set *set, bool has_r1);
dq_status dq_rotations_from_json(dq_env *env, const json_t *object, const char *path, const dq_arch *arch, bool *has_r1,
                                 dq_rotation_set **out);

/* The transforms of a set that run online, by name: "r2_heads", "r2_head_dim", "r3", "r4". */
enum { DQ_ONLINE_TRANSFORMS = 4 };
const char *dq_online_name(int i);
dq_hadamard *dq_online_of(dq_rotation_set *set, int i);

#endif
