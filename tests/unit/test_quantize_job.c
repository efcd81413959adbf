/* quant: the job over a whole model against a plain walk that recomputes everything at every cut.
 * SPDX-License-Identifier: Apache-2.0 */
#include <math.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <cmocka.h>

#include "base/rng.h"
#include "base/status.h"
#include "fake_backend.h"
#include "io/formats.h"
#include "limited_heap.h"
#include "quant/quantize.h"
#include "rotation/rotation.h"
#include "ok.h"

enum { HIDDEN = 48, INTER = 80, LAYERS = 2, HEADS = 4, KV_HEADS = 2, HEAD_DIM = 12, VOCAB = 61 };

typedef struct bench {
    dq_env env;
    dq_device *dev;
    dq_model *model;
    uint64_t at_start;
} bench;

static void open_device(bench *b, const char *backend)
{
    if (strcmp(backend, "fake") != 0) {
        OK(dq_device_open(&b->env, backend, "", DQ_POLICY_ALLOW, &b->dev));
        return;
    }
    static dq_backend table; /* memory the host cannot touch, every op through the host fallback */
    table = fake_backend();
    OK(dq_device_open_table(&b->env, &table, "", DQ_POLICY_ALLOW, &b->dev));
}

/* A random LLaMA in memory; its norms may be scaled to provoke trouble. */
static void open_bench_on(bench *b, const char *backend, int threads, double norm_scale)
{
    dq_services services = {.struct_size = sizeof services, .abi = 1, .allocator = {limited_alloc, limited_free, NULL}};
    OK(dq_env_init(&b->env, &services, threads));
    b->at_start = atomic_load(&b->env.memory_now);
    open_device(b, backend);
    dq_arch arch = {.family = dq_family_by_hf("llama"),
                    .hidden = HIDDEN,
                    .intermediate = INTER,
                    .layers = LAYERS,
                    .heads = HEADS,
                    .kv_heads = KV_HEADS,
                    .head_dim = HEAD_DIM,
                    .vocab = VOCAB,
                    .max_positions = 4096,
                    .norm_eps = 1e-5,
                    .rope_theta = 10000,
                    .activation = DQ_ACT_SILU,
                    .bos_id = -1,
                    .eos_id = -1};
    assert_non_null(arch.family);
    dq_sink *sink;
    dq_source *source;
    dq_rng rng;
    OK(dq_memory_sink(&b->env, &sink));
    dq_rng_seed_torch(&rng, 2);
    for (int64_t layer = 0; layer < LAYERS; layer++)
        for (int role = 0; role < DQ_ROLES; role++) {
            char name[256];
            int64_t rows, cols;
            if ((role >= DQ_EMBED && layer > 0) || !dq_arch_has(&arch, (dq_role)role)) continue;
            dq_arch_tensor_name(&arch, (dq_role)role, layer, name, sizeof name);
            dq_arch_shape(&arch, (dq_role)role, &rows, &cols);
            bool norm = role == DQ_ATTN_NORM || role == DQ_MLP_NORM || role == DQ_FINAL_NORM;
            float *w = malloc((size_t)(rows * cols) * 4);
            for (int64_t i = 0; i < rows * cols; i++)
                w[i] = (float)(norm ? norm_scale * (1 + 0.3 * dq_rng_uniform(&rng)) : 0.3 * dq_rng_normal(&rng));
            OK(sink->ops->add(sink, name, DQ_F32, norm ? 1 : 2, norm ? (int64_t[]){cols} : (int64_t[]){rows, cols}, w,
                              (uint64_t)(rows * cols) * 4));
            free(w);
        }
    OK(sink->ops->finish(sink));
    OK(dq_memory_source(sink, &source));
    sink->ops->free(sink);
    OK(dq_model_from_source(b->dev, &arch, source, false, &b->model));
}

static void open_bench(bench *b, int threads, double norm_scale) { open_bench_on(b, "cpu", threads, norm_scale); }

static void close_bench(bench *b)
{
    dq_model_release(b->model);
    dq_device_close(b->dev);
    assert_int_equal(atomic_load(&b->env.memory_now), b->at_start);
    dq_env_clear(&b->env);
}

static void rotate(bench *b, dq_r2_mode r2)
{
    dq_model *fused, *rotated;
    dq_rotation_set *set;
    dq_rotation_options o = {.use_r1 = true, .use_r2 = r2, .use_r3 = true, .use_r4 = true};
    OK(dq_rotation_set_make(b->dev, dq_model_arch(b->model), &o, &set));
    OK(dq_model_derive_fused(b->model, false, &fused));
    OK(dq_model_derive_rotated(fused, set, &rotated));
    dq_rotation_set_free(set);
    dq_model_release(fused);
    dq_model_release(b->model);
    b->model = rotated;
}

static int32_t *make_windows(int64_t tokens)
{
    int32_t *ids = malloc((size_t)tokens * sizeof *ids);
    dq_rng rng;
    dq_rng_seed_python(&rng, 4);
    for (int64_t i = 0; i < tokens; i++)
        ids[i] = (int32_t)(dq_rng_below(&rng, VOCAB) * dq_rng_below(&rng, VOCAB) / VOCAB);
    return ids;
}

static const dq_scheme GPTQ4 = {
    .w = {.bits = 4, .method = DQ_WEIGHT_GPTQ, .group = 16, .clip_search = true, .act_order = true, .percdamp = 0.01},
    .a = {.bits = 4, .group = -1, .clip = 0.9},
    .k = {.bits = 4, .group = -1, .clip = 1.0},
    .v = {.bits = 4, .group = -1, .clip = 1.0}};

/* Runs the job to its end; the codes as a source. */
static dq_source *run_job(bench *b, const dq_scheme *scheme, const int32_t *windows, int64_t nsamples, int64_t seqlen,
                          dq_linear_report *report)
{
    dq_sink *sink;
    dq_source *source;
    dq_quantize_job *job;
    OK(dq_memory_sink(&b->env, &sink));
    OK(dq_quantize_job_new(b->model, scheme, windows, nsamples, seqlen, DQ_MATH_F32, sink, &job));
    bool finished = false;
    for (int layer = 0; layer < LAYERS; layer++) {
        assert_false(finished);
        OK(dq_quantize_job_step(job, NULL, &finished));
    }
    assert_true(finished);
    assert_int_equal(dq_quantize_job_step(job, NULL, &finished), DQ_E_STATE);
    const dq_quantize_report *r = dq_quantize_job_report(job);
    assert_int_equal(r->count, LAYERS * DQ_LINEARS);
    if (report) memcpy(report, r->linears, (size_t)r->count * sizeof *report);
    dq_quantize_job_free(job);
    OK(sink->ops->finish(sink));
    OK(dq_memory_source(sink, &source));
    sink->ops->free(sink);
    return source;
}

static void codes_of(bench *b, dq_source *store, int64_t layer, int role, dq_codes *out)
{
    char name[256];
    dq_arch_tensor_name(dq_model_arch(b->model), (dq_role)role, layer, name, sizeof name);
    OK(dq_codes_read(b->dev, store, name, out));
}

static void assert_tensors_equal(const dq_tensor *a, const dq_tensor *b, const char *what)
{
    size_t bytes = (size_t)(a->view.rows * a->view.cols) * dq_dtype_size(a->view.dtype);
    assert_int_equal(a->view.rows, b->view.rows);
    assert_int_equal(a->view.cols, b->view.cols);
    void *x = malloc(bytes), *y = malloc(bytes);
    OK(dq_tensor_download(a, x));
    OK(dq_tensor_download(b, y));
    if (memcmp(x, y, bytes) != 0) fail_msg("%s differ", what);
    free(x), free(y);
}

static void assert_codes_equal(const dq_codes *a, const dq_codes *b, const char *what)
{
    assert_tensors_equal(&a->codes, &b->codes, what);
    assert_tensors_equal(&a->scale, &b->scale, what);
    assert_tensors_equal(&a->zero, &b->zero, what);
    assert_int_equal(dq_tensor_is_empty(&a->group_index), dq_tensor_is_empty(&b->group_index));
    if (!dq_tensor_is_empty(&a->group_index)) assert_tensors_equal(&a->group_index, &b->group_index, what);
}

static void assert_stores_equal(bench *b, dq_source *x, dq_source *y)
{
    for (int64_t layer = 0; layer < LAYERS; layer++)
        for (int role = 0; role < DQ_LINEARS; role++) {
            dq_codes p, q;
            codes_of(b, x, layer, role, &p);
            codes_of(b, y, layer, role, &q);
            assert_codes_equal(&p, &q, dq_role_name((dq_role)role));
            dq_codes_free(&p);
            dq_codes_free(&q);
        }
}

/* ---- the plain walk ---- */

/* The block from its start up to the input of `role`; one workspace holds all windows. */
static const dq_tensor *forward_to(const dq_block_spec *s, const dq_block *blk, int role, dq_workspace *ws,
                                   dq_tensor *h)
{
    OK(dq_block_attn_in(s, blk, h, ws));
    if (role <= DQ_V_PROJ) return &ws->x;
    OK(dq_block_attn(s, blk, ws));
    if (role == DQ_O_PROJ) return &ws->a;
    OK(dq_block_attn_out(s, blk, &ws->a, ws, h));
    OK(dq_block_mlp_in(s, blk, h, ws));
    if (role <= DQ_UP_PROJ) return &ws->x;
    OK(dq_block_mlp(s, blk, ws));
    return &ws->gate;
}

static void dequantize(const dq_codes *c, dq_tensor *w)
{
    dq_grid_desc d = {.bits = c->bits, .symmetric = c->symmetric, .group = c->group};
    OK(dq_op_dequantize_weight(&d, &c->codes, &c->scale, &c->zero,
                               dq_tensor_is_empty(&c->group_index) ? NULL : &c->group_index, w));
}

/* As upstream: before every stage all windows run from the layer's input through the partly quantized layer. A Hessian per
 * linear, windows added in the same portions as the job's, so that the results are the same to the bit. */
static void compare_with_plain_walk(bench *b, const dq_scheme *scheme, dq_source *store, const int32_t *windows,
                                    int64_t nsamples, int64_t seqlen, int64_t portion)
{
    int64_t tokens = nsamples * seqlen;
    dq_block_spec s;
    dq_workspace ws;
    dq_tensor start, h;
    OK(dq_model_block_spec(b->model, seqlen, DQ_MATH_F32, &s));
    s.scheme.a.bits = s.scheme.k.bits = s.scheme.v.bits = 16;
    s.r3 = NULL;
    OK(dq_workspace_alloc(b->dev, &s, tokens, &ws));
    OK(dq_tensor_alloc(b->dev, DQ_F32, tokens, HIDDEN, &start));
    OK(dq_tensor_alloc(b->dev, DQ_F32, tokens, HIDDEN, &h));
    OK(dq_model_embed(b->model, windows, tokens, tokens, &start));
    static const int first[] = {DQ_Q_PROJ, DQ_O_PROJ, DQ_GATE_PROJ, DQ_DOWN_PROJ, DQ_LINEARS};
    for (int64_t layer = 0; layer < LAYERS; layer++) {
        dq_block block;
        OK(dq_model_load_block(b->model, layer, &block));
        for (int stage = 0; stage < 4; stage++) {
            dq_tensor quantized[3];
            for (int role = first[stage]; role < first[stage + 1]; role++) {
                OK(dq_op_convert(&start, &h));
                const dq_tensor *x = forward_to(&s, &block, role, &ws, &h);
                dq_tensor hessian, *w = &block.linear[role].weight, scratch;
                OK(dq_tensor_alloc(b->dev, DQ_F32, x->view.cols, x->view.cols, &hessian));
                OK(dq_op_fill(0, &hessian));
                for (int64_t t = 0; t < tokens; t += portion) {
                    dq_tensor part = dq_tensor_rows(x, t, tokens - t < portion ? tokens - t : portion);
                    OK(dq_op_syrk(2.0 / (double)nsamples, &part, 1.0, &hessian));
                }
                dq_codes mine, job;
                double error, damping;
                OK(dq_tensor_alloc(b->dev, DQ_F32, w->view.rows, w->view.cols, &scratch));
                OK(dq_op_convert(w, &scratch));
                OK(dq_quantize_linear(&scheme->w, &scratch, &hessian, &mine, &error, &damping));
                codes_of(b, store, layer, role, &job);
                char what[64];
                snprintf(what, sizeof what, "layer %d %s: codes", (int)layer, dq_role_name((dq_role)role));
                assert_codes_equal(&mine, &job, what);
                dequantize(&mine, &scratch);
                quantized[role - first[stage]] = scratch;
                dq_codes_free(&mine);
                dq_codes_free(&job);
                dq_tensor_free(&hessian);
            }
            for (int role = first[stage]; role < first[stage + 1]; role++) {
                dq_tensor_free(&block.linear[role].weight);
                block.linear[role].weight = quantized[role - first[stage]];
            }
        }
        OK(dq_block_forward(&s, &block, &ws, &start));
        dq_block_free(&block);
    }
    dq_tensor_free(&start);
    dq_tensor_free(&h);
    dq_workspace_free(&ws);
    dq_block_spec_clear(&s);
}

static void codes_equal_a_plain_walk(void **state)
{
    (void)state;
    static const dq_r2_mode modes[] = {DQ_R2_NONE, DQ_R2_OFFLINE, DQ_R2_ONLINE};
    for (int i = 0; i < 3; i++) {
        bench b;
        open_bench(&b, 1, 1.0);
        if (i > 0) rotate(&b, modes[i]);
        /* 700 tokens a window, so 2 windows a chunk and a last chunk of one */
        int64_t nsamples = 5, seqlen = 700;
        int32_t *windows = make_windows(nsamples * seqlen);
        dq_source *store = run_job(&b, &GPTQ4, windows, nsamples, seqlen, NULL);
        compare_with_plain_walk(&b, &GPTQ4, store, windows, nsamples, seqlen, 2 * seqlen);
        dq_source_free(store);
        free(windows);
        close_bench(&b);
    }
}

static void budget_and_threads_do_not_matter(void **state)
{
    (void)state;
    int64_t nsamples = 7, seqlen = 600; /* 3 windows a chunk: 3, 3, 1 */
    /* nothing kept; one chunk of attention outputs; all of them and one chunk of down_proj inputs; everything */
    static const uint64_t budgets[] = {1, 4 * 1800 * 48, 4 * 4200 * 48, 1ull << 40};
    int32_t *windows = make_windows(nsamples * seqlen);
    bench first;
    open_bench(&first, 1, 1.0);
    rotate(&first, DQ_R2_OFFLINE);
    dq_source *expected = run_job(&first, &GPTQ4, windows, nsamples, seqlen, NULL);
    for (int i = 0; i < 4; i++) {
        bench b;
        open_bench(&b, i + 1, 1.0);
        rotate(&b, DQ_R2_OFFLINE);
        b.env.memory_budget = budgets[i];
        dq_source *store = run_job(&b, &GPTQ4, windows, nsamples, seqlen, NULL);
        assert_stores_equal(&b, expected, store);
        dq_source_free(store);
        close_bench(&b);
    }
    dq_source_free(expected);
    close_bench(&first);
    free(windows);
}

/* Nothing between the job and the device looks behind a handle. */
static void device_memory_may_be_hidden(void **state)
{
    (void)state;
    int32_t *windows = make_windows(3 * 40);
    bench plain, hidden;
    open_bench_on(&plain, "ref", 1, 1.0);
    open_bench_on(&hidden, "fake", 1, 1.0);
    rotate(&plain, DQ_R2_ONLINE);
    rotate(&hidden, DQ_R2_ONLINE);
    hidden.env.memory_budget = 1 << 20; /* the second pass reads what the first one kept on the device */
    dq_source *a = run_job(&plain, &GPTQ4, windows, 3, 40, NULL), *b = run_job(&hidden, &GPTQ4, windows, 3, 40, NULL);
    assert_stores_equal(&plain, a, b);
    dq_source_free(a);
    dq_source_free(b);
    close_bench(&plain);
    close_bench(&hidden);
    free(windows);
}

static void rtn_needs_no_data(void **state)
{
    (void)state;
    bench b;
    open_bench(&b, 2, 1.0);
    dq_scheme scheme = GPTQ4;
    scheme.w.method = DQ_WEIGHT_RTN;
    dq_linear_report report[LAYERS * DQ_LINEARS];
    dq_source *store = run_job(&b, &scheme, NULL, 0, 0, report);
    for (int64_t layer = 0; layer < LAYERS; layer++)
        for (int role = 0; role < DQ_LINEARS; role++) {
            dq_linear linear;
            dq_codes mine, job;
            double error, damping;
            OK(dq_model_read_linear(b.model, layer, (dq_role)role, &linear));
            OK(dq_quantize_linear(&scheme.w, &linear.weight, NULL, &mine, &error, &damping));
            codes_of(&b, store, layer, role, &job);
            assert_codes_equal(&mine, &job, dq_role_name((dq_role)role));
            const dq_linear_report *r = &report[layer * DQ_LINEARS + role];
            assert_true(r->layer == layer && (int)r->role == role && r->bits == 4 && r->error == error &&
                        r->damping == 0);
            dq_codes_free(&mine);
            dq_codes_free(&job);
            dq_tensor_free(&linear.weight);
        }
    dq_source_free(store);
    close_bench(&b);
}

/* The whole way: rotate, quantize, attach the codes, run. W4 with rotations stays near the original, W4A4KV4 runs. */
static void quantized_model_runs(void **state)
{
    (void)state;
    bench b;
    open_bench(&b, 2, 1.0);
    int64_t nsamples = 8, seqlen = 64;
    int32_t *windows = make_windows(nsamples * seqlen);
    float *before = malloc(64 * VOCAB * 4), *after = malloc(64 * VOCAB * 4);
    OK(dq_model_forward_logits(b.model, windows, 64, DQ_MATH_F32, before));
    rotate(&b, DQ_R2_OFFLINE);
    for (int bits = 8; bits >= 4; bits -= 4) {
        dq_scheme scheme = GPTQ4;
        scheme.w.bits = bits;
        scheme.a.bits = scheme.k.bits = scheme.v.bits = bits == 8 ? 16 : 4;
        dq_source *store = run_job(&b, &scheme, windows, nsamples, seqlen, NULL);
        dq_model *quantized;
        OK(dq_model_derive_quantized(b.model, store, &scheme, &quantized));
        OK(dq_model_forward_logits(quantized, windows, 64, DQ_MATH_F32, after));
        double difference = 0, size = 0;
        for (int i = 0; i < 64 * VOCAB; i++) {
            difference += (after[i] - before[i]) * (after[i] - before[i]);
            size += before[i] * before[i];
        }
        if (!(difference < (bits == 8 ? 0.001 : 0.5) * size))
            fail_msg("%d bits: relative error %g", bits, difference / size);
        assert_true(difference > 1e-9 * size);
        dq_sink *sink;
        dq_quantize_job *job;
        OK(dq_memory_sink(&b.env, &sink));
        assert_int_equal(dq_quantize_job_new(quantized, &scheme, windows, 1, 64, DQ_MATH_F32, sink, &job), DQ_E_STATE);
        sink->ops->free(sink);
        dq_model_release(quantized);
    }
    free(before), free(after), free(windows);
    close_bench(&b);
}

/* ---- trouble ---- */

static int32_t stop_at(void *user, const dq_progress_event *event)
{
    assert_string_equal(event->stage, "gptq");
    assert_int_equal(event->total, LAYERS * DQ_LINEARS);
    return --*(int *)user < 0;
}

static void cancelling_ends_the_job(void **state)
{
    (void)state;
    bench b;
    open_bench(&b, 1, 1.0);
    int32_t *windows = make_windows(64);
    dq_sink *sink;
    dq_quantize_job *job;
    bool finished = false;
    int left = 0;
    dq_progress reporting = {.fn = stop_at, .user = &left};
    OK(dq_memory_sink(&b.env, &sink));
    OK(dq_quantize_job_new(b.model, &GPTQ4, windows, 2, 32, DQ_MATH_F32, sink, &job));
    assert_int_equal(dq_quantize_job_step(job, &reporting, &finished), DQ_E_CANCELLED);
    assert_int_equal(dq_quantize_job_step(job, NULL, &finished), DQ_E_STATE);
    assert_false(finished);
    dq_quantize_job_free(job);
    sink->ops->free(sink);
    dq_cancel *cancel;
    OK(dq_cancel_new(&cancel));
    dq_cancel_set(cancel);
    dq_progress progress = {.cancel = cancel};
    OK(dq_memory_sink(&b.env, &sink));
    OK(dq_quantize_job_new(b.model, &GPTQ4, windows, 2, 32, DQ_MATH_F32, sink, &job));
    assert_int_equal(dq_quantize_job_step(job, &progress, &finished), DQ_E_CANCELLED);
    dq_quantize_job_free(job);
    sink->ops->free(sink);
    dq_cancel_free(cancel);
    free(windows);
    close_bench(&b);
}

static void trouble_names_the_linear(void **state)
{
    (void)state;
    bench b;
    open_bench(&b, 1, 1e22); /* inputs of 1e22: their squares leave fp32 */
    int32_t *windows = make_windows(64);
    dq_sink *sink;
    dq_quantize_job *job;
    bool finished;
    OK(dq_memory_sink(&b.env, &sink));
    OK(dq_quantize_job_new(b.model, &GPTQ4, windows, 2, 32, DQ_MATH_F32, sink, &job));
    assert_int_equal(dq_quantize_job_step(job, NULL, &finished), DQ_E_NONFINITE);
    assert_string_equal(dq_error_tensor(), "model.layers.0.self_attn.q_proj.weight");
    dq_quantize_job_free(job);
    job = NULL;
    assert_int_equal(dq_quantize_job_new(b.model, &GPTQ4, NULL, 2, 32, DQ_MATH_F32, sink, &job), DQ_E_INVALID);
    assert_int_equal(dq_quantize_job_new(b.model, &GPTQ4, windows, 0, 32, DQ_MATH_F32, sink, &job), DQ_E_INVALID);
    assert_int_equal(dq_quantize_job_new(b.model, &GPTQ4, windows, INT64_MAX / 4, 32, DQ_MATH_F32, sink, &job),
                     DQ_E_NOMEM);
    windows[3] = VOCAB;
    assert_true(dq_quantize_job_new(b.model, &GPTQ4, windows, 2, 32, DQ_MATH_F32, sink, &job) != DQ_OK);
    dq_scheme off = GPTQ4;
    off.w.bits = 16;
    assert_int_equal(dq_quantize_job_new(b.model, &off, windows, 2, 32, DQ_MATH_F32, sink, &job), DQ_E_INVALID);
    assert_null(job);
    sink->ops->free(sink);
    free(windows);
    close_bench(&b);
}

static dq_status one_layer(bench *b, const int32_t *windows)
{
    dq_sink *sink = NULL;
    dq_quantize_job *job = NULL;
    bool finished;
    dq_status status;
    DQ_GO(dq_memory_sink(&b->env, &sink));
    DQ_GO(dq_quantize_job_new(b->model, &GPTQ4, windows, 2, 8, DQ_MATH_F32, sink, &job));
    DQ_GO(dq_quantize_job_step(job, NULL, &finished));
done:
    dq_quantize_job_free(job);
    if (sink) sink->ops->free(sink);
    return status;
}

static void every_allocation_may_fail(void **state)
{
    (void)state;
    bench b;
    open_bench(&b, 1, 1.0);
    int32_t *windows = make_windows(16);
    OK(one_layer(&b, windows)); /* anything that stays is there now */
    uint64_t before = atomic_load(&b.env.memory_now);
    bool worked = false;
    for (int64_t n = 0; !worked; n += n < 40 ? 1 : 7) {
        allowed = n;
        dq_status status = one_layer(&b, windows);
        allowed = INT64_MAX;
        worked = status == DQ_OK;
        if (!worked && status != DQ_E_NOMEM && status != DQ_E_DEVICE_MEMORY)
            fail_msg("%lld: %s", (long long)n, dq_error_text());
        assert_int_equal(atomic_load(&b.env.memory_now), before);
        assert_true(n < 100000);
    }
    free(windows);
    close_bench(&b);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(codes_equal_a_plain_walk),    cmocka_unit_test(budget_and_threads_do_not_matter),
        cmocka_unit_test(device_memory_may_be_hidden), cmocka_unit_test(rtn_needs_no_data),
        cmocka_unit_test(quantized_model_runs),        cmocka_unit_test(cancelling_ends_the_job),
        cmocka_unit_test(trouble_names_the_linear),    cmocka_unit_test(every_allocation_may_fail),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
