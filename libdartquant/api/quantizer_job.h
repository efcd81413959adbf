/* Inside of a quantizer, shared by its files. SPDX-License-Identifier: Apache-2.0 */
#ifndef DQ_API_QUANTIZER_JOB_H
#define DQ_API_QUANTIZER_JOB_H

#include "api/handles.h"
#include "api/host_tensors.h"
#include "dartquant/quantizer.h"
#include "quant/clip.h"
#include "quant/kv_job.h"
#include "quant/quantize.h"

typedef enum dq_job_state { READY, RUNNING, DONE, TAKEN, FAILED } dq_job_state;

struct dq_quantizer {
    dq_context *ctx;
    dq_model *model;
    dq_config *config;
    dq_scheme scheme;
    unsigned auto_sites;  /* whose clip ratios are searched first */
    dq_clip_job *search;  /* under way */
    dq_clips *clips;      /* found; the scheme's */
    dq_kv_job *kv;        /* calibration of keys and values, under way */
    dq_kv_tables *tables; /* its result; the scheme's */
    double search_seconds;
    bool keeps_codes; /* the model's weights are quantized already: only activations change */
    int64_t nsamples, seqlen;
    uint64_t seed;
    dq_job_state state;
    dq_ids windows; /* [nsamples, seqlen]; empty = nothing bound */
    char *dataset, *protocol;
    char fingerprint[20]; /* of the calibration windows */
    const char *save_dir; /* "" = codes go to `spool`; inside config */
    dq_saver *saver;
    bool has_sink;       /* the result goes to the host */
    dq_tensor_sink sink; /* its table */
    dq_sink *spool;      /* codes on their way when nothing is saved */
    dq_source *store;    /* the finished codes of `spool` */
    dq_quantize_job *job;
    dq_model *scaled;         /* AWQ, after the last layer: what the codes belong to; NULL = `model` */
    struct dq_keeper *keeper; /* keeps codes for checkpoints; NULL = none wanted */
    dq_progress progress;
    double bits_per_weight; /* negative = not known yet */
    json_t *facts;
    char *report;
};

bool dq_quantizer_has_weights(const dq_quantizer *q); /* it quantizes weights, layer by layer */
bool dq_quantizer_is_bound(const dq_quantizer *q);    /* the data it needs is there */
/* Whether clip ratios are still to be found; begins that. */
bool dq_quantizer_searches(const dq_quantizer *q);
dq_status dq_quantizer_begin_search(dq_quantizer *q);
/* The ratios found (taken over) become the scheme's. */
void dq_quantizer_set_clips(dq_quantizer *q, dq_clips *clips);
/* The same of KVQuant's tables. */
bool dq_quantizer_lacks_tables(const dq_quantizer *q);
dq_status dq_quantizer_begin_tables(dq_quantizer *q);
void dq_quantizer_set_tables(dq_quantizer *q, dq_kv_tables *tables);
/* Opens output and job; the first step follows. */
dq_status dq_quantizer_start(dq_quantizer *q);
/* Takes back what dq_quantizer_start opened. */
void dq_quantizer_stop(dq_quantizer *q);

/* ---- quantizer_checkpoint.c ---- */
/* The sink that keeps codes in the checkpoint on their way to `target`. */
dq_sink *dq_keeper_before(struct dq_keeper *keeper, dq_sink *target);
void dq_keeper_free(struct dq_keeper *keeper); /* NULL is accepted */

#endif
