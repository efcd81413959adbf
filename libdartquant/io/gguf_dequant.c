/* GGUF block types to fp32, operation by operation as ggml-quants.c's dequantize_row_* (and gguf-py, which agrees with
 * it): products and sums are rounded to fp32 in the same order, so results are equal to the bit.
 * SPDX-License-Identifier: Apache-2.0 */
#include "base/half.h"
#include "io/decode.h"

enum { QK = 32, QK_K = 256 }; /* elements of a block */

static float load_half(const uint8_t *p) { return dq_f16_to_f32(dq_load_u16(p)); }

/* f16 d; 16 bytes: element j low nibble, j + 16 high nibble of byte j. x = d (q - 8) */
static void q4_0(const uint8_t *src, size_t blocks, float *out)
{
    for (; blocks > 0; blocks--, src += 18, out += QK) {
        float d = load_half(src);
        for (int j = 0; j < QK / 2; j++) {
            out[j] = (float)((src[2 + j] & 15) - 8) * d;
            out[j + QK / 2] = (float)((src[2 + j] >> 4) - 8) * d;
        }
    }
}

/* f16 d, f16 m; nibbles as Q4_0. x = d q + m */
static void q4_1(const uint8_t *src, size_t blocks, float *out)
{
    for (; blocks > 0; blocks--, src += 20, out += QK) {
        float d = load_half(src), m = load_half(src + 2);
        for (int j = 0; j < QK / 2; j++) {
            float low = (float)(src[4 + j] & 15) * d, high = (float)(src[4 + j] >> 4) * d;
            out[j] = low + m;
            out[j + QK / 2] = high + m;
        }
    }
}

/* f16 d; u32 fifth bits, bit j of element j; nibbles as Q4_0. x = d (q - 16) */
static void q5_0(const uint8_t *src, size_t blocks, float *out)
{
    for (; blocks > 0; blocks--, src += 22, out += QK) {
        float d = load_half(src);
        uint32_t high = dq_load_u32(src + 2);
        for (unsigned j = 0; j < QK / 2; j++) {
            int low_q = (int)((src[6 + j] & 15u) | (high >> j & 1u) << 4);
            int high_q = (int)((unsigned)src[6 + j] >> 4 | (high >> (j + 16) & 1u) << 4);
            out[j] = (float)(low_q - 16) * d;
            out[j + QK / 2] = (float)(high_q - 16) * d;
        }
    }
}

/* f16 d, f16 m; then as Q5_0. x = d q + m */
static void q5_1(const uint8_t *src, size_t blocks, float *out)
{
    for (; blocks > 0; blocks--, src += 24, out += QK) {
        float d = load_half(src), m = load_half(src + 2);
        uint32_t high = dq_load_u32(src + 4);
        for (unsigned j = 0; j < QK / 2; j++) {
            int low_q = (int)((src[8 + j] & 15u) | (high >> j & 1u) << 4);
            int high_q = (int)((unsigned)src[8 + j] >> 4 | (high >> (j + 16) & 1u) << 4);
            float x = (float)low_q * d, y = (float)high_q * d;
            out[j] = x + m;
            out[j + QK / 2] = y + m;
        }
    }
}

/* f16 d; 32 x i8. x = d q */
static void q8_0(const uint8_t *src, size_t blocks, float *out)
{
    for (; blocks > 0; blocks--, src += 34, out += QK) {
        float d = load_half(src);
        for (int j = 0; j < QK; j++) out[j] = (float)(int8_t)src[2 + j] * d;
    }
}

void dq_gguf_scale_min(const uint8_t *s, int j, float *scale, float *min)
{
    if (j < 4) {
        *scale = (float)(s[j] & 63);
        *min = (float)(s[j + 4] & 63);
    } else {
        *scale = (float)((s[j + 4] & 15) | (s[j - 4] >> 6) << 4);
        *min = (float)((s[j + 4] >> 4) | (s[j] >> 6) << 4);
    }
}

/* f16 d, f16 dmin, 12 bytes of scales; 128 bytes: sub-blocks 2i and 2i+1 are the low and high nibbles of bytes 32 i.. .
 * x = (d sc) q - dmin m */
static void q4_k(const uint8_t *src, size_t blocks, float *out)
{
    for (; blocks > 0; blocks--, src += 144, out += QK_K) {
        float d = load_half(src), dmin = load_half(src + 2);
        for (int j = 0; j < 8; j++) {
            const uint8_t *q = src + 16 + 32 * (j / 2);
            float sc, m;
            dq_gguf_scale_min(src + 4, j, &sc, &m);
            sc *= d;
            m *= dmin;
            for (int i = 0; i < 32; i++) {
                float x = sc * (float)(j % 2 ? q[i] >> 4 : q[i] & 15);
                out[32 * j + i] = x - m;
            }
        }
    }
}

/* As Q4_K, with 32 bytes of fifth bits before the nibbles: bit j of byte i belongs to element i of sub-block j. */
static void q5_k(const uint8_t *src, size_t blocks, float *out)
{
    for (; blocks > 0; blocks--, src += 176, out += QK_K) {
        float d = load_half(src), dmin = load_half(src + 2);
        const uint8_t *high = src + 16;
        for (int j = 0; j < 8; j++) {
            const uint8_t *q = src + 48 + 32 * (j / 2);
            float sc, m;
            dq_gguf_scale_min(src + 4, j, &sc, &m);
            sc *= d;
            m *= dmin;
            for (int i = 0; i < 32; i++) {
                float x = sc * (float)((j % 2 ? q[i] >> 4 : q[i] & 15) + (high[i] >> j & 1) * 16);
                out[32 * j + i] = x - m;
            }
        }
    }
}

/* 128 bytes of low nibbles, 64 of upper bit pairs, 16 x i8 scales, f16 d; two halves of 128 elements, in each four runs of
 * 32 share the same bytes of upper bits. x = (d sc) (q - 32) */
static void q6_k(const uint8_t *src, size_t blocks, float *out)
{
    for (; blocks > 0; blocks--, src += 210, out += QK_K) {
        float d = load_half(src + 208);
        for (int half = 0; half < 2; half++) {
            const uint8_t *low = src + 64 * half, *high = src + 128 + 32 * half, *scales = src + 192 + 8 * half;
            for (int run = 0; run < 4; run++) {
                const uint8_t *nibbles = low + 32 * (run % 2);
                for (int i = 0; i < 32; i++) {
                    int q = (run < 2 ? nibbles[i] & 15 : nibbles[i] >> 4) | (high[i] >> (2 * run) & 3) << 4;
                    float scale = d * (float)(int8_t)scales[2 * run + i / 16];
                    out[128 * half + 32 * run + i] = scale * (float)(q - 32);
                }
            }
        }
    }
}

dq_gguf_block_fn dq_gguf_block_decoder(uint32_t type)
{
    switch (type) {
        case 2: return q4_0;
        case 3: return q4_1;
        case 6: return q5_0;
        case 7: return q5_1;
        case 8: return q8_0;
        case 12: return q4_k;
        case 13: return q5_k;
        case 14: return q6_k;
        default: return NULL;
    }
}
