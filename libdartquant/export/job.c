/* The job: check, write into a folder of another name, open it again and compare, rename. SPDX-License-Identifier: Apache-2.0 */
#include <dirent.h>
#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

#include "base/status.h"
#include "export/parts.h"
#include "io/file.h"
#include "io/formats.h"

static void remove_folder(const char *path)
{
    char file[4096];
    DIR *dir = opendir(path);
    if (!dir) return;
    for (struct dirent *e; (e = readdir(dir));)
        if (strcmp(e->d_name, ".") != 0 && strcmp(e->d_name, "..") != 0 &&
            (size_t)snprintf(file, sizeof file, "%s/%s", path, e->d_name) < sizeof file)
            unlink(file);
    closedir(dir);
    rmdir(path);
}

/* The target must not exist, or be an empty folder. */
static dq_status check_target(const char *path)
{
    struct stat st;
    if (stat(path, &st) != 0) {
        if (errno == ENOENT) return DQ_OK;
        return dq_error_in_file(dq_fail_errno(DQ_E_IO, "cannot look at the folder"), path);
    }
    if (!S_ISDIR(st.st_mode)) return dq_error_in_file(dq_fail(DQ_E_IO, "is no folder"), path);
    DIR *dir = opendir(path);
    if (!dir) return dq_error_in_file(dq_fail_errno(DQ_E_IO, "cannot open the folder"), path);
    int entries = 0;
    while (readdir(dir)) entries++;
    closedir(dir);
    if (entries <= 2) return DQ_OK;
    return dq_error_in_file(dq_fail(DQ_E_IO, "the folder exists and is not empty"), path);
}

static dq_status make_temporary(dq_env *env, const char *dir, char **out)
{
    size_t n = strlen(dir);
    while (n > 1 && dir[n - 1] == '/') n--;
    char *parent = dq_strndup(env, dir, n), *slash = parent ? strrchr(parent, '/') : NULL;
    dq_status status = parent ? DQ_OK : DQ_E_NOMEM;
    if (slash && slash != parent) {
        *slash = '\0';
        status = dq_make_dirs(env, parent);
    }
    dq_free(parent);
    DQ_TRY(status);
    char *path = dq_asprintf(env, "%.*s.tmp.%ld", (int)n, dir, (long)getpid());
    if (!path) return DQ_E_NOMEM;
    remove_folder(path); /* of a process of the same number that died */
    if (mkdir(path, 0777) != 0) {
        status = dq_error_in_file(dq_fail_errno(DQ_E_IO, "cannot make the folder"), path);
        dq_free(path);
        return status;
    }
    *out = path;
    return DQ_OK;
}

static dq_status sync_path(const char *path)
{
    int fd = open(path, O_RDONLY | O_DIRECTORY | O_CLOEXEC);
    if (fd < 0) return dq_error_in_file(dq_fail_errno(DQ_E_IO, "cannot open the folder"), path);
    int failed = fsync(fd) != 0 && errno != EINVAL && errno != ENOTSUP && errno != EROFS;
    dq_status status = failed ? dq_error_in_file(dq_fail_errno(DQ_E_IO, "cannot sync the folder"), path) : DQ_OK;
    close(fd);
    return status;
}

static dq_status write_folder(const dq_export_plan *p, const char *dir)
{
    dq_sink *sink = NULL;
    dq_status status;
    if (p->spec->kind == DQ_EXPORT_GGUF) {
        char *path = dq_path_join(p->env, dir, "model.gguf");
        status = path ? dq_export_gguf(p, path) : DQ_E_NOMEM;
        dq_free(path);
        return status;
    }
    DQ_GO(dq_safetensors_sink(p->env, dir, "model", p->spec->part_size, &sink));
    DQ_GO(dq_export_tensors(p, sink));
    DQ_GO(sink->ops->finish(sink));
    if (p->spec->kind == DQ_EXPORT_DIFFULEX) DQ_GO(dq_export_diffulex(p, dir));
    status = dq_export_files(p, dir);
done:
    if (sink) sink->ops->free(sink);
    return status;
}

static dq_status export_folder(const dq_export_plan *p, const char *dir)
{
    char *temporary = NULL, *file = NULL;
    dq_status status;
    DQ_TRY(check_target(dir));
    DQ_TRY(make_temporary(p->env, dir, &temporary));
    DQ_GO(write_folder(p, temporary));
    file = p->spec->kind == DQ_EXPORT_GGUF ? dq_path_join(p->env, temporary, "model.gguf") : NULL;
    DQ_GO(p->spec->kind == DQ_EXPORT_GGUF && !file ? DQ_E_NOMEM : DQ_OK);
    DQ_GO(dq_export_verify(p, file ? file : temporary));
    DQ_GO(sync_path(temporary));
    if (rename(temporary, dir) != 0) {
        status = dq_error_in_file(dq_fail_errno(DQ_E_IO, "cannot rename %s to", temporary), dir);
        goto done;
    }
    uint64_t units = (uint64_t)dq_model_arch(p->model)->layers + 2;
    status = dq_progress_report(p->progress, "export", units, units, 0.0);
    if (status != DQ_OK) remove_folder(dir);
done:
    if (status != DQ_OK) remove_folder(temporary);
    dq_free(file);
    dq_free(temporary);
    return status;
}

/* A GGUF file takes the place of an earlier one only when it is whole. */
static dq_status export_file(const dq_export_plan *p, const char *path)
{
    DQ_TRY(dq_export_gguf(p, path));
    dq_status status = dq_export_verify(p, path);
    if (status != DQ_OK) unlink(path);
    return status;
}

dq_status dq_export_model(dq_model *model, const dq_export_spec *spec, const char *dir, dq_progress *progress)
{
    dq_export_plan plan;
    dq_status status = dq_export_check(model, spec, &plan);
    plan.progress = progress;
    if (status == DQ_OK) {
        bool file = spec->kind == DQ_EXPORT_GGUF && dq_path_ends_with(dir, ".gguf");
        status = file ? export_file(&plan, dir) : export_folder(&plan, dir);
    }
    dq_export_plan_clear(&plan);
    return status;
}
