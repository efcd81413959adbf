/* Stores of keys and values, attention over them. SPDX-License-Identifier: Apache-2.0 */
#include <math.h>

#include "backend/cuda/kernel.h"
#include "backend/cuda/quant_core.h"

/* ---- keys and values ---- */

/* E4M3 without infinities (OCP 8-bit floating point): half to even, held at +-448. */
__host__ __device__ static inline uint8_t to_e4m3(float x)
{
    uint32_t u = cu_float_bits(x), sign = u >> 24 & 0x80u, a = u & 0x7fffffffu;
    if (a > 0x7f800000u) return (uint8_t)(sign | 0x7fu);
    if (a >= 0x43e80000u) return (uint8_t)(sign | 0x7eu); /* 464 and more */
    if (a < 0x3c800000u) {                                /* below 2^-6: multiples of 2^-9 */
        float steps = rintf(cu_bits_float(a) * 512.0f);
        return (uint8_t)(sign | (uint32_t)steps);
    }
    uint32_t r = a + 0x7ffffu + (a >> 20 & 1u); /* three bits of mantissa stay */
    r = (r >> 20) - (120u << 3);
    return (uint8_t)(sign | (r > 0x7eu ? 0x7eu : r));
}

__host__ __device__ static inline float from_e4m3(uint8_t e)
{
    uint32_t magnitude = e & 0x7fu;
    float sign = e & 0x80u ? -1.0f : 1.0f;
    if (magnitude == 0x7fu) return cu_bits_float(0x7fc00000u);
    if (magnitude < 8) return sign * (float)magnitude / 512.0f;
    return sign * cu_bits_float((magnitude << 20) + (120u << 23));
}

/* Where keys or values lie. */
typedef struct kv_args {
    dq_kv_desc d;
    cu_mat<uint8_t> bytes; /* stride in bytes */
    cu_mat<float> grid;
    dq_dtype dtype;
} kv_args;

static kv_args kv_of(const dq_kv_desc *d, const dq_view *cache, const dq_view *grid)
{
    int64_t size = cache->dtype == DQ_F32 ? 4 : cache->dtype == DQ_U8 ? 1 : 2;
    kv_args a = {
        *d, {(uint8_t *)cu_at(cache), cache->rows, cache->cols, cache->stride * size}, {NULL, 0, 0, 0}, cache->dtype};
    if (grid) a.grid = cu_view<float>(grid);
    return a;
}

/* One warp a head of a token. */
__device__ static void encode(const kv_args &a, const float *x, int64_t row, int64_t head, int64_t lane)
{
    int64_t n = a.d.head_dim, first = head * n;
    uint8_t *codes = a.bytes.row(row);
    float lo = 0, hi = 0, maxq = (float)((1 << a.d.bits) - 1);
    for (int64_t c = lane; c < n; c += CU_WARP) {
        if (x[c] < lo) lo = x[c];
        if (x[c] > hi) hi = x[c];
    }
    lo = cu_warp_min(lo);
    hi = cu_warp_max(hi);
    if (lo == 0 && hi == 0) {
        lo = -1;
        hi = 1;
    }
    float scale = (hi - lo) / maxq;
    if (scale == 0) scale = 1; /* a range so small that nothing is left */
    float zero = rintf(-lo / scale);
    int64_t per = a.d.bits == 8 ? 1 : 2; /* codes in a byte: written by one lane together */
    for (int64_t c = lane * per; c < n; c += CU_WARP * per) {
        int code = (int)cu_code(x[c], scale, zero, maxq);
        if (per == 2) code |= (int)cu_code(x[c + 1], scale, zero, maxq) << 4;
        codes[(first + c) / per] = (uint8_t)code;
    }
    if (lane == 0) {
        a.grid.row(row)[2 * head] = scale;
        a.grid.row(row)[2 * head + 1] = zero;
    }
}

__global__ void store_kernel(kv_args a, cu_mat<const float> x, const int32_t *slot, dq_cuda_fault *fault)
{
    int64_t at = ((int64_t)blockIdx.x * blockDim.x + threadIdx.x) / CU_WARP, lane = threadIdx.x % CU_WARP;
    int64_t r = at / a.d.heads, head = at % a.d.heads, n = a.d.head_dim;
    if (r >= x.rows) return;
    int64_t row = slot[r];
    if (row < 0 || row >= a.bytes.rows) {
        cu_checked((int)row, a.bytes.rows, fault, CU_OP_KV_STORE, r);
        return; /* nobody else's slot is overwritten */
    }
    const float *from = x.row(r) + head * n;
    if (a.d.kind == DQ_KV_INT) {
        encode(a, from, row, head, lane);
        return;
    }
    for (int64_t c = lane; c < n; c += CU_WARP) {
        int64_t i = head * n + c;
        if (a.d.kind == DQ_KV_FP8)
            a.bytes.row(row)[i] = to_e4m3(from[c]);
        else if (a.dtype == DQ_F32)
            ((float *)a.bytes.row(row))[i] = from[c];
        else if (a.dtype == DQ_F16)
            cu_store((cu_f16 *)a.bytes.row(row) + i, (double)from[c]);
        else
            cu_store((cu_bf16 *)a.bytes.row(row) + i, (double)from[c]);
    }
}

DQ_CUDA_SLOT dq_cuda_kv_store(void *device, const dq_kv_desc *d, const dq_view *x, const dq_view *slot,
                              const dq_view *cache, const dq_view *grid)
{
    CU_ENTER(device);
    CU_LAUNCH(dev, store_kernel, (unsigned)cu_div_up(x->rows * d->heads * CU_WARP, CU_THREADS), CU_THREADS, 0,
              kv_of(d, cache, grid), cu_view<const float>(x), (const int32_t *)cu_at(slot), dev->fault);
    return dq_cuda_launched(dev, "kv_store");
}

__device__ static float cached(const kv_args &a, int64_t row, int64_t head, int64_t c)
{
    int64_t at = head * a.d.head_dim + c;
    const uint8_t *p = a.bytes.row(row);
    if (a.d.kind == DQ_KV_FP8) return from_e4m3(p[at]);
    if (a.d.kind == DQ_KV_INT) {
        int code = a.d.bits == 8 ? p[at] : at & 1 ? p[at / 2] >> 4 : p[at / 2] & 15;
        const float *g = a.grid.row(row) + 2 * head;
        return g[0] * ((float)code - g[1]);
    }
    if (a.dtype == DQ_F32) return ((const float *)p)[at];
    return a.dtype == DQ_F16 ? cu_load((const cu_f16 *)p + at) : cu_load((const cu_bf16 *)p + at);
}

enum { SPAN_THREADS = 128, MAX_DIM = 256 };

/* One block a head of a query: a tile of positions at a time, running softmax, then the tile's values. */
__global__ void span_kernel(dq_kv_attention_desc d, kv_args k, kv_args v, cu_mat<const float> q, const int32_t *first,
                            const int32_t *count, cu_mat<float> o, dq_cuda_fault *fault)
{
    __shared__ float query[MAX_DIM], weights[SPAN_THREADS];
    __shared__ float slots[SPAN_THREADS / CU_WARP];
    int64_t r = blockIdx.x, h = blockIdx.y, dim = d.kv.head_dim, kv_head = h / (d.heads / d.kv.heads);
    int64_t begin = first[r], n = count[r];
    if (begin < 0 || n < 1 || begin + n > k.bytes.rows) {
        if (threadIdx.x == 0) cu_checked(-1, 1, fault, CU_OP_KV_ATTENTION, r);
        return; /* the whole block leaves */
    }
    for (int c = threadIdx.x; c < dim; c += SPAN_THREADS) query[c] = q.row(r)[h * dim + c];
    __syncthreads();
    float top = -INFINITY, total = 0, out[MAX_DIM / SPAN_THREADS];
    for (int i = 0; i < MAX_DIM / SPAN_THREADS; i++) out[i] = 0;
    for (int64_t tile = 0; tile < n; tile += SPAN_THREADS) {
        int64_t mine = tile + threadIdx.x, left = n - tile < (int64_t)SPAN_THREADS ? n - tile : (int64_t)SPAN_THREADS;
        float score = -INFINITY;
        if (mine < n) {
            float dot = 0;
            for (int c = 0; c < dim; c++) dot = fmaf(query[c], cached(k, begin + mine, kv_head, c), dot);
            score = dot * d.scale;
        }
        float highest = cu_warp_max(score);
        if (threadIdx.x % CU_WARP == 0) slots[threadIdx.x / CU_WARP] = highest;
        __syncthreads();
        highest = top;
        for (int w = 0; w < SPAN_THREADS / CU_WARP; w++) highest = fmaxf(highest, slots[w]);
        __syncthreads();
        float shrink = top == -INFINITY ? 0.0f : expf(top - highest);
        weights[threadIdx.x] = mine < n ? expf(score - highest) : 0.0f;
        total = total * shrink + cu_block_sum(weights[threadIdx.x], slots);
        top = highest;
        for (int i = 0; i < MAX_DIM / SPAN_THREADS; i++) {
            int c = threadIdx.x + i * SPAN_THREADS;
            out[i] *= shrink;
            for (int64_t j = 0; c < dim && j < left; j++)
                out[i] = fmaf(weights[j], cached(v, begin + tile + j, kv_head, c), out[i]);
        }
        __syncthreads();
    }
    for (int i = 0; i < MAX_DIM / SPAN_THREADS; i++) {
        int c = threadIdx.x + i * SPAN_THREADS;
        if (c < dim) o.row(r)[h * dim + c] = out[i] / total;
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
    const int32_t *first = (const int32_t *)cu_at(span);
    CU_LAUNCH(dev, span_kernel, dim3((unsigned)q->rows, (unsigned)d->heads), SPAN_THREADS, 0, *d,
              kv_of(&d->kv, k, k_grid), kv_of(&d->kv, v, v_grid), cu_view<const float>(q), first, first + span->stride,
              cu_view<float>(o), dev->fault);
    return dq_cuda_launched(dev, "kv_attention");
}
