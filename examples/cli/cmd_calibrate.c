/* dartquant calibrate: learn rotations from a model's activations. SPDX-License-Identifier: Apache-2.0 */
#include <errno.h>
#include <stdio.h>
#include <string.h>
#include <unistd.h>

#include "cli.h"

static const char *const areas[] = {"rotation fitting", "calibration", "evaluation", "activations",
                                    "weights",          "rotation",    "general",    NULL};
static const cli_flag flags[] = {
    {"out", FLAG_VALUE, "FILE",
     "Where the rotations go: .safetensors (with how they were learnt), .pt (DartQuant), .bin (SpinQuant's R.bin; needs --r2_shared). "
     "quantize --r1_path and --r2_path take it."},
    {"data", FLAG_VALUE, "DIR", "Inputs captured before, by `dartquant capture` or by the original scripts."},
    {"calib_dataset", FLAG_VALUE, "NAME",
     "Calibration text: train part of wikitext2 (the default), ptb or c4 in --data_dir."},
    {"cal_file", FLAG_VALUE, "F", "Calibration text from any file instead."},
    {"data_dir", FLAG_VALUE, "D", "Folder with the datasets' files."},
    {"tokenizer", FLAG_VALUE, "PATH", "Where the tokenizer is, when not in MODEL."},
    {"checkpoint", FLAG_VALUE, "DIR",
     "Keep the state in this folder, so that a killed job can go on; removed after success."},
    {"checkpoint_seconds", FLAG_VALUE, "N", "Not after every step, but when so many seconds have passed."},
    {"resume", FLAG_SWITCH, "", "Go on from the checkpoint, or start when there is none. Needs --checkpoint."},
    {NULL, 0, NULL, NULL},
};

static bool ends_with(const char *path, const char *suffix)
{
    size_t n = strlen(path), m = strlen(suffix);
    return n > m && strcmp(path + n - m, suffix) == 0;
}

static int print_report(cli *c, const cli_learnt *learnt, double begin)
{
    const char *out = cli_value(c, "out"), *text = NULL;
    double error = 0;
    TRY(c, dq_rotation_describe(learnt->rotation, &text));
    TRY(c, dq_rotation_error(learnt->rotation, &error));
    json_t *r = json_pack("{s:s, s:s, s:s, s:o}", "command", "calibrate", "model", c->operand, "out", out, "rotation",
                          cli_parse_json(text));
    json_object_update_missing(r, learnt->report);
    json_object_set_new(r, "orthogonality_error", json_real(error));
    json_object_set_new(r, "total_seconds", json_real(cli_now() - begin));
    cli_add_resources(c, r);
    if (c->json) return cli_print_json(c, r);
    cli_print_learnt(r);
    printf("%.1f s, peak memory %.0f MB\nsaved in %s\n", json_number_value(json_object_get(r, "total_seconds")),
           (double)cli_peak_rss() / 1e6, out);
    json_decref(r);
    return EXIT_OK;
}

/* R.bin has one R2 a layer: said before the work, not after. */
static int check_file(cli *c, dq_model *model)
{
    bool r2 = strcmp(cli_text(c, "target"), "r1") != 0;
    int64_t heads = cli_model_int(model, "num_key_value_heads");
    if (!ends_with(cli_value(c, "out"), ".bin") || !r2 || heads == 1 || cli_int(c, "r2_shared")) return EXIT_OK;
    return cli_usage(c,
                     "R.bin holds one R2 per layer, this model has %d key/value heads with one each: give --r2_shared, "
                     "or another ending of --out",
                     (int)heads);
}

/* A folder that is not there is found out before the work, too. */
static int check_folder(cli *c)
{
    const char *out = cli_value(c, "out"), *slash = strrchr(out, '/');
    char dir[4096];
    if (!slash) return EXIT_OK;
    int n = slash == out ? 1 : (int)(slash - out);
    if ((size_t)n >= sizeof dir) return cli_fail(c, "--out: a name of %zu bytes", strlen(out));
    snprintf(dir, sizeof dir, "%.*s", n, out);
    return access(dir, W_OK) == 0 ? EXIT_OK : cli_fail(c, "--out: %s: %s", dir, strerror(errno));
}

static int pipeline(cli *c, dq_model **model, dq_dataset **data, cli_learnt *learnt)
{
    double begin = cli_now();
    const char *folder = cli_value(c, "data"), *checkpoint = cli_value(c, "checkpoint");
    int status = check_folder(c);
    if (status == EXIT_OK) status = cli_open_context(c);
    if (status == EXIT_OK && !folder) status = cli_load_calibration(c, c->operand, data);
    if (status == EXIT_OK) status = cli_open_fused(c, c->operand, model);
    if (status == EXIT_OK) status = check_file(c, *model);
    if (status == EXIT_OK) status = cli_calibrate(c, *model, *data, folder, checkpoint, learnt);
    if (status != EXIT_OK) return status;
    TRY(c, dq_rotation_save(learnt->rotation, cli_value(c, "out")));
    if (checkpoint) TRY(c, dq_checkpoint_remove(c->ctx, checkpoint));
    return print_report(c, learnt, begin);
}

static int run(cli *c)
{
    const char *out = cli_value(c, "out");
    if (!out) return cli_usage(c, "calibrate needs --out FILE");
    if (!ends_with(out, ".safetensors") && !ends_with(out, ".pt") && !ends_with(out, ".bin"))
        return cli_usage(c, "--out must end in .safetensors, .pt or .bin");
    if (!cli_value(c, "data") && !cli_value(c, "cal_file") && !cli_value(c, "data_dir"))
        return cli_usage(c, "calibrate needs --data DIR, --cal_file F, or --data_dir D");
    if (cli_value(c, "data") && (cli_value(c, "cal_file") || cli_value(c, "data_dir") || cli_value(c, "calib_dataset")))
        return cli_usage(
            c, "--data takes the place of calibration text: leave --cal_file, --calib_dataset and --data_dir away");
    if (cli_switch(c, "resume") && !cli_value(c, "checkpoint")) return cli_usage(c, "--resume needs --checkpoint DIR");
    dq_model *model = NULL;
    dq_dataset *data = NULL;
    cli_learnt learnt = {0};
    int status = pipeline(c, &model, &data, &learnt);
    dq_rotation_free(learnt.rotation);
    json_decref(learnt.report);
    dq_dataset_free(data);
    dq_model_free(model);
    return status;
}

const cli_command command_calibrate = {
    "calibrate", "MODEL", "Learn the rotations R1 and R2 from the model's activations.", areas, flags, false, run,
};
