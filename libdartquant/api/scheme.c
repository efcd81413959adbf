/* From options to quantization schemes. SPDX-License-Identifier: Apache-2.0 */
#include "api/scheme.h"

#include <stdio.h>

#include "api/config.h"
#include "base/dtype.h"
#include "base/kv_tables.h"
#include "base/status.h"
#include "model/clips_json.h"
#include "model/kvquant.h"

static dq_act_spec act_spec(const dq_config *config, char prefix)
{
    char bits[16], group[24], asym[16], clip[24];
    snprintf(bits, sizeof bits, "%c_bits", prefix);
    snprintf(group, sizeof group, "%c_groupsize", prefix);
    snprintf(asym, sizeof asym, "%c_asym", prefix);
    snprintf(clip, sizeof clip, "%c_clip_ratio", prefix);
    double ratio = dq_config_float(config, clip);
    return (dq_act_spec){
        .bits = (int)dq_config_int(config, bits),
        .group = dq_config_int(config, group),
        .symmetric = !dq_config_int(config, asym),
        .clip = ratio > 0 ? ratio : 1.0, /* auto: until it is found */
    };
}

static dq_status check_group(const char *option, int64_t group, const char *what, int64_t columns)
{
    if (group == -1 || (group > 0 && columns % group == 0)) return DQ_OK;
    return dq_fail(DQ_E_INVALID, "%s = %lld does not divide the %lld columns of %s", option, (long long)group,
                   (long long)columns, what);
}

static dq_status check_activations(const dq_scheme *s, const dq_arch *arch)
{
    if (s->a.bits < 16) {
        DQ_TRY(check_group("a_groupsize", s->a.group, "the hidden state", arch->hidden));
        DQ_TRY(check_group("a_groupsize", s->a.group, "the o_proj input", arch->heads * arch->head_dim));
        DQ_TRY(check_group("a_groupsize", s->a.group, "the down_proj input", arch->intermediate));
    }
    if (s->v.bits < 16) DQ_TRY(check_group("v_groupsize", s->v.group, "the values", arch->kv_heads * arch->head_dim));
    if (s->k.bits < 16 && s->k.group != -1 && s->k.group != arch->head_dim)
        return dq_fail(DQ_E_INVALID, "k_groupsize = %lld: keys share a scale per token (-1) or per head (0 or %lld)",
                       (long long)s->k.group, (long long)arch->head_dim);
    return DQ_OK;
}

/* In the order of the option's choices. */
static dq_dtype vocab_dtype(int64_t choice)
{
    static const dq_dtype dtypes[] = {DQ_F16, DQ_BF16, DQ_F32};
    return dtypes[choice];
}

dq_status dq_weight_spec_from_config(const dq_config *config, dq_weight_spec *out)
{
    dq_weight_spec w = {
        .bits = (int)dq_config_int(config, "w_bits"),
        .method = dq_config_int(config, "w_rtn") ? DQ_WEIGHT_RTN : DQ_WEIGHT_GPTQ,
        .awq = dq_config_int(config, "w_awq"),
        .group = dq_config_int(config, "w_groupsize"),
        .symmetric = !dq_config_int(config, "w_asym"),
        .clip_search = dq_config_int(config, "w_clip"),
        .act_order = dq_config_int(config, "act_order"),
        .static_groups = dq_config_int(config, "static_groups"),
        .percdamp = dq_config_float(config, "percdamp"),
        .vocab_dtype = vocab_dtype(dq_config_int(config, "vocab_dtype")),
    };
    if (w.bits > 8 && w.bits != 16)
        return dq_fail(DQ_E_INVALID, "w_bits = %d: weights have 2 to 8 bits, or 16 for none", w.bits);
    if (w.group == 0) return dq_fail(DQ_E_INVALID, "w_groupsize = 0: give a number of columns, or -1 for the row");
    *out = w;
    return DQ_OK;
}

/* Grids have no meaning then: reports show them plain. */
static void kvquant_spec(const dq_config *config, dq_scheme *s)
{
    const dq_act_spec plain = {.bits = 16, .group = -1, .clip = 1.0};
    int k = s->k.bits, v = s->v.bits;
    s->kvquant = (dq_kvquant_spec){.on = true,
                                   .levels = (dq_kv_levels)dq_config_int(config, "kv_levels"), /* in that order */
                                   .outliers = dq_config_float(config, "kv_outliers"),
                                   .sink = (int32_t)dq_config_int(config, "kv_sink"),
                                   .qnorm = dq_config_int(config, "kv_qnorm")};
    s->k = s->v = plain;
    s->k.bits = k;
    s->v.bits = v;
}

dq_status dq_scheme_from_config(const dq_config *config, const dq_arch *arch, dq_scheme *out)
{
    dq_scheme s = {
        .a = act_spec(config, 'a'),
        .k = act_spec(config, 'k'),
        .v = act_spec(config, 'v'),
    };
    if (s.k.group == 0) s.k.group = arch->head_dim;
    if (s.v.group == 0) s.v.group = arch->head_dim;
    if (dq_config_int(config, "kv_method")) {
        kvquant_spec(config, &s);
        DQ_TRY(dq_kvquant_check(&s));
    }
    DQ_TRY(dq_weight_spec_from_config(config, &s.w));
    DQ_TRY(check_activations(&s, arch));
    *out = s;
    return DQ_OK;
}

unsigned dq_scheme_auto_sites(const dq_config *config, const dq_scheme *s)
{
    unsigned sites = 0;
    bool a = s->a.bits < 16 && dq_config_float(config, "a_clip_ratio") == 0;
    if (a) sites |= 1u << DQ_CLIP_QKV | 1u << DQ_CLIP_O | 1u << DQ_CLIP_GATE_UP | 1u << DQ_CLIP_DOWN;
    if (s->kvquant.on) return sites;
    if (s->k.bits < 16 && dq_config_float(config, "k_clip_ratio") == 0) sites |= 1u << DQ_CLIP_KEYS;
    if (s->v.bits < 16 && dq_config_float(config, "v_clip_ratio") == 0) sites |= 1u << DQ_CLIP_VALUES;
    return sites;
}

void dq_scheme_warn_idle(dq_env *env, const dq_config *config, const dq_scheme *s)
{
    static const char *const names[] = {"kv_levels", "kv_outliers", "kv_sink", "kv_qnorm"};
    if (s->kvquant.on && !dq_scheme_has_levels(s))
        dq_log(env, DQ_LOG_WARNING,
               "kv_method kvquant changes nothing: k_bits and v_bits are 16, so keys and values stay as they are");
    for (size_t i = 0; !s->kvquant.on && i < sizeof names / sizeof *names; i++) {
        int32_t given = 0;
        if (dq_config_is_set(config, names[i], &given) == DQ_OK && given)
            dq_log(env, DQ_LOG_WARNING, "%s changes nothing without kv_method kvquant", names[i]);
    }
}

/* Also what the keys and values take on average, and which tables they have: null before they are found. */
static json_t *kvquant_json(const dq_scheme *s)
{
    char hash[17];
    double k = dq_kv_average_bits(&s->kvquant, s->k.bits), v = dq_kv_average_bits(&s->kvquant, s->v.bits);
    json_t *o = dq_kvquant_to_json(&s->kvquant);
    if (s->tables) snprintf(hash, sizeof hash, "%016llx", (unsigned long long)dq_kv_tables_hash(s->tables));
    if (o &&
        json_object_update_new(o, json_pack("{s:f, s:f, s:f, s:o}", "key_bits", k, "value_bits", v, "average_bits",
                                            0.5 * (k + v), "tables", s->tables ? json_string(hash) : json_null())) == 0)
        return o;
    json_decref(o);
    return NULL;
}

static json_t *act_json(const dq_act_spec *a)
{
    return json_pack("{s:i, s:I, s:b, s:f}", "bits", a->bits, "groupsize", (json_int_t)a->group, "symmetric",
                     a->symmetric, "clip_ratio", a->clip);
}

json_t *dq_scheme_json(const dq_scheme *s)
{
    json_t *o = json_pack("{s:{s:i, s:s, s:b, s:I, s:b, s:b, s:b, s:b, s:f, s:s}, s:o, s:o, s:o}", "w", "bits",
                          s->w.bits, "method",
                          s->w.bits == 16                ? "none"
                          : s->w.method == DQ_WEIGHT_RTN ? "rtn"
                                                         : "gptq",
                          "awq", s->w.bits < 16 && s->w.awq, "groupsize", (json_int_t)s->w.group, "symmetric",
                          s->w.symmetric, "clip_search", s->w.clip_search, "act_order", s->w.act_order, "static_groups",
                          s->w.static_groups, "percdamp", s->w.percdamp, "vocab_dtype", dq_dtype_name(s->w.vocab_dtype),
                          "a", act_json(&s->a), "k", act_json(&s->k), "v", act_json(&s->v));
    if (o && s->clips) json_object_set_new(o, "clip_ratios", dq_clips_to_json(s->clips));
    if (o && dq_scheme_has_levels(s)) json_object_set_new(o, "kvquant", kvquant_json(s));
    return o;
}
