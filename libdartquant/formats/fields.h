/* Small integers packed in 32-bit words: the one primitive behind the integer layouts of GPTQ, AWQ and
 * compressed-tensors (docs/formats.md). Pure functions on host memory. SPDX-License-Identifier: Apache-2.0 */
#ifndef DQ_FORMATS_FIELDS_H
#define DQ_FORMATS_FIELDS_H

#include "base/env.h"

/* Where value i of a line lies in the line's words. */
typedef enum dq_field_order {
    DQ_FIELDS_DENSE,  /* bits [i * bits, (i + 1) * bits) of the stream of words, low bits first */
    DQ_FIELDS_PADDED, /* floor(32 / bits) values per word, the rest unused (compressed-tensors before 0.17) */
    DQ_FIELDS_PLANAR, /* 32 values = `bits` words, bit planes of 4, 2 and 1 bits (gptq_p) */
    DQ_FIELDS_AWQ     /* 4 bits; value 8c + j in nibble [0,4,1,5,2,6,3,7][j] of word c (AutoAWQ's GEMM) */
} dq_field_order;

/* `lines` lines of `count` values. Word w of line l is words[l * line_step + w * word_step]; value i of it is
 * values[l * value_line_step + i * value_step]. */
typedef struct dq_fields {
    dq_field_order order;
    int bits;
    int64_t lines, count;
    int64_t line_step, word_step;
    int64_t value_line_step, value_step;
} dq_fields;

/* Words of one line. PLANAR and AWQ need whole groups of 32 and 8 values: dq_fields_fit. */
int64_t dq_fields_words(dq_field_order order, int bits, int64_t count);
bool dq_fields_fit(dq_field_order order, int bits, int64_t count);
void dq_fields_unpack(dq_env *env, const dq_fields *f, const uint32_t *words, uint8_t *values);
/* `words` must be zeroed; values must be below 2^bits. */
void dq_fields_pack(dq_env *env, const dq_fields *f, const uint8_t *values, uint32_t *words);

#endif
