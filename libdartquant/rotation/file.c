/* Rotations in files: our own safetensors, DartQuant's .pt dictionaries, SpinQuant's R.bin (same key names).
 * SPDX-License-Identifier: Apache-2.0 */
#include <math.h>
#include <stdio.h>
#include <string.h>

#include "base/status.h"
#include "io/file.h"
#include "io/formats.h"
#include "rotation/parts.h"

enum { NAME_SIZE = 64 };

static void r2_name(char *buf, int64_t layer)
{
    snprintf(buf, NAME_SIZE, "model.layers.%lld.self_attn.R2", (long long)layer);
}

/* "[4096, 4096]" */
static void shape_text(const dq_tensor_info *t, char *buf, size_t size)
{
    size_t used = (size_t)snprintf(buf, size, "[");
    for (int i = 0; i < t->ndim && used + 24 < size; i++)
        used += (size_t)snprintf(buf + used, size - used, "%s%lld", i ? ", " : "", (long long)t->shape[i]);
    snprintf(buf + used, size - used, "]");
}

static bool is_square(const dq_tensor_info *t, int64_t n)
{
    return t->ndim == 2 && t->shape[0] == n && t->shape[1] == n;
}

/* All values as doubles; F64 is taken as it is, the rest through fp32. */
static dq_status read_doubles(dq_env *env, dq_source *source, int64_t tensor, int64_t count, double *out)
{
    const dq_tensor_info *t = &source->tensors[tensor];
    if (t->dtype == DQ_F64) return dq_source_read_raw(source, tensor, 0, (uint64_t)count * 8, out);
    float *values = dq_alloc(env, (size_t)count * sizeof *values); /* count doubles are already allocated */
    if (!values) return DQ_E_NOMEM;
    dq_status status = dq_source_read_rows(source, tensor, 0, dq_info_rows(t), values);
    for (int64_t i = 0; i < count && status == DQ_OK; i++) out[i] = values[i];
    dq_free(values);
    return status;
}

static dq_status check_orthogonal(dq_device *dev, const double *r, int64_t n, const char *what)
{
    double e;
    DQ_TRY(dq_rotation_matrix_error(dev, r, n, &e));
    if (isnan(e)) return dq_fail(DQ_E_NONFINITE, "%s contains NaN or Inf", what);
    if (!(e <= DQ_ROTATION_TOLERANCE))
        return dq_fail(DQ_E_NUMERIC, "%s is not orthogonal: max |R^T R - I| = %.3g, allowed %.0e", what, e,
                       DQ_ROTATION_TOLERANCE);
    return DQ_OK;
}

/* Key "R1", or the only tensor of a file that holds a bare one. */
static dq_status load_r1(dq_device *dev, dq_source *source, dq_rotation_set *set)
{
    int64_t n = set->hidden, index = dq_source_find(source, "R1");
    if (index < 0 && source->count == 1) index = 0;
    if (index < 0) return dq_fail(DQ_E_MISMATCH, "no tensor \"R1\" in the file");
    const dq_tensor_info *t = &source->tensors[index];
    if (!is_square(t, n)) {
        char shape[128];
        shape_text(t, shape, sizeof shape);
        return dq_error_in_tensor(
            dq_fail(DQ_E_MISMATCH, "R1 has shape %s, the model needs [%lld, %lld]", shape, (long long)n, (long long)n),
            t->name);
    }
    DQ_TRY(dq_error_in_tensor(read_doubles(set->env, source, index, n * n, set->r1), t->name));
    return dq_error_in_tensor(check_orthogonal(dev, set->r1, n, "R1"), t->name);
}

/* [kv_heads, d, d], or [d, d] for all heads of the layer (SpinQuant). */
static dq_status load_layer_r2(dq_device *dev, dq_source *source, int64_t layer, dq_rotation_set *set)
{
    char name[NAME_SIZE];
    r2_name(name, layer);
    int64_t d = set->head_dim, size = d * d, index = dq_source_find(source, name);
    if (index < 0) return dq_fail(DQ_E_MISMATCH, "no tensor \"%s\" in the file", name);
    const dq_tensor_info *t = &source->tensors[index];
    double *out = set->r2 + layer * set->kv_heads * size;
    bool shared = is_square(t, d);
    bool per_head = t->ndim == 3 && t->shape[0] == set->kv_heads && t->shape[1] == d && t->shape[2] == d;
    if (!shared && !per_head) {
        char shape[128];
        shape_text(t, shape, sizeof shape);
        return dq_error_in_tensor(
            dq_fail(DQ_E_MISMATCH, "R2 has shape %s, the model needs [%lld, %lld, %lld] or [%lld, %lld]", shape,
                    (long long)set->kv_heads, (long long)d, (long long)d, (long long)d, (long long)d),
            name);
    }
    int64_t matrices = shared ? 1 : set->kv_heads;
    DQ_TRY(dq_error_in_tensor(read_doubles(set->env, source, index, matrices * size, out), name));
    for (int64_t g = 0; g < matrices; g++)
        DQ_TRY(dq_error_in_tensor(check_orthogonal(dev, out + g * size, d, "R2"), name));
    for (int64_t g = matrices; g < set->kv_heads; g++) memcpy(out + g * size, out, (size_t)size * sizeof *out);
    return DQ_OK;
}

static dq_status load_r2(dq_device *dev, dq_source *source, dq_rotation_set *set)
{
    char next[NAME_SIZE];
    r2_name(next, set->layers);
    if (dq_source_find(source, next) >= 0)
        return dq_fail(DQ_E_MISMATCH, "the file holds \"%s\", the model has only %lld layers", next,
                       (long long)set->layers);
    for (int64_t l = 0; l < set->layers; l++) DQ_TRY(load_layer_r2(dev, source, l, set));
    return DQ_OK;
}

typedef dq_status (*load_fn)(dq_device *dev, dq_source *source, dq_rotation_set *set);

static dq_status load_with(dq_device *dev, const char *path, dq_rotation_set *set, load_fn load)
{
    dq_source *source = NULL;
    DQ_TRY(dq_source_open(set->env, path, &source));
    dq_status status = dq_error_in_file(load(dev, source, set), path);
    dq_source_free(source);
    return status;
}

dq_status dq_rotation_load_r1(dq_device *dev, const char *path, dq_rotation_set *set)
{
    return load_with(dev, path, set, load_r1);
}

dq_status dq_rotation_load_r2(dq_device *dev, const char *path, dq_rotation_set *set)
{
    return load_with(dev, path, set, load_r2);
}

/* Splits "dir/stem.safetensors". */
static dq_status split_path(dq_env *env, const char *path, char **dir, char **stem)
{
    static const char suffix[] = ".safetensors";
    const char *base = strrchr(path, '/');
    base = base ? base + 1 : path;
    *stem = dq_strndup(env, base, strlen(base) - strlen(suffix));
    if (!*stem) return DQ_E_NOMEM;
    if (base == path)
        *dir = dq_strdup(env, ".");
    else
        *dir = dq_strndup(env, path, base - path > 1 ? (size_t)(base - path - 1) : 1);
    return *dir ? DQ_OK : DQ_E_NOMEM;
}

static dq_status add_all(const dq_rotation_set *set, dq_sink *sink)
{
    int64_t h = set->hidden, d = set->head_dim;
    if (set->r1) DQ_TRY(sink->ops->add(sink, "R1", DQ_F64, 2, (int64_t[]){h, h}, set->r1, (uint64_t)(h * h) * 8));
    for (int64_t l = 0; set->r2 && l < set->layers; l++) {
        char name[NAME_SIZE];
        r2_name(name, l);
        int64_t count = set->kv_heads * d * d;
        DQ_TRY(sink->ops->add(sink, name, DQ_F64, 3, (int64_t[]){set->kv_heads, d, d}, set->r2 + l * count,
                              (uint64_t)count * 8));
    }
    if (set->origin) DQ_TRY(sink->ops->set_metadata(sink, "origin", set->origin));
    if (set->manifest) DQ_TRY(sink->ops->set_metadata(sink, "manifest", set->manifest));
    return sink->ops->finish(sink);
}

/* `count` doubles as a tensor of floats. */
static dq_status add_floats(dq_env *env, dq_sink *sink, const char *name, int ndim, const int64_t *shape,
                            const double *values, int64_t count)
{
    float *narrow = dq_alloc(env, (size_t)count * sizeof *narrow);
    if (!narrow) return DQ_E_NOMEM;
    for (int64_t i = 0; i < count; i++) narrow[i] = (float)values[i];
    dq_status status = sink->ops->add(sink, name, DQ_F32, ndim, shape, narrow, (uint64_t)count * sizeof *narrow);
    dq_free(narrow);
    return status;
}

/* Whether all heads of the layer have the matrix of the first. */
static bool is_shared(const dq_rotation_set *set, int64_t layer)
{
    size_t size = (size_t)(set->head_dim * set->head_dim);
    const double *first = set->r2 + (size_t)(layer * set->kv_heads) * size;
    for (int64_t g = 1; g < set->kv_heads; g++)
        if (memcmp(first, first + (size_t)g * size, size * sizeof *first) != 0) return false;
    return true;
}

/* DartQuant's dictionaries, fp32: "R1" [hidden, hidden], R2 [kv_heads, d, d]. SpinQuant's have one R2 [d, d] per layer. */
static dq_status add_pickled(const dq_rotation_set *set, bool spinquant, dq_sink *sink)
{
    int64_t h = set->hidden, d = set->head_dim, kv = set->kv_heads;
    if (set->r1) DQ_TRY(add_floats(set->env, sink, "R1", 2, (int64_t[]){h, h}, set->r1, h * h));
    for (int64_t l = 0; set->r2 && l < set->layers; l++) {
        char name[NAME_SIZE];
        const double *r2 = set->r2 + l * kv * d * d;
        r2_name(name, l);
        if (spinquant && !is_shared(set, l))
            return dq_fail(
                DQ_E_UNSUPPORTED,
                "R.bin holds one R2 per layer, layer %lld has one for each of its %lld heads: save as .pt, or "
                "learn one for all of them (r2_shared)",
                (long long)l, (long long)kv);
        const int64_t shape[3] = {kv, d, d};
        DQ_TRY(spinquant ? add_floats(set->env, sink, name, 2, shape + 1, r2, d * d)
                         : add_floats(set->env, sink, name, 3, shape, r2, kv * d * d));
    }
    return sink->ops->finish(sink);
}

typedef enum file_kind { SAFETENSORS, DARTQUANT_PT, SPINQUANT_BIN, UNKNOWN } file_kind;

static file_kind kind_of(const char *path)
{
    static const char *const suffixes[] = {".safetensors", ".pt", ".bin"};
    const char *base = strrchr(path, '/');
    base = base ? base + 1 : path;
    for (int i = 0; i < UNKNOWN; i++)
        if (dq_path_ends_with(base, suffixes[i]) && strlen(base) > strlen(suffixes[i])) return (file_kind)i;
    return UNKNOWN;
}

static dq_status open_sink(dq_env *env, const char *path, file_kind kind, dq_sink **out)
{
    if (kind != SAFETENSORS) return dq_pt_sink(env, path, false, out);
    char *dir = NULL, *stem = NULL;
    dq_status status = split_path(env, path, &dir, &stem);
    if (status == DQ_OK) status = dq_safetensors_sink(env, dir, stem, UINT64_MAX, out);
    dq_free(dir);
    dq_free(stem);
    return status;
}

dq_status dq_rotation_set_save(const dq_rotation_set *set, const char *path)
{
    dq_sink *sink = NULL;
    file_kind kind = kind_of(path);
    if (!set->r1 && !set->r2) return dq_fail(DQ_E_STATE, "the rotation set has neither R1 nor R2 to save");
    if (kind == UNKNOWN)
        return dq_fail(DQ_E_INVALID, "rotations are saved as NAME.safetensors, NAME.pt or NAME.bin, not as \"%s\"",
                       path);
    dq_status status = open_sink(set->env, path, kind, &sink);
    if (status == DQ_OK)
        status = kind == SAFETENSORS ? add_all(set, sink) : add_pickled(set, kind == SPINQUANT_BIN, sink);
    if (sink) sink->ops->free(sink);
    return dq_error_in_file(status, path);
}
