/* One column block of GPTQ (arXiv 2210.17323): a warp keeps one row in registers, a few columns a lane, and walks the
 * columns; the factor lies in shared memory. Compiled without contraction, so that codes are the reference's except at
 * rounding ties. SPDX-License-Identifier: Apache-2.0 */
#include <math.h>

#include "backend/cuda/kernel.h"
#include "backend/cuda/quant_core.h"

enum { BLOCK_WARPS = 8 };

typedef struct block_args {
    dq_grid_desc d;
    cu_mat<float> w;
    cu_mat<const float> u, scale, zero;
    const int32_t *index;
    cu_mat<uint8_t> codes;
    cu_mat<float> err;
    dq_cuda_fault *fault;
} block_args;

/* EACH: columns a lane owns: lane, lane + 32, ... */
template <int EACH> __global__ void __launch_bounds__(BLOCK_WARPS *CU_WARP) block_kernel(block_args a)
{
    CU_DYNAMIC_SHARED(shared);
    int n = (int)a.u.cols, lane = threadIdx.x % CU_WARP;
    float *u = (float *)shared;
    for (int i = threadIdx.x; i < n * n; i += blockDim.x) u[i] = a.u.row(i / n)[i % n];
    __syncthreads();
    int64_t row = (int64_t)blockIdx.x * BLOCK_WARPS + threadIdx.x / CU_WARP;
    bool mine = row < a.w.rows;
    float w[EACH], s[EACH], z[EACH], top = cu_top_code(a.d.bits);
#pragma unroll
    for (int i = 0; i < EACH; i++) {
        int c = lane + CU_WARP * i;
        w[i] = z[i] = 0;
        s[i] = 1;
        if (!mine || c >= n) continue;
        int g = cu_checked(a.index[c], a.scale.cols, a.fault, CU_OP_GPTQ_BLOCK, c);
        w[i] = a.w.row(row)[c];
        s[i] = a.scale.row(row)[g];
        z[i] = a.zero.row(row)[g];
    }
#pragma unroll
    for (int i = 0; i < EACH; i++) /* unrolled so that w[i] stays a register */
        for (int from = 0; from < CU_WARP; from++) {
            int j = CU_WARP * i + from;
            if (j >= n) break;
            float code = cu_code(w[i], s[i], z[i], top), q = cu_code_value(code, s[i], z[i]);
            float e = (w[i] - q) / u[j * n + j];
            if (mine && lane == from) {
                a.codes.row(row)[j] = (uint8_t)code;
                a.err.row(row)[j] = e;
                w[i] = q; /* w_j - e_j u_jj without the rounding */
            }
            e = __shfl_sync(CU_ALL, e, from);
#pragma unroll
            for (int k = i; k < EACH; k++) {
                int c = lane + CU_WARP * k;
                if (c > j && c < n) w[k] = fmaf(-e, u[j * n + c], w[k]);
            }
        }
    if (!mine) return;
#pragma unroll
    for (int i = 0; i < EACH; i++)
        if (lane + CU_WARP * i < n) a.w.row(row)[lane + CU_WARP * i] = w[i];
}

template <int EACH> static dq_status launch(dq_cuda_device *dev, const block_args &a)
{
    int64_t bytes = a.u.cols * a.u.cols * 4;
    CU_TRY(cu_allow_shared(dev, block_kernel<EACH>, bytes));
    CU_LAUNCH(dev, block_kernel<EACH>, (unsigned)cu_div_up(a.w.rows, BLOCK_WARPS), BLOCK_WARPS * CU_WARP, (size_t)bytes,
              a);
    return dq_cuda_launched(dev, "gptq_block");
}

DQ_CUDA_SLOT dq_cuda_gptq_block(void *device, const dq_grid_desc *d, const dq_view *w, const dq_view *u,
                                const dq_view *scale, const dq_view *zero, const dq_view *group_index,
                                const dq_view *codes, const dq_view *err)
{
    CU_ENTER(device);
    if (u->cols > 160) /* 100 KB of shared memory, which every supported card has */
        return dq_cuda_fail(dev, DQ_E_UNSUPPORTED, 0, "gptq_block: blocks of %lld columns (160 at most)",
                            (long long)u->cols);
    block_args a = {*d,
                    cu_view<float>(w),
                    cu_view<const float>(u),
                    cu_view<const float>(scale),
                    cu_view<const float>(zero),
                    (const int32_t *)cu_at(group_index),
                    cu_view<uint8_t>(codes),
                    cu_view<float>(err),
                    dev->fault};
    if (u->cols <= 32) return launch<1>(dev, a);
    if (u->cols <= 64) return launch<2>(dev, a);
    if (u->cols <= 128) return launch<4>(dev, a);
    return launch<5>(dev, a);
}
