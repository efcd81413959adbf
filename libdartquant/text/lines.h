/* Lines of text files, plain or gzip. SPDX-License-Identifier: Apache-2.0 */
#ifndef DQ_TEXT_LINES_H
#define DQ_TEXT_LINES_H

#include <zlib.h>

#include "io/file.h"
#include "text/bytes.h"

typedef struct dq_lines {
    dq_env *env;
    const char *path;
    dq_map map;
    bool gzip, started, ended; /* inflate in use; at the end of the last gzip member */
    z_stream z;
    uint64_t total;  /* bytes given out by inflate */
    dq_bytes buffer; /* gzip: inflated text not yet handed out starts at `at` */
    size_t at;       /* plain: position in the map */
    int64_t number;  /* of the line handed out last, from 1 */
} dq_lines;

/* `path` must outlive the reader. */
dq_status dq_lines_open(dq_env *env, const char *path, dq_lines *out);
/* The next line with its line feed (the last may have none); NULL in *line at the end. Valid until the next call. */
dq_status dq_lines_next(dq_lines *r, const char **line, size_t *bytes);
/* All that is left. */
dq_status dq_lines_rest(dq_lines *r, dq_bytes *out);
void dq_lines_close(dq_lines *r);

#endif
