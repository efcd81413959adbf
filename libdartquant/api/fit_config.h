/* From options to the fit of a rotation, and from its report to JSON. SPDX-License-Identifier: Apache-2.0 */
#ifndef DQ_API_FIT_CONFIG_H
#define DQ_API_FIT_CONFIG_H

#include <jansson.h>

#include "calib/fit.h"
#include "dartquant/calibrator.h"
#include "dartquant/config.h"

/* The options of area "rotation fitting" for one problem; orbit.heads > 1 is an R2. */
dq_status dq_fit_spec_from_config(const dq_config *config, const dq_orbit *orbit, dq_fit_spec *out);
/* Whether compat = upstream puts a value of its own in the place of this option's default. */
bool dq_fit_option_overruled(const dq_config *config, const char *name);
/* The method that is used. */
dq_status dq_fit_method_text(const dq_config *config, const char **out);
/* compat = upstream: files in a step of R1; 0 otherwise. */
int64_t dq_fit_upstream_files(const dq_config *config);
/* Where its rows are kept. */
dq_status dq_rows_spec_from_config(const dq_config *config, const dq_orbit *orbit, dq_dtype dtype, dq_rows_spec *out);

dq_status dq_host_loss_check(const dq_rotation_loss *table, dq_rotation_loss *out);
/* Takes the host's loss instead, whatever it does to the error; `table` must live as long as the spec. */
void dq_fit_spec_set_host_loss(dq_fit_spec *spec, const dq_rotation_loss *table);

/* One entry of "rotations" in the report. */
json_t *dq_fit_report_json(const char *name, const dq_orbit *orbit, const dq_fit_report *report);

#endif
