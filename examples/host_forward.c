/* An engine supplies logits of its own forward pass and gets perplexity under the library's protocol. The "engine" here
 * knows one thing: after token t comes t + 1.
 *
 *   cc host_forward.c $(pkg-config --cflags --libs dartquant) -o host_forward
 *   ./host_forward
 *
 * SPDX-License-Identifier: Apache-2.0 */
#include <dartquant.h>
#include <stdio.h>
#include <string.h>

enum { VOCAB = 50, SEQLEN = 16, TOKENS = 100 };

/* logits[i] says what comes after ids[0..i]. */
static void forward(const int32_t *ids, float logits[SEQLEN][VOCAB])
{
    memset(logits, 0, sizeof(float) * SEQLEN * VOCAB);
    for (int i = 0; i < SEQLEN; i++) logits[i][(ids[i] + 1) % VOCAB] = 5.0f;
}

int main(void)
{
    static float logits[SEQLEN][VOCAB];
    int32_t text[TOKENS], ids[SEQLEN], done = 0;
    const char *report = NULL;
    dq_config *config = NULL;
    dq_context *ctx = NULL;
    dq_dataset *data = NULL;
    dq_evaluator *evaluator = NULL;
    for (int i = 0; i < TOKENS; i++) text[i] = i % 7 == 3 ? 0 : i % VOCAB; /* counts, with slips */
    dq_status status = dq_config_new(&config);
    if (status == DQ_OK) status = dq_config_set_int(config, "seqlen", SEQLEN);
    if (status == DQ_OK) status = dq_context_new(config, NULL, &ctx);
    if (status == DQ_OK) status = dq_dataset_from_ids(ctx, text, TOKENS, "counting", &data);
    if (status == DQ_OK) status = dq_evaluator_new_host(ctx, VOCAB, config, &evaluator);
    if (status == DQ_OK) status = dq_evaluator_bind(evaluator, data);
    for (int64_t window = 0; status == DQ_OK && !done; window++) {
        status = dq_evaluator_copy_ids(evaluator, window, ids, SEQLEN);
        forward(ids, logits);
        if (status == DQ_OK) status = dq_evaluator_add_logits(evaluator, window, &logits[0][0], SEQLEN * VOCAB, &done);
    }
    if (status == DQ_OK) status = dq_evaluator_report(evaluator, &report);

    /* Single continuations, as benchmarks of questions need them: log-likelihood per token, and whether it was the best. */
    const int32_t wanted[2] = {1, 9};
    double nll[2];
    int32_t best[2];
    ids[0] = 0;
    ids[1] = 1;
    forward(ids, logits);
    if (status == DQ_OK) status = dq_score_logits(ctx, &logits[0][0], 2, VOCAB, VOCAB, wanted, nll, best);
    if (status == DQ_OK)
        printf("%s\nafter 0 comes 1: %.3f nats%s; after 1 comes 9: %.3f nats%s\n", report, nll[0],
               best[0] == 1 ? " (best)" : "", nll[1], best[1] == 9 ? " (best)" : "");
    else
        fprintf(stderr, "failed: %s\n", dq_error_text());
    dq_evaluator_free(evaluator);
    dq_dataset_free(data);
    dq_context_free(ctx);
    dq_config_free(config);
    return status == DQ_OK ? 0 : 1;
}
