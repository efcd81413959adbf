/* What stands beside the shards: config.json, the quantizers' JSON files, the tokenizer. SPDX-License-Identifier: Apache-2.0 */
#include <stdio.h>
#include <string.h>

#include "base/status.h"
#include "export/parts.h"
#include "io/file.h"
#include "io/formats.h"

dq_status dq_export_write_json(dq_env *env, const char *dir, const char *file, json_t *value)
{
    char *text = NULL, *path = dq_path_join(env, dir, file);
    dq_status status = !path ? DQ_E_NOMEM : value ? DQ_OK : dq_fail(DQ_E_NOMEM, "out of memory while writing %s", file);
    if (status == DQ_OK) status = dq_json_dump(env, value, true, &text);
    if (status == DQ_OK) status = dq_file_write(env, path, text, strlen(text));
    dq_free(text);
    dq_free(path);
    json_decref(value);
    return status;
}

/* NULL, which is out of memory to the caller, instead of an object that lacks a part. */
static json_t *unless(bool bad, json_t *o)
{
    if (!bad) return o;
    json_decref(o);
    return NULL;
}

/* GPTQModel's `dynamic`: a rule for every linear that differs from the rest. */
static json_t *dynamic_rules(const dq_export_plan *p)
{
    size_t i;
    json_t *rule, *o = json_object();
    bool bad = !o;
    json_array_foreach(p->rules, i, rule)
    {
        char pattern[2 * DQ_TENSOR_NAME + 8];
        const char *name = json_string_value(json_object_get(rule, "name"));
        json_int_t bits = json_integer_value(json_object_get(rule, "bits"));
        size_t n = (size_t)snprintf(pattern, sizeof pattern, bits ? "+:" : "-:");
        for (; *name; name++) {
            if (*name == '.') pattern[n++] = '\\';
            pattern[n++] = *name;
        }
        snprintf(pattern + n, sizeof pattern - n, "$");
        bad |= json_object_set_new(
            o, pattern,
            bits ? json_pack("{s:I, s:O}", "bits", bits, "group_size", json_object_get(rule, "group")) : json_object());
    }
    return unless(bad, o);
}

static json_t *gptq_config(const dq_export_plan *p)
{
    const char *format = p->spec->layout == DQ_LAYOUT_GPTQ_V2 ? "gptq_v2" : "gptq";
    json_t *o = json_pack("{s:s, s:s, s:s, s:i, s:I, s:b, s:b, s:b, s:s, s:{s:s}}", "quant_method", "gptq",
                          "checkpoint_format", format, "format", format, "bits", p->bits, "group_size",
                          (json_int_t)p->group, "desc_act", (int)p->act_order, "sym", (int)p->symmetric, "lm_head", 0,
                          "pack_dtype", "int32", "meta", "quantizer", "dartquant:" DQ_VERSION_STRING);
    return unless(json_array_size(p->rules) > 0 && json_object_set_new(o, "dynamic", dynamic_rules(p)) != 0, o);
}

static json_t *awq_config(const dq_export_plan *p)
{
    size_t i;
    json_t *rule, *skipped = json_array();
    bool bad = !skipped;
    json_array_foreach(p->rules, i, rule) bad |= json_array_append(skipped, json_object_get(rule, "name"));
    if (bad) return unless(bad, skipped);
    if (json_array_size(skipped) == 0) {
        json_decref(skipped);
        skipped = json_null();
    }
    return json_pack("{s:s, s:i, s:I, s:b, s:s, s:o}", "quant_method", "awq", "bits", 4, "group_size",
                     (json_int_t)p->group, "zero_point", (int)!p->symmetric, "version", "gemm",
                     "modules_to_not_convert", skipped);
}

/* ---- compressed-tensors ---- */

static json_t *ct_group(const dq_export_plan *p, const char *format, int bits, int64_t group, json_t *targets)
{
    const dq_scheme *s = dq_model_scheme(p->model);
    json_t *size = group > 0 ? json_integer((json_int_t)group) : json_null();
    json_t *order = p->act_order ? json_string("group") : json_null();
    json_t *weights = json_pack("{s:i, s:s, s:b, s:s, s:o, s:b, s:o}", "num_bits", bits, "type", "int", "symmetric",
                                (int)p->symmetric, "strategy", group > 0 ? "group" : "channel", "group_size", size,
                                "dynamic", 0, "actorder", order);
    json_t *inputs = json_null();
    if (s && s->a.bits < 16)
        inputs = json_pack("{s:i, s:s, s:b, s:s, s:b}", "num_bits", s->a.bits, "type", "int", "symmetric",
                           (int)s->a.symmetric, "strategy", "token", "dynamic", 1);
    return json_pack("{s:o, s:s, s:o, s:n, s:o}", "targets", targets, "format", format, "input_activations", inputs,
                     "output_activations", "weights", weights);
}

static json_t *r4_config(const dq_arch *a, const dq_hadamard *h)
{
    char target[64];
    snprintf(target, sizeof target, "re:.*%s$", dq_arch_role_name(a, DQ_DOWN_PROJ));
    json_t *online =
        json_pack("{s:[s], s:s, s:b, s:[]}", "targets", target, "location", "input", "inverse", 0, "ignore");
    json_t *fused =
        json_pack("{s:[s], s:s, s:b, s:[]}", "targets", target, "location", "weight_input", "inverse", 1, "ignore");
    json_t *group = json_pack("{s:s, s:I, s:s, s:b, s:b, s:[o, o]}", "type", h->k == 1 ? "hadamard" : "random-hadamard",
                              "head_dim", (json_int_t)h->n, "precision", "torch.float32", "randomize", 0,
                              "requires_grad", 0, "apply", online, fused);
    return json_pack("{s:{s:o}}", "config_groups", "R4", group);
}

static json_t *ct_config(const dq_export_plan *p)
{
    const dq_rotation_set *r = dq_model_rotations(p->model);
    const char *format = p->spec->layout == DQ_LAYOUT_CT_INT ? "int-quantized" : "pack-quantized";
    json_t *groups = json_object(), *ignore = json_pack("[s]", "lm_head"), *rule;
    size_t i;
    char name[32];
    bool bad = !groups || !ignore;
    /* groups are tried in order: the exceptions first */
    json_array_foreach(p->rules, i, rule)
    {
        int bits = (int)json_integer_value(json_object_get(rule, "bits"));
        json_t *target = json_object_get(rule, "name");
        snprintf(name, sizeof name, "group_%zu", i + 1);
        if (bits == 0)
            bad |= json_array_append(ignore, target);
        else
            bad |= json_object_set_new(groups, name,
                                       ct_group(p, format, bits, json_integer_value(json_object_get(rule, "group")),
                                                json_pack("[O]", target)));
    }
    bad |= json_object_set_new(groups, "group_0", ct_group(p, format, p->bits, p->group, json_pack("[s]", "Linear")));
    json_t *o = json_pack("{s:s, s:s, s:s, s:s, s:o, s:n, s:{}, s:o}", "quant_method", "compressed-tensors", "format",
                          format, "version", "0.20.0", "quantization_status", "compressed", "ignore", ignore,
                          "kv_cache_scheme", "sparsity_config", "config_groups", groups);
    if (r && r->r4.n) bad |= json_object_set_new(o, "transform_config", r4_config(dq_model_arch(p->model), &r->r4));
    return unless(bad, o);
}

static json_t *quantization_config(const dq_export_plan *p)
{
    switch (p->spec->layout) {
        case DQ_LAYOUT_CT_PACKED:
        case DQ_LAYOUT_CT_INT: return ct_config(p);
        case DQ_LAYOUT_AWQ_GEMM: return awq_config(p);
        default: return gptq_config(p);
    }
}

/* ---- the tokenizer ---- */

static dq_status copy_file(dq_env *env, const char *from_dir, const char *to_dir, const char *file)
{
    dq_map map = {0};
    char *from = dq_path_join(env, from_dir, file), *to = dq_path_join(env, to_dir, file);
    dq_status status = from && to ? DQ_OK : DQ_E_NOMEM;
    if (status == DQ_OK && dq_path_exists(from)) {
        status = dq_map_open(env, from, &map);
        if (status == DQ_OK) status = dq_file_write(env, to, map.data, map.size);
        dq_map_close(&map);
    }
    dq_free(from);
    dq_free(to);
    return status;
}

/* From a GGUF vocabulary: tokenizer.json where it can be told, else the vocabulary itself, which this library reads. */
static dq_status from_gguf(const dq_export_plan *p, const dq_source *gguf, const char *dir)
{
    bool written;
    DQ_TRY(dq_export_tokenizer_json(p->env, gguf, dir, &written));
    if (written) return DQ_OK;
    dq_log(p->env, DQ_LOG_WARNING,
           "the vocabulary has no known tokenizer.json; " DQ_TOKENIZER_GGUF " is written instead");
    char *path = dq_path_join(p->env, dir, DQ_TOKENIZER_GGUF);
    dq_status status = path ? dq_gguf_write_metadata(gguf, path) : DQ_E_NOMEM;
    dq_free(path);
    return status;
}

static dq_status write_tokenizer(const dq_export_plan *p, const char *dir)
{
    const dq_model *root = dq_model_root(p->model);
    dq_source *vocabulary;
    if (strcmp(root->source->format, "gguf") == 0) return from_gguf(p, root->source, dir);
    if (!root->path || !dq_path_is_dir(root->path)) return DQ_OK;
    char *saved = dq_path_join(p->env, root->path, DQ_TOKENIZER_GGUF);
    if (!saved) return DQ_E_NOMEM;
    dq_status status = DQ_OK;
    bool ours = dq_path_exists(saved);
    if (ours) status = dq_gguf_open(p->env, saved, &vocabulary);
    if (ours && status == DQ_OK) {
        status = from_gguf(p, vocabulary, dir);
        dq_source_free(vocabulary);
    }
    dq_free(saved);
    for (const char *const *file = dq_tokenizer_files; !ours && status == DQ_OK && *file; file++)
        status = copy_file(p->env, root->path, dir, *file);
    return status;
}

static dq_status write_configs(const dq_export_plan *p, const char *dir)
{
    static const char *const dtypes[] = {[DQ_F32] = "float32", [DQ_F16] = "float16", [DQ_BF16] = "bfloat16"};
    bool codes = p->spec->kind == DQ_EXPORT_CODES;
    json_t *quantization = codes ? quantization_config(p) : NULL;
    json_t *config = dq_hf_config_json(dq_model_arch(p->model), dtypes[p->dtype]);
    if (codes) config = unless(json_object_set(config, "quantization_config", quantization) != 0, config);
    dq_status status = dq_export_write_json(p->env, dir, "config.json", config);
    if (status == DQ_OK && codes && p->spec->layout <= DQ_LAYOUT_AWQ_GEMM)
        status = dq_export_write_json(p->env, dir, "quantize_config.json", json_incref(quantization));
    json_decref(quantization);
    return status;
}

dq_status dq_export_files(const dq_export_plan *p, const char *dir)
{
    DQ_TRY(write_configs(p, dir));
    return write_tokenizer(p, dir);
}
