/* Which of the rows that pass by are kept for fitting. SPDX-License-Identifier: Apache-2.0 */
#ifndef DQ_CALIB_GATHER_H
#define DQ_CALIB_GATHER_H

#include "calib/capture.h"
#include "calib/rows.h"

/* All that will come is known before: a set's room for activations is dealt out evenly to layers, sites and stretches of
 * tokens, and one token is drawn from each stretch. So every window and every layer is represented, and a row that will not
 * stay is never copied. */
typedef struct dq_gather {
    dq_env *env;
    dq_device *dev;
    const dq_arch *arch;
    int64_t tokens;   /* of all windows */
    int64_t o_tokens; /* inputs of o there are in a layer; 0 = tokens */
    uint64_t seed;
    /* A residual norm above so many times the layer's median makes a sink; 0 = none are told apart. */
    double sink_ratio;
    dq_rows *r1, *r2; /* where rows go; NULL = not wanted. r2: of one layer */
    /* of the layer under way */
    int32_t *picks[DQ_SITES]; /* tokens to keep, ascending */
    int64_t count[DQ_SITES];
    int32_t *sinks; /* tokens whose residual is massive, ascending */
    int64_t sink_count;
} dq_gather;

void dq_gather_clear(dq_gather *g);
/* A layer begins. norms [tokens]: of the residual stream before it; NULL = unknown, no sinks. */
dq_status dq_gather_begin(dq_gather *g, int64_t layer, const double *norms);
/* Rows of the weights that the rotations will turn, each scaled to RMS 1: of q, k, v, gate, up for R1, of o cut by head for
 * R2. Linears that are not in memory (empty weights) are left for another call. */
dq_status dq_gather_weights(dq_gather *g, int64_t layer, const dq_block *block);
dq_status dq_gather_inputs(dq_gather *g, const dq_inputs *in);
/* `want` of `total` things, one from each of as many equal stretches (all when want >= total), ascending; *count = how many.
 * Fresh memory. */
dq_status dq_draw_stratified(dq_env *env, uint64_t seed, uint64_t stream, int64_t total, int64_t want, int32_t **out,
                             int64_t *count);

#endif
