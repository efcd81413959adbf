/* Captured inputs in a folder: written by one process, read by another, or by the original scripts. docs/formats.md.
 * SPDX-License-Identifier: Apache-2.0 */
#ifndef DQ_CALIB_FOLDER_H
#define DQ_CALIB_FOLDER_H

#include "calib/job.h"

/* ROWS: the drawn rows (safetensors, bounded by the budget). UPSTREAM: every input of every token, as the original program
 * writes them (PyTorch archives). */
enum { DQ_FOLDER_ROWS = 1, DQ_FOLDER_UPSTREAM = 2 };

/* ---- reading (folder.c) ---- */
typedef struct dq_folder dq_folder;
/* Looks what is there for the wanted rotations of a model with these sizes; drawn rows are preferred. DQ_E_NOTFOUND names
 * what was looked for. */
dq_status dq_folder_open(dq_env *env, const char *dir, const dq_arch *arch, const bool wanted[DQ_TARGETS],
                         dq_folder **out);
void dq_folder_free(dq_folder *f); /* NULL is accepted */
/* Tokens of the R1 files; 0 for drawn rows. */
int64_t dq_folder_tokens(const dq_folder *f);
int64_t dq_folder_windows(const dq_folder *f); /* sequences they are of, likewise */
/* JSON text about how drawn rows came about, or "". */
const char *dq_folder_manifest(const dq_folder *f);
/* Rows of one layer go to the gatherer's sets: drawn ones as they are, others through the visitor. */
dq_status dq_folder_layer(dq_folder *f, dq_model *model, int64_t layer, dq_gather *g, const dq_visitor *visitor);

/* ---- writing (folder_write.c) ---- */
/* One pass over the windows into dir; manifest: JSON object text for the drawn rows. After a failure or a cancel nothing of
 * it is left. spec: as for the job, of which fit is not looked at. */
dq_status dq_folder_write(dq_model *model, const dq_calibrate_spec *spec, const int32_t *windows, int64_t nsamples,
                          int64_t seqlen, int formats, const char *dir, const char *manifest, dq_progress *progress);

#endif
