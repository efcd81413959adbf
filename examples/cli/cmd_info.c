/* dartquant info: what a model or a tensor file is. SPDX-License-Identifier: Apache-2.0 */
#include <stdio.h>
#include <string.h>
#include <stdlib.h>
#include <sys/stat.h>

#include "cli.h"

static const char *const areas[] = {"general", NULL};
static const cli_flag flags[] = {
    {"tensors", FLAG_SWITCH, "", "List every tensor: name, dtype, shape, bytes, file."},
    {"backends", FLAG_SWITCH, "",
     "Instead of a model: every backend and device that this machine has, or what keeps one "
     "from working; with --backend that one alone."},
    {NULL, 0, NULL, NULL},
};

static json_t *tensor_json(const dq_tensor_desc *t)
{
    json_t *shape = json_array();
    for (int32_t i = 0; i < t->ndim; i++) json_array_append_new(shape, json_integer((json_int_t)t->shape[i]));
    return json_pack("{s:s, s:s, s:o, s:I, s:s}", "name", t->name, "dtype", t->type_name, "shape", shape, "bytes",
                     (json_int_t)t->bytes, "file", t->file);
}

static void print_value(const char *key, const json_t *value)
{
    char *text = json_dumps(value, JSON_ENCODE_ANY | JSON_COMPACT);
    printf("%-24s %s\n", key, json_is_string(value) ? json_string_value(value) : text ? text : "?");
    free(text);
}

/* The linears of a layer, with their shapes. */
static void print_linears(const json_t *list)
{
    size_t i;
    json_t *l;
    printf("%-24s", "linears");
    json_array_foreach((json_t *)(uintptr_t)list, i, l) /* which only reads */
        printf(" %s %lldx%lld", json_string_value(json_object_get(l, "name")),
               (long long)json_integer_value(json_object_get(l, "rows")),
               (long long)json_integer_value(json_object_get(l, "cols")));
    printf("\n");
}

static void print_tensor(const json_t *t)
{
    char *shape = json_dumps(json_object_get(t, "shape"), JSON_COMPACT);
    printf("  %-48s %-6s %-16s %12lld  %s\n", json_string_value(json_object_get(t, "name")),
           json_string_value(json_object_get(t, "dtype")), shape ? shape : "?",
           (long long)json_integer_value(json_object_get(t, "bytes")), json_string_value(json_object_get(t, "file")));
    free(shape);
}

static int print_report(const cli *c, json_t *report)
{
    if (c->json) return cli_print_json(c, report);
    const char *key;
    json_t *value, *t;
    size_t i;
    json_object_foreach(report, key, value)
    {
        if (strcmp(key, "linears") == 0)
            print_linears(value);
        else if (strcmp(key, "tensors") != 0)
            print_value(key, value);
    }
    json_array_foreach(json_object_get(report, "tensors"), i, t) print_tensor(t);
    json_decref(report);
    return EXIT_OK;
}

/* A single .safetensors file has no architecture: only its tensors are shown. */
static int file_report(cli *c, dq_tensors *tensors, json_t *report)
{
    int64_t parameters = 0, bytes = 0;
    json_t *list = json_array();
    for (int64_t i = 0; i < dq_tensors_count(tensors); i++) {
        dq_tensor_desc t = {.struct_size = sizeof t};
        int64_t elements = 1;
        if (dq_tensors_info(tensors, i, &t) != DQ_OK) {
            json_decref(list);
            return cli_failed(c);
        }
        for (int32_t k = 0; k < t.ndim; k++) elements *= t.shape[k];
        parameters += elements;
        bytes += (int64_t)t.bytes;
        json_array_append_new(list, tensor_json(&t));
    }
    json_object_set_new(report, "format", json_string(dq_tensors_format(tensors)));
    json_object_set_new(report, "tensor_count", json_integer((json_int_t)dq_tensors_count(tensors)));
    json_object_set_new(report, "parameters", json_integer((json_int_t)parameters));
    json_object_set_new(report, "bytes", json_integer((json_int_t)bytes));
    if (cli_switch(c, "tensors"))
        json_object_set_new(report, "tensors", list);
    else
        json_decref(list);
    return EXIT_OK;
}

static int model_report(cli *c, dq_model *model, json_t *report)
{
    const char *text = NULL;
    TRY(c, dq_model_describe(model, &text));
    json_t *facts = cli_parse_json(text);
    json_object_update(report, facts);
    json_decref(facts);
    json_object_set_new(report, "tensor_count", json_integer((json_int_t)dq_model_tensor_count(model)));
    if (!cli_switch(c, "tensors")) return EXIT_OK;
    json_t *list = json_array();
    json_object_set_new(report, "tensors", list);
    for (int64_t i = 0; i < dq_model_tensor_count(model); i++) {
        dq_tensor_desc t = {.struct_size = sizeof t};
        TRY(c, dq_model_tensor_info(model, i, &t));
        json_array_append_new(list, tensor_json(&t));
    }
    return EXIT_OK;
}

static bool is_tensor_file(const char *path)
{
    struct stat s;
    size_t n = strlen(path), m = strlen(".safetensors");
    return n > m && strcmp(path + n - m, ".safetensors") == 0 && stat(path, &s) == 0 && S_ISREG(s.st_mode);
}

static int run(cli *c)
{
    if (cli_switch(c, "backends")) return cli_list_backends(c);
    if (!c->operand) return cli_usage(c, "info needs a MODEL, or --backends");
    int status = cli_open_context(c);
    if (status != EXIT_OK) return status;
    json_t *report = json_pack("{s:s, s:s}", "command", "info", "path", c->operand);
    if (is_tensor_file(c->operand)) {
        dq_tensors *tensors = NULL;
        status =
            dq_tensors_open(c->ctx, c->operand, &tensors) == DQ_OK ? file_report(c, tensors, report) : cli_failed(c);
        dq_tensors_free(tensors);
    } else {
        dq_model *model = NULL;
        status = dq_model_open(c->ctx, c->operand, &model) == DQ_OK ? model_report(c, model, report) : cli_failed(c);
        dq_model_free(model);
    }
    if (status == EXIT_OK) return print_report(c, report);
    json_decref(report);
    return status;
}

const cli_command command_info = {
    "info", "MODEL", "Show a model's architecture, size and quantization, or the tensors of a .safetensors file.",
    areas,  flags,   true,
    run,
};
