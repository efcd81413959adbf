/* SPDX-License-Identifier: Apache-2.0 */
#include "scratch.h"

#include <dirent.h>
#include <ftw.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

static char dir[256];

const char *scratch_dir(void) { return dir; }

int scratch_open(void)
{
    const char *base = getenv("TMPDIR");
    snprintf(dir, sizeof dir, "%s/dartquant-test-XXXXXX", base && *base ? base : "/tmp");
    return mkdtemp(dir) ? 0 : -1;
}

static int remove_one(const char *path, const struct stat *st, int kind, struct FTW *ftw)
{
    (void)st;
    (void)kind;
    return ftw->level == 0 ? 0 : remove(path);
}

int scratch_empty(void) { return nftw(dir, remove_one, 16, FTW_DEPTH | FTW_PHYS); }

void scratch_close(void)
{
    scratch_empty();
    rmdir(dir);
}

int scratch_fresh(void **state)
{
    (void)state;
    return scratch_empty();
}

int scratch_setup(void **state)
{
    (void)state;
    return scratch_open();
}

int scratch_teardown(void **state)
{
    (void)state;
    scratch_close();
    return 0;
}

const char *scratch_write(const char *name, const void *data, size_t bytes)
{
    static char path[600];
    snprintf(path, sizeof path, "%s/%s", dir, name);
    for (char *slash = strchr(path + strlen(dir) + 1, '/'); slash; slash = strchr(slash + 1, '/')) {
        *slash = '\0';
        mkdir(path, 0777);
        *slash = '/';
    }
    FILE *f = fopen(path, "wb");
    if (!f || fwrite(data, 1, bytes ? bytes : strlen(data), f) != (bytes ? bytes : strlen(data)) || fclose(f) != 0) {
        fprintf(stderr, "cannot write %s\n", path);
        abort();
    }
    return path;
}

int files_in(const char *path)
{
    int n = 0;
    DIR *d = opendir(path);
    if (!d) return 0;
    for (struct dirent *e; (e = readdir(d));) n += e->d_name[0] != '.';
    closedir(d);
    return n;
}
