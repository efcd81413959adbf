/* Families of models as data, and what follows from an architecture alone. SPDX-License-Identifier: Apache-2.0 */
#include <stdio.h>
#include <string.h>

#include "base/status.h"
#include "model/arch.h"

static const char *const llama_hf[] = {"llama", "mistral", NULL};
static const char *const llama_gguf[] = {"llama", NULL};
static const char *const qwen2_hf[] = {"qwen2", NULL};
static const char *const qwen2_gguf[] = {"qwen2", NULL};
static const char *const qwen3_hf[] = {"qwen3", NULL};
static const char *const qwen3_gguf[] = {"qwen3", NULL};
static const char *const opt_hf[] = {"opt", NULL};
static const char *const none[] = {NULL};

/* What the descendants of LLaMA have in common. */
#define LLAMA_HF_NAMES                                                                                                 \
    [DQ_Q_PROJ] = "model.layers.%d.self_attn.q_proj", [DQ_K_PROJ] = "model.layers.%d.self_attn.k_proj",                \
    [DQ_V_PROJ] = "model.layers.%d.self_attn.v_proj", [DQ_O_PROJ] = "model.layers.%d.self_attn.o_proj",                \
    [DQ_GATE_PROJ] = "model.layers.%d.mlp.gate_proj", [DQ_UP_PROJ] = "model.layers.%d.mlp.up_proj",                    \
    [DQ_DOWN_PROJ] = "model.layers.%d.mlp.down_proj", [DQ_ATTN_NORM] = "model.layers.%d.input_layernorm",              \
    [DQ_MLP_NORM] = "model.layers.%d.post_attention_layernorm", [DQ_EMBED] = "model.embed_tokens",                     \
    [DQ_FINAL_NORM] = "model.norm", [DQ_HEAD] = "lm_head"
#define LLAMA_GGUF_NAMES                                                                                               \
    [DQ_Q_PROJ] = "blk.%d.attn_q", [DQ_K_PROJ] = "blk.%d.attn_k", [DQ_V_PROJ] = "blk.%d.attn_v",                       \
    [DQ_O_PROJ] = "blk.%d.attn_output", [DQ_GATE_PROJ] = "blk.%d.ffn_gate", [DQ_UP_PROJ] = "blk.%d.ffn_up",            \
    [DQ_DOWN_PROJ] = "blk.%d.ffn_down", [DQ_ATTN_NORM] = "blk.%d.attn_norm", [DQ_MLP_NORM] = "blk.%d.ffn_norm",        \
    [DQ_EMBED] = "token_embd", [DQ_FINAL_NORM] = "output_norm", [DQ_HEAD] = "output"

static const dq_family families[] = {
    {
        .name = "llama",
        .hf_model_types = llama_hf,
        .gguf_archs = llama_gguf,
        .hf_class = "LlamaForCausalLM",
        .hf_intermediate = "intermediate_size",
        .hf_activation = "hidden_act",
        .hf_names = {LLAMA_HF_NAMES},
        .gguf_names = {LLAMA_GGUF_NAMES},
        .gguf_permuted_qk = true,
    },
    {
        .name = "qwen2",
        .hf_model_types = qwen2_hf,
        .gguf_archs = qwen2_gguf,
        .hf_class = "Qwen2ForCausalLM",
        .hf_intermediate = "intermediate_size",
        .hf_activation = "hidden_act",
        .hf_names = {LLAMA_HF_NAMES},
        .gguf_names = {LLAMA_GGUF_NAMES},
        .qkv_bias = true,
        .partial_windows = true,
    },
    {
        .name = "qwen3",
        .hf_model_types = qwen3_hf,
        .gguf_archs = qwen3_gguf,
        .hf_class = "Qwen3ForCausalLM",
        .hf_intermediate = "intermediate_size",
        .hf_activation = "hidden_act",
        .hf_names =
            {
                LLAMA_HF_NAMES,
                [DQ_Q_NORM] = "model.layers.%d.self_attn.q_norm",
                [DQ_K_NORM] = "model.layers.%d.self_attn.k_norm",
            },
        .gguf_names =
            {
                LLAMA_GGUF_NAMES,
                [DQ_Q_NORM] = "blk.%d.attn_q_norm",
                [DQ_K_NORM] = "blk.%d.attn_k_norm",
            },
        .partial_windows = true,
    },
    {
        .name = "opt",
        .hf_model_types = opt_hf,
        .gguf_archs = none,
        .hf_class = "OPTForCausalLM",
        .hf_intermediate = "ffn_dim",
        .hf_activation = "activation_function",
        .hf_names =
            {
                [DQ_Q_PROJ] = "model.decoder.layers.%d.self_attn.q_proj",
                [DQ_K_PROJ] = "model.decoder.layers.%d.self_attn.k_proj",
                [DQ_V_PROJ] = "model.decoder.layers.%d.self_attn.v_proj",
                [DQ_O_PROJ] = "model.decoder.layers.%d.self_attn.out_proj",
                [DQ_UP_PROJ] = "model.decoder.layers.%d.fc1",
                [DQ_DOWN_PROJ] = "model.decoder.layers.%d.fc2",
                [DQ_ATTN_NORM] = "model.decoder.layers.%d.self_attn_layer_norm",
                [DQ_MLP_NORM] = "model.decoder.layers.%d.final_layer_norm",
                [DQ_EMBED] = "model.decoder.embed_tokens",
                [DQ_FINAL_NORM] = "model.decoder.final_layer_norm",
                [DQ_HEAD] = "lm_head",
                [DQ_POSITIONS] = "model.decoder.embed_positions",
            },
        .all_biases = true,
        .layer_norm = true,
        .tied_by_default = true,
    },
};

static const dq_family *find(const char *name, bool gguf)
{
    for (size_t i = 0; i < sizeof families / sizeof *families; i++) {
        const char *const *known = gguf ? families[i].gguf_archs : families[i].hf_model_types;
        for (; *known; known++)
            if (strcmp(*known, name) == 0) return &families[i];
    }
    return NULL;
}

const dq_family *dq_family_by_hf(const char *model_type) { return find(model_type, false); }
const dq_family *dq_family_by_gguf(const char *architecture) { return find(architecture, true); }
const char *dq_family_list(void) { return "llama, mistral, qwen2, qwen3, opt"; }
const char *dq_family_gguf_list(void) { return "llama, qwen2, qwen3"; }

void dq_arch_shape(const dq_arch *a, dq_role role, int64_t *rows, int64_t *cols)
{
    int64_t q = a->heads * a->head_dim, kv = a->kv_heads * a->head_dim;
    switch (role) {
        case DQ_Q_PROJ: *rows = q, *cols = a->hidden; return;
        case DQ_K_PROJ:
        case DQ_V_PROJ: *rows = kv, *cols = a->hidden; return;
        case DQ_O_PROJ: *rows = a->hidden, *cols = q; return;
        case DQ_GATE_PROJ:
        case DQ_UP_PROJ: *rows = a->intermediate, *cols = a->hidden; return;
        case DQ_DOWN_PROJ: *rows = a->hidden, *cols = a->intermediate; return;
        case DQ_EMBED:
        case DQ_HEAD: *rows = a->vocab, *cols = a->hidden; return;
        case DQ_POSITIONS: *rows = a->max_positions + DQ_POSITION_OFFSET, *cols = a->hidden; return;
        case DQ_Q_NORM:
        case DQ_K_NORM: *rows = 1, *cols = a->head_dim; return;
        default: *rows = 1, *cols = a->hidden; return;
    }
}

const char *dq_role_name(dq_role role)
{
    static const char *const names[DQ_ROLES] = {"q_proj",    "k_proj",          "v_proj",
                                                "o_proj",    "gate_proj",       "up_proj",
                                                "down_proj", "input_layernorm", "post_attention_layernorm",
                                                "q_norm",    "k_norm",          "embed_tokens",
                                                "norm",      "lm_head",         "embed_positions"};
    return role >= 0 && role < DQ_ROLES ? names[role] : "?";
}

const char *dq_arch_role_name(const dq_arch *arch, dq_role role)
{
    const char *name = role >= 0 && role < DQ_ROLES ? arch->family->hf_names[role] : NULL;
    const char *dot = name ? strrchr(name, '.') : NULL;
    return dot ? dot + 1 : name ? name : dq_role_name(role);
}

bool dq_arch_has(const dq_arch *arch, dq_role role) { return arch->family->hf_names[role] != NULL; }

int dq_arch_linears(const dq_arch *arch) { return dq_arch_is_gated(arch) ? DQ_LINEARS : DQ_LINEARS - 1; }

dq_role dq_arch_linear(const dq_arch *arch, int64_t n)
{
    return (dq_role)(n < DQ_GATE_PROJ || dq_arch_is_gated(arch) ? n : n + 1);
}

void dq_arch_module_name(const dq_arch *arch, dq_role role, int64_t layer, char *buf, size_t size)
{
    const char *pattern = dq_arch_has(arch, role) ? arch->family->hf_names[role] : dq_role_name(role);
    const char *mark = strstr(pattern, "%d");
    if (mark)
        snprintf(buf, size, "%.*s%lld%s", (int)(mark - pattern), pattern, (long long)layer, mark + 2);
    else
        snprintf(buf, size, "%s", pattern);
}

void dq_arch_tensor_name(const dq_arch *arch, dq_role role, int64_t layer, char *buf, size_t size)
{
    dq_arch_module_name(arch, role, layer, buf, size);
    size_t used = strlen(buf);
    snprintf(buf + used, size - used, ".weight");
}

bool dq_arch_has_bias(const dq_arch *arch, dq_role role)
{
    if (role == DQ_O_PROJ && arch->family->qkv_bias) return false;
    if (dq_role_is_norm(role)) return arch->family->layer_norm;
    if (role <= DQ_O_PROJ) return arch->attention_bias;
    return role <= DQ_DOWN_PROJ && arch->mlp_bias;
}

int64_t dq_arch_bias_size(const dq_arch *arch, dq_role role)
{
    int64_t rows, cols;
    dq_arch_shape(arch, role, &rows, &cols);
    return dq_role_is_norm(role) ? cols : rows;
}

static dq_status in_range(const char *name, int64_t value, int64_t max)
{
    if (value >= 1 && value <= max) return DQ_OK;
    return dq_fail(DQ_E_FORMAT, "%s = %lld is not in 1..%lld", name, (long long)value, (long long)max);
}

static dq_status check(const dq_arch *a)
{
    DQ_TRY(in_range("hidden size", a->hidden, 1 << 20));
    DQ_TRY(in_range("intermediate size", a->intermediate, 1 << 24));
    DQ_TRY(in_range("number of layers", a->layers, 1 << 16));
    DQ_TRY(in_range("number of attention heads", a->heads, 1 << 16));
    DQ_TRY(in_range("number of key/value heads", a->kv_heads, a->heads));
    DQ_TRY(in_range("head dimension", a->head_dim, 1 << 14));
    DQ_TRY(in_range("vocabulary size", a->vocab, 1 << 28));
    DQ_TRY(in_range("heads times head dimension", a->heads * a->head_dim, 1 << 20));
    if (a->heads % a->kv_heads != 0)
        return dq_fail(DQ_E_FORMAT, "%lld attention heads are no multiple of %lld key/value heads", (long long)a->heads,
                       (long long)a->kv_heads);
    if (dq_arch_learns_positions(a)) {
        DQ_TRY(in_range("number of positions", a->max_positions, 1 << 24));
        if (a->window > 0) return dq_fail(DQ_E_FORMAT, "a sliding window beside learned positions");
    } else if (a->head_dim % 2 != 0)
        return dq_fail(DQ_E_FORMAT, "head dimension %lld is odd, RoPE turns pairs", (long long)a->head_dim);
    if (!(a->norm_eps >= 0.0 && a->norm_eps < 1.0))
        return dq_fail(DQ_E_FORMAT, "norm epsilon %g is not in [0, 1)", a->norm_eps);
    if (!(a->rope_theta > 0.0 && a->rope_theta < 1e30))
        return dq_fail(DQ_E_FORMAT, "RoPE theta %g is not positive and finite", a->rope_theta);
    if (a->rope_scaling != DQ_ROPE_PLAIN && a->rope_scaling != DQ_ROPE_TABLE &&
        !(a->rope_factor > 0.0 && a->rope_factor < 1e6))
        return dq_fail(DQ_E_FORMAT, "RoPE scaling factor %g is not positive and finite", a->rope_factor);
    if (a->rope_scaling == DQ_ROPE_LLAMA3 &&
        !(a->rope_low_freq > 0.0 && a->rope_high_freq > a->rope_low_freq && a->rope_original_positions > 0.0))
        return dq_fail(DQ_E_FORMAT, "llama3 RoPE scaling with low %g, high %g, original positions %g", a->rope_low_freq,
                       a->rope_high_freq, a->rope_original_positions);
    if (a->window < 0 || a->window > INT32_MAX)
        return dq_fail(DQ_E_FORMAT, "sliding window %lld is out of range", (long long)a->window);
    return DQ_OK;
}

dq_status dq_arch_check(const dq_arch *arch, const char *where)
{
    dq_status status = check(arch);
    return where ? dq_error_in_file(status, where) : status;
}
