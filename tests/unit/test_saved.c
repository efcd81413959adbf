/* model: codes in stores, saved folders and what opening them refuses. SPDX-License-Identifier: Apache-2.0 */
#include <setjmp.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>
#include <cmocka.h>

#include "base/rotation_set.h"
#include "base/status.h"
#include "eval/perplexity.h"
#include "io/file.h"
#include "io/formats.h"
#include "io/json.h"
#include "models.h"
#include "rotation/rotation.h"

static void ok(dq_status status)
{
    if (status != DQ_OK) print_message("%s\n", dq_error_text());
    assert_int_equal(status, DQ_OK);
}

/* Fused and rotated with everything that runs online. */
static dq_model *rotated_tiny(fixture *f, const char *name, dq_r2_mode r2)
{
    dq_model *base = open_tiny(f, name), *fused, *m;
    dq_rotation_options o = {.use_r1 = true, .use_r3 = true, .use_r4 = true, .use_r2 = r2, .seed = 1};
    dq_rotation_set *set;
    ok(dq_model_derive_fused(base, false, &fused));
    ok(dq_rotation_set_make(f->dev, dq_model_arch(base), &o, &set));
    ok(dq_model_derive_rotated(fused, set, &m));
    dq_rotation_set_free(set);
    dq_model_release(fused);
    dq_model_release(base);
    return m;
}

static dq_scheme scheme_of(int w, int a, int kv)
{
    dq_scheme s = plain_scheme();
    s.w.bits = w;
    s.a = (dq_act_spec){.bits = a, .group = -1, .symmetric = false, .clip = 0.9};
    s.k = s.v = (dq_act_spec){.bits = kv, .group = -1, .symmetric = false, .clip = 0.95};
    return s;
}

static double perplexity(dq_model *m, const expected *e)
{
    dq_perplexity p;
    ok(dq_perplexity_run(m, e->ids, e->tokens, e->tokens / 2, 0, DQ_MATH_F32, NULL, &p));
    dq_free(p.window_nll);
    return p.ppl;
}

/* Codes survive packing for every width, grouped or not, with explicit group indices or without. */
static void codes_round_trip(void **state)
{
    (void)state;
    fixture f;
    fixture_open(&f, "cpu", 2);
    dq_model *m = open_tiny(&f, "mha");
    for (int bits = 2; bits <= 8; bits++) {
        for (int variant = 0; variant < 4; variant++) {
            dq_source *a = quantize_to_memory(&f, m, bits, variant & 1, variant & 2 ? 7 : -1, variant == 3);
            dq_sink *sink;
            dq_source *b;
            char name[DQ_TENSOR_NAME];
            dq_codes c;
            dq_arch_module_name(dq_model_arch(m), DQ_DOWN_PROJ, 1, name, sizeof name);
            ok(dq_codes_read(f.dev, a, name, &c));
            assert_int_equal(c.bits, bits);
            assert_int_equal(c.groups, variant & 2 ? 12 : 1);
            assert_int_equal(dq_tensor_is_empty(&c.group_index), variant != 3);
            uint8_t *codes = malloc(48 * 80);
            ok(dq_tensor_download(&c.codes, codes));
            int seen = 0;
            for (int i = 0; i < 48 * 80; i++) {
                assert_true(codes[i] < 1 << bits);
                seen |= codes[i];
            }
            assert_int_equal(seen, (1 << bits) - 1); /* every bit is used */
            ok(dq_memory_sink(&f.env, &sink));
            ok(dq_codes_write(sink, name, &c));
            ok(sink->ops->finish(sink));
            ok(dq_memory_source(sink, &b));
            sink->ops->free(sink);
            for (int64_t t = 0; t < b->count; t++) {
                int64_t other = dq_source_find(a, b->tensors[t].name);
                uint64_t bytes = b->tensors[t].bytes;
                uint8_t x[8192], y[8192];
                assert_true(other >= 0 && bytes <= sizeof x);
                assert_int_equal(a->tensors[other].bytes, bytes);
                ok(dq_source_read_raw(a, other, 0, bytes, x));
                ok(dq_source_read_raw(b, t, 0, bytes, y));
                assert_memory_equal(x, y, bytes);
            }
            /* the width on disk: 80 columns of `bits` bits */
            uint64_t packed = 48 * (uint64_t)((80 * bits + 7) / 8);
            snprintf(name + strlen(name), 8, ".codes");
            assert_int_equal(b->tensors[dq_source_find(b, name)].bytes, packed);
            free(codes);
            dq_codes_free(&c);
            dq_source_free(b);
            dq_source_free(a);
        }
    }
    dq_model_release(m);
    fixture_close(&f);
}

/* The documented layout, by hand: 3-bit codes 1 2 3 4 5 6 7 0 in one row are the bytes d1 58 1f. */
static void bit_layout(void **state)
{
    (void)state;
    static const uint8_t values[8] = {1, 2, 3, 4, 5, 6, 7, 0}, bytes[3] = {0xd1, 0x58, 0x1f};
    float one = 0.5f, zero = 3.0f;
    fixture f;
    dq_sink *sink;
    dq_source *s;
    fixture_open(&f, "ref", 1);
    dq_codes c = {.bits = 3, .out = 1, .in = 8, .groups = 1, .group = 8};
    ok(dq_tensor_from_host(f.dev, DQ_U8, 1, 8, values, &c.codes));
    ok(dq_tensor_from_host(f.dev, DQ_F32, 1, 1, &one, &c.scale));
    ok(dq_tensor_from_host(f.dev, DQ_F32, 1, 1, &zero, &c.zero));
    ok(dq_memory_sink(&f.env, &sink));
    ok(dq_codes_write(sink, "lin.weight", &c));
    ok(sink->ops->finish(sink));
    ok(dq_memory_source(sink, &s));
    sink->ops->free(sink);
    uint8_t got[3];
    ok(dq_source_read_raw(s, dq_source_find(s, "lin.codes"), 0, 3, got));
    assert_memory_equal(got, bytes, 3);
    uint8_t z;
    ok(dq_source_read_raw(s, dq_source_find(s, "lin.zeros"), 0, 1, &z));
    assert_int_equal(z, 3);
    assert_true(dq_codes_exist(s, "lin") && !dq_codes_exist(s, "li"));
    assert_int_equal(dq_codes_bytes(s, "lin"), 3 + 1 + 4 + 6 * 8);
    dq_source_free(s);
    dq_codes_free(&c);
    fixture_close(&f);
}

/* A layout that promises more than the file holds is refused before memory is asked for. */
static void layout_without_codes(void **state)
{
    (void)state;
    static const int64_t layout[6] = {1, 4, 1, 1 << 28, 1 << 28, 1 << 28}, fields = 6, shape[2] = {1, 4};
    static const uint8_t bytes[4];
    fixture f;
    dq_sink *sink;
    dq_source *s;
    dq_codes c;
    fixture_open(&f, "ref", 1);
    ok(dq_memory_sink(&f.env, &sink));
    ok(sink->ops->add(sink, "lin.layout", DQ_I64, 1, &fields, layout, sizeof layout));
    ok(sink->ops->add(sink, "lin.codes", DQ_U8, 2, shape, bytes, sizeof bytes));
    ok(sink->ops->finish(sink));
    ok(dq_memory_source(sink, &s));
    sink->ops->free(sink);
    assert_int_equal(dq_codes_read(f.dev, s, "lin", &c), DQ_E_MISMATCH);
    assert_non_null(strstr(dq_error_text(), "lin.codes"));
    dq_source_free(s);
    fixture_close(&f);
}

static bool is_there(const char *dir, const char *file)
{
    char path[256];
    snprintf(path, sizeof path, "%s/%s", dir, file);
    return dq_path_exists(path);
}

/* Saved and opened again: the same description, logits and perplexity, to the last bit. */
static void save_and_compare(fixture *f, dq_model *m, const expected *e, uint64_t part_size, bool twice)
{
    char dir[64];
    static float a[64 * 128], b[64 * 128];
    dq_model *again;
    make_folder(dir, sizeof dir);
    ok(dq_model_save_dir(m, dir, part_size, NULL));
    ok(dq_model_open_path(f->dev, dir, &again));
    logits_of(m, e, a);
    logits_of(again, e, b);
    assert_memory_equal(a, b, (size_t)(e->tokens * e->vocab) * 4);
    assert_true(perplexity(m, e) == perplexity(again, e));
    assert_int_equal(dq_model_is_fused(m), dq_model_is_fused(again));
    const dq_scheme *s = dq_model_scheme(m), *t = dq_model_scheme(again);
    assert_int_equal(s != NULL, t != NULL);
    if (s) {
        assert_int_equal(s->w.bits, t->w.bits);
        assert_true(s->a.bits == t->a.bits && s->a.clip == t->a.clip && s->a.symmetric == t->a.symmetric);
        assert_true(s->k.bits == t->k.bits && s->v.bits == t->v.bits && s->k.clip == t->k.clip);
        assert_true(dq_model_bits_per_weight(m) == dq_model_bits_per_weight(again));
    }
    const dq_rotation_set *r = dq_model_rotations(m), *q = dq_model_rotations(again);
    assert_int_equal(r != NULL, q != NULL);
    if (r) {
        assert_string_equal(r->origin, q->origin);
        assert_true(r->r2_mode == q->r2_mode && r->r3.n == q->r3.n && r->r4.n == q->r4.n && r->r4.k == q->r4.k);
    }
    if (twice) { /* a saved model can be saved again, over itself */
        dq_model *third;
        ok(dq_model_save_dir(again, dir, part_size, NULL));
        ok(dq_model_open_path(f->dev, dir, &third));
        logits_of(third, e, b);
        assert_memory_equal(a, b, (size_t)(e->tokens * e->vocab) * 4);
        dq_model_release(third);
    }
    dq_model_release(again);
    remove_folder(dir);
}

static void saving_keeps_every_bit(void **state)
{
    (void)state;
    static const char *const names[] = {"gqa", "tied", "bias", "qwen2", "qwen3", "opt"};
    fixture f;
    fixture_open(&f, "cpu", 2);
    for (size_t i = 0; i < sizeof names / sizeof *names; i++) {
        expected e;
        read_expected(&f, names[i], &e);
        dq_model *plain = open_tiny(&f, names[i]);
        save_and_compare(&f, plain, &e, UINT64_C(10) << 30, false);
        dq_model_release(plain);
        for (int mode = DQ_R2_NONE; mode <= DQ_R2_ONLINE; mode++) {
            dq_model *m = rotated_tiny(&f, names[i], (dq_r2_mode)mode), *quantized, *act;
            save_and_compare(&f, m, &e, 80000, false);
            dq_source *store = quantize_to_memory(&f, m, 4, mode == 1, mode == 2 ? 16 : -1, false);
            dq_scheme s = scheme_of(4, 8, 4);
            ok(dq_model_derive_quantized(m, store, &s, &quantized));
            save_and_compare(&f, quantized, &e, 30000, mode == 1);
            dq_scheme other = scheme_of(16, 6, 16); /* other activations on the same codes */
            ok(dq_model_derive_quantized(quantized, NULL, &other, &act));
            assert_int_equal(dq_model_scheme(act)->w.bits, 4);
            assert_true(perplexity(act, &e) != perplexity(quantized, &e));
            if (mode == 2) save_and_compare(&f, act, &e, UINT64_C(1) << 30, false);
            dq_model_release(act);
            dq_model_release(quantized);
            dq_model_release(m);
        }
    }
    fixture_close(&f);
}

/* 8-bit codes and activations stay close to the original, 2-bit codes do not: the codes are really used. */
static void quantization_takes_effect(void **state)
{
    (void)state;
    fixture f;
    expected e;
    fixture_open(&f, "cpu", 1);
    read_expected(&f, "mha", &e);
    dq_model *m = rotated_tiny(&f, "mha", DQ_R2_OFFLINE), *q;
    double differences[2];
    for (int i = 0; i < 2; i++) {
        dq_scheme s = scheme_of(i ? 2 : 8, 16, 16);
        ok(dq_model_derive_quantized(m, quantize_to_memory(&f, m, s.w.bits, true, -1, false), &s, &q));
        differences[i] = logits_difference(q, &e);
        /* codes, one fp32 scale a row, six fields of layout */
        double scale_bits = 32.0 * (48 * 4 + 80 * 2 + 48) + 7 * 6 * 64;
        assert_true(dq_model_bits_per_weight(q) == (double)s.w.bits + scale_bits / (double)(48 * 48 * 4 + 3 * 48 * 80));
        dq_model_release(q);
    }
    print_message("largest difference of a logit: %.3g at 8 bits, %.3g at 2\n", differences[0], differences[1]);
    assert_true(differences[0] < 1.5 && differences[1] > 8 * differences[0]);
    dq_model_release(m);
    fixture_close(&f);
}

/* Codes streamed into the folder as a quantizer job would, the rest afterwards. */
static void streaming(void **state)
{
    (void)state;
    fixture f;
    expected e;
    char dir[64];
    static float a[64 * 128], b[64 * 128];
    fixture_open(&f, "cpu", 2);
    read_expected(&f, "bias", &e);
    dq_model *m = rotated_tiny(&f, "bias", DQ_R2_OFFLINE), *q, *again;
    dq_scheme s = scheme_of(5, 8, 8);
    dq_saver *saver;
    make_folder(dir, sizeof dir);
    ok(dq_saver_open(&f.env, dir, 1 << 20, &saver));
    assert_int_equal(dq_saver_finish(saver, m, &s, NULL, NULL), DQ_E_STATE); /* no codes yet */
    assert_non_null(strstr(dq_error_text(), "q_proj"));
    dq_error_reset();
    dq_saver_free(saver);
    assert_false(is_there(dir, "dartquant.json") || is_there(dir, "model.safetensors"));

    ok(dq_saver_open(&f.env, dir, 1 << 20, &saver));
    dq_source *store = quantize_to_memory(&f, m, 5, false, 12, true);
    for (int64_t layer = 0; layer < 2; layer++) {
        for (int role = 0; role < DQ_LINEARS; role++) {
            char name[DQ_TENSOR_NAME];
            dq_codes c;
            dq_arch_module_name(dq_model_arch(m), (dq_role)role, layer, name, sizeof name);
            ok(dq_codes_read(f.dev, store, name, &c));
            ok(dq_codes_write(dq_saver_sink(saver), name, &c));
            dq_codes_free(&c);
        }
    }
    ok(dq_saver_finish(saver, m, &s, "{\"seed\": 7}", NULL));
    dq_saver_free(saver);
    ok(dq_model_open_path(f.dev, dir, &again));
    ok(dq_model_derive_quantized(m, store, &s, &q));
    logits_of(q, &e, a);
    logits_of(again, &e, b);
    assert_memory_equal(a, b, (size_t)(e.tokens * e.vocab) * 4);
    dq_model_release(again);
    dq_model_release(q);
    dq_model_release(m);
    remove_folder(dir);
    fixture_close(&f);
}

/* Replaces `bytes` bytes at `at` of a file (at < 0: from its end). */
static void patch(const char *dir, const char *file, long at, const void *data, size_t bytes)
{
    char path[256];
    snprintf(path, sizeof path, "%s/%s", dir, file);
    FILE *fp = fopen(path, "r+b");
    assert_non_null(fp);
    assert_int_equal(fseek(fp, at, at < 0 ? SEEK_END : SEEK_SET), 0);
    assert_int_equal(fwrite(data, 1, bytes, fp), bytes);
    fclose(fp);
}

/* Replaces the first occurrence of a text in the manifest by another of the same length. */
static void edit_manifest(fixture *f, const char *dir, const char *from, const char *to)
{
    char path[256], *text;
    size_t bytes;
    snprintf(path, sizeof path, "%s/dartquant.json", dir);
    ok(dq_file_read(&f->env, path, 1 << 20, &text, &bytes));
    char *at = strstr(text, from);
    assert_non_null(at);
    assert_int_equal(strlen(from), strlen(to));
    memcpy(at, to, strlen(to));
    ok(dq_file_write(&f->env, path, text, bytes));
    dq_free(text);
}

static dq_status open_status(fixture *f, const char *dir)
{
    dq_model *m;
    dq_status status = dq_model_open_path(f->dev, dir, &m);
    if (status == DQ_OK) dq_model_release(m);
    return status;
}

static void damaged_folders_are_refused(void **state)
{
    (void)state;
    fixture f;
    char dir[64], other[64], from[256], to[256];
    fixture_open(&f, "cpu", 1);
    dq_model *m = rotated_tiny(&f, "mha", DQ_R2_OFFLINE), *foreign = rotated_tiny(&f, "mha", DQ_R2_NONE);
    make_folder(dir, sizeof dir);
    make_folder(other, sizeof other);
    ok(dq_model_save_dir(m, dir, 100000, NULL));
    ok(dq_model_save_dir(foreign, other, 100000, NULL));
    assert_int_equal(open_status(&f, dir), DQ_OK);
    char shard[] = "model-00002-of-00003.safetensors";
    assert_true(is_there(dir, shard));

    /* a shard of another model with the same names and shapes */
    snprintf(from, sizeof from, "%s/%s", other, shard);
    snprintf(to, sizeof to, "%s/%s", dir, shard);
    assert_int_equal(rename(from, to), 0);
    assert_int_equal(open_status(&f, dir), DQ_E_MISMATCH);
    assert_non_null(strstr(dq_error_text(), "fingerprint"));
    dq_error_reset();
    /* a shard that is gone */
    unlink(to);
    assert_int_not_equal(open_status(&f, dir), DQ_OK);
    assert_non_null(strstr(dq_error_text(), shard));
    dq_error_reset();
    /* the last bytes of a shard changed */
    ok(dq_model_save_dir(m, dir, 100000, NULL));
    assert_int_equal(open_status(&f, dir), DQ_OK);
    patch(dir, shard, -4, "\1\2\3\4", 4);
    assert_int_equal(open_status(&f, dir), DQ_E_MISMATCH);
    dq_error_reset();
    /* manifests */
    static const struct {
        const char *from, *to;
        dq_status status;
    } edits[] = {
        {"\"dartquant model\"", "\"dartquant modex\"", DQ_E_FORMAT},
        {"\"version\": 1", "\"version\": 9", DQ_E_UNSUPPORTED},
        {"\"head_dim\": 12", "\"head_dim\": 16", DQ_E_FORMAT},
        {"\"offline\"", "\"sideway\"", DQ_E_FORMAT},
        {"\"vocab_size\": 96", "\"vocab_size\": 95", DQ_E_MISMATCH},
        {"\"fused\": true", "\"fused\": 1234", DQ_E_FORMAT},
    };
    for (size_t i = 0; i < sizeof edits / sizeof *edits; i++) {
        ok(dq_model_save_dir(m, dir, UINT64_C(1) << 30, NULL));
        edit_manifest(&f, dir, edits[i].from, edits[i].to);
        dq_status status = open_status(&f, dir);
        if (status != edits[i].status) print_message("%s: %s\n", edits[i].to, dq_error_text());
        assert_int_equal(status, edits[i].status);
        dq_error_reset();
    }
    dq_model_release(foreign);
    dq_model_release(m);
    remove_folder(dir);
    remove_folder(other);
    fixture_close(&f);
}

static void bad_stores_are_refused(void **state)
{
    (void)state;
    fixture f;
    dq_model *q;
    dq_sink *sink;
    dq_source *empty;
    fixture_open(&f, "cpu", 1);
    dq_model *m = rotated_tiny(&f, "mha", DQ_R2_NONE);
    dq_scheme s = scheme_of(4, 16, 16);
    ok(dq_memory_sink(&f.env, &sink));
    ok(sink->ops->finish(sink));
    ok(dq_memory_source(sink, &empty));
    sink->ops->free(sink);
    assert_int_equal(dq_model_derive_quantized(m, empty, &s, &q), DQ_E_MISMATCH);
    dq_error_reset();
    s = scheme_of(16, 4, 16);
    s.a.group = 7; /* divides none of 48, 48, 80 */
    assert_int_equal(dq_model_derive_quantized(m, NULL, &s, &q), DQ_E_INVALID);
    assert_non_null(strstr(dq_error_text(), "group size 7 does not divide"));
    dq_error_reset();
    s = scheme_of(16, 1, 16);
    assert_int_equal(dq_model_derive_quantized(m, NULL, &s, &q), DQ_E_INVALID);
    dq_error_reset();
    dq_codes c;
    assert_int_equal(dq_model_read_codes(m, 0, DQ_Q_PROJ, &c), DQ_E_STATE);
    dq_error_reset();
    dq_model_release(m);
    fixture_close(&f);
}

/* The vocabulary of a GGUF model goes along as a GGUF file without tensors. */
static void gguf_vocabulary_survives(void **state)
{
    (void)state;
    fixture f;
    char dir[64], path[128];
    dq_source *g;
    int64_t n;
    const char *text;
    size_t bytes;
    fixture_open(&f, "cpu", 1);
    dq_model *m = open_tiny(&f, "tied.gguf"), *again;
    make_folder(dir, sizeof dir);
    for (int round = 0; round < 2; round++) { /* from the GGUF file, then from the saved folder */
        ok(dq_model_save_dir(m, dir, UINT64_C(1) << 30, NULL));
        snprintf(path, sizeof path, "%s/tokenizer.gguf", dir);
        ok(dq_gguf_open(&f.env, path, &g));
        assert_int_equal(g->count, 0);
        ok(dq_gguf_array_length(g, "tokenizer.ggml.tokens", &n));
        assert_int_equal(n, 96);
        ok(dq_gguf_array_string(g, "tokenizer.ggml.tokens", 95, &text, &bytes));
        assert_int_equal(bytes, 3);
        assert_memory_equal(text, "t95", 3);
        dq_source_free(g);
        ok(dq_model_open_path(f.dev, dir, &again));
        dq_model_release(m);
        m = again;
    }
    dq_model_release(m);
    remove_folder(dir);
    fixture_close(&f);
}

/* The sink of folders takes large tensors in pieces and insists on every byte. */
static void tensors_in_pieces(void **state)
{
    (void)state;
    static const float values[6] = {1, 2, 3, 4, 5, 6};
    static const int64_t shape[2] = {3, 2};
    fixture f;
    char dir[64];
    float got[6];
    dq_sink *sink;
    dq_source *s;
    fixture_open(&f, "ref", 1);
    make_folder(dir, sizeof dir);
    ok(dq_safetensors_sink(&f.env, dir, "model", 1 << 20, &sink));
    ok(sink->ops->begin(sink, "t", DQ_F32, 2, shape, 24));
    ok(sink->ops->append(sink, values, 8));
    assert_int_equal(sink->ops->begin(sink, "u", DQ_F32, 2, shape, 24), DQ_E_STATE);
    dq_error_reset();
    assert_int_equal(sink->ops->finish(sink), DQ_E_STATE);
    assert_string_equal(dq_error_tensor(), "t");
    dq_error_reset();
    assert_int_equal(sink->ops->append(sink, values, 17), DQ_E_INVALID);
    dq_error_reset();
    ok(sink->ops->append(sink, values + 2, 16));
    ok(sink->ops->add(sink, "u", DQ_F32, 2, shape, values, 24));
    ok(sink->ops->finish(sink));
    sink->ops->free(sink);
    ok(dq_safetensors_open_dir(&f.env, dir, &s));
    ok(dq_source_read_rows(s, dq_source_find(s, "t"), 0, 3, got));
    assert_memory_equal(got, values, sizeof got);
    dq_source_free(s);
    remove_folder(dir);
    fixture_close(&f);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(codes_round_trip),
        cmocka_unit_test(bit_layout),
        cmocka_unit_test(layout_without_codes),
        cmocka_unit_test(saving_keeps_every_bit),
        cmocka_unit_test(quantization_takes_effect),
        cmocka_unit_test(streaming),
        cmocka_unit_test(damaged_folders_are_refused),
        cmocka_unit_test(bad_stores_are_refused),
        cmocka_unit_test(gguf_vocabulary_survives),
        cmocka_unit_test(tensors_in_pieces),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
