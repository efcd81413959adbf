/* The K types of GGUF, one block of 256 values each. SPDX-License-Identifier: Apache-2.0 */
#ifndef DQ_FORMATS_GGUF_K_H
#define DQ_FORMATS_GGUF_K_H

#include <stdint.h>

void dq_encode_q4_k(const float *x, uint8_t *out);
void dq_encode_q6_k(const float *x, uint8_t *out);

#endif
