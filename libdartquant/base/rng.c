/* SPDX-License-Identifier: Apache-2.0 */
#include "base/rng.h"

#include <math.h>

enum { N = 624, M = 397 };

static void init_genrand(dq_rng *rng, uint32_t seed)
{
    rng->state[0] = seed;
    for (uint32_t i = 1; i < N; i++) rng->state[i] = 1812433253u * (rng->state[i - 1] ^ (rng->state[i - 1] >> 30)) + i;
    rng->index = N;
}

void dq_rng_seed_torch(dq_rng *rng, uint64_t seed) { init_genrand(rng, (uint32_t)seed); }

void dq_rng_seed_python(dq_rng *rng, uint64_t seed)
{
    uint32_t key[2] = {(uint32_t)seed, (uint32_t)(seed >> 32)};
    uint32_t length = key[1] ? 2 : 1;
    init_genrand(rng, 19650218u);
    uint32_t *s = rng->state;
    uint32_t i = 1, j = 0;
    for (uint32_t k = N; k; k--) {
        s[i] = (s[i] ^ ((s[i - 1] ^ (s[i - 1] >> 30)) * 1664525u)) + key[j] + j;
        if (++i >= N) {
            s[0] = s[N - 1];
            i = 1;
        }
        if (++j >= length) j = 0;
    }
    for (uint32_t k = N - 1; k; k--) {
        s[i] = (s[i] ^ ((s[i - 1] ^ (s[i - 1] >> 30)) * 1566083941u)) - i;
        if (++i >= N) {
            s[0] = s[N - 1];
            i = 1;
        }
    }
    s[0] = 0x80000000u;
}

static void refill(dq_rng *rng)
{
    uint32_t *s = rng->state;
    for (int k = 0; k < N; k++) {
        uint32_t y = (s[k] & 0x80000000u) | (s[(k + 1) % N] & 0x7fffffffu);
        s[k] = s[(k + M) % N] ^ (y >> 1) ^ ((y & 1u) ? 0x9908b0dfu : 0u);
    }
    rng->index = 0;
}

uint32_t dq_rng_u32(dq_rng *rng)
{
    if (rng->index >= N) refill(rng);
    uint32_t y = rng->state[rng->index++];
    y ^= y >> 11;
    y ^= (y << 7) & 0x9d2c5680u;
    y ^= (y << 15) & 0xefc60000u;
    return y ^ (y >> 18);
}

uint64_t dq_rng_below(dq_rng *rng, uint64_t width)
{
    int bits = 0;
    for (uint64_t w = width; w; w >>= 1) bits++;
    for (;;) {
        uint64_t r;
        if (bits <= 32) {
            r = dq_rng_u32(rng) >> (32 - bits);
        } else {
            /* getrandbits: low word first, the last word keeps its top bits */
            uint64_t low = dq_rng_u32(rng);
            uint64_t high = dq_rng_u32(rng) >> (64 - bits);
            r = low | (high << 32);
        }
        if (r < width) return r;
    }
}

double dq_rng_uniform(dq_rng *rng)
{
    uint32_t a = dq_rng_u32(rng) >> 5, b = dq_rng_u32(rng) >> 6;
    return (a * 67108864.0 + b) / 9007199254740992.0;
}

double dq_rng_normal(dq_rng *rng)
{
    double u = 1.0 - dq_rng_uniform(rng); /* (0, 1] */
    double v = dq_rng_uniform(rng);
    return sqrt(-2.0 * log(u)) * cos(6.283185307179586476925 * v);
}
