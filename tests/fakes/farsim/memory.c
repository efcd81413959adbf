/* Device memory: pages that nobody may touch except the stream while it runs a command. A handle is the address of such
 * pages, so a host that dereferences one dies at once. SPDX-License-Identifier: Apache-2.0 */
#include <string.h>
#include <sys/mman.h>
#include <unistd.h>

#include "farsim.h"

size_t far_element(dq_dtype dtype)
{
    switch (dtype) {
        case DQ_F64:
        case DQ_I64:
        case DQ_U64: return 8;
        case DQ_F32:
        case DQ_I32:
        case DQ_U32: return 4;
        case DQ_F16:
        case DQ_BF16:
        case DQ_I16:
        case DQ_U16: return 2;
        default: return 1;
    }
}

/* With the lock held. */
static far_block *find(far_dev *dev, const void *mem)
{
    for (far_block *b = dev->blocks; b; b = b->next)
        if (b->base == mem) return b;
    return NULL;
}

dq_status far_alloc(void *device, uint64_t bytes, void **mem)
{
    far_dev *dev = device;
    dq_status status = far_error(dev);
    if (status != DQ_OK) return status;
    if (++dev->allocs == dev->oom_at)
        return far_fail(dev, DQ_E_DEVICE_MEMORY, FAR_OUT_OF_MEMORY, "allocation %lld of %llu bytes was told to fail",
                        (long long)dev->allocs, (unsigned long long)bytes);
    pthread_mutex_lock(&dev->lock);
    bool full = bytes > dev->limit - dev->used;
    pthread_mutex_unlock(&dev->lock);
    if (full) { /* queued work may give memory back */
        status = far_wait(dev);
        if (status != DQ_OK) return status;
        full = bytes > dev->limit - dev->used;
    }
    if (full)
        return far_fail(dev, DQ_E_DEVICE_MEMORY, FAR_OUT_OF_MEMORY,
                        "%llu bytes do not fit: %llu of %llu bytes are in use", (unsigned long long)bytes,
                        (unsigned long long)dev->used, (unsigned long long)dev->limit);
    uint64_t page = (uint64_t)sysconf(_SC_PAGESIZE), mapped = (bytes / page + 1) * page;
    far_block *block = dev->host->alloc(dev->host->self, sizeof *block);
    void *base = block ? mmap(NULL, mapped, PROT_NONE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0) : MAP_FAILED;
    if (base == MAP_FAILED) {
        dev->host->free(dev->host->self, block);
        return far_fail(dev, DQ_E_DEVICE_MEMORY, FAR_OUT_OF_MEMORY, "no pages for %llu bytes",
                        (unsigned long long)bytes);
    }
    pthread_mutex_lock(&dev->lock);
    *block = (far_block){dev->blocks, base, bytes, mapped, false};
    dev->blocks = block;
    dev->used += bytes;
    pthread_mutex_unlock(&dev->lock);
    *mem = base;
    return DQ_OK;
}

/* With the lock held, on the stream. */
void far_unmap(far_dev *dev, void *mem)
{
    for (far_block **at = &dev->blocks; *at; at = &(*at)->next) {
        far_block *b = *at;
        if (b->base != mem) continue;
        *at = b->next;
        dev->used -= b->bytes;
        munmap(b->base, b->mapped);
        dev->host->free(dev->host->self, b);
        return;
    }
}

void far_free(void *device, void *mem)
{
    far_dev *dev = device;
    far_cmd *c = far_cmd_new(dev, "free", NULL, 0);
    if (!c) { /* no memory to queue the release: wait instead */
        far_wait(dev);
        pthread_mutex_lock(&dev->lock);
        far_unmap(dev, mem);
        pthread_mutex_unlock(&dev->lock);
        return;
    }
    c->release = mem;
    pthread_mutex_lock(&dev->lock);
    far_block *b = find(dev, mem);
    if (b) b->freed = true;
    pthread_mutex_unlock(&dev->lock);
    far_enqueue(dev, c);
}

dq_status far_check_place(far_dev *dev, const char *name, void *mem, uint64_t offset, uint64_t bytes)
{
    pthread_mutex_lock(&dev->lock);
    far_block *b = find(dev, mem);
    bool inside = b && !b->freed && offset <= b->bytes && bytes <= b->bytes - offset;
    pthread_mutex_unlock(&dev->lock);
    if (inside) return DQ_OK;
    return far_fail(dev, DQ_E_BACKEND, FAR_BAD_ADDRESS, "%s reaches outside an allocation", name);
}

void far_reach(far_dev *dev, void *mem, bool open)
{
    pthread_mutex_lock(&dev->lock);
    far_block *b = find(dev, mem);
    if (b) mprotect(b->base, b->mapped, open ? PROT_READ | PROT_WRITE : PROT_NONE);
    pthread_mutex_unlock(&dev->lock);
}

static void k_upload(far_dev *dev, far_cmd *c)
{
    (void)dev;
    memcpy(c->mat[0].at, c->payload, c->payload_bytes);
}

static void k_download(far_dev *dev, far_cmd *c)
{
    (void)dev;
    memcpy(c->result, c->mat[0].at, (size_t)c->number);
}

/* The bytes in question as a row of U8. */
static dq_status copy_operand(far_dev *dev, far_cmd *c, void *mem, uint64_t offset, uint64_t bytes)
{
    dq_view v = {mem, offset, 1, (int64_t)bytes, (int64_t)bytes, DQ_U8, 0};
    c->fails = ++dev->copies == dev->fail_copy;
    c->number = (int64_t)bytes;
    return far_operand(dev, c, 0, &v);
}

dq_status far_upload(void *device, void *mem, uint64_t offset, const void *src, uint64_t bytes)
{
    far_dev *dev = device;
    dq_status status = far_error(dev);
    if (status != DQ_OK) return status;
    far_cmd *c = far_cmd_new(dev, "upload", k_upload, bytes);
    if (!c) return far_fail(dev, DQ_E_NOMEM, 0, "no host memory to stage %llu bytes", (unsigned long long)bytes);
    memcpy(c->payload, src, bytes);
    status = copy_operand(dev, c, mem, offset, bytes);
    if (status == DQ_OK)
        far_enqueue(dev, c);
    else
        dev->host->free(dev->host->self, c);
    return status;
}

dq_status far_download(void *device, void *dst, void *mem, uint64_t offset, uint64_t bytes)
{
    far_dev *dev = device;
    dq_status status = far_error(dev);
    if (status != DQ_OK) return status;
    far_cmd *c = far_cmd_new(dev, "download", k_download, 0);
    if (!c) return far_fail(dev, DQ_E_NOMEM, 0, "no host memory for a command");
    c->result = dst;
    status = copy_operand(dev, c, mem, offset, bytes);
    if (status != DQ_OK) {
        dev->host->free(dev->host->self, c);
        return status;
    }
    far_enqueue(dev, c);
    return far_wait(dev);
}
