/* The causal mask and the sliding window on transposed scores, for every attention kernel.
 * SPDX-License-Identifier: Apache-2.0 */
#ifndef DQ_CPU_ATTENTION_MASK_H
#define DQ_CPU_ATTENTION_MASK_H

#include "backend/cpu/attention.h"
#include "backend/cpu/vec.h"

VEC_INLINE int64_t attention_lanes(int64_t n) { return n < 0 ? 0 : n > VF ? VF : n; }

/* Lane i of row j, of `vectors` vectors, is query q0 + i against key k0 + j: hidden keys score below everything. */
VEC_INLINE void attention_mask(const dq_attention_block *b, int64_t q0, int64_t k0, int64_t keys, int vectors,
                               float *scores)
{
    vf hidden = vf_set1(DQ_ATTENTION_HIDDEN);
    for (int64_t j = 0; j < keys; j++) {
        int64_t begin = k0 + j - q0; /* first query that may see the key */
        for (int v = 0; v < vectors; v++) {
            float *p = scores + (j * vectors + v) * VF;
            vf s = vf_keep_n(hidden, vf_load(p), attention_lanes(begin - v * VF));
            if (b->window) s = vf_keep_n(s, hidden, attention_lanes(begin + b->window - v * VF));
            vf_store(p, s);
        }
    }
}

#endif
