/* Hadamard transforms along rows in fp32, the shapes that models have: order k 2^m with k = 1 or a small table. A block stays
 * on its multiprocessor and takes one tile after the other, of one vector or several; while it works on a tile, the next one is
 * on its way to shared memory, so that the memory of the card never waits. Sixteen neighbours pass their first four levels in
 * registers, then four levels at a time go through shared memory, padded so that banks do not collide.
 * SPDX-License-Identifier: Apache-2.0 */
#include "backend/cuda/hadamard.h"
#include "backend/cuda/mma.h"
#include "backend/cuda/range.h"

enum { RUN = 16, TILE = 4096 /* elements that a block holds at least */, MOST = 1024, SLOTS = 2 * MOST / CU_WARP };
/* A run on its way has room for five fours: eight lanes that read theirs touch all banks once. */
enum { STAGED_RUN = RUN + 4, FOURS = RUN / 4 };

typedef struct tile_args {
    int n, log_size; /* n = k << log_size */
    int held;        /* vectors in a block */
    int per_row;     /* vectors in a row */
    int64_t vectors; /* in all */
    int transpose;
    const int8_t *hk;
    float scale;
    bool wide;      /* loads of 16 bytes are possible */
    bool quantized; /* every vector is a group of `grid` */
    dq_fake_quant_desc grid;
    cu_mat<const float> x;
    cu_mat<float> y;
    cu_mat<cu_bf16> narrow; /* instead of y, quantized only */
    cu_mat<int8_t> codes;   /* the same, every vector a row */
    cu_mat<float> code_grid;
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

/* Where vector number v begins. */
__device__ static inline int64_t offset_of(const tile_args &a, int64_t v, int64_t stride)
{
    if (a.per_row == 1) return v * stride;
    uint32_t row = (uint32_t)v / (uint32_t)a.per_row;
    return row * stride + ((uint32_t)v - row * (uint32_t)a.per_row) * (int64_t)a.n;
}

/* Which of the tile's vectors element i belongs to. */
template <int K> __device__ static inline int vector_of(const tile_args &a, int i)
{
    if (K == 1) return i >> a.log_size;
    return a.held == 1 ? 0 : (int)((uint32_t)i / (uint32_t)a.n);
}

/* The tile of `first` on its way to `stage`; zeros behind the last vector. */
template <int K> __device__ static void fetch(const tile_args &a, int64_t first, float *stage)
{
    for (int i = threadIdx.x; i < a.held * a.n / 4; i += blockDim.x) {
        int held = vector_of<K>(a, 4 * i);
        bool there = first + held < a.vectors;
        const float *from = a.x.p + (there ? offset_of(a, first + held, a.x.stride) + 4 * i - held * a.n : 0);
        cu_copy_async(stage + i / FOURS * STAGED_RUN + i % FOURS * 4, from, there);
    }
    cu_copies_commit();
}

__device__ static inline void load_run(float (&x)[RUN], const float *from)
{
#pragma unroll
    for (int j = 0; j < RUN; j += 4) {
        float4 four = *(const float4 *)(from + j);
        x[j] = four.x;
        x[j + 1] = four.y;
        x[j + 2] = four.z;
        x[j + 3] = four.w;
    }
}

/* The first four levels, from the stage, or without one from global memory. */
template <int K, bool STAGED>
__device__ static void take(const tile_args &a, int64_t first, const float *stage, float *v)
{
    for (int i = threadIdx.x; i < a.held * a.n / RUN; i += blockDim.x) {
        float x[RUN];
        if (STAGED) {
            load_run(x, stage + i * STAGED_RUN);
        } else {
            int held = vector_of<K>(a, i * RUN);
            const float *from = a.x.p + offset_of(a, first + held, a.x.stride) + i * RUN - held * a.n;
            if (first + held >= a.vectors) {
#pragma unroll
                for (int j = 0; j < RUN; j++) x[j] = 0;
            } else if (a.wide) {
                load_run(x, from);
            } else {
#pragma unroll
                for (int j = 0; j < RUN; j++) x[j] = from[j];
            }
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
        float *to = a.y.p + offset_of(a, vector, a.y.stride) + (base & (a.n - 1));
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
        float *to = a.y.p + offset_of(a, vector, a.y.stride) + at, x[K];
#pragma unroll
        for (int b = 0; b < K; b++) x[b] = v[padded(held * a.n + b * size + at)];
#pragma unroll 1
        for (int p = 0; p < K; p++) {
            float sum = 0;
#pragma unroll
            for (int b = 0; b < K; b += 4) { /* K is a multiple of 4 */
                float4 four = *(const float4 *)(signs + p * K + b);
                sum = fmaf(four.x, x[b], sum);
                sum = fmaf(four.y, x[b + 1], sum);
                sum = fmaf(four.z, x[b + 2], sum);
                sum = fmaf(four.w, x[b + 3], sum);
            }
            if (a.quantized)
                v[padded(held * a.n + p * size + at)] = sum * a.scale;
            else
                to[p * size] = sum * a.scale;
        }
    }
    __syncthreads();
}

/* The same for large tables: a warp has eight outputs of all columns, a lane of every 32nd column. signs: [b][padded a]. */
enum { OUTPUTS = 8, COLUMNS = 2, MANY = 64 /* pieces, from which on */ };
template <int K> struct table {
    enum { WIDTH = K < MANY ? K : (K + OUTPUTS - 1) / OUTPUTS * OUTPUTS };
};

template <int K> __device__ static void mix_many(const tile_args &a, int64_t first, float *v, const float *signs)
{
    enum { WIDTH = table<K>::WIDTH };
    int lane = threadIdx.x % CU_WARP, group = threadIdx.x / CU_WARP * OUTPUTS, size = 1 << a.log_size;
    float sums[OUTPUTS][COLUMNS], part[OUTPUTS][COLUMNS];
#pragma unroll
    for (int o = 0; o < OUTPUTS; o++) sums[o][0] = sums[o][1] = 0;
    for (int quarter = 0; quarter < 4 && group < WIDTH; quarter++) { /* shorter sums round less */
#pragma unroll
        for (int o = 0; o < OUTPUTS; o++) part[o][0] = part[o][1] = 0;
        for (int b = quarter * K / 4; b < (quarter + 1) * K / 4; b++) {
            float x[COLUMNS] = {v[padded(b * size + lane)], v[padded(b * size + lane + CU_WARP)]};
#pragma unroll
            for (int o = 0; o < OUTPUTS; o += 4) {
                float4 four = *(const float4 *)(signs + b * WIDTH + group + o);
                float sign[4] = {four.x, four.y, four.z, four.w};
#pragma unroll
                for (int l = 0; l < 4; l++)
#pragma unroll
                    for (int c = 0; c < COLUMNS; c++) part[o + l][c] = fmaf(sign[l], x[c], part[o + l][c]);
            }
        }
#pragma unroll
        for (int o = 0; o < OUTPUTS; o++)
#pragma unroll
            for (int c = 0; c < COLUMNS; c++) sums[o][c] += part[o][c];
    }
    __syncthreads(); /* all pieces were read */
    float *to = a.quantized ? NULL : a.y.p + offset_of(a, first, a.y.stride);
#pragma unroll
    for (int o = 0; o < OUTPUTS; o++) {
        int p = group + o;
        if (p >= K) continue;
#pragma unroll
        for (int c = 0; c < COLUMNS; c++) {
            int at = p * size + c * CU_WARP + lane;
            if (a.quantized)
                v[padded(at)] = sums[o][c] * a.scale;
            else
                to[at] = sums[o][c] * a.scale;
        }
    }
    __syncthreads();
}

/* The table in shared memory, as `mix` or `mix_many` reads it. */
template <int K> __device__ static void load_signs(const tile_args &a, float *signs)
{
    enum { WIDTH = table<K>::WIDTH, BY_COLUMN = K >= MANY };
    for (int i = threadIdx.x; K > 1 && i < K * WIDTH; i += blockDim.x) {
        int row = i / WIDTH, col = i % WIDTH;
        bool turned = (a.transpose != 0) != (bool)BY_COLUMN;
        signs[i] = col >= K ? 0.0f : (float)a.hk[turned ? col * K + row : row * K + col];
    }
}

/* The transformed vectors as rows of codes: one a block, or one a warp. */
__device__ static void codes_out(const tile_args &a, int64_t first, const float *v, float *slots)
{
    bool alone = a.held == 1;
    int step = alone ? (int)blockDim.x : CU_WARP, i0 = (int)threadIdx.x % step, shift = cu_code_shift(a.grid);
    for (int held = threadIdx.x / step; held < a.held; held += blockDim.x / step) {
        int64_t row = first + held;
        float lo = 0, hi = 0; /* see int8.cu */
        int bad = 0, sum = 0;
        if (row >= a.vectors) continue;
        for (int i = i0; i < a.n; i += step) {
            float x = v[padded(held * a.n + i)];
            lo = fminf(lo, x);
            hi = fmaxf(hi, x);
            bad += !(fabsf(x) < INFINITY);
        }
        if (alone) {
            cu_block_range(&lo, &hi, slots);
            bad = cu_block_sum(bad, (int *)slots);
        } else {
            lo = cu_warp_min(lo);
            hi = cu_warp_max(hi);
            bad = cu_warp_sum(bad);
        }
        cu_fake_grid g = cu_make_code_grid(a.grid, lo, hi);
        int8_t *to = a.codes.row(row);
        for (int i = i0; i < a.n; i += step) {
            int code = bad ? 0 : cu_row_code(g, shift, v[padded(held * a.n + i)]);
            to[i] = (int8_t)code;
            sum += code;
        }
        sum = alone ? cu_block_sum(sum, (int *)slots) : cu_warp_sum(sum);
        if (i0 == 0) cu_put_code_grid(a.code_grid.row(row), g, shift, sum, bad);
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
        int64_t to = offset_of(a, vector, a.narrow.p ? a.narrow.stride : a.y.stride);
        if (a.narrow.p)
            for (int i = i0; i < a.n; i += step) cu_store(a.narrow.p + to + i, cu_fake_value(grid, at(i)));
        else
            for (int i = i0; i < a.n; i += step) a.y.p[to + i] = cu_fake_value(grid, at(i));
    }
    __syncthreads();
}

template <int K, bool STAGED>
__global__ void __launch_bounds__(K < MANY ? MOST : table<K>::WIDTH / OUTPUTS * CU_WARP)
    hadamard_tile_kernel(tile_args a)
{
    CU_DYNAMIC_SHARED(shared);
    float *slots = (float *)shared, *signs = slots + SLOTS, *stage = signs + (K > 1 ? K * table<K>::WIDTH : 0);
    float *v = stage + (STAGED ? a.held * a.n / RUN * STAGED_RUN : 0);
    int64_t first = (int64_t)blockIdx.x * a.held, step = (int64_t)gridDim.x * a.held;
    if (STAGED && first < a.vectors) fetch<K>(a, first, stage);
    load_signs<K>(a, signs);
    for (; first < a.vectors; first += step) {
        if (STAGED) {
            cu_copies_done<0>();
            __syncthreads();
        }
        take<K, STAGED>(a, first, stage, v);
        if (STAGED && first + step < a.vectors) fetch<K>(a, first + step, stage);
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
        if constexpr (K >= MANY)
            mix_many<K>(a, first, v, signs);
        else if (K > 1)
            mix<K>(a, first, v, signs);
        if (a.codes.p)
            codes_out(a, first, v, slots);
        else if (a.quantized)
            quantize_out(a, first, v, slots);
    }
}

/* Blocks that an H100 or H200 runs at once. */
static unsigned resident(int threads, int64_t bytes)
{
    enum { SMS = 132, SHARED = 227 * 1024, RESERVED = 1024, REGISTERS = 65536, EACH = 64 };
    int64_t by_shared = SHARED / (bytes + RESERVED), by_registers = REGISTERS / (EACH * threads);
    int64_t blocks = by_shared < by_registers ? by_shared : by_registers;
    return (unsigned)(SMS * (blocks < 1 ? 1 : blocks));
}

template <int K> static dq_status launch(dq_cuda_device *dev, const tile_args &a)
{
    int elements = a.held * a.n, threads = (elements / RUN + 31) / 32 * 32;
    int64_t bytes = ((int64_t)elements + elements / RUN + (K > 1 ? K * table<K>::WIDTH : 0) + SLOTS) * 4;
    int64_t staged = bytes + (int64_t)elements / RUN * STAGED_RUN * 4;
    unsigned grid = cu_grid(cu_div_up(a.vectors, a.held), 1);
    if (threads > MOST) threads = MOST;
    if (K >= MANY && threads < table<K>::WIDTH / OUTPUTS * CU_WARP) threads = table<K>::WIDTH / OUTPUTS * CU_WARP;
    if (a.wide && staged <= dev->max_shared) {
        unsigned most = resident(threads, staged);
        CU_TRY(cu_allow_shared(dev, hadamard_tile_kernel<K, true>, staged));
        CU_LAUNCH(dev, (hadamard_tile_kernel<K, true>), grid < most ? grid : most, threads, (size_t)staged, a);
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

/* With 172 pieces of 64 columns, which a lane's two are. */
static bool has_table(int64_t k, int64_t size)
{
    if (k == 172) return size == COLUMNS * CU_WARP;
    return (k == 1 || k == 12 || k == 20 || k == 28 || k == 36 || k == 40) && size >= (k == 1 ? 32 : RUN);
}

bool dq_cuda_hadamard_is_fast(const dq_cuda_device *dev, const dq_hadamard_desc *d, const dq_view *x)
{
    int64_t size = d->n / d->k, width = d->k == 172 ? (int64_t)table<172>::WIDTH : d->k;
    return x->dtype == DQ_F32 && d->inner == 1 && has_table(d->k, size) && d->n <= 32768 &&
           x->rows * (x->cols / d->n) <= UINT32_MAX && /* divisions of 32 bits */
           (d->n + d->n / RUN + d->k * width + SLOTS) * 4 <= dev->max_shared;
}

dq_status dq_cuda_hadamard_fast(dq_cuda_device *dev, const dq_hadamard_desc *d, const int8_t *hk,
                                const dq_fake_quant_desc *grid, const dq_view *x, const dq_view *y,
                                const dq_view *code_grid)
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
    if (code_grid) {
        a.codes = cu_view<int8_t>(y);
        a.code_grid = cu_view<float>(code_grid);
    } else if (y->dtype == DQ_BF16)
        a.narrow = cu_view<cu_bf16>(y);
    else
        a.y = cu_view<float>(y);
    a.wide = (uintptr_t)a.x.p % 16 == 0 && x->stride % 4 == 0;
    switch (d->k) {
        case 1: return launch<1>(dev, a);
        case 12: return launch<12>(dev, a);
        case 20: return launch<20>(dev, a);
        case 28: return launch<28>(dev, a);
        case 36: return launch<36>(dev, a);
        case 172: return launch<172>(dev, a);
        default: return launch<40>(dev, a);
    }
}
