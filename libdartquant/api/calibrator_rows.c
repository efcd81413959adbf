/* dartquant/calibrator.h: jobs for rows that the host brings. SPDX-License-Identifier: Apache-2.0 */
#include <math.h>
#include <stdio.h>

#include "api/calibrator_job.h"
#include "api/check.h"
#include "api/checkpoint.h"
#include "api/host_rows.h"
#include "calib/drift.h"
#include "io/json.h"

static const dq_calibrator_ops rows_ops;

dq_status dq_calibrator_new_rows(dq_context *ctx, const dq_config *config, int64_t n, int32_t heads, int32_t groups,
                                 dq_calibrator **out)
{
    DQ_ENTER_CONTEXT(ctx, ctx && out);
    int64_t width;
    dq_calibrator *c = NULL;
    dq_fit_spec spec;
    dq_orbit orbit = {n, heads, groups};
    if (n < 2 || heads < 1 || groups < 1 || heads % groups != 0 || __builtin_mul_overflow(n, (int64_t)heads, &width) ||
        width > INT32_MAX)
        return dq_fail(DQ_E_INVALID, "rotations of %lld numbers for %d heads in %d groups", (long long)n, heads,
                       groups);
    DQ_TRY(dq_calibrator_make(ctx, config, &rows_ops, &c));
    dq_status status = dq_fit_spec_from_config(c->config, &orbit, &spec);
    if (status != DQ_OK) {
        dq_calibrator_destroy(c);
        return status;
    }
    c->orbit = orbit;
    *out = c;
    return DQ_OK;
}

/* ---- rows ---- */

typedef struct addition {
    dq_rows *rows;
    dq_row_kind kind;
} addition;

static dq_status add_chunk(void *arg, const dq_tensor *x)
{
    const addition *a = arg;
    return dq_rows_add(a->rows, a->kind, x);
}

dq_status dq_calibrator_add_rows(dq_calibrator *c, int32_t kind, const void *x, int64_t rows, int64_t row_stride,
                                 dq_dtype dtype)
{
    DQ_ENTER_CONTEXT(c->ctx, c && x);
    static const char *const names[] = {"activation row", "sink row", "weight row"};
    DQ_TRY(dq_calibrator_check_kind(c, &rows_ops));
    DQ_TRY(dq_calibrator_check_fresh(c));
    if (kind < 0 || kind >= DQ_ROW_KINDS) return dq_fail(DQ_E_INVALID, "there is no kind %d of rows", kind);
    dq_host_rows r = {x, rows, dq_orbit_width(&c->orbit), row_stride, dtype};
    DQ_TRY(dq_host_rows_check(&r, names[kind]));
    if (!c->rows) { /* kept in the type of the first batch */
        dq_rows_spec spec;
        DQ_TRY(dq_rows_spec_from_config(c->config, &c->orbit, dtype, &spec));
        DQ_TRY(dq_rows_new(c->ctx->dev, &spec, &c->rows));
    }
    addition a = {c->rows, (dq_row_kind)kind};
    return dq_host_rows_each(c->ctx, &r, add_chunk, &a);
}

dq_status dq_calibrator_set_initial(dq_calibrator *c, const double *r, size_t count)
{
    DQ_ENTER_CONTEXT(c->ctx, c && r);
    DQ_TRY(dq_calibrator_check_kind(c, &rows_ops));
    DQ_TRY(dq_calibrator_check_fresh(c));
    int64_t square = c->orbit.n * c->orbit.n;
    if (count != (size_t)(square * c->orbit.groups))
        return dq_fail(DQ_E_INVALID, "%zu numbers for %d matrices of %lld x %lld", count, c->orbit.groups,
                       (long long)c->orbit.n, (long long)c->orbit.n);
    for (size_t i = 0; i < count; i++)
        if (!isfinite(r[i])) return dq_fail(DQ_E_NONFINITE, "number %zu of the initial rotation is NaN or Inf", i);
    for (int32_t g = 0; g < c->orbit.groups; g++) DQ_TRY(dq_fit_check_rotation(c->ctx->dev, &c->orbit, g, r));
    double *copy = dq_alloc(&c->ctx->env, count * sizeof *copy);
    if (!copy) return DQ_E_NOMEM;
    memcpy(copy, r, count * sizeof *copy);
    dq_free(c->initial);
    c->initial = copy;
    return DQ_OK;
}

/* ---- the job ---- */

static const char *name_of(const dq_calibrator *c) { return c->orbit.heads > 1 ? "R2" : "R1"; }

static dq_status start(dq_calibrator *c)
{
    dq_fit_spec spec;
    if (!c->rows) return dq_fail(DQ_E_STATE, "there are no rows yet: call dq_calibrator_add_rows first");
    DQ_TRY(dq_fit_spec_from_config(c->config, &c->orbit, &spec));
    if (c->has_loss) dq_fit_spec_set_host_loss(&spec, &c->loss);
    snprintf(spec.name, sizeof spec.name, "%s", name_of(c));
    DQ_TRY(dq_rows_seal(c->rows));
    dq_status status = dq_fit_new(c->ctx->dev, &spec, c->rows, c->initial, &c->fit);
    if (status != DQ_OK) dq_rows_unseal(c->rows);
    return status;
}

static const char *stage_of(const dq_calibrator *c) { return c->orbit.heads > 1 ? "fit R2" : "fit R1"; }

static dq_status step(dq_calibrator *c, bool *finished)
{
    bool done = false;
    DQ_TRY(dq_progress_check(&c->progress));
    DQ_TRY(dq_fit_step(c->fit, &done));
    int64_t at = dq_fit_steps_done(c->fit), total = dq_fit_steps_total(c->fit);
    DQ_TRY(dq_fit_report_progress(c->fit, &c->progress, stage_of(c), (uint64_t)at, (uint64_t)(done ? at : total)));
    *finished = done;
    return DQ_OK;
}

static dq_status fingerprint(dq_calibrator *c, json_t **out)
{
    uint64_t rows = 0, start_hash = 1469598103934665603u;
    char text[32];
    DQ_TRY(dq_rows_fingerprint(c->rows, &rows));
    for (int64_t i = 0; c->initial && i < c->orbit.groups * c->orbit.n * c->orbit.n; i++) {
        uint64_t bits;
        memcpy(&bits, &c->initial[i], sizeof bits);
        start_hash = (start_hash ^ bits) * 1099511628211u;
    }
    json_t *o = json_pack("{s:o, s:o, s:o}", "n", json_sprintf("%lld", (long long)c->orbit.n), "heads",
                          json_sprintf("%d", c->orbit.heads), "groups", json_sprintf("%d", c->orbit.groups));
    if (!o) return dq_fail(DQ_E_NOMEM, "out of memory: fingerprint");
    snprintf(text, sizeof text, "%016llx", (unsigned long long)rows);
    json_object_set_new(o, "rows", json_string(text));
    snprintf(text, sizeof text, "%016llx", (unsigned long long)start_hash);
    json_object_set_new(o, "start", json_string(c->initial ? text : "from the seed"));
    dq_status status = dq_calibrator_options_fingerprint(c, o);
    if (status != DQ_OK) {
        json_decref(o);
        return status;
    }
    *out = o;
    return DQ_OK;
}

/* The fit's bytes as a tensor, because that is what checkpoints keep. */
static dq_status save(dq_calibrator *c, const char *dir, json_t *state)
{
    void *bytes = NULL;
    size_t size = 0;
    dq_tensor t = {0};
    json_t *record = NULL;
    DQ_TRY(dq_fit_export(c->fit, &bytes, &size));
    dq_status status = dq_tensor_from_host(c->ctx->dev, DQ_U8, 1, (int64_t)size, bytes, &t);
    const dq_tensor *list[] = {&t};
    if (status == DQ_OK) status = dq_checkpoint_save_tensors(&c->ctx->env, dir, c->slot, list, 1, &record);
    if (status == DQ_OK) {
        json_object_set_new(state, "activations", record);
        json_object_set_new(state, "size", json_integer((json_int_t)size));
    }
    dq_tensor_free(&t);
    dq_free(bytes);
    return status;
}

static dq_status load(dq_calibrator *c, const char *dir, const json_t *state)
{
    int64_t size = 0;
    void *bytes = NULL;
    dq_tensor t = {0}, *list[] = {&t};
    dq_status status;
    const json_t *record = json_object_get(state, "activations");
    const char *file = json_string_value(json_object_get(record, "file"));
    DQ_TRY(dq_json_int(state, "size", 1, INT64_MAX / 2, true, dir, &size));
    DQ_GO(dq_tensor_alloc(c->ctx->dev, DQ_U8, 1, size, &t));
    DQ_GO(dq_checkpoint_load_tensors(&c->ctx->env, dir, record, list, 1));
    DQ_GO((bytes = dq_alloc(&c->ctx->env, (size_t)size)) ? DQ_OK : DQ_E_NOMEM);
    DQ_GO(dq_tensor_download(&t, bytes));
    DQ_GO(dq_fit_import(c->fit, bytes, (size_t)size));
    c->slot = file && strchr(file, '0') ? 1 : 0; /* not over the one that counts */
done:
    dq_tensor_free(&t);
    dq_free(bytes);
    return status;
}

static dq_status report(dq_calibrator *c, json_t *rotations, double *seconds)
{
    dq_fit_report r;
    *seconds = 0;
    if (!c->fit) return DQ_OK;
    DQ_TRY(dq_fit_get_report(c->fit, &r));
    json_t *entry = dq_fit_report_json(name_of(c), &c->orbit, &r);
    return json_array_append_new(rotations, entry) == 0 ? DQ_OK : dq_fail(DQ_E_NOMEM, "out of memory: report");
}

static void count(const dq_calibrator *c, int64_t *done, int64_t *total)
{
    *done = c->fit ? dq_fit_steps_done(c->fit) : 0;
    *total = c->fit ? dq_fit_steps_total(c->fit) : 0;
}

static void stop(dq_calibrator *c)
{
    dq_fit_free(c->fit);
    c->fit = NULL;
    if (c->rows) dq_rows_unseal(c->rows);
}

static void destroy(dq_calibrator *c)
{
    stop(c);
    dq_rows_free(c->rows);
    dq_free(c->initial);
}

static const dq_calibrator_ops rows_ops = {
    "rotation of rows", start, step, fingerprint, save, load, report, count, stop, destroy};

/* ---- the result ---- */

dq_status dq_calibrator_copy_rotation(dq_calibrator *c, double *out, size_t capacity)
{
    DQ_ENTER_CONTEXT(c->ctx, c && out);
    DQ_TRY(dq_calibrator_check_kind(c, &rows_ops));
    size_t needed = (size_t)(c->orbit.groups * c->orbit.n * c->orbit.n);
    if (!c->fit) return dq_fail(DQ_E_STATE, "the calibrator has not started");
    if (capacity < needed) return dq_fail(DQ_E_INVALID, "room for %zu numbers, %zu needed", capacity, needed);
    return dq_fit_result(c->fit, out);
}
