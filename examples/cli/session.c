/* Opening what the subcommands work on. SPDX-License-Identifier: Apache-2.0 */
#include <stdio.h>
#include <string.h>

#include "cli.h"

static void on_log(void *user, int32_t level, const char *text)
{
    const cli *c = user;
    if (level <= DQ_LOG_WARNING || !c->quiet) {
        cli_progress_end(c);
        fprintf(stderr, "%s%s\n", level == DQ_LOG_ERROR ? "error: " : level == DQ_LOG_WARNING ? "warning: " : "", text);
    }
}

int cli_open_context(cli *c)
{
    dq_services services = {.struct_size = sizeof services, .abi = 1, .log = on_log, .log_user = c};
    TRY(c, dq_context_new(c->config, &services, &c->ctx));
    return EXIT_OK;
}

int cli_open_tokenizer(cli *c, const char *model_path, dq_tokenizer **out)
{
    const char *path = cli_value(c, "tokenizer");
    TRY(c, dq_tokenizer_open(c->ctx, path ? path : model_path, out));
    return EXIT_OK;
}

/* ---- datasets ---- */

static int add_set(cli *c, cli_sets *sets, dq_dataset *set)
{
    int64_t seqlen = cli_int(c, "seqlen"), count = dq_dataset_count(set);
    if (count < seqlen) {
        int status = cli_fail(c, "dataset %s has %lld tokens, less than one window of %lld (--seqlen)",
                              dq_dataset_name(set), (long long)count, (long long)seqlen);
        dq_dataset_free(set);
        return status;
    }
    sets->set[sets->count++] = set;
    return EXIT_OK;
}

static int load_named(cli *c, const dq_tokenizer *tokenizer, const char *name, cli_sets *sets)
{
    const char *data_dir = cli_value(c, "data_dir");
    dq_dataset *set = NULL;
    if (!data_dir) return cli_usage(c, "dataset %s needs --data_dir, the folder with its files", name);
    TRY(c, dq_dataset_from_recipe(tokenizer, name, data_dir, DQ_DATASET_TEST, cli_int(c, "seqlen"), &set));
    return add_set(c, sets, set);
}

static int load_words(cli *c, const char *tokenizer_path, const char *dataset_flag, cli_sets *sets)
{
    dq_tokenizer *tokenizer = NULL;
    int status = cli_open_tokenizer(c, tokenizer_path, &tokenizer);
    const char *name;
    for (int i = 0; status == EXIT_OK && (name = cli_value_at(c, dataset_flag, i)); i++)
        status = sets->count == CLI_MAX_SETS ? cli_usage(c, "more than %d datasets", CLI_MAX_SETS)
                                             : load_named(c, tokenizer, name, sets);
    for (int i = 0; status == EXIT_OK && (name = cli_value_at(c, "text_file", i)); i++) {
        dq_dataset *set = NULL;
        if (sets->count == CLI_MAX_SETS)
            status = cli_usage(c, "more than %d datasets", CLI_MAX_SETS);
        else if (dq_dataset_from_file(tokenizer, name, &set) != DQ_OK)
            status = cli_failed(c);
        else
            status = add_set(c, sets, set);
    }
    dq_tokenizer_free(tokenizer);
    return status;
}

int cli_load_sets(cli *c, const char *tokenizer_path, const char *dataset_flag, cli_sets *sets)
{
    int status = EXIT_OK;
    if (cli_value(c, dataset_flag) || cli_value(c, "text_file"))
        status = load_words(c, tokenizer_path, dataset_flag, sets);
    const char *path;
    for (int i = 0; status == EXIT_OK && (path = cli_value_at(c, "ids", i)); i++) {
        dq_dataset *set = NULL;
        if (sets->count == CLI_MAX_SETS) return cli_usage(c, "more than %d datasets", CLI_MAX_SETS);
        TRY(c, dq_dataset_from_ids_file(c->ctx, path, &set));
        status = add_set(c, sets, set);
    }
    if (status == EXIT_OK && sets->count == 0)
        return cli_usage(c, "nothing to measure on: give --text_file, --ids, or --%s with --data_dir", dataset_flag);
    return status;
}

int cli_load_calibration(cli *c, const char *tokenizer_path, dq_dataset **out)
{
    const char *file = cli_value(c, "cal_file"), *dir = cli_value(c, "data_dir");
    const char *name = cli_value(c, "cal_dataset") ? cli_value(c, "cal_dataset") : cli_value(c, "calib_dataset");
    dq_tokenizer *tokenizer = NULL;
    int status = cli_open_tokenizer(c, tokenizer_path, &tokenizer);
    if (status != EXIT_OK) return status;
    dq_status made = file ? dq_dataset_from_file(tokenizer, file, out)
                          : dq_dataset_from_recipe(tokenizer, name ? name : "wikitext2", dir, DQ_DATASET_TRAIN,
                                                   cli_int(c, "seqlen"), out);
    if (made != DQ_OK) status = cli_failed(c);
    dq_tokenizer_free(tokenizer);
    return status;
}

void cli_free_sets(cli_sets *sets)
{
    for (int i = 0; i < sets->count; i++) dq_dataset_free(sets->set[i]);
    sets->count = 0;
}

int64_t cli_sets_windows(const cli *c, const cli_sets *sets)
{
    int64_t most = 0, limit = cli_int(c, "limit");
    for (int i = 0; i < sets->count; i++) {
        int64_t windows = dq_dataset_count(sets->set[i]) / cli_int(c, "seqlen");
        if (limit > 0 && windows > limit) windows = limit;
        if (windows > most) most = windows;
    }
    return most;
}

/* ---- perplexity ---- */

static int evaluate_one(cli *c, dq_evaluator *evaluator, const dq_dataset *set, json_t *results)
{
    const char *report = NULL;
    TRY(c, dq_evaluator_bind(evaluator, set));
    TRY(c, dq_evaluator_run(evaluator, c->cancel, cli_progress, c));
    TRY(c, dq_evaluator_report(evaluator, &report));
    json_array_append_new(results, cli_parse_json(report));
    return EXIT_OK;
}

int cli_evaluate(cli *c, dq_model *model, const cli_sets *sets, json_t *results)
{
    dq_evaluator *evaluator = NULL;
    TRY(c, dq_evaluator_new(model, c->config, &evaluator));
    int status = EXIT_OK;
    for (int i = 0; status == EXIT_OK && i < sets->count; i++)
        status = evaluate_one(c, evaluator, sets->set[i], results);
    dq_evaluator_free(evaluator);
    cli_progress_end(c);
    return status;
}

static double number(const json_t *object, const char *key) { return json_number_value(json_object_get(object, key)); }

void cli_print_results(const json_t *results)
{
    size_t i;
    json_t *r;
    json_array_foreach(results, i, r)
    {
        printf("%s: perplexity %.4f (%.5f nats per token), %.0f windows of %.0f tokens, %.1f s, %.0f tokens/s\n",
               json_string_value(json_object_get(r, "dataset")), number(r, "ppl"), number(r, "nll"),
               number(r, "windows"), number(r, "seqlen"), number(r, "seconds"), number(r, "tokens_per_second"));
        printf("  protocol: %s\n", json_string_value(json_object_get(r, "protocol")));
    }
}

/* ---- resources ---- */

int64_t cli_model_int(dq_model *model, const char *key)
{
    int64_t value = 0;
    return dq_model_get_int(model, key, &value) == DQ_OK ? value : 0;
}

json_t *cli_memory_model(dq_model *model, int64_t windows, int64_t seqlen, bool hessians)
{
    int64_t h = cli_model_int(model, "hidden_size"), m = cli_model_int(model, "intermediate_size");
    int64_t d = cli_model_int(model, "head_dim");
    int64_t q = cli_model_int(model, "num_attention_heads") * d, kv = cli_model_int(model, "num_key_value_heads") * d;
    int64_t weights = 0;
    for (int64_t i = 0; i < dq_model_tensor_count(model); i++) {
        dq_tensor_desc t = {.struct_size = sizeof t};
        if (dq_model_tensor_info(model, i, &t) == DQ_OK) weights += (int64_t)t.bytes;
    }
    int64_t activations = windows * seqlen * h * 4;
    int64_t layer = (2 * q * h + 2 * kv * h + 3 * m * h) * 4;
    int64_t solve = hessians ? (2 * h * h + q * q + m * m) * 4 : 0;
    return json_pack("{s:I, s:I, s:I, s:I, s:I}", "weights_file", (json_int_t)weights, "boundary_activations",
                     (json_int_t)activations, "layer_fp32", (json_int_t)layer, "hessians", (json_int_t)solve, "sum",
                     (json_int_t)(weights + activations + layer + solve));
}

void cli_add_resources(const cli *c, json_t *report)
{
    json_object_set_new(report, "device", json_string(dq_context_device_name(c->ctx)));
    json_object_set_new(report, "peak_rss_bytes", json_integer((json_int_t)cli_peak_rss()));
    json_object_set_new(report, "allocated_peak_bytes", json_integer((json_int_t)dq_context_memory_peak(c->ctx)));
    uint64_t fallbacks = dq_context_fallback_count(c->ctx);
    if (fallbacks) json_object_set_new(report, "host_fallbacks", json_integer((json_int_t)fallbacks));
}
