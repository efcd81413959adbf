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

/* What holds two counts of a row. */
template <bool KEPT> struct pick {
    typedef uint32_t counts;
};
template <> struct pick<false> {
    typedef unsigned long long counts;
};

/* A row as its block sees it: each thread keeps its numbers, or (KEPT false: a long row) reads them again. */
template <bool KEPT> struct row_numbers {
    typedef typename pick<KEPT>::counts counts;
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

/* Two counts in one word. */
template <class C> struct two {
    enum { SHIFT = (int)sizeof(C) * 4 };
    static __device__ C of(bool a, bool b) { return (C)a | (C)b << SHIFT; }
    static __device__ int64_t first(C c) { return (int64_t)(c & (((C)1 << SHIFT) - 1)); }
    static __device__ int64_t second(C c) { return (int64_t)(c >> SHIFT); }
};

/* As cu_block_sum with one barrier: calls take turns with the halves of `slots`, two counts a warp. */
template <class C> __device__ static inline C sum_in_turn(C x, C *slots, int turn)
{
    C *mine = slots + turn % 2 * (ROW_THREADS / CU_WARP);
    x = cu_warp_sum(x);
    if (threadIdx.x % CU_WARP == 0) mine[threadIdx.x / CU_WARP] = x;
    __syncthreads();
    C sum = 0;
    for (int w = 0; w < (int)blockDim.x / CU_WARP; w++) sum += mine[w];
    return sum;
}

/* What is known of the number of some rank: its key starts as `key` does, `below` numbers lie below that, and behind `above`
 * of them come larger ones. */
struct place {
    uint32_t key;
    int64_t rank, below, above;
    __device__ void ask(uint32_t bit, int64_t less)
    {
        if (less <= rank) {
            key |= bit;
            below = less;
        } else {
            above = less;
        }
    }
    __device__ bool found() const { return above - below == 1; }
};

/* The numbers of ranks `first` and `second` (0 = the smallest), bit by bit from the top of their keys: a bit is set when no
 * more than `rank` numbers lie below. Ends as soon as no others share the bits found. */
template <class C, class R>
__device__ static inline void select_two(const R &row, int64_t first, int64_t second, float *a, float *b, C *slots)
{
    place p = {0, first, 0, row.n}, q = {0, second, 0, row.n};
    int turn = 0;
    for (uint32_t bit = 0x80000000u; bit && !(p.found() && q.found()); bit >>= 1, turn++) {
        C less = 0;
        row.each([&](float x, int64_t) {
            uint32_t k = key_of(x);
            less += two<C>::of(k < (p.key | bit), k < (q.key | bit));
        });
        less = sum_in_turn(less, slots, turn);
        p.ask(bit, two<C>::first(less));
        q.ask(bit, two<C>::second(less));
    }
    *a = INFINITY; /* the smallest that is no smaller than the bits say; of q with the sign turned */
    *b = -INFINITY;
    row.each([&](float x, int64_t) {
        uint32_t k = key_of(x);
        if (k >= p.key && x < *a) *a = x;
        if (k >= q.key && -x > *b) *b = -x;
    });
    __syncthreads();
    cu_block_range(a, b, (float *)slots);
    *b = -*b;
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
template <class C, class R>
__device__ static inline void find_thresholds(const R &row, int64_t i, double f, row_range *t, C *slots)
{
    float first, last, up = INFINITY, down = -INFINITY;
    select_two(row, i, row.n - 1 - i, &first, &last, slots);
    C reached = 0;
    row.each([&](float x, int64_t) {
        reached += two<C>::of(x <= first, x >= last);
        if (x > first && x < up) up = x;
        if (x < last && x > down) down = x;
    });
    reached = cu_block_sum(reached, slots);
    cu_block_range(&up, &down, (float *)slots);
    if (two<C>::first(reached) > i + 1) up = first;
    if (two<C>::second(reached) > i + 1) down = last;
    t->low = between(first, up, f);
    t->high = between(last, down, f);
}

/* The range of what is left without outliers and of the median, which is looked for only where it is not inside anyway. */
template <class C, class R> __device__ static inline void find_inner_range(const R &row, row_range *t, C *slots)
{
    C counts = 0; /* at or below the lower threshold; between both */
    float lo = INFINITY, hi = -INFINITY;
    row.each([&](float x, int64_t) {
        bool inside = x > t->low && x < t->high;
        counts += two<C>::of(x <= t->low, inside);
        if (inside && x < lo) lo = x;
        if (inside && x > hi) hi = x;
    });
    counts = cu_block_sum(counts, slots);
    cu_block_range(&lo, &hi, (float *)slots);
    int64_t below = two<C>::first(counts), inside = two<C>::second(counts), middle = (row.n - 1) / 2;
    if (inside == 0 || below > middle || below + inside <= middle) {
        float median, again;
        select_two(row, middle, middle, &median, &again, slots);
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
    typedef typename row_numbers<KEPT>::counts counts;
    __shared__ counts slots[2 * ROW_THREADS / CU_WARP];
    const float *in = x.row(blockIdx.x);
    float *out = y.row(blockIdx.x);
    row_numbers<KEPT> row = read_row<KEPT>(in, x.cols);
    if (l.copies(blockIdx.x)) {
        row.each([&](float v, int64_t c) { out[c] = v; });
        return;
    }
    fill_table(&table, l);
    row_range t = {INFINITY, -INFINITY, -INFINITY, INFINITY};
    counts broken = 0;
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
