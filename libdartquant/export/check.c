/* What a format cannot hold, found before any work. SPDX-License-Identifier: Apache-2.0 */
#include <stdio.h>
#include <string.h>

#include "base/half.h"
#include "base/status.h"
#include "export/parts.h"
#include "model/transforms.h"

static bool is_ct(const dq_export_spec *s)
{
    return s->kind == DQ_EXPORT_CODES && (s->layout == DQ_LAYOUT_CT_PACKED || s->layout == DQ_LAYOUT_CT_INT);
}

static dq_status check_rotations(const dq_export_plan *p)
{
    const dq_rotation_set *r = dq_model_rotations(p->model);
    if (!r) return DQ_OK;
    if (r->r2_mode == DQ_R2_ONLINE)
        return dq_fail(DQ_E_UNSUPPORTED,
                       "R2 runs online (use_r2 online), which %s cannot hold; rotate with use_r2 "
                       "offline, or keep the library's own format",
                       p->spec->name);
    if (r->r4.n && !is_ct(p->spec))
        return dq_fail(DQ_E_UNSUPPORTED,
                       "R4 runs online, which %s cannot hold; rotate with use_r4 false, or use "
                       "compressed-tensors or the library's own format",
                       p->spec->name);
    if (r->r4.n && r->r4.k > 1 && r->r4.n > DQ_TRANSFORM_MATRIX_LIMIT)
        return dq_fail(DQ_E_UNSUPPORTED, "R4 of order %lld would have to be stored as a matrix; %d is the largest",
                       (long long)r->r4.n, DQ_TRANSFORM_MATRIX_LIMIT);
    return DQ_OK;
}

static dq_status check_activations(const dq_export_plan *p)
{
    const dq_scheme *s = dq_model_scheme(p->model);
    if (!s) return DQ_OK;
    if (s->k.bits < 16 || s->v.bits < 16)
        return dq_fail(DQ_E_UNSUPPORTED,
                       "keys or values are quantized (%d and %d bits), which %s cannot hold; quantize "
                       "with k_bits 16 and v_bits 16, or keep the library's own format",
                       s->k.bits, s->v.bits, p->spec->name);
    if (s->a.bits == 16) return DQ_OK;
    if (is_ct(p->spec) && s->a.group == -1 && s->a.clip == 1.0 && s->a.bits <= 8) return DQ_OK;
    return dq_fail(DQ_E_UNSUPPORTED,
                   "activations are quantized (%d bits), which %s cannot hold; quantize with a_bits "
                   "16, or use compressed-tensors (per token, a_clip_ratio 1)",
                   s->a.bits, p->spec->name);
}

static dq_status check_gguf_arch(const dq_arch *a)
{
    const char *name = a->family->gguf_archs[0];
    if (!name)
        return dq_fail(DQ_E_UNSUPPORTED,
                       "GGUF has no architecture for %s models; use hf, gptq, awq or compressed-tensors",
                       a->family->name);
    if (a->window > 0)
        return dq_fail(DQ_E_UNSUPPORTED, "a sliding window of %lld tokens cannot be said in a %s GGUF; use hf",
                       (long long)a->window, name);
    if (a->activation != DQ_ACT_SILU)
        return dq_fail(DQ_E_UNSUPPORTED, "a %s GGUF means SiLU, this model has another activation; use hf", name);
    if (!a->family->gguf_permuted_qk && (a->rope_scaling == DQ_ROPE_LLAMA3 || a->rope_scaling == DQ_ROPE_TABLE))
        return dq_fail(DQ_E_UNSUPPORTED,
                       "llama.cpp reads divisors of the RoPE frequencies for llama alone, not for %s; use hf", name);
    return DQ_OK;
}

/* Families with layer norms. */
static dq_status check_norms(const dq_export_plan *p)
{
    const dq_arch *a = dq_model_arch(p->model);
    if (!a->family->layer_norm) return DQ_OK;
    if (p->spec->kind == DQ_EXPORT_DIFFULEX)
        return dq_fail(DQ_E_UNSUPPORTED, "Diffulex runs no %s models; use hf, gptq, awq or compressed-tensors",
                       a->family->name);
    /* A fused model is one of RMS norms over a stream without a mean. Its class takes the mean of what R1 turned, or of what
     * rounding the weights that write the stream left. */
    const dq_scheme *scheme = dq_model_scheme(p->model);
    bool exact = !p->model->has_r1 && (!scheme || scheme->w.bits >= 16);
    if (p->model->layer_norm || (p->spec->kind == DQ_EXPORT_HF && exact)) return DQ_OK;
    return dq_fail(
        DQ_E_UNSUPPORTED,
        "fusing made RMS norms of %s's layer norms, which %s cannot say of an %s model once %s; use no_rotation "
        "(nothing is fused then), or keep the library's own format",
        a->family->hf_class, p->spec->name, a->family->name, p->model->has_r1 ? "R1 turned it" : "it is quantized");
}

static dq_status check_arch(const dq_export_plan *p)
{
    const dq_arch *a = dq_model_arch(p->model);
    if (a->rope_scaling == DQ_ROPE_TABLE && p->spec->kind != DQ_EXPORT_GGUF)
        return dq_fail(DQ_E_UNSUPPORTED,
                       "the RoPE frequencies of this model are a table, which config.json cannot hold; "
                       "gguf and the library's own format can");
    if (p->spec->kind == DQ_EXPORT_GGUF) DQ_TRY(check_gguf_arch(a));
    return check_norms(p);
}

dq_layout dq_export_layout(const dq_export_plan *p, const dq_host_codes *c)
{
    return (dq_layout){
        .kind = p->spec->layout, .bits = c->bits, .group = c->groups > 1 ? c->group : -1, .symmetric = p->symmetric};
}

dq_status dq_export_read_codes(const dq_export_plan *p, int64_t layer, dq_role role, dq_host_codes *out)
{
    dq_codes codes;
    char name[DQ_TENSOR_NAME];
    DQ_TRY(dq_model_read_codes(p->model, layer, role, &codes));
    dq_status status = dq_codes_to_host(p->env, &codes, out);
    dq_codes_free(&codes);
    if (status != DQ_OK) return status;
    dq_arch_module_name(dq_model_arch(p->model), role, layer, name, sizeof name);
    status = dq_error_in_tensor(dq_round_scales(out, p->scale_dtype), name);
    if (status != DQ_OK) dq_host_codes_free(out);
    return status;
}

/* Scales keep the type that holds them exactly, where one does: the source's of a checkpoint, else F16. */
static dq_dtype scale_type(const dq_host_codes *c)
{
    static const dq_dtype types[] = {DQ_F16, DQ_BF16};
    for (int t = 0; t < 2; t++) {
        int64_t i = 0, count = c->out * c->groups;
        for (; i < count; i++) {
            float exact = c->scale[i], r[1];
            uint16_t half[1];
            dq_narrow(types[t], &exact, 1, half);
            r[0] = types[t] == DQ_F16 ? dq_f16_to_f32(half[0]) : dq_bf16_to_f32(half[0]);
            if (r[0] != exact) break;
        }
        if (i == count) return types[t];
    }
    return DQ_F16;
}

static dq_status add_rule(dq_export_plan *p, const char *name, int bits, int64_t group)
{
    json_t *rule = json_pack("{s:s, s:i, s:I}", "name", name, "bits", bits, "group", (json_int_t)group);
    return rule && json_array_append_new(p->rules, rule) == 0 ? DQ_OK : dq_fail(DQ_E_NOMEM, "out of memory");
}

static dq_status check_gguf_codes(const dq_export_plan *p, const dq_host_codes *c)
{
    const char *why, *fits = dq_gguf_block_for(c);
    if (dq_gguf_block_holds(p->spec->block, c, &why)) return DQ_OK;
    return dq_fail(
        DQ_E_UNSUPPORTED,
        "codes of %d bits (%lld columns in groups of %lld, %s) do not fit gguf:%s: %s; %s%sgguf:f16 holds the "
        "values",
        c->bits, (long long)c->in, (long long)c->group, c->symmetric ? "symmetric" : "asymmetric",
        dq_gguf_block_name(p->spec->block), why, fits ? fits : "", fits ? " holds the codes, " : "");
}

/* One linear: against the format, and against the first one. */
static dq_status check_linear(dq_export_plan *p, int64_t layer, dq_role role, bool *first)
{
    char name[DQ_TENSOR_NAME];
    dq_codes codes;
    dq_host_codes c;
    dq_arch_module_name(dq_model_arch(p->model), role, layer, name, sizeof name);
    dq_status status = dq_model_read_codes(p->model, layer, role, &codes);
    if (status == DQ_E_STATE) return p->spec->kind == DQ_EXPORT_CODES ? add_rule(p, name, 0, 0) : DQ_OK;
    DQ_TRY(status);
    status = dq_codes_to_host(p->env, &codes, &c);
    dq_codes_free(&codes);
    DQ_TRY(status);
    dq_layout l = {.kind = p->spec->layout};
    /* one group says nothing where the model's group is at least as wide */
    int64_t asked = dq_model_scheme(p->model)->w.group;
    int64_t group = c.groups > 1 ? c.group : asked >= c.in ? asked : -1;
    if (*first) {
        *first = false;
        p->bits = c.bits;
        p->group = group;
        p->scale_dtype = p->spec->kind == DQ_EXPORT_GGUF || l.kind == DQ_LAYOUT_AWQ_GEMM ? DQ_F16 : scale_type(&c);
    }
    if (!c.symmetric) p->symmetric = false;
    if (c.group_index) p->act_order = true;
    if (p->spec->kind == DQ_EXPORT_GGUF) {
        status = check_gguf_codes(p, &c);
    } else {
        status = dq_layout_check(&l, &c);
        if (status == DQ_OK && (c.bits != p->bits || group != p->group)) {
            status = add_rule(p, name, c.bits, group);
            if (status == DQ_OK && l.kind == DQ_LAYOUT_AWQ_GEMM)
                status = dq_fail(DQ_E_UNSUPPORTED,
                                 "AWQ has one group size for all linears (%lld, this one has %lld); "
                                 "gptq and compressed-tensors can differ",
                                 (long long)p->group, (long long)group);
        }
    }
    if (status == DQ_OK) status = dq_round_scales(&c, p->scale_dtype);
    dq_host_codes_free(&c);
    return dq_error_in_tensor(status, name);
}

static dq_status check_linears(dq_export_plan *p)
{
    const dq_arch *a = dq_model_arch(p->model);
    bool first = true;
    for (int64_t layer = 0; layer < a->layers; layer++)
        for (int n = 0; n < dq_arch_linears(a); n++) DQ_TRY(check_linear(p, layer, dq_arch_linear(a, n), &first));
    if (p->spec->kind != DQ_EXPORT_CODES || !first) return DQ_OK;
    return dq_fail(DQ_E_STATE,
                   "%s holds integer codes and this model has none: quantize it first, or export as hf or "
                   "gguf",
                   p->spec->name);
}

static dq_dtype stored_dtype(const dq_model *m)
{
    const dq_source *s = dq_model_root_source((dq_model *)(uintptr_t)m);
    int64_t t = dq_root_weight(dq_model_root(m), 0, DQ_EMBED);
    if (t < 0 || s->tensors[t].dtype == DQ_F32) return DQ_F32;
    return s->tensors[t].dtype == DQ_BF16 ? DQ_BF16 : DQ_F16;
}

dq_status dq_export_check(dq_model *model, const dq_export_spec *spec, dq_export_plan *p)
{
    const dq_scheme *scheme = dq_model_scheme(model);
    bool codes = scheme && scheme->w.bits < 16;
    memset(p, 0, sizeof *p);
    p->model = model;
    p->spec = spec;
    p->env = dq_device_env(dq_model_device(model));
    p->symmetric = true;
    p->rules = json_array();
    if (!p->rules) return dq_fail(DQ_E_NOMEM, "out of memory");
    DQ_TRY(check_arch(p));
    DQ_TRY(check_rotations(p));
    DQ_TRY(check_activations(p));
    p->scale_dtype = DQ_F16;
    p->dtype = codes ? scheme->w.vocab_dtype : stored_dtype(model);
    if (spec->kind == DQ_EXPORT_HF && spec->dtype != DQ_DTYPE_OTHER) p->dtype = spec->dtype;
    if (spec->kind == DQ_EXPORT_CODES ||
        (spec->kind == DQ_EXPORT_GGUF && codes && dq_gguf_block_is_quantized(spec->block)))
        return check_linears(p);
    return DQ_OK;
}

void dq_export_plan_clear(dq_export_plan *p) { json_decref(p->rules); }
