/* Kernels of quantization, Hadamard transforms and the GPTQ factor, from the definitions in backend.h. What that header
 * defines in fp32 is computed in fp32. SPDX-License-Identifier: Apache-2.0 */
#include <math.h>
#include <stdlib.h>

#include "farsim.h"

/* ---- activations ---- */

far_grid far_grid_of(const dq_fake_quant_desc *d, const float *x)
{
    float lo = x[0], hi = x[0];
    for (int64_t i = 1; i < d->group; i++) {
        if (x[i] < lo) lo = x[i];
        if (x[i] > hi) hi = x[i];
    }
    if (d->zero_in_range && lo > 0) lo = 0;
    if (d->zero_in_range && hi < 0) hi = 0;
    lo *= d->clip;
    hi *= d->clip;
    far_grid g = {.most = (float)((1 << (d->symmetric ? d->bits - 1 : d->bits)) - 1)};
    if (d->symmetric) {
        g.least = -g.most - 1;
        g.scale = fmaxf(fabsf(lo), fabsf(hi)) / g.most;
        if (g.scale == 0) g.scale = 1;
    } else {
        if (lo == 0 && hi == 0) lo = -1, hi = 1;
        g.scale = (hi - lo) / g.most;
        g.zero = g.scale == 0 ? 0 : rintf(-lo / g.scale);
    }
    return g;
}

float far_code(const far_grid *g, float x)
{
    float code = rintf(x / g->scale) + g->zero;
    return code < g->least ? g->least : code > g->most ? g->most : code;
}

static void fake_quant_group(const dq_fake_quant_desc *d, const float *x, const far_mat *y, int64_t r, int64_t c)
{
    far_grid g = far_grid_of(d, x);
    for (int64_t i = 0; i < d->group; i++) {
        float value = g.scale == 0 ? x[i] : g.scale * (far_code(&g, x[i]) - g.zero);
        far_put(y, r, c + i, (double)value);
    }
}

void far_k_fake_quant(far_dev *dev, far_cmd *c)
{
    (void)dev;
    for (int64_t r = 0; r < c->mat[0].rows; r++)
        for (int64_t k = 0; k < c->mat[0].cols; k += c->d.fake_quant.group)
            fake_quant_group(&c->d.fake_quant, far_f32(&c->mat[0], r) + k, &c->mat[1], r, k);
}

/* out[i] = sum of H[i][j] v[j] (H[j][i] when transposed), H = HK (x) Sylvester, straight from the definition. */
void far_k_hadamard(far_dev *dev, far_cmd *c)
{
    const dq_hadamard_desc *d = &c->d.hadamard;
    const int8_t *hk = (const int8_t *)c->payload;
    int64_t size = d->n / d->k;
    double *v = malloc((size_t)d->n * sizeof *v);
    if (!v) far_break(dev, DQ_E_DEVICE_MEMORY, FAR_OUT_OF_MEMORY, "no workspace for order %lld", (long long)d->n);
    for (int64_t r = 0; v && r < c->mat[0].rows; r++)
        for (int64_t k = 0; k < c->mat[0].cols; k++) {
            /* column = (outer * n + i) * inner + at; each vector is taken when its first column comes */
            int64_t i, first = k;
            if (k / d->inner % d->n != 0) continue;
            for (i = 0; i < d->n; i++) v[i] = far_get(&c->mat[0], r, first + i * d->inner);
            for (int64_t step = 1; step < size; step *= 2)
                for (i = 0; i < d->n; i++)
                    if (!(i % size & step)) {
                        double a = v[i], b = v[i + step];
                        v[i] = a + b;
                        v[i + step] = a - b;
                    }
            for (i = 0; i < d->n; i++) {
                double sum = d->k == 1 ? v[i] : 0;
                for (int64_t b = 0; d->k > 1 && b < d->k; b++)
                    sum += hk[d->transpose ? b * d->k + i / size : i / size * d->k + b] * v[b * size + i % size];
                far_put(&c->mat[1], r, first + i * d->inner, sum * d->scale);
            }
        }
    free(v);
}

/* ---- weights ---- */

static void grid(const dq_grid_desc *d, float lo, float hi, float p, float *scale, float *zero)
{
    if (d->symmetric) {
        *scale = p * fmaxf(fmaxf(-lo, hi), 1e-5f) / (float)((1 << (d->bits - 1)) - 1);
        *zero = (float)(1 << (d->bits - 1));
    } else {
        *scale = fmaxf(p * hi - p * lo, 1e-5f) / (float)((1 << d->bits) - 1);
        *zero = rintf(-(p * lo) / *scale) + 0.0f;
    }
}

static float code_of(const dq_grid_desc *d, float w, float scale, float zero)
{
    return fminf(fmaxf(rintf(w / scale) + zero, 0), (float)((1 << d->bits) - 1));
}

static void grid_of_group(const dq_grid_desc *d, const float *w, int64_t n, float *scale, float *zero)
{
    float lo = 0, hi = 0;
    double best = INFINITY;
    for (int64_t i = 0; i < n; i++) {
        lo = fminf(lo, w[i]);
        hi = fmaxf(hi, w[i]);
    }
    grid(d, lo, hi, 1, scale, zero);
    for (int32_t i = 0; i < d->search_steps; i++) {
        float s, z;
        double error = 0;
        grid(d, lo, hi, (float)(1 - (double)i / d->search_grid), &s, &z);
        for (int64_t k = 0; k < n; k++) {
            float difference = s * (code_of(d, w[k], s, z) - z) - w[k];
            error += pow(fabsf(difference), d->search_norm);
        }
        if (error >= best) continue;
        best = error;
        *scale = s;
        *zero = z;
    }
}

void far_k_weight_grid(far_dev *dev, far_cmd *c)
{
    const far_mat *w = &c->mat[0];
    int64_t group = c->d.grid.group;
    (void)dev;
    for (int64_t r = 0; r < w->rows; r++)
        for (int64_t g = 0; g * group < w->cols; g++) {
            int64_t n = w->cols - g * group < group ? w->cols - g * group : group;
            grid_of_group(&c->d.grid, far_f32(w, r) + g * group, n, far_f32(&c->mat[1], r) + g,
                          far_f32(&c->mat[2], r) + g);
        }
}

/* Group of a column, or -1 after a failure. */
static int64_t group_of(far_dev *dev, const far_cmd *c, const far_mat *index, int64_t groups, int64_t column)
{
    int64_t g = index->at ? (int64_t)far_get(index, 0, column) : column / c->d.grid.group;
    if (g >= 0 && g < groups) return g;
    far_break(dev, DQ_E_INVALID, FAR_BAD_INDEX, "%s: index[%lld] is %lld, must lie in [0, %lld)", c->name,
              (long long)column, (long long)g, (long long)groups);
    return -1;
}

void far_k_quantize_weight(far_dev *dev, far_cmd *c)
{
    const far_mat *w = &c->mat[0], *scale = &c->mat[1], *zero = &c->mat[2], *codes = &c->mat[4];
    for (int64_t k = 0; k < w->cols; k++) {
        int64_t g = group_of(dev, c, &c->mat[3], scale->cols, k);
        for (int64_t r = 0; g >= 0 && r < w->rows; r++)
            far_put(codes, r, k, code_of(&c->d.grid, far_f32(w, r)[k], far_f32(scale, r)[g], far_f32(zero, r)[g]));
    }
}

void far_k_dequantize_weight(far_dev *dev, far_cmd *c)
{
    const far_mat *codes = &c->mat[0], *scale = &c->mat[1], *zero = &c->mat[2], *w = &c->mat[4];
    for (int64_t k = 0; k < w->cols; k++) {
        int64_t g = group_of(dev, c, &c->mat[3], scale->cols, k);
        for (int64_t r = 0; g >= 0 && r < w->rows; r++)
            far_f32(w, r)[k] = far_f32(scale, r)[g] * ((float)far_get(codes, r, k) - far_f32(zero, r)[g]);
    }
}

void far_k_gptq_block(far_dev *dev, far_cmd *c)
{
    const far_mat *w = &c->mat[0], *u = &c->mat[1], *scale = &c->mat[2], *zero = &c->mat[3];
    double top = (1 << c->d.grid.bits) - 1;
    double *line = malloc((size_t)w->cols * sizeof *line);
    if (!line) far_break(dev, DQ_E_DEVICE_MEMORY, FAR_OUT_OF_MEMORY, "no workspace for a row");
    for (int64_t r = 0; line && r < w->rows; r++) {
        for (int64_t k = 0; k < w->cols; k++) line[k] = far_get(w, r, k);
        for (int64_t j = 0; j < w->cols; j++) {
            int64_t g = group_of(dev, c, &c->mat[4], scale->cols, j);
            if (g < 0) break;
            double s = far_get(scale, r, g), z = far_get(zero, r, g);
            double code = fmin(fmax(rint(line[j] / s) + z, 0), top), q = s * (code - z);
            double e = (line[j] - q) / far_get(u, j, j);
            for (int64_t k = j + 1; k < w->cols; k++) line[k] -= e * far_get(u, j, k);
            line[j] = q;
            far_put(&c->mat[5], r, j, code);
            far_put(&c->mat[6], r, j, e);
        }
        for (int64_t k = 0; k < w->cols; k++) far_put(w, r, k, line[k]);
    }
    free(line);
}

/* ---- factor ---- */

/* A = M M^T with M upper, from the last column to the first; u = inverse of M. */
static int64_t factorize(double *a, int64_t n)
{
    for (int64_t j = n - 1; j >= 0; j--) {
        for (int64_t k = j + 1; k < n; k++) a[j * n + j] -= a[j * n + k] * a[j * n + k];
        if (!(a[j * n + j] > 0) || isinf(a[j * n + j])) return j + 1;
        a[j * n + j] = sqrt(a[j * n + j]);
        for (int64_t i = 0; i < j; i++) {
            for (int64_t k = j + 1; k < n; k++) a[i * n + j] -= a[i * n + k] * a[j * n + k];
            a[i * n + j] /= a[j * n + j];
        }
    }
    return 0;
}

/* Column c of the inverse by back substitution. */
static void solve_column(const double *m, int64_t n, int64_t c, double *x)
{
    for (int64_t i = c; i >= 0; i--) {
        double sum = i == c;
        for (int64_t k = i + 1; k <= c; k++) sum -= m[i * n + k] * x[k];
        x[i] = sum / m[i * n + i];
    }
}

void far_k_gptq_factor(far_dev *dev, far_cmd *c)
{
    const far_mat *h = &c->mat[0], *perm = &c->mat[1], *u = &c->mat[2];
    int64_t n = h->rows, *info = c->result;
    double *a = malloc((size_t)(n * n + n) * sizeof *a), *x = a + n * n;
    if (!a) {
        far_break(dev, DQ_E_DEVICE_MEMORY, FAR_OUT_OF_MEMORY, "no workspace for order %lld", (long long)n);
        return;
    }
    for (int64_t i = 0; i < n; i++)
        for (int64_t j = 0; j < n; j++) {
            int64_t p = perm->at ? (int64_t)far_get(perm, 0, i) : i, q = perm->at ? (int64_t)far_get(perm, 0, j) : j;
            if (p < 0 || p >= n || q < 0 || q >= n) {
                far_break(dev, DQ_E_INVALID, FAR_BAD_INDEX, "gptq_factor: perm leaves [0, %lld)", (long long)n);
                free(a);
                return;
            }
            double value = p >= q ? far_get(h, p, q) : far_get(h, q, p);
            if (i == j) value = (value == 0 ? 1 : value) + c->alpha;
            a[i * n + j] = value;
        }
    *info = factorize(a, n);
    for (int64_t k = 0; *info == 0 && k < n; k++) {
        solve_column(a, n, k, x);
        for (int64_t i = 0; i < n; i++) far_put(u, i, k, i <= k ? x[i] : 0);
    }
    free(a);
}
