/* libdartquant: jobs that outlive their process. Since 1.0.
 * SPDX-License-Identifier: Apache-2.0 */
#ifndef DARTQUANT_CHECKPOINT_H
#define DARTQUANT_CHECKPOINT_H

#include "dartquant/types.h"

#ifdef __cplusplus
extern "C" {
#endif

/* A checkpoint is a folder of its own with the state of one job after some step. It is written so that a process killed at
 * any moment leaves the previous one whole: new files beside the old, then one rename. A job restored from it gives the
 * same bits as one that was never interrupted, on the same device; on another device it goes on with a warning in the log.
 * A checkpoint of another job is refused (DQ_E_MISMATCH): the model as derived (weights, fused norms, rotations), the
 * options of the areas weights, activations, kv and calibration, seed, math, seqlen, limit, the library's version and
 * the token ids must be the same, and the message names what differs. Threads and memory_budget may differ. */

/* Quantizer. The first call comes after bind (or dq_quantizer_new for RTN) and before the first step: from then on codes
 * are kept in `dir`, too. Later calls, with the same `dir`, save the state after any step but the last. What was in `dir`
 * of an older checkpoint is replaced. Room needed: two times the boundary activations (nsamples * seqlen * hidden_size *
 * 4 bytes; none for RTN) and the codes. Errors: DQ_E_STATE (nothing bound, started without, done or failed), DQ_E_INVALID
 * (another dir), DQ_E_IO, DQ_E_BACKEND, DQ_E_NOMEM; after an error the job itself can go on. */
DQ_API dq_status dq_quantizer_checkpoint(dq_quantizer *quantizer, const char *dir);
/* Brings a job that has not started to the state in `dir`; bind the same data before. A sink or save_qmodel_path gets all
 * codes again. The job then keeps its checkpoints in `dir`. After an error the job is as it was.
 * Errors: DQ_E_NOTFOUND (no checkpoint), DQ_E_MISMATCH (another job's, or files that do not belong together),
 * DQ_E_STATE (started, nothing bound), DQ_E_FORMAT, DQ_E_UNSUPPORTED (version), DQ_E_IO, DQ_E_BACKEND, DQ_E_NOMEM. */
DQ_API dq_status dq_quantizer_restore(dq_quantizer *quantizer, const char *dir);

/* Evaluator, between steps (dq_evaluator_step) but not before the first or after the last. Room: two times windows *
 * seqlen * (hidden_size * 4 + 24) bytes. Errors as above. */
DQ_API dq_status dq_evaluator_checkpoint(dq_evaluator *evaluator, const char *dir);
DQ_API dq_status dq_evaluator_restore(dq_evaluator *evaluator, const char *dir);

/* *out = 1 when `dir` holds a checkpoint (of whatever job), else 0. Errors: DQ_E_INVALID, DQ_E_NOMEM. */
DQ_API dq_status dq_checkpoint_exists(dq_context *ctx, const char *dir, int32_t *out);
/* Removes the files of a checkpoint, and `dir` when nothing else is in it. A missing folder is no error.
 * Errors: DQ_E_INVALID, DQ_E_IO. */
DQ_API dq_status dq_checkpoint_remove(dq_context *ctx, const char *dir);

#ifdef __cplusplus
}
#endif
#endif
