/* Linears whose integer weights stay packed: few rows of x use each code as it is read, more of them have the weights unpacked
 * for a product by cuBLAS. SPDX-License-Identifier: Apache-2.0 */

#include "backend/cuda/four.h"

/* Above this many rows the weights are unpacked once for a product by cuBLAS; below, each is used as it is read. */
enum { FEW_ROWS = 8 };

/* Scales or zeros of groups, of any type that they may have. */
typedef struct cu_grid_part {
    const uint8_t *p;
    int64_t stride; /* bytes */
    dq_dtype dtype;
} cu_grid_part;

static cu_grid_part grid_part(const dq_view *v)
{
    int64_t size = v->dtype == DQ_U8 ? 1 : v->dtype == DQ_F16 ? 2 : 4;
    return {(const uint8_t *)cu_at(v), v->stride * size, v->dtype};
}

__device__ static inline float grid_at(const uint8_t *row, dq_dtype dtype, int i)
{
    if (dtype == DQ_U8) return (float)row[i];
    return dtype == DQ_F16 ? cu_load((const cu_f16 *)row + i) : ((const float *)row)[i];
}

typedef struct packed_args {
    dq_packed_desc d;
    int group, log_group; /* columns that share a scale, a multiple of UNIT or all; 2^log_group of them, or -1 */
    cu_mat<const float> x;
    cu_mat<const uint8_t> codes;
    cu_grid_part scale, zero; /* zero.p NULL: the middle code */
    const int32_t *order;     /* or NULL */
    int64_t columns;          /* stored */
    bool wide_codes;          /* rows start where words of 4 bytes may */
    cu_mat<float> y;
    dq_cuda_fault *fault;
} packed_args;

/* Stored columns that a thread takes at a time: of one group. */
enum { UNIT = 8 };
typedef struct unit_codes {
    uint32_t word[2]; /* eight halves of bytes, or eight bytes, the lower ones first */
} unit_codes;

/* The codes of columns [j, j + n); `wide`: all eight, in words. */
template <int BITS> __device__ static inline unit_codes codes_at(const uint8_t *row, int j, int n, bool wide)
{
    unit_codes c = {{0, 0}};
    constexpr bool whole = BITS == 8;
    const uint8_t *from = row + (whole ? j : j / 2);
    if (wide) {
        c.word[0] = *(const uint32_t *)from;
        if (whole) c.word[1] = *(const uint32_t *)(from + 4);
        return c;
    }
#pragma unroll
    for (int i = 0; i < BITS; i++) /* unrolled so that the words stay registers */
        if (i < (whole ? n : (n + 1) / 2)) c.word[i / 4] |= (uint32_t)from[i] << i % 4 * 8;
    return c;
}

/* One byte a code, four in a word: even columns first, then the odd ones, where bytes held two. */
template <int BITS> __device__ static inline uint32_t bytes_of(const unit_codes &c, int word)
{
    return BITS == 8 ? c.word[word] : c.word[0] >> 4 * word & 0x0f0f0f0fu;
}
/* The column, counted from the unit's first, of byte i of that word. */
template <int BITS> __host__ __device__ static constexpr int column_of(int word, int i)
{
    return BITS == 8 ? 4 * word + i : 2 * i + word;
}

/* Byte i of a word, on top of 2^23: subtracting that, and what else is integral, is exact. */
static const float BASE = 8388608.0f;
__device__ static inline float based(uint32_t word, int i)
{
    return cu_bits_float(__byte_perm(word, 0x4b000000u, 0x7440u | (unsigned)i));
}

/* What the columns of one output feature share. */
typedef struct feature {
    const uint8_t *codes, *scale, *zero;
    bool shifts; /* w = scale * code + zero, else scale * (code - zero) */
} feature;

__device__ static inline feature feature_of(const packed_args &a, int64_t o)
{
    return {a.codes.row(o), a.scale.p + o * a.scale.stride, a.zero.p ? a.zero.p + o * a.zero.stride : NULL,
            a.zero.p && a.zero.dtype != DQ_U8};
}

typedef struct unit_grid {
    float scale, zero;
} unit_grid;

template <int BITS> __device__ static inline unit_grid grid_of_unit(const packed_args &a, const feature &f, int j)
{
    int g = a.log_group >= 0 ? j >> a.log_group : j / a.group;
    return {grid_at(f.scale, a.scale.dtype, g), f.zero ? grid_at(f.zero, a.zero.dtype, g) : (float)(1 << (BITS - 1))};
}

/* Column of x for stored column j; -1 = none. */
__device__ static int64_t column_at(const packed_args &a, int64_t j)
{
    if (!a.order) return j;
    return a.order[j] == -1 ? -1 : cu_checked(a.order[j], a.x.cols, a.fault, CU_OP_PACKED, j);
}

/* x of columns [j, j + n), zeros where there is none. WIDE: all eight as they lie, in vectors. */
template <bool WIDE>
__device__ static inline void inputs_at(const packed_args &a, int64_t r, int j, int n, float (&x)[UNIT])
{
    const float *row = a.x.row(r);
    if constexpr (WIDE) {
        float4 low = *(const float4 *)(row + j), high = *(const float4 *)(row + j + 4);
        x[0] = low.x, x[1] = low.y, x[2] = low.z, x[3] = low.w;
        x[4] = high.x, x[5] = high.y, x[6] = high.z, x[7] = high.w;
    } else {
#pragma unroll
        for (int i = 0; i < UNIT; i++) {
            int64_t c = i < n ? column_at(a, j + i) : -1;
            x[i] = c < 0 ? 0.0f : row[c];
        }
    }
}

/* sum += the products of one unit with ROWS rows of x; scale and zero come in once. */
template <int BITS, int ROWS, bool WIDE>
__device__ static inline void add_unit(const packed_args &a, const feature &f, int j, int n, const unit_codes &codes,
                                       float (&sum)[ROWS])
{
    unit_grid g = grid_of_unit<BITS>(a, f, j);
    float base = f.shifts ? BASE : BASE + g.zero, value[UNIT];
#pragma unroll
    for (int word = 0; word < 2; word++) {
        uint32_t bytes = bytes_of<BITS>(codes, word);
#pragma unroll
        for (int i = 0; i < 4; i++) value[4 * word + i] = based(bytes, i) - base;
    }
#pragma unroll
    for (int r = 0; r < ROWS; r++) {
        if (r >= a.y.rows) continue;
        float x[UNIT], dot = 0;
        inputs_at<WIDE>(a, r, j, n, x);
#pragma unroll
        for (int word = 0; word < 2; word++)
#pragma unroll
            for (int i = 0; i < 4; i++) dot = fmaf(x[column_of<BITS>(word, i)], value[4 * word + i], dot);
        sum[r] = fmaf(g.scale, dot, sum[r]);
        if (f.shifts) {
            float all = ((x[0] + x[1]) + (x[2] + x[3])) + ((x[4] + x[5]) + (x[6] + x[7]));
            sum[r] = fmaf(g.zero, all, sum[r]);
        }
    }
}

/* One warp an output feature, the codes of several units under way at a time. WIDE: nothing but whole units in words and
 * vectors. */
template <int BITS, int ROWS, bool WIDE> __global__ void few_rows_kernel(packed_args a)
{
    enum { AHEAD = 4, STEP = UNIT * CU_WARP };
    int64_t o = ((int64_t)blockIdx.x * blockDim.x + threadIdx.x) / CU_WARP;
    int lane = threadIdx.x % CU_WARP, columns = (int)a.columns;
    if (o >= a.y.cols) return;
    feature f = feature_of(a, o);
    float sum[ROWS];
#pragma unroll
    for (int r = 0; r < ROWS; r++) sum[r] = 0;
    for (int first = lane * UNIT; first < columns; first += AHEAD * STEP) {
        unit_codes codes[AHEAD];
#pragma unroll
        for (int k = 0; k < AHEAD; k++) {
            int j = first + k * STEP, n = columns - j < UNIT ? columns - j : (int)UNIT;
            if (n > 0) codes[k] = codes_at<BITS>(f.codes, j, n, WIDE);
        }
#pragma unroll
        for (int k = 0; k < AHEAD; k++) {
            int j = first + k * STEP, n = columns - j < UNIT ? columns - j : (int)UNIT;
            if (n > 0) add_unit<BITS, ROWS, WIDE>(a, f, j, n, codes[k], sum);
        }
    }
#pragma unroll
    for (int r = 0; r < ROWS; r++) {
        float total = cu_warp_sum(sum[r]);
        if (lane != 0 || r >= a.y.rows) continue;
        float *to = a.y.row(r) + o;
        *to = a.d.beta == 0 ? total : (float)(a.d.beta * (double)*to + (double)total);
    }
}

/* Weights as the reference has them, rounded to fp32 and then to what is stored. */
template <int BITS, class T> __global__ void unpack_kernel(packed_args a, cu_mat<T> w, bool wide)
{
    CU_EACH(o, unit, w.rows, (w.cols + UNIT - 1) / UNIT)
    {
        int j = (int)unit * UNIT, n = (int)w.cols - j < UNIT ? (int)w.cols - j : (int)UNIT;
        feature f = feature_of(a, o);
        unit_codes codes = codes_at<BITS>(f.codes, j, n, a.wide_codes && n == UNIT);
        unit_grid g = grid_of_unit<BITS>(a, f, j);
        cu_four<T> four[2];
#pragma unroll
        for (int word = 0; word < 2; word++) {
            uint32_t bytes = bytes_of<BITS>(codes, word);
#pragma unroll
            for (int i = 0; i < 4; i++) {
                float code = based(bytes, i) - BASE;
                float value = f.shifts ? g.scale * code + g.zero : g.scale * (code - g.zero);
                int column = column_of<BITS>(word, i);
                cu_store(&four[column / 4].v[column % 4], value);
            }
        }
#pragma unroll
        for (int half = 0; half < 2; half++)
            if (n > 4 * half) cu_put(w.row(o) + j + 4 * half, four[half], n - 4 * half < 4 ? n - 4 * half : 4, wide);
    }
}

__global__ void ordered_kernel(packed_args a, cu_mat<float> x)
{
    CU_EACH(r, j, x.rows, x.cols)
    {
        int64_t c = column_at(a, j);
        x.row(r)[j] = c < 0 ? 0.0f : a.x.row(r)[c];
    }
}

template <int BITS, class T> static void unpack(dq_cuda_device *dev, const packed_args &a, const dq_view *w)
{
    dq_view units = *w;
    units.cols = cu_div_up(w->cols, UNIT);
    CU_LAUNCH(dev, (unpack_kernel<BITS, T>), cu_grid_rows(&units), CU_THREADS, 0, a, cu_view<T>(w), cu_in_fours<T>(w));
}

/* For a product of bf16 the weights are unpacked as such. */
template <int BITS>
static dq_status many_rows(dq_cuda_device *dev, const packed_args &a, const dq_view *x, const dq_view *y)
{
    bool narrow = a.d.math == DQ_MATH_BF16;
    dq_cuda_block weights = {}, ordered = {};
    dq_status status =
        dq_cuda_scratch(dev, (uint64_t)(a.y.cols * a.columns) * (narrow ? 2 : 4), "unpacked weights", &weights);
    if (status == DQ_OK && a.order)
        status = dq_cuda_scratch(dev, (uint64_t)(a.y.rows * a.columns) * 4, "ordered inputs", &ordered);
    if (status == DQ_OK) {
        dq_view w = {&weights, 0, a.y.cols, a.columns, a.columns, narrow ? DQ_BF16 : DQ_F32, 0};
        dq_view in = {&ordered, 0, a.y.rows, a.columns, a.columns, DQ_F32, 0};
        if (narrow)
            unpack<BITS, cu_bf16>(dev, a, &w);
        else
            unpack<BITS, float>(dev, a, &w);
        if (a.order) CU_LAUNCH(dev, ordered_kernel, cu_grid_rows(&in), CU_THREADS, 0, a, cu_view<float>(&in));
        status = dq_cuda_launched(dev, "packed_linear");
        if (status == DQ_OK) status = dq_cuda_gemm(dev, 0, 1, 1.0, a.order ? &in : x, &w, a.d.beta, y, a.d.math);
    }
    dq_cuda_release(dev, &weights);
    dq_cuda_release(dev, &ordered);
    return status;
}

template <int BITS, int ROWS, bool WIDE> static void few_rows(dq_cuda_device *dev, const packed_args &a)
{
    unsigned blocks = (unsigned)cu_div_up(a.y.cols * CU_WARP, CU_THREADS);
    CU_LAUNCH(dev, (few_rows_kernel<BITS, ROWS, WIDE>), blocks, CU_THREADS, 0, a);
}

template <int BITS>
static dq_status multiply(dq_cuda_device *dev, const packed_args &a, const dq_view *x, const dq_view *y)
{
    if (y->rows > FEW_ROWS) return many_rows<BITS>(dev, a, x, y);
    bool wide = a.wide_codes && a.columns % UNIT == 0 && !a.order && cu_in_fours<float>(x);
    if (y->rows == 1)
        wide ? few_rows<BITS, 1, true>(dev, a) : few_rows<BITS, 1, false>(dev, a);
    else
        wide ? few_rows<BITS, FEW_ROWS, true>(dev, a) : few_rows<BITS, FEW_ROWS, false>(dev, a);
    return dq_cuda_launched(dev, "packed_linear");
}

DQ_CUDA_SLOT dq_cuda_packed_linear(void *device, const dq_packed_desc *d, const dq_view *x, const dq_view *codes,
                                   const dq_view *scale, const dq_view *zero, const dq_view *order, const dq_view *y)
{
    CU_ENTER(device);
    packed_args a = {};
    a.d = *d;
    a.d.math &= ~DQ_MATH_INT8; /* x may be rounded, it need not */
    a.x = cu_view<const float>(x);
    a.codes = cu_view<const uint8_t>(codes);
    a.scale = grid_part(scale);
    if (zero) a.zero = grid_part(zero);
    a.order = order ? (const int32_t *)cu_at(order) : NULL;
    a.columns = order ? order->cols : x->cols;
    a.group = (int)(d->group < a.columns ? d->group : a.columns);
    a.log_group = a.group == a.columns ? 31 : -1;
    for (int log = 3; a.log_group < 0 && log < 31; log++)
        if (a.group == 1 << log) a.log_group = log;
    a.wide_codes = ((uintptr_t)cu_at(codes) | (uintptr_t)(codes->rows > 1 ? codes->stride : 0)) % 4 == 0;
    a.y = cu_view<float>(y);
    a.fault = dev->fault;
    return d->bits == 8 ? multiply<8>(dev, a, x, y) : multiply<4>(dev, a, x, y);
}
