/* Q4_K and Q6_K: for every run of values a scale (and minimum) is searched that leaves the least weighted squared error;
 * the scales of a block are then rounded themselves, and the values once more on the grid that is stored. The search by a
 * least-squares fit around the range's own scale is that of k-quants in llama.cpp (ggml-quants.c), freely written.
 * SPDX-License-Identifier: Apache-2.0 */
#include "formats/gguf_k.h"

#include <math.h>
#include <string.h>

#include "base/half.h"

enum { VALUES = 256, RUN4 = 32, RUNS4 = 8, RUN6 = 16, RUNS6 = 16 };

static int clamp_int(float v, int low, int high)
{
    int i = (int)rintf(v);
    return i < low ? low : i > high ? high : i;
}

static void put_half(uint8_t *out, float x)
{
    uint16_t h = dq_f32_to_f16(x);
    memcpy(out, &h, 2);
}

static float through_half(float x) { return dq_f16_to_f32(dq_f32_to_f16(x)); }

/* ---- Q6_K: x = scale * q, q in -32..31 ---- */

static float search_scale(const float *x)
{
    float most = 0.0f, best = 0.0f, best_gain = 0.0f;
    for (int i = 0; i < RUN6; i++)
        if (fabsf(x[i]) > fabsf(most)) most = x[i];
    if (most == 0.0f) return 0.0f;
    for (int step = -9; step <= 9; step++) {
        float inverse = -(32.0f + 0.1f * (float)step) / most, xq = 0.0f, qq = 0.0f;
        for (int i = 0; i < RUN6; i++) {
            float q = (float)clamp_int(inverse * x[i], -32, 31), w = x[i] * x[i];
            xq += w * x[i] * q;
            qq += w * q * q;
        }
        if (qq > 0.0f && xq * xq / qq > best_gain) {
            best_gain = xq * xq / qq;
            best = xq / qq;
        }
    }
    return best;
}

void dq_encode_q6_k(const float *x, uint8_t *out)
{
    float scales[RUNS6], most = 0.0f;
    uint8_t q[VALUES];
    for (int r = 0; r < RUNS6; r++) {
        scales[r] = search_scale(x + r * RUN6);
        if (fabsf(scales[r]) > fabsf(most)) most = scales[r];
    }
    memset(out, 0, 210);
    float d = through_half(most / -128.0f);
    if (d == 0.0f) {
        for (int half = 0; half < 2; half++) /* code 32 everywhere: high bits 2 */
            memset(out + 128 + 32 * half, 0xaa, 32);
        return;
    }
    put_half(out + 208, d);
    for (int r = 0; r < RUNS6; r++) {
        int scale = clamp_int(scales[r] / d, -128, 127);
        out[192 + r] = (uint8_t)(int8_t)scale;
        float step = d * (float)scale;
        for (int i = 0; i < RUN6; i++)
            q[r * RUN6 + i] = (uint8_t)(step == 0.0f ? 32 : clamp_int(x[r * RUN6 + i] / step, -32, 31) + 32);
    }
    for (int half = 0; half < 2; half++)
        for (int run = 0; run < 4; run++)
            for (int i = 0; i < 32; i++) {
                uint8_t v = q[128 * half + 32 * run + i];
                out[64 * half + 32 * (run % 2) + i] |= (uint8_t)((v & 15) << (run < 2 ? 0 : 4));
                out[128 + 32 * half + i] |= (uint8_t)(v >> 4 << 2 * run);
            }
}

/* ---- Q4_K: x = scale * q - minimum, q in 0..15, scale and minimum not negative ---- */

typedef struct fit {
    float scale, minimum, error;
} fit;

/* Least squares for scale and minimum with the codes of one trial; *best is replaced when the error shrinks. */
static void try_fit(const float *x, const float *w, float low, float inverse, fit *best)
{
    float sw = 0, sx = 0, sq = 0, sqq = 0, sxq = 0, error = 0;
    uint8_t q[RUN4];
    for (int i = 0; i < RUN4; i++) {
        q[i] = (uint8_t)clamp_int(inverse * (x[i] - low), 0, 15);
        sw += w[i];
        sx += w[i] * x[i];
        sq += w[i] * q[i];
        sqq += w[i] * (float)(q[i] * q[i]);
        sxq += w[i] * x[i] * q[i];
    }
    float determinant = sw * sqq - sq * sq;
    if (determinant <= 0.0f) return;
    float scale = (sw * sxq - sx * sq) / determinant, minimum = (sq * sxq - sqq * sx) / determinant;
    if (minimum < 0.0f) {
        minimum = 0.0f;
        scale = sqq > 0.0f ? sxq / sqq : 0.0f;
    }
    if (scale < 0.0f) return;
    for (int i = 0; i < RUN4; i++) {
        float e = scale * (float)q[i] - minimum - x[i];
        error += w[i] * e * e;
    }
    if (error < best->error) *best = (fit){scale, minimum, error};
}

static fit search_fit(const float *x)
{
    float w[RUN4], low = 0.0f, high = x[0], power = 0.0f;
    for (int i = 0; i < RUN4; i++) {
        if (x[i] < low) low = x[i];
        if (x[i] > high) high = x[i];
        power += x[i] * x[i];
    }
    fit best = {0.0f, -low, INFINITY};
    if (high <= low) return best;
    for (int i = 0; i < RUN4; i++) w[i] = sqrtf(power / RUN4) + fabsf(x[i]);
    for (int step = 0; step <= 20; step++) try_fit(x, w, low, (14.0f + 0.1f * (float)step) / (high - low), &best);
    if (best.error == INFINITY) best.scale = (high - low) / 15.0f;
    return best;
}

/* The 6-bit scale and minimum of run j in the 12 bytes of the block. */
static void put_scale(uint8_t *s, int j, int scale, int minimum)
{
    if (j < 4) {
        s[j] |= (uint8_t)scale;
        s[j + 4] |= (uint8_t)minimum;
        return;
    }
    s[j + 4] = (uint8_t)((scale & 15) | (minimum & 15) << 4);
    s[j - 4] |= (uint8_t)(scale >> 4 << 6);
    s[j] |= (uint8_t)(minimum >> 4 << 6);
}

void dq_encode_q4_k(const float *x, uint8_t *out)
{
    fit fits[RUNS4];
    float most_scale = 0.0f, most_minimum = 0.0f;
    for (int r = 0; r < RUNS4; r++) {
        fits[r] = search_fit(x + r * RUN4);
        most_scale = fmaxf(most_scale, fits[r].scale);
        most_minimum = fmaxf(most_minimum, fits[r].minimum);
    }
    memset(out, 0, 144);
    float d = through_half(most_scale / 63.0f), dmin = through_half(most_minimum / 63.0f);
    put_half(out, d);
    put_half(out + 2, dmin);
    for (int r = 0; r < RUNS4; r++) {
        int scale = d > 0.0f ? clamp_int(fits[r].scale / d, 0, 63) : 0;
        int minimum = dmin > 0.0f ? clamp_int(fits[r].minimum / dmin, 0, 63) : 0;
        float step = d * (float)scale, offset = dmin * (float)minimum;
        put_scale(out + 4, r, scale, minimum);
        for (int i = 0; i < RUN4; i++) {
            int q = step > 0.0f ? clamp_int((x[r * RUN4 + i] + offset) / step, 0, 15) : 0;
            out[16 + 32 * (r / 2) + i] |= (uint8_t)(q << 4 * (r % 2));
        }
    }
}
