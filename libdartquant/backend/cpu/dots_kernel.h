/* Products of some rows with rows of weights that lie in the cache as floats, and packed codes made such floats. Included by
 * decode_kernel.h, for one instruction set at a time. SPDX-License-Identifier: Apache-2.0 */
#include "backend/cpu/packed_parts.h"

/* ---- codes as floats ---- */

/* The codes of a vector of words in the order of dq_packed_x; `bits` and `minimum` are constants where this is called. */
VEC_INLINE void spread_block(const dq_packed_x *x, int64_t b, const dq_packed_w *w, int bits, bool minimum, float *out)
{
    int per = 32 / bits;
    int32_t group = x->block_group[b];
    const int32_t *lanes = x->lane_group + b * VF;
    int64_t n = dq_min64(VF, x->groups - group), bytes = dq_min64(VF * 4, x->row_bytes - b * VF * 4);
    const uint8_t *at = w->codes + b * VF * 4;
    vf scale = vf_shuffle(scales_at(w->scale, w->half, group, n), lanes), zero = vf_zero();
    vf middle = vf_set1(bits == 4 ? 8.0f : 128.0f);
    __builtin_prefetch(at + AHEAD);
    vw words = vw_load_n(at, bytes);
    if (minimum) {
        zero = vf_shuffle(scales_at(w->zero, w->half, group, n), lanes);
    } else if (w->zero) {
        uint8_t zeros[DQ_DECODE_LANES] = {0};
        memcpy(zeros, (const uint8_t *)w->zero + group, (size_t)n);
        zero = vf_shuffle(vf_load_u8(zeros), lanes) - middle;
    }
    for (int i = 0; i < per; i++) {
        vf code = bits == 4 ? vw_nibble(words, i) : vw_byte(words, i);
        vf_store(out + i * VF, minimum ? scale * (code + middle) + zero : scale * (code - zero));
    }
}

VEC_INLINE void spread_any(const dq_packed_x *x, int64_t first, int64_t end, const dq_packed_w *w, int bits,
                           bool minimum, float *out)
{
    for (int64_t b = first; b < end; b++) spread_block(x, b, w, bits, minimum, out + (b - first) * (32 / bits) * VF);
}

static void spread(const dq_packed_x *x, int64_t first, int64_t end, const dq_packed_w *w, int bits, float *out)
{
    if (bits == 4 && w->minimum)
        spread_any(x, first, end, w, 4, true, out);
    else if (bits == 4)
        spread_any(x, first, end, w, 4, false, out);
    else if (w->minimum)
        spread_any(x, first, end, w, 8, true, out);
    else
        spread_any(x, first, end, w, 8, false, out);
}

/* ---- products ---- */

/* A tile has as many sums as a vector has lanes, which are then added up together. */
enum { TILE_ROWS = VF / OUTS };

/* `outs` and `rows`, constants where this is called, may be fewer; a sum does not depend on them. */
VEC_INLINE void dot_tile(const dq_dots *d, int64_t o, int outs, int64_t r, int rows)
{
    const float *w = d->w + o * d->w_stride, *x = d->x + r * d->x_stride;
    float out[VF];
    vf sum[VF];
    for (int i = 0; i < VF; i++) sum[i] = vf_zero();
    for (int64_t j = 0; j < d->n; j += VF) {
        vf weight[OUTS];
        for (int k = 0; k < outs; k++) weight[k] = vf_load(w + k * d->w_stride + j);
        for (int i = 0; i < rows; i++) {
            vf value = vf_load(x + i * d->x_stride + j);
            for (int k = 0; k < outs; k++) sum[i * OUTS + k] = vf_madd(value, weight[k], sum[i * OUTS + k]);
        }
    }
    vf_store(out, vf_sums(sum));
    for (int i = 0; i < rows; i++) {
        float *y = d->y + (r + i) * d->y_stride + o;
        for (int k = 0; k < outs; k++)
            y[k] = d->beta != 0 ? d->beta * y[k] + d->alpha * out[i * OUTS + k] : d->alpha * out[i * OUTS + k];
    }
}

static void dots(const dq_dots *d)
{
    for (int64_t r = 0; r < d->rows;) {
        int rows = d->rows - r >= TILE_ROWS ? TILE_ROWS : 1;
        for (int64_t o = 0; o < d->outs;) {
            int outs = d->outs - o >= OUTS ? OUTS : 1;
            if (outs == OUTS && rows == TILE_ROWS)
                dot_tile(d, o, OUTS, r, TILE_ROWS);
            else if (outs == OUTS)
                dot_tile(d, o, OUTS, r, 1);
            else if (rows == TILE_ROWS)
                dot_tile(d, o, 1, r, TILE_ROWS);
            else
                dot_tile(d, o, 1, r, 1);
            o += outs;
        }
        r += rows;
    }
}
