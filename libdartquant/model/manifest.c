/* SPDX-License-Identifier: Apache-2.0 */
#include "model/manifest.h"

#include "model/clips_json.h"
#include "model/kvquant.h"

#include <string.h>

#include "base/dtype.h"
#include "base/status.h"

static const char *const rope_names[] = {"default", "linear", "llama3", "table"};
static const char *const activation_names[] = {"silu", "gelu", "gelu_pytorch_tanh", "relu"};
static const char *const r2_names[] = {"none", "offline", "online"};
static const char *const online_names[DQ_ONLINE_TRANSFORMS] = {"r2_heads", "r2_head_dim", "r3", "r4"};

static dq_status bad(const char *path, const char *key, const char *value)
{
    return dq_error_in_file(dq_fail(DQ_E_FORMAT, "\"%s\": \"%s\" is not known", key, value), path);
}

/* Index of a string member among `names`. */
static dq_status read_choice(const json_t *object, const char *key, const char *const *names, int count,
                             const char *path, int *out)
{
    const char *value;
    DQ_TRY(dq_json_string(object, key, true, path, &value));
    for (int i = 0; i < count; i++) {
        if (strcmp(value, names[i]) != 0) continue;
        *out = i;
        return DQ_OK;
    }
    return bad(path, key, value);
}

static dq_status need_object(const json_t *object, const char *key, const char *path)
{
    if (json_is_object(object)) return DQ_OK;
    return dq_error_in_file(dq_fail(DQ_E_FORMAT, "\"%s\" is no object", key), path);
}

/* ---- architecture ---- */

json_t *dq_arch_to_json(const dq_arch *a)
{
    return json_pack("{s:s, s:I, s:I, s:I, s:I, s:I, s:I, s:I, s:I, s:f, s:s, s:f, s:s, s:f, s:f, s:f, s:f, s:I, s:b, "
                     "s:b, s:b, s:i, s:i}",
                     "architecture", a->family->name, "hidden_size", (json_int_t)a->hidden, "intermediate_size",
                     (json_int_t)a->intermediate, "num_hidden_layers", (json_int_t)a->layers, "num_attention_heads",
                     (json_int_t)a->heads, "num_key_value_heads", (json_int_t)a->kv_heads, "head_dim",
                     (json_int_t)a->head_dim, "vocab_size", (json_int_t)a->vocab, "max_position_embeddings",
                     (json_int_t)a->max_positions, "rms_norm_eps", a->norm_eps, "hidden_act",
                     activation_names[a->activation], "rope_theta", a->rope_theta, "rope_type",
                     rope_names[a->rope_scaling], "rope_factor", a->rope_factor, "rope_low_freq_factor",
                     a->rope_low_freq, "rope_high_freq_factor", a->rope_high_freq, "rope_original_positions",
                     a->rope_original_positions, "sliding_window", (json_int_t)a->window, "tie_word_embeddings",
                     (int)a->tied, "attention_bias", (int)a->attention_bias, "mlp_bias", (int)a->mlp_bias,
                     "bos_token_id", (int)a->bos_id, "eos_token_id", (int)a->eos_id);
}

static dq_status read_arch_rope(const json_t *o, const char *path, dq_arch *a)
{
    int choice = 0;
    DQ_TRY(dq_json_double(o, "rope_theta", true, path, &a->rope_theta));
    DQ_TRY(read_choice(o, "rope_type", rope_names, 4, path, &choice));
    a->rope_scaling = (dq_rope_scaling)choice;
    DQ_TRY(dq_json_double(o, "rope_factor", true, path, &a->rope_factor));
    DQ_TRY(dq_json_double(o, "rope_low_freq_factor", true, path, &a->rope_low_freq));
    DQ_TRY(dq_json_double(o, "rope_high_freq_factor", true, path, &a->rope_high_freq));
    return dq_json_double(o, "rope_original_positions", true, path, &a->rope_original_positions);
}

dq_status dq_arch_from_json(const json_t *o, const char *path, dq_arch *out)
{
    dq_arch a;
    const char *family;
    int64_t bos = -1, eos = -1;
    memset(&a, 0, sizeof a);
    DQ_TRY(need_object(o, "architecture", path));
    DQ_TRY(dq_json_string(o, "architecture", true, path, &family));
    a.family = dq_family_by_hf(family);
    if (!a.family) return bad(path, "architecture", family);
    DQ_TRY(dq_json_int(o, "hidden_size", 1, 1 << 20, true, path, &a.hidden));
    DQ_TRY(dq_json_int(o, "intermediate_size", 1, 1 << 24, true, path, &a.intermediate));
    DQ_TRY(dq_json_int(o, "num_hidden_layers", 1, 1 << 16, true, path, &a.layers));
    DQ_TRY(dq_json_int(o, "num_attention_heads", 1, 1 << 16, true, path, &a.heads));
    DQ_TRY(dq_json_int(o, "num_key_value_heads", 1, 1 << 16, true, path, &a.kv_heads));
    DQ_TRY(dq_json_int(o, "head_dim", 1, 1 << 14, true, path, &a.head_dim));
    DQ_TRY(dq_json_int(o, "vocab_size", 1, 1 << 28, true, path, &a.vocab));
    DQ_TRY(dq_json_int(o, "max_position_embeddings", 0, INT64_C(1) << 40, true, path, &a.max_positions));
    DQ_TRY(dq_json_double(o, "rms_norm_eps", true, path, &a.norm_eps));
    DQ_TRY(read_choice(o, "hidden_act", activation_names, 4, path, &a.activation));
    DQ_TRY(read_arch_rope(o, path, &a));
    DQ_TRY(dq_json_int(o, "sliding_window", 0, INT32_MAX, true, path, &a.window));
    DQ_TRY(dq_json_bool(o, "tie_word_embeddings", true, path, &a.tied));
    DQ_TRY(dq_json_bool(o, "attention_bias", true, path, &a.attention_bias));
    DQ_TRY(dq_json_bool(o, "mlp_bias", true, path, &a.mlp_bias));
    DQ_TRY(dq_json_int(o, "bos_token_id", -1, INT32_MAX, true, path, &bos));
    DQ_TRY(dq_json_int(o, "eos_token_id", -1, INT32_MAX, true, path, &eos));
    a.bos_id = (int32_t)bos;
    a.eos_id = (int32_t)eos;
    DQ_TRY(dq_arch_check(&a, path));
    *out = a;
    return DQ_OK;
}

/* ---- scheme ---- */

static json_t *act_to_json(const dq_act_spec *s)
{
    return json_pack("{s:i, s:I, s:b, s:f}", "bits", s->bits, "groupsize", (json_int_t)s->group, "symmetric",
                     (int)s->symmetric, "clip_ratio", s->clip);
}

json_t *dq_scheme_to_json(const dq_scheme *s)
{
    const dq_weight_spec *w = &s->w;
    json_t *weights = json_pack(
        "{s:i, s:s, s:b, s:I, s:b, s:b, s:b, s:b, s:f, s:s}", "bits", w->bits, "method",
        w->method == DQ_WEIGHT_GPTQ ? "gptq" : "rtn", "awq", (int)w->awq, "groupsize", (json_int_t)w->group,
        "symmetric", (int)w->symmetric, "clip_search", (int)w->clip_search, "act_order", (int)w->act_order,
        "static_groups", (int)w->static_groups, "percdamp", w->percdamp, "vocab_dtype", dq_dtype_name(w->vocab_dtype));
    json_t *o = json_pack("{s:o, s:o, s:o, s:o}", "weights", weights, "activations", act_to_json(&s->a), "keys",
                          act_to_json(&s->k), "values", act_to_json(&s->v));
    if (o && s->clips) json_object_set_new(o, "clip_ratios", dq_clips_to_json(s->clips));
    if (o && dq_scheme_has_levels(s)) json_object_set_new(o, "kvquant", dq_kvquant_to_json(&s->kvquant));
    return o;
}

static dq_status act_from_json(const json_t *parent, const char *key, const char *path, dq_act_spec *out)
{
    const json_t *o = json_object_get(parent, key);
    int64_t bits;
    dq_act_spec s;
    DQ_TRY(need_object(o, key, path));
    DQ_TRY(dq_json_int(o, "bits", 2, 16, true, path, &bits));
    DQ_TRY(dq_json_int(o, "groupsize", -1, INT32_MAX, true, path, &s.group));
    DQ_TRY(dq_json_bool(o, "symmetric", true, path, &s.symmetric));
    DQ_TRY(dq_json_double(o, "clip_ratio", true, path, &s.clip));
    s.bits = (int)bits;
    if (s.bits < 16 && !(s.clip > 0.0 && s.clip <= 1.0))
        return dq_error_in_file(dq_fail(DQ_E_FORMAT, "\"%s\": clip_ratio %g is not in (0, 1]", key, s.clip), path);
    *out = s;
    return DQ_OK;
}

dq_status dq_scheme_from_json(const json_t *o, const char *path, dq_scheme *out)
{
    static const char *const methods[] = {"rtn", "gptq"};
    static const char *const vocab_names[] = {"F32", "F16", "BF16"};
    static const dq_dtype vocab_dtypes[] = {DQ_F32, DQ_F16, DQ_BF16};
    dq_scheme s = {.clips = NULL};
    int64_t bits;
    int method = 0, vocab = 0;
    DQ_TRY(need_object(o, "quantization", path));
    const json_t *w = json_object_get(o, "weights");
    DQ_TRY(need_object(w, "weights", path));
    DQ_TRY(dq_json_int(w, "bits", 2, 16, true, path, &bits));
    DQ_TRY(read_choice(w, "method", methods, 2, path, &method));
    DQ_TRY(dq_json_bool(w, "awq", false, path, &s.w.awq));
    DQ_TRY(dq_json_int(w, "groupsize", -1, INT32_MAX, true, path, &s.w.group));
    DQ_TRY(dq_json_bool(w, "symmetric", true, path, &s.w.symmetric));
    DQ_TRY(dq_json_bool(w, "clip_search", true, path, &s.w.clip_search));
    DQ_TRY(dq_json_bool(w, "act_order", true, path, &s.w.act_order));
    DQ_TRY(dq_json_bool(w, "static_groups", true, path, &s.w.static_groups));
    DQ_TRY(dq_json_double(w, "percdamp", true, path, &s.w.percdamp));
    DQ_TRY(read_choice(w, "vocab_dtype", vocab_names, 3, path, &vocab));
    s.w.vocab_dtype = vocab_dtypes[vocab];
    s.w.bits = (int)bits;
    s.w.method = method ? DQ_WEIGHT_GPTQ : DQ_WEIGHT_RTN;
    DQ_TRY(act_from_json(o, "activations", path, &s.a));
    DQ_TRY(act_from_json(o, "keys", path, &s.k));
    DQ_TRY(act_from_json(o, "values", path, &s.v));
    const json_t *kvquant = json_object_get(o, "kvquant");
    if (kvquant && !json_is_null(kvquant)) DQ_TRY(dq_kvquant_from_json(kvquant, path, &s, &s.kvquant));
    *out = s;
    return DQ_OK;
}

/* ---- rotations ---- */

const char *dq_online_name(int i) { return online_names[i]; }

dq_hadamard *dq_online_of(dq_rotation_set *set, int i)
{
    dq_hadamard *const all[DQ_ONLINE_TRANSFORMS] = {&set->r2_heads, &set->r2_head_dim, &set->r3, &set->r4};
    return all[i];
}

json_t *dq_rotations_to_json(const dq_rotation_set *set, bool has_r1)
{
    const dq_hadamard *const all[DQ_ONLINE_TRANSFORMS] = {&set->r2_heads, &set->r2_head_dim, &set->r3, &set->r4};
    json_t *o = json_pack("{s:s, s:b, s:s}", "origin", set->origin ? set->origin : "", "r1", (int)has_r1, "r2",
                          r2_names[set->r2_mode]);
    for (int i = 0; o && i < DQ_ONLINE_TRANSFORMS; i++) {
        const dq_hadamard *h = all[i];
        json_t *t = h->n == 0 ? json_null()
                              : json_pack("{s:I, s:I, s:I}", "n", (json_int_t)h->n, "k", (json_int_t)h->k, "blocks",
                                          (json_int_t)h->blocks);
        if (json_object_set_new(o, online_names[i], t) != 0) {
            json_decref(o);
            return NULL;
        }
    }
    return o;
}

static dq_status hadamard_from_json(const json_t *parent, const char *key, int64_t length, const char *path,
                                    dq_hadamard *out)
{
    const json_t *o = json_object_get(parent, key);
    dq_hadamard h = {0};
    if (!o || json_is_null(o)) return DQ_OK;
    DQ_TRY(need_object(o, key, path));
    DQ_TRY(dq_json_int(o, "n", 1, 1 << 24, true, path, &h.n));
    DQ_TRY(dq_json_int(o, "k", 1, 1 << 14, true, path, &h.k));
    DQ_TRY(dq_json_int(o, "blocks", 1, 1 << 24, true, path, &h.blocks));
    int64_t sylvester = h.n % h.k == 0 ? h.n / h.k : 0;
    if (sylvester == 0 || (sylvester & (sylvester - 1)) != 0 || h.n * h.blocks != length)
        return dq_error_in_file(dq_fail(DQ_E_FORMAT,
                                        "\"%s\": %lld blocks of order %lld = %lld * 2^m do not make a "
                                        "transform of %lld elements",
                                        key, (long long)h.blocks, (long long)h.n, (long long)h.k, (long long)length),
                                path);
    *out = h;
    return DQ_OK;
}

dq_status dq_rotations_from_json(dq_env *env, const json_t *o, const char *path, const dq_arch *a, bool *has_r1,
                                 dq_rotation_set **out)
{
    const int64_t lengths[DQ_ONLINE_TRANSFORMS] = {a->heads, a->head_dim, a->head_dim, a->intermediate};
    const char *origin;
    int mode = 0;
    dq_status status;
    DQ_TRY(need_object(o, "rotations", path));
    dq_rotation_set *s = dq_calloc(env, 1, sizeof *s);
    if (!s) return DQ_E_NOMEM;
    s->env = env;
    s->hidden = a->hidden;
    s->layers = a->layers;
    s->heads = a->heads;
    s->kv_heads = a->kv_heads;
    s->head_dim = a->head_dim;
    s->intermediate = a->intermediate;
    DQ_GO(dq_json_string(o, "origin", true, path, &origin));
    DQ_GO(dq_json_bool(o, "r1", true, path, has_r1));
    DQ_GO(read_choice(o, "r2", r2_names, 3, path, &mode));
    s->r2_mode = (dq_r2_mode)mode;
    s->origin = dq_strdup(env, origin);
    if (!s->origin) {
        status = DQ_E_NOMEM;
        goto done;
    }
    for (int i = 0; i < DQ_ONLINE_TRANSFORMS; i++)
        DQ_GO(hadamard_from_json(o, online_names[i], lengths[i], path, dq_online_of(s, i)));
    if (mode == DQ_R2_ONLINE && (s->r2_heads.n == 0 || s->r2_head_dim.n == 0)) {
        status = dq_error_in_file(dq_fail(DQ_E_FORMAT, "online R2 without its transforms"), path);
        goto done;
    }
    *out = s;
    return DQ_OK;
done:
    dq_rotation_set_free(s);
    return status;
}
