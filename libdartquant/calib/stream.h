/* The residual stream of all calibration windows: resident, or in a temporary file when it is too large for that.
 * SPDX-License-Identifier: Apache-2.0 */
#ifndef DQ_CALIB_STREAM_H
#define DQ_CALIB_STREAM_H

#include "backend/device.h"
#include "io/spool.h"

typedef struct dq_stream {
    dq_device *dev;
    int64_t rows, cols, chunk; /* at most `chunk` rows are visited at once */
    dq_tensor all;             /* F32 [rows, cols], or empty: then */
    dq_spool spool;            /* holds them, */
    dq_tensor piece;           /* [chunk, cols] on the device */
    void *buffer;              /* and the same in host memory for a moment */
} dq_stream;

/* `most`: bytes that may be resident. `folder` "" = never a file. Contents undefined. */
dq_status dq_stream_open(dq_device *dev, int64_t rows, int64_t cols, int64_t chunk, uint64_t most, const char *folder,
                         dq_stream *out);
void dq_stream_close(dq_stream *s); /* zeroed ones are accepted */
/* Rows [first, first + count) to work on in place; valid until the next call. `read`: they are wanted as they are. */
dq_status dq_stream_take(dq_stream *s, int64_t first, int64_t count, bool read, dq_tensor *out);
/* Keeps what became of the rows taken last. */
dq_status dq_stream_put(dq_stream *s, int64_t first, const dq_tensor *rows);

#endif
