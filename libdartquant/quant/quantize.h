/* Weight quantization of a whole model, layer by layer. SPDX-License-Identifier: Apache-2.0 */
#ifndef DQ_QUANT_QUANTIZE_H
#define DQ_QUANT_QUANTIZE_H

#include "model/model.h"

typedef struct dq_linear_report {
    int64_t layer;
    dq_role role;
    int bits;
    double error;   /* GPTQ, AWQ: tr(dW H dW^T) / tr(W H W^T); RTN: |dW|^2 / |W|^2 */
    double damping; /* share of the mean diagonal that made the factorization succeed; 0 for RTN */
} dq_linear_report;

typedef struct dq_quantize_report {
    dq_linear_report *linears; /* owned by the job */
    int64_t count;
    double seconds_load, seconds_forward, seconds_hessian, seconds_solve, seconds_write;
} dq_quantize_report;

/* One linear: fills `out` (allocated inside). w F32 [out, in] on the device may be overwritten with scratch. h: Hessian sum
 * of the linear's inputs (F32 [in, in]; only the lower triangle counts, above it anything finite), or NULL for RTN. A
 * Hessian that cannot be factored gets ten times the damping until it can, up to 10 times the mean diagonal; then every
 * diagonal entry is raised to its row sum; the share that was needed comes back in *damping. */
dq_status dq_quantize_linear(const dq_weight_spec *spec, dq_tensor *w, const dq_tensor *h, dq_codes *out, double *error,
                             double *damping);

/* A job that is stepped one layer at a time. windows: nsamples * seqlen calibration ids (NULL for RTN; needed during
 * _new only). Codes go to `sink` under the linears' names as they are found (the caller finishes the sink); the model
 * stays as it is. A step that fails or is cancelled ends the job.
 *
 * Memory: resident are the residual stream of all windows (F32), one layer in F32, one Hessian, and in turn its factor
 * or a workspace of 2048 tokens (one window when longer). Attention outputs and down_proj inputs are kept between two cuts for as
 * many windows as env->memory_budget bytes hold and computed again for the others; codes do not depend on it. Budget 0
 * (automatic): a quarter of (weights file + residual stream + layer in F32 + its Hessians) less the larger of
 * workspace and solver scratch, so that the peak stays within 1.3 times that sum. */
typedef struct dq_quantize_job dq_quantize_job;
dq_status dq_quantize_job_new(dq_model *model, const dq_scheme *scheme, const int32_t *windows, int64_t nsamples,
                              int64_t seqlen, int math, dq_sink *sink, dq_quantize_job **out);
dq_status dq_quantize_job_step(dq_quantize_job *job, dq_progress *progress, bool *finished);
/* What a job needs beside the codes to go on later: the residual stream between layers, F32 [tokens, hidden]; empty for
 * RTN. Borrowed; may be overwritten before dq_quantize_job_resume. */
dq_tensor dq_quantize_job_stream(const dq_quantize_job *job);
/* AWQ: the scales of the layers done so far, 1 for the others; belong to the next model, as codes are those of scaled
 * weights. NULL without AWQ. Written before dq_quantize_job_resume. */
dq_scales *dq_quantize_job_scales(dq_quantize_job *job);
/* A fresh job goes on at `layer`, whose stream was put in place; `done`: the reports of the linears before it, and the
 * times so far. */
dq_status dq_quantize_job_resume(dq_quantize_job *job, int64_t layer, const dq_quantize_report *done);
/* Valid until the job is freed. */
const dq_quantize_report *dq_quantize_job_report(const dq_quantize_job *job);
void dq_quantize_job_free(dq_quantize_job *job);

#endif
