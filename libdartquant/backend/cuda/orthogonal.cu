/* Stacks of square matrices: QR, its derivative, polar factors. SPDX-License-Identifier: Apache-2.0 */
#include <math.h>

#include "backend/cuda/gemm.h"

static dq_view matrix_of(const dq_view *stack, int64_t g)
{
    int64_t n = stack->cols;
    return cu_part(stack, g * n, n, 0, n);
}

DQ_CUDA_SLOT dq_cuda_qr_batch(void *device, int64_t groups, const dq_view *a, const dq_view *q, const dq_view *r)
{
    for (int64_t g = 0; g < groups; g++) {
        dq_view ag = matrix_of(a, g), qg = matrix_of(q, g), rg = matrix_of(r ? r : q, g);
        CU_TRY(dq_cuda_qr(device, &ag, &qg, r ? &rg : NULL));
    }
    return DQ_OK;
}

/* ---- derivative through QR ---- */

/* c = strict lower triangle of g - g^T */
template <class T> __global__ void skew_kernel(cu_mat<const T> g, cu_mat<T> c)
{
    CU_STRIDE_LOOP(at, c.rows * c.cols)
    {
        int64_t i = at / c.cols, j = at % c.cols;
        c.row(i)[j] = j < i ? g.row(i)[j] - g.row(j)[i] : (T)0;
    }
}

/* x r^T = x in place, for row-major x and upper r: as column-major matrices r^T x^T = x^T with r^T lower, transposed. */
static dq_status solve(dq_cuda_device *dev, const dq_view *r, const dq_view *x)
{
    int n = (int)x->rows;
    cublasStatus_t status;
    if (x->dtype == DQ_F64) {
        double one = 1;
        status = cublasDtrsm(dev->blas, CUBLAS_SIDE_LEFT, CUBLAS_FILL_MODE_LOWER, CUBLAS_OP_T, CUBLAS_DIAG_NON_UNIT, n,
                             n, &one, (const double *)cu_at(r), (int)r->stride, (double *)cu_at(x), (int)x->stride);
    } else {
        float one = 1;
        status = cublasStrsm(dev->blas, CUBLAS_SIDE_LEFT, CUBLAS_FILL_MODE_LOWER, CUBLAS_OP_T, CUBLAS_DIAG_NON_UNIT, n,
                             n, &one, (const float *)cu_at(r), (int)r->stride, (float *)cu_at(x), (int)x->stride);
    }
    return dq_cuda_check_blas(dev, status, "triangular solve");
}

static dq_status grad_of_one(dq_cuda_device *dev, const dq_view *q, const dq_view *r, const dq_view *dq,
                             const dq_view *da, const dq_view *g, const dq_view *c)
{
    unsigned grid = cu_grid(g->rows * g->cols, CU_THREADS);
    CU_TRY(dq_cuda_gemm(dev, 1, 0, 1.0, q, dq, 0.0, g, DQ_MATH_F32));
    if (g->dtype == DQ_F64)
        CU_LAUNCH(dev, skew_kernel<double>, grid, CU_THREADS, 0, cu_view<const double>(g), cu_view<double>(c));
    else
        CU_LAUNCH(dev, skew_kernel<float>, grid, CU_THREADS, 0, cu_view<const float>(g), cu_view<float>(c));
    CU_TRY(dq_cuda_launched(dev, "qr_grad"));
    CU_TRY(dq_cuda_gemm(dev, 0, 0, 1.0, q, c, 0.0, da, DQ_MATH_F32));
    return solve(dev, r, da);
}

DQ_CUDA_SLOT dq_cuda_qr_grad(void *device, int64_t groups, const dq_view *q, const dq_view *r, const dq_view *dq,
                             const dq_view *da)
{
    CU_ENTER(device);
    int64_t n = q->cols;
    uint64_t bytes = (uint64_t)(n * n) * (q->dtype == DQ_F64 ? 8 : 4);
    dq_cuda_block scratch = {};
    CU_TRY(dq_cuda_scratch(dev, 2 * bytes, "qr_grad", &scratch));
    dq_view g = {&scratch, 0, n, n, n, q->dtype, 0}, c = g;
    c.offset = bytes;
    dq_status status = DQ_OK;
    for (int64_t i = 0; i < groups && status == DQ_OK; i++) {
        dq_view qi = matrix_of(q, i), ri = matrix_of(r, i), dqi = matrix_of(dq, i), dai = matrix_of(da, i);
        status = grad_of_one(dev, &qi, &ri, &dqi, &dai, &g, &c);
    }
    dq_cuda_release(dev, &scratch);
    return status;
}

/* ---- polar factor: Newton's iteration x <- (s x + x^-T / s) / 2 with Higham's Frobenius scaling (SIAM J. Sci. Stat.
 * Comput. 7, 1986), in double ---- */

enum { NEWTON_STEPS = 60 };

typedef struct polar_memory {
    int64_t n;
    double *x, *lu, *inverse;
    int *pivots, *info;
    unsigned long long *worst; /* bits of a largest absolute value */
    double *work;
    int words;
} polar_memory;

template <class T> __global__ void widen_kernel(cu_mat<const T> a, double *x)
{
    CU_STRIDE_LOOP(at, a.rows * a.cols) x[at] = (double)a.row(at / a.cols)[at % a.cols];
}
template <class T> __global__ void narrow_kernel(const double *x, cu_mat<T> u)
{
    CU_STRIDE_LOOP(at, u.rows * u.cols) u.row(at / u.cols)[at % u.cols] = (T)x[at];
}
__global__ void eye_kernel(double *x, int64_t n) { CU_STRIDE_LOOP(at, n * n) x[at] = at / n == at % n; }

/* The bits of numbers that are not negative are ordered like the numbers, NaN above all. */
__device__ static unsigned long long worse(unsigned long long worst, double value)
{
    union {
        double d;
        unsigned long long u;
    } x;
    x.d = fabs(value);
    return x.u > worst ? x.u : worst;
}

/* Once for a warp: millions of threads at one address would take longer than what they found out. */
__device__ static void keep_worst(unsigned long long *worst, unsigned long long mine)
{
    for (int step = CU_WARP / 2; step > 0; step /= 2) {
        unsigned long long other = __shfl_xor_sync(CU_ALL, mine, step);
        if (other > mine) mine = other;
    }
    if (threadIdx.x % CU_WARP == 0) atomicMax(worst, mine);
}
static unsigned worst_grid(int64_t n)
{
    unsigned blocks = cu_grid(n * n, CU_THREADS);
    return blocks < 2048 ? blocks : 2048;
}

__global__ void newton_kernel(double *x, const double *inverse, double s, int64_t n, unsigned long long *change)
{
    unsigned long long worst = 0;
    CU_STRIDE_LOOP(at, n * n)
    {
        double old = x[at], next = 0.5 * (s * old + inverse[at % n * n + at / n] / s);
        x[at] = next;
        worst = worse(worst, next - old);
    }
    keep_worst(change, worst);
}

/* With `eye` taken off the diagonal. */
template <class T> __global__ void deviation_kernel(const T *gram, int64_t n, double eye, unsigned long long *deviation)
{
    unsigned long long worst = 0;
    CU_STRIDE_LOOP(at, n * n) worst = worse(worst, (double)gram[at] - (at / n == at % n ? eye : 0.0));
    keep_worst(deviation, worst);
}

static dq_status norm_of(dq_cuda_device *dev, const dq_cuda_block *owner, const double *x, int64_t n, double *out)
{
    dq_view v = {(void *)owner, (uint64_t)((const char *)x - owner->address), n, n, n, DQ_F64, 0};
    CU_TRY(dq_cuda_dot(dev, &v, &v, out));
    *out = sqrt(*out);
    return DQ_OK;
}

static dq_status invert(dq_cuda_device *dev, const polar_memory *m, bool *singular)
{
    int n = (int)m->n, failed = 0;
    unsigned grid = cu_grid(m->n * m->n, CU_THREADS);
    CU_TRY(dq_cuda_check(
        dev, cudaMemcpyAsync(m->lu, m->x, (size_t)(m->n * m->n) * 8, cudaMemcpyDeviceToDevice, dev->stream), "polar"));
    CU_LAUNCH(dev, eye_kernel, grid, CU_THREADS, 0, m->inverse, m->n);
    CU_TRY(dq_cuda_launched(dev, "polar"));
    CU_TRY(dq_cuda_check_solver(dev, cusolverDnDgetrf(dev->solver, n, n, m->lu, n, m->work, m->pivots, m->info), "LU"));
    CU_TRY(dq_cuda_fetch(dev, m->info, &failed, sizeof failed));
    *singular = failed > 0;
    if (failed < 0) return dq_cuda_fail(dev, DQ_E_BACKEND, failed, "polar: LU refused argument %d", -failed);
    if (failed) return DQ_OK;
    return dq_cuda_check_solver(
        dev, cusolverDnDgetrs(dev->solver, CUBLAS_OP_N, n, n, m->lu, n, m->pivots, m->inverse, n, m->info), "LU");
}

/* *good = false when a matrix is singular to working precision or not finite. */
static dq_status newton(dq_cuda_device *dev, const dq_cuda_block *owner, const polar_memory *m, bool *good)
{
    int64_t n = m->n;
    *good = false;
    for (int step = 0; step < NEWTON_STEPS; step++) {
        double size, other, change;
        bool singular;
        CU_TRY(norm_of(dev, owner, m->x, n, &size));
        if (!isfinite(size) || size == 0) return DQ_OK;
        CU_TRY(invert(dev, m, &singular));
        if (singular) return DQ_OK;
        CU_TRY(norm_of(dev, owner, m->inverse, n, &other));
        if (!isfinite(other) || size * other > 1e15 * (double)n) return DQ_OK;
        CU_TRY(dq_cuda_check(dev, cudaMemsetAsync(m->worst, 0, 8, dev->stream), "polar"));
        CU_LAUNCH(dev, newton_kernel, worst_grid(n), CU_THREADS, 0, m->x, (const double *)m->inverse,
                  sqrt(other / size), n, m->worst);
        CU_TRY(dq_cuda_launched(dev, "polar"));
        CU_TRY(dq_cuda_fetch(dev, m->worst, &change, sizeof change));
        *good = change < 1e-15 * (double)n || (step > 12 && change < 1e-13); /* as near as rounding lets it come */
        if (*good) return DQ_OK;
    }
    return DQ_OK;
}

template <class T>
static dq_status worst_of(dq_cuda_device *dev, const polar_memory *m, const T *gram, double eye, double *out)
{
    CU_TRY(dq_cuda_check(dev, cudaMemsetAsync(m->worst, 0, 8, dev->stream), "polar"));
    CU_LAUNCH(dev, deviation_kernel<T>, worst_grid(m->n), CU_THREADS, 0, gram, m->n, eye, m->worst);
    CU_TRY(dq_cuda_launched(dev, "polar"));
    return dq_cuda_fetch(dev, m->worst, out, sizeof *out);
}

static dq_status deviation(dq_cuda_device *dev, const dq_cuda_block *owner, const polar_memory *m, double *out)
{
    int64_t n = m->n;
    dq_view x = {(void *)owner, (uint64_t)((char *)m->x - owner->address), n, n, n, DQ_F64, 0}, gram = x;
    gram.offset = (uint64_t)((char *)m->lu - owner->address);
    CU_TRY(dq_cuda_gemm(dev, 1, 0, 1.0, &x, &x, 0.0, &gram, DQ_MATH_F32));
    return worst_of(dev, m, (const double *)m->lu, 1.0, out);
}

/* ---- near an orthogonal matrix: fp32, and products of 16 bits where what they are good for is enough ---- */

enum { TILE = 32 };

/* The upper triangle from the lower one, 1 taken off the diagonal: a block a pair of tiles. */
__global__ void mirror_excess_kernel(float *x, int64_t n)
{
    __shared__ float tile[TILE][TILE + 1];
    int64_t row = (int64_t)blockIdx.y * TILE, col = (int64_t)blockIdx.x * TILE;
    int lane = threadIdx.x % TILE, first = threadIdx.x / TILE, step = blockDim.x / TILE;
    if (col > row) return;
    for (int i = first; i < TILE; i += step)
        if (row + i < n && col + lane <= row + i) tile[i][lane] = x[(row + i) * n + col + lane];
    __syncthreads();
    for (int i = first; i < TILE; i += step) {
        int64_t r = col + i, c = row + lane;
        if (r >= n || c >= n) continue;
        if (r < c) x[r * n + c] = tile[lane][i];
        if (r == c) x[r * n + c] = tile[i][i] - 1.0f;
    }
}

__global__ void minus_identity_kernel(float *x, int64_t n) { CU_STRIDE_LOOP(i, n) x[i * n + i] -= 1.0f; }

/* e = x^T x - I. The split product keeps 22 bits of each factor, which is as good as rounding in fp32 is, in a tenth of the
 * time. */
static dq_status excess(dq_cuda_device *dev, const dq_view *x, const dq_view *e)
{
    int64_t n = x->cols;
    float *out = (float *)cu_at(e);
    if (dev->syrk_split && n >= TILE) {
        unsigned tiles = (unsigned)cu_div_up(n, TILE);
        CU_TRY(dq_cuda_syrk_split(dev, 1.0, x, 0.0, e));
        CU_LAUNCH(dev, mirror_excess_kernel, dim3(tiles, tiles), CU_THREADS, 0, out, n);
    } else {
        CU_TRY(dq_cuda_gemm(dev, 1, 0, 1.0, x, x, 0.0, e, DQ_MATH_F32));
        CU_LAUNCH(dev, minus_identity_kernel, cu_grid(n, CU_THREADS), CU_THREADS, 0, out, n);
    }
    return dq_cuda_launched(dev, "polar");
}

static dq_status frobenius(dq_cuda_device *dev, const dq_view *x, double *out)
{
    CU_TRY(dq_cuda_dot(dev, x, x, out));
    *out = sqrt(*out);
    return DQ_OK;
}

/* Newton-Schulz: x <- x (I - e / 2), which squares the distance, for singular values below sqrt 3. That they are is known from
 * the largest eigenvalue of e, which is at most |e^4|_F^(1/4); bf16 is good enough to tell 0.9 from 2. The last steps change
 * x by so little that bf16 products do, and under DQ_MATH_BF16 all: e itself is always good to fp32. *done = false where the
 * bound says nothing; u then is undefined. *error: largest magnitude in the last e, which is that of u. */
static dq_status newton_schulz(dq_cuda_device *dev, const dq_cuda_block *owner, const polar_memory *m, int32_t math,
                               const dq_view *a, const dq_view *u, bool *done, double *error)
{
    enum { STEPS = 12 };
    int64_t n = m->n;
    uint64_t square = (uint64_t)(n * n) * 4;
    dq_view x = {(void *)owner, (uint64_t)((char *)m->lu - owner->address), n, n, n, DQ_F32, 0}, e = x, t = x, old;
    double size, before, little = 1e-4 * sqrt((double)n);
    *done = false;
    e.offset += square;
    t.offset = (uint64_t)((char *)m->inverse - owner->address);
    old = t;
    old.offset += square;
    CU_TRY(dq_cuda_convert(dev, a, &x));
    CU_TRY(excess(dev, &x, &e));
    CU_TRY(dq_cuda_gemm(dev, 0, 0, 1.0, &e, &e, 0.0, &t, DQ_MATH_BF16));
    CU_TRY(dq_cuda_gemm(dev, 0, 0, 1.0, &t, &t, 0.0, &old, DQ_MATH_BF16));
    CU_TRY(frobenius(dev, &old, &size));
    if (!(sqrt(sqrt(size)) < 0.9)) return DQ_OK;
    CU_TRY(frobenius(dev, &e, &size));
    for (int step = 0; step < STEPS; step++) {
        before = size;
        CU_TRY(dq_cuda_convert(dev, &x, &old));
        CU_TRY(dq_cuda_gemm(dev, 0, 0, -0.5, &old, &e, 1.0, &x, size < little ? DQ_MATH_BF16 : math));
        CU_TRY(excess(dev, &x, &e));
        CU_TRY(frobenius(dev, &e, &size));
        if (!(size < 0.25 * before)) break; /* what is left is rounding */
    }
    if (!(size < 1e-6 * (double)n)) return DQ_OK;
    *done = true;
    CU_TRY(worst_of(dev, m, (const float *)cu_at(&e), 0.0, error));
    return dq_cuda_convert(dev, &x, u);
}

static dq_status polar_of_one(dq_cuda_device *dev, const dq_cuda_block *owner, const polar_memory *m, int32_t math,
                              const dq_view *a, const dq_view *u, double *error)
{
    unsigned grid = cu_grid(m->n * m->n, CU_THREADS);
    bool good = false;
    double one = INFINITY;
    if (a->dtype == DQ_F32) CU_TRY(newton_schulz(dev, owner, m, math, a, u, &good, &one));
    if (!good) {
        if (a->dtype == DQ_F64)
            CU_LAUNCH(dev, widen_kernel<double>, grid, CU_THREADS, 0, cu_view<const double>(a), m->x);
        else
            CU_LAUNCH(dev, widen_kernel<float>, grid, CU_THREADS, 0, cu_view<const float>(a), m->x);
        CU_TRY(dq_cuda_launched(dev, "polar"));
        CU_TRY(newton(dev, owner, m, &good));
        one = INFINITY;
        if (good) {
            if (u->dtype == DQ_F64)
                CU_LAUNCH(dev, narrow_kernel<double>, grid, CU_THREADS, 0, (const double *)m->x, cu_view<double>(u));
            else
                CU_LAUNCH(dev, narrow_kernel<float>, grid, CU_THREADS, 0, (const double *)m->x, cu_view<float>(u));
            if (u->dtype == DQ_F32) /* what was stored is what counts */
                CU_LAUNCH(dev, widen_kernel<float>, grid, CU_THREADS, 0, cu_view<const float>(u), m->x);
            CU_TRY(dq_cuda_launched(dev, "polar"));
            CU_TRY(deviation(dev, owner, m, &one));
        }
    }
    if (!(one <= *error)) *error = one;
    return DQ_OK;
}

DQ_CUDA_SLOT dq_cuda_polar(void *device, int64_t groups, int32_t math, const dq_view *a, const dq_view *u,
                           double *error)
{
    CU_ENTER(device);
    int64_t n = a->cols;
    uint64_t square = (uint64_t)(n * n) * 8;
    polar_memory m = {};
    dq_cuda_block scratch = {}, work = {};
    m.n = n;
    if (n > 32768) return dq_cuda_fail(dev, DQ_E_UNSUPPORTED, 0, "polar: order %lld (32768 at most)", (long long)n);
    CU_TRY(dq_cuda_scratch(dev, 3 * square + (uint64_t)n * 4 + 64, "polar", &scratch));
    m.x = (double *)scratch.address;
    m.lu = m.x + n * n;
    m.inverse = m.lu + n * n;
    m.worst = (unsigned long long *)(m.inverse + n * n);
    m.info = (int *)(m.worst + 1);
    m.pivots = m.info + 4;
    dq_status status = dq_cuda_check_solver(
        dev, cusolverDnDgetrf_bufferSize(dev->solver, (int)n, (int)n, m.lu, (int)n, &m.words), "LU");
    if (status == DQ_OK) status = dq_cuda_scratch(dev, (uint64_t)m.words * 8, "LU", &work);
    m.work = (double *)work.address;
    *error = 0;
    for (int64_t g = 0; g < groups && status == DQ_OK; g++) {
        dq_view ag = matrix_of(a, g), ug = matrix_of(u, g);
        status = polar_of_one(dev, &scratch, &m, math, &ag, &ug, error);
    }
    dq_cuda_release(dev, &work);
    dq_cuda_release(dev, &scratch);
    return status;
}
