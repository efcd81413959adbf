/* What KVQuant (arXiv 2401.18079) knows about the keys and values of one model, layer by layer.
 * SPDX-License-Identifier: Apache-2.0 */
#ifndef DQ_BASE_KV_TABLES_H
#define DQ_BASE_KV_TABLES_H

#include "base/env.h"
#include "base/scheme.h"

struct dq_kv_tables {
    int64_t layers, channels;   /* channels: of all KV heads */
    int64_t k_levels, v_levels; /* in a table; 0 = left alone */
    /* All in one piece of memory, `count` floats, which `ranges` begins. */
    int64_t count;
    float *ranges; /* [layers, 2, channels]: lowest and highest key that are no outliers; none without k_levels */
    float *k;      /* [layers, k_levels], ascending on [-1, 1] */
    float *v;      /* [layers, v_levels] */
    float *norms;  /* [layers, 4]: Q-Norm's scale and offset of keys, of values; 1 and 0 = off */
};

/* Sizes from the scheme's bits. Ranges and levels zero, norms off. */
dq_status dq_kv_tables_new(dq_env *env, const dq_scheme *scheme, int64_t layers, int64_t channels, dq_kv_tables **out);
dq_status dq_kv_tables_copy(dq_env *env, const dq_kv_tables *tables, dq_kv_tables **out); /* NULL gives NULL */
void dq_kv_tables_free(dq_kv_tables *tables);                                             /* NULL is accepted */
/* Numbers a model can run with: ranges and levels finite and in order, norms with a positive scale. DQ_E_FORMAT with what is
 * wrong and where. */
dq_status dq_kv_tables_check(const dq_kv_tables *tables);
/* FNV-1a of all numbers, 64 bits. */
uint64_t dq_kv_tables_hash(const dq_kv_tables *tables);
/* Bits of a number on average: an outlier has 32 more, its value and its place in 16 bits each, as the paper counts. */
static inline double dq_kv_average_bits(const dq_kvquant_spec *s, int bits)
{
    return bits < 16 ? bits + 32 * s->outliers : 16;
}

/* "uniform", "nuq", "nf". */
extern const char *const dq_kv_levels_names[3];

#endif
