/* The calibration windows on their way through the layers. SPDX-License-Identifier: Apache-2.0 */
#ifndef DQ_QUANT_WALK_H
#define DQ_QUANT_WALK_H

#include "model/hidden.h"
#include "model/model.h"

/* One decoder layer is one forward pass cut at the four points where linears read their inputs. A cut adds its linears'
 * inputs to their Hessian; by then everything before the cut is quantized. What lies between two cuts is kept for as many
 * windows as memory allows and computed again for the others, which gives the same numbers. */
typedef struct dq_walk {
    dq_env *env;
    dq_device *dev;
    int64_t nsamples, tokens, chunk; /* tokens in one go: whole windows */
    dq_block_spec spec;
    dq_workspace ws;  /* only while a cut is under way */
    dq_hidden hidden; /* [tokens, hidden]: residual stream between layers, updated in place */
    dq_tensor kept;   /* F32 [1, n]: attention outputs, later down_proj inputs, of the first windows; may be empty */
    dq_tensor *magnitude; /* F32 [1, n]: cuts add the mean |x| of each channel; NULL = not wanted */
    double seconds_forward, seconds_hessian;
} dq_walk;

/* Called after each chunk; anything but DQ_OK stops the walk. */
typedef struct dq_walk_tick {
    dq_status (*fn)(void *arg);
    void *arg;
} dq_walk_tick;

/* Embeds the windows. `budget`: bytes for `kept`; on a device with memory of its own, what is left beside `spare`, the bytes
 * that a layer and its solver need there. */
dq_status dq_walk_new(dq_model *model, const int32_t *windows, int64_t nsamples, int64_t seqlen, int math,
                      uint64_t budget, uint64_t spare, dq_walk **out);
void dq_walk_free(dq_walk *walk);

/* The cuts of one layer in order; each adds 2 / nsamples * X^T X to the lower triangle of h. */
typedef dq_status (*dq_walk_cut)(dq_walk *walk, const dq_block *block, dq_tensor *h, dq_walk_tick tick);
dq_status dq_walk_qkv(dq_walk *walk, const dq_block *block, dq_tensor *h, dq_walk_tick tick);
dq_status dq_walk_o(dq_walk *walk, const dq_block *block, dq_tensor *h, dq_walk_tick tick);
dq_status dq_walk_gate_up(dq_walk *walk, const dq_block *block, dq_tensor *h, dq_walk_tick tick);
dq_status dq_walk_down(dq_walk *walk, const dq_block *block, dq_tensor *h, dq_walk_tick tick);
/* The end of the layer: no Hessian. */
dq_status dq_walk_finish(dq_walk *walk, const dq_block *block, dq_walk_tick tick);

#endif
