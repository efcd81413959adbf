/* GGUF blocks that stay packed in generation: a synthetic model of every type against its own forward pass over floats.
 * SPDX-License-Identifier: Apache-2.0 */
#include <math.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <cmocka.h>

#include "base/half.h"
#include "base/status.h"
#include "formats/gguf_blocks.h"
#include "generate/job.h"
#include "generate/pack.h"
#include "io/decode.h"
#include "io/formats.h"
#include "io/gguf_writer.h"
#include "models.h"

static void ok(dq_status status)
{
    if (status != DQ_OK) print_message("%s\n", dq_error_text());
    assert_int_equal(status, DQ_OK);
}

static const struct {
    const char *name;
    uint32_t id, elements, bytes;
    double bits; /* of a weight in memory, scales and minima included */
} types[] = {{"Q4_0", 2, 32, 18, 4.5},   {"Q4_1", 3, 32, 20, 5},     {"Q5_0", 6, 32, 22, 8.5},
             {"Q5_1", 7, 32, 24, 9},     {"Q8_0", 8, 32, 34, 8.5},   {"Q4_K", 12, 256, 144, 6},
             {"Q5_K", 13, 256, 176, 10}, {"Q6_K", 14, 256, 210, 10}, {"F16", 1, 1, 2, 16}};
enum { TYPES = sizeof types / sizeof *types, Q4_K = 5, Q6_K = 7, Q8_0 = 4, F16 = 8 };

static dq_arch arch_of(bool tied)
{
    return (dq_arch){.family = dq_family_by_gguf("llama"),
                     .hidden = 256,
                     .intermediate = 512,
                     .layers = 2,
                     .heads = 4,
                     .kv_heads = 2,
                     .head_dim = 64,
                     .vocab = 80,
                     .max_positions = 256,
                     .norm_eps = 1e-5,
                     .rope_theta = 1e4,
                     .activation = DQ_ACT_SILU,
                     .tied = tied,
                     .bos_id = -1,
                     .eos_id = -1};
}

static uint32_t state = 1;
static float uniform(void)
{
    state = state * 1664525u + 1013904223u;
    return (float)(state >> 8) / 8388608.0f - 1.0f;
}

/* n weights of some 0.1: random codes under small scales, which is what a file of that type may hold. */
static void fill(int type, int64_t n, uint8_t *out)
{
    dq_gguf_block encoder;
    float x[256];
    if (dq_gguf_block_find(types[type].name, &encoder)) {
        for (int64_t i = 0; i < n; i += 256) {
            for (int k = 0; k < 256; k++) x[k] = 0.1f * uniform();
            dq_gguf_encode(encoder, x, 256, out + i / types[type].elements * types[type].bytes);
        }
        return;
    }
    for (int64_t b = 0; b < n / 256; b++, out += types[type].bytes) { /* Q5_K has no encoder */
        uint16_t d = dq_f32_to_f16(1e-4f), dmin = dq_f32_to_f16(1e-3f);
        for (uint32_t i = 0; i < types[type].bytes; i++) out[i] = (uint8_t)(127.0f * (uniform() + 1.0f));
        memcpy(out, &d, 2);
        memcpy(out + 2, &dmin, 2);
    }
}

static void write_file(const dq_arch *a, int type, int other, int table, dq_env *env, const char *path)
{
    dq_gguf_writer *w;
    ok(dq_gguf_writer_open(env, path, &w));
    for (int pass = 0; pass < 2; pass++) { /* the table, then the bytes */
        if (pass) ok(dq_gguf_writer_begin(w));
        for (int64_t layer = 0; layer <= a->layers; layer++)
            for (int role = 0; role < DQ_ROLES; role++) {
                bool outer = role >= DQ_EMBED,
                     norm = role == DQ_ATTN_NORM || role == DQ_MLP_NORM || role == DQ_FINAL_NORM;
                if (outer != (layer == a->layers) || (role == DQ_HEAD && a->tied) || !a->family->gguf_names[role])
                    continue;
                char name[100];
                int64_t rows, cols;
                const char *pattern = a->family->gguf_names[role], *mark = strstr(pattern, "%d");
                int at = mark ? (int)(mark - pattern) : (int)strlen(pattern);
                snprintf(name, sizeof name, "%.*s", at, pattern);
                if (mark) snprintf(name + at, sizeof name - (size_t)at, "%d%s", (int)layer, mark + 2);
                strcat(name, ".weight");
                dq_arch_shape(a, (dq_role)role, &rows, &cols);
                int t = outer ? table : role == DQ_V_PROJ || role == DQ_DOWN_PROJ ? other : type;
                uint64_t bytes =
                    norm ? (uint64_t)cols * 4 : (uint64_t)(rows * cols) / types[t].elements * types[t].bytes;
                if (!pass) {
                    dq_gguf_writer_tensor(w, name, norm ? 0 : rows, cols, norm ? 0 : types[t].id, bytes);
                    continue;
                }
                uint8_t *data = malloc(bytes);
                if (norm)
                    for (int64_t c = 0; c < cols; c++) ((float *)(void *)data)[c] = 1.0f + 0.2f * uniform();
                else
                    fill(t, rows * cols, data);
                ok(dq_gguf_writer_data(w, data, bytes));
                ok(dq_gguf_writer_end_tensor(w));
                free(data);
            }
    }
    ok(dq_gguf_writer_commit(w));
    dq_gguf_writer_free(w);
}

static int32_t best_of(const float *logits, int64_t vocab)
{
    int64_t at = 0;
    for (int64_t i = 1; i < vocab; i++)
        if (logits[i] > logits[at]) at = i;
    return (int32_t)at;
}

/* Tokens chosen by generation, one by one and in a prompt, are those of the forward pass over decoded weights. */
static void follow(dq_model *model, dq_generate_job *job, const char *what)
{
    enum { PROMPT = 30, NEW = 8 };
    int32_t ids[PROMPT + NEW];
    int64_t vocab = dq_model_arch(model)->vocab;
    float *logits = malloc((size_t)((PROMPT + NEW) * vocab) * sizeof *logits);
    for (int i = 0; i < PROMPT; i++) ids[i] = (i * 17 + 5) % 80;
    ok(dq_generate_add(job, ids, PROMPT, NULL));
    for (bool done = false; !done;) ok(dq_generate_step(job, NULL, NULL, NULL, &done));
    for (int n = PROMPT; n < PROMPT + NEW; n++) {
        ok(dq_model_forward_logits(model, ids, n, DQ_MATH_F32, logits));
        const float *row = logits + (n - 1) * vocab;
        float top = row[best_of(row, vocab)], gap = top - row[job->sequences[0].ids[n]];
        if (gap > 1e-5f * (1 + fabsf(top)))
            fail_msg("%s: %g below the largest logit of %g", what, gap, top); /* not a tie */
        ids[n] = job->sequences[0].ids[n];
    }
    free(logits);
}

/* What is read as codes stands for what is read as floats, bit for bit, also where rows of q and k change their order. */
static void same_weights(dq_model *model, dq_role role)
{
    dq_host_codes c;
    dq_linear l = {0};
    float *minimum = NULL, *want = malloc(512 * 256 * sizeof *want);
    bool found = false;
    int64_t rows, cols;
    dq_arch_shape(dq_model_arch(model), role, &rows, &cols);
    ok(dq_model_read_blocks(model, 1, role, 0, rows, &c, &minimum, &found));
    assert_true(found);
    ok(dq_model_read_linear(model, 1, role, &l));
    ok(dq_tensor_download(&l.weight, want));
    for (int64_t i = 0; i < rows * cols; i++) {
        int64_t g = i / cols * c.groups + i % cols / c.group;
        float product = c.scale[g] * (float)(c.codes[i] - (minimum ? 0 : 1 << (c.bits - 1)));
        assert_true((minimum ? product + minimum[g] : product) == want[i]);
    }
    dq_host_codes_free(&c);
    dq_linear_free(&l);
    free(want);
    dq_free(minimum);
}

/* `other`: the type of v and down; `table`: of the embedding and the head. */
static void check_file(int type, int other, int table, bool tied)
{
    fixture f;
    char dir[256], path[300];
    dq_source *source;
    dq_model *model;
    dq_generate_job *job = NULL;
    dq_arch a = arch_of(tied);
    fixture_open(&f, "cpu", 2);
    make_folder(dir, sizeof dir);
    snprintf(path, sizeof path, "%s/model.gguf", dir);
    write_file(&a, type, other, table, &f.env, path);
    ok(dq_gguf_open(&f.env, path, &source));
    ok(dq_model_from_source(f.dev, &a, source, true, &model));
    for (int role = 0; role < DQ_LINEARS; role++) same_weights(model, (dq_role)role);
    dq_generate_spec spec = {
        .max_tokens = 8, .prefill = 64, .sampling = {.top_p = 1}, .head_bits = 16, .ignore_eos = true};
    ok(dq_generate_job_new(model, NULL, &spec, &job));
    follow(model, job, types[type].name);
    const dq_block *b = &job->resident->blocks[1];
    const dq_linear *o = &b->linear[DQ_BLOCK_O], *head = &job->resident->head[0];
    double weights = 256.0 * 256, bits = 8.0 * (double)dq_linear_bytes(o) / weights;
    if (fabs(bits - types[type].bits) > 1e-9) fail_msg("%s takes %g bits a weight", types[type].name, bits);
    assert_int_equal(dq_linear_is_empty(&b->qkv), type != other);
    assert_int_equal(dq_linear_is_empty(&b->gate_up), false);
    assert_int_equal(dq_tensor_is_empty(&head->packed.codes), table == F16);
    dq_generate_job_free(job);
    dq_model_release(model);
    remove_folder(dir);
    fixture_close(&f);
}

static void every_type(void **unused)
{
    (void)unused;
    for (int t = 0; t < F16; t++) check_file(t, t, t, t % 2 == 0);
}

static void mixtures(void **unused)
{
    (void)unused;
    check_file(Q4_K, Q6_K, Q6_K, false); /* as llama.cpp's Q4_K_M */
    check_file(0, Q8_0, F16, true);
}

/* A scale that is not finite is an error with a name, as when the weight is read as floats. */
static void not_finite(void **unused)
{
    (void)unused;
    fixture f;
    char dir[256], path[300];
    dq_source *source;
    dq_model *model;
    dq_generate_job *job = NULL;
    dq_arch a = arch_of(true);
    fixture_open(&f, "cpu", 1);
    make_folder(dir, sizeof dir);
    snprintf(path, sizeof path, "%s/model.gguf", dir);
    write_file(&a, Q8_0, Q8_0, Q8_0, &f.env, path);
    ok(dq_gguf_open(&f.env, path, &source));
    uint64_t at = source->tensors[dq_source_find(source, "blk.1.attn_output.weight")].offset + 34 * 11;
    dq_source_free(source);
    FILE *file = fopen(path, "r+b");
    assert_non_null(file);
    assert_int_equal(fseek(file, (long)at, SEEK_SET), 0);
    assert_int_equal(fwrite("\x00\x7c", 1, 2, file), 2);
    fclose(file);
    ok(dq_gguf_open(&f.env, path, &source));
    ok(dq_model_from_source(f.dev, &a, source, true, &model));
    dq_generate_spec spec = {.max_tokens = 2, .prefill = 4, .sampling = {.top_p = 1}, .head_bits = 16};
    int32_t id = 3;
    bool done = false;
    dq_status status = DQ_OK;
    ok(dq_generate_job_new(model, NULL, &spec, &job));
    ok(dq_generate_add(job, &id, 1, NULL));
    for (int i = 0; i < 4 && status == DQ_OK; i++) status = dq_generate_step(job, NULL, NULL, NULL, &done);
    assert_int_equal(status, DQ_E_NONFINITE);
    assert_string_equal(dq_error_tensor(), "blk.1.attn_output.weight");
    dq_generate_job_free(job);
    dq_model_release(model);
    remove_folder(dir);
    fixture_close(&f);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(every_type),
        cmocka_unit_test(mixtures),
        cmocka_unit_test(not_finite),
    };
    return cmocka_run_group_tests_name("blocks", tests, NULL, NULL);
}
