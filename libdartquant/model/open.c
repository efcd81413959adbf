/* Opening models by what a path holds. SPDX-License-Identifier: Apache-2.0 */
#include <string.h>

#include "base/status.h"
#include "io/file.h"
#include "io/formats.h"
#include "model/manifest.h"

enum { CONFIG_LIMIT = 1 << 24 };

static dq_status open_gguf(dq_device *dev, const char *path, dq_model **out)
{
    dq_source *source;
    dq_arch arch;
    DQ_TRY(dq_gguf_open(dq_device_env(dev), path, &source));
    dq_status status = dq_arch_from_gguf(source, &arch);
    if (status != DQ_OK) {
        dq_source_free(source);
        return dq_error_in_file(status, path);
    }
    return dq_model_from_source(dev, &arch, source, true, out);
}

static dq_status open_hf_config(dq_device *dev, const char *dir, const char *path, dq_model **out)
{
    dq_env *env = dq_device_env(dev);
    dq_source *source;
    dq_arch arch;
    json_t *config = NULL;
    if (!dq_path_exists(path))
        return dq_error_in_file(
            dq_fail(DQ_E_NOTFOUND, "the folder holds no model: neither " DQ_MANIFEST " nor config.json is there"), dir);
    DQ_TRY(dq_json_load(env, path, CONFIG_LIMIT, &config));
    dq_status status = dq_arch_from_hf_json(config, path, &arch); /* before the shards, whose list may be long */
    if (status == DQ_OK) status = dq_source_open(env, dir, &source);
    if (status == DQ_OK) status = dq_model_from_hf(dev, config, dir, path, source, out);
    json_decref(config);
    return status;
}

static dq_status open_hf(dq_device *dev, const char *dir, dq_model **out)
{
    char *path = dq_path_join(dq_device_env(dev), dir, "config.json");
    if (!path) return DQ_E_NOMEM;
    dq_status status = open_hf_config(dev, dir, path, out);
    dq_free(path);
    return status;
}

static dq_status open_dir(dq_device *dev, const char *path, dq_model **out)
{
    char *manifest = dq_path_join(dq_device_env(dev), path, DQ_MANIFEST);
    if (!manifest) return DQ_E_NOMEM;
    bool saved = dq_path_exists(manifest);
    dq_free(manifest);
    return saved ? dq_model_load_saved(dev, path, out) : open_hf(dev, path, out);
}

static dq_status open_any(dq_device *dev, const char *path, dq_model **out)
{
    if (!dq_path_exists(path)) return dq_error_in_file(dq_fail(DQ_E_IO, "no such file or folder"), path);
    if (dq_path_is_dir(path)) return open_dir(dev, path, out);
    if (dq_path_ends_with(path, ".safetensors") || dq_path_ends_with(path, ".json"))
        return dq_error_in_file(dq_fail(DQ_E_UNSUPPORTED, "a model is opened by its folder, which holds the "
                                                          "configuration too"),
                                path);
    return open_gguf(dev, path, out);
}

dq_status dq_model_open_path(dq_device *dev, const char *path, dq_model **out)
{
    dq_model *m;
    DQ_TRY(open_any(dev, path, &m));
    m->path = dq_strdup(m->env, path);
    if (!m->path) {
        dq_model_release(m);
        return DQ_E_NOMEM;
    }
    *out = m;
    return DQ_OK;
}
