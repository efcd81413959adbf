/* Inside of a calibrator. What is common to both kinds of job lies in calibrator.c; the kinds differ in a table.
 * SPDX-License-Identifier: Apache-2.0 */
#ifndef DQ_API_CALIBRATOR_JOB_H
#define DQ_API_CALIBRATOR_JOB_H

#include "api/fit_config.h"
#include "api/handles.h"
#include "dartquant/calibrator.h"

struct dq_calibrate_job;

/* One kind of job. Functions get a job in the right state. */
typedef struct dq_calibrator_ops {
    const char *name; /* for checkpoints */
    /* Before the first step, and before restore. DQ_E_STATE when data is missing; the job stays as it is on failure. */
    dq_status (*start)(dq_calibrator *c);
    dq_status (*step)(dq_calibrator *c, bool *finished);
    /* Everything that decides about its bits, as an object of texts. */
    dq_status (*fingerprint)(dq_calibrator *c, json_t **out);
    /* Save the state between two steps into `dir` (`state`: members for its JSON), and load it into a started job. */
    dq_status (*save)(dq_calibrator *c, const char *dir, json_t *state);
    dq_status (*load)(dq_calibrator *c, const char *dir, const json_t *state);
    /* Appends an entry for each rotation so far; "seconds" of what is no fit. */
    dq_status (*report)(dq_calibrator *c, json_t *rotations, double *seconds);
    void (*count)(const dq_calibrator *c, int64_t *done, int64_t *total);
    void (*stop)(dq_calibrator *c);    /* back to not started */
    void (*destroy)(dq_calibrator *c); /* frees what the kind owns */
} dq_calibrator_ops;

typedef enum dq_calibrator_state {
    DQ_CALIBRATOR_READY,
    DQ_CALIBRATOR_RUNNING,
    DQ_CALIBRATOR_DONE,
    DQ_CALIBRATOR_TAKEN,
    DQ_CALIBRATOR_FAILED
} dq_calibrator_state;

struct dq_calibrator {
    dq_context *ctx;
    dq_config *config;
    const dq_calibrator_ops *ops;
    dq_calibrator_state state;
    dq_progress progress; /* of the call under way */
    bool has_loss;
    dq_rotation_loss loss;
    char loss_name[64];
    char *report;
    int slot; /* of the next checkpoint's tensors */
    /* a job for rows */
    dq_orbit orbit;
    dq_rows *rows; /* NULL until the first come */
    double *initial;
    dq_fit *fit;
    /* a job for a model: calibrator_model.c */
    dq_model *model;
    struct dq_calibrate_job *job;
    struct dq_calibration_data *data;
};

/* A job with context, config and table; NULL config = defaults. */
dq_status dq_calibrator_make(dq_context *ctx, const dq_config *config, const dq_calibrator_ops *ops,
                             dq_calibrator **out);
/* Frees at once. */
void dq_calibrator_destroy(void *calibrator);
/* DQ_E_STATE unless the job is of this kind. */
dq_status dq_calibrator_check_kind(const dq_calibrator *c, const dq_calibrator_ops *ops);
/* DQ_E_STATE once the first step was taken. */
dq_status dq_calibrator_check_fresh(const dq_calibrator *c);
/* The options that decide about a fit's bits, and the loss, into an object of texts. */
dq_status dq_calibrator_options_fingerprint(const dq_calibrator *c, json_t *out);

#endif
