/* model: tiny models of every layout against transformers, and what is refused. SPDX-License-Identifier: Apache-2.0 */
#include <math.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <cmocka.h>

#include "base/status.h"
#include "io/file.h"
#include "io/formats.h"
#include "io/json.h"
#include "model/internal.h"
#include "models.h"

static const char *const names[] = {"mha", "gqa", "tied", "bias", "window", "qwen2", "qwen3", "opt"};
enum { MODELS = sizeof names / sizeof *names };

static void check_logits(const char *device)
{
    fixture f;
    fixture_open(&f, device, 2);
    for (int i = 0; i < MODELS; i++) {
        expected e;
        read_expected(&f, names[i], &e);
        dq_model *m = open_tiny(&f, names[i]);
        double d = logits_difference(m, &e);
        print_message("%s %s: %.2g\n", device, names[i], d);
        assert_true(d < 1e-4);
        dq_model_release(m);
    }
    fixture_close(&f);
}

static void logits_on_ref(void **state)
{
    (void)state;
    check_logits("ref");
}

static void logits_on_cpu(void **state)
{
    (void)state;
    check_logits("cpu");
}

/* The same weights from GGUF: q and k (and their biases) are stored in another order. */
static void logits_of_gguf(void **state)
{
    (void)state;
    static const char *const files[] = {"tied", "bias", "qwen2", "qwen3"};
    fixture f;
    fixture_open(&f, "cpu", 2);
    for (int i = 0; i < 3; i++) {
        char name[64];
        expected e;
        read_expected(&f, files[i], &e);
        snprintf(name, sizeof name, "%s.gguf", files[i]);
        dq_model *m = open_tiny(&f, name);
        if (i == 1) { /* GGUF has no place for the activation: SiLU is meant */
            assert_int_equal(dq_model_arch(m)->rope_scaling, DQ_ROPE_TABLE);
            dq_model *hf = open_tiny(&f, files[i]);
            assert_int_equal(dq_model_arch(hf)->activation, DQ_ACT_GELU);
            dq_linear a, b;
            float x[48 * 48], y[48 * 48];
            for (int role = 0; role <= DQ_K_PROJ; role++) {
                assert_int_equal(dq_model_read_linear(m, 1, (dq_role)role, &a), DQ_OK);
                assert_int_equal(dq_model_read_linear(hf, 1, (dq_role)role, &b), DQ_OK);
                assert_int_equal(dq_tensor_download(&a.weight, x), DQ_OK);
                assert_int_equal(dq_tensor_download(&b.weight, y), DQ_OK);
                assert_memory_equal(x, y, (size_t)(a.weight.view.rows * a.weight.view.cols) * 4);
                assert_int_equal(dq_tensor_download(&a.bias, x), DQ_OK);
                assert_int_equal(dq_tensor_download(&b.bias, y), DQ_OK);
                assert_memory_equal(x, y, (size_t)a.bias.view.cols * 4);
                dq_tensor_free(&a.weight);
                dq_tensor_free(&a.bias);
                dq_tensor_free(&b.weight);
                dq_tensor_free(&b.bias);
            }
            dq_model_release(hf);
        } else {
            assert_int_equal(dq_model_arch(m)->tied, i == 0);
            assert_int_equal(dq_model_arch(m)->bos_id, 1);
            assert_true(logits_difference(m, &e) < 1e-4);
        }
        dq_model_release(m);
    }
    fixture_close(&f);
}

static void architectures(void **state)
{
    (void)state;
    fixture f;
    fixture_open(&f, "ref", 1);
    dq_arch a;
    assert_int_equal(dq_arch_from_hf_config(&f.env, tiny_path("gqa/config.json"), &a), DQ_OK);
    assert_int_equal(a.rope_scaling, DQ_ROPE_LLAMA3);
    assert_true(a.rope_theta == 500.0 && a.rope_factor == 4.0 && a.rope_original_positions == 16.0);
    assert_int_equal(a.heads, 8);
    assert_int_equal(a.kv_heads, 2);
    assert_int_equal(a.head_dim, 8);
    assert_int_equal(dq_arch_from_hf_config(&f.env, tiny_path("window/config.json"), &a), DQ_OK);
    assert_int_equal(a.window, 7);
    assert_int_equal(dq_arch_from_hf_config(&f.env, tiny_path("bias/config.json"), &a), DQ_OK);
    assert_true(a.attention_bias && a.mlp_bias && a.activation == DQ_ACT_GELU);
    /* the window that a Mistral configuration does not mention */
    static const char text[] = "{\"model_type\":\"mistral\",\"hidden_size\":64,\"intermediate_size\":96,"
                               "\"num_hidden_layers\":2,\"vocab_size\":9,\"num_attention_heads\":8}";
    static const char none[] = "{\"sliding_window\":null,\"model_type\":\"mistral\",\"hidden_size\":64,"
                               "\"intermediate_size\":96,\"num_hidden_layers\":2,\"vocab_size\":9,"
                               "\"num_attention_heads\":8}";
    char dir[64], path[128];
    make_folder(dir, sizeof dir);
    snprintf(path, sizeof path, "%s/config.json", dir);
    assert_int_equal(dq_file_write(&f.env, path, text, strlen(text)), DQ_OK);
    assert_int_equal(dq_arch_from_hf_config(&f.env, path, &a), DQ_OK);
    assert_int_equal(a.window, 4096);
    assert_int_equal(dq_file_write(&f.env, path, none, strlen(none)), DQ_OK);
    assert_int_equal(dq_arch_from_hf_config(&f.env, path, &a), DQ_OK);
    assert_int_equal(a.window, 0);
    /* Qwen2 says layer by layer who has a window */
    static const char qwen2[] =
        "{\"model_type\":\"qwen2\",\"hidden_size\":64,\"intermediate_size\":96,"
        "\"num_hidden_layers\":3,\"vocab_size\":9,\"num_attention_heads\":8,\"sliding_window\":5,"
        "\"use_sliding_window\":%s,\"max_window_layers\":%d}";
    for (int i = 0; i < 4; i++) {
        char config[400];
        snprintf(config, sizeof config, qwen2, i == 0 ? "false" : "true", i == 1 ? 0 : i == 2 ? 3 : i == 3 ? 1 : 0);
        assert_int_equal(dq_file_write(&f.env, path, config, strlen(config)), DQ_OK);
        assert_int_equal(dq_arch_from_hf_config(&f.env, path, &a), i == 3 ? DQ_E_UNSUPPORTED : DQ_OK);
        if (i == 3) assert_non_null(strstr(dq_error_text(), "2 of 3 layers"));
        assert_int_equal(a.window, i == 1 || i == 3 ? a.window : 0);
        if (i == 1) assert_int_equal(a.window, 5);
        assert_true(dq_arch_has_bias(&a, DQ_V_PROJ) && !dq_arch_has_bias(&a, DQ_O_PROJ) &&
                    !dq_arch_has_bias(&a, DQ_UP_PROJ));
        dq_error_reset();
    }
    remove_folder(dir);
    fixture_close(&f);
}

/* Configurations that must be refused, with a word the message must contain. */
static void bad_configurations(void **state)
{
    (void)state;
    static const struct {
        const char *json, *word;
    } cases[] = {
        {"{}", "model_type"},
        {"{\"model_type\": \"gpt2\"}", "gpt2"},
        {"{\"model_type\": \"llama\"}", "hidden_size"},
        {"[1]", "object"},
#define SIZES                                                                                                          \
    "\"model_type\":\"llama\",\"hidden_size\":64,\"intermediate_size\":96,\"num_hidden_layers\":2,\"vocab_size\":9,"
        {"{" SIZES "\"num_attention_heads\":7}", "heads"},
        {"{" SIZES "\"num_attention_heads\":8,\"num_key_value_heads\":3}", "multiple"},
        {"{" SIZES "\"num_attention_heads\":8,\"head_dim\":7}", "odd"},
        {"{" SIZES "\"num_attention_heads\":8,\"hidden_act\":\"swoosh\"}", "swoosh"},
        {"{" SIZES "\"num_attention_heads\":8,\"rope_theta\":-1}", "theta"},
        {"{" SIZES "\"num_attention_heads\":8,\"rope_scaling\":{\"rope_type\":\"yarn\",\"factor\":2}}", "yarn"},
        {"{" SIZES "\"num_attention_heads\":8,\"rope_scaling\":{\"type\":\"linear\"}}", "factor"},
        {"{" SIZES "\"num_attention_heads\":8,\"rms_norm_eps\":\"x\"}", "rms_norm_eps"},
    };
    fixture f;
    char dir[64], path[128];
    fixture_open(&f, "ref", 1);
    make_folder(dir, sizeof dir);
    snprintf(path, sizeof path, "%s/config.json", dir);
    for (size_t i = 0; i < sizeof cases / sizeof *cases; i++) {
        dq_arch a;
        assert_int_equal(dq_file_write(&f.env, path, cases[i].json, strlen(cases[i].json)), DQ_OK);
        assert_int_not_equal(dq_arch_from_hf_config(&f.env, path, &a), DQ_OK);
        if (!strstr(dq_error_text(), cases[i].word)) print_message("%s -> %s\n", cases[i].json, dq_error_text());
        assert_non_null(strstr(dq_error_text(), cases[i].word));
        assert_string_equal(dq_error_file(), path);
        dq_error_reset();
    }
    remove_folder(dir);
    fixture_close(&f);
}

static bool leave_out(const char *name, int64_t rows, int64_t cols, float *values, void *arg)
{
    (void)rows, (void)cols, (void)values;
    return strcmp(name, arg) != 0;
}

static bool spoil(const char *name, int64_t rows, int64_t cols, float *values, void *arg)
{
    if (strcmp(name, arg) == 0) values[rows / 2 * cols + 5] = NAN;
    return true;
}

static void bad_tensors(void **state)
{
    (void)state;
    static char missing[] = "model.layers.1.mlp.up_proj.weight";
    static char spoilt[] = "model.layers.1.self_attn.o_proj.weight";
    fixture f;
    expected e;
    dq_model *m;
    float logits[64 * 128];
    fixture_open(&f, "cpu", 1);
    read_expected(&f, "mha", &e);
    assert_int_equal(changed_model(&f, "mha", leave_out, missing, &m), DQ_E_MISMATCH);
    assert_string_equal(dq_error_tensor(), missing);
    dq_error_reset();

    assert_int_equal(changed_model(&f, "mha", spoil, spoilt, &m), DQ_OK);
    assert_int_equal(dq_model_forward_logits(m, e.ids, e.tokens, DQ_MATH_F32, logits), DQ_E_NONFINITE);
    assert_string_equal(dq_error_tensor(), spoilt);
    assert_non_null(strstr(dq_error_text(), "row 24, column 5"));
    assert_int_equal(dq_error_byte(), (24 * 48 + 5) * 4); /* of the tensor in memory */
    dq_error_reset();
    dq_model_release(m);

    /* weights of another model under this configuration */
    dq_model *other = open_tiny(&f, "gqa");
    dq_model *mha = open_tiny(&f, "mha");
    dq_source *copy = copy_source(&f, dq_model_root_source(other), NULL, NULL);
    assert_int_equal(dq_model_from_source(f.dev, dq_model_arch(mha), copy, false, &m), DQ_E_MISMATCH);
    assert_non_null(strstr(dq_error_text(), "96 x 64"));
    dq_error_reset();
    dq_model_release(other);

    int32_t bad = 96;
    assert_int_equal(dq_model_forward_logits(mha, &bad, 1, DQ_MATH_F32, logits), DQ_E_MISMATCH);
    dq_error_reset();
    bad = -1;
    assert_int_equal(dq_model_forward_logits(mha, &bad, 1, DQ_MATH_F32, logits), DQ_E_MISMATCH);
    dq_error_reset();
    dq_model_release(mha);

    assert_int_equal(dq_model_open_path(f.dev, "tests/data/models/none", &m), DQ_E_IO);
    dq_error_reset();
    assert_int_equal(dq_model_open_path(f.dev, "tests/data", &m), DQ_E_NOTFOUND);
    dq_error_reset();
    assert_int_equal(dq_model_open_path(f.dev, tiny_path("mha/model.safetensors"), &m), DQ_E_UNSUPPORTED);
    dq_error_reset();
    fixture_close(&f);
}

static bool nudge(const char *name, int64_t rows, int64_t cols, float *values, void *arg)
{
    (void)rows, (void)cols;
    if (strcmp(name, arg) == 0) values[3] += 1.0f;
    return true;
}

static const char *fingerprint_of(dq_model *m)
{
    const char *text = "";
    assert_int_equal(dq_model_fingerprint(m, &text), DQ_OK);
    return text;
}

static void fingerprints(void **state)
{
    (void)state;
    fixture f;
    fixture_open(&f, "ref", 1);
    char first[17];
    dq_model *m = open_tiny(&f, "mha");
    snprintf(first, sizeof first, "%s", fingerprint_of(m));
    assert_int_equal(strlen(first), 16);
    dq_model_release(m);
    m = open_tiny(&f, "mha");
    assert_string_equal(fingerprint_of(m), first);
    dq_model_release(m);
    assert_int_equal(changed_model(&f, "mha", NULL, NULL, &m), DQ_OK);
    assert_string_equal(fingerprint_of(m), first); /* content, not container */
    dq_model_release(m);
    static char norm[] = "model.layers.0.input_layernorm.weight";
    assert_int_equal(changed_model(&f, "mha", nudge, norm, &m), DQ_OK);
    assert_string_not_equal(fingerprint_of(m), first);
    dq_model_release(m);
    fixture_close(&f);
}

static void description(void **state)
{
    (void)state;
    fixture f;
    char *text;
    json_t *o;
    int64_t n;
    const char *s;
    fixture_open(&f, "ref", 1);
    dq_model *m = open_tiny(&f, "tied");
    assert_int_equal(dq_model_describe_json(m, &text), DQ_OK);
    assert_int_equal(dq_json_parse(text, strlen(text), NULL, &o), DQ_OK);
    assert_int_equal(dq_json_int(o, "head_dim", 1, 99, true, NULL, &n), DQ_OK);
    assert_int_equal(n, 16);
    /* embedding, final norm, two layers of (q, k, v, o, gate, up, down, two norms) */
    int64_t layer = 48 * 64 * 2 + 48 * 32 * 2 + 48 * 64 * 3 + 2 * 48;
    assert_int_equal(dq_json_int(o, "parameters", 1, 1 << 30, true, NULL, &n), DQ_OK);
    assert_int_equal(n, 96 * 48 + 48 + 2 * layer);
    assert_int_equal(dq_json_int(o, "bytes", 1, 1 << 30, true, NULL, &n), DQ_OK);
    assert_int_equal(n, 2 * (96 * 48 + 48 + 2 * layer));
    assert_int_equal(dq_json_string(o, "dtype", true, NULL, &s), DQ_OK);
    assert_string_equal(s, "F16");
    assert_true(dq_model_bits_per_weight(m) == 16.0);
    json_decref(o);
    dq_free(text);
    dq_model_release(m);
    fixture_close(&f);
}

/* The model of llama2.c with its published greedy text, where the shared data is. */
static void stories(void **state)
{
    (void)state;
    fixture f;
    dq_model *m;
    json_t *o;
    static float logits[256 * 512];
    int32_t ids[256];
    if (!open_stories(&f, &m, &o)) return;
    const json_t *greedy = json_object_get(json_object_get(o, "greedy"), "ids");
    size_t n = json_array_size(greedy) < 200 ? json_array_size(greedy) : 200;
    assert_true(n > 50);
    for (size_t i = 0; i < n; i++) ids[i] = (int32_t)json_integer_value(json_array_get(greedy, i));
    assert_int_equal(dq_model_forward_logits(m, ids, (int64_t)n, DQ_MATH_F32, logits), DQ_OK);
    for (size_t i = 0; i + 1 < n; i++) {
        int best = 0;
        for (int v = 1; v < 512; v++)
            if (logits[i * 512 + (size_t)v] > logits[i * 512 + (size_t)best]) best = v;
        assert_int_equal(best, ids[i + 1]);
    }
    json_decref(o);
    dq_model_release(m);
    fixture_close(&f);
}

/* Hidden states do not depend on how many rows fit in memory at a time. */
static void embedding_in_chunks(void **state)
{
    (void)state;
    fixture f;
    int32_t ids[200];
    static float whole[200 * 48], parts[200 * 48], row[48];
    dq_tensor h, r;
    fixture_open(&f, "cpu", 2);
    for (int i = 0; i < 200; i++) ids[i] = i * i * 31 % 96;
    dq_model *base = open_tiny(&f, "mha"), *m;
    assert_int_equal(dq_model_derive_fused(base, true, &m), DQ_OK);
    assert_int_equal(dq_tensor_alloc(f.dev, DQ_F32, 200, 48, &h), DQ_OK);
    assert_int_equal(dq_model_embed(m, ids, 200, 200, &h), DQ_OK);
    assert_int_equal(dq_tensor_download(&h, whole), DQ_OK);
    for (int64_t limit = 1; limit < 20; limit += 6) {
        assert_int_equal(dq_op_fill(0.0, &h), DQ_OK);
        assert_int_equal(dq_embed_limited(m, ids, 200, limit, &h), DQ_OK);
        assert_int_equal(dq_tensor_download(&h, parts), DQ_OK);
        assert_memory_equal(whole, parts, sizeof whole);
    }
    assert_int_equal(dq_model_read_rows(m, DQ_EMBED, ids[7], 1, &r), DQ_OK);
    assert_int_equal(dq_tensor_download(&r, row), DQ_OK);
    assert_memory_equal(row, whole + 7 * 48, sizeof row);
    dq_tensor_free(&r);
    dq_tensor_free(&h);
    dq_model_release(m);
    dq_model_release(base);
    fixture_close(&f);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(logits_on_ref),       cmocka_unit_test(logits_on_cpu),      cmocka_unit_test(logits_of_gguf),
        cmocka_unit_test(architectures),       cmocka_unit_test(bad_configurations), cmocka_unit_test(bad_tensors),
        cmocka_unit_test(fingerprints),        cmocka_unit_test(description),        cmocka_unit_test(stories),
        cmocka_unit_test(embedding_in_chunks),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
