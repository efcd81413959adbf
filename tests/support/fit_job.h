/* What the tests of a single fit share: rows, the usual options, and a fit on both. SPDX-License-Identifier: Apache-2.0 */
#ifndef DQ_TESTS_FIT_JOB_H
#define DQ_TESTS_FIT_JOB_H

#include "calib/fit.h"
#include "fixture.h"
#include "ok.h"

dq_rows *new_rows(fixture *f, int64_t width, dq_dtype dtype, uint64_t budget, double held_out);
void add_rows(fixture *f, dq_rows *rows, dq_row_kind kind, const float *x, int64_t count);
/* Heavy-tailed sources behind a mixing matrix, RMS 1: a rotation finds the sources' opposite. The caller frees them. */
float *heavy_rows(int64_t count, int64_t width, uint64_t seed);

dq_fit_spec usual_spec(int64_t n, int32_t heads, int32_t groups);

/* A fit on heavy rows of all three kinds. */
typedef struct fit_job {
    fixture f;
    dq_rows *rows;
    dq_fit *fit;
} fit_job;
void open_job(fit_job *j, int threads, const dq_fit_spec *spec); /* on the CPU */
void close_job(fit_job *j);
/* All steps that are left. */
void run_fit(dq_fit *fit);

/* R^T R = I within 1e-12 for each of the matrices. */
void check_orthogonal(const double *r, int64_t n, int32_t groups);

#endif
