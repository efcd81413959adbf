/* Tables of KVQuant. SPDX-License-Identifier: Apache-2.0 */
#include "base/kv_tables.h"

#include <math.h>
#include <string.h>

#include "base/status.h"

const char *const dq_kv_levels_names[3] = {"uniform", "nuq", "nf"};

static int64_t levels_of(const dq_act_spec *s) { return s->bits <= 8 ? (int64_t)1 << s->bits : 0; }

dq_status dq_kv_tables_new(dq_env *env, const dq_scheme *scheme, int64_t layers, int64_t channels, dq_kv_tables **out)
{
    int64_t k = levels_of(&scheme->k), v = levels_of(&scheme->v), ranges = k ? 2 * channels : 0;
    size_t count, bytes;
    if (!dq_mul_ok((size_t)layers, (size_t)(ranges + k + v + 4), &count) || !dq_mul_ok(count, sizeof(float), &bytes))
        return dq_fail(DQ_E_NOMEM, "tables of %lld layers for keys and values are too many", (long long)layers);
    dq_kv_tables *t = dq_calloc(env, 1, sizeof *t);
    if (!t) return DQ_E_NOMEM;
    *t = (dq_kv_tables){.layers = layers, .channels = channels, .k_levels = k, .v_levels = v, .count = (int64_t)count};
    t->ranges = dq_calloc(env, 1, bytes);
    if (!t->ranges) {
        dq_free(t);
        return DQ_E_NOMEM;
    }
    t->k = t->ranges + layers * ranges;
    t->v = t->k + layers * k;
    t->norms = t->v + layers * v;
    for (int64_t i = 0; i < 2 * layers; i++) t->norms[2 * i] = 1;
    *out = t;
    return DQ_OK;
}

dq_status dq_kv_tables_copy(dq_env *env, const dq_kv_tables *tables, dq_kv_tables **out)
{
    dq_kv_tables *t = NULL;
    if (tables) {
        t = dq_alloc(env, sizeof *t);
        float *all = t ? dq_alloc(env, (size_t)tables->count * sizeof *all) : NULL;
        if (!all) {
            dq_free(t);
            return DQ_E_NOMEM;
        }
        memcpy(all, tables->ranges, (size_t)tables->count * sizeof *all);
        *t = *tables;
        t->ranges = all;
        t->k = all + (tables->k - tables->ranges);
        t->v = all + (tables->v - tables->ranges);
        t->norms = all + (tables->norms - tables->ranges);
    }
    *out = t;
    return DQ_OK;
}

void dq_kv_tables_free(dq_kv_tables *tables)
{
    if (tables) dq_free(tables->ranges);
    dq_free(tables);
}

static dq_status check_levels(const char *what, const float *levels, int64_t layers, int64_t n)
{
    for (int64_t l = 0; l < layers; l++)
        for (int64_t i = 0; i < n; i++) {
            float level = levels[l * n + i];
            if (!(level >= -1 && level <= 1))
                return dq_fail(DQ_E_FORMAT, "level %lld of %s in layer %lld is %g, not in [-1, 1]", (long long)i, what,
                               (long long)l, (double)level);
            if (i > 0 && !(level > levels[l * n + i - 1]))
                return dq_fail(DQ_E_FORMAT, "levels %lld and %lld of %s in layer %lld are %g and %g, not ascending",
                               (long long)(i - 1), (long long)i, what, (long long)l, (double)levels[l * n + i - 1],
                               (double)level);
        }
    return DQ_OK;
}

dq_status dq_kv_tables_check(const dq_kv_tables *t)
{
    for (int64_t l = 0; t->k_levels && l < t->layers; l++)
        for (int64_t c = 0; c < t->channels; c++) {
            float lo = t->ranges[2 * l * t->channels + c], hi = t->ranges[(2 * l + 1) * t->channels + c];
            if (!isfinite(lo) || !isfinite(hi) || lo > hi)
                return dq_fail(DQ_E_FORMAT, "the range of key channel %lld in layer %lld is %g to %g", (long long)c,
                               (long long)l, (double)lo, (double)hi);
        }
    DQ_TRY(check_levels("keys", t->k, t->layers, t->k_levels));
    DQ_TRY(check_levels("values", t->v, t->layers, t->v_levels));
    for (int64_t i = 0; i < 2 * t->layers; i++)
        if (!(t->norms[2 * i] > 0) || !isfinite(t->norms[2 * i]) || !isfinite(t->norms[2 * i + 1]))
            return dq_fail(DQ_E_FORMAT, "Q-Norm of layer %lld has the scale %g and the offset %g", (long long)(i / 2),
                           (double)t->norms[2 * i], (double)t->norms[2 * i + 1]);
    return DQ_OK;
}

uint64_t dq_kv_tables_hash(const dq_kv_tables *t)
{
    uint64_t h = 1469598103934665603u;
    for (int64_t i = 0; i < t->count; i++) {
        uint32_t bits;
        memcpy(&bits, &t->ranges[i], sizeof bits);
        for (int shift = 0; shift < 32; shift += 8) h = (h ^ ((bits >> shift) & 0xffu)) * 1099511628211u;
    }
    return h;
}
