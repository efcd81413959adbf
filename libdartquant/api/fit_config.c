/* Options and reports of fitted rotations. SPDX-License-Identifier: Apache-2.0 */
#include "api/fit_config.h"

#include <math.h>
#include <string.h>

#include "api/config.h"
#include "api/handles.h"
#include "base/open_struct.h"
#include "base/status.h"

/* Automatic budget: rows for each dimension, and its end. */
enum { ROWS_PER_DIMENSION = 400 };
#define BUDGET_MOST ((uint64_t)2 << 30)
/* Bits that count as the target where the scheme leaves activations alone. */
enum { TARGET_BITS = 4 };
#define TARGET_CLIP 0.9

static bool is_set(const dq_config *config, const char *name)
{
    int32_t set = 0;
    return dq_config_is_set(config, name, &set) == DQ_OK && set;
}

/* A batch of the published recipe: files of one window at one site, windows. */
enum { UPSTREAM_R1_FILES = 64, UPSTREAM_R2_WINDOWS = 128 };

/* The published recipe (rotation by rotation) where nothing else is asked for. */
static void upstream_defaults(const dq_config *config, bool r2, dq_fit_spec *s)
{
    int64_t windows = r2 ? UPSTREAM_R2_WINDOWS : UPSTREAM_R1_FILES;
    if (!is_set(config, "method")) s->method = DQ_FIT_QR;
    if (!is_set(config, "lr")) s->lr = 1e-3;
    if (!is_set(config, "ep")) s->epochs = r2 ? 5 : 10;
    if (!is_set(config, "accumulation")) s->accumulation = r2 ? 2 : 1;
    if (!is_set(config, "quant_steps")) s->quant_steps = 0;
    if (!is_set(config, "sink_weight")) s->weight[DQ_ROWS_SINK] = 0;
    if (!is_set(config, "weight_weight")) s->weight[DQ_ROWS_WEIGHT] = 0;
    if (s->batch == 0) s->batch = windows * dq_config_int(config, "seqlen");
    s->unit_rows = s->never_worse = false;
    s->compat = true;
}

/* The finish: rows by the error to be expected from their range (weights as if they were cut a little tighter, where the
 * search for clipping ends), massive activations by their rounding error with the range left alone. Steps as measured
 * (docs/numerics.md). */
#define FINISH_MEMORY 0.8
#define FINISH_WEIGHT_CLIP 0.85

static void finish_from_config(const dq_config *config, dq_fit_spec *s)
{
    bool range = dq_config_int(config, "quant_loss") == 0;
    s->quant_steps = dq_config_int(config, "quant_steps");
    s->finish_boldness = range ? s->mm_boldness : 1;
    s->finish_memory = range ? FINISH_MEMORY : 0;
    for (int k = 0; k < DQ_ROW_KINDS; k++)
        s->finish[k] = (dq_loss){.kind = range ? DQ_FIT_RANGE : DQ_FIT_QUANT, .quant = s->quant[k], .relative = true};
    if (!range) return;
    s->finish[DQ_ROWS_SINK].kind = DQ_FIT_SNAP;
    s->finish[DQ_ROWS_WEIGHT].quant.symmetric = 0;
    s->finish[DQ_ROWS_WEIGHT].quant.clip = FINISH_WEIGHT_CLIP;
}

static dq_quant_target target_of(const dq_config *config, const char *kind)
{
    bool weights = strcmp(kind, "w") == 0;
    int bits = (int)dq_config_int(config, weights ? "w_bits" : "a_bits");
    if (weights) return (dq_quant_target){.bits = bits > 8 ? TARGET_BITS : bits, .symmetric = 1, .clip = 1};
    if (bits > 15) return (dq_quant_target){.bits = TARGET_BITS, .clip = TARGET_CLIP};
    int64_t group = dq_config_int(config, "a_groupsize");
    double clip = dq_config_float(config, "a_clip_ratio"); /* 0 = searched for later */
    return (dq_quant_target){.bits = bits,
                             .symmetric = !dq_config_int(config, "a_asym"),
                             .group = group > 0 ? group : 0,
                             .clip = clip > 0 ? clip : TARGET_CLIP};
}

bool dq_fit_option_overruled(const dq_config *config, const char *name)
{
    static const char *const names[] = {
        "method", "lr", "ep", "bsz", "accumulation", "quant_steps", "sink_weight", "weight_weight", "holdout"};
    if (!dq_config_int(config, "compat") || is_set(config, name)) return false;
    for (size_t i = 0; i < sizeof names / sizeof *names; i++)
        if (strcmp(names[i], name) == 0) return true;
    return false;
}

dq_status dq_fit_method_text(const dq_config *config, const char **out)
{
    if (!dq_fit_option_overruled(config, "method")) return dq_config_get(config, "method", out);
    *out = "qr";
    return DQ_OK;
}

int64_t dq_fit_upstream_files(const dq_config *config)
{
    int64_t given = dq_config_int(config, "bsz");
    return !dq_config_int(config, "compat") ? 0 : given ? given : UPSTREAM_R1_FILES;
}

dq_status dq_fit_spec_from_config(const dq_config *config, const dq_orbit *orbit, dq_fit_spec *out)
{
    /* In the order of the option's choices. */
    static const dq_fit_loss losses[] = {DQ_FIT_WHIP,     DQ_FIT_SWD,      DQ_FIT_SWD_CHANNEL, DQ_FIT_SWD_GAUSS,
                                         DQ_FIT_KURTOSIS, DQ_FIT_VARIANCE, DQ_FIT_QUANT,       DQ_FIT_RANGE};
    double sinks = dq_config_float(config, "sink_weight"), weights = dq_config_float(config, "weight_weight");
    if (sinks + weights >= 1)
        return dq_fail(DQ_E_INVALID, "sink_weight %g and weight_weight %g leave nothing for activations", sinks,
                       weights);
    dq_quant_target a = target_of(config, "a"), w = target_of(config, "w");
    dq_fit_spec s = {
        .orbit = *orbit,
        .method = (dq_fit_method)dq_config_int(config, "method"),
        .loss = {.kind = losses[dq_config_int(config, "loss")], .quant = a},
        .optim = (dq_fit_optim)dq_config_int(config, "optim"),
        .lr = dq_config_float(config, "lr"),
        .momentum = dq_config_float(config, "momentum"),
        .cosine = dq_config_int(config, "cos"),
        .epochs = dq_config_int(config, "ep"),
        .batch = dq_config_int(config, "bsz") * dq_config_int(config, "seqlen"),
        .accumulation = dq_config_int(config, "accumulation"),
        .mm_boldness = dq_config_float(config, "mm_boldness"),
        .mm_memory = dq_config_float(config, "mm_memory"),
        .weight = {1 - sinks - weights, sinks, weights},
        .quant = {a, a, w},
        .unit_rows = orbit->heads > 1,
        .never_worse = true,
        .patience = dq_config_int(config, "patience"),
        .seed = (uint64_t)dq_config_int(config, "seed"),
        .math = dq_config_math(config),
    };
    finish_from_config(config, &s);
    if (dq_config_int(config, "compat")) upstream_defaults(config, orbit->heads > 1, &s);
    *out = s;
    return DQ_OK;
}

dq_status dq_rows_spec_from_config(const dq_config *config, const dq_orbit *orbit, dq_dtype dtype, dq_rows_spec *out)
{
    dq_fit_spec fit;
    DQ_TRY(dq_fit_spec_from_config(config, orbit, &fit));
    uint64_t budget = (uint64_t)dq_config_int(config, "budget");
    if (budget == 0) {
        double bytes =
            ROWS_PER_DIMENSION * (double)orbit->n * (double)dq_orbit_width(orbit) * (double)dq_dtype_size(dtype);
        budget = bytes < (double)BUDGET_MOST ? (uint64_t)bytes : BUDGET_MOST;
    }
    *out = (dq_rows_spec){.width = dq_orbit_width(orbit),
                          .dtype = dtype,
                          .budget = budget,
                          .share = {0.75, 0.05, 0.2},
                          .held_out = dq_config_float(config, "holdout"),
                          .seed = fit.seed};
    if (fit.compat && !is_set(config, "holdout")) out->held_out = 0;
    for (int k = 1; k < DQ_ROW_KINDS; k++)
        if (fit.weight[k] == 0) {
            out->share[0] += out->share[k];
            out->share[k] = 0;
        }
    return DQ_OK;
}

/* ---- losses of the host ---- */

dq_status dq_host_loss_check(const dq_rotation_loss *table, dq_rotation_loss *out)
{
    DQ_TRY(dq_open_struct_check(table->struct_size, DQ_SIZE_TO(dq_rotation_loss, curvature), "dq_rotation_loss"));
    if (table->abi != DQ_ROTATION_LOSS_ABI)
        return dq_fail(DQ_E_INVALID, "dq_rotation_loss.abi is %u, must be %u", table->abi, DQ_ROTATION_LOSS_ABI);
    if (!table->evaluate) return dq_fail(DQ_E_INVALID, "dq_rotation_loss.evaluate is NULL");
    if (!(table->curvature >= 0) || !isfinite(table->curvature))
        return dq_fail(DQ_E_INVALID, "dq_rotation_loss.curvature is %g, must be finite and >= 0", table->curvature);
    *out = *table;
    return DQ_OK;
}

void dq_fit_spec_set_host_loss(dq_fit_spec *spec, const dq_rotation_loss *table)
{
    spec->loss =
        (dq_loss){.kind = DQ_FIT_HOST, .fn = table->evaluate, .user = table->user, .curvature = table->curvature};
    spec->never_worse = false;
}

/* ---- report ---- */

static json_t *number(double x) { return isfinite(x) ? json_real(x) : json_null(); }

static json_t *kinds_json(const dq_fit_report *r)
{
    json_t *list = json_array();
    for (int k = 0; k < DQ_ROW_KINDS; k++) {
        const dq_fit_kind_report *kind = &r->kinds[k];
        if (kind->rows_train == 0) continue;
        json_array_append_new(
            list, json_pack("{s:s, s:I, s:I, s:I, s:o, s:o, s:o, s:o}", "kind", dq_row_kind_name((dq_row_kind)k),
                            "rows_seen", (json_int_t)kind->rows_seen, "rows_train", (json_int_t)kind->rows_train,
                            "rows_held_out", (json_int_t)kind->rows_held_out, "loss_before", number(kind->loss_before),
                            "loss_after", number(kind->loss_after), "error_before", number(kind->error_before),
                            "error_after", number(kind->error_after)));
    }
    return list;
}

static json_t *history_json(const dq_fit_report *r)
{
    json_t *list = json_array();
    for (int64_t i = 0; i < r->steps; i++) {
        const dq_fit_point *p = &r->history[i];
        json_array_append_new(list, json_pack("{s:o, s:o, s:f, s:b}", "loss", number(p->loss), "held_out",
                                              number(p->held_out), "lr", p->lr, "finish", p->finish));
    }
    return list;
}

json_t *dq_fit_report_json(const char *name, const dq_orbit *orbit, const dq_fit_report *r)
{
    json_t *diverged = r->diverged_step < 0 ? json_null()
                                            : json_pack("{s:I, s:o}", "step", (json_int_t)r->diverged_step, "loss",
                                                        number(r->diverged_loss));
    json_t *rejected = r->kept_start ? number(r->rejected_error) : json_null();
    return json_pack("{s:s, s:I, s:i, s:i, s:o, s:o, s:f, s:I, s:I, s:I, s:b, s:o, s:o, s:f, s:o, s:o}", "name", name,
                     "n", (json_int_t)orbit->n, "heads", (int)orbit->heads, "groups", (int)orbit->groups, "loss_before",
                     number(r->loss_before), "loss_after", number(r->loss_after), "orthogonality_error",
                     r->orthogonality, "steps", (json_int_t)r->steps, "steps_total", (json_int_t)r->steps_total,
                     "best_step", (json_int_t)r->best_step, "stopped_early", r->stopped_early, "rejected_error",
                     rejected, "diverged", diverged, "seconds", r->seconds, "kinds", kinds_json(r), "history",
                     history_json(r));
}
