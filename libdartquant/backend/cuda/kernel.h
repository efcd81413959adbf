/* What kernels share: operands, storage types, reductions in a fixed order, launching. A kernel is plain CUDA C++ within
 * this vocabulary, so that the tests can also run it block by block on a CPU (tests/fakes/cudasim).
 * SPDX-License-Identifier: Apache-2.0 */
#ifndef DQ_CUDA_KERNEL_H
#define DQ_CUDA_KERNEL_H

#include <stdint.h>

#include "backend/cuda/device.h"

#ifndef DQ_CUDASIM
#define CU_LAUNCH(dev, kernel, grid, block, shared, ...)                                                               \
    kernel<<<(grid), (block), (shared), (dev)->stream>>>(__VA_ARGS__)
#define CU_DYNAMIC_SHARED(name) extern __shared__ __align__(16) unsigned char name[]
#endif

enum { CU_WARP = 32, CU_THREADS = 256 };
#define CU_ALL 0xffffffffu

/* A row-major operand as kernels see it. */
template <class T> struct cu_mat {
    T *p;
    int64_t rows, cols, stride;
    __host__ __device__ T *row(int64_t r) const { return p + r * stride; }
};

static inline void *cu_at(const dq_view *v) { return ((dq_cuda_block *)v->mem)->address + v->offset; }
template <class T> static inline cu_mat<T> cu_view(const dq_view *v)
{
    cu_mat<T> m = {(T *)cu_at(v), v->rows, v->cols, v->stride};
    return m;
}

/* Bytes of one element; 0 for types that no op moves. */
static inline int64_t cu_element_size(dq_dtype dtype)
{
    switch (dtype) {
        case DQ_F64:
        case DQ_I64:
        case DQ_U64: return 8;
        case DQ_F32:
        case DQ_I32:
        case DQ_U32: return 4;
        case DQ_F16:
        case DQ_BF16:
        case DQ_I16:
        case DQ_U16: return 2;
        case DQ_U8:
        case DQ_I8:
        case DQ_BOOL:
        case DQ_F8_E4M3:
        case DQ_F8_E5M2: return 1;
        default: return 0;
    }
}

/* A rectangle of a view. */
static inline dq_view cu_part(const dq_view *v, int64_t row, int64_t rows, int64_t col, int64_t cols)
{
    dq_view part = *v;
    part.offset += (uint64_t)((row * v->stride + col) * cu_element_size(v->dtype));
    part.rows = rows;
    part.cols = cols;
    return part;
}

/* ---- storage types: kernels compute in float or double ---- */

struct cu_bf16 {
    uint16_t bits;
};
struct cu_f16 {
    uint16_t bits;
};

__host__ __device__ static inline float cu_bits_float(uint32_t u)
{
    union {
        uint32_t u;
        float f;
    } x;
    x.u = u;
    return x.f;
}
__host__ __device__ static inline uint32_t cu_float_bits(float f)
{
    union {
        float f;
        uint32_t u;
    } x;
    x.f = f;
    return x.u;
}

__host__ __device__ static inline float cu_load(const float *p) { return *p; }
__host__ __device__ static inline double cu_load(const double *p) { return *p; }
__host__ __device__ static inline float cu_load(const cu_bf16 *p) { return cu_bits_float((uint32_t)p->bits << 16); }
__host__ __device__ static inline float cu_load(const cu_f16 *p)
{
    uint32_t h = p->bits, sign = (h & 0x8000u) << 16, rest = h & 0x7fffu;
    if (rest >= 0x7c00u) return cu_bits_float(sign | 0x7f800000u | (rest & 0x3ffu) << 13); /* Inf, NaN */
    if (rest >= 0x400u) return cu_bits_float(sign | ((rest << 13) + 0x38000000u));
    float tiny = (float)rest * 5.9604644775390625e-8f; /* 2^-24: subnormal or zero */
    return cu_bits_float(sign | cu_float_bits(tiny));
}

__host__ __device__ static inline void cu_store(float *p, double x) { *p = (float)x; }
__host__ __device__ static inline void cu_store(float *p, float x) { *p = x; }
__host__ __device__ static inline void cu_store(double *p, double x) { *p = x; }

/* Double to 16 bits with one rounding, half to even: through float rounded to odd, which has more than enough bits left
 * (Boldo and Melquiond, 2008). */
__host__ __device__ static inline uint32_t cu_round_odd(double x)
{
    float f = (float)x;
    double back = (double)f;
    uint32_t u = cu_float_bits(f);
    if (back == x || x != x || (u & 0x7fffffffu) == 0x7f800000u) {
        /* An infinity made by overflow is one in 16 bits, too. */
        return u;
    }
    /* |f| > |x| was rounded away: step back; then set the sticky bit. */
    bool away = (back > x) == (x > 0);
    if (away) u--;
    return u | 1u;
}
__host__ __device__ static inline uint16_t cu_bf16_bits(uint32_t u)
{
    if ((u & 0x7fffffffu) > 0x7f800000u) return (uint16_t)(u >> 16 | 0x40u);
    return (uint16_t)((u + 0x7fffu + (u >> 16 & 1u)) >> 16);
}
__host__ __device__ static inline void cu_store(cu_bf16 *p, double x) { p->bits = cu_bf16_bits(cu_round_odd(x)); }
__host__ __device__ static inline void cu_store(cu_bf16 *p, float x) { p->bits = cu_bf16_bits(cu_float_bits(x)); }
__host__ __device__ static inline uint16_t cu_f16_bits(uint32_t u)
{
    uint32_t sign = u >> 16 & 0x8000u, a = u & 0x7fffffffu;
    if (a > 0x7f800000u) return (uint16_t)(sign | 0x7e00u | (a >> 13 & 0x3ffu));
    if (a >= 0x47800000u) return (uint16_t)(sign | 0x7c00u); /* 65536 and more */
    if (a >= 0x38800000u) { /* normal in 16 bits; a carry past 65504 gives infinity by itself */
        uint32_t r = a - 0x38000000u;
        return (uint16_t)(sign | (r + 0xfffu + (r >> 13 & 1u)) >> 13);
    }
    if (a < 0x33000000u) return (uint16_t)sign; /* below 2^-25 */
    /* subnormal: an integer multiple of 2^-24 */
    uint32_t shift = 126u - (a >> 23), mantissa = (a & 0x7fffffu) | 0x800000u;
    uint32_t kept = mantissa >> shift, lost = mantissa & ((1u << shift) - 1), half = 1u << (shift - 1);
    if (lost > half || (lost == half && (kept & 1u))) kept++;
    return (uint16_t)(sign | kept);
}
__host__ __device__ static inline void cu_store(cu_f16 *p, double x) { p->bits = cu_f16_bits(cu_round_odd(x)); }
__host__ __device__ static inline void cu_store(cu_f16 *p, float x) { p->bits = cu_f16_bits(cu_float_bits(x)); }

/* ---- reductions: a fixed tree over the lanes, then over the warps ---- */

template <class T> __device__ static inline T cu_warp_sum(T x)
{
    for (int step = CU_WARP / 2; step > 0; step /= 2) x += __shfl_xor_sync(CU_ALL, x, step);
    return x;
}
template <class T> __device__ static inline T cu_warp_max(T x)
{
    for (int step = CU_WARP / 2; step > 0; step /= 2) {
        T other = __shfl_xor_sync(CU_ALL, x, step);
        if (other > x) x = other;
    }
    return x;
}
template <class T> __device__ static inline T cu_warp_min(T x)
{
    for (int step = CU_WARP / 2; step > 0; step /= 2) {
        T other = __shfl_xor_sync(CU_ALL, x, step);
        if (other < x) x = other;
    }
    return x;
}

/* Sum over the block; every thread gets it. `slots`: shared memory for one value a warp. All threads call it. */
template <class T> __device__ static inline T cu_block_sum(T x, T *slots)
{
    int warps = (int)blockDim.x / CU_WARP;
    x = cu_warp_sum(x);
    if (threadIdx.x % CU_WARP == 0) slots[threadIdx.x / CU_WARP] = x;
    __syncthreads();
    T sum = 0;
    for (int w = 0; w < warps; w++) sum += slots[w];
    __syncthreads();
    return sum;
}

/* Smallest and largest over the block, likewise; `slots` for two values a warp. */
__device__ static inline void cu_block_range(float *lo, float *hi, float *slots)
{
    int warps = (int)blockDim.x / CU_WARP;
    *lo = cu_warp_min(*lo);
    *hi = cu_warp_max(*hi);
    if (threadIdx.x % CU_WARP == 0) {
        slots[threadIdx.x / CU_WARP] = *lo;
        slots[warps + threadIdx.x / CU_WARP] = *hi;
    }
    __syncthreads();
    for (int w = 0; w < warps; w++) {
        if (slots[w] < *lo) *lo = slots[w];
        if (slots[warps + w] > *hi) *hi = slots[warps + w];
    }
    __syncthreads();
}

/* ---- grids ---- */

static inline int64_t cu_div_up(int64_t a, int64_t b) { return (a + b - 1) / b; }
/* Blocks for `count` items of work in a grid-stride loop. */
static inline unsigned cu_grid(int64_t count, int64_t per_block)
{
    int64_t blocks = cu_div_up(count, per_block);
    return (unsigned)(blocks < 1 ? 1 : blocks > 1048576 ? 1048576 : blocks);
}
#define CU_STRIDE_LOOP(i, count)                                                                                       \
    for (int64_t i = (int64_t)blockIdx.x * blockDim.x + threadIdx.x; i < (count); i += (int64_t)gridDim.x * blockDim.x)

/* The same over rows and columns, which spares the division: rows along y. */
static inline dim3 cu_grid_rows(const dq_view *v)
{
    int64_t across = cu_div_up(v->cols, CU_THREADS), down = v->rows < 65535 ? v->rows : 65535;
    return dim3((unsigned)(across < 1 ? 1 : across > 65536 ? 65536 : across), (unsigned)(down < 1 ? 1 : down));
}
#define CU_EACH(r, c, row_count, col_count)                                                                            \
    for (int64_t r = blockIdx.y; r < (row_count); r += gridDim.y)                                                      \
        for (int64_t c = (int64_t)blockIdx.x * blockDim.x + threadIdx.x; c < (col_count);                              \
             c += (int64_t)gridDim.x * blockDim.x)

/* Lets `kernel` use `bytes` of dynamic shared memory beside what it has of its own; DQ_E_UNSUPPORTED where the card has less.
 * To be called before anything is queued. */
template <class K> static inline dq_status cu_allow_shared(dq_cuda_device *dev, K *kernel, int64_t bytes)
{
    return dq_cuda_allow_shared(dev, (const void *)kernel, bytes);
}

/* A bad index, reported at the next wait; kernels then use element 0 so that nothing is read out of bounds. */
enum {
    CU_OP_GATHER_ROWS = 1,
    CU_OP_GATHER_COLS,
    CU_OP_QUANTIZE,
    CU_OP_DEQUANTIZE,
    CU_OP_GPTQ_BLOCK,
    CU_OP_FACTOR,
    CU_OP_PACKED,
    CU_OP_KV_STORE,
    CU_OP_KV_ATTENTION
};
__device__ static inline int cu_checked(int index, int64_t limit, dq_cuda_fault *fault, int op, int64_t element)
{
    if (index >= 0 && index < limit) return index;
    atomicMin(&fault->first, (unsigned long long)op << 40 | (unsigned long long)(element & 0xffffffffffll));
    return 0;
}

#endif
