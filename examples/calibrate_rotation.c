/* Learns the rotations of a model from a calibration text, saves them, and compares what quantized activations cost with random
 * and with learnt rotations.
 *
 *   cc calibrate_rotation.c $(pkg-config --cflags --libs dartquant) -o calibrate_rotation
 *   ./calibrate_rotation MODEL CALIBRATION.txt EVALUATION.txt ROTATION.safetensors [option=value]...
 *
 * SPDX-License-Identifier: Apache-2.0 */
#include <dartquant.h>
#include <stdio.h>
#include <string.h>

#define CHECK(call)                                                                                                    \
    do {                                                                                                               \
        if ((call) != DQ_OK) goto failed;                                                                              \
    } while (0)

/* Shows each rotation as its fit begins and ends. */
static int32_t on_progress(void *user, const dq_progress_event *e)
{
    (void)user;
    if (e->index == e->total) fprintf(stderr, "%s: done in %.1f s\n", e->stage, e->elapsed);
    return 0; /* anything else would cancel */
}

static dq_status set_options(dq_config *config, int count, char **words)
{
    dq_status status = dq_config_set(config, "a_bits", "4"); /* also the target of the fit */
    if (status == DQ_OK) status = dq_config_set(config, "a_asym", "true");
    for (int i = 0; i < count && status == DQ_OK; i++) {
        char name[64];
        const char *value = strchr(words[i], '=');
        size_t n = value ? (size_t)(value - words[i]) : strlen(words[i]);
        snprintf(name, sizeof name, "%.*s", (int)n, words[i]);
        status = dq_config_set(config, name, value ? value + 1 : "true");
    }
    return status;
}

/* Learns R1 and R2 and writes them to a file. */
static dq_status learn(dq_model *fused, const dq_config *config, const dq_dataset *text, const char *path,
                       dq_rotation **out)
{
    dq_calibrator *job = NULL;
    double before = 0, after = 0;
    dq_status status = dq_calibrator_new(fused, config, &job);
    if (status == DQ_OK) status = dq_calibrator_bind(job, text);
    if (status == DQ_OK) status = dq_calibrator_run(job, NULL, on_progress, NULL);
    if (status == DQ_OK) status = dq_calibrator_get_float(job, "error_before", &before);
    if (status == DQ_OK) status = dq_calibrator_get_float(job, "error_after", &after);
    if (status == DQ_OK) status = dq_calibrator_take_rotation(job, out);
    if (status == DQ_OK) status = dq_rotation_save(*out, path);
    if (status == DQ_OK) printf("quantization error of held-out activations %.5f -> %.5f\n", before, after);
    dq_calibrator_free(job);
    return status;
}

/* Perplexity of the model under a rotation with its activations cut to 4 bits. */
static dq_status measure(dq_model *fused, const dq_config *config, const dq_rotation *rotation, const dq_dataset *text,
                         double *ppl)
{
    dq_model *rotated = NULL, *quantized = NULL;
    dq_quantizer *quantizer = NULL;
    dq_evaluator *evaluator = NULL;
    dq_status status = dq_model_rotate(fused, rotation, &rotated);
    if (status == DQ_OK) status = dq_quantizer_new(rotated, config, &quantizer);
    if (status == DQ_OK) status = dq_quantizer_run(quantizer, NULL, NULL, NULL);
    if (status == DQ_OK) status = dq_quantizer_take_model(quantizer, &quantized);
    if (status == DQ_OK) status = dq_evaluator_new(quantized, config, &evaluator);
    if (status == DQ_OK) status = dq_evaluator_bind(evaluator, text);
    if (status == DQ_OK) status = dq_evaluator_run(evaluator, NULL, NULL, NULL);
    if (status == DQ_OK) status = dq_evaluator_get_float(evaluator, "ppl", ppl);
    dq_evaluator_free(evaluator);
    dq_quantizer_free(quantizer);
    dq_model_free(quantized);
    dq_model_free(rotated);
    return status;
}

int main(int argc, char **argv)
{
    dq_config *config = NULL;
    dq_context *ctx = NULL;
    dq_model *model = NULL, *fused = NULL;
    dq_tokenizer *tokenizer = NULL;
    dq_dataset *calibration = NULL, *evaluation = NULL;
    dq_rotation *random = NULL, *learnt = NULL;
    double ppl_random, ppl_learnt;
    int result = 1;
    if (argc < 5) {
        fprintf(stderr, "usage: %s MODEL CALIBRATION.txt EVALUATION.txt ROTATION.safetensors [option=value]...\n",
                argv[0]);
        return 2;
    }
    CHECK(dq_config_new(&config));
    CHECK(set_options(config, argc - 5, argv + 5));
    CHECK(dq_context_new(config, NULL, &ctx));
    CHECK(dq_model_open(ctx, argv[1], &model));
    CHECK(dq_model_fuse_norms(model, config, &fused));
    CHECK(dq_tokenizer_open(ctx, argv[1], &tokenizer));
    CHECK(dq_dataset_from_file(tokenizer, argv[2], &calibration));
    CHECK(dq_dataset_from_file(tokenizer, argv[3], &evaluation));
    CHECK(dq_rotation_new(fused, config, &random));
    CHECK(learn(fused, config, calibration, argv[4], &learnt));
    CHECK(measure(fused, config, random, evaluation, &ppl_random));
    CHECK(measure(fused, config, learnt, evaluation, &ppl_learnt));
    printf("perplexity with quantized activations: random rotations %.3f, learnt %.3f\n", ppl_random, ppl_learnt);
    result = 0;
failed:
    if (result) fprintf(stderr, "%s\n", dq_error_text());
    dq_rotation_free(random);
    dq_rotation_free(learnt);
    dq_dataset_free(calibration);
    dq_dataset_free(evaluation);
    dq_tokenizer_free(tokenizer);
    dq_model_free(fused);
    dq_model_free(model);
    dq_context_free(ctx);
    dq_config_free(config);
    return result;
}
