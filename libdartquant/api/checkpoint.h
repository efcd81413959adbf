/* Folders that hold the state of an interrupted job. SPDX-License-Identifier: Apache-2.0 */
#ifndef DQ_API_CHECKPOINT_H
#define DQ_API_CHECKPOINT_H

#include <jansson.h>

#include "backend/device.h"
#include "calib/state.h"
#include "dartquant/config.h"
#include "model/model.h"

/* A checkpoint is a state (JSON, replaced by one rename, which is the moment it counts) that names the other files: raw
 * tensors in two alternating slots, so that the old ones stay while the new ones are written, and codes in files that are
 * only ever added. */
#define DQ_CHECKPOINT_STATE "checkpoint.json"
#define DQ_CHECKPOINT_CODES "codes-%05d" /* .safetensors */

/* What a model is, as an object of texts: the file's weights and everything that was derived from them. */
dq_status dq_model_identity(dq_model *model, json_t **out);
json_t *dq_ids_fingerprint(const int32_t *ids, int64_t count);
/* DQ_E_MISMATCH "WHAT: w_bits is 4 there and 3 here; ..." when texts of `here` are not the same in `there`. */
dq_status dq_fingerprint_compare(const char *what, const json_t *there, const json_t *here);
/* Everything that decides about a job's bits, as an object of texts: the model as derived, the options, the ids. */
dq_status dq_job_fingerprint(dq_model *model, const dq_config *config, const int32_t *ids, int64_t count, json_t **out);

/* Writes the state (taken over): format, job, fingerprint and device are added. */
dq_status dq_checkpoint_write(dq_context *ctx, const char *dir, const char *job, const json_t *fingerprint,
                              json_t *state);
/* Reads it and refuses another job's, naming every difference. Another device is only worth a warning: going on after
 * a lost device is a use of checkpoints. */
dq_status dq_checkpoint_read(dq_context *ctx, const char *dir, const char *job, const json_t *fingerprint,
                             json_t **out);

/* The tensors one after the other as raw rows in slot 0 or 1; `out`: a record {file, bytes, hash} for the state. */
dq_status dq_checkpoint_save_tensors(dq_env *env, const char *dir, int slot, const dq_tensor *const *tensors, int count,
                                     json_t **out);
/* Back into tensors of the same shapes. */
dq_status dq_checkpoint_load_tensors(dq_env *env, const char *dir, const json_t *record, dq_tensor *const *tensors,
                                     int count);
/* Bytes that `save` writes, to STEM-0.bin or STEM-1.bin; and `load` on the bytes of that file, all of which it must read.
 * Stems: "calibration", "fit". */
dq_status dq_checkpoint_save_state(dq_env *env, const char *dir, const char *stem, int slot,
                                   dq_status (*save)(void *arg, const dq_put *put), void *arg, json_t **out);
dq_status dq_checkpoint_load_state(dq_env *env, const char *dir, const char *stem, const json_t *record,
                                   dq_status (*load)(void *arg, const dq_get *get), void *arg);
/* Removes every file a checkpoint may have; the folder stays when something else is in it. */
dq_status dq_checkpoint_clear(dq_env *env, const char *dir);

#endif
