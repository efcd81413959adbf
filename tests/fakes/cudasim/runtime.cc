/* cudasim: errors and what the card says of itself. In the environment: CUDASIM_DEVICES says how many cards there are (1),
 * CUDASIM_CAPABILITY which (9.0), CUDASIM_MEMORY how many bytes all have together (4 GiB). SPDX-License-Identifier: Apache-2.0 */
#include <stdio.h>
#include <stdlib.h>

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
        case cudaDevAttrMaxSharedMemoryPerBlockOptin: *value = 232448; break;
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
cudaError_t cudaDeviceGetDefaultMemPool(cudaMemPool_t *pool, int)
{
    STEP();
    *pool = NULL;
    return cudaSuccess;
}
cudaError_t cudaMemPoolSetAttribute(cudaMemPool_t, cudaMemPoolAttr, void *)
{
    STEP();
    return cudaSuccess;
}
cudaError_t cudaFuncSetAttribute(const void *, cudaFuncAttribute, int value)
{
    STEP();
    return value <= 232448 ? cudaSuccess : keep(cudaErrorInvalidValue);
}
