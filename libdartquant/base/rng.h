/* MT19937 (Matsumoto and Nishimura 1998) as Python's `random` and torch's CPU generator use it.
 * SPDX-License-Identifier: Apache-2.0 */
#ifndef DQ_BASE_RNG_H
#define DQ_BASE_RNG_H

#include <stdint.h>

typedef struct dq_rng {
    uint32_t state[624];
    int index;
} dq_rng;

/* Single-word seeding (init_genrand): torch.manual_seed on the CPU. */
void dq_rng_seed_torch(dq_rng *rng, uint64_t seed);
/* Seeding of Python's random.seed(int) for a non-negative seed (init_by_array of its 32-bit words). */
void dq_rng_seed_python(dq_rng *rng, uint64_t seed);
uint32_t dq_rng_u32(dq_rng *rng);
/* Python's random.randrange(width): uniform in [0, width), width in 1..2^53. */
uint64_t dq_rng_below(dq_rng *rng, uint64_t width);
/* 53-bit uniform in [0, 1): Python's random.random(). */
double dq_rng_uniform(dq_rng *rng);
/* Standard normal by Box-Muller on dq_rng_uniform; our own stream, not torch's. */
double dq_rng_normal(dq_rng *rng);

#endif
