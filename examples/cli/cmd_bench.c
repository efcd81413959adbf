/* dartquant bench: how fast the device is, and how near a whole forward pass comes to it.
 * SPDX-License-Identifier: Apache-2.0 */
#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "cli.h"

static const char *const areas[] = {"evaluation", "general", NULL};
static const cli_flag flags[] = {
    {"windows", FLAG_VALUE, "N", "Windows of --seqlen tokens in the forward pass (default 2)."},
    {"seconds", FLAG_VALUE, "X", "Time for each operation (default 0.2)."},
    {"no_ops", FLAG_SWITCH, "", "Only matrix products and the forward pass are reported."},
    {NULL, 0, NULL, NULL},
};

/* Multiply and add count as two: linears, causal half of attention, vocabulary head. */
static double forward_flops(dq_model *model, int64_t windows, int64_t seqlen)
{
    double h = (double)cli_model_int(model, "hidden_size"), m = (double)cli_model_int(model, "intermediate_size");
    double d = (double)cli_model_int(model, "head_dim"), layers = (double)cli_model_int(model, "num_hidden_layers");
    double q = (double)cli_model_int(model, "num_attention_heads") * d;
    double kv = (double)cli_model_int(model, "num_key_value_heads") * d;
    double vocab = (double)dq_model_vocab_size(model), t = (double)seqlen;
    double linears = 2 * (2 * h * q + 2 * h * kv + 3 * h * m) * t;
    double attention = 4 * q * t * (t + 1) / 2;
    return (double)windows * (layers * (linears + attention) + 2 * h * vocab * t);
}

static int random_windows(cli *c, dq_model *model, int64_t count, dq_dataset **out)
{
    int32_t *ids = malloc((size_t)count * sizeof *ids);
    if (!ids) return cli_fail(c, "out of memory: %lld ids", (long long)count);
    uint64_t state = 1, vocab = (uint64_t)dq_model_vocab_size(model);
    for (int64_t i = 0; i < count; i++) {
        state = state * 6364136223846793005u + 1442695040888963407u;
        ids[i] = (int32_t)((state >> 33) % vocab);
    }
    int status = dq_dataset_from_ids(c->ctx, ids, (size_t)count, "random ids", out) == DQ_OK ? EXIT_OK : cli_failed(c);
    free(ids);
    return status;
}

static int time_forward(cli *c, dq_model *model, const dq_dataset *set, int64_t windows, double sgemm, json_t **out)
{
    dq_evaluator *evaluator = NULL;
    double seconds = 0, rate = 0;
    int64_t seqlen = cli_int(c, "seqlen");
    int status = EXIT_OK;
    if (dq_evaluator_new(model, c->config, &evaluator) != DQ_OK || dq_evaluator_bind(evaluator, set) != DQ_OK ||
        dq_evaluator_run(evaluator, c->cancel, cli_progress, c) != DQ_OK ||
        dq_evaluator_get_float(evaluator, "seconds", &seconds) != DQ_OK ||
        dq_evaluator_get_float(evaluator, "tokens_per_second", &rate) != DQ_OK)
        status = cli_failed(c);
    dq_evaluator_free(evaluator);
    if (status != EXIT_OK) return status;
    double gflops = forward_flops(model, windows, seqlen) / seconds * 1e-9;
    *out = json_pack("{s:s, s:I, s:I, s:s, s:f, s:f, s:f, s:f}", "model", c->operand ? c->operand : "synthetic",
                     "windows", (json_int_t)windows, "seqlen", (json_int_t)seqlen, "math", cli_text(c, "math"),
                     "seconds", seconds, "tokens_per_second", rate, "gflops", gflops, "ratio_to_sgemm", gflops / sgemm);
    return EXIT_OK;
}

static int forward(cli *c, const char *path, double sgemm, json_t **out)
{
    const char *text = cli_value(c, "windows");
    int64_t windows = text ? strtoll(text, NULL, 10) : 2;
    if (windows < 1 || windows > 4096) return cli_usage(c, "--windows %s: a number from 1 to 4096", text);
    dq_model *model = NULL;
    dq_dataset *set = NULL;
    TRY(c, dq_model_open(c->ctx, path, &model));
    int status = random_windows(c, model, windows * cli_int(c, "seqlen"), &set);
    if (status == EXIT_OK) status = time_forward(c, model, set, windows, sgemm, out);
    dq_dataset_free(set);
    dq_model_free(model);
    return status;
}

static int forward_synthetic(cli *c, double sgemm, json_t **out)
{
    char dir[] = "/tmp/dartquant-bench-XXXXXX";
    if (!mkdtemp(dir)) return cli_fail(c, "%s: %s", dir, strerror(errno));
    int status = synthetic_make(c, dir);
    if (status == EXIT_OK) status = forward(c, dir, sgemm, out);
    synthetic_remove(dir);
    return status;
}

static void print_ops(const json_t *ops)
{
    size_t i;
    json_t *op;
    json_array_foreach(json_object_get(ops, "ops"), i, op)
        printf("%-16s %-40s %10.3f ms %9.1f %s\n", json_string_value(json_object_get(op, "name")),
               json_string_value(json_object_get(op, "shape")), json_number_value(json_object_get(op, "seconds")) * 1e3,
               json_number_value(json_object_get(op, "rate")), json_string_value(json_object_get(op, "unit")));
}

static int print_report(cli *c, json_t *ops, json_t *forward_result)
{
    json_t *report = json_pack("{s:s}", "command", "bench");
    json_object_update(report, ops);
    if (cli_switch(c, "no_ops")) json_object_del(report, "ops");
    json_object_set(report, "forward", forward_result);
    json_object_set_new(report, "device_info", cli_parse_json(dq_context_device_json(c->ctx)));
    cli_add_resources(c, report);
    if (c->json) return cli_print_json(c, report);
    printf("device %s\n", dq_context_device_name(c->ctx));
    if (!cli_switch(c, "no_ops")) print_ops(ops);
    printf("forward: %.0f tokens/s, %.1f GFLOP/s, %.0f%% of sgemm (%.1f GFLOP/s)\n",
           json_number_value(json_object_get(forward_result, "tokens_per_second")),
           json_number_value(json_object_get(forward_result, "gflops")),
           json_number_value(json_object_get(forward_result, "ratio_to_sgemm")) * 100,
           json_number_value(json_object_get(ops, "sgemm_gflops")));
    json_decref(report);
    return EXIT_OK;
}

static int run(cli *c)
{
    const char *seconds = cli_value(c, "seconds"), *text = NULL;
    int status = cli_open_context(c);
    if (status != EXIT_OK) return status;
    TRY(c, dq_benchmark_ops(c->ctx, seconds ? atof(seconds) : 0, c->cancel, cli_progress, c, &text));
    cli_progress_end(c);
    json_t *ops = cli_parse_json(text), *result = NULL;
    double sgemm = json_number_value(json_object_get(ops, "sgemm_gflops"));
    status = c->operand ? forward(c, c->operand, sgemm, &result) : forward_synthetic(c, sgemm, &result);
    cli_progress_end(c);
    if (status == EXIT_OK) status = print_report(c, ops, result);
    json_decref(ops);
    json_decref(result);
    return status;
}

const cli_command command_bench = {
    "bench", "MODEL", "Time the device's operations and a forward pass over MODEL or a made-up model.", areas, flags,
    true,    run,
};
