/* Search of clip ratios for activations, keys and values on calibration windows.
 * SPDX-License-Identifier: Apache-2.0 */
#ifndef DQ_QUANT_CLIP_H
#define DQ_QUANT_CLIP_H

#include "base/clips.h"
#include "model/model.h"

/* The ratios that are tried: 1, 1 - 1/40, ... */
enum { DQ_CLIP_CANDIDATES = 21, DQ_CLIP_STEP = 40 };
static inline double dq_clip_candidate(int i) { return 1.0 - (double)i / DQ_CLIP_STEP; }

/* Error of fake-quantized rows x [rows, groups*n] for every candidate: the sum over rows and groups of e_g G_g e_g^T, with
 * e the difference and G F32 [groups*n, n] one matrix for each group, or empty for the identity (groups then 1). Returns
 * the ratio with the smallest error, the larger of equals; `errors` may be NULL. `what` stands in messages. */
dq_status dq_clip_search(const dq_act_spec *spec, const char *what, const dq_tensor *x, const dq_tensor *gram, int math,
                         double errors[DQ_CLIP_CANDIDATES], double *best);

/* One pass of calibration windows through the model in full precision; a step is one layer. `wanted`: bits 1 << site. */
typedef struct dq_clip_job dq_clip_job;
dq_status dq_clip_job_new(dq_model *model, const dq_scheme *scheme, unsigned wanted, const int32_t *windows,
                          int64_t nsamples, int64_t seqlen, int math, dq_clip_job **out);
dq_status dq_clip_job_step(dq_clip_job *job, dq_progress *progress, bool *finished);
/* After the last step; the caller frees them. */
dq_clips *dq_clip_job_take(dq_clip_job *job);
double dq_clip_job_seconds(const dq_clip_job *job);
void dq_clip_job_free(dq_clip_job *job); /* NULL is accepted */

#endif
