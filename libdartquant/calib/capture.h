/* One pass of the calibration windows through the layers, in full precision: what the linears read is shown on the way.
 * SPDX-License-Identifier: Apache-2.0 */
#ifndef DQ_CALIB_CAPTURE_H
#define DQ_CALIB_CAPTURE_H

#include "model/hidden.h"
#include "model/model.h"

/* Where inputs are taken, in the order in which a layer reaches them: of q, k, v; of o; of gate, up. */
typedef enum dq_site { DQ_SITE_ATTN, DQ_SITE_O, DQ_SITE_MLP, DQ_SITES } dq_site;
/* The linear that names the site: "self_attn_q_proj", "self_attn_o_proj", "mlp_up_proj". */
const char *dq_site_name(dq_site site);
int64_t dq_site_width(const dq_arch *arch, dq_site site);

/* Inputs of one site: x F32 [tokens, width] are those of tokens first ... of all windows one after the other. */
typedef struct dq_inputs {
    int64_t layer, first;
    dq_site site;
    const dq_tensor *x;
} dq_inputs;

/* Anything but DQ_OK ends the pass. Functions may be NULL. */
typedef struct dq_visitor {
    void *arg;
    dq_status (*begin)(void *arg, int64_t layer); /* before the layer's first weights and inputs */
    /* Linears that are in memory now; the others' weights are empty. Each is shown once a layer. */
    dq_status (*weights)(void *arg, int64_t layer, const dq_block *block);
    dq_status (*inputs)(void *arg, const dq_inputs *in);
    dq_status (*tick)(void *arg, int64_t tokens); /* so many tokens of the layer are done */
} dq_visitor;

typedef struct dq_capture {
    dq_env *env;
    dq_device *dev;
    dq_model *model; /* fused, not rotated */
    dq_block_spec spec;
    int64_t nsamples, seqlen, tokens, chunk; /* tokens in one go: whole windows */
    int64_t layer;                           /* the next one */
    bool wants_norms;
    dq_hidden hidden; /* the residual stream before `layer` */
    double *norms;    /* [tokens]: of the stream's rows, when wanted */
} dq_capture;

/* DQ_E_STATE unless the model's norms are fused and it is neither rotated nor quantized. */
dq_status dq_capture_check_model(dq_model *model);
/* Embeds the windows. `most`: bytes of residual stream that may be resident, the rest goes to a file in `folder`. norms:
 * keep the stream's norms. */
dq_status dq_capture_new(dq_model *model, const int32_t *windows, int64_t nsamples, int64_t seqlen, int math,
                         uint64_t most, const char *folder, bool norms, dq_capture **out);
void dq_capture_free(dq_capture *c); /* NULL is accepted */
/* All windows through the next layer, first through its attention and then through its MLP, so that only one half of its
 * weights is in memory. Inputs or results that are not finite: DQ_E_NONFINITE names layer and token. */
dq_status dq_capture_layer(dq_capture *c, const dq_visitor *visitor);
/* The pass goes on at `layer`, whose stream was put in place. */
dq_status dq_capture_resume(dq_capture *c, int64_t layer);

#endif
