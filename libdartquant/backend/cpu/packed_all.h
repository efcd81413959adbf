/* All rows of weights of a call. Included after
 *   packed_outs(x, outs, bits, half, w, out): `outs` rows of weights against all rows of x
 * SPDX-License-Identifier: Apache-2.0 */

VEC_INLINE void packed_any(const dq_packed_x *x, int bits, bool half, dq_packed_w w, int64_t rows,
                           float (*out)[DQ_DECODE_ROWS])
{
    for (int64_t o = 0; o < rows;) {
        int64_t step = rows - o >= OUTS ? OUTS : 1;
        if (step == OUTS)
            packed_outs(x, OUTS, bits, half, &w, out + o);
        else
            packed_outs(x, 1, bits, half, &w, out + o);
        for (; step > 0; step--, o++) {
            for (int64_t r = 0; w.zero && r < x->rows; r++) out[o][r] += offset_part(x, r, &w, bits == 4 ? 8 : 128);
            w.codes += w.code_stride;
            w.scale += w.scale_stride;
            if (w.zero) w.zero += w.zero_stride;
        }
    }
}

static void packed4(const dq_packed_x *x, const dq_packed_w *w, int64_t rows, float (*out)[DQ_DECODE_ROWS])
{
    if (w->half)
        packed_any(x, 4, true, *w, rows, out);
    else
        packed_any(x, 4, false, *w, rows, out);
}

static void packed8(const dq_packed_x *x, const dq_packed_w *w, int64_t rows, float (*out)[DQ_DECODE_ROWS])
{
    if (w->half)
        packed_any(x, 8, true, *w, rows, out);
    else
        packed_any(x, 8, false, *w, rows, out);
}
