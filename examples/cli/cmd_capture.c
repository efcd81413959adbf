/* dartquant capture: write down what the linears of a model read. SPDX-License-Identifier: Apache-2.0 */
#include <stdio.h>

#include "cli.h"

static const char *const areas[] = {"capture", "rotation fitting", "calibration", "evaluation", "general", NULL};
static const cli_flag flags[] = {
    {"r_path", FLAG_VALUE, "DIR", "Folder for the files; `dartquant calibrate --data DIR` reads them."},
    {"calib_dataset", FLAG_VALUE, "NAME",
     "Calibration text: train part of wikitext2 (the default), ptb or c4 in --data_dir."},
    {"cal_file", FLAG_VALUE, "F", "Calibration text from any file instead."},
    {"data_dir", FLAG_VALUE, "D", "Folder with the datasets' files."},
    {"tokenizer", FLAG_VALUE, "PATH", "Where the tokenizer is, when not in MODEL."},
    {NULL, 0, NULL, NULL},
};

static int pipeline(cli *c, dq_model **model, dq_dataset **data)
{
    double begin = cli_now();
    const char *dir = cli_value(c, "r_path");
    int status = cli_open_context(c);
    if (status == EXIT_OK) status = cli_load_calibration(c, c->operand, data);
    if (status == EXIT_OK) status = cli_open_fused(c, c->operand, model);
    if (status != EXIT_OK) return status;
    TRY(c, dq_model_capture(*model, c->config, *data, dir, c->cancel, cli_progress, c));
    cli_progress_end(c);
    if (!c->json) {
        printf("captured in %s: %.1f s, peak memory %.0f MB\n", dir, cli_now() - begin, (double)cli_peak_rss() / 1e6);
        return EXIT_OK;
    }
    json_t *r = json_pack("{s:s, s:s, s:s, s:s, s:I, s:I, s:f}", "command", "capture", "model", c->operand, "folder",
                          dir, "format", cli_text(c, "capture_format"), "nsamples", (json_int_t)cli_int(c, "nsamples"),
                          "seqlen", (json_int_t)cli_int(c, "seqlen"), "total_seconds", cli_now() - begin);
    cli_add_resources(c, r);
    return cli_print_json(c, r);
}

static int run(cli *c)
{
    if (!cli_value(c, "r_path")) return cli_usage(c, "capture needs --r_path DIR");
    if (!cli_value(c, "cal_file") && !cli_value(c, "data_dir"))
        return cli_usage(c, "capture needs --cal_file F or --data_dir D");
    dq_model *model = NULL;
    dq_dataset *data = NULL;
    int status = pipeline(c, &model, &data);
    dq_dataset_free(data);
    dq_model_free(model);
    return status;
}

const cli_command command_capture = {
    "capture", "MODEL", "Write the inputs that rotations are learnt from to a folder.", areas, flags, false, run,
};
