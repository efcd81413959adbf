/* RMS norm, layer norm, rotary position embedding, activations. SPDX-License-Identifier: Apache-2.0 */
#include <math.h>

#include "backend/ref/ops.h"

dq_status dq_ref_rmsnorm(void *dev, const dq_view *x, const dq_view *weight, double eps, const dq_view *y)
{
    (void)dev;
    const float *w = weight ? dq_view_f32(weight, 0) : NULL;
    for (int64_t r = 0; r < x->rows; r++) {
        const float *in = dq_view_f32(x, r);
        float *out = dq_view_f32(y, r);
        double sum = 0;
        for (int64_t c = 0; c < x->cols; c++) sum += (double)in[c] * in[c];
        double factor = 1.0 / sqrt(sum / (double)x->cols + eps);
        for (int64_t c = 0; c < x->cols; c++) out[c] = (float)(in[c] * factor * (w ? w[c] : 1.0));
    }
    return DQ_OK;
}

dq_status dq_ref_layernorm(void *dev, const dq_view *x, const dq_view *weight, const dq_view *bias, double eps,
                           const dq_view *y)
{
    (void)dev;
    const float *w = weight ? dq_view_f32(weight, 0) : NULL, *b = bias ? dq_view_f32(bias, 0) : NULL;
    for (int64_t r = 0; r < x->rows; r++) {
        const float *in = dq_view_f32(x, r);
        float *out = dq_view_f32(y, r);
        double mean = 0, sum = 0;
        for (int64_t c = 0; c < x->cols; c++) mean += in[c];
        mean /= (double)x->cols;
        for (int64_t c = 0; c < x->cols; c++) sum += (in[c] - mean) * (in[c] - mean);
        double factor = 1.0 / sqrt(sum / (double)x->cols + eps);
        for (int64_t c = 0; c < x->cols; c++)
            out[c] = (float)((in[c] - mean) * factor * (w ? w[c] : 1.0) + (b ? b[c] : 0.0));
    }
    return DQ_OK;
}

dq_status dq_ref_rope(void *dev, const dq_view *cos, const dq_view *sin, int64_t head_dim, const dq_view *x)
{
    (void)dev;
    int64_t half = head_dim / 2;
    for (int64_t r = 0; r < x->rows; r++) {
        const float *cs = dq_view_f32(cos, r % cos->rows);
        const float *sn = dq_view_f32(sin, r % cos->rows);
        for (int64_t c = 0; c < x->cols; c += head_dim) {
            float *head = dq_view_f32(x, r) + c;
            for (int64_t i = 0; i < half; i++) {
                double a = head[i], b = head[i + half];
                head[i] = (float)(a * cs[i] - b * sn[i]);
                head[i + half] = (float)(b * cs[i] + a * sn[i]);
            }
        }
    }
    return DQ_OK;
}

static double activate(int32_t kind, double x)
{
    switch (kind) {
        case DQ_ACT_SILU: return x / (1.0 + exp(-x));
        case DQ_ACT_GELU: return 0.5 * x * (1.0 + erf(x * 0.70710678118654752440));
        case DQ_ACT_GELU_TANH: /* sqrt(2/pi); Hendrycks and Gimpel, arXiv 1606.08415 */
            return 0.5 * x * (1.0 + tanh(0.79788456080286535588 * (x + 0.044715 * x * x * x)));
        default: return x > 0 ? x : (x != x ? x : 0.0);
    }
}

dq_status dq_ref_activation(void *dev, int32_t kind, const dq_view *gate, const dq_view *up, const dq_view *y)
{
    (void)dev;
    for (int64_t r = 0; r < gate->rows; r++) {
        const float *g = dq_view_f32(gate, r);
        const float *u = up ? dq_view_f32(up, r) : NULL;
        float *out = dq_view_f32(y, r);
        for (int64_t c = 0; c < gate->cols; c++) out[c] = (float)(activate(kind, g[c]) * (u ? u[c] : 1.0));
    }
    return DQ_OK;
}
