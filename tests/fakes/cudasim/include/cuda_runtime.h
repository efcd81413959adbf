/* cudasim: enough of the CUDA runtime to run the kernels of libdartquant/backend/cuda on a CPU, thread by thread, so
 * that their arithmetic and indexing are tested on machines without a card. Our own declarations of the few names used;
 * memory is host memory, streams are queues that run as late, or as early, as events let them (streams.cc), threads of a
 * block are fibers that switch at barriers and shuffles. Compiled once more with -fsanitize=thread and the simulation's own
 * hooks (check_*.cc), every access is checked. SPDX-License-Identifier: Apache-2.0 */
#ifndef CUDASIM_CUDA_RUNTIME_H
#define CUDASIM_CUDA_RUNTIME_H

#define DQ_CUDASIM 1

#include <math.h>
#include <stddef.h>
#include <stdint.h>
#include <string.h>

#include <functional>
#include <tuple>

/* ---- language ---- */
#define __global__
#define __device__
#define __host__
#define __shared__ static
#define __launch_bounds__(...)

struct alignas(16) float4 {
    float x, y, z, w;
};
struct dim3 {
    unsigned x, y, z;
    dim3(unsigned a = 1, unsigned b = 1, unsigned c = 1) : x(a), y(b), z(c) {}
};

typedef struct cusim_stream *cudaStream_t;
typedef struct cusim_event *cudaEvent_t;

namespace cusim
{
struct place {
    dim3 thread, block, block_dim, grid_dim;
};
extern place here; /* of the fiber that runs */
unsigned char *dynamic_shared();
void block_barrier();
int thread_index(); /* in its block */
int lane();

/* What lanes of a warp do together: nobody goes on before all that `mask` names have come. */
enum exchange_kind { WARP_BARRIER, EXCHANGE_ONE, EXCHANGE_ALL };
struct warp_exchange {
    exchange_kind kind;
    unsigned mask;
    int from;
    uint64_t bits, *all;
};
void warp_barrier(unsigned mask);
/* Leaves 8 bytes for the other lanes and reads those of lane `from`. Unlike warp_barrier it orders no memory. */
uint64_t exchange(unsigned mask, uint64_t bits, int from);
/* The same by all lanes, and everybody's 8 bytes. */
void exchange_all(uint64_t bits, uint64_t (&all)[32]);

/* 16 bytes, or zeros where none are there, that arrive when the thread waits for them. */
void copy_later(void *to, const void *from, bool there);
void copies_commit();
void copies_done(int pending);
void forget_copies(int threads);
/* ldmatrix (libdartquant/backend/cuda/mma.h) */
void load_matrices(uint32_t (&out)[4], const void *row, bool transposed);
/* An atomic's access: `value` is what was there. */
void atomic_begin(const void *p, void *value, size_t bytes);
void atomic_end(void *p, const void *value, size_t bytes);

/* A kernel and its arguments, taken when it is launched, as a card takes them. */
struct invocation {
    const void *code;
    size_t bytes; /* of all of this */
    virtual ~invocation() {}
    virtual void run() const = 0;
};
template <class... P> struct bound_kernel : invocation {
    void (*kernel)(P...);
    std::tuple<P...> arguments;
    bound_kernel(void (*k)(P...), P... p) : kernel(k), arguments(p...)
    {
        code = (const void *)k;
        bytes = sizeof *this;
    }
    void run() const override { std::apply(kernel, arguments); }
};
/* Runs all blocks, one after the other. */
void run_grid(const char *name, dim3 grid, dim3 block, size_t shared, const invocation &kernel);
/* Ends the program when no card would take the launch; false when a test wants it refused. */
bool check_launch(cudaStream_t stream, const void *kernel, dim3 grid, dim3 block, size_t shared);
/* Puts work in the stream's queue. `name` and `amount` (bytes, or operations of a product) are for CUDASIM_REPORT. */
void enqueue(cudaStream_t stream, const char *name, double amount, std::function<void()> work);
/* The kernel runs when its turn comes; it is deleted then. */
void enqueue_kernel(cudaStream_t stream, const char *name, dim3 grid, dim3 block, size_t shared, invocation *kernel);
template <class... P, class... A>
void launch(cudaStream_t stream, const char *name, dim3 grid, dim3 block, size_t shared, void (*kernel)(P...),
            A... arguments)
{
    if (check_launch(stream, (const void *)kernel, grid, block, shared))
        enqueue_kernel(stream, name, grid, block, shared, new bound_kernel<P...>(kernel, static_cast<P>(arguments)...));
}
} // namespace cusim

#define threadIdx (cusim::here.thread)
#define blockIdx (cusim::here.block)
#define blockDim (cusim::here.block_dim)
#define gridDim (cusim::here.grid_dim)
#define CU_LAUNCH(dev, kernel, grid, block, shared, ...)                                                               \
    cusim::launch((dev)->stream, #kernel, dim3(grid), dim3(block), (shared), kernel, __VA_ARGS__)
#define CU_DYNAMIC_SHARED(name) unsigned char *name = cusim::dynamic_shared()

static inline void __syncthreads() { cusim::block_barrier(); }
static inline void __syncwarp(unsigned mask = ~0u) { cusim::warp_barrier(mask); }
template <class T> static inline T __shfl_sync(unsigned mask, T x, int from)
{
    uint64_t bits = 0;
    memcpy(&bits, &x, sizeof x);
    bits = cusim::exchange(mask, bits, from);
    memcpy(&x, &bits, sizeof x);
    return x;
}
template <class T> static inline T __shfl_xor_sync(unsigned mask, T x, int step)
{
    return __shfl_sync(mask, x, cusim::lane() ^ step);
}
/* c and the products of four signed bytes each. */
static inline int __dp4a(int a, int b, int c)
{
    for (int i = 0; i < 32; i += 8) c += (int8_t)(a >> i) * (int8_t)(b >> i);
    return c;
}
/* Four of the eight bytes of `low` and `high`, chosen by the selector's halves of bytes. */
static inline unsigned __byte_perm(unsigned low, unsigned high, unsigned selector)
{
    uint64_t both = (uint64_t)high << 32 | low;
    unsigned out = 0;
    for (int i = 0; i < 4; i++) out |= (unsigned)(both >> 8 * (selector >> 4 * i & 7) & 0xff) << 8 * i;
    return out;
}
static inline unsigned long long atomicMin(unsigned long long *p, unsigned long long value)
{
    unsigned long long old;
    cusim::atomic_begin(p, &old, sizeof old);
    if (old < value) value = old;
    cusim::atomic_end(p, &value, sizeof value);
    return old;
}
static inline unsigned long long atomicMax(unsigned long long *p, unsigned long long value)
{
    unsigned long long old;
    cusim::atomic_begin(p, &old, sizeof old);
    if (old > value) value = old;
    cusim::atomic_end(p, &value, sizeof value);
    return old;
}

/* ---- runtime ---- */
enum cudaError_t {
    cudaSuccess = 0,
    cudaErrorInvalidValue = 1,
    cudaErrorMemoryAllocation = 2,
    cudaErrorInitializationError = 3,
    cudaErrorCudartUnloading = 4,
    cudaErrorInsufficientDriver = 35,
    cudaErrorDevicesUnavailable = 46,
    cudaErrorInvalidDeviceFunction = 98,
    cudaErrorNoDevice = 100,
    cudaErrorInvalidDevice = 101,
    cudaErrorDeviceUninitialized = 201,
    cudaErrorNoKernelImageForDevice = 209,
    cudaErrorECCUncorrectable = 214,
    cudaErrorInvalidPtx = 218,
    cudaErrorNvlinkUncorrectable = 220,
    cudaErrorJitCompilerNotFound = 221,
    cudaErrorUnsupportedPtxVersion = 222,
    cudaErrorJitCompilationDisabled = 223,
    cudaErrorOperatingSystem = 304,
    cudaErrorInvalidResourceHandle = 400,
    cudaErrorNotReady = 600,
    cudaErrorIllegalAddress = 700,
    cudaErrorLaunchOutOfResources = 701,
    cudaErrorLaunchTimeout = 702,
    cudaErrorContextIsDestroyed = 709,
    cudaErrorAssert = 710,
    cudaErrorHardwareStackError = 714,
    cudaErrorIllegalInstruction = 715,
    cudaErrorMisalignedAddress = 716,
    cudaErrorInvalidAddressSpace = 717,
    cudaErrorInvalidPc = 718,
    cudaErrorLaunchFailure = 719,
    cudaErrorSystemNotReady = 802,
    cudaErrorSystemDriverMismatch = 803,
    cudaErrorMpsRpcFailure = 806,
    cudaErrorMpsClientTerminated = 810,
    cudaErrorExternalDevice = 911,
    cudaErrorUnknown = 999
};
enum cudaMemcpyKind { cudaMemcpyHostToDevice = 1, cudaMemcpyDeviceToHost = 2, cudaMemcpyDeviceToDevice = 3 };
enum cudaDeviceAttr {
    cudaDevAttrComputeCapabilityMajor = 75,
    cudaDevAttrComputeCapabilityMinor = 76,
    cudaDevAttrMaxSharedMemoryPerBlockOptin = 97,
    cudaDevAttrMemoryPoolsSupported = 115
};
enum cudaFuncAttribute { cudaFuncAttributeMaxDynamicSharedMemorySize = 8 };
struct cudaFuncAttributes {
    size_t sharedSizeBytes;
    int maxDynamicSharedSizeBytes;
};
enum cudaMemPoolAttr {
    cudaMemPoolAttrReleaseThreshold = 4,
    cudaMemPoolAttrReservedMemCurrent = 5,
    cudaMemPoolAttrUsedMemCurrent = 7
};
enum { cudaStreamNonBlocking = 1, cudaEventDisableTiming = 2 };
typedef struct cusim_pool *cudaMemPool_t;
struct cudaDeviceProp {
    char name[256];
    int major, minor;
};

const char *cudaGetErrorString(cudaError_t error);
cudaError_t cudaGetLastError();
cudaError_t cudaGetDeviceCount(int *count);
cudaError_t cudaSetDevice(int device);
cudaError_t cudaDeviceGetAttribute(int *value, cudaDeviceAttr attribute, int device);
cudaError_t cudaGetDeviceProperties(cudaDeviceProp *p, int device);
cudaError_t cudaDriverGetVersion(int *version);
cudaError_t cudaRuntimeGetVersion(int *version);
cudaError_t cudaMemGetInfo(size_t *available, size_t *total);
cudaError_t cudaDeviceGetDefaultMemPool(cudaMemPool_t *pool, int device);
cudaError_t cudaMemPoolSetAttribute(cudaMemPool_t pool, cudaMemPoolAttr attribute, void *value);
cudaError_t cudaMemPoolGetAttribute(cudaMemPool_t pool, cudaMemPoolAttr attribute, void *value);
cudaError_t cudaMemPoolTrimTo(cudaMemPool_t pool, size_t bytes);
cudaError_t cudaStreamCreateWithFlags(cudaStream_t *stream, unsigned flags);
cudaError_t cudaStreamDestroy(cudaStream_t stream);
cudaError_t cudaStreamSynchronize(cudaStream_t stream);
cudaError_t cudaStreamQuery(cudaStream_t stream);
cudaError_t cudaStreamWaitEvent(cudaStream_t stream, cudaEvent_t event, unsigned flags);
cudaError_t cudaEventCreateWithFlags(cudaEvent_t *event, unsigned flags);
cudaError_t cudaEventDestroy(cudaEvent_t event);
cudaError_t cudaEventRecord(cudaEvent_t event, cudaStream_t stream);
cudaError_t cudaEventQuery(cudaEvent_t event);
cudaError_t cudaEventSynchronize(cudaEvent_t event);
cudaError_t cudaMalloc(void **memory, size_t bytes);
cudaError_t cudaFree(void *memory);
cudaError_t cudaMallocHost(void **memory, size_t bytes);
cudaError_t cudaFreeHost(void *memory);
cudaError_t cudaMallocAsync(void **memory, size_t bytes, cudaStream_t stream);
cudaError_t cudaFreeAsync(void *memory, cudaStream_t stream);
cudaError_t cudaMemcpyAsync(void *to, const void *from, size_t bytes, cudaMemcpyKind kind, cudaStream_t stream);
cudaError_t cudaMemcpy2DAsync(void *to, size_t to_pitch, const void *from, size_t from_pitch, size_t width,
                              size_t height, cudaMemcpyKind kind, cudaStream_t stream);
cudaError_t cudaMemsetAsync(void *memory, int value, size_t bytes, cudaStream_t stream);
cudaError_t cudaFuncGetAttributes(cudaFuncAttributes *out, const void *kernel);
cudaError_t cudaFuncSetAttribute(const void *kernel, cudaFuncAttribute attribute, int value);

#endif
