/* AWQ: search and rounding against an independent golden, the scaled model against the plain one, and what a job does with
 * both: threads, saving, checkpoints, export. SPDX-License-Identifier: Apache-2.0 */
#include <math.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <cmocka.h>

#include "base/rng.h"
#include "base/status.h"
#include "dartquant/tensor_ops.h"
#include "host_model.h"
#include "io/formats.h"
#include "io/json.h"
#include "models.h"
#include "quant/awq.h"
#include "quant/parts.h"
#include "rotation/rotation.h"
#include "scratch.h"

/* ---- golden ---- */

enum { HEAD_DIM = 8 };

static void *raw(dq_source *s, const char *name)
{
    int64_t t = dq_source_find(s, name);
    assert_true(t >= 0);
    void *data = malloc((size_t)s->tensors[t].bytes);
    OK(dq_source_read_raw(s, t, 0, s->tensors[t].bytes, data));
    return data;
}

static dq_tensor upload(fixture *f, dq_source *s, const char *name)
{
    dq_tensor t;
    int64_t i = dq_source_find(s, name);
    float *data = raw(s, name);
    OK(dq_tensor_from_host(f->dev, DQ_F32, s->tensors[i].shape[0], s->tensors[i].shape[1], data, &t));
    free(data);
    return t;
}

typedef struct problem {
    dq_tensor x, w[2], gram;
    float *magnitude;
} problem;

static void open_problem(fixture *f, dq_source *s, problem *p)
{
    p->x = upload(f, s, "x");
    p->w[0] = upload(f, s, "w0");
    p->w[1] = upload(f, s, "w1");
    int64_t tokens = p->x.view.rows, n = p->x.view.cols;
    OK(dq_tensor_alloc(f->dev, DQ_F32, n, n, &p->gram));
    OK(dq_op_fill(0, &p->gram));
    OK(dq_op_syrk(1.0, &p->x, 1.0, &p->gram));
    OK(dq_hessian_mirror(&p->gram));
    float *x = raw(s, "x");
    p->magnitude = calloc((size_t)n, sizeof(float));
    for (int64_t i = 0; i < tokens * n; i++) p->magnitude[i % n] += fabsf(x[i]) / (float)tokens;
    free(x);
}

static void close_problem(problem *p)
{
    dq_tensor_free(&p->x);
    dq_tensor_free(&p->w[0]);
    dq_tensor_free(&p->w[1]);
    dq_tensor_free(&p->gram);
    free(p->magnitude);
}

/* Codes of the golden are of fp64 values: one in a thousand may fall on the other side of a boundary. */
static void compare_codes(const dq_codes *codes, const uint8_t *wanted)
{
    int64_t count = codes->out * codes->in, different = 0;
    uint8_t *found = malloc((size_t)count);
    OK(dq_tensor_download(&codes->codes, found));
    for (int64_t i = 0; i < count; i++) different += found[i] != wanted[i];
    if (different * 1000 > count) fail_msg("%lld of %lld codes differ", (long long)different, (long long)count);
    free(found);
}

static void golden_case(fixture *f, dq_source *s, problem *p, const char *stem)
{
    char name[160];
    int bits, symmetric, group, clip, share;
    double errors[DQ_AWQ_CANDIDATES], error;
    int64_t n = p->x.view.cols;
    assert_int_equal(sscanf(stem, "b%d.s%d.g%d.c%d.h%d", &bits, &symmetric, &group, &clip, &share), 5);
    dq_weight_spec spec = {.bits = bits, .symmetric = symmetric, .group = group, .clip_search = clip, .awq = true};
    const dq_tensor *linears[] = {&p->w[0], &p->w[1]};
    dq_awq_input input = {linears, 2, &p->gram, p->magnitude, share, HEAD_DIM};
    float *scale = malloc((size_t)n * 4), *spread = malloc((size_t)n * 4);
    OK(dq_awq_search(&spec, &input, scale, errors));
    snprintf(name, sizeof name, "%s.errors", stem);
    double *wanted = raw(s, name);
    int best = 0;
    for (int i = 0; i < DQ_AWQ_CANDIDATES; i++) {
        if (fabs(errors[i] - wanted[i]) > 0.01 * wanted[i])
            fail_msg("%s, candidate %d: %g, expected %g", stem, i, errors[i], wanted[i]);
        if (wanted[i] < wanted[best]) best = i;
    }
    assert_true(best > 0 && wanted[best] < 0.9 * wanted[0]); /* the golden asks for scaling */
    free(wanted);
    snprintf(name, sizeof name, "%s.scale", stem);
    wanted = raw(s, name);
    for (int64_t i = 0; i < n / share; i++) assert_true(fabs((double)scale[i] - wanted[i]) < 1e-5 * wanted[i]);
    free(wanted);
    for (int64_t c = 0; c < n; c++) spread[c] = scale[dq_awq_source(c, share, HEAD_DIM)];
    dq_tensor v, w;
    dq_codes codes;
    OK(dq_tensor_from_host(f->dev, DQ_F32, 1, n, spread, &v));
    OK(dq_tensor_alloc(f->dev, DQ_F32, p->w[0].view.rows, n, &w));
    OK(dq_op_scale_cols(&p->w[0], &v, &w));
    OK(dq_awq_round(&spec, &w, &p->gram, spread, &codes, &error));
    assert_true(error > 0 && error < 1);
    snprintf(name, sizeof name, "%s.codes", stem);
    uint8_t *expected_codes = raw(s, name);
    compare_codes(&codes, expected_codes);
    free(expected_codes);
    dq_codes_free(&codes);
    dq_tensor_free(&v);
    dq_tensor_free(&w);
    free(scale);
    free(spread);
}

static void search_and_rounding(void **state)
{
    (void)state;
    static const char *const devices[] = {"cpu", "ref"};
    for (int i = 0; i < 2; i++) {
        fixture f;
        problem p;
        dq_source *s;
        int cases = 0;
        fixture_open(&f, devices[i], 2);
        OK(dq_source_open(&f.env, "tests/data/quant/awq.safetensors", &s));
        open_problem(&f, s, &p);
        for (int64_t t = 0; t < s->count; t++) {
            const char *name = s->tensors[t].name, *end = strstr(name, ".codes");
            char stem[128];
            if (!end) continue;
            snprintf(stem, sizeof stem, "%.*s", (int)(end - name), name);
            golden_case(&f, s, &p, stem);
            cases++;
        }
        assert_int_equal(cases, 6);
        close_problem(&p);
        dq_source_free(s);
        fixture_close(&f);
    }
}

/* Linears of `rows` rows each, of which l holds row l of w0 again and again. */
static void errors_of_copies(fixture *f, const problem *p, int64_t rows, double errors[DQ_AWQ_CANDIDATES])
{
    dq_weight_spec spec = {.bits = 3, .group = 16, .awq = true};
    int64_t n = p->x.view.cols;
    dq_tensor copies[2], index;
    const dq_tensor *linears[] = {&copies[0], &copies[1]};
    dq_awq_input input = {linears, 2, &p->gram, p->magnitude, 1, HEAD_DIM};
    int32_t *which = malloc((size_t)rows * sizeof *which);
    float *scale = malloc((size_t)n * sizeof *scale);
    for (int l = 0; l < 2; l++) {
        for (int64_t r = 0; r < rows; r++) which[r] = l;
        OK(dq_tensor_from_host(f->dev, DQ_I32, 1, rows, which, &index));
        OK(dq_tensor_alloc(f->dev, DQ_F32, rows, n, &copies[l]));
        OK(dq_op_gather_rows(&p->w[0], &index, &copies[l]));
        dq_tensor_free(&index);
    }
    OK(dq_awq_search(&spec, &input, scale, errors));
    for (int l = 0; l < 2; l++) dq_tensor_free(&copies[l]);
    free(which);
    free(scale);
}

/* Of wide linears a part of the rows is tried, as many of each as its share of all rows. */
static void search_draws_rows(void **state)
{
    (void)state;
    fixture f;
    problem p;
    dq_source *s;
    double some[DQ_AWQ_CANDIDATES], drawn[DQ_AWQ_CANDIDATES];
    fixture_open(&f, "cpu", 2);
    OK(dq_source_open(&f.env, "tests/data/quant/awq.safetensors", &s));
    open_problem(&f, s, &p);
    errors_of_copies(&f, &p, DQ_AWQ_ROWS / 2, some); /* all rows */
    errors_of_copies(&f, &p, 3 * DQ_AWQ_ROWS, drawn);
    assert_memory_equal(some, drawn, sizeof some);
    errors_of_copies(&f, &p, DQ_AWQ_ROWS / 2 - 1, some);
    assert_true(some[0] < drawn[0]);
    close_problem(&p);
    dq_source_free(s);
    fixture_close(&f);
}

/* ---- the scaled model ---- */

/* Scales between 1/2 and 2 at every site that `r` allows. */
static dq_scales *random_scales(fixture *f, const dq_model *m)
{
    int64_t width[DQ_SCALE_SITES];
    const dq_arch *a = dq_model_arch(m);
    dq_scales *s;
    dq_rng rng;
    dq_rng_seed_torch(&rng, 4);
    dq_scales_widths(a, width);
    OK(dq_scales_new(&f->env, a->layers, width, &s));
    for (int64_t layer = 0; layer < a->layers; layer++)
        for (int site = 0; site < DQ_SCALE_SITES; site++)
            for (int64_t i = 0; i < width[site] && dq_scales_possible(a, dq_model_rotations(m), site); i++)
                dq_scales_at(s, layer, site)[i] = (float)exp2(2 * dq_rng_uniform(&rng) - 1);
    return s;
}

static double largest(const float *x, int64_t n)
{
    double most = 0;
    for (int64_t i = 0; i < n; i++) most = fmax(most, fabs((double)x[i]));
    return most;
}

/* The function stays; the weights do not. Final: no fusing, rotating or scaling afterwards. */
static void check_scaled(fixture *f, dq_model *base, const expected *e)
{
    static float plain[64 * 128], scaled[64 * 128];
    int64_t n = e->tokens * e->vocab;
    dq_scales *scales = random_scales(f, base);
    dq_model *m, *other;
    OK(dq_model_derive_scaled(base, scales, &m));
    logits_of(base, e, plain);
    logits_of(m, e, scaled);
    double d = max_difference(plain, scaled, n) / largest(plain, n);
    if (!(d < 1e-5)) fail_msg("logits moved by %g of the largest", d);
    dq_linear before, after;
    OK(dq_model_read_linear(base, 0, DQ_Q_PROJ, &before));
    OK(dq_model_read_linear(m, 0, DQ_Q_PROJ, &after));
    float a, b;
    dq_tensor one = dq_tensor_slice(&before.weight, 0, 1, 3, 1), two = dq_tensor_slice(&after.weight, 0, 1, 3, 1);
    OK(dq_tensor_download(&one, &a));
    OK(dq_tensor_download(&two, &b));
    assert_true(fabs((double)b - (double)a * (double)dq_scales_at(scales, 0, DQ_SCALE_QKV)[3]) <
                1e-6 * fabs((double)b));
    dq_tensor *const used[] = {&before.weight, &before.bias, &after.weight, &after.bias};
    for (int i = 0; i < 4; i++) dq_tensor_free(used[i]);
    assert_int_equal(dq_model_derive_scaled(m, scales, &other), DQ_E_STATE);
    assert_int_equal(dq_model_derive_fused(m, false, &other), DQ_E_STATE);
    dq_error_reset();
    dq_scales_free(scales);
    dq_model_release(m);
}

static void scaling_keeps_logits(void **state)
{
    (void)state;
    static const char *const names[] = {"mha", "gqa", "tied", "bias", "window", "qwen2", "qwen3", "opt"};
    fixture f;
    fixture_open(&f, "cpu", 2);
    for (int i = 0; i < 7; i++) {
        expected e;
        read_expected(&f, names[i], &e);
        dq_model *base = open_tiny(&f, names[i]), *plain, *turned;
        check_scaled(&f, base, &e);
        OK(dq_model_derive_fused(base, false, &plain));
        check_scaled(&f, plain, &e);
        for (int online = 0; online < 2; online++) {
            dq_rotation_options o = {.use_r1 = true,
                                     .use_r3 = online,
                                     .use_r4 = online,
                                     .use_r2 = online ? DQ_R2_ONLINE : DQ_R2_OFFLINE,
                                     .mode = DQ_ROTATE_HADAMARD,
                                     .seed = 3};
            dq_rotation_set *set;
            OK(dq_rotation_set_make(f.dev, dq_model_arch(plain), &o, &set));
            OK(dq_model_derive_rotated(plain, set, &turned));
            check_scaled(&f, turned, &e);
            dq_rotation_set_free(set);
            dq_model_release(turned);
        }
        dq_model_release(plain);
        dq_model_release(base);
    }
    fixture_close(&f);
}

/* What cannot be folded, and numbers that are no scales. */
static void refuses_bad_scales(void **state)
{
    (void)state;
    fixture f;
    fixture_open(&f, "cpu", 1);
    dq_model *base = open_tiny(&f, "gqa"), *plain, *turned, *m;
    OK(dq_model_derive_fused(base, false, &plain));
    dq_rotation_options o = {.use_r4 = true, .use_r2 = DQ_R2_ONLINE, .mode = DQ_ROTATE_HADAMARD, .seed = 3};
    dq_rotation_set *set;
    OK(dq_rotation_set_make(f.dev, dq_model_arch(plain), &o, &set));
    OK(dq_model_derive_rotated(plain, set, &turned));
    dq_rotation_set_free(set);
    dq_scales *s = random_scales(&f, base); /* also where the rotated model cannot have any */
    assert_int_equal(dq_model_derive_scaled(turned, s, &m), DQ_E_INVALID);
    assert_non_null(strstr(dq_error_text(), "run time"));
    dq_scales_at(s, 1, DQ_SCALE_DOWN)[2] = 0;
    assert_int_equal(dq_model_derive_scaled(base, s, &m), DQ_E_INVALID);
    dq_scales_at(s, 1, DQ_SCALE_DOWN)[2] = INFINITY;
    assert_int_equal(dq_model_derive_scaled(base, s, &m), DQ_E_INVALID);
    s->layers--;
    assert_int_equal(dq_model_derive_scaled(base, s, &m), DQ_E_MISMATCH);
    s->layers++;
    dq_error_reset();
    dq_scales_free(s);
    dq_model_release(turned);
    dq_model_release(plain);
    dq_model_release(base);
    fixture_close(&f);
}

/* ---- jobs ---- */

static const char *const jobs[] = {
    "w_bits=3 w_groupsize=32 w_asym=true w_rtn=true w_awq=true w_clip=true seqlen=32 nsamples=6 limit=4",
    "w_bits=3 w_groupsize=32 w_awq=true w_clip=true act_order=true static_groups=true seqlen=32 nsamples=6 limit=4",
};
enum { JOBS = sizeof jobs / sizeof *jobs };

static dq_model *finish(dq_quantizer *q)
{
    dq_model *model = NULL;
    OK(dq_quantizer_run(q, NULL, NULL, NULL));
    OK(dq_quantizer_take_model(q, &model));
    dq_quantizer_free(q);
    return model;
}

static double perplexity(host_bench *b, dq_model *model)
{
    double ppl = host_perplexity(model, b->config, b->set);
    dq_model_free(model);
    return ppl;
}

/* Any number of threads, any memory budget, memory or folder, rotated (R2 offline, R4 online) or not: the same bits. */
static void same_bits_everywhere(void **state)
{
    (void)state;
    char dir[400];
    for (int j = 0; j < JOBS; j++)
        for (int rotate = 0; rotate < 2; rotate++) {
            double first = 0;
            for (int threads = 1; threads <= 3; threads++) {
                host_bench b = host_bench_open(jobs[j], threads, rotate);
                double ppl = perplexity(&b, finish(host_calibrated_quantizer(&b)));
                if (threads == 1) first = ppl;
                assert_true(ppl == first && isfinite(ppl));
                host_bench_close(&b);
            }
            host_bench b = host_bench_open(jobs[j], 2, rotate);
            snprintf(dir, sizeof dir, "%s/saved%d%d", scratch_dir(), j, rotate);
            OK(dq_config_set(b.config, "save_qmodel_path", dir));
            assert_true(perplexity(&b, finish(host_calibrated_quantizer(&b))) == first);
            dq_model *model = NULL;
            OK(dq_model_open(b.ctx, dir, &model));
            assert_true(perplexity(&b, model) == first);
            host_bench_close(&b);
        }
}

/* The scales are real: without them the numbers are others. */
static void scales_matter(void **state)
{
    (void)state;
    for (int j = 0; j < JOBS; j++) {
        double ppl[2];
        for (int awq = 0; awq < 2; awq++) {
            host_bench b = host_bench_open(jobs[j], 2, false);
            dq_quantizer *q = NULL;
            OK(dq_config_set(b.config, "w_awq", awq ? "true" : "false"));
            OK(dq_quantizer_new(b.model, b.config, &q));
            OK(dq_quantizer_bind(q, b.set));
            ppl[awq] = perplexity(&b, finish(q));
            host_bench_close(&b);
        }
        assert_true(ppl[0] != ppl[1]);
    }
}

static void resumes_to_the_same_bits(void **state)
{
    (void)state;
    char dir[400];
    for (int j = 0; j < JOBS; j++) {
        host_bench a = host_bench_open(jobs[j], 2, false);
        double wanted = perplexity(&a, finish(host_calibrated_quantizer(&a)));
        host_bench_close(&a);
        for (int stop = 0; stop < 4; stop++) {
            int32_t done = 0;
            snprintf(dir, sizeof dir, "%s/stop%d%d", scratch_dir(), j, stop);
            host_bench b = host_bench_open(jobs[j], 1, false);
            dq_quantizer *q = host_calibrated_quantizer(&b);
            OK(dq_quantizer_checkpoint(q, dir));
            for (int i = 0; i < stop; i++) {
                OK(dq_quantizer_step(q, NULL, NULL, NULL, &done));
                OK(dq_quantizer_checkpoint(q, dir));
            }
            dq_quantizer_free(q);
            host_bench_close(&b);
            b = host_bench_open(jobs[j], 3, false);
            q = host_calibrated_quantizer(&b);
            OK(dq_quantizer_restore(q, dir));
            assert_true(perplexity(&b, finish(q)) == wanted);
            host_bench_close(&b);
        }
    }
}

/* What other programs read has the scales in its norms and linears: nothing is left for a reader to know. */
static void exports_hold_the_scales(void **state)
{
    (void)state;
    char dir[400];
    host_bench b = host_bench_open(jobs[0], 2, false);
    OK(dq_config_set(b.config, "w_bits", "4"));
    dq_model *model = finish(host_calibrated_quantizer(&b)), *back = NULL;
    snprintf(dir, sizeof dir, "%s/awq", scratch_dir());
    OK(dq_model_export(model, "awq", dir, NULL, NULL, NULL, NULL));
    OK(dq_model_open(b.ctx, dir, &back));
    double ours = perplexity(&b, model), theirs = perplexity(&b, back);
    assert_true(fabs(ours - theirs) < 2e-3 * ours); /* scales of the codes in fp16 */
    host_bench_close(&b);
}

static void refuses_what_it_cannot(void **state)
{
    (void)state;
    host_bench b = host_bench_open(jobs[0], 1, false);
    dq_quantizer *q = NULL;
    OK(dq_quantizer_new(b.model, b.config, &q));
    assert_int_equal(dq_quantizer_run(q, NULL, NULL, NULL), DQ_E_STATE);
    assert_non_null(strstr(dq_error_text(), "AWQ"));
    OK(dq_quantizer_bind(q, b.set)); /* still possible */
    dq_model_free(finish(q));
    float w[64] = {0}, scale[2], zero[2];
    uint8_t codes[64];
    int32_t g_idx[32];
    assert_int_equal(dq_quantize_weight(b.ctx, b.config, w, 2, 32, NULL, codes, scale, zero, g_idx, NULL, NULL),
                     DQ_E_UNSUPPORTED);
    assert_non_null(strstr(dq_error_text(), "whole model"));
    host_bench_close(&b);
}

static int open_files(void **state)
{
    (void)state;
    return scratch_open();
}
static int close_files(void **state)
{
    (void)state;
    scratch_close();
    return 0;
}
static int no_leaks(void **state) { return scratch_empty() != 0 ? -1 : host_no_leaks(state); }

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(search_and_rounding),
        cmocka_unit_test(search_draws_rows),
        cmocka_unit_test(scaling_keeps_logits),
        cmocka_unit_test(refuses_bad_scales),
        cmocka_unit_test_teardown(same_bits_everywhere, no_leaks),
        cmocka_unit_test_teardown(scales_matter, no_leaks),
        cmocka_unit_test_teardown(resumes_to_the_same_bits, no_leaks),
        cmocka_unit_test_teardown(exports_hold_the_scales, no_leaks),
        cmocka_unit_test_teardown(refuses_what_it_cannot, no_leaks),
    };
    return cmocka_run_group_tests_name("awq", tests, open_files, close_files);
}
