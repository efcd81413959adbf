/* A job in the host's own loop: one layer at a time, other work between, a checkpoint after each, Ctrl-C any time. Started
 * again with the same arguments it goes on where it was, and ends with the same bits.
 *
 *   cc stepwise.c $(pkg-config --cflags --libs dartquant) -o stepwise
 *   ./stepwise MODEL CALIBRATION.txt CHECKPOINT_DIR OUTPUT_DIR [STEPS]
 *
 * STEPS: stop after so many (0 = never), to see it resume. SPDX-License-Identifier: Apache-2.0 */
#include <dartquant.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>

#define CHECK(call)                                                                                                    \
    do {                                                                                                               \
        if ((call) != DQ_OK) goto failed;                                                                              \
    } while (0)

static dq_cancel *cancel;
static void on_interrupt(int number)
{
    (void)number;
    dq_cancel_set(cancel); /* allowed in a signal handler and from any thread */
}

static dq_status set_options(dq_config *config, const char *out)
{
    static const char *const options[][2] = {
        {"w_bits", "4"}, {"w_groupsize", "16"}, {"nsamples", "8"}, {"seqlen", "64"}};
    dq_status status = DQ_OK;
    for (size_t i = 0; i < sizeof options / sizeof *options && status == DQ_OK; i++)
        status = dq_config_set(config, options[i][0], options[i][1]);
    return status == DQ_OK ? dq_config_set(config, "save_qmodel_path", out) : status;
}

int main(int argc, char **argv)
{
    dq_config *config = NULL;
    dq_context *ctx = NULL;
    dq_model *model = NULL, *fused = NULL;
    dq_tokenizer *tokenizer = NULL;
    dq_dataset *text = NULL;
    dq_quantizer *job = NULL;
    int32_t there = 0, done = 0;
    double layers = 0;
    int result = 1;
    if (argc < 5) {
        fprintf(stderr, "usage: %s MODEL CALIBRATION.txt CHECKPOINT_DIR OUTPUT_DIR [STEPS]\n", argv[0]);
        return 2;
    }
    int most = argc > 5 ? atoi(argv[5]) : 0;
    CHECK(dq_cancel_new(&cancel));
    signal(SIGINT, on_interrupt);
    CHECK(dq_config_new(&config));
    CHECK(set_options(config, argv[4]));
    CHECK(dq_context_new(config, NULL, &ctx));
    CHECK(dq_model_open(ctx, argv[1], &model));
    CHECK(dq_model_fuse_norms(model, config, &fused));
    CHECK(dq_tokenizer_open(ctx, argv[1], &tokenizer));
    CHECK(dq_dataset_from_file(tokenizer, argv[2], &text));
    CHECK(dq_quantizer_new(fused, config, &job));
    CHECK(dq_quantizer_bind(job, text));

    /* Either go on, or make the first checkpoint, which turns them on. */
    CHECK(dq_checkpoint_exists(ctx, argv[3], &there));
    CHECK(there ? dq_quantizer_restore(job, argv[3]) : dq_quantizer_checkpoint(job, argv[3]));
    CHECK(dq_quantizer_get_float(job, "layers_done", &layers));
    printf("%s at layer %.0f\n", there ? "resumed" : "started", layers);
    for (int steps = 1; !done; steps++) {
        CHECK(dq_quantizer_step(job, cancel, NULL, NULL, &done));
        if (!done) CHECK(dq_quantizer_checkpoint(job, argv[3]));
        CHECK(dq_quantizer_get_float(job, "layers_done", &layers));
        printf("layer %.0f done\n", layers); /* here the host serves a request, draws a frame, ... */
        if (steps == most && !done) {
            printf("stopped; start again to go on\n");
            result = 0;
            goto done;
        }
    }
    CHECK(dq_checkpoint_remove(ctx, argv[3]));
    printf("saved in %s\n", argv[4]);
    result = 0;
    goto done;
failed:
    fprintf(stderr, "%s: %s\n", dq_error_last() == DQ_E_CANCELLED ? "interrupted" : "failed", dq_error_text());
done:
    dq_quantizer_free(job);
    dq_dataset_free(text);
    dq_tokenizer_free(tokenizer);
    dq_model_free(fused);
    dq_model_free(model);
    dq_context_free(ctx);
    dq_config_free(config);
    dq_cancel_free(cancel);
    return result;
}
