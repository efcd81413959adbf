/* Attention over cached keys and values: blocks of neighbouring queries that share a sequence read its keys once.
 * SPDX-License-Identifier: Apache-2.0 */
#include <string.h>

#include "backend/cpu/decode.h"
#include "backend/ref/ops.h"
#include "base/fp8.h"

enum {
    QUERIES = 16,
    KEYS = 64,      /* tokens dequantized at a time */
    FEW_TASKS = 16, /* fewer than so many are cut further, where keys need no dequantizing: threads end together */
};

typedef struct query_block {
    int64_t row, rows;
    int64_t first, end; /* slots that any of them sees */
} query_block;

typedef struct kv_run {
    const dq_kv_attention_desc *d;
    const dq_view *q, *k, *k_grid, *v, *v_grid, *o;
    const int32_t *first, *count;
    const dq_decode_kernels *kernels;
    const dq_row_kernels *convert;
    query_block *blocks;
    char *scratch;
    size_t scratch_each;
    int64_t longest; /* slots of a block */
    bool split;      /* a task for each query head */
} kv_run;

/* Slots [first, first + count) of one head as floats: the cache itself, or a copy. */
static dq_keys widen(const kv_run *run, const dq_view *cache, const dq_view *grid, int64_t head, int64_t first,
                     int64_t count, float *copy)
{
    const dq_kv_desc *d = &run->d->kv;
    int64_t dim = d->head_dim, at = head * dim;
    if (cache->dtype == DQ_F32)
        return (dq_keys){.at = dq_view_f32(cache, first) + at, .stride = cache->stride, .count = count, .dim = dim};
    for (int64_t j = 0; j < count; j++) {
        float *to = copy + j * dim;
        if (cache->dtype == DQ_F16) {
            run->convert->f16_to_f32(dq_view_at(cache, first + j, at, 2), to, dim);
        } else if (cache->dtype == DQ_BF16) {
            run->convert->bf16_to_f32(dq_view_at(cache, first + j, at, 2), to, dim);
        } else if (d->kind == DQ_KV_FP8) {
            const uint8_t *from = dq_view_u8(cache, first + j) + at;
            for (int64_t c = 0; c < dim; c++) to[c] = dq_e4m3_to_f32(from[c]);
        } else {
            const uint8_t *from = dq_view_u8(cache, first + j) + at * d->bits / 8;
            const float *g = dq_view_f32(grid, first + j) + 2 * head;
            float scale = g[0], zero = g[1];
            for (int64_t c = 0; c < dim; c++) {
                int code = d->bits == 8 ? from[c] : c & 1 ? from[c / 2] >> 4 : from[c / 2] & 15;
                to[c] = scale * ((float)code - zero);
            }
        }
    }
    return (dq_keys){.at = copy, .stride = dim, .count = count, .dim = dim};
}

/* The part of [first, first + count) that a row sees: keys cut, its start in *skip. */
static dq_keys seen(const kv_run *run, int64_t row, int64_t first, const dq_keys *all, int64_t *skip)
{
    dq_keys part = *all;
    int64_t from = dq_max64(first, run->first[row]);
    int64_t end = dq_min64(first + all->count, (int64_t)run->first[row] + run->count[row]);
    *skip = from - run->first[row];
    part.at += (from - first) * all->stride;
    part.count = end > from ? end - from : 0;
    return part;
}

typedef struct block_work {
    const query_block *b;
    int64_t head, share;  /* key/value head; query heads of a key/value head */
    int64_t first, count; /* those of the task */
    float *copy;          /* of KEYS tokens */
    float *p;             /* [rows][share][longest] */
} block_work;

/* Scores of the slots from `first` on, or, with weights in p, their share of the result. */
static void slots(const kv_run *run, const block_work *w, int64_t first, bool weigh)
{
    const dq_kv_attention_desc *d = run->d;
    int64_t dim = d->kv.head_dim, skip;
    dq_keys all = widen(run, weigh ? run->v : run->k, weigh ? run->v_grid : run->k_grid, w->head, first,
                        dq_min64(KEYS, w->b->end - first), w->copy);
    for (int64_t r = 0; r < w->b->rows; r++) {
        int64_t row = w->b->row + r;
        dq_keys part = seen(run, row, first, &all, &skip);
        for (int64_t h = 0; h < w->count && part.count > 0; h++) {
            float *p = w->p + (r * w->count + h) * run->longest + skip;
            int64_t at = (w->head * w->share + w->first + h) * dim;
            if (weigh)
                run->kernels->weigh(p, &part, dq_view_f32(run->o, row) + at);
            else
                run->kernels->scores(dq_view_f32(run->q, row) + at, &part, d->scale, p);
        }
    }
}

/* One block of queries and one key/value head, with all query heads that read it or one of them. */
static void kv_task(void *arg, int64_t i, int thread)
{
    const kv_run *run = arg;
    int64_t heads = run->d->kv.heads, dim = run->d->kv.head_dim, share = run->d->heads / heads;
    int64_t each = run->split ? share : 1, task = i / each;
    block_work w = {.b = &run->blocks[task / heads], .head = task % heads, .share = share};
    w.first = i % each;
    w.count = share / each;
    w.copy = (float *)(void *)(run->scratch + (size_t)thread * run->scratch_each);
    w.p = w.copy + KEYS * dim;
    for (int64_t first = w.b->first; first < w.b->end; first += KEYS) slots(run, &w, first, false);
    for (int64_t r = 0; r < w.b->rows; r++) {
        int64_t row = w.b->row + r;
        for (int64_t h = 0; h < w.count; h++)
            run->kernels->softmax(w.p + (r * w.count + h) * run->longest, run->count[row]);
        memset(dq_view_f32(run->o, row) + (w.head * share + w.first) * dim, 0, (size_t)(w.count * dim) * sizeof(float));
    }
    for (int64_t first = w.b->first; first < w.b->end; first += KEYS) slots(run, &w, first, true);
}

/* Neighbouring rows whose spans start close to each other go together. Returns the number of blocks. */
static int64_t cut_blocks(kv_run *run, int64_t rows)
{
    int64_t count = 0;
    for (int64_t r = 0; r < rows; r++) {
        int64_t first = run->first[r], end = first + run->count[r];
        query_block *b = count ? &run->blocks[count - 1] : NULL;
        if (b && b->rows < QUERIES && first >= b->first && first < b->first + QUERIES && end <= b->end + QUERIES) {
            b->rows++;
            b->end = dq_max64(b->end, end);
        } else {
            run->blocks[count++] = (query_block){r, 1, first, end};
        }
    }
    for (int64_t i = 0; i < count; i++)
        run->longest = dq_max64(run->longest, run->blocks[i].end - run->blocks[i].first);
    return count;
}

dq_status dq_cpu_kv_attention(void *device, const dq_kv_attention_desc *d, const dq_view *q, const dq_view *k,
                              const dq_view *k_grid, const dq_view *v, const dq_view *v_grid, const dq_view *span,
                              const dq_view *o)
{
    dq_cpu_dev *dev = device;
    const dq_host *host = dev->ref.host;
    kv_run run = {.d = d, .q = q, .k = k, .k_grid = k_grid, .v = v, .v_grid = v_grid, .o = o};
    dq_status status = dq_ref_check_span(dev, span, k->rows);
    if (status != DQ_OK) return status;
    run.first = dq_view_i32(span, 0);
    run.count = dq_view_i32(span, 1);
    run.kernels = dq_cpu_decode(dev);
    run.convert = dq_cpu_rows(dev);
    run.blocks = dq_cpu_scratch_take(dev, (size_t)q->rows * sizeof *run.blocks);
    if (!run.blocks) return DQ_E_NOMEM;
    int64_t blocks = cut_blocks(&run, q->rows), share = d->heads / d->kv.heads;
    int64_t most = dq_min64(QUERIES, q->rows), tasks = blocks * d->kv.heads;
    run.split = tasks < FEW_TASKS && k->dtype != DQ_U8;
    run.scratch_each = (size_t)(KEYS * d->kv.head_dim + most * share * run.longest + 15) / 16 * 16 * sizeof(float);
    run.scratch = dq_cpu_scratch_take(dev, run.scratch_each * (size_t)dev->threads);
    if (run.scratch) host->run(host->self, run.split ? tasks * share : tasks, kv_task, &run);
    status = run.scratch ? DQ_OK : DQ_E_NOMEM;
    dq_cpu_scratch_give(dev, run.scratch);
    dq_cpu_scratch_give(dev, run.blocks);
    return status;
}
