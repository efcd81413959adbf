/* RMS norm, layer norm, rotary position embedding, activations. SPDX-License-Identifier: Apache-2.0 */
#include <math.h>

#include "backend/cuda/norm_core.h"

/* One block a row. */
template <bool LAYER, class Y>
__global__ void norm_kernel(cu_mat<const float> x, cu_norm norm, double eps, cu_mat<Y> y, bool wide)
{
    __shared__ double slots[CU_THREADS / CU_WARP];
    const float *in = x.row(blockIdx.x);
    Y *out = y.row(blockIdx.x);
    cu_measure<LAYER>(&norm, in, x.cols, eps, slots, wide);
    CU_BLOCK_FOURS(c, n, x.cols)
    {
        cu_four<float> v = cu_take(in + c, (int)n, wide);
        cu_put_float(out + c, cu_normed<LAYER>(norm, v, c, (int)n, wide), (int)n, wide);
    }
}

template <bool LAYER>
static void norm(dq_cuda_device *dev, const dq_view *x, const dq_view *weight, const dq_view *bias, double eps,
                 const dq_view *y)
{
    cu_norm n = {cu_vector(weight), cu_vector(bias), 0, 0};
    unsigned threads = cu_threads_fours(x); /* of rows as short as heads many fit on the card; the sums are the same */
    if (y->dtype == DQ_BF16)
        CU_LAUNCH(dev, (norm_kernel<LAYER, cu_bf16>), (unsigned)x->rows, threads, 0, cu_view<const float>(x), n, eps,
                  cu_view<cu_bf16>(y), cu_norm_in_fours<cu_bf16>(x, weight, bias, y));
    else
        CU_LAUNCH(dev, (norm_kernel<LAYER, float>), (unsigned)x->rows, threads, 0, cu_view<const float>(x), n, eps,
                  cu_view<float>(y), cu_norm_in_fours<float>(x, weight, bias, y));
}

DQ_CUDA_SLOT dq_cuda_rmsnorm(void *device, const dq_view *x, const dq_view *weight, double eps, const dq_view *y)
{
    CU_ENTER(device);
    norm<false>(dev, x, weight, NULL, eps, y);
    return dq_cuda_launched(dev, "rmsnorm");
}

DQ_CUDA_SLOT dq_cuda_layernorm(void *device, const dq_view *x, const dq_view *weight, const dq_view *bias, double eps,
                               const dq_view *y)
{
    CU_ENTER(device);
    norm<true>(dev, x, weight, bias, eps, y);
    return dq_cuda_launched(dev, "layernorm");
}

/* The two of a pair lie half a head apart. */
__device__ static inline void rotate(float &a, float &b, float c, float s)
{
    float first = fmaf(a, c, -b * s);
    b = fmaf(b, c, a * s);
    a = first;
}

__global__ void rope_kernel(cu_mat<const float> cosines, cu_mat<const float> sines, int head_dim, cu_mat<float> x)
{
    int half = head_dim / 2;
    CU_EACH(r, p, x.rows, x.cols / 2)
    {
        int64_t position = (uint32_t)r % (uint32_t)cosines.rows;
        int head = (int)p / half, i = (int)p % half;
        float *at = x.row(r) + (int64_t)head * head_dim + i;
        rotate(at[0], at[half], cosines.row(position)[i], sines.row(position)[i]);
    }
}

/* Four pairs a thread. */
__global__ void rope_fours_kernel(cu_mat<const float> cosines, cu_mat<const float> sines, int head_dim, cu_mat<float> x)
{
    int fours = head_dim / 8;
    CU_EACH(r, p, x.rows, x.cols / 8)
    {
        int64_t position = (uint32_t)r % (uint32_t)cosines.rows;
        int head = (int)p / fours, i = (int)p % fours * 4;
        float *at = x.row(r) + (int64_t)head * head_dim + i;
        cu_four<float> c = cu_take(cosines.row(position) + i, 4, true), s = cu_take(sines.row(position) + i, 4, true);
        cu_four<float> a = cu_take((const float *)at, 4, true), b = cu_take((const float *)at + head_dim / 2, 4, true);
#pragma unroll
        for (int j = 0; j < 4; j++) rotate(a.v[j], b.v[j], c.v[j], s.v[j]);
        cu_put(at, a, 4, true);
        cu_put(at + head_dim / 2, b, 4, true);
    }
}

DQ_CUDA_SLOT dq_cuda_rope(void *device, const dq_view *cos, const dq_view *sin, int64_t head_dim, const dq_view *x)
{
    CU_ENTER(device);
    bool wide = head_dim % 8 == 0 && cu_in_fours<float>(cos) && cu_in_fours<float>(sin) && cu_in_fours<float>(x);
    dq_view units = *x;
    units.cols /= wide ? 8 : 2;
    if (wide)
        CU_LAUNCH(dev, rope_fours_kernel, cu_grid_rows(&units), CU_THREADS, 0, cu_view<const float>(cos),
                  cu_view<const float>(sin), (int)head_dim, cu_view<float>(x));
    else
        CU_LAUNCH(dev, rope_kernel, cu_grid_rows(&units), CU_THREADS, 0, cu_view<const float>(cos),
                  cu_view<const float>(sin), (int)head_dim, cu_view<float>(x));
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

template <class Y>
__global__ void activation_kernel(int kind, cu_mat<const float> gate, cu_mat<const float> up, cu_mat<Y> y, bool wide)
{
    CU_EACH_FOUR(r, c, n, y.rows, y.cols)
    {
        cu_four<float> v = cu_take(gate.row(r) + c, (int)n, wide), u = {};
        if (up.p) u = cu_take(up.row(r) + c, (int)n, wide);
#pragma unroll
        for (int i = 0; i < 4; i++) {
            float value = activate(kind, v.v[i]);
            v.v[i] = up.p ? value * u.v[i] : value;
        }
        cu_put_float(y.row(r) + c, v, (int)n, wide);
    }
}

DQ_CUDA_SLOT dq_cuda_activation(void *device, int32_t kind, const dq_view *gate, const dq_view *up, const dq_view *y)
{
    CU_ENTER(device);
    cu_mat<const float> g = cu_view<const float>(gate), u = up ? cu_view<const float>(up) : cu_mat<const float>{};
    bool wide = cu_in_fours<float>(gate) && (!up || cu_in_fours<float>(up));
    if (y->dtype == DQ_BF16)
        CU_LAUNCH(dev, activation_kernel<cu_bf16>, cu_grid_fours(y), cu_threads_fours(y), 0, kind, g, u,
                  cu_view<cu_bf16>(y), wide && cu_in_fours<cu_bf16>(y));
    else
        CU_LAUNCH(dev, activation_kernel<float>, cu_grid_fours(y), cu_threads_fours(y), 0, kind, g, u,
                  cu_view<float>(y), wide && cu_in_fours<float>(y));
    return dq_cuda_launched(dev, "activation");
}
