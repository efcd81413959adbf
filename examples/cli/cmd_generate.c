/* dartquant generate: text from a model, shown as it comes. SPDX-License-Identifier: Apache-2.0 */
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "cli.h"

static const char *const areas[] = {"generation", "general", NULL};
static const cli_flag flags[] = {
    {"prompt", FLAG_VALUE, "TEXT", "What to go on from. May be repeated: the prompts are worked on together."},
    {"prompt_file", FLAG_VALUE, "F", "The same from a file. May be repeated."},
    {"stop", FLAG_VALUE, "TEXT", "End before this text. May be repeated."},
    {"chat", FLAG_SWITCH, "",
     "The prompt is a user's message, written as the tokenizer's chat template says. Default: the prompt as it is, as also without a template."},
    {"no_chat", FLAG_SWITCH, "", "The prompt as it is."},
    {"system", FLAG_VALUE, "TEXT", "With --chat: a system message before the prompt."},
    {"messages", FLAG_VALUE, "F",
     "A conversation to go on from by the chat template: a JSON array of {\"role\", \"content\"}, or an object with \"messages\" and more names for the template, such as \"tools\". May be repeated."},
    {"chat_template", FLAG_VALUE, "F|NAME", "A file with another template, or the name of one of the tokenizer's."},
    {"strategies", FLAG_VALUE, "A,B",
     "Several runs in a row, each METHOD_wWaA_KV: gptq_w4a16_bf16kv takes the model in folder MODEL/gptq_w4a16 and keeps keys and values as KV (f32, bf16, f16, int8, int4, fp8)."},
    {"tokenizer", FLAG_VALUE, "PATH", "Where the tokenizer is, when not in MODEL."},
    {NULL, 0, NULL, NULL},
};

/* What the callback shows while tokens come. */
typedef struct screen {
    const cli *c;
    bool live; /* one prompt on a terminal or in a pipe: text as it comes */
} screen;

static int32_t show(void *user, const dq_token_event *event)
{
    const screen *s = user;
    if (s->live && event->bytes > 0) {
        fwrite(event->text, 1, (size_t)event->bytes, stdout);
        fflush(stdout);
    }
    return 0;
}

static int add_prompts(cli *c, dq_generator *g, const dq_tokenizer *tokenizer, int *count)
{
    const char *text;
    int status = EXIT_OK;
    *count = 0;
    for (int i = 0; status == EXIT_OK && (text = cli_value_at(c, "prompt", i)); i++, ++*count)
        status = cli_add_prompt(c, g, tokenizer, text);
    for (int i = 0; status == EXIT_OK && (text = cli_value_at(c, "prompt_file", i)); i++, ++*count) {
        char *content = cli_read_file(c, text);
        status = content ? cli_add_prompt(c, g, tokenizer, content) : EXIT_FAILED;
        free(content);
    }
    for (int i = 0; status == EXIT_OK && (text = cli_value_at(c, "messages", i)); i++, ++*count)
        status = cli_add_messages(c, g, tokenizer, text);
    if (status == EXIT_OK && *count == 0)
        return cli_usage(c, "nothing to go on from: give --prompt, --prompt_file or --messages");
    for (int i = 0; status == EXIT_OK && (text = cli_value_at(c, "stop", i)); i++)
        if (dq_generator_add_stop(g, text) != DQ_OK) status = cli_failed(c);
    return status;
}

/* ---- results ---- */

static const char *const reasons[] = {"none", "length", "eos", "stop"};

static json_t *sequence_json(const dq_generator *g, int64_t i)
{
    const char *text = "";
    int32_t reason = 0;
    size_t n = 0;
    json_t *ids = json_array();
    if (dq_generator_text(g, i, &text) != DQ_OK || dq_generator_finish_reason(g, i, &reason) != DQ_OK ||
        dq_generator_copy_ids(g, i, NULL, 0, &n) != DQ_OK)
        return ids;
    int32_t *copy = malloc((n + 1) * sizeof *copy);
    if (copy && dq_generator_copy_ids(g, i, copy, n, &n) == DQ_OK)
        for (size_t k = 0; k < n; k++) json_array_append_new(ids, json_integer(copy[k]));
    free(copy);
    return json_pack("{s:s, s:o, s:s}", "text", text, "ids", ids, "finish", reasons[reason]);
}

static json_t *report_of(const cli *c, const dq_generator *g, int count)
{
    static const char *const keys[] = {"weights_bytes", "cache_bytes",    "load_seconds",
                                       "prompt_tokens", "prompt_seconds", "prompt_tokens_per_second",
                                       "tokens",        "decode_seconds", "decode_tokens_per_second"};
    json_t *report = json_pack("{s:s, s:s, s:s}", "command", "generate", "model", c->operand, "kv", cli_text(c, "kv"));
    json_t *results = json_array();
    for (int i = 0; i < count; i++) json_array_append_new(results, sequence_json(g, i));
    json_object_set_new(report, "results", results);
    for (size_t i = 0; i < sizeof keys / sizeof *keys; i++) {
        double value = 0;
        int64_t whole = 0;
        if (dq_generator_get_int(g, keys[i], &whole) == DQ_OK)
            json_object_set_new(report, keys[i], json_integer((json_int_t)whole));
        else if (dq_generator_get_float(g, keys[i], &value) == DQ_OK)
            json_object_set_new(report, keys[i], json_real(value));
    }
    cli_add_resources(c, report);
    return report;
}

static double number(const json_t *object, const char *key) { return json_number_value(json_object_get(object, key)); }

static void print_report(const cli *c, const json_t *report, int count)
{
    json_t *results = json_object_get(report, "results");
    if (count > 1)
        for (int i = 0; i < count; i++)
            printf("[%d] %s\n", i, json_string_value(json_object_get(json_array_get(results, (size_t)i), "text")));
    else
        printf("\n");
    cli_note(c,
             "%.0f prompt tokens at %.1f tokens/s, %.0f new ones at %.1f tokens/s; weights %.1f MB, cache %.1f MB (%s)",
             number(report, "prompt_tokens"), number(report, "prompt_tokens_per_second"), number(report, "tokens"),
             number(report, "decode_tokens_per_second"), number(report, "weights_bytes") / 1e6,
             number(report, "cache_bytes") / 1e6, json_string_value(json_object_get(report, "kv")));
}

/* `reports`: where the report goes with --strategies and --json, NULL = to stdout. */
static int generate(cli *c, dq_model *model, const dq_tokenizer *tokenizer, json_t *reports)
{
    dq_generator *g = NULL;
    int count = 0;
    TRY(c, dq_generator_new(model, tokenizer, c->config, &g));
    int status = add_prompts(c, g, tokenizer, &count);
    screen s = {c, !c->json && count == 1};
    if (status == EXIT_OK && dq_generator_run(g, c->cancel, show, &s) != DQ_OK) status = cli_failed(c);
    json_t *report = status == EXIT_OK ? report_of(c, g, count) : NULL;
    if (report && reports) {
        json_array_append_new(reports, report);
    } else if (report && c->json) {
        status = cli_print_json(c, report);
    } else if (report) {
        print_report(c, report, count);
        json_decref(report);
    }
    dq_generator_free(g);
    return status;
}

static int open_and_generate(cli *c, json_t *reports)
{
    dq_model *model = NULL;
    dq_tokenizer *tokenizer = NULL;
    int status = cli_open_tokenizer(c, c->operand, &tokenizer);
    if (status == EXIT_OK)
        status =
            dq_model_open(c->ctx, c->operand, &model) == DQ_OK ? generate(c, model, tokenizer, reports) : cli_failed(c);
    dq_model_free(model);
    dq_tokenizer_free(tokenizer);
    return status;
}

/* ---- strategies ---- */

/* METHOD_wWaA_KV taken apart: the folder's name, and the storage of keys and values. */
static int parse_strategy(cli *c, const char *name, char *folder, size_t size, char *kv, size_t kv_size)
{
    const char *last = strrchr(name, '_');
    size_t n = last ? strlen(last + 1) : 0;
    int bits = 0, activations = 0, end = 0;
    char method[16];
    if (!last || n < 4 || strcmp(last + 1 + n - 2, "kv") != 0 ||
        sscanf(name, "%15[a-z]_w%da%d%n", method, &bits, &activations, &end) != 3 || name + end != last)
        return cli_usage(c, "strategy \"%s\" is not of the form METHOD_wWaA_KVkv, as gptq_w4a16_bf16kv", name);
    snprintf(kv, kv_size, "%.*s", (int)(n - 2), last + 1);
    snprintf(folder, size, "%.*s", (int)(last - name), name);
    if (dq_config_set(c->config, "kv", kv) != DQ_OK) return cli_usage(c, "strategy \"%s\": %s", name, dq_error_text());
    return EXIT_OK;
}

/* The strategy's weights: a folder of its name inside MODEL. */
static int run_strategy(cli *c, const char *name, json_t *reports)
{
    char folder[96], kv[16], path[4096];
    const char *model = c->operand;
    int status = parse_strategy(c, name, folder, sizeof folder, kv, sizeof kv);
    if (status != EXIT_OK) return status;
    snprintf(path, sizeof path, "%s/%s/config.json", model, folder);
    FILE *there = fopen(path, "rb");
    if (!there)
        return cli_fail(c, "strategy \"%s\": there are no weights %s/%s; make them with dartquant quantize", name,
                        model, folder);
    fclose(there);
    snprintf(path, sizeof path, "%s/%s", model, folder);
    c->operand = path;
    if (!c->json) printf("== %s\n", name);
    status = open_and_generate(c, reports);
    c->operand = model;
    if (status == EXIT_OK && reports)
        json_object_set_new(json_array_get(reports, json_array_size(reports) - 1), "strategy", json_string(name));
    return status;
}

static int run_strategies(cli *c, const char *list)
{
    char names[512], *rest = names;
    int status = EXIT_OK;
    if (strlen(list) >= sizeof names) return cli_usage(c, "--strategies is too long");
    strcpy(names, list);
    json_t *reports = c->json ? json_array() : NULL;
    for (char *name; status == EXIT_OK && (name = strsep(&rest, ",")) != NULL;) status = run_strategy(c, name, reports);
    if (status != EXIT_OK || !reports) {
        json_decref(reports);
        return status;
    }
    return cli_print_json(
        c, json_pack("{s:s, s:s, s:o}", "command", "generate", "model", c->operand, "strategies", reports));
}

static int run(cli *c)
{
    const char *list = cli_value(c, "strategies");
    int status = cli_open_context(c);
    if (status != EXIT_OK) return status;
    return list ? run_strategies(c, list) : open_and_generate(c, NULL);
}

const cli_command command_generate = {
    "generate", "MODEL", "Go on from a prompt, token by token.", areas, flags, false, run,
};
