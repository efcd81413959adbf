/* The public border: misuse, the order of freeing, several contexts, cancelling, reports.
 * SPDX-License-Identifier: Apache-2.0 */
#include <setjmp.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>
#include <cmocka.h>

#include "dartquant.h"

#define MODEL "tests/data/tiny"
#define OK(call)                                                                                                       \
    do {                                                                                                               \
        dq_status s_ = (call);                                                                                         \
        if (s_ != DQ_OK) fail_msg("%s: %d %s", #call, s_, dq_error_text());                                            \
    } while (0)
#define INVALID(call) assert_int_equal((call), DQ_E_INVALID)

/* ---- a host's allocator that counts ---- */

static long live_blocks;

static void *count_alloc(void *user, size_t bytes)
{
    (void)user;
    void *p = malloc(bytes);
    if (p) __atomic_add_fetch(&live_blocks, 1, __ATOMIC_SEQ_CST);
    return p;
}

static void count_free(void *user, void *ptr, size_t bytes)
{
    (void)user;
    (void)bytes;
    __atomic_sub_fetch(&live_blocks, 1, __ATOMIC_SEQ_CST);
    free(ptr);
}

static dq_context *new_context(void)
{
    dq_services services = {.struct_size = sizeof services, .abi = 1, .allocator = {count_alloc, count_free, NULL}};
    dq_config *config = NULL;
    dq_context *ctx = NULL;
    OK(dq_config_new(&config));
    OK(dq_config_set(config, "threads", "2"));
    OK(dq_context_new(config, &services, &ctx));
    dq_config_free(config);
    return ctx;
}

static int no_leaks(void **state)
{
    (void)state;
    if (live_blocks == 0) return 0;
    print_error("%ld blocks were not given back\n", live_blocks);
    live_blocks = 0;
    return -1;
}

static dq_config *config_of(const char *settings)
{
    char text[256];
    dq_config *config = NULL;
    OK(dq_config_new(&config));
    snprintf(text, sizeof text, "%s", settings);
    char *rest = text;
    for (char *item; (item = strsep(&rest, " ")) != NULL;) {
        char *value = strchr(item, '=');
        *value = '\0';
        OK(dq_config_set(config, item, value + 1));
    }
    return config;
}

static dq_dataset *ids_of(dq_context *ctx, size_t count)
{
    int32_t *ids = malloc(count * sizeof *ids);
    for (size_t i = 0; i < count; i++) ids[i] = (int32_t)((i * i * 7 + i * 13 + 5) % 500);
    dq_dataset *set = NULL;
    OK(dq_dataset_from_ids(ctx, ids, count, "numbers", &set));
    free(ids);
    return set;
}

static dq_model *open_model(dq_context *ctx)
{
    dq_model *model = NULL;
    OK(dq_model_open(ctx, MODEL, &model));
    return model;
}

static double perplexity(dq_model *model, const dq_config *config, const dq_dataset *set)
{
    dq_evaluator *e = NULL;
    double ppl = 0;
    OK(dq_evaluator_new(model, config, &e));
    OK(dq_evaluator_bind(e, set));
    OK(dq_evaluator_run(e, NULL, NULL, NULL));
    OK(dq_evaluator_get_float(e, "ppl", &ppl));
    dq_evaluator_free(e);
    return ppl;
}

/* ---- tests ---- */

static void null_arguments(void **state)
{
    (void)state;
    dq_context *ctx = new_context();
    dq_model *model = open_model(ctx), *out = NULL;
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
    INVALID(dq_model_open(NULL, MODEL, &out));
    INVALID(dq_model_open(ctx, NULL, &out));
    INVALID(dq_model_open(ctx, MODEL, NULL));
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
    services = (dq_services){.struct_size = sizeof services, .abi = 1, .allocator = {count_alloc, NULL, NULL}};
    INVALID(dq_context_new(NULL, &services, &ctx));
    assert_null(ctx);
    ctx = new_context();
    dq_model *model = open_model(ctx);
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

/* Every order of freeing is fine; the context really goes with the last object. */
static void freed_in_any_order(void **state)
{
    (void)state;
    dq_context *ctx = new_context();
    dq_config *config = config_of("seqlen=64 w_bits=4 nsamples=2 limit=2");
    dq_model *model = open_model(ctx), *fused = NULL, *rotated = NULL, *quantized = NULL;
    dq_tokenizer *tokenizer = NULL;
    dq_rotation *rotation = NULL;
    dq_quantizer *quantizer = NULL;
    dq_evaluator *evaluator = NULL;
    dq_tensors *tensors = NULL;
    dq_dataset *set = ids_of(ctx, 300), *words = NULL;
    int32_t done = 0;
    OK(dq_tensors_open(ctx, MODEL "/model.safetensors", &tensors));
    OK(dq_tokenizer_open(ctx, MODEL, &tokenizer));
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
    assert_true(live_blocks > 0);
    dq_dataset_free(words); /* the last one */
    assert_int_equal(live_blocks, 0);
}

static void contexts_do_not_mix(void **state)
{
    (void)state;
    dq_context *a = new_context(), *b = new_context();
    dq_config *config = config_of("seqlen=64 w_bits=4 nsamples=2");
    dq_model *in_a = open_model(a), *in_b = open_model(b), *fused = NULL, *out = NULL;
    dq_dataset *set = ids_of(b, 300);
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
    dq_dataset *mine = ids_of(a, 300);
    assert_true(perplexity(in_a, config, mine) == perplexity(in_b, config, set));
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

static void order_of_calls(void **state)
{
    (void)state;
    dq_context *ctx = new_context();
    dq_config *config = config_of("seqlen=64 w_bits=4 nsamples=2");
    dq_model *model = open_model(ctx), *out = NULL, *again = NULL, *rotated = NULL;
    dq_dataset *set = ids_of(ctx, 300), *tiny = ids_of(ctx, 20), *foreign = NULL;
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
    dq_context *ctx = new_context();
    dq_model *model = open_model(ctx), *missing = NULL;
    for (size_t i = 0; i < sizeof bad / sizeof *bad; i++) {
        dq_config *config = config_of(bad[i]);
        dq_quantizer *q = NULL;
        if (dq_quantizer_new(model, config, &q) != DQ_E_INVALID) fail_msg("%s was taken", bad[i]);
        assert_null(q);
        dq_config_free(config);
    }
    dq_config *config = config_of("seqlen=4 limit=1");
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
    dq_config *unknown = config_of("backend=quantum");
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

static int32_t cancel_at_second(void *user, const dq_progress_event *event)
{
    (void)event;
    return ++*(int *)user == 2;
}

static void cancelled(void **state)
{
    (void)state;
    dq_context *ctx = new_context();
    dq_config *config = config_of("seqlen=64 w_bits=4 nsamples=2");
    dq_model *model = open_model(ctx), *out = NULL;
    dq_dataset *set = ids_of(ctx, 300);
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

static void remove_folder(const char *dir)
{
    char command[256];
    snprintf(command, sizeof command, "rm -rf '%s'", dir);
    assert_int_equal(system(command), 0);
}

/* Codes in memory, codes streamed to a folder, and the folder opened again: the same bits. */
static void saved_equals_kept(void **state)
{
    (void)state;
    static const char *const schemes[] = {"w_bits=4 w_rtn=true a_bits=8 seqlen=64", "w_bits=3 nsamples=2 seqlen=64",
                                          "a_bits=8 k_bits=8 seqlen=64", "seqlen=64"};
    dq_context *ctx = new_context();
    dq_dataset *set = ids_of(ctx, 300);
    dq_model *model = open_model(ctx);
    for (size_t i = 0; i < sizeof schemes / sizeof *schemes; i++) {
        char dir[] = "/tmp/dartquant-test-XXXXXX";
        assert_non_null(mkdtemp(dir));
        dq_config *config = config_of(schemes[i]);
        double ppl[3];
        for (int to_folder = 0; to_folder < 2; to_folder++) {
            dq_quantizer *q = NULL;
            dq_model *out = NULL;
            if (to_folder) OK(dq_config_set(config, "save_qmodel_path", dir));
            OK(dq_quantizer_new(model, config, &q));
            OK(dq_quantizer_bind(q, set));
            OK(dq_quantizer_run(q, NULL, NULL, NULL));
            OK(dq_quantizer_take_model(q, &out));
            ppl[to_folder] = perplexity(out, config, set);
            dq_quantizer_free(q);
            dq_model_free(out);
        }
        dq_model *saved = NULL;
        OK(dq_model_open(ctx, dir, &saved));
        ppl[2] = perplexity(saved, config, set);
        assert_true(ppl[0] == ppl[1] && ppl[1] == ppl[2] && ppl[0] > 1);
        dq_model_free(saved);
        dq_config_free(config);
        remove_folder(dir);
    }
    dq_dataset_free(set);
    dq_model_free(model);
    dq_context_free(ctx);
}

/* Copied codes times scales are the weights of the saved model, to the bit, for every kind of grid. */
static void codes_of_a_model(void **state)
{
    (void)state;
    static const char *const schemes[] = {"w_bits=4 w_rtn=true", "w_bits=3 w_groupsize=16 w_rtn=true w_asym=true",
                                          "w_bits=5 w_groupsize=16 nsamples=2 seqlen=32 act_order=true"};
    for (int i = 0; i < 3; i++) {
        dq_context *ctx = new_context();
        dq_model *model = open_model(ctx), *quantized = NULL;
        dq_config *config = config_of(schemes[i]);
        dq_dataset *set = ids_of(ctx, 200);
        dq_quantizer *q = NULL;
        int64_t rows = 0, cols = 0, groups = 0, group = 0;
        int32_t bits = 0, largest = 0;
        OK(dq_quantizer_new(model, config, &q));
        OK(dq_quantizer_bind(q, set));
        OK(dq_quantizer_run(q, NULL, NULL, NULL));
        OK(dq_quantizer_take_model(q, &quantized));
        OK(dq_model_codes_shape(quantized, 1, "down_proj", &rows, &cols, &groups, &bits));
        OK(dq_model_codes_shape(quantized, 1, "down_proj", NULL, NULL, NULL, NULL));
        OK(dq_config_get_int(config, "w_groupsize", &group));
        assert_true(rows == 64 && cols == 192 && groups == (group < 0 ? 1 : 192 / group) &&
                    bits == 4 - (i == 1) + (i == 2));
        uint8_t *codes = malloc((size_t)(rows * cols));
        float *scale = malloc((size_t)(rows * groups) * 4), *zero = malloc((size_t)(rows * groups) * 4);
        float *w = malloc((size_t)(rows * cols) * 4), *mine = malloc((size_t)(rows * cols) * 4);
        int32_t *g_idx = malloc((size_t)cols * 4);
        OK(dq_model_copy_codes(quantized, 1, "down_proj", codes, scale, zero, g_idx));
        for (int64_t k = 0; k < rows * cols; k++)
            if (codes[k] > largest) largest = codes[k];
        assert_true(largest < 1 << bits && largest >= 1 << (bits - 1));
        if (i < 2) { /* the same bits as rounding the weight itself */
            dq_tensors *tensors = NULL;
            int64_t index = 0;
            uint8_t *own = malloc((size_t)(rows * cols));
            OK(dq_tensors_open(ctx, MODEL, &tensors));
            OK(dq_tensors_find(tensors, "model.layers.1.mlp.down_proj.weight", &index));
            OK(dq_tensors_read_f32(tensors, index, 0, rows, w, (size_t)(rows * cols)));
            OK(dq_dequantize_weight(ctx, codes, scale, zero, g_idx, rows, cols, group, mine));
            OK(dq_quantize_weight(ctx, config, w, rows, cols, NULL, own, scale, zero, g_idx, NULL, NULL));
            assert_memory_equal(own, codes, (size_t)(rows * cols));
            OK(dq_dequantize_weight(ctx, own, scale, zero, g_idx, rows, cols, group, w));
            assert_memory_equal(w, mine, (size_t)(rows * cols) * 4);
            free(own);
            dq_tensors_free(tensors);
        } else { /* columns were taken out of order, groups with them */
            int moved = 0;
            for (int64_t c = 0; c < cols; c++) moved += g_idx[c] != c / group;
            assert_true(moved > 0);
        }
        memset(codes, 0x5a, 8);
        assert_int_equal(dq_model_copy_codes(model, 1, "down_proj", codes, scale, zero, g_idx), DQ_E_STATE);
        assert_string_equal(dq_error_tensor(), "model.layers.1.mlp.down_proj");
        assert_int_equal(dq_model_copy_codes(quantized, 4, "down_proj", codes, scale, zero, g_idx), DQ_E_NOTFOUND);
        assert_int_equal(dq_model_copy_codes(quantized, -1, "down_proj", codes, scale, zero, g_idx), DQ_E_NOTFOUND);
        assert_int_equal(dq_model_codes_shape(quantized, 0, "lm_head", &rows, &cols, &groups, &bits), DQ_E_NOTFOUND);
        assert_non_null(strstr(dq_error_text(), "lm_head"));
        INVALID(dq_model_copy_codes(quantized, 0, NULL, codes, scale, zero, g_idx));
        INVALID(dq_model_copy_codes(quantized, 0, "q_proj", NULL, scale, zero, g_idx));
        INVALID(dq_model_codes_shape(NULL, 0, "q_proj", NULL, NULL, NULL, NULL));
        assert_int_equal(codes[0], 0x5a);
        free(codes), free(scale), free(zero), free(w), free(mine), free(g_idx);
        dq_quantizer_free(q);
        dq_dataset_free(set);
        dq_model_free(quantized);
        dq_model_free(model);
        dq_config_free(config);
        dq_context_free(ctx);
    }
}

static void text_round_trip(void **state)
{
    (void)state;
    static const char text[] = "Once upon a time there was a small cat.";
    dq_context *ctx = new_context();
    dq_tokenizer *t = NULL;
    int32_t ids[64], few[2] = {-5, -5};
    char back[128];
    size_t needed = 0, bytes = 0;
    OK(dq_tokenizer_open(ctx, MODEL, &t));
    OK(dq_tokenizer_encode(t, text, strlen(text), 0, NULL, 0, &needed));
    assert_true(needed > 2 && needed < 64);
    OK(dq_tokenizer_encode(t, text, strlen(text), 0, few, 2, &needed));
    assert_true(few[0] == -5 && few[1] == -5); /* all or nothing */
    OK(dq_tokenizer_encode(t, text, strlen(text), 0, ids, 64, &needed));
    OK(dq_tokenizer_decode(t, ids, needed, 0, back, sizeof back, &bytes));
    assert_string_equal(back, text);
    assert_int_equal(bytes, strlen(text));
    OK(dq_tokenizer_decode(t, ids, needed, 0, NULL, 0, &bytes));
    INVALID(dq_tokenizer_encode(t, text, strlen(text), 64, ids, 64, &needed));
    ids[0] = 99999;
    INVALID(dq_tokenizer_decode(t, ids, 1, 0, back, sizeof back, &bytes));
    dq_tokenizer_free(t);
    dq_context_free(ctx);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test_teardown(null_arguments, no_leaks),
        cmocka_unit_test_teardown(struct_sizes, no_leaks),
        cmocka_unit_test_teardown(freed_in_any_order, no_leaks),
        cmocka_unit_test_teardown(contexts_do_not_mix, no_leaks),
        cmocka_unit_test_teardown(order_of_calls, no_leaks),
        cmocka_unit_test_teardown(bad_requests, no_leaks),
        cmocka_unit_test_teardown(cancelled, no_leaks),
        cmocka_unit_test_teardown(saved_equals_kept, no_leaks),
        cmocka_unit_test_teardown(codes_of_a_model, no_leaks),
        cmocka_unit_test_teardown(text_round_trip, no_leaks),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
