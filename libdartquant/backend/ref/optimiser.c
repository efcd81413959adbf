/* Adam's moments, fp64 inside. SPDX-License-Identifier: Apache-2.0 */
#include <math.h>

#include "backend/ref/ops.h"

dq_status dq_ref_adam(void *dev, double beta1, double beta2, double root, double epsilon, const dq_view *g,
                      const dq_view *mean, const dq_view *square)
{
    (void)dev;
    for (int64_t r = 0; r < g->rows; r++) {
        float *slope = dq_view_f32(g, r), *first = dq_view_f32(mean, r), *second = dq_view_f32(square, r);
        for (int64_t c = 0; c < g->cols; c++) {
            double x = slope[c], m = first[c] + (1 - beta1) * (x - first[c]);
            double v = beta2 * second[c] + (1 - beta2) * x * x;
            first[c] = (float)m;
            second[c] = (float)v;
            slope[c] = (float)(m / (sqrt(v) / root + epsilon));
        }
    }
    return DQ_OK;
}
