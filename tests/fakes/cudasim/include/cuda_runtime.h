/* cudasim: enough of the CUDA runtime to run the kernels of libdartquant/backend/cuda on a CPU, thread by thread, so
 * that their arithmetic and indexing are tested on machines without a card. Our own declarations of the few names used;
 * memory is host memory, streams are queues that run as late, or as early, as events let them (streams.cc), threads of a
 * block are fibers that switch at barriers and shuffles. What it cannot show: races that need true concurrency, alignment
 * traps, speed. SPDX-License-Identifier: Apache-2.0 */
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
/* Runs all blocks, one after the other. */
void run_grid(dim3 grid, dim3 block, size_t shared, const std::function<void()> &kernel);
void block_barrier();
/* Leaves 8 bytes for the other lanes of the warp, waits for them, and reads those of `lane`. */
uint64_t exchange(uint64_t bits, int lane);
/* The same, and everybody's 8 bytes. */
void exchange_all(uint64_t bits, uint64_t (&all)[32]);
int lane();
/* 16 bytes that arrive when the thread waits for them. */
void copy_later(void *to, const void *from);
void copies_commit();
void copies_done(int pending);
/* Puts work in the stream's queue. `name` and `amount` (bytes, or operations of a product) are for CUDASIM_REPORT. */
void enqueue(cudaStream_t stream, const char *name, double amount, std::function<void()> work);
/* Ends the program when no card would take the launch; false when a test wants it refused. */
bool check_launch(cudaStream_t stream, const void *kernel, dim3 grid, dim3 block, size_t shared);
/* Arguments are taken now, as a card takes them; the kernel runs when its turn comes. */
template <class... P, class... A>
void launch(cudaStream_t stream, const char *name, dim3 grid, dim3 block, size_t shared, void (*kernel)(P...),
            A... arguments)
{
    std::tuple<P...> bound(static_cast<P>(arguments)...);
    if (!check_launch(stream, (const void *)kernel, grid, block, shared)) return;
    enqueue(stream, name, 0, [=]() { run_grid(grid, block, shared, [&]() { std::apply(kernel, bound); }); });
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
static inline void __syncwarp() { cusim::exchange(0, cusim::lane()); }
template <class T> static inline T __shfl_sync(unsigned, T x, int from)
{
    uint64_t bits = 0;
    memcpy(&bits, &x, sizeof x);
    bits = cusim::exchange(bits, from);
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
    unsigned long long old = *p;
    if (value < old) *p = value;
    return old;
}

static inline unsigned long long atomicMax(unsigned long long *p, unsigned long long value)
{
    unsigned long long old = *p;
    if (value > old) *p = value;
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
