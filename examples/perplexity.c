/* Perplexity of a model on a text file.
 *
 *   cc perplexity.c $(pkg-config --cflags --libs dartquant) -o perplexity
 *   ./perplexity MODEL TEXT.txt [SEQLEN]
 *
 * MODEL is a GGUF file, a Hugging Face folder or a saved quantized model. SPDX-License-Identifier: Apache-2.0 */
#include <dartquant.h>
#include <stdio.h>

#define CHECK(call)                                                                                                    \
    do {                                                                                                               \
        if ((call) != DQ_OK) goto failed;                                                                              \
    } while (0)

int main(int argc, char **argv)
{
    dq_config *config = NULL;
    dq_context *ctx = NULL;
    dq_model *model = NULL;
    dq_tokenizer *tokenizer = NULL;
    dq_dataset *text = NULL;
    dq_evaluator *evaluator = NULL;
    const char *report = NULL;
    int result = 1;
    if (argc < 3) {
        fprintf(stderr, "usage: %s MODEL TEXT.txt [SEQLEN]\n", argv[0]);
        return 2;
    }
    CHECK(dq_config_new(&config));
    CHECK(dq_config_set(config, "seqlen", argc > 3 ? argv[3] : "512"));
    CHECK(dq_context_new(config, NULL, &ctx));
    CHECK(dq_model_open(ctx, argv[1], &model));
    CHECK(dq_tokenizer_open(ctx, argv[1], &tokenizer));
    CHECK(dq_dataset_from_file(tokenizer, argv[2], &text));
    CHECK(dq_evaluator_new(model, config, &evaluator));
    CHECK(dq_evaluator_bind(evaluator, text));
    CHECK(dq_evaluator_run(evaluator, NULL, NULL, NULL));
    CHECK(dq_evaluator_report(evaluator, &report)); /* JSON: ppl, nll, windows, protocol, ... */
    printf("%s\n", report);
    result = 0;
    goto done;
failed:
    fprintf(stderr, "failed: %s\n", dq_error_text());
done:
    dq_evaluator_free(evaluator);
    dq_dataset_free(text);
    dq_tokenizer_free(tokenizer);
    dq_model_free(model);
    dq_context_free(ctx);
    dq_config_free(config);
    return result;
}
