/* The public border: models kept and saved, codes copied out of them, text to ids and back. SPDX-License-Identifier: Apache-2.0 */
#include <setjmp.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>
#include <cmocka.h>

#include "host.h"

#define INVALID(call) assert_int_equal((call), DQ_E_INVALID)

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
    dq_context *ctx = host_context(2);
    dq_dataset *set = host_ids(ctx, 300);
    dq_model *model = host_open_tiny(ctx);
    for (size_t i = 0; i < sizeof schemes / sizeof *schemes; i++) {
        char dir[] = "/tmp/dartquant-test-XXXXXX";
        assert_non_null(mkdtemp(dir));
        dq_config *config = host_config(schemes[i]);
        double ppl[3];
        for (int to_folder = 0; to_folder < 2; to_folder++) {
            dq_quantizer *q = NULL;
            dq_model *out = NULL;
            if (to_folder) OK(dq_config_set(config, "save_qmodel_path", dir));
            OK(dq_quantizer_new(model, config, &q));
            OK(dq_quantizer_bind(q, set));
            OK(dq_quantizer_run(q, NULL, NULL, NULL));
            OK(dq_quantizer_take_model(q, &out));
            ppl[to_folder] = host_perplexity(out, config, set);
            dq_quantizer_free(q);
            dq_model_free(out);
        }
        dq_model *saved = NULL;
        OK(dq_model_open(ctx, dir, &saved));
        ppl[2] = host_perplexity(saved, config, set);
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
        dq_context *ctx = host_context(2);
        dq_model *model = host_open_tiny(ctx), *quantized = NULL;
        dq_config *config = host_config(schemes[i]);
        dq_dataset *set = host_ids(ctx, 200);
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
            OK(dq_tensors_open(ctx, HOST_TINY, &tensors));
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
    dq_context *ctx = host_context(2);
    dq_tokenizer *t = NULL;
    int32_t ids[64], few[2] = {-5, -5};
    char back[128];
    size_t needed = 0, bytes = 0;
    OK(dq_tokenizer_open(ctx, HOST_TINY, &t));
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
        cmocka_unit_test_teardown(saved_equals_kept, host_no_leaks),
        cmocka_unit_test_teardown(codes_of_a_model, host_no_leaks),
        cmocka_unit_test_teardown(text_round_trip, host_no_leaks),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
