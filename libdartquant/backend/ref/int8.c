/* Rows as integer codes and their exact products with the codes of weights. SPDX-License-Identifier: Apache-2.0 */
#include <math.h>

#include "backend/ref/ops.h"

static int8_t *codes_at(const dq_view *v, int64_t row) { return dq_view_at(v, row, 0, 1); }

static bool all_finite(const float *x, int64_t n)
{
    for (int64_t i = 0; i < n; i++)
        if (!isfinite(x[i])) return false;
    return true;
}

static void quantize_row(const dq_fake_quant_desc *d, const float *x, int64_t n, int8_t *codes, float *grid)
{
    int32_t shift = d->symmetric ? 0 : 1 << (d->bits - 1), sum = 0;
    dq_ref_grid g = {NAN, 0, 0, 0};
    bool finite = all_finite(x, n);
    if (finite) g = dq_ref_grid_of(d, x, n);
    if (g.scale == 0) g.scale = 1;
    for (int64_t i = 0; i < n; i++) {
        codes[i] = 0;
        if (finite) codes[i] = (int8_t)((int32_t)dq_ref_clamp(rintf(x[i] / g.scale) + g.zero, g.lo, g.hi) - shift);
        sum += codes[i];
    }
    grid[0] = g.scale;
    grid[1] = finite ? g.zero - (float)shift : 0;
    grid[2] = (float)sum;
}

dq_status dq_ref_quantize_rows(void *dev, const dq_fake_quant_desc *d, const dq_view *x, const dq_view *codes,
                               const dq_view *grid)
{
    (void)dev;
    for (int64_t r = 0; r < x->rows; r++)
        quantize_row(d, dq_view_f32(x, r), x->cols, codes_at(codes, r), dq_view_f32(grid, r));
    return DQ_OK;
}

dq_status dq_ref_int8_linear(void *dev, double beta, const dq_view *x, const dq_view *x_grid, const dq_view *w,
                             const dq_view *w_grid, const dq_view *y)
{
    (void)dev;
    for (int64_t r = 0; r < y->rows; r++)
        for (int64_t o = 0; o < y->cols; o++) {
            const int8_t *a = codes_at(x, r), *b = codes_at(w, o);
            const float *ga = dq_view_f32(x_grid, r), *gb = dq_view_f32(w_grid, o);
            int32_t za = (int32_t)ga[1], zb = (int32_t)gb[1];
            int64_t sum = 0;
            for (int64_t j = 0; j < x->cols; j++) sum += (a[j] - za) * (b[j] - zb);
            float *to = dq_view_f32(y, r) + o, product = ga[0] * gb[0] * (float)sum;
            *to = beta == 0 ? product : (float)beta * *to + product;
        }
    return DQ_OK;
}
