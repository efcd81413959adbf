/* Memory of the card in stream order. SPDX-License-Identifier: Apache-2.0 */
#include "backend/cuda/device.h"

/* What the driver's pool takes for `bytes`, nearly. */
static uint64_t rounded(uint64_t bytes) { return bytes < 512 ? 512 : (bytes + 511) / 512 * 512; }

static dq_status no_room(dq_cuda_device *dev, uint64_t bytes, const char *what, cudaError_t error)
{
    size_t available = 0, total = 0;
    (void)cudaMemGetInfo(&available, &total);
    return dq_cuda_fail(dev, DQ_E_DEVICE_MEMORY, error, "%s of %llu bytes: %s (%llu in use here, %llu of %llu free)",
                        what, (unsigned long long)bytes, cudaGetErrorString(error), (unsigned long long)dev->used,
                        (unsigned long long)available, (unsigned long long)total);
}

/* Within the budget, where there is one. */
static bool fits(const dq_cuda_device *dev, uint64_t whole)
{
    if (whole == UINT64_MAX) return false;
    uint64_t taken = dev->used + dev->landings;
    return !dev->budget || (whole <= dev->budget && taken <= dev->budget - whole);
}

dq_status dq_cuda_scratch(dq_cuda_device *dev, uint64_t bytes, const char *what, dq_cuda_block *out)
{
    uint64_t whole = bytes > UINT64_MAX - 1024 ? UINT64_MAX : rounded(bytes);
    void *memory = NULL;
    dev->allocations++;
    if (dev->fail_at && dev->allocations == dev->fail_at)
        return dq_cuda_fail(dev, DQ_E_DEVICE_MEMORY, cudaErrorMemoryAllocation,
                            "%s of %llu bytes: refused as asked for (allocation %llu)", what, (unsigned long long)bytes,
                            (unsigned long long)dev->allocations);
    if (!fits(dev, whole)) CU_TRY(dq_cuda_drop_landings(dev));
    if (!fits(dev, whole))
        return dq_cuda_fail(dev, DQ_E_DEVICE_MEMORY, 0, "%s of %llu bytes does not fit: %llu of %llu bytes are in use",
                            what, (unsigned long long)bytes, (unsigned long long)dev->used,
                            (unsigned long long)dev->budget);
    /* The driver rounds by itself; tools that watch for accesses out of bounds see the true size. */
    cudaError_t error = cudaMallocAsync(&memory, bytes ? bytes : 1, dev->stream);
    /* queued work may give some back, the pool what it keeps in other sizes, and we the landings */
    for (int again = 0; error == cudaErrorMemoryAllocation && again < 2; again++) {
        (void)cudaGetLastError();
        CU_TRY(dq_cuda_check(dev, cudaStreamSynchronize(dev->stream), "waiting for memory"));
        if (again) CU_TRY(dq_cuda_drop_landings(dev));
        CU_TRY(dq_cuda_check(dev, cudaMemPoolTrimTo(dev->pool, 0), "memory pool"));
        error = cudaMallocAsync(&memory, bytes ? bytes : 1, dev->stream);
    }
    if (error == cudaErrorMemoryAllocation) {
        (void)cudaGetLastError();
        return no_room(dev, bytes, what, error);
    }
    CU_TRY(dq_cuda_check(dev, error, what));
    dev->used += whole;
    dev->blocks++;
    if (dev->used > dev->peak) dev->peak = dev->used;
    out->address = (char *)memory;
    out->bytes = whole;
    return DQ_OK;
}

void dq_cuda_release(dq_cuda_device *dev, dq_cuda_block *block)
{
    if (!block->address) return;
    (void)cudaFreeAsync(block->address, dev->stream);
    dev->used -= block->bytes;
    dev->blocks--;
    block->address = NULL;
}

DQ_CUDA_SLOT dq_cuda_alloc(void *device, uint64_t bytes, void **mem)
{
    CU_ENTER(device);
    dq_cuda_block *block = (dq_cuda_block *)dev->host->alloc(dev->host->self, sizeof *block);
    if (!block) return dq_cuda_fail(dev, DQ_E_NOMEM, 0, "no host memory for a handle");
    dq_status status = dq_cuda_scratch(dev, bytes, "a tensor", block);
    if (status != DQ_OK) {
        dev->host->free(dev->host->self, block);
        return status;
    }
    *mem = block;
    return DQ_OK;
}

extern "C" void dq_cuda_free(void *device, void *mem)
{
    dq_cuda_device *dev = (dq_cuda_device *)device;
    (void)cudaSetDevice(dev->ordinal);
    dq_cuda_release(dev, (dq_cuda_block *)mem);
    dev->host->free(dev->host->self, mem);
}

DQ_CUDA_SLOT dq_cuda_sync(void *device)
{
    CU_ENTER(device);
    return dq_cuda_wait(dev);
}
