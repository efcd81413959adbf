/* Conventions of compressed-tensors: an online input transform is x -> x M / sqrt(n) in blocks of n = head_dim elements, M
 * of entries +1 and -1 (for "hadamard": Sylvester's). Ours is x -> x H^T / sqrt(n) with H = HK (x) Sylvester, so M = H^T.
 * SPDX-License-Identifier: Apache-2.0 */
#include "model/transforms.h"

#include <math.h>
#include <stdio.h>
#include <string.h>

#include "base/status.h"

typedef struct scheme {
    const char *group, *type;
    int64_t head_dim; /* 0 = the whole width */
} scheme;

/* +1 or -1: element (i, j) of Sylvester's matrix */
static int sylvester(int64_t i, int64_t j) { return __builtin_popcountll((unsigned long long)(i & j)) & 1 ? -1 : 1; }

static bool is_power_of_two(int64_t n) { return n > 0 && (n & (n - 1)) == 0; }

/* Whether M^T = HK (x) Sylvester(n / k). */
static bool fits(const float *m, int64_t n, int64_t k, int8_t *hk)
{
    int64_t s = n / k;
    for (int64_t i = 0; i < k; i++)
        for (int64_t j = 0; j < k; j++) hk[i * k + j] = m[j * s * n + i * s] > 0.0f ? 1 : -1;
    for (int64_t i = 0; i < n; i++)
        for (int64_t j = 0; j < n; j++)
            if (m[j * n + i] * (float)(hk[i / s * k + j / s] * sylvester(i % s, j % s)) <= 0.0f) return false;
    return true;
}

static dq_status check_entries(const float *m, int64_t n, float size)
{
    for (int64_t i = 0; i < n * n; i++)
        if (!(fabsf(fabsf(m[i]) - size) <= 1e-2f * size)) /* NaN too */
            return dq_fail(DQ_E_UNSUPPORTED,
                           "the matrix of an online transform has the entry %g; only matrices of +1 and -1 (over "
                           "sqrt(n)) run here",
                           (double)m[i]);
    return DQ_OK;
}

static dq_status factor(dq_env *env, const float *m, int64_t n, dq_hadamard *h)
{
    for (int64_t k = 1; k <= n; k++) {
        if (n % k != 0 || !is_power_of_two(n / k)) continue;
        int8_t *hk = dq_alloc(env, (size_t)(k * k));
        if (!hk) return DQ_E_NOMEM;
        if (fits(m, n, k, hk) && (k > 1 || hk[0] > 0)) {
            h->k = k;
            h->hk = k > 1 ? hk : NULL;
            if (k == 1) dq_free(hk);
            return DQ_OK;
        }
        dq_free(hk);
    }
    return dq_fail(DQ_E_INTERNAL, "a matrix that is not even its own factor");
}

/* The stored matrix of a group, which all its modules share: "<module>.<group>_<location>.weight". */
static dq_status read_matrix(dq_source *source, const scheme *t, const char *location, int64_t n, dq_hadamard *h)
{
    char suffix[128];
    int64_t first = -1;
    float *m = NULL;
    dq_status status = DQ_OK;
    snprintf(suffix, sizeof suffix, ".%s_%s.weight", t->group, location);
    for (int64_t i = 0; i < source->count && first < 0; i++) {
        size_t length = strlen(source->tensors[i].name);
        if (length > strlen(suffix) && strcmp(source->tensors[i].name + length - strlen(suffix), suffix) == 0)
            first = i;
    }
    if (first < 0) return dq_error_in_tensor(dq_fail(DQ_E_NOTFOUND, "no module has this matrix"), suffix + 1);
    const dq_tensor_info *info = &source->tensors[first];
    if (n > DQ_TRANSFORM_MATRIX_LIMIT || dq_info_rows(info) != n || dq_info_cols(info) != n)
        return dq_error_in_tensor(dq_fail(DQ_E_MISMATCH, "a matrix of %lld x %lld where %lld belong (at most %d)",
                                          (long long)dq_info_rows(info), (long long)dq_info_cols(info), (long long)n,
                                          DQ_TRANSFORM_MATRIX_LIMIT),
                                  info->name);
    m = dq_alloc(source->env, (size_t)(n * n) * sizeof *m);
    if (!m) return DQ_E_NOMEM;
    DQ_GO(dq_source_read_rows(source, first, 0, n, m));
    DQ_GO(check_entries(m, n, strcmp(t->type, "random-matrix") == 0 ? 1.0f / sqrtf((float)n) : 1.0f));
    DQ_GO(factor(source->env, m, n, h));
done:
    dq_free(m);
    return dq_error_in_tensor(status, info->name);
}

static dq_status make_hadamard(dq_source *source, const scheme *t, const char *location, int64_t width, dq_hadamard *h)
{
    int64_t n = t->head_dim > 0 ? t->head_dim : width;
    if (width % n != 0)
        return dq_fail(DQ_E_FORMAT, "transform %s: blocks of %lld do not divide %lld", t->group, (long long)n,
                       (long long)width);
    *h = (dq_hadamard){.n = n, .blocks = width / n, .k = 1};
    if (strcmp(t->type, "hadamard") == 0 && is_power_of_two(n)) return DQ_OK;
    if (strcmp(t->type, "hadamard") == 0)
        return dq_fail(DQ_E_UNSUPPORTED,
                       "transform %s: a Hadamard matrix of order %lld is not stored, and tables differ", t->group,
                       (long long)n);
    dq_status status = read_matrix(source, t, location, n, h);
    if (status != DQ_OK) *h = (dq_hadamard){0};
    return status;
}

/* Which roles an input transform turns: it must be down_proj of all layers and nothing else. */
static dq_status check_input(const dq_quant_config *config, const dq_arch *a, const scheme *t, const json_t *args)
{
    char name[DQ_TENSOR_NAME];
    for (int64_t layer = 0; layer < a->layers; layer++)
        for (int role = 0; role < DQ_LINEARS; role++) {
            bool target, ignored;
            if (!dq_arch_has(a, (dq_role)role)) continue;
            dq_arch_module_name(a, (dq_role)role, layer, name, sizeof name);
            DQ_TRY(dq_targets_match(config->env, json_object_get(args, "targets"), name, &target));
            DQ_TRY(dq_targets_match(config->env, json_object_get(args, "ignore"), name, &ignored));
            if ((target && !ignored) != (role == DQ_DOWN_PROJ))
                return dq_error_in_tensor(
                    dq_fail(DQ_E_UNSUPPORTED, "transform %s: online rotations of inputs run at %s of all layers only",
                            t->group, dq_arch_role_name(a, DQ_DOWN_PROJ)),
                    name);
        }
    return DQ_OK;
}

static dq_status read_apply(dq_source *source, const dq_quant_config *config, const dq_arch *a, const scheme *t,
                            const json_t *args, dq_rotation_set *set)
{
    const char *location;
    bool inverse = false;
    DQ_TRY(dq_json_string(args, "location", true, config->path, &location));
    DQ_TRY(dq_json_bool(args, "inverse", false, config->path, &inverse));
    if (strncmp(location, "weight_", 7) == 0) return DQ_OK;
    if (strcmp(location, "q_attn") == 0 || strcmp(location, "k_cache") == 0) {
        if (set->r3.n || (t->head_dim > 0 && t->head_dim != a->head_dim)) return DQ_OK; /* Q K^T knows no rotation */
        return make_hadamard(source, t, location, a->head_dim, &set->r3);
    }
    if (strcmp(location, "input") != 0 || inverse || set->r4.n)
        return dq_fail(DQ_E_UNSUPPORTED, "transform %s: location \"%s\"%s is not supported online", t->group, location,
                       inverse ? " (inverse)" : "");
    DQ_TRY(check_input(config, a, t, args));
    return make_hadamard(source, t, location, a->intermediate, &set->r4);
}

static dq_status read_group(dq_source *source, const dq_quant_config *config, const dq_arch *a, const char *name,
                            const json_t *group, dq_rotation_set *set)
{
    size_t i;
    json_t *args;
    bool randomize = false;
    scheme t = {.group = name, .type = "hadamard"};
    DQ_TRY(dq_json_string(group, "type", false, config->path, &t.type));
    DQ_TRY(dq_json_int(group, "head_dim", 1, 1 << 24, false, config->path, &t.head_dim));
    DQ_TRY(dq_json_bool(group, "randomize", false, config->path, &randomize));
    if (randomize) return dq_fail(DQ_E_UNSUPPORTED, "transform %s: randomize is not supported", name);
    if (strcmp(t.type, "hadamard") != 0 && strcmp(t.type, "random-hadamard") != 0 &&
        strcmp(t.type, "random-matrix") != 0)
        return dq_fail(DQ_E_UNSUPPORTED, "transform %s: type \"%s\" is not known", name, t.type);
    json_array_foreach(json_object_get(group, "apply"), i, args)
    {
        DQ_TRY(read_apply(source, config, a, &t, args, set));
    }
    return DQ_OK;
}

dq_status dq_transforms_read(dq_source *source, const dq_quant_config *config, const dq_arch *a, dq_rotation_set **out)
{
    const json_t *o = json_object_get(config->json, "transform_config");
    const char *name;
    json_t *group;
    dq_status status = DQ_OK;
    *out = NULL;
    if (config->method != DQ_METHOD_CT || !json_is_object(o)) return DQ_OK;
    dq_rotation_set *s = dq_calloc(source->env, 1, sizeof *s);
    if (!s) return DQ_E_NOMEM;
    s->env = source->env;
    s->hidden = a->hidden;
    s->layers = a->layers;
    s->heads = a->heads;
    s->kv_heads = a->kv_heads;
    s->head_dim = a->head_dim;
    s->intermediate = a->intermediate;
    s->origin = dq_strdup(source->env, "transform_config of the checkpoint");
    if (!s->origin) status = DQ_E_NOMEM;
    json_object_foreach(json_object_get(o, "config_groups"), name, group)
    {
        if (status == DQ_OK) status = read_group(source, config, a, name, group, s);
    }
    if (status == DQ_OK && (s->r3.n || s->r4.n))
        *out = s;
    else
        dq_rotation_set_free(s);
    return status;
}
