/* Distances of weights from those they came from: against sums made here from the files, where nothing differs, where
 * norms are fused, where channels were scaled (AWQ), and what cannot be compared. SPDX-License-Identifier: Apache-2.0 */
#include <math.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <cmocka.h>

#include "host_model.h"
#include "scratch.h"

#define MODEL "tests/data/tiny"
static const char *const names[] = {"q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"};

static dq_model *open_model(dq_context *ctx)
{
    dq_model *model = NULL;
    OK(dq_model_open(ctx, MODEL, &model));
    return model;
}

static dq_model *quantize(dq_context *ctx, dq_model *model, const char *settings)
{
    dq_config *config = host_config(settings);
    dq_dataset *set = host_ids(ctx, 400);
    dq_quantizer *job = NULL;
    dq_model *out = NULL;
    OK(dq_quantizer_new(model, config, &job));
    OK(dq_quantizer_bind(job, set));
    OK(dq_quantizer_run(job, NULL, NULL, NULL));
    OK(dq_quantizer_take_model(job, &out));
    dq_quantizer_free(job);
    dq_dataset_free(set);
    dq_config_free(config);
    return out;
}

static double error_of(dq_model *model, dq_model *reference, int64_t layer, int linear, int32_t *rescaled)
{
    double error = -1;
    OK(dq_model_weight_error(model, reference, layer, names[linear], &error, rescaled));
    return error;
}

/* The same from codes and the file. */
static double error_by_hand(dq_context *ctx, dq_model *model, int64_t layer, int linear)
{
    int64_t rows, cols, groups, index;
    int32_t bits;
    char name[96];
    dq_tensors *file = NULL;
    OK(dq_model_codes_shape(model, layer, names[linear], &rows, &cols, &groups, &bits));
    uint8_t *codes = malloc((size_t)(rows * cols));
    float *scale = malloc((size_t)(rows * groups) * 4), *zero = malloc((size_t)(rows * groups) * 4);
    float *r = malloc((size_t)(rows * cols) * 4);
    int32_t *g_idx = malloc((size_t)cols * 4);
    OK(dq_model_copy_codes(model, layer, names[linear], codes, scale, zero, g_idx));
    snprintf(name, sizeof name, "model.layers.%d.%s.%s.weight", (int)layer, linear < 4 ? "self_attn" : "mlp",
             names[linear]);
    OK(dq_tensors_open(ctx, MODEL, &file));
    OK(dq_tensors_find(file, name, &index));
    OK(dq_tensors_read_f32(file, index, 0, rows, r, (size_t)(rows * cols)));
    double difference = 0, size = 0;
    for (int64_t n = 0; n < rows; n++)
        for (int64_t k = 0; k < cols; k++) {
            int64_t g = n * groups + g_idx[k];
            double w = (double)scale[g] * (codes[n * cols + k] - zero[g]), d = w - r[n * cols + k];
            difference += d * d;
            size += (double)r[n * cols + k] * r[n * cols + k];
        }
    dq_tensors_free(file);
    free(codes), free(scale), free(zero), free(r), free(g_idx);
    return sqrt(difference / size);
}

static void as_by_hand(void **state)
{
    (void)state;
    static const char *const schemes[] = {"w_bits=4 w_rtn=true", "w_bits=2 w_rtn=true",
                                          "w_bits=3 w_groupsize=16 w_asym=true nsamples=2 seqlen=32 act_order=true"};
    for (int i = 0; i < 3; i++) {
        dq_context *ctx = host_context(2);
        dq_model *model = open_model(ctx), *small = quantize(ctx, model, schemes[i]);
        for (int linear = 0; linear < 7; linear++) {
            int32_t rescaled = 9;
            double error = error_of(small, model, 2, linear, &rescaled), wanted = error_by_hand(ctx, small, 2, linear);
            assert_float_equal(error, wanted, 1e-6 * wanted);
            assert_true(error > 0.01 && error < 1 && rescaled == 0);
        }
        dq_model_free(small);
        dq_model_free(model);
        dq_context_free(ctx);
    }
}

static void nothing_differs(void **state)
{
    (void)state;
    dq_context *ctx = host_context(1);
    dq_model *model = open_model(ctx), *again = open_model(ctx), *fused = NULL;
    int32_t rescaled = 9;
    OK(dq_model_fuse_norms(model, NULL, &fused));
    for (int linear = 0; linear < 7; linear++) {
        assert_true(error_of(again, model, 3, linear, &rescaled) == 0 && rescaled == 0);
        assert_true(error_of(fused, model, 3, linear, &rescaled) < 1e-7 && rescaled == 0);
        assert_true(error_of(model, fused, 3, linear, &rescaled) < 1e-7 && rescaled == 0);
    }
    dq_model_free(fused);
    dq_model_free(again);
    dq_model_free(model);
    dq_context_free(ctx);
}

/* AWQ at 8 bits: what its factors moved is undone, and what is left is rounding. */
static void scaled_channels(void **state)
{
    (void)state;
    dq_context *ctx = host_context(2);
    dq_model *model = open_model(ctx);
    dq_model *plain = quantize(ctx, model, "w_bits=8 w_groupsize=32 w_asym=true w_rtn=true");
    dq_model *awq =
        quantize(ctx, model, "w_bits=8 w_groupsize=32 w_asym=true w_rtn=true w_awq=true nsamples=4 seqlen=64");
    int found = 0;
    for (int64_t layer = 0; layer < 4; layer++)
        for (int linear = 0; linear < 7; linear++) {
            int32_t rescaled = 0, none = 9;
            double error = error_of(awq, model, layer, linear, &rescaled);
            double rounding = error_of(plain, model, layer, linear, &none);
            assert_true(none == 0 && error < 3 * rounding && error > rounding / 3);
            assert_true(!rescaled || linear == 2 || linear == 3 || linear == 5 || linear == 6);
            found += rescaled;
        }
    assert_true(found >= 4);
    dq_model_free(awq);
    dq_model_free(plain);
    dq_model_free(model);
    dq_context_free(ctx);
}

static void what_cannot_be_compared(void **state)
{
    (void)state;
    dq_context *ctx = host_context(1), *other = host_context(1);
    dq_config *r3 = host_config("use_r1=false use_r2=none use_r3=true use_r4=false"), *all = host_config("seed=1");
    dq_model *model = open_model(ctx), *elsewhere = open_model(other), *fused = NULL, *turned = NULL, *again = NULL,
             *online = NULL, *larger = NULL;
    dq_rotation *r = NULL, *only_r3 = NULL;
    double error = 7;
    int32_t rescaled = 7;
    OK(dq_model_fuse_norms(model, NULL, &fused));
    OK(dq_rotation_new(fused, all, &r));
    OK(dq_rotation_new(fused, r3, &only_r3));
    OK(dq_model_rotate(fused, r, &turned));
    OK(dq_model_rotate(fused, r, &again));
    OK(dq_model_rotate(fused, only_r3, &online));
    OK(dq_model_open(ctx, "tests/data/models/gqa", &larger));
    assert_int_equal(dq_model_weight_error(turned, model, 0, "q_proj", &error, &rescaled), DQ_E_STATE);
    assert_non_null(strstr(dq_error_text(), "rotated"));
    assert_int_equal(dq_model_weight_error(model, turned, 0, "q_proj", &error, &rescaled), DQ_E_STATE);
    assert_int_equal(dq_model_weight_error(model, larger, 0, "q_proj", &error, &rescaled), DQ_E_MISMATCH);
    assert_int_equal(dq_model_weight_error(model, elsewhere, 0, "q_proj", &error, &rescaled), DQ_E_INVALID);
    assert_int_equal(dq_model_weight_error(model, fused, 4, "q_proj", &error, &rescaled), DQ_E_NOTFOUND);
    assert_int_equal(dq_model_weight_error(model, fused, 0, "lm_head", &error, &rescaled), DQ_E_NOTFOUND);
    assert_int_equal(dq_model_weight_error(model, fused, 0, "q_proj", NULL, &rescaled), DQ_E_INVALID);
    assert_int_equal(dq_model_weight_error(model, NULL, 0, "q_proj", &error, &rescaled), DQ_E_INVALID);
    assert_true(error == 7 && rescaled == 7);
    OK(dq_model_weight_error(turned, again, 0, "down_proj", &error, &rescaled)); /* rotated alike */
    assert_true(error == 0);
    OK(dq_model_weight_error(online, model, 0, "q_proj", &error, &rescaled)); /* R3 leaves weights alone */
    assert_true(error < 1e-7);
    dq_model *const models[] = {larger, online, again, turned, fused, model, elsewhere};
    for (int i = 0; i < 7; i++) dq_model_free(models[i]);
    dq_rotation_free(r);
    dq_rotation_free(only_r3);
    dq_config_free(r3);
    dq_config_free(all);
    dq_context_free(ctx);
    dq_context_free(other);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test_teardown(as_by_hand, host_no_leaks),
        cmocka_unit_test_teardown(nothing_differs, host_no_leaks),
        cmocka_unit_test_teardown(scaled_channels, host_no_leaks),
        cmocka_unit_test_teardown(what_cannot_be_compared, host_no_leaks),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
