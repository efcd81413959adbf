/* A job whose device is lost goes on on another backend from its checkpoint, through the installed headers and the shared
 * library alone. SPDX-License-Identifier: Apache-2.0 */
#include <dartquant.h>

#include <limits.h>
#include <math.h>
#include <setjmp.h>
#include <stdbool.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>
#include <cmocka.h>

#define MODEL "tests/data/tiny"
#define OK(call)                                                                                                       \
    do {                                                                                                               \
        dq_status s_ = (call);                                                                                         \
        if (s_ != DQ_OK) fail_msg("%s: %d %s", #call, s_, dq_error_text());                                            \
    } while (0)

enum { SEQLEN = 16, WINDOWS = 3 };
static const char *const takers[] = {"cpu", "ref"};

static int warnings;
static char last_warning[256], plugin[PATH_MAX], dir[64];

static void count_log(void *user, int32_t level, const char *text)
{
    (void)user;
    if (level != DQ_LOG_WARNING) return;
    warnings++;
    snprintf(last_warning, sizeof last_warning, "%s", text);
}

static int set_up(void **state)
{
    (void)state;
    ssize_t n = readlink("/proc/self/exe", plugin, sizeof plugin - 64);
    if (n <= 0) return -1;
    plugin[n] = '\0';
    strcpy(strrchr(plugin, '/') + 1, "libdartquant-farsim.so");
    strcpy(dir, "/tmp/dq_test_resume.XXXXXX");
    return mkdtemp(dir) ? 0 : -1;
}

/* ---- one device with its model, data and options ---- */

typedef struct place {
    dq_context *ctx;
    dq_config *config;
    dq_dataset *set;
    dq_model *model; /* fused and rotated */
} place;

/* `backend` "farsim" or "farsim:options" stands for the plug-in's path. */
static dq_context *context_on(const char *backend)
{
    const dq_services services = {.struct_size = sizeof services, .abi = 1, .log = count_log};
    char text[PATH_MAX + 128];
    dq_config *config = NULL;
    dq_context *ctx = NULL;
    bool far = strncmp(backend, "farsim", 6) == 0;
    snprintf(text, sizeof text, "%s%s", far ? plugin : "", far ? backend + 6 : backend);
    OK(dq_config_new(&config));
    OK(dq_config_set(config, "threads", "1"));
    OK(dq_config_set(config, "backend", text));
    OK(dq_config_set(config, "policy", "allow")); /* farsim has no qr */
    OK(dq_context_new(config, &services, &ctx));
    dq_config_free(config);
    return ctx;
}

static place open_place(const char *backend, const char *mode)
{
    place p = {.ctx = context_on(backend)};
    static const char *const settings[][2] = {{"seqlen", "16"},      {"nsamples", "3"}, {"w_bits", "4"},
                                              {"w_groupsize", "32"}, {"a_bits", "4"},   {"k_bits", "4"},
                                              {"v_bits", "4"},       {"seed", "3"}};
    int32_t ids[WINDOWS * SEQLEN + 5];
    dq_model *model = NULL, *fused = NULL;
    dq_rotation *rotation = NULL;
    OK(dq_config_new(&p.config));
    for (size_t i = 0; i < sizeof settings / sizeof *settings; i++)
        OK(dq_config_set(p.config, settings[i][0], settings[i][1]));
    OK(dq_config_set(p.config, "rotate_mode", mode));
    for (int i = 0; i < (int)(sizeof ids / sizeof *ids); i++) ids[i] = (i * i * 7 + i * 13 + 5) % 500;
    OK(dq_dataset_from_ids(p.ctx, ids, sizeof ids / sizeof *ids, "numbers", &p.set));
    OK(dq_model_open(p.ctx, MODEL, &model));
    OK(dq_model_fuse_norms(model, p.config, &fused));
    OK(dq_rotation_new(fused, p.config, &rotation));
    OK(dq_model_rotate(fused, rotation, &p.model));
    dq_rotation_free(rotation);
    dq_model_free(fused);
    dq_model_free(model);
    return p;
}

static void close_place(place *p)
{
    dq_model_free(p->model);
    dq_dataset_free(p->set);
    dq_config_free(p->config);
    dq_context_free(p->ctx);
}

static long long ops_of(const place *p)
{
    dq_device_counters c = {.struct_size = sizeof c};
    OK(dq_context_counters(p->ctx, &c));
    return (long long)c.ops;
}

static dq_evaluator *new_evaluator(const place *p, dq_model *model)
{
    dq_evaluator *e = NULL;
    OK(dq_evaluator_new(model, p->config, &e));
    OK(dq_evaluator_bind(e, p->set));
    return e;
}

static dq_quantizer *new_quantizer(const place *p)
{
    dq_quantizer *q = NULL;
    OK(dq_quantizer_new(p->model, p->config, &q));
    OK(dq_quantizer_bind(q, p->set));
    return q;
}

static double finish_evaluator(dq_evaluator *e)
{
    double ppl = 0;
    OK(dq_evaluator_run(e, NULL, NULL, NULL));
    OK(dq_evaluator_get_float(e, "ppl", &ppl));
    dq_evaluator_free(e);
    return ppl;
}

typedef struct outcome {
    double ppl, error, bits;
} outcome;

static outcome finish_quantizer(const place *p, dq_quantizer *q)
{
    outcome o;
    dq_model *model = NULL;
    OK(dq_quantizer_run(q, NULL, NULL, NULL));
    OK(dq_quantizer_take_model(q, &model));
    OK(dq_quantizer_get_float(q, "bits_per_weight", &o.bits));
    OK(dq_quantizer_get_float(q, "mean_error", &o.error));
    o.ppl = finish_evaluator(new_evaluator(p, model));
    dq_model_free(model);
    dq_quantizer_free(q);
    return o;
}

/* ---- checks ---- */

static void assert_near(double got, double want, double relative)
{
    if (!(fabs(got - want) <= relative * fabs(want)))
        fail_msg("%.12g instead of %.12g: off by %.3g, allowed %.3g", got, want, fabs(got / want - 1), relative);
}

static void assert_lost(dq_status status)
{
    assert_int_equal(status, DQ_E_DEVICE_LOST);
    assert_string_equal(dq_error_backend(), "farsim:0");
}

static void assert_warned(const char *taker)
{
    assert_int_equal(warnings, 1);
    assert_non_null(strstr(last_warning, "written on farsim:0"));
    assert_non_null(strstr(last_warning, taker));
    warnings = 0;
}

/* ---- GPTQ ---- */

enum { STEPS = 2 }; /* done before the device goes, each with a checkpoint */

static dq_status quantize_until_lost(const char *backend, const char *mode, long long *ops)
{
    place p = open_place(backend, mode);
    dq_quantizer *q = new_quantizer(&p);
    int32_t done = 0;
    dq_status status = dq_quantizer_checkpoint(q, dir);
    for (int i = 0; i < STEPS && status == DQ_OK; i++) {
        status = dq_quantizer_step(q, NULL, NULL, NULL, &done);
        if (status == DQ_OK) status = dq_quantizer_checkpoint(q, dir);
    }
    assert_int_equal(status, DQ_OK);
    *ops = ops_of(&p);
    status = dq_quantizer_step(q, NULL, NULL, NULL, &done);
    if (status != DQ_OK) assert_lost(status);
    dq_quantizer_free(q);
    close_place(&p);
    return status;
}

static void quantizer(void **state)
{
    (void)state;
    static const char *const modes[] = {"hadamard", "random"};
    for (int m = 0; m < 2; m++) {
        long long ops = 0;
        char backend[64];
        place p = open_place("ref", modes[m]);
        outcome want = finish_quantizer(&p, new_quantizer(&p)), got;
        close_place(&p);
        assert_int_equal(quantize_until_lost("farsim", modes[m], &ops), DQ_OK);
        snprintf(backend, sizeof backend, "farsim:lost_at=%lld", ops + 20);
        for (int t = 0; t < 2; t++) {
            double layers = 0;
            assert_int_equal(quantize_until_lost(backend, modes[m], &ops), DQ_E_DEVICE_LOST);
            p = open_place(takers[t], modes[m]);
            dq_quantizer *q = new_quantizer(&p);
            warnings = 0;
            OK(dq_quantizer_restore(q, dir));
            assert_warned(dq_context_device_name(p.ctx));
            OK(dq_quantizer_get_float(q, "layers_done", &layers));
            assert_true(layers == STEPS);
            got = finish_quantizer(&p, q);
            print_message("%s, GPTQ goes on on %s: perplexity %.9g, on ref alone %.9g; mean error %.6g, %.6g\n",
                          modes[m], takers[t], got.ppl, want.ppl, got.error, want.error);
            assert_near(got.ppl, want.ppl, 1e-3);
            assert_near(got.error, want.error, 1e-3);
            assert_true(got.bits == want.bits);
            OK(dq_checkpoint_remove(p.ctx, dir));
            close_place(&p);
        }
    }
}

/* ---- perplexity ---- */

static dq_status measure_until_lost(const char *backend, long long *ops)
{
    place p = open_place(backend, "hadamard");
    dq_evaluator *e = new_evaluator(&p, p.model);
    int32_t done = 0;
    dq_status status = DQ_OK;
    for (int i = 0; i < STEPS && status == DQ_OK; i++) {
        status = dq_evaluator_step(e, NULL, NULL, NULL, &done);
        if (status == DQ_OK) status = dq_evaluator_checkpoint(e, dir);
    }
    assert_int_equal(status, DQ_OK);
    *ops = ops_of(&p);
    status = dq_evaluator_step(e, NULL, NULL, NULL, &done);
    if (status == DQ_OK) status = dq_evaluator_step(e, NULL, NULL, NULL, &done); /* the stream is late */
    if (status != DQ_OK) assert_lost(status);
    dq_evaluator_free(e);
    close_place(&p);
    return status;
}

static void evaluator(void **state)
{
    (void)state;
    long long ops = 0;
    char backend[64];
    place p = open_place("ref", "hadamard");
    double want = finish_evaluator(new_evaluator(&p, p.model));
    close_place(&p);
    assert_int_equal(measure_until_lost("farsim", &ops), DQ_OK);
    snprintf(backend, sizeof backend, "farsim:depth=1,lost_at=%lld", ops + 5);
    for (int t = 0; t < 2; t++) {
        assert_int_equal(measure_until_lost(backend, &ops), DQ_E_DEVICE_LOST);
        p = open_place(takers[t], "hadamard");
        dq_evaluator *e = new_evaluator(&p, p.model);
        warnings = 0;
        OK(dq_evaluator_restore(e, dir));
        assert_warned(dq_context_device_name(p.ctx));
        double got = finish_evaluator(e);
        print_message("perplexity goes on on %s: %.9g, on ref alone %.9g\n", takers[t], got, want);
        assert_near(got, want, 1e-5);
        OK(dq_checkpoint_remove(p.ctx, dir));
        close_place(&p);
    }
}

int main(void)
{
    const struct CMUnitTest tests[] = {cmocka_unit_test_setup(quantizer, set_up),
                                       cmocka_unit_test_setup(evaluator, set_up)};
    return cmocka_run_group_tests(tests, NULL, NULL);
}
