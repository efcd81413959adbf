/* dartquant/tensor_ops.h: keys and values on levels, in the host's buffers. SPDX-License-Identifier: Apache-2.0 */
#include <math.h>

#include "api/buffer_ops.h"
#include "api/check.h"
#include "dartquant/tensor_ops.h"
#include "quant/levels.h"

dq_status dq_make_levels(dq_context *ctx, int32_t kind, int32_t bits, float *levels)
{
    DQ_ENTER_CONTEXT(ctx, ctx && levels);
    if (kind != DQ_LEVELS_UNIFORM && kind != DQ_LEVELS_NORMAL)
        return dq_fail(DQ_E_INVALID, "kind = %d, must be DQ_LEVELS_UNIFORM or DQ_LEVELS_NORMAL", kind);
    if (bits < 2 || bits > 8) return dq_fail(DQ_E_INVALID, "%d bits, 2 to 8 are possible", bits);
    if (kind == DQ_LEVELS_UNIFORM)
        dq_levels_uniform((int64_t)1 << bits, levels);
    else
        dq_levels_normal((int64_t)1 << bits, levels);
    return DQ_OK;
}

static dq_status check_sink(int32_t sink, int64_t seqlen)
{
    if (sink >= 0 && (sink == 0 || seqlen >= 1)) return DQ_OK;
    return dq_fail(DQ_E_INVALID, "%d sink tokens in sequences of %lld", sink, (long long)seqlen);
}

static dq_status check_outliers(double outliers)
{
    if (outliers >= 0 && outliers < 1) return DQ_OK;
    return dq_fail(DQ_E_INVALID, "a share of outliers of %g is not in [0, 1)", outliers);
}

/* ---- ranges of columns ---- */

enum { TILE = 16 }; /* columns that a task gathers: a line of a cache */

typedef struct measure_job {
    const float *x;
    int64_t rows, cols, kept; /* kept: rows that count */
    double outliers;
    int32_t sink;
    int64_t seqlen;
    float *scratch; /* [threads, TILE, kept] */
    float *range;
} measure_job;

static bool is_sink(int32_t sink, int64_t seqlen, int64_t row) { return sink > 0 && row % seqlen < sink; }

static void measure_tile(void *arg, int64_t i, int thread)
{
    const measure_job *j = arg;
    int64_t first = i * TILE, n = j->cols - first < TILE ? j->cols - first : TILE, at = 0;
    float *gathered = j->scratch + (int64_t)thread * TILE * j->kept;
    for (int64_t r = 0; r < j->rows; r++) {
        if (is_sink(j->sink, j->seqlen, r)) continue;
        for (int64_t c = 0; c < n; c++) gathered[c * j->kept + at] = j->x[r * j->cols + first + c];
        at++;
    }
    for (int64_t c = 0; c < n; c++)
        dq_percentiles(gathered + c * j->kept, j->kept, j->outliers, &j->range[first + c],
                       &j->range[j->cols + first + c]);
}

dq_status dq_measure_columns(dq_context *ctx, const float *x, int64_t rows, int64_t cols, double outliers, int32_t sink,
                             int64_t seqlen, float *range)
{
    DQ_ENTER_CONTEXT(ctx, ctx && x && range);
    measure_job j = {.x = x, .rows = rows, .cols = cols, .outliers = outliers, .sink = sink, .seqlen = seqlen};
    size_t bytes;
    DQ_TRY(dq_check_matrix("a buffer", rows, cols));
    DQ_TRY(check_outliers(outliers));
    DQ_TRY(check_sink(sink, seqlen));
    DQ_TRY(dq_check_finite("buffer element", x, rows, cols));
    for (int64_t r = 0; r < rows; r++) j.kept += !is_sink(sink, seqlen, r);
    if (j.kept == 0)
        return dq_fail(DQ_E_INVALID, "all of %lld rows are %d sink tokens of their sequences", (long long)rows, sink);
    if (!dq_mul_ok((size_t)dq_threads(&ctx->env) * TILE * sizeof *x, (size_t)j.kept, &bytes)) return DQ_E_NOMEM;
    j.scratch = dq_alloc(&ctx->env, bytes);
    if (!j.scratch) return DQ_E_NOMEM;
    j.range = range;
    dq_run(&ctx->env, (cols + TILE - 1) / TILE, measure_tile, &j);
    dq_free(j.scratch);
    return DQ_OK;
}

/* ---- quantization ---- */

typedef struct levels_job {
    dq_levels_quant_desc d;
    dq_tensor levels, range, position;
} levels_job;

static dq_status quantize_chunk(const void *arg, int64_t row, dq_tensor *x)
{
    const levels_job *j = arg;
    dq_tensor at = {0};
    if (j->d.sink > 0) at = dq_tensor_slice(&j->position, 0, 1, row, x->view.rows);
    return dq_op_levels_quant(&j->d, x, &j->range, &j->levels, &at, x);
}

static dq_status check_levels(const float *levels, int32_t count)
{
    if (count < 2 || count > 256) return dq_fail(DQ_E_INVALID, "%d levels, 2 to 256 are possible", count);
    DQ_TRY(dq_check_finite("level", levels, 1, count));
    for (int32_t i = 1; i < count; i++)
        if (levels[i] < levels[i - 1])
            return dq_fail(DQ_E_INVALID, "level %d is %g and level %d is %g: they must ascend", i - 1,
                           (double)levels[i - 1], i, (double)levels[i]);
    return DQ_OK;
}

static dq_status check_range(const float *range, int64_t cols)
{
    DQ_TRY(dq_check_finite("range", range, 2, cols));
    for (int64_t c = 0; c < cols; c++)
        if (range[c] > range[cols + c])
            return dq_fail(DQ_E_INVALID, "column %lld has a range from %g to %g", (long long)c, (double)range[c],
                           (double)range[cols + c]);
    return DQ_OK;
}

/* The rows' places in their sequences; a chunk may begin anywhere. */
static dq_status upload_positions(dq_context *ctx, int64_t rows, int64_t seqlen, dq_tensor *out)
{
    int32_t *at = dq_alloc(&ctx->env, (size_t)rows * sizeof *at);
    if (!at) return DQ_E_NOMEM;
    for (int64_t r = 0; r < rows; r++) at[r] = r % seqlen < INT32_MAX ? (int32_t)(r % seqlen) : INT32_MAX;
    dq_status status = dq_tensor_from_host(ctx->dev, DQ_I32, 1, rows, at, out);
    dq_free(at);
    return status;
}

dq_status dq_fake_quantize_levels(dq_context *ctx, float *x, int64_t rows, int64_t cols, const float *levels,
                                  int32_t count, const float *range, double outliers, int32_t keep_outliers,
                                  int32_t sink, int64_t seqlen, double norm_scale, double norm_offset)
{
    DQ_ENTER_CONTEXT(ctx, ctx && x && levels);
    levels_job j = {.d = {.per_row = range == NULL,
                          .keep_outliers = keep_outliers,
                          .outliers = range ? 0 : outliers,
                          .seqlen = seqlen,
                          .sink = sink,
                          .norm_scale = (float)norm_scale,
                          .norm_offset = (float)norm_offset}};
    dq_status status;
    DQ_TRY(dq_check_matrix("a buffer", rows, cols));
    DQ_TRY(check_levels(levels, count));
    if (range) DQ_TRY(check_range(range, cols));
    if (!range) DQ_TRY(check_outliers(outliers));
    DQ_TRY(check_sink(sink, seqlen));
    if (keep_outliers != 0 && keep_outliers != 1)
        return dq_fail(DQ_E_INVALID, "keep_outliers = %d, must be 0 or 1", keep_outliers);
    if (!isfinite(j.d.norm_scale) || !isfinite(j.d.norm_offset))
        return dq_fail(DQ_E_INVALID, "a Q-Norm of %g and %g is not finite", norm_scale, norm_offset);
    DQ_TRY(dq_check_finite("buffer element", x, rows, cols));
    DQ_GO(dq_tensor_from_host(ctx->dev, DQ_F32, 1, count, levels, &j.levels));
    if (range) DQ_GO(dq_tensor_from_host(ctx->dev, DQ_F32, 2, cols, range, &j.range));
    if (sink > 0) DQ_GO(upload_positions(ctx, rows, seqlen, &j.position));
    status = dq_run_in_place(ctx, x, rows, cols, quantize_chunk, &j);
done:
    dq_tensor_free(&j.levels);
    dq_tensor_free(&j.range);
    dq_tensor_free(&j.position);
    return status;
}
