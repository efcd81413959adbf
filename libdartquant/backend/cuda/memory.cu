/* Memory of the card in stream order, and copies. SPDX-License-Identifier: Apache-2.0 */
#include <string.h>

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

dq_status dq_cuda_scratch(dq_cuda_device *dev, uint64_t bytes, const char *what, dq_cuda_block *out)
{
    uint64_t whole = bytes > UINT64_MAX - 1024 ? UINT64_MAX : rounded(bytes);
    void *memory = NULL;
    dev->allocations++;
    if (dev->fail_at && dev->allocations == dev->fail_at)
        return dq_cuda_fail(dev, DQ_E_DEVICE_MEMORY, cudaErrorMemoryAllocation,
                            "%s of %llu bytes: refused as asked for (allocation %llu)", what, (unsigned long long)bytes,
                            (unsigned long long)dev->allocations);
    if (whole == UINT64_MAX || (dev->budget && (whole > dev->budget || dev->used > dev->budget - whole)))
        return dq_cuda_fail(dev, DQ_E_DEVICE_MEMORY, 0, "%s of %llu bytes does not fit: %llu of %llu bytes are in use",
                            what, (unsigned long long)bytes, (unsigned long long)dev->used,
                            (unsigned long long)dev->budget);
    cudaError_t error = cudaMallocAsync(&memory, whole, dev->stream);
    if (error == cudaErrorMemoryAllocation) { /* queued work may give some back */
        (void)cudaGetLastError();
        CU_TRY(dq_cuda_check(dev, cudaStreamSynchronize(dev->stream), "waiting for memory"));
        error = cudaMallocAsync(&memory, whole, dev->stream);
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

/* The next piece of pinned memory. While the card is still reading it, the host takes another one and goes on: a whole layer
 * waits in pinned memory behind the one that is computed. */
static dq_status next_stage(dq_cuda_device *dev, dq_cuda_stage **out)
{
    dq_cuda_stage *stage = &dev->stage[dev->next_stage];
    cudaError_t error = cudaEventQuery(stage->done);
    if (error == cudaErrorNotReady) {
        (void)cudaGetLastError();
        if (dev->stages < dev->most_stages && dq_cuda_add_stage(dev) == DQ_OK) {
            /* in its turn: before the one that is busy */
            dq_cuda_stage fresh = dev->stage[dev->stages - 1];
            memmove(stage + 1, stage, (size_t)(dev->stages - 1 - dev->next_stage) * sizeof *stage);
            *stage = fresh;
        } else {
            error = cudaEventSynchronize(stage->done);
        }
    }
    if (error != cudaErrorNotReady) CU_TRY(dq_cuda_check(dev, error, "upload"));
    dev->next_stage = (dev->next_stage + 1) % dev->stages;
    *out = stage;
    return DQ_OK;
}

typedef struct piece {
    char *to;
    const char *from;
    uint64_t bytes, step;
} piece;

static void copy_part(void *arg, int64_t i, int thread)
{
    const piece *p = (const piece *)arg;
    uint64_t at = (uint64_t)i * p->step;
    (void)thread;
    memcpy(p->to + at, p->from + at, (size_t)(p->bytes - at < p->step ? p->bytes - at : p->step));
}

/* One core does not keep up with the card's bus. */
static void copy_wide(dq_cuda_device *dev, void *to, const void *from, uint64_t bytes)
{
    piece p = {(char *)to, (const char *)from, bytes, (uint64_t)1 << 20};
    if (bytes <= p.step)
        memcpy(to, from, (size_t)bytes);
    else
        dev->host->run(dev->host->self, (int64_t)((bytes + p.step - 1) / p.step), copy_part, &p);
}

/* Pieces go through pinned memory in turn: the caller's bytes are taken at once, the copy happens in stream order. */
DQ_CUDA_SLOT dq_cuda_upload(void *device, void *mem, uint64_t offset, const void *src, uint64_t bytes)
{
    CU_ENTER(device);
    char *to = ((dq_cuda_block *)mem)->address + offset;
    for (uint64_t at = 0; at < bytes;) {
        uint64_t n = bytes - at < dev->stage_bytes ? bytes - at : dev->stage_bytes;
        dq_cuda_stage *stage;
        CU_TRY(next_stage(dev, &stage));
        copy_wide(dev, stage->memory, (const char *)src + at, n);
        CU_TRY(dq_cuda_check(dev, cudaMemcpyAsync(to + at, stage->memory, n, cudaMemcpyHostToDevice, dev->stream),
                             "upload"));
        CU_TRY(dq_cuda_check(dev, cudaEventRecord(stage->done, dev->stream), "upload"));
        at += n;
    }
    return DQ_OK;
}

/* Two pieces under way at a time, so that the card fills one while the host empties the other. */
DQ_CUDA_SLOT dq_cuda_download(void *device, void *dst, void *mem, uint64_t offset, uint64_t bytes)
{
    CU_ENTER(device);
    const char *from = ((dq_cuda_block *)mem)->address + offset;
    uint64_t pieces = (bytes + dev->stage_bytes - 1) / dev->stage_bytes;
    CU_TRY(dq_cuda_wait(dev)); /* nothing computed from a bad index leaves the card; staging is free now */
    for (uint64_t i = 0; i <= pieces; i++) {
        if (i < pieces) {
            dq_cuda_stage *stage = &dev->stage[i % 2];
            uint64_t at = i * dev->stage_bytes, n = bytes - at < dev->stage_bytes ? bytes - at : dev->stage_bytes;
            CU_TRY(dq_cuda_check(dev, cudaMemcpyAsync(stage->memory, from + at, n, cudaMemcpyDeviceToHost, dev->stream),
                                 "download"));
            CU_TRY(dq_cuda_check(dev, cudaEventRecord(stage->done, dev->stream), "download"));
        }
        if (i > 0) {
            dq_cuda_stage *stage = &dev->stage[(i - 1) % 2];
            uint64_t at = (i - 1) * dev->stage_bytes, n = bytes - at < dev->stage_bytes ? bytes - at : dev->stage_bytes;
            CU_TRY(dq_cuda_check(dev, cudaEventSynchronize(stage->done), "download"));
            copy_wide(dev, (char *)dst + at, stage->memory, n);
        }
    }
    return DQ_OK;
}

DQ_CUDA_SLOT dq_cuda_sync(void *device)
{
    CU_ENTER(device);
    return dq_cuda_wait(dev);
}
