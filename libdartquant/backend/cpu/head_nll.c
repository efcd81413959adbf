/* Streaming cross-entropy: blocks of logits live only in a thread's scratch space, each is reduced at once to the maximum
 * and the sum of exponentials of its rows, and these are merged in the order of the vocabulary.
 * SPDX-License-Identifier: Apache-2.0 */
#include <cblas.h>
#include <limits.h>
#include <math.h>

#include "backend/cpu/gemm_packed.h"

enum {
    WIDE_ROWS = 512, /* logits in a task: products in fp32 */
    WIDE_COLS = 768,
    PACKED_ROWS = 256, /* bf16 */
    PACKED_COLS = 512,
    CHUNK_ROWS = 4096, /* tokens and vocabulary entries prepared at a time */
    CHUNK_COLS = 12288,
    CHUNK_BYTES = 16 << 20 /* of prepared weights */
};

typedef struct partial {
    double max, sum;
} partial;

typedef struct head_job {
    const dq_row_kernels *rows_kernels;
    const dq_packed_kernels *packed; /* NULL: fp32 through BLAS */
    const dq_view *targets, *state;
    int64_t first; /* vocabulary id of column 0 of this chunk */
    int64_t depth;
    int64_t row0, rows, cols; /* this chunk */
    int64_t row_block, col_block, col_blocks;
    dq_view x, w;      /* fp32 */
    uint16_t *xp, *wp; /* packed */
    float *logits;     /* [threads][row_block * col_block] */
    partial *partials; /* [col_blocks][rows] */
} head_job;

static void head_task(void *arg, int64_t i, int thread)
{
    const head_job *j = arg;
    int64_t block = i % j->col_blocks, r0 = i / j->col_blocks * j->row_block, c0 = block * j->col_block;
    int64_t rows = dq_min64(j->row_block, j->rows - r0), cols = dq_min64(j->col_block, j->cols - c0);
    float *logits = j->logits + thread * j->row_block * j->col_block;
    if (j->packed) {
        j->packed->block(dq_packed_at(j->xp, r0, j->depth), dq_packed_at(j->wp, c0, j->depth),
                         dq_packed_tiles(j->depth), rows, cols, 1, 0, logits, j->col_block);
    } else {
        cblas_sgemm(CblasRowMajor, CblasNoTrans, CblasTrans, (int)rows, (int)cols, (int)j->depth, 1,
                    dq_view_f32(&j->x, r0), (int)j->x.stride, dq_view_f32(&j->w, c0), (int)j->w.stride, 0, logits,
                    (int)j->col_block);
    }
    const int32_t *target = dq_view_i32(j->targets, 0) + j->row0;
    for (int64_t r = 0; r < rows; r++) {
        const float *line = logits + r * j->col_block;
        partial *p = &j->partials[block * j->rows + r0 + r];
        float max;
        j->rows_kernels->max_sumexp(line, cols, &max, &p->sum);
        p->max = (double)max;
        int64_t at = target[r0 + r] - j->first - c0;
        if (target[r0 + r] >= 0 && at >= 0 && at < cols) dq_view_f64(j->state, j->row0 + r0 + r)[2] = (double)line[at];
    }
}

static void merge_task(void *arg, int64_t i, int thread)
{
    const head_job *j = arg;
    (void)thread;
    for (int64_t r = i * j->row_block; r < dq_min64(j->rows, (i + 1) * j->row_block); r++) {
        double *s = dq_view_f64(j->state, j->row0 + r);
        for (int64_t b = 0; b < j->col_blocks; b++) {
            partial p = j->partials[b * j->rows + r];
            if (p.max > s[0]) {
                s[1] = (s[0] == -INFINITY ? 0.0 : s[1] * exp(s[0] - p.max)) + p.sum;
                s[0] = p.max;
            } else if (p.max != -INFINITY) {
                s[1] += p.sum * exp(p.max - s[0]);
            }
        }
    }
}

/* Bytes of scratch for a chunk, cut in the parts of the job. */
static bool take_scratch(dq_cpu_dev *dev, head_job *j, int64_t rows, int64_t cols, size_t x_bytes, size_t w_bytes)
{
    size_t partial_bytes = (size_t)(dq_ceil_div(cols, j->col_block) * rows) * sizeof(partial);
    size_t logit_bytes = (size_t)dev->threads * (size_t)(j->row_block * j->col_block) * sizeof(float);
    size_t line = 63; /* every part starts on a cache line */
    partial_bytes = (partial_bytes + line) & ~line;
    x_bytes = (x_bytes + line) & ~line;
    char *p = dq_cpu_scratch_take(dev, logit_bytes + partial_bytes + x_bytes + w_bytes + 64);
    if (!p) return false;
    j->logits = (float *)(void *)p;
    j->partials = (partial *)(void *)(p + logit_bytes);
    j->xp = (uint16_t *)(void *)(p + logit_bytes + partial_bytes);
    j->wp = (uint16_t *)(void *)(p + logit_bytes + partial_bytes + x_bytes);
    return true;
}

/* Rows [r0, r0 + rows) of v ready for the product: packed at `to`, widened at `to`, or as they are. */
static void prepare(dq_cpu_dev *dev, const head_job *j, const dq_view *v, int64_t r0, int64_t rows, int32_t math,
                    bool is_w, uint16_t *to, dq_view *out)
{
    if (j->packed) {
        dq_pack_source s = {v, false, r0, rows, j->depth};
        dq_packed_pack(dev, &s, is_w, to);
        return;
    }
    dq_view part = dq_view_slice(v, r0, rows, 0, v->cols, v->dtype == DQ_F32 ? 4 : 2);
    *out = dq_cpu_is_wide(v, math) ? part : dq_cpu_widen(dev, &part, math, (float *)(void *)to);
}

static size_t prepared_bytes(const head_job *j, const dq_view *v, int64_t rows, int32_t math)
{
    if (j->packed) return dq_packed_bytes(rows, j->depth);
    return dq_cpu_is_wide(v, math) ? 0 : (size_t)(rows * j->depth) * sizeof(float);
}

dq_status dq_cpu_head_nll(void *device, const dq_view *x, const dq_view *w, const dq_view *targets, int64_t first,
                          const dq_view *state, int32_t math)
{
    dq_cpu_dev *dev = device;
    const dq_host *host = dev->ref.host;
    if (x->rows == 0 || w->rows == 0) return DQ_OK;
    if (x->cols > INT_MAX || x->stride > INT_MAX || w->stride > INT_MAX)
        return dq_ref_backend()->head_nll(device, x, w, targets, first, state, math);
    head_job j = {.rows_kernels = dq_cpu_rows(dev), .targets = targets, .state = state, .depth = x->cols};
    j.packed = math == DQ_MATH_BF16 ? dq_cpu_packed(dev) : NULL;
    j.row_block = j.packed ? PACKED_ROWS : WIDE_ROWS;
    j.col_block = j.packed ? PACKED_COLS : WIDE_COLS;
    int64_t rows = dq_min64(x->rows, CHUNK_ROWS), cols = dq_min64(w->rows, CHUNK_COLS);
    if (j.packed || !dq_cpu_is_wide(w, math)) {
        int64_t fit = CHUNK_BYTES / (dq_max64(1, j.depth) * (j.packed ? 2 : 4));
        cols = dq_min64(cols, dq_max64(j.col_block, fit / j.col_block * j.col_block));
    }
    if (!take_scratch(dev, &j, rows, cols, prepared_bytes(&j, x, rows, math), prepared_bytes(&j, w, cols, math)))
        return DQ_E_NOMEM;
    dq_blas_enter();
    for (int64_t c0 = 0; c0 < w->rows; c0 += cols) {
        j.cols = dq_min64(cols, w->rows - c0);
        j.col_blocks = dq_ceil_div(j.cols, j.col_block);
        j.first = first + c0;
        prepare(dev, &j, w, c0, j.cols, math, true, j.wp, &j.w);
        for (j.row0 = 0; j.row0 < x->rows; j.row0 += rows) {
            j.rows = dq_min64(rows, x->rows - j.row0);
            prepare(dev, &j, x, j.row0, j.rows, math, false, j.xp, &j.x);
            int64_t row_blocks = dq_ceil_div(j.rows, j.row_block);
            host->run(host->self, row_blocks * j.col_blocks, head_task, &j);
            host->run(host->self, row_blocks, merge_task, &j);
        }
    }
    dq_blas_leave();
    dq_cpu_scratch_give(dev, j.logits);
    return DQ_OK;
}
