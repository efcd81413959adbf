/* One rotation (R1), or the rotations of one layer's heads (R2), fitted to one set of rows, step by step.
 * SPDX-License-Identifier: Apache-2.0 */
#ifndef DQ_CALIB_FIT_H
#define DQ_CALIB_FIT_H

#include "base/progress.h"
#include "calib/loss.h"
#include "calib/rows.h"

typedef enum dq_fit_method {
    DQ_FIT_QR,            /* QR-Orth: a free matrix Z, R = Q factor of Z, gradient through the factorization */
    DQ_FIT_QR_RETRACTION, /* step along the tangent, Q factor brings it back */
    DQ_FIT_CAYLEY,        /* step along the curve of the Cayley transform */
    DQ_FIT_NEWTON_SCHULZ, /* step along the tangent, polar factor brings it back */
    DQ_FIT_POLAR_MM       /* majorise-minimise: no learning rate */
} dq_fit_method;
typedef enum dq_fit_optim { DQ_FIT_SGD, DQ_FIT_ADAM } dq_fit_optim;

typedef struct dq_fit_spec {
    dq_orbit orbit;
    dq_fit_method method;
    dq_loss loss;
    dq_fit_optim optim;
    double lr, momentum;   /* Adam: betas momentum and 0.999 */
    bool cosine;           /* lr falls to 0 along half a cosine */
    int64_t epochs, batch; /* activation rows in one gradient; 0 = an eighth of them, at least 16 n if there are */
    int64_t batches;      /* gradients in an epoch where that many are wanted (batches then shrink); 0 = as rows give */
    int64_t accumulation; /* gradients in one step */
    double mm_boldness, mm_memory; /* polar-mm: factor c on the curvature (1 = monotone, less = longer steps), EMA */
    double weight[DQ_ROW_KINDS];   /* of each kind in the loss; kinds without rows give theirs to the others */
    dq_quant_target quant[DQ_ROW_KINDS]; /* target bits of each kind, for its error in the report */
    int64_t quant_steps; /* polar-mm steps on relative quantization errors after the epochs (the finish); 0 = none */
    dq_loss finish[DQ_ROW_KINDS]; /* row-local; what such a step minimises for each kind */
    double finish_boldness, finish_memory;
    bool unit_rows;   /* every row counts as if it were scaled to RMS 1 */
    int64_t patience; /* epochs without gain on held-out rows before it stops; 0 = never */
    bool never_worse; /* than the start on held-out rows, see dq_fit_step */
    uint64_t seed;    /* of the initial rotation */
    bool compat;      /* the original program's ways, see docs/numerics.md */
    int math;         /* DQ_MATH_* */
    char name[32];    /* "R1", "R2 of layer 3": for warnings */
} dq_fit_spec;

/* What is known of one kind of rows: losses and errors on held-out rows where there are any, else on training rows, 16384
 * at most. */
typedef struct dq_fit_kind_report {
    int64_t rows_seen, rows_train, rows_held_out;
    double loss_before, loss_after;
    double error_before, error_after; /* mean relative quantization error at the target bits */
} dq_fit_kind_report;

typedef struct dq_fit_point {
    double loss;     /* of the step's batch, before the step */
    double held_out; /* weighted loss of the held-out rows after the step; NaN between epochs */
    double lr;
    bool finish; /* a step of the finish: `loss` is what it minimises, `held_out` the relative quantization error */
} dq_fit_point;

typedef struct dq_fit_report {
    dq_fit_kind_report kinds[DQ_ROW_KINDS];
    double loss_before, loss_after;        /* weighted over kinds */
    int64_t steps, steps_total, best_step; /* done, planned, the one whose rotation is the result */
    bool stopped_early;
    bool kept_start;       /* the fitted rotation had a larger error than the start on rows of the leading kind */
    double rejected_error; /* that error */
    int64_t diverged_step; /* -1 = never */
    double diverged_loss;
    double orthogonality; /* max |R^T R - I| of the result */
    double seconds;
    const dq_fit_point *history; /* [steps], owned by the fit */
} dq_fit_report;

typedef struct dq_fit dq_fit;

/* DQ_E_NUMERIC, with the measured error, unless matrix g of r F64 [groups * n, n] is orthogonal to 1e-3. */
dq_status dq_fit_check_rotation(dq_device *dev, const dq_orbit *orbit, int32_t g, const double *r);

/* `rows` (sealed; borrowed as long as the fit lives). initial: F64 [groups * n, n] host memory, orthogonal to 1e-3, or
 * NULL: a Hadamard matrix with random signs from the seed, the same for all groups. Errors: DQ_E_INVALID (spec and rows
 * that do not go together, all rows zero), DQ_E_NUMERIC (initial not orthogonal, with the measured error). */
dq_status dq_fit_new(dq_device *dev, const dq_fit_spec *spec, dq_rows *rows, const double *initial, dq_fit **out);
void dq_fit_free(dq_fit *fit); /* NULL is accepted */
/* One optimiser step, or nothing when the fit is done (a fit of no steps is so from the start). The last one also
 * evaluates: with `never_worse` the start is the result when it has a lower relative error on held-out rows of the leading
 * kind (activations, where there are any; training rows where none are held out). A loss that is not finite or far above
 * the start ends the fit with the best rotation so far: that is a success with `diverged_step` set and a warning in the
 * log. */
dq_status dq_fit_step(dq_fit *fit, bool *done);
bool dq_fit_done(const dq_fit *fit);
/* R F64 [groups * n, n], orthogonal to 1e-12; what is best so far when asked before the end. */
dq_status dq_fit_result(dq_fit *fit, double *out);
dq_status dq_fit_get_report(dq_fit *fit, dq_fit_report *out);
/* A fit that is done keeps only what result and report need, and nothing else may be asked; its rows may go. */
void dq_fit_let_go(dq_fit *fit);
/* Loss of the last step and the steps so far: for progress. */
double dq_fit_last_loss(const dq_fit *fit);
int64_t dq_fit_steps_done(const dq_fit *fit);
int64_t dq_fit_steps_total(const dq_fit *fit);

/* Everything that decides about the rest of the fit beyond spec and rows, as plain bytes (little-endian, of this machine's
 * layout). A fit made from the same spec and rows that imports it goes on to the same bits. */
dq_status dq_fit_export(dq_fit *fit, void **bytes, size_t *size); /* the caller frees with dq_free */
dq_status dq_fit_import(dq_fit *fit, const void *bytes, size_t size);

#endif
