/* An unnamed temporary file. SPDX-License-Identifier: Apache-2.0 */
#ifndef DQ_IO_SPOOL_H
#define DQ_IO_SPOOL_H

#include "base/env.h"

typedef struct dq_spool {
    int fd;        /* meaningful only with `folder` */
    char *folder;  /* NULL = closed */
    uint64_t size; /* bytes written */
} dq_spool;

/* Fails with DQ_E_IO when no file can be made in `folder` or fewer than `expected` bytes are free there. */
dq_status dq_spool_open(dq_env *env, const char *folder, uint64_t expected, dq_spool *out);
static inline bool dq_spool_is_open(const dq_spool *s) { return s->folder != NULL; }
/* Leaves the file as long as it was when it fails. */
dq_status dq_spool_append(dq_spool *s, const void *data, uint64_t bytes, uint64_t *offset);
/* Overwrites bytes that were appended before. */
dq_status dq_spool_write(dq_spool *s, uint64_t offset, const void *data, uint64_t bytes);
/* Does not move any position: several threads may read. */
dq_status dq_spool_read(const dq_spool *s, uint64_t offset, uint64_t bytes, void *out);
void dq_spool_close(dq_spool *s); /* closed and zeroed ones are accepted */

#endif
