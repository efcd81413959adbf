/* cudasim: errors and what the card says of itself. In the environment: CUDASIM_DEVICES says how many cards there are (1),
 * CUDASIM_CAPABILITY which (9.0), CUDASIM_MEMORY how many bytes all have together (4 GiB), CUDASIM_NO_CODE
 * that the plug-in holds none for it. SPDX-License-Identifier: Apache-2.0 */
#include <stdio.h>
#include <stdlib.h>

#include <map>
#include <mutex>

#include "sim.h"

using cusim::keep;

static thread_local cudaError_t last;
static thread_local int current;

int cusim::current_card() { return current; }

cudaError_t cusim::keep(cudaError_t error)
{
    last = error;
    return error;
}

const char *cudaGetErrorString(cudaError_t error)
{
    switch (error) {
        case cudaSuccess: return "no error";
        case cudaErrorMemoryAllocation: return "out of memory";
        case cudaErrorNoDevice: return "no CUDA-capable device is detected";
        case cudaErrorInvalidDevice: return "invalid device ordinal";
        case cudaErrorInvalidResourceHandle: return "invalid resource handle";
        case cudaErrorNoKernelImageForDevice: return "no kernel image is available for execution on the device";
        case cudaErrorIllegalAddress: return "an illegal memory access was encountered";
        case cudaErrorLaunchOutOfResources: return "too many resources requested for launch";
        case cudaErrorLaunchFailure: return "unspecified launch failure";
        case cudaErrorUnknown: return "unknown error";
        default: return "an error of the simulation";
    }
}
cudaError_t cudaGetLastError()
{
    cudaError_t error = last;
    last = cudaSuccess;
    return error;
}

#define STEP()                                                                                                         \
    do {                                                                                                               \
        cudaError_t e_ = cusim::step(CUDASIM_CALL);                                                                    \
        if (e_ != cudaSuccess) return keep(e_);                                                                        \
    } while (0)

static long long setting(const char *name, long long otherwise)
{
    const char *text = getenv(name);
    return text ? atoll(text) : otherwise;
}
static int devices() { return (int)setting("CUDASIM_DEVICES", 1); }
static void capability(int *major, int *minor)
{
    const char *text = getenv("CUDASIM_CAPABILITY");
    *major = 9;
    *minor = 0;
    if (text) sscanf(text, "%d.%d", major, minor);
}
/* What one block may have, by the programming guide's table of capabilities. */
static int shared_of_block()
{
    int major, minor;
    capability(&major, &minor);
    if (major == 8) return minor == 0 || minor == 7 ? 163 << 10 : 99 << 10;
    return major >= 12 ? 99 << 10 : 227 << 10;
}
static size_t memory_of_card() { return (size_t)setting("CUDASIM_MEMORY", (long long)4 << 30); }
size_t cusim::memory_left()
{
    cudasim_ledger now;
    cudasim_read(&now);
    return (size_t)now.device_bytes < memory_of_card() ? memory_of_card() - (size_t)now.device_bytes : 0;
}

cudaError_t cudaGetDeviceCount(int *count)
{
    STEP();
    *count = devices();
    return *count ? cudaSuccess : keep(cudaErrorNoDevice);
}
cudaError_t cudaSetDevice(int device)
{
    STEP();
    if (device < 0 || device >= devices()) return keep(cudaErrorInvalidDevice);
    current = device;
    return cudaSuccess;
}
cudaError_t cudaDeviceGetAttribute(int *value, cudaDeviceAttr attribute, int)
{
    STEP();
    int major, minor;
    capability(&major, &minor);
    switch (attribute) {
        case cudaDevAttrComputeCapabilityMajor: *value = major; break;
        case cudaDevAttrComputeCapabilityMinor: *value = minor; break;
        case cudaDevAttrMaxSharedMemoryPerBlockOptin: *value = shared_of_block(); break;
        case cudaDevAttrMemoryPoolsSupported: *value = 1; break;
        default: return keep(cudaErrorInvalidValue);
    }
    return cudaSuccess;
}
cudaError_t cudaGetDeviceProperties(cudaDeviceProp *p, int)
{
    STEP();
    snprintf(p->name, sizeof p->name, "simulated card (kernels run on the CPU)");
    capability(&p->major, &p->minor);
    return cudaSuccess;
}
cudaError_t cudaDriverGetVersion(int *version)
{
    STEP();
    *version = 0;
    return cudaSuccess;
}
cudaError_t cudaRuntimeGetVersion(int *version)
{
    STEP();
    *version = 0;
    return cudaSuccess;
}
cudaError_t cudaMemGetInfo(size_t *available, size_t *total)
{
    STEP();
    *total = memory_of_card();
    *available = cusim::memory_left();
    return cudaSuccess;
}
/* As if every kernel had that much of its own: what it really has the compiler of a card alone knows. */
enum { STATIC_SHARED = 2048, FREE_SHARED = 48 << 10 };
static std::mutex shared_lock;
static std::map<const void *, int> shared_asked; /* by kernel, as the last call left it */

size_t cusim::shared_allowed(const void *kernel)
{
    std::lock_guard<std::mutex> held(shared_lock);
    auto found = shared_asked.find(kernel);
    return (size_t)(found == shared_asked.end() ? FREE_SHARED - STATIC_SHARED : found->second);
}
cudaError_t cudaFuncGetAttributes(cudaFuncAttributes *out, const void *kernel)
{
    STEP();
    if (getenv("CUDASIM_NO_CODE")) return keep(cudaErrorNoKernelImageForDevice);
    out->sharedSizeBytes = STATIC_SHARED;
    out->maxDynamicSharedSizeBytes = (int)cusim::shared_allowed(kernel);
    return cudaSuccess;
}
cudaError_t cudaFuncSetAttribute(const void *kernel, cudaFuncAttribute, int value)
{
    STEP();
    if (value > shared_of_block() - STATIC_SHARED) return keep(cudaErrorInvalidValue);
    std::lock_guard<std::mutex> held(shared_lock);
    shared_asked[kernel] = value;
    return cudaSuccess;
}
