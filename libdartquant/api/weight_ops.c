/* dartquant/tensor_ops.h: the weight of one linear, without a model. SPDX-License-Identifier: Apache-2.0 */
#include <math.h>

#include "api/check.h"
#include "api/config.h"
#include "api/handles.h"
#include "api/host_rows.h"
#include "api/scheme.h"
#include "api/weight_ops.h"
#include "base/half.h"
#include "dartquant/tensor_ops.h"
#include "quant/quantize.h"

struct dq_hessian {
    dq_context *ctx;
    dq_tensor h; /* F32 [n, n], lower triangle */
    int64_t n, rows;
    bool broken;
};

/* ---- the accumulator ---- */

dq_status dq_hessian_new(dq_context *ctx, int64_t n, dq_hessian **out)
{
    DQ_ENTER_CONTEXT(ctx, ctx && out);
    size_t elements;
    if (n < 1 || n > INT32_MAX || !dq_mul_ok((size_t)n, (size_t)n, &elements))
        return dq_fail(DQ_E_INVALID, "a Hessian of order %lld", (long long)n);
    dq_hessian *h = dq_calloc(&ctx->env, 1, sizeof *h);
    if (!h) return DQ_E_NOMEM;
    dq_status status = dq_tensor_alloc(ctx->dev, DQ_F32, n, n, &h->h);
    if (status == DQ_OK) status = dq_op_fill(0, &h->h);
    if (status != DQ_OK) {
        dq_tensor_free(&h->h);
        dq_free(h);
        return status;
    }
    h->ctx = dq_context_retain(ctx);
    h->n = n;
    *out = h;
    return DQ_OK;
}

static void destroy(void *object)
{
    dq_hessian *h = object;
    dq_context *ctx = h->ctx;
    dq_tensor_free(&h->h);
    dq_free(h);
    dq_context_release(ctx);
}

void dq_hessian_free(dq_hessian *h)
{
    if (h) dq_context_discard(h->ctx, destroy, h);
}

int64_t dq_hessian_rows(const dq_hessian *h) { return h ? h->rows : 0; }

static dq_status add_chunk(void *arg, const dq_tensor *x)
{
    dq_hessian *h = arg;
    return dq_op_syrk(2.0, x, 1.0, &h->h);
}

dq_status dq_hessian_add(dq_hessian *h, const void *x, int64_t rows, int64_t row_stride, dq_dtype dtype)
{
    DQ_ENTER_CONTEXT(h->ctx, h && x);
    if (h->broken) return dq_fail(DQ_E_STATE, "the accumulator failed before and holds only a part of its inputs");
    dq_host_rows r = {x, rows, h->n, row_stride, dtype};
    DQ_TRY(dq_host_rows_check(&r, "input"));
    dq_status status = dq_host_rows_each(h->ctx, &r, add_chunk, h);
    h->broken = status != DQ_OK;
    if (status == DQ_OK) h->rows += rows;
    return status;
}

dq_status dq_hessian_copy(const dq_hessian *h, float *out, size_t capacity)
{
    DQ_ENTER_CONTEXT(h->ctx, h && out);
    if (h->broken) return dq_fail(DQ_E_STATE, "the accumulator failed before and holds only a part of its inputs");
    if (capacity < (size_t)(h->n * h->n))
        return dq_fail(DQ_E_INVALID, "room for %zu floats, %lld x %lld needed", capacity, (long long)h->n,
                       (long long)h->n);
    DQ_TRY(dq_tensor_download(&h->h, out));
    for (int64_t i = 0; i < h->n; i++)
        for (int64_t j = i + 1; j < h->n; j++) out[i * h->n + j] = out[j * h->n + i];
    return DQ_OK;
}

dq_status dq_hessian_set(dq_hessian *h, const float *values, int64_t rows)
{
    DQ_ENTER_CONTEXT(h->ctx, h && values);
    if (rows < 0) return dq_fail(DQ_E_INVALID, "a Hessian over %lld inputs", (long long)rows);
    for (int64_t i = 0; i < h->n; i++)
        for (int64_t j = 0; j <= i; j++)
            if (!isfinite(values[i * h->n + j]))
                return dq_fail(DQ_E_NONFINITE, "entry (%lld, %lld) is NaN or Inf", (long long)i, (long long)j);
    size_t bytes = (size_t)(h->n * h->n) * sizeof *values;
    float *lower = dq_alloc(&h->ctx->env, bytes);
    if (!lower) return DQ_E_NOMEM;
    memcpy(lower, values, bytes);
    for (int64_t i = 0; i < h->n; i++)
        for (int64_t j = i + 1; j < h->n; j++) lower[i * h->n + j] = 0;
    dq_status status = dq_tensor_upload(&h->h, lower);
    dq_free(lower);
    h->broken = status != DQ_OK;
    if (status == DQ_OK) h->rows = rows;
    return status;
}

/* ---- a weight to codes and back ---- */

static dq_status check_weight(int64_t out, int64_t in)
{
    size_t bytes;
    if (out < 1 || in < 1 || out > INT32_MAX || in > INT32_MAX ||
        !dq_mul_ok((size_t)out, (size_t)in * sizeof(double), &bytes))
        return dq_fail(DQ_E_INVALID, "a weight of %lld x %lld", (long long)out, (long long)in);
    return DQ_OK;
}

dq_status dq_quantize_groups(const dq_config *config, int64_t in, int64_t *out)
{
    DQ_ENTER(config && out);
    dq_weight_spec spec;
    DQ_TRY(dq_weight_spec_from_config(config, &spec));
    DQ_TRY(check_weight(1, in));
    *out = spec.group < 1 || spec.group > in ? 1 : (in + spec.group - 1) / spec.group;
    return DQ_OK;
}

/* Copies that are made before anything reaches the caller's arrays, so that these stay untouched on failure. */
typedef struct results {
    uint8_t *codes;
    float *scale, *zero;
    int32_t *g_idx;
} results;

static dq_status fetch(dq_env *env, const dq_codes *c, results *r)
{
    size_t weights = (size_t)(c->out * c->in), groups = (size_t)(c->out * c->groups);
    r->codes = dq_alloc(env, weights);
    r->scale = dq_alloc(env, groups * sizeof(float));
    r->zero = dq_alloc(env, groups * sizeof(float));
    r->g_idx = dq_alloc(env, (size_t)c->in * sizeof(int32_t));
    if (!r->codes || !r->scale || !r->zero || !r->g_idx) return DQ_E_NOMEM;
    DQ_TRY(dq_tensor_download(&c->codes, r->codes));
    DQ_TRY(dq_tensor_download(&c->scale, r->scale));
    DQ_TRY(dq_tensor_download(&c->zero, r->zero));
    if (!dq_tensor_is_empty(&c->group_index)) return dq_tensor_download(&c->group_index, r->g_idx);
    for (int64_t i = 0; i < c->in; i++) r->g_idx[i] = (int32_t)(i / c->group);
    return DQ_OK;
}

static void free_results(results *r)
{
    dq_free(r->codes);
    dq_free(r->scale);
    dq_free(r->zero);
    dq_free(r->g_idx);
}

dq_status dq_copy_codes(dq_env *env, const dq_codes *c, uint8_t *codes, float *scale, float *zero, int32_t *g_idx)
{
    results r = {0};
    size_t grid = (size_t)(c->out * c->groups);
    dq_status status = fetch(env, c, &r);
    if (status == DQ_OK) {
        memcpy(codes, r.codes, (size_t)(c->out * c->in));
        memcpy(scale, r.scale, grid * sizeof *scale);
        memcpy(zero, r.zero, grid * sizeof *zero);
        memcpy(g_idx, r.g_idx, (size_t)c->in * sizeof *g_idx);
    }
    free_results(&r);
    return status;
}

dq_status dq_quantize_weight(dq_context *ctx, const dq_config *config, const float *w, int64_t out, int64_t in,
                             const dq_hessian *hessian, uint8_t *codes, float *scale, float *zero, int32_t *g_idx,
                             double *error, double *damping)
{
    DQ_ENTER_CONTEXT(ctx, ctx && config && w && codes && scale && zero && g_idx);
    dq_weight_spec spec;
    dq_status status;
    dq_tensor t = {0};
    dq_codes c = {0};
    double loss = 0, damp = 0;
    DQ_TRY(dq_weight_spec_from_config(config, &spec));
    DQ_TRY(check_weight(out, in));
    bool gptq = spec.method == DQ_WEIGHT_GPTQ;
    if (gptq && !hessian) return dq_fail(DQ_E_INVALID, "GPTQ needs a Hessian (or choose w_rtn)");
    if (gptq && hessian->ctx != ctx) return dq_fail(DQ_E_INVALID, "the Hessian belongs to another context");
    if (gptq && hessian->broken) return dq_fail(DQ_E_STATE, "the Hessian failed before and holds only a part");
    if (gptq && hessian->n != in)
        return dq_fail(DQ_E_MISMATCH, "a weight with %lld inputs and a Hessian of order %lld", (long long)in,
                       (long long)hessian->n);
    DQ_GO(dq_tensor_from_host(ctx->dev, DQ_F32, out, in, w, &t));
    DQ_GO(dq_quantize_linear(&spec, &t, gptq ? &hessian->h : NULL, &c, &loss, &damp));
    DQ_GO(dq_copy_codes(&ctx->env, &c, codes, scale, zero, g_idx));
    if (error) *error = loss;
    if (damping) *damping = damp;
done:
    dq_codes_free(&c);
    dq_tensor_free(&t);
    return status;
}

typedef struct dequant_job {
    const uint8_t *codes;
    const float *scale, *zero;
    const int32_t *g_idx;
    int64_t in, group, groups;
    float *w;
} dequant_job;

static void dequantize_row(void *arg, int64_t r, int thread)
{
    (void)thread;
    const dequant_job *j = arg;
    const float *scale = j->scale + r * j->groups, *zero = j->zero + r * j->groups;
    for (int64_t c = 0; c < j->in; c++) {
        int64_t g = j->g_idx ? j->g_idx[c] : c / j->group;
        j->w[r * j->in + c] = scale[g] * ((float)j->codes[r * j->in + c] - zero[g]);
    }
}

dq_status dq_dequantize_rows(dq_env *env, const uint8_t *codes, const float *scale, const float *zero,
                             const int32_t *g_idx, int64_t out, int64_t in, int64_t group, float *w)
{
    DQ_TRY(check_weight(out, in));
    if (group != -1 && group < 1) return dq_fail(DQ_E_INVALID, "groups of %lld columns", (long long)group);
    if (group == -1 || group > in) group = in;
    dequant_job job = {codes, scale, zero, g_idx, in, group, (in + group - 1) / group, w};
    for (int64_t c = 0; g_idx && c < in; c++)
        if (g_idx[c] < 0 || g_idx[c] >= job.groups)
            return dq_fail(DQ_E_INVALID, "column %lld belongs to group %d of %lld", (long long)c, g_idx[c],
                           (long long)job.groups);
    dq_run(env, out, dequantize_row, &job);
    return DQ_OK;
}

dq_status dq_dequantize_weight(dq_context *ctx, const uint8_t *codes, const float *scale, const float *zero,
                               const int32_t *g_idx, int64_t out, int64_t in, int64_t group, float *w)
{
    DQ_ENTER_CONTEXT(ctx, ctx && codes && scale && zero && w);
    return dq_dequantize_rows(&ctx->env, codes, scale, zero, g_idx, out, in, group, w);
}
