/* Whole jobs on a model of an 8B LLaMA's shape with random weights (docs/benchmarks: G6 GPTQ, G7 perplexity), lent from memory:
 * all layers are the same tensors, so nothing has to be stored or fetched. One JSON object a line.
 * Usage: bench_jobs --backend NAME|PATH[:OPTIONS] [--tiny] [--layers N] [--windows N] [--samples N] [ppl] [gptq]
 * SPDX-License-Identifier: Apache-2.0 */
#include <stdbool.h>
#include <stdlib.h>
#include <time.h>

#include "made_model.h"

typedef struct shape {
    int hidden, inter, layers, heads, kv_heads, head_dim, vocab, seqlen, windows, samples;
} shape;

static shape s = {4096, 14336, 32, 32, 8, 128, 128256, 2048, 64, 128};
static const shape tiny_shape = {64, 128, 2, 4, 2, 16, 256, 32, 2, 2};

static void must(dq_status status)
{
    if (status == DQ_OK) return;
    fprintf(stderr, "%s\n", dq_error_text());
    exit(1);
}

static double now(void)
{
    struct timespec t;
    clock_gettime(CLOCK_MONOTONIC, &t);
    return (double)t.tv_sec + 1e-9 * (double)t.tv_nsec;
}

/* ---- the model ---- */

typedef struct part {
    int64_t rows, cols;
    uint16_t *data; /* bf16 */
} part;

static part parts[PARTS];

static void fill_part(part *p, int64_t rows, int64_t cols)
{
    static uint64_t state = 1;
    int64_t n = rows * (cols ? cols : 1);
    *p = (part){rows, cols, malloc((size_t)n * 2)};
    if (!p->data) exit(1);
    for (int64_t i = 0; i < n; i++) {
        state = state * 6364136223846793005u + 1442695040888963407u;
        float x = (float)((double)(int64_t)(state >> 40) / 8388608.0 - 1.0) * 0.035f; /* as wide as trained ones */
        uint32_t bits;
        memcpy(&bits, &x, sizeof bits);
        p->data[i] = cols ? (uint16_t)(bits >> 16) : 0x3f80; /* norms: 1 */
    }
}

static void make_model(void)
{
    int64_t q = (int64_t)s.heads * s.head_dim, kv = (int64_t)s.kv_heads * s.head_dim;
    part *p = parts;
    fill_part(p++, s.hidden, 0);
    fill_part(p++, s.hidden, 0);
    fill_part(p++, q, s.hidden);
    fill_part(p++, kv, s.hidden);
    fill_part(p++, kv, s.hidden);
    fill_part(p++, s.hidden, q);
    fill_part(p++, s.inter, s.hidden);
    fill_part(p++, s.inter, s.hidden);
    fill_part(p++, s.hidden, s.inter);
    fill_part(p++, s.hidden, 0);
    fill_part(p++, s.vocab, s.hidden);
    fill_part(p++, s.vocab, s.hidden);
}

static dq_status describe(void *user, int64_t i, dq_tensor_desc *out)
{
    const part *p = &parts[part_of(i, s.layers)];
    (void)user;
    describe_part(i, s.layers, p->rows, p->cols, DQ_BF16, out);
    return DQ_OK;
}

static dq_status map(void *user, int64_t i, const void **out)
{
    (void)user;
    *out = parts[part_of(i, s.layers)].data;
    return DQ_OK;
}

static dq_model *open_model(dq_context *ctx)
{
    char config[640];
    dq_tensor_source source = {.struct_size = sizeof source,
                               .abi = DQ_TENSOR_SOURCE_ABI,
                               .describe = describe,
                               .map = map,
                               .count = part_count(s.layers)};
    dq_model *model = NULL;
    snprintf(config, sizeof config,
             "{\"model_type\": \"llama\", \"hidden_size\": %d, \"intermediate_size\": %d, \"num_hidden_layers\": %d, "
             "\"num_attention_heads\": %d, \"num_key_value_heads\": %d, \"head_dim\": %d, \"vocab_size\": %d, "
             "\"max_position_embeddings\": 8192, \"rms_norm_eps\": 1e-5, \"rope_theta\": 500000.0, "
             "\"hidden_act\": \"silu\", \"tie_word_embeddings\": false}",
             s.hidden, s.inter, s.layers, s.heads, s.kv_heads, s.head_dim, s.vocab);
    must(dq_model_open_source(ctx, config, &source, &model));
    return model;
}

static dq_dataset *random_tokens(dq_context *ctx, int64_t count)
{
    int32_t *ids = malloc((size_t)count * sizeof *ids);
    uint64_t state = 7;
    dq_dataset *set = NULL;
    for (int64_t i = 0; ids && i < count; i++) {
        state = state * 6364136223846793005u + 1442695040888963407u;
        ids[i] = (int32_t)((state >> 33) % (uint64_t)s.vocab);
    }
    must(dq_dataset_from_ids(ctx, ids, (size_t)count, "random ids", &set));
    free(ids);
    return set;
}

/* Linears, causal half of attention, vocabulary head; multiply and add are two. */
static double forward_flops(double tokens, bool head)
{
    double h = s.hidden, q = (double)s.heads * s.head_dim, kv = (double)s.kv_heads * s.head_dim;
    double linears = 2 * (2 * h * q + 2 * h * kv + 3 * h * s.inter), attention = 2 * q * (s.seqlen + 1);
    return tokens * (s.layers * (linears + attention) + (head ? 2 * h * s.vocab : 0));
}

/* ---- the jobs ---- */

static dq_config *settings(void)
{
    dq_config *config = NULL;
    char number[24];
    must(dq_config_new(&config));
    must(dq_config_set(config, "math", "bf16"));
    snprintf(number, sizeof number, "%d", s.seqlen);
    must(dq_config_set(config, "seqlen", number));
    snprintf(number, sizeof number, "%d", s.samples);
    must(dq_config_set(config, "nsamples", number));
    must(dq_config_set(config, "memory_budget", "24G"));
    return config;
}

/* `times`: an object in JSON, or "{}". */
static void report(const char *id, const char *what, double seconds, double flops, double tokens, double value,
                   const char *times)
{
    printf("{\"id\": \"%s\", \"what\": \"%s\", \"layers\": %d, \"seconds\": %.6g, \"flops\": %.6g, \"tflops\": %.5g, "
           "\"tokens\": %.0f, \"tokens_s\": %.6g, \"value\": %.9g, \"parts\": %s}\n",
           id, what, s.layers, seconds, flops, flops / seconds * 1e-12, tokens, tokens / seconds, value, times);
    fflush(stdout);
}

static void measure(dq_context *ctx)
{
    dq_config *config = settings();
    dq_model *model = open_model(ctx);
    dq_dataset *set = random_tokens(ctx, (int64_t)s.windows * s.seqlen);
    dq_evaluator *e = NULL;
    double tokens = (double)s.windows * s.seqlen, ppl = 0;
    for (int run = 0; run < 2; run++) { /* the first one brings the library's kernels in */
        must(dq_evaluator_new(model, config, &e));
        must(dq_evaluator_bind(e, set));
        double start = now();
        must(dq_evaluator_run(e, NULL, NULL, NULL));
        must(dq_evaluator_get_float(e, "ppl", &ppl));
        report("G7", run ? "perplexity, bf16" : "perplexity, bf16, first run", now() - start,
               forward_flops(tokens, true), tokens, ppl, "{}");
        dq_evaluator_free(e);
    }
    dq_dataset_free(set);
    dq_model_free(model);
    dq_config_free(config);
}

static void measure_once(dq_model *model, const dq_dataset *set, const dq_config *config, const char *what)
{
    dq_evaluator *e = NULL;
    double tokens = (double)s.windows * s.seqlen, ppl = 0;
    must(dq_evaluator_new(model, config, &e));
    must(dq_evaluator_bind(e, set));
    double start = now();
    must(dq_evaluator_run(e, NULL, NULL, NULL));
    must(dq_evaluator_get_float(e, "ppl", &ppl));
    report("Q", what, now() - start, forward_flops(tokens, true), tokens, ppl, "{}");
    dq_evaluator_free(e);
}

/* The model rounded to 4 bits, one scale a row, its inputs to 4 bits: products of integers beside those of floats. */
static void measure_codes(dq_context *ctx)
{
    dq_config *config = settings();
    const char *const scheme[][2] = {{"w_bits", "4"},    {"w_rtn", "true"}, {"a_bits", "4"},
                                     {"a_asym", "true"}, {"temp_dir", ""},  {"a_clip_ratio", "0.9"}};
    for (size_t i = 0; i < sizeof scheme / sizeof *scheme; i++) must(dq_config_set(config, scheme[i][0], scheme[i][1]));
    dq_model *model = open_model(ctx), *rounded = NULL;
    dq_dataset *set = random_tokens(ctx, (int64_t)s.windows * s.seqlen);
    dq_quantizer *job = NULL;
    must(dq_quantizer_new(model, config, &job));
    must(dq_quantizer_run(job, NULL, NULL, NULL));
    must(dq_quantizer_take_model(job, &rounded));
    dq_quantizer_free(job);
    measure_once(rounded, set, config, "perplexity, W4A4 in integers, bf16, first run");
    measure_once(rounded, set, config, "perplexity, W4A4 in integers, bf16");
    must(dq_config_set(config, "integer_products", "false"));
    measure_once(rounded, set, config, "perplexity, W4A4 in floats, bf16");
    dq_model_free(rounded);
    dq_dataset_free(set);
    dq_model_free(model);
    dq_config_free(config);
}

static dq_status discard(void *user, const char *name, dq_dtype dtype, int32_t ndim, const int64_t *dims,
                         const void *data, uint64_t bytes)
{
    (void)name, (void)dtype, (void)ndim, (void)dims, (void)data;
    *(double *)user += (double)bytes;
    return DQ_OK;
}

static void quantize(dq_context *ctx)
{
    dq_config *config = settings();
    must(dq_config_apply_preset(config, "w4a16"));
    if (s.hidden < 128) must(dq_config_set(config, "w_groupsize", "32"));
    must(dq_config_set(config, "temp_dir", ""));
    dq_model *model = open_model(ctx);
    dq_dataset *set = random_tokens(ctx, (int64_t)s.samples * s.seqlen);
    dq_quantizer *job = NULL;
    double tokens = (double)s.samples * s.seqlen, h = s.hidden, m = s.inter, bytes = 0, error = 0;
    double hessians = s.layers * tokens * (2 * h * h + (double)s.heads * s.head_dim * s.heads * s.head_dim + m * m);
    dq_tensor_sink sink = {.struct_size = sizeof sink, .abi = DQ_TENSOR_SINK_ABI, .user = &bytes, .add = discard};
    must(dq_quantizer_new(model, config, &job));
    must(dq_quantizer_set_sink(job, &sink));
    must(dq_quantizer_bind(job, set));
    double start = now();
    must(dq_quantizer_run(job, NULL, NULL, NULL));
    double seconds = now() - start;
    must(dq_quantizer_get_float(job, "mean_error", &error));
    /* Where the time went, of the job's own report: "seconds": {...} */
    const char *text = NULL, *from = NULL;
    char times[256] = "{}";
    must(dq_quantizer_report(job, &text));
    if ((from = strstr(text, "\"seconds\"")) && (from = strchr(from, '{')))
        snprintf(times, sizeof times, "%.*s}", (int)strcspn(from, "}"), from);
    report("G6", "GPTQ, 4 bits, groups of 128 with range search", seconds, forward_flops(tokens, false) + hessians,
           tokens, error, times);
    dq_quantizer_free(job);
    dq_dataset_free(set);
    dq_model_free(model);
    dq_config_free(config);
}

int main(int argc, char **argv)
{
    const char *backend = "cpu", *layers = NULL, *windows = NULL, *samples = NULL;
    bool ppl = false, gptq = false, codes = false;
    for (int i = 1; i < argc; i++) {
        const char *next = i + 1 < argc ? argv[i + 1] : "";
        if (strcmp(argv[i], "--backend") == 0)
            backend = next, i++;
        else if (strcmp(argv[i], "--layers") == 0)
            layers = next, i++;
        else if (strcmp(argv[i], "--windows") == 0)
            windows = next, i++;
        else if (strcmp(argv[i], "--samples") == 0)
            samples = next, i++;
        else if (strcmp(argv[i], "--tiny") == 0)
            s = tiny_shape;
        else if (strcmp(argv[i], "ppl") == 0)
            ppl = true;
        else if (strcmp(argv[i], "gptq") == 0)
            gptq = true;
        else if (strcmp(argv[i], "codes") == 0)
            codes = true;
    }
    if (layers) s.layers = atoi(layers);
    if (windows) s.windows = atoi(windows);
    if (samples) s.samples = atoi(samples);
    dq_config *config = NULL;
    dq_context *ctx = NULL;
    must(dq_config_new(&config));
    must(dq_config_set(config, "backend", backend));
    must(dq_config_set(config, "policy", "forbid"));
    must(dq_context_new(config, NULL, &ctx));
    dq_config_free(config);
    make_model();
    bool all = !ppl && !gptq && !codes;
    if (ppl || all) measure(ctx);
    if (gptq || all) quantize(ctx);
    if (codes || all) measure_codes(ctx);
    dq_context_free(ctx);
    for (int i = 0; i < PARTS; i++) free(parts[i].data);
    return 0;
}
