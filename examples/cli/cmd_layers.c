/* dartquant list-layers and test-forward: the linears of a model, and whether every layer runs.
 * SPDX-License-Identifier: Apache-2.0 */
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "cli.h"

static const char *const general[] = {"general", NULL};
static const char *const forward_areas[] = {"general", "evaluation", NULL};
static const cli_flag no_flags[] = {{NULL, 0, NULL, NULL}};
static const cli_flag list_flags[] = {
    {"reference", FLAG_VALUE, "MODEL",
     "The model before it was quantized: adds how far each weight is from it, |W - R| / |R|. Rotated models cannot be "
     "compared with unrotated ones."},
    {NULL, 0, NULL, NULL},
};

static int open_model(cli *c, dq_model **model)
{
    int status = cli_open_context(c);
    if (status == EXIT_OK) TRY(c, dq_model_open(c->ctx, c->operand, model));
    return status;
}

static int finish(const cli *c, json_t *report, void (*print)(const json_t *report))
{
    if (c->json) return cli_print_json(c, report);
    print(report);
    json_decref(report);
    return EXIT_OK;
}

static long long whole(const json_t *object, const char *key)
{
    return (long long)json_integer_value(json_object_get(object, key));
}

/* ---- list-layers ---- */

/* What the job that made a saved model measured: the manifest's list of {layer, name, error}; NULL = not known. */
static json_t *read_manifest(const char *folder)
{
    char path[4096];
    if (snprintf(path, sizeof path, "%s/dartquant.json", folder) >= (int)sizeof path) return NULL;
    return json_load_file(path, 0, NULL);
}

static json_t *measured_error(const json_t *measured, int64_t layer, const char *name)
{
    size_t i;
    json_t *one;
    json_array_foreach((json_t *)(uintptr_t)measured, i, one) /* which only reads */
    {
        const char *other = json_string_value(json_object_get(one, "name"));
        if (other && strcmp(other, name) == 0 && whole(one, "layer") == layer) return json_object_get(one, "error");
    }
    return NULL;
}

/* The tensor that a linear without codes is read from: its name has %d in place of the layer. */
static bool find_tensor(dq_model *model, int64_t layer, const json_t *linear, dq_tensor_desc *out)
{
    char name[192];
    const char *pattern = json_string_value(json_object_get(linear, "tensor")),
               *mark = pattern ? strstr(pattern, "%d") : NULL;
    if (!mark) return false;
    snprintf(name, sizeof name, "%.*s%lld%s", (int)(mark - pattern), pattern, (long long)layer, mark + 2);
    for (int64_t i = 0; i < dq_model_tensor_count(model); i++) {
        *out = (dq_tensor_desc){.struct_size = sizeof *out};
        if (dq_model_tensor_info(model, i, out) != DQ_OK) return false;
        if (strcmp(out->name, name) == 0) return true;
    }
    return false;
}

/* Values in blocks or with scales beside them: their width, and the columns that share a scale where these are known. */
static void add_blocks(const dq_tensor_desc *t, json_t *row)
{
    static const struct {
        const char *type;
        int bits, group;
    } known[] = {{"Q4_0", 4, 32}, {"Q4_1", 4, 32}, {"Q5_0", 5, 32}, {"Q5_1", 5, 32},          {"Q8_0", 8, 32},
                 {"Q4_K", 4, 32}, {"Q5_K", 5, 32}, {"Q6_K", 6, 16}, {"F8_E4M3 scaled", 8, 0}, {"I8 packed", 4, 0}};
    for (size_t i = 0; i < sizeof known / sizeof *known; i++) {
        if (strcmp(t->type_name, known[i].type) != 0) continue;
        json_object_set_new(row, "quantized", json_true());
        json_object_set_new(row, "type", json_string(t->type_name));
        json_object_set_new(row, "bits", json_integer(known[i].bits));
        if (known[i].group) json_object_set_new(row, "group", json_integer(known[i].group));
    }
}

/* `linear`: {name, rows, cols, tensor} of the model's description. */
static json_t *linear_json(dq_model *model, const json_t *facts, const json_t *measured, int64_t layer,
                           const json_t *linear)
{
    const char *name = json_string_value(json_object_get(linear, "name"));
    int64_t rows = 0, cols = 0, groups = 0;
    int32_t bits = 0;
    bool codes = dq_model_codes_shape(model, layer, name, &rows, &cols, &groups, &bits) == DQ_OK;
    if (!codes) rows = whole(linear, "rows"), cols = whole(linear, "cols");
    json_t *row = json_pack("{s:I, s:s, s:I, s:I, s:b}", "layer", (json_int_t)layer, "name", name, "rows",
                            (json_int_t)rows, "cols", (json_int_t)cols, "quantized", codes);
    if (codes) {
        json_object_set_new(row, "bits", json_integer(bits));
        json_object_set_new(row, "group", json_integer((json_int_t)((cols + groups - 1) / groups)));
    }
    json_t *error = codes ? measured_error(measured, layer, name) : NULL;
    if (error) json_object_set(row, "error", error);
    dq_tensor_desc t;
    if (!codes && find_tensor(model, layer, linear, &t)) {
        add_blocks(&t, row);
        json_object_set_new(row, "dtype", json_string(t.type_name));
    } else {
        json_object_set(row, "dtype", json_object_get(facts, "dtype"));
    }
    json_object_set(row, "format", json_object_get(facts, "format"));
    return row;
}

/* What --reference adds to a row. */
static int add_weight_error(cli *c, dq_model *model, dq_model *reference, int64_t layer, const char *linear,
                            json_t *row)
{
    double error = 0;
    int32_t rescaled = 0;
    TRY(c, dq_model_weight_error(model, reference, layer, linear, &error, &rescaled));
    json_object_set_new(row, "weight_error", json_real(error));
    json_object_set_new(row, "rescaled", json_boolean(rescaled));
    return EXIT_OK;
}

/* Mean and largest of them; far ones are of no use. */
static void add_summary(json_t *report)
{
    size_t i, count = json_array_size(json_object_get(report, "layers"));
    json_t *r;
    double sum = 0, most = 0;
    json_array_foreach(json_object_get(report, "layers"), i, r)
    {
        double e = json_number_value(json_object_get(r, "weight_error"));
        sum += e;
        if (e > most) most = e;
    }
    json_object_set_new(report, "mean_weight_error", json_real(count ? sum / (double)count : 0));
    json_object_set_new(report, "largest_weight_error", json_real(most));
}

static void print_summary(const json_t *report)
{
    double mean = json_number_value(json_object_get(report, "mean_weight_error"));
    if (!json_object_get(report, "mean_weight_error")) return;
    printf("weights against %s: mean error %.4g, largest %.4g; * = after undoing factors of the channels (AWQ)\n",
           json_string_value(json_object_get(report, "reference")), mean,
           json_number_value(json_object_get(report, "largest_weight_error")));
    if (mean > 0.9)
        printf("weights that have nothing in common: another model, or one that was rotated before it was written\n");
}

static void print_layers(const json_t *report)
{
    size_t i;
    json_t *r;
    bool compared = json_object_get(report, "reference") != NULL;
    printf("%5s  %-10s %14s  %-9s %6s  %-9s  %s%s\n", "layer", "linear", "out x in", "bits", "group", "error",
           compared ? "weight error  " : "", "format");
    json_array_foreach(json_object_get(report, "layers"), i, r)
    {
        char shape[48], bits[24], group[24] = "-", error[24] = "-", distance[32] = "";
        snprintf(shape, sizeof shape, "%lld x %lld", whole(r, "rows"), whole(r, "cols"));
        snprintf(bits, sizeof bits, "%.20s", json_string_value(json_object_get(r, "dtype")));
        if (json_is_true(json_object_get(r, "quantized"))) {
            snprintf(bits, sizeof bits, "%lld", whole(r, "bits"));
            if (json_object_get(r, "group")) snprintf(group, sizeof group, "%lld", whole(r, "group"));
        }
        if (json_object_get(r, "error"))
            snprintf(error, sizeof error, "%.3g", json_number_value(json_object_get(r, "error")));
        char format[64];
        bool blocks = json_is_true(json_object_get(r, "quantized")) && json_object_get(r, "type");
        snprintf(format, sizeof format, "%.30s%s%.30s", json_string_value(json_object_get(r, "format")),
                 blocks ? " " : "", blocks ? json_string_value(json_object_get(r, "type")) : "");
        if (compared)
            snprintf(distance, sizeof distance, "%-11.4g%-3s", json_number_value(json_object_get(r, "weight_error")),
                     json_is_true(json_object_get(r, "rescaled")) ? "*" : "");
        printf("%5lld  %-10s %14s  %-9s %6s  %-9s  %s%s\n", whole(r, "layer"),
               json_string_value(json_object_get(r, "name")), shape, bits, group, error, distance, format);
    }
    printf("%lld quantized linears of %lld\n", whole(report, "quantized"), whole(report, "linears"));
    print_summary(report);
}

static int list_rows(cli *c, dq_model *model, dq_model *reference, const json_t *facts, json_t *rows,
                     int64_t *quantized)
{
    json_t *manifest = read_manifest(c->operand);
    const json_t *measured = json_object_get(json_object_get(manifest, "provenance"), "layers");
    const json_t *linears = json_object_get(facts, "linears");
    int status = EXIT_OK;
    for (int64_t layer = 0; status == EXIT_OK && layer < cli_model_int(model, "num_hidden_layers"); layer++)
        for (size_t i = 0; status == EXIT_OK && i < json_array_size(linears); i++) {
            const json_t *linear = json_array_get(linears, i);
            json_t *row = linear_json(model, facts, measured, layer, linear);
            *quantized += json_is_true(json_object_get(row, "quantized"));
            if (reference)
                status = add_weight_error(c, model, reference, layer,
                                          json_string_value(json_object_get(linear, "name")), row);
            json_array_append_new(rows, row);
        }
    json_decref(manifest);
    return status;
}

static int report_layers(cli *c, dq_model *model, dq_model *reference)
{
    const char *text = NULL;
    int64_t quantized = 0;
    TRY(c, dq_model_describe(model, &text));
    json_t *facts = cli_parse_json(text), *rows = json_array();
    int status = list_rows(c, model, reference, facts, rows, &quantized);
    json_t *report = json_pack("{s:s, s:s, s:I, s:I, s:o}", "command", "list-layers", "model", c->operand, "linears",
                               (json_int_t)json_array_size(rows), "quantized", (json_int_t)quantized, "layers", rows);
    json_decref(facts);
    if (reference) {
        json_object_set_new(report, "reference", json_string(cli_value(c, "reference")));
        add_summary(report);
    }
    if (status == EXIT_OK) return finish(c, report, print_layers);
    json_decref(report);
    return status;
}

static int list_layers(cli *c)
{
    dq_model *model = NULL, *reference = NULL;
    const char *other = cli_value(c, "reference");
    int status = open_model(c, &model);
    if (status == EXIT_OK && other && dq_model_open(c->ctx, other, &reference) != DQ_OK) status = cli_failed(c);
    if (status == EXIT_OK) status = report_layers(c, model, reference);
    dq_model_free(reference);
    dq_model_free(model);
    return status;
}

const cli_command command_list_layers = {
    "list-layers", "MODEL",    "Show each linear: shape, bits, group, format, and the error that quantizing measured.",
    general,       list_flags, false,
    list_layers,
};

/* ---- test-forward ---- */

static int step_layers(cli *c, dq_model *model, dq_evaluator *evaluator, json_t *rows)
{
    int64_t layers = cli_model_int(model, "num_hidden_layers");
    for (int32_t done = 0, step = 0; !done; step++) {
        double start = cli_now();
        TRY(c, dq_evaluator_step(evaluator, c->cancel, NULL, NULL, &done));
        char name[32];
        snprintf(name, sizeof name, step < layers ? "layer %d" : "vocabulary", step);
        json_array_append_new(rows, json_pack("{s:s, s:f}", "part", name, "milliseconds", 1e3 * (cli_now() - start)));
    }
    return EXIT_OK;
}

static void print_forward(const json_t *report)
{
    size_t i;
    json_t *r;
    json_array_foreach(json_object_get(report, "parts"), i, r)
        printf("%-12s ok  %8.2f ms\n", json_string_value(json_object_get(r, "part")),
               json_real_value(json_object_get(r, "milliseconds")));
    printf("all parts ran on %lld tokens, results finite, loss %.4f\n", whole(report, "tokens"),
           json_real_value(json_object_get(report, "nll")));
}

/* One window of ids spread over the vocabulary; a value that is not finite is an error that names its place. */
static int forward(cli *c, dq_model *model)
{
    dq_dataset *data = NULL;
    dq_evaluator *evaluator = NULL;
    json_t *rows = json_array();
    double nll = 0;
    int64_t tokens = cli_int(c, "seqlen") < 64 ? cli_int(c, "seqlen") : 64, vocab = cli_model_int(model, "vocab_size");
    int32_t ids[64];
    char count[24];
    snprintf(count, sizeof count, "%lld", (long long)tokens);
    for (int64_t i = 0; i < tokens; i++) ids[i] = (int32_t)((i * 7919 + 11) % vocab);
    int status = EXIT_OK;
    if (dq_config_set(c->config, "seqlen", count) != DQ_OK ||
        dq_dataset_from_ids(c->ctx, ids, (size_t)tokens, "test-forward", &data) != DQ_OK ||
        dq_evaluator_new(model, c->config, &evaluator) != DQ_OK || dq_evaluator_bind(evaluator, data) != DQ_OK)
        status = cli_failed(c);
    if (status == EXIT_OK) status = step_layers(c, model, evaluator, rows);
    if (status == EXIT_OK && dq_evaluator_get_float(evaluator, "nll", &nll) != DQ_OK) status = cli_failed(c);
    dq_evaluator_free(evaluator);
    dq_dataset_free(data);
    json_t *report = json_pack("{s:s, s:s, s:I, s:f, s:o}", "command", "test-forward", "model", c->operand, "tokens",
                               (json_int_t)tokens, "nll", nll, "parts", rows);
    if (status == EXIT_OK) return finish(c, report, print_forward);
    json_decref(report);
    return status;
}

static int test_forward(cli *c)
{
    dq_model *model = NULL;
    int status = open_model(c, &model);
    if (status == EXIT_OK) status = forward(c, model);
    dq_model_free(model);
    return status;
}

const cli_command command_test_forward = {
    "test-forward", "MODEL",  "Run every layer once on a few tokens: finite or not, and how long.",
    forward_areas,  no_flags, false,
    test_forward,
};
