/* Elementwise kernels: a thread takes four neighbours of a row, which lie in one or two vector loads where addresses allow it.
 * Rows along y, so that no division finds an element's place. SPDX-License-Identifier: Apache-2.0 */
#ifndef DQ_CUDA_FOUR_H
#define DQ_CUDA_FOUR_H

#include "backend/cuda/kernel.h"

template <class T> struct alignas(sizeof(T) * 4 < 16 ? sizeof(T) * 4 : 16) cu_four {
    T v[4];
};

/* Whether every row starts where vectors may. */
template <class T> static inline bool cu_in_fours(const dq_view *v)
{
    uint64_t pitch = v->rows > 1 ? (uint64_t)v->stride * sizeof(T) : 0;
    return ((uint64_t)(uintptr_t)cu_at(v) | pitch) % alignof(cu_four<T>) == 0;
}

/* `n` of four elements from p on; `wide`: what cu_in_fours says of their matrix. */
template <class T> __device__ static inline cu_four<T> cu_take(const T *p, int n, bool wide)
{
    if (wide && n == 4) return *(const cu_four<T> *)p;
    cu_four<T> x = {};
#pragma unroll
    for (int i = 0; i < 4; i++)
        if (i < n) x.v[i] = p[i];
    return x;
}
template <class T> __device__ static inline void cu_put(T *p, const cu_four<T> &x, int n, bool wide)
{
    if (wide && n == 4) {
        *(cu_four<T> *)p = x;
        return;
    }
#pragma unroll
    for (int i = 0; i < 4; i++)
        if (i < n) p[i] = x.v[i];
}

/* Rounded on the way where T is narrower. */
template <class T> __device__ static inline void cu_put_float(T *p, const cu_four<float> &x, int n, bool wide)
{
    cu_four<T> to;
#pragma unroll
    for (int i = 0; i < 4; i++) cu_store(&to.v[i], x.v[i]);
    cu_put(p, to, n, wide);
}

/* A block on its way through one row: columns [c, c + n). */
#define CU_BLOCK_FOURS(c, n, col_count)                                                                                \
    for (int64_t c = (int64_t)threadIdx.x * 4, n = 0; c < (col_count) && (n = cu_at_most_four((col_count)-c), true);   \
         c += (int64_t)blockDim.x * 4)

/* The launch, and the loop: columns [c, c + n) of row r. */
static inline unsigned cu_threads_fours(const dq_view *v)
{
    int64_t warps = cu_div_up(v->cols, 4 * CU_WARP);
    int64_t held = warps < 1 ? 1 : warps < CU_THREADS / CU_WARP ? warps : (int64_t)(CU_THREADS / CU_WARP);
    return (unsigned)(held * CU_WARP);
}
static inline dim3 cu_grid_fours(const dq_view *v)
{
    int64_t across = cu_div_up(v->cols, 4 * CU_THREADS), down = v->rows < 65535 ? v->rows : 65535;
    return dim3((unsigned)(across < 1 ? 1 : across > 65536 ? 65536 : across), (unsigned)(down < 1 ? 1 : down));
}
__device__ static inline int cu_at_most_four(int64_t left) { return left < 4 ? (int)left : 4; }
#define CU_EACH_FOUR(r, c, n, row_count, col_count)                                                                    \
    for (int64_t r = blockIdx.y; r < (row_count); r += gridDim.y)                                                      \
        for (int64_t c = ((int64_t)blockIdx.x * blockDim.x + threadIdx.x) * 4, n = 0;                                  \
             c < (col_count) && (n = cu_at_most_four((col_count)-c), true); c += (int64_t)gridDim.x * blockDim.x * 4)

#endif
