/* Rows a rotation is fitted to: inputs of linears, kept on the device within a byte budget.
 * SPDX-License-Identifier: Apache-2.0 */
#ifndef DQ_CALIB_ROWS_H
#define DQ_CALIB_ROWS_H

#include "backend/device.h"
#include "calib/state.h"

/* Every kind has storage of its own, its own weight in the loss and its own line in the report. */
typedef enum dq_row_kind {
    DQ_ROWS_ACTIVATION, /* inputs of linears */
    DQ_ROWS_SINK,       /* massive activations: rare rows whose residual has many times the usual norm */
    DQ_ROWS_WEIGHT,     /* rows of the weights that will turn by the same rotation, scaled to RMS 1 */
    DQ_ROW_KINDS
} dq_row_kind;

/* "activation", "sink", "weight". */
const char *dq_row_kind_name(dq_row_kind kind);

typedef enum dq_row_part { DQ_ROWS_TRAIN, DQ_ROWS_HELD_OUT, DQ_ROW_PARTS } dq_row_part;

typedef struct dq_rows_spec {
    int64_t width;   /* columns: n, or heads * n */
    dq_dtype dtype;  /* of the storage: F32, F16, BF16 */
    uint64_t budget; /* bytes for all kinds together */
    /* Part of the budget for each kind, summing up to at most 1; a kind with 0 takes no rows. At least one row each. */
    double share[DQ_ROW_KINDS];
    double held_out; /* [0, 0.5]: part of the rows of each kind that is not trained on */
    uint64_t seed;
} dq_rows_spec;

typedef struct dq_rows dq_rows;

dq_status dq_rows_new(dq_device *dev, const dq_rows_spec *spec, dq_rows **out);
void dq_rows_free(dq_rows *rows); /* NULL is accepted */

/* Copies x [m, width] F32, F16 or BF16 (rounded to the storage's dtype). Beyond the capacity of a kind a uniform draw of
 * all rows ever added stays (reservoir, Vitter 1985): which, depends on the seed and the order of the rows, not on how
 * they are cut in calls. Storage grows in steps; while it does, an eighth of the budget at most is there twice. NaN or Inf:
 * DQ_E_NONFINITE names row (of this call) and column, nothing is added. DQ_E_STATE once sealed. */
dq_status dq_rows_add(dq_rows *rows, dq_row_kind kind, const dq_tensor *x);
/* The same without looking for NaN and Inf, for rows of which the caller knows, or finds out before the set is used: the
 * device is not waited for. */
dq_status dq_rows_add_finite(dq_rows *rows, dq_row_kind kind, const dq_tensor *x);
/* So many rows of the kind will come in all: room is made for them once. More or fewer may come. */
dq_status dq_rows_expect(dq_rows *rows, dq_row_kind kind, int64_t count);
/* Parts the rows of each kind in training and held-out ones by a seeded draw. No rows at all: DQ_E_INVALID. The
 * held-out part of a kind has floor(held_out * rows) rows and may be empty. */
dq_status dq_rows_seal(dq_rows *rows);
/* More rows may come again; nothing must be fitting to them. */
void dq_rows_unseal(dq_rows *rows);
bool dq_rows_sealed(const dq_rows *rows);

const dq_rows_spec *dq_rows_get_spec(const dq_rows *rows);
dq_device *dq_rows_device(const dq_rows *rows);
int64_t dq_rows_seen(const dq_rows *rows, dq_row_kind kind);                   /* ever added */
int64_t dq_rows_count(const dq_rows *rows, dq_row_kind kind);                  /* kept */
int64_t dq_rows_part(const dq_rows *rows, dq_row_kind kind, dq_row_part part); /* 0 before sealing */
int64_t dq_rows_capacity(const dq_rows *rows, dq_row_kind kind);               /* most that are kept */
/* The kept rows in the order in which they lie; borrowed, empty when there are none. */
dq_tensor dq_rows_view(const dq_rows *rows, dq_row_kind kind);
/* Everything in the set, and back into a fresh one of the same spec: more rows may follow as if nothing had happened. A set
 * that was sealed is to be sealed again. */
dq_status dq_rows_save(const dq_rows *rows, const dq_put *put);
dq_status dq_rows_load(dq_rows *rows, const dq_get *get);
/* FNV-1a of all kept rows in order. */
dq_status dq_rows_fingerprint(const dq_rows *rows, uint64_t *out);

/* Rows [first, first + count) of a part in the order of `epoch` (every epoch of the training part has a seeded order of its
 * own; held-out rows always have the same) into out [count, width] of the storage's dtype. */
dq_status dq_rows_batch(dq_rows *rows, dq_row_kind kind, dq_row_part part, int64_t epoch, int64_t first, int64_t count,
                        dq_tensor *out);

#endif
