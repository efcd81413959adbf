/* What to quantize and how, and the integer codes that result: plain records shared by model, quant and io.
 * SPDX-License-Identifier: Apache-2.0 */
#ifndef DQ_BASE_SCHEME_H
#define DQ_BASE_SCHEME_H

#include <stdbool.h>
#include <stdint.h>

#include "dartquant/types.h"

/* Dynamic quantization of activations or of K / V. bits == 16: off. */
typedef struct dq_act_spec {
    int bits;
    int64_t group; /* -1 = the whole token row (range extended to contain 0) */
    bool symmetric;
    double clip; /* (0, 1] multiplies the range */
} dq_act_spec;

typedef enum dq_weight_method { DQ_WEIGHT_RTN = 0, DQ_WEIGHT_GPTQ = 1 } dq_weight_method;

/* Weight quantization. bits == 16: off. */
typedef struct dq_weight_spec {
    int bits;
    dq_weight_method method;
    bool awq;      /* channels scaled by activation first */
    int64_t group; /* columns per group, -1 = whole row */
    bool symmetric;
    bool clip_search;     /* MSE grid search of the range */
    bool act_order;       /* GPTQ: columns by descending Hessian diagonal */
    bool static_groups;   /* GPTQ: group parameters from the original weights */
    double percdamp;      /* GPTQ: dampening as a share of the mean Hessian diagonal */
    dq_dtype vocab_dtype; /* with bits < 16: embedding and head are rounded to F16 or BF16; F32 = not rounded */
} dq_weight_spec;

/* Where a block quantizes values: the four inputs of its linears, keys, values. */
enum { DQ_CLIP_QKV, DQ_CLIP_O, DQ_CLIP_GATE_UP, DQ_CLIP_DOWN, DQ_CLIP_KEYS, DQ_CLIP_VALUES, DQ_CLIP_SITES };

/* Ratios that differ from layer to layer; 0 = the one in the scheme's spec. */
typedef struct dq_clips {
    int64_t layers;
    double ratio[][DQ_CLIP_SITES];
} dq_clips;

/* Keys and values by KVQuant (Hooper et al., arXiv 2401.18079) in place of the grids of dq_scheme's k and v, of which only the
 * bits count then: keys before RoPE with a fixed range for each channel, values with a range for each token, both on tables
 * of levels. Where it is off (all zero), nothing else counts. */
typedef enum dq_kv_levels { DQ_KV_LEVELS_UNIFORM, DQ_KV_LEVELS_NUQ, DQ_KV_LEVELS_NF } dq_kv_levels;
typedef struct dq_kvquant_spec {
    bool on;
    dq_kv_levels levels;
    double outliers; /* share of the numbers that keep their value; 0 = none */
    int32_t sink;    /* tokens at the head of every sequence that are left alone */
    bool qnorm;      /* levels get the mean and deviation of what they stand for */
} dq_kvquant_spec;

/* What it was calibrated to: base/kv_tables.h. */
typedef struct dq_kv_tables dq_kv_tables;

typedef struct dq_scheme {
    dq_weight_spec w;
    dq_act_spec a;         /* inputs of every linear of the decoder blocks */
    dq_act_spec k;         /* keys after RoPE and R3; group -1 = all kv heads of a token, head_dim = per head */
    dq_act_spec v;         /* v_proj outputs */
    const dq_clips *clips; /* NULL = none; owned by whoever owns the scheme */
    dq_kvquant_spec kvquant;
    const dq_kv_tables *tables; /* of kvquant; NULL = not found yet, or off; owned likewise */
} dq_scheme;

/* Whether keys and values have levels in place of grids, some bits given. */
static inline bool dq_scheme_has_levels(const dq_scheme *s)
{
    return s->kvquant.on && (s->k.bits < 16 || s->v.bits < 16);
}

/* How the o_proj input is rotated. */
typedef enum dq_r2_mode { DQ_R2_NONE = 0, DQ_R2_OFFLINE = 1, DQ_R2_ONLINE = 2 } dq_r2_mode;

#endif
