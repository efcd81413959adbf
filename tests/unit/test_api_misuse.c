/* The public border: missing arguments, sizes of structs, the order of calls, requests that cannot be met. SPDX-License-Identifier: Apache-2.0 */
#include <setjmp.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <cmocka.h>

#include "host.h"

#define INVALID(call) assert_int_equal((call), DQ_E_INVALID)

static void null_arguments(void **state)
{
    (void)state;
    dq_context *ctx = host_context(2);
    dq_model *model = host_open_tiny(ctx), *out = NULL;
    dq_tokenizer *tokenizer = NULL;
    dq_dataset *set = NULL;
    dq_rotation *rotation = NULL;
    dq_evaluator *evaluator = NULL;
    dq_quantizer *quantizer = NULL;
    dq_tensors *tensors = NULL;
    const char *text = "kept";
    double f = 7;
    int64_t n = 7;
    int32_t i = 7;
    size_t needed = 7;
    float logits[1];
    INVALID(dq_context_new(NULL, NULL, NULL));
    INVALID(dq_model_open(NULL, HOST_TINY, &out));
    INVALID(dq_model_open(ctx, NULL, &out));
    INVALID(dq_model_open(ctx, HOST_TINY, NULL));
    INVALID(dq_model_describe(NULL, &text));
    INVALID(dq_model_get_int(model, NULL, &n));
    INVALID(dq_model_get_float(NULL, "bytes", &f));
    INVALID(dq_model_fuse_norms(NULL, NULL, &out));
    INVALID(dq_model_rotate(model, NULL, &out));
    INVALID(dq_model_save(NULL, "x", NULL, NULL, NULL, NULL));
    INVALID(dq_model_save(model, NULL, NULL, NULL, NULL, NULL));
    INVALID(dq_model_logits(model, NULL, 3, NULL, logits, 1));
    INVALID(dq_model_tensor_info(model, 0, NULL));
    INVALID(dq_rotation_new(NULL, NULL, &rotation));
    INVALID(dq_rotation_save(NULL, "x"));
    INVALID(dq_rotation_describe(NULL, &text));
    INVALID(dq_rotation_error(NULL, &f));
    INVALID(dq_rotation_copy(NULL, -1, &f, 1));
    INVALID(dq_tokenizer_open(ctx, NULL, &tokenizer));
    INVALID(dq_tokenizer_encode(NULL, "a", 1, 0, NULL, 0, &needed));
    INVALID(dq_tokenizer_decode(NULL, NULL, 0, 0, NULL, 0, &needed));
    INVALID(dq_dataset_from_file(NULL, "x", &set));
    INVALID(dq_dataset_from_text(NULL, "x", 1, "n", &set));
    INVALID(dq_dataset_from_recipe(NULL, "c4", ".", 0, 64, &set));
    INVALID(dq_dataset_from_ids(ctx, NULL, 3, "n", &set));
    INVALID(dq_dataset_from_ids_file(ctx, NULL, &set));
    INVALID(dq_dataset_copy_ids(NULL, 0, 1, &i));
    INVALID(dq_evaluator_new(NULL, NULL, &evaluator));
    INVALID(dq_evaluator_bind(NULL, NULL));
    INVALID(dq_evaluator_run(NULL, NULL, NULL, NULL));
    INVALID(dq_quantizer_new(NULL, NULL, &quantizer));
    INVALID(dq_quantizer_bind(NULL, NULL));
    INVALID(dq_quantizer_step(NULL, NULL, NULL, NULL, &i));
    INVALID(dq_quantizer_take_model(NULL, &out));
    INVALID(dq_tensors_open(ctx, NULL, &tensors));
    INVALID(dq_tensors_info(NULL, 0, NULL));
    INVALID(dq_benchmark_ops(NULL, 0, NULL, NULL, NULL, &text));
    INVALID(dq_cancel_new(NULL));
    assert_true(!out && !tokenizer && !set && !rotation && !evaluator && !quantizer && !tensors);
    assert_true(f == 7 && n == 7 && i == 7 && needed == 7);
    assert_string_equal(text, "kept");
    /* Getters and frees take NULL in their stride. */
    assert_int_equal(dq_model_vocab_size(NULL), 0);
    assert_int_equal(dq_model_tensor_count(NULL), 0);
    assert_int_equal(dq_tokenizer_vocab_size(NULL), 0);
    assert_int_equal(dq_tokenizer_bos(NULL), -1);
    assert_int_equal(dq_dataset_count(NULL), 0);
    assert_string_equal(dq_dataset_name(NULL), "");
    assert_string_equal(dq_context_device_name(NULL), "");
    dq_context_free(NULL);
    dq_model_free(NULL);
    dq_rotation_free(NULL);
    dq_tokenizer_free(NULL);
    dq_dataset_free(NULL);
    dq_evaluator_free(NULL);
    dq_quantizer_free(NULL);
    dq_tensors_free(NULL);
    dq_cancel_free(NULL);
    dq_cancel_set(NULL);
    dq_model_free(model);
    dq_context_free(ctx);
}

static void struct_sizes(void **state)
{
    (void)state;
    dq_services services = {.struct_size = 3, .abi = 1};
    dq_context *ctx = NULL;
    INVALID(dq_context_new(NULL, &services, &ctx));
    services = (dq_services){.struct_size = sizeof services, .abi = 99};
    INVALID(dq_context_new(NULL, &services, &ctx));
    services = (dq_services){.struct_size = sizeof services, .abi = 1, .allocator = {refuse_alloc, NULL, NULL}};
    INVALID(dq_context_new(NULL, &services, &ctx));
    assert_null(ctx);
    ctx = host_context(2);
    dq_model *model = host_open_tiny(ctx);
    dq_tensor_desc t = {.struct_size = 4};
    INVALID(dq_model_tensor_info(model, 0, &t));
    t.struct_size = sizeof t;
    INVALID(dq_model_tensor_info(model, -1, &t));
    INVALID(dq_model_tensor_info(model, dq_model_tensor_count(model), &t));
    OK(dq_model_tensor_info(model, 0, &t));
    assert_non_null(t.name);
    dq_model_free(model);
    dq_context_free(ctx);
}

static void order_of_calls(void **state)
{
    (void)state;
    dq_context *ctx = host_context(2);
    dq_config *config = host_config("seqlen=64 w_bits=4 nsamples=2");
    dq_model *model = host_open_tiny(ctx), *out = NULL, *again = NULL, *rotated = NULL;
    dq_dataset *set = host_ids(ctx, 300), *tiny = host_ids(ctx, 20), *foreign = NULL;
    dq_rotation *rotation = NULL;
    dq_evaluator *e = NULL;
    dq_quantizer *q = NULL, *second = NULL;
    const char *text = NULL;
    double f = 0;
    int32_t done = 7, too_large = 512;
    OK(dq_rotation_new(model, config, &rotation));
    assert_int_equal(dq_model_rotate(model, rotation, &rotated), DQ_E_STATE); /* norms not fused */
    OK(dq_evaluator_new(model, config, &e));
    assert_int_equal(dq_evaluator_run(e, NULL, NULL, NULL), DQ_E_STATE);
    assert_int_equal(dq_evaluator_report(e, &text), DQ_E_STATE);
    assert_int_equal(dq_evaluator_get_float(e, "ppl", &f), DQ_E_STATE);
    assert_int_equal(dq_evaluator_bind(e, tiny), DQ_E_TEXT);
    OK(dq_evaluator_bind(e, set));
    OK(dq_evaluator_run(e, NULL, NULL, NULL));
    assert_int_equal(dq_evaluator_get_float(e, "pppl", &f), DQ_E_NOTFOUND);
    int64_t windows = 0;
    OK(dq_evaluator_get_int(e, "windows", &windows));
    assert_int_equal(windows, 300 / 64);
    double losses[8] = {0}, sum = 0;
    assert_int_equal(dq_evaluator_copy_windows(e, losses, 1), DQ_E_INVALID);
    OK(dq_evaluator_copy_windows(e, losses, 8));
    for (int64_t i = 0; i < windows; i++) sum += losses[i];
    OK(dq_evaluator_get_float(e, "nll", &f));
    assert_true(f > 0 && sum / (double)windows - f < 1e-9 && f - sum / (double)windows < 1e-9);

    OK(dq_quantizer_new(model, config, &q));
    assert_int_equal(dq_quantizer_take_model(q, &out), DQ_E_STATE);
    assert_int_equal(dq_quantizer_step(q, NULL, NULL, NULL, &done), DQ_E_STATE); /* nothing bound */
    assert_int_equal(done, 7);
    assert_int_equal(dq_quantizer_bind(q, tiny), DQ_E_TEXT);
    OK(dq_quantizer_bind(q, set));
    assert_int_equal(dq_quantizer_get_float(q, "bits_per_weight", &f), DQ_E_STATE);
    OK(dq_quantizer_step(q, NULL, NULL, NULL, &done));
    assert_int_equal(done, 0);
    assert_int_equal(dq_quantizer_bind(q, set), DQ_E_STATE);
    OK(dq_quantizer_get_float(q, "layers_done", &f));
    assert_true(f == 1);
    OK(dq_quantizer_run(q, NULL, NULL, NULL));
    assert_int_equal(dq_quantizer_run(q, NULL, NULL, NULL), DQ_E_STATE);
    OK(dq_quantizer_take_model(q, &out));
    assert_int_equal(dq_quantizer_take_model(q, &again), DQ_E_STATE);
    OK(dq_quantizer_get_float(q, "bits_per_weight", &f));
    assert_true(f > 4 && f < 6);
    assert_int_equal(dq_quantizer_new(out, config, &second), DQ_E_STATE); /* quantized already */
    OK(dq_dataset_from_ids(ctx, &too_large, 1, "foreign", &foreign));
    assert_true(!again && !second && !rotated);
    dq_dataset_free(foreign);
    dq_dataset_free(set);
    dq_dataset_free(tiny);
    dq_quantizer_free(q);
    dq_evaluator_free(e);
    dq_rotation_free(rotation);
    dq_model_free(out);
    dq_model_free(model);
    dq_config_free(config);
    dq_context_free(ctx);
}

/* Ids outside the vocabulary, groups that do not fit, sizes that do not exist. */
static void bad_requests(void **state)
{
    (void)state;
    static const char *const bad[] = {"w_bits=9",
                                      "w_bits=4 w_groupsize=0",
                                      "a_bits=4 a_groupsize=5",
                                      "k_bits=4 k_groupsize=5",
                                      "v_bits=4 v_groupsize=33",
                                      "a_bits=4 a_groupsize=0"};
    dq_context *ctx = host_context(2);
    dq_model *model = host_open_tiny(ctx), *missing = NULL;
    for (size_t i = 0; i < sizeof bad / sizeof *bad; i++) {
        dq_config *config = host_config(bad[i]);
        dq_quantizer *q = NULL;
        if (dq_quantizer_new(model, config, &q) != DQ_E_INVALID) fail_msg("%s was taken", bad[i]);
        assert_null(q);
        dq_config_free(config);
    }
    dq_config *config = host_config("seqlen=4 limit=1");
    int32_t ids[4] = {1, 2, 512, 3};
    float logits[4 * 512];
    dq_dataset *set = NULL;
    dq_evaluator *e = NULL;
    OK(dq_dataset_from_ids(ctx, ids, 4, "foreign", &set));
    OK(dq_evaluator_new(model, config, &e));
    assert_int_equal(dq_evaluator_bind(e, set), DQ_E_MISMATCH);
    assert_non_null(strstr(dq_error_text(), "512"));
    assert_int_equal(dq_model_logits(model, ids, 4, NULL, logits, 4 * 512), DQ_E_MISMATCH);
    INVALID(dq_model_logits(model, ids, 2, NULL, logits, 2 * 512 - 1));
    INVALID(dq_model_logits(model, ids, 0, NULL, logits, 4 * 512));
    OK(dq_model_logits(model, ids, 2, NULL, logits, 4 * 512));
    assert_int_equal(dq_model_open(ctx, "tests/data/no-such-model", &missing), DQ_E_IO);
    assert_non_null(strstr(dq_error_text(), "no-such-model"));
    assert_null(missing);
    int64_t n = 3;
    assert_int_equal(dq_model_get_int(model, "nothing", &n), DQ_E_NOTFOUND);
    INVALID(dq_model_get_int(model, "architecture", &n));
    INVALID(dq_model_get_int(model, "rms_norm_eps", &n));
    assert_int_equal(n, 3);
    OK(dq_model_get_int(model, "hidden_size", &n));
    assert_int_equal(n, 64);
    dq_config *unknown = host_config("backend=quantum");
    dq_context *none = NULL;
    assert_int_equal(dq_context_new(unknown, NULL, &none), DQ_E_NOTFOUND);
    assert_null(none);
    dq_config_free(unknown);
    dq_evaluator_free(e);
    dq_dataset_free(set);
    dq_config_free(config);
    dq_model_free(model);
    dq_context_free(ctx);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test_teardown(null_arguments, host_no_leaks),
        cmocka_unit_test_teardown(struct_sizes, host_no_leaks),
        cmocka_unit_test_teardown(order_of_calls, host_no_leaks),
        cmocka_unit_test_teardown(bad_requests, host_no_leaks),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
