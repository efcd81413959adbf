/* Causal grouped-query attention: keys and values of each (sequence, key/value head) are packed once, then blocks of
 * queries run in parallel. SPDX-License-Identifier: Apache-2.0 */
#include "backend/cpu/attention.h"

#include <string.h>

#include "backend/cpu/gemm_packed.h"
#include "base/half.h"

#define LOG2_E 1.4426950408889634

/* Packed keys and values of a batch of (sequence, kv head) units stay below this. */
#define PACK_BYTES ((size_t)16 << 20)

typedef struct attention_job {
    const dq_attention_desc *d;
    const dq_view *q, *k, *v, *o;
    void (*attend)(const dq_attention_block *b);
    bool amx;
    bool round;              /* operands of the fp32 kernels to bf16 */
    int64_t unit0, units;    /* this batch; unit = sequence * kv_heads + kv head */
    int64_t queries;         /* in a block */
    int64_t blocks;          /* of queries in a sequence */
    size_t k_bytes, v_bytes; /* packed, of a unit */
    char *pack;              /* [units]{keys, values} */
    float *scratch;          /* [threads][scratch_floats] */
    int64_t scratch_floats;
} attention_job;

static void *packed_k(const attention_job *j, int64_t unit)
{
    return j->pack + (size_t)unit * (j->k_bytes + j->v_bytes);
}
static void *packed_v(const attention_job *j, int64_t unit) { return (char *)packed_k(j, unit) + j->k_bytes; }

/* ---- packing ---- */

static void copy_rows(const dq_view *x, float *y, bool round)
{
    for (int64_t r = 0; r < x->rows; r++, y += x->cols) {
        const float *row = dq_view_f32(x, r);
        if (round) {
            for (int64_t i = 0; i < x->cols; i++) y[i] = dq_bf16_to_f32(dq_f32_to_bf16(row[i]));
        } else {
            memcpy(y, row, (size_t)x->cols * sizeof *row);
        }
    }
}

/* The keys (even i) or values (odd i) of a unit. */
static void pack_task(void *arg, int64_t i, int thread)
{
    const attention_job *j = arg;
    const dq_attention_desc *d = j->d;
    (void)thread;
    bool values = i % 2;
    int64_t unit = j->unit0 + i / 2, row0 = unit / d->kv_heads * d->seqlen, col = unit % d->kv_heads * d->head_dim;
    dq_view x = dq_view_slice(values ? j->v : j->k, row0, d->seqlen, col, d->head_dim, 4);
    void *to = values ? packed_v(j, i / 2) : packed_k(j, i / 2);
#if defined(__x86_64__)
    if (j->amx) {
        dq_attend_amx_pack(&x, &x, values ? NULL : to, values ? to : NULL);
        return;
    }
#endif
    copy_rows(&x, to, j->round);
}

/* ---- blocks of queries ---- */

/* The last queries have the most keys: they go first, so that the threads finish together. */
static void block_task(void *arg, int64_t i, int thread)
{
    const attention_job *j = arg;
    const dq_attention_desc *d = j->d;
    int64_t share = d->heads / d->kv_heads, block = j->blocks - 1 - i / (j->units * share);
    int64_t unit = i % (j->units * share) / share, head_in_unit = i % share;
    int64_t sequence = (j->unit0 + unit) / d->kv_heads, kv_head = (j->unit0 + unit) % d->kv_heads;
    int64_t first = block * j->queries, row = sequence * d->seqlen + first;
    int64_t col = (kv_head * share + head_in_unit) * d->head_dim;
    dq_attention_block b = {
        .q = dq_view_f32(j->q, row) + col,
        .o = dq_view_f32(j->o, row) + col,
        .q_stride = j->q->stride,
        .o_stride = j->o->stride,
        .k = packed_k(j, unit),
        .v = packed_v(j, unit),
        .first = first,
        .count = dq_min64(j->queries, d->seqlen - first),
        .seqlen = d->seqlen,
        .dim = d->head_dim,
        .window = d->window,
        .scale = (float)((double)d->scale * LOG2_E),
        .round_q = j->round,
        .scratch = j->scratch + thread * j->scratch_floats,
    };
    j->attend(&b);
}

/* Picks the kernel and the sizes that go with it. */
static void choose_kernel(const dq_cpu_dev *dev, attention_job *j)
{
    const dq_attention_desc *d = j->d;
#if defined(__x86_64__)
    if (d->math == DQ_MATH_BF16 && dev->amx && d->scale > 0) { /* its softmax takes the maximum before scaling */
        j->amx = true;
        j->attend = dq_attend_amx;
        j->queries = DQ_ATTENTION_AMX_QUERIES;
        j->k_bytes = dq_packed_bytes(d->seqlen, d->head_dim);
        j->v_bytes = dq_packed_bytes(d->head_dim, d->seqlen);
        j->scratch_floats = dq_attention_amx_scratch(d->head_dim);
        return;
    }
#endif
    j->round = d->math == DQ_MATH_BF16;
    j->attend = *DQ_CPU_PICK(dev, dq_attend);
    j->queries = DQ_ATTENTION_QUERIES;
    j->k_bytes = j->v_bytes = (size_t)(d->seqlen * d->head_dim) * sizeof(float);
    j->scratch_floats = dq_attention_scratch(d->head_dim);
}

dq_status dq_cpu_attention(void *device, const dq_attention_desc *d, const dq_view *q, const dq_view *k,
                           const dq_view *v, const dq_view *o)
{
    dq_cpu_dev *dev = device;
    const dq_host *host = dev->ref.host;
    if (q->rows == 0 || d->seqlen == 0) return DQ_OK;
    attention_job j = {.d = d, .q = q, .k = k, .v = v, .o = o};
    choose_kernel(dev, &j);
    j.blocks = dq_ceil_div(d->seqlen, j.queries);
    int64_t all = q->rows / d->seqlen * d->kv_heads, share = d->heads / d->kv_heads;
    size_t unit_bytes = j.k_bytes + j.v_bytes, scratch_bytes = (size_t)j.scratch_floats * sizeof(float);
    int64_t batch = dq_max64(1, dq_min64(all, (int64_t)(PACK_BYTES / unit_bytes)));
    j.scratch = dq_cpu_scratch_take(dev, (size_t)batch * unit_bytes + scratch_bytes * (size_t)dev->threads);
    if (!j.scratch) return DQ_E_NOMEM;
    j.pack = (char *)(j.scratch + j.scratch_floats * dev->threads);
    for (j.unit0 = 0; j.unit0 < all; j.unit0 += batch) {
        j.units = dq_min64(batch, all - j.unit0);
        host->run(host->self, 2 * j.units, pack_task, &j);
        host->run(host->self, j.units * share * j.blocks, block_task, &j);
    }
    dq_cpu_scratch_give(dev, j.scratch);
    return DQ_OK;
}
