/* What the files of the fit share. SPDX-License-Identifier: Apache-2.0 */
#ifndef DQ_CALIB_FIT_JOB_H
#define DQ_CALIB_FIT_JOB_H

#include "calib/optim.h"

struct dq_fit {
    dq_device *dev;
    dq_env *env;
    dq_fit_spec spec;
    dq_rows *rows;
    double weight[DQ_ROW_KINDS]; /* of the kinds that have rows, summing up to 1 */
    dq_row_kind lead;            /* the kind whose rows make up an epoch */
    int64_t batch, batches;      /* rows of the lead in one gradient, gradients in an epoch */
    int64_t epoch_steps, total;  /* steps in an epoch, steps of the whole fit */
    int64_t tile;                /* rows that are gathered at a time */
    dq_optim optim;
    dq_tensor grad, buffer; /* F32 [groups * n, n]; [tile, width] */
    dq_tensor unit;         /* F32 [tile, width] with unit_rows */
    float *initial, *best;  /* [count] each: the start, the result so far */
    bool finish, done;
    int64_t steps;                      /* done */
    double start, best_loss, last_loss; /* of the present phase on the rows of evaluation */
    int64_t stale, above;               /* epochs without gain; epochs in a row that ended above the start */
    dq_fit_report report;
    dq_fit_point *history; /* [total] */
};

/* ---- fit_pass.c ---- */

/* Loss and gradient at optim.r over the gradient's batches of step `index` of `epoch`; fit->grad gets the gradient, for
 * polar-mm less the quadratic term. */
dq_status dq_fit_gradient(dq_fit *fit, int64_t epoch, int64_t index, double *loss);
/* Weighted mean over kinds on the rows of evaluation at F32 rotation r: of the loss, or of the finish's error. */
dq_status dq_fit_evaluate(dq_fit *fit, const dq_tensor *r, double *value);
/* Loss and relative quantization error of each kind at r, into report.kinds before or after. */
dq_status dq_fit_measure(dq_fit *fit, const dq_tensor *r, bool after);
/* DQ_E_INVALID when every row is zero. */
dq_status dq_fit_check_energy(dq_fit *fit);

#endif
