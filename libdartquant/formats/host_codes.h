/* Integer codes of one linear in host memory: what every layout is unpacked to and packed from.
 *   W[n, k] = scale[n, g] * (code[n, k] - zero[n, g]),  g = group_index[k], or k / group without one
 * SPDX-License-Identifier: Apache-2.0 */
#ifndef DQ_FORMATS_HOST_CODES_H
#define DQ_FORMATS_HOST_CODES_H

#include "base/env.h"

typedef struct dq_host_codes {
    dq_env *env;
    int bits;                       /* 2..8 */
    int64_t out, in, group, groups; /* group = columns per group, groups = ceil(in / group) */
    bool symmetric;                 /* all zeros are 2^(bits - 1) */
    uint8_t *codes;                 /* [out, in] */
    float *scale;                   /* [out, groups] */
    uint8_t *zero;                  /* [out, groups] */
    int32_t *group_index;           /* [in], NULL = column / group */
} dq_host_codes;

/* Memory for codes, scales and zeros (set to 2^(bits - 1)) as out, in, group and bits say; sets groups. */
dq_status dq_host_codes_alloc(dq_env *env, dq_host_codes *c);
void dq_host_codes_free(dq_host_codes *c);
/* Drops a group index that says nothing. */
void dq_host_codes_normalize(dq_host_codes *c);
/* Values that no quantizer writes: scales that are not finite, a scale of zero over codes that differ from their zero
 * point, group indices out of range or groups without columns. */
dq_status dq_host_codes_check(const dq_host_codes *c);
/* Sets `symmetric` from the zeros. */
void dq_host_codes_find_symmetry(dq_host_codes *c);
static inline int64_t dq_host_codes_group_of(const dq_host_codes *c, int64_t k)
{
    return c->group_index ? c->group_index[k] : k / c->group;
}

#endif
