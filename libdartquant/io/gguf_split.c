/* GGUF block types taken apart into codes, scales and minima, without loss: what gguf_dequant.c computes from a block is
 * scale * (code - 2^(bits-1)), or scale * code + minimum, operation by operation the same.
 * SPDX-License-Identifier: Apache-2.0 */
#include "base/half.h"
#include "io/decode.h"

enum { QK = 32, QK_K = 256 }; /* elements of a block */

static float load_half(const uint8_t *p) { return dq_f16_to_f32(dq_load_u16(p)); }

static void nibbles(const uint8_t *src, uint8_t *codes)
{
    for (int j = 0; j < QK / 2; j++) {
        codes[j] = src[j] & 15;
        codes[j + QK / 2] = src[j] >> 4;
    }
}

static void fifth_bits(uint32_t high, uint8_t *codes)
{
    for (unsigned j = 0; j < QK; j++) codes[j] = (uint8_t)(codes[j] | (high >> j & 1u) << 4);
}

static void q4_0(const uint8_t *src, uint8_t *codes, float *scale, float *minimum)
{
    (void)minimum;
    scale[0] = load_half(src);
    nibbles(src + 2, codes);
}

static void q4_1(const uint8_t *src, uint8_t *codes, float *scale, float *minimum)
{
    scale[0] = load_half(src);
    minimum[0] = load_half(src + 2);
    nibbles(src + 4, codes);
}

static void q5_0(const uint8_t *src, uint8_t *codes, float *scale, float *minimum)
{
    (void)minimum;
    scale[0] = load_half(src);
    nibbles(src + 6, codes);
    fifth_bits(dq_load_u32(src + 2), codes);
}

static void q5_1(const uint8_t *src, uint8_t *codes, float *scale, float *minimum)
{
    scale[0] = load_half(src);
    minimum[0] = load_half(src + 2);
    nibbles(src + 8, codes);
    fifth_bits(dq_load_u32(src + 4), codes);
}

static void q8_0(const uint8_t *src, uint8_t *codes, float *scale, float *minimum)
{
    (void)minimum;
    scale[0] = load_half(src);
    for (int j = 0; j < QK; j++) codes[j] = src[2 + j] ^ 0x80; /* two's complement + 128 */
}

static void q4_k(const uint8_t *src, uint8_t *codes, float *scale, float *minimum)
{
    float d = load_half(src), dmin = load_half(src + 2), sc, m;
    for (int j = 0; j < 8; j++) {
        const uint8_t *q = src + 16 + 32 * (j / 2);
        dq_gguf_scale_min(src + 4, j, &sc, &m);
        scale[j] = sc * d;
        minimum[j] = -(m * dmin);
        for (int i = 0; i < 32; i++) codes[32 * j + i] = j % 2 ? q[i] >> 4 : q[i] & 15;
    }
}

static void q5_k(const uint8_t *src, uint8_t *codes, float *scale, float *minimum)
{
    float d = load_half(src), dmin = load_half(src + 2), sc, m;
    for (int j = 0; j < 8; j++) {
        const uint8_t *q = src + 48 + 32 * (j / 2), *high = src + 16;
        dq_gguf_scale_min(src + 4, j, &sc, &m);
        scale[j] = sc * d;
        minimum[j] = -(m * dmin);
        for (int i = 0; i < 32; i++)
            codes[32 * j + i] = (uint8_t)((j % 2 ? q[i] >> 4 : q[i] & 15) | (high[i] >> j & 1) << 4);
    }
}

static void q6_k(const uint8_t *src, uint8_t *codes, float *scale, float *minimum)
{
    float d = load_half(src + 208);
    (void)minimum;
    for (int half = 0; half < 2; half++) {
        const uint8_t *low = src + 64 * half, *high = src + 128 + 32 * half;
        for (int run = 0; run < 4; run++) {
            const uint8_t *n = low + 32 * (run % 2);
            for (int i = 0; i < 32; i++)
                codes[128 * half + 32 * run + i] =
                    (uint8_t)((run < 2 ? n[i] & 15 : n[i] >> 4) | (high[i] >> (2 * run) & 3) << 4);
        }
    }
    for (int g = 0; g < 16; g++) scale[g] = d * (float)(int8_t)src[192 + g];
}

const dq_block_form *dq_gguf_block_form(const char *type_name)
{
    static const dq_block_form forms[] = {
        {"Q4_0", QK, 18, 4, 32, false, q4_0},   {"Q4_1", QK, 20, 4, 32, true, q4_1},
        {"Q5_0", QK, 22, 5, 32, false, q5_0},   {"Q5_1", QK, 24, 5, 32, true, q5_1},
        {"Q8_0", QK, 34, 8, 32, false, q8_0},   {"Q4_K", QK_K, 144, 4, 32, true, q4_k},
        {"Q5_K", QK_K, 176, 5, 32, true, q5_k}, {"Q6_K", QK_K, 210, 6, 16, false, q6_k},
    };
    for (size_t i = 0; i < sizeof forms / sizeof *forms; i++)
        if (strcmp(type_name, forms[i].name) == 0) return &forms[i];
    return NULL;
}
