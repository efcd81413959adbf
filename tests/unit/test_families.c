/* families other than LLaMA: what their configurations may say, every job on them, and what fusing makes of layer norms.
 * SPDX-License-Identifier: Apache-2.0 */
#include <math.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>
#include <cmocka.h>

#include "base/rotation_set.h"
#include "base/status.h"
#include "dartquant.h"
#include "io/file.h"
#include "io/formats.h"
#include "model/internal.h"
#include "models.h"
#include "rotation/rotation.h"

static void ok(dq_status status)
{
    if (status != DQ_OK) print_message("%s\n", dq_error_text());
    assert_int_equal(status, DQ_OK);
}

/* ---- configurations ---- */

#define OPT                                                                                                            \
    "\"model_type\":\"opt\",\"hidden_size\":64,\"ffn_dim\":96,\"num_hidden_layers\":2,\"vocab_size\":9,"               \
    "\"num_attention_heads\":4,\"max_position_embeddings\":32"

static void configurations(void **state)
{
    (void)state;
    static const struct {
        const char *json, *word; /* NULL: it is accepted */
    } cases[] = {
        {"{" OPT "}", NULL},
        {"{" OPT ",\"word_embed_proj_dim\":64,\"do_layer_norm_before\":true}", NULL},
        {"{" OPT ",\"do_layer_norm_before\":false}", "OPT-350m"},
        {"{" OPT ",\"word_embed_proj_dim\":32}", "project_in"},
        {"{" OPT ",\"enable_bias\":false}", "enable_bias false"},
        {"{" OPT ",\"layer_norm_elementwise_affine\":false}", "layer_norm_elementwise_affine false"},
        {"{" OPT ",\"_remove_final_layer_norm\":true}", "_remove_final_layer_norm true"},
        {"{" OPT ",\"activation_function\":\"swoosh\"}", "swoosh"},
        {"{\"model_type\":\"opt\",\"hidden_size\":64,\"intermediate_size\":96}", "ffn_dim"},
    };
    fixture f;
    char dir[64], path[128];
    fixture_open(&f, "ref", 1);
    make_folder(dir, sizeof dir);
    snprintf(path, sizeof path, "%s/config.json", dir);
    for (size_t i = 0; i < sizeof cases / sizeof *cases; i++) {
        dq_arch a;
        ok(dq_file_write(&f.env, path, cases[i].json, strlen(cases[i].json)));
        dq_status status = dq_arch_from_hf_config(&f.env, path, &a);
        if (cases[i].word) {
            assert_int_not_equal(status, DQ_OK);
            if (!strstr(dq_error_text(), cases[i].word)) fail_msg("%s -> %s", cases[i].json, dq_error_text());
        } else {
            ok(status);
            assert_true(a.tied && a.activation == DQ_ACT_RELU && a.norm_eps == 1e-5);
            assert_true(dq_arch_linears(&a) == 6 && dq_arch_linear(&a, 4) == DQ_UP_PROJ && !dq_arch_is_gated(&a));
            assert_string_equal(dq_arch_role_name(&a, DQ_DOWN_PROJ), "fc2");
        }
        dq_error_reset();
    }
    remove_folder(dir);
    fixture_close(&f);
}

/* ---- tensors ---- */

/* A checkpoint of the base model alone: its names lack "model.", the tied head is not there. */
static void bare_names(void **state)
{
    (void)state;
    fixture f;
    expected e;
    dq_model *m;
    dq_sink *sink;
    dq_source *source;
    fixture_open(&f, "cpu", 2);
    read_expected(&f, "opt", &e);
    dq_model *base = open_tiny(&f, "opt");
    dq_source *from = dq_model_root_source(base);
    ok(dq_memory_sink(&f.env, &sink));
    for (int64_t t = 0; t < from->count; t++) {
        const dq_tensor_info *info = &from->tensors[t];
        static float values[200 * 64];
        if (strncmp(info->name, "model.", 6) != 0) continue;
        assert_true(dq_info_rows(info) * dq_info_cols(info) <= 200 * 64);
        ok(dq_source_read_rows(from, t, 0, dq_info_rows(info), values));
        ok(sink->ops->add(sink, info->name + 6, DQ_F32, info->ndim, info->shape, values,
                          (uint64_t)(dq_info_rows(info) * dq_info_cols(info)) * 4));
    }
    ok(sink->ops->finish(sink));
    ok(dq_memory_source(sink, &source));
    sink->ops->free(sink);
    ok(dq_model_from_source(f.dev, dq_model_arch(base), source, false, &m));
    assert_true(logits_difference(m, &e) < 1e-4);
    dq_model_release(m);
    dq_model_release(base);
    fixture_close(&f);
}

/* There is no position behind the last one that was learned. */
static void positions_end(void **state)
{
    (void)state;
    fixture f;
    static float logits[65 * 96];
    int32_t ids[65];
    fixture_open(&f, "cpu", 1);
    for (int i = 0; i < 65; i++) ids[i] = i;
    dq_model *m = open_tiny(&f, "opt");
    ok(dq_model_forward_logits(m, ids, 64, DQ_MATH_F32, logits));
    assert_int_equal(dq_model_forward_logits(m, ids, 65, DQ_MATH_F32, logits), DQ_E_INVALID);
    assert_non_null(strstr(dq_error_text(), "64 positions"));
    dq_error_reset();
    dq_model_release(m);
    fixture_close(&f);
}

/* ---- what fusing leaves ---- */

/* Everything that is added to the residual stream has no mean, and rotations are learnt from rows of length sqrt(n). */
static void stream_without_mean(void **state)
{
    (void)state;
    fixture f;
    dq_model *fused, *turned;
    dq_linear l;
    dq_tensor t;
    float w[64 * 96], b[64];
    fixture_open(&f, "cpu", 2);
    dq_model *m = open_tiny(&f, "opt");
    ok(dq_model_derive_fused(m, false, &fused));
    assert_false(fused->layer_norm);
    for (int i = 0; i < 2; i++) {
        dq_role role = i ? DQ_DOWN_PROJ : DQ_O_PROJ;
        ok(dq_model_read_linear(fused, 1, role, &l));
        int64_t cols = l.weight.view.cols;
        ok(dq_tensor_download(&l.weight, w));
        ok(dq_tensor_download(&l.bias, b));
        double mean = 0;
        for (int r = 0; r < 64; r++) mean += (double)b[r] / 64;
        assert_true(fabs(mean) < 1e-6);
        for (int64_t c = 0; c < cols; c++) {
            mean = 0;
            for (int r = 0; r < 64; r++) mean += (double)w[r * cols + c] / 64;
            assert_true(fabs(mean) < 1e-6);
        }
        dq_linear_free(&l);
    }
    for (int i = 0; i < 2; i++) {
        ok(dq_model_read_rows(fused, i ? DQ_POSITIONS : DQ_EMBED, 5, 60, &t));
        ok(dq_tensor_download(&t, w));
        dq_tensor_free(&t);
        for (int r = 0; r < 60; r++) {
            double mean = 0;
            for (int c = 0; c < 64; c++) mean += (double)w[r * 64 + c] / 64;
            assert_true(fabs(mean) < 1e-6);
        }
    }
    /* the bias behind the last norm has length 1 in any basis */
    dq_rotation_options o = {.use_r1 = true, .seed = 3};
    dq_rotation_set *set;
    ok(dq_rotation_set_make(f.dev, dq_model_arch(m), &o, &set));
    ok(dq_model_derive_rotated(fused, set, &turned));
    dq_rotation_set_free(set);
    ok(dq_model_read_norm_bias(turned, 0, DQ_FINAL_NORM, &t));
    ok(dq_tensor_download(&t, b));
    dq_tensor_free(&t);
    double length = 0;
    for (int c = 0; c < 64; c++) length += (double)b[c] * (double)b[c];
    assert_true(fabs(length - 1) < 1e-5);
    dq_model_release(turned);
    dq_model_release(fused);
    dq_model_release(m);
    fixture_close(&f);
}

/* ---- jobs, through the public header ---- */

enum { IDS = 1536 };

static dq_model *prepare(dq_context *ctx, dq_config *config, const char *name, bool rotate)
{
    dq_model *model = NULL, *fused = NULL, *turned = NULL;
    dq_rotation *r = NULL;
    ok(dq_model_open(ctx, tiny_path(name), &model));
    if (!rotate) return model;
    ok(dq_model_fuse_norms(model, config, &fused));
    ok(dq_rotation_new(fused, config, &r));
    ok(dq_model_rotate(fused, r, &turned));
    dq_rotation_free(r);
    dq_model_free(fused);
    dq_model_free(model);
    return turned;
}

static double nll_of(dq_model *model, const dq_config *config, dq_dataset *data)
{
    dq_evaluator *e = NULL;
    double nll = 0;
    ok(dq_evaluator_new(model, config, &e));
    ok(dq_evaluator_bind(e, data));
    ok(dq_evaluator_run(e, NULL, NULL, NULL));
    ok(dq_evaluator_get_float(e, "nll", &nll));
    dq_evaluator_free(e);
    return nll;
}

/* Quantizes; with `stop` through a checkpoint after the first layer. */
static dq_model *quantized(dq_model *model, const dq_config *config, dq_dataset *data, const char *stop)
{
    dq_quantizer *q = NULL;
    dq_model *out = NULL;
    int32_t done = 0, needs = 0;
    for (int run = stop ? 0 : 1; run < 2; run++) {
        ok(dq_quantizer_new(model, config, &q));
        ok(dq_quantizer_needs_data(q, &needs));
        if (needs) ok(dq_quantizer_bind(q, data));
        if (run == 0) {
            ok(dq_quantizer_checkpoint(q, stop));
            ok(dq_quantizer_step(q, NULL, NULL, NULL, &done));
            ok(dq_quantizer_checkpoint(q, stop));
            dq_quantizer_free(q);
        } else if (stop) {
            ok(dq_quantizer_restore(q, stop));
        }
    }
    ok(dq_quantizer_run(q, NULL, NULL, NULL));
    ok(dq_quantizer_take_model(q, &out));
    dq_quantizer_free(q);
    return out;
}

/* RTN, GPTQ and AWQ at 8 bits, rotated or not, stay close to the model, whose loss is far away for wrong biases, norms or
 * positions; resumed jobs and saved models give the same bits. */
static void jobs(void **state)
{
    (void)state;
    static const char *const names[] = {"qwen2", "qwen3", "opt"};
    static const char *const schemes[][4] = {{"w_rtn=true"},
                                             {"w_rtn=false"},
                                             {"w_rtn=true", "w_awq=true"},
                                             {"w_rtn=false", "w_awq=true", "w_clip=true"},
                                             {"w_rtn=false", "a_bits=8", "k_bits=8", "v_bits=8"}};
    int32_t ids[IDS];
    char dir[64], folder[128];
    unsigned seed = 1;
    for (int i = 0; i < IDS; i++) ids[i] = (int32_t)((seed = seed * 1103515245u + 12345u) >> 16) % 96;
    for (int n = 0; n < 2; n++)
        for (int rotate = 0; rotate < 2; rotate++)
            for (size_t s = 0; s < sizeof schemes / sizeof *schemes; s++) {
                dq_config *config = NULL;
                dq_context *ctx = NULL;
                dq_dataset *data = NULL;
                ok(dq_config_new(&config));
                ok(dq_config_set(config, "seqlen", "32"));
                ok(dq_config_set(config, "nsamples", "8"));
                ok(dq_config_set(config, "w_bits", "8"));
                ok(dq_config_set(config, "w_groupsize", "32"));
                for (int i = 0; i < 4 && schemes[s][i]; i++) {
                    char copy[32];
                    snprintf(copy, sizeof copy, "%s", schemes[s][i]);
                    char *value = strchr(copy, '=');
                    *value = '\0';
                    ok(dq_config_set(config, copy, value + 1));
                }
                ok(dq_context_new(config, NULL, &ctx));
                ok(dq_dataset_from_ids(ctx, ids, IDS, "random", &data));
                dq_model *model = prepare(ctx, config, names[n], rotate),
                         *plain = prepare(ctx, config, names[n], false);
                double wanted = nll_of(plain, config, data);
                dq_model *small = quantized(model, config, data, NULL), *again = NULL;
                double nll = nll_of(small, config, data);
                print_message("%-6s %s scheme %zu: nll %.5f, of the model %.5f\n", names[n],
                              rotate ? "rotated" : "plain  ", s, nll, wanted);
                assert_true(fabs(nll - wanted) < 0.002 * wanted);
                assert_true(nll != wanted);
                make_folder(dir, sizeof dir);
                snprintf(folder, sizeof folder, "%s/stop", dir);
                again = quantized(model, config, data, folder);
                assert_true(nll_of(again, config, data) == nll);
                dq_model_free(again);
                remove_folder(folder);
                snprintf(folder, sizeof folder, "%s/saved", dir);
                ok(dq_model_save(small, folder, config, NULL, NULL, NULL));
                ok(dq_model_open(ctx, folder, &again));
                assert_true(nll_of(again, config, data) == nll);
                dq_model_free(again);
                remove_folder(folder);
                rmdir(dir);
                dq_model_free(small);
                dq_model_free(plain);
                dq_model_free(model);
                dq_dataset_free(data);
                dq_context_free(ctx);
                dq_config_free(config);
            }
}

/* Rotations are learnt from the inputs of q_proj and fc1. */
static void learnt(void **state)
{
    (void)state;
    static const char *const names[] = {"qwen2", "qwen3", "opt"};
    int32_t ids[IDS];
    for (int i = 0; i < IDS; i++) ids[i] = i * 31 % 96;
    for (int n = 0; n < 2; n++) {
        dq_config *config = NULL;
        dq_context *ctx = NULL;
        dq_dataset *data = NULL;
        dq_model *model = NULL, *fused = NULL, *turned = NULL;
        dq_calibrator *c = NULL;
        dq_rotation *r = NULL;
        ok(dq_config_new(&config));
        ok(dq_config_set(config, "seqlen", "32"));
        ok(dq_config_set(config, "nsamples", "8"));
        ok(dq_context_new(config, NULL, &ctx));
        ok(dq_dataset_from_ids(ctx, ids, IDS, "ids", &data));
        ok(dq_model_open(ctx, tiny_path(names[n]), &model));
        ok(dq_model_fuse_norms(model, config, &fused));
        ok(dq_calibrator_new(fused, config, &c));
        ok(dq_calibrator_bind(c, data));
        ok(dq_calibrator_run(c, NULL, NULL, NULL));
        ok(dq_calibrator_take_rotation(c, &r));
        ok(dq_model_rotate(fused, r, &turned));
        double wanted = nll_of(model, config, data), nll = nll_of(turned, config, data);
        assert_true(fabs(nll - wanted) < 1e-4 * wanted);
        dq_model_free(turned);
        dq_rotation_free(r);
        dq_calibrator_free(c);
        dq_model_free(fused);
        dq_model_free(model);
        dq_dataset_free(data);
        dq_context_free(ctx);
        dq_config_free(config);
    }
}

int main(void)
{
    const struct CMUnitTest tests[] = {cmocka_unit_test(configurations), cmocka_unit_test(bare_names),
                                       cmocka_unit_test(positions_end),  cmocka_unit_test(stream_without_mean),
                                       cmocka_unit_test(jobs),           cmocka_unit_test(learnt)};
    return cmocka_run_group_tests(tests, NULL, NULL);
}
