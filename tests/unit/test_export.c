/* export: conversions between the formats of other tools keep every code, what a format cannot hold is refused before a
 * file exists, and a failure leaves no folder. SPDX-License-Identifier: Apache-2.0 */
#include <math.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>
#include <cmocka.h>

#include "base/rotation_set.h"
#include "base/status.h"
#include "export/export.h"
#include "io/file.h"
#include "model/internal.h"
#include "models.h"
#include "text/tokenizer.h"
#include "rotation/rotation.h"

static void ok(dq_status status)
{
    if (status != DQ_OK) print_message("%s (%s)\n", dq_error_text(), dq_error_tensor());
    assert_int_equal(status, DQ_OK);
}

static dq_status export_to(dq_model *m, const char *format, const char *dir)
{
    dq_export_spec spec;
    ok(dq_export_parse(format, &spec));
    spec.part_size = 1 << 30;
    return dq_export_model(m, &spec, dir, NULL);
}

/* Writes `m` into a fresh folder and opens that; `dir` receives its name. */
static dq_model *through(fixture *f, dq_model *m, const char *format, char *dir)
{
    char path[300];
    dq_model *back;
    make_folder(dir, 256);
    ok(export_to(m, format, dir));
    snprintf(path, sizeof path, strncmp(format, "gguf", 4) == 0 ? "%s/model.gguf" : "%s", dir);
    ok(dq_model_open_path(f->dev, path, &back));
    return back;
}

static dq_model *foreign(fixture *f, const char *name, expected *e)
{
    char path[128], expected_name[64];
    dq_model *m;
    snprintf(path, sizeof path, "tests/data/formats/%s", name);
    snprintf(expected_name, sizeof expected_name, "../formats/%s", name);
    read_expected(f, expected_name, e);
    ok(dq_model_open_path(f->dev, path, &m));
    return m;
}

static float reference[64 * 128], got[64 * 128];

/* The logits after a chain of conversions are those before it, bit for bit: codes, scales and zero points are. */
static void chain(const char *name, const char *const *formats)
{
    fixture f;
    expected e;
    char dir[256];
    fixture_open(&f, "cpu", 2);
    dq_model *m = foreign(&f, name, &e);
    logits_of(m, &e, reference);
    for (; *formats; formats++) {
        dq_model *next = through(&f, m, *formats, dir);
        logits_of(next, &e, got);
        if (memcmp(got, reference, (size_t)(e.tokens * e.vocab) * sizeof *got) != 0)
            fail_msg("%s through %s: logits differ by %g", name, *formats,
                     max_difference(got, reference, e.tokens * e.vocab));
        assert_int_equal(dq_model_scheme(next) != NULL, strncmp(*formats, "hf", 2) != 0);
        dq_model_release(m);
        m = next;
    }
    dq_model_release(m);
    remove_folder(dir);
    fixture_close(&f);
}

static void conversions(void **state)
{
    (void)state;
    chain("gptq_w4", (const char *[]){"gptq_v2", "compressed-tensors", "awq", "compressed-tensors:int-quantized",
                                      "gptq", "hf:f32", NULL});
    chain("awq_gemm", (const char *[]){"gptq_v2", "compressed-tensors", "awq", NULL});
    chain("gptq_w3_act_order", (const char *[]){"compressed-tensors", "gptq_v2", NULL});
    chain("gptq_w8_row", (const char *[]){"compressed-tensors:int-quantized", "gptq_v2", NULL});
    chain("gptq_mislabelled", (const char *[]){"gptq", "gptq_v2", NULL});
    chain("gptq_dynamic", (const char *[]){"gptq", "compressed-tensors", "gptq_v2", NULL});
    chain("gptq_planar_w5", (const char *[]){"compressed-tensors", NULL});
    chain("ct_w4_r4", (const char *[]){"compressed-tensors", "compressed-tensors:int-quantized", NULL});
}

/* GGUF: blocks hold the codes of symmetric grids exactly, asymmetric ones but for the rounding of the offset. */
static void to_gguf(const char *name, const char *format, double most)
{
    fixture f;
    expected e;
    char dir[256];
    fixture_open(&f, "cpu", 2);
    dq_model *m = foreign(&f, name, &e);
    logits_of(m, &e, reference);
    dq_model *back = through(&f, m, format, dir);
    logits_of(back, &e, got);
    double d = max_difference(got, reference, e.tokens * e.vocab);
    print_message("%-10s to %-10s logits differ by %.1e\n", name, format, d);
    assert_true(d <= most);
    dq_model_release(m);
    dq_model_release(back);
    remove_folder(dir);
    fixture_close(&f);
}

static void *content(fixture *f, const char *path, size_t *size)
{
    dq_map map;
    ok(dq_map_open(&f->env, path, &map));
    void *copy = malloc(map.size);
    memcpy(copy, map.data, map.size);
    *size = map.size;
    dq_map_close(&map);
    return copy;
}

/* Rows are encoded on all threads; the file is the same for any number of them. */
static void gguf_threads(void **state)
{
    (void)state;
    static const char *const formats[] = {"gguf:q4_k", "gguf:q6_k", "gguf:q5_1"};
    for (int i = 0; i < 3; i++) {
        void *first = NULL;
        size_t first_size = 0;
        for (int threads = 1; threads <= 3; threads++) {
            fixture f;
            dq_model *m;
            char dir[256], path[300];
            size_t size;
            fixture_open(&f, "cpu", threads);
            ok(dq_model_open_path(f.dev, "tests/data/tiny", &m));
            make_folder(dir, sizeof dir);
            ok(export_to(m, formats[i], dir));
            snprintf(path, sizeof path, "%s/model.gguf", dir);
            void *data = content(&f, path, &size);
            if (!first) {
                first = data;
                first_size = size;
            } else {
                assert_int_equal(size, first_size);
                assert_memory_equal(data, first, size);
                free(data);
            }
            dq_model_release(m);
            remove_folder(dir);
            fixture_close(&f);
        }
        free(first);
    }
}

static void gguf(void **state)
{
    (void)state;
    to_gguf("gptq_w4", "gguf:q4_0", 1e-5); /* another RoPE base type: the table is the same */
    to_gguf("gptq_w4", "gguf:q4_1", 0.5);
    to_gguf("awq_gemm", "gguf:q4_1", 0.5);
    to_gguf("gptq_w4", "gguf:f32", 1e-5);
    to_gguf("gptq_w4", "gguf:f16", 0.5);
}

/* Rotated with everything that compressed-tensors can hold, quantized, written, read: the same function. */
static void rotated(void **state)
{
    (void)state;
    static const char *const names[] = {"gqa", "mha"}; /* R4 of order 96 = 12 * 8 and 80 = 20 * 4 */
    for (int i = 0; i < 2; i++) {
        fixture f;
        expected e;
        char dir[256];
        dq_model *fused, *turned, *quantized;
        dq_rotation_set *set;
        dq_rotation_options o = {.use_r1 = true, .use_r4 = true, .use_r2 = DQ_R2_OFFLINE, .seed = 3};
        fixture_open(&f, "cpu", 2);
        dq_model *m = open_tiny(&f, names[i]);
        read_expected(&f, names[i], &e);
        ok(dq_model_derive_fused(m, false, &fused));
        ok(dq_rotation_set_make(f.dev, dq_model_arch(m), &o, &set));
        ok(dq_model_derive_rotated(fused, set, &turned));
        dq_scheme scheme = plain_scheme();
        scheme.w.bits = 4;
        ok(dq_model_derive_quantized(turned, quantize_to_memory(&f, turned, 4, true, 16, false), &scheme, &quantized));
        assert_int_equal(export_to(quantized, "gptq", dir), DQ_E_UNSUPPORTED);
        assert_non_null(strstr(dq_error_text(), "R4"));
        dq_model *back = through(&f, quantized, "compressed-tensors", dir);
        assert_int_equal(dq_model_rotations(back)->r4.n, dq_model_arch(m)->intermediate);
        assert_int_equal(dq_model_rotations(back)->r4.k, set->r4.k);
        logits_of(quantized, &e, reference);
        logits_of(back, &e, got);
        /* the scales were rounded to F16 */
        double d = max_difference(got, reference, e.tokens * e.vocab);
        print_message("%s, R4 as a matrix: logits differ by %.1e\n", names[i], d);
        assert_true(d < 0.05);
        dq_rotation_set_free(set);
        dq_model_release(back);
        dq_model_release(quantized);
        dq_model_release(turned);
        dq_model_release(fused);
        dq_model_release(m);
        remove_folder(dir);
        fixture_close(&f);
    }
}

/* What a family has beside LLaMA's weights (biases of q, k, v; norms of heads) through every format that has a place for it:
 * as it is, after R1 and R2 were folded in. */
static void beside_llama(const char *name)
{
    static const struct {
        const char *format;
        double most; /* scales, biases and the tables at both ends are rounded to 16 bits */
    } cases[] = {{"gptq", 0.05},      {"gptq_v2", 0.05},  {"awq", 0.05},    {"compressed-tensors", 0.05},
                 {"gguf:q4_0", 0.05}, {"gguf:f32", 1e-4}, {"hf:f32", 1e-4}, {"hf:f16", 0.05}};
    fixture f;
    expected e;
    dq_model *fused, *turned, *quantized;
    dq_rotation_set *set;
    dq_rotation_options o = {.use_r1 = true, .use_r2 = DQ_R2_OFFLINE, .seed = 5};
    fixture_open(&f, "cpu", 2);
    read_expected(&f, name, &e);
    dq_model *m = open_tiny(&f, name);
    ok(dq_model_derive_fused(m, false, &fused));
    ok(dq_rotation_set_make(f.dev, dq_model_arch(m), &o, &set));
    ok(dq_model_derive_rotated(fused, set, &turned));
    dq_scheme scheme = plain_scheme();
    scheme.w.bits = 4;
    scheme.w.vocab_dtype = DQ_F16;
    ok(dq_model_derive_quantized(turned, quantize_to_memory(&f, turned, 4, true, 32, false), &scheme, &quantized));
    for (size_t i = 0; i < sizeof cases / sizeof *cases; i++) {
        char dir[256];
        bool plain = strstr(cases[i].format, ":f") != NULL;
        dq_model *from = plain ? turned : quantized, *back = through(&f, from, cases[i].format, dir);
        logits_of(from, &e, reference);
        logits_of(back, &e, got);
        double d = max_difference(got, reference, e.tokens * e.vocab);
        print_message("%s to %-18s logits differ by %.1e\n", name, cases[i].format, d);
        assert_true(d < cases[i].most);
        assert_string_equal(dq_model_arch(back)->family->name, name);
        dq_model_release(back);
        remove_folder(dir);
    }
    dq_rotation_set_free(set);
    dq_model_release(quantized);
    dq_model_release(turned);
    dq_model_release(fused);
    dq_model_release(m);
    fixture_close(&f);
}

static void qwen2(void **state)
{
    (void)state;
    beside_llama("qwen2");
}

static void qwen3(void **state)
{
    (void)state;
    beside_llama("qwen3");
}

/* OPT: biases everywhere, norms with biases, positions. R1 makes RMS norms of its norms, which no other program could tell. */
static void opt(void **state)
{
    (void)state;
    static const struct {
        const char *format;
        bool plain; /* weights without codes */
        double most;
    } cases[] = {
        {"gptq", false, 0.05}, {"awq", false, 0.05}, {"compressed-tensors", false, 0.05}, {"hf:f32", true, 1e-4}};
    static const char *const refused[][2] = {{"gguf:f16", "no architecture for opt"},
                                             {"diffulex-gptq", "no opt models"}};
    fixture f;
    expected e;
    char dir[256];
    dq_model *fused, *turned[2], *quantized;
    fixture_open(&f, "cpu", 2);
    read_expected(&f, "opt", &e);
    dq_model *m = open_tiny(&f, "opt");
    ok(dq_model_derive_fused(m, false, &fused));
    for (int r1 = 0; r1 < 2; r1++) {
        dq_rotation_options o = {.use_r1 = r1, .use_r2 = DQ_R2_OFFLINE, .seed = 5};
        dq_rotation_set *set;
        ok(dq_rotation_set_make(f.dev, dq_model_arch(m), &o, &set));
        ok(dq_model_derive_rotated(fused, set, &turned[r1]));
        dq_rotation_set_free(set);
    }
    dq_scheme scheme = plain_scheme();
    scheme.w.bits = 4;
    scheme.w.vocab_dtype = DQ_F16;
    ok(dq_model_derive_quantized(m, quantize_to_memory(&f, m, 4, true, 32, false), &scheme, &quantized));
    for (size_t i = 0; i < sizeof cases / sizeof *cases; i++) {
        dq_model *from = cases[i].plain ? turned[0] : quantized, *back = through(&f, from, cases[i].format, dir);
        logits_of(from, &e, reference);
        logits_of(back, &e, got);
        double d = max_difference(got, reference, e.tokens * e.vocab);
        print_message("opt to %-18s logits differ by %.1e\n", cases[i].format, d);
        assert_true(d < cases[i].most);
        assert_true(back->layer_norm && dq_model_arch(back)->tied != cases[i].plain);
        dq_model_release(back);
        remove_folder(dir);
    }
    make_folder(dir, sizeof dir);
    assert_int_equal(export_to(turned[1], "hf", dir), DQ_E_UNSUPPORTED);
    assert_non_null(strstr(dq_error_text(), "RMS norms"));
    for (int i = 0; i < 2; i++) {
        assert_int_equal(export_to(m, refused[i][0], dir), DQ_E_UNSUPPORTED);
        assert_non_null(strstr(dq_error_text(), refused[i][1]));
    }
    dq_error_reset();
    remove_folder(dir);
    dq_model_release(quantized);
    ok(dq_model_derive_quantized(turned[0], quantize_to_memory(&f, turned[0], 4, true, 32, false), &scheme,
                                 &quantized));
    assert_int_equal(export_to(quantized, "gptq", dir), DQ_E_UNSUPPORTED);
    assert_non_null(strstr(dq_error_text(), "quantized"));
    dq_error_reset();
    dq_model_release(quantized);
    for (int r1 = 0; r1 < 2; r1++) dq_model_release(turned[r1]);
    dq_model_release(fused);
    dq_model_release(m);
    fixture_close(&f);
}

static bool exists(const char *path) { return access(path, F_OK) == 0; }

static void refusals(void **state)
{
    (void)state;
    static const struct {
        const char *model, *format, *says;
        dq_status status;
    } cases[] = {
        {"gptq_w3_act_order", "gptq", "gptq_v2", DQ_E_UNSUPPORTED},
        {"gptq_w3_act_order", "awq", "4 bits", DQ_E_UNSUPPORTED},
        {"gptq_w3_act_order", "compressed-tensors:int-quantized", "pack-quantized", DQ_E_UNSUPPORTED},
        {"gptq_planar_w5", "gptq_v2", "compressed-tensors", DQ_E_UNSUPPORTED},
        {"gptq_planar_w5", "gguf:q5_0", "q5_1", DQ_E_UNSUPPORTED},
        {"gptq_w4", "gguf:q8_0", "gguf:q4_0 holds the codes", DQ_E_UNSUPPORTED},
        {"gptq_w3_act_order", "gguf:q4_k", "gguf:f16", DQ_E_UNSUPPORTED},
        {"gptq_dynamic", "awq", "4 bits", DQ_E_UNSUPPORTED},
        {"ct_w4_r4", "gptq", "R4", DQ_E_UNSUPPORTED},
        {"ct_w4_r4", "gguf:f16", "R4", DQ_E_UNSUPPORTED},
        {"ct_w4_r4", "hf", "R4", DQ_E_UNSUPPORTED},
        {"ct_fp8", "gptq", "quantize it first", DQ_E_STATE},
    };
    for (size_t i = 0; i < sizeof cases / sizeof *cases; i++) {
        fixture f;
        expected e;
        char dir[256];
        fixture_open(&f, "cpu", 1);
        make_folder(dir, sizeof dir);
        rmdir(dir);
        dq_model *m = foreign(&f, cases[i].model, &e);
        dq_status status = export_to(m, cases[i].format, dir);
        if (status != cases[i].status || !strstr(dq_error_text(), cases[i].says))
            fail_msg("%s to %s: %d %s", cases[i].model, cases[i].format, status, dq_error_text());
        assert_false(exists(dir));
        dq_model_release(m);
        fixture_close(&f);
    }
    dq_export_spec spec;
    assert_int_equal(dq_export_parse("gguf:q3_k", &spec), DQ_E_INVALID);
    assert_int_equal(dq_export_parse("gptq_v3", &spec), DQ_E_INVALID);
}

static int32_t stop(void *user, const dq_progress_event *event)
{
    (void)user;
    return event->index >= 1;
}

/* Neither a cancelled export nor one into a used folder leaves or changes anything. */
static void no_half_folders(void **state)
{
    (void)state;
    static const char *const formats[] = {"gptq", "gguf:q4_0", "hf", "diffulex-awq", "compressed-tensors"};
    for (size_t i = 0; i < sizeof formats / sizeof *formats; i++) {
        fixture f;
        expected e;
        char dir[256], temporary[300], file[300];
        fixture_open(&f, "cpu", 1);
        make_folder(dir, sizeof dir);
        rmdir(dir);
        snprintf(temporary, sizeof temporary, "%s.tmp.%ld", dir, (long)getpid());
        dq_model *m = foreign(&f, "gptq_w4", &e);
        dq_export_spec spec;
        dq_progress p = {.fn = stop};
        ok(dq_export_parse(formats[i], &spec));
        spec.part_size = 1 << 30;
        assert_int_equal(dq_export_model(m, &spec, dir, &p), DQ_E_CANCELLED);
        assert_false(exists(dir));
        assert_false(exists(temporary));
        mkdir(dir, 0777);
        snprintf(file, sizeof file, "%s/keep", dir);
        fclose(fopen(file, "w"));
        assert_int_equal(dq_export_model(m, &spec, dir, NULL), DQ_E_IO);
        assert_non_null(strstr(dq_error_text(), "not empty"));
        assert_true(exists(file));
        assert_false(exists(temporary));
        dq_model_release(m);
        remove_folder(dir);
        fixture_close(&f);
    }
}

/* A GGUF file that stood there is replaced by a whole one or stays as it was. */
static void earlier_files_stay(void **state)
{
    (void)state;
    fixture f;
    expected e;
    char dir[256], path[300], text[8] = "";
    dq_export_spec spec;
    dq_progress p = {.fn = stop};
    fixture_open(&f, "cpu", 1);
    make_folder(dir, sizeof dir);
    snprintf(path, sizeof path, "%s/model.gguf", dir);
    FILE *file = fopen(path, "w");
    fputs("before", file);
    fclose(file);
    dq_model *m = foreign(&f, "gptq_w4", &e);
    ok(dq_export_parse("gguf:q4_0", &spec));
    assert_int_equal(dq_export_model(m, &spec, path, &p), DQ_E_CANCELLED);
    file = fopen(path, "r");
    assert_non_null(file);
    assert_non_null(fgets(text, sizeof text, file));
    fclose(file);
    assert_string_equal(text, "before");
    ok(dq_export_model(m, &spec, path, NULL));
    dq_model_release(m);
    remove_folder(dir);
    fixture_close(&f);
}

/* Relative error of layer 0's down_proj. */
static double weight_error(dq_model *a, dq_model *b)
{
    static float x[64 * 96], y[64 * 96];
    dq_linear l, m;
    double error = 0.0, size = 0.0;
    ok(dq_model_read_linear(a, 0, DQ_DOWN_PROJ, &l));
    ok(dq_model_read_linear(b, 0, DQ_DOWN_PROJ, &m));
    ok(dq_tensor_download(&l.weight, x));
    ok(dq_tensor_download(&m.weight, y));
    for (int i = 0; i < 64 * 96; i++) {
        error += (double)(x[i] - y[i]) * (double)(x[i] - y[i]);
        size += (double)x[i] * (double)x[i];
    }
    dq_tensor_free(&l.weight);
    dq_tensor_free(&m.weight);
    return sqrt(error / size);
}

/* Diffulex's layout: read back as it was written, close to the weights. */
static void diffulex(void **state)
{
    (void)state;
    static const char *const formats[] = {"diffulex-gptq", "diffulex-awq"};
    for (int i = 0; i < 2; i++) {
        fixture f;
        char dir[256];
        fixture_open(&f, "cpu", 1);
        dq_model *m = open_tiny(&f, "gqa");
        dq_model *back = through(&f, m, formats[i], dir);
        assert_string_equal(dq_model_root_source(back)->format, "diffulex");
        double d = weight_error(m, back);
        print_message("%s: weights differ by %.3f of their size\n", formats[i], d);
        assert_true(d < 0.13 && d > 0.01);
        dq_model_release(m);
        dq_model_release(back);
        remove_folder(dir);
        fixture_close(&f);
    }
}

static void copy_file(fixture *f, const char *from_dir, const char *to_dir, const char *name)
{
    char from[400], to[400];
    dq_map map;
    snprintf(from, sizeof from, "%s/%s", from_dir, name);
    snprintf(to, sizeof to, "%s/%s", to_dir, name);
    ok(dq_map_open(&f->env, from, &map));
    ok(dq_file_write(&f->env, to, map.data, map.size));
    dq_map_close(&map);
}

/* A vocabulary of SentencePiece's kind whose ids are not in the order of its merges: the two blanks come first and are joined
 * last, as in Llama 2's. */
static void scores_say_what_merges_say(void **state)
{
    (void)state;
    static const char tokenizer[] =
        "{\"normalizer\":{\"type\":\"Sequence\",\"normalizers\":[{\"type\":\"Prepend\",\"prepend\":\"@\"},"
        "{\"type\":\"Replace\",\"pattern\":{\"String\":\" \"},\"content\":\"@\"}]},\"model\":{\"type\":\"BPE\","
        "\"byte_fallback\":true,\"unk_token\":\"<unk>\",\"vocab\":{\"<unk>\":0,\"@@\":1,\"@\":2,\"H\":3,\"i\":4,"
        "\"@Hi\":5,\"Hi\":6,\"iH\":7},\"merges\":[\"H i\",\"@ Hi\",[\"i\",\"H\"],\"@ @\"]}}";
    static const int32_t wanted[][4] = {{2, 5, 6, -1}, {5, -1}, {1, 5, -1}};
    static const char *const texts[] = {" HiHi", "Hi", "  Hi"};
    char marked[sizeof tokenizer * 2], dir[256], path[400], gguf_path[400];
    size_t n = 0;
    for (const char *c = tokenizer; *c; c++) { /* @ stands for the mark of a blank */
        memcpy(marked + n, *c == '@' ? "\xe2\x96\x81" : c, *c == '@' ? 3 : 1);
        n += *c == '@' ? 3 : 1;
    }
    fixture f;
    dq_model *m;
    fixture_open(&f, "ref", 1);
    make_folder(dir, sizeof dir);
    copy_file(&f, "tests/data/models/gqa", dir, "config.json");
    copy_file(&f, "tests/data/models/gqa", dir, "model.safetensors");
    snprintf(path, sizeof path, "%s/tokenizer.json", dir);
    ok(dq_file_write(&f.env, path, marked, n));
    ok(dq_model_open_path(f.dev, dir, &m));
    snprintf(gguf_path, sizeof gguf_path, "%s/m.gguf", dir);
    ok(export_to(m, "gguf:f16", gguf_path));
    const char *const files[] = {path, gguf_path};
    for (int i = 0; i < 2; i++) {
        dq_tokenizer *t = NULL;
        ok(dq_tokenizer_open_path(&f.env, files[i], &t));
        for (int k = 0; k < 3; k++) {
            dq_ids ids = {0};
            ok(dq_tokenizer_encode_text(t, texts[k], strlen(texts[k]), false, false, &ids));
            n = 0;
            while (wanted[k][n] >= 0) n++;
            if (ids.count != n || memcmp(ids.data, wanted[k], n * sizeof *ids.data) != 0)
                fail_msg("%s: \"%s\" became %zu tokens, the first %d", files[i], texts[k], ids.count, ids.data[0]);
            dq_free(ids.data);
        }
        dq_tokenizer_destroy(t);
    }
    dq_model_release(m);
    remove_folder(dir);
    fixture_close(&f);
}

int main(void)
{
    const struct CMUnitTest tests[] = {cmocka_unit_test(conversions),
                                       cmocka_unit_test(gguf),
                                       cmocka_unit_test(gguf_threads),
                                       cmocka_unit_test(rotated),
                                       cmocka_unit_test(qwen2),
                                       cmocka_unit_test(qwen3),
                                       cmocka_unit_test(opt),
                                       cmocka_unit_test(refusals),
                                       cmocka_unit_test(no_half_folders),
                                       cmocka_unit_test(diffulex),
                                       cmocka_unit_test(earlier_files_stay),
                                       cmocka_unit_test(scores_say_what_merges_say)};
    return cmocka_run_group_tests(tests, NULL, NULL);
}
