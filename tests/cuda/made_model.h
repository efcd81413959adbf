/* The tensors of a made-up LLaMA by their number, as a source lends them: those of each layer, then what stands around the
 * layers. SPDX-License-Identifier: Apache-2.0 */
#ifndef DQ_TESTS_CUDA_MADE_MODEL_H
#define DQ_TESTS_CUDA_MADE_MODEL_H

#include <dartquant.h>

#include <stdio.h>
#include <string.h>

enum { LAYER_PARTS = 9, PARTS = 12 };

static const char *const part_names[PARTS] = {"model.layers.%d.input_layernorm.weight",
                                              "model.layers.%d.post_attention_layernorm.weight",
                                              "model.layers.%d.self_attn.q_proj.weight",
                                              "model.layers.%d.self_attn.k_proj.weight",
                                              "model.layers.%d.self_attn.v_proj.weight",
                                              "model.layers.%d.self_attn.o_proj.weight",
                                              "model.layers.%d.mlp.gate_proj.weight",
                                              "model.layers.%d.mlp.up_proj.weight",
                                              "model.layers.%d.mlp.down_proj.weight",
                                              "model.norm.weight",
                                              "model.embed_tokens.weight",
                                              "lm_head.weight"};

static inline int64_t part_count(int layers) { return (int64_t)LAYER_PARTS * layers + PARTS - LAYER_PARTS; }

/* Which of the PARTS tensor i is. */
static inline int64_t part_of(int64_t i, int layers)
{
    int64_t behind = i - (int64_t)LAYER_PARTS * layers;
    return behind < 0 ? i % LAYER_PARTS : LAYER_PARTS + behind;
}

/* cols 0: a vector. */
static inline void describe_part(int64_t i, int layers, int64_t rows, int64_t cols, dq_dtype dtype, dq_tensor_desc *out)
{
    static _Thread_local char name[96];
    const char *pattern = part_names[part_of(i, layers)], *mark = strstr(pattern, "%d");
    if (mark)
        snprintf(name, sizeof name, "%.*s%d%s", (int)(mark - pattern), pattern, (int)(i / LAYER_PARTS), mark + 2);
    else
        snprintf(name, sizeof name, "%s", pattern);
    out->name = name;
    out->dtype = dtype;
    out->ndim = cols ? 2 : 1;
    out->shape[0] = rows;
    out->shape[1] = cols;
}

#endif
