/* Causal grouped-query attention in tiles with a running softmax (FlashAttention, arXiv 2205.14135): scores never leave the
 * block. One block works on 64 queries of one head of one sequence. SPDX-License-Identifier: Apache-2.0 */
#include <math.h>

#include "backend/cuda/attention.h"
#include "backend/cuda/kernel.h"

/* Thread (ty, tx) of 16 x 16 owns rows 4 ty .. 4 ty + 3 and columns tx + 16 j: a row's sixteen threads are neighbours in
 * one warp. */
enum { QUERIES = 64, KEYS = 64, SIDE = 16, ROWS = QUERIES / SIDE, SCORES = KEYS / SIDE, PAD = 1 };

typedef struct attention_args {
    cu_mat<const float> q, k, v;
    cu_mat<float> o;
    cu_mat<cu_bf16> narrow; /* instead of o */
    int64_t seqlen;
    int heads, share, dim, window, round;
    float scale;
} attention_args;

/* Operands of bf16 products are rounded as they are staged. */
__device__ static float staged(float x, int round)
{
    if (!round) return x;
    uint32_t u = cu_float_bits(x);
    if ((u & 0x7fffffffu) > 0x7f800000u) return x;
    return cu_bits_float((u + 0x7fffu + (u >> 16 & 1u)) & 0xffff0000u);
}

/* rows x dim of one head, zeros past the end, into shared memory with rows `pitch` apart. */
__device__ static void stage(const attention_args &a, const cu_mat<const float> &x, int64_t start, int64_t first,
                             int64_t head, float *to, int pitch)
{
    for (int i = threadIdx.x; i < QUERIES * a.dim; i += blockDim.x) {
        int r = i / a.dim, c = i % a.dim;
        to[r * pitch + c] = first + r < a.seqlen ? staged(x.row(start + first + r)[head * a.dim + c], a.round) : 0.0f;
    }
}

/* Reduces over the sixteen threads of a row. */
__device__ static float row_max(float x)
{
    for (int step = SIDE / 2; step > 0; step /= 2) x = fmaxf(x, __shfl_xor_sync(CU_ALL, x, step));
    return x;
}
__device__ static float row_sum(float x)
{
    for (int step = SIDE / 2; step > 0; step /= 2) x += __shfl_xor_sync(CU_ALL, x, step);
    return x;
}

/* OUT: columns of the result that a thread owns, dim <= 16 OUT. */
template <int OUT> __global__ void __launch_bounds__(256) attention_kernel(attention_args a)
{
    CU_DYNAMIC_SHARED(shared);
    int pitch = a.dim + PAD, ty = threadIdx.x / SIDE, tx = threadIdx.x % SIDE;
    float *q = (float *)shared, *kv = q + QUERIES * pitch, *p = kv + KEYS * pitch;
    int64_t tiles = (a.seqlen + QUERIES - 1) / QUERIES;
    /* The longest rows first, so that the last blocks are short. */
    int64_t tile = tiles - 1 - blockIdx.x, head = blockIdx.y, start = (int64_t)blockIdx.z * a.seqlen;
    int64_t first = tile * QUERIES, last = first + QUERIES < a.seqlen ? first + QUERIES : a.seqlen;
    int64_t begin = a.window > 0 && first - a.window + 1 > 0 ? (first - a.window + 1) / KEYS * KEYS : 0;
    float out[ROWS][OUT], top[ROWS], total[ROWS];
    for (int i = 0; i < ROWS; i++) {
        top[i] = -INFINITY;
        total[i] = 0;
        for (int j = 0; j < OUT; j++) out[i][j] = 0;
    }
    stage(a, a.q, start, first, head, q, pitch);
    for (int64_t key = begin; key < last; key += KEYS) {
        __syncthreads();
        stage(a, a.k, start, key, head / a.share, kv, pitch);
        __syncthreads();
        float s[ROWS][SCORES];
        for (int i = 0; i < ROWS; i++)
            for (int j = 0; j < SCORES; j++) s[i][j] = 0;
        for (int c = 0; c < a.dim; c++) {
            float x[ROWS], y[SCORES];
#pragma unroll
            for (int i = 0; i < ROWS; i++) x[i] = q[(ty * ROWS + i) * pitch + c];
#pragma unroll
            for (int j = 0; j < SCORES; j++) y[j] = kv[(tx + SIDE * j) * pitch + c];
#pragma unroll
            for (int i = 0; i < ROWS; i++)
#pragma unroll
                for (int j = 0; j < SCORES; j++) s[i][j] = fmaf(x[i], y[j], s[i][j]);
        }
        __syncthreads();
        stage(a, a.v, start, key, head / a.share, kv, pitch);
#pragma unroll
        for (int i = 0; i < ROWS; i++) {
            int64_t row = first + ty * ROWS + i;
            float highest = -INFINITY;
#pragma unroll
            for (int j = 0; j < SCORES; j++) {
                int64_t column = key + tx + SIDE * j;
                bool seen = column <= row && row < a.seqlen && (a.window <= 0 || row - column < a.window);
                s[i][j] = seen ? s[i][j] * a.scale : -INFINITY;
                highest = s[i][j] > highest || s[i][j] != s[i][j] ? s[i][j] : highest;
            }
            highest = fmaxf(row_max(highest), top[i]);
            float shrink = top[i] == -INFINITY ? 0.0f : expf(top[i] - highest), sum = 0;
#pragma unroll
            for (int j = 0; j < SCORES; j++) {
                float weight = s[i][j] == -INFINITY ? 0.0f : expf(s[i][j] - highest);
                sum += weight;
                p[(ty * ROWS + i) * (KEYS + PAD) + tx + SIDE * j] = weight;
            }
            total[i] = total[i] * shrink + row_sum(sum);
            top[i] = highest;
#pragma unroll
            for (int j = 0; j < OUT; j++) out[i][j] *= shrink;
        }
        __syncthreads();
        for (int c = 0; c < KEYS; c++) {
            float x[ROWS];
#pragma unroll
            for (int i = 0; i < ROWS; i++) x[i] = p[(ty * ROWS + i) * (KEYS + PAD) + c];
#pragma unroll
            for (int j = 0; j < OUT; j++) {
                int column = tx + SIDE * j;
                float y = column < a.dim ? kv[c * pitch + column] : 0.0f;
#pragma unroll
                for (int i = 0; i < ROWS; i++) out[i][j] = fmaf(x[i], y, out[i][j]);
            }
        }
    }
#pragma unroll
    for (int i = 0; i < ROWS; i++) {
        int64_t row = first + ty * ROWS + i;
        if (row >= a.seqlen) continue;
#pragma unroll
        for (int j = 0; j < OUT; j++) {
            int64_t c = tx + SIDE * j;
            if (c >= a.dim) continue;
            float value = out[i][j] / total[i];
            if (a.narrow.p)
                cu_store(a.narrow.row(start + row) + head * a.dim + c, value);
            else
                a.o.row(start + row)[head * a.dim + c] = value;
        }
    }
}

template <int OUT> static dq_status launch(dq_cuda_device *dev, const attention_args &a, dim3 grid)
{
    int64_t bytes = (int64_t)((QUERIES + KEYS) * (a.dim + PAD) + QUERIES * (KEYS + PAD)) * 4;
    CU_TRY(cu_allow_shared(dev, attention_kernel<OUT>, bytes));
    CU_LAUNCH(dev, attention_kernel<OUT>, grid, 256, (size_t)bytes, a);
    return dq_cuda_launched(dev, "attention");
}

DQ_CUDA_SLOT dq_cuda_attention(void *device, const dq_attention_desc *d, const dq_view *q, const dq_view *k,
                               const dq_view *v, const dq_view *o)
{
    CU_ENTER(device);
    int64_t sequences = q->rows / d->seqlen;
    if (d->head_dim > 256 || sequences > 65535 || d->heads > 65535)
        return dq_cuda_fail(dev, DQ_E_UNSUPPORTED, 0, "attention: head_dim %d (256 at most), %d heads, %lld sequences",
                            d->head_dim, d->heads, (long long)sequences);
    if (dq_cuda_attention_mma_fits(dev, d)) return dq_cuda_attention_mma(dev, d, q, k, v, o);
    attention_args a = {cu_view<const float>(q),
                        cu_view<const float>(k),
                        cu_view<const float>(v),
                        {},
                        {},
                        d->seqlen,
                        d->heads,
                        d->heads / d->kv_heads,
                        d->head_dim,
                        d->window,
                        d->math == DQ_MATH_BF16,
                        d->scale};
    if (o->dtype == DQ_BF16)
        a.narrow = cu_view<cu_bf16>(o);
    else
        a.o = cu_view<float>(o);
    dim3 grid((unsigned)cu_div_up(d->seqlen, QUERIES), (unsigned)d->heads, (unsigned)sequences);
    if (d->head_dim <= 64) return launch<4>(dev, a, grid);
    if (d->head_dim <= 128) return launch<8>(dev, a, grid);
    return launch<16>(dev, a, grid);
}
