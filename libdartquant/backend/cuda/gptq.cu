/* One column block of GPTQ (arXiv 2210.17323): eight lanes keep one row in registers, four columns of each 32 a lane, and walk
 * the columns, which is one long chain; the factor lies in shared memory. Compiled without contraction, so that codes are the
 * reference's except at rounding ties. SPDX-License-Identifier: Apache-2.0 */
#include <math.h>

#include "backend/cuda/kernel.h"
#include "backend/cuda/quant_core.h"

enum {
    LANES = 8 /* of a row */,
    EACH = 4,
    SPAN = LANES * EACH,
    WARP_ROWS = CU_WARP / LANES,
    MOST_WARPS = 16,
    SMS = 132
};

typedef struct block_args {
    dq_grid_desc d;
    cu_mat<float> w;
    cu_mat<const float> u, scale, zero;
    const int32_t *index;
    cu_mat<uint8_t> codes;
    cu_mat<float> err;
    dq_cuda_fault *fault;
} block_args;

/* The upper triangle of u in rows of `width`; behind its last column zeros. */
__device__ static void load_factor(const cu_mat<const float> &from, int width, float *u)
{
    int n = (int)from.cols;
    for (int r = threadIdx.x / CU_WARP; r < n; r += blockDim.x / CU_WARP)
        for (int c = r / CU_WARP * CU_WARP + threadIdx.x % CU_WARP; c < width; c += CU_WARP)
            u[r * width + c] = c < n ? from.row(r)[c] : 0.0f;
    __syncthreads();
}

/* SPANS: groups of 32 columns. Column c belongs to lane c % 32 / 4. */
template <int SPANS> __global__ void __launch_bounds__(MOST_WARPS *CU_WARP) block_kernel(block_args a)
{
    CU_DYNAMIC_SHARED(shared);
    enum { WIDTH = SPANS * SPAN, OWN = SPANS * EACH };
    const float *u = (const float *)shared;
    int n = (int)a.u.cols, lane = threadIdx.x % LANES, first = threadIdx.x % CU_WARP - lane;
    load_factor(a.u, WIDTH, (float *)shared);
    int64_t row = ((int64_t)blockIdx.x * blockDim.x + threadIdx.x) / LANES;
    bool mine = row < a.w.rows;
    float w[OWN], s[OWN], z[OWN], err[OWN], codes[OWN], top = cu_top_code(a.d.bits);
#pragma unroll
    for (int i = 0; i < OWN; i++) {
        int c = i / EACH * SPAN + lane * EACH + i % EACH;
        w[i] = z[i] = err[i] = codes[i] = 0;
        s[i] = 1;
        if (!mine || c >= n) continue;
        int g = cu_checked(a.index[c], a.scale.cols, a.fault, CU_OP_GPTQ_BLOCK, c);
        w[i] = a.w.row(row)[c];
        s[i] = a.scale.row(row)[g];
        z[i] = a.zero.row(row)[g];
    }
#pragma unroll
    for (int span = 0; span < SPANS; span++) /* unrolled so that all arrays stay registers */
        for (int from = 0; from < LANES; from++) {
#pragma unroll
            for (int i = 0; i < EACH; i++) {
                int at = span * EACH + i, own = from * EACH + i, j = span * SPAN + own;
                if (j >= n) break;
                const float *row_j = u + j * WIDTH + lane * EACH;
                float code = cu_code(w[at], s[at], z[at], top), q = cu_code_value(code, s[at], z[at]);
                float e = (w[at] - q) / u[j * WIDTH + j];
                if (lane == from) {
                    codes[at] = code;
                    err[at] = e;
                    w[at] = q; /* w_j - e_j u_jj without the rounding */
                }
                e = __shfl_sync(CU_ALL, e, first + from);
#pragma unroll
                for (int k = span; k < SPANS; k++) {
                    float4 four = *(const float4 *)(row_j + k * SPAN);
                    float x[EACH] = {four.x, four.y, four.z, four.w};
#pragma unroll
                    for (int l = 0; l < EACH; l++)
                        if (k > span || lane * EACH + l > own) w[k * EACH + l] = fmaf(-e, x[l], w[k * EACH + l]);
                }
            }
        }
#pragma unroll
    for (int i = 0; i < OWN; i++) {
        int c = i / EACH * SPAN + lane * EACH + i % EACH;
        if (!mine || c >= n) continue;
        a.w.row(row)[c] = w[i];
        a.err.row(row)[c] = err[i];
        a.codes.row(row)[c] = (uint8_t)codes[i];
    }
}

/* As many warps a block as spread the rows evenly over a card's multiprocessors: every block waits for the factor. */
static int warps_for(int64_t rows)
{
    int64_t each = cu_div_up(rows, (int64_t)WARP_ROWS * SMS), blocks = cu_div_up(each, MOST_WARPS);
    int64_t warps = cu_div_up(each, blocks);
    return warps < 4 ? 4 : (int)warps;
}

template <int SPANS> static dq_status launch(dq_cuda_device *dev, const block_args &a)
{
    int64_t bytes = a.u.cols * SPANS * SPAN * 4;
    int warps = warps_for(a.w.rows);
    CU_TRY(cu_allow_shared(dev, block_kernel<SPANS>, bytes));
    CU_LAUNCH(dev, block_kernel<SPANS>, (unsigned)cu_div_up(a.w.rows, warps * WARP_ROWS), warps * CU_WARP,
              (size_t)bytes, a);
    return dq_cuda_launched(dev, "gptq_block");
}

DQ_CUDA_SLOT dq_cuda_gptq_block(void *device, const dq_grid_desc *d, const dq_view *w, const dq_view *u,
                                const dq_view *scale, const dq_view *zero, const dq_view *group_index,
                                const dq_view *codes, const dq_view *err)
{
    CU_ENTER(device);
    if (u->cols > 160) /* 100 KB of shared memory; cards with a little less refuse the launch above 158 */
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
