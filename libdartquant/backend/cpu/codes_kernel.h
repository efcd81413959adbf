/* Weights to integer codes and back, one row: the same bits as the reference. Part of quant_kernels.h.
 * SPDX-License-Identifier: Apache-2.0 */

VEC_INLINE vf encode(vf w, vf scale, vf zero, vf top)
{
    return vf_min(vf_max(vf_rint(w / scale) + zero, vf_zero()), top); /* a NaN becomes 0 */
}

static uint8_t encode_one(float w, float scale, float zero, float top)
{
    return (uint8_t)fminf(fmaxf(rintf(w / scale) + zero, 0), top);
}

/* Parameters of `row` are indexed by index[column], or by column / group without an index. */
static void quantize(const dq_code_row *row, const float *w, uint8_t *codes)
{
    vf top = vf_set1(row->top);
    if (row->index) {
        int64_t c = 0;
        for (; c + VF <= row->cols; c += VF) {
            vf s = vf_gather(row->scale, row->index + c), z = vf_gather(row->zero, row->index + c);
            vf_store_u8(codes + c, encode(vf_load(w + c), s, z, top));
        }
        for (; c < row->cols; c++)
            codes[c] = encode_one(w[c], row->scale[row->index[c]], row->zero[row->index[c]], row->top);
        return;
    }
    for (int64_t first = 0, g = 0; first < row->cols; first += row->group, g++) {
        int64_t end = first + row->group < row->cols ? first + row->group : row->cols, c = first;
        vf s = vf_set1(row->scale[g]), z = vf_set1(row->zero[g]);
        for (; c + VF <= end; c += VF) vf_store_u8(codes + c, encode(vf_load(w + c), s, z, top));
        for (; c < end; c++) codes[c] = encode_one(w[c], row->scale[g], row->zero[g], row->top);
    }
}

static void dequantize(const dq_code_row *row, const uint8_t *codes, float *w)
{
    if (row->index) {
        int64_t c = 0;
        for (; c + VF <= row->cols; c += VF) {
            vf s = vf_gather(row->scale, row->index + c), z = vf_gather(row->zero, row->index + c);
            vf_store(w + c, s * (vf_load_u8(codes + c) - z));
        }
        for (; c < row->cols; c++) w[c] = row->scale[row->index[c]] * ((float)codes[c] - row->zero[row->index[c]]);
        return;
    }
    for (int64_t first = 0, g = 0; first < row->cols; first += row->group, g++) {
        int64_t end = first + row->group < row->cols ? first + row->group : row->cols, c = first;
        vf s = vf_set1(row->scale[g]), z = vf_set1(row->zero[g]);
        for (; c + VF <= end; c += VF) vf_store(w + c, s * (vf_load_u8(codes + c) - z));
        for (; c < end; c++) w[c] = row->scale[g] * ((float)codes[c] - row->zero[g]);
    }
}
