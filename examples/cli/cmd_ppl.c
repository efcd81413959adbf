/* dartquant ppl: perplexity. SPDX-License-Identifier: Apache-2.0 */
#include <stdio.h>

#include "cli.h"

static const char *const areas[] = {"evaluation", "general", NULL};
static const cli_flag flags[] = {
    {"dataset", FLAG_DATASETS, "NAME...", "wikitext2, ptb or c4 (several allowed), from files in --data_dir."},
    {"data_dir", FLAG_VALUE, "D", "Folder with the datasets' files."},
    {"text_file", FLAG_VALUE, "F", "Any text file; .jsonl and .json.gz: their field \"text\". May be repeated."},
    {"ids", FLAG_VALUE, "F.json", "Token ids: [1,2,...] or {\"ids\":[...]}."},
    {"tokenizer", FLAG_VALUE, "PATH", "Where the tokenizer is, when not in MODEL."},
    {NULL, 0, NULL, NULL},
};

static int measure(cli *c, dq_model *model, const cli_sets *sets)
{
    json_t *results = json_array();
    int status = cli_evaluate(c, model, sets, results);
    if (status != EXIT_OK) {
        json_decref(results);
        return status;
    }
    json_t *memory = cli_memory_model(model, cli_sets_windows(c, sets), cli_int(c, "seqlen"), false);
    json_t *report = json_pack("{s:s, s:s, s:o, s:o}", "command", "ppl", "model", c->operand, "results", results,
                               "memory_model", memory);
    cli_add_resources(c, report);
    if (c->json) return cli_print_json(c, report);
    cli_print_results(results);
    printf("peak memory %.0f MB\n", (double)cli_peak_rss() / 1e6);
    json_decref(report);
    return EXIT_OK;
}

static int run(cli *c)
{
    cli_sets sets = {.count = 0};
    dq_model *model = NULL;
    int status = cli_open_context(c);
    if (status == EXIT_OK) status = cli_load_sets(c, c->operand, "dataset", &sets);
    if (status == EXIT_OK)
        status = dq_model_open(c->ctx, c->operand, &model) == DQ_OK ? measure(c, model, &sets) : cli_failed(c);
    dq_model_free(model);
    cli_free_sets(&sets);
    return status;
}

const cli_command command_ppl = {
    "ppl", "MODEL", "Measure perplexity in windows of --seqlen tokens.", areas, flags, false, run,
};
