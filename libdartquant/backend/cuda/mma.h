/* Tensor cores and asynchronous copies to shared memory, as a warp sees them: thin wrappers over PTX (ISA 8.x: "mma",
 * "ldmatrix", "cp.async"), which the simulated card replaces. SPDX-License-Identifier: Apache-2.0 */
#ifndef DQ_CUDA_MMA_H
#define DQ_CUDA_MMA_H

#include "backend/cuda/kernel.h"

/* Fragments of m16n8k16 products (PTX ISA 8.7, "Matrix Fragments for mma.m16n8k16"; the same in CuTe's
 * MMA_Traits<SM80_16x8x16_F32BF16BF16F32_TN>), for lane l with g = l / 4, t = l % 4; two bf16 in a register, the lower half first:
 *   a (16 x 16): rows g, g + 8, g, g + 8 at columns 2t, 2t + 1 (first two registers) and 2t + 8, 2t + 9
 *   b (16 x 8):  rows 2t, 2t + 1 and 2t + 8, 2t + 9 of column g
 *   c (16 x 8):  row g at columns 2t, 2t + 1, then row g + 8 */

/* Eight bf16, moved together. */
struct alignas(16) cu_eight {
    uint32_t pairs[4];
};

#ifndef DQ_CUDASIM

__device__ static inline void cu_mma(float (&c)[4], const uint32_t (&a)[4], uint32_t b0, uint32_t b1)
{
    asm volatile("mma.sync.aligned.m16n8k16.row.col.f32.bf16.bf16.f32 {%0, %1, %2, %3}, {%4, %5, %6, %7}, {%8, %9}, "
                 "{%0, %1, %2, %3};\n"
                 : "+f"(c[0]), "+f"(c[1]), "+f"(c[2]), "+f"(c[3])
                 : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b0), "r"(b1));
}

/* Four 8 x 8 matrices of bf16: lane 8i + r gives the address of row r (16 bytes) of matrix i. out[i]: row l / 4 of matrix i at
 * columns 2 (l % 4) and the next; transposed: column l / 4 at those rows. */
__device__ static inline void cu_load_matrices(uint32_t (&out)[4], const void *row)
{
    uint32_t at = (uint32_t)__cvta_generic_to_shared(row);
    asm volatile("ldmatrix.sync.aligned.m8n8.x4.shared.b16 {%0, %1, %2, %3}, [%4];\n"
                 : "=r"(out[0]), "=r"(out[1]), "=r"(out[2]), "=r"(out[3])
                 : "r"(at)
                 : "memory");
}
__device__ static inline void cu_load_matrices_transposed(uint32_t (&out)[4], const void *row)
{
    uint32_t at = (uint32_t)__cvta_generic_to_shared(row);
    asm volatile("ldmatrix.sync.aligned.m8n8.x4.trans.shared.b16 {%0, %1, %2, %3}, [%4];\n"
                 : "=r"(out[0]), "=r"(out[1]), "=r"(out[2]), "=r"(out[3])
                 : "r"(at)
                 : "memory");
}

/* Both rounded half to even; `low` in the lower half. */
__device__ static inline uint32_t cu_pack_bf16(float low, float high)
{
    uint32_t both;
    asm("cvt.rn.bf16x2.f32 %0, %1, %2;\n" : "=r"(both) : "f"(high), "f"(low));
    return both;
}

/* 2^x to 2 ulp, 0 where the result is below 2^-126 (PTX: ex2.approx.ftz); 0 for -inf, NaN stays. */
__device__ static inline float cu_exp2(float x)
{
    float y;
    asm("ex2.approx.ftz.f32 %0, %1;\n" : "=f"(y) : "f"(x));
    return y;
}

/* 16 bytes on their way from global to shared memory, both aligned, or zeros where they are not `there`; the thread that asked waits with cu_copies_done, which
 * leaves the last `pending` groups under way. */
__device__ static inline void cu_copy_async(void *to, const void *from, bool there)
{
    uint32_t at = (uint32_t)__cvta_generic_to_shared(to), bytes = there ? 16 : 0;
    asm volatile("cp.async.cg.shared.global [%0], [%1], 16, %2;\n" ::"r"(at), "l"(from), "r"(bytes) : "memory");
}
__device__ static inline void cu_copies_commit() { asm volatile("cp.async.commit_group;\n" ::: "memory"); }
template <int PENDING> __device__ static inline void cu_copies_done()
{
    asm volatile("cp.async.wait_group %0;\n" ::"n"(PENDING) : "memory");
}

#else

static inline float cu_half_of(uint32_t both, int high)
{
    return cu_bits_float(high ? both & 0xffff0000u : both << 16);
}

static inline void cu_mma(float (&c)[4], const uint32_t (&a)[4], uint32_t b0, uint32_t b1)
{
    uint64_t first[32], second[32], right[32];
    cusim::exchange_all(a[0] | (uint64_t)a[1] << 32, first);
    cusim::exchange_all(a[2] | (uint64_t)a[3] << 32, second);
    cusim::exchange_all(b0 | (uint64_t)b1 << 32, right);
    int g = cusim::lane() / 4, t = cusim::lane() % 4;
    for (int i = 0; i < 4; i++) {
        int column = 2 * t + i % 2;
        for (int k = 0; k < 16; k++) {
            const uint64_t *half = k < 8 ? first : second; /* g++ 12 with sanitizers takes an array here wrongly */
            uint64_t left = half[4 * g + k % 8 / 2];
            float x = cu_half_of((uint32_t)(i < 2 ? left : left >> 32), k % 2);
            uint64_t b = right[4 * column + k % 8 / 2];
            c[i] += x * cu_half_of((uint32_t)(k < 8 ? b : b >> 32), k % 2);
        }
    }
}

static inline void cu_load_matrices(uint32_t (&out)[4], const void *row) { cusim::load_matrices(out, row, false); }
static inline void cu_load_matrices_transposed(uint32_t (&out)[4], const void *row)
{
    cusim::load_matrices(out, row, true);
}

static inline uint32_t cu_pack_bf16(float low, float high)
{
    cu_bf16 x, y;
    cu_store(&x, (double)low);
    cu_store(&y, (double)high);
    return x.bits | (uint32_t)y.bits << 16;
}

static inline float cu_exp2(float x) { return x < -126 ? 0.0f : exp2f(x); }

/* What is under way arrives as late as it may: when its thread waits. */
static inline void cu_copy_async(void *to, const void *from, bool there) { cusim::copy_later(to, from, there); }
static inline void cu_copies_commit() { cusim::copies_commit(); }
template <int PENDING> static inline void cu_copies_done() { cusim::copies_done(PENDING); }

#endif
#endif
