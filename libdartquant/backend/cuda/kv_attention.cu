/* Attention of single queries over stored keys and values, as generation needs it: a few lanes have one position at a time, eight
 * columns each, and their own running softmax; the block joins them at the end. What a row sees alone decides the order of its
 * sums. SPDX-License-Identifier: Apache-2.0 */
#include <math.h>

#include "backend/cuda/kv.h"

enum {
    THREADS = 256,
    MAX_DIM = 256,
    UNIT = 8 /* columns of a lane */,
    AHEAD = 4 /* positions on their way to a lane */
};

/* How eight stored numbers are read: as words, of the kinds and types that they may have, or one after the other. */
enum { READ_ANY, READ_F16, READ_BF16, READ_FP8, READ_INT8, READ_INT4 };

template <int READ> struct unit {
    enum { WORDS = READ == READ_ANY ? UNIT : READ == READ_F16 || READ == READ_BF16 ? 4 : READ == READ_INT4 ? 1 : 2 };
    uint32_t word[WORDS];
    float scale, zero;
};

typedef struct span_args {
    dq_kv_attention_desc d;
    kv_args k, v;
    cu_mat<const float> q;
    const int32_t *first, *count;
    cu_mat<float> o;
    dq_cuda_fault *fault;
} span_args;

/* Columns [c, c + 8) of a position; those behind the head's last are 0. */
template <int READ> __device__ static inline unit<READ> read_unit(const kv_args &a, int64_t row, int head, int c)
{
    unit<READ> u = {};
    int dim = a.d.head_dim;
    if (c >= dim) return u;
    const uint8_t *from = a.bytes.row(row) + (int64_t)(head * dim + c) / UNIT * (int)sizeof u.word;
    if constexpr (READ == READ_ANY) {
#pragma unroll
        for (int i = 0; i < UNIT; i++) u.word[i] = c + i < dim ? cu_float_bits(cu_cached(a, row, head, c + i)) : 0;
    } else if constexpr (READ == READ_F16 || READ == READ_BF16) {
        float4 four = *(const float4 *)from;
        u.word[0] = cu_float_bits(four.x);
        u.word[1] = cu_float_bits(four.y);
        u.word[2] = cu_float_bits(four.z);
        u.word[3] = cu_float_bits(four.w);
    } else {
#pragma unroll
        for (int i = 0; i < unit<READ>::WORDS; i++) u.word[i] = ((const uint32_t *)from)[i];
    }
    if constexpr (READ == READ_INT8 || READ == READ_INT4) {
        const float *g = a.grid.row(row) + 2 * head;
        u.scale = g[0];
        u.zero = g[1];
    }
    return u;
}

/* Number i of the eight. */
template <int READ> __device__ static inline float number(const unit<READ> &u, int i)
{
    if constexpr (READ == READ_ANY) return cu_bits_float(u.word[i]);
    if constexpr (READ == READ_BF16) return cu_bits_float(i % 2 ? u.word[i / 2] & 0xffff0000u : u.word[i / 2] << 16);
    if constexpr (READ == READ_F16) {
        cu_f16 half = {(uint16_t)(u.word[i / 2] >> i % 2 * 16)};
        return cu_load(&half);
    }
    if constexpr (READ == READ_FP8) return from_e4m3((uint8_t)(u.word[i / 4] >> i % 4 * 8));
    if constexpr (READ == READ_INT8) return u.scale * ((float)(u.word[i / 4] >> i % 4 * 8 & 255u) - u.zero);
    return u.scale * ((float)(u.word[0] >> 4 * i & 15u) - u.zero); /* INT4 */
}

/* What the lanes of one group have found: the same top and total in each, of the result eight columns. */
typedef struct running {
    float top, total, out[UNIT];
} running;

/* Adds up to AHEAD positions, `step` apart, of which `left` are there. */
template <int LANES, int READ>
__device__ static inline void add_positions(const span_args &a, running *s, const float (&query)[UNIT], int64_t row,
                                            int64_t step, int64_t left, int head, int c)
{
    unit<READ> keys[AHEAD], values[AHEAD];
    float score[AHEAD], highest = s->top;
#pragma unroll
    for (int p = 0; p < AHEAD; p++)
        if (p * step < left) {
            keys[p] = read_unit<READ>(a.k, row + p * step, head, c);
            values[p] = read_unit<READ>(a.v, row + p * step, head, c);
        }
#pragma unroll
    for (int p = 0; p < AHEAD; p++) {
        float dot = 0;
        if (p * step < left) {
#pragma unroll
            for (int i = 0; i < UNIT; i++) dot = fmaf(query[i], number<READ>(keys[p], i), dot);
        }
#pragma unroll
        for (int way = LANES / 2; way > 0; way /= 2) dot += __shfl_xor_sync(CU_ALL, dot, way);
        score[p] = p * step < left ? dot * a.d.scale : -INFINITY;
        highest = fmaxf(highest, score[p]);
    }
    float base = highest == -INFINITY ? 0.0f : highest, shrink = expf(s->top - base);
    s->top = highest;
    s->total *= shrink;
#pragma unroll
    for (int i = 0; i < UNIT; i++) s->out[i] *= shrink;
#pragma unroll
    for (int p = 0; p < AHEAD; p++) {
        if (p * step >= left) continue;
        float weight = expf(score[p] - base);
        s->total += weight;
#pragma unroll
        for (int i = 0; i < UNIT; i++) s->out[i] = fmaf(weight, number<READ>(values[p], i), s->out[i]);
    }
}

/* One block a head of a query. LANES: of a position, 8 LANES >= head_dim. */
template <int LANES, int READ> __global__ void __launch_bounds__(THREADS) span_kernel(span_args a)
{
    enum { GROUPS = THREADS / LANES, WIDTH = LANES * UNIT };
    __shared__ float tops[GROUPS], totals[GROUPS], outs[GROUPS * WIDTH];
    int64_t r = blockIdx.x, begin = a.first[r], n = a.count[r];
    int head = blockIdx.y / (a.d.heads / a.d.kv.heads), dim = a.d.kv.head_dim;
    int group = threadIdx.x / LANES, c = threadIdx.x % LANES * UNIT;
    if (begin < 0 || n < 1 || begin + n > a.k.bytes.rows) {
        if (threadIdx.x == 0) cu_checked(-1, 1, a.fault, CU_OP_KV_ATTENTION, r);
        return; /* the whole block leaves */
    }
    float query[UNIT];
#pragma unroll
    for (int i = 0; i < UNIT; i++) query[i] = c + i < dim ? a.q.row(r)[(int64_t)blockIdx.y * dim + c + i] : 0.0f;
    running s = {-INFINITY, 0, {}};
    for (int64_t at = group; at - group < n; at += GROUPS * AHEAD) /* as often in each lane of a warp */
        add_positions<LANES, READ>(a, &s, query, begin + at, GROUPS, n - at, head, c);
    if (c == 0) {
        tops[group] = s.top;
        totals[group] = s.total;
    }
#pragma unroll
    for (int i = 0; i < UNIT; i++) outs[group * WIDTH + c + i] = s.out[i];
    __syncthreads();
    float highest = -INFINITY, total = 0, out = 0;
    for (int g = 0; g < GROUPS; g++) highest = fmaxf(highest, tops[g]);
    int mine = threadIdx.x;
    if (mine >= dim) return;
    for (int g = 0; g < GROUPS; g++) {
        float weight = tops[g] == -INFINITY ? 0.0f : expf(tops[g] - highest); /* 0 times NaN stays NaN */
        total += weight * totals[g];
        out += weight * outs[g * WIDTH + mine];
    }
    a.o.row(r)[(int64_t)blockIdx.y * dim + mine] = out / total;
}

/* Whether units of eight lie in whole words of their own, 16 bytes of numbers of 16 bits at a time. */
static int way_to_read(const dq_kv_desc *d, const kv_args *a)
{
    int read = d->kind == DQ_KV_FP8   ? READ_FP8
               : d->kind == DQ_KV_INT ? d->bits == 8 ? READ_INT8 : READ_INT4
               : a->dtype == DQ_F16   ? READ_F16
               : a->dtype == DQ_BF16  ? READ_BF16
                                      : READ_ANY;
    uint64_t unit = read == READ_F16 || read == READ_BF16 ? 16 : 4;
    bool whole = d->head_dim % UNIT == 0 && ((uint64_t)(uintptr_t)a->bytes.p | (uint64_t)a->bytes.stride) % unit == 0;
    return whole ? read : READ_ANY;
}

template <int LANES> static void launch(dq_cuda_device *dev, const span_args &a, int read)
{
    dim3 grid((unsigned)a.q.rows, (unsigned)a.d.heads);
    switch (read) {
        case READ_F16: CU_LAUNCH(dev, (span_kernel<LANES, READ_F16>), grid, THREADS, 0, a); break;
        case READ_BF16: CU_LAUNCH(dev, (span_kernel<LANES, READ_BF16>), grid, THREADS, 0, a); break;
        case READ_FP8: CU_LAUNCH(dev, (span_kernel<LANES, READ_FP8>), grid, THREADS, 0, a); break;
        case READ_INT8: CU_LAUNCH(dev, (span_kernel<LANES, READ_INT8>), grid, THREADS, 0, a); break;
        case READ_INT4: CU_LAUNCH(dev, (span_kernel<LANES, READ_INT4>), grid, THREADS, 0, a); break;
        default: CU_LAUNCH(dev, (span_kernel<LANES, READ_ANY>), grid, THREADS, 0, a);
    }
}

DQ_CUDA_SLOT dq_cuda_kv_attention(void *device, const dq_kv_attention_desc *d, const dq_view *q, const dq_view *k,
                                  const dq_view *k_grid, const dq_view *v, const dq_view *v_grid, const dq_view *span,
                                  const dq_view *o)
{
    CU_ENTER(device);
    if (d->kv.head_dim > MAX_DIM || d->heads > 65535)
        return dq_cuda_fail(dev, DQ_E_UNSUPPORTED, 0, "kv_attention: head_dim %d (%d at most), %d heads",
                            d->kv.head_dim, (int)MAX_DIM, d->heads);
    span_args a = {};
    a.d = *d;
    a.k = kv_of(&d->kv, k, k_grid);
    a.v = kv_of(&d->kv, v, v_grid);
    a.q = cu_view<const float>(q);
    a.first = (const int32_t *)cu_at(span);
    a.count = a.first + span->stride;
    a.o = cu_view<float>(o);
    a.fault = dev->fault;
    int read = way_to_read(&d->kv, &a.k);
    if (read != way_to_read(&d->kv, &a.v)) read = READ_ANY;
    if (d->kv.head_dim <= 8 * UNIT)
        launch<8>(dev, a, read);
    else if (d->kv.head_dim <= 16 * UNIT)
        launch<16>(dev, a, read);
    else
        launch<32>(dev, a, read);
    return dq_cuda_launched(dev, "kv_attention");
}
