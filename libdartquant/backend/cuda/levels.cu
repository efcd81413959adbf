/* Quantization to given levels (KVQuant, arXiv 2401.18079): with ranges of columns four elements a thread, with ranges of
 * rows one block a row. Every operation rounds once, as backend.h asks: this file is compiled without contraction.
 * SPDX-License-Identifier: Apache-2.0 */
#include <math.h>

#include "backend/cuda/four.h"

enum { OWN = 8 /* elements of a row that a thread keeps */, ROW_THREADS = 512 };

/* How to look levels up: `first_step` is half of their number rounded up to a power of two. */
struct cu_levels {
    int count, first_step;
    float norm_scale, norm_offset;
    const float *level;
    const int *position; /* NULL: row % seqlen */
    int64_t seqlen;
    int sink, keep;

    __device__ bool copies(int64_t row) const
    {
        if (sink == 0 && !position) return false;
        return (position ? (int64_t)position[row] : row % seqlen) < sink;
    }
};

struct cu_level_table {
    float middle[256]; /* between level i and the next; behind the last nothing is larger */
    float value[256];  /* after Q-Norm */
};

__device__ static inline void fill_table(cu_level_table *t, const cu_levels &l)
{
    for (int i = threadIdx.x; i < 2 * l.first_step; i += blockDim.x) {
        t->middle[i] = i + 1 < l.count ? (l.level[i] + l.level[i + 1]) * 0.5f : INFINITY;
        t->value[i] = i < l.count ? l.level[i] * l.norm_scale + l.norm_offset : 0.0f;
    }
    __syncthreads();
}

/* The nearest level in a range of middle z and half width r. */
__device__ static inline float quantize(const cu_level_table &t, int first_step, float x, float z, float r)
{
    float u = (x - z) / r;
    int i = 0;
    for (int step = first_step; step > 0; step /= 2)
        if (t.middle[i + step - 1] < u) i += step;
    float y = r == 0 ? z : t.value[i] * r + z;
    return x != x ? x : y;
}

/* ---- ranges of columns ---- */

__global__ void levels_columns_kernel(cu_levels l, cu_mat<const float> x, cu_mat<const float> range, cu_mat<float> y,
                                      bool wide)
{
    __shared__ cu_level_table table;
    fill_table(&table, l);
    for (int64_t c = ((int64_t)blockIdx.x * blockDim.x + threadIdx.x) * 4; c < x.cols;
         c += (int64_t)gridDim.x * blockDim.x * 4) {
        int n = cu_at_most_four(x.cols - c);
        cu_four<float> lo = cu_take(range.row(0) + c, n, wide), hi = cu_take(range.row(1) + c, n, wide);
        for (int64_t row = blockIdx.y; row < x.rows; row += gridDim.y) {
            cu_four<float> v = cu_take(x.row(row) + c, n, wide);
            bool copies = l.copies(row);
#pragma unroll
            for (int i = 0; i < 4; i++) {
                bool stays = copies || (l.keep && (v.v[i] < lo.v[i] || v.v[i] > hi.v[i]));
                float z = (hi.v[i] + lo.v[i]) * 0.5f, r = (hi.v[i] - lo.v[i]) * 0.5f;
                if (!stays && i < n) v.v[i] = quantize(table, l.first_step, v.v[i], z, r);
            }
            cu_put(y.row(row) + c, v, n, wide);
        }
    }
}

/* ---- ranges of rows ---- */

/* Numbers in order as unsigned integers. */
__device__ static inline uint32_t key_of(float x)
{
    uint32_t u = cu_float_bits(x);
    return u & 0x80000000u ? ~u : u | 0x80000000u;
}
__device__ static inline float number_of(uint32_t key)
{
    return cu_bits_float(key & 0x80000000u ? key & 0x7fffffffu : ~key);
}

/* A row as its block sees it: each thread keeps its numbers, or (KEPT false: a long row) reads them again. */
template <bool KEPT> struct row_numbers {
    float own[KEPT ? OWN : 1];
    const float *in;
    int64_t n;

    template <class F> __device__ void each(F f) const
    {
        if (KEPT) {
#pragma unroll
            for (int k = 0; k < OWN; k++) {
                int64_t i = (int64_t)k * blockDim.x + threadIdx.x;
                if (i < n) f(own[KEPT ? k : 0], i);
            }
        } else {
            for (int64_t i = threadIdx.x; i < n; i += blockDim.x) f(in[i], i);
        }
    }
};

template <bool KEPT> __device__ static inline row_numbers<KEPT> read_row(const float *in, int64_t n)
{
    row_numbers<KEPT> row;
    row.in = in;
    row.n = n;
#pragma unroll
    for (int k = 0; KEPT && k < OWN; k++) {
        int64_t i = (int64_t)k * blockDim.x + threadIdx.x;
        row.own[KEPT ? k : 0] = i < n ? in[i] : 0.0f;
    }
    return row;
}

typedef unsigned long long two_counts; /* one in each half */

/* The numbers of ranks `first` and `second` (0 = the smallest) as keys, bit by bit from the top: a bit is set when no more
 * than `rank` numbers lie below. */
template <class R>
__device__ static inline void select_two(const R &row, int64_t first, int64_t second, uint32_t key[2],
                                         two_counts *slots)
{
    key[0] = key[1] = 0;
    for (uint32_t bit = 0x80000000u; bit; bit >>= 1) {
        two_counts below = 0;
        uint32_t a = key[0] | bit, b = key[1] | bit;
        row.each([&](float x, int64_t) {
            uint32_t k = key_of(x);
            below += (two_counts)(k < a) | (two_counts)(k < b) << 32;
        });
        below = cu_block_sum(below, slots);
        if ((int64_t)(below & 0xffffffffu) <= first) key[0] = a;
        if ((int64_t)(below >> 32) <= second) key[1] = b;
    }
}

/* From `first`, f of the way to `next`. */
__device__ static inline float between(float first, float next, double f)
{
    if (f == 0 || isinf(first) || first == next) return first;
    return (float)((double)first + f * ((double)next - (double)first));
}

struct row_range {
    float lo, hi;    /* to be quantized in */
    float low, high; /* at and beyond these are outliers */
};

/* The thresholds of outliers: order statistics next to each other from both ends, f of the way between them. */
template <class R>
__device__ static inline void find_thresholds(const R &row, int64_t i, double f, row_range *t, two_counts *slots)
{
    uint32_t key[2];
    select_two(row, i, row.n - 1 - i, key, slots);
    float first = number_of(key[0]), last = number_of(key[1]), up = INFINITY, down = -INFINITY;
    two_counts reached = 0;
    row.each([&](float x, int64_t) {
        uint32_t k = key_of(x);
        reached += (two_counts)(k <= key[0]) | (two_counts)(k >= key[1]) << 32;
        if (k > key[0] && x < up) up = x;
        if (k < key[1] && x > down) down = x;
    });
    reached = cu_block_sum(reached, slots);
    cu_block_range(&up, &down, (float *)slots);
    if ((int64_t)(reached & 0xffffffffu) > i + 1) up = first;
    if ((int64_t)(reached >> 32) > i + 1) down = last;
    t->low = between(first, up, f);
    t->high = between(last, down, f);
}

/* The range of what is left without outliers and of the median, which is looked for only where it is not inside anyway. */
template <class R> __device__ static inline void find_inner_range(const R &row, row_range *t, two_counts *slots)
{
    two_counts counts = 0; /* at or below the lower threshold; between both */
    float lo = INFINITY, hi = -INFINITY;
    row.each([&](float x, int64_t) {
        bool inside = x > t->low && x < t->high;
        counts += (two_counts)(x <= t->low) | (two_counts)inside << 32;
        if (inside && x < lo) lo = x;
        if (inside && x > hi) hi = x;
    });
    counts = cu_block_sum(counts, slots);
    cu_block_range(&lo, &hi, (float *)slots);
    int64_t below = (int64_t)(counts & 0xffffffffu), inside = (int64_t)(counts >> 32), middle = (row.n - 1) / 2;
    if (inside == 0 || below > middle || below + inside <= middle) {
        uint32_t key[2];
        select_two(row, middle, middle, key, slots);
        float median = number_of(key[0]);
        if (!(lo < median)) lo = median;
        if (!(hi > median)) hi = median;
    }
    t->lo = lo;
    t->hi = hi;
}

template <bool KEPT>
__global__ void __launch_bounds__(ROW_THREADS)
    levels_rows_kernel(cu_levels l, cu_mat<const float> x, int64_t i, double f, bool outliers, cu_mat<float> y)
{
    __shared__ cu_level_table table;
    __shared__ two_counts slots[ROW_THREADS / CU_WARP];
    const float *in = x.row(blockIdx.x);
    float *out = y.row(blockIdx.x);
    row_numbers<KEPT> row = read_row<KEPT>(in, x.cols);
    if (l.copies(blockIdx.x)) {
        row.each([&](float v, int64_t c) { out[c] = v; });
        return;
    }
    fill_table(&table, l);
    row_range t = {INFINITY, -INFINITY, -INFINITY, INFINITY};
    two_counts broken = 0;
    row.each([&](float v, int64_t) {
        if (v != v) broken = 1;
        if (v < t.lo) t.lo = v;
        if (v > t.hi) t.hi = v;
    });
    broken = cu_block_sum(broken, slots);
    if (broken) {
        row.each([&](float, int64_t c) { out[c] = NAN; });
        return;
    }
    if (outliers) {
        find_thresholds(row, i, f, &t, slots);
        find_inner_range(row, &t, slots);
    } else {
        cu_block_range(&t.lo, &t.hi, (float *)slots);
    }
    bool keep = outliers && l.keep;
    float z = (t.hi + t.lo) * 0.5f, r = (t.hi - t.lo) * 0.5f;
    row.each([&](float v, int64_t c) {
        out[c] = keep && (v <= t.low || v >= t.high) ? v : quantize(table, l.first_step, v, z, r);
    });
}

/* ---- the slot ---- */

static cu_levels make_levels(const dq_levels_quant_desc *d, const dq_view *levels, const dq_view *position)
{
    cu_levels l = {};
    l.count = (int)levels->cols;
    for (l.first_step = 1; 2 * l.first_step < l.count;) l.first_step *= 2;
    l.norm_scale = d->norm_scale;
    l.norm_offset = d->norm_offset;
    l.level = (const float *)cu_at(levels);
    l.position = position ? (const int *)cu_at(position) : NULL;
    l.seqlen = d->seqlen;
    l.sink = d->sink;
    l.keep = d->keep_outliers;
    return l;
}

static void quantize_rows(dq_cuda_device *dev, const dq_levels_quant_desc *d, const cu_levels &l, const dq_view *x,
                          const dq_view *y)
{
    double p = d->outliers * 0.5 * (double)(x->cols - 1), i = floor(p);
    bool kept = x->cols <= (int64_t)OWN * ROW_THREADS;
    int64_t warps = cu_div_up(x->cols, (int64_t)OWN * CU_WARP);
    unsigned threads = kept ? (unsigned)(warps * CU_WARP) : (unsigned)ROW_THREADS;
    if (kept)
        CU_LAUNCH(dev, levels_rows_kernel<true>, (unsigned)x->rows, threads, 0, l, cu_view<const float>(x), (int64_t)i,
                  p - i, d->outliers > 0, cu_view<float>(y));
    else
        CU_LAUNCH(dev, levels_rows_kernel<false>, (unsigned)x->rows, threads, 0, l, cu_view<const float>(x), (int64_t)i,
                  p - i, d->outliers > 0, cu_view<float>(y));
}

DQ_CUDA_SLOT dq_cuda_levels_quant(void *device, const dq_levels_quant_desc *d, const dq_view *x, const dq_view *range,
                                  const dq_view *levels, const dq_view *position, const dq_view *y)
{
    CU_ENTER(device);
    cu_levels l = make_levels(d, levels, position);
    if (d->per_row) {
        quantize_rows(dev, d, l, x, y);
    } else {
        dim3 grid = cu_grid_fours(x);
        int64_t most = cu_div_up(4096, grid.x); /* blocks that fill any card, so that a table serves several rows */
        if ((int64_t)grid.y > most) grid.y = (unsigned)most;
        bool wide = cu_in_fours<float>(x) && cu_in_fours<float>(range) && cu_in_fours<float>(y);
        CU_LAUNCH(dev, levels_columns_kernel, grid, cu_threads_fours(x), 0, l, cu_view<const float>(x),
                  cu_view<const float>(range), cu_view<float>(y), wide);
    }
    return dq_cuda_launched(dev, "levels_quant");
}
