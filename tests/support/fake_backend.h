/* A device whose memory the host cannot touch: handles are numbers of hidden blocks, there is no host_pointer, and every
 * op slot is empty until a test fills one. SPDX-License-Identifier: Apache-2.0 */
#ifndef DQ_TESTS_FAKE_BACKEND_H
#define DQ_TESTS_FAKE_BACKEND_H

#include "dartquant/backend.h"

/* A fresh table to change at will. The `options` given to open must be "" or "fail" (open then fails). */
dq_backend fake_backend(void);
/* Counters over all fake devices of the process. */
typedef struct fake_counters {
    int64_t blocks;  /* allocations alive */
    int64_t devices; /* open devices */
    int64_t uploads;
    int64_t downloads;
    int64_t syncs;
    int64_t fail_download; /* > 0: the download with this number from now on fails once */
    int64_t fail_upload;
} fake_counters;
extern fake_counters fake;
/* The host of a fake device, for tests that fill slots. */
const dq_host *fake_host(void *dev);
/* Where a block really lies (only the fake itself may know). */
void *fake_block(void *dev, void *mem);

#endif
