/* Files that appear under their name whole or not at all: temporary name, fsync, rename, fsync of the folder.
 * SPDX-License-Identifier: Apache-2.0 */
#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

#include "base/status.h"
#include "io/file.h"

struct dq_writer {
    dq_env *env;
    char *path;   /* the final name */
    char *folder; /* of path, so that commit needs no memory once the file is visible */
    char *temporary;
    int fd;            /* -1 while paused */
    bool exists;       /* the temporary file is there and ours */
    bool broken;       /* a write failed: what is in the file is unknown */
    uint64_t position; /* bytes written */
};

/* A rename would replace a device or a pipe by a file, which nobody who writes to /dev/stdout wants. */
static dq_status check_target(const char *path)
{
    struct stat st;
    if (stat(path, &st) != 0 || S_ISREG(st.st_mode)) return DQ_OK;
    return dq_fail(DQ_E_IO, S_ISDIR(st.st_mode) ? "cannot write: is a folder" : "cannot write: is not a regular file");
}

static char *folder_of(dq_env *env, const char *path)
{
    const char *slash = strrchr(path, '/');
    return slash ? dq_strndup(env, path, (size_t)(slash - path) + 1) : dq_strdup(env, ".");
}

static dq_status open_temporary(dq_writer *w)
{
    for (int attempt = 0; attempt < 100; attempt++) {
        dq_free(w->temporary);
        w->temporary = attempt == 0 ? dq_asprintf(w->env, "%s.tmp.%ld", w->path, (long)getpid())
                                    : dq_asprintf(w->env, "%s.tmp.%ld.%d", w->path, (long)getpid(), attempt);
        if (!w->temporary) return DQ_E_NOMEM;
        w->fd = open(w->temporary, O_RDWR | O_CREAT | O_EXCL | O_CLOEXEC, 0666);
        if (w->fd >= 0) {
            w->exists = true;
            return DQ_OK;
        }
        if (errno != EEXIST) break; /* else: a second writer of this process, or left by a dead one */
    }
    return dq_fail_errno(DQ_E_IO, "cannot create %s", w->temporary);
}

dq_status dq_writer_open(dq_env *env, const char *path, dq_writer **out)
{
    dq_writer *w = dq_calloc(env, 1, sizeof *w);
    if (!w) return DQ_E_NOMEM;
    w->env = env;
    w->fd = -1;
    w->path = dq_strdup(env, path);
    w->folder = w->path ? folder_of(env, path) : NULL;
    dq_status status = w->folder ? check_target(path) : DQ_E_NOMEM;
    if (status == DQ_OK) status = open_temporary(w);
    if (status != DQ_OK) {
        dq_error_in_file(status, path);
        dq_writer_free(w);
        return status;
    }
    *out = w;
    return DQ_OK;
}

static dq_status write_failed(dq_writer *w, uint64_t offset)
{
    w->broken = true;
    return dq_error_at_byte(dq_error_in_file(dq_fail_errno(DQ_E_IO, "cannot write"), w->path), offset);
}

static dq_status write_at(dq_writer *w, uint64_t offset, const void *data, uint64_t bytes)
{
    if (w->broken || w->fd < 0)
        return dq_error_in_file(dq_fail(DQ_E_STATE, "write after a failed write or commit"), w->path);
    const char *p = data;
    while (bytes > 0) {
        size_t chunk = bytes > (1u << 30) ? (size_t)1 << 30 : (size_t)bytes;
        ssize_t n = pwrite(w->fd, p, chunk, (off_t)offset);
        if (n < 0 && errno == EINTR) continue;
        if (n == 0) errno = ENOSPC; /* no progress and no reason: treat as full */
        if (n <= 0) return write_failed(w, offset);
        p += n;
        offset += (uint64_t)n;
        bytes -= (uint64_t)n;
    }
    return DQ_OK;
}

dq_status dq_writer_write(dq_writer *w, const void *data, uint64_t bytes)
{
    DQ_TRY(write_at(w, w->position, data, bytes));
    w->position += bytes;
    return DQ_OK;
}

dq_status dq_writer_patch(dq_writer *w, uint64_t offset, const void *data, uint64_t bytes)
{
    if (offset > w->position || bytes > w->position - offset)
        return dq_error_in_file(dq_fail(DQ_E_INTERNAL, "patch of bytes not yet written"), w->path);
    return write_at(w, offset, data, bytes);
}

dq_status dq_writer_skip(dq_writer *w, uint64_t bytes)
{
    if (ftruncate(w->fd, (off_t)(w->position + bytes)) != 0) return write_failed(w, w->position);
    w->position += bytes;
    return DQ_OK;
}

dq_status dq_writer_copy(dq_writer *w, dq_writer *from, uint64_t offset, uint64_t bytes)
{
    if (offset > from->position || bytes > from->position - offset)
        return dq_error_in_file(dq_fail(DQ_E_INTERNAL, "copy of bytes not yet written"), from->path);
    off_t in = (off_t)offset;
    while (bytes > 0) {
        off_t at = (off_t)w->position;
        size_t chunk = bytes > (1u << 30) ? (size_t)1 << 30 : (size_t)bytes;
        ssize_t n = copy_file_range(from->fd, &in, w->fd, &at, chunk, 0);
        if (n < 0 && errno == EINTR) continue;
        if (n <= 0) { /* not offered between or on these file systems: through memory */
            char buffer[65536];
            chunk = bytes < sizeof buffer ? (size_t)bytes : sizeof buffer;
            n = pread(from->fd, buffer, chunk, in);
            if (n < 0 && errno == EINTR) continue;
            if (n <= 0) return dq_error_in_file(dq_fail_errno(DQ_E_IO, "cannot read back"), from->temporary);
            DQ_TRY(write_at(w, w->position, buffer, (uint64_t)n));
            in += n;
        }
        w->position += (uint64_t)n;
        bytes -= (uint64_t)n;
    }
    return DQ_OK;
}

uint64_t dq_writer_position(const dq_writer *w) { return w->position; }

dq_status dq_writer_pause(dq_writer *w)
{
    if (w->fd < 0) return DQ_OK;
    int fd = w->fd;
    w->fd = -1;
    if (close(fd) != 0) return write_failed(w, w->position);
    return DQ_OK;
}

dq_status dq_writer_resume(dq_writer *w)
{
    if (w->fd >= 0) return DQ_OK;
    w->fd = open(w->temporary, O_RDWR | O_CLOEXEC);
    if (w->fd < 0) return dq_error_in_file(dq_fail_errno(DQ_E_IO, "cannot reopen"), w->temporary);
    return DQ_OK;
}

dq_status dq_writer_seal(dq_writer *w)
{
    if (w->broken) return dq_error_in_file(dq_fail(DQ_E_STATE, "commit after a failed write"), w->path);
    DQ_TRY(dq_writer_resume(w));
    if (fsync(w->fd) != 0) return write_failed(w, w->position);
    return dq_writer_pause(w);
}

dq_status dq_writer_retarget(dq_writer *w, const char *path)
{
    char *copy = dq_strdup(w->env, path);
    if (!copy) return DQ_E_NOMEM;
    dq_free(w->path);
    w->path = copy;
    return dq_error_in_file(check_target(path), path);
}

/* Makes the rename itself durable. Some network file systems refuse to sync a folder: nothing can be done there. */
static dq_status sync_folder(const dq_writer *w)
{
    int fd = open(w->folder, O_RDONLY | O_DIRECTORY | O_CLOEXEC);
    dq_status status = DQ_OK;
    if (fd < 0 || (fsync(fd) != 0 && errno != EINVAL && errno != ENOTSUP && errno != EROFS))
        status = dq_error_in_file(dq_fail_errno(DQ_E_IO, "cannot sync the folder of"), w->path);
    if (fd >= 0) close(fd);
    return status;
}

dq_status dq_writer_commit(dq_writer *w)
{
    DQ_TRY(dq_writer_seal(w));
    DQ_TRY(dq_error_in_file(check_target(w->path), w->path));
    if (rename(w->temporary, w->path) != 0)
        return dq_error_in_file(dq_fail_errno(DQ_E_IO, "cannot rename %s to", w->temporary), w->path);
    w->exists = false;
    dq_status status = sync_folder(w);
    if (status != DQ_OK) unlink(w->path); /* a failed commit leaves nothing visible */
    return status;
}

void dq_writer_free(dq_writer *w)
{
    if (!w) return;
    if (w->fd >= 0) close(w->fd);
    if (w->exists) unlink(w->temporary);
    dq_free(w->temporary);
    dq_free(w->folder);
    dq_free(w->path);
    dq_free(w);
}

dq_status dq_file_write(dq_env *env, const char *path, const void *data, uint64_t bytes)
{
    dq_writer *w = NULL;
    dq_status status;
    DQ_GO(dq_writer_open(env, path, &w));
    DQ_GO(dq_writer_write(w, data, bytes));
    DQ_GO(dq_writer_commit(w));
done:
    dq_writer_free(w);
    return status;
}
