/* Search of AWQ's channel scales (Lin et al., arXiv 2306.00978, section 3.2). The published search runs a linear once for
 * every candidate; with the Gram matrix of its inputs the same error is a trace. SPDX-License-Identifier: Apache-2.0 */
#include "quant/awq.h"

#include <math.h>
#include <string.h>

#include "base/rng.h"
#include "base/status.h"
#include "quant/parts.h"

void dq_awq_candidate(int candidate, const float *x, const double *w, int64_t n, float *scale)
{
    double alpha = (double)(candidate % DQ_AWQ_GRID) / DQ_AWQ_GRID, most = 0, least = INFINITY;
    bool duo = candidate >= DQ_AWQ_GRID;
    for (int64_t i = 0; i < n; i++) {
        double s = pow((double)x[i], alpha);
        if (duo) s /= pow(w[i], 1.0 - alpha) + 1e-4;
        if (s < 1e-4) s = 1e-4;
        scale[i] = x[i] > 0.0f ? (float)s : 0.0f;
        if (x[i] > 0.0f && s > most) most = s;
        if (x[i] > 0.0f && s < least) least = s;
    }
    double middle = most > 0 ? sqrt(most * least) : 1.0;
    for (int64_t i = 0; i < n; i++) scale[i] = x[i] > 0.0f ? (float)((double)scale[i] / middle) : 1.0f;
}

static void add_row_shares(const float *row, int64_t in, int64_t group, double *sum)
{
    for (int64_t c0 = 0; c0 < in; c0 += group) {
        int64_t end = c0 + group < in ? c0 + group : in;
        float most = 0;
        for (int64_t c = c0; c < end; c++) most = fmaxf(most, fabsf(row[c]));
        for (int64_t c = c0; c < end; c++) sum[c] += (double)fabsf(row[c]) / ((double)most + 1e-6);
    }
}

dq_status dq_awq_weight_magnitude(const dq_tensor *const *linears, int count, int64_t group, double *w)
{
    enum { PIECE = 128 };
    int64_t in = linears[0]->view.cols, all = 0;
    float *piece = dq_alloc(dq_device_env(linears[0]->dev), (size_t)(PIECE * in) * sizeof *piece);
    dq_status status = piece ? DQ_OK : DQ_E_NOMEM;
    memset(w, 0, (size_t)in * sizeof *w);
    for (int l = 0; l < count && status == DQ_OK; l++)
        for (int64_t r = 0, rows; r < linears[l]->view.rows && status == DQ_OK; r += rows, all += rows) {
            rows = linears[l]->view.rows - r < PIECE ? linears[l]->view.rows - r : PIECE;
            dq_tensor part = dq_tensor_rows(linears[l], r, rows);
            status = dq_tensor_download(&part, piece);
            for (int64_t i = 0; i < rows && status == DQ_OK; i++) add_row_shares(piece + i * in, in, group, w);
        }
    dq_free(piece);
    for (int64_t i = 0; i < in; i++) w[i] /= (double)all;
    return status;
}

/* ---- the rows that are tried ---- */

/* One row of each of `count` equal strips of the linears, which are thought of as one matrix of `all` rows. */
static void draw_rows(int64_t all, int64_t count, int32_t *rows)
{
    dq_rng rng;
    dq_rng_seed_torch(&rng, 0);
    for (int64_t i = 0; i < count; i++) {
        int64_t first = i * all / count, width = (i + 1) * all / count - first;
        rows[i] = (int32_t)(first + (int64_t)dq_rng_below(&rng, (uint64_t)width));
    }
}

/* w: [count, in]. rows ascend; on the way each linear's part of them is counted from its own first row. */
static dq_status gather(const dq_awq_input *input, int32_t *rows, int64_t count, dq_tensor *w)
{
    int64_t at = 0, base = 0;
    for (int l = 0; l < input->count; l++) {
        int64_t first = at, end = base + input->linears[l]->view.rows;
        dq_tensor index = {0};
        for (; at < count && rows[at] < end; at++) rows[at] -= (int32_t)base;
        base = end;
        if (at == first) continue;
        DQ_TRY(dq_tensor_from_host(w->dev, DQ_I32, 1, at - first, rows + first, &index));
        dq_tensor part = dq_tensor_rows(w, first, at - first);
        dq_status status = dq_op_gather_rows(input->linears[l], &index, &part);
        dq_tensor_free(&index);
        DQ_TRY(status);
    }
    return DQ_OK;
}

/* ---- the error of one candidate ---- */

typedef struct scratch {
    dq_weight_spec spec;
    dq_tensor scale, inverse; /* F32 [1, in] */
    dq_tensor w, d, p;        /* F32 [rows, in]: the rows that are tried, their differences, these times H */
    dq_codes codes;
} scratch;

/* `spread` [in]: the candidate's scales at the columns. Candidates are only compared: bf16 products do. */
static dq_status candidate_error(scratch *s, const dq_awq_input *input, float *spread, double *error)
{
    dq_codes *c = &s->codes;
    dq_grid_desc grid = dq_weight_grid_desc(&s->spec, c->group);
    DQ_TRY(dq_tensor_upload(&s->scale, spread));
    for (int64_t i = 0; i < input->h->view.rows; i++) spread[i] = 1.0f / spread[i];
    DQ_TRY(dq_tensor_upload(&s->inverse, spread));
    DQ_TRY(dq_op_scale_cols(&s->w, &s->scale, &s->d));
    DQ_TRY(dq_op_weight_grid(&grid, &s->d, &c->scale, &c->zero));
    DQ_TRY(dq_op_quantize_weight(&grid, &s->d, &c->scale, &c->zero, NULL, &c->codes));
    DQ_TRY(dq_codes_dequantize(c, &s->d));
    DQ_TRY(dq_op_scale_cols(&s->d, &s->inverse, &s->d));
    DQ_TRY(dq_op_axpy(-1.0, &s->w, &s->d));
    DQ_TRY(dq_hessian_energy(&s->d, input->h, DQ_MATH_BF16, &s->p, error));
    if (!isfinite(*error)) return dq_fail(DQ_E_NONFINITE, "the output error of scaled channels is not finite");
    return DQ_OK;
}

/* Means over the columns that share a scale. */
static void fold(const dq_awq_input *input, const double *w, int64_t n, float *x_mean, double *w_mean)
{
    int64_t in = input->h->view.rows;
    for (int64_t i = 0; i < n; i++) x_mean[i] = 0, w_mean[i] = 0;
    for (int64_t c = 0; c < in; c++) {
        int64_t i = dq_awq_source(c, input->share, input->head_dim);
        x_mean[i] += input->x[c] / (float)input->share;
        w_mean[i] += w[c] / (double)input->share;
    }
}

static dq_status search(scratch *s, const dq_awq_input *input, double *numbers, float *reals, float *scale,
                        double *errors)
{
    int64_t in = input->h->view.rows, n = in / input->share;
    double *w = numbers, *w_mean = numbers + in, least = INFINITY;
    float *x_mean = reals, *tried = reals + in, *spread = reals + 2 * in;
    DQ_TRY(dq_awq_weight_magnitude(input->linears, input->count, dq_weight_group(&s->spec, in), w));
    fold(input, w, n, x_mean, w_mean);
    for (int i = 0; i < DQ_AWQ_CANDIDATES; i++) {
        double error = 0;
        dq_awq_candidate(i, x_mean, w_mean, n, tried);
        for (int64_t c = 0; c < in; c++) spread[c] = tried[dq_awq_source(c, input->share, input->head_dim)];
        DQ_TRY(candidate_error(s, input, spread, &error));
        if (errors) errors[i] = error;
        if (!(error < least)) continue;
        least = error;
        memcpy(scale, tried, (size_t)n * sizeof *scale);
    }
    return DQ_OK;
}

static dq_status prepare(scratch *s, const dq_awq_input *input, int64_t all)
{
    dq_device *dev = input->h->dev;
    int64_t in = input->h->view.rows, count = all < DQ_AWQ_ROWS ? all : DQ_AWQ_ROWS;
    int32_t *rows = dq_alloc(dq_device_env(dev), (size_t)count * sizeof *rows);
    dq_status status = rows ? DQ_OK : DQ_E_NOMEM;
    DQ_GO(status);
    DQ_GO(dq_tensor_alloc(dev, DQ_F32, 1, in, &s->scale));
    DQ_GO(dq_tensor_alloc(dev, DQ_F32, 1, in, &s->inverse));
    DQ_GO(dq_tensor_alloc(dev, DQ_F32, count, in, &s->w));
    DQ_GO(dq_tensor_alloc(dev, DQ_F32, count, in, &s->d));
    DQ_GO(dq_tensor_alloc(dev, DQ_F32, count, in, &s->p));
    DQ_GO(dq_codes_alloc(dev, &s->spec, count, in, &s->codes));
    draw_rows(all, count, rows);
    status = gather(input, rows, count, &s->w);
done:
    dq_free(rows);
    return status;
}

dq_status dq_awq_search(const dq_weight_spec *spec, const dq_awq_input *input, float *scale,
                        double errors[DQ_AWQ_CANDIDATES])
{
    dq_env *env = dq_device_env(input->h->dev);
    dq_status status;
    int64_t in = input->h->view.rows, all = 0;
    scratch s = {.spec = *spec};
    s.spec.clip_search = false; /* as published: ranges are searched afterwards */
    for (int l = 0; l < input->count; l++) {
        const dq_view *v = &input->linears[l]->view;
        if (v->cols != in) return dq_fail(DQ_E_INTERNAL, "a linear of %lld inputs", (long long)v->cols);
        all += v->rows;
    }
    double *numbers = dq_alloc(env, (size_t)(2 * in) * sizeof *numbers);
    float *reals = dq_alloc(env, (size_t)(3 * in) * sizeof *reals);
    if (!numbers || !reals) DQ_GO(DQ_E_NOMEM);
    DQ_GO(prepare(&s, input, all));
    status = search(&s, input, numbers, reals, scale, errors);
done:
    dq_codes_free(&s.codes);
    dq_tensor_free(&s.scale);
    dq_tensor_free(&s.inverse);
    dq_tensor_free(&s.w);
    dq_tensor_free(&s.d);
    dq_tensor_free(&s.p);
    dq_free(numbers);
    dq_free(reals);
    return status;
}
