/* Opening a saved model: manifest, shards, and whether they belong together. SPDX-License-Identifier: Apache-2.0 */
#include <inttypes.h>
#include <stdio.h>
#include <string.h>

#include "base/status.h"
#include "io/file.h"
#include "io/formats.h"
#include "model/clips_json.h"
#include "model/kvquant.h"
#include "model/manifest.h"

enum { MANIFEST_LIMIT = 1 << 24, MANIFEST_VERSION = 3 };

typedef struct manifest {
    dq_arch arch;
    bool fused, centered, has_r1, quantized;
    bool layer_norm; /* of families that have layer norms: not fused away */
    dq_scheme scheme;
    dq_clips *clips;            /* of the scheme */
    dq_kv_tables *tables;       /* likewise */
    dq_rotation_set *rotations; /* tables still missing */
    int64_t tensors, bytes;
    char content[17];
} manifest;

static bool is_present(const json_t *v) { return v && !json_is_null(v); }

static dq_status read_content(const json_t *o, const char *path, manifest *m)
{
    const char *hash;
    if (!json_is_object(o)) return dq_fail(DQ_E_FORMAT, "\"content\" is no object");
    DQ_TRY(dq_json_int(o, "tensors", 1, INT64_MAX, true, path, &m->tensors));
    DQ_TRY(dq_json_int(o, "bytes", 1, INT64_MAX, true, path, &m->bytes));
    DQ_TRY(dq_json_string(o, "fingerprint", true, path, &hash));
    if (strlen(hash) != 16) return dq_fail(DQ_E_FORMAT, "the fingerprint \"%.32s\" has not 16 digits", hash);
    snprintf(m->content, sizeof m->content, "%s", hash);
    return DQ_OK;
}

static dq_status read_manifest(dq_env *env, const json_t *o, const char *path, manifest *m)
{
    const char *format;
    int64_t version;
    if (!json_is_object(o)) return dq_fail(DQ_E_FORMAT, "the manifest is no object");
    DQ_TRY(dq_json_string(o, "format", true, path, &format));
    if (strcmp(format, "dartquant model") != 0)
        return dq_fail(DQ_E_FORMAT, "\"format\" is \"%s\", not \"dartquant model\"", format);
    DQ_TRY(dq_json_int(o, "version", 1, INT32_MAX, true, path, &version));
    if (version > MANIFEST_VERSION)
        return dq_fail(DQ_E_UNSUPPORTED, "manifest version %lld, this library reads versions 1 to %d",
                       (long long)version, MANIFEST_VERSION);
    DQ_TRY(dq_arch_from_json(json_object_get(o, "model"), path, &m->arch));
    DQ_TRY(dq_json_bool(o, "fused", true, path, &m->fused));
    DQ_TRY(dq_json_bool(o, "centered_embedding", true, path, &m->centered));
    if (m->arch.family->layer_norm) DQ_TRY(dq_json_bool(o, "layer_norm", true, path, &m->layer_norm));
    DQ_TRY(read_content(json_object_get(o, "content"), path, m));
    const json_t *quantization = json_object_get(o, "quantization");
    m->quantized = is_present(quantization);
    if (m->quantized) DQ_TRY(dq_scheme_from_json(quantization, path, &m->scheme));
    const json_t *clips = json_object_get(quantization, "clip_ratios");
    if (is_present(clips)) DQ_TRY(dq_clips_from_json(env, clips, m->arch.layers, path, &m->clips));
    m->scheme.clips = m->clips;
    const json_t *rotations = json_object_get(o, "rotations");
    if (!is_present(rotations)) return DQ_OK;
    DQ_TRY(dq_rotations_from_json(env, rotations, path, &m->arch, &m->has_r1, &m->rotations));
    /* R3 and R4 turn what norms do not touch; AWQ's scales are norm weights in the rotated basis */
    if (m->fused || m->scheme.w.awq || (!m->has_r1 && m->rotations->r2_mode == DQ_R2_NONE)) return DQ_OK;
    return dq_fail(DQ_E_FORMAT, "rotations without fused norms");
}

/* The tables of +-1 that the online transforms need. */
static dq_status read_tables(dq_source *source, dq_rotation_set *set)
{
    for (int i = 0; i < DQ_ONLINE_TRANSFORMS; i++) {
        dq_hadamard *h = dq_online_of(set, i);
        char name[DQ_TENSOR_NAME];
        if (h->n == 0 || h->k == 1) continue;
        snprintf(name, sizeof name, "dartquant.%s.hk", dq_online_name(i));
        int64_t t;
        DQ_TRY(dq_source_need(source, name, &t));
        const dq_tensor_info *info = &source->tensors[t];
        if (info->dtype != DQ_I8 || info->bytes != (uint64_t)(h->k * h->k))
            return dq_error_in_tensor(
                dq_fail(DQ_E_MISMATCH, "a table of %lld x %lld int8 was expected", (long long)h->k, (long long)h->k),
                name);
        h->hk = dq_alloc(set->env, (size_t)info->bytes);
        if (!h->hk) return DQ_E_NOMEM;
        DQ_TRY(dq_source_read_raw(source, t, 0, info->bytes, h->hk));
        for (uint64_t e = 0; e < info->bytes; e++)
            if (h->hk[e] != 1 && h->hk[e] != -1)
                return dq_error_in_tensor(
                    dq_fail(DQ_E_FORMAT, "entry %llu is %d, not +1 or -1", (unsigned long long)e, h->hk[e]), name);
    }
    return DQ_OK;
}

/* The shards must be the ones that were saved with this manifest. */
static dq_status check_content(dq_source *source, const manifest *m)
{
    char hash[17];
    dq_digest d;
    DQ_TRY(dq_digest_source(source, &d));
    if (d.count != m->tensors || d.bytes != (uint64_t)m->bytes)
        return dq_fail(DQ_E_MISMATCH,
                       "the shards hold %lld tensors with %llu bytes, the manifest was made for %lld "
                       "with %lld",
                       (long long)d.count, (unsigned long long)d.bytes, (long long)m->tensors, (long long)m->bytes);
    snprintf(hash, sizeof hash, "%016" PRIx64, d.sum);
    if (strcmp(hash, m->content) != 0)
        return dq_fail(DQ_E_MISMATCH, "the shards are not those of this manifest: fingerprint %s, expected %s", hash,
                       m->content);
    return DQ_OK;
}

/* `path`: name of the manifest in messages, NULL = none. Takes over `source`. */
static dq_status from_manifest(dq_device *dev, const char *path, manifest *m, dq_source *source, dq_model **out)
{
    dq_model *model = NULL;
    dq_status status = DQ_OK;
    DQ_GO(check_content(source, m));
    if (m->rotations) DQ_GO(read_tables(source, m->rotations));
    if (m->quantized && dq_scheme_has_levels(&m->scheme)) {
        DQ_GO(dq_kv_tables_read(source, &m->scheme, &m->arch, &m->tables));
        m->scheme.tables = m->tables;
    }
    dq_source *taken = source;
    source = NULL;
    DQ_TRY(dq_model_new_root(dev, &m->arch, taken, false, m->quantized ? &m->scheme : NULL, &model));
    model->fused = m->fused;
    model->layer_norm = m->layer_norm;
    model->centered = m->centered;
    model->has_r1 = m->has_r1;
    model->rotations = model->own_rotations = m->rotations;
    m->rotations = NULL;
    *out = model;
    return DQ_OK;
done:
    dq_source_free(source);
    return path ? dq_error_in_file(status, path) : status;
}

static dq_status load(dq_device *dev, const char *dir, const char *path, manifest *m, dq_model **out)
{
    dq_env *env = dq_device_env(dev);
    json_t *json = NULL;
    dq_source *source = NULL;
    DQ_TRY(dq_json_load(env, path, MANIFEST_LIMIT, &json));
    dq_status status = dq_error_in_file(read_manifest(env, json, path, m), path);
    json_decref(json);
    DQ_TRY(status);
    DQ_TRY(dq_safetensors_open_dir(env, dir, &source));
    return from_manifest(dev, path, m, source, out);
}

static dq_status load_text(dq_device *dev, const json_t *json, dq_source *source, dq_model **out)
{
    manifest m;
    memset(&m, 0, sizeof m);
    dq_status status = read_manifest(dq_device_env(dev), json, NULL, &m);
    if (status == DQ_OK)
        status = from_manifest(dev, NULL, &m, source, out);
    else
        dq_source_free(source);
    dq_rotation_set_free(m.rotations);
    dq_clips_free(m.clips);
    dq_kv_tables_free(m.tables);
    return status;
}

dq_status dq_model_from_text(dq_device *dev, const char *config, dq_source *source, dq_model **out)
{
    json_t *json = NULL;
    const char *format = "";
    dq_status status = dq_json_parse(config, strlen(config), NULL, &json);
    if (status == DQ_OK && json_is_object(json)) status = dq_json_string(json, "format", false, NULL, &format);
    if (status == DQ_OK && strcmp(format, "dartquant model") == 0) {
        status = load_text(dev, json, source, out);
        source = NULL;
    } else if (status == DQ_OK) {
        status = dq_model_from_hf(dev, json, NULL, NULL, source, out);
        source = NULL;
    }
    json_decref(json);
    dq_source_free(source);
    return status;
}

dq_status dq_model_load_saved(dq_device *dev, const char *dir, dq_model **out)
{
    manifest m;
    memset(&m, 0, sizeof m);
    char *path = dq_path_join(dq_device_env(dev), dir, DQ_MANIFEST);
    if (!path) return DQ_E_NOMEM;
    dq_status status = load(dev, dir, path, &m, out);
    dq_rotation_set_free(m.rotations);
    dq_clips_free(m.clips);
    dq_kv_tables_free(m.tables);
    dq_free(path);
    return status;
}
