/* Keys and values of past tokens as they are stored. SPDX-License-Identifier: Apache-2.0 */
#include <math.h>

#include "backend/cuda/kv.h"
#include "backend/cuda/quant_core.h"

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
