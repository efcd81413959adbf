/* Causal grouped-query attention: keys and values of each (sequence, key/value head) are packed once, then blocks of
 * queries run in parallel. SPDX-License-Identifier: Apache-2.0 */
#include "backend/cpu/attention.h"

#include <string.h>

#include "base/half.h"

#define LOG2_E 1.4426950408889634

/* Packed keys and values of a batch of (sequence, kv head) units stay below this. */
#define PACK_BYTES ((size_t)16 << 20)

typedef struct attention_job {
    const dq_attention_desc *d;
    const dq_view *q, *k, *v, *o;
    void (*attend)(const dq_attention_block *b);
    bool round;           /* operands to bf16 */
    int64_t unit0, units; /* this batch; unit = sequence * kv_heads + kv head */
    int64_t blocks;       /* of queries in a sequence */
    float *pack;          /* [units][2][seqlen][dim] */
    float *scratch;       /* per thread */
} attention_job;

static float *packed(const attention_job *j, int64_t unit, int which)
{
    return j->pack + (unit * 2 + which) * j->d->seqlen * j->d->head_dim;
}

static void copy_row(const float *x, float *y, int64_t n, bool round)
{
    if (round) {
        for (int64_t i = 0; i < n; i++) y[i] = dq_bf16_to_f32(dq_f32_to_bf16(x[i]));
    } else {
        memcpy(y, x, (size_t)n * sizeof *x);
    }
}

static void pack_task(void *arg, int64_t i, int thread)
{
    const attention_job *j = arg;
    const dq_attention_desc *d = j->d;
    (void)thread;
    int64_t unit = j->unit0 + i / 2, row0 = unit / d->kv_heads * d->seqlen, col = unit % d->kv_heads * d->head_dim;
    const dq_view *x = i % 2 ? j->v : j->k;
    float *y = packed(j, i / 2, (int)(i % 2));
    for (int64_t r = 0; r < d->seqlen; r++, y += d->head_dim)
        copy_row(dq_view_f32(x, row0 + r) + col, y, d->head_dim, j->round);
}

/* The last queries have the most keys: they go first, so that the threads finish together. */
static void block_task(void *arg, int64_t i, int thread)
{
    const attention_job *j = arg;
    const dq_attention_desc *d = j->d;
    int64_t share = d->heads / d->kv_heads, block = j->blocks - 1 - i / (j->units * share);
    int64_t unit = i % (j->units * share) / share, head_in_unit = i % share;
    int64_t sequence = (j->unit0 + unit) / d->kv_heads, kv_head = (j->unit0 + unit) % d->kv_heads;
    int64_t first = block * DQ_ATTENTION_QUERIES, row = sequence * d->seqlen + first;
    int64_t col = (kv_head * share + head_in_unit) * d->head_dim;
    dq_attention_block b = {
        .q = dq_view_f32(j->q, row) + col,
        .o = dq_view_f32(j->o, row) + col,
        .q_stride = j->q->stride,
        .o_stride = j->o->stride,
        .k = packed(j, unit, 0),
        .v = packed(j, unit, 1),
        .first = first,
        .count = dq_min64(DQ_ATTENTION_QUERIES, d->seqlen - first),
        .seqlen = d->seqlen,
        .dim = d->head_dim,
        .window = d->window,
        .scale = (float)((double)d->scale * LOG2_E),
        .round_q = j->round,
        .scratch = j->scratch + thread * dq_attention_scratch(d->head_dim),
    };
    j->attend(&b);
}

dq_status dq_cpu_attention(void *device, const dq_attention_desc *d, const dq_view *q, const dq_view *k,
                           const dq_view *v, const dq_view *o)
{
    dq_cpu_dev *dev = device;
    const dq_host *host = dev->ref.host;
    if (q->rows == 0 || d->seqlen == 0) return DQ_OK;
    attention_job j = {.d = d, .q = q, .k = k, .v = v, .o = o, .round = d->math == DQ_MATH_BF16};
    j.attend = *DQ_CPU_PICK(dev, dq_attend);
    j.blocks = dq_ceil_div(d->seqlen, DQ_ATTENTION_QUERIES);
    int64_t all = q->rows / d->seqlen * d->kv_heads, share = d->heads / d->kv_heads;
    size_t unit_bytes = (size_t)(2 * d->seqlen * d->head_dim) * sizeof(float);
    int64_t batch = dq_max64(1, dq_min64(all, (int64_t)(PACK_BYTES / unit_bytes)));
    size_t scratch = (size_t)dq_attention_scratch(d->head_dim) * (size_t)dev->threads * sizeof(float);
    j.pack = dq_cpu_scratch_take(dev, (size_t)batch * unit_bytes + scratch);
    if (!j.pack) return DQ_E_NOMEM;
    j.scratch = j.pack + (size_t)batch * unit_bytes / sizeof(float);
    for (j.unit0 = 0; j.unit0 < all; j.unit0 += batch) {
        j.units = dq_min64(batch, all - j.unit0);
        host->run(host->self, 2 * j.units, pack_task, &j);
        host->run(host->self, j.units * share * j.blocks, block_task, &j);
    }
    dq_cpu_scratch_give(dev, j.pack);
    return DQ_OK;
}
