/* Architecture of a decoder-only model: sizes and switches, independent of the file it came from.
 * SPDX-License-Identifier: Apache-2.0 */
#ifndef DQ_MODEL_ARCH_H
#define DQ_MODEL_ARCH_H

#include "base/scheme.h"
#include "base/source.h"

/* Frequency scaling of RoPE. LLAMA3: the wavelength-dependent rule of Llama 3.1. */
typedef enum dq_rope_scaling {
    DQ_ROPE_PLAIN = 0,
    DQ_ROPE_LINEAR = 1,
    DQ_ROPE_LLAMA3 = 2,
    DQ_ROPE_TABLE = 3
} dq_rope_scaling;

typedef struct dq_arch {
    const struct dq_family *family;
    int64_t hidden, intermediate, layers, heads, kv_heads, head_dim, vocab, max_positions;
    double norm_eps;
    double rope_theta;
    dq_rope_scaling rope_scaling;
    double rope_factor, rope_low_freq, rope_high_freq, rope_original_positions;
    int activation;                /* DQ_ACT_* */
    int64_t window;                /* sliding attention window in tokens; 0 = unlimited */
    bool tied;                     /* head shares the embedding table */
    bool attention_bias, mlp_bias; /* of q, k, v and, save for families with qkv_bias, o; of gate, up, down */
    int32_t bos_id, eos_id;        /* -1 = none */
} dq_arch;

/* Roles of weights; the first seven are the quantizable linears of a block, in forward order. */
typedef enum dq_role {
    DQ_Q_PROJ = 0,
    DQ_K_PROJ,
    DQ_V_PROJ,
    DQ_O_PROJ,
    DQ_GATE_PROJ,
    DQ_UP_PROJ,
    DQ_DOWN_PROJ,
    DQ_ATTN_NORM,
    DQ_MLP_NORM,
    DQ_Q_NORM, /* of each head of q or k, before RoPE: [1, head_dim] */
    DQ_K_NORM,
    DQ_EMBED,
    DQ_FINAL_NORM,
    DQ_HEAD,
    DQ_POSITIONS, /* learned positions, added to the embedding */
    DQ_ROLES
} dq_role;
enum { DQ_LINEARS = 7 };
/* Position p is row p + 2 of a table of learned positions (fairseq counted from behind its padding token). */
enum { DQ_POSITION_OFFSET = 2 };

/* A family as data: how its tensors are called in each container. "%d" stands for the layer. */
typedef struct dq_family {
    const char *name;                  /* "llama" */
    const char *const *hf_model_types; /* NULL-terminated values of config.json model_type it covers */
    const char *const
        *gguf_archs;      /* NULL-terminated values of general.architecture, the first is written; may be none */
    const char *hf_class; /* of transformers */
    const char *hf_intermediate, *hf_activation; /* keys of config.json */
    const char *hf_names[DQ_ROLES];              /* without ".weight"; NULL = it has no such tensor */
    const char *gguf_names[DQ_ROLES];
    bool gguf_permuted_qk; /* q and k rows are stored in interleaved RoPE order in GGUF */
    bool qkv_bias;         /* q, k and v always have biases, other linears never */
    bool all_biases;       /* every linear has one */
    bool layer_norm;       /* norms are layer norms with biases; fusing turns them into RMS norms (derive_fuse.c) */
    bool tied_by_default;  /* where tie_word_embeddings is missing */
    bool partial_windows;  /* use_sliding_window and max_window_layers say which layers have a window */
} dq_family;

const dq_family *dq_family_by_hf(const char *model_type); /* NULL when unknown */
const dq_family *dq_family_by_gguf(const char *architecture);
/* Comma-separated known model types and GGUF architectures for error messages. */
const char *dq_family_list(void);
const char *dq_family_gguf_list(void);

/* Whether the family has such a tensor: no gate_proj where the MLP is down(act(up x)), positions where they are learned. */
bool dq_arch_has(const dq_arch *arch, dq_role role);
static inline bool dq_arch_is_gated(const dq_arch *arch) { return dq_arch_has(arch, DQ_GATE_PROJ); }
static inline bool dq_arch_learns_positions(const dq_arch *arch) { return dq_arch_has(arch, DQ_POSITIONS); }
/* Quantizable linears of a block, and the n-th of them. */
int dq_arch_linears(const dq_arch *arch);
dq_role dq_arch_linear(const dq_arch *arch, int64_t n);
/* Norms of the residual stream. */
static inline bool dq_role_is_norm(dq_role role)
{
    return role == DQ_ATTN_NORM || role == DQ_MLP_NORM || role == DQ_FINAL_NORM;
}
static inline bool dq_role_is_head_norm(dq_role role) { return role == DQ_Q_NORM || role == DQ_K_NORM; }
/* Whether every layer has one of its own. */
static inline bool dq_role_is_in_layer(dq_role role) { return role <= DQ_K_NORM; }
/* Rows and columns of a role's weight ([1, n] for norms). */
void dq_arch_shape(const dq_arch *arch, dq_role role, int64_t *rows, int64_t *cols);
/* Short name: "q_proj", "input_layernorm", ... */
const char *dq_role_name(dq_role role);
/* What the family calls it: the last word of the module's name, "q_proj", "fc1", ... */
const char *dq_arch_role_name(const dq_arch *arch, dq_role role);
/* Room for every tensor name the functions below make. */
enum { DQ_TENSOR_NAME = 160 };
/* HF tensor name with ".weight" into buf. */
void dq_arch_tensor_name(const dq_arch *arch, dq_role role, int64_t layer, char *buf, size_t size);
/* The same without ".weight": under this name the codes of a linear are kept. */
void dq_arch_module_name(const dq_arch *arch, dq_role role, int64_t layer, char *buf, size_t size);
bool dq_arch_has_bias(const dq_arch *arch, dq_role role);
int64_t dq_arch_bias_size(const dq_arch *arch, dq_role role);
/* Whether the sizes fit together (heads divide, counts positive, within what this library can address). `where` names
 * the file in errors, may be NULL. */
dq_status dq_arch_check(const dq_arch *arch, const char *where);

dq_status dq_arch_from_hf_config(dq_env *env, const char *config_path, dq_arch *out);
dq_status dq_arch_from_gguf(const dq_source *gguf, dq_arch *out);
/* cos, sin [seqlen, head_dim/2]; computed in double. `inv_freq_divisor` [head_dim/2] for DQ_ROPE_TABLE, else NULL. */
void dq_arch_rope_table(const dq_arch *arch, const float *inv_freq_divisor, int64_t seqlen, float *cos, float *sin);
/* By what the rule of Llama 3.1 divides frequency i; 1 for other models. */
double dq_arch_rope_divisor(const dq_arch *arch, int64_t i);

#endif
