/* The zip around a PyTorch checkpoint, through libzip. SPDX-License-Identifier: Apache-2.0 */
#ifndef DQ_IO_PT_ARCHIVE_H
#define DQ_IO_PT_ARCHIVE_H

#include <zip.h>

#include "base/env.h"
#include "io/file.h"

typedef struct dq_pt_archive {
    dq_env *env;
    zip_t *zip;
    char *root; /* the archive's folder, "name/" */
} dq_pt_archive;

typedef struct dq_pt_entry {
    uint64_t index;
    uint64_t bytes; /* uncompressed; plausible for what the file holds */
    bool stored;
} dq_pt_entry;

/* The map must outlive the archive. */
dq_status dq_pt_archive_open(dq_env *env, const dq_map *map, dq_pt_archive *out);
void dq_pt_archive_close(dq_pt_archive *a);
/* Finds root/name. DQ_E_NOTFOUND (with error record) when absent. */
dq_status dq_pt_archive_find(const dq_pt_archive *a, const dq_map *map, const char *name, dq_pt_entry *out);
/* Reads bytes [offset, offset + bytes) of the uncompressed entry; offset 0 unless it is stored. One thread at a time. */
dq_status dq_pt_archive_read(const dq_pt_archive *a, const dq_pt_entry *e, uint64_t offset, void *out, uint64_t bytes);

#endif
