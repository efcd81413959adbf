/* dartquant logits: what a model predicts after each token. SPDX-License-Identifier: Apache-2.0 */
#include <errno.h>
#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "cli.h"

static const char *const areas[] = {"general", NULL};
static const cli_flag flags[] = {
    {"ids", FLAG_VALUE, "1,2,3|F.json", "Token ids, separated by commas, or a JSON file with them."},
    {"text", FLAG_VALUE, "S", "Text to tokenize instead of --ids."},
    {"tokenizer", FLAG_VALUE, "PATH", "Where the tokenizer is, when not in MODEL."},
    {"out", FLAG_VALUE, "F.npy", "Write all logits, fp32 [n, vocab], to this NumPy file."},
    {NULL, 0, NULL, NULL},
};

enum { TOP = 5 };

static int parse_ids(cli *c, const char *list, dq_dataset **out)
{
    size_t capacity = strlen(list) / 2 + 1, count = 0;
    int32_t *ids = malloc(capacity * sizeof *ids);
    if (!ids) return cli_fail(c, "out of memory: %zu ids", capacity);
    int status = EXIT_OK;
    for (const char *at = list; status == EXIT_OK; at++) {
        char *end;
        errno = 0;
        long value = strtol(at, &end, 10);
        if (end == at || errno || value < 0 || value > INT32_MAX || (*end && *end != ','))
            status = cli_usage(c, "--ids: \"%s\" is no list of token ids", list);
        else
            ids[count++] = (int32_t)value;
        at = end;
        if (*at == '\0') break;
    }
    if (status == EXIT_OK && dq_dataset_from_ids(c->ctx, ids, count, "ids", out) != DQ_OK) status = cli_failed(c);
    free(ids);
    return status;
}

static int load_ids(cli *c, dq_dataset **out)
{
    const char *ids = cli_value(c, "ids"), *text = cli_value(c, "text");
    if (!ids == !text) return cli_usage(c, "logits needs either --ids or --text");
    if (text) {
        dq_tokenizer *tokenizer = NULL;
        int status = cli_open_tokenizer(c, c->operand, &tokenizer);
        if (status == EXIT_OK && dq_dataset_from_text(tokenizer, text, strlen(text), "text", out) != DQ_OK)
            status = cli_failed(c);
        dq_tokenizer_free(tokenizer);
        return status;
    }
    size_t n = strlen(ids);
    if (n <= 5 || strcmp(ids + n - 5, ".json") != 0) return parse_ids(c, ids, out);
    TRY(c, dq_dataset_from_ids_file(c->ctx, ids, out));
    return EXIT_OK;
}

/* Mean of -log softmax(logits of position i)[ids[i + 1]] in nats. */
static double mean_nll(const float *logits, const int32_t *ids, int64_t count, int64_t vocab)
{
    double sum = 0;
    for (int64_t i = 0; i + 1 < count; i++) {
        const float *row = logits + i * vocab;
        double largest = row[0], total = 0;
        for (int64_t v = 1; v < vocab; v++) largest = fmax(largest, row[v]);
        for (int64_t v = 0; v < vocab; v++) total += exp(row[v] - largest);
        sum += log(total) + largest - row[ids[i + 1]];
    }
    return sum / (double)(count - 1);
}

static json_t *top_of(const float *row, int64_t vocab)
{
    int64_t best[TOP];
    int n = 0;
    for (int64_t v = 0; v < vocab; v++) {
        int at = n;
        while (at > 0 && row[best[at - 1]] < row[v]) at--;
        if (at >= TOP) continue;
        if (n < TOP) n++;
        memmove(best + at + 1, best + at, (size_t)(n - 1 - at) * sizeof *best);
        best[at] = v;
    }
    json_t *list = json_array();
    for (int i = 0; i < n; i++)
        json_array_append_new(list, json_pack("{s:I, s:f}", "id", (json_int_t)best[i], "logit", (double)row[best[i]]));
    return list;
}

static int report(cli *c, const float *logits, const int32_t *ids, int64_t count, int64_t vocab, double seconds)
{
    const char *out = cli_value(c, "out");
    json_t *top = json_array();
    if (out) {
        int status = cli_write_npy(c, out, logits, count, vocab);
        if (status != EXIT_OK) {
            json_decref(top);
            return status;
        }
    } else {
        for (int64_t i = 0; i < count; i++) json_array_append_new(top, top_of(logits + i * vocab, vocab));
    }
    json_t *r =
        json_pack("{s:s, s:[I, I], s:o, s:f}", "command", "logits", "shape", (json_int_t)count, (json_int_t)vocab,
                  "nll", count > 1 ? json_real(mean_nll(logits, ids, count, vocab)) : json_null(), "seconds", seconds);
    json_object_set_new(r, out ? "out" : "top", out ? json_string(out) : json_incref(top));
    json_decref(top);
    cli_add_resources(c, r);
    if (c->json) return cli_print_json(c, r);
    for (int64_t i = 0; !out && i < count; i++) {
        printf("%6lld  id %-7d", (long long)i, ids[i]);
        size_t k;
        json_t *t;
        json_array_foreach(json_array_get(json_object_get(r, "top"), (size_t)i), k, t)
            printf("  %lld: %.4f", (long long)json_integer_value(json_object_get(t, "id")),
                   json_real_value(json_object_get(t, "logit")));
        printf("\n");
    }
    if (count > 1) printf("nll %.6f\n", json_real_value(json_object_get(r, "nll")));
    json_decref(r);
    return EXIT_OK;
}

static int forward(cli *c, dq_model *model, const dq_dataset *set)
{
    int64_t count = dq_dataset_count(set), vocab = dq_model_vocab_size(model);
    size_t cells = (size_t)count * (size_t)vocab;
    int32_t *ids = malloc((size_t)count * sizeof *ids);
    float *logits = malloc(cells * sizeof *logits);
    double start = cli_now();
    int status;
    if (!ids || !logits)
        status = cli_fail(c, "out of memory: %lld x %lld logits", (long long)count, (long long)vocab);
    else if (dq_dataset_copy_ids(set, 0, count, ids) != DQ_OK ||
             dq_model_logits(model, ids, count, c->config, logits, cells) != DQ_OK)
        status = cli_failed(c);
    else
        status = report(c, logits, ids, count, vocab, cli_now() - start);
    free(ids);
    free(logits);
    return status;
}

static int run(cli *c)
{
    dq_dataset *set = NULL;
    dq_model *model = NULL;
    int status = cli_open_context(c);
    if (status == EXIT_OK) status = load_ids(c, &set);
    if (status == EXIT_OK)
        status = dq_model_open(c->ctx, c->operand, &model) == DQ_OK ? forward(c, model, set) : cli_failed(c);
    dq_model_free(model);
    dq_dataset_free(set);
    return status;
}

const cli_command command_logits = {
    "logits", "MODEL", "Run token ids through a model: all logits, or the five best per position.", areas, flags,
    false,    run,
};
