/* libdartquant: the job that turns a model's linears into integer codes. Since 1.0.
 * RTN (round to nearest) or GPTQ, arXiv 2210.17323, on plain weights or on AWQ's, arXiv 2306.00978; activations and K / V are quantized on the fly by the model it yields.
 * SPDX-License-Identifier: Apache-2.0 */
#ifndef DARTQUANT_QUANTIZER_H
#define DARTQUANT_QUANTIZER_H

#include "dartquant/progress.h"
#include "dartquant/types.h"

#ifdef __cplusplus
extern "C" {
#endif

/* Order of calls: new, bind (GPTQ, AWQ, KVQuant), then run once or step until done, then take_model and the reports. After a
 * failure or a cancel the job can only be freed; the input model is never changed.
 * With save_qmodel_path the codes of each layer go to that folder as they are made, the last step adds the other tensors
 * and the manifest (nothing that opens as a model is there before), and take_model opens the folder. Without, codes stay
 * in memory. Where no weights are quantized (w_bits 16) there is one step, which only saves. */

/* Prepares a job. `config` (NULL = defaults): w_*, a_*, k_*, v_*, kv_*, act_order, static_groups, percdamp, nsamples, seqlen,
 * seed, math, save_qmodel_path, part_size. The model should be fused and rotated before if it is to be at all.
 * Errors: DQ_E_INVALID (options that contradict each other or the model's sizes), DQ_E_STATE (already quantized),
 * DQ_E_NOMEM. */
DQ_API dq_status dq_quantizer_new(dq_model *model, const dq_config *config, dq_quantizer **out);
/* NULL is accepted. */
DQ_API void dq_quantizer_free(dq_quantizer *quantizer);
/* *out = 1 when the job needs calibration data (GPTQ, AWQ, searched clip ratios, KVQuant), else 0. Errors: DQ_E_INVALID. */
DQ_API dq_status dq_quantizer_needs_data(const dq_quantizer *quantizer, int32_t *out);
/* Draws nsamples windows of seqlen tokens (dq_dataset_sample). The dataset may be freed afterwards. Ignored for RTN.
 * Errors: DQ_E_INVALID (other context), DQ_E_MISMATCH (id outside the vocabulary), DQ_E_STATE (already started), DQ_E_TEXT (too short),
 * DQ_E_NOMEM. */
DQ_API dq_status dq_quantizer_bind(dq_quantizer *quantizer, const dq_dataset *dataset);
/* Does one decoder layer. *done = 1 after the last, else 0. `cancel`, `progress` may be NULL.
 * Errors: DQ_E_STATE (nothing bound, already done or failed), DQ_E_CANCELLED, DQ_E_NONFINITE, DQ_E_NUMERIC, DQ_E_IO (spool
 * or weights), DQ_E_BACKEND, DQ_E_NOMEM. */
DQ_API dq_status dq_quantizer_step(dq_quantizer *quantizer, const dq_cancel *cancel, dq_progress_fn progress,
                                   void *user, int32_t *done);
/* All remaining steps. Errors as dq_quantizer_step. */
DQ_API dq_status dq_quantizer_run(dq_quantizer *quantizer, const dq_cancel *cancel, dq_progress_fn progress,
                                  void *user);
/* Hands over the quantized model; the caller frees it. Once per job. Errors: DQ_E_INVALID, DQ_E_STATE (not done, already
 * taken), DQ_E_NOMEM. */
DQ_API dq_status dq_quantizer_take_model(dq_quantizer *quantizer, dq_model **out);

/* JSON text: scheme {w, a, k, v, and where they are clip_ratios, kvquant {levels, outliers, sink, qnorm, key_bits, value_bits,
 * average_bits, tables}}; layers: [{layer, name, bits, error, damping}], error being tr(dW H dW^T) / tr(W H W^T)
 * for GPTQ and AWQ and |dW|^2 / |W|^2 for RTN; bits_per_weight (scales, zeros and indices included; null before take_model);
 * calibration {dataset, protocol, nsamples, seqlen, seed, fingerprint} or null; seconds {load, forward, hessian, solve,
 * write}; and the numbers of dq_quantizer_get_float. Describes what is done so far. *out is owned by the job, valid until the next call with it. Errors: DQ_E_INVALID, DQ_E_NOMEM. */
DQ_API dq_status dq_quantizer_report(dq_quantizer *quantizer, const char **out);
/* One number: "bits_per_weight", "layers_done", "layers_total", "max_error", "mean_error", "total_seconds".
 * Errors: DQ_E_NOTFOUND, DQ_E_INVALID, DQ_E_STATE (not known yet). */
DQ_API dq_status dq_quantizer_get_float(dq_quantizer *quantizer, const char *key, double *out);

#ifdef __cplusplus
}
#endif
#endif
