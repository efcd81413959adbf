/* dartquant export: a model for other programs; dartquant quantize-model: from a model to such a folder in one step.
 * SPDX-License-Identifier: Apache-2.0 */
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "cli.h"

static const char *const areas[] = {"output", "general", NULL};
static const cli_flag flags[] = {
    {"format", FLAG_VALUE, "F",
     "gptq, gptq_v2, awq, compressed-tensors, compressed-tensors:int-quantized, gguf:T (T = f32, f16, bf16, q8_0, q4_0, "
     "q4_1, q5_0, q5_1, q4_k, q6_k), diffulex-gptq, diffulex-awq, hf, hf:f32, hf:f16, hf:bf16."},
    {"out", FLAG_VALUE, "DIR", "The new folder (for gguf:T also a file name ending in .gguf)."},
    {NULL, 0, NULL, NULL},
};

int cli_export(cli *c, dq_model *model, const char *format, const char *dir)
{
    TRY(c, dq_model_export(model, format, dir, c->config, c->cancel, cli_progress, c));
    cli_progress_end(c);
    return EXIT_OK;
}

static int report(cli *c, const char *format, const char *dir, double seconds)
{
    dq_model *back = NULL;
    const char *text = NULL;
    char path[4096];
    snprintf(path, sizeof path, "%s", dir);
    size_t n = strlen(dir);
    bool gguf = strncmp(format, "gguf:", 5) == 0 && !(n > 5 && strcmp(dir + n - 5, ".gguf") == 0);
    if (gguf) snprintf(path, sizeof path, "%s/model.gguf", dir);
    TRY(c, dq_model_open(c->ctx, path, &back));
    if (dq_model_describe(back, &text) != DQ_OK) {
        dq_model_free(back);
        return cli_failed(c);
    }
    json_t *facts = cli_parse_json(text);
    json_t *r = json_pack("{s:s, s:s, s:s, s:s, s:O?, s:O?, s:f}", "command", "export", "model", c->operand, "format",
                          format, "path", path, "bytes", json_object_get(facts, "bytes"), "bits_per_weight",
                          json_object_get(facts, "bits_per_weight"), "seconds", seconds);
    if (!c->json)
        printf("%s: %.1f MB, %.3f bits per weight, %.1f s\n", path,
               (double)json_integer_value(json_object_get(facts, "bytes")) / 1e6,
               json_number_value(json_object_get(facts, "bits_per_weight")), seconds);
    int status = c->json ? cli_print_json(c, r) : EXIT_OK;
    if (!c->json) json_decref(r);
    json_decref(facts);
    dq_model_free(back);
    return status;
}

static int run(cli *c)
{
    const char *format = cli_value(c, "format"), *dir = cli_value(c, "out");
    dq_model *model = NULL;
    double begin = cli_now();
    if (!format || !dir) return cli_usage(c, "export needs --format F and --out DIR");
    int status = cli_open_context(c);
    if (status != EXIT_OK) return status;
    TRY(c, dq_model_open(c->ctx, c->operand, &model));
    status = cli_export(c, model, format, dir);
    dq_model_free(model);
    return status == EXIT_OK ? report(c, format, dir, cli_now() - begin) : status;
}

const cli_command command_export = {
    "export", "MODEL", "Write a model for other programs: GPTQ, AWQ, compressed-tensors, GGUF, Hugging Face, Diffulex.",
    areas,    flags,   false,
    run,
};

/* ---- quantize-model ---- */

static const char *const model_areas[] = {"calibration", "evaluation", "general", NULL};
static const cli_flag model_flags[] = {
    {"model_path", FLAG_VALUE, "PATH", "The model; or give it as MODEL."},
    {"output_path", FLAG_VALUE, "DIR", "The new folder."},
    {"quant_format", FLAG_VALUE, "gptq|awq",
     "gptq: GPTQ with calibration text (--cal_file or --data_dir), in the GPTQ format. awq: AWQ with "
     "calibration text on asymmetric grids, in the AWQ format; without text there are no activation-aware scales, only "
     "rounding to nearest."},
    {"group_size", FLAG_VALUE, "N", "Columns per group, -1 = whole rows. Default 128."},
    {"bits", FLAG_VALUE, "N", "Bits per weight. Default 4."},
    {"cal_file", FLAG_VALUE, "F", "Calibration text."},
    {"cal_dataset", FLAG_VALUE, "NAME", "Calibration text by name, in --data_dir."},
    {"data_dir", FLAG_VALUE, "D", "Folder with the datasets' files."},
    {"tokenizer", FLAG_VALUE, "PATH", "Where the tokenizer is, when not in MODEL."},
    {NULL, 0, NULL, NULL},
};

static int set(cli *c, const char *name, const char *value)
{
    TRY(c, dq_config_set(c->config, name, value));
    return EXIT_OK;
}

/* Puts a flag as if it had been written. */
static void give(cli *c, const char *name, const char *value)
{
    if (c->given_count == CLI_MAX_VALUES) return;
    c->given[c->given_count].name = name;
    c->given[c->given_count++].value = value;
}

static int run_model(cli *c)
{
    const char *path = cli_value(c, "model_path"), *out = cli_value(c, "output_path");
    const char *format = cli_value(c, "quant_format"), *group = cli_value(c, "group_size"),
               *bits = cli_value(c, "bits");
    if (!path) path = c->operand;
    if (!path || !out) return cli_usage(c, "quantize-model needs --model-path PATH and --output-path DIR");
    if (!format) format = "gptq";
    bool awq = strcmp(format, "awq") == 0;
    if (!awq && strcmp(format, "gptq") != 0) return cli_usage(c, "--quant-format is gptq or awq, not \"%s\"", format);
    static const char *const plain[][2] = {{"fuse_norm", "false"}, {"use_r1", "false"}, {"use_r2", "none"},
                                           {"use_r3", "false"},    {"use_r4", "false"}, {"a_bits", "16"},
                                           {"k_bits", "16"},       {"v_bits", "16"}};
    int status = EXIT_OK;
    for (size_t i = 0; status == EXIT_OK && i < sizeof plain / sizeof *plain; i++)
        status = set(c, plain[i][0], plain[i][1]);
    if (status == EXIT_OK) status = set(c, "w_bits", bits ? bits : "4");
    if (status == EXIT_OK) status = set(c, "w_groupsize", group ? group : "128");
    if (status == EXIT_OK) status = set(c, "w_asym", awq ? "true" : "false");
    if (status == EXIT_OK) status = set(c, "w_rtn", awq ? "true" : "false");
    bool text = cli_value(c, "cal_file") || cli_value(c, "data_dir");
    if (status == EXIT_OK && awq && text) status = set(c, "w_awq", "true");
    if (status == EXIT_OK && awq && text) status = set(c, "w_clip", "true");
    if (status == EXIT_OK && awq && !text)
        cli_note(c, "no calibration text (--cal_file or --data_dir): rounding to nearest, without AWQ's scales");
    if (status != EXIT_OK) return status;
    c->operand = path;
    give(c, "export", awq ? "awq" : "gptq");
    give(c, "out", out);
    return command_quantize.run(c);
}

const cli_command command_quantize_model = {
    "quantize-model", "MODEL",     "From a model to a GPTQ or AWQ folder in one step, without rotations.",
    model_areas,      model_flags, true,
    run_model,
};
