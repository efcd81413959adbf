/* KVQuant: calibration against its definition, what a block does with the tables, and whole jobs through the public header:
 * reports, saves, resumes, generates. SPDX-License-Identifier: Apache-2.0 */
#include <math.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <cmocka.h>

#include "base/status.h"
#include "generate/job.h"
#include "host_model.h"
#include "io/formats.h"
#include "io/json.h"
#include "model/kvquant.h"
#include "models.h"
#include "quant/kv_job.h"
#include "quant/levels.h"
#include "scratch.h"

static dq_scheme kv_scheme(int bits, dq_kv_levels levels, double outliers, int sink, bool qnorm)
{
    dq_scheme s = plain_scheme();
    s.k.bits = s.v.bits = bits;
    s.kvquant = (dq_kvquant_spec){.on = true, .levels = levels, .outliers = outliers, .sink = sink, .qnorm = qnorm};
    return s;
}

static dq_kv_tables *calibrate(dq_model *model, const dq_scheme *s, const int32_t *ids, int64_t n, int64_t seqlen)
{
    dq_kv_job *job = NULL;
    OK(dq_kv_job_new(model, s, ids, n, seqlen, DQ_MATH_F32, &job));
    for (bool last = false; !last;) OK(dq_kv_job_step(job, NULL, &last));
    dq_kv_tables *t = dq_kv_job_take(job);
    dq_kv_job_free(job);
    OK(dq_kv_tables_check(t));
    return t;
}

static dq_model *quantized(dq_model *model, dq_scheme s, const expected *e)
{
    dq_model *q = NULL;
    dq_kv_tables *t = calibrate(model, &s, e->ids, 2, e->tokens / 2);
    s.tables = t;
    OK(dq_model_derive_quantized(model, NULL, &s, &q));
    dq_kv_tables_free(t);
    return q;
}

/* ---- calibration ---- */

static int ascending(const void *a, const void *b)
{
    float x = *(const float *)a, y = *(const float *)b;
    return x < y ? -1 : x > y;
}

/* The squared error of 16 levels on layer 0's keys (range given) or values. */
static double error_of(const dq_tensor *x, const dq_tensor *range, const float *levels, int64_t n, int sink)
{
    dq_levels_quant_desc d = {
        .per_row = !range, .keep_outliers = 1, .outliers = range ? 0 : 0.1, .seqlen = n, .sink = sink, .norm_scale = 1};
    dq_tensor y = {0}, table = {0};
    double sum = 0;
    OK(dq_tensor_alloc(x->dev, DQ_F32, x->view.rows, x->view.cols, &y));
    OK(dq_tensor_from_host(x->dev, DQ_F32, 1, 16, levels, &table));
    OK(dq_op_levels_quant(&d, x, range, &table, NULL, &y));
    float *a = host_copy(x), *b = host_copy(&y);
    for (int64_t i = 0; i < x->view.rows * x->view.cols; i++) sum += (double)(a[i] - b[i]) * (double)(a[i] - b[i]);
    free(a);
    free(b);
    dq_tensor_free(&table);
    dq_tensor_free(&y);
    return sum;
}

/* Fitted levels err less than any others on what they were fitted to. */
static void check_levels(const dq_kv_tables *t, const dq_workspace *ws, int64_t n, int sink)
{
    float others[2][16];
    dq_tensor range = {0};
    OK(dq_tensor_from_host(ws->k.dev, DQ_F32, 2, t->channels, t->ranges, &range));
    dq_levels_uniform(16, others[0]);
    dq_levels_normal(16, others[1]);
    double keys = error_of(&ws->k, &range, t->k, n, sink), values = error_of(&ws->v, NULL, t->v, n, sink);
    for (int i = 0; i < 2; i++) {
        assert_true(keys < 0.95 * error_of(&ws->k, &range, others[i], n, sink));
        assert_true(values < 0.95 * error_of(&ws->v, NULL, others[i], n, sink));
    }
    dq_tensor_free(&range);
}

/* Layer 0's keys of all windows, sinks left out, sorted: their percentiles by hand are the ranges. */
static void check_ranges(int64_t windows, int64_t n)
{
    enum { SINK = 2 };
    fixture f;
    fixture_open(&f, "cpu", 2);
    dq_model *model = open_tiny(&f, "qwen2"); /* its k_proj has a bias */
    int64_t kv = dq_model_arch(model)->kv_heads * dq_model_arch(model)->head_dim;
    int32_t *ids = malloc((size_t)(windows * n) * sizeof *ids);
    float *column = malloc((size_t)(windows * n) * sizeof *column);
    for (int64_t i = 0; i < windows * n; i++) ids[i] = (int32_t)((i * i + 7 * i) % dq_model_arch(model)->vocab);
    dq_scheme s = kv_scheme(4, DQ_KV_LEVELS_NUQ, 0.1, SINK, true);
    dq_kv_tables *t = calibrate(model, &s, ids, windows, n);
    dq_block_spec spec;
    dq_block block;
    dq_workspace ws;
    dq_tensor h;
    OK(dq_model_block_spec(model, n, DQ_MATH_F32, &spec));
    OK(dq_model_load_block(model, 0, &block));
    OK(dq_workspace_alloc(f.dev, &spec, windows * n, &ws));
    OK(dq_tensor_alloc(f.dev, DQ_F32, windows * n, spec.hidden, &h));
    OK(dq_model_embed(model, ids, windows * n, n, &h));
    OK(dq_block_attn_in(&spec, &block, &h, &ws));
    OK(dq_block_keys_values(&spec, &block, &ws));
    float *k = host_copy(&ws.k);
    for (int64_t c = 0; c < kv; c++) {
        int count = 0;
        for (int64_t r = 0; r < windows * n; r++)
            if (r % n >= SINK) column[count++] = k[r * kv + c];
        qsort(column, (size_t)count, sizeof *column, ascending);
        for (int end = 0; end < 2; end++) {
            double at = (end ? 0.95 : 0.05) * (count - 1), part = at - floor(at);
            double below = column[(int)at], above = column[(int)at + (part > 0)],
                   wanted = below + part * (above - below);
            /* rows may be multiplied in other batches */
            assert_true(fabs((double)t->ranges[end * kv + c] - wanted) <= 1e-5 * (1 + fabs(wanted)));
        }
    }
    assert_true(t->norms[0] != 1 && t->norms[2] != 1);
    check_levels(t, &ws, n, SINK);
    free(k);
    free(ids);
    free(column);
    dq_tensor_free(&h);
    dq_workspace_free(&ws);
    dq_block_free(&block);
    dq_block_spec_clear(&spec);
    dq_kv_tables_free(t);
    dq_model_release(model);
    fixture_close(&f);
}

static void ranges_are_percentiles(void **state)
{
    (void)state;
    check_ranges(2, 24);
    check_ranges(5, 600); /* more than go through a layer at once */
}

/* Any number of threads, keys of one channel at a time: the same bits. */
static void calibration_is_one_result(void **state)
{
    (void)state;
    uint64_t first = 0;
    static const uint64_t budgets[] = {0, 1, 700};
    for (int i = 0; i < 3; i++) {
        fixture f;
        fixture_open(&f, "cpu", 1 + i);
        f.env.memory_budget = budgets[i];
        dq_model *model = open_tiny(&f, "gqa");
        expected e;
        read_expected(&f, "gqa", &e);
        dq_scheme s = kv_scheme(3, DQ_KV_LEVELS_NUQ, 0.05, 1, true);
        dq_kv_tables *t = calibrate(model, &s, e.ids, 2, e.tokens / 2);
        if (i == 0) first = dq_kv_tables_hash(t);
        assert_true(dq_kv_tables_hash(t) == first);
        dq_kv_tables_free(t);
        dq_model_release(model);
        fixture_close(&f);
    }
}

static void refuses_bad_requests(void **state)
{
    (void)state;
    fixture f;
    expected e;
    dq_kv_job *job = NULL;
    fixture_open(&f, "ref", 1);
    dq_model *model = open_tiny(&f, "mha"), *q = NULL;
    read_expected(&f, "mha", &e);
    dq_scheme s = kv_scheme(4, DQ_KV_LEVELS_NUQ, 0.01, 8, false);
    assert_int_equal(dq_kv_job_new(model, &s, e.ids, 2, 8, DQ_MATH_F32, &job), DQ_E_INVALID);
    assert_non_null(strstr(dq_error_text(), "kv_sink = 8"));
    assert_int_equal(dq_model_derive_quantized(model, NULL, &s, &q), DQ_E_STATE); /* no tables */
    dq_kv_tables *t = calibrate(model, &s, e.ids, 2, 16);
    s.tables = t;
    s.k.bits = 3; /* of another width */
    assert_int_equal(dq_model_derive_quantized(model, NULL, &s, &q), DQ_E_INVALID);
    s.k.bits = 9;
    assert_int_equal(dq_model_derive_quantized(model, NULL, &s, &q), DQ_E_INVALID);
    assert_non_null(strstr(dq_error_text(), "k_bits = 9"));
    dq_error_reset();
    dq_kv_tables_free(t);
    dq_model_release(model);
    fixture_close(&f);
}

static bool endless_keys(const char *name, int64_t rows, int64_t cols, float *values, void *arg)
{
    const char *wanted = arg;
    if (strstr(name, "layers.1.") && strstr(name, wanted))
        for (int64_t i = 0; i < rows * cols; i++) values[i] = i % 2 ? 3e38f : -3e38f;
    return true;
}

/* Numbers beyond floats end the calibration with their place. */
static void says_what_is_not_finite(void **state)
{
    (void)state;
    static char *const names[] = {"k_proj", "v_proj"};
    for (int i = 0; i < 2; i++) {
        fixture f;
        expected e;
        dq_model *model = NULL;
        dq_kv_job *job = NULL;
        bool last = false;
        fixture_open(&f, "cpu", 2);
        read_expected(&f, "gqa", &e);
        OK(changed_model(&f, "gqa", endless_keys, names[i], &model));
        dq_scheme s = kv_scheme(4, DQ_KV_LEVELS_NUQ, 0.01, 1, false);
        OK(dq_kv_job_new(model, &s, e.ids, 2, e.tokens / 2, DQ_MATH_F32, &job));
        OK(dq_kv_job_step(job, NULL, &last));
        assert_int_equal(dq_kv_job_step(job, NULL, &last), DQ_E_NONFINITE);
        assert_non_null(strstr(dq_error_text(), i ? "value " : "key "));
        assert_non_null(strstr(dq_error_text(), "in layer 1 is not finite"));
        assert_int_equal(dq_kv_job_step(job, NULL, &last), DQ_E_STATE);
        dq_error_reset();
        dq_kv_job_free(job);
        dq_model_release(model);
        fixture_close(&f);
    }
}

/* ---- what a block does ---- */

/* Zeroes row 3 of every k_proj, whose bias alone is left; the bias of row 4 becomes far from zero. */
static bool bend_keys(const char *name, int64_t rows, int64_t cols, float *values, void *arg)
{
    (void)arg;
    (void)rows;
    if (strstr(name, "k_proj.weight")) memset(values + 3 * cols, 0, (size_t)cols * sizeof *values);
    if (strstr(name, "k_proj.bias")) {
        values[3] = 0.7f;
        values[4] = 50;
    }
    return true;
}

typedef struct probe {
    float *k, *v; /* [3 * seqlen, kv] after attention */
} probe;

/* Three sequences through layer 0's attention at once; OPT has no RoPE, so that its keys can be looked at. */
static probe attend(fixture *f, dq_model *model, const int32_t *ids, int64_t seqlen)
{
    dq_block_spec spec;
    dq_block block;
    dq_workspace ws;
    dq_tensor h;
    OK(dq_model_block_spec(model, seqlen, DQ_MATH_F32, &spec));
    OK(dq_model_load_block(model, 0, &block));
    OK(dq_workspace_alloc(f->dev, &spec, 3 * seqlen, &ws));
    OK(dq_tensor_alloc(f->dev, DQ_F32, 3 * seqlen, spec.hidden, &h));
    OK(dq_model_embed(model, ids, 3 * seqlen, seqlen, &h));
    OK(dq_block_attn_in(&spec, &block, &h, &ws));
    OK(dq_block_attn(&spec, &block, &ws));
    probe p = {host_copy(&ws.k), host_copy(&ws.v)};
    dq_tensor_free(&h);
    dq_workspace_free(&ws);
    dq_block_free(&block);
    dq_block_spec_clear(&spec);
    return p;
}

static void sinks_and_channels(void **state)
{
    (void)state;
    enum { SEQ = 10, SINK = 2, BITS = 4 };
    fixture f;
    expected e;
    dq_model *model = NULL, *q = NULL;
    fixture_open(&f, "ref", 1);
    read_expected(&f, "opt", &e);
    OK(changed_model(&f, "opt", bend_keys, NULL, &model));
    int64_t kv = dq_model_arch(model)->kv_heads * dq_model_arch(model)->head_dim, changed[2] = {0};
    dq_scheme s = kv_scheme(BITS, DQ_KV_LEVELS_UNIFORM, 0, SINK, false);
    dq_kv_tables *t = calibrate(model, &s, e.ids, 3, SEQ);
    s.tables = t;
    OK(dq_model_derive_quantized(model, NULL, &s, &q));
    probe full = attend(&f, model, e.ids, SEQ), got = attend(&f, q, e.ids, SEQ);
    for (int64_t r = 0; r < 3 * SEQ; r++)
        for (int64_t c = 0; c < kv; c++) {
            float k = full.k[r * kv + c], v = full.v[r * kv + c], kq = got.k[r * kv + c], vq = got.v[r * kv + c];
            if (r % SEQ < SINK || c == 3) assert_true(kq == k);
            if (r % SEQ < SINK) assert_true(vq == v);
            /* these windows are those of the calibration: no key is outside its range */
            float step = (t->ranges[kv + c] - t->ranges[c]) / ((1 << BITS) - 1);
            assert_true(fabsf(kq - k) <= 0.501f * step + 1e-5f);
            if (c == 3) assert_true(k == 0.7f && step == 0);
            if (c == 4) assert_true(t->ranges[c] > 0 && kq > 0);
            changed[0] += kq != k;
            changed[1] += vq != v;
        }
    assert_true(changed[0] > 2 * (SEQ - SINK) * (kv - 1) && changed[1] > 2 * (SEQ - SINK) * kv);
    free(full.k);
    free(full.v);
    free(got.k);
    free(got.v);
    dq_kv_tables_free(t);
    dq_model_release(q);
    dq_model_release(model);
    fixture_close(&f);
}

static double change_of(dq_model *model, dq_scheme s, const expected *e, const float *full)
{
    static float logits[64 * 128];
    dq_model *q = quantized(model, s, e);
    logits_of(q, e, logits);
    dq_model_release(q);
    return max_difference(logits, full, e->tokens * e->vocab);
}

/* Every shape of attention: grouped heads, biases, norms of heads, learned positions, a window. More bits are nearer, 16 are
 * the model itself, and so is a sequence of nothing but sinks. */
static void families(void **state)
{
    (void)state;
    static const char *const names[] = {"mha", "gqa", "bias", "qwen2", "qwen3", "opt", "window"};
    static float full[64 * 128];
    for (int dev = 0; dev < 2; dev++)
        for (size_t i = 0; i < sizeof names / sizeof *names; i++) {
            fixture f;
            expected e;
            fixture_open(&f, dev ? "cpu" : "ref", 2);
            dq_model *model = open_tiny(&f, names[i]);
            read_expected(&f, names[i], &e);
            logits_of(model, &e, full);
            double eight = change_of(model, kv_scheme(8, DQ_KV_LEVELS_NUQ, 0.02, 1, false), &e, full);
            double two = change_of(model, kv_scheme(2, DQ_KV_LEVELS_NUQ, 0, 0, true), &e, full);
            double nf = change_of(model, kv_scheme(4, DQ_KV_LEVELS_NF, 0, 0, false), &e, full);
            assert_true(eight > 0 && eight < 0.1 * two && nf < two);
            dq_scheme off = kv_scheme(16, DQ_KV_LEVELS_NUQ, 0.01, 1, false);
            dq_model *q = NULL;
            OK(dq_model_derive_quantized(model, NULL, &off, &q));
            assert_true(logits_difference(q, &e) == max_difference(full, e.logits, e.tokens * e.vocab));
            dq_model_release(q);
            dq_scheme sinks = kv_scheme(2, DQ_KV_LEVELS_UNIFORM, 0, 0, false);
            dq_kv_tables *t = calibrate(model, &sinks, e.ids, 2, 16);
            sinks.tables = t;
            sinks.kvquant.sink = 64;
            OK(dq_model_derive_quantized(model, NULL, &sinks, &q));
            static float same[64 * 128];
            logits_of(q, &e, same);
            assert_true(max_difference(same, full, e.tokens * e.vocab) == 0);
            dq_kv_tables_free(t);
            dq_model_release(q);
            dq_model_release(model);
            fixture_close(&f);
        }
}

/* ---- tables from outside ---- */

typedef void (*damage_fn)(dq_kv_tables *t);
static void good(dq_kv_tables *t) { (void)t; }
static void nan_range(dq_kv_tables *t) { t->ranges[5] = NAN; }
static void turned_range(dq_kv_tables *t) { t->ranges[2] = t->ranges[t->channels + 2] + 1; }
static void endless_range(dq_kv_tables *t) { t->ranges[t->channels] = INFINITY; }
static void unsorted(dq_kv_tables *t) { t->k[3] = t->k[1]; }
static void far_level(dq_kv_tables *t) { t->v[7] = 1.5f; }
static void nan_level(dq_kv_tables *t) { t->v[0] = NAN; }
static void no_norm(dq_kv_tables *t) { t->norms[0] = 0; }
static void nan_norm(dq_kv_tables *t) { t->norms[3] = NAN; }
static void short_ranges(dq_kv_tables *t) { t->channels -= 1; }
static void fewer_levels(dq_kv_tables *t) { t->v_levels -= 1; }

static dq_status read_damaged(fixture *f, const dq_scheme *s, const dq_arch *a, const dq_kv_tables *t, damage_fn damage)
{
    dq_kv_tables *copy = NULL, *back = NULL;
    dq_sink *sink = NULL;
    dq_source *source = NULL;
    OK(dq_kv_tables_copy(&f->env, t, &copy));
    damage(copy);
    OK(dq_memory_sink(&f->env, &sink));
    OK(dq_kv_tables_put(sink, copy));
    OK(sink->ops->finish(sink));
    OK(dq_memory_source(sink, &source));
    dq_status status = dq_kv_tables_read(source, s, a, &back);
    if (status == DQ_OK) assert_true(dq_kv_tables_hash(back) == dq_kv_tables_hash(t));
    dq_kv_tables_free(back);
    dq_kv_tables_free(copy);
    dq_source_free(source);
    sink->ops->free(sink);
    return status;
}

static void refuses_damaged_tables(void **state)
{
    (void)state;
    static const struct {
        damage_fn damage;
        dq_status status;
        const char *word;
    } cases[] = {{nan_range, DQ_E_FORMAT, "channel 5"},     {turned_range, DQ_E_FORMAT, "channel 2"},
                 {endless_range, DQ_E_FORMAT, "channel 0"}, {unsorted, DQ_E_FORMAT, "ascending"},
                 {far_level, DQ_E_FORMAT, "level 7"},       {nan_level, DQ_E_FORMAT, "level 0"},
                 {no_norm, DQ_E_FORMAT, "Q-Norm"},          {nan_norm, DQ_E_FORMAT, "Q-Norm"},
                 {short_ranges, DQ_E_MISMATCH, "floats"},   {fewer_levels, DQ_E_MISMATCH, "floats"}};
    fixture f;
    expected e;
    fixture_open(&f, "ref", 1);
    dq_model *model = open_tiny(&f, "gqa");
    read_expected(&f, "gqa", &e);
    dq_scheme s = kv_scheme(3, DQ_KV_LEVELS_NUQ, 0.01, 1, true);
    dq_kv_tables *t = calibrate(model, &s, e.ids, 2, 16);
    OK(read_damaged(&f, &s, dq_model_arch(model), t, good));
    for (size_t i = 0; i < sizeof cases / sizeof *cases; i++) {
        assert_int_equal(read_damaged(&f, &s, dq_model_arch(model), t, cases[i].damage), cases[i].status);
        assert_non_null(strstr(dq_error_text(), cases[i].word));
        dq_error_reset();
    }
    dq_kv_tables_free(t);
    dq_model_release(model);
    fixture_close(&f);
}

/* ---- jobs ---- */

#define KV "kv_method=kvquant k_bits=3 v_bits=4 kv_outliers=0.02 kv_sink=1 kv_qnorm=true nsamples=6 seqlen=32 limit=4"

/* Runs the job; the hash of its tables (free), and the result's perplexity. */
static char *finish_job(host_bench *b, dq_quantizer *q, double *ppl)
{
    const char *report = NULL;
    dq_model *model = NULL;
    json_t *o = NULL;
    OK(dq_quantizer_run(q, NULL, NULL, NULL));
    OK(dq_quantizer_report(q, &report));
    OK(dq_json_parse(report, strlen(report), NULL, &o));
    const json_t *kv = json_object_get(json_object_get(o, "scheme"), "kvquant");
    assert_string_equal(json_string_value(json_object_get(kv, "levels")), "nuq");
    assert_true(fabs(json_number_value(json_object_get(kv, "key_bits")) - 3.64) < 1e-9);
    assert_true(fabs(json_number_value(json_object_get(kv, "average_bits")) - 4.14) < 1e-9);
    char *hash = strdup(json_string_value(json_object_get(kv, "tables")));
    json_decref(o);
    OK(dq_quantizer_take_model(q, &model));
    dq_quantizer_free(q);
    *ppl = host_perplexity(model, b->config, b->set);
    dq_model_free(model);
    return hash;
}

static void same_for_any_threads(void **state)
{
    (void)state;
    char *first = NULL;
    double ppl[4], plain;
    host_bench b = host_bench_open(KV, 1, true);
    plain = host_perplexity(b.model, b.config, b.set);
    host_bench_close(&b);
    for (int threads = 1; threads <= 3; threads++) {
        b = host_bench_open(KV, threads, true);
        char *hash = finish_job(&b, host_calibrated_quantizer(&b), &ppl[threads]);
        if (!first) first = strdup(hash);
        assert_string_equal(hash, first);
        assert_true(ppl[threads] == ppl[1] && ppl[1] != plain);
        free(hash);
        host_bench_close(&b);
    }
    free(first);
}

/* One member of the manifest's object becomes another value; the folder no longer opens, and says why. */
static void refuse_edited(host_bench *b, const char *dir, const char *key, json_t *value)
{
    char path[440];
    dq_model *model = NULL;
    snprintf(path, sizeof path, "%s/dartquant.json", dir);
    json_t *o = json_load_file(path, 0, NULL), *kept = json_deep_copy(o);
    json_object_set_new(json_object_get(json_object_get(o, "quantization"), "kvquant"), key, value);
    assert_int_equal(json_dump_file(o, path, 0), 0);
    assert_int_equal(dq_model_open(b->ctx, dir, &model), DQ_E_FORMAT);
    assert_non_null(strstr(dq_error_text(), key));
    assert_int_equal(json_dump_file(kept, path, JSON_INDENT(2)), 0);
    json_decref(o);
    json_decref(kept);
}

/* Saved, opened again, saved from memory, with and without quantized weights: the same bits. */
static void saved_models_keep_them(void **state)
{
    (void)state;
    static const char *const weights[] = {KV, KV " w_bits=4 w_rtn=true", KV " w_bits=4"};
    for (int i = 0; i < 3; i++) {
        char dir[400], path[440], second[400];
        double ppl, saved;
        host_bench b = host_bench_open(weights[i], 2, true);
        snprintf(dir, sizeof dir, "%s/saved%d", scratch_dir(), i);
        snprintf(second, sizeof second, "%s/again%d", scratch_dir(), i);
        snprintf(path, sizeof path, "%s/dartquant.json", dir);
        char *hash = finish_job(&b, host_calibrated_quantizer(&b), &ppl);
        OK(dq_config_set(b.config, "save_qmodel_path", dir));
        char *again = finish_job(&b, host_calibrated_quantizer(&b), &saved);
        assert_string_equal(hash, again);
        assert_true(saved == ppl);
        dq_model *model = NULL;
        OK(dq_model_open(b.ctx, dir, &model));
        assert_true(host_perplexity(model, b.config, b.set) == ppl);
        OK(dq_model_save(model, second, NULL, NULL, NULL, NULL));
        dq_model_free(model);
        OK(dq_model_open(b.ctx, second, &model));
        assert_true(host_perplexity(model, b.config, b.set) == ppl);
        dq_model_free(model);
        json_t *o = json_load_file(path, 0, NULL);
        assert_int_equal(json_integer_value(json_object_get(o, "version")), 3);
        json_decref(o);
        refuse_edited(&b, dir, "levels", json_string("cubic"));
        refuse_edited(&b, dir, "outliers", json_real(0.7));
        refuse_edited(&b, dir, "sink", json_integer(-1));
        OK(dq_model_open(b.ctx, dir, &model));
        dq_model_free(model);
        free(hash);
        free(again);
        host_bench_close(&b);
    }
}

/* Stopped after every number of steps: clip ratios, keys and values, weights. */
static void resumes_to_the_same_bits(void **state)
{
    (void)state;
    static const char *const jobs[] = {KV " w_bits=4 w_rtn=true", KV " w_bits=4",
                                       KV " w_bits=4 a_bits=8 a_clip_ratio=auto"};
    for (int i = 0; i < 3; i++) {
        char dir[400];
        double wanted, ppl;
        host_bench a = host_bench_open(jobs[i], 2, true);
        char *hash = finish_job(&a, host_calibrated_quantizer(&a), &wanted);
        host_bench_close(&a);
        for (int stop = 0; stop < (i == 2 ? 12 : 8); stop++) { /* 4 layers each */
            snprintf(dir, sizeof dir, "%s/stop%d_%d", scratch_dir(), i, stop);
            host_bench b = host_bench_open(jobs[i], 1, true);
            dq_quantizer *q = host_calibrated_quantizer(&b);
            host_checkpoint_steps(q, stop, dir);
            dq_quantizer_free(q);
            host_bench_close(&b);
            b = host_bench_open(jobs[i], 3, true);
            q = host_calibrated_quantizer(&b);
            OK(dq_quantizer_restore(q, dir));
            char *again = finish_job(&b, q, &ppl);
            assert_string_equal(again, hash);
            assert_true(ppl == wanted);
            free(again);
            host_bench_close(&b);
        }
        free(hash);
    }
}

/* R3 asked for by name is refused, by default it stays off; values alone on known levels need no text; grids come back. */
static void options(void **state)
{
    (void)state;
    host_bench b = host_bench_open(KV, 2, true);
    dq_quantizer *q = NULL;
    dq_model *model = NULL, *back = NULL;
    int32_t needs = 1;
    OK(dq_config_set(b.config, "use_r3", "true"));
    assert_int_equal(dq_quantizer_new(b.model, b.config, &q), DQ_E_INVALID);
    assert_non_null(strstr(dq_error_text(), "use_r3"));
    OK(dq_config_set(b.config, "use_r3", "false"));
    OK(dq_config_set(b.config, "v_bits", "9"));
    assert_int_equal(dq_quantizer_new(b.model, b.config, &q), DQ_E_INVALID);
    assert_non_null(strstr(dq_error_text(), "v_bits = 9"));
    OK(dq_config_set(b.config, "v_bits", "4"));
    OK(dq_quantizer_new(b.model, b.config, &q));
    assert_int_equal(dq_quantizer_run(q, NULL, NULL, NULL), DQ_E_STATE);
    assert_non_null(strstr(dq_error_text(), "KVQuant needs calibration data"));
    OK(dq_quantizer_bind(q, b.set)); /* still possible */
    OK(dq_quantizer_run(q, NULL, NULL, NULL));
    OK(dq_quantizer_take_model(q, &model));
    dq_quantizer_free(q);
    double levels = host_perplexity(model, b.config, b.set), full = host_perplexity(b.model, b.config, b.set);
    assert_true(levels != full);
    OK(dq_config_set(b.config, "kv_method", "grid"));
    OK(dq_config_set(b.config, "k_bits", "16"));
    OK(dq_config_set(b.config, "v_bits", "16"));
    OK(dq_quantizer_new(model, b.config, &q)); /* the same model without */
    OK(dq_quantizer_run(q, NULL, NULL, NULL));
    OK(dq_quantizer_take_model(q, &back));
    assert_true(host_perplexity(back, b.config, b.set) == full);
    dq_quantizer_free(q);
    dq_model_free(back);
    dq_model_free(model);
    OK(dq_config_set(b.config, "kv_method", "kvquant"));
    OK(dq_config_set(b.config, "kv_levels", "nf"));
    OK(dq_config_set(b.config, "kv_qnorm", "false"));
    OK(dq_config_set(b.config, "v_bits", "3"));
    OK(dq_quantizer_new(b.model, b.config, &q));
    OK(dq_quantizer_needs_data(q, &needs));
    assert_int_equal(needs, 0);
    OK(dq_quantizer_run(q, NULL, NULL, NULL));
    OK(dq_quantizer_take_model(q, &model));
    assert_true(host_perplexity(model, b.config, b.set) != full);
    dq_quantizer_free(q);
    dq_model_free(model);
    host_bench_close(&b);
}

/* ---- memory ---- */

/* The job from bind to a model that was run, with one allocation refused for good. */
static dq_status run_refused(host_bench *b, long at)
{
    dq_quantizer *q = NULL;
    dq_model *model = NULL;
    float *logits = malloc(8 * 512 * sizeof *logits);
    static const int32_t ids[8] = {1, 2, 3, 4, 5, 6, 7, 8};
    heap.calls = 0;
    heap.fail_at = at;
    heap.for_good = 1;
    dq_status status = dq_quantizer_new(b->model, b->config, &q);
    if (status == DQ_OK) status = dq_quantizer_bind(q, b->set);
    if (status == DQ_OK) status = dq_quantizer_run(q, NULL, NULL, NULL);
    if (status == DQ_OK) status = dq_quantizer_take_model(q, &model);
    if (status == DQ_OK) status = dq_model_logits(model, ids, 8, b->config, logits, 8 * 512);
    heap.fail_at = 0;
    heap.for_good = 0;
    dq_model_free(model);
    dq_quantizer_free(q);
    free(logits);
    return status;
}

/* No memory at any point is said, and leaks nothing (the teardown looks). */
static void out_of_memory(void **state)
{
    (void)state;
    host_bench b = host_bench_open(KV " seqlen=16 nsamples=2", 1, false);
    OK(run_refused(&b, 0));
    long calls = heap.calls;
    assert_true(calls > 300);
    for (long n = 1; n <= calls; n += 1 + n / 40) {
        assert_int_equal(run_refused(&b, n), DQ_E_NOMEM);
        assert_int_equal(dq_error_last(), DQ_E_NOMEM);
    }
    OK(run_refused(&b, 0));
    host_bench_close(&b);
}

/* ---- generation ---- */

static int32_t best_next(dq_model *model, const int32_t *ids, int64_t n, int64_t vocab)
{
    float *logits = malloc((size_t)(n * vocab) * sizeof *logits), *last = logits + (n - 1) * vocab;
    OK(dq_model_forward_logits(model, ids, n, DQ_MATH_F32, logits));
    int32_t best = 0;
    for (int32_t i = 1; i < vocab; i++)
        if (last[i] > last[best]) best = i;
    free(logits);
    return best;
}

/* Two sequences in one batch, prompts in pieces of three tokens: each token is the one that the whole sequence, run at once,
 * asks for. The cache of integers is refused. */
static void generates(void **state)
{
    (void)state;
    enum { NEW = 8 };
    static const char *const names[] = {"gqa", "opt", "qwen3"};
    for (int i = 0; i < 3; i++) {
        fixture f;
        expected e;
        fixture_open(&f, "cpu", 2);
        dq_model *model = open_tiny(&f, names[i]);
        read_expected(&f, names[i], &e);
        dq_model *q = quantized(model, kv_scheme(3, DQ_KV_LEVELS_NUQ, 0.05, 2, false), &e);
        dq_generate_spec spec = {.max_tokens = NEW,
                                 .prefill = 3,
                                 .ignore_eos = true,
                                 .kv = DQ_KV_INT8,
                                 .sampling = {.top_p = 1},
                                 .head_bits = 16};
        dq_generate_job *job = NULL;
        assert_int_equal(dq_generate_job_new(q, NULL, &spec, &job), DQ_E_UNSUPPORTED);
        assert_non_null(strstr(dq_error_text(), "kv = int8"));
        dq_error_reset();
        spec.kv = DQ_KV_F32;
        OK(dq_generate_job_new(q, NULL, &spec, &job));
        OK(dq_generate_add(job, e.ids, 9, NULL));
        OK(dq_generate_add(job, e.ids + 9, 5, NULL));
        for (bool done = false; !done;) OK(dq_generate_step(job, NULL, NULL, NULL, &done));
        for (int s = 0; s < 2; s++) {
            const dq_sequence *at = &job->sequences[s];
            assert_int_equal(at->count, at->prompt + NEW);
            for (int64_t n = at->prompt; n < at->count; n++)
                assert_int_equal(at->ids[n], best_next(q, at->ids, n, e.vocab));
        }
        dq_generate_job_free(job);
        dq_model_release(q);
        dq_model_release(model);
        fixture_close(&f);
    }
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(ranges_are_percentiles),
        cmocka_unit_test(calibration_is_one_result),
        cmocka_unit_test(refuses_bad_requests),
        cmocka_unit_test(says_what_is_not_finite),
        cmocka_unit_test(sinks_and_channels),
        cmocka_unit_test(families),
        cmocka_unit_test(refuses_damaged_tables),
        cmocka_unit_test_teardown(same_for_any_threads, host_no_leaks),
        cmocka_unit_test_teardown(saved_models_keep_them, host_no_leaks),
        cmocka_unit_test_teardown(resumes_to_the_same_bits, host_no_leaks),
        cmocka_unit_test_teardown(options, host_no_leaks),
        cmocka_unit_test_teardown(out_of_memory, host_no_leaks),
        cmocka_unit_test(generates),
    };
    return cmocka_run_group_tests_name("KVQuant", tests, scratch_setup, scratch_teardown);
}
