/* The hidden states of all windows between two layers: on the device where they fit, else in memory of the host or in a
 * temporary file, from where they go to the device piece by piece. SPDX-License-Identifier: Apache-2.0 */
#ifndef DQ_MODEL_HIDDEN_H
#define DQ_MODEL_HIDDEN_H

#include "backend/device.h"
#include "io/spool.h"
#include "model/arch.h"

typedef struct dq_hidden {
    dq_device *dev;
    int64_t rows, cols, chunk; /* at most `chunk` rows are visited at once */
    dq_tensor all;             /* F32 [rows, cols] on the device or in host memory; empty: */
    dq_spool spool;            /* a file holds them */
    dq_tensor piece;           /* [chunk, cols] on the device, unless all are there */
    void *buffer;              /* of the file: the same in host memory for a moment */
} dq_hidden;

typedef struct dq_hidden_room {
    uint64_t spare;     /* bytes that the job needs on the device beside them */
    uint64_t most;      /* bytes of them that may lie in memory of the host; the rest needs `folder` */
    const char *folder; /* for the file; "" = never a file */
} dq_hidden_room;

/* Contents undefined. */
dq_status dq_hidden_open(dq_device *dev, int64_t rows, int64_t cols, int64_t chunk, const dq_hidden_room *room,
                         dq_hidden *out);
void dq_hidden_close(dq_hidden *h); /* zeroed ones are accepted */
/* Whether the device computes in memory of the host. */
static inline bool dq_hidden_in_reach(const dq_hidden *h)
{
    return dq_tensor_in_reach(dq_tensor_is_empty(&h->piece) ? &h->all : &h->piece);
}
/* Rows that can be visited at once, of whole windows: all where all are on the device. */
static inline int64_t dq_hidden_visit(const dq_hidden *h, int64_t seqlen)
{
    return dq_tensor_is_empty(&h->piece) ? h->rows : h->chunk / seqlen * seqlen;
}
/* Rows [first, first + count) to work on in place; valid until the next call. `read`: they are wanted as they are. */
dq_status dq_hidden_take(dq_hidden *h, int64_t first, int64_t count, bool read, dq_tensor *out);
/* Keeps what became of the rows taken last. */
dq_status dq_hidden_put(dq_hidden *h, int64_t first, const dq_tensor *rows);
/* All rows for dq_tensor_upload and dq_tensor_download, where no file holds them; borrowed. */
dq_tensor dq_hidden_tensor(const dq_hidden *h);
/* Bytes that are free on a device; UINT64_MAX = unknown. */
dq_status dq_device_memory_left(dq_device *dev, uint64_t *out);
/* What a layer takes on a device in fp32, nearly, while `rows` tokens pass through it: weights (one of them in fp64 for a
 * moment), scratch, and a quarter of it all for what the device itself needs. */
uint64_t dq_layer_room(const dq_arch *arch, int64_t rows);

#endif
