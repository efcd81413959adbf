/* The public border: the order of freeing, several contexts, cancelling. SPDX-License-Identifier: Apache-2.0 */
#include <setjmp.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>
#include <cmocka.h>

#include "host.h"

#define INVALID(call) assert_int_equal((call), DQ_E_INVALID)

/* Every order of freeing is fine; the context really goes with the last object. */
static void freed_in_any_order(void **state)
{
    (void)state;
    dq_context *ctx = host_context(2);
    dq_config *config = host_config("seqlen=64 w_bits=4 nsamples=2 limit=2");
    dq_model *model = host_open_tiny(ctx), *fused = NULL, *rotated = NULL, *quantized = NULL;
    dq_tokenizer *tokenizer = NULL;
    dq_rotation *rotation = NULL;
    dq_quantizer *quantizer = NULL;
    dq_evaluator *evaluator = NULL;
    dq_tensors *tensors = NULL;
    dq_dataset *set = host_ids(ctx, 300), *words = NULL;
    int32_t done = 0;
    OK(dq_tensors_open(ctx, HOST_TINY "/model.safetensors", &tensors));
    OK(dq_tokenizer_open(ctx, HOST_TINY, &tokenizer));
    OK(dq_dataset_from_text(tokenizer, "once upon a time", 16, "words", &words));
    dq_context_free(ctx);
    dq_tokenizer_free(tokenizer);
    OK(dq_model_fuse_norms(model, config, &fused));
    dq_model_free(model);
    OK(dq_rotation_new(fused, config, &rotation));
    OK(dq_model_rotate(fused, rotation, &rotated));
    dq_model_free(fused);
    dq_rotation_free(rotation);
    OK(dq_quantizer_new(rotated, config, &quantizer));
    OK(dq_evaluator_new(rotated, config, &evaluator));
    dq_config_free(config);
    dq_model_free(rotated);
    OK(dq_quantizer_bind(quantizer, set));
    OK(dq_evaluator_bind(evaluator, set));
    dq_dataset_free(set);
    OK(dq_evaluator_run(evaluator, NULL, NULL, NULL));
    while (!done) OK(dq_quantizer_step(quantizer, NULL, NULL, NULL, &done));
    OK(dq_quantizer_take_model(quantizer, &quantized));
    dq_quantizer_free(quantizer);
    const char *text = NULL;
    OK(dq_model_describe(quantized, &text));
    assert_non_null(strstr(text, "hidden_size"));
    dq_evaluator_free(evaluator);
    dq_tensors_free(tensors);
    dq_model_free(quantized);
    assert_true(heap.live > 0);
    dq_dataset_free(words); /* the last one */
    assert_int_equal(heap.live, 0);
}

static void contexts_do_not_mix(void **state)
{
    (void)state;
    dq_context *a = host_context(2), *b = host_context(2);
    dq_config *config = host_config("seqlen=64 w_bits=4 nsamples=2");
    dq_model *in_a = host_open_tiny(a), *in_b = host_open_tiny(b), *fused = NULL, *out = NULL;
    dq_dataset *set = host_ids(b, 300);
    dq_rotation *rotation = NULL;
    dq_evaluator *evaluator = NULL;
    dq_quantizer *quantizer = NULL;
    OK(dq_model_fuse_norms(in_a, NULL, &fused));
    OK(dq_rotation_new(in_b, config, &rotation));
    INVALID(dq_model_rotate(fused, rotation, &out));
    assert_non_null(strstr(dq_error_text(), "another context"));
    OK(dq_evaluator_new(in_a, config, &evaluator));
    INVALID(dq_evaluator_bind(evaluator, set));
    OK(dq_quantizer_new(in_a, config, &quantizer));
    INVALID(dq_quantizer_bind(quantizer, set));
    assert_null(out);
    /* Two contexts give the same numbers. */
    dq_dataset *mine = host_ids(a, 300);
    assert_true(host_perplexity(in_a, config, mine) == host_perplexity(in_b, config, set));
    dq_dataset_free(mine);
    dq_dataset_free(set);
    dq_quantizer_free(quantizer);
    dq_evaluator_free(evaluator);
    dq_rotation_free(rotation);
    dq_model_free(fused);
    dq_model_free(in_a);
    dq_model_free(in_b);
    dq_config_free(config);
    dq_context_free(a);
    dq_context_free(b);
}

static int32_t cancel_at_second(void *user, const dq_progress_event *event)
{
    (void)event;
    return ++*(int *)user == 2;
}

static void cancelled(void **state)
{
    (void)state;
    dq_context *ctx = host_context(2);
    dq_config *config = host_config("seqlen=64 w_bits=4 nsamples=2");
    dq_model *model = host_open_tiny(ctx), *out = NULL;
    dq_dataset *set = host_ids(ctx, 300);
    dq_evaluator *e = NULL;
    dq_quantizer *q = NULL;
    dq_cancel *token = NULL;
    int calls = 0;
    OK(dq_cancel_new(&token));
    dq_cancel_set(token);
    OK(dq_evaluator_new(model, config, &e));
    OK(dq_evaluator_bind(e, set));
    assert_int_equal(dq_evaluator_run(e, token, NULL, NULL), DQ_E_CANCELLED);
    assert_int_equal(dq_evaluator_run(e, NULL, cancel_at_second, &calls), DQ_E_CANCELLED);
    assert_int_equal(calls, 2);
    dq_cancel_clear(token);
    OK(dq_evaluator_run(e, token, NULL, NULL));
    OK(dq_quantizer_new(model, config, &q));
    OK(dq_quantizer_bind(q, set));
    calls = 0;
    assert_int_equal(dq_quantizer_run(q, token, cancel_at_second, &calls), DQ_E_CANCELLED);
    assert_int_equal(dq_quantizer_run(q, NULL, NULL, NULL), DQ_E_STATE); /* only freeing is left */
    assert_int_equal(dq_quantizer_take_model(q, &out), DQ_E_STATE);
    dq_quantizer_free(q);
    /* A cancelled save leaves nothing that opens. */
    char dir[] = "/tmp/dartquant-test-XXXXXX";
    assert_non_null(mkdtemp(dir));
    dq_cancel_set(token);
    assert_int_equal(dq_model_save(model, dir, NULL, token, NULL, NULL), DQ_E_CANCELLED);
    assert_int_not_equal(dq_model_open(ctx, dir, &out), DQ_OK);
    assert_null(out);
    assert_int_equal(rmdir(dir), 0); /* and no file either */
    dq_cancel_free(token);
    dq_evaluator_free(e);
    dq_dataset_free(set);
    dq_model_free(model);
    dq_config_free(config);
    dq_context_free(ctx);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test_teardown(freed_in_any_order, host_no_leaks),
        cmocka_unit_test_teardown(contexts_do_not_mix, host_no_leaks),
        cmocka_unit_test_teardown(cancelled, host_no_leaks),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
