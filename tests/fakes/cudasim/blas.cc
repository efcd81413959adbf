/* cudasim: cuBLAS and cuSOLVER by the CPU's BLAS and LAPACK. SPDX-License-Identifier: Apache-2.0 */
#include <cusolverDn.h>
#include <stdio.h>
#include <stdlib.h>

#include <vector>

#include "check.h"
#include "sim.h"

using cusim::enqueue;
using namespace cusim::check;

struct cusim_blas {
    cudaStream_t stream;
    bool numbers_on_card;
    bool workspace; /* it has one that nobody else uses, without which results may vary */
    int card;
};
struct cusim_solver {
    cudaStream_t stream;
    int card;
};

/* A failure that was asked for, in this library's numbers; a handle belongs to the card that was current when it was made. */
static cublasStatus_t blas_step(cublasHandle_t handle)
{
    cudaError_t error = cusim::step(CUDASIM_CALL);
    if (error != cudaSuccess) return (void)cusim::keep(error), CUBLAS_STATUS_EXECUTION_FAILED;
    return handle && handle->card != cusim::current_card() ? CUBLAS_STATUS_NOT_INITIALIZED : CUBLAS_STATUS_SUCCESS;
}
static cusolverStatus_t solver_step(cusolverDnHandle_t handle)
{
    cudaError_t error = cusim::step(CUDASIM_CALL);
    if (error != cudaSuccess) return (void)cusim::keep(error), CUSOLVER_STATUS_EXECUTION_FAILED;
    return handle && handle->card != cusim::current_card() ? CUSOLVER_STATUS_NOT_INITIALIZED : CUSOLVER_STATUS_SUCCESS;
}
#define BLAS_STEP(handle)                                                                                              \
    do {                                                                                                               \
        cublasStatus_t s_ = blas_step(handle);                                                                         \
        if (s_ != CUBLAS_STATUS_SUCCESS) return s_;                                                                    \
    } while (0)
#define SOLVER_STEP(handle)                                                                                            \
    do {                                                                                                               \
        cusolverStatus_t s_ = solver_step(handle);                                                                     \
        if (s_ != CUSOLVER_STATUS_SUCCESS) return s_;                                                                  \
    } while (0)

/* All of a column-major matrix lies in memory of the card. */
static void need_matrix(const char *call, const void *p, int64_t rows, int64_t cols, int64_t ld, size_t size)
{
    if (rows > 0 && cols > 0) cusim::need_on_card(call, p, (size_t)(ld * (cols - 1) + rows) * size);
}
static void reads_triangle(const char *call, const void *p, int n, int ld, size_t size, cublasFillMode_t uplo)
{
    reads_matrix(call, p, n, n, ld, size, uplo == CUBLAS_FILL_MODE_LOWER ? LOWER : UPPER);
}
static size_t size_of(cudaDataType_t type)
{
    switch (type) {
        case CUDA_R_64F: return 8;
        case CUDA_R_32F:
        case CUDA_R_32I: return 4;
        case CUDA_R_8I: return 1;
        default: return 2;
    }
}

/* ---- the CPU's BLAS and LAPACK ---- */

extern "C" {
void dgemm_(const char *, const char *, const int *, const int *, const int *, const double *, const double *,
            const int *, const double *, const int *, const double *, double *, const int *);
void strsm_(const char *, const char *, const char *, const char *, const int *, const int *, const float *,
            const float *, const int *, float *, const int *);
void dgetrf_(const int *, const int *, double *, const int *, int *, int *);
void dgetrs_(const char *, const int *, const int *, const double *, const int *, const int *, double *, const int *,
             int *);
void dtrsm_(const char *, const char *, const char *, const char *, const int *, const int *, const double *,
            const double *, const int *, double *, const int *);
void dpotrf_(const char *, const int *, double *, const int *, int *);
void dgeqrf_(const int *, const int *, double *, const int *, double *, double *, const int *, int *);
void dorgqr_(const int *, const int *, const int *, double *, const int *, const double *, double *, const int *,
             int *);
}

/* ---- cuBLAS: column-major ---- */

static double element(const void *p, cudaDataType_t type, int64_t i)
{
    uint32_t h;
    switch (type) {
        case CUDA_R_64F: return ((const double *)p)[i];
        case CUDA_R_32F: return ((const float *)p)[i];
        case CUDA_R_8I: return ((const int8_t *)p)[i];
        case CUDA_R_32I: return ((const int32_t *)p)[i];
        case CUDA_R_16BF: {
            uint32_t u = (uint32_t)((const uint16_t *)p)[i] << 16;
            float f;
            memcpy(&f, &u, 4);
            return f;
        }
        default: break;
    }
    h = ((const uint16_t *)p)[i];
    int e = (int)(h >> 10 & 31u);
    double m = (double)(h & 1023u), sign = h >> 15 ? -1.0 : 1.0;
    if (e == 31) return m != 0 ? NAN : sign * INFINITY;
    return sign * (e ? ldexp(1024.0 + m, e - 25) : ldexp(m, -24));
}

/* op(x), rows x cols, widened, column-major without gaps */
static std::vector<double> widen(const void *p, cudaDataType_t type, int64_t ld, cublasOperation_t op, int64_t rows,
                                 int64_t cols)
{
    std::vector<double> out((size_t)(rows * cols));
    for (int64_t c = 0; c < cols; c++)
        for (int64_t r = 0; r < rows; r++)
            out[(size_t)(r + c * rows)] = element(p, type, op == CUBLAS_OP_N ? r + c * ld : c + r * ld);
    return out;
}

const char *cublasGetStatusString(cublasStatus_t status)
{
    switch (status) {
        case CUBLAS_STATUS_NOT_INITIALIZED: return "the library was not initialized";
        case CUBLAS_STATUS_ALLOC_FAILED: return "the resource allocation failed";
        case CUBLAS_STATUS_INVALID_VALUE: return "an unsupported value or parameter was passed to the function";
        case CUBLAS_STATUS_EXECUTION_FAILED: return "the function failed to launch on the GPU";
        case CUBLAS_STATUS_NOT_SUPPORTED: return "the functionality requested is not supported";
        default: return "an error of the simulation";
    }
}
cublasStatus_t cublasCreate(cublasHandle_t *handle)
{
    BLAS_STEP((cublasHandle_t)NULL);
    cusim::count(&cudasim_ledger::handles, 1);
    *handle = new cusim_blas();
    (*handle)->card = cusim::current_card();
    return CUBLAS_STATUS_SUCCESS;
}
cublasStatus_t cublasDestroy(cublasHandle_t handle)
{
    cusim::count(&cudasim_ledger::handles, -1);
    delete handle;
    BLAS_STEP((cublasHandle_t)NULL);
    return CUBLAS_STATUS_SUCCESS;
}
cublasStatus_t cublasSetStream(cublasHandle_t handle, cudaStream_t stream)
{
    BLAS_STEP(handle);
    handle->stream = stream;
    handle->workspace = false; /* back to the library's own */
    return CUBLAS_STATUS_SUCCESS;
}
cublasStatus_t cublasSetWorkspace(cublasHandle_t handle, void *memory, size_t bytes)
{
    BLAS_STEP(handle);
    cusim::need_on_card("a workspace", memory, bytes);
    if ((uintptr_t)memory % 256) return CUBLAS_STATUS_INVALID_VALUE;
    handle->workspace = true;
    return CUBLAS_STATUS_SUCCESS;
}
cublasStatus_t cublasSetPointerMode(cublasHandle_t handle, cublasPointerMode_t mode)
{
    BLAS_STEP(handle);
    handle->numbers_on_card = mode == CUBLAS_POINTER_MODE_DEVICE;
    return CUBLAS_STATUS_SUCCESS;
}
cublasStatus_t cublasGetVersion(cublasHandle_t handle, int *version)
{
    BLAS_STEP(handle);
    *version = 0;
    return CUBLAS_STATUS_SUCCESS;
}

namespace
{

void need_workspace(cublasHandle_t handle)
{
    if (handle->workspace) return;
    fprintf(stderr, "cudasim: a product in a workspace that is not its own\n");
    abort();
}

struct gemm {
    cublasOperation_t op_a, op_b;
    int64_t m, n, k;
    const void *a, *b;
    void *c;
    cudaDataType_t type, c_type;
    int64_t lda, ldb, ldc;
};

/* Sums as a card's units make them, which round otherwise than the CPU's BLAS: for products that are small enough. */
enum { MOST_TERMS = 1 << 22, BLOCK = 8 };

float toward_zero(double x)
{
    float f = (float)x;
    return fabs((double)f) > fabs(x) ? nextafterf(f, 0.0f) : f;
}

/* Tensor cores with 16-bit operands: a few products and the sum so far are aligned to the largest of them, what falls below
 * 25 bits is cut off, and the new sum is cut off to fp32 (Fasi, Higham, Mikaitis and Pranesh, PeerJ Computer Science 7,
 * 2021, for V100 to A100; newer cards keep more). */
double tensor_sum(const double *x, const double *y, int64_t k)
{
    float sum = 0;
    for (int64_t first = 0; first < k; first += BLOCK) {
        int64_t last = first + BLOCK < k ? first + BLOCK : k;
        double plain = sum, largest = fabs(sum);
        for (int64_t i = first; i < last; i++) {
            plain += x[i] * y[i];
            largest = fmax(largest, fabs(x[i] * y[i]));
        }
        if (!(fabs(plain) < INFINITY) || largest == 0) {
            sum = (float)plain;
            continue;
        }
        double unit = ldexp(1, ilogb(largest) - 24);
        int64_t units = (int64_t)((double)sum / unit);
        for (int64_t i = first; i < last; i++) units += (int64_t)(x[i] * y[i] / unit);
        sum = toward_zero((double)units * unit);
    }
    return sum;
}

double float_sum(const double *x, const double *y, int64_t k)
{
    float sum = 0;
    for (int64_t i = 0; i < k; i++) sum += (float)x[i] * (float)y[i];
    return sum;
}

void multiply(const gemm &g, double alpha, double beta)
{
    bool a_as_is = g.op_a == CUBLAS_OP_N, b_as_is = g.op_b == CUBLAS_OP_N;
    reads_matrix("gemm: a", g.a, a_as_is ? g.m : g.k, a_as_is ? g.k : g.m, g.lda, size_of(g.type));
    reads_matrix("gemm: b", g.b, b_as_is ? g.k : g.n, b_as_is ? g.n : g.k, g.ldb, size_of(g.type));
    if (beta != 0) reads_matrix("gemm: c", g.c, g.m, g.n, g.ldc, size_of(g.c_type));
    writes_matrix("gemm: c", g.c, g.m, g.n, g.ldc, size_of(g.c_type));
    std::vector<double> right = widen(g.b, g.type, g.ldb, g.op_b, g.k, g.n), product((size_t)(g.m * g.n));
    bool as_on_card = g.type != CUDA_R_64F && g.type != CUDA_R_8I && g.m * g.n * g.k <= MOST_TERMS;
    if (as_on_card) {
        std::vector<double> left =
            widen(g.a, g.type, g.lda, g.op_a == CUBLAS_OP_N ? CUBLAS_OP_T : CUBLAS_OP_N, g.k, g.m);
        auto sum = g.type == CUDA_R_32F ? float_sum : tensor_sum;
        for (int64_t j = 0; j < g.n; j++)
            for (int64_t i = 0; i < g.m; i++)
                product[(size_t)(i + j * g.m)] = sum(&left[(size_t)(i * g.k)], &right[(size_t)(j * g.k)], g.k);
    } else {
        std::vector<double> left = widen(g.a, g.type, g.lda, g.op_a, g.m, g.k);
        double one = 1, zero = 0;
        int rows = (int)g.m, cols = (int)g.n, depth = (int)g.k;
        dgemm_("N", "N", &rows, &cols, &depth, &one, left.data(), &rows, right.data(), &depth, &zero, product.data(),
               &rows);
    }
    for (int64_t j = 0; j < g.n; j++)
        for (int64_t i = 0; i < g.m; i++) {
            int64_t at = i + j * g.ldc;
            double old = beta == 0 ? 0.0 : beta * element(g.c, g.c_type, at);
            double value = alpha * product[(size_t)(i + j * g.m)] + old;
            if (g.c_type == CUDA_R_64F)
                ((double *)g.c)[at] = value;
            else if (g.c_type == CUDA_R_32I)
                ((int32_t *)g.c)[at] = (int32_t)value; /* exact in a double on the way */
            else
                ((float *)g.c)[at] = (float)value;
        }
}

/* The table of cublasGemmEx in cuBLAS's manual, as far as results exist here. */
bool serves_types(cudaDataType_t type, cudaDataType_t c_type, cublasComputeType_t compute)
{
    switch (compute) {
        case CUBLAS_COMPUTE_64F: return type == CUDA_R_64F && c_type == CUDA_R_64F;
        case CUBLAS_COMPUTE_32I: return type == CUDA_R_8I && c_type == CUDA_R_32I;
        case CUBLAS_COMPUTE_32F_FAST_TF32: return type == CUDA_R_32F && c_type == CUDA_R_32F;
        default: return (type == CUDA_R_32F || type == CUDA_R_16F || type == CUDA_R_16BF) && c_type == CUDA_R_32F;
    }
}

/* The rules of tensor-core kernels for CUDA_R_8I in cuBLAS's manual (regular data ordering), which newer cards insist on; and
 * few columns are not served, as in some of its versions. */
bool serves_integers(cublasOperation_t op_a, cublasOperation_t op_b, int64_t m, int64_t n, int64_t k, const void *a,
                     int64_t lda, const void *b, int64_t ldb, cudaDataType_t c_type, int64_t ldc)
{
    enum { FEWEST = 4 };
    return op_a == CUBLAS_OP_T && op_b == CUBLAS_OP_N && c_type == CUDA_R_32I && n >= FEWEST &&
           (m | k | lda | ldb | ldc) % 4 == 0 && ((uintptr_t)a | (uintptr_t)b) % 4 == 0;
}

} // namespace

cublasStatus_t cublasGemmEx_64(cublasHandle_t handle, cublasOperation_t op_a, cublasOperation_t op_b, int64_t m,
                               int64_t n, int64_t k, const void *alpha, const void *a, cudaDataType_t a_type,
                               int64_t lda, const void *b, cudaDataType_t b_type, int64_t ldb, const void *beta,
                               void *c, cudaDataType_t c_type, int64_t ldc, cublasComputeType_t compute,
                               cublasGemmAlgo_t algo)
{
    return cublasGemmStridedBatchedEx_64(handle, op_a, op_b, m, n, k, alpha, a, a_type, lda, 0, b, b_type, ldb, 0, beta,
                                         c, c_type, ldc, 0, 1, compute, algo);
}

cublasStatus_t cublasGemmStridedBatchedEx_64(cublasHandle_t handle, cublasOperation_t op_a, cublasOperation_t op_b,
                                             int64_t m, int64_t n, int64_t k, const void *alpha, const void *a,
                                             cudaDataType_t a_type, int64_t lda, long long int step_a, const void *b,
                                             cudaDataType_t b_type, int64_t ldb, long long int step_b, const void *beta,
                                             void *c, cudaDataType_t c_type, int64_t ldc, long long int step_c,
                                             int64_t count, cublasComputeType_t compute, cublasGemmAlgo_t)
{
    BLAS_STEP(handle);
    bool f64 = compute == CUBLAS_COMPUTE_64F, integers = compute == CUBLAS_COMPUTE_32I;
    /* What the library refuses, too; results of a batch must not overlap. */
    if (a_type != b_type || !serves_types(a_type, c_type, compute)) return CUBLAS_STATUS_NOT_SUPPORTED;
    need_workspace(handle);
    if (lda < (op_a == CUBLAS_OP_N ? m : k) || ldb < (op_b == CUBLAS_OP_N ? k : n) || ldc < m || m < 1 || n < 1 ||
        k < 1 || count < 1 || (count > 1 && step_c < m))
        return CUBLAS_STATUS_INVALID_VALUE;
    if (integers && !serves_integers(op_a, op_b, m, n, k, a, lda, b, ldb, c_type, ldc))
        return CUBLAS_STATUS_NOT_SUPPORTED;
    auto of = [](const void *p, long long int step, int64_t i, cudaDataType_t type) {
        return (char *)p + (size_t)(step * i) * size_of(type);
    };
    for (int64_t i = 0; i < count; i++) {
        need_matrix("gemm: a", of(a, step_a, i, a_type), op_a == CUBLAS_OP_N ? m : k, op_a == CUBLAS_OP_N ? k : m, lda,
                    size_of(a_type));
        need_matrix("gemm: b", of(b, step_b, i, b_type), op_b == CUBLAS_OP_N ? k : n, op_b == CUBLAS_OP_N ? n : k, ldb,
                    size_of(b_type));
        need_matrix("gemm: c", of(c, step_c, i, c_type), m, n, ldc, size_of(c_type));
    }
    if (handle->numbers_on_card != cusim::is_on_card(alpha, f64 ? 8 : 4) ||
        handle->numbers_on_card != cusim::is_on_card(beta, f64 ? 8 : 4))
        return CUBLAS_STATUS_INVALID_VALUE;
    auto all = [=](double x, double y) {
        for (int64_t i = 0; i < count; i++)
            multiply({op_a, op_b, m, n, k, of(a, step_a, i, a_type), of(b, step_b, i, b_type), of(c, step_c, i, c_type),
                      a_type, c_type, lda, ldb, ldc},
                     x, y);
    };
    auto number = [=](const void *p) {
        return f64 ? *(const double *)p : integers ? (double)*(const int32_t *)p : (double)*(const float *)p;
    };
    const char *name = a_type == CUDA_R_16BF  ? "gemm bf16"
                       : a_type == CUDA_R_16F ? "gemm fp16"
                       : f64                  ? "gemm fp64"
                       : integers             ? "gemm int8"
                                              : "gemm fp32";
    double work = 2.0 * (double)m * (double)n * (double)k * (double)count;
    if (handle->numbers_on_card) {
        enqueue(handle->stream, name, work, [=]() {
            reads("gemm: alpha", alpha, f64 ? 8 : 4);
            reads("gemm: beta", beta, f64 ? 8 : 4);
            all(number(alpha), number(beta));
        });
    } else {
        double x = number(alpha), y = number(beta); /* they may be gone when the product runs */
        enqueue(handle->stream, name, work, [=]() { all(x, y); });
    }
    return CUBLAS_STATUS_SUCCESS;
}

cublasStatus_t cublasDtrsm(cublasHandle_t handle, cublasSideMode_t side, cublasFillMode_t uplo, cublasOperation_t trans,
                           cublasDiagType_t diag, int m, int n, const double *alpha, const double *a, int lda,
                           double *b, int ldb)
{
    BLAS_STEP(handle);
    if (handle->numbers_on_card || m < 1 || n < 1 || lda < (side == CUBLAS_SIDE_LEFT ? m : n) || ldb < m)
        return CUBLAS_STATUS_INVALID_VALUE;
    need_workspace(handle);
    need_matrix("trsm: a", a, side == CUBLAS_SIDE_LEFT ? m : n, side == CUBLAS_SIDE_LEFT ? m : n, lda, 8);
    need_matrix("trsm: b", b, m, n, ldb, 8);
    double factor = *alpha;
    enqueue(handle->stream, "trsm", (double)m * (double)m * (double)n, [=]() {
        reads_triangle("trsm: a", a, side == CUBLAS_SIDE_LEFT ? m : n, lda, 8, uplo);
        reads_matrix("trsm: b", b, m, n, ldb, 8);
        writes_matrix("trsm: b", b, m, n, ldb, 8);
        dtrsm_(side == CUBLAS_SIDE_LEFT ? "L" : "R", uplo == CUBLAS_FILL_MODE_LOWER ? "L" : "U",
               trans == CUBLAS_OP_N ? "N" : "T", diag == CUBLAS_DIAG_UNIT ? "U" : "N", &m, &n, &factor, a, &lda, b,
               &ldb);
    });
    return CUBLAS_STATUS_SUCCESS;
}

cublasStatus_t cublasStrsm(cublasHandle_t handle, cublasSideMode_t side, cublasFillMode_t uplo, cublasOperation_t trans,
                           cublasDiagType_t diag, int m, int n, const float *alpha, const float *a, int lda, float *b,
                           int ldb)
{
    BLAS_STEP(handle);
    if (handle->numbers_on_card || m < 1 || n < 1 || lda < (side == CUBLAS_SIDE_LEFT ? m : n) || ldb < m)
        return CUBLAS_STATUS_INVALID_VALUE;
    need_workspace(handle);
    need_matrix("trsm: a", a, side == CUBLAS_SIDE_LEFT ? m : n, side == CUBLAS_SIDE_LEFT ? m : n, lda, 4);
    need_matrix("trsm: b", b, m, n, ldb, 4);
    float factor = *alpha;
    enqueue(handle->stream, "trsm", (double)m * (double)m * (double)n, [=]() {
        reads_triangle("trsm: a", a, side == CUBLAS_SIDE_LEFT ? m : n, lda, 4, uplo);
        reads_matrix("trsm: b", b, m, n, ldb, 4);
        writes_matrix("trsm: b", b, m, n, ldb, 4);
        strsm_(side == CUBLAS_SIDE_LEFT ? "L" : "R", uplo == CUBLAS_FILL_MODE_LOWER ? "L" : "U",
               trans == CUBLAS_OP_N ? "N" : "T", diag == CUBLAS_DIAG_UNIT ? "U" : "N", &m, &n, &factor, a, &lda, b,
               &ldb);
    });
    return CUBLAS_STATUS_SUCCESS;
}

/* ---- cuSOLVER ---- */

namespace
{

/* What every factorization asks for, in doubles, and overwrites. */
int words_for(int n) { return 64 * n + 1; }

bool bad_shape(int m, int n, int ld) { return m < 1 || n < 1 || ld < m; }

void need_work(const char *call, double *work, int words, const int *info)
{
    cusim::need_on_card(call, work, (size_t)words * 8);
    cusim::need_on_card(call, info, 4);
}
void spoil(double *work, int words)
{
    for (int i = 0; i < words; i++) work[i] = NAN;
}

} // namespace

cusolverStatus_t cusolverDnDgetrf_bufferSize(cusolverDnHandle_t handle, int, int n, double *, int, int *words)
{
    SOLVER_STEP(handle);
    *words = words_for(n);
    return CUSOLVER_STATUS_SUCCESS;
}
cusolverStatus_t cusolverDnDgetrf(cusolverDnHandle_t handle, int m, int n, double *a, int lda, double *work,
                                  int *pivots, int *info)
{
    SOLVER_STEP(handle);
    if (bad_shape(m, n, lda)) return CUSOLVER_STATUS_INVALID_VALUE;
    need_matrix("getrf", a, m, n, lda, 8);
    need_work("getrf: work", work, words_for(n), info);
    cusim::need_on_card("getrf: pivots", pivots, (size_t)(m < n ? m : n) * 4);
    enqueue(handle->stream, "getrf", 0, [=]() {
        reads_matrix("getrf", a, m, n, lda, 8);
        writes_matrix("getrf", a, m, n, lda, 8);
        writes("getrf: pivots", pivots, (size_t)(m < n ? m : n) * 4);
        writes("getrf: info", info, 4);
        dgetrf_(&m, &n, a, &lda, pivots, info);
        spoil(work, words_for(n));
    });
    return CUSOLVER_STATUS_SUCCESS;
}
cusolverStatus_t cusolverDnDgetrs(cusolverDnHandle_t handle, cublasOperation_t trans, int n, int columns,
                                  const double *a, int lda, const int *pivots, double *b, int ldb, int *info)
{
    SOLVER_STEP(handle);
    if (bad_shape(n, n, lda) || bad_shape(n, columns, ldb)) return CUSOLVER_STATUS_INVALID_VALUE;
    need_matrix("getrs", a, n, n, lda, 8);
    need_matrix("getrs: b", b, n, columns, ldb, 8);
    cusim::need_on_card("getrs: info", info, 4);
    enqueue(handle->stream, "getrs", 0, [=]() {
        reads_matrix("getrs: a", a, n, n, lda, 8);
        reads_matrix("getrs: b", b, n, columns, ldb, 8);
        reads("getrs: pivots", pivots, (size_t)n * 4);
        writes_matrix("getrs: b", b, n, columns, ldb, 8);
        writes("getrs: info", info, 4);
        dgetrs_(trans == CUBLAS_OP_N ? "N" : "T", &n, &columns, a, &lda, pivots, b, &ldb, info);
    });
    return CUSOLVER_STATUS_SUCCESS;
}

cusolverStatus_t cusolverGetVersion(int *version)
{
    *version = 0;
    return CUSOLVER_STATUS_SUCCESS;
}
cusolverStatus_t cusolverDnCreate(cusolverDnHandle_t *handle)
{
    SOLVER_STEP((cusolverDnHandle_t)NULL);
    cusim::count(&cudasim_ledger::handles, 1);
    *handle = new cusim_solver();
    (*handle)->card = cusim::current_card();
    return CUSOLVER_STATUS_SUCCESS;
}
cusolverStatus_t cusolverDnDestroy(cusolverDnHandle_t handle)
{
    cusim::count(&cudasim_ledger::handles, -1);
    delete handle;
    SOLVER_STEP((cusolverDnHandle_t)NULL);
    return CUSOLVER_STATUS_SUCCESS;
}
cusolverStatus_t cusolverDnSetStream(cusolverDnHandle_t handle, cudaStream_t stream)
{
    SOLVER_STEP(handle);
    handle->stream = stream;
    return CUSOLVER_STATUS_SUCCESS;
}
cusolverStatus_t cusolverDnDpotrf_bufferSize(cusolverDnHandle_t handle, cublasFillMode_t, int n, double *, int,
                                             int *words)
{
    SOLVER_STEP(handle);
    *words = words_for(n);
    return CUSOLVER_STATUS_SUCCESS;
}
cusolverStatus_t cusolverDnDpotrf(cusolverDnHandle_t handle, cublasFillMode_t uplo, int n, double *a, int lda,
                                  double *work, int words, int *info)
{
    SOLVER_STEP(handle);
    if (bad_shape(n, n, lda) || words < words_for(n)) return CUSOLVER_STATUS_INVALID_VALUE;
    need_matrix("potrf", a, n, n, lda, 8);
    need_work("potrf: work", work, words, info);
    bool lower = uplo == CUBLAS_FILL_MODE_LOWER;
    enqueue(handle->stream, "potrf", 0, [=]() {
        reads_matrix("potrf", a, n, n, lda, 8, lower ? LOWER : UPPER);
        writes_matrix("potrf", a, n, n, lda, 8, lower ? LOWER : UPPER);
        writes("potrf: info", info, 4);
        dpotrf_(lower ? "L" : "U", &n, a, &lda, info);
        spoil(work, words);
        for (int64_t c = 0; c < n; c++) /* nothing is promised of the other triangle */
            for (int64_t r = 0; r < n; r++)
                if (lower ? r < c : r > c) a[r + c * lda] = NAN;
    });
    return CUSOLVER_STATUS_SUCCESS;
}
cusolverStatus_t cusolverDnDgeqrf_bufferSize(cusolverDnHandle_t handle, int, int n, double *, int, int *words)
{
    SOLVER_STEP(handle);
    *words = words_for(n);
    return CUSOLVER_STATUS_SUCCESS;
}
cusolverStatus_t cusolverDnDgeqrf(cusolverDnHandle_t handle, int m, int n, double *a, int lda, double *tau,
                                  double *work, int words, int *info)
{
    SOLVER_STEP(handle);
    if (bad_shape(m, n, lda) || words < words_for(n)) return CUSOLVER_STATUS_INVALID_VALUE;
    need_matrix("geqrf", a, m, n, lda, 8);
    need_work("geqrf: work", work, words, info);
    cusim::need_on_card("geqrf: tau", tau, (size_t)(m < n ? m : n) * 8);
    enqueue(handle->stream, "geqrf", 0, [=]() {
        reads_matrix("geqrf", a, m, n, lda, 8);
        writes_matrix("geqrf", a, m, n, lda, 8);
        writes("geqrf: tau", tau, (size_t)(m < n ? m : n) * 8);
        writes("geqrf: info", info, 4);
        dgeqrf_(&m, &n, a, &lda, tau, work, &words, info);
        spoil(work, words);
    });
    return CUSOLVER_STATUS_SUCCESS;
}
cusolverStatus_t cusolverDnDorgqr_bufferSize(cusolverDnHandle_t handle, int, int n, int, const double *, int,
                                             const double *, int *words)
{
    SOLVER_STEP(handle);
    *words = words_for(n);
    return CUSOLVER_STATUS_SUCCESS;
}
cusolverStatus_t cusolverDnDorgqr(cusolverDnHandle_t handle, int m, int n, int k, double *a, int lda, const double *tau,
                                  double *work, int words, int *info)
{
    SOLVER_STEP(handle);
    if (bad_shape(m, n, lda) || words < words_for(n)) return CUSOLVER_STATUS_INVALID_VALUE;
    need_matrix("orgqr", a, m, n, lda, 8);
    need_work("orgqr: work", work, words, info);
    cusim::need_on_card("orgqr: tau", tau, (size_t)k * 8);
    enqueue(handle->stream, "orgqr", 0, [=]() {
        reads_matrix("orgqr", a, m, k, lda, 8);
        reads("orgqr: tau", tau, (size_t)k * 8);
        writes_matrix("orgqr", a, m, n, lda, 8);
        writes("orgqr: info", info, 4);
        dorgqr_(&m, &n, &k, a, &lda, tau, work, &words, info);
        spoil(work, words);
    });
    return CUSOLVER_STATUS_SUCCESS;
}
