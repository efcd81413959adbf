/* A model kept whole in memory: blocks loaded once, integer codes packed, other weights in the narrowest type that holds
 * them exactly. SPDX-License-Identifier: Apache-2.0 */
#ifndef DQ_GENERATE_RESIDENT_H
#define DQ_GENERATE_RESIDENT_H

#include "generate/arena.h"
#include "model/model.h"

typedef struct dq_resident {
    dq_model *model; /* a reference */
    dq_env *env;
    int head_bits;  /* 16 = as it is, 8 = rounded to codes */
    dq_arena arena; /* packed weights */
    dq_block *blocks;
    int64_t layers, loaded;
    dq_tensor norm, norm_bias;
    dq_tensor positions; /* F32 table of learned ones, or empty */
    dq_linear *head;     /* tiles of the vocabulary */
    dq_tensor *embed;    /* the same tiles; NULL = rows are read from the model, or are the head's */
    int64_t tiles, head_loaded;
    bool ready; /* everything is loaded */
    uint64_t bytes;
} dq_resident;

dq_status dq_resident_new(dq_model *model, int head_bits, dq_resident **out);
void dq_resident_free(dq_resident *r); /* NULL is accepted */
/* One layer, then one tile of the vocabulary; *done once all are there. */
dq_status dq_resident_load(dq_resident *r, bool *done);
int64_t dq_resident_steps(const dq_resident *r);
/* h [count, hidden] = embedding of ids within the vocabulary. */
dq_status dq_resident_embed(dq_resident *r, const int32_t *ids, int64_t count, dq_tensor *h);
/* How many linears of the blocks can round their inputs under DQ_MATH_INT8, are packed in groups that runs of 32 columns do
 * not fit in, are not packed; whether the head can. Everything must be loaded. */
typedef struct dq_int8_linears {
    int64_t possible, uneven, plain;
    bool head;
} dq_int8_linears;
dq_int8_linears dq_resident_int8(const dq_resident *r);
/* Logits of normed hidden states x [rows, hidden] to host memory [rows, vocab]. */
dq_status dq_resident_logits(dq_resident *r, const dq_tensor *x, int math, float *out);

#endif
