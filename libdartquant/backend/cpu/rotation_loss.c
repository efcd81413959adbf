/* Loss and gradient of rotated rows in one pass: a block of rows is rotated, its losses and slopes are taken while it
 * lies in cache, and only what the gradient needs is kept, for some blocks at a time. Small matrices have a sum of their
 * own for each span of rows; of large ones there is a single sum, to which chunks of rows are added block by block of the
 * matrix. Spans, chunks and blocks depend on the shape alone. SPDX-License-Identifier: Apache-2.0 */
#include "backend/cpu/rotation_loss.h"

#include <limits.h>
#include <string.h>

#include "backend/cpu/gemm_packed.h"

enum {
    SMALL = 256,               /* largest order with a sum for each span */
    SPANS = 16,                /* at most */
    SUM_BYTES = 64 << 20,      /* of all spans */
    ROTATED_BYTES = 512 << 10, /* of a block */
    SMALL_BYTES = 160 << 10,   /* the same of small matrices, whose stores share the second cache with it */
    MOST_ROWS = 512,           /* in a block */
    TALL_ROWS = 256,           /* in a block of large matrices, which are read once for each block */
    CHUNK_BLOCKS = 16,         /* blocks in a chunk */
    CHUNK_BYTES = 192 << 20,
    PACK_ROWS = 64
};

/* ---- one block of rows ---- */

static size_t round_64(size_t bytes) { return (bytes + 63) / 64 * 64; }

static int64_t width_of(const dq_loss_pass *p) { return p->heads * p->n; }

/* Cuts the thread's workspace; returns what is behind the block's part. */
static char *begin_block(const dq_loss_pass *p, int thread, int64_t index, dq_loss_block *b)
{
    char *at = p->workspace + (size_t)thread * p->thread_bytes;
    b->first = index * p->block;
    b->rows = dq_min64(p->block, p->x->rows - b->first);
    b->o = (float *)(void *)at;
    at += round_64((size_t)(p->block * p->row_floats) * sizeof(float));
    b->line = (float *)(void *)at;
    at += round_64((size_t)width_of(p) * sizeof(float));
    b->sum = (double *)(void *)at;
    b->per = b->sum + p->block;
    at += round_64(2 * (size_t)p->block * sizeof(double));
    b->packed = at;
    return at + round_64(p->engine->block_bytes(p));
}

static size_t block_bytes(const dq_loss_pass *p)
{
    return round_64((size_t)(p->block * p->row_floats) * sizeof(float)) +
           round_64((size_t)width_of(p) * sizeof(float)) + round_64(2 * (size_t)p->block * sizeof(double)) +
           round_64(p->engine->block_bytes(p));
}

static double inverse_norm(const dq_loss_pass *p, int64_t row, float *line)
{
    const dq_row_kernels *k = dq_cpu_rows(p->dev);
    int64_t n = p->x->cols;
    const void *x = dq_view_at(p->x, row, 0, p->x->dtype == DQ_F32 ? 4 : 2);
    if (p->x->dtype == DQ_BF16) k->bf16_to_f32(x, line, n);
    if (p->x->dtype == DQ_F16) k->f16_to_f32(x, line, n);
    const void *wide = p->x->dtype == DQ_F32 ? x : line;
    double norm = k->dot_f32(wide, wide, n);
    return norm == 0 ? 0 : 1 / norm;
}

static void start_rows(const dq_loss_pass *p, const dq_loss_block *b)
{
    for (int64_t r = 0; r < b->rows; r++) {
        b->sum[r] = 0;
        b->per[r] = p->d->relative ? inverse_norm(p, b->first + r, b->line) : 1;
    }
}

static double weight_of(const dq_loss_pass *p, int64_t row) { return p->weight ? dq_view_f32(p->weight, 0)[row] : 1; }

/* Rows of a head lie far apart, and the processor does not foresee them: what is rotated next comes into the second cache
 * while this unit is at work. */
static void fetch_next_unit(const dq_loss_pass *p, const dq_loss_block *b, int64_t head0, int64_t row)
{
    int64_t head = head0 + p->unit, size = p->x->dtype == DQ_F32 ? 4 : 2;
    row += b->first;
    if (head == p->heads) head = 0, row += p->block;
    if (p->heads == 1 || row >= p->x->rows) return;
    const char *at = dq_view_at(p->x, row, head * p->n, size);
    for (int64_t byte = 0; byte < p->unit * p->n * size; byte += 64) __builtin_prefetch(at + byte, 0, 2);
}

/* Rotates a unit; losses are added to the rows' sums, slopes replace the rotated values. */
static void take_unit(const dq_loss_pass *p, const dq_loss_block *b, int64_t head0)
{
    float shift = (float)p->d->shift;
    p->engine->rotate(p, b, head0);
    for (int64_t r = 0; r < b->rows; r++) {
        fetch_next_unit(p, b, head0, r);
        float *o = b->o + r * p->row_floats, factor = (float)(p->d->scale * weight_of(p, b->first + r) * b->per[r]);
        b->sum[r] += p->kernels->loss(p->d, p->quant, o, p->unit * p->n, factor, shift, b->line, p->grad ? o : NULL);
    }
}

static void finish_rows(const dq_loss_pass *p, const dq_loss_block *b)
{
    double total = 0;
    for (int64_t r = 0; r < b->rows; r++) {
        double loss = b->per[r] == 0 ? 0 : b->per[r] * b->sum[r];
        total += weight_of(p, b->first + r) * loss;
        if (p->row_loss) dq_view_f32(p->row_loss, 0)[b->first + r] = (float)loss;
    }
    p->block_loss[b->first / p->block] = total;
}

/* ---- the loss alone ---- */

static void loss_task(void *arg, int64_t i, int thread)
{
    const dq_loss_pass *p = arg;
    dq_loss_block b;
    begin_block(p, thread, i, &b);
    start_rows(p, &b);
    for (int64_t h = 0; h < p->heads; h += p->unit) take_unit(p, &b, h);
    finish_rows(p, &b);
}

static int64_t blocks_of(const dq_loss_pass *p) { return dq_ceil_div(p->x->rows, p->block); }

/* ---- small matrices: a sum for each span of rows ---- */

typedef struct span_job {
    const dq_loss_pass *p;
    int64_t spans, blocks; /* blocks in a span */
    float *sums;           /* [spans][groups][n][n] */
} span_job;

static void span_task(void *arg, int64_t i, int thread)
{
    const span_job *j = arg;
    const dq_loss_pass *p = j->p;
    int64_t square = p->n * p->n, groups = p->heads / p->share, end = dq_min64((i + 1) * j->blocks, blocks_of(p));
    float *sums = j->sums + i * groups * square;
    memset(sums, 0, (size_t)(groups * square) * sizeof *sums);
    for (int64_t block = i * j->blocks; block < end; block++) {
        dq_loss_block b;
        dq_loss_store s = {.x = begin_block(p, thread, block, &b), .depth = p->block};
        s.slope = (char *)s.x + p->engine->store_bytes(p, p->block, p->unit) / 2;
        start_rows(p, &b);
        for (int64_t first = 0; first < p->heads; first += p->unit) {
            take_unit(p, &b, first);
            p->engine->keep(p, &b, first, &s, 0);
            for (int64_t h = first; h < first + p->unit; h++)
                p->engine->accumulate(p, &s, b.rows, h, 0, p->n, 0, p->n, sums + h / p->share * square, p->n);
        }
        finish_rows(p, &b);
    }
}

static void reduce_task(void *arg, int64_t row, int thread)
{
    (void)thread;
    const span_job *j = arg;
    const dq_view *grad = j->p->grad;
    float *out = dq_view_f32(grad, row), beta = (float)j->p->d->beta;
    int64_t n = j->p->n, stack = grad->rows * n;
    float sum[SMALL] = {0};
    for (int64_t s = 0; s < j->spans; s++) {
        const float *part = j->sums + s * stack + row * n;
        for (int64_t c = 0; c < n; c++) sum[c] += part[c];
    }
    for (int64_t c = 0; c < n; c++) out[c] = beta == 0 ? sum[c] : beta * out[c] + sum[c];
}

static dq_status small_pass(dq_loss_pass *p)
{
    const dq_host *host = p->dev->ref.host;
    size_t sum_bytes = (size_t)(p->grad->rows * p->n) * sizeof(float);
    span_job j = {.p = p};
    int64_t most = dq_max64(1, dq_min64(SPANS, SUM_BYTES / (int64_t)sum_bytes));
    j.blocks = dq_max64(1, dq_ceil_div(blocks_of(p), most));
    j.spans = dq_ceil_div(blocks_of(p), j.blocks);
    if (j.spans > 0) {
        j.sums = dq_cpu_scratch_take(p->dev, (size_t)j.spans * sum_bytes);
        if (!j.sums) return DQ_E_NOMEM;
    }
    host->run(host->self, j.spans, span_task, &j);
    host->run(host->self, p->grad->rows, reduce_task, &j);
    dq_cpu_scratch_give(p->dev, j.sums);
    return DQ_OK;
}

/* ---- large matrices: chunks of rows are added to a single sum ---- */

typedef struct chunk_job {
    const dq_loss_pass *p;
    dq_loss_store store;
    int64_t first_block, rows;
    int64_t edge, edges; /* of the parts of the matrix */
} chunk_job;

static void rotate_task(void *arg, int64_t i, int thread)
{
    const chunk_job *j = arg;
    const dq_loss_pass *p = j->p;
    dq_loss_block b;
    begin_block(p, thread, j->first_block + i, &b);
    start_rows(p, &b);
    for (int64_t h = 0; h < p->heads; h += p->unit) {
        take_unit(p, &b, h);
        p->engine->keep(p, &b, h, &j->store, i * p->block);
    }
    finish_rows(p, &b);
}

static void part_task(void *arg, int64_t i, int thread)
{
    (void)thread;
    const chunk_job *j = arg;
    const dq_loss_pass *p = j->p;
    int64_t group = i / (j->edges * j->edges), part = i % (j->edges * j->edges);
    int64_t r0 = part / j->edges * j->edge, c0 = part % j->edges * j->edge;
    int64_t rows = dq_min64(j->edge, p->n - r0), cols = dq_min64(j->edge, p->n - c0);
    float beta = (float)p->d->beta;
    for (int64_t r = 0; r < rows && j->first_block == 0 && beta != 1; r++) {
        float *out = dq_view_f32(p->grad, group * p->n + r0 + r) + c0;
        for (int64_t c = 0; c < cols; c++) out[c] = beta == 0 ? 0 : beta * out[c];
    }
    for (int64_t h = group * p->share; h < (group + 1) * p->share && j->rows > 0; h++)
        p->engine->accumulate(p, &j->store, j->rows, h, r0, rows, c0, cols,
                              dq_view_f32(p->grad, group * p->n + r0) + c0, p->grad->stride);
}

static dq_status large_pass(dq_loss_pass *p)
{
    const dq_host *host = p->dev->ref.host;
    int64_t blocks = blocks_of(p), least = p->n < 2048 ? 112 : 256;
    int64_t fit = CHUNK_BYTES / (int64_t)p->engine->store_bytes(p, p->block, p->heads);
    int64_t chunk = dq_min64(dq_max64(1, dq_min64(fit, CHUNK_BLOCKS)), dq_max64(1, blocks));
    chunk_job j = {.p = p, .store = {.depth = chunk * p->block, .whole = true}};
    j.edge = dq_ceil_div(dq_ceil_div(p->n, dq_ceil_div(p->n, least)), DQ_PAIR) * DQ_PAIR;
    j.edges = dq_ceil_div(p->n, j.edge);
    size_t store = p->engine->store_bytes(p, j.store.depth, p->heads);
    j.store.x = dq_cpu_scratch_take(p->dev, store);
    if (!j.store.x) return DQ_E_NOMEM;
    j.store.slope = (char *)j.store.x + store / 2;
    do {
        int64_t count = dq_min64(chunk, blocks - j.first_block);
        j.rows = dq_min64(count * p->block, p->x->rows - j.first_block * p->block);
        host->run(host->self, count, rotate_task, &j);
        host->run(host->self, p->heads / p->share * j.edges * j.edges, part_task, &j);
        j.first_block += chunk;
    } while (j.first_block < blocks);
    dq_cpu_scratch_give(p->dev, j.store.x);
    return DQ_OK;
}

/* ---- the op ---- */

static void pack_task(void *arg, int64_t i, int thread)
{
    (void)thread;
    const dq_loss_pass *p = arg;
    int64_t pieces = dq_ceil_div(p->padded, PACK_ROWS), first = i % pieces * PACK_ROWS;
    p->engine->pack(p, i / pieces, first, dq_min64(p->padded, first + PACK_ROWS));
}

/* AMX where the processor has it: one term for DQ_MATH_BF16, else as many as hold fp32. */
static void choose_engine(dq_loss_pass *p)
{
    p->engine = &dq_loss_engine_f32;
#if defined(__x86_64__)
    if (p->dev->amx) {
        bool round = p->d->math == DQ_MATH_BF16;
        p->engine = &dq_loss_engine_tiles;
        p->tiles = &dq_fit_tiles_amx;
        p->terms = round ? 1 : 3;
        p->x_terms = round || p->x->dtype == DQ_BF16 ? 1 : p->x->dtype == DQ_F16 ? 2 : 3;
    }
#endif
}

static void choose_sizes(dq_loss_pass *p)
{
    bool apart = p->d->kind == DQ_LOSS_WHIP || p->d->group <= p->n;
    p->unit = apart ? 1 : p->d->group / p->n;
    p->padded = dq_ceil_div(p->n, DQ_PAIR) * DQ_PAIR;
    p->row_floats = (p->unit - 1) * p->n + p->padded + 16; /* no power of two */
    int64_t bytes = p->n <= SMALL ? SMALL_BYTES : ROTATED_BYTES;
    int64_t fit = bytes / (p->row_floats * (int64_t)sizeof(float)) / DQ_PAIR * DQ_PAIR;
    p->block = p->n > 1024 ? TALL_ROWS : dq_min64(MOST_ROWS, dq_max64(DQ_PAIR, fit));
    p->block = dq_min64(p->block, dq_max64(1, dq_ceil_div(p->x->rows, DQ_PAIR)) * DQ_PAIR);
}

dq_status dq_cpu_rotation_loss(void *device, const dq_rotation_loss_desc *d, const dq_view *x, const dq_view *weight,
                               const dq_view *r, const dq_view *grad, const dq_view *row_loss, double *loss)
{
    dq_cpu_dev *dev = device;
    const dq_host *host = dev->ref.host;
    if (x->stride > INT_MAX || r->stride > INT_MAX || (grad && grad->stride > INT_MAX))
        return dq_ref_backend()->rotation_loss(device, d, x, weight, r, grad, row_loss, loss);
    dq_loss_pass p = {.dev = dev, .d = d, .x = x, .weight = weight, .r = r, .grad = grad, .row_loss = row_loss};
    p.kernels = DQ_CPU_PICK(dev, dq_fit);
    p.quant = dq_cpu_quant_kernels(dev);
    p.n = d->n;
    p.heads = d->heads;
    p.share = d->heads / d->groups;
    choose_engine(&p);
    choose_sizes(&p);
    bool small = grad && p.n <= SMALL;
    p.thread_bytes = block_bytes(&p) + (small ? round_64(p.engine->store_bytes(&p, p.block, p.unit)) : 0) + 64;
    size_t packed = round_64(p.engine->pack_bytes(&p)), losses = round_64((size_t)blocks_of(&p) * sizeof(double));
    p.r_packed = dq_cpu_scratch_take(dev, packed + losses + p.thread_bytes * (size_t)dev->threads);
    if (!p.r_packed) return DQ_E_NOMEM;
    p.block_loss = (double *)(void *)((char *)p.r_packed + packed);
    p.workspace = (char *)p.block_loss + losses;
    dq_status status = DQ_OK;
    dq_blas_enter();
    host->run(host->self, d->groups * dq_ceil_div(p.padded, PACK_ROWS), pack_task, &p);
    if (!grad)
        host->run(host->self, blocks_of(&p), loss_task, &p);
    else
        status = small ? small_pass(&p) : large_pass(&p);
    dq_blas_leave();
    *loss = 0;
    for (int64_t i = 0; i < blocks_of(&p) && status == DQ_OK; i++) *loss += p.block_loss[i];
    *loss *= d->scale;
    dq_cpu_scratch_give(dev, p.r_packed);
    return status;
}
