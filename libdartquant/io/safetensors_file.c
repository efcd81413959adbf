/* Writing one safetensors file by its path. SPDX-License-Identifier: Apache-2.0 */
#include <string.h>

#include "base/status.h"
#include "io/file.h"
#include "io/formats.h"

/* Splits "dir/stem.safetensors". */
static dq_status split_path(dq_env *env, const char *path, char **dir, char **stem)
{
    static const char suffix[] = ".safetensors";
    const char *base = strrchr(path, '/');
    base = base ? base + 1 : path;
    if (!dq_path_ends_with(base, suffix) || strlen(base) == strlen(suffix))
        return dq_fail(DQ_E_INVALID, "the file must be called NAME.safetensors, not \"%s\"", path);
    *stem = dq_strndup(env, base, strlen(base) - strlen(suffix));
    if (!*stem) return DQ_E_NOMEM;
    if (base == path)
        *dir = dq_strdup(env, ".");
    else
        *dir = dq_strndup(env, path, base - path > 1 ? (size_t)(base - path - 1) : 1);
    return *dir ? DQ_OK : DQ_E_NOMEM;
}

dq_status dq_safetensors_sink_file(dq_env *env, const char *path, dq_sink **out)
{
    char *dir = NULL, *stem = NULL;
    dq_status status = split_path(env, path, &dir, &stem);
    if (status == DQ_OK) status = dq_safetensors_sink(env, dir, stem, UINT64_MAX, out);
    dq_free(dir);
    dq_free(stem);
    return status;
}
