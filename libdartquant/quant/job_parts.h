/* The weight quantization job, shared by its files. SPDX-License-Identifier: Apache-2.0 */
#ifndef DQ_QUANT_JOB_PARTS_H
#define DQ_QUANT_JOB_PARTS_H

#include "quant/parts.h"
#include "quant/walk.h"

struct dq_quantize_job {
    dq_env *env;
    dq_model *model;
    const dq_arch *arch;
    dq_weight_spec spec;
    dq_sink *sink;
    dq_walk *walk;         /* NULL for RTN */
    dq_scales *scales;     /* found so far; NULL without AWQ */
    dq_progress *progress; /* of the step under way */
    int64_t layer;
    double metric; /* error of the last linear */
    bool failed;
    dq_quantize_report report;
};

dq_status dq_job_tick(void *job);
/* Hands the codes to the sink and adds a line to the report. */
dq_status dq_job_deliver(dq_quantize_job *job, dq_role role, const dq_codes *codes, double error, double damping);
/* Names the linear in an error. */
dq_status dq_job_name_error(const dq_quantize_job *job, dq_role role, dq_status status);
/* GPTQ of one linear, whose weight in the block becomes its quantized value, so that later cuts see it. divide: rows of
 * the result are divided by these (AWQ's scales of what reads them), NULL = not. */
dq_status dq_job_gptq_linear(dq_quantize_job *job, const dq_gptq_plan *plan, dq_role role, dq_linear *linear,
                             const float *divide);
/* Linears first .. last read the same input: one Hessian, one factor. */
dq_status dq_job_gptq_stage(dq_quantize_job *job, dq_block *block, dq_walk_cut cut, int first, int last);

/* ---- awq_layer.c ---- */
/* Scales and codes of the layer. RTN: the walk goes on in full precision, as published. GPTQ: with quantized layers. */
dq_status dq_job_awq_layer(dq_quantize_job *job, dq_block *block);

/* The first linear that reads the input of the MLP. */
int dq_job_first_mlp(const dq_quantize_job *job);

#endif
