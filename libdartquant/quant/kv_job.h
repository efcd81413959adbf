/* Calibration of KVQuant (Hooper et al., arXiv 2401.18079): ranges of the key channels, levels, Q-Norm.
 * SPDX-License-Identifier: Apache-2.0 */
#ifndef DQ_QUANT_KV_JOB_H
#define DQ_QUANT_KV_JOB_H

#include "base/kv_tables.h"
#include "model/model.h"

/* Whether calibration windows are needed: not for values alone on levels that are known beforehand. */
bool dq_kv_needs_data(const dq_scheme *scheme);
/* Tables with such levels; ranges and non-uniform levels still missing. */
dq_status dq_kv_tables_begin(dq_model *model, const dq_scheme *scheme, dq_kv_tables **out);

/* One pass of all windows through the model in full precision; a step is one layer. Sink tokens are left out everywhere.
 * Keys: percentiles of each channel over all tokens are its range. Both: numbers inside their range, as parts u of its half
 * around its middle, weighted by the half's square (so that errors count as they will be made), go to a histogram, which
 * levels and Q-Norm are fitted to. A value's range is that of its token, as op levels_quant will find it.
 *
 * Memory: the hidden states of all windows, one layer, and the keys of as many channels at a time as fit in
 * env->memory_budget (0: in as much as the hidden states take, at least 64 MiB), each group of channels for one more pass
 * through the layer's k_proj. Results depend neither on it nor on the number of threads. */
typedef struct dq_kv_job dq_kv_job;
dq_status dq_kv_job_new(dq_model *model, const dq_scheme *scheme, const int32_t *windows, int64_t nsamples,
                        int64_t seqlen, int math, dq_kv_job **out);
dq_status dq_kv_job_step(dq_kv_job *job, dq_progress *progress, bool *finished);
/* After the last step; the caller frees them. */
dq_kv_tables *dq_kv_job_take(dq_kv_job *job);
double dq_kv_job_seconds(const dq_kv_job *job);
void dq_kv_job_free(dq_kv_job *job); /* NULL is accepted */

#endif
