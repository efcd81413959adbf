/* A zip file of stored entries, written as they come. SPDX-License-Identifier: Apache-2.0 */
#ifndef DQ_IO_ZIP_WRITER_H
#define DQ_IO_ZIP_WRITER_H

#include "io/file.h"

/* Entries are never compressed; their data begins at multiples of 64 bytes. Sizes and offsets beyond 32 bits use the zip64
 * records (PKWARE APPNOTE 4.3.14, 4.5.3). The file appears under its name when finish returned DQ_OK. */
typedef struct dq_zip_writer dq_zip_writer;
dq_status dq_zip_open(dq_env *env, const char *path, dq_zip_writer **out);
/* One entry: begin, appends that sum up to `bytes`, end. */
dq_status dq_zip_begin(dq_zip_writer *z, const char *name, uint64_t bytes);
dq_status dq_zip_append(dq_zip_writer *z, const void *data, uint64_t bytes);
dq_status dq_zip_end(dq_zip_writer *z);
dq_status dq_zip_finish(dq_zip_writer *z);
void dq_zip_free(dq_zip_writer *z); /* before finish: nothing is left behind */

#endif
