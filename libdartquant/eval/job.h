/* Inside of the perplexity job, shared by its files. SPDX-License-Identifier: Apache-2.0 */
#ifndef DQ_EVAL_JOB_H
#define DQ_EVAL_JOB_H

#include "eval/perplexity.h"

enum { DQ_PERPLEXITY_PIECE = 512 /* tokens whose logits are compared at a time */ };

struct dq_perplexity_job {
    dq_env *env;
    dq_model *model;
    int32_t *ids;
    int64_t windows, seqlen, tile;
    int64_t position, steps; /* steps done and in all: the layers, then the tiles of the head */
    dq_progress *progress;   /* of the step under way */
    dq_block_spec spec;
    dq_hidden hidden;  /* [windows * seqlen, hidden]; normed once the head has begun */
    dq_tensor rounded; /* the same in BF16 for the head's products, where that saves rounding; else empty */
    dq_tensor targets; /* I32 [1, windows * seqlen] */
    dq_tensor state;   /* F64 [windows * seqlen, 3] of head_nll */
    dq_reference_states *reference; /* NULL = no comparison; the caller's */
    dq_tensor pairs;                /* F64 [windows * seqlen, 7] of compare_logits */
    bool failed;
    double seconds; /* spent in steps */
};

/* Rows of the final states as products with the head read them; valid until the next call. */
dq_status dq_perplexity_head_input(dq_perplexity_job *job, int64_t first, int64_t rows, dq_tensor *out);
/* The sums of the comparison, at their start; and with one tile of the head: `w` are rows [first, ...) of the model's. */
dq_status dq_perplexity_start_pairs(dq_perplexity_job *job);
dq_status dq_perplexity_compare_tile(dq_perplexity_job *job, int64_t first, const dq_tensor *w);

#endif
