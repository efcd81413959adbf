/* The vocabulary head: a tile of logits by cuBLAS, folded at once into the running log-sum-exp of each token.
 * SPDX-License-Identifier: Apache-2.0 */
#include <math.h>

#include "backend/cuda/four.h"

/* Logits that exist at a time. */
enum { TILE_BYTES = 256 << 20 };

/* Logits that a thread holds at a time: a tile of 4096 is read once. */
enum { HELD = 4 /* of four */ };

/* Adds to a token's (max, sum of exp(x - max)). */
__device__ static void join(double *state, double top, double sum)
{
    if (sum == 0) return;
    if (state[1] == 0) {
        state[0] = top;
        state[1] = sum;
    } else if (top > state[0]) {
        state[1] = state[1] * exp(state[0] - top) + sum;
        state[0] = top;
    } else {
        state[1] += sum * exp(top - state[0]);
    }
}

__device__ static float block_max(float x, float *slots)
{
    for (int step = CU_WARP / 2; step > 0; step /= 2) x = fmaxf(x, __shfl_xor_sync(CU_ALL, x, step));
    if (threadIdx.x % CU_WARP == 0) slots[threadIdx.x / CU_WARP] = x;
    __syncthreads();
    for (int w = 0; w < CU_THREADS / CU_WARP; w++) x = fmaxf(x, slots[w]);
    return x;
}

/* One block a token. A NaN logit makes its token's sum NaN, so that it does not vanish: fmaxf passes it by, but it stays the
 * largest of its thread. */
__global__ void nll_kernel(cu_mat<const float> logits, const int32_t *targets, int64_t first, cu_mat<double> state,
                           bool wide)
{
    __shared__ double sums[CU_THREADS / CU_WARP];
    __shared__ float tops[CU_THREADS / CU_WARP];
    const float *x = logits.row(blockIdx.x);
    float top = -INFINITY;
    double sum = 0;
    for (int64_t start = 0; start < logits.cols; start += 4 * HELD * CU_THREADS) {
        cu_four<float> v[HELD];
        float before = top;
#pragma unroll
        for (int k = 0; k < HELD; k++) {
            int64_t c = start + 4 * ((int64_t)k * CU_THREADS + threadIdx.x);
            int n = cu_at_most_four(logits.cols - c);
            v[k] = cu_take(x + c, n, wide);
#pragma unroll
            for (int i = 0; i < 4; i++) {
                if (i >= n) v[k].v[i] = -INFINITY;
                if (v[k].v[i] > top || v[k].v[i] != v[k].v[i]) top = v[k].v[i];
            }
        }
        if (sum != 0 && top != before) sum *= exp((double)before - (double)top);
#pragma unroll
        for (int k = 0; k < HELD; k++)
#pragma unroll
            for (int i = 0; i < 4; i++)
                if (v[k].v[i] != -INFINITY) sum += (double)expf(v[k].v[i] - top);
    }
    float highest = block_max(top, tops);
    sum = cu_block_sum(sum == 0 ? 0.0 : sum * (double)expf(top - highest), sums);
    if (threadIdx.x != 0) return;
    double *s = state.row(blockIdx.x);
    join(s, highest, sum);
    int64_t target = (int64_t)targets[blockIdx.x] - first;
    if (targets[blockIdx.x] >= 0 && target >= 0 && target < logits.cols) s[2] = x[target];
}

DQ_CUDA_SLOT dq_cuda_head_nll(void *device, const dq_view *x, const dq_view *w, const dq_view *targets, int64_t first,
                              const dq_view *state, int32_t math)
{
    CU_ENTER(device);
    int64_t vocab = w->rows;
    int64_t rows = TILE_BYTES / 4 / vocab < 1 ? 1 : TILE_BYTES / 4 / vocab;
    if (rows > x->rows) rows = x->rows;
    dq_cuda_block scratch = {};
    CU_TRY(dq_cuda_scratch(dev, (uint64_t)(rows * vocab) * 4, "logits", &scratch));
    dq_status status = DQ_OK;
    for (int64_t r = 0; r < x->rows && status == DQ_OK; r += rows) {
        int64_t n = x->rows - r < rows ? x->rows - r : rows;
        dq_view part = cu_part(x, r, n, 0, x->cols), sums = cu_part(state, r, n, 0, state->cols);
        dq_view logits = {&scratch, 0, n, vocab, vocab, DQ_F32, 0};
        status = dq_cuda_gemm(dev, 0, 1, 1.0, &part, w, 0.0, &logits, math);
        if (status != DQ_OK) break;
        CU_LAUNCH(dev, nll_kernel, (unsigned)n, CU_THREADS, 0, cu_view<const float>(&logits),
                  (const int32_t *)cu_at(targets) + r, first, cu_view<double>(&sums), cu_in_fours<float>(&logits));
        status = dq_cuda_launched(dev, "head_nll");
    }
    dq_cuda_release(dev, &scratch);
    return status;
}
