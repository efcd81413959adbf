/* libdartquant: what is kept of an evaluated model, so that other models can be compared with it. Since 1.0.
 * The comparison is exact: the divergence over the whole vocabulary, from the logits of both models, which are made tile by
 * tile from the last hidden states. So a reference holds tokens x hidden floats instead of tokens x vocabulary, and the
 * model for its head.
 * SPDX-License-Identifier: Apache-2.0 */
#ifndef DARTQUANT_REFERENCE_H
#define DARTQUANT_REFERENCE_H

#include "dartquant/types.h"

#ifdef __cplusplus
extern "C" {
#endif

/* Order of calls: dq_evaluator_keep_reference, the run of the reference model, dq_evaluator_take_reference; then for each
 * other model dq_evaluator_set_reference and its run, on the same dataset with the same seqlen and limit. */

/* Whether the next runs keep what a reference needs (keep = 1), or not (0, the default). Errors: DQ_E_STATE (an evaluator
 * for logits of the host). */
DQ_API dq_status dq_evaluator_keep_reference(dq_evaluator *evaluator, int32_t keep);
/* What the last run kept; can be taken once. Errors: DQ_E_STATE (no result, or nothing kept), DQ_E_NOMEM. */
DQ_API dq_status dq_evaluator_take_reference(dq_evaluator *evaluator, dq_reference **out);
/* The next runs compare with `reference` (NULL: no longer) and then have the results "kl" (mean Kullback-Leibler
 * divergence of the model's next-token distribution from the reference's, nats, over the positions that predict a token of
 * their window), "kl_max" (the largest of them) and "top1_agreement" (share of those positions where both models have the
 * same most probable token, the lowest id of equals). All other results are as without a reference, to the bit. The
 * reference may be freed afterwards. A run that is under way starts afresh. Data or sizes that differ are DQ_E_MISMATCH
 * when the run begins.
 * Errors: DQ_E_INVALID (another context), DQ_E_STATE (an evaluator for logits of the host), DQ_E_MISMATCH (another
 * vocabulary). */
DQ_API dq_status dq_evaluator_set_reference(dq_evaluator *evaluator, dq_reference *reference);
/* NULL is accepted. */
DQ_API void dq_reference_free(dq_reference *reference);
/* Writes NAME.safetensors, whole or not at all. Errors: DQ_E_INVALID (another name), DQ_E_IO. */
DQ_API dq_status dq_reference_save(const dq_reference *reference, const char *path);
/* Takes such a file up again. `model` is the one that was evaluated: the file has no weights, and refuses another model.
 * Errors: DQ_E_FORMAT, DQ_E_MISMATCH (another model, with the difference), DQ_E_IO, DQ_E_NOMEM. */
DQ_API dq_status dq_reference_open(dq_model *model, const char *path, dq_reference **out);
/* The report of the run that made it (dq_evaluator_report). *out is owned by the reference. Errors: DQ_E_INVALID. */
DQ_API dq_status dq_reference_report(const dq_reference *reference, const char **out);

#ifdef __cplusplus
}
#endif
#endif
