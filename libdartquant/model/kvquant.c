/* KVQuant in manifests and shards. SPDX-License-Identifier: Apache-2.0 */
#include "model/kvquant.h"

#include <stdio.h>
#include <string.h>

#include "base/status.h"
#include "io/json.h"

json_t *dq_kvquant_to_json(const dq_kvquant_spec *s)
{
    return json_pack("{s:s, s:f, s:I, s:b}", "levels", dq_kv_levels_names[s->levels], "outliers", s->outliers, "sink",
                     (json_int_t)s->sink, "qnorm", (int)s->qnorm);
}

dq_status dq_kvquant_check(const dq_scheme *s)
{
    const int bits[] = {s->k.bits, s->v.bits};
    static const char *const names[] = {"k_bits", "v_bits"};
    for (int i = 0; i < 2; i++)
        if (bits[i] < 2 || (bits[i] > 8 && bits[i] != 16))
            return dq_fail(DQ_E_INVALID, "%s = %d: tables of levels have 2 to 8 bits; 16 leaves the numbers alone",
                           names[i], bits[i]);
    if (!(s->kvquant.outliers >= 0 && s->kvquant.outliers <= 0.5))
        return dq_fail(DQ_E_INVALID, "a share of outliers of %g is not in 0 .. 0.5", s->kvquant.outliers);
    if (s->kvquant.sink < 0) return dq_fail(DQ_E_INVALID, "%d sink tokens", (int)s->kvquant.sink);
    return DQ_OK;
}

dq_status dq_kvquant_from_json(const json_t *o, const char *path, const dq_scheme *scheme, dq_kvquant_spec *out)
{
    dq_scheme s = *scheme;
    const char *levels;
    int64_t sink, choice = 0;
    if (!json_is_object(o)) return dq_error_in_file(dq_fail(DQ_E_FORMAT, "\"kvquant\" is no object"), path);
    s.kvquant = (dq_kvquant_spec){.on = true};
    DQ_TRY(dq_json_string(o, "levels", true, path, &levels));
    DQ_TRY(dq_json_double(o, "outliers", true, path, &s.kvquant.outliers));
    DQ_TRY(dq_json_int(o, "sink", 0, INT32_MAX, true, path, &sink));
    DQ_TRY(dq_json_bool(o, "qnorm", true, path, &s.kvquant.qnorm));
    while (choice < 3 && strcmp(levels, dq_kv_levels_names[choice]) != 0) choice++;
    if (choice == 3) return dq_error_in_file(dq_fail(DQ_E_FORMAT, "\"levels\": \"%.64s\" is not known", levels), path);
    s.kvquant.levels = (dq_kv_levels)choice;
    s.kvquant.sink = (int32_t)sink;
    if (dq_kvquant_check(&s) != DQ_OK)
        return dq_error_in_file(dq_fail(DQ_E_FORMAT,
                                        "\"kvquant\" with keys of %d bits, values of %d and a share of outliers of %g",
                                        s.k.bits, s.v.bits, s.kvquant.outliers),
                                path);
    *out = s.kvquant;
    return DQ_OK;
}

/* ---- tensors ---- */

/* The tables with their names and shapes; those without numbers are left out. */
typedef struct table {
    const char *name;
    float *values;
    int ndim;
    int64_t shape[3];
} table;
enum { TABLES = 4 };

static int list_tables(const dq_kv_tables *t, table out[TABLES])
{
    int n = 0;
    if (t->k_levels) {
        out[n++] = (table){"dartquant.key_ranges", t->ranges, 3, {t->layers, 2, t->channels}};
        out[n++] = (table){"dartquant.key_levels", t->k, 2, {t->layers, t->k_levels}};
    }
    if (t->v_levels) out[n++] = (table){"dartquant.value_levels", t->v, 2, {t->layers, t->v_levels}};
    out[n++] = (table){"dartquant.kv_norms", t->norms, 2, {t->layers, 4}};
    return n;
}

static uint64_t table_bytes(const table *t)
{
    uint64_t bytes = sizeof(float);
    for (int i = 0; i < t->ndim; i++) bytes *= (uint64_t)t->shape[i];
    return bytes;
}

dq_status dq_kv_tables_put(dq_sink *sink, const dq_kv_tables *tables)
{
    table all[TABLES];
    int n = list_tables(tables, all);
    for (int i = 0; i < n; i++)
        DQ_TRY(
            sink->ops->add(sink, all[i].name, DQ_F32, all[i].ndim, all[i].shape, all[i].values, table_bytes(&all[i])));
    return DQ_OK;
}

static dq_status read_table(dq_source *source, const table *t)
{
    int64_t at;
    DQ_TRY(dq_source_need(source, t->name, &at));
    const dq_tensor_info *info = &source->tensors[at];
    if (info->dtype != DQ_F32 || info->ndim != t->ndim ||
        memcmp(info->shape, t->shape, (size_t)t->ndim * sizeof *t->shape) != 0) {
        char wanted[80];
        int used = 0;
        for (int i = 0; i < t->ndim; i++)
            used +=
                snprintf(wanted + used, sizeof wanted - (size_t)used, "%s%lld", i ? " x " : "", (long long)t->shape[i]);
        return dq_error_in_tensor(dq_fail(DQ_E_MISMATCH, "a table of %s floats was expected", wanted), t->name);
    }
    return dq_source_read_raw(source, at, 0, table_bytes(t), t->values);
}

dq_status dq_kv_tables_read(dq_source *source, const dq_scheme *scheme, const dq_arch *arch, dq_kv_tables **out)
{
    dq_kv_tables *t = NULL;
    table all[TABLES];
    dq_status status = dq_kv_tables_new(source->env, scheme, arch->layers, arch->kv_heads * arch->head_dim, &t);
    int n = status == DQ_OK ? list_tables(t, all) : 0;
    for (int i = 0; i < n && status == DQ_OK; i++) status = read_table(source, &all[i]);
    if (status == DQ_OK) status = dq_kv_tables_check(t);
    if (status == DQ_OK)
        *out = t;
    else
        dq_kv_tables_free(t);
    return status;
}

dq_status dq_kv_tables_fit(const dq_kv_tables *t, const dq_scheme *scheme, const dq_arch *arch)
{
    if (!dq_scheme_has_levels(scheme)) return DQ_OK;
    DQ_TRY(dq_kvquant_check(scheme));
    if (!t) return dq_fail(DQ_E_STATE, "keys and values by KVQuant need tables, which calibration makes");
    int64_t k = scheme->k.bits <= 8 ? (int64_t)1 << scheme->k.bits : 0;
    int64_t v = scheme->v.bits <= 8 ? (int64_t)1 << scheme->v.bits : 0, channels = arch->kv_heads * arch->head_dim;
    if (t->layers == arch->layers && t->channels == channels && t->k_levels == k && t->v_levels == v) return DQ_OK;
    return dq_fail(
        DQ_E_INVALID,
        "tables of %lld layers, %lld channels, %lld and %lld levels for a model of %lld, %lld, %lld and %lld",
        (long long)t->layers, (long long)t->channels, (long long)t->k_levels, (long long)t->v_levels,
        (long long)arch->layers, (long long)channels, (long long)k, (long long)v);
}
