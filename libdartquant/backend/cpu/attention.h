/* Between attention.c, which cuts the op into blocks, and the kernels that serve a block.
 * SPDX-License-Identifier: Apache-2.0 */
#ifndef DQ_BACKEND_CPU_ATTENTION_H
#define DQ_BACKEND_CPU_ATTENTION_H

#include "backend/cpu/forward.h"

/* `count` consecutive queries of one head against the keys and values of its sequence. */
typedef struct dq_attention_block {
    const float *q; /* first query's row at the head's columns */
    float *o;
    int64_t q_stride, o_stride;
    const void *k, *v; /* packed for the kernel, from position 0 of the sequence */
    int64_t first, count, seqlen;
    int64_t dim;
    int64_t window; /* 0 = unlimited */
    float scale;    /* times log2 e: the kernels work with powers of two */
    bool round_q;   /* to bf16 */
    float *scratch;
} dq_attention_block;

/* The maximum before any key was seen, and the score of a key that a query must not see: far below every real score, and
 * finite, so that differences are no NaN. */
#define DQ_ATTENTION_NONE (-1e30f)
#define DQ_ATTENTION_HIDDEN (-2e30f)

enum {
    DQ_ATTENTION_QUERIES = 96, /* queries in a block of the fp32 kernels: whole strips at every level */
    DQ_ATTENTION_STRIP = 48,   /* the widest strip */
    DQ_ATTENTION_KEYS = 64     /* keys taken at a time */
};

/* Floats of scratch the fp32 kernels need. */
static inline int64_t dq_attention_scratch(int64_t dim)
{
    return DQ_ATTENTION_STRIP * (2 * dim + DQ_ATTENTION_KEYS + 3);
}

/* fp32 kernels; k, v: [seqlen, dim] floats. */
void dq_attend_plain(const dq_attention_block *b);
void dq_attend_avx2(const dq_attention_block *b);
void dq_attend_avx512(const dq_attention_block *b);

/* AMX; k: A panels [seqlen, dim], v: A panels of the transpose [dim, seqlen] (gemm_packed.h). */
enum { DQ_ATTENTION_AMX_QUERIES = 128, DQ_ATTENTION_AMX_STRIP = 64, DQ_ATTENTION_AMX_KEYS = 128 };
void dq_attend_amx(const dq_attention_block *b);
/* Packs one head's keys or values, or both; NULL skips. */
void dq_attend_amx_pack(const dq_view *k, const dq_view *v, uint16_t *k_panels, uint16_t *v_panels);
static inline int64_t dq_attention_amx_dim(int64_t dim) { return (dim + 31) / 32 * 32; }
static inline int64_t dq_attention_amx_scratch(int64_t dim) /* floats */
{
    int64_t d = dq_attention_amx_dim(dim);
    return DQ_ATTENTION_AMX_STRIP * (2 * d + 2 * DQ_ATTENTION_AMX_KEYS + 3);
}

#endif
