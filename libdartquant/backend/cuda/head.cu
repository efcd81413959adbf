/* The vocabulary head: a tile of logits by cuBLAS, folded at once into the running log-sum-exp of each token.
 * SPDX-License-Identifier: Apache-2.0 */
#include <math.h>

#include "backend/cuda/kernel.h"

/* Logits that exist at a time. */
enum { TILE_BYTES = 256 << 20 };

/* Joins two (max, sum of exp(x - max)) pairs. A NaN logit makes its token's sum NaN, so that it does not vanish. */
__device__ static void join(double &top, double &sum, double other_top, double other_sum)
{
    if (other_sum == 0) return;
    if (sum == 0) {
        top = other_top;
        sum = other_sum;
    } else if (other_top > top) {
        sum = sum * exp(top - other_top) + other_sum;
        top = other_top;
    } else {
        sum += other_sum * exp(other_top - top);
    }
}

/* One block a token. */
__global__ void nll_kernel(cu_mat<const float> logits, const int32_t *targets, int64_t first, cu_mat<double> state)
{
    __shared__ double tops[CU_THREADS / CU_WARP], sums[CU_THREADS / CU_WARP];
    const float *x = logits.row(blockIdx.x);
    double *s = state.row(blockIdx.x);
    float highest = -INFINITY;
    for (int64_t c = threadIdx.x; c < logits.cols; c += blockDim.x)
        if (x[c] > highest || x[c] != x[c]) highest = x[c];
    double top = highest, sum = 0;
    for (int64_t c = threadIdx.x; c < logits.cols; c += blockDim.x)
        if (x[c] != -INFINITY) sum += (double)expf(x[c] - highest);
    for (int step = CU_WARP / 2; step > 0; step /= 2) {
        double other_top = __shfl_xor_sync(CU_ALL, top, step), other_sum = __shfl_xor_sync(CU_ALL, sum, step);
        join(top, sum, other_top, other_sum);
    }
    if (threadIdx.x % CU_WARP == 0) {
        tops[threadIdx.x / CU_WARP] = top;
        sums[threadIdx.x / CU_WARP] = sum;
    }
    __syncthreads();
    if (threadIdx.x != 0) return;
    top = s[0];
    sum = s[1];
    for (int w = 0; w < CU_THREADS / CU_WARP; w++) join(top, sum, tops[w], sums[w]);
    s[0] = top;
    s[1] = sum;
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
                  (const int32_t *)cu_at(targets) + r, first, cu_view<double>(&sums));
        status = dq_cuda_launched(dev, "head_nll");
    }
    dq_cuda_release(dev, &scratch);
    return status;
}
