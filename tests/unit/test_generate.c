/* generation: continuations against transformers, caches, packed weights, sampling, stops.
 * SPDX-License-Identifier: Apache-2.0 */
#include <jansson.h>
#include <math.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <cmocka.h>

#include "base/status.h"
#include "dartquant.h"
#include "generate/job.h"
#include "generate/pack.h"
#include "models.h"

static void ok(dq_status status)
{
    if (status != DQ_OK) print_message("%s\n", dq_error_text());
    assert_int_equal(status, DQ_OK);
}

/* ---- through the public header ---- */

typedef struct host {
    dq_config *config;
    dq_context *ctx;
    dq_model *model;
    dq_tokenizer *tokenizer;
    dq_generator *g;
} host;

/* `settings`: "name=value name=value". */
static void set_all(dq_config *config, const char *settings)
{
    char copy[256];
    snprintf(copy, sizeof copy, "%s", settings);
    for (char *at = strtok(copy, " "); at; at = strtok(NULL, " ")) {
        char *value = strchr(at, '=');
        *value = '\0';
        ok(dq_config_set(config, at, value + 1));
    }
}

static void host_open(host *h, const char *model, bool words, const char *settings)
{
    char path[200];
    memset(h, 0, sizeof *h);
    snprintf(path, sizeof path, "tests/data/%s", model);
    ok(dq_config_new(&h->config));
    set_all(h->config, settings);
    ok(dq_context_new(h->config, NULL, &h->ctx));
    ok(dq_model_open(h->ctx, path, &h->model));
    if (words) ok(dq_tokenizer_open(h->ctx, path, &h->tokenizer));
    ok(dq_generator_new(h->model, h->tokenizer, h->config, &h->g));
}

static void host_close(host *h)
{
    dq_tokenizer_free(h->tokenizer); /* first: the generator keeps its own */
    dq_model_free(h->model);
    dq_generator_free(h->g);
    dq_context_free(h->ctx);
    dq_config_free(h->config);
}

static size_t ids_of(const host *h, int64_t sequence, int32_t *out)
{
    size_t n = 0;
    ok(dq_generator_copy_ids(h->g, sequence, out, 256, &n));
    return n;
}

static void add_json(const host *h, const json_t *prompt)
{
    int32_t ids[64];
    size_t n = json_array_size(prompt);
    for (size_t i = 0; i < n; i++) ids[i] = (int32_t)json_integer_value(json_array_get(prompt, i));
    ok(dq_generator_add(h->g, ids, n, NULL));
}

static void expect_json(const host *h, int64_t sequence, const json_t *new)
{
    int32_t ids[256];
    size_t n = ids_of(h, sequence, ids);
    assert_true(n >= json_array_size(new));
    for (size_t i = 0; i < json_array_size(new); i++)
        assert_int_equal(ids[i], json_integer_value(json_array_get(new, i)));
}

/* All prompts of a model as one batch, and each alone in pieces of three tokens. */
static void greedy(void **state)
{
    (void)state;
    json_t *cases = json_load_file("tests/data/generate/greedy.json", 0, NULL);
    assert_non_null(cases);
    for (size_t first = 0; first < json_array_size(cases);) {
        const char *name = json_string_value(json_object_get(json_array_get(cases, first), "model"));
        size_t end = first;
        host h;
        host_open(&h, name, false, "max_tokens=24 ignore_eos=true threads=2");
        for (; end < json_array_size(cases); end++) {
            json_t *c = json_array_get(cases, end);
            if (strcmp(json_string_value(json_object_get(c, "model")), name) != 0) break;
            add_json(&h, json_object_get(c, "prompt"));
        }
        ok(dq_generator_run(h.g, NULL, NULL, NULL));
        for (size_t i = first; i < end; i++)
            expect_json(&h, (int64_t)(i - first), json_object_get(json_array_get(cases, i), "new"));
        host_close(&h);
        for (size_t i = first; i < end; i++) {
            host_open(&h, name, false, "max_tokens=24 ignore_eos=true prefill=3 threads=1");
            add_json(&h, json_object_get(json_array_get(cases, i), "prompt"));
            ok(dq_generator_run(h.g, NULL, NULL, NULL));
            expect_json(&h, 0, json_object_get(json_array_get(cases, i), "new"));
            host_close(&h);
        }
        first = end;
    }
    json_decref(cases);
}

static const int32_t prompt[] = {20, 21, 22, 23, 24, 25, 26, 27, 28, 29, 30, 31};

/* What comes out depends on the seed, not on the threads or on who else is in the batch. */
static void sampled(void **state)
{
    (void)state;
    int32_t want[256], got[256];
    for (int threads = 1; threads <= 3; threads++) {
        char settings[100];
        host h;
        snprintf(settings, sizeof settings, "max_tokens=20 temperature=0.9 top_k=40 top_p=0.95 seed=7 threads=%d",
                 threads);
        host_open(&h, "tiny", false, settings);
        ok(dq_generator_add(h.g, prompt, 12, NULL));
        if (threads == 3) ok(dq_generator_add(h.g, prompt, 5, NULL));
        ok(dq_generator_run(h.g, NULL, NULL, NULL));
        size_t n = ids_of(&h, 0, threads == 1 ? want : got);
        assert_true(n > 0);
        if (threads > 1) assert_memory_equal(want, got, n * sizeof *want);
        ok(dq_generator_reset(h.g));
        ok(dq_config_set(h.config, "seed", "8"));
        ok(dq_generator_configure(h.g, h.config));
        ok(dq_generator_add(h.g, prompt, 12, NULL));
        ok(dq_generator_run(h.g, NULL, NULL, NULL));
        ids_of(&h, 0, got);
        assert_true(memcmp(want, got, n * sizeof *want) != 0);
        host_close(&h);
    }
}

/* Each storage runs, takes the memory it says, and its first choices are those of fp32. */
static void caches(void **state)
{
    (void)state;
    static const char *const formats[] = {"f32", "f16", "bf16", "int8", "int4", "fp8"};
    int32_t want[256], got[256];
    int64_t full = 0, bytes = 0;
    for (int i = 0; i < 6; i++) {
        char settings[100];
        host h;
        snprintf(settings, sizeof settings, "max_tokens=8 ignore_eos=true kv=%s", formats[i]);
        host_open(&h, "tiny", false, settings);
        ok(dq_generator_add(h.g, prompt, 12, NULL));
        ok(dq_generator_run(h.g, NULL, NULL, NULL));
        assert_int_equal(ids_of(&h, 0, i ? got : want), 8);
        ok(dq_generator_get_int(h.g, "cache_bytes", &bytes));
        if (i == 0) full = bytes;
        if (i == 1 || i == 2) assert_int_equal(bytes * 2, full);
        if (i == 3) assert_true(bytes < full / 2);
        if (i == 4) assert_true(bytes < full * 2 / 5);
        if (i == 5) assert_int_equal(bytes * 4, full);
        if (i > 0) assert_memory_equal(want, got, (i == 4 ? 1 : 4) * sizeof *want);
        host_close(&h);
    }
}

/* ---- text ---- */

typedef struct heard {
    char text[2000];
    int events, finish;
    int stop_after;
    dq_generator *g;
} heard;

static int32_t listen(void *user, const dq_token_event *event)
{
    heard *h = user;
    assert_int_equal(strlen(event->text), event->bytes);
    assert_int_equal(event->index, h->events);
    strcat(h->text, event->text);
    h->events++;
    h->finish = event->finish;
    int32_t done = 0;
    assert_int_equal(dq_generator_step(h->g, NULL, NULL, NULL, &done), DQ_E_STATE); /* from inside a callback */
    return h->events == h->stop_after ? 5 : 0;
}

static void start_text(host *h, const char *text)
{
    int32_t ids[64];
    size_t n = 0;
    ok(dq_tokenizer_encode(h->tokenizer, text, strlen(text), DQ_ENCODE_ADD_SPECIAL, ids, 64, &n));
    ok(dq_generator_add(h->g, ids, n, NULL));
}

static void text_and_stops(void **state)
{
    (void)state;
    host h;
    const char *whole = NULL, *cut = NULL;
    char all[2000], stop[16];
    host_open(&h, "tiny", true, "max_tokens=40 ignore_eos=true");
    heard told = {.g = h.g};
    start_text(&h, "Ada found");
    ok(dq_generator_run(h.g, NULL, listen, &told));
    ok(dq_generator_text(h.g, 0, &whole));
    assert_string_equal(whole, told.text); /* the pieces are the text */
    assert_int_equal(told.finish, DQ_FINISH_LENGTH);
    assert_int_equal(told.events, 40);
    assert_true(strlen(whole) > 30);
    snprintf(all, sizeof all, "%s", whole);
    snprintf(stop, sizeof stop, "%.7s", all + 15);
    ok(dq_generator_reset(h.g));
    ok(dq_generator_add_stop(h.g, "not in there at all"));
    ok(dq_generator_add_stop(h.g, stop));
    told = (heard){.g = h.g};
    start_text(&h, "Ada found");
    ok(dq_generator_run(h.g, NULL, listen, &told));
    ok(dq_generator_text(h.g, 0, &cut));
    assert_int_equal(told.finish, DQ_FINISH_STOP);
    assert_string_equal(cut, told.text);
    assert_int_equal(strlen(cut), strstr(all, stop) - all);
    assert_memory_equal(cut, all, strlen(cut));
    host_close(&h);
}

static void ends_and_cancels(void **state)
{
    (void)state;
    host h;
    int32_t want[256], got[256], done = 0, reason = -1;
    host_open(&h, "tiny", true, "max_tokens=12 ignore_eos=true");
    assert_int_equal(dq_generator_step(h.g, NULL, NULL, NULL, &done), DQ_E_STATE); /* no prompt */
    ok(dq_generator_add(h.g, prompt, 12, NULL));
    ok(dq_generator_run(h.g, NULL, NULL, NULL));
    assert_int_equal(ids_of(&h, 0, want), 12);
    assert_int_equal(dq_generator_add(h.g, prompt, 12, NULL), DQ_E_STATE); /* under way */
    /* A host that says no keeps what was made, and goes on where it was. */
    ok(dq_generator_reset(h.g));
    ok(dq_generator_add(h.g, prompt, 12, NULL));
    heard told = {.g = h.g, .stop_after = 3};
    assert_int_equal(dq_generator_run(h.g, NULL, listen, &told), DQ_E_CANCELLED);
    assert_int_equal(ids_of(&h, 0, got), 3);
    ok(dq_generator_run(h.g, NULL, NULL, NULL));
    assert_int_equal(ids_of(&h, 0, got), 12);
    assert_memory_equal(want, got, 12 * sizeof *want);
    /* A cancel token stops before the next step. */
    dq_cancel *cancel = NULL;
    ok(dq_cancel_new(&cancel));
    dq_cancel_set(cancel);
    ok(dq_generator_reset(h.g));
    ok(dq_generator_add(h.g, prompt, 12, NULL));
    assert_int_equal(dq_generator_run(h.g, cancel, NULL, NULL), DQ_E_CANCELLED);
    dq_cancel_free(cancel);
    /* An end token. */
    ok(dq_generator_reset(h.g));
    ok(dq_config_set(h.config, "ignore_eos", "false"));
    ok(dq_generator_configure(h.g, h.config));
    ok(dq_generator_add_stop_id(h.g, want[4]));
    ok(dq_generator_add(h.g, prompt, 12, NULL));
    ok(dq_generator_run(h.g, NULL, NULL, NULL));
    ok(dq_generator_finish_reason(h.g, 0, &reason));
    assert_int_equal(reason, DQ_FINISH_EOS);
    size_t n = ids_of(&h, 0, got);
    assert_true(n >= 1 && n <= 5 && got[n - 1] == want[n - 1]);
    assert_int_equal(dq_generator_finish_reason(h.g, 1, &reason), DQ_E_NOTFOUND);
    /* What cannot be. */
    ok(dq_generator_reset(h.g));
    int32_t beyond[] = {1, 99999};
    assert_int_equal(dq_generator_add(h.g, beyond, 2, NULL), DQ_E_MISMATCH);
    assert_non_null(strstr(dq_error_text(), "99999"));
    assert_int_equal(dq_generator_add(h.g, prompt, 0, NULL), DQ_E_INVALID);
    assert_int_equal(dq_generator_add_stop(h.g, ""), DQ_E_INVALID);
    assert_int_equal(dq_config_set(h.config, "top_p", "0"), DQ_E_INVALID);
    host_close(&h);
}

/* ---- sampling ---- */

static void sampler(void **state)
{
    (void)state;
    enum { N = 5, DRAWS = 4000 };
    fixture f;
    fixture_open(&f, "ref", 1);
    const float logits[N] = {0.5f, 2.0f, -1.0f, 2.0f, 1.0f};
    dq_sampling s = {.temperature = 0, .top_p = 1};
    int32_t id = -1;
    ok(dq_sample(&f.env, &s, logits, N, 0, 0, &id));
    assert_int_equal(id, 1); /* the lowest of equals */
    int seen[N] = {0};
    double p[N], total = 0;
    s.temperature = 1.5;
    for (int i = 0; i < N; i++) total += p[i] = exp(logits[i] / 1.5);
    for (int i = 0; i < DRAWS; i++) {
        ok(dq_sample(&f.env, &s, logits, N, i % 7, i / 7, &id));
        seen[id]++;
    }
    for (int i = 0; i < N; i++) /* four standard deviations */
        assert_true(fabs(seen[i] - DRAWS * p[i] / total) < 4 * sqrt(DRAWS * p[i] / total));
    memset(seen, 0, sizeof seen);
    s.top_k = 3;
    for (int i = 0; i < DRAWS / 4; i++) {
        ok(dq_sample(&f.env, &s, logits, N, 0, i, &id));
        seen[id]++;
    }
    assert_true(seen[0] == 0 && seen[2] == 0 && seen[1] > 0 && seen[3] > 0 && seen[4] > 0);
    memset(seen, 0, sizeof seen);
    s.top_k = 0;
    s.top_p = 0.5; /* the two largest have 0.62 of the sum, one alone 0.31 */
    for (int i = 0; i < DRAWS / 4; i++) {
        ok(dq_sample(&f.env, &s, logits, N, 0, i, &id));
        seen[id]++;
    }
    assert_true(seen[1] > 0 && seen[3] > 0 && seen[0] + seen[2] + seen[4] == 0);
    const float bad[2] = {1, NAN};
    assert_int_equal(dq_sample(&f.env, &s, bad, 2, 0, 0, &id), DQ_E_NONFINITE);
    s.top_p = 0;
    assert_int_equal(dq_sampling_check(&s), DQ_E_INVALID);
    fixture_close(&f);
}

/* ---- packed weights ---- */

static int32_t best_of(const float *logits, int64_t vocab)
{
    int64_t at = 0;
    for (int64_t i = 1; i < vocab; i++)
        if (logits[i] > logits[at]) at = i;
    return (int32_t)at;
}

static uint64_t linear_bytes(const dq_resident *r, int64_t *weights)
{
    uint64_t bytes = 0;
    *weights = 0;
    for (int64_t l = 0; l < r->layers; l++) {
        bytes += dq_linear_bytes(&r->blocks[l].qkv) + dq_linear_bytes(&r->blocks[l].gate_up);
        for (int i = 0; i < DQ_BLOCK_LINEARS; i++) {
            int64_t rows, cols;
            bytes += dq_linear_bytes(&r->blocks[l].linear[i]);
            if (!dq_arch_has(dq_model_arch(r->model), (dq_role)i)) continue;
            dq_arch_shape(dq_model_arch(r->model), (dq_role)i, &rows, &cols);
            *weights += rows * cols;
        }
    }
    return bytes;
}

/* Generation from packed codes chooses what the whole forward pass over dequantized weights chooses. */
static void packed(void **state)
{
    (void)state;
    static const struct {
        int bits;
        bool symmetric, g_idx;
        int64_t group;
        double most;       /* bytes against fp16 */
        const char *model; /* NULL = mha */
    } cases[] = {
        {4, true, false, 32, 0.35, NULL},   {4, false, false, 16, 0.5, NULL},    {3, false, true, 16, 0.5, NULL},
        {8, true, false, -1, 0.62, NULL},   {5, false, false, 48, 0.75, NULL},   {2, true, false, 12, 0.9, NULL},
        {4, false, true, 24, 0.6, NULL},    {4, true, false, 32, 0.45, "qwen2"}, {4, true, false, 32, 0.45, "qwen3"},
        {4, false, false, 16, 0.6, "bias"}, {4, true, false, 32, 0.5, "opt"}};
    for (size_t c = 0; c < sizeof cases / sizeof cases[0]; c++) {
        fixture f;
        fixture_open(&f, "cpu", 2);
        dq_model *base = open_tiny(&f, cases[c].model ? cases[c].model : "mha"), *model = NULL;
        dq_source *store =
            quantize_to_memory(&f, base, cases[c].bits, cases[c].symmetric, cases[c].group, cases[c].g_idx);
        dq_scheme scheme = plain_scheme();
        scheme.w.bits = cases[c].bits;
        ok(dq_model_derive_quantized(base, store, &scheme, &model));
        dq_generate_spec spec = {
            .max_tokens = 6, .prefill = 64, .sampling = {.top_p = 1}, .head_bits = 16, .ignore_eos = true};
        dq_generate_job *job = NULL;
        ok(dq_generate_job_new(model, NULL, &spec, &job));
        int32_t ids[40];
        for (int i = 0; i < 30; i++) ids[i] = (i * 17 + 5) % 96;
        ok(dq_generate_add(job, ids, 30, NULL)); /* many rows: panels */
        for (bool done = false; !done;) ok(dq_generate_step(job, NULL, NULL, NULL, &done));
        int64_t vocab = dq_model_arch(model)->vocab, weights;
        float *logits = malloc((size_t)(40 * vocab) * sizeof *logits);
        for (int n = 30; n < 36; n++) {
            ok(dq_model_forward_logits(model, ids, n, DQ_MATH_F32, logits));
            const float *row = logits + (n - 1) * vocab;
            float gap = row[best_of(row, vocab)] - row[job->sequences[0].ids[n]];
            assert_true(gap < 1e-3f); /* equal but for a tie */
            ids[n] = job->sequences[0].ids[n];
        }
        free(logits);
        double ratio = (double)linear_bytes(job->resident, &weights) / (2.0 * (double)weights);
        if (ratio > cases[c].most) print_error("case %zu: %.3f of fp16\n", c, ratio);
        assert_true(ratio <= cases[c].most);
        const dq_block *b = &job->resident->blocks[0];
        bool gated = dq_arch_is_gated(dq_model_arch(model));
        assert_false(dq_tensor_is_empty(gated ? &b->gate_up.packed.codes : &b->linear[DQ_BLOCK_UP].packed.codes));
        assert_false(dq_tensor_is_empty(&job->resident->blocks[0].qkv.packed.codes));
        assert_int_equal(dq_tensor_is_empty(&job->resident->blocks[0].qkv.bias),
                         !dq_arch_has_bias(dq_model_arch(model), DQ_Q_PROJ));
        dq_generate_job_free(job);
        dq_model_release(model);
        dq_model_release(base);
        fixture_close(&f);
    }
}

/* Weights that a half type holds exactly are kept in it; the head may be rounded to codes. */
static void memory(void **state)
{
    (void)state;
    host h;
    int64_t exact = 0, rounded = 0;
    for (int i = 0; i < 2; i++) {
        host_open(&h, "models/gqa", false, i ? "max_tokens=4 head=int8" : "max_tokens=4"); /* BF16 weights */
        ok(dq_generator_add(h.g, prompt, 4, NULL));
        ok(dq_generator_run(h.g, NULL, NULL, NULL));
        ok(dq_generator_get_int(h.g, "weights_bytes", i ? &rounded : &exact));
        host_close(&h);
    }
    assert_true(rounded < exact);
    fixture f;
    fixture_open(&f, "ref", 1);
    const float halves[] = {1, 0.5f, 65504, 0.099975586f}, wide[] = {1, 0.1f};
    dq_tensor t;
    ok(dq_tensor_from_host(f.dev, DQ_F32, 1, 4, halves, &t));
    ok(dq_narrow_exact(&t));
    assert_int_equal(t.view.dtype, DQ_F16);
    dq_tensor_free(&t);
    ok(dq_tensor_from_host(f.dev, DQ_F32, 1, 2, wide, &t));
    ok(dq_narrow_exact(&t));
    assert_int_equal(t.view.dtype, DQ_F32);
    dq_tensor_free(&t);
    fixture_close(&f);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(greedy),           cmocka_unit_test(sampled), cmocka_unit_test(caches),
        cmocka_unit_test(text_and_stops),   cmocka_unit_test(sampler), cmocka_unit_test(packed),
        cmocka_unit_test(ends_and_cancels), cmocka_unit_test(memory),
    };
    return cmocka_run_group_tests_name("generate", tests, NULL, NULL);
}
