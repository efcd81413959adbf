/* Lifetime of rotation sets: copying and freeing. SPDX-License-Identifier: Apache-2.0 */
#include "base/rotation_set.h"

#include <string.h>

#include "base/status.h"

void dq_hadamard_clear(dq_hadamard *h)
{
    if (!h) return;
    dq_free(h->hk);
    *h = (dq_hadamard){0};
}

dq_status dq_hadamard_copy(dq_env *env, const dq_hadamard *h, dq_hadamard *out)
{
    dq_hadamard copy = *h;
    if (h->hk) {
        size_t bytes = (size_t)h->k * (size_t)h->k;
        copy.hk = dq_alloc(env, bytes);
        if (!copy.hk) return DQ_E_NOMEM;
        memcpy(copy.hk, h->hk, bytes);
    }
    *out = copy;
    return DQ_OK;
}

static dq_status copy_doubles(dq_env *env, const double *src, size_t count, double **out)
{
    if (!src) return DQ_OK;
    *out = dq_alloc(env, count * sizeof(double)); /* the original has this size: no overflow */
    if (!*out) return DQ_E_NOMEM;
    memcpy(*out, src, count * sizeof(double));
    return DQ_OK;
}

dq_status dq_rotation_set_copy(const dq_rotation_set *set, dq_rotation_set **out)
{
    dq_env *env = set->env;
    dq_status status = DQ_OK;
    dq_rotation_set *copy = dq_calloc(env, 1, sizeof *copy);
    if (!copy) return DQ_E_NOMEM;
    *copy = *set;
    copy->r1 = copy->r2 = NULL;
    copy->r2_heads = copy->r2_head_dim = copy->r3 = copy->r4 = (dq_hadamard){0};
    copy->origin = copy->manifest = NULL;
    DQ_GO(copy_doubles(env, set->r1, (size_t)set->hidden * (size_t)set->hidden, &copy->r1));
    DQ_GO(copy_doubles(env, set->r2, (size_t)(set->layers * set->kv_heads * set->head_dim * set->head_dim), &copy->r2));
    DQ_GO(dq_hadamard_copy(env, &set->r2_heads, &copy->r2_heads));
    DQ_GO(dq_hadamard_copy(env, &set->r2_head_dim, &copy->r2_head_dim));
    DQ_GO(dq_hadamard_copy(env, &set->r3, &copy->r3));
    DQ_GO(dq_hadamard_copy(env, &set->r4, &copy->r4));
    if (set->origin) {
        copy->origin = dq_strdup(env, set->origin);
        if (!copy->origin) DQ_GO(DQ_E_NOMEM);
    }
    if (set->manifest) {
        copy->manifest = dq_strdup(env, set->manifest);
        if (!copy->manifest) DQ_GO(DQ_E_NOMEM);
    }
    *out = copy;
    return DQ_OK;
done:
    dq_rotation_set_free(copy);
    return status;
}

void dq_rotation_set_free(dq_rotation_set *set)
{
    if (!set) return;
    dq_free(set->r1);
    dq_free(set->r2);
    dq_hadamard_clear(&set->r2_heads);
    dq_hadamard_clear(&set->r2_head_dim);
    dq_hadamard_clear(&set->r3);
    dq_hadamard_clear(&set->r4);
    dq_free(set->origin);
    dq_free(set->manifest);
    dq_free(set);
}
