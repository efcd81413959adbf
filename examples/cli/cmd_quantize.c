/* dartquant quantize: fuse, rotate, quantize, measure, save. SPDX-License-Identifier: Apache-2.0 */
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "cli.h"

static const char *const areas[] = {"rotation",    "rotation fitting", "weights", "activations", "kv",
                                    "calibration", "evaluation",       "output",  "general",     NULL};
static const cli_flag flags[] = {
    {"preset", FLAG_VALUE, "NAME", "A named set of options (listed below); single options refine it."},
    {"no_rotation", FLAG_SWITCH, "", "No fusing and no rotation, unless single options ask for them."},
    {"cal_dataset", FLAG_VALUE, "NAME",
     "Calibration text: train part of wikitext2 (the default), ptb or c4 in --data_dir."},
    {"cal_file", FLAG_VALUE, "F", "Calibration text from any file instead."},
    {"data_dir", FLAG_VALUE, "D", "Folder with the datasets' files."},
    {"calibrate_rotation", FLAG_SWITCH, "",
     "Learn the rotations from the calibration text first, as `dartquant calibrate` does, with nothing on disk in between."},
    {"ppl_eval", FLAG_SWITCH, "", "Measure perplexity of the result."},
    {"ppl_eval_dataset", FLAG_DATASETS, "NAME...", "On which: wikitext2, ptb, c4 (all three without --text_file)."},
    {"text_file", FLAG_VALUE, "F", "Measure on any text file. May be repeated."},
    {"ids", FLAG_VALUE, "F.json", "Measure on token ids."},
    {"tokenizer", FLAG_VALUE, "PATH", "Where the tokenizer is, when not in MODEL."},
    {"checkpoint", FLAG_VALUE, "DIR",
     "Keep the state of the job in this folder (that of --calibrate_rotation in its folder rotation), so that a killed "
     "one can go on; removed after success."},
    {"checkpoint_seconds", FLAG_VALUE, "N", "Not after every layer or step, but when so many seconds have passed."},
    {"resume", FLAG_SWITCH, "", "Go on from the checkpoint, or start when there is none. Needs --checkpoint."},
    {"export", FLAG_VALUE, "F", "Write the result for other programs: a format of `dartquant export`. Needs --out."},
    {"out", FLAG_VALUE, "DIR", "The folder of --export; perplexity is then measured on what stands there."},
    {"load_qmodel_path", FLAG_VALUE, "DIR", "Do not quantize: open this saved model and measure it."},
    {NULL, 0, NULL, NULL},
};

/* What is carried from step to step. */
typedef struct job {
    const char *source; /* path of the model that is opened */
    cli_sets sets;      /* what to measure on */
    dq_dataset *calibration;
    dq_model *model;
    dq_rotation *rotation;
    json_t *learnt; /* report of the calibration, NULL = none */
    dq_quantizer *quantizer;
    json_t *seconds, *results, *memory;
    double clock;
} job;

/* Notes the time since the last call under `stage`. */
static void lap(job *j, const char *stage)
{
    double now = cli_now();
    json_object_set_new(j->seconds, stage, json_real(now - j->clock));
    j->clock = now;
}

static void replace_model(job *j, dq_model *model)
{
    dq_model_free(j->model);
    j->model = model;
}

/* ---- steps ---- */

static int load_evaluation(cli *c, job *j)
{
    if (!cli_switch(c, "ppl_eval")) return EXIT_OK;
    static const char *const usual[] = {"wikitext2", "ptb", "c4"};
    if (!cli_value(c, "ppl_eval_dataset") && !cli_value(c, "text_file") && !cli_value(c, "ids")) {
        if (!cli_value(c, "data_dir")) return cli_usage(c, "--ppl_eval needs --text_file, --ids or --data_dir");
        for (int i = 0; i < 3 && c->given_count < CLI_MAX_VALUES; i++) {
            c->given[c->given_count].name = "ppl_eval_dataset";
            c->given[c->given_count++].value = usual[i];
        }
    }
    return cli_load_sets(c, j->source, "ppl_eval_dataset", &j->sets);
}

static int load_calibration(cli *c, job *j, const char *who)
{
    if (j->calibration) return EXIT_OK;
    if (!cli_value(c, "cal_file") && !cli_value(c, "data_dir"))
        return cli_usage(c, "%s needs calibration text: --cal_file F, or --data_dir D", who);
    return cli_load_calibration(c, j->source, &j->calibration);
}

static bool rotates(const cli *c)
{
    return cli_int(c, "use_r1") || cli_int(c, "use_r2") || cli_int(c, "use_r3") || cli_int(c, "use_r4");
}

/* A saved model brings its rotations and codes along; they are not made a second time. */
static bool is_transformed(dq_model *model)
{
    const char *text = NULL;
    if (dq_model_describe(model, &text) != DQ_OK) return false;
    json_t *facts = cli_parse_json(text);
    const json_t *q = json_object_get(facts, "quantization"), *r = json_object_get(facts, "rotations");
    bool yes = (q && !json_is_null(q)) || (r && !json_is_null(r));
    json_decref(facts);
    return yes;
}

/* Where the state of learning lies beside that of quantizing. It stays until all is done: a resumed job then takes its last
 * step again and has the same rotations. */
static int rotation_folder(cli *c, char *folder, size_t size)
{
    bool fits = (size_t)snprintf(folder, size, "%s/rotation", cli_value(c, "checkpoint")) < size;
    return fits ? EXIT_OK : cli_usage(c, "--checkpoint: name too long");
}

static int check_checkpoint(cli *c)
{
    const char *dir = cli_value(c, "checkpoint");
    int32_t exists = 0;
    if (!dir || cli_switch(c, "resume")) return EXIT_OK;
    TRY(c, dq_checkpoint_exists(c->ctx, dir, &exists));
    return exists ? cli_fail(c, "%s holds a checkpoint: give --resume to go on from it, or remove it", dir) : EXIT_OK;
}

static int remove_checkpoints(cli *c)
{
    char folder[4096];
    if (!cli_value(c, "checkpoint")) return EXIT_OK;
    if (cli_switch(c, "calibrate_rotation")) {
        int status = rotation_folder(c, folder, sizeof folder);
        if (status != EXIT_OK) return status;
        TRY(c, dq_checkpoint_remove(c->ctx, folder));
    }
    TRY(c, dq_checkpoint_remove(c->ctx, cli_value(c, "checkpoint")));
    return EXIT_OK;
}

/* R1 and R2 fitted to this model's activations, straight from memory. */
static int learn_rotation(cli *c, job *j)
{
    cli_learnt learnt = {0};
    char folder[4096];
    const char *checkpoint = cli_value(c, "checkpoint") ? folder : NULL;
    int status = checkpoint ? rotation_folder(c, folder, sizeof folder) : EXIT_OK;
    if (status == EXIT_OK) status = load_calibration(c, j, "--calibrate_rotation");
    if (status == EXIT_OK) status = cli_calibrate(c, j->model, j->calibration, NULL, checkpoint, &learnt);
    j->rotation = learnt.rotation;
    j->learnt = learnt.report;
    return status;
}

static int transform(cli *c, job *j)
{
    dq_model *next = NULL;
    if (is_transformed(j->model)) {
        cli_note(c, "%s is a saved model: its rotations and codes are kept", j->source);
        return EXIT_OK;
    }
    if (cli_int(c, "fuse_norm")) {
        TRY(c, dq_model_fuse_norms(j->model, c->config, &next));
        replace_model(j, next);
    }
    if (!rotates(c)) return EXIT_OK;
    if (cli_switch(c, "calibrate_rotation")) {
        int status = learn_rotation(c, j);
        if (status != EXIT_OK) return status;
    } else {
        TRY(c, dq_rotation_new(j->model, c->config, &j->rotation));
    }
    TRY(c, dq_model_rotate(j->model, j->rotation, &next));
    replace_model(j, next);
    dq_rotation_free(j->rotation); /* the model keeps a copy */
    j->rotation = NULL;
    return EXIT_OK;
}

/* Goes on from the checkpoint or makes the first one. */
static int open_checkpoint(cli *c, job *j, const char *dir)
{
    int32_t exists = 0;
    double layers = 0;
    TRY(c, dq_checkpoint_exists(c->ctx, dir, &exists));
    if (!exists) {
        TRY(c, dq_quantizer_checkpoint(j->quantizer, dir));
        return EXIT_OK;
    }
    TRY(c, dq_quantizer_restore(j->quantizer, dir));
    TRY(c, dq_quantizer_get_float(j->quantizer, "layers_done", &layers));
    cli_note(c, "resumed after %.0f layers", layers);
    return EXIT_OK;
}

static int run_with_checkpoints(cli *c, job *j, const char *dir)
{
    const char *text = cli_value(c, "checkpoint_seconds");
    double wait = text ? atof(text) : 0, last = cli_now();
    int status = open_checkpoint(c, j, dir);
    if (status != EXIT_OK) return status;
    for (int32_t done = 0; !done;) {
        TRY(c, dq_quantizer_step(j->quantizer, c->cancel, cli_progress, c, &done));
        if (done || cli_now() - last < wait) continue;
        TRY(c, dq_quantizer_checkpoint(j->quantizer, dir));
        last = cli_now();
    }
    return EXIT_OK;
}

static int run_quantizer(cli *c, job *j)
{
    const char *dir = cli_value(c, "checkpoint");
    if (dir) return run_with_checkpoints(c, j, dir);
    TRY(c, dq_quantizer_run(j->quantizer, c->cancel, cli_progress, c));
    return EXIT_OK;
}

static int quantize(cli *c, job *j)
{
    int32_t needs_data = 0;
    dq_model *next = NULL;
    TRY(c, dq_quantizer_new(j->model, c->config, &j->quantizer));
    TRY(c, dq_quantizer_needs_data(j->quantizer, &needs_data));
    if (needs_data) {
        int status = load_calibration(c, j, "GPTQ, AWQ, or a clip ratio that is searched (auto),");
        if (status != EXIT_OK) return status;
        TRY(c, dq_quantizer_bind(j->quantizer, j->calibration));
        lap(j, "calibration_data");
    }
    int status = run_quantizer(c, j);
    if (status != EXIT_OK) return status;
    cli_progress_end(c);
    TRY(c, dq_quantizer_take_model(j->quantizer, &next));
    replace_model(j, next);
    lap(j, "quantize");
    return EXIT_OK;
}

/* ---- export ---- */

/* What the format cannot hold and the options promise: said before hours of work, not after. */
static int check_export(cli *c)
{
    const char *f = cli_value(c, "export"), *dir = cli_value(c, "out");
    if (!f != !dir) return cli_usage(c, "--export F and --out DIR belong together");
    if (!f) return EXIT_OK;
    int64_t bits = cli_int(c, "w_bits");
    bool gptq = strcmp(f, "gptq") == 0 || strcmp(f, "gptq_v2") == 0, awq = strcmp(f, "awq") == 0;
    bool ct = strncmp(f, "compressed-tensors", 18) == 0;
    if (strcmp(cli_text(c, "use_r2"), "online") == 0)
        return cli_usage(c, "--export %s cannot hold an online R2: give --use_r2 offline", f);
    if (cli_int(c, "use_r4") && !ct)
        return cli_usage(c, "--export %s cannot hold R4, which runs online: give --use_r4 false, or compressed-tensors",
                         f);
    if (cli_int(c, "k_bits") < 16 || cli_int(c, "v_bits") < 16)
        return cli_usage(c, "--export %s cannot hold quantized keys and values: --k_bits 16 --v_bits 16", f);
    if (cli_int(c, "a_bits") < 16 && !ct)
        return cli_usage(c, "--export %s cannot hold quantized activations: --a_bits 16, or compressed-tensors", f);
    if ((gptq || awq || ct) && bits == 16) return cli_usage(c, "--export %s holds integer codes: give --w_bits", f);
    if (gptq && bits > 4 && bits != 8) return cli_usage(c, "--export %s holds 2, 3, 4 or 8 bits, not %d", f, (int)bits);
    if (strcmp(f, "gptq") == 0 && cli_int(c, "w_asym"))
        return cli_usage(c, "--export gptq holds symmetric grids: use gptq_v2 with --w_asym");
    if (awq && bits != 4) return cli_usage(c, "--export awq holds 4 bits, not %d", (int)bits);
    if (awq && cli_int(c, "act_order") && !cli_int(c, "static_groups") && cli_int(c, "w_groupsize") > 0)
        return cli_usage(c, "--export awq has no g_idx: give --static_groups with --act_order");
    return EXIT_OK;
}

/* Writes the folder and goes on with what stands there, so that the perplexity is that of the file. */
static int export_result(cli *c, job *j)
{
    const char *f = cli_value(c, "export"), *dir = cli_value(c, "out");
    char path[4096];
    dq_model *back = NULL;
    if (!f) return EXIT_OK;
    int status = cli_export(c, j->model, f, dir);
    if (status != EXIT_OK) return status;
    size_t n = strlen(dir);
    bool inside = strncmp(f, "gguf:", 5) == 0 && !(n > 5 && strcmp(dir + n - 5, ".gguf") == 0);
    snprintf(path, sizeof path, inside ? "%s/model.gguf" : "%s", dir);
    TRY(c, dq_model_open(c->ctx, path, &back));
    replace_model(j, back);
    lap(j, "export");
    return EXIT_OK;
}

/* ---- report ---- */

/* The mean over the layers of what was searched. */
static void print_clips(const json_t *report)
{
    const char *name, *before = "clip ratios: ";
    json_t *list, *ratio;
    size_t i;
    json_t *clips = json_object_get(json_object_get(report, "scheme"), "clip_ratios");
    json_object_foreach(clips, name, list)
    {
        double sum = 0;
        json_array_foreach(list, i, ratio) sum += json_number_value(ratio);
        printf("%s%s %.3f", before, name, sum / (double)json_array_size(list));
        before = ", ";
    }
    if (json_object_size(clips) > 0) printf(" (means over the layers)\n");
}

/* What keys and values take by KVQuant. */
static void print_kvquant(const json_t *report)
{
    const json_t *o = json_object_get(json_object_get(report, "scheme"), "kvquant");
    int sink = (int)json_integer_value(json_object_get(o, "sink"));
    if (!o) return;
    printf("keys and values: %s levels, %.2f and %.2f bits, %d sink token%s exact\n",
           json_string_value(json_object_get(o, "levels")), json_number_value(json_object_get(o, "key_bits")),
           json_number_value(json_object_get(o, "value_bits")), sink, sink == 1 ? "" : "s");
}

static void print_summary(cli *c, const job *j, const json_t *report)
{
    const char *dir = cli_text(c, "save_qmodel_path");
    cli_print_results(j->results);
    print_clips(report);
    print_kvquant(report);
    const json_t *bits = json_object_get(report, "bits_per_weight");
    if (json_is_number(bits)) printf("bits per weight %.3f, ", json_number_value(bits));
    printf("%.1f s, peak memory %.0f MB\n", json_number_value(json_object_get(report, "total_seconds")),
           (double)cli_peak_rss() / 1e6);
    if (dir[0]) printf("saved in %s\n", dir);
    if (cli_value(c, "export")) printf("%s written to %s\n", cli_value(c, "export"), cli_value(c, "out"));
}

/* Moves what the quantizer knows into the report; its stage times join ours under "quantize_stages". */
static int add_quantizer(cli *c, const job *j, json_t *report)
{
    const char *text = NULL;
    if (!j->quantizer) return EXIT_OK;
    TRY(c, dq_quantizer_report(j->quantizer, &text));
    json_t *facts = cli_parse_json(text);
    static const char *const keys[] = {"scheme", "calibration", "layers", "bits_per_weight", "max_error", "mean_error"};
    for (size_t i = 0; i < sizeof keys / sizeof *keys; i++)
        json_object_set(report, keys[i], json_object_get(facts, keys[i]));
    json_object_set(j->seconds, "quantize_stages", json_object_get(facts, "seconds"));
    json_decref(facts);
    return EXIT_OK;
}

static int add_model(cli *c, const job *j, json_t *report)
{
    const char *text = NULL;
    TRY(c, dq_model_describe(j->model, &text));
    json_t *facts = cli_parse_json(text);
    static const char *const keys[] = {"bytes", "rotations", "quantization", "fingerprint"};
    for (size_t i = 0; i < sizeof keys / sizeof *keys; i++)
        if (json_object_get(facts, keys[i])) json_object_set(report, keys[i], json_object_get(facts, keys[i]));
    if (!json_object_get(report, "bits_per_weight") && json_object_get(facts, "bits_per_weight"))
        json_object_set(report, "bits_per_weight", json_object_get(facts, "bits_per_weight"));
    json_decref(facts);
    return EXIT_OK;
}

static int report(cli *c, const job *j, double begin)
{
    const char *dir = cli_text(c, "save_qmodel_path");
    json_t *r =
        json_pack("{s:s, s:s, s:O, s:O, s:o, s:O}", "command", "quantize", "model", j->source, "results", j->results,
                  "seconds", j->seconds, "saved", dir[0] ? json_string(dir) : json_null(), "memory_model", j->memory);
    int status = add_quantizer(c, j, r);
    if (status == EXIT_OK) status = add_model(c, j, r);
    if (status != EXIT_OK) {
        json_decref(r);
        return status;
    }
    if (j->learnt) json_object_set(r, "calibration_of_rotations", j->learnt);
    json_object_set_new(r, "total_seconds", json_real(cli_now() - begin));
    cli_add_resources(c, r);
    if (c->json) return cli_print_json(c, r);
    print_summary(c, j, r);
    json_decref(r);
    return EXIT_OK;
}

/* ---- the whole ---- */

static int pipeline(cli *c, job *j)
{
    double begin = j->clock = cli_now();
    bool loads = cli_value(c, "load_qmodel_path");
    int status = cli_open_context(c);
    if (status == EXIT_OK) status = check_checkpoint(c);
    if (status == EXIT_OK) status = load_evaluation(c, j); /* first: a mistake here shows before hours of work */
    if (status != EXIT_OK) return status;
    lap(j, "evaluation_data");
    TRY(c, dq_model_open(c->ctx, j->source, &j->model));
    /* Of the model as it came: what is derived from it is read through it. */
    int64_t windows = cli_sets_windows(c, &j->sets);
    bool gptq = !loads && cli_int(c, "w_bits") < 16 && (!cli_int(c, "w_rtn") || cli_int(c, "w_awq"));
    if (gptq && cli_int(c, "nsamples") > windows) windows = cli_int(c, "nsamples");
    j->memory = cli_memory_model(j->model, windows, cli_int(c, "seqlen"), gptq);
    lap(j, "open");
    if (!loads) {
        status = transform(c, j);
        lap(j, "rotate");
        if (status == EXIT_OK) status = quantize(c, j);
        if (status == EXIT_OK) status = export_result(c, j);
    }
    if (status == EXIT_OK && j->sets.count > 0) {
        status = cli_evaluate(c, j->model, &j->sets, j->results);
        lap(j, "evaluate");
    }
    if (status == EXIT_OK) status = report(c, j, begin);
    return status == EXIT_OK ? remove_checkpoints(c) : status;
}

/* Says which options have no effect on a model that is only measured. */
static void note_unused(const cli *c)
{
    static const char *const idle[] = {"rotation", "weights", "activations", "kv"};
    for (int32_t i = 0; i < dq_option_count(); i++) {
        dq_option_info info = {.struct_size = sizeof info};
        int32_t set = 0;
        if (dq_option_get(i, &info) != DQ_OK || dq_config_is_set(c->config, info.name, &set) != DQ_OK || !set) continue;
        for (size_t a = 0; a < sizeof idle / sizeof *idle; a++)
            if (strcmp(info.area, idle[a]) == 0)
                cli_note(c, "--load_qmodel_path only measures: --%s has no effect", info.name);
    }
}

static int run(cli *c)
{
    const char *saved = cli_value(c, "load_qmodel_path");
    if (saved && c->operand) return cli_usage(c, "either MODEL or --load_qmodel_path, not both");
    if (cli_switch(c, "resume") && !cli_value(c, "checkpoint")) return cli_usage(c, "--resume needs --checkpoint DIR");
    if (cli_switch(c, "calibrate_rotation") &&
        (saved || cli_switch(c, "no_rotation") || cli_text(c, "r1_path")[0] || cli_text(c, "r2_path")[0]))
        return cli_usage(c, "--calibrate_rotation learns what --r1_path, --r2_path, --no_rotation or "
                            "--load_qmodel_path give already");
    if (!saved && !c->operand) return cli_usage(c, "quantize needs a MODEL");
    if (saved && cli_value(c, "export")) return cli_usage(c, "to write a saved model for others, use dartquant export");
    int checked = check_export(c);
    if (checked != EXIT_OK) return checked;
    if (saved && cli_text(c, "save_qmodel_path")[0])
        return cli_usage(c, "--load_qmodel_path only measures: it cannot be combined with --save_qmodel_path");
    if (saved) note_unused(c);
    job j = {.source = saved ? saved : c->operand, .seconds = json_object(), .results = json_array()};
    int status = pipeline(c, &j);
    dq_quantizer_free(j.quantizer);
    dq_rotation_free(j.rotation);
    dq_model_free(j.model);
    dq_dataset_free(j.calibration);
    cli_free_sets(&j.sets);
    json_decref(j.seconds);
    json_decref(j.memory);
    json_decref(j.results);
    json_decref(j.learnt);
    return status;
}

const cli_command command_quantize = {
    "quantize", "MODEL", "Fuse norms, rotate, quantize weights, activations and KV; measure and save the result.",
    areas,      flags,   true,
    run,
};
