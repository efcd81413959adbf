/* The whole pipeline in one file: open a model, fold its norms, rotate it, quantize it to 4 bits with GPTQ, compare the
 * perplexity before and after, and save the result.
 *
 *   cc quantize_model.c $(pkg-config --cflags --libs dartquant) -o quantize_model
 *   ./quantize_model MODEL CALIBRATION.txt EVALUATION.txt OUTPUT_FOLDER [PRESET] [NAME=VALUE ...]
 *
 * MODEL is a GGUF file or a Hugging Face folder. PRESET is w4a4kv4 unless given; NAME=VALUE sets any option of
 * `dartquant quantize --help`, e.g. seqlen=512 nsamples=16.
 * SPDX-License-Identifier: Apache-2.0 */
#include <dartquant.h>
#include <stdio.h>
#include <string.h>

/* Every call returns a status; dq_error_text() says what went wrong in one sentence. Outputs of a failed call are
 * untouched, so everything can start as NULL and be freed at one place in the end. */
#define CHECK(call)                                                                                                    \
    do {                                                                                                               \
        if ((call) != DQ_OK) goto failed;                                                                              \
    } while (0)

/* Progress comes on this thread; returning non-zero would cancel the job. */
static int32_t show(void *user, const dq_progress_event *e)
{
    (void)user;
    fprintf(stderr, "\r%s %llu/%llu   ", e->stage, (unsigned long long)e->index, (unsigned long long)e->total);
    if (e->index == e->total) fprintf(stderr, "\n");
    return 0;
}

static dq_status set_options(dq_config *config, int count, char **words)
{
    dq_status status = DQ_OK;
    for (int i = 0; i < count && status == DQ_OK; i++) {
        char *value = strchr(words[i], '=');
        if (value) {
            *value = '\0';
            status = dq_config_set(config, words[i], value + 1);
        } else {
            status = dq_config_apply_preset(config, words[i]);
        }
    }
    return status;
}

/* Perplexity of `model` on `text`, which must hold at least one window of `seqlen` tokens. */
static dq_status measure(dq_model *model, const dq_config *config, const dq_dataset *text, double *ppl)
{
    dq_evaluator *evaluator = NULL;
    dq_status status = dq_evaluator_new(model, config, &evaluator);
    if (status == DQ_OK) status = dq_evaluator_bind(evaluator, text);
    if (status == DQ_OK) status = dq_evaluator_run(evaluator, NULL, show, NULL);
    if (status == DQ_OK) status = dq_evaluator_get_float(evaluator, "ppl", ppl);
    dq_evaluator_free(evaluator);
    return status;
}

int main(int argc, char **argv)
{
    if (argc < 5) {
        fprintf(stderr, "usage: %s MODEL CALIBRATION.txt EVALUATION.txt OUTPUT_FOLDER [PRESET] [NAME=VALUE ...]\n",
                argv[0]);
        return 2;
    }
    dq_config *config = NULL;
    dq_context *ctx = NULL;
    dq_model *model = NULL, *fused = NULL, *rotated = NULL, *quantized = NULL;
    dq_tokenizer *tokenizer = NULL;
    dq_dataset *calibration = NULL, *evaluation = NULL;
    dq_rotation *rotation = NULL;
    dq_quantizer *quantizer = NULL;
    double before = 0, after = 0, bits = 0;
    int result = 1;

    /* Options by name. A preset sets many of them; single ones refine it. */
    CHECK(dq_config_new(&config));
    CHECK(dq_config_apply_preset(config, "w4a4kv4"));
    CHECK(set_options(config, argc - 5, argv + 5));
    CHECK(dq_config_set(config, "save_qmodel_path", argv[4]));

    /* The context holds memory, threads, log and the device. The second argument could bring the host's own. */
    CHECK(dq_context_new(config, NULL, &ctx));
    printf("device: %s\n", dq_context_device_name(ctx));

    /* Files are mapped, layers are read when needed: opening a large model is quick. */
    CHECK(dq_model_open(ctx, argv[1], &model));
    CHECK(dq_tokenizer_open(ctx, argv[1], &tokenizer));
    CHECK(dq_dataset_from_file(tokenizer, argv[2], &calibration));
    CHECK(dq_dataset_from_file(tokenizer, argv[3], &evaluation));
    CHECK(measure(model, config, evaluation, &before));

    /* Models never change. Each step derives a new one that shares storage with its base. */
    CHECK(dq_model_fuse_norms(model, config, &fused));
    CHECK(dq_rotation_new(fused, config, &rotation));
    CHECK(dq_model_rotate(fused, rotation, &rotated));

    /* A job: bind the data, run it (or call dq_quantizer_step in your own loop, one layer a time), take the result.
     * Because save_qmodel_path is set, the codes stream to that folder. */
    CHECK(dq_quantizer_new(rotated, config, &quantizer));
    CHECK(dq_quantizer_bind(quantizer, calibration));
    CHECK(dq_quantizer_run(quantizer, NULL, show, NULL));
    CHECK(dq_quantizer_take_model(quantizer, &quantized));
    CHECK(dq_quantizer_get_float(quantizer, "bits_per_weight", &bits));
    CHECK(measure(quantized, config, evaluation, &after));

    printf("perplexity %.4f -> %.4f at %.2f bits per weight; saved in %s\n", before, after, bits, argv[4]);
    result = 0;
    goto done;
failed:
    fprintf(stderr, "failed: %s (%s)\n", dq_error_text(), dq_status_name(dq_error_last()));
done:
    /* In any order; NULL is fine. */
    dq_quantizer_free(quantizer);
    dq_rotation_free(rotation);
    dq_model_free(quantized);
    dq_model_free(rotated);
    dq_model_free(fused);
    dq_model_free(model);
    dq_dataset_free(evaluation);
    dq_dataset_free(calibration);
    dq_tokenizer_free(tokenizer);
    dq_context_free(ctx);
    dq_config_free(config);
    return result;
}
