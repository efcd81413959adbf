/* SPDX-License-Identifier: Apache-2.0 */
#include "formats/host_codes.h"

#include <math.h>
#include <string.h>

#include "base/status.h"

dq_status dq_host_codes_alloc(dq_env *env, dq_host_codes *c)
{
    size_t elements, params;
    c->env = env;
    c->groups = (c->in + c->group - 1) / c->group;
    if (!dq_mul_ok((size_t)c->out, (size_t)c->in, &elements) ||
        !dq_mul_ok((size_t)c->out * sizeof(float), (size_t)c->groups, &params))
        return dq_fail(DQ_E_UNSUPPORTED, "%lld x %lld codes", (long long)c->out, (long long)c->in);
    c->codes = dq_alloc(env, elements);
    c->scale = dq_alloc(env, params);
    c->zero = dq_alloc(env, params / sizeof(float));
    if (!c->codes || !c->scale || !c->zero) {
        dq_host_codes_free(c);
        return DQ_E_NOMEM;
    }
    memset(c->zero, 1 << (c->bits - 1), params / sizeof(float));
    c->symmetric = true;
    return DQ_OK;
}

void dq_host_codes_free(dq_host_codes *c)
{
    dq_free(c->codes);
    dq_free(c->scale);
    dq_free(c->zero);
    dq_free(c->group_index);
    c->codes = c->zero = NULL;
    c->scale = NULL;
    c->group_index = NULL;
}

void dq_host_codes_normalize(dq_host_codes *c)
{
    if (!c->group_index) return;
    for (int64_t k = 0; k < c->in; k++)
        if (c->group_index[k] != k / c->group) return;
    dq_free(c->group_index);
    c->group_index = NULL;
}

void dq_host_codes_find_symmetry(dq_host_codes *c)
{
    c->symmetric = true;
    for (int64_t i = 0; i < c->out * c->groups && c->symmetric; i++) c->symmetric = c->zero[i] == 1 << (c->bits - 1);
}

static dq_status check_group_index(const dq_host_codes *c)
{
    if (!c->group_index) return DQ_OK;
    uint8_t *used = dq_calloc(c->env, (size_t)c->groups, 1);
    if (!used) return DQ_E_NOMEM;
    dq_status status = DQ_OK;
    for (int64_t k = 0; status == DQ_OK && k < c->in; k++) {
        int32_t g = c->group_index[k];
        if (g < 0 || g >= c->groups)
            status =
                dq_fail(DQ_E_FORMAT, "g_idx[%lld] is %d, there are %lld groups", (long long)k, g, (long long)c->groups);
        else
            used[g] = 1;
    }
    for (int64_t g = 0; status == DQ_OK && g < c->groups; g++)
        if (!used[g]) status = dq_fail(DQ_E_FORMAT, "g_idx gives group %lld no column", (long long)g);
    dq_free(used);
    return status;
}

static dq_status check_zero_scale(const dq_host_codes *c, int64_t n, int64_t g)
{
    for (int64_t k = 0; k < c->in; k++)
        if (dq_host_codes_group_of(c, k) == g && c->codes[n * c->in + k] != c->zero[n * c->groups + g])
            return dq_fail(DQ_E_FORMAT, "the scale of row %lld, group %lld is zero but its codes are not", (long long)n,
                           (long long)g);
    return DQ_OK;
}

dq_status dq_host_codes_check(const dq_host_codes *c)
{
    DQ_TRY(check_group_index(c));
    for (int64_t n = 0; n < c->out; n++) {
        for (int64_t g = 0; g < c->groups; g++) {
            float s = c->scale[n * c->groups + g];
            if (!isfinite(s))
                return dq_fail(DQ_E_NONFINITE, "the scale of row %lld, group %lld is not finite", (long long)n,
                               (long long)g);
            if (s == 0.0f) DQ_TRY(check_zero_scale(c, n, g));
        }
    }
    return DQ_OK;
}
