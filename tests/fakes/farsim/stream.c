/* The stream: commands wait in a queue until somebody waits for them or too many are there, then run in order on a
 * thread of their own. So everything the library leaves too early is gone when it is used.
 * SPDX-License-Identifier: Apache-2.0 */
#include <stdarg.h>
#include <stdio.h>
#include <string.h>

#include "farsim.h"

dq_status far_fail(far_dev *dev, dq_status status, int64_t code, const char *fmt, ...)
{
    char text[200];
    va_list args;
    va_start(args, fmt);
    vsnprintf(text, sizeof text, fmt, args);
    va_end(args);
    return dev->host->fail(dev->host->self, status, code, text);
}

void far_break(far_dev *dev, dq_status status, int64_t code, const char *fmt, ...)
{
    va_list args;
    va_start(args, fmt);
    pthread_mutex_lock(&dev->lock);
    if (dev->broken == DQ_OK) {
        dev->broken = status;
        dev->code = code;
        vsnprintf(dev->why, sizeof dev->why, fmt, args);
        dev->lost = status == DQ_E_DEVICE_LOST;
    }
    pthread_mutex_unlock(&dev->lock);
    va_end(args);
}

dq_status far_error(far_dev *dev)
{
    char why[sizeof dev->why];
    pthread_mutex_lock(&dev->lock);
    dq_status status = dev->broken;
    int64_t code = dev->code;
    memcpy(why, dev->why, sizeof why);
    if (!dev->lost) dev->broken = DQ_OK; /* told once; a lost device stays lost */
    pthread_mutex_unlock(&dev->lock);
    return status == DQ_OK ? DQ_OK : far_fail(dev, status, code, "%s", why);
}

/* ---- commands ---- */

far_cmd *far_cmd_new(far_dev *dev, const char *name, far_kernel kernel, size_t payload_bytes)
{
    far_cmd *c = dev->host->alloc(dev->host->self, sizeof *c + payload_bytes);
    if (!c) return NULL;
    memset(c, 0, sizeof *c);
    c->name = name;
    c->kernel = kernel;
    c->payload_bytes = payload_bytes;
    return c;
}

dq_status far_operand(far_dev *dev, far_cmd *c, int i, const dq_view *v)
{
    if (!v) return DQ_OK;
    bool empty = v->rows == 0 || v->cols == 0; /* a product of depth 0 */
    uint64_t elements = empty ? 0 : (uint64_t)(v->rows - 1) * (uint64_t)v->stride + (uint64_t)v->cols;
    c->view[i] = *v;
    c->given[i] = true;
    return far_check_place(dev, c->name, v->mem, v->offset, elements * far_element(v->dtype));
}

void far_enqueue(far_dev *dev, far_cmd *c)
{
    pthread_mutex_lock(&dev->lock);
    *dev->last = c;
    dev->last = &c->next;
    if (++dev->queued >= dev->depth) pthread_cond_signal(&dev->work);
    pthread_mutex_unlock(&dev->lock);
}

dq_status far_wait(far_dev *dev)
{
    pthread_mutex_lock(&dev->lock);
    dev->waiting = true;
    pthread_cond_signal(&dev->work);
    while (dev->queued > 0 || dev->busy) pthread_cond_wait(&dev->idle, &dev->lock);
    dev->waiting = false;
    pthread_mutex_unlock(&dev->lock);
    return far_error(dev);
}

/* ---- the thread ---- */

static void run(far_dev *dev, far_cmd *c)
{
    bool copy = strcmp(c->name, "upload") == 0 || strcmp(c->name, "download") == 0;
    if (!copy && ++dev->ops == dev->lost_at)
        far_break(dev, DQ_E_DEVICE_LOST, FAR_LOST, "the device was lost in op %lld, %s", (long long)dev->ops, c->name);
    pthread_mutex_lock(&dev->lock);
    bool lost = dev->lost;
    pthread_mutex_unlock(&dev->lock);
    if (lost) return;
    if (c->fails) {
        far_break(dev, DQ_E_BACKEND, FAR_COPY_FAILED, "%s of %lld bytes failed", c->name, (long long)c->number);
        return;
    }
    for (int i = 0; i < FAR_OPERANDS; i++) {
        const dq_view *v = &c->view[i];
        if (!c->given[i]) continue;
        far_reach(dev, v->mem, true);
        c->mat[i] = (far_mat){(unsigned char *)v->mem + v->offset, v->rows, v->cols, v->stride, v->dtype};
    }
    c->kernel(dev, c);
    for (int i = 0; i < FAR_OPERANDS; i++)
        if (c->given[i]) far_reach(dev, c->view[i].mem, false);
}

static void *stream_main(void *device)
{
    far_dev *dev = device;
    pthread_mutex_lock(&dev->lock);
    for (;;) {
        while (!dev->stop && !(dev->queued > 0 && (dev->waiting || dev->queued >= dev->depth)))
            pthread_cond_wait(&dev->work, &dev->lock);
        if (dev->queued == 0 && dev->stop) break;
        far_cmd *c = dev->first;
        dev->first = c->next;
        if (!dev->first) dev->last = &dev->first;
        dev->queued--;
        dev->busy = true;
        if (c->release) far_unmap(dev, c->release);
        pthread_mutex_unlock(&dev->lock);
        if (c->kernel && !dev->stop) run(dev, c);
        dev->host->free(dev->host->self, c);
        pthread_mutex_lock(&dev->lock);
        dev->busy = false;
        if (dev->queued == 0) pthread_cond_signal(&dev->idle);
    }
    pthread_mutex_unlock(&dev->lock);
    return NULL;
}

dq_status far_start(far_dev *dev)
{
    dev->last = &dev->first;
    pthread_mutex_init(&dev->lock, NULL);
    pthread_cond_init(&dev->work, NULL);
    pthread_cond_init(&dev->idle, NULL);
    int code = pthread_create(&dev->stream, NULL, stream_main, dev);
    return code == 0 ? DQ_OK : far_fail(dev, DQ_E_BACKEND, code, "no thread for the stream");
}

/* Queued work is dropped, releases are not. */
void far_stop(far_dev *dev)
{
    pthread_mutex_lock(&dev->lock);
    dev->stop = true;
    pthread_cond_signal(&dev->work);
    pthread_mutex_unlock(&dev->lock);
    pthread_join(dev->stream, NULL);
    pthread_mutex_destroy(&dev->lock);
    pthread_cond_destroy(&dev->work);
    pthread_cond_destroy(&dev->idle);
}
