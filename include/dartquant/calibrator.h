/* libdartquant: learning rotations from activations. Since 1.0.
 * A rotation is fitted so that rotated activations lie evenly in the range a quantizer cuts: the Whip loss and QR-Orth of
 * DartQuant, arXiv 2511.04063, and alternatives behind the same job. SPDX-License-Identifier: Apache-2.0 */
#ifndef DARTQUANT_CALIBRATOR_H
#define DARTQUANT_CALIBRATOR_H

#include "dartquant/progress.h"
#include "dartquant/types.h"

#ifdef __cplusplus
extern "C" {
#endif

/* Two ways to the same optimiser.
 *
 * With a model: new, bind, run (or step until done), take_rotation. The job walks the layers once to gather inputs of the
 * linears, fits R2 of each layer while its rows are there, and R1 for the whole model at the end.
 *
 * With rows alone, for engines with a forward pass of their own: new_rows, add_rows batch by batch, run (or step until
 * done), copy_rotation. One job fits one R1 (heads = groups = 1), or the R2 of one layer.
 *
 * Options (NULL config = defaults): the area "rotation fitting", seed, math, memory_budget; a_bits, a_asym, a_clip_ratio
 * and w_bits name the target: of the last steps, and of quantization errors in the report (16 counts as 4 bits, asymmetric,
 * clipped at 0.9; so does the clipping of a_clip_ratio = auto). A result is never worse than the start by that error on
 * held-out activations, except with compat = upstream or a loss of the host's own. Results do not depend on the number of threads. After a failure or a cancel the job can only be asked for its report or
 * freed. All functions also fail with DQ_E_INVALID (NULL, sizes) and DQ_E_NOMEM. */

/* Kinds of rows (`kind` below). */
enum {
    DQ_CALIBRATION_ACTIVATIONS = 0, /* inputs of the linears that the rotation turns */
    DQ_CALIBRATION_SINKS = 1,  /* those of massive activations (attention sinks) that q, k and v read; sink_weight */
    DQ_CALIBRATION_WEIGHTS = 2 /* rows of those linears' weights, best scaled to RMS 1; weighted by weight_weight */
};

/* dq_rotation_loss.abi */
#define DQ_ROTATION_LOSS_ABI 1u

/* A loss of the host's own. */
typedef struct dq_rotation_loss {
    uint32_t struct_size; /* sizeof(dq_rotation_loss) */
    uint32_t abi;         /* DQ_ROTATION_LOSS_ABI */
    void *user;
    const char *name; /* for reports; copied, at most 63 bytes */
    /* o fp32 [rows, cols] without gaps: rotated rows. *loss = mean loss over these rows; grad fp32 [rows, cols] =
     * d loss / d o, or NULL when only the value is wanted. Comes on the thread that runs the job and must not call the
     * library. DQ_OK, or a negative status that then ends the job. */
    dq_status (*evaluate)(void *user, const float *o, int64_t rows, int64_t cols, float *grad, double *loss);
    /* Upper bound of the second derivative of one row's loss along any element, for method = polar-mm; 0 = unknown, then
     * that method is refused. */
    double curvature;
} dq_rotation_loss;

/* Prepares a job for `model`, whose norms must be fused (dq_model_fuse_norms) and which must be neither rotated nor
 * quantized. `config` (NULL = defaults): also target, nsamples, seqlen, temp_dir (for the part of the residual stream of all
 * windows that memory_budget, 1 GiB by default, does not hold), and the options of dq_rotation_new for what is not learnt;
 * for what is, r1_path, use_r1 = false and their like are refused.
 * Errors: DQ_E_INVALID (options), DQ_E_STATE (not fused, already rotated or quantized). */
DQ_API dq_status dq_calibrator_new(dq_model *model, const dq_config *config, dq_calibrator **out);
/* Draws nsamples windows of seqlen tokens (dq_dataset_sample). The dataset may be freed afterwards. Errors: DQ_E_INVALID
 * (other context), DQ_E_MISMATCH (id outside the vocabulary), DQ_E_STATE (started, or a job for rows), DQ_E_TEXT (too
 * short). */
DQ_API dq_status dq_calibrator_bind(dq_calibrator *calibrator, const dq_dataset *dataset);
/* Takes inputs that were captured before instead: what dq_model_capture wrote, or the files of the original scripts
 * (r1_train/sample_S_layer_L_self_attn_q_proj.pt and _mlp_up_proj.pt, r2_train/layer_L_self_attn_o_proj.pt; massive
 * activations cannot be told apart there). Errors: DQ_E_NOTFOUND (names what was looked for), DQ_E_MISMATCH (other sizes),
 * DQ_E_STATE, DQ_E_IO, DQ_E_FORMAT. */
DQ_API dq_status dq_calibrator_bind_folder(dq_calibrator *calibrator, const char *dir);

/* Gathers what a job with this model, config and dataset would learn from and writes it to folder `dir` (created if
 * absent). `config` (NULL = defaults): capture_format and what dq_calibrator_new reads. Files appear whole or not at all;
 * after a failure or a cancel all of them are removed. `cancel`, `progress` may be NULL; the model as in dq_calibrator_new.
 * Errors: DQ_E_INVALID, DQ_E_STATE, DQ_E_MISMATCH, DQ_E_TEXT, DQ_E_NONFINITE (names layer and token), DQ_E_IO,
 * DQ_E_CANCELLED, DQ_E_BACKEND, DQ_E_NOMEM. */
DQ_API dq_status dq_model_capture(dq_model *model, const dq_config *config, const dq_dataset *dataset, const char *dir,
                                  const dq_cancel *cancel, dq_progress_fn progress, void *user);

/* Prepares a job for rows of heads * n numbers of which head h turns by matrix h / (heads / groups): R1 is n = hidden size,
 * heads = groups = 1; R2 is n = head_dim, heads = query heads, groups = key/value heads, rows being inputs of o_proj.
 * Errors: DQ_E_INVALID (n < 2, groups do not divide heads, options). */
DQ_API dq_status dq_calibrator_new_rows(dq_context *ctx, const dq_config *config, int64_t n, int32_t heads,
                                        int32_t groups, dq_calibrator **out);
/* Adds a batch: x [rows, heads * n] of dtype F32, F16 or BF16, row_stride elements from one row to the next; copied. As many
 * rows stay as the option `budget` allows, drawn uniformly with `seed` from all that come.
 * Errors: DQ_E_STATE (started, or a job for a model), DQ_E_UNSUPPORTED (dtype), DQ_E_NONFINITE (names row and column;
 * nothing of the batch is added), DQ_E_BACKEND. */
DQ_API dq_status dq_calibrator_add_rows(dq_calibrator *calibrator, int32_t kind, const void *x, int64_t rows,
                                        int64_t row_stride, dq_dtype dtype);
/* Starts from r fp64 [groups, n, n] instead of a Hadamard matrix with random signs. Job for rows, before the first step.
 * Errors: DQ_E_STATE, DQ_E_NONFINITE, DQ_E_NUMERIC (not orthogonal; names the measured error). */
DQ_API dq_status dq_calibrator_set_initial(dq_calibrator *calibrator, const double *r, size_t count);

/* NULL is accepted. */
DQ_API void dq_calibrator_free(dq_calibrator *calibrator);
/* Uses the host's loss instead of option `loss`; before the first step. The table is copied, `user` must live as long as
 * the job. Errors: DQ_E_STATE (started). */
DQ_API dq_status dq_calibrator_set_loss(dq_calibrator *calibrator, const dq_rotation_loss *table);
/* One optimiser step of one rotation or, for a model, one layer of gathering. *done = 1 after the last, else 0.
 * `cancel`, `progress` may be NULL; events name the stage ("capture", "fit R1", "fit R2") and, of a fit, the loss.
 * A loss that grows out of bounds ends that rotation's fit with the best one so far: no error, see the report.
 * Errors: DQ_E_STATE (nothing bound, no rows, done or failed), DQ_E_CANCELLED, DQ_E_NONFINITE, DQ_E_NUMERIC, DQ_E_IO,
 * DQ_E_BACKEND. */
DQ_API dq_status dq_calibrator_step(dq_calibrator *calibrator, const dq_cancel *cancel, dq_progress_fn progress,
                                    void *user, int32_t *done);
/* All remaining steps. Errors as dq_calibrator_step. */
DQ_API dq_status dq_calibrator_run(dq_calibrator *calibrator, const dq_cancel *cancel, dq_progress_fn progress,
                                   void *user);

/* Saves the state between two steps to folder `dir`; see checkpoint.h for what a checkpoint is. Job for rows: the rows are
 * not saved, feed the same ones before restoring. Errors: DQ_E_STATE (not started, done or failed), DQ_E_IO. */
DQ_API dq_status dq_calibrator_checkpoint(dq_calibrator *calibrator, const char *dir);
/* Brings a job that has not started, with the same data, to the state in `dir`; it goes on to the same bits.
 * Errors: DQ_E_NOTFOUND, DQ_E_MISMATCH (another job's; names what differs), DQ_E_STATE, DQ_E_FORMAT, DQ_E_IO. */
DQ_API dq_status dq_calibrator_restore(dq_calibrator *calibrator, const char *dir);

/* Hands over the rotations of a job for a model: those dq_rotation_new would give with R1 and R2 learnt, and a manifest of
 * how (model, data, options, loss histories) that dq_rotation_save keeps. The caller frees them. Once per job.
 * Errors: DQ_E_STATE (not done, already taken, a job for rows). */
DQ_API dq_status dq_calibrator_take_rotation(dq_calibrator *calibrator, dq_rotation **out);
/* Copies the matrices of a job for rows to out fp64 [groups, n, n], capacity in numbers: orthogonal to 1e-12. Also
 * between two steps: the best so far. Errors: DQ_E_INVALID (capacity), DQ_E_STATE (not started, a job with a model). */
DQ_API dq_status dq_calibrator_copy_rotation(dq_calibrator *calibrator, double *out, size_t capacity);

/* JSON text: loss, method, optim, compat_upstream, the numbers of dq_calibrator_get_float, and rotations: [{name, n, heads,
 * groups, loss_before, loss_after, orthogonality_error (of the result, once done), steps, steps_total, best_step,
 * stopped_early, rejected_error (null, or the error of what was learnt when the start was better and is the result),
 * diverged: {step, loss} or null, seconds, kinds: [{kind, rows_seen, rows_train, rows_held_out, loss_before, loss_after,
 * error_before, error_after}], history: [{loss, held_out or null, lr, finish}]}]. Losses are means over rows, errors mean
 * relative squared quantization errors of a row; before and after on held-out rows where there are any, else on training
 * rows. In history `finish` marks steps of the finish: losses are what it minimises, held_out the error. *out is owned by
 * the job, valid until the next call with it. */
DQ_API dq_status dq_calibrator_report(dq_calibrator *calibrator, const char **out);
/* One number: "steps_done", "steps_total", "loss_before", "loss_after", "error_before", "error_after",
 * "orthogonality_error", "total_seconds". Means over rotations (errors: of their activation rows), the largest for
 * orthogonality_error.
 * Errors: DQ_E_NOTFOUND, DQ_E_STATE (not known yet). */
DQ_API dq_status dq_calibrator_get_float(dq_calibrator *calibrator, const char *key, double *out);

#ifdef __cplusplus
}
#endif
#endif
