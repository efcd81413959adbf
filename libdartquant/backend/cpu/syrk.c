/* h = beta h + alpha x^T x, lower triangle, by square tiles of h in parallel, each a single-threaded OpenBLAS product.
 * Tokens are summed in chunks of fixed length, first inside a chunk, then over chunks; tiles and chunks depend on the
 * shape alone. SPDX-License-Identifier: Apache-2.0 */
#include <cblas.h>
#include <limits.h>

#include "backend/cpu/quantize.h"
#include "base/half.h"

enum { TILE = 512, SMALL_TILE = 64, CHUNK = 2048, WIDEN_ROWS = 64 };

typedef struct syrk_job {
    const dq_view *x, *h;
    const float *chunk; /* the tokens at hand in fp32: x itself, or its copy */
    int64_t chunk_stride, first, tokens;
    float *wide;
    int64_t n, tile, tiles;
    float *scratch; /* [threads][tile * tile] */
    float alpha, beta;
} syrk_job;

/* Products below the diagonal come first: they are twice as long, and short tasks at the end balance better. */
static void tile_of(const syrk_job *j, int64_t i, int64_t *row, int64_t *col)
{
    int64_t below = j->tiles * (j->tiles - 1) / 2;
    if (i >= below) {
        *row = *col = i - below;
        return;
    }
    int64_t r = 1;
    while ((r + 1) * r / 2 <= i) r++;
    *row = r;
    *col = i - r * (r - 1) / 2;
}

static void syrk_task(void *arg, int64_t i, int thread)
{
    const syrk_job *j = arg;
    int64_t ti, tj;
    tile_of(j, i, &ti, &tj);
    int64_t r0 = ti * j->tile, c0 = tj * j->tile, rows = dq_least(j->tile, j->n - r0),
            cols = dq_least(j->tile, j->n - c0);
    float *t = j->scratch + (int64_t)thread * j->tile * j->tile;
    int tokens = (int)j->tokens, ld = (int)j->chunk_stride;
    if (ti == tj)
        cblas_ssyrk(CblasRowMajor, CblasLower, CblasTrans, (int)rows, tokens, 1, j->chunk + r0, ld, 0, t, (int)rows);
    else
        cblas_sgemm(CblasRowMajor, CblasTrans, CblasNoTrans, (int)rows, (int)cols, tokens, 1, j->chunk + r0, ld,
                    j->chunk + c0, ld, 0, t, (int)cols);
    float beta = j->first == 0 ? j->beta : 1;
    for (int64_t r = 0; r < rows; r++) {
        float *h = dq_view_f32(j->h, r0 + r) + c0;
        const float *sum = t + r * cols;
        int64_t end = ti == tj ? r + 1 : cols;
        if (beta == 0)
            for (int64_t c = 0; c < end; c++) h[c] = j->alpha * sum[c];
        else
            for (int64_t c = 0; c < end; c++) h[c] = beta * h[c] + j->alpha * sum[c];
    }
}

static void widen_task(void *arg, int64_t i, int thread)
{
    (void)thread;
    const syrk_job *j = arg;
    int64_t end = dq_least((i + 1) * WIDEN_ROWS, j->tokens);
    for (int64_t r = i * WIDEN_ROWS; r < end; r++) {
        const uint16_t *x = dq_view_at(j->x, j->first + r, 0, 2);
        float *y = j->wide + r * j->n;
        if (j->x->dtype == DQ_BF16)
            for (int64_t c = 0; c < j->n; c++) y[c] = dq_bf16_to_f32(x[c]);
        else
            for (int64_t c = 0; c < j->n; c++) y[c] = dq_f16_to_f32(x[c]);
    }
}

/* Tiles of equal size, at least a few of them so that there is something to share. */
static int64_t tile_size(int64_t n)
{
    int64_t tiles = (n + TILE - 1) / TILE;
    if (tiles < 3 && n >= 3 * SMALL_TILE) tiles = 3;
    return (n + tiles - 1) / tiles;
}

dq_status dq_cpu_syrk(void *device, double alpha, const dq_view *x, double beta, const dq_view *h)
{
    dq_cpu_dev *dev = device;
    const dq_host *host = dev->ref.host;
    if (x->rows == 0 || x->stride > INT_MAX) return dq_ref_backend()->syrk(device, alpha, x, beta, h);
    if (x->cols == 0) return DQ_OK;
    syrk_job j = {.x = x, .h = h, .n = x->cols, .alpha = (float)alpha, .beta = (float)beta};
    j.tile = tile_size(j.n);
    j.tiles = (j.n + j.tile - 1) / j.tile;
    bool narrow = x->dtype != DQ_F32;
    size_t sums = (size_t)(j.tile * j.tile * dev->threads),
           copy = narrow ? (size_t)(dq_least(CHUNK, x->rows) * j.n) : 0;
    j.scratch = dq_cpu_scratch_take(dev, (sums + copy) * sizeof(float));
    if (!j.scratch) return DQ_E_NOMEM;
    j.wide = j.scratch + sums;
    dq_blas_enter();
    for (j.first = 0; j.first < x->rows; j.first += CHUNK) {
        j.tokens = dq_least(CHUNK, x->rows - j.first);
        if (narrow) host->run(host->self, (j.tokens + WIDEN_ROWS - 1) / WIDEN_ROWS, widen_task, &j);
        j.chunk = narrow ? j.wide : dq_view_f32(x, j.first);
        j.chunk_stride = narrow ? j.n : x->stride;
        host->run(host->self, j.tiles * (j.tiles + 1) / 2, syrk_task, &j);
    }
    dq_blas_leave();
    dq_cpu_scratch_give(dev, j.scratch);
    return DQ_OK;
}
