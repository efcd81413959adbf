/* See fake_backend.h. SPDX-License-Identifier: Apache-2.0 */
#include "fake_backend.h"

#include <stdlib.h>
#include <string.h>

enum { MAX_BLOCKS = 256 };

typedef struct fake_dev {
    const dq_host *host;
    void *blocks[MAX_BLOCKS];
    uint64_t sizes[MAX_BLOCKS];
} fake_dev;

fake_counters fake;

const dq_host *fake_host(void *dev) { return ((fake_dev *)dev)->host; }
void *fake_block(void *dev, void *mem) { return ((fake_dev *)dev)->blocks[(uintptr_t)mem - 1]; }

static dq_status fake_open(const dq_host *host, const char *options, void **dev)
{
    if (strcmp(options, "fail") == 0)
        return host->fail(host->self, DQ_E_DEVICE_LOST, 4711, "the fake was told to fail");
    fake_dev *self = host->alloc(host->self, sizeof *self);
    if (!self) return host->fail(host->self, DQ_E_NOMEM, 0, "no memory for the fake");
    memset(self, 0, sizeof *self);
    self->host = host;
    fake.devices++;
    *dev = self;
    return DQ_OK;
}

static void fake_close(void *dev)
{
    fake_dev *self = dev;
    fake.devices--;
    self->host->free(self->host->self, self);
}

static dq_status fake_info(void *dev, dq_device_info *out)
{
    (void)dev;
    strcpy(out->name, "fake:0");
    strcpy(out->description, "hidden memory");
    out->memory_total = 1 << 30;
    return DQ_OK;
}

static dq_status fake_alloc(void *dev, uint64_t bytes, void **mem)
{
    fake_dev *self = dev;
    for (uintptr_t i = 0; i < MAX_BLOCKS; i++) {
        if (self->blocks[i]) continue;
        self->blocks[i] = malloc(bytes + 1);
        self->sizes[i] = bytes;
        fake.blocks++;
        *mem = (void *)(i + 1);
        return DQ_OK;
    }
    return self->host->fail(self->host->self, DQ_E_DEVICE_MEMORY, 2, "the fake has no free block");
}

static void fake_free(void *dev, void *mem)
{
    fake_dev *self = dev;
    uintptr_t i = (uintptr_t)mem - 1;
    free(self->blocks[i]);
    self->blocks[i] = NULL;
    fake.blocks--;
}

/* Bounds are checked: the library must never copy outside an allocation. */
static dq_status check(fake_dev *self, void *mem, uint64_t offset, uint64_t bytes)
{
    uintptr_t i = (uintptr_t)mem - 1;
    if (i < MAX_BLOCKS && self->blocks[i] && offset <= self->sizes[i] && bytes <= self->sizes[i] - offset) return DQ_OK;
    return self->host->fail(self->host->self, DQ_E_BACKEND, 700, "access outside a block of the fake");
}

static dq_status fake_upload(void *dev, void *mem, uint64_t offset, const void *src, uint64_t bytes)
{
    fake_dev *self = dev;
    dq_status status = check(self, mem, offset, bytes);
    if (status != DQ_OK) return status;
    fake.uploads++;
    if (fake.fail_upload && --fake.fail_upload == 0)
        return self->host->fail(self->host->self, DQ_E_BACKEND, 43, "the fake lost an upload");
    memcpy((char *)fake_block(dev, mem) + offset, src, bytes);
    return DQ_OK;
}

static dq_status fake_download(void *dev, void *dst, void *mem, uint64_t offset, uint64_t bytes)
{
    fake_dev *self = dev;
    dq_status status = check(self, mem, offset, bytes);
    if (status != DQ_OK) return status;
    fake.downloads++;
    if (fake.fail_download && --fake.fail_download == 0)
        return self->host->fail(self->host->self, DQ_E_BACKEND, 42, "the fake lost a download");
    memcpy(dst, (char *)fake_block(dev, mem) + offset, bytes);
    return DQ_OK;
}

static dq_status fake_sync(void *dev)
{
    (void)dev;
    fake.syncs++;
    return DQ_OK;
}

dq_backend fake_backend(void)
{
    return (dq_backend){
        .struct_size = sizeof(dq_backend),
        .abi = DQ_BACKEND_ABI,
        .name = "fake",
        .open = fake_open,
        .close = fake_close,
        .info = fake_info,
        .alloc = fake_alloc,
        .free = fake_free,
        .upload = fake_upload,
        .download = fake_download,
        .sync = fake_sync,
    };
}
