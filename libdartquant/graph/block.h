/* One decoder block as a sequence of backend ops, cut at the four points where linears read their inputs:
 *   attn_in -> [q,k,v]  attn -> [o]  mlp_in -> [gate,up]  mlp -> [down]
 * GPTQ builds its Hessians, capture takes its rows and fake quantization happens exactly at these points.
 * SPDX-License-Identifier: Apache-2.0 */
#ifndef DQ_GRAPH_BLOCK_H
#define DQ_GRAPH_BLOCK_H

#include "backend/device.h"
#include "base/rotation_set.h"
#include "base/scheme.h"

enum { DQ_BLOCK_Q, DQ_BLOCK_K, DQ_BLOCK_V, DQ_BLOCK_O, DQ_BLOCK_GATE, DQ_BLOCK_UP, DQ_BLOCK_DOWN, DQ_BLOCK_LINEARS };

/* Integer weights as op packed_linear reads them; zero and order may be empty. */
typedef struct dq_packed_weight {
    dq_tensor codes, scale, zero, order;
    int bits;
    int64_t group;
} dq_packed_weight;
void dq_packed_weight_free(dq_packed_weight *w);

/* Integer weights as op int8_linear reads them, for inputs that are codes themselves: codes I8 [out, in], grid F32 [out, 3]. */
typedef struct dq_int8_weight {
    dq_tensor codes, grid;
} dq_int8_weight;
void dq_int8_weight_free(dq_int8_weight *w);

typedef struct dq_linear {
    dq_tensor weight;        /* F32, F16 or BF16 [out, in] */
    dq_tensor bias;          /* F32 [1, out] or empty */
    dq_packed_weight packed; /* in place of `weight`; no codes = not used */
    dq_int8_weight int8;     /* likewise; then so for all linears that read the same input */
} dq_linear;
void dq_linear_free(dq_linear *l);
static inline bool dq_linear_is_int8(const dq_linear *l) { return !dq_tensor_is_empty(&l->int8.codes); }
static inline bool dq_linear_is_empty(const dq_linear *l)
{
    return dq_tensor_is_empty(&l->weight) && dq_tensor_is_empty(&l->packed.codes) && !dq_linear_is_int8(l);
}

/* Past keys and values of one layer (ops kv_store and kv_attention); grids are empty unless they are integers. */
typedef struct dq_kv_cache {
    dq_kv_desc desc;
    dq_tensor k, k_grid, v, v_grid;
} dq_kv_cache;

/* KVQuant's tables of one layer (op levels_quant); empty where keys or values have none. */
typedef struct dq_kv_level_tables {
    dq_tensor k_range; /* F32 [2, kv_heads * head_dim]: lowest, highest */
    dq_tensor k, v;    /* F32 [1, levels] */
    float norm[4];     /* Q-Norm: scale and offset of keys, of values */
} dq_kv_level_tables;

typedef struct dq_block {
    dq_tensor attn_norm, mlp_norm;           /* F32 [1, hidden]; empty = weightless (fused) */
    dq_tensor q_norm, k_norm;                /* F32 [1, head_dim]: of each head before RoPE (Qwen3); empty = none */
    dq_tensor attn_norm_bias, mlp_norm_bias; /* F32 [1, hidden]; empty = none */
    dq_linear linear[DQ_BLOCK_LINEARS];
    /* The rows of q, k and v, of gate and up, below each other, in place of those of `linear`; else empty. The workspace must
     * be a joined one. */
    dq_linear qkv, gate_up;
    double clip[DQ_CLIP_SITES]; /* this layer's clip ratios; 0 = the scheme's */
    dq_kv_level_tables levels;
    /* NULL = attention within the rows at hand; else the spec's slot and span say where they belong */
    dq_kv_cache *cache;
} dq_block;

void dq_block_free(dq_block *block);

/* Of this library alone, added to the DQ_MATH_* of a model's run (dq_model_block_spec): exact products of integers where inputs
 * and weights are codes and the device has the ops. */
enum { DQ_MATH_CODES = 4 };

/* What is the same for all blocks of a model and a run. */
typedef struct dq_block_spec {
    int64_t hidden, intermediate, seqlen;
    int heads, kv_heads, head_dim;
    int window; /* sliding attention window in tokens, 0 = unlimited */
    double norm_eps;
    bool layer_norm;             /* norms subtract the mean, too */
    int activation;              /* DQ_ACT_* */
    bool no_gate;                /* act(up) in place of act(gate) * up */
    dq_scheme scheme;            /* only a, k, v are looked at here */
    const dq_hadamard *r3, *r4;  /* NULL = off */
    const dq_hadamard *r2_heads; /* online R2: across heads of the o_proj input; NULL = off */
    dq_tensor cos, sin;          /* F32 [seqlen, head_dim/2]; owned by the spec's owner; empty = no RoPE */
    int math;                    /* DQ_MATH_*; with a cache, DQ_MATH_INT8 may be added */
    bool codes;                  /* blocks may have int8 weights */
    dq_tensor slot, span; /* with a cache: where each row's key goes and what it sees; cos and sin then have its row */
    dq_tensor position;   /* I32 [1, rows]: with a cache, of each row in its sequence; else empty: row % seqlen */
} dq_block_spec;

/* Scratch of one chunk of `rows` tokens (a whole number of sequences). */
typedef struct dq_workspace {
    dq_tensor x;        /* [rows, hidden]: normed input */
    dq_tensor xq;       /* [rows, max(hidden, heads*head_dim)]: what products read instead: fake-quantized, rounded */
    dq_tensor q, k, v;  /* [rows, heads*head_dim], [rows, kv_heads*head_dim] x 2 */
    dq_tensor a;        /* [rows, heads*head_dim]: attention output, o_proj input */
    dq_tensor gate, up; /* [rows or fewer, intermediate]; gate becomes the down_proj input */
    dq_tensor act;      /* BF16, like gate: what down_proj reads instead; empty unless `rounds` */
    dq_tensor qkv, gate_up; /* joined: q, k, v and gate, up are columns of these; else empty */
    dq_tensor codes, grid;  /* I8 [rows, widest input], F32 [rows, 3]: what int8 weights read; else empty */
    /* On devices that round inputs of products where they are made (DQ_FEATURE_BF16): xq is there, in BF16, and so is what the
     * products of one input share. No such input is rounded twice, so that all numbers are those of products that do it
     * themselves. */
    bool rounds;
} dq_workspace;
dq_status dq_workspace_alloc(dq_device *dev, const dq_block_spec *spec, int64_t rows, dq_workspace *out);
/* For dq_block_forward only: the MLP knows no neighbours and runs through the chunk in pieces, gate and up have the rows of
 * one piece. */
dq_status dq_workspace_alloc_forward(dq_device *dev, const dq_block_spec *spec, int64_t rows, dq_workspace *out);
/* The same, joined; it rounds nothing, for packed weights read F32. */
dq_status dq_workspace_alloc_joined(dq_device *dev, const dq_block_spec *spec, int64_t rows, dq_workspace *out);
/* For some stages only: x, q, k, v, a for those up to mlp_in; x, gate, up for those from mlp_in on,
 * which take any number of rows. */
dq_status dq_workspace_alloc_attention(dq_device *dev, const dq_block_spec *spec, int64_t rows, dq_workspace *out);
dq_status dq_workspace_alloc_mlp(dq_device *dev, const dq_block_spec *spec, int64_t rows, dq_workspace *out);
/* The workspace cut to its first `rows` tokens, gate and up to as many of them as they have; borrowed. */
dq_workspace dq_workspace_rows(const dq_workspace *ws, int64_t rows);
void dq_workspace_free(dq_workspace *ws); /* zeroed ones are accepted */

/* h: residual stream F32 [rows, hidden] with as many rows as the workspace has. Each stage leaves its result where the
 * next one finds it in ws. The tensor named at the cut is the linear's input before activation quantization, online
 * rotations included; the _out stages leave it as it is. */
dq_status dq_block_attn_in(const dq_block_spec *s, const dq_block *b, const dq_tensor *h, dq_workspace *ws); /* ws.x */
dq_status dq_block_attn(const dq_block_spec *s, const dq_block *b, dq_workspace *ws); /* ws.x -> ws.a */
/* Aside: ws.x -> ws.k, ws.v in full precision, keys as RoPE reads them; for blocks whose q, k, v are not joined. */
dq_status dq_block_keys_values(const dq_block_spec *s, const dq_block *b, dq_workspace *ws);
/* h += o_proj(fq(a)); `a` may be another tensor than ws.a (kept attention outputs) */
dq_status dq_block_attn_out(const dq_block_spec *s, const dq_block *b, const dq_tensor *a, dq_workspace *ws,
                            dq_tensor *h);
dq_status dq_block_mlp_in(const dq_block_spec *s, const dq_block *b, const dq_tensor *h, dq_workspace *ws); /* ws.x */
dq_status dq_block_mlp(const dq_block_spec *s, const dq_block *b, dq_workspace *ws); /* ws.x -> ws.gate */
dq_status dq_block_mlp_out(const dq_block_spec *s, const dq_block *b, dq_workspace *ws, dq_tensor *h);
/* attn_in and attn, mlp_in and mlp in a row, where nobody looks at ws.x in between: it is anything afterwards. */
dq_status dq_block_to_attn(const dq_block_spec *s, const dq_block *b, const dq_tensor *h, dq_workspace *ws); /* ws.a */
dq_status dq_block_to_mlp(const dq_block_spec *s, const dq_block *b, const dq_tensor *h,
                          dq_workspace *ws); /* ws.gate */
/* All six in a row. */
dq_status dq_block_forward(const dq_block_spec *s, const dq_block *b, dq_workspace *ws, dq_tensor *h);

/* Under DQ_MATH_BF16 a device may round the operands of its products: one with memory of its own gets an F32 weight rounded
 * once instead of once for every window, at half the memory. Else w stays as it is. */
dq_status dq_weight_narrow(dq_tensor *w, int math);
/* y (+)= x w^T + bias; DQ_MATH_INT8 is for packed weights */
dq_status dq_linear_forward(const dq_linear *l, const dq_tensor *x, bool accumulate, int math, dq_tensor *y);
/* The same of int8 weights and of codes with their grid */
dq_status dq_linear_forward_codes(const dq_linear *l, const dq_tensor *codes, const dq_tensor *grid, bool accumulate,
                                  dq_tensor *y);
/* y = norm(x) * weight + bias; both may be empty, y may be x, or BF16 (an RMS norm then has no bias) */
dq_status dq_norm_apply(const dq_block_spec *s, const dq_tensor *weight, const dq_tensor *bias, const dq_tensor *x,
                        dq_tensor *y);
/* The norm behind the last block, in place. An RMS norm with a bias was a layer norm (model/derive_fuse.c): the bias has
 * length 1 and is the direction in which x has nothing but what rounded weights left there, which goes first. */
dq_status dq_final_norm_apply(const dq_block_spec *s, const dq_tensor *weight, const dq_tensor *bias, dq_tensor *x);
/* y = fake_quant(x) as the spec says (y may be x, or BF16); bits 16 copies nothing and returns x through *out, else y. Group -1 =
 * one range per row, extended to contain zero; a positive group is a contiguous run of columns, its range as it is.
 * `what` names the quantized value in errors ("o_proj input"). */
dq_status dq_fake_quant_apply(const dq_act_spec *spec, const char *what, const dq_tensor *x, dq_tensor *y,
                              const dq_tensor **out);
/* The codes of dq_fake_quant_apply's result; at most 8 bits, one range per row. */
dq_status dq_quantize_rows_apply(const dq_act_spec *spec, const char *what, const dq_tensor *x, dq_tensor *codes,
                                 dq_tensor *grid);
/* Likewise of dq_norm_apply's result (an RMS norm has no bias here), which `between` may take on the way, and of the rotated x
 * (h NULL: of x), of which anything may be left. */
dq_status dq_norm_rows_apply(const dq_block_spec *s, const dq_act_spec *spec, const char *what, const dq_tensor *h,
                             const dq_tensor *weight, const dq_tensor *bias, dq_tensor *between, dq_tensor *codes,
                             dq_tensor *grid);
dq_status dq_hadamard_rows_apply(const dq_hadamard *h, const dq_act_spec *spec, const char *what, dq_tensor *x,
                                 dq_tensor *codes, dq_tensor *grid);
/* x = (block-diagonal) orthonormal Hadamard of x along a dimension of h->blocks * h->n elements that lie `inner` columns
 * apart; in place, F32 or F64. */
dq_status dq_hadamard_apply(const dq_hadamard *h, int64_t inner, dq_tensor *x);
/* dq_fake_quant_apply of the rotated x (h NULL: of x), of which x keeps what bits 16 or h NULL ask for, else anything; y may be
 * BF16. */
dq_status dq_hadamard_quant_apply(const dq_hadamard *h, const dq_act_spec *spec, const char *what, dq_tensor *x,
                                  dq_tensor *y, const dq_tensor **out);
/* y = fake_quant of dq_norm_apply's result, fewer than 16 bits; an RMS norm has no bias here. */
dq_status dq_norm_quant_apply(const dq_block_spec *s, const dq_act_spec *spec, const char *what, const dq_tensor *h,
                              const dq_tensor *weight, const dq_tensor *bias, dq_tensor *y);
/* w[i] /= by[i], row by row; F32 or F64. */
dq_status dq_divide_rows(const float *by, dq_tensor *w);
/* Whether every group size of the scheme divides what it cuts; DQ_E_INVALID with the numbers otherwise. */
dq_status dq_block_spec_check(const dq_block_spec *s);

#endif
