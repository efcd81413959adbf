/* libdartquant: perplexity of a model over a dataset. Since 1.0.
 * Windows of seqlen tokens without overlap, tail dropped, mean of the window means (GPTQ, arXiv 2210.17323).
 * SPDX-License-Identifier: Apache-2.0 */
#ifndef DARTQUANT_EVALUATOR_H
#define DARTQUANT_EVALUATOR_H

#include "dartquant/progress.h"
#include "dartquant/types.h"

#ifdef __cplusplus
extern "C" {
#endif

/* Order of calls: new, bind, run (or step until done), then the results. Binding again starts afresh. */

/* Prepares a job. `config` (NULL = defaults): seqlen, limit, math. Errors: DQ_E_INVALID, DQ_E_NOMEM. */
DQ_API dq_status dq_evaluator_new(dq_model *model, const dq_config *config, dq_evaluator **out);
/* NULL is accepted. */
DQ_API void dq_evaluator_free(dq_evaluator *evaluator);
/* Takes the ids. The dataset may be freed afterwards.
 * Errors: DQ_E_INVALID (other context), DQ_E_MISMATCH (id outside the vocabulary), DQ_E_TEXT (shorter than one window), DQ_E_NOMEM. */
DQ_API dq_status dq_evaluator_bind(dq_evaluator *evaluator, const dq_dataset *dataset);
/* Does a part of the work; *done = 1 when the result is there, else 0. A step is one decoder layer for all windows, or,
 * after the last layer, one tile of the vocabulary: weights are read once per layer, not once per window, so a step by
 * window would read the whole model for each. After a failure or a cancel the next step starts afresh. `cancel`, `progress`
 * may be NULL. Errors as dq_evaluator_run. */
DQ_API dq_status dq_evaluator_step(dq_evaluator *evaluator, const dq_cancel *cancel, dq_progress_fn progress,
                                   void *user, int32_t *done);
/* Runs all windows (those steps that are left, when there were some), one layer of weights in memory at a time. `cancel`, `progress` may be NULL. May be called again.
 * Errors: DQ_E_STATE (nothing bound), DQ_E_CANCELLED, DQ_E_NONFINITE (names the window), those of reading the weights,
 * DQ_E_BACKEND, DQ_E_NOMEM. */
DQ_API dq_status dq_evaluator_run(dq_evaluator *evaluator, const dq_cancel *cancel, dq_progress_fn progress,
                                  void *user);

/* For a host with a forward pass of its own: the same protocol and the same report, from its logits. Order of calls: new_host,
 * bind, then for each window of 0 .. "windows"-1 copy_ids and add_logits. Windows may come in any order; one that comes
 * again replaces the first. `config` (NULL = defaults): seqlen, limit. Errors: DQ_E_INVALID, DQ_E_NOMEM. */
DQ_API dq_status dq_evaluator_new_host(dq_context *ctx, int64_t vocab_size, const dq_config *config,
                                       dq_evaluator **out);
/* The ids of a window, int32 [seqlen], room for `capacity`. Errors: DQ_E_STATE (nothing bound), DQ_E_NOTFOUND (no such
 * window: there are no more), DQ_E_INVALID. */
DQ_API dq_status dq_evaluator_copy_ids(const dq_evaluator *evaluator, int64_t window, int32_t *out, size_t capacity);
/* logits fp32 [seqlen, vocab_size] of a window, `capacity` floats: row i after ids 0 .. i. *done = 1 when all windows are
 * there and the results can be asked for. Errors: DQ_E_STATE (nothing bound, or not made by new_host), DQ_E_NOTFOUND,
 * DQ_E_INVALID, DQ_E_NONFINITE, DQ_E_NOMEM. */
DQ_API dq_status dq_evaluator_add_logits(dq_evaluator *evaluator, int64_t window, const float *logits, size_t capacity,
                                         int32_t *done);

/* Results by key: "ppl", "nll" (nats per token), "top1_accuracy" (share of targets that have the largest logit), "windows", "tokens", "seqlen", "seconds", "tokens_per_second"; after
 * a comparison (dartquant/reference.h) "kl", "kl_max", "top1_agreement"; "integer_linears" (how many linears' products were those of integers, option
 * integer_products) where there are any.
 * Errors: DQ_E_STATE (not run), DQ_E_NOTFOUND, DQ_E_INVALID (not integral). */
DQ_API dq_status dq_evaluator_get_float(dq_evaluator *evaluator, const char *key, double *out);
DQ_API dq_status dq_evaluator_get_int(dq_evaluator *evaluator, const char *key, int64_t *out);
/* Loss of each window in nats: out fp64 [windows], room for `capacity`. Errors: DQ_E_STATE, DQ_E_INVALID. */
DQ_API dq_status dq_evaluator_copy_windows(const dq_evaluator *evaluator, double *out, size_t capacity);
/* JSON text with those results and `dataset` and `protocol`. *out is owned by the job, valid until the next call with it.
 * Errors: DQ_E_STATE, DQ_E_INVALID, DQ_E_NOMEM. */
DQ_API dq_status dq_evaluator_report(dq_evaluator *evaluator, const char **out);

#ifdef __cplusplus
}
#endif
#endif
