/* Choosing the next token from logits. The choice depends on the logits, the settings and the numbers named here, on
 * nothing else. SPDX-License-Identifier: Apache-2.0 */
#ifndef DQ_GENERATE_SAMPLER_H
#define DQ_GENERATE_SAMPLER_H

#include "base/env.h"
#include "dartquant/types.h"

typedef struct dq_sampling {
    double temperature; /* 0 = the largest logit, the lowest id of equals */
    int64_t top_k;      /* 0 = all */
    double top_p;       /* 1 = all */
    uint64_t seed;
} dq_sampling;

dq_status dq_sampling_check(const dq_sampling *s);
/* Logits / temperature, then the top_k largest, then the fewest whose probabilities reach top_p, as transformers does; one
 * of them by a uniform number made from seed, sequence and position. Logits must be finite (DQ_E_NONFINITE). */
dq_status dq_sample(dq_env *env, const dq_sampling *s, const float *logits, int64_t vocab, int64_t sequence,
                    int64_t position, int32_t *out);

#endif
