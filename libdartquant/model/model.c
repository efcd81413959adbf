/* Life of a model and what can be asked of it. SPDX-License-Identifier: Apache-2.0 */
#include <string.h>

#include "base/status.h"
#include "model/internal.h"
#include "model/kvquant.h"

static void free_model(dq_model *m)
{
    dq_tensor_free(&m->r1);
    dq_rotation_set_free(m->own_rotations);
    dq_clips_free(m->own_clips);
    dq_kv_tables_free(m->own_tables);
    dq_scales_free(m->own_scales);
    dq_source_free(m->store);
    dq_source_free(m->source);
    dq_free(m->weights);
    dq_free(m->biases);
    dq_free(m->rope_divisor);
    dq_free(m->path);
    dq_model_release(m->base);
    dq_free(m);
}

dq_model *dq_model_retain(dq_model *model)
{
    atomic_fetch_add(&model->references, 1);
    return model;
}

void dq_model_release(dq_model *model)
{
    if (model && atomic_fetch_sub(&model->references, 1) == 1) free_model(model);
}

dq_status dq_model_own_scheme(dq_model *m, const dq_scheme *scheme)
{
    if (scheme->clips && scheme->clips->layers != m->arch.layers)
        return dq_fail(DQ_E_INVALID, "clip ratios of %lld layers for a model of %lld", (long long)scheme->clips->layers,
                       (long long)m->arch.layers);
    DQ_TRY(dq_kv_tables_fit(scheme->tables, scheme, &m->arch));
    DQ_TRY(dq_clips_copy(m->env, scheme->clips, &m->own_clips));
    if (dq_scheme_has_levels(scheme)) DQ_TRY(dq_kv_tables_copy(m->env, scheme->tables, &m->own_tables));
    m->own_scheme = *scheme;
    m->own_scheme.clips = m->own_clips;
    m->own_scheme.tables = m->own_tables;
    m->scheme = &m->own_scheme;
    return DQ_OK;
}

dq_status dq_model_derive(dq_model *base, dq_model_kind kind, dq_model **out)
{
    dq_model *m = dq_calloc(base->env, 1, sizeof *m);
    if (!m) return DQ_E_NOMEM;
    atomic_init(&m->references, 1);
    m->env = base->env;
    m->dev = base->dev;
    m->kind = kind;
    m->arch = base->arch;
    m->fused = base->fused;
    m->layer_norm = base->layer_norm;
    m->centered = base->centered;
    m->scaled = base->scaled;
    m->has_r1 = base->has_r1;
    m->rotations = base->rotations;
    m->scheme = base->scheme;
    m->base = dq_model_retain(base);
    *out = m;
    return DQ_OK;
}

static dq_status read_rope_divisor(dq_model *m)
{
    static const char name[] = "rope_freqs.weight";
    int64_t half = m->arch.head_dim / 2;
    int64_t t;
    DQ_TRY(dq_source_need(m->source, name, &t));
    const dq_tensor_info *info = &m->source->tensors[t];
    if (dq_info_rows(info) != 1 || dq_info_cols(info) != half)
        return dq_error_in_tensor(dq_fail(DQ_E_MISMATCH, "%lld x %lld elements where a head has %lld frequencies",
                                          (long long)dq_info_rows(info), (long long)dq_info_cols(info),
                                          (long long)half),
                                  name);
    m->rope_divisor = dq_alloc(m->env, (size_t)half * sizeof(float));
    if (!m->rope_divisor) return DQ_E_NOMEM;
    DQ_TRY(dq_source_read_rows(m->source, t, 0, 1, m->rope_divisor));
    for (int64_t i = 0; i < half; i++)
        if (!(m->rope_divisor[i] > 0.0f && m->rope_divisor[i] < 1e30f))
            return dq_error_in_tensor(dq_fail(DQ_E_NONFINITE, "divisor %lld of the RoPE frequencies is %g",
                                              (long long)i, (double)m->rope_divisor[i]),
                                      name);
    return DQ_OK;
}

dq_status dq_model_new_root(dq_device *dev, const dq_arch *arch, dq_source *source, bool gguf_names,
                            const dq_scheme *scheme, dq_model **out)
{
    dq_env *env = dq_device_env(dev);
    dq_status status;
    dq_model *m = dq_calloc(env, 1, sizeof *m);
    if (!m) {
        dq_source_free(source);
        return DQ_E_NOMEM;
    }
    atomic_init(&m->references, 1);
    m->env = env;
    m->dev = dev;
    m->kind = DQ_MODEL_ROOT;
    m->arch = *arch;
    m->source = source;
    m->gguf_names = gguf_names;
    m->layer_norm = arch->family->layer_norm;
    if (scheme) {
        DQ_GO(dq_model_own_scheme(m, scheme));
    }
    DQ_GO(dq_arch_check(arch, NULL));
    DQ_GO(dq_root_bind(m));
    if (arch->rope_scaling == DQ_ROPE_TABLE) DQ_GO(read_rope_divisor(m));
    *out = m;
    return DQ_OK;
done:
    if (source->count > 0) dq_error_in_file(status, source->tensors[0].file);
    dq_model_release(m);
    return status;
}

dq_status dq_model_from_source(dq_device *dev, const dq_arch *arch, dq_source *source, bool gguf_names, dq_model **out)
{
    return dq_model_new_root(dev, arch, source, gguf_names, NULL, out);
}

const dq_model *dq_model_root(const dq_model *model)
{
    while (model->base) model = model->base;
    return model;
}

const dq_arch *dq_model_arch(const dq_model *model) { return &model->arch; }
dq_device *dq_model_device(const dq_model *model) { return model->dev; }
bool dq_model_is_fused(const dq_model *model) { return model->fused; }
const dq_rotation_set *dq_model_rotations(const dq_model *model) { return model->rotations; }
const dq_scheme *dq_model_scheme(const dq_model *model) { return model->scheme; }
dq_source *dq_model_root_source(const dq_model *model) { return dq_model_root(model)->source; }

dq_source *dq_model_codes_source(const dq_model *model)
{
    for (; model; model = model->base) {
        if (model->store) return model->store;
        if (model->kind == DQ_MODEL_ROOT && model->scheme) return model->source;
    }
    return NULL;
}

bool dq_model_has_codes(const dq_model *model, int64_t layer, dq_role role)
{
    char name[DQ_TENSOR_NAME];
    dq_source *store = dq_model_codes_source(model);
    if (!store || role > DQ_DOWN_PROJ) return false;
    dq_arch_module_name(&model->arch, role, layer, name, sizeof name);
    return dq_codes_exist(store, name);
}
