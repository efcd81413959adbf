/* Hadamard transforms of order k 2^m. A block holds one vector in shared memory: the Walsh-Hadamard part goes four
 * butterfly levels at a time through registers, then the k pieces are mixed by the table's signs.
 * SPDX-License-Identifier: Apache-2.0 */
#include "backend/cuda/hadamard.h"

enum { LEVELS = 4, RADIX = 1 << LEVELS, MAX_MIX = 172 };

typedef struct hadamard_args {
    int n, k, size, inner, transpose; /* n = k * size, size = 2^m */
    const int8_t *hk;                 /* k * k signs on the card, NULL when k == 1 */
    double scale;
} hadamard_args;

/* Levels [low, low + count) of all size-long pieces of v[0, n). */
template <class T> __device__ static void butterflies(T *v, int n, int low, int count)
{
    int radix = 1 << count, step = 1 << low;
    for (int i = threadIdx.x; i < n / radix; i += blockDim.x) {
        int base = (i / step) * (step * radix) + i % step;
        T x[RADIX];
#pragma unroll
        for (int j = 0; j < RADIX; j++)
            if (j < radix) x[j] = v[base + j * step];
#pragma unroll
        for (int half = 1; half < RADIX; half *= 2)
            if (half < radix) {
#pragma unroll
                for (int j = 0; j < RADIX; j++)
                    if (j < radix && !(j & half)) {
                        T a = x[j], b = x[j | half];
                        x[j] = a + b;
                        x[j | half] = a - b;
                    }
            }
#pragma unroll
        for (int j = 0; j < RADIX; j++)
            if (j < radix) v[base + j * step] = x[j];
    }
    __syncthreads();
}

/* out[a] = sum_b H[a][b] v[b] over the k pieces (H^T when asked), scaled, to strided global memory. */
template <class T> __device__ static void mix_out(const hadamard_args &a, const T *v, const int8_t *hk, T *out)
{
    for (int i = threadIdx.x; i < a.n; i += blockDim.x) {
        int piece = i / a.size, at = i % a.size;
        T sum = 0;
        if (a.k == 1)
            sum = v[i];
        else
            for (int b = 0; b < a.k; b++) {
                int sign = a.transpose ? hk[b * a.k + piece] : hk[piece * a.k + b];
                sum += sign > 0 ? v[b * a.size + at] : -v[b * a.size + at];
            }
        out[(int64_t)i * a.inner] = (T)(sum * (T)a.scale);
    }
}

template <class T> __global__ void hadamard_kernel(hadamard_args a, cu_mat<const T> x, cu_mat<T> y)
{
    CU_DYNAMIC_SHARED(shared);
    T *v = (T *)shared;
    int8_t *hk = (int8_t *)(v + a.n);
    int64_t outer = x.cols / ((int64_t)a.n * a.inner), vectors = outer * a.inner;
    for (int i = threadIdx.x; i < (a.k > 1 ? a.k * a.k : 0); i += blockDim.x) hk[i] = a.hk[i];
    for (int64_t at = blockIdx.x; at < x.rows * vectors; at += gridDim.x) {
        int64_t r = at / vectors, o = at % vectors / a.inner, in = at % a.inner;
        int64_t first = o * a.n * a.inner + in;
        __syncthreads(); /* the last vector was read by all */
        for (int i = threadIdx.x; i < a.n; i += blockDim.x) v[i] = x.row(r)[first + (int64_t)i * a.inner];
        __syncthreads();
        int level = 0;
        for (int left = a.size; left > 1;) {
            int count = 0;
            while (count < LEVELS && left > 1) {
                left /= 2;
                count++;
            }
            butterflies(v, a.n, level, count);
            level += count;
        }
        mix_out(a, v, hk, y.row(r) + first);
    }
}

template <class T>
static dq_status transform(dq_cuda_device *dev, const hadamard_args &a, const dq_view *x, const dq_view *y)
{
    int64_t bytes = (int64_t)a.n * (int64_t)sizeof(T) + (a.k > 1 ? a.k * a.k : 0);
    if (bytes > dev->max_shared)
        return dq_cuda_fail(dev, DQ_E_UNSUPPORTED, 0,
                            "hadamard: order %d needs %lld bytes of shared memory, there are %d", a.n, (long long)bytes,
                            dev->max_shared);
    CU_TRY(cu_allow_shared(dev, hadamard_kernel<T>, bytes));
    int threads = a.n / RADIX < 32 ? 32 : a.n / RADIX > 512 ? 512 : (a.n / RADIX + 31) / 32 * 32;
    CU_LAUNCH(dev, hadamard_kernel<T>, cu_grid(x->rows * (x->cols / a.n), 1), threads, (size_t)bytes, a,
              cu_view<const T>(x), cu_view<T>(y));
    return dq_cuda_launched(dev, "hadamard");
}

/* The table of signs on the card, address NULL when there is none. */
static dq_status bring_table(dq_cuda_device *dev, const dq_hadamard_desc *d, dq_cuda_block *table)
{
    if (d->k == 1) return DQ_OK;
    CU_TRY(dq_cuda_scratch(dev, (uint64_t)(d->k * d->k), "hadamard", table));
    dq_status status = dq_cuda_upload(dev, table, 0, d->hk, (uint64_t)(d->k * d->k));
    if (status != DQ_OK) dq_cuda_release(dev, table);
    return status;
}

DQ_CUDA_SLOT dq_cuda_hadamard(void *device, const dq_hadamard_desc *d, const dq_view *x, const dq_view *y)
{
    CU_ENTER(device);
    if (d->k > MAX_MIX || d->n > (1 << 20) || d->inner > (1 << 30))
        return dq_cuda_fail(dev, DQ_E_UNSUPPORTED, 0, "hadamard: order %lld with a factor of %lld (%d at most)",
                            (long long)d->n, (long long)d->k, (int)MAX_MIX);
    dq_cuda_block table = {};
    CU_TRY(bring_table(dev, d, &table));
    hadamard_args a = {
        (int)d->n, (int)d->k, (int)(d->n / d->k), (int)d->inner, d->transpose, (const int8_t *)table.address, d->scale};
    dq_status status = dq_cuda_hadamard_is_fast(dev, d, x) ? dq_cuda_hadamard_fast(dev, d, a.hk, NULL, x, y, NULL)
                       : x->dtype == DQ_F64                ? transform<double>(dev, a, x, y)
                                                           : transform<float>(dev, a, x, y);
    dq_cuda_release(dev, &table);
    return status;
}

/* Every vector quantized: to y, or to codes with their grid. */
static dq_status quantized(dq_cuda_device *dev, const char *op, const dq_hadamard_desc *h, const dq_fake_quant_desc *d,
                           const dq_view *x, const dq_view *y, const dq_view *code_grid)
{
    if (!dq_cuda_hadamard_is_fast(dev, h, x) || d->group != h->n)
        return dq_cuda_fail(dev, DQ_E_UNSUPPORTED, 0, "%s: order %lld, groups of %lld", op, (long long)h->n,
                            (long long)d->group);
    dq_cuda_block table = {};
    CU_TRY(bring_table(dev, h, &table));
    dq_status status = dq_cuda_hadamard_fast(dev, h, (const int8_t *)table.address, d, x, y, code_grid);
    dq_cuda_release(dev, &table);
    return status;
}

DQ_CUDA_SLOT dq_cuda_hadamard_quant(void *device, const dq_hadamard_desc *h, const dq_fake_quant_desc *d,
                                    const dq_view *x, const dq_view *y)
{
    CU_ENTER(device);
    return quantized(dev, "hadamard_quant", h, d, x, y, NULL);
}

DQ_CUDA_SLOT dq_cuda_hadamard_rows(void *device, const dq_hadamard_desc *h, const dq_fake_quant_desc *d,
                                   const dq_view *x, const dq_view *codes, const dq_view *grid)
{
    CU_ENTER(device);
    return quantized(dev, "hadamard_rows", h, d, x, codes, grid);
}
