/* dartquant compare: several ways of quantizing one model, side by side. SPDX-License-Identifier: Apache-2.0 */
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>

#include "cli.h"

static const char *const areas[] = {"rotation",    "rotation fitting", "weights", "activations", "kv",
                                    "calibration", "evaluation",       "general", NULL};
static const cli_flag flags[] = {
    {"schemes", FLAG_VALUE, "A,B,...",
     "What to compare with the model as it is: ROTATION:BITS[:OPTION...]. ROTATION: none, hadamard, random; learnt (by "
     "the default recipe from the calibration text), dartquant (by the published recipe), or a loss alone: whip, swd "
     "or another that --loss takes; a file that r1_path takes; or the folder of a saved model, measured as it is. BITS: "
     "like w4a4kv4, w4a8, a4kv16; what is not named has 16. OPTION: rtn, kvquant (kv_method kvquant), or name=value of any option below. "
     "Default none:w4a4kv4:rtn,hadamard:w4a4kv4:rtn,hadamard:w4a4kv4."},
    {"cal_dataset", FLAG_VALUE, "NAME",
     "Calibration text: train part of wikitext2 (the default), ptb or c4 in --data_dir."},
    {"cal_file", FLAG_VALUE, "F", "Calibration text from any file instead."},
    {"dataset", FLAG_DATASETS, "NAME", "Measure on wikitext2, ptb or c4, from files in --data_dir."},
    {"data_dir", FLAG_VALUE, "D", "Folder with the datasets' files."},
    {"text_file", FLAG_VALUE, "F", "Measure on any text file."},
    {"ids", FLAG_VALUE, "F.json", "Measure on token ids."},
    {"tokenizer", FLAG_VALUE, "PATH", "Where the tokenizer is, when not in MODEL."},
    {"cache", FLAG_VALUE, "F.safetensors",
     "Keep what the comparison needs of the full-precision model in this file, or take it from there."},
    {"plot", FLAG_VALUE, "F.svg", "Draw the table."},
    {NULL, 0, NULL, NULL},
};

/* Where an option is not given on the command line: what the original program's tables use. */
static const char *const usual[][2] = {
    {"w_clip", "true"},       {"a_asym", "true"},   {"k_asym", "true"},      {"v_asym", "true"},
    {"k_groupsize", "0"},     {"v_groupsize", "0"}, {"a_clip_ratio", "0.9"}, {"k_clip_ratio", "0.95"},
    {"v_clip_ratio", "0.95"}, {"nsamples", "16"},
};

typedef struct job {
    cli_sets sets;
    dq_dataset *calibration; /* loaded when the first scheme needs it */
    dq_model *model;
    dq_reference *reference;
    bool cached; /* it came from --cache */
    json_t *rows;
    double clock;
} job;

static double lap(job *j)
{
    double now = cli_now(), seconds = now - j->clock;
    j->clock = now;
    return seconds;
}

/* ---- one row ---- */

static int load_calibration(cli *c, job *j)
{
    if (j->calibration) return EXIT_OK;
    if (!cli_value(c, "cal_file") && !cli_value(c, "data_dir"))
        return cli_usage(c, "a scheme needs calibration text: --cal_file F, or --data_dir D (or compare rtn only)");
    return cli_load_calibration(c, c->operand, &j->calibration);
}

/* R1 and R2 fitted to the fused model's activations; the row gets what the report says about them. */
static int learn(cli *c, job *j, dq_model *fused, json_t *row, dq_rotation **out)
{
    cli_learnt learnt = {0};
    int status = load_calibration(c, j);
    lap(j); /* reading text is no part of it */
    if (status == EXIT_OK) status = cli_calibrate(c, fused, j->calibration, NULL, NULL, &learnt);
    json_object_set_new(row, "calibrate_seconds", json_real(lap(j)));
    *out = learnt.rotation;
    if (learnt.report) json_object_set_new(row, "calibration_of_rotations", learnt.report);
    return status;
}

/* The model in the scheme's basis; NULL = as it is. */
static int transform(cli *c, job *j, const cli_scheme *scheme, json_t *row, dq_model **out)
{
    dq_model *fused = NULL;
    dq_rotation *rotation = NULL;
    if (scheme->kind == SCHEME_PLAIN) return EXIT_OK;
    if (scheme->kind == SCHEME_SAVED) {
        TRY(c, dq_model_open(c->ctx, scheme->word, out));
        return EXIT_OK;
    }
    TRY(c, dq_model_fuse_norms(j->model, c->config, &fused));
    int result = EXIT_OK;
    if (scheme->kind == SCHEME_LEARNT)
        result = learn(c, j, fused, row, &rotation);
    else if (dq_rotation_new(fused, c->config, &rotation) != DQ_OK)
        result = cli_failed(c);
    if (result == EXIT_OK && dq_model_rotate(fused, rotation, out) != DQ_OK) result = cli_failed(c);
    dq_rotation_free(rotation);
    dq_model_free(fused);
    return result;
}

static int quantize(cli *c, job *j, dq_model *model, json_t *row, dq_model **out)
{
    dq_quantizer *q = NULL;
    int32_t needs = 0;
    const char *text = NULL;
    TRY(c, dq_quantizer_new(model, c->config, &q));
    dq_status status = dq_quantizer_needs_data(q, &needs);
    int result = status == DQ_OK && needs ? load_calibration(c, j) : EXIT_OK;
    if (result == EXIT_OK) {
        if (status == DQ_OK && needs) status = dq_quantizer_bind(q, j->calibration);
        if (status == DQ_OK) status = dq_quantizer_run(q, c->cancel, cli_progress, c);
        if (status == DQ_OK) status = dq_quantizer_take_model(q, out);
        if (status == DQ_OK) status = dq_quantizer_report(q, &text);
        if (status != DQ_OK) result = cli_failed(c);
    }
    json_t *facts = text ? cli_parse_json(text) : NULL;
    json_object_set(row, "quantization", json_object_get(facts, "scheme"));
    json_object_set(row, "bits_per_weight", json_object_get(facts, "bits_per_weight"));
    json_decref(facts);
    dq_quantizer_free(q);
    cli_progress_end(c);
    return result;
}

/* Adds the results of an evaluation to the row. */
static int measure(cli *c, job *j, dq_model *model, json_t *row)
{
    dq_evaluator *e = NULL;
    const char *text = NULL;
    TRY(c, dq_evaluator_new(model, c->config, &e));
    dq_status status = dq_evaluator_bind(e, j->sets.set[0]);
    if (status == DQ_OK)
        status = j->reference ? dq_evaluator_set_reference(e, j->reference) : dq_evaluator_keep_reference(e, 1);
    if (status == DQ_OK) status = dq_evaluator_run(e, c->cancel, cli_progress, c);
    if (status == DQ_OK) status = dq_evaluator_report(e, &text);
    if (status == DQ_OK) {
        json_t *facts = cli_parse_json(text);
        json_object_update(row, facts);
        json_decref(facts);
        if (!j->reference) status = dq_evaluator_take_reference(e, &j->reference);
    }
    const char *cache = j->cached ? cli_value(c, "cache") : NULL;
    int result = status == DQ_OK ? EXIT_OK : cli_failed(c);
    if (cache && status == DQ_E_MISMATCH)
        cli_note(c, "%s is of another comparison: remove it, or name another --cache", cache);
    dq_evaluator_free(e);
    cli_progress_end(c);
    return result;
}

static int run_scheme(cli *c, job *j, const char *text)
{
    cli_scheme scheme;
    dq_model *turned = NULL, *result = NULL;
    json_t *row = json_pack("{s:s}", "scheme", text);
    lap(j);
    int status = cli_parse_scheme(c, text, &scheme);
    if (status == EXIT_OK) status = transform(c, j, &scheme, row, &turned);
    if (status == EXIT_OK && !scheme.finished) status = quantize(c, j, turned ? turned : j->model, row, &result);
    json_object_set_new(row, "quantize_seconds", json_real(lap(j)));
    if (status == EXIT_OK) status = measure(c, j, result ? result : turned ? turned : j->model, row);
    json_object_set_new(row, "evaluate_seconds", json_real(lap(j)));
    if (status == EXIT_OK) json_array_append(j->rows, row);
    json_decref(row);
    dq_model_free(result);
    dq_model_free(turned);
    return status;
}

/* Each scheme has options of its own, on top of those of the command line. */
static int run_with_config(cli *c, job *j, const char *text, int (*run)(cli *c, job *j, const char *text))
{
    dq_config *given = c->config, *own = NULL;
    TRY(c, dq_config_copy(given, &own));
    c->config = own;
    int status = run(c, j, text);
    c->config = given;
    dq_config_free(own);
    return status;
}

/* The scheme's words alone, so that a mistake in the last one shows before the first has run. */
static int try_scheme(cli *c, job *j, const char *text)
{
    cli_scheme scheme;
    (void)j;
    return cli_parse_scheme(c, text, &scheme);
}

static int each_scheme(cli *c, job *j, int (*run)(cli *c, job *j, const char *text))
{
    const char *list = cli_value(c, "schemes");
    if (!list) list = "none:w4a4kv4:rtn,hadamard:w4a4kv4:rtn,hadamard:w4a4kv4";
    int status = EXIT_OK;
    while (*list && status == EXIT_OK) {
        char text[2048];
        size_t n = strcspn(list, ",");
        if (n >= sizeof text) return cli_usage(c, "--schemes: a scheme of %zu bytes", n);
        snprintf(text, sizeof text, "%.*s", (int)n, list);
        if (n > 0 && strcmp(text, "fp") != 0) status = run_with_config(c, j, text, run);
        list += n + (list[n] == ',');
    }
    return status;
}

/* ---- the reference ---- */

static int full_precision(cli *c, job *j)
{
    const char *cache = cli_value(c, "cache"), *text = NULL;
    struct stat st;
    json_t *row = json_pack("{s:s, s:f, s:f, s:f}", "scheme", "full precision", "quantize_seconds", 0.0, "kl", 0.0,
                            "top1_agreement", 1.0);
    int status = EXIT_OK;
    bool cached = j->cached = cache && stat(cache, &st) == 0;
    lap(j);
    if (cached) {
        dq_status opened = dq_reference_open(j->model, cache, &j->reference);
        if (opened == DQ_OK) opened = dq_reference_report(j->reference, &text);
        json_t *facts = opened == DQ_OK ? cli_parse_json(text) : NULL;
        json_object_update(row, facts);
        json_decref(facts);
        if (opened != DQ_OK) status = cli_failed(c);
    } else {
        status = measure(c, j, j->model, row);
        if (status == EXIT_OK && cache && dq_reference_save(j->reference, cache) != DQ_OK) status = cli_failed(c);
    }
    json_object_set_new(row, "cached", json_boolean(cached));
    json_object_set_new(row, "evaluate_seconds", json_real(lap(j)));
    if (status == EXIT_OK) json_array_append(j->rows, row);
    json_decref(row);
    return status;
}

/* ---- report ---- */

static double number(const json_t *object, const char *key) { return json_number_value(json_object_get(object, key)); }

/* A number of the row, or a dash. */
static void optional(const json_t *row, const char *key, const char *format, char text[16])
{
    const json_t *value = json_object_get(row, key);
    snprintf(text, 16, "-");
    if (json_is_number(value)) snprintf(text, 16, format, json_number_value(value));
}

static void print_table(const json_t *rows)
{
    size_t i;
    json_t *r;
    int width = 14;
    json_array_foreach(rows, i, r)
    {
        int n = (int)strlen(json_string_value(json_object_get(r, "scheme")));
        if (n > width) width = n;
    }
    printf("%-*s %11s %10s %10s %9s %9s %10s %10s\n", width, "scheme", "perplexity", "KL, nats", "same top-1", "bits/w",
           "learn s", "quantize s", "evaluate s");
    json_array_foreach(rows, i, r)
    {
        char bits[16], learning[16];
        optional(r, "bits_per_weight", "%.3f", bits);
        optional(r, "calibrate_seconds", "%.1f", learning);
        printf("%-*s %11.4f %10.5f %9.2f%% %9s %9s %10.1f %10.1f\n", width,
               json_string_value(json_object_get(r, "scheme")), number(r, "ppl"), number(r, "kl"),
               100 * number(r, "top1_agreement"), bits, learning, number(r, "quantize_seconds"),
               number(r, "evaluate_seconds"));
    }
    r = json_array_get(rows, 0);
    printf("%s: %.0f windows of %.0f tokens; KL and top-1 against full precision\n",
           json_string_value(json_object_get(r, "dataset")), number(r, "windows"), number(r, "seqlen"));
}

static int report(cli *c, const job *j)
{
    const char *plot = cli_value(c, "plot");
    if (plot) {
        int status = cli_plot_comparison(c, plot, j->rows);
        if (status != EXIT_OK) return status;
    }
    if (!c->json) {
        print_table(j->rows);
        if (plot) printf("plot: %s\n", plot);
        return EXIT_OK;
    }
    json_t *r = json_pack("{s:s, s:s, s:O, s:o}", "command", "compare", "model", c->operand, "rows", j->rows, "plot",
                          plot ? json_string(plot) : json_null());
    cli_add_resources(c, r);
    return cli_print_json(c, r);
}

static int set_usual(cli *c)
{
    for (size_t i = 0; i < sizeof usual / sizeof *usual; i++) {
        int32_t given = 0;
        TRY(c, dq_config_is_set(c->config, usual[i][0], &given));
        if (!given) TRY(c, dq_config_set(c->config, usual[i][0], usual[i][1]));
    }
    return EXIT_OK;
}

static int pipeline(cli *c, job *j)
{
    int status = set_usual(c);
    if (status == EXIT_OK) status = each_scheme(c, j, try_scheme);
    if (status == EXIT_OK) status = cli_open_context(c);
    if (status == EXIT_OK) status = cli_load_sets(c, c->operand, "dataset", &j->sets);
    if (status == EXIT_OK && j->sets.count > 1)
        return cli_usage(c, "a comparison is on one text, %d are given", j->sets.count);
    if (status != EXIT_OK) return status;
    TRY(c, dq_model_open(c->ctx, c->operand, &j->model));
    status = full_precision(c, j);
    if (status == EXIT_OK) status = each_scheme(c, j, run_scheme);
    return status == EXIT_OK ? report(c, j) : status;
}

static int run(cli *c)
{
    job j = {.rows = json_array(), .clock = cli_now()};
    int status = pipeline(c, &j);
    dq_reference_free(j.reference);
    dq_model_free(j.model);
    dq_dataset_free(j.calibration);
    cli_free_sets(&j.sets);
    json_decref(j.rows);
    return status;
}

const cli_command command_compare = {
    "compare", "MODEL", "Full precision and several quantized versions of a model side by side.", areas, flags,
    false,     run,
};
