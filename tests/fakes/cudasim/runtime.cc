/* cudasim: memory, the runtime's calls, cuBLAS and cuSOLVER. CUDASIM_DEVICES says how many cards there are (1).
 * SPDX-License-Identifier: Apache-2.0 */
#include <cusolverDn.h>
#include <stdio.h>
#include <stdlib.h>

#include <vector>

/* ---- runtime ---- */

static cudaError_t last;

static cudaError_t keep(cudaError_t error)
{
    if (error != cudaSuccess) last = error;
    return error;
}

const char *cudaGetErrorString(cudaError_t error)
{
    switch (error) {
        case cudaSuccess: return "no error";
        case cudaErrorMemoryAllocation: return "out of memory";
        case cudaErrorNoDevice: return "no CUDA-capable device is detected";
        case cudaErrorInvalidDevice: return "invalid device ordinal";
        default: return "an error of the simulation";
    }
}
cudaError_t cudaGetLastError()
{
    cudaError_t error = last;
    last = cudaSuccess;
    return error;
}
static int devices()
{
    const char *text = getenv("CUDASIM_DEVICES");
    return text ? atoi(text) : 1;
}
cudaError_t cudaGetDeviceCount(int *count)
{
    *count = devices();
    return *count ? cudaSuccess : keep(cudaErrorNoDevice);
}
cudaError_t cudaSetDevice(int device) { return device < devices() ? cudaSuccess : keep(cudaErrorInvalidDevice); }
cudaError_t cudaDeviceGetAttribute(int *value, cudaDeviceAttr attribute, int)
{
    const char *text = getenv("CUDASIM_CAPABILITY");
    switch (attribute) {
        case cudaDevAttrComputeCapabilityMajor: *value = text ? atoi(text) : 9; break;
        case cudaDevAttrComputeCapabilityMinor: *value = 0; break;
        case cudaDevAttrMaxSharedMemoryPerBlockOptin: *value = 232448; break;
        case cudaDevAttrMemoryPoolsSupported: *value = 1; break;
    }
    return cudaSuccess;
}
cudaError_t cudaGetDeviceProperties(cudaDeviceProp *p, int)
{
    snprintf(p->name, sizeof p->name, "simulated card (kernels run on the CPU)");
    p->major = 9;
    p->minor = 0;
    return cudaSuccess;
}
cudaError_t cudaDriverGetVersion(int *version)
{
    *version = 0;
    return cudaSuccess;
}
cudaError_t cudaRuntimeGetVersion(int *version)
{
    *version = 0;
    return cudaSuccess;
}
cudaError_t cudaMemGetInfo(size_t *available, size_t *total)
{
    *available = *total = (size_t)4 << 30;
    return cudaSuccess;
}
cudaError_t cudaDeviceGetDefaultMemPool(cudaMemPool_t *pool, int)
{
    *pool = NULL;
    return cudaSuccess;
}
cudaError_t cudaMemPoolSetAttribute(cudaMemPool_t, cudaMemPoolAttr, void *) { return cudaSuccess; }
cudaError_t cudaStreamCreateWithFlags(cudaStream_t *stream, unsigned)
{
    *stream = (cudaStream_t)malloc(1);
    return cudaSuccess;
}
cudaError_t cudaStreamDestroy(cudaStream_t stream)
{
    free(stream);
    return cudaSuccess;
}
cudaError_t cudaStreamSynchronize(cudaStream_t) { return cudaSuccess; }
cudaError_t cudaEventCreateWithFlags(cudaEvent_t *event, unsigned)
{
    *event = (cudaEvent_t)malloc(1);
    return cudaSuccess;
}
cudaError_t cudaEventDestroy(cudaEvent_t event)
{
    free(event);
    return cudaSuccess;
}
cudaError_t cudaEventRecord(cudaEvent_t, cudaStream_t) { return cudaSuccess; }
/* Busy every third time, so that both ways are gone. */
cudaError_t cudaEventQuery(cudaEvent_t)
{
    static int times;
    return ++times % 3 ? cudaSuccess : cudaErrorNotReady;
}
cudaError_t cudaEventSynchronize(cudaEvent_t) { return cudaSuccess; }
cudaError_t cudaMalloc(void **memory, size_t bytes)
{
    *memory = malloc(bytes);
    if (!*memory) return keep(cudaErrorMemoryAllocation);
    memset(*memory, 0xa5, bytes < ((size_t)64 << 20) ? bytes : 0);
    return cudaSuccess;
}
cudaError_t cudaFree(void *memory)
{
    free(memory);
    return cudaSuccess;
}
cudaError_t cudaMallocHost(void **memory, size_t bytes) { return cudaMalloc(memory, bytes); }
cudaError_t cudaFreeHost(void *memory) { return cudaFree(memory); }
cudaError_t cudaMallocAsync(void **memory, size_t bytes, cudaStream_t) { return cudaMalloc(memory, bytes); }
cudaError_t cudaFreeAsync(void *memory, cudaStream_t) { return cudaFree(memory); }
cudaError_t cudaMemcpyAsync(void *to, const void *from, size_t bytes, cudaMemcpyKind, cudaStream_t)
{
    memcpy(to, from, bytes);
    return cudaSuccess;
}
cudaError_t cudaMemcpy2DAsync(void *to, size_t to_pitch, const void *from, size_t from_pitch, size_t width,
                              size_t height, cudaMemcpyKind, cudaStream_t)
{
    for (size_t r = 0; r < height; r++) memmove((char *)to + r * to_pitch, (const char *)from + r * from_pitch, width);
    return cudaSuccess;
}
cudaError_t cudaMemsetAsync(void *memory, int value, size_t bytes, cudaStream_t)
{
    memset(memory, value, bytes);
    return cudaSuccess;
}
cudaError_t cudaFuncSetAttribute(const void *, cudaFuncAttribute, int value)
{
    return value <= 232448 ? cudaSuccess : keep(cudaErrorUnknown);
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

/* ---- cuBLAS: column-major, sums in double ---- */

static double element(const void *p, cudaDataType_t type, int64_t i)
{
    uint32_t h;
    switch (type) {
        case CUDA_R_64F: return ((const double *)p)[i];
        case CUDA_R_32F: return ((const float *)p)[i];
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

const char *cublasGetStatusString(cublasStatus_t) { return "an error of the simulation"; }
cublasStatus_t cublasCreate(cublasHandle_t *handle)
{
    *handle = (cublasHandle_t)malloc(1);
    return CUBLAS_STATUS_SUCCESS;
}
cublasStatus_t cublasDestroy(cublasHandle_t handle)
{
    free(handle);
    return CUBLAS_STATUS_SUCCESS;
}
cublasStatus_t cublasSetStream(cublasHandle_t, cudaStream_t) { return CUBLAS_STATUS_SUCCESS; }
cublasStatus_t cublasSetWorkspace(cublasHandle_t, void *, size_t) { return CUBLAS_STATUS_SUCCESS; }
cublasStatus_t cublasSetPointerMode(cublasHandle_t, cublasPointerMode_t) { return CUBLAS_STATUS_SUCCESS; }
cublasStatus_t cublasGetVersion(cublasHandle_t, int *version)
{
    *version = 0;
    return CUBLAS_STATUS_SUCCESS;
}

cublasStatus_t cublasGemmEx_64(cublasHandle_t, cublasOperation_t op_a, cublasOperation_t op_b, int64_t m, int64_t n,
                               int64_t k, const void *alpha, const void *a, cudaDataType_t a_type, int64_t lda,
                               const void *b, cudaDataType_t b_type, int64_t ldb, const void *beta, void *c,
                               cudaDataType_t c_type, int64_t ldc, cublasComputeType_t compute, cublasGemmAlgo_t)
{
    bool f64 = compute == CUBLAS_COMPUTE_64F;
    /* What the library refuses, too. */
    if (a_type != b_type || f64 != (a_type == CUDA_R_64F) || lda < (op_a == CUBLAS_OP_N ? m : k) ||
        ldb < (op_b == CUBLAS_OP_N ? k : n) || ldc < m || m < 1 || n < 1 || k < 1)
        return CUBLAS_STATUS_INVALID_VALUE;
    double x = f64 ? *(const double *)alpha : *(const float *)alpha,
           y = f64 ? *(const double *)beta : *(const float *)beta;
    std::vector<double> left = widen(a, a_type, lda, op_a, m, k), right = widen(b, b_type, ldb, op_b, k, n);
    std::vector<double> product((size_t)(m * n));
    double one = 1, zero = 0;
    int rows = (int)m, cols = (int)n, depth = (int)k;
    dgemm_("N", "N", &rows, &cols, &depth, &one, left.data(), &rows, right.data(), &depth, &zero, product.data(),
           &rows);
    for (int64_t j = 0; j < n; j++)
        for (int64_t i = 0; i < m; i++) {
            int64_t at = i + j * ldc;
            double value = x * product[(size_t)(i + j * m)] + (y == 0 ? 0.0 : y * element(c, c_type, at));
            if (c_type == CUDA_R_64F)
                ((double *)c)[at] = value;
            else
                ((float *)c)[at] = (float)value;
        }
    return CUBLAS_STATUS_SUCCESS;
}

cublasStatus_t cublasDtrsm(cublasHandle_t, cublasSideMode_t side, cublasFillMode_t uplo, cublasOperation_t trans,
                           cublasDiagType_t diag, int m, int n, const double *alpha, const double *a, int lda,
                           double *b, int ldb)
{
    dtrsm_(side == CUBLAS_SIDE_LEFT ? "L" : "R", uplo == CUBLAS_FILL_MODE_LOWER ? "L" : "U",
           trans == CUBLAS_OP_N ? "N" : "T", diag == CUBLAS_DIAG_UNIT ? "U" : "N", &m, &n, alpha, a, &lda, b, &ldb);
    return CUBLAS_STATUS_SUCCESS;
}

cublasStatus_t cublasStrsm(cublasHandle_t, cublasSideMode_t side, cublasFillMode_t uplo, cublasOperation_t trans,
                           cublasDiagType_t diag, int m, int n, const float *alpha, const float *a, int lda, float *b,
                           int ldb)
{
    strsm_(side == CUBLAS_SIDE_LEFT ? "L" : "R", uplo == CUBLAS_FILL_MODE_LOWER ? "L" : "U",
           trans == CUBLAS_OP_N ? "N" : "T", diag == CUBLAS_DIAG_UNIT ? "U" : "N", &m, &n, alpha, a, &lda, b, &ldb);
    return CUBLAS_STATUS_SUCCESS;
}

/* ---- cuSOLVER ---- */

cusolverStatus_t cusolverDnDgetrf_bufferSize(cusolverDnHandle_t, int, int, double *, int, int *words)
{
    *words = 1;
    return CUSOLVER_STATUS_SUCCESS;
}
cusolverStatus_t cusolverDnDgetrf(cusolverDnHandle_t, int m, int n, double *a, int lda, double *, int *pivots,
                                  int *info)
{
    dgetrf_(&m, &n, a, &lda, pivots, info);
    return CUSOLVER_STATUS_SUCCESS;
}
cusolverStatus_t cusolverDnDgetrs(cusolverDnHandle_t, cublasOperation_t trans, int n, int columns, const double *a,
                                  int lda, const int *pivots, double *b, int ldb, int *info)
{
    dgetrs_(trans == CUBLAS_OP_N ? "N" : "T", &n, &columns, a, &lda, pivots, b, &ldb, info);
    return CUSOLVER_STATUS_SUCCESS;
}

cusolverStatus_t cusolverGetVersion(int *version)
{
    *version = 0;
    return CUSOLVER_STATUS_SUCCESS;
}
cusolverStatus_t cusolverDnCreate(cusolverDnHandle_t *handle)
{
    *handle = (cusolverDnHandle_t)malloc(1);
    return CUSOLVER_STATUS_SUCCESS;
}
cusolverStatus_t cusolverDnDestroy(cusolverDnHandle_t handle)
{
    free(handle);
    return CUSOLVER_STATUS_SUCCESS;
}
cusolverStatus_t cusolverDnSetStream(cusolverDnHandle_t, cudaStream_t) { return CUSOLVER_STATUS_SUCCESS; }
cusolverStatus_t cusolverDnDpotrf_bufferSize(cusolverDnHandle_t, cublasFillMode_t, int, double *, int, int *words)
{
    *words = 1;
    return CUSOLVER_STATUS_SUCCESS;
}
cusolverStatus_t cusolverDnDpotrf(cusolverDnHandle_t, cublasFillMode_t uplo, int n, double *a, int lda, double *, int,
                                  int *info)
{
    dpotrf_(uplo == CUBLAS_FILL_MODE_LOWER ? "L" : "U", &n, a, &lda, info);
    return CUSOLVER_STATUS_SUCCESS;
}
cusolverStatus_t cusolverDnDgeqrf_bufferSize(cusolverDnHandle_t, int, int n, double *, int, int *words)
{
    *words = 64 * n + 1;
    return CUSOLVER_STATUS_SUCCESS;
}
cusolverStatus_t cusolverDnDgeqrf(cusolverDnHandle_t, int m, int n, double *a, int lda, double *tau, double *work,
                                  int words, int *info)
{
    dgeqrf_(&m, &n, a, &lda, tau, work, &words, info);
    return CUSOLVER_STATUS_SUCCESS;
}
cusolverStatus_t cusolverDnDorgqr_bufferSize(cusolverDnHandle_t, int, int n, int, const double *, int, const double *,
                                             int *words)
{
    *words = 64 * n + 1;
    return CUSOLVER_STATUS_SUCCESS;
}
cusolverStatus_t cusolverDnDorgqr(cusolverDnHandle_t, int m, int n, int k, double *a, int lda, const double *tau,
                                  double *work, int words, int *info)
{
    dorgqr_(&m, &n, &k, a, &lda, tau, work, &words, info);
    return CUSOLVER_STATUS_SUCCESS;
}
