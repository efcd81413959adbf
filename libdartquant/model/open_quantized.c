/* Hugging Face folders, with the quantization of other tools where their JSON files say so.
 * SPDX-License-Identifier: Apache-2.0 */
#include <stdio.h>
#include <string.h>

#include "base/status.h"
#include "formats/packed_source.h"
#include "io/file.h"
#include "io/formats.h"
#include "model/manifest.h"
#include "model/transforms.h"

enum { CONFIG_LIMIT = 1 << 24 };

/* ---- which configuration ---- */

/* *out = NULL when the file is not there. */
static dq_status load_beside(dq_env *env, const char *dir, const char *file, char **path, json_t **out)
{
    char *full = dq_path_join(env, dir, file);
    *out = NULL;
    if (!full) return DQ_E_NOMEM;
    dq_status status = dq_path_exists(full) ? dq_json_load(env, full, CONFIG_LIMIT, out) : DQ_OK;
    if (status == DQ_OK && *out)
        *path = full;
    else
        dq_free(full);
    return status;
}

typedef struct found {
    json_t *json;          /* NULL: nothing says that the checkpoint is quantized */
    char *path;            /* of the file it stands in; NULL: config.json */
    const char *quantized; /* a second file of tensors */
} found;

static dq_status find_diffulex(dq_env *env, const char *dir, found *f)
{
    static const char *const names[2][2] = {{"quantization_metadata_gptq.json", "model_quantized_gptq.safetensors"},
                                            {"quantization_metadata_awq.json", "model_quantized_awq.safetensors"}};
    for (int i = 0; i < 2; i++) {
        json_t *json;
        char *path = NULL;
        DQ_TRY(load_beside(env, dir, names[i][0], &path, &json));
        if (!json) continue;
        if (f->json) {
            json_decref(json);
            dq_free(path);
            return dq_error_in_file(
                dq_fail(DQ_E_MISMATCH, "the folder holds %s and %s; one of them must go", names[0][0], names[1][0]),
                dir);
        }
        *f = (found){json, path, names[i][1]};
    }
    return DQ_OK;
}

static dq_status find_config(dq_env *env, const json_t *config, const char *dir, found *f)
{
    static const char *const files[] = {"quantize_config.json", "quant_config.json"};
    json_t *inside = json_object_get(config, "quantization_config");
    if (!inside) inside = json_object_get(config, "compression_config"); /* early compressed-tensors */
    if (inside && !json_is_null(inside)) {
        f->json = json_incref(inside);
        return DQ_OK;
    }
    for (int i = 0; dir && !f->json && i < 2; i++) DQ_TRY(load_beside(env, dir, files[i], &f->path, &f->json));
    return dir && !f->json ? find_diffulex(env, dir, f) : DQ_OK;
}

/* ---- what follows from it ---- */

/* A head that was codes has products of codes and scales: no 16-bit type holds them. */
static dq_dtype table_dtype(const dq_arch *arch, const dq_source *source)
{
    char name[DQ_TENSOR_NAME];
    dq_arch_tensor_name(arch, DQ_HEAD, 0, name, sizeof name);
    int64_t t = dq_source_find(source, name);
    if (t >= 0 && source->tensors[t].dtype == DQ_BLOCK) return DQ_F32;
    dq_arch_tensor_name(arch, DQ_EMBED, 0, name, sizeof name);
    t = dq_source_find(source, name);
    dq_dtype dtype = t >= 0 ? source->tensors[t].dtype : DQ_F32;
    return dtype == DQ_F16 || dtype == DQ_BF16 ? dtype : DQ_F32;
}

/* The scheme of the root; false when neither codes nor quantized inputs are there. */
static bool scheme_of(const dq_arch *arch, const dq_source *source, const dq_quant_config *config, dq_scheme *out)
{
    const dq_act_spec off = {.bits = 16, .group = -1, .symmetric = true, .clip = 1.0};
    dq_layout l;
    bool codes = dq_packed_source_summary(source, &l);
    dq_scheme s = {.a = config->input, .k = off, .v = off};
    s.w = (dq_weight_spec){.bits = 16, .method = DQ_WEIGHT_RTN, .group = -1, .symmetric = true, .percdamp = 0.01};
    if (codes) {
        s.w.bits = l.bits;
        s.w.method = config->method == DQ_METHOD_GPTQ ? DQ_WEIGHT_GPTQ : DQ_WEIGHT_RTN;
        s.w.group = l.group;
        s.w.symmetric = l.symmetric;
        s.w.act_order = config->act_order;
        s.w.vocab_dtype = table_dtype(arch, source);
    }
    if (s.a.bits == 16) s.a = off;
    *out = s;
    return codes || s.a.bits < 16;
}

static dq_status open_diffulex(dq_env *env, const char *dir, const char *file, const dq_source *base, dq_source **out)
{
    char *path = dq_path_join(env, dir, file);
    if (!path) return DQ_E_NOMEM;
    *out = NULL;
    dq_status status = DQ_OK;
    bool alone = base->count > 0 && strcmp(base->tensors[0].file, path) == 0;
    if (!alone) status = dq_safetensors_open(env, path, out);
    dq_free(path);
    return status;
}

/* Takes over `source`. */
static dq_status open_quantized(dq_device *dev, const dq_arch *arch, const found *f, const char *dir,
                                const char *config_path, dq_source *source, dq_model **out)
{
    dq_env *env = dq_device_env(dev);
    dq_quant_config *config = NULL;
    dq_source *second = NULL;
    dq_rotation_set *set = NULL;
    dq_model *model = NULL;
    dq_scheme scheme;
    dq_status status;
    DQ_GO(dq_quant_config_new(env, f->json, f->path ? f->path : config_path, &config));
    if (f->quantized) DQ_GO(open_diffulex(env, dir, f->quantized, source, &second));
    dq_source *base = source, *view;
    source = NULL;
    DQ_GO(dq_packed_source_open(base, second, config, &view));
    source = view;
    DQ_GO(dq_error_in_file(dq_transforms_read(view, config, arch, &set), config->path));
    bool quantized = scheme_of(arch, view, config, &scheme);
    source = NULL;
    DQ_GO(dq_model_new_root(dev, arch, view, false, quantized ? &scheme : NULL, &model));
    model->rotations = model->own_rotations = set;
    set = NULL;
    *out = model;
done:
    dq_quant_config_free(config);
    dq_rotation_set_free(set);
    dq_source_free(source);
    return status;
}

/* Codes without a configuration that says what they mean. */
static dq_status check_plain(const dq_source *source)
{
    static const char *const marks[] = {".qweight", ".weight_packed"};
    for (int64_t t = 0; t < source->count; t++) {
        const dq_tensor_info *info = &source->tensors[t];
        size_t n = strlen(info->name);
        for (int i = 0; i < 2; i++)
            if (n > strlen(marks[i]) && strcmp(info->name + n - strlen(marks[i]), marks[i]) == 0)
                return dq_error_in_tensor(
                    dq_error_in_file(dq_fail(DQ_E_MISMATCH, "a quantized linear, but no quantization_config, "
                                                            "quantize_config.json or quant_config.json says how"),
                                     info->file),
                    info->name);
    }
    return DQ_OK;
}

dq_status dq_model_from_hf(dq_device *dev, const json_t *config, const char *dir, const char *config_path,
                           dq_source *source, dq_model **out)
{
    dq_arch arch;
    found f = {0};
    dq_status status;
    DQ_GO(dq_arch_from_hf_json(config, config_path, &arch));
    DQ_GO(find_config(dq_device_env(dev), config, dir, &f));
    if (!f.json) DQ_GO(check_plain(source));
    dq_source *taken = source;
    source = NULL;
    status = f.json ? open_quantized(dev, &arch, &f, dir, config_path, taken, out)
                    : dq_model_from_source(dev, &arch, taken, false, out);
done:
    dq_source_free(source);
    json_decref(f.json);
    dq_free(f.path);
    return status;
}
