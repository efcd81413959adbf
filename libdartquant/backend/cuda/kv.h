/* Keys and values of past tokens: where they lie and what was stored. SPDX-License-Identifier: Apache-2.0 */
#ifndef DQ_CUDA_KV_H
#define DQ_CUDA_KV_H

#include "backend/cuda/kernel.h"

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

/* E4M3 without infinities (OCP 8-bit floating point). */
__host__ __device__ static inline float from_e4m3(uint8_t e)
{
    uint32_t magnitude = e & 0x7fu;
    float sign = e & 0x80u ? -1.0f : 1.0f;
    if (magnitude == 0x7fu) return cu_bits_float(0x7fc00000u);
    if (magnitude < 8) return sign * (float)magnitude / 512.0f;
    return sign * cu_bits_float((magnitude << 20) + (120u << 23));
}

/* Any kind, one at a time. */
__device__ static inline float cu_cached(const kv_args &a, int64_t row, int64_t head, int64_t c)
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

#endif
