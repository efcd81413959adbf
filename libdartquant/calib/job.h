/* Learning the rotations of a model: one pass over the layers gathers rows, R2 of a layer is fitted while that layer's rows
 * are there, R1 at the end. SPDX-License-Identifier: Apache-2.0 */
#ifndef DQ_CALIB_JOB_H
#define DQ_CALIB_JOB_H

#include "base/rotation_set.h"
#include "calib/fit.h"
#include "calib/gather.h"

typedef enum dq_target { DQ_TARGET_R1, DQ_TARGET_R2, DQ_TARGETS } dq_target;

typedef struct dq_calibrate_spec {
    bool wanted[DQ_TARGETS];
    dq_fit_spec fit[DQ_TARGETS];   /* orbit and seed are filled in by the job */
    dq_rows_spec rows[DQ_TARGETS]; /* so are width and seed; R2: for the rows of one layer */
    bool r2_shared;                /* one R2 for all heads of a layer */
    double sink_ratio;             /* see dq_gather */
    int64_t upstream_files;        /* compat: files (a window at one site) in a step of R1; 0 = not that */
    uint64_t seed;
    int math;             /* DQ_MATH_* of the pass over the layers */
    uint64_t stream_most; /* bytes of residual stream that may be resident; */
    const char *temp_dir; /* the rest lies here ("" = resident all the same) */
} dq_calibrate_spec;

/* What is known of one learnt rotation; fit.history belongs to the job. */
typedef struct dq_learnt {
    dq_target target;
    int64_t layer; /* -1 for R1 */
    dq_orbit orbit;
    dq_fit_report fit;
} dq_learnt;

/* "R1", "R2 of layer 3" */
void dq_learnt_name(dq_target target, int64_t layer, char name[32]);

/* Inputs that were captured before, instead of windows: folder.h. */
struct dq_folder;

typedef struct dq_calibrate_job dq_calibrate_job;
/* windows: nsamples * seqlen ids (needed during the first step, too), or NULL and `folder` (borrowed). The model must be
 * fused and neither rotated nor quantized. */
dq_status dq_calibrate_job_new(dq_model *model, const dq_calibrate_spec *spec, const int32_t *windows, int64_t nsamples,
                               int64_t seqlen, struct dq_folder *folder, dq_calibrate_job **out);
void dq_calibrate_job_free(dq_calibrate_job *job); /* NULL is accepted */
/* One layer of gathering, or one optimiser step. A step that fails or is cancelled ends the job. */
dq_status dq_calibrate_job_step(dq_calibrate_job *job, dq_progress *progress, bool *finished);
/* Steps so far and about how many there will be. */
void dq_calibrate_job_count(const dq_calibrate_job *job, int64_t *done, int64_t *total);
/* The rotations learnt so far, and the one under way, if any (`current` is then filled and true returned). */
const dq_learnt *dq_calibrate_job_learnt(const dq_calibrate_job *job, int64_t *count);
bool dq_calibrate_job_current(dq_calibrate_job *job, dq_learnt *current);
/* Seconds spent on the pass over the layers. */
double dq_calibrate_job_seconds_capture(const dq_calibrate_job *job);
/* Writes what was learnt over R1 and R2 of a set of the model's sizes (whose arrays exist). Only when finished. */
dq_status dq_calibrate_job_result(const dq_calibrate_job *job, dq_rotation_set *set);

/* State between two steps, in two parts: `bulk` (streams, rows, finished rotations) changes only when the generation does,
 * `rest` with every step. Loading takes a fresh job of the same model, spec and data; bulk first. */
int64_t dq_calibrate_job_generation(const dq_calibrate_job *job);
dq_status dq_calibrate_job_save_bulk(dq_calibrate_job *job, const dq_put *put);
dq_status dq_calibrate_job_save_rest(dq_calibrate_job *job, const dq_put *put);
dq_status dq_calibrate_job_load_bulk(dq_calibrate_job *job, const dq_get *get);
dq_status dq_calibrate_job_load_rest(dq_calibrate_job *job, const dq_get *get);

#endif
