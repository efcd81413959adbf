/* NumPy's .npy format, version 1.0. SPDX-License-Identifier: Apache-2.0 */
#include <errno.h>
#include <stdio.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

#include "cli.h"

static bool write_all(FILE *f, const float *data, int64_t rows, int64_t cols)
{
    char dict[128], header[128];
    int n = snprintf(dict, sizeof dict, "{'descr': '<f4', 'fortran_order': False, 'shape': (%lld, %lld), }",
                     (long long)rows, (long long)cols);
    memset(header, ' ', sizeof header);
    memcpy(header, "\x93NUMPY\x01\x00", 8);
    header[8] = 118; /* little-endian length of what follows these ten bytes */
    header[9] = 0;
    memcpy(header + 10, dict, (size_t)n);
    header[127] = '\n';
    size_t count = (size_t)rows * (size_t)cols;
    return fwrite(header, 1, sizeof header, f) == sizeof header && fwrite(data, sizeof *data, count, f) == count &&
           fflush(f) == 0;
}

int cli_write_npy(const cli *c, const char *path, const float *data, int64_t rows, int64_t cols)
{
    char temporary[4096];
    if ((size_t)snprintf(temporary, sizeof temporary, "%s.tmp.%ld", path, (long)getpid()) >= sizeof temporary)
        return cli_fail(c, "%s: name too long", path);
    /* A regular file appears whole or not at all; a device or pipe is written to, a rename would replace it. */
    struct stat st;
    bool in_place = stat(path, &st) == 0 && !S_ISREG(st.st_mode);
    FILE *f = fopen(in_place ? path : temporary, "wb");
    if (!f) return cli_fail(c, "%s: %s", path, strerror(errno));
    bool ok = write_all(f, data, rows, cols) && (in_place || fsync(fileno(f)) == 0);
    int error = errno;
    if (fclose(f) != 0 && ok) {
        ok = false;
        error = errno;
    }
    if (ok && !in_place && rename(temporary, path) != 0) {
        ok = false;
        error = errno;
    }
    if (!ok && !in_place) unlink(temporary);
    return ok ? EXIT_OK : cli_fail(c, "%s: %s", path, strerror(error));
}
