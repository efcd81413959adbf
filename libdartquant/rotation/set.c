/* Assembling a rotation set. Draw order from one generator (MT19937 seeded as torch.manual_seed): first R1, then R2 of
 * layer 0, 1, ...; R1's draws are consumed even when R1 is off or loaded, so that R2 does not depend on it.
 * SPDX-License-Identifier: Apache-2.0 */
#include <math.h>
#include <string.h>

#include "base/status.h"
#include "rotation/parts.h"

static dq_status check_options(const dq_arch *arch, const dq_rotation_options *o)
{
    if (arch->hidden < 1 || arch->layers < 1 || arch->heads < 1 || arch->kv_heads < 1 || arch->head_dim < 1 ||
        arch->intermediate < 1)
        return dq_fail(DQ_E_INVALID, "rotation: the model's sizes are not positive");
    if (o->mode != DQ_ROTATE_HADAMARD && o->mode != DQ_ROTATE_RANDOM)
        return dq_fail(DQ_E_INVALID, "rotation: unknown mode %d", (int)o->mode);
    if (o->r1_path && !o->use_r1) return dq_fail(DQ_E_INVALID, "r1_path is given but use_r1 is off");
    if (o->r2_path && o->use_r2 != DQ_R2_OFFLINE)
        return dq_fail(DQ_E_INVALID, "r2_path is given but use_r2 is not offline");
    return DQ_OK;
}

static dq_status alloc_doubles(dq_env *env, int64_t a, int64_t b, int64_t c, double **out)
{
    size_t count;
    if (!dq_mul_ok((size_t)a, (size_t)b, &count) || !dq_mul_ok(count, (size_t)c, &count) ||
        !dq_mul_ok(count, sizeof(double), &count))
        return dq_fail(DQ_E_NOMEM, "rotation matrices are too large");
    *out = dq_alloc(env, count);
    return *out ? DQ_OK : DQ_E_NOMEM;
}

/* One draw per layer, repeated over the KV heads. */
static dq_status draw_r2(dq_device *dev, dq_rotate_mode mode, dq_rng *rng, dq_rotation_set *set)
{
    int64_t size = set->head_dim * set->head_dim;
    for (int64_t l = 0; l < set->layers; l++) {
        double *first = set->r2 + l * set->kv_heads * size;
        DQ_TRY(dq_rotation_draw(dev, mode, set->head_dim, rng, first));
        for (int64_t g = 1; g < set->kv_heads; g++) memcpy(first + g * size, first, (size_t)size * sizeof *first);
    }
    return DQ_OK;
}

static dq_status make_r1_r2(dq_device *dev, const dq_rotation_options *o, dq_rotation_set *set)
{
    dq_rng rng;
    dq_rng_seed_torch(&rng, o->seed);
    if (o->use_r1) DQ_TRY(alloc_doubles(set->env, set->hidden, set->hidden, 1, &set->r1));
    bool needs_r2 = o->use_r2 == DQ_R2_OFFLINE && !o->r2_path;
    bool needs_r1 = o->use_r1 && !o->r1_path;
    if (needs_r1 || needs_r2) DQ_TRY(dq_rotation_draw(dev, o->mode, set->hidden, &rng, needs_r1 ? set->r1 : NULL));
    if (o->r1_path) DQ_TRY(dq_rotation_load_r1(dev, o->r1_path, set));
    if (o->use_r2 == DQ_R2_OFFLINE) {
        DQ_TRY(alloc_doubles(set->env, set->layers * set->kv_heads, set->head_dim, set->head_dim, &set->r2));
        if (o->r2_path)
            DQ_TRY(dq_rotation_load_r2(dev, o->r2_path, set));
        else
            DQ_TRY(draw_r2(dev, o->mode, &rng, set));
    }
    return DQ_OK;
}

static dq_status make_online(const dq_rotation_options *o, dq_rotation_set *set)
{
    if (o->use_r2 == DQ_R2_ONLINE) {
        DQ_TRY(dq_hadamard_make(set->env, set->heads, true, &set->r2_heads));
        DQ_TRY(dq_hadamard_make(set->env, set->head_dim, true, &set->r2_head_dim));
    }
    if (o->use_r3) {
        DQ_TRY(dq_hadamard_make(set->env, set->head_dim, true, &set->r3));
        if (set->r3.k > 1)
            dq_log(set->env, DQ_LOG_INFO, "R3: head size %lld is no power of two, its Hadamard has a core of %lld",
                   (long long)set->head_dim, (long long)set->r3.k);
    }
    if (o->use_r4) DQ_TRY(dq_hadamard_make(set->env, set->intermediate, true, &set->r4));
    return DQ_OK;
}

static dq_status describe(const dq_rotation_options *o, dq_rotation_set *set)
{
    const char *mode = o->mode == DQ_ROTATE_HADAMARD ? "hadamard" : "random";
    set->origin = dq_asprintf(set->env, "%s, seed %llu%s%s%s%s", mode, (unsigned long long)o->seed,
                              o->r1_path ? ", R1 from " : "", o->r1_path ? o->r1_path : "",
                              o->r2_path ? ", R2 from " : "", o->r2_path ? o->r2_path : "");
    return set->origin ? DQ_OK : DQ_E_NOMEM;
}

dq_status dq_rotation_set_make(dq_device *dev, const dq_arch *arch, const dq_rotation_options *o, dq_rotation_set **out)
{
    DQ_TRY(check_options(arch, o));
    dq_env *env = dq_device_env(dev);
    dq_status status = DQ_OK;
    dq_rotation_set *set = dq_calloc(env, 1, sizeof *set);
    if (!set) return DQ_E_NOMEM;
    set->env = env;
    set->hidden = arch->hidden;
    set->layers = arch->layers;
    set->heads = arch->heads;
    set->kv_heads = arch->kv_heads;
    set->head_dim = arch->head_dim;
    set->intermediate = arch->intermediate;
    set->r2_mode = o->use_r2;
    DQ_GO(make_r1_r2(dev, o, set));
    DQ_GO(make_online(o, set));
    DQ_GO(describe(o, set));
    *out = set;
    return DQ_OK;
done:
    dq_rotation_set_free(set);
    return status;
}

dq_status dq_rotation_set_error(dq_device *dev, const dq_rotation_set *set, double *out)
{
    double worst = 0;
    if (set->r1) DQ_TRY(dq_rotation_matrix_error(dev, set->r1, set->hidden, &worst));
    int64_t matrices = set->r2 ? set->layers * set->kv_heads : 0, size = set->head_dim * set->head_dim;
    for (int64_t i = 0; i < matrices; i++) {
        double e;
        DQ_TRY(dq_rotation_matrix_error(dev, set->r2 + i * size, set->head_dim, &e));
        if (!(e <= worst)) worst = isnan(worst) ? worst : e;
    }
    *out = worst;
    return DQ_OK;
}
