/* Text from a model, token by token, in a loop of the host's own: between two steps it may do its other work, or stop.
 *
 *   cc generate.c $(pkg-config --cflags --libs dartquant) -o generate
 *   ./generate MODEL PROMPT [name=value ...]        e.g. max_tokens=40 temperature=0.8 seed=1 kv=fp8
 *
 * SPDX-License-Identifier: Apache-2.0 */
#include <dartquant.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#define CHECK(call)                                                                                                    \
    do {                                                                                                               \
        if ((call) != DQ_OK) goto failed;                                                                              \
    } while (0)

/* Called for each new token; another result than 0 ends the step with DQ_E_CANCELLED. */
static int32_t on_token(void *user, const dq_token_event *event)
{
    int *tokens = user;
    fwrite(event->text, 1, (size_t)event->bytes, stdout);
    fflush(stdout);
    if (event->finish != DQ_FINISH_NONE)
        printf("\n[%s]\n", event->finish == DQ_FINISH_LENGTH ? "max_tokens" : "the model ended it");
    ++*tokens;
    return 0;
}

static dq_status add_prompt(dq_generator *generator, const dq_tokenizer *tokenizer, const char *text)
{
    int32_t ids[4096];
    size_t count = 0;
    dq_status status = dq_tokenizer_encode(tokenizer, text, strlen(text), DQ_ENCODE_ADD_SPECIAL, ids, 4096, &count);
    return status == DQ_OK ? dq_generator_add(generator, ids, count, NULL) : status;
}

static dq_status set_option(dq_config *config, const char *text)
{
    char name[64];
    const char *value = strchr(text, '=');
    snprintf(name, sizeof name, "%.*s", value ? (int)(value - text) : 63, text);
    return dq_config_set(config, name, value ? value + 1 : "");
}

int main(int argc, char **argv)
{
    dq_config *config = NULL;
    dq_context *ctx = NULL;
    dq_model *model = NULL;
    dq_tokenizer *tokenizer = NULL;
    dq_generator *generator = NULL;
    double rate = 0;
    int32_t finished = 0;
    int result = 1, tokens = 0, steps = 0;
    if (argc < 3) {
        fprintf(stderr, "usage: %s MODEL PROMPT [name=value ...]\n", argv[0]);
        return 2;
    }
    CHECK(dq_config_new(&config));
    for (int i = 3; i < argc; i++) CHECK(set_option(config, argv[i]));
    CHECK(dq_context_new(config, NULL, &ctx));
    CHECK(dq_model_open(ctx, argv[1], &model));
    CHECK(dq_tokenizer_open(ctx, argv[1], &tokenizer));
    CHECK(dq_generator_new(model, tokenizer, config, &generator));
    CHECK(add_prompt(generator, tokenizer, argv[2]));
    while (!finished) { /* a step loads one layer, takes in a piece of the prompt, or makes a token */
        CHECK(dq_generator_step(generator, NULL, on_token, &tokens, &finished));
        steps++;
    }
    CHECK(dq_generator_get_float(generator, "decode_tokens_per_second", &rate));
    printf("%d tokens in %d steps, %.1f tokens/s\n", tokens, steps, rate);
    result = 0;
    goto done;
failed:
    fprintf(stderr, "failed: %s\n", dq_error_text());
done:
    dq_generator_free(generator);
    dq_tokenizer_free(tokenizer);
    dq_model_free(model);
    dq_context_free(ctx);
    dq_config_free(config);
    return result;
}
