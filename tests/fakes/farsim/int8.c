/* Kernels of integer codes, from the definitions in backend.h. SPDX-License-Identifier: Apache-2.0 */
#include <math.h>

#include "farsim.h"

void far_k_quantize_rows(far_dev *dev, far_cmd *c)
{
    const far_mat *x = &c->mat[0], *codes = &c->mat[1], *grid = &c->mat[2];
    int shift = c->d.fake_quant.symmetric ? 0 : 1 << (c->d.fake_quant.bits - 1);
    (void)dev;
    for (int64_t r = 0; r < x->rows; r++) {
        const float *in = far_f32(x, r);
        far_grid g = far_grid_of(&c->d.fake_quant, in);
        double sum = 0;
        int bad = 0;
        if (g.scale == 0) g.scale = 1;
        for (int64_t k = 0; k < x->cols; k++) bad |= !isfinite(in[k]);
        for (int64_t k = 0; k < x->cols; k++) {
            double code = bad ? 0 : (double)far_code(&g, in[k]) - shift;
            far_put(codes, r, k, code);
            sum += code;
        }
        far_put(grid, r, 0, bad ? NAN : g.scale);
        far_put(grid, r, 1, bad ? 0 : (double)g.zero - shift);
        far_put(grid, r, 2, sum);
    }
}

void far_k_int8_linear(far_dev *dev, far_cmd *c)
{
    const far_mat *x = &c->mat[0], *x_grid = &c->mat[1], *w = &c->mat[2], *w_grid = &c->mat[3], *y = &c->mat[4];
    (void)dev;
    for (int64_t r = 0; r < y->rows; r++)
        for (int64_t o = 0; o < y->cols; o++) {
            double sum = 0, zx = far_get(x_grid, r, 1), zw = far_get(w_grid, o, 1);
            for (int64_t k = 0; k < x->cols; k++) sum += (far_get(x, r, k) - zx) * (far_get(w, o, k) - zw);
            float product = far_f32(x_grid, r)[0] * far_f32(w_grid, o)[0] * (float)sum, *to = far_f32(y, r) + o;
            *to = c->beta == 0 ? product : (float)c->beta * *to + product;
        }
}
