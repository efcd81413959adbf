/* Architecture from a Hugging Face config.json. SPDX-License-Identifier: Apache-2.0 */
#include <string.h>

#include "base/status.h"
#include "dartquant/backend.h"
#include "io/json.h"
#include "model/manifest.h"

enum { CONFIG_LIMIT = 1 << 24 };

static dq_status read_sizes(const json_t *c, const char *path, dq_arch *a)
{
    DQ_TRY(dq_json_int(c, "hidden_size", 1, 1 << 20, true, path, &a->hidden));
    DQ_TRY(dq_json_int(c, a->family->hf_intermediate, 1, 1 << 24, true, path, &a->intermediate));
    DQ_TRY(dq_json_int(c, "num_hidden_layers", 1, 1 << 16, true, path, &a->layers));
    DQ_TRY(dq_json_int(c, "num_attention_heads", 1, 1 << 16, true, path, &a->heads));
    a->kv_heads = a->heads;
    DQ_TRY(dq_json_int(c, "num_key_value_heads", 1, 1 << 16, false, path, &a->kv_heads));
    DQ_TRY(dq_json_int(c, "head_dim", 1, 1 << 14, false, path, &a->head_dim));
    if (a->head_dim == 0) {
        if (a->hidden % a->heads != 0)
            return dq_error_in_file(dq_fail(DQ_E_FORMAT,
                                            "%lld heads do not divide hidden_size %lld and head_dim is "
                                            "not given",
                                            (long long)a->heads, (long long)a->hidden),
                                    path);
        a->head_dim = a->hidden / a->heads;
    }
    DQ_TRY(dq_json_int(c, "vocab_size", 1, 1 << 28, true, path, &a->vocab));
    a->max_positions = 2048;
    DQ_TRY(dq_json_int(c, "max_position_embeddings", 1, INT64_C(1) << 40, false, path, &a->max_positions));
    a->norm_eps = a->family->layer_norm ? 1e-5 : 1e-6; /* OPT's stands in no file */
    return a->family->layer_norm ? DQ_OK : dq_json_double(c, "rms_norm_eps", false, path, &a->norm_eps);
}

static dq_status must_be(const json_t *c, const char *key, bool wanted, const char *path)
{
    bool value = wanted;
    DQ_TRY(dq_json_bool(c, key, false, path, &value));
    if (value == wanted) return DQ_OK;
    return dq_error_in_file(dq_fail(DQ_E_UNSUPPORTED, "%s %s is not supported", key, value ? "true" : "false"), path);
}

/* What one OPT or another has that the graph here has not: OPT-350m norms behind its branches and projects its embedding,
 * Galactica leaves parameters out. */
static dq_status check_opt(const json_t *c, const char *path, const dq_arch *a)
{
    int64_t width = a->hidden;
    bool before = true;
    DQ_TRY(dq_json_bool(c, "do_layer_norm_before", false, path, &before));
    if (!before)
        return dq_error_in_file(dq_fail(DQ_E_UNSUPPORTED,
                                        "do_layer_norm_before false (norms behind the branches, as in OPT-350m) is not "
                                        "supported: their weights cannot be folded into linears"),
                                path);
    DQ_TRY(dq_json_int(c, "word_embed_proj_dim", 1, 1 << 20, false, path, &width));
    if (width != a->hidden)
        return dq_error_in_file(
            dq_fail(DQ_E_UNSUPPORTED,
                    "word_embed_proj_dim %lld is not hidden_size %lld: the projections project_in and "
                    "project_out (OPT-350m) are not supported",
                    (long long)width, (long long)a->hidden),
            path);
    DQ_TRY(must_be(c, "enable_bias", true, path));
    DQ_TRY(must_be(c, "layer_norm_elementwise_affine", true, path));
    return must_be(c, "_remove_final_layer_norm", false, path);
}

/* How many layers attend within a window, where that is said layer by layer (Qwen2). */
static dq_status read_sliding_layers(const json_t *c, const char *path, int64_t layers, int64_t *out)
{
    const json_t *types = json_object_get(c, "layer_types"), *type;
    int64_t first = 28; /* of its configuration class */
    bool use = false;
    size_t i;
    *out = 0;
    DQ_TRY(dq_json_bool(c, "use_sliding_window", false, path, &use));
    if (!use) return DQ_OK;
    DQ_TRY(dq_json_int(c, "max_window_layers", 0, 1 << 16, false, path, &first));
    if (!json_is_array(types)) {
        *out = first < layers ? layers - first : 0;
        return DQ_OK;
    }
    json_array_foreach(types, i, type)
    {
        const char *name = json_string_value(type);
        if (name && strcmp(name, "sliding_attention") == 0) ++*out;
    }
    return DQ_OK;
}

/* The default of the configuration class applies where the key is missing. LLaMA ignores the key. */
static dq_status read_window(const json_t *c, const char *path, const char *type, dq_arch *a)
{
    enum { DEFAULT_WINDOW = 4096 };
    if (a->family->partial_windows) {
        int64_t sliding;
        DQ_TRY(read_sliding_layers(c, path, a->layers, &sliding));
        if (sliding == 0) return DQ_OK;
        if (sliding != a->layers)
            return dq_error_in_file(
                dq_fail(DQ_E_UNSUPPORTED, "%lld of %lld layers attend within a window; only all or none are supported",
                        (long long)sliding, (long long)a->layers),
                path);
    } else if (strcmp(type, "mistral") != 0) {
        return DQ_OK;
    }
    if (!json_object_get(c, "sliding_window")) a->window = DEFAULT_WINDOW;
    return dq_json_int(c, "sliding_window", 0, INT32_MAX, false, path, &a->window);
}

static dq_status read_activation(const json_t *c, const char *path, dq_arch *a)
{
    static const struct {
        const char *name;
        int kind;
    } known[] = {{"silu", DQ_ACT_SILU},          {"swish", DQ_ACT_SILU}, {"gelu", DQ_ACT_GELU},
                 {"gelu_new", DQ_ACT_GELU_TANH}, {"relu", DQ_ACT_RELU},  {"gelu_pytorch_tanh", DQ_ACT_GELU_TANH}};
    const char *key = a->family->hf_activation, *name = a->family->layer_norm ? "relu" : "silu";
    DQ_TRY(dq_json_string(c, key, false, path, &name));
    for (size_t i = 0; i < sizeof known / sizeof *known; i++) {
        if (strcmp(name, known[i].name) != 0) continue;
        a->activation = known[i].kind;
        return DQ_OK;
    }
    return dq_error_in_file(dq_fail(DQ_E_UNSUPPORTED, "%s \"%s\" is not known", key, name), path);
}

/* `rope_scaling` of older files and `rope_parameters` of newer ones hold the same members; the latter theta too. */
static dq_status read_rope_object(const json_t *r, const char *path, dq_arch *a)
{
    if (!json_is_object(r)) return dq_error_in_file(dq_fail(DQ_E_FORMAT, "RoPE parameters are not an object"), path);
    const char *type = "default";
    double partial = 1.0;
    DQ_TRY(dq_json_string(r, "type", false, path, &type));
    DQ_TRY(dq_json_string(r, "rope_type", false, path, &type));
    DQ_TRY(dq_json_double(r, "rope_theta", false, path, &a->rope_theta));
    DQ_TRY(dq_json_double(r, "partial_rotary_factor", false, path, &partial));
    if (partial != 1.0)
        return dq_error_in_file(dq_fail(DQ_E_UNSUPPORTED, "partial_rotary_factor %g is not supported", partial), path);
    if (strcmp(type, "default") == 0) return DQ_OK;
    if (strcmp(type, "linear") == 0) {
        a->rope_scaling = DQ_ROPE_LINEAR;
        return dq_json_double(r, "factor", true, path, &a->rope_factor);
    }
    if (strcmp(type, "llama3") != 0)
        return dq_error_in_file(dq_fail(DQ_E_UNSUPPORTED,
                                        "RoPE type \"%s\" is not supported (known: default, "
                                        "linear, llama3)",
                                        type),
                                path);
    a->rope_scaling = DQ_ROPE_LLAMA3;
    DQ_TRY(dq_json_double(r, "factor", true, path, &a->rope_factor));
    DQ_TRY(dq_json_double(r, "low_freq_factor", true, path, &a->rope_low_freq));
    DQ_TRY(dq_json_double(r, "high_freq_factor", true, path, &a->rope_high_freq));
    return dq_json_double(r, "original_max_position_embeddings", true, path, &a->rope_original_positions);
}

static dq_status read_rope(const json_t *c, const char *path, dq_arch *a)
{
    static const char *const keys[] = {"rope_scaling", "rope_parameters"};
    a->rope_theta = 10000.0;
    DQ_TRY(dq_json_double(c, "rope_theta", false, path, &a->rope_theta));
    for (size_t i = 0; i < 2; i++) {
        const json_t *r = json_object_get(c, keys[i]);
        if (r && !json_is_null(r)) DQ_TRY(read_rope_object(r, path, a));
    }
    return DQ_OK;
}

/* A token id, the first of a list of ids, or null. */
static dq_status read_token(const json_t *c, const char *key, const char *path, int32_t *out)
{
    const json_t *v = json_object_get(c, key);
    if (json_is_array(v)) v = json_array_get(v, 0);
    *out = -1;
    if (!v || json_is_null(v)) return DQ_OK;
    if (!json_is_integer(v) || json_integer_value(v) < -1 || json_integer_value(v) > INT32_MAX)
        return dq_error_in_file(dq_fail(DQ_E_FORMAT, "%s is not a token id", key), path);
    *out = (int32_t)json_integer_value(v);
    return DQ_OK;
}

static dq_status read_config(const json_t *c, const char *path, dq_arch *a)
{
    const char *type;
    if (!json_is_object(c)) return dq_error_in_file(dq_fail(DQ_E_FORMAT, "the configuration is not an object"), path);
    DQ_TRY(dq_json_string(c, "model_type", true, path, &type));
    a->family = dq_family_by_hf(type);
    if (!a->family)
        return dq_error_in_file(
            dq_fail(DQ_E_UNSUPPORTED, "model_type \"%s\" is not supported (known: %s)", type, dq_family_list()), path);
    DQ_TRY(read_sizes(c, path, a));
    DQ_TRY(read_window(c, path, type, a));
    DQ_TRY(read_activation(c, path, a));
    DQ_TRY(read_rope(c, path, a));
    a->tied = a->family->tied_by_default;
    DQ_TRY(dq_json_bool(c, "tie_word_embeddings", false, path, &a->tied));
    DQ_TRY(dq_json_bool(c, "attention_bias", false, path, &a->attention_bias));
    DQ_TRY(dq_json_bool(c, "mlp_bias", false, path, &a->mlp_bias));
    if (a->family->all_biases) a->attention_bias = a->mlp_bias = true;
    if (a->family->layer_norm) DQ_TRY(check_opt(c, path, a));
    if (a->family->qkv_bias)
        a->attention_bias = true, a->mlp_bias = false; /* whatever the keys of other families say */
    DQ_TRY(read_token(c, "bos_token_id", path, &a->bos_id));
    DQ_TRY(read_token(c, "eos_token_id", path, &a->eos_id));
    return dq_arch_check(a, path);
}

dq_status dq_arch_from_hf_config(dq_env *env, const char *config_path, dq_arch *out)
{
    json_t *config = NULL;
    dq_arch arch;
    memset(&arch, 0, sizeof arch);
    DQ_TRY(dq_json_load(env, config_path, CONFIG_LIMIT, &config));
    dq_status status = read_config(config, config_path, &arch);
    json_decref(config);
    if (status == DQ_OK) *out = arch;
    return status;
}

dq_status dq_arch_from_hf_json(const json_t *config, const char *path, dq_arch *out)
{
    dq_arch arch;
    memset(&arch, 0, sizeof arch);
    DQ_TRY(read_config(config, path, &arch));
    *out = arch;
    return DQ_OK;
}
