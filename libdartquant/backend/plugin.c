/* Backends in files of their own. Nothing is loaded unless it is named, and never from the current folder.
 * SPDX-License-Identifier: Apache-2.0 */
#include <dlfcn.h>
#include <errno.h>
#include <limits.h>
#include <stdio.h>
#include <string.h>
#include <unistd.h>

#include "backend/device_internal.h"
#include "base/status.h"

#define PLUGIN_FOLDER "dartquant/backends-1"
#define KNOWN "auto, cpu, ref"

/* dlerror() belongs to the thread; its text starts with the path, which the record already has. */
static const char *reason(const char *path)
{
    const char *text = dlerror();
    size_t n = strlen(path);
    if (!text) return "no reason given";
    return strncmp(text, path, n) == 0 && strncmp(text + n, ": ", 2) == 0 ? text + n + 2 : text;
}

static dq_status load(const char *path, const dq_backend **out)
{
    if (access(path, F_OK) != 0)
        return dq_fail(errno == ENOENT || errno == ENOTDIR ? DQ_E_NOTFOUND : DQ_E_IO, "plug-in: %s", strerror(errno));
    /* Stays loaded: the host may still hold its table, and many driver libraries do not survive being unloaded. */
    void *file = dlopen(path, RTLD_NOW | RTLD_LOCAL | RTLD_NODELETE);
    if (!file) return dq_fail(DQ_E_BACKEND, "plug-in cannot be loaded: %s", reason(path));
    dq_backend_entry_fn entry = NULL;
    void *symbol = dlsym(file, DQ_BACKEND_ENTRY);
    if (!symbol) {
        dq_status status = dq_fail(DQ_E_BACKEND, "plug-in has no symbol " DQ_BACKEND_ENTRY ": %s", reason(path));
        dlclose(file);
        return status;
    }
    memcpy(&entry, &symbol, sizeof entry); /* ISO C has no conversion between the two kinds of pointers */
    const dq_backend *table = entry(DQ_BACKEND_ABI);
    if (!table)
        return dq_fail(DQ_E_UNSUPPORTED, "plug-in does not speak abi %u of this library's backend.h", DQ_BACKEND_ABI);
    DQ_TRY(dq_backend_check(table));
    *out = table;
    return DQ_OK;
}

static bool is_plain_name(const char *name)
{
    size_t n = strlen(name);
    return n > 0 && n < 64 && strspn(name, "abcdefghijklmnopqrstuvwxyz0123456789_-") == n;
}

/* The plug-in `name` beside this library; false when the library's own place is not an absolute path. */
static bool beside_library(const char *name, char path[PATH_MAX])
{
    static const char here = 0;
    Dl_info info;
    if (!dladdr(&here, &info) || !info.dli_fname || info.dli_fname[0] != '/') return false;
    int folder = (int)(strrchr(info.dli_fname, '/') - info.dli_fname);
    int n = snprintf(path, PATH_MAX, "%.*s/" PLUGIN_FOLDER "/libdartquant-%s.so", folder, info.dli_fname, name);
    return n > 0 && n < PATH_MAX;
}

dq_status dq_plugin_find(const char *name, const dq_backend **out)
{
    char path[PATH_MAX];
    if (name[0] == '/') return dq_error_in_file(load(name, out), name);
    if (strchr(name, '/')) return dq_fail(DQ_E_INVALID, "backend '%s': the path of a plug-in must be absolute", name);
    if (!is_plain_name(name)) return dq_fail(DQ_E_NOTFOUND, "no backend is called '%s'; known: " KNOWN, name);
    if (!beside_library(name, path))
        return dq_fail(DQ_E_NOTFOUND,
                       "no backend is called '%s'; known: " KNOWN
                       "; plug-ins are not searched because the library was loaded by a relative path",
                       name);
    if (access(path, F_OK) != 0)
        return dq_fail(DQ_E_NOTFOUND, "no backend is called '%s'; known: " KNOWN "; there is no plug-in %s", name,
                       path);
    return dq_error_in_file(load(path, out), path);
}
