/* Inside of a calibration job, shared by its files. SPDX-License-Identifier: Apache-2.0 */
#ifndef DQ_CALIB_JOB_PARTS_H
#define DQ_CALIB_JOB_PARTS_H

#include "calib/job.h"

typedef enum dq_phase { DQ_PHASE_GATHER, DQ_PHASE_R2, DQ_PHASE_R1, DQ_PHASE_FINISHED } dq_phase;

struct dq_calibrate_job {
    dq_env *env;
    dq_device *dev;
    dq_model *model;
    const dq_arch *arch;
    dq_calibrate_spec spec;
    char *temp_dir;
    const int32_t *windows; /* borrowed */
    int64_t nsamples, seqlen;
    struct dq_folder *folder; /* borrowed; NULL = windows */
    dq_progress *progress;    /* of the step under way */
    bool failed;
    dq_phase phase;
    int64_t layer;      /* under way, or the next one */
    int64_t generation; /* counts changes of phase or layer */
    int64_t steps;      /* done */
    dq_capture *capture;
    dq_gather gather;
    dq_rows *rows[DQ_TARGETS];
    dq_fit *fit;        /* under way */
    double *r1, *r2;    /* results: [hidden, hidden]; [layers, kv_heads, d, d] */
    dq_learnt *learnt;  /* [layers + 1] */
    int64_t count;      /* of learnt */
    int64_t per_fit[2]; /* steps of one fit of the target; 0 = not known yet */
    double seconds_capture;
};

/* ---- job.c ---- */
dq_status dq_job_open_capture(dq_calibrate_job *job);
dq_status dq_job_open_rows(dq_calibrate_job *job, dq_target target);
/* The fit of a sealed row set begins. */
dq_status dq_job_open_fit(dq_calibrate_job *job, dq_target target);
int64_t dq_job_matrices(const dq_calibrate_job *job, dq_target target); /* numbers in one result */

#endif
