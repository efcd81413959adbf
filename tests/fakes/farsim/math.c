/* Kernels of data movement and the forward pass: plain loops, sums in double precision.
 * SPDX-License-Identifier: Apache-2.0 */
#include <math.h>
#include <stdlib.h>
#include <string.h>

#include "farsim.h"

/* ---- elements ---- */

/* A float of 1 + exponent + mantissa bits, rounded half to even. */
static uint16_t encode(double x, int exponent_bits, int mantissa_bits)
{
    int bias = (1 << (exponent_bits - 1)) - 1, one = 1 << mantissa_bits;
    uint16_t sign = signbit(x) ? 0x8000 : 0;
    uint16_t infinity = (uint16_t)(((1 << exponent_bits) - 1) << mantissa_bits);
    double magnitude = fabs(x);
    if (isnan(x)) return (uint16_t)(sign | infinity | (one >> 1));
    if (isinf(x)) return (uint16_t)(sign | infinity);
    int e = magnitude == 0 ? 1 - bias : ilogb(magnitude);
    if (e < 1 - bias) e = 1 - bias;
    double m = rint(ldexp(magnitude, mantissa_bits - e));
    if (m >= 2.0 * one) {
        m /= 2;
        e++;
    }
    if (e > bias) return (uint16_t)(sign | infinity);
    int bits = m < one ? (int)m : ((e + bias) << mantissa_bits) + ((int)m - one);
    return (uint16_t)(sign | bits);
}

static double decode(uint16_t h, int exponent_bits, int mantissa_bits)
{
    int bias = (1 << (exponent_bits - 1)) - 1, one = 1 << mantissa_bits;
    int e = (h & 0x7fff) >> mantissa_bits, m = h & (one - 1);
    double x;
    if (e == (1 << exponent_bits) - 1)
        x = m ? NAN : INFINITY;
    else
        x = e ? ldexp(one + m, e - bias - mantissa_bits) : ldexp(m, 1 - bias - mantissa_bits);
    return h & 0x8000 ? -x : x;
}

static unsigned char *place(const far_mat *m, int64_t r, int64_t c)
{
    return m->at + (size_t)(r * m->stride + c) * far_element(m->dtype);
}

float *far_f32(const far_mat *m, int64_t r) { return (float *)(void *)place(m, r, 0); }

double far_get(const far_mat *m, int64_t r, int64_t c)
{
    const void *at = place(m, r, c);
    switch (m->dtype) {
        case DQ_F64: return *(const double *)at;
        case DQ_F32: return *(const float *)at;
        case DQ_F16: return decode(*(const uint16_t *)at, 5, 10);
        case DQ_BF16: return decode(*(const uint16_t *)at, 8, 7);
        case DQ_I32: return *(const int32_t *)at;
        case DQ_I8: return *(const int8_t *)at;
        default: return *(const uint8_t *)at;
    }
}

void far_put(const far_mat *m, int64_t r, int64_t c, double x)
{
    void *at = place(m, r, c);
    switch (m->dtype) {
        case DQ_F64: *(double *)at = x; break;
        case DQ_F32: *(float *)at = (float)x; break;
        case DQ_F16: *(uint16_t *)at = encode(x, 5, 10); break;
        case DQ_BF16: *(uint16_t *)at = encode(x, 8, 7); break;
        case DQ_I32: *(int32_t *)at = (int32_t)x; break;
        case DQ_I8: *(int8_t *)at = (int8_t)x; break;
        default: *(uint8_t *)at = (uint8_t)x; break;
    }
}

/* What an op made in fp32, then rounded where the place is narrower. */
void far_put_f32(const far_mat *m, int64_t r, int64_t c, double x) { far_put(m, r, c, (double)(float)x); }

/* Device workspace. */
static double *scratch(far_dev *dev, int64_t count)
{
    double *p = malloc((size_t)count * sizeof *p + 1);
    if (!p) far_break(dev, DQ_E_DEVICE_MEMORY, FAR_OUT_OF_MEMORY, "no workspace for %lld numbers", (long long)count);
    return p;
}

/* ---- data movement ---- */

void far_k_fill(far_dev *dev, far_cmd *c)
{
    (void)dev;
    for (int64_t r = 0; r < c->mat[0].rows; r++)
        for (int64_t k = 0; k < c->mat[0].cols; k++) far_put(&c->mat[0], r, k, c->alpha);
}

void far_k_convert(far_dev *dev, far_cmd *c)
{
    const far_mat *x = &c->mat[0], *y = &c->mat[1];
    (void)dev;
    for (int64_t r = 0; r < x->rows; r++) {
        if (x->dtype == y->dtype) {
            memmove(place(y, r, 0), place(x, r, 0), (size_t)x->cols * far_element(x->dtype));
            continue;
        }
        for (int64_t k = 0; k < x->cols; k++) far_put(y, r, k, far_get(x, r, k));
    }
}

void far_k_axpy(far_dev *dev, far_cmd *c)
{
    const far_mat *x = &c->mat[0], *y = &c->mat[1];
    (void)dev;
    for (int64_t r = 0; r < y->rows; r++)
        for (int64_t k = 0; k < y->cols; k++)
            far_put(y, r, k, far_get(y, r, k) + c->alpha * far_get(x, x->rows == 1 ? 0 : r, k));
}

void far_k_scale_cols(far_dev *dev, far_cmd *c)
{
    (void)dev;
    for (int64_t r = 0; r < c->mat[0].rows; r++)
        for (int64_t k = 0; k < c->mat[0].cols; k++)
            far_put(&c->mat[2], r, k, far_get(&c->mat[0], r, k) * far_get(&c->mat[1], 0, k));
}

static bool index_fits(far_dev *dev, const far_cmd *c, const far_mat *index, int64_t limit)
{
    for (int64_t i = 0; i < index->cols; i++) {
        double at = far_get(index, 0, i);
        if (at >= 0 && at < (double)limit) continue;
        far_break(dev, DQ_E_INVALID, FAR_BAD_INDEX, "%s: index[%lld] is %.0f, must lie in [0, %lld)", c->name,
                  (long long)i, at, (long long)limit);
        return false;
    }
    return true;
}

void far_k_gather_rows(far_dev *dev, far_cmd *c)
{
    const far_mat *x = &c->mat[0], *index = &c->mat[1], *y = &c->mat[2];
    if (!index_fits(dev, c, index, x->rows)) return;
    for (int64_t r = 0; r < y->rows; r++)
        memcpy(place(y, r, 0), place(x, (int64_t)far_get(index, 0, r), 0), (size_t)y->cols * far_element(x->dtype));
}

void far_k_find_nonfinite(far_dev *dev, far_cmd *c)
{
    const far_mat *x = &c->mat[0];
    int64_t *out = c->result;
    (void)dev;
    *out = -1;
    for (int64_t r = 0; r < x->rows && *out < 0; r++)
        for (int64_t k = 0; k < x->cols && *out < 0; k++)
            if (!isfinite(far_get(x, r, k))) *out = r * x->cols + k;
}

void far_k_dot(far_dev *dev, far_cmd *c)
{
    double sum = 0;
    (void)dev;
    for (int64_t r = 0; r < c->mat[0].rows; r++)
        for (int64_t k = 0; k < c->mat[0].cols; k++) sum += far_get(&c->mat[0], r, k) * far_get(&c->mat[1], r, k);
    *(double *)c->result = sum;
}

void far_k_diag(far_dev *dev, far_cmd *c)
{
    (void)dev;
    for (int64_t k = 0; k < c->mat[0].cols; k++) far_put(&c->mat[1], 0, k, far_get(&c->mat[0], k, k));
}

/* ---- products ---- */

/* m or its transpose as packed doubles. */
static double *widen(far_dev *dev, const far_mat *m, bool transpose)
{
    double *out = scratch(dev, m->rows * m->cols);
    for (int64_t r = 0; out && r < m->rows; r++)
        for (int64_t k = 0; k < m->cols; k++) out[transpose ? k * m->rows + r : r * m->cols + k] = far_get(m, r, k);
    return out;
}

/* The same for a product's operand, rounded to bf16 where that is the math. */
static double *operand(far_dev *dev, const far_mat *m, bool transpose, int32_t math)
{
    double *out = widen(dev, m, transpose);
    for (int64_t i = 0; out && math == DQ_MATH_BF16 && m->dtype != DQ_F64 && i < m->rows * m->cols; i++)
        out[i] = decode(encode(out[i], 8, 7), 8, 7);
    return out;
}

static double inner(const double *a, const double *b, int64_t n)
{
    double sum = 0;
    for (int64_t i = 0; i < n; i++) sum += a[i] * b[i];
    return sum;
}

void far_k_gemm(far_dev *dev, far_cmd *c)
{
    const far_mat *out = &c->mat[2];
    int64_t depth = c->flag[0] ? c->mat[0].rows : c->mat[0].cols;
    double *a = operand(dev, &c->mat[0], c->flag[0] != 0, c->math);
    double *b = operand(dev, &c->mat[1], c->flag[1] == 0, c->math);
    for (int64_t i = 0; a && b && i < out->rows; i++)
        for (int64_t j = 0; j < out->cols; j++) {
            double old = c->beta == 0 ? 0 : c->beta * far_get(out, i, j);
            far_put(out, i, j, c->alpha * inner(a + i * depth, b + j * depth, depth) + old);
        }
    free(a);
    free(b);
}

void far_k_syrk(far_dev *dev, far_cmd *c)
{
    const far_mat *h = &c->mat[1];
    int64_t tokens = c->mat[0].rows;
    double *x = widen(dev, &c->mat[0], true);
    for (int64_t i = 0; x && i < h->rows; i++)
        for (int64_t j = 0; j <= i; j++) {
            double old = c->beta == 0 ? 0 : c->beta * far_get(h, i, j);
            far_put(h, i, j, c->alpha * inner(x + i * tokens, x + j * tokens, tokens) + old);
        }
    free(x);
}

/* ---- transformer ---- */

void far_k_rmsnorm(far_dev *dev, far_cmd *c)
{
    const far_mat *x = &c->mat[0], *w = &c->mat[1];
    (void)dev;
    for (int64_t r = 0; r < x->rows; r++) {
        double sum = 0;
        for (int64_t k = 0; k < x->cols; k++) sum += far_get(x, r, k) * far_get(x, r, k);
        double factor = 1 / sqrt(sum / (double)x->cols + c->alpha);
        for (int64_t k = 0; k < x->cols; k++)
            far_put_f32(&c->mat[2], r, k, far_get(x, r, k) * factor * (w->at ? far_get(w, 0, k) : 1));
    }
}

void far_k_layernorm(far_dev *dev, far_cmd *c)
{
    const far_mat *x = &c->mat[0], *w = &c->mat[1], *b = &c->mat[2];
    (void)dev;
    for (int64_t r = 0; r < x->rows; r++) {
        double mean = 0, sum = 0;
        for (int64_t k = 0; k < x->cols; k++) mean += far_get(x, r, k) / (double)x->cols;
        for (int64_t k = 0; k < x->cols; k++) sum += (far_get(x, r, k) - mean) * (far_get(x, r, k) - mean);
        double factor = 1 / sqrt(sum / (double)x->cols + c->alpha);
        for (int64_t k = 0; k < x->cols; k++)
            far_put_f32(&c->mat[3], r, k,
                        (far_get(x, r, k) - mean) * factor * (w->at ? far_get(w, 0, k) : 1) +
                            (b->at ? far_get(b, 0, k) : 0));
    }
}

void far_k_rope(far_dev *dev, far_cmd *c)
{
    const far_mat *cosine = &c->mat[0], *sine = &c->mat[1], *x = &c->mat[2];
    int64_t half = c->number / 2;
    (void)dev;
    for (int64_t r = 0; r < x->rows; r++)
        for (int64_t head = 0; head < x->cols; head += c->number)
            for (int64_t i = 0; i < half; i++) {
                double a = far_get(x, r, head + i), b = far_get(x, r, head + half + i);
                double co = far_get(cosine, r % cosine->rows, i), si = far_get(sine, r % cosine->rows, i);
                far_put(x, r, head + i, a * co - b * si);
                far_put(x, r, head + half + i, b * co + a * si);
            }
}

static double activate(int32_t kind, double x)
{
    switch (kind) {
        case DQ_ACT_SILU: return x / (1 + exp(-x));
        case DQ_ACT_GELU: return x / 2 * (1 + erf(x / sqrt(2)));
        case DQ_ACT_GELU_TANH: return x / 2 * (1 + tanh(sqrt(2 / acos(-1)) * (x + 0.044715 * x * x * x)));
        default: return x < 0 ? 0 : x;
    }
}

void far_k_activation(far_dev *dev, far_cmd *c)
{
    const far_mat *gate = &c->mat[0], *up = &c->mat[1];
    (void)dev;
    for (int64_t r = 0; r < gate->rows; r++)
        for (int64_t k = 0; k < gate->cols; k++)
            far_put_f32(&c->mat[2], r, k, activate(c->flag[0], far_get(gate, r, k)) * (up->at ? far_get(up, r, k) : 1));
}

void far_k_attention(far_dev *dev, far_cmd *c)
{
    const dq_attention_desc *d = &c->d.attention;
    const far_mat *o = &c->mat[3];
    int64_t dim = d->head_dim, share = d->heads / d->kv_heads;
    int64_t qs = c->mat[0].cols, ks = c->mat[1].cols;
    double *q = widen(dev, &c->mat[0], false), *k = widen(dev, &c->mat[1], false), *v = widen(dev, &c->mat[2], false);
    double *p = scratch(dev, d->seqlen);
    for (int64_t r = 0; q && k && v && p && r < o->rows; r++)
        for (int64_t h = 0; h < d->heads; h++) {
            int64_t begin = r - r % d->seqlen, first = begin;
            if (d->window > 0 && r - d->window + 1 > begin) first = r - d->window + 1;
            double top = -INFINITY, total = 0;
            for (int64_t t = first; t <= r; t++) {
                p[t - begin] = d->scale * inner(q + r * qs + h * dim, k + t * ks + h / share * dim, dim);
                top = fmax(top, p[t - begin]);
            }
            for (int64_t t = first; t <= r; t++) total += p[t - begin] = exp(p[t - begin] - top);
            for (int64_t i = 0; i < dim; i++) {
                double sum = 0;
                for (int64_t t = first; t <= r; t++) sum += p[t - begin] * v[t * ks + h / share * dim + i];
                far_put_f32(o, r, h * dim + i, sum / total);
            }
        }
    free(q);
    free(k);
    free(v);
    free(p);
}

void far_k_head_nll(far_dev *dev, far_cmd *c)
{
    const far_mat *state = &c->mat[3];
    int64_t depth = c->mat[0].cols;
    double *x = operand(dev, &c->mat[0], false, c->math), *w = operand(dev, &c->mat[1], false, c->math);
    for (int64_t r = 0; x && w && r < c->mat[0].rows; r++) {
        double top = far_get(state, r, 0), sum = far_get(state, r, 1);
        for (int64_t j = 0; j < c->mat[1].rows; j++) {
            double logit = inner(x + r * depth, w + j * depth, depth);
            if (far_get(&c->mat[2], 0, r) == (double)(c->number + j)) far_put(state, r, 2, logit);
            if (logit == -INFINITY) continue;
            double next = isnan(logit) || logit > top ? logit : top;
            sum = (top == -INFINITY ? 0 : sum * exp(top - next)) + exp(logit - next);
            top = next;
        }
        far_put(state, r, 0, top);
        far_put(state, r, 1, sum);
    }
    free(x);
    free(w);
}
