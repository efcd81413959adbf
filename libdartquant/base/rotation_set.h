/* Rotations as plain data: made by rotation/, folded by model/, applied online by graph/.
 * SPDX-License-Identifier: Apache-2.0 */
#ifndef DQ_BASE_ROTATION_SET_H
#define DQ_BASE_ROTATION_SET_H

#include "base/env.h"
#include "base/scheme.h"

/* A (block-diagonal) Hadamard transform of vectors of length blocks * n; n = k * 2^m. n == 0: absent. */
typedef struct dq_hadamard {
    int64_t n;
    int64_t blocks;
    int64_t k;
    int8_t *hk; /* [k, k] of +-1, NULL when k == 1 */
} dq_hadamard;

/* Which rotations a model gets (DartQuant / SpinQuant names; see docs/numerics.md):
 *   R1 [hidden, hidden]: residual stream x -> x R1.   R2 [kv_heads, head_dim, head_dim] per layer: v_g -> v_g R2_g.
 *   R3: Hadamard(head_dim) on q and k after RoPE.     R4: Hadamard(intermediate) on the down_proj input. */
typedef struct dq_rotation_set {
    dq_env *env;
    int64_t hidden, layers, kv_heads, heads, head_dim, intermediate;
    double *r1; /* [hidden, hidden] row-major, NULL = identity */
    dq_r2_mode r2_mode;
    double *r2;              /* OFFLINE: [layers, kv_heads, head_dim, head_dim] */
    dq_hadamard r2_heads;    /* ONLINE: order heads, across heads of the o_proj input */
    dq_hadamard r2_head_dim; /* ONLINE: order head_dim, folded into v_proj rows */
    dq_hadamard r3;          /* order head_dim */
    dq_hadamard r4;          /* order intermediate */
    char *origin;            /* how it was made, one line of text: "hadamard, seed 0", file names */
    char *manifest;          /* JSON object about how it was learnt; NULL = it was not */
} dq_rotation_set;

void dq_hadamard_clear(dq_hadamard *h);
dq_status dq_hadamard_copy(dq_env *env, const dq_hadamard *h, dq_hadamard *out);
dq_status dq_rotation_set_copy(const dq_rotation_set *set, dq_rotation_set **out);
void dq_rotation_set_free(dq_rotation_set *set); /* NULL is accepted */

#endif
