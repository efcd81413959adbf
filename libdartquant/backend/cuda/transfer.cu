/* Copies between host and card.
 *
 * An upload goes through pinned memory, so that the caller's bytes are taken at once, and from there over the bus on a stream
 * of its own to a landing on the card, which nothing else uses: that copy waits for no work. The move from the landing to its
 * place happens on the stream of all work, in the order of the calls, after one event; it takes a hundredth of the time that
 * the bus takes. So the weights of the next layer arrive while this one is computed, although their place may be memory that
 * this layer still uses. SPDX-License-Identifier: Apache-2.0 */
#include <string.h>

#include "backend/cuda/device.h"

static const uint64_t STAGE_BYTES = 8 << 20, LEAST_PIECE = 64 << 10, ALIGNED = 256;
static const uint64_t LEAST_LANDED = 4096; /* fewer bytes go straight to their place */
static const uint64_t BUDGET_SHARE = 16;   /* landings take that part of a budget at most */

/* ---- pinned pieces and their landings ---- */

/* Nothing is recorded: an upload can do without one more. */
static cudaError_t add_stage(dq_cuda_device *dev)
{
    dq_cuda_stage stage = {};
    cudaError_t error = cudaMallocHost((void **)&stage.memory, STAGE_BYTES);
    if (error != cudaSuccess) return error;
    error = cudaEventCreateWithFlags(&stage.landed, cudaEventDisableTiming);
    if (error == cudaSuccess) {
        error = cudaEventCreateWithFlags(&stage.moved, cudaEventDisableTiming);
        if (error != cudaSuccess) (void)cudaEventDestroy(stage.landed);
    }
    if (error != cudaSuccess) {
        (void)cudaFreeHost(stage.memory);
        return error;
    }
    /* in its turn: before the one that has waited longest */
    int at = dev->this_stage + 1;
    memmove(dev->stage + at + 1, dev->stage + at, (size_t)(dev->stages - at) * sizeof stage);
    dev->stage[at] = stage;
    dev->stages++;
    return cudaSuccess;
}

dq_status dq_cuda_make_stages(dq_cuda_device *dev, uint64_t bytes_at_most)
{
    uint64_t most = bytes_at_most ? bytes_at_most / STAGE_BYTES : (uint64_t)DQ_CUDA_USUAL_STAGES;
    dev->most_stages = most < DQ_CUDA_STAGES ? (int)most : (int)DQ_CUDA_STAGES;
    dev->this_stage = -1;
    for (int i = 0; i < DQ_CUDA_FIRST_STAGES; i++) {
        cudaError_t error = add_stage(dev);
        if (error == cudaErrorMemoryAllocation) {
            (void)cudaGetLastError();
            return dq_cuda_fail(dev, DQ_E_NOMEM, error, "pinned staging of %llu bytes: %s",
                                (unsigned long long)STAGE_BYTES, cudaGetErrorString(error));
        }
        CU_TRY(dq_cuda_check(dev, error, "pinned staging"));
    }
    return DQ_OK;
}

void dq_cuda_free_stages(dq_cuda_device *dev)
{
    for (int i = 0; i < dev->stages; i++) {
        dq_cuda_stage *stage = &dev->stage[i];
        if (stage->landing) (void)cudaFreeAsync(stage->landing, dev->copies);
        (void)cudaEventDestroy(stage->landed);
        (void)cudaEventDestroy(stage->moved);
        (void)cudaFreeHost(stage->memory);
    }
    dev->stages = 0;
    dev->landings = 0;
}

/* For good: a job that needs their memory will need it again. */
dq_status dq_cuda_drop_landings(dq_cuda_device *dev)
{
    dev->overlap = 0;
    if (!dev->landings) return DQ_OK;
    CU_TRY(dq_cuda_check(dev, cudaStreamSynchronize(dev->stream), "waiting for memory"));
    for (int i = 0; i < dev->stages; i++) {
        if (!dev->stage[i].landing) continue;
        CU_TRY(dq_cuda_check(dev, cudaFreeAsync(dev->stage[i].landing, dev->copies), "landing"));
        dev->stage[i].landing = NULL;
        dev->landings -= STAGE_BYTES;
    }
    return dq_cuda_check(dev, cudaStreamSynchronize(dev->copies), "waiting for memory");
}

/* A landing, where memory allows one: without it an upload takes its turn among all work. */
static dq_status need_landing(dq_cuda_device *dev, dq_cuda_stage *stage)
{
    void *memory = NULL;
    if (!dev->overlap || stage->landing) return DQ_OK;
    uint64_t all = dev->landings + STAGE_BYTES;
    if (dev->budget && (all > dev->budget / BUDGET_SHARE || dev->used > dev->budget - all)) return DQ_OK;
    cudaError_t error = cudaMallocAsync(&memory, STAGE_BYTES, dev->copies);
    if (error == cudaErrorMemoryAllocation) {
        (void)cudaGetLastError();
        dev->overlap = 0;
        return DQ_OK;
    }
    CU_TRY(dq_cuda_check(dev, error, "landing"));
    stage->landing = (char *)memory;
    dev->landings = all;
    return DQ_OK;
}

/* The next piece of pinned memory. While the card still needs what is in it, the host takes another one and goes on: a whole
 * layer waits in them behind the one that is computed. */
static dq_status take_stage(dq_cuda_device *dev)
{
    dq_cuda_stage *next = &dev->stage[(dev->this_stage + 1) % dev->stages];
    cudaError_t error = cudaEventQuery(next->moved);
    if (error == cudaErrorNotReady) {
        (void)cudaGetLastError();
        bool more = dev->stages < dev->most_stages && add_stage(dev) == cudaSuccess;
        if (!more) (void)cudaGetLastError();
        next = &dev->stage[(dev->this_stage + 1) % dev->stages];
        error = more ? cudaSuccess : cudaEventSynchronize(next->moved);
    }
    CU_TRY(dq_cuda_check(dev, error, "upload"));
    next->filled = 0;
    dev->this_stage = (int)(next - dev->stage);
    return DQ_OK;
}

/* ---- the host's side ---- */

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

/* ---- the slots ---- */

/* Bytes [at, at + n) of the stage on their way to their place. */
static dq_status send(dq_cuda_device *dev, dq_cuda_stage *stage, uint64_t at, uint64_t n, char *to)
{
    const char *from = stage->memory + at;
    if (n >= LEAST_LANDED) CU_TRY(need_landing(dev, stage));
    if (n >= LEAST_LANDED && stage->landing) {
        char *landing = stage->landing + at;
        CU_TRY(dq_cuda_check(dev, cudaMemcpyAsync(landing, from, n, cudaMemcpyHostToDevice, dev->copies), "upload"));
        CU_TRY(dq_cuda_check(dev, cudaEventRecord(stage->landed, dev->copies), "upload"));
        CU_TRY(dq_cuda_check(dev, cudaStreamWaitEvent(dev->stream, stage->landed, 0), "upload"));
        CU_TRY(dq_cuda_check(dev, cudaMemcpyAsync(to, landing, n, cudaMemcpyDeviceToDevice, dev->stream), "upload"));
    } else {
        CU_TRY(dq_cuda_check(dev, cudaMemcpyAsync(to, from, n, cudaMemcpyHostToDevice, dev->stream), "upload"));
    }
    return dq_cuda_check(dev, cudaEventRecord(stage->moved, dev->stream), "upload");
}

DQ_CUDA_SLOT dq_cuda_upload(void *device, void *mem, uint64_t offset, const void *src, uint64_t bytes)
{
    CU_ENTER(device);
    char *to = ((dq_cuda_block *)mem)->address + offset;
    for (uint64_t at = 0; at < bytes;) {
        uint64_t left = bytes - at, least = left < LEAST_PIECE ? left : LEAST_PIECE;
        if (dev->this_stage < 0 || dev->stage[dev->this_stage].filled + least > STAGE_BYTES) CU_TRY(take_stage(dev));
        dq_cuda_stage *stage = &dev->stage[dev->this_stage];
        uint64_t room = STAGE_BYTES - stage->filled, n = left < room ? left : room;
        copy_wide(dev, stage->memory + stage->filled, (const char *)src + at, n);
        CU_TRY(send(dev, stage, stage->filled, n, to + at));
        stage->filled += (n + ALIGNED - 1) / ALIGNED * ALIGNED;
        at += n;
    }
    return DQ_OK;
}

/* Two pieces under way at a time, so that the card fills one while the host empties the other. */
DQ_CUDA_SLOT dq_cuda_download(void *device, void *dst, void *mem, uint64_t offset, uint64_t bytes)
{
    CU_ENTER(device);
    const char *from = ((dq_cuda_block *)mem)->address + offset;
    uint64_t pieces = (bytes + STAGE_BYTES - 1) / STAGE_BYTES;
    CU_TRY(dq_cuda_wait(dev)); /* nothing computed from a bad index leaves the card; staging is free now */
    dev->this_stage = -1;
    for (uint64_t i = 0; i <= pieces; i++) {
        if (i < pieces) {
            dq_cuda_stage *stage = &dev->stage[i % 2];
            uint64_t at = i * STAGE_BYTES, n = bytes - at < STAGE_BYTES ? bytes - at : STAGE_BYTES;
            CU_TRY(dq_cuda_check(dev, cudaMemcpyAsync(stage->memory, from + at, n, cudaMemcpyDeviceToHost, dev->stream),
                                 "download"));
            CU_TRY(dq_cuda_check(dev, cudaEventRecord(stage->moved, dev->stream), "download"));
        }
        if (i > 0) {
            dq_cuda_stage *stage = &dev->stage[(i - 1) % 2];
            uint64_t at = (i - 1) * STAGE_BYTES, n = bytes - at < STAGE_BYTES ? bytes - at : STAGE_BYTES;
            CU_TRY(dq_cuda_check(dev, cudaEventSynchronize(stage->moved), "download"));
            copy_wide(dev, (char *)dst + at, stage->memory, n);
        }
    }
    return DQ_OK;
}
