/* Whole jobs on a model so small that a simulated card does one in milliseconds, lent from memory, through the installed
 * headers. Each gives its status and, when it succeeds, numbers that depend on all its results.
 * SPDX-License-Identifier: Apache-2.0 */
#ifndef DQ_TESTS_CUDA_JOBS_H
#define DQ_TESTS_CUDA_JOBS_H

#include <stdbool.h>
#include <stdlib.h>

#include "made_model.h"

enum { HIDDEN = 32, INTER = 64, LAYERS = 2, HEADS = 2, HEAD_DIM = 16, VOCAB = 64, SEQLEN = 16, WINDOWS = 2 };

typedef struct numbers {
    double a, b;
} numbers;

/* ---- the model: two LLaMA layers of random weights, one key head for two query heads ---- */

/* rows, columns; 0 columns: a vector */
static const int64_t part_sizes[PARTS][2] = {{HIDDEN, 0},        {HIDDEN, 0},        {HEADS * HEAD_DIM, HIDDEN},
                                             {HEAD_DIM, HIDDEN}, {HEAD_DIM, HIDDEN}, {HIDDEN, HEADS *HEAD_DIM},
                                             {INTER, HIDDEN},    {INTER, HIDDEN},    {HIDDEN, INTER},
                                             {HIDDEN, 0},        {VOCAB, HIDDEN},    {VOCAB, HIDDEN}};

static dq_status describe(void *user, int64_t i, dq_tensor_desc *out)
{
    const int64_t *size = part_sizes[part_of(i, LAYERS)];
    (void)user;
    describe_part(i, LAYERS, size[0], size[1], DQ_F32, out);
    return DQ_OK;
}

static dq_status read_part(void *user, int64_t i, uint64_t offset, uint64_t bytes, void *dst)
{
    (void)user;
    float *to = dst;
    for (uint64_t k = 0; k < bytes / 4; k++) {
        uint64_t at = offset / 4 + k, mixed = (at + 1 + (uint64_t)i * 100003u) * 6364136223846793005u;
        mixed ^= mixed >> 29;
        mixed *= 0xbf58476d1ce4e5b9u;
        double x = (double)(int64_t)(mixed >> 40) / 8388608.0 - 1.0;
        to[k] = (float)(part_sizes[part_of(i, LAYERS)][1] ? 0.3 * x : 1 + 0.1 * x);
    }
    return DQ_OK;
}

static dq_status open_tiny(dq_context *ctx, dq_model **out)
{
    char config[512];
    dq_tensor_source source = {.struct_size = sizeof source,
                               .abi = DQ_TENSOR_SOURCE_ABI,
                               .describe = describe,
                               .read = read_part,
                               .count = part_count(LAYERS)};
    snprintf(config, sizeof config,
             "{\"model_type\": \"llama\", \"hidden_size\": %d, \"intermediate_size\": %d, \"num_hidden_layers\": %d, "
             "\"num_attention_heads\": %d, \"num_key_value_heads\": 1, \"head_dim\": %d, \"vocab_size\": %d, "
             "\"max_position_embeddings\": 64, \"rms_norm_eps\": 1e-5, \"rope_theta\": 10000.0, "
             "\"hidden_act\": \"silu\", \"tie_word_embeddings\": false}",
             HIDDEN, INTER, LAYERS, HEADS, HEAD_DIM, VOCAB);
    return dq_model_open_source(ctx, config, &source, out);
}

static dq_status open_fused(dq_context *ctx, const dq_config *config, dq_model **out)
{
    dq_model *model = NULL;
    dq_status status = open_tiny(ctx, &model);
    if (status == DQ_OK) status = dq_model_fuse_norms(model, config, out);
    dq_model_free(model);
    return status;
}

static dq_status tokens_of(dq_context *ctx, dq_dataset **out)
{
    int32_t ids[WINDOWS * SEQLEN + 3];
    for (int i = 0; i < (int)(sizeof ids / sizeof *ids); i++) ids[i] = (i * i * 7 + i * 13 + 5) % VOCAB;
    return dq_dataset_from_ids(ctx, ids, sizeof ids / sizeof *ids, "numbers", out);
}

/* "key=value key=value", behind what all jobs share. */
static dq_config *options_of(const char *extra)
{
    char text[512];
    dq_config *config = NULL;
    if (dq_config_new(&config) != DQ_OK) return NULL;
    snprintf(text, sizeof text, "seqlen=%d nsamples=%d seed=3 %s", SEQLEN, WINDOWS, extra);
    for (char *rest = text, *item; (item = strsep(&rest, " ")) != NULL;) {
        char *value = strchr(item, '=');
        if (!value) continue;
        *value = '\0';
        if (dq_config_set(config, item, value + 1) != DQ_OK) {
            fprintf(stderr, "%s\n", dq_error_text());
            abort();
        }
    }
    return config;
}

/* Few steps: a simulated card needs long for each. */
#define CALIBRATION "ep=1 quant_steps=1"

/* ---- the jobs ---- */

static dq_status perplexity_of(dq_context *ctx, dq_model *model, const dq_config *config, double *out)
{
    dq_evaluator *e = NULL;
    dq_dataset *set = NULL;
    dq_status status = tokens_of(ctx, &set);
    if (status == DQ_OK) status = dq_evaluator_new(model, config, &e);
    if (status == DQ_OK) status = dq_evaluator_bind(e, set);
    if (status == DQ_OK) status = dq_evaluator_run(e, NULL, NULL, NULL);
    if (status == DQ_OK) status = dq_evaluator_get_float(e, "ppl", out);
    dq_evaluator_free(e);
    dq_dataset_free(set);
    return status;
}

static dq_status job_ppl(dq_context *ctx, numbers *out)
{
    dq_model *model = NULL;
    dq_config *config = options_of("");
    dq_status status = open_tiny(ctx, &model);
    if (status == DQ_OK) status = perplexity_of(ctx, model, config, &out->a);
    dq_model_free(model);
    dq_config_free(config);
    return status;
}

/* Fused and turned by random orthogonal matrices. */
static dq_status open_rotated(dq_context *ctx, const dq_config *config, dq_model **out)
{
    dq_model *fused = NULL;
    dq_rotation *rotation = NULL;
    dq_status status = open_fused(ctx, config, &fused);
    if (status == DQ_OK) status = dq_rotation_new(fused, config, &rotation);
    if (status == DQ_OK) status = dq_model_rotate(fused, rotation, out);
    dq_rotation_free(rotation);
    dq_model_free(fused);
    return status;
}

static dq_status quantize_with(dq_context *ctx, const char *extra, numbers *out)
{
    dq_model *rotated = NULL, *done = NULL;
    dq_quantizer *q = NULL;
    dq_dataset *set = NULL;
    dq_config *config = options_of(extra);
    dq_status status = tokens_of(ctx, &set);
    if (status == DQ_OK) status = open_rotated(ctx, config, &rotated);
    if (status == DQ_OK) status = dq_quantizer_new(rotated, config, &q);
    if (status == DQ_OK) status = dq_quantizer_bind(q, set);
    if (status == DQ_OK) status = dq_quantizer_run(q, NULL, NULL, NULL);
    if (status == DQ_OK) status = dq_quantizer_get_float(q, "mean_error", &out->b);
    if (status == DQ_OK) status = dq_quantizer_take_model(q, &done);
    if (status == DQ_OK) status = perplexity_of(ctx, done, config, &out->a);
    dq_model_free(done);
    dq_quantizer_free(q);
    dq_model_free(rotated);
    dq_dataset_free(set);
    dq_config_free(config);
    return status;
}

static dq_status job_rtn(dq_context *ctx, numbers *out)
{
    return quantize_with(ctx, "w_rtn=true rotate_mode=random w_bits=4 w_groupsize=16 a_bits=4 k_bits=4 v_bits=4", out);
}

/* Whole rows, so that products are those of integers. */
static dq_status job_integers(dq_context *ctx, numbers *out)
{
    return quantize_with(ctx, "w_rtn=true w_bits=4 w_asym=true a_bits=8 a_asym=true", out);
}

static dq_status job_gptq(dq_context *ctx, numbers *out)
{
    return quantize_with(ctx, "act_order=true percdamp=0.1 w_bits=4 w_groupsize=16 a_bits=8 k_bits=8 v_bits=8", out);
}

static dq_status job_capture(dq_context *ctx, numbers *out)
{
    char dir[] = "/tmp/dq-capture-XXXXXX", command[64];
    dq_model *model = NULL;
    dq_dataset *set = NULL;
    dq_config *config = options_of("");
    if (!mkdtemp(dir)) return DQ_E_IO;
    dq_status status = tokens_of(ctx, &set);
    if (status == DQ_OK) status = open_fused(ctx, config, &model);
    if (status == DQ_OK) status = dq_model_capture(model, config, set, dir, NULL, NULL, NULL);
    out->a = 1;
    dq_dataset_free(set);
    dq_model_free(model);
    dq_config_free(config);
    snprintf(command, sizeof command, "rm -rf %s", dir);
    return system(command) == 0 ? status : DQ_E_IO;
}

static dq_status calibrate_with(dq_context *ctx, const char *extra, numbers *out)
{
    dq_model *model = NULL;
    dq_dataset *set = NULL;
    dq_calibrator *c = NULL;
    dq_config *config = options_of(extra);
    dq_status status = tokens_of(ctx, &set);
    if (status == DQ_OK) status = open_fused(ctx, config, &model);
    if (status == DQ_OK) status = dq_calibrator_new(model, config, &c);
    if (status == DQ_OK) status = dq_calibrator_bind(c, set);
    if (status == DQ_OK) status = dq_calibrator_run(c, NULL, NULL, NULL);
    if (status == DQ_OK) status = dq_calibrator_get_float(c, "loss_before", &out->a);
    if (status == DQ_OK) status = dq_calibrator_get_float(c, "loss_after", &out->b);
    dq_calibrator_free(c);
    dq_model_free(model);
    dq_dataset_free(set);
    dq_config_free(config);
    return status;
}

static dq_status job_calibrate(dq_context *ctx, numbers *out) { return calibrate_with(ctx, CALIBRATION, out); }

/* From integer codes, with integer keys and values. */
static dq_status job_generate(dq_context *ctx, numbers *out)
{
    static const int32_t prompt[] = {5, 9, 33, 2, 60};
    int32_t ids[8] = {0};
    size_t count = 0;
    dq_model *model = NULL, *codes = NULL;
    dq_quantizer *q = NULL;
    dq_generator *g = NULL;
    dq_config *config = options_of("max_tokens=4 ignore_eos=true kv=int8 w_rtn=true w_bits=4 w_groupsize=16");
    dq_status status = open_tiny(ctx, &model);
    if (status == DQ_OK) status = dq_quantizer_new(model, config, &q);
    if (status == DQ_OK) status = dq_quantizer_run(q, NULL, NULL, NULL);
    if (status == DQ_OK) status = dq_quantizer_take_model(q, &codes);
    if (status == DQ_OK) status = dq_generator_new(codes, NULL, config, &g);
    if (status == DQ_OK) status = dq_generator_add(g, prompt, 5, NULL);
    if (status == DQ_OK) status = dq_generator_run(g, NULL, NULL, NULL);
    if (status == DQ_OK) status = dq_generator_copy_ids(g, 0, ids, 8, &count);
    out->a = 0;
    for (size_t i = 0; i < count && i < 8; i++) out->a = out->a * VOCAB + ids[i];
    out->b = (double)count;
    dq_generator_free(g);
    dq_quantizer_free(q);
    dq_model_free(codes);
    dq_model_free(model);
    dq_config_free(config);
    return status;
}

typedef struct job {
    const char *name;
    dq_status (*run)(dq_context *ctx, numbers *out);
} job;

static const job jobs[] = {{"perplexity", job_ppl},
                           {"RTN", job_rtn},
                           {"GPTQ", job_gptq},
                           {"capture", job_capture},
                           {"calibration", job_calibrate},
                           {"generation", job_generate},
                           {"integers", job_integers}};
enum { JOBS = sizeof jobs / sizeof *jobs };

#endif
