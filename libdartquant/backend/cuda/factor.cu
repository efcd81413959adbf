/* Factorizations through cuSOLVER and cuBLAS. SPDX-License-Identifier: Apache-2.0 */
#include <math.h>

#include "backend/cuda/kernel.h"

/* ---- the GPTQ factor ----
 * With J the matrix that reverses order, A = M M^T for upper M exactly when J A J = L L^T for lower L = J M J; then
 * U = M^-1 = J L^-1 J. One Cholesky and one triangular inverse instead of Cholesky, inverse, Cholesky. */

enum { STRIPE = 2048 /* narrower ones take a triangular solve as many steps for less work */ };

/* The lower triangle of a (column-major) = J P A P^T J + damp: damped, permuted, reversed. */
__global__ void assemble_kernel(cu_mat<const float> h, const int32_t *perm, double damp, double *a,
                                dq_cuda_fault *fault)
{
    int64_t n = h.rows;
    CU_EACH(col, row, n, n)
    {
        if (row < col) continue;
        int64_t i = n - 1 - row, j = n - 1 - col;
        int64_t p = perm ? cu_checked(perm[i], n, fault, CU_OP_FACTOR, i) : i;
        int64_t q = perm ? cu_checked(perm[j], n, fault, CU_OP_FACTOR, j) : j;
        double value = p >= q ? h.row(p)[q] : h.row(q)[p];
        if (i == j) value = (value == 0 ? 1.0 : value) + damp;
        a[row + col * n] = value;
    }
}

__global__ void identity_kernel(double *x, int64_t n) { CU_STRIDE_LOOP(i, n) x[i * (n + 1)] = 1; }

/* u = J L^-1 J from x (column-major) = L^-T, of which the upper triangle counts: x from its end to its beginning. */
__global__ void reverse_kernel(const double *x, cu_mat<float> u)
{
    int64_t n = u.rows;
    CU_EACH(r, c, n, n) u.row(r)[c] = c < r ? 0.0f : (float)x[(n - 1 - c) + (n - 1 - r) * n];
}

/* Lowers *info to i + 1 for a diagonal entry i that is not positive or not finite: a NaN pivot need not be noticed by the
 * factorization itself. */
__global__ void pivots_kernel(const double *a, int64_t n, unsigned long long *first)
{
    CU_STRIDE_LOOP(i, n)
    {
        double pivot = a[i + i * n];
        if (!(pivot > 0 && pivot < INFINITY)) atomicMin(first, (unsigned long long)i + 1);
    }
}

typedef struct factor_memory {
    dq_cuda_block a, x, work, info;
} factor_memory;

static void release(dq_cuda_device *dev, factor_memory *m)
{
    dq_cuda_release(dev, &m->a);
    dq_cuda_release(dev, &m->x);
    dq_cuda_release(dev, &m->work);
    dq_cuda_release(dev, &m->info);
}

/* Cholesky's verdict, and our own on the pivots, in one wait. */
static dq_status check_pivots(dq_cuda_device *dev, const double *a, int64_t n, const int *info, int *failed)
{
    struct {
        unsigned long long first;
        int info, none;
    } found;
    char *result = (char *)dev->result;
    CU_TRY(dq_cuda_check(dev, cudaMemsetAsync(result, 0xff, sizeof found, dev->stream), "gptq_factor"));
    CU_LAUNCH(dev, pivots_kernel, cu_grid(n, CU_THREADS), CU_THREADS, 0, a, n, (unsigned long long *)result);
    CU_TRY(dq_cuda_launched(dev, "gptq_factor"));
    CU_TRY(dq_cuda_check(dev, cudaMemcpyAsync(result + 8, info, sizeof *info, cudaMemcpyDeviceToDevice, dev->stream),
                         "gptq_factor"));
    CU_TRY(dq_cuda_fetch(dev, result, &found, sizeof found));
    if (found.info < 0)
        return dq_cuda_fail(dev, DQ_E_BACKEND, found.info, "gptq_factor: Cholesky refused argument %d", -found.info);
    *failed = found.info > 0 ? found.info : found.first == ~0ull ? 0 : (int)found.first;
    return DQ_OK;
}

/* x = L^-T, column-major, of the lower triangle a = L: the upper triangle of x, in stripes of columns, each of which ends at its
 * last row. So zeros are hardly worked on: n^3 / 3 operations and not n^3. */
static dq_status invert(dq_cuda_device *dev, const double *a, int n, double *x)
{
    double one = 1;
    int64_t bytes = (int64_t)n * n * (int64_t)sizeof(double);
    CU_TRY(dq_cuda_check(dev, cudaMemsetAsync(x, 0, (size_t)bytes, dev->stream), "gptq_factor"));
    CU_LAUNCH(dev, identity_kernel, cu_grid(n, CU_THREADS), CU_THREADS, 0, x, (int64_t)n);
    CU_TRY(dq_cuda_launched(dev, "gptq_factor"));
    for (int first = 0; first < n; first += STRIPE) {
        int columns = n - first < STRIPE ? n - first : STRIPE;
        CU_TRY(dq_cuda_check_blas(dev,
                                  cublasDtrsm(dev->blas, CUBLAS_SIDE_LEFT, CUBLAS_FILL_MODE_LOWER, CUBLAS_OP_T,
                                              CUBLAS_DIAG_NON_UNIT, first + columns, columns, &one, a, n,
                                              x + (int64_t)first * n, n),
                                  "triangular inverse"));
    }
    return DQ_OK;
}

/* L in m->a when *info is 0. */
static dq_status cholesky(dq_cuda_device *dev, const dq_view *h, const dq_view *perm, double damp, int64_t *info,
                          factor_memory *m)
{
    int n = (int)h->rows, words = 0, failed = 0;
    CU_TRY(dq_cuda_scratch(dev, (uint64_t)n * (uint64_t)n * sizeof(double), "gptq_factor", &m->a));
    CU_TRY(dq_cuda_scratch(dev, 16, "gptq_factor", &m->info));
    double *a = (double *)m->a.address;
    int *verdict = (int *)m->info.address;
    CU_LAUNCH(dev, assemble_kernel, cu_grid_rows(h), CU_THREADS, 0, cu_view<const float>(h),
              perm ? (const int32_t *)cu_at(perm) : NULL, damp, a, dev->fault);
    CU_TRY(dq_cuda_launched(dev, "gptq_factor"));
    CU_TRY(dq_cuda_check_solver(dev, cusolverDnDpotrf_bufferSize(dev->solver, CUBLAS_FILL_MODE_LOWER, n, a, n, &words),
                                "Cholesky"));
    CU_TRY(dq_cuda_scratch(dev, (uint64_t)words * sizeof(double), "Cholesky", &m->work));
    CU_TRY(dq_cuda_check_solver(
        dev, cusolverDnDpotrf(dev->solver, CUBLAS_FILL_MODE_LOWER, n, a, n, (double *)m->work.address, words, verdict),
        "Cholesky"));
    CU_TRY(check_pivots(dev, a, n, verdict, &failed));
    *info = failed == 0 ? 0 : (int64_t)n - failed + 1; /* pivots are taken from the last to the first */
    dq_cuda_release(dev, &m->work);
    return DQ_OK;
}

static dq_status factor(dq_cuda_device *dev, const dq_view *h, const dq_view *perm, double damp, const dq_view *u,
                        int64_t *info, factor_memory *m)
{
    int n = (int)h->rows;
    CU_TRY(cholesky(dev, h, perm, damp, info, m));
    if (*info) return DQ_OK;
    CU_TRY(dq_cuda_scratch(dev, (uint64_t)n * (uint64_t)n * sizeof(double), "gptq_factor", &m->x));
    CU_TRY(invert(dev, (const double *)m->a.address, n, (double *)m->x.address));
    CU_LAUNCH(dev, reverse_kernel, cu_grid_rows(u), CU_THREADS, 0, (const double *)m->x.address, cu_view<float>(u));
    return dq_cuda_launched(dev, "gptq_factor");
}

/* ---- the root: M itself, and inverses of its diagonal blocks alone ---- */

enum { TILE = 32, MOST_BLOCK = 128 };

/* M = J L J above the diagonal blocks, zeros below the diagonal; by tiles, since it turns rows into columns. */
__global__ void root_kernel(const double *l, int64_t block, cu_mat<float> root)
{
    __shared__ float tile[TILE][TILE + 1];
    int64_t n = root.rows, row = (int64_t)blockIdx.y * TILE, col = (int64_t)blockIdx.x * TILE;
    int lane = threadIdx.x % TILE, first = threadIdx.x / TILE, step = blockDim.x / TILE;
    for (int i = first; i < TILE; i += step) {
        int64_t r = row + lane, c = col + i;
        tile[i][lane] = r <= c && c < n ? (float)l[(n - 1 - r) + (n - 1 - c) * n] : 0.0f;
    }
    __syncthreads();
    for (int i = first; i < TILE; i += step) {
        int64_t r = row + i, c = col + lane;
        if (r < n && c < n && (c < r || r / block != c / block)) root.row(r)[c] = tile[lane][i];
    }
}

/* The inverse of one diagonal block of M: a thread a column, from its diagonal upwards; columns in shared memory. */
__global__ void diagonal_kernel(const double *l, int64_t block, cu_mat<float> root)
{
    CU_DYNAMIC_SHARED(shared);
    double *x = (double *)shared;
    int64_t n = root.rows, begin = blockIdx.x * block;
    int width = (int)(n - begin < block ? n - begin : block), column = threadIdx.x;
    const double *m = l + (n - 1 - begin) * (n + 1); /* m_ik lies i + k n before it */
    if (column >= width) return;
    for (int i = width - 1; i >= 0; i--) {
        double sum = i == column ? -1 : 0;
        for (int k = i + 1; k < width; k++) sum += m[-(i + k * n)] * x[k * width + column];
        x[i * width + column] = i > column ? 0 : -sum / m[-(i + i * n)];
    }
    for (int i = 0; i <= column; i++) root.row(begin + i)[begin + column] = (float)x[i * width + column];
}

static dq_status make_root(dq_cuda_device *dev, const dq_view *h, const dq_view *perm, double damp, int64_t block,
                           const dq_view *root, int64_t *info, factor_memory *m)
{
    int64_t n = h->rows, shared = block * block * (int64_t)sizeof(double);
    unsigned tiles = (unsigned)cu_div_up(n, TILE);
    CU_TRY(cholesky(dev, h, perm, damp, info, m));
    if (*info) return DQ_OK;
    const double *l = (const double *)m->a.address;
    CU_LAUNCH(dev, root_kernel, dim3(tiles, tiles), CU_THREADS, 0, l, block, cu_view<float>(root));
    CU_TRY(dq_cuda_launched(dev, "gptq_root"));
    CU_TRY(cu_allow_shared(dev, diagonal_kernel, shared));
    CU_LAUNCH(dev, diagonal_kernel, (unsigned)cu_div_up(n, block), MOST_BLOCK, (size_t)shared, l, block,
              cu_view<float>(root));
    return dq_cuda_launched(dev, "gptq_root");
}

static dq_status check_order(dq_cuda_device *dev, const char *op, int64_t n)
{
    if (n <= 46340) return DQ_OK;
    return dq_cuda_fail(dev, DQ_E_UNSUPPORTED, 0, "%s: order %lld (46340 at most)", op, (long long)n);
}

DQ_CUDA_SLOT dq_cuda_gptq_factor(void *device, const dq_view *h, const dq_view *perm, double damp, const dq_view *u,
                                 int64_t *info)
{
    CU_ENTER(device);
    CU_TRY(check_order(dev, "gptq_factor", h->rows));
    factor_memory m = {};
    dq_status status = factor(dev, h, perm, damp, u, info, &m);
    release(dev, &m);
    return status;
}

DQ_CUDA_SLOT dq_cuda_gptq_root(void *device, const dq_view *h, const dq_view *perm, double damp, int64_t block,
                               const dq_view *root, int64_t *info)
{
    CU_ENTER(device);
    CU_TRY(check_order(dev, "gptq_root", h->rows));
    if (block > MOST_BLOCK || block * block * (int64_t)sizeof(double) > dev->max_shared - 1024)
        return dq_cuda_fail(dev, DQ_E_UNSUPPORTED, 0, "gptq_root: blocks of %lld columns", (long long)block);
    factor_memory m = {};
    dq_status status = make_root(dev, h, perm, damp, block, root, info, &m);
    release(dev, &m);
    return status;
}

/* ---- QR: double throughout, which costs little at these sizes and serves F32 as well ---- */

template <class T> __global__ void columns_kernel(cu_mat<const T> a, double *out)
{
    CU_STRIDE_LOOP(at, a.rows * a.cols) out[at] = (double)a.row(at % a.rows)[at / a.rows];
}

template <class T> __global__ void rows_kernel(const double *x, bool upper, cu_mat<T> out)
{
    CU_STRIDE_LOOP(at, out.rows * out.cols)
    {
        int64_t r = at / out.cols, c = at % out.cols;
        out.row(r)[c] = upper && c < r ? (T)0 : (T)x[r + c * out.rows];
    }
}

static dq_status put_rows(dq_cuda_device *dev, const double *x, bool upper, const dq_view *out)
{
    unsigned grid = cu_grid(out->rows * out->cols, CU_THREADS);
    if (out->dtype == DQ_F64)
        CU_LAUNCH(dev, rows_kernel<double>, grid, CU_THREADS, 0, x, upper, cu_view<double>(out));
    else
        CU_LAUNCH(dev, rows_kernel<float>, grid, CU_THREADS, 0, x, upper, cu_view<float>(out));
    return dq_cuda_launched(dev, "qr");
}

static dq_status householder(dq_cuda_device *dev, const dq_view *a, const dq_view *q, const dq_view *r,
                             factor_memory *m)
{
    int n = (int)a->rows, words = 0, more = 0, failed = 0;
    unsigned grid = cu_grid((int64_t)n * n, CU_THREADS);
    CU_TRY(dq_cuda_scratch(dev, (uint64_t)n * (uint64_t)n * sizeof(double), "qr", &m->a));
    CU_TRY(dq_cuda_scratch(dev, (uint64_t)n * sizeof(double), "qr", &m->x));
    CU_TRY(dq_cuda_scratch(dev, 16, "qr", &m->info));
    double *x = (double *)m->a.address, *tau = (double *)m->x.address;
    int *info = (int *)m->info.address;
    if (a->dtype == DQ_F64)
        CU_LAUNCH(dev, columns_kernel<double>, grid, CU_THREADS, 0, cu_view<const double>(a), x);
    else
        CU_LAUNCH(dev, columns_kernel<float>, grid, CU_THREADS, 0, cu_view<const float>(a), x);
    CU_TRY(dq_cuda_launched(dev, "qr"));
    CU_TRY(dq_cuda_check_solver(dev, cusolverDnDgeqrf_bufferSize(dev->solver, n, n, x, n, &words), "qr"));
    CU_TRY(dq_cuda_check_solver(dev, cusolverDnDorgqr_bufferSize(dev->solver, n, n, n, x, n, tau, &more), "qr"));
    if (more > words) words = more;
    CU_TRY(dq_cuda_scratch(dev, (uint64_t)words * sizeof(double), "qr", &m->work));
    double *work = (double *)m->work.address;
    CU_TRY(dq_cuda_check_solver(dev, cusolverDnDgeqrf(dev->solver, n, n, x, n, tau, work, words, info), "qr"));
    CU_TRY(dq_cuda_fetch(dev, m->info.address, &failed, sizeof failed));
    if (failed) return dq_cuda_fail(dev, DQ_E_BACKEND, failed, "qr: argument %d was refused", -failed);
    if (r) CU_TRY(put_rows(dev, x, true, r));
    CU_TRY(dq_cuda_check_solver(dev, cusolverDnDorgqr(dev->solver, n, n, n, x, n, tau, work, words, info), "qr"));
    return put_rows(dev, x, false, q);
}

DQ_CUDA_SLOT dq_cuda_qr(void *device, const dq_view *a, const dq_view *q, const dq_view *r)
{
    CU_ENTER(device);
    CU_TRY(check_order(dev, "qr", a->rows));
    factor_memory m = {};
    dq_status status = householder(dev, a, q, r, &m);
    release(dev, &m);
    return status;
}
