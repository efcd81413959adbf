/* Data movement, elementwise ops and reductions to a number. SPDX-License-Identifier: Apache-2.0 */
#include <math.h>

#include "backend/cuda/four.h"

static dq_status no_dtype(dq_cuda_device *dev, const char *op, dq_dtype dtype)
{
    return dq_cuda_fail(dev, DQ_E_UNSUPPORTED, 0, "%s: element type %d is not served", op, (int)dtype);
}

static dim3 rows_grid(const dq_view *v) { return cu_grid_rows(v); }

/* ---- fill ---- */

template <class T> __global__ void fill_kernel(cu_mat<T> y, T value, bool wide)
{
    cu_four<T> four = {{value, value, value, value}};
    CU_EACH_FOUR(r, c, n, y.rows, y.cols) cu_put(y.row(r) + c, four, (int)n, wide);
}

template <class T> static void fill_with(dq_cuda_device *dev, const dq_view *y, T value)
{
    CU_LAUNCH(dev, fill_kernel<T>, cu_grid_fours(y), cu_threads_fours(y), 0, cu_view<T>(y), value, cu_in_fours<T>(y));
}

template <class T> static void fill_rounded(dq_cuda_device *dev, const dq_view *y, double value)
{
    T stored;
    cu_store(&stored, value);
    fill_with<T>(dev, y, stored);
}

DQ_CUDA_SLOT dq_cuda_fill(void *device, double value, const dq_view *y)
{
    CU_ENTER(device);
    switch (y->dtype) {
        case DQ_F64: fill_with<double>(dev, y, value); break;
        case DQ_F32: fill_with<float>(dev, y, (float)value); break;
        case DQ_F16: fill_rounded<cu_f16>(dev, y, value); break;
        case DQ_BF16: fill_rounded<cu_bf16>(dev, y, value); break;
        case DQ_U8: fill_with<uint8_t>(dev, y, (uint8_t)value); break;
        case DQ_I32: fill_with<int32_t>(dev, y, (int32_t)value); break;
        default: return no_dtype(dev, "fill", y->dtype);
    }
    return dq_cuda_launched(dev, "fill");
}

/* ---- convert ---- */

template <class X, class Y> __global__ void convert_kernel(cu_mat<const X> x, cu_mat<Y> y, bool wide)
{
    CU_EACH_FOUR(r, c, n, y.rows, y.cols)
    {
        cu_four<X> from = cu_take(x.row(r) + c, (int)n, wide);
        cu_four<Y> to;
#pragma unroll
        for (int i = 0; i < 4; i++) cu_store(&to.v[i], cu_load(&from.v[i]));
        cu_put(y.row(r) + c, to, (int)n, wide);
    }
}

template <class X, class Y> static void convert_to(dq_cuda_device *dev, const dq_view *x, const dq_view *y)
{
    CU_LAUNCH(dev, (convert_kernel<X, Y>), cu_grid_fours(y), cu_threads_fours(y), 0, cu_view<const X>(x), cu_view<Y>(y),
              cu_in_fours<X>(x) && cu_in_fours<Y>(y));
}

template <class X> static dq_status convert_from(dq_cuda_device *dev, const dq_view *x, const dq_view *y)
{
    switch (y->dtype) {
        case DQ_F64: convert_to<X, double>(dev, x, y); break;
        case DQ_F32: convert_to<X, float>(dev, x, y); break;
        case DQ_F16: convert_to<X, cu_f16>(dev, x, y); break;
        case DQ_BF16: convert_to<X, cu_bf16>(dev, x, y); break;
        default: return no_dtype(dev, "convert", y->dtype);
    }
    return dq_cuda_launched(dev, "convert");
}

DQ_CUDA_SLOT dq_cuda_convert(void *device, const dq_view *x, const dq_view *y)
{
    CU_ENTER(device);
    if (x->dtype == y->dtype) {
        size_t size = (size_t)cu_element_size(x->dtype);
        if (size == 0) return no_dtype(dev, "convert", x->dtype);
        if (cu_at(x) == cu_at(y) && x->stride == y->stride) return DQ_OK;
        if (x->stride == x->cols && y->stride == y->cols)
            return dq_cuda_check(dev,
                                 cudaMemcpyAsync(cu_at(y), cu_at(x), (size_t)(x->rows * x->cols) * size,
                                                 cudaMemcpyDeviceToDevice, dev->stream),
                                 "convert");
        return dq_cuda_check(dev,
                             cudaMemcpy2DAsync(cu_at(y), (size_t)y->stride * size, cu_at(x), (size_t)x->stride * size,
                                               (size_t)x->cols * size, (size_t)x->rows, cudaMemcpyDeviceToDevice,
                                               dev->stream),
                             "convert");
    }
    switch (x->dtype) {
        case DQ_F64: return convert_from<double>(dev, x, y);
        case DQ_F32: return convert_from<float>(dev, x, y);
        case DQ_F16: return convert_from<cu_f16>(dev, x, y);
        case DQ_BF16: return convert_from<cu_bf16>(dev, x, y);
        default: return no_dtype(dev, "convert", x->dtype);
    }
}

/* ---- axpy, scale_cols ---- */

template <class T> __global__ void axpy_kernel(double alpha, cu_mat<const T> x, cu_mat<T> y, bool wide)
{
    CU_EACH_FOUR(r, c, n, y.rows, y.cols)
    {
        T *at = y.row(r) + c;
        cu_four<T> to = cu_take(at, (int)n, wide), more = cu_take(x.row(x.rows == 1 ? 0 : r) + c, (int)n, wide);
#pragma unroll
        for (int i = 0; i < 4; i++) to.v[i] = (T)((double)to.v[i] + alpha * (double)more.v[i]);
        cu_put(at, to, (int)n, wide);
    }
}

template <class T> static void axpy(dq_cuda_device *dev, double alpha, const dq_view *x, const dq_view *y)
{
    CU_LAUNCH(dev, axpy_kernel<T>, cu_grid_fours(y), cu_threads_fours(y), 0, alpha, cu_view<const T>(x), cu_view<T>(y),
              cu_in_fours<T>(x) && cu_in_fours<T>(y));
}

DQ_CUDA_SLOT dq_cuda_axpy(void *device, double alpha, const dq_view *x, const dq_view *y)
{
    CU_ENTER(device);
    if (y->dtype == DQ_F64)
        axpy<double>(dev, alpha, x, y);
    else
        axpy<float>(dev, alpha, x, y);
    return dq_cuda_launched(dev, "axpy");
}

template <class T> __global__ void scale_cols_kernel(cu_mat<const T> x, const T *v, cu_mat<T> y, bool wide)
{
    CU_EACH_FOUR(r, c, n, y.rows, y.cols)
    {
        cu_four<T> four = cu_take(x.row(r) + c, (int)n, wide), by = cu_take(v + c, (int)n, wide);
#pragma unroll
        for (int i = 0; i < 4; i++) four.v[i] *= by.v[i];
        cu_put(y.row(r) + c, four, (int)n, wide);
    }
}

template <class T> static void scale_cols(dq_cuda_device *dev, const dq_view *x, const dq_view *v, const dq_view *y)
{
    CU_LAUNCH(dev, scale_cols_kernel<T>, cu_grid_fours(y), cu_threads_fours(y), 0, cu_view<const T>(x),
              (const T *)cu_at(v), cu_view<T>(y), cu_in_fours<T>(x) && cu_in_fours<T>(v) && cu_in_fours<T>(y));
}

DQ_CUDA_SLOT dq_cuda_scale_cols(void *device, const dq_view *x, const dq_view *v, const dq_view *y)
{
    CU_ENTER(device);
    if (y->dtype == DQ_F64)
        scale_cols<double>(dev, x, v, y);
    else
        scale_cols<float>(dev, x, v, y);
    return dq_cuda_launched(dev, "scale_cols");
}

/* ---- Adam ---- */

typedef struct adam_rates {
    float gain, beta2, rest, root, epsilon; /* 1 - beta1, beta2, 1 - beta2 */
} adam_rates;

__global__ void adam_kernel(adam_rates a, cu_mat<float> g, cu_mat<float> mean, cu_mat<float> square)
{
    CU_EACH(r, c, g.rows, g.cols)
    {
        float x = g.row(r)[c], m = mean.row(r)[c], v = a.beta2 * square.row(r)[c] + a.rest * x * x;
        m += a.gain * (x - m);
        mean.row(r)[c] = m;
        square.row(r)[c] = v;
        g.row(r)[c] = m / (sqrtf(v) / a.root + a.epsilon);
    }
}

DQ_CUDA_SLOT dq_cuda_adam(void *device, double beta1, double beta2, double root, double epsilon, const dq_view *g,
                          const dq_view *mean, const dq_view *square)
{
    CU_ENTER(device);
    adam_rates a = {(float)(1 - beta1), (float)beta2, (float)(1 - beta2), (float)root, (float)epsilon};
    CU_LAUNCH(dev, adam_kernel, rows_grid(g), CU_THREADS, 0, a, cu_view<float>(g), cu_view<float>(mean),
              cu_view<float>(square));
    return dq_cuda_launched(dev, "adam");
}

/* ---- gathers: elements are moved by size ---- */

template <class T>
__global__ void gather_kernel(bool by_rows, cu_mat<const T> x, const int32_t *index, cu_mat<T> y, dq_cuda_fault *fault)
{
    CU_EACH(r, c, y.rows, y.cols)
    {
        if (by_rows)
            y.row(r)[c] = x.row(cu_checked(index[r], x.rows, fault, CU_OP_GATHER_ROWS, r))[c];
        else
            y.row(r)[c] = x.row(r)[cu_checked(index[c], x.cols, fault, CU_OP_GATHER_COLS, c)];
    }
}

template <class T>
static dq_status gather(dq_cuda_device *dev, bool by_rows, const dq_view *x, const dq_view *index, const dq_view *y)
{
    CU_LAUNCH(dev, gather_kernel<T>, rows_grid(y), CU_THREADS, 0, by_rows, cu_view<const T>(x),
              (const int32_t *)cu_at(index), cu_view<T>(y), dev->fault);
    return dq_cuda_launched(dev, by_rows ? "gather_rows" : "gather_cols");
}

static dq_status gather_any(dq_cuda_device *dev, bool by_rows, const dq_view *x, const dq_view *index, const dq_view *y)
{
    switch (cu_element_size(x->dtype)) {
        case 8: return gather<uint64_t>(dev, by_rows, x, index, y);
        case 4: return gather<uint32_t>(dev, by_rows, x, index, y);
        case 2: return gather<uint16_t>(dev, by_rows, x, index, y);
        case 1: return gather<uint8_t>(dev, by_rows, x, index, y);
        default: return no_dtype(dev, by_rows ? "gather_rows" : "gather_cols", x->dtype);
    }
}

DQ_CUDA_SLOT dq_cuda_gather_rows(void *device, const dq_view *x, const dq_view *index, const dq_view *y)
{
    CU_ENTER(device);
    return gather_any(dev, true, x, index, y);
}

DQ_CUDA_SLOT dq_cuda_gather_cols(void *device, const dq_view *x, const dq_view *index, const dq_view *y)
{
    CU_ENTER(device);
    return gather_any(dev, false, x, index, y);
}

/* ---- numbers for the host ---- */

template <class T> __global__ void nonfinite_kernel(cu_mat<const T> x, unsigned long long *first)
{
    CU_EACH(r, c, x.rows, x.cols)
    {
        auto value = cu_load(x.row(r) + c);
        if (!(fabs(value) < INFINITY)) atomicMin(first, (unsigned long long)(r * x.cols + c));
    }
}

DQ_CUDA_SLOT dq_cuda_find_nonfinite(void *device, const dq_view *x, int64_t *index)
{
    CU_ENTER(device);
    unsigned long long *first = (unsigned long long *)dev->result;
    CU_TRY(dq_cuda_check(dev, cudaMemsetAsync(first, 0xff, sizeof *first, dev->stream), "find_nonfinite"));
    switch (x->dtype) {
        case DQ_F64:
            CU_LAUNCH(dev, nonfinite_kernel<double>, rows_grid(x), CU_THREADS, 0, cu_view<const double>(x), first);
            break;
        case DQ_F32:
            CU_LAUNCH(dev, nonfinite_kernel<float>, rows_grid(x), CU_THREADS, 0, cu_view<const float>(x), first);
            break;
        case DQ_F16:
            CU_LAUNCH(dev, nonfinite_kernel<cu_f16>, rows_grid(x), CU_THREADS, 0, cu_view<const cu_f16>(x), first);
            break;
        case DQ_BF16:
            CU_LAUNCH(dev, nonfinite_kernel<cu_bf16>, rows_grid(x), CU_THREADS, 0, cu_view<const cu_bf16>(x), first);
            break;
        default: return no_dtype(dev, "find_nonfinite", x->dtype);
    }
    CU_TRY(dq_cuda_launched(dev, "find_nonfinite"));
    CU_TRY(dq_cuda_fetch(dev, first, index, sizeof *index)); /* all ones = -1 */
    return DQ_OK;
}

/* A block takes every so-many-th stretch of a row. */
enum { DOT_BLOCKS = 1024, DOT_STRETCH = 8 * CU_THREADS };

template <class T> __global__ void dot_kernel(cu_mat<const T> x, cu_mat<const T> y, int64_t stretches, double *partial)
{
    __shared__ double slots[CU_THREADS / CU_WARP];
    double sum = 0;
    for (int64_t at = blockIdx.x; at < x.rows * stretches; at += gridDim.x) {
        int64_t r = at / stretches, first = at % stretches * DOT_STRETCH;
        const T *p = x.row(r), *q = y.row(r);
#pragma unroll
        for (int i = 0; i < DOT_STRETCH; i += CU_THREADS) {
            int64_t c = first + i + threadIdx.x;
            if (c < x.cols) sum += (double)p[c] * (double)q[c];
        }
    }
    sum = cu_block_sum(sum, slots);
    if (threadIdx.x == 0) partial[blockIdx.x] = sum;
}

__global__ void dot_finish_kernel(const double *partial, unsigned count, double *out)
{
    __shared__ double slots[CU_THREADS / CU_WARP];
    double sum = 0;
    for (unsigned i = threadIdx.x; i < count; i += CU_THREADS) sum += partial[i];
    sum = cu_block_sum(sum, slots);
    if (threadIdx.x == 0) *out = sum;
}

DQ_CUDA_SLOT dq_cuda_dot(void *device, const dq_view *x, const dq_view *y, double *out)
{
    CU_ENTER(device);
    dq_cuda_block partial = {};
    int64_t stretches = cu_div_up(x->cols, DOT_STRETCH);
    unsigned blocks = cu_grid(x->rows * stretches, 1); /* by shape alone: the order of the sum */
    if (blocks > DOT_BLOCKS) blocks = DOT_BLOCKS;
    CU_TRY(dq_cuda_scratch(dev, DOT_BLOCKS * sizeof(double), "dot", &partial));
    double *sums = (double *)partial.address;
    if (x->dtype == DQ_F64)
        CU_LAUNCH(dev, dot_kernel<double>, blocks, CU_THREADS, 0, cu_view<const double>(x), cu_view<const double>(y),
                  stretches, sums);
    else
        CU_LAUNCH(dev, dot_kernel<float>, blocks, CU_THREADS, 0, cu_view<const float>(x), cu_view<const float>(y),
                  stretches, sums);
    CU_LAUNCH(dev, dot_finish_kernel, 1, CU_THREADS, 0, (const double *)sums, blocks, (double *)dev->result);
    dq_status status = dq_cuda_launched(dev, "dot");
    dq_cuda_release(dev, &partial);
    return status == DQ_OK ? dq_cuda_fetch(dev, dev->result, out, sizeof *out) : status;
}

/* ---- diag ---- */

__global__ void diag_kernel(cu_mat<const float> h, float *v) { CU_STRIDE_LOOP(c, h.cols) v[c] = h.row(c)[c]; }

DQ_CUDA_SLOT dq_cuda_diag(void *device, const dq_view *h, const dq_view *v)
{
    CU_ENTER(device);
    CU_LAUNCH(dev, diag_kernel, cu_grid(h->cols, CU_THREADS), CU_THREADS, 0, cu_view<const float>(h),
              (float *)cu_at(v));
    return dq_cuda_launched(dev, "diag");
}
