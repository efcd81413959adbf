/* AWQ's last step: rounding to nearest, each group's range shrunk as far as that lowers the error of its own share of the
 * output (the authors' program calls it clipping). SPDX-License-Identifier: Apache-2.0 */
#include <math.h>
#include <string.h>

#include "base/status.h"
#include "quant/awq.h"
#include "quant/parts.h"

typedef struct rounding {
    dq_env *env;
    const dq_weight_spec *spec;
    const dq_tensor *w, *h;
    const float *scale; /* of the channels */
    int64_t out, in, group, groups;
    dq_codes *codes;
    float *lo, *hi;        /* [out, groups]: ranges, 0 inside */
    float *grid;           /* [2, out, groups]: scales and zeros on their way */
    int tried;             /* index of the factor under way, -1 = each group's best */
    int8_t *best;          /* [out, groups]: index of the best factor */
    double *least;         /* [out, groups]: its error */
    float *rows, *product; /* [out, in] */
    dq_tensor d, p;        /* F32 [out, in] */
} rounding;

/* Host loops run over strips of rows. */
enum { STRIP = 16 };

static void each_strip(rounding *r, dq_task_fn task) { dq_run(r->env, (r->out + STRIP - 1) / STRIP, task, r); }

static int64_t strip_end(const rounding *r, int64_t strip)
{
    return (strip + 1) * STRIP < r->out ? (strip + 1) * STRIP : r->out;
}

static void ranges_of(void *arg, int64_t strip, int thread)
{
    rounding *r = arg;
    (void)thread;
    for (int64_t row = strip * STRIP; row < strip_end(r, strip); row++)
        for (int64_t c = 0; c < r->in; c++) {
            int64_t g = row * r->groups + c / r->group;
            float w = r->rows[row * r->in + c];
            r->lo[g] = fminf(r->lo[g], w);
            r->hi[g] = fmaxf(r->hi[g], w);
        }
}

static dq_status find_ranges(rounding *r)
{
    DQ_TRY(dq_tensor_download(r->w, r->rows));
    each_strip(r, ranges_of);
    return DQ_OK;
}

static float factor_of(int i) { return (float)(1.0 - (double)i / DQ_AWQ_GRID); }

/* The grid of a range, as the backend's weight_grid has it. */
static void grid_of(const dq_weight_spec *s, float lo, float hi, float p, float *scale, float *zero)
{
    const float smallest = 1e-5f;
    if (s->symmetric) {
        *scale = p * fmaxf(fmaxf(-lo, hi), smallest) / (float)((1 << (s->bits - 1)) - 1);
        *zero = (float)(1 << (s->bits - 1));
        return;
    }
    lo *= p;
    hi *= p;
    *scale = fmaxf(hi - lo, smallest) / (float)((1 << s->bits) - 1);
    *zero = rintf(-lo / *scale) + 0.0f;
}

static void grids_of(void *arg, int64_t strip, int thread)
{
    rounding *r = arg;
    int64_t count = r->out * r->groups, end = strip_end(r, strip) * r->groups;
    (void)thread;
    for (int64_t g = strip * STRIP * r->groups; g < end; g++) {
        float p = factor_of(r->tried < 0 ? r->best[g] : r->tried);
        grid_of(r->spec, r->lo[g], r->hi[g], p, r->grid + g, r->grid + count + g);
    }
}

/* Codes of one factor for all groups, or with i < 0 of each group's best. */
static dq_status encode(rounding *r, int i)
{
    dq_grid_desc d = dq_weight_grid_desc(r->spec, r->group);
    r->tried = i;
    each_strip(r, grids_of);
    DQ_TRY(dq_tensor_upload(&r->codes->scale, r->grid));
    DQ_TRY(dq_tensor_upload(&r->codes->zero, r->grid + r->out * r->groups));
    return dq_op_quantize_weight(&d, r->w, &r->codes->scale, &r->codes->zero, NULL, &r->codes->codes);
}

/* d = (values of the codes - w) diag(1/s): the difference as the unscaled inputs meet it. */
static dq_status difference(rounding *r, const dq_tensor *inverse)
{
    DQ_TRY(dq_codes_dequantize(r->codes, &r->d));
    DQ_TRY(dq_op_axpy(-1.0, r->w, &r->d));
    return dq_op_scale_cols(&r->d, inverse, &r->d);
}

/* p = d H_g, group by group. */
static dq_status multiply(rounding *r)
{
    for (int64_t c0 = 0; c0 < r->in; c0 += r->group) {
        int64_t n = r->in - c0 < r->group ? r->in - c0 : r->group;
        dq_tensor h = dq_tensor_slice(r->h, c0, n, c0, n);
        dq_tensor d = dq_tensor_slice(&r->d, 0, r->out, c0, n), p = dq_tensor_slice(&r->p, 0, r->out, c0, n);
        DQ_TRY(dq_op_gemm(false, false, 1.0, &d, &h, 0.0, &p, DQ_MATH_F32));
    }
    return DQ_OK;
}

/* Groups for which the factor is better than those before. */
static void keep_better(void *arg, int64_t strip, int thread)
{
    rounding *r = arg;
    (void)thread;
    for (int64_t row = strip * STRIP; row < strip_end(r, strip); row++)
        for (int64_t g = 0; g < r->groups; g++) {
            double error = 0;
            int64_t at = row * r->groups + g, end = (g + 1) * r->group < r->in ? (g + 1) * r->group : r->in;
            for (int64_t c = g * r->group; c < end; c++)
                error += (double)r->rows[row * r->in + c] * (double)r->product[row * r->in + c];
            if (r->tried > 0 && !(error < r->least[at])) continue;
            r->least[at] = error;
            r->best[at] = (int8_t)r->tried;
        }
}

static dq_status try_factor(rounding *r, const dq_tensor *inverse, int i)
{
    DQ_TRY(encode(r, i));
    DQ_TRY(difference(r, inverse));
    DQ_TRY(multiply(r));
    DQ_TRY(dq_tensor_download(&r->d, r->rows));
    DQ_TRY(dq_tensor_download(&r->p, r->product));
    each_strip(r, keep_better);
    return DQ_OK;
}

/* tr(D H D^T) / tr(W H W^T) with the weight as it was before scaling, to the three digits of bf16 products. */
static dq_status relative_error(rounding *r, const dq_tensor *inverse, double *out)
{
    double loss, energy;
    DQ_TRY(difference(r, inverse));
    DQ_TRY(dq_hessian_energy(&r->d, r->h, DQ_MATH_BF16, &r->p, &loss));
    DQ_TRY(dq_op_scale_cols(r->w, inverse, &r->d));
    DQ_TRY(dq_hessian_energy(&r->d, r->h, DQ_MATH_BF16, &r->p, &energy));
    *out = energy > 0 && loss > 0 ? loss / energy : 0;
    return DQ_OK;
}

static dq_status alloc(rounding *r)
{
    size_t count = (size_t)(r->out * r->groups), all = (size_t)(r->out * r->in);
    r->lo = dq_calloc(r->env, count, sizeof(float));
    r->hi = dq_calloc(r->env, count, sizeof(float));
    r->grid = dq_alloc(r->env, 2 * count * sizeof(float));
    r->best = dq_calloc(r->env, count, 1);
    r->least = dq_calloc(r->env, count, sizeof(double));
    r->rows = dq_alloc(r->env, all * sizeof(float));
    r->product = dq_alloc(r->env, all * sizeof(float));
    if (!r->lo || !r->hi || !r->grid || !r->best || !r->least || !r->rows || !r->product) return DQ_E_NOMEM;
    DQ_TRY(dq_tensor_alloc(r->w->dev, DQ_F32, r->out, r->in, &r->d));
    return dq_tensor_alloc(r->w->dev, DQ_F32, r->out, r->in, &r->p);
}

static void clear(rounding *r)
{
    void *const hosts[] = {r->lo, r->hi, r->grid, r->best, r->least, r->rows, r->product};
    for (size_t i = 0; i < sizeof hosts / sizeof *hosts; i++) dq_free(hosts[i]);
    dq_tensor_free(&r->d);
    dq_tensor_free(&r->p);
}

static dq_status upload_inverse(const rounding *r, dq_tensor *out)
{
    float *host = dq_alloc(r->env, (size_t)r->in * sizeof *host);
    if (!host) return DQ_E_NOMEM;
    for (int64_t i = 0; i < r->in; i++) host[i] = 1.0f / r->scale[i];
    dq_status status = dq_tensor_from_host(r->w->dev, DQ_F32, 1, r->in, host, out);
    dq_free(host);
    return status;
}

dq_status dq_awq_round(const dq_weight_spec *spec, const dq_tensor *w, const dq_tensor *h, const float *scale,
                       dq_codes *out, double *error)
{
    dq_status status;
    dq_codes codes = {0};
    dq_tensor inverse = {0};
    rounding r = {.env = dq_device_env(w->dev), .spec = spec, .w = w, .h = h, .scale = scale, .codes = &codes};
    r.out = w->view.rows;
    r.in = w->view.cols;
    r.group = dq_weight_group(spec, r.in);
    r.groups = (r.in + r.group - 1) / r.group;
    DQ_GO(alloc(&r));
    DQ_GO(dq_codes_alloc(w->dev, spec, r.out, r.in, &codes));
    DQ_GO(upload_inverse(&r, &inverse));
    DQ_GO(find_ranges(&r));
    for (int i = 0; spec->clip_search && i < DQ_AWQ_CLIPS; i++) DQ_GO(try_factor(&r, &inverse, i));
    DQ_GO(encode(&r, -1));
    DQ_GO(relative_error(&r, &inverse, error));
    *out = codes;
    memset(&codes, 0, sizeof codes);
done:
    dq_codes_free(&codes);
    dq_tensor_free(&inverse);
    clear(&r);
    return status;
}
