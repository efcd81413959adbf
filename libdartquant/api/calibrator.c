/* dartquant/calibrator.h: steps, checkpoints and reports of both kinds of job. SPDX-License-Identifier: Apache-2.0 */
#include "dartquant/calibrator.h"

#include <math.h>
#include <stdio.h>

#include "api/calibrator_job.h"
#include "api/check.h"
#include "api/checkpoint.h"
#include "api/config.h"
#include "dartquant/version.h"
#include "io/file.h"
#include "io/json.h"

/* ---- life ---- */

dq_status dq_calibrator_make(dq_context *ctx, const dq_config *config, const dq_calibrator_ops *ops,
                             dq_calibrator **out)
{
    dq_calibrator *c = dq_calloc(&ctx->env, 1, sizeof *c);
    if (!c) return DQ_E_NOMEM;
    c->ctx = dq_context_retain(ctx);
    c->ops = ops;
    dq_status status = config ? dq_config_copy(config, &c->config) : dq_config_new(&c->config);
    if (status != DQ_OK) {
        dq_calibrator_destroy(c);
        return status;
    }
    *out = c;
    return DQ_OK;
}

void dq_calibrator_destroy(void *object)
{
    dq_calibrator *c = object;
    dq_context *ctx = c->ctx;
    c->ops->destroy(c);
    dq_config_free(c->config);
    dq_free(c->report);
    dq_free(c);
    dq_context_release(ctx);
}

void dq_calibrator_free(dq_calibrator *c)
{
    if (c) dq_context_discard(c->ctx, dq_calibrator_destroy, c);
}

dq_status dq_calibrator_check_kind(const dq_calibrator *c, const dq_calibrator_ops *ops)
{
    return c->ops == ops ? DQ_OK : dq_fail(DQ_E_STATE, "not for this kind of job: it is one for %s", c->ops->name);
}

dq_status dq_calibrator_check_fresh(const dq_calibrator *c)
{
    return c->state == DQ_CALIBRATOR_READY ? DQ_OK : dq_fail(DQ_E_STATE, "the calibrator has started already");
}

dq_status dq_calibrator_set_loss(dq_calibrator *c, const dq_rotation_loss *table)
{
    DQ_ENTER_CONTEXT(c->ctx, c && table);
    dq_rotation_loss loss;
    DQ_TRY(dq_calibrator_check_fresh(c));
    DQ_TRY(dq_host_loss_check(table, &loss));
    c->loss = loss;
    c->has_loss = true;
    snprintf(c->loss_name, sizeof c->loss_name, "%s", loss.name ? loss.name : "host");
    return DQ_OK;
}

/* ---- steps ---- */

static dq_status checked_step(dq_calibrator *c, const dq_cancel *cancel, dq_progress_fn progress, void *user,
                              bool *finished)
{
    if (c->state == DQ_CALIBRATOR_FAILED)
        return dq_fail(DQ_E_STATE, "the calibrator failed or was cancelled: free it and start anew");
    if (c->state == DQ_CALIBRATOR_DONE || c->state == DQ_CALIBRATOR_TAKEN)
        return dq_fail(DQ_E_STATE, "the calibrator is done");
    c->progress.cancel = cancel;
    c->progress.fn = progress;
    c->progress.user = user;
    if (c->state == DQ_CALIBRATOR_READY) {
        DQ_TRY(c->ops->start(c)); /* nothing has begun when this fails: what was missing may still come */
        c->state = DQ_CALIBRATOR_RUNNING;
    }
    dq_status status = c->ops->step(c, finished);
    if (status != DQ_OK)
        c->state = DQ_CALIBRATOR_FAILED;
    else if (*finished)
        c->state = DQ_CALIBRATOR_DONE;
    return status;
}

dq_status dq_calibrator_step(dq_calibrator *c, const dq_cancel *cancel, dq_progress_fn progress, void *user,
                             int32_t *done)
{
    DQ_ENTER_CONTEXT(c->ctx, c && done);
    bool finished = false;
    DQ_TRY(checked_step(c, cancel, progress, user, &finished));
    *done = finished;
    return DQ_OK;
}

dq_status dq_calibrator_run(dq_calibrator *c, const dq_cancel *cancel, dq_progress_fn progress, void *user)
{
    DQ_ENTER_CONTEXT(c->ctx, c);
    for (bool finished = false; !finished;) DQ_TRY(checked_step(c, cancel, progress, user, &finished));
    return DQ_OK;
}

/* ---- checkpoints ---- */

dq_status dq_calibrator_options_fingerprint(const dq_calibrator *c, json_t *out)
{
    static const char *const names[] = {"seed", "math", "seqlen", "w_bits"};
    for (int32_t i = 0; i < dq_option_count(); i++) {
        dq_option_info info = {.struct_size = sizeof info};
        const char *text = "";
        DQ_TRY(dq_option_get(i, &info));
        bool decides = strcmp(info.area, "rotation fitting") == 0 || strcmp(info.area, "activations") == 0;
        for (size_t k = 0; k < sizeof names / sizeof *names; k++) decides |= strcmp(info.name, names[k]) == 0;
        if (!decides) continue;
        DQ_TRY(dq_config_get(c->config, info.name, &text));
        json_object_set_new(out, info.name, json_string(text));
    }
    json_object_set_new(out, "library", json_string(dq_version_string()));
    json_object_set_new(out, "host loss", json_string(c->has_loss ? c->loss_name : "none"));
    return DQ_OK;
}

dq_status dq_calibrator_checkpoint(dq_calibrator *c, const char *dir)
{
    DQ_ENTER_CONTEXT(c->ctx, c && dir);
    json_t *fingerprint = NULL, *state = json_object();
    if (c->state != DQ_CALIBRATOR_RUNNING) {
        json_decref(state);
        return dq_fail(DQ_E_STATE, "the calibrator is not under way: checkpoints lie between its steps");
    }
    dq_status status = state ? dq_make_dirs(&c->ctx->env, dir) : dq_fail(DQ_E_NOMEM, "out of memory: checkpoint");
    if (status == DQ_OK) status = c->ops->fingerprint(c, &fingerprint);
    if (status == DQ_OK) status = c->ops->save(c, dir, state);
    if (status == DQ_OK) {
        status = dq_checkpoint_write(c->ctx, dir, c->ops->name, fingerprint, state);
        state = NULL;
    }
    if (status == DQ_OK) c->slot = !c->slot;
    json_decref(state);
    json_decref(fingerprint);
    return status;
}

dq_status dq_calibrator_restore(dq_calibrator *c, const char *dir)
{
    DQ_ENTER_CONTEXT(c->ctx, c && dir);
    json_t *fingerprint = NULL, *state = NULL;
    dq_status status;
    bool started = false;
    DQ_TRY(dq_calibrator_check_fresh(c));
    DQ_GO(c->ops->start(c));
    started = true;
    DQ_GO(c->ops->fingerprint(c, &fingerprint));
    DQ_GO(dq_checkpoint_read(c->ctx, dir, c->ops->name, fingerprint, &state));
    DQ_GO(c->ops->load(c, dir, state));
    c->state = DQ_CALIBRATOR_RUNNING;
done:
    if (status != DQ_OK && started) c->ops->stop(c);
    json_decref(fingerprint);
    json_decref(state);
    return status;
}

/* ---- reports ---- */

/* Mean of a number over rotations; of a number of their activation rows where `of_rows`. NULL where none has it. */
static json_t *mean(const json_t *rotations, const char *key, bool of_rows)
{
    double sum = 0;
    int64_t count = 0;
    size_t i;
    json_t *r;
    json_array_foreach(rotations, i, r)
    {
        const json_t *from = of_rows ? json_array_get(json_object_get(r, "kinds"), 0) : r;
        const json_t *value = json_object_get(from, key);
        if (!json_is_number(value)) continue;
        sum += json_number_value(value);
        count++;
    }
    return count ? json_real(sum / (double)count) : json_null();
}

static json_t *largest(const json_t *rotations, const char *key)
{
    double most = 0;
    size_t i;
    json_t *r;
    json_array_foreach(rotations, i, r)
    {
        double x = json_number_value(json_object_get(r, key));
        if (!(x <= most)) most = x;
    }
    return json_array_size(rotations) ? json_real(most) : json_null();
}

static dq_status make_report(dq_calibrator *c, json_t **out)
{
    int64_t done = 0, total = 0;
    double seconds = 0;
    json_t *rotations = json_array();
    dq_status status = rotations ? c->ops->report(c, rotations, &seconds) : dq_fail(DQ_E_NOMEM, "out of memory");
    if (status != DQ_OK) {
        json_decref(rotations);
        return status;
    }
    size_t i;
    json_t *r;
    json_array_foreach(rotations, i, r) seconds += json_number_value(json_object_get(r, "seconds"));
    c->ops->count(c, &done, &total);
    const char *loss = "", *method = "", *optim = "";
    DQ_GO(dq_config_get(c->config, "loss", &loss));
    DQ_GO(dq_fit_method_text(c->config, &method));
    DQ_GO(dq_config_get(c->config, "optim", &optim));
    bool upstream = dq_config_int(c->config, "compat") != 0;
    *out = json_pack(
        "{s:s, s:s, s:s, s:b, s:I, s:I, s:f, s:o, s:o, s:o, s:o, s:o}", "loss", c->has_loss ? c->loss_name : loss,
        "method", method, "optim", optim, "compat_upstream", upstream, "steps_done", (json_int_t)done, "steps_total",
        (json_int_t)total, "total_seconds", seconds, "loss_before", mean(rotations, "loss_before", false), "loss_after",
        mean(rotations, "loss_after", false), "error_before", mean(rotations, "error_before", true), "error_after",
        mean(rotations, "error_after", true), "orthogonality_error", largest(rotations, "orthogonality_error"));
    if (*out && json_object_set(*out, "rotations", rotations) == 0) {
        json_decref(rotations);
        return DQ_OK;
    }
    status = dq_fail(DQ_E_NOMEM, "out of memory: report");
    json_decref(*out);
done:
    json_decref(rotations);
    return status;
}

dq_status dq_calibrator_report(dq_calibrator *c, const char **out)
{
    DQ_ENTER_CONTEXT(c->ctx, c && out);
    json_t *facts = NULL;
    char *text = NULL;
    DQ_TRY(make_report(c, &facts));
    dq_status status = dq_json_dump(&c->ctx->env, facts, false, &text);
    json_decref(facts);
    DQ_TRY(status);
    dq_free(c->report);
    c->report = text;
    *out = text;
    return DQ_OK;
}

dq_status dq_calibrator_get_float(dq_calibrator *c, const char *key, double *out)
{
    DQ_ENTER_CONTEXT(c->ctx, c && key && out);
    json_t *facts = NULL;
    DQ_TRY(make_report(c, &facts));
    dq_status status = json_is_null(json_object_get(facts, key))
                           ? dq_fail(DQ_E_STATE, "\"%s\" is not known yet", key)
                           : dq_facts_float(facts, key, "the calibrator's report", out);
    json_decref(facts);
    return status;
}
