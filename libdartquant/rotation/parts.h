/* Pieces of a rotation set, shared by the files of this room. SPDX-License-Identifier: Apache-2.0 */
#ifndef DQ_ROTATION_PARTS_H
#define DQ_ROTATION_PARTS_H

#include "base/rng.h"
#include "rotation/rotation.h"

/* Largest deviation from R^T R = I accepted in a file. */
#define DQ_ROTATION_TOLERANCE 1e-3

/* A random orthogonal [n, n] matrix from the generator. HADAMARD: diag(s) H^T / sqrt(n) with n random signs; sizes that
 * have no Hadamard matrix get the RANDOM kind: Q of a Gaussian matrix, columns multiplied by sign(diag R) (Haar measure).
 * out == NULL only consumes the draws. */
dq_status dq_rotation_draw(dq_device *dev, dq_rotate_mode mode, int64_t n, dq_rng *rng, double *out);

/* max |R^T R - I| of one [n, n] matrix; NaN when R is not finite. */
dq_status dq_rotation_matrix_error(dq_device *dev, const double *r, int64_t n, double *out);

/* Fill set->r1 or set->r2 (already allocated) from a file, checking shapes and orthogonality. */
dq_status dq_rotation_load_r1(dq_device *dev, const char *path, dq_rotation_set *set);
dq_status dq_rotation_load_r2(dq_device *dev, const char *path, dq_rotation_set *set);

#endif
