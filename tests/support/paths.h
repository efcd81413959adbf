/* Where tests find data: beside the sources, and the optional shared collection. SPDX-License-Identifier: Apache-2.0 */
#ifndef DQ_TESTS_PATHS_H
#define DQ_TESTS_PATHS_H

#include <stdio.h>
#include <stdlib.h>
#include <sys/stat.h>

/* tests/data/NAME; programs are run from the repository root. */
static inline const char *test_data(const char *name)
{
    static char path[512];
    snprintf(path, sizeof path, "tests/data/%s", name);
    return path;
}

/* $DQ_SHARED/NAME or ../shared/data/NAME; NULL (with a note) when it is not there. */
static inline const char *shared_data(const char *name)
{
    static char path[1024];
    struct stat st;
    const char *root = getenv("DQ_SHARED");
    snprintf(path, sizeof path, "%s/data/%s", root && *root ? root : "../shared", name);
    if (stat(path, &st) == 0) return path;
    printf("note: %s is not there, test passed over\n", path);
    return NULL;
}

#endif
