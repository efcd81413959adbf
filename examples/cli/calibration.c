/* Learning rotations: what `calibrate` and `quantize --calibrate_rotation` share. SPDX-License-Identifier: Apache-2.0 */
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "cli.h"

int cli_open_fused(cli *c, const char *path, dq_model **out)
{
    dq_model *model = NULL;
    TRY(c, dq_model_open(c->ctx, path, &model));
    dq_status status = dq_model_fuse_norms(model, c->config, out);
    dq_model_free(model);
    return status == DQ_OK ? EXIT_OK : cli_failed(c);
}

/* Goes on from the checkpoint when there is one. */
static int resume(cli *c, dq_calibrator *job, const char *dir)
{
    int32_t exists = 0;
    double steps = 0;
    TRY(c, dq_checkpoint_exists(c->ctx, dir, &exists));
    if (!exists) return EXIT_OK;
    if (!cli_switch(c, "resume"))
        return cli_fail(c, "%s holds a checkpoint: give --resume to go on from it, or remove it", dir);
    TRY(c, dq_calibrator_restore(job, dir));
    TRY(c, dq_calibrator_get_float(job, "steps_done", &steps));
    cli_note(c, "resumed after %.0f steps", steps);
    return EXIT_OK;
}

static int run_with_checkpoints(cli *c, dq_calibrator *job, const char *dir)
{
    const char *text = cli_value(c, "checkpoint_seconds");
    double wait = text ? atof(text) : 0, last = cli_now();
    int status = resume(c, job, dir);
    if (status != EXIT_OK) return status;
    for (int32_t done = 0; !done;) {
        TRY(c, dq_calibrator_step(job, c->cancel, cli_progress, c, &done));
        if (done || cli_now() - last < wait) continue;
        TRY(c, dq_calibrator_checkpoint(job, dir));
        last = cli_now();
    }
    return EXIT_OK;
}

/* The library's report, and for each rotation the seconds of a step. */
static int take_report(cli *c, dq_calibrator *job, json_t **out)
{
    const char *text = NULL;
    size_t i;
    json_t *r;
    TRY(c, dq_calibrator_report(job, &text));
    *out = cli_parse_json(text);
    double seconds = 0, steps = 0;
    json_array_foreach(json_object_get(*out, "rotations"), i, r)
    {
        double s = json_number_value(json_object_get(r, "seconds"));
        double n = json_number_value(json_object_get(r, "steps"));
        json_object_set_new(r, "seconds_per_step", n > 0 ? json_real(s / n) : json_null());
        seconds += s;
        steps += n;
    }
    json_object_set_new(*out, "seconds_per_step", steps > 0 ? json_real(seconds / steps) : json_null());
    return EXIT_OK;
}

static int run_job(cli *c, dq_calibrator *job, const dq_dataset *data, const char *folder, const char *checkpoint)
{
    if (folder)
        TRY(c, dq_calibrator_bind_folder(job, folder));
    else
        TRY(c, dq_calibrator_bind(job, data));
    if (checkpoint) return run_with_checkpoints(c, job, checkpoint);
    TRY(c, dq_calibrator_run(job, c->cancel, cli_progress, c));
    return EXIT_OK;
}

int cli_calibrate(cli *c, dq_model *model, const dq_dataset *data, const char *folder, const char *checkpoint,
                  cli_learnt *out)
{
    dq_calibrator *job = NULL;
    TRY(c, dq_calibrator_new(model, c->config, &job));
    int status = run_job(c, job, data, folder, checkpoint);
    cli_progress_end(c);
    if (status == EXIT_OK) status = take_report(c, job, &out->report);
    if (status == EXIT_OK && dq_calibrator_take_rotation(job, &out->rotation) != DQ_OK) status = cli_failed(c);
    dq_calibrator_free(job);
    return status;
}

/* ---- for people ---- */

static double number(const json_t *o, const char *key) { return json_number_value(json_object_get(o, key)); }

static void print_line(const json_t *r)
{
    printf("%-18s loss %10.5g -> %10.5g", json_string_value(json_object_get(r, "name")), number(r, "loss_before"),
           number(r, "loss_after"));
    const json_t *activations = json_array_get(json_object_get(r, "kinds"), 0);
    if (json_is_number(json_object_get(activations, "error_before")))
        printf("   quantization error %.5f -> %.5f", number(activations, "error_before"),
               number(activations, "error_after"));
    printf("   %4.0f steps of %.3f s\n", number(r, "steps"), number(r, "seconds_per_step"));
}

void cli_print_learnt(const json_t *report)
{
    size_t i;
    json_t *r;
    json_array_foreach(json_object_get(report, "rotations"), i, r) print_line(r);
    printf("largest |R^T R - I| %.2g\n", number(report, "orthogonality_error"));
}
