/* Hadamard transforms along rows in fp32, the shapes that models have: order k 2^m with k = 1 or a small table. A block holds
 * one vector or several; sixteen neighbours pass their first four levels in registers straight from global memory, then four
 * levels at a time go through shared memory, padded so that banks do not collide. SPDX-License-Identifier: Apache-2.0 */
#include "backend/cuda/hadamard.h"
#include "backend/cuda/range.h"

enum { RUN = 16, TILE = 4096 /* elements that a block holds at least */, MOST = 1024, SLOTS = 2 * MOST / CU_WARP };

typedef struct tile_args {
    int n, log_size; /* n = k << log_size */
    int held;        /* vectors in a block */
    int per_row;     /* vectors in a row */
    int64_t vectors; /* in all */
    int transpose;
    const int8_t *hk;
    float scale;
    bool quantized; /* every vector is a group of `grid` */
    dq_fake_quant_desc grid;
    cu_mat<const float> x;
    cu_mat<float> y;
    cu_mat<cu_bf16> narrow; /* instead of y, quantized only */
} tile_args;

__device__ static inline int padded(int i) { return i + i / RUN; }

template <int COUNT> __device__ static inline void levels(float (&x)[1 << COUNT])
{
#pragma unroll
    for (int half = 1; half < 1 << COUNT; half *= 2)
#pragma unroll
        for (int j = 0; j < 1 << COUNT; j++)
            if (!(j & half)) {
                float a = x[j], b = x[j | half];
                x[j] = a + b;
                x[j | half] = a - b;
            }
}

/* The first four levels, from global to shared memory. */
template <bool WIDE> __device__ static void take(const tile_args &a, int64_t first, float *v)
{
    for (int i = threadIdx.x; i < a.held * a.n / RUN; i += blockDim.x) {
        int64_t vector = first + i * RUN / a.n;
        float x[RUN];
        if (vector < a.vectors) {
            const float *from = a.x.row(vector / a.per_row) + vector % a.per_row * a.n + i * RUN % a.n;
#pragma unroll
            for (int j = 0; j < RUN; j += 4) {
                if (WIDE) {
                    float4 four = *(const float4 *)(from + j);
                    x[j] = four.x;
                    x[j + 1] = four.y;
                    x[j + 2] = four.z;
                    x[j + 3] = four.w;
                } else {
                    for (int l = 0; l < 4; l++) x[j + l] = from[j + l];
                }
            }
        } else {
#pragma unroll
            for (int j = 0; j < RUN; j++) x[j] = 0;
        }
        levels<4>(x);
#pragma unroll
        for (int j = 0; j < RUN; j++) v[i * (RUN + 1) + j] = x[j];
    }
    __syncthreads();
}

/* Levels [low, low + COUNT), low >= 4; the last ones of a transform without a table go out, scaled. */
template <int COUNT> __device__ static void pass(const tile_args &a, int64_t first, float *v, int low, bool out)
{
    int step = 1 << low, gap = step + step / RUN;
    for (int i = threadIdx.x; i < a.held * a.n >> COUNT; i += blockDim.x) {
        int base = (i >> low) << (low + COUNT) | (i & (step - 1));
        float x[1 << COUNT];
#pragma unroll
        for (int j = 0; j < 1 << COUNT; j++) x[j] = v[padded(base) + j * gap];
        levels<COUNT>(x);
        if (!out || a.quantized) {
            float scale = out ? a.scale : 1.0f;
#pragma unroll
            for (int j = 0; j < 1 << COUNT; j++) v[padded(base) + j * gap] = x[j] * scale;
            continue;
        }
        int64_t vector = first + (base >> a.log_size);
        if (vector >= a.vectors) continue;
        float *to = a.y.row(vector / a.per_row) + vector % a.per_row * a.n + (base & (a.n - 1));
#pragma unroll
        for (int j = 0; j < 1 << COUNT; j++) to[j * step] = x[j] * a.scale;
    }
    __syncthreads();
}

/* out[a] = sum_b sign[a][b] v[b] over the K pieces; quantized, it stays in place: a thread has a column of them. */
template <int K> __device__ static void mix(const tile_args &a, int64_t first, float *v, const float *signs)
{
    int size = 1 << a.log_size;
    for (int i = threadIdx.x; i < a.held * size; i += blockDim.x) {
        int held = i >> a.log_size, at = i & (size - 1);
        int64_t vector = first + held;
        if (vector >= a.vectors) continue;
        float *to = a.y.row(vector / a.per_row) + vector % a.per_row * a.n + at, x[K];
#pragma unroll
        for (int b = 0; b < K; b++) x[b] = v[padded(held * a.n + b * size + at)];
#pragma unroll 1
        for (int p = 0; p < K; p++) {
            float sum = 0;
#pragma unroll
            for (int b = 0; b < K; b++) sum = fmaf(signs[p * K + b], x[b], sum);
            if (a.quantized)
                v[padded(held * a.n + p * size + at)] = sum * a.scale;
            else
                to[p * size] = sum * a.scale;
        }
    }
    __syncthreads();
}

/* The transformed vectors on their grids: one a block, or one a warp. */
__device__ static void quantize_out(const tile_args &a, int64_t first, const float *v, float *slots)
{
    bool alone = a.held == 1;
    int step = alone ? (int)blockDim.x : CU_WARP, i0 = (int)threadIdx.x % step;
    for (int held = threadIdx.x / step; held < a.held; held += blockDim.x / step) {
        int64_t vector = first + held;
        if (vector >= a.vectors) continue;
        auto at = [&](int64_t i) { return v[padded(held * a.n + (int)i)]; };
        cu_fake_grid grid = alone ? cu_block_grid(a.grid, at, a.n, slots) : cu_warp_grid(a.grid, at, a.n);
        int64_t row = vector / a.per_row, col = vector % a.per_row * a.n;
        if (a.narrow.p)
            for (int i = i0; i < a.n; i += step) cu_store(a.narrow.row(row) + col + i, cu_fake_value(grid, at(i)));
        else
            for (int i = i0; i < a.n; i += step) a.y.row(row)[col + i] = cu_fake_value(grid, at(i));
    }
    __syncthreads();
}

template <int K, bool WIDE> __global__ void __launch_bounds__(MOST) hadamard_tile_kernel(tile_args a)
{
    CU_DYNAMIC_SHARED(shared);
    float *slots = (float *)shared, *signs = slots + SLOTS, *v = signs + (K > 1 ? K * K : 0);
    for (int i = threadIdx.x; K > 1 && i < K * K; i += blockDim.x)
        signs[i] = (float)(a.transpose ? a.hk[i % K * K + i / K] : a.hk[i]);
    for (int64_t first = (int64_t)blockIdx.x * a.held; first < a.vectors; first += (int64_t)gridDim.x * a.held) {
        take<WIDE>(a, first, v);
        for (int low = 4; low < a.log_size;) {
            int count = a.log_size - low < 4 ? a.log_size - low : 4;
            bool out = K == 1 && low + count == a.log_size;
            switch (count) {
                case 1: pass<1>(a, first, v, low, out); break;
                case 2: pass<2>(a, first, v, low, out); break;
                case 3: pass<3>(a, first, v, low, out); break;
                default: pass<4>(a, first, v, low, out); break;
            }
            low += count;
        }
        if (K > 1) mix<K>(a, first, v, signs);
        if (a.quantized) quantize_out(a, first, v, slots);
    }
}

template <int K> static dq_status launch(dq_cuda_device *dev, const tile_args &a, bool wide)
{
    int elements = a.held * a.n, threads = (elements / RUN + 31) / 32 * 32;
    int64_t bytes = ((int64_t)elements + elements / RUN + (K > 1 ? K * K : 0) + SLOTS) * 4;
    unsigned grid = cu_grid(cu_div_up(a.vectors, a.held), 1);
    if (threads > MOST) threads = MOST;
    if (wide) {
        CU_TRY(cu_allow_shared(dev, hadamard_tile_kernel<K, true>, bytes));
        CU_LAUNCH(dev, (hadamard_tile_kernel<K, true>), grid, threads, (size_t)bytes, a);
    } else {
        CU_TRY(cu_allow_shared(dev, hadamard_tile_kernel<K, false>, bytes));
        CU_LAUNCH(dev, (hadamard_tile_kernel<K, false>), grid, threads, (size_t)bytes, a);
    }
    return dq_cuda_launched(dev, "hadamard");
}

static int log_of(int64_t x)
{
    int log = 0;
    while ((int64_t)1 << (log + 1) <= x) log++;
    return log;
}

static bool has_table(int64_t k) { return k == 1 || k == 12 || k == 20 || k == 28 || k == 36 || k == 40; }

bool dq_cuda_hadamard_is_fast(const dq_cuda_device *dev, const dq_hadamard_desc *d, const dq_view *x)
{
    int64_t size = d->n / d->k;
    return x->dtype == DQ_F32 && d->inner == 1 && has_table(d->k) && size >= (d->k == 1 ? 32 : RUN) && d->n <= 32768 &&
           (d->n + d->n / RUN + d->k * d->k + SLOTS) * 4 <= dev->max_shared;
}

dq_status dq_cuda_hadamard_fast(dq_cuda_device *dev, const dq_hadamard_desc *d, const int8_t *hk,
                                const dq_fake_quant_desc *grid, const dq_view *x, const dq_view *y)
{
    tile_args a = {};
    a.n = (int)d->n;
    a.log_size = log_of(d->n / d->k);
    a.held = a.n < TILE ? TILE / a.n : 1;
    a.per_row = (int)(x->cols / d->n);
    a.vectors = x->rows * a.per_row;
    a.transpose = d->transpose;
    a.hk = hk;
    a.scale = (float)d->scale;
    a.quantized = grid != NULL;
    if (grid) a.grid = *grid;
    a.x = cu_view<const float>(x);
    if (y->dtype == DQ_BF16)
        a.narrow = cu_view<cu_bf16>(y);
    else
        a.y = cu_view<float>(y);
    bool wide = (uintptr_t)a.x.p % 16 == 0 && x->stride % 4 == 0;
    switch (d->k) {
        case 1: return launch<1>(dev, a, wide);
        case 12: return launch<12>(dev, a, wide);
        case 20: return launch<20>(dev, a, wide);
        case 28: return launch<28>(dev, a, wide);
        case 36: return launch<36>(dev, a, wide);
        default: return launch<40>(dev, a, wide);
    }
}
