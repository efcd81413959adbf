/* SPDX-License-Identifier: Apache-2.0 */
#include "formats/gguf_blocks.h"

#include <math.h>
#include <string.h>
#include <strings.h>

#include "base/half.h"
#include "formats/gguf_k.h"

enum { QK = 32, QK_K = 256 };

static const struct {
    const char *name;
    uint32_t id, file_type, elements, bytes;
} types[DQ_GGUF_OUT_TYPES] = {
    [DQ_GGUF_OUT_F32] = {"f32", 0, 0, 1, 4},          [DQ_GGUF_OUT_F16] = {"f16", 1, 1, 1, 2},
    [DQ_GGUF_OUT_BF16] = {"bf16", 30, 32, 1, 2},      [DQ_GGUF_OUT_Q8_0] = {"q8_0", 8, 7, QK, 34},
    [DQ_GGUF_OUT_Q4_0] = {"q4_0", 2, 2, QK, 18},      [DQ_GGUF_OUT_Q4_1] = {"q4_1", 3, 3, QK, 20},
    [DQ_GGUF_OUT_Q5_0] = {"q5_0", 6, 8, QK, 22},      [DQ_GGUF_OUT_Q5_1] = {"q5_1", 7, 9, QK, 24},
    [DQ_GGUF_OUT_Q4_K] = {"q4_k", 12, 14, QK_K, 144}, [DQ_GGUF_OUT_Q6_K] = {"q6_k", 14, 18, QK_K, 210},
};

bool dq_gguf_block_find(const char *name, dq_gguf_block *out)
{
    for (int i = 0; i < DQ_GGUF_OUT_TYPES; i++) {
        if (strcasecmp(name, types[i].name) != 0) continue;
        *out = (dq_gguf_block)i;
        return true;
    }
    return false;
}

const char *dq_gguf_block_name(dq_gguf_block type) { return types[type].name; }
bool dq_gguf_block_is_quantized(dq_gguf_block type) { return types[type].elements > 1; }
uint32_t dq_gguf_block_id(dq_gguf_block type) { return types[type].id; }
uint32_t dq_gguf_block_file_type(dq_gguf_block type) { return types[type].file_type; }
int64_t dq_gguf_block_elements(dq_gguf_block type) { return types[type].elements; }

uint64_t dq_gguf_block_bytes(dq_gguf_block type, int64_t elements)
{
    return (uint64_t)elements / types[type].elements * types[type].bytes;
}

/* ---- from codes ---- */

static bool widths_fit(dq_gguf_block type, const dq_host_codes *c)
{
    bool four = type == DQ_GGUF_OUT_Q4_0 || type == DQ_GGUF_OUT_Q4_1;
    bool five = type == DQ_GGUF_OUT_Q5_0 || type == DQ_GGUF_OUT_Q5_1;
    return (four && c->bits == 4) || (five && c->bits == 5) || (type == DQ_GGUF_OUT_Q8_0 && c->bits == 8);
}

bool dq_gguf_block_holds(dq_gguf_block type, const dq_host_codes *c, const char **why)
{
    bool offset = type == DQ_GGUF_OUT_Q4_1 || type == DQ_GGUF_OUT_Q5_1;
    *why = NULL;
    if (!widths_fit(type, c))
        *why = "it has another width";
    else if (!c->symmetric && !offset)
        *why = "it has no zero points";
    else if (c->group_index)
        *why = "it has no g_idx";
    else if (c->in % QK != 0 || (c->groups > 1 && c->group % QK != 0))
        *why = "columns and groups must be whole blocks of 32";
    return !*why;
}

const char *dq_gguf_block_for(const dq_host_codes *c)
{
    static const struct {
        dq_gguf_block type;
        const char *name;
    } order[] = {{DQ_GGUF_OUT_Q4_0, "gguf:q4_0"},
                 {DQ_GGUF_OUT_Q4_1, "gguf:q4_1"},
                 {DQ_GGUF_OUT_Q5_0, "gguf:q5_0"},
                 {DQ_GGUF_OUT_Q5_1, "gguf:q5_1"},
                 {DQ_GGUF_OUT_Q8_0, "gguf:q8_0"}};
    const char *why;
    for (size_t i = 0; i < sizeof order / sizeof *order; i++)
        if (dq_gguf_block_holds(order[i].type, c, &why)) return order[i].name;
    return NULL;
}

static uint8_t *put_half(uint8_t *out, float x)
{
    uint16_t h = dq_f32_to_f16(x);
    memcpy(out, &h, 2);
    return out + 2;
}

/* Nibbles and, for five bits, the fifth ones: value j in the low half of byte j, value j + 16 in the high half. */
static void put_values(const uint8_t *q, bool five, uint8_t *out)
{
    uint32_t high = 0;
    for (int j = 0; five && j < QK; j++) high |= (uint32_t)(q[j] >> 4) << j;
    if (five) {
        memcpy(out, &high, 4);
        out += 4;
    }
    for (int j = 0; j < QK / 2; j++) out[j] = (uint8_t)((q[j] & 15) | (q[j + QK / 2] & 15) << 4);
}

void dq_gguf_encode_codes(dq_gguf_block type, const dq_host_codes *c, int64_t n, uint8_t *out)
{
    const uint8_t *codes = c->codes + n * c->in;
    bool offset = type == DQ_GGUF_OUT_Q4_1 || type == DQ_GGUF_OUT_Q5_1;
    for (int64_t k = 0; k < c->in; k += QK, out += types[type].bytes) {
        int64_t g = n * c->groups + k / c->group;
        uint8_t *to = put_half(out, c->scale[g]);
        if (offset) to = put_half(to, -c->scale[g] * (float)c->zero[g]);
        if (type == DQ_GGUF_OUT_Q8_0)
            for (int j = 0; j < QK; j++) to[j] = (uint8_t)(codes[k + j] - 128);
        else
            put_values(codes + k, type == DQ_GGUF_OUT_Q5_0 || type == DQ_GGUF_OUT_Q5_1, to);
    }
}

/* ---- from floats ---- */

static float largest_signed(const float *x, int n)
{
    float best = 0.0f;
    for (int i = 0; i < n; i++)
        if (fabsf(x[i]) > fabsf(best)) best = x[i];
    return best;
}

/* Q4_0 and Q5_0: the value of largest magnitude lies at code 0; truncation after adding half, as GGML does. */
static void encode_symmetric(const float *x, int bits, uint8_t *out)
{
    uint8_t q[QK];
    int middle = 1 << (bits - 1);
    float d = largest_signed(x, QK) / (float)-middle, inverse = d != 0.0f ? 1.0f / d : 0.0f;
    out = put_half(out, d);
    for (int j = 0; j < QK; j++) {
        int v = (int)(x[j] * inverse + (float)middle + 0.5f);
        q[j] = (uint8_t)(v > 2 * middle - 1 ? 2 * middle - 1 : v);
    }
    put_values(q, bits == 5, out);
}

static void encode_offset(const float *x, int bits, uint8_t *out)
{
    uint8_t q[QK];
    float low = x[0], high = x[0], most = (float)((1 << bits) - 1);
    for (int j = 1; j < QK; j++) {
        if (x[j] < low) low = x[j];
        if (x[j] > high) high = x[j];
    }
    float d = (high - low) / most, inverse = d != 0.0f ? 1.0f / d : 0.0f;
    out = put_half(put_half(out, d), low);
    for (int j = 0; j < QK; j++) {
        int v = (int)((x[j] - low) * inverse + 0.5f);
        q[j] = (uint8_t)(v > (int)most ? (int)most : v);
    }
    put_values(q, bits == 5, out);
}

static void encode_q8_0(const float *x, uint8_t *out)
{
    float d = fabsf(largest_signed(x, QK)) / 127.0f, inverse = d != 0.0f ? 1.0f / d : 0.0f;
    out = put_half(out, d);
    for (int j = 0; j < QK; j++) out[j] = (uint8_t)(int8_t)roundf(x[j] * inverse);
}

static void encode_block(dq_gguf_block type, const float *x, uint8_t *out)
{
    uint16_t half;
    switch (type) {
        case DQ_GGUF_OUT_F32: memcpy(out, x, 4); return;
        case DQ_GGUF_OUT_F16: put_half(out, *x); return;
        case DQ_GGUF_OUT_BF16:
            half = dq_f32_to_bf16(*x);
            memcpy(out, &half, 2);
            return;
        case DQ_GGUF_OUT_Q8_0: encode_q8_0(x, out); return;
        case DQ_GGUF_OUT_Q4_0: encode_symmetric(x, 4, out); return;
        case DQ_GGUF_OUT_Q5_0: encode_symmetric(x, 5, out); return;
        case DQ_GGUF_OUT_Q4_1: encode_offset(x, 4, out); return;
        case DQ_GGUF_OUT_Q5_1: encode_offset(x, 5, out); return;
        case DQ_GGUF_OUT_Q4_K: dq_encode_q4_k(x, out); return;
        default: dq_encode_q6_k(x, out); return;
    }
}

void dq_gguf_encode(dq_gguf_block type, const float *x, int64_t count, uint8_t *out)
{
    for (; count > 0; count -= types[type].elements, x += types[type].elements, out += types[type].bytes)
        encode_block(type, x, out);
}
