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

/* Order of calls: new, bind, run, then the results. Binding again starts afresh. */

/* Prepares a job. `config` (NULL = defaults): seqlen, limit, math. Errors: DQ_E_INVALID, DQ_E_NOMEM. */
DQ_API dq_status dq_evaluator_new(dq_model *model, const dq_config *config, dq_evaluator **out);
/* NULL is accepted. */
DQ_API void dq_evaluator_free(dq_evaluator *evaluator);
/* Takes the ids. The dataset may be freed afterwards.
 * Errors: DQ_E_INVALID (other context), DQ_E_MISMATCH (id outside the vocabulary), DQ_E_TEXT (shorter than one window), DQ_E_NOMEM. */
DQ_API dq_status dq_evaluator_bind(dq_evaluator *evaluator, const dq_dataset *dataset);
/* Runs all windows, one layer of weights in memory at a time. `cancel`, `progress` may be NULL. May be called again.
 * Errors: DQ_E_STATE (nothing bound), DQ_E_CANCELLED, DQ_E_NONFINITE (names the window), those of reading the weights,
 * DQ_E_BACKEND, DQ_E_NOMEM. */
DQ_API dq_status dq_evaluator_run(dq_evaluator *evaluator, const dq_cancel *cancel, dq_progress_fn progress,
                                  void *user);

/* Results by key: "ppl", "nll" (nats per token), "windows", "tokens", "seqlen", "seconds", "tokens_per_second".
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
