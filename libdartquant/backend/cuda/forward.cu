/* RMS norm, layer norm, rotary position embedding, activations. SPDX-License-Identifier: Apache-2.0 */
#include <math.h>

#include "backend/cuda/norm_core.h"

/* One block a row. */
__global__ void rmsnorm_kernel(cu_mat<const float> x, const float *weight, double eps, cu_mat<float> y)
{
    __shared__ double slots[CU_THREADS / CU_WARP];
    const float *in = x.row(blockIdx.x);
    float *out = y.row(blockIdx.x);
    float factor = cu_norm_factor(in, x.cols, eps, slots);
    for (int64_t c = threadIdx.x; c < x.cols; c += blockDim.x) out[c] = cu_normed(in[c], factor, weight, c);
}

DQ_CUDA_SLOT dq_cuda_rmsnorm(void *device, const dq_view *x, const dq_view *weight, double eps, const dq_view *y)
{
    CU_ENTER(device);
    CU_LAUNCH(dev, rmsnorm_kernel, (unsigned)x->rows, CU_THREADS, 0, cu_view<const float>(x),
              weight ? (const float *)cu_at(weight) : NULL, eps, cu_view<float>(y));
    return dq_cuda_launched(dev, "rmsnorm");
}

/* One block a row; mean and variance in double, in a fixed order. */
__global__ void layernorm_kernel(cu_mat<const float> x, const float *weight, const float *bias, double eps,
                                 cu_mat<float> y)
{
    __shared__ double slots[CU_THREADS / CU_WARP];
    const float *in = x.row(blockIdx.x);
    float *out = y.row(blockIdx.x);
    double mean = 0, sum = 0;
    for (int64_t c = threadIdx.x; c < x.cols; c += blockDim.x) mean += (double)in[c];
    mean = cu_block_sum(mean, slots) / (double)x.cols;
    for (int64_t c = threadIdx.x; c < x.cols; c += blockDim.x) {
        double d = (double)in[c] - mean;
        sum += d * d;
    }
    sum = cu_block_sum(sum, slots);
    float factor = (float)(1.0 / sqrt(sum / (double)x.cols + eps));
    for (int64_t c = threadIdx.x; c < x.cols; c += blockDim.x) {
        float v = (float)((double)in[c] - mean) * factor * (weight ? weight[c] : 1.0f);
        out[c] = v + (bias ? bias[c] : 0.0f);
    }
}

DQ_CUDA_SLOT dq_cuda_layernorm(void *device, const dq_view *x, const dq_view *weight, const dq_view *bias, double eps,
                               const dq_view *y)
{
    CU_ENTER(device);
    CU_LAUNCH(dev, layernorm_kernel, (unsigned)x->rows, CU_THREADS, 0, cu_view<const float>(x),
              weight ? (const float *)cu_at(weight) : NULL, bias ? (const float *)cu_at(bias) : NULL, eps,
              cu_view<float>(y));
    return dq_cuda_launched(dev, "layernorm");
}

__global__ void rope_kernel(cu_mat<const float> cosines, cu_mat<const float> sines, int64_t head_dim, cu_mat<float> x)
{
    int64_t half = head_dim / 2, pairs = x.cols / 2;
    CU_EACH(r, p, x.rows, pairs)
    {
        int64_t position = r % cosines.rows;
        int head = (int)p / (int)half, i = (int)p % (int)half;
        float *at = x.row(r) + head * head_dim + i;
        float c = cosines.row(position)[i], s = sines.row(position)[i];
        float a = at[0], b = at[half];
        at[0] = fmaf(a, c, -b * s);
        at[half] = fmaf(b, c, a * s);
    }
}

DQ_CUDA_SLOT dq_cuda_rope(void *device, const dq_view *cos, const dq_view *sin, int64_t head_dim, const dq_view *x)
{
    CU_ENTER(device);
    dq_view pairs = *x;
    pairs.cols /= 2;
    CU_LAUNCH(dev, rope_kernel, cu_grid_rows(&pairs), CU_THREADS, 0, cu_view<const float>(cos),
              cu_view<const float>(sin), head_dim, cu_view<float>(x));
    return dq_cuda_launched(dev, "rope");
}

__device__ static float activate(int kind, float x)
{
    switch (kind) {
        case DQ_ACT_SILU: return x / (1.0f + expf(-x));
        case DQ_ACT_GELU: return 0.5f * x * (1.0f + erff(x * 0.70710678118654752440f));
        case DQ_ACT_GELU_TANH: /* sqrt(2/pi); Hendrycks and Gimpel, arXiv 1606.08415 */
            return 0.5f * x * (1.0f + tanhf(0.79788456080286535588f * (x + 0.044715f * x * x * x)));
        default: return x > 0 ? x : (x != x ? x : 0.0f);
    }
}

__global__ void activation_kernel(int kind, cu_mat<const float> gate, cu_mat<const float> up, cu_mat<float> y)
{
    CU_EACH(r, c, y.rows, y.cols)
    {
        float value = activate(kind, gate.row(r)[c]);
        y.row(r)[c] = up.p ? value * up.row(r)[c] : value;
    }
}

DQ_CUDA_SLOT dq_cuda_activation(void *device, int32_t kind, const dq_view *gate, const dq_view *up, const dq_view *y)
{
    CU_ENTER(device);
    cu_mat<const float> none = {NULL, 0, 0, 0};
    CU_LAUNCH(dev, activation_kernel, cu_grid_rows(y), CU_THREADS, 0, kind, cu_view<const float>(gate),
              up ? cu_view<const float>(up) : none, cu_view<float>(y));
    return dq_cuda_launched(dev, "activation");
}
