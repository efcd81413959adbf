/* Causal grouped-query attention under DQ_MATH_BF16, on tensor cores (FlashAttention-2, arXiv 2307.08691): a block works on
 * 128 queries of one head, a warp on 16 of them; keys and values pass in tiles of 64, the next one on its way while one is
 * worked on. Scores and sums stay in registers, in fp32. SPDX-License-Identifier: Apache-2.0 */
#include <math.h>

#include "backend/cuda/attention.h"
#include "backend/cuda/mma.h"

enum {
    QUERIES = 128,
    KEYS = 64,
    THREADS = 256,
    ROWS = 16 /* of a warp */,
    GAP = 8 /* between rows in shared memory */
};

/* Operands in bf16, heads padded with zeros to the kernel's width. */
typedef struct mma_args {
    const uint16_t *q, *k, *v;
    int64_t q_stride, kv_stride, seqlen;
    cu_mat<float> o;
    cu_mat<cu_bf16> narrow; /* instead of o */
    int share, dim, window;
    float scale; /* with log2 e: powers are of two */
} mma_args;

/* Queries, keys and values, one beside the other; eight neighbours a thread. WIDE: rows and heads start at multiples of 16
 * bytes. */
typedef struct pad_args {
    cu_mat<const float> x[3];
    uint16_t *out[3];
    int heads[3], dim;
} pad_args;

template <int D, bool WIDE> __global__ void pad_kernel(pad_args a)
{
    CU_EACH(r, i, a.x[0].rows, (a.heads[0] + a.heads[1] + a.heads[2]) * (D / 8))
    {
        int h = (int)i / (D / 8), c = (int)i % (D / 8) * 8, which = 0;
        if (h >= a.heads[0]) {
            h -= a.heads[0];
            which = h < a.heads[1] ? 1 : 2;
            if (which == 2) h -= a.heads[1];
        }
        const float *from = a.x[which].row(r) + (int64_t)h * a.dim + c;
        cu_eight eight;
#pragma unroll
        for (int j = 0; j < 8; j += 4) {
            float4 four = {0, 0, 0, 0};
            if (WIDE && c + j < a.dim) four = *(const float4 *)(from + j); /* dim is a multiple of 4 */
            if (!WIDE) {
                if (c + j < a.dim) four.x = from[j];
                if (c + j + 1 < a.dim) four.y = from[j + 1];
                if (c + j + 2 < a.dim) four.z = from[j + 2];
                if (c + j + 3 < a.dim) four.w = from[j + 3];
            }
            eight.pairs[j / 2] = cu_pack_bf16(four.x, four.y);
            eight.pairs[j / 2 + 1] = cu_pack_bf16(four.z, four.w);
        }
        *(cu_eight *)(a.out[which] + (r * a.heads[which] + h) * D + c) = eight;
    }
}

/* N rows of one head from row `first` on, zeros past the end of the sequence. */
template <int D, int N>
__device__ static inline void bring(uint16_t *to, const uint16_t *head, int64_t stride, int64_t first, int64_t seqlen)
{
    enum { UNITS = D / 8, STEP = THREADS / UNITS /* rows that the block brings at a time */ };
    int r = (int)threadIdx.x / UNITS, c = (int)threadIdx.x % UNITS * 8;
    const uint16_t *from = head + (first + r) * stride + c;
    to += r * (D + GAP) + c;
    int left = seqlen - first < N ? (int)(seqlen - first) : N;
#pragma unroll
    for (int i = 0; i < N / STEP; i++) {
        bool there = r + i * STEP < left;
        cu_copy_async(to + i * STEP * (D + GAP), there ? from + i * STEP * stride : head, there);
    }
}

/* s = q k^T of 16 queries and the tile's keys. */
template <int D>
__device__ static void scores(float (&s)[KEYS / 8][4], const uint32_t (&q)[D / 16][4], const uint16_t *keys, int lane)
{
    const uint16_t *row = keys + (lane / 16 * 8 + lane % 8) * (D + GAP) + lane / 8 % 2 * 8;
#pragma unroll
    for (int n = 0; n < KEYS / 8; n++)
#pragma unroll
        for (int i = 0; i < 4; i++) s[n][i] = 0;
#pragma unroll
    for (int c = 0; c < D / 16; c++)
#pragma unroll
        for (int n = 0; n < KEYS / 16; n++) {
            uint32_t b[4];
            cu_load_matrices(b, row + n * 16 * (D + GAP) + c * 16);
            cu_mma(s[2 * n], q[c], b[0], b[1]);
            cu_mma(s[2 * n + 1], q[c], b[2], b[3]);
        }
}

/* o += p v, p in the layout that `scores` left. */
template <int D>
__device__ static void weigh(float (&o)[D / 8][4], const float (&p)[KEYS / 8][4], const uint16_t *values, int lane)
{
    const uint16_t *row = values + (lane / 8 % 2 * 8 + lane % 8) * (D + GAP) + lane / 16 * 8;
#pragma unroll
    for (int k = 0; k < KEYS / 16; k++) {
        uint32_t a[4] = {cu_pack_bf16(p[2 * k][0], p[2 * k][1]), cu_pack_bf16(p[2 * k][2], p[2 * k][3]),
                         cu_pack_bf16(p[2 * k + 1][0], p[2 * k + 1][1]),
                         cu_pack_bf16(p[2 * k + 1][2], p[2 * k + 1][3])};
#pragma unroll
        for (int n = 0; n < D / 16; n++) {
            uint32_t b[4];
            cu_load_matrices_transposed(b, row + k * 16 * (D + GAP) + n * 16);
            cu_mma(o[2 * n], a, b[0], b[1]);
            cu_mma(o[2 * n + 1], a, b[2], b[3]);
        }
    }
}

/* Hides what `me` does not see of the tile that starts at `key`: s[.][first] and the next belong to the row. */
__device__ static inline void hide(float (&s)[KEYS / 8][4], int first, int64_t me, int64_t key, int window, int lane)
{
    int64_t newest = me - key, oldest = window > 0 ? newest - window + 1 : 0;
    int upper = newest < KEYS ? (int)newest : (int)KEYS;
    int lower = oldest < 0 ? 0 : oldest < KEYS ? (int)oldest : (int)KEYS;
#pragma unroll
    for (int n = 0; n < KEYS / 8; n++)
#pragma unroll
        for (int i = 0; i < 2; i++) {
            int column = n * 8 + lane % 4 * 2 + i;
            if (column > upper || column < lower) s[n][first + i] = -INFINITY;
        }
}

/* Two rows a lane: 0 and 1 of each fragment belong to `row`, 2 and 3 to row + 8. */
template <int D>
__device__ static void soften(float (&s)[KEYS / 8][4], float (&o)[D / 8][4], float (&top)[2], float (&total)[2],
                              const mma_args &a, int64_t row, int64_t key, int lane, bool masked)
{
#pragma unroll
    for (int n = 0; n < KEYS / 8; n++)
#pragma unroll
        for (int i = 0; i < 4; i++) s[n][i] *= a.scale;
    if (masked) {
        hide(s, 0, row, key, a.window, lane);
        hide(s, 2, row + 8, key, a.window, lane);
    }
#pragma unroll
    for (int half = 0; half < 2; half++) {
        float highest = top[half], sum = 0;
#pragma unroll
        for (int n = 0; n < KEYS / 8; n++) highest = fmaxf(highest, fmaxf(s[n][2 * half], s[n][2 * half + 1]));
        highest = fmaxf(highest, __shfl_xor_sync(CU_ALL, highest, 1));
        highest = fmaxf(highest, __shfl_xor_sync(CU_ALL, highest, 2));
        float base = highest == -INFINITY ? 0.0f : highest, shrink = cu_exp2(top[half] - base);
#pragma unroll
        for (int n = 0; n < KEYS / 8; n++)
#pragma unroll
            for (int i = 2 * half; i < 2 * half + 2; i++) {
                s[n][i] = cu_exp2(s[n][i] - base);
                sum += s[n][i];
            }
        sum += __shfl_xor_sync(CU_ALL, sum, 1);
        sum += __shfl_xor_sync(CU_ALL, sum, 2);
        total[half] = total[half] * shrink + sum;
        top[half] = highest;
#pragma unroll
        for (int n = 0; n < D / 8; n++)
#pragma unroll
            for (int i = 2 * half; i < 2 * half + 2; i++) o[n][i] *= shrink;
    }
}

/* Two neighbours of the result, of which `left` are there. */
__device__ static void put_pair(const mma_args &a, int64_t r, int64_t c, int left, float x, float y)
{
    if (left <= 0) return;
    if (!a.narrow.p) {
        float *out = a.o.row(r) + c;
        out[0] = x;
        if (left > 1) out[1] = y;
        return;
    }
    cu_bf16 *out = a.narrow.row(r) + c;
    if (left > 1 && (uintptr_t)out % 4 == 0) {
        *(uint32_t *)out = cu_bf16_bits(cu_float_bits(x)) | (uint32_t)cu_bf16_bits(cu_float_bits(y)) << 16;
        return;
    }
    cu_store(out, x);
    if (left > 1) cu_store(out + 1, y);
}

template <int D> __global__ void __launch_bounds__(THREADS, 1) attention_mma_kernel(mma_args a)
{
    CU_DYNAMIC_SHARED(shared);
    enum { TILE = KEYS * (D + GAP) };
    uint16_t *queries = (uint16_t *)shared, *tiles = queries + QUERIES * (D + GAP); /* keys, values; twice */
    int lane = threadIdx.x % CU_WARP, warp = threadIdx.x / CU_WARP;
    int64_t head = blockIdx.y, start = blockIdx.z * a.seqlen;
    int64_t first =
        (int64_t)(gridDim.x - 1 - blockIdx.x) * QUERIES; /* the longest rows first, so that the last blocks are short */
    int64_t last = first + QUERIES < a.seqlen ? first + QUERIES : a.seqlen;
    int64_t begin = a.window > 0 && first - a.window + 1 > 0 ? (first - a.window + 1) / KEYS * KEYS : 0;
    const uint16_t *q = a.q + start * a.q_stride + head * D;
    const uint16_t *k = a.k + start * a.kv_stride + head / a.share * D, *v = a.v + (k - a.k);
    bring<D, QUERIES>(queries, q, a.q_stride, first, a.seqlen);
    bring<D, KEYS>(tiles, k, a.kv_stride, begin, a.seqlen);
    bring<D, KEYS>(tiles + TILE, v, a.kv_stride, begin, a.seqlen);
    cu_copies_commit();
    float o[D / 8][4], top[2] = {-INFINITY, -INFINITY}, total[2] = {0, 0};
    uint32_t mine[D / 16][4];
#pragma unroll
    for (int n = 0; n < D / 8; n++)
#pragma unroll
        for (int i = 0; i < 4; i++) o[n][i] = 0;
    int64_t from = first + warp * ROWS, row = from + lane / 4;
    for (int64_t key = begin; key < last; key += KEYS) {
        int now = (int)((key - begin) / KEYS % 2);
        if (key + KEYS < last) { /* into the tile that all have left */
            bring<D, KEYS>(tiles + (1 - now) * 2 * TILE, k, a.kv_stride, key + KEYS, a.seqlen);
            bring<D, KEYS>(tiles + (1 - now) * 2 * TILE + TILE, v, a.kv_stride, key + KEYS, a.seqlen);
        }
        cu_copies_commit();
        cu_copies_done<1>();
        __syncthreads();
        if (key == begin) {
            const uint16_t *at = queries + (warp * ROWS + lane % 16) * (D + GAP) + lane / 16 * 8;
#pragma unroll
            for (int c = 0; c < D / 16; c++) cu_load_matrices(mine[c], at + c * 16);
        }
        bool masked = key + KEYS - 1 > from || (a.window > 0 && from + ROWS - 1 - key >= a.window);
        if (key <= from + ROWS - 1) { /* else all is hidden from this warp */
            float s[KEYS / 8][4];
            scores<D>(s, mine, tiles + now * 2 * TILE, lane);
            soften<D>(s, o, top, total, a, row, key, lane, masked);
            weigh<D>(o, s, tiles + now * 2 * TILE + TILE, lane);
        }
        __syncthreads();
    }
#pragma unroll
    for (int half = 0; half < 2; half++) {
        int64_t me = row + 8 * half;
        if (me >= a.seqlen) continue;
        float inverse = 1.0f / total[half];
#pragma unroll
        for (int n = 0; n < D / 8; n++) {
            int c = n * 8 + lane % 4 * 2;
            put_pair(a, start + me, head * a.dim + c, a.dim - c, o[n][2 * half] * inverse,
                     o[n][2 * half + 1] * inverse);
        }
    }
}

/* Rounds q, k and v to where the kernel reads them. */
template <int D>
static void pad(dq_cuda_device *dev, const dq_attention_desc *d, const dq_view *const x[3], const mma_args &a)
{
    const uint16_t *const to[3] = {a.q, a.k, a.v};
    pad_args p = {};
    dq_view units = *x[0];
    uintptr_t low = (uintptr_t)d->head_dim * 4;
    p.dim = d->head_dim;
    for (int i = 0; i < 3; i++) {
        p.x[i] = cu_view<const float>(x[i]);
        p.out[i] = (uint16_t *)to[i];
        p.heads[i] = i == 0 ? d->heads : d->kv_heads;
        low |= (uintptr_t)cu_at(x[i]) | (uintptr_t)x[i]->stride * 4;
    }
    units.cols = (int64_t)(d->heads + 2 * d->kv_heads) * (D / 8);
    if (low % 16 == 0)
        CU_LAUNCH(dev, (pad_kernel<D, true>), cu_grid_rows(&units), CU_THREADS, 0, p);
    else
        CU_LAUNCH(dev, (pad_kernel<D, false>), cu_grid_rows(&units), CU_THREADS, 0, p);
}

/* Queries, and two tiles of keys and values. */
static int64_t shared_bytes(int width) { return (int64_t)(QUERIES + 4 * KEYS) * (width + GAP) * 2; }
static int width_of(const dq_attention_desc *d) { return d->head_dim <= 32 ? 32 : d->head_dim <= 64 ? 64 : 128; }

bool dq_cuda_attention_mma_fits(const dq_cuda_device *dev, const dq_attention_desc *d)
{
    return d->math == DQ_MATH_BF16 && d->head_dim <= 128 && shared_bytes(width_of(d)) <= dev->max_shared;
}

template <int D>
static dq_status launch(dq_cuda_device *dev, const dq_attention_desc *d, const dq_view *q, const dq_view *k,
                        const dq_view *v, const dq_view *o)
{
    int64_t q_size = q->rows * d->heads * D, kv_size = q->rows * d->kv_heads * D;
    int64_t bytes = shared_bytes(D);
    dq_cuda_block scratch = {};
    CU_TRY(cu_allow_shared(dev, attention_mma_kernel<D>, bytes));
    CU_TRY(dq_cuda_scratch(dev, (uint64_t)(q_size + 2 * kv_size) * 2, "attention", &scratch));
    mma_args a = {};
    a.q = (const uint16_t *)scratch.address;
    a.k = a.q + q_size;
    a.v = a.k + kv_size;
    a.q_stride = (int64_t)d->heads * D;
    a.kv_stride = (int64_t)d->kv_heads * D;
    a.seqlen = d->seqlen;
    if (o->dtype == DQ_BF16)
        a.narrow = cu_view<cu_bf16>(o);
    else
        a.o = cu_view<float>(o);
    a.share = d->heads / d->kv_heads;
    a.dim = d->head_dim;
    a.window = d->window;
    a.scale = d->scale * 1.44269504088896340736f;
    const dq_view *const operands[3] = {q, k, v};
    pad<D>(dev, d, operands, a);
    dim3 grid((unsigned)cu_div_up(d->seqlen, (int64_t)QUERIES), (unsigned)d->heads, (unsigned)(q->rows / d->seqlen));
    CU_LAUNCH(dev, attention_mma_kernel<D>, grid, THREADS, (size_t)bytes, a);
    dq_status status = dq_cuda_launched(dev, "attention");
    dq_cuda_release(dev, &scratch);
    return status;
}

dq_status dq_cuda_attention_mma(dq_cuda_device *dev, const dq_attention_desc *d, const dq_view *q, const dq_view *k,
                                const dq_view *v, const dq_view *o)
{
    switch (width_of(d)) {
        case 32: return launch<32>(dev, d, q, k, v, o);
        case 64: return launch<64>(dev, d, q, k, v, o);
        default: return launch<128>(dev, d, q, k, v, o);
    }
}
