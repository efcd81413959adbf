/* Unnamed temporary files. Content is read with pread instead of a map, so that it never counts as this process's memory;
 * what the kernel keeps of it in its cache is given up when somebody needs the room. SPDX-License-Identifier: Apache-2.0 */
#include "io/spool.h"

#include <errno.h>
#include <fcntl.h>
#include <stdlib.h>
#include <string.h>
#include <sys/statvfs.h>
#include <unistd.h>

#include "base/status.h"
#include "io/file.h"

/* A file without a name; where the file system has no such thing, one whose name is removed at once. */
static dq_status open_unnamed(dq_env *env, const char *folder, int *out)
{
    int fd = open(folder, O_TMPFILE | O_RDWR | O_CLOEXEC, 0600);
    if (fd < 0 && (errno == EOPNOTSUPP || errno == EISDIR || errno == EINVAL)) {
        char *name = dq_path_join(env, folder, "dartquant.XXXXXX");
        if (!name) return DQ_E_NOMEM;
        fd = mkostemp(name, O_CLOEXEC);
        int reason = errno;
        if (fd >= 0) unlink(name);
        dq_free(name);
        errno = reason;
    }
    if (fd < 0) return dq_fail_errno(DQ_E_IO, "cannot create a temporary file");
    *out = fd;
    return DQ_OK;
}

static dq_status check_room(int fd, uint64_t expected)
{
    struct statvfs st;
    if (fstatvfs(fd, &st) != 0) return DQ_OK; /* then writing will tell */
    uint64_t unit = st.f_frsize ? st.f_frsize : st.f_bsize, needed = unit ? expected / unit : 0;
    if (st.f_blocks == 0 || needed <= st.f_bavail) return DQ_OK;
    return dq_fail(DQ_E_IO, "a temporary file of %llu bytes is needed, %llu are free", (unsigned long long)expected,
                   (unsigned long long)st.f_bavail * (unsigned long long)unit);
}

dq_status dq_spool_open(dq_env *env, const char *folder, uint64_t expected, dq_spool *out)
{
    dq_status status;
    int fd = -1;
    DQ_GO(open_unnamed(env, folder, &fd));
    DQ_GO(check_room(fd, expected));
    char *copy = dq_strdup(env, folder);
    if (!copy) DQ_GO(DQ_E_NOMEM);
    *out = (dq_spool){.fd = fd, .folder = copy};
    return DQ_OK;
done:
    if (fd >= 0) close(fd);
    return dq_error_in_file(status, folder);
}

static dq_status write_at(dq_spool *s, uint64_t offset, const void *data, uint64_t bytes)
{
    const char *from = data;
    for (uint64_t done = 0; done < bytes;) {
        ssize_t n = pwrite(s->fd, from + done, (size_t)(bytes - done), (off_t)(offset + done));
        if (n < 0 && errno == EINTR) continue;
        if (n == 0) errno = ENOSPC;
        if (n > 0) {
            done += (uint64_t)n;
            continue;
        }
        dq_status status = dq_fail_errno(DQ_E_IO, "cannot write %llu bytes to the temporary file after its first %llu",
                                         (unsigned long long)bytes, (unsigned long long)offset);
        return dq_error_in_file(status, s->folder);
    }
    return DQ_OK;
}

dq_status dq_spool_append(dq_spool *s, const void *data, uint64_t bytes, uint64_t *offset)
{
    DQ_TRY(write_at(s, s->size, data, bytes));
    *offset = s->size;
    s->size += bytes;
    return DQ_OK;
}

dq_status dq_spool_write(dq_spool *s, uint64_t offset, const void *data, uint64_t bytes)
{
    if (offset > s->size || bytes > s->size - offset)
        return dq_error_in_file(dq_fail(DQ_E_INTERNAL, "overwriting what was never written"), s->folder);
    return write_at(s, offset, data, bytes);
}

dq_status dq_spool_read(const dq_spool *s, uint64_t offset, uint64_t bytes, void *out)
{
    char *to = out;
    for (uint64_t done = 0; done < bytes;) {
        ssize_t n = pread(s->fd, to + done, (size_t)(bytes - done), (off_t)(offset + done));
        if (n < 0 && errno == EINTR) continue;
        if (n <= 0) {
            dq_status status = n < 0 ? dq_fail_errno(DQ_E_IO, "cannot read the temporary file")
                                     : dq_fail(DQ_E_IO, "the temporary file ends early");
            return dq_error_at_byte(dq_error_in_file(status, s->folder), offset + done);
        }
        done += (uint64_t)n;
    }
    return DQ_OK;
}

void dq_spool_close(dq_spool *s)
{
    if (!s->folder) return;
    close(s->fd);
    dq_free(s->folder);
    *s = (dq_spool){0};
}
