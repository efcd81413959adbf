/* Weights to integer codes and back, and the column block of GPTQ. SPDX-License-Identifier: Apache-2.0 */
#include <math.h>

#include "backend/ref/ops.h"

static int64_t group_of(const dq_grid_desc *d, const int32_t *group_index, int64_t column)
{
    return group_index ? group_index[column] : column / d->group;
}

static dq_status check_groups(void *dev, const dq_view *group_index, const dq_view *scale, const char *op)
{
    return group_index ? dq_ref_check_index(dev, group_index, scale->cols, op) : DQ_OK;
}

dq_status dq_ref_quantize_weight(void *dev, const dq_grid_desc *d, const dq_view *w, const dq_view *scale,
                                 const dq_view *zero, const dq_view *group_index, const dq_view *codes)
{
    dq_status status = check_groups(dev, group_index, scale, "quantize_weight");
    if (status != DQ_OK) return status;
    const int32_t *index = group_index ? dq_view_i32(group_index, 0) : NULL;
    float top = (float)((1 << d->bits) - 1);
    for (int64_t r = 0; r < w->rows; r++) {
        const float *x = dq_view_f32(w, r), *s = dq_view_f32(scale, r), *z = dq_view_f32(zero, r);
        uint8_t *out = dq_view_u8(codes, r);
        for (int64_t c = 0; c < w->cols; c++) {
            int64_t g = group_of(d, index, c);
            out[c] = (uint8_t)fminf(fmaxf(rintf(x[c] / s[g]) + z[g], 0), top); /* fmaxf turns NaN into 0 */
        }
    }
    return DQ_OK;
}

dq_status dq_ref_dequantize_weight(void *dev, const dq_grid_desc *d, const dq_view *codes, const dq_view *scale,
                                   const dq_view *zero, const dq_view *group_index, const dq_view *w)
{
    dq_status status = check_groups(dev, group_index, scale, "dequantize_weight");
    if (status != DQ_OK) return status;
    const int32_t *index = group_index ? dq_view_i32(group_index, 0) : NULL;
    for (int64_t r = 0; r < w->rows; r++) {
        const uint8_t *in = dq_view_u8(codes, r);
        const float *s = dq_view_f32(scale, r), *z = dq_view_f32(zero, r);
        float *out = dq_view_f32(w, r);
        for (int64_t c = 0; c < w->cols; c++) {
            int64_t g = group_of(d, index, c);
            out[c] = s[g] * ((float)in[c] - z[g]);
        }
    }
    return DQ_OK;
}

/* One row of a GPTQ block, in fp64. */
static void block_row(const dq_grid_desc *d, const dq_view *u, const float *scale, const float *zero,
                      const int32_t *index, double *w, uint8_t *codes, float *err)
{
    double top = (double)((1 << d->bits) - 1);
    for (int64_t j = 0; j < u->cols; j++) {
        const float *uj = dq_view_f32(u, j);
        double s = scale[index[j]], z = zero[index[j]];
        double code = fmin(fmax(rint(w[j] / s) + z, 0), top);
        double q = s * (code - z);
        double e = (w[j] - q) / uj[j];
        codes[j] = (uint8_t)code;
        err[j] = (float)e;
        w[j] = q; /* w_j - e_j u_jj without the rounding */
        for (int64_t k = j + 1; k < u->cols; k++) w[k] -= e * uj[k];
    }
}

dq_status dq_ref_gptq_block(void *dev, const dq_grid_desc *d, const dq_view *w, const dq_view *u, const dq_view *scale,
                            const dq_view *zero, const dq_view *group_index, const dq_view *codes, const dq_view *err)
{
    dq_status status = check_groups(dev, group_index, scale, "gptq_block");
    if (status != DQ_OK) return status;
    double *line = dq_ref_scratch(dev, w->cols, sizeof(double));
    if (!line) return DQ_E_NOMEM;
    for (int64_t r = 0; r < w->rows; r++) {
        float *row = dq_view_f32(w, r);
        for (int64_t c = 0; c < w->cols; c++) line[c] = row[c];
        block_row(d, u, dq_view_f32(scale, r), dq_view_f32(zero, r), dq_view_i32(group_index, 0), line,
                  dq_view_u8(codes, r), dq_view_f32(err, r));
        for (int64_t c = 0; c < w->cols; c++) row[c] = (float)line[c];
    }
    dq_ref_release(dev, line);
    return DQ_OK;
}
