/* Memory maps, whole-file reads and paths. SPDX-License-Identifier: Apache-2.0 */
#include "io/file.h"

#include <errno.h>
#include <fcntl.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <unistd.h>

#include "base/status.h"

/* Opens for reading and says how large the file is (0 for what is not a regular file). */
static dq_status open_read(const char *path, bool regular_only, int *out, uint64_t *size)
{
    /* Opening a FIFO without a writer would wait for one; reading regular files does not heed O_NONBLOCK. */
    int fd = open(path, O_RDONLY | O_CLOEXEC | (regular_only ? O_NONBLOCK : 0));
    if (fd < 0) return dq_error_in_file(dq_fail_errno(DQ_E_IO, "cannot open"), path);
    struct stat st;
    dq_status status = DQ_OK;
    if (fstat(fd, &st) != 0)
        status = dq_fail_errno(DQ_E_IO, "cannot stat");
    else if (S_ISDIR(st.st_mode))
        status = dq_fail(DQ_E_IO, "is a folder, a file is expected");
    else if (regular_only && !S_ISREG(st.st_mode))
        status = dq_fail(DQ_E_IO, "is not a regular file");
    if (status != DQ_OK) {
        close(fd);
        return dq_error_in_file(status, path);
    }
    *size = S_ISREG(st.st_mode) && st.st_size > 0 ? (uint64_t)st.st_size : 0;
    *out = fd;
    return DQ_OK;
}

dq_status dq_map_open(dq_env *env, const char *path, dq_map *out)
{
    (void)env;
    int fd = -1;
    uint64_t size = 0;
    DQ_TRY(open_read(path, true, &fd, &size));
    void *data = NULL;
    dq_status status = DQ_OK;
    if (size > SIZE_MAX) {
        status = dq_fail(DQ_E_UNSUPPORTED, "%llu bytes do not fit in the address space", (unsigned long long)size);
    } else if (size > 0) {
        data = mmap(NULL, (size_t)size, PROT_READ, MAP_SHARED, fd, 0);
        if (data == MAP_FAILED)
            status = dq_fail_errno(errno == ENOMEM ? DQ_E_NOMEM : DQ_E_IO, "cannot map %llu bytes",
                                   (unsigned long long)size);
    }
    close(fd);
    if (status != DQ_OK) return dq_error_in_file(status, path);
    *out = (dq_map){.data = data, .size = size};
    return DQ_OK;
}

void dq_map_close(dq_map *map)
{
    if (map->data && !map->borrowed) munmap((void *)(uintptr_t)map->data, (size_t)map->size);
    *map = (dq_map){0};
}

void dq_map_drop(const dq_map *map, uint64_t offset, uint64_t bytes)
{
    if (!map->data || map->borrowed || offset >= map->size) return;
    if (bytes > map->size - offset) bytes = map->size - offset;
    /* Only whole pages: a page shared with the neighbour may be in use. */
    uint64_t page = (uint64_t)sysconf(_SC_PAGESIZE);
    uint64_t first = (offset + page - 1) / page * page;
    uint64_t last = offset + bytes == map->size ? map->size : (offset + bytes) / page * page;
    if (last > first) madvise((void *)(uintptr_t)(map->data + first), (size_t)(last - first), MADV_DONTNEED);
}

/* Reads until the end into *text (capacity grows); refuses more than `limit`. */
static dq_status read_all(dq_env *env, int fd, uint64_t limit, size_t capacity, char **text, size_t *bytes)
{
    size_t used = 0;
    for (;;) {
        if (used + 1 >= capacity) {
            size_t bigger = capacity * 2;
            char *fresh = dq_realloc(env, *text, bigger);
            if (!fresh) return DQ_E_NOMEM;
            *text = fresh;
            capacity = bigger;
        }
        ssize_t n = read(fd, *text + used, capacity - 1 - used);
        if (n < 0 && errno == EINTR) continue;
        if (n < 0) return dq_fail_errno(DQ_E_IO, "cannot read");
        if (n == 0) break;
        used += (size_t)n;
        if (used > limit)
            return dq_fail(DQ_E_FORMAT, "is larger than the limit of %llu bytes", (unsigned long long)limit);
    }
    (*text)[used] = '\0';
    *bytes = used;
    return DQ_OK;
}

static dq_status read_whole(dq_env *env, const char *path, bool regular_only, uint64_t limit, char **out, size_t *bytes)
{
    int fd = -1;
    uint64_t size = 0;
    DQ_TRY(open_read(path, regular_only, &fd, &size));
    dq_status status = DQ_OK;
    char *text = NULL;
    size_t used = 0;
    if (size > limit)
        DQ_GO(dq_fail(DQ_E_FORMAT, "%llu bytes are above the limit of %llu", (unsigned long long)size,
                      (unsigned long long)limit));
    /* One byte beyond the expected end lets the last read see the end without growing. */
    size_t capacity = (size_t)size + 2;
    if (size == 0) capacity = 65536; /* pipe, /proc, empty */
    text = dq_alloc(env, capacity);
    if (!text) DQ_GO(DQ_E_NOMEM);
    DQ_GO(read_all(env, fd, limit, capacity, &text, &used));
    *out = text;
    *bytes = used;
    text = NULL;
done:
    close(fd);
    dq_free(text);
    return dq_error_in_file(status, path);
}

dq_status dq_file_read(dq_env *env, const char *path, uint64_t limit, char **out, size_t *bytes)
{
    return read_whole(env, path, true, limit, out, bytes);
}

dq_status dq_stream_read(dq_env *env, const char *path, uint64_t limit, char **out, size_t *bytes)
{
    return read_whole(env, path, false, limit, out, bytes);
}

bool dq_path_exists(const char *path)
{
    struct stat st;
    return stat(path, &st) == 0;
}

bool dq_path_is_dir(const char *path)
{
    struct stat st;
    return stat(path, &st) == 0 && S_ISDIR(st.st_mode);
}

char *dq_path_join(dq_env *env, const char *dir, const char *name)
{
    size_t n = strlen(dir);
    if (n == 0) return dq_strdup(env, name);
    return dq_asprintf(env, dir[n - 1] == '/' ? "%s%s" : "%s/%s", dir, name);
}

bool dq_path_ends_with(const char *path, const char *suffix)
{
    size_t n = strlen(path), m = strlen(suffix);
    return n >= m && memcmp(path + n - m, suffix, m) == 0;
}

static dq_status make_dir(const char *path)
{
    if (mkdir(path, 0777) == 0) return DQ_OK;
    int reason = errno;
    if (reason == EEXIST && dq_path_is_dir(path)) return DQ_OK;
    errno = reason;
    return dq_error_in_file(dq_fail_errno(DQ_E_IO, "cannot make the folder"), path);
}

dq_status dq_make_dirs(dq_env *env, const char *path)
{
    if (dq_path_is_dir(path)) return DQ_OK;
    char *copy = dq_strdup(env, path);
    if (!copy) return DQ_E_NOMEM;
    dq_status status = DQ_OK;
    for (char *p = copy + (copy[0] == '/'); *p && status == DQ_OK; p++) {
        if (*p != '/') continue;
        *p = '\0';
        if (!dq_path_is_dir(copy)) status = make_dir(copy);
        *p = '/';
    }
    if (status == DQ_OK) status = make_dir(copy);
    dq_free(copy);
    return status;
}
