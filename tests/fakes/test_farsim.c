/* The whole pipeline on a device whose memory is out of reach, whose stream is late and which fails when told to, through
 * the installed headers and the shared library alone. SPDX-License-Identifier: Apache-2.0 */
#include <dartquant.h>
#include <dartquant/backend.h>

#include <dlfcn.h>
#include <limits.h>
#include <math.h>
#include <pthread.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stdbool.h>
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

enum { LAYERS = 4, SEQLEN = 16, WINDOWS = 3, CODE_OOM = 2, CODE_COPY = 30, CODE_LOST = 46, CODE_NOT_BUILT = 801 };

/* ---- contexts that count what they hold ---- */

static long live_blocks;
static int warnings;
static char last_warning[256];

static void *count_alloc(void *user, size_t bytes)
{
    (void)user;
    void *p = malloc(bytes);
    if (p) __atomic_add_fetch(&live_blocks, 1, __ATOMIC_SEQ_CST);
    return p;
}

static void count_free(void *user, void *ptr, size_t bytes)
{
    (void)user;
    (void)bytes;
    __atomic_sub_fetch(&live_blocks, 1, __ATOMIC_SEQ_CST);
    free(ptr);
}

static void count_log(void *user, int32_t level, const char *text)
{
    (void)user;
    assert_int_not_equal(level, DQ_LOG_ERROR);
    if (level != DQ_LOG_WARNING) return;
    warnings++;
    snprintf(last_warning, sizeof last_warning, "%s", text);
}

static int no_leaks(void **state)
{
    (void)state;
    long live = live_blocks;
    live_blocks = 0;
    warnings = 0;
    if (live) print_error("%ld blocks were not given back\n", live);
    return live ? -1 : 0;
}

static char plugin[PATH_MAX];

static int find_plugin(void **state)
{
    (void)state;
    ssize_t n = readlink("/proc/self/exe", plugin, sizeof plugin - 64);
    if (n <= 0) return -1;
    plugin[n] = '\0';
    strcpy(strrchr(plugin, '/') + 1, "libdartquant-farsim.so");
    return 0;
}

/* "farsim" or "farsim:options" stands for the plug-in's path. */
static dq_config *config_of(const char *backend, const char *policy)
{
    dq_config *config = NULL;
    char text[PATH_MAX + 128];
    bool far = strncmp(backend, "farsim", 6) == 0;
    snprintf(text, sizeof text, "%s%s", far ? plugin : "", far ? backend + 6 : backend);
    OK(dq_config_new(&config));
    OK(dq_config_set(config, "threads", "1"));
    OK(dq_config_set(config, "backend", text));
    OK(dq_config_set(config, "policy", policy));
    return config;
}

static const dq_services services = {
    .struct_size = sizeof services, .abi = 1, .allocator = {count_alloc, count_free, NULL}, .log = count_log};

static dq_context *context_on(const char *backend, const char *policy)
{
    dq_context *ctx = NULL;
    dq_config *config = config_of(backend, policy);
    OK(dq_context_new(config, &services, &ctx));
    dq_config_free(config);
    return ctx;
}

static dq_context *context_with(const dq_backend *table, const char *options, const char *policy)
{
    dq_context *ctx = NULL;
    dq_config *config = config_of("ref", policy);
    OK(dq_context_new_with_backend(config, &services, table, options, &ctx));
    dq_config_free(config);
    return ctx;
}

static dq_device_counters counters_of(const dq_context *ctx)
{
    dq_device_counters c = {.struct_size = sizeof c};
    OK(dq_context_counters(ctx, &c));
    assert_int_equal(c.fallbacks, dq_context_fallback_count(ctx));
    return c;
}

static const dq_backend *farsim_table(void)
{
    void *file = dlopen(plugin, RTLD_NOW | RTLD_LOCAL);
    assert_non_null(file);
    dq_backend_entry_fn entry;
    void *symbol = dlsym(file, DQ_BACKEND_ENTRY);
    assert_non_null(symbol);
    memcpy(&entry, &symbol, sizeof entry);
    assert_null(entry(DQ_BACKEND_ABI + 1));
    assert_non_null(entry(DQ_BACKEND_ABI));
    return entry(DQ_BACKEND_ABI);
}

/* ---- jobs ---- */

static dq_dataset *dataset_of(dq_context *ctx)
{
    int32_t ids[WINDOWS * SEQLEN + 5];
    dq_dataset *set = NULL;
    for (int i = 0; i < (int)(sizeof ids / sizeof *ids); i++) ids[i] = (i * i * 7 + i * 13 + 5) % 500;
    OK(dq_dataset_from_ids(ctx, ids, sizeof ids / sizeof *ids, "numbers", &set));
    return set;
}

static dq_config *job_config(const char *extra)
{
    char text[512];
    dq_config *config = NULL;
    OK(dq_config_new(&config));
    snprintf(text, sizeof text, "seqlen=%d %s", SEQLEN, extra);
    char *rest = text;
    for (char *item; (item = strsep(&rest, " ")) != NULL;) {
        char *value = strchr(item, '=');
        if (!value) continue;
        *value = '\0';
        OK(dq_config_set(config, item, value + 1));
    }
    return config;
}

/* Perplexity of a model, or the first failure. */
static dq_status measure(dq_context *ctx, dq_model *model, double *ppl)
{
    dq_evaluator *e = NULL;
    dq_dataset *set = dataset_of(ctx);
    dq_config *config = job_config("");
    dq_status status = dq_evaluator_new(model, config, &e);
    if (status == DQ_OK) status = dq_evaluator_bind(e, set);
    if (status == DQ_OK) status = dq_evaluator_run(e, NULL, NULL, NULL);
    if (status == DQ_OK) status = dq_evaluator_get_float(e, "ppl", ppl);
    dq_evaluator_free(e);
    dq_config_free(config);
    dq_dataset_free(set);
    return status;
}

static dq_status run_ppl(dq_context *ctx, double *ppl)
{
    dq_model *model = NULL;
    dq_status status = dq_model_open(ctx, MODEL, &model);
    if (status == DQ_OK) status = measure(ctx, model, ppl);
    dq_model_free(model);
    return status;
}

typedef struct results {
    double rotated, quantized, bits;
} results;

static dq_status quantize(dq_context *ctx, dq_model *model, const dq_config *config, results *out)
{
    dq_quantizer *q = NULL;
    dq_model *done = NULL;
    dq_dataset *set = dataset_of(ctx);
    dq_status status = dq_quantizer_new(model, config, &q);
    if (status == DQ_OK) status = dq_quantizer_bind(q, set);
    if (status == DQ_OK) status = dq_quantizer_run(q, NULL, NULL, NULL);
    if (status == DQ_OK) status = dq_quantizer_take_model(q, &done);
    if (status == DQ_OK) status = dq_quantizer_get_float(q, "bits_per_weight", &out->bits);
    if (status == DQ_OK) status = measure(ctx, done, &out->quantized);
    dq_model_free(done);
    dq_quantizer_free(q);
    dq_dataset_free(set);
    return status;
}

/* fuse, rotate, perplexity, GPTQ, perplexity of the W4A4KV4 model. */
static dq_status run_pipeline(dq_context *ctx, const char *extra, results *out)
{
    dq_model *model = NULL, *fused = NULL, *rotated = NULL;
    dq_rotation *rotation = NULL;
    char options[300];
    snprintf(options, sizeof options, "w_bits=4 w_groupsize=32 a_bits=4 k_bits=4 v_bits=4 nsamples=2 seed=3 %s", extra);
    dq_config *config = job_config(options);
    dq_status status = dq_model_open(ctx, MODEL, &model);
    if (status == DQ_OK) status = dq_model_fuse_norms(model, config, &fused);
    if (status == DQ_OK) status = dq_rotation_new(fused, config, &rotation);
    if (status == DQ_OK) status = dq_model_rotate(fused, rotation, &rotated);
    if (status == DQ_OK) status = measure(ctx, rotated, &out->rotated);
    if (status == DQ_OK) status = quantize(ctx, rotated, config, out);
    dq_model_free(rotated);
    dq_rotation_free(rotation);
    dq_model_free(fused);
    dq_model_free(model);
    dq_config_free(config);
    return status;
}

static void assert_near(double got, double want, double relative)
{
    if (!(fabs(got - want) <= relative * fabs(want)))
        fail_msg("%.12g instead of %.12g: off by %.3g, allowed %.3g", got, want, fabs(got / want - 1), relative);
}

/* ---- numbers and counts ---- */

/* What perplexity copies to the device: cos and sin; two groups of 256 vocabulary rows with their indices, and the index
 * of all tokens; two norms and seven linears per layer; the last norm; the targets; the head in one tile. And back: the
 * sums of the loss. */
enum { PPL_UPLOADS = 2 + (2 * 2 + 1) + LAYERS * (2 + 7) + 1 + 1 + 1, PPL_DOWNLOADS = 1 };

static void perplexity_like_the_reference(void **state)
{
    (void)state;
    double want = 0, got = 0;
    dq_context *ref = context_on("ref", "forbid"), *far = context_on("farsim", "forbid");
    assert_string_equal(dq_context_device_name(far), "farsim:0");
    assert_non_null(strstr(dq_context_device_json(far), "\"farsim\""));
    OK(run_ppl(ref, &want));
    OK(run_ppl(far, &got));
    assert_near(got, want, 1e-6);
    dq_device_counters r = counters_of(ref), f = counters_of(far);
    assert_int_equal(f.uploads, PPL_UPLOADS);
    assert_int_equal(f.downloads, PPL_DOWNLOADS);
    assert_int_equal(f.download_bytes, WINDOWS * SEQLEN * 3 * sizeof(double));
    assert_int_equal(f.fallbacks, 0);
    assert_memory_equal(&r, &f, sizeof r);
    dq_context_free(ref);
    dq_context_free(far);
}

static void pipeline_like_the_reference(void **state)
{
    (void)state;
    results want, got;
    dq_context *ref = context_on("ref", "forbid"), *far = context_on("farsim", "forbid");
    OK(run_pipeline(ref, "", &want));
    OK(run_pipeline(far, "", &got));
    assert_near(got.rotated, want.rotated, 1e-6);
    assert_near(got.quantized, want.quantized, 1e-3);
    assert_near(got.bits, want.bits, 0);
    dq_device_counters r = counters_of(ref), f = counters_of(far);
    assert_int_equal(f.fallbacks, 0);
    assert_memory_equal(&r, &f, sizeof r); /* the same work, op for op and byte for byte */
    dq_context_free(ref);
    dq_context_free(far);
}

/* An op on the host costs one download per input and one upload per output: here of packed tensors. */
static void fallback_costs(const char *backend, const char *extra, bool pipeline, int inputs, int outputs,
                           int64_t expected)
{
    results want, got;
    double want_ppl = 0, got_ppl = 0;
    dq_context *ref = context_on("ref", "forbid"), *far = context_on(backend, "warn");
    if (pipeline) {
        OK(run_pipeline(ref, extra, &want));
        OK(run_pipeline(far, extra, &got));
        assert_near(got.rotated, want.rotated, 1e-6);
        assert_near(got.quantized, want.quantized, 1e-3);
    } else {
        OK(run_ppl(ref, &want_ppl));
        OK(run_ppl(far, &got_ppl));
        assert_near(got_ppl, want_ppl, 1e-6);
    }
    dq_device_counters r = counters_of(ref), f = counters_of(far);
    assert_int_equal(f.fallbacks, expected);
    assert_int_equal(f.ops, r.ops);
    assert_int_equal(f.downloads, r.downloads + f.fallbacks * (uint64_t)inputs);
    assert_int_equal(f.uploads, r.uploads + f.fallbacks * (uint64_t)outputs);
    assert_int_equal(warnings, 1); /* once per op, not per call */
    dq_context_free(ref);
    dq_context_free(far);
    warnings = 0;
}

static void missing_ops_are_counted(void **state)
{
    (void)state;
    /* x, w, targets, state in; state out; once per window and tile */
    fallback_costs("farsim:missing=head_nll", "", false, 4, 1, WINDOWS);
    assert_non_null(strstr(last_warning, "head_nll"));
    assert_non_null(strstr(last_warning, "farsim:0"));
    assert_non_null(strstr(last_warning, "built without it"));
    /* two norms per layer and window, the last one for all windows at once */
    fallback_costs("farsim:missing=rmsnorm,depth=3", "", false, 2, 1, LAYERS * 2 * WINDOWS + 1);
    /* scale and zero are found by group: w in, two columns of parameters out */
    fallback_costs("farsim:missing=gptq_factor", "", true, 1, 1, LAYERS * 4);
}

/* farsim has no slot for these two, and no reason to give. */
static void null_slots_are_counted(void **state)
{
    (void)state;
    /* R1 and one R2 per layer come from QR: a in, q and r out */
    fallback_costs("farsim", "rotate_mode=random", true, 1, 2, 1 + LAYERS);
    assert_non_null(strstr(last_warning, "op qr runs on the host"));
    /* weights into the order of work, codes back */
    fallback_costs("farsim", "act_order=true", true, 2, 1, LAYERS * 7 * 2);
    assert_non_null(strstr(last_warning, "op gather_cols runs on the host"));
}

/* A table without any op: the host does everything and gets the reference's bits. */
static void no_ops_at_all(void **state)
{
    (void)state;
    double want = 0, got = 0;
    dq_backend bare = *farsim_table();
    memset((char *)&bare + offsetof(dq_backend, fill), 0, sizeof bare - offsetof(dq_backend, fill));
    dq_context *ref = context_on("ref", "forbid"), *far = context_with(&bare, "depth=5", "allow");
    OK(run_ppl(ref, &want));
    OK(run_ppl(far, &got));
    assert_true(got == want);
    dq_device_counters f = counters_of(far);
    assert_int_equal(f.fallbacks, f.ops);
    assert_int_equal(warnings, 0);
    dq_context_free(far);
    /* an old, shorter table means the same */
    bare = *farsim_table();
    bare.struct_size = offsetof(dq_backend, fill);
    far = context_with(&bare, NULL, "allow");
    OK(run_ppl(far, &got));
    assert_true(got == want);
    dq_context_free(far);
    dq_context_free(ref);
}

static void assert_error(dq_status got, dq_status status, int64_t code, const char *backend, const char *word)
{
    if (got != status || dq_error_last() != status || dq_error_vendor_code() != code ||
        strcmp(dq_error_backend(), backend) != 0 || !strstr(dq_error_text(), word))
        fail_msg("got %s, code %lld, backend '%s': %s; expected %s, code %lld, backend '%s', '%s'", dq_status_name(got),
                 (long long)dq_error_vendor_code(), dq_error_backend(), dq_error_text(), dq_status_name(status),
                 (long long)code, backend, word);
}

static void forbidden_fallback(void **state)
{
    (void)state;
    double ppl = -1;
    results r;
    dq_context *far = context_on("farsim:missing=rope+head_nll", "forbid");
    assert_error(run_ppl(far, &ppl), DQ_E_UNSUPPORTED, CODE_NOT_BUILT, "farsim:0",
                 "op rope is not supported by device");
    assert_true(ppl == -1);
    assert_int_equal(dq_context_fallback_count(far), 0);
    dq_context_free(far);
    far = context_on("farsim", "forbid");
    assert_error(run_pipeline(far, "rotate_mode=random", &r), DQ_E_UNSUPPORTED, 0, "farsim:0", "op qr");
    dq_context_free(far);
}

/* What one device saved, another opens. */
static void saved_model_moves_on(void **state)
{
    (void)state;
    char dir[] = "/tmp/dq-farsim-XXXXXX", extra[64], command[64];
    double moved = 0;
    results far_results;
    assert_non_null(mkdtemp(dir));
    snprintf(extra, sizeof extra, "save_qmodel_path=%s", dir);
    dq_context *far = context_on("farsim", "forbid"), *ref = context_on("ref", "forbid");
    OK(run_pipeline(far, extra, &far_results));
    dq_model *model = NULL;
    OK(dq_model_open(ref, dir, &model));
    OK(measure(ref, model, &moved));
    assert_near(moved, far_results.quantized, 1e-4);
    dq_model_free(model);
    dq_context_free(far);
    dq_context_free(ref);
    snprintf(command, sizeof command, "rm -r '%s'", dir);
    assert_int_equal(system(command), 0);
}

static void *thread_main(void *out)
{
    dq_context *ctx = NULL;
    dq_config *config = config_of("farsim:depth=11", "forbid");
    dq_status status = dq_context_new(config, &services, &ctx);
    if (status == DQ_OK) status = run_pipeline(ctx, "", out);
    dq_context_free(ctx);
    dq_config_free(config);
    return status == DQ_OK ? out : NULL;
}

/* Two devices of one plug-in know nothing of each other. */
static void two_contexts_in_two_threads(void **state)
{
    (void)state;
    results want, got[2];
    pthread_t threads[2];
    dq_context *far = context_on("farsim", "forbid");
    OK(run_pipeline(far, "", &want));
    dq_context_free(far);
    for (int i = 0; i < 2; i++) assert_int_equal(pthread_create(&threads[i], NULL, thread_main, &got[i]), 0);
    for (int i = 0; i < 2; i++) {
        void *done = NULL;
        assert_int_equal(pthread_join(threads[i], &done), 0);
        assert_non_null(done);
        assert_true(got[i].rotated == want.rotated && got[i].quantized == want.quantized);
    }
}

enum { ROWS = 24, COLS = 96, OUT = 40, GROUPS = 3 };

typedef struct pieces {
    uint8_t codes[OUT * COLS];
    float scale[OUT * GROUPS], zero[OUT * GROUPS], activations[ROWS * COLS], turned[ROWS * COLS];
    double error, nll[ROWS];
} pieces;

/* The functions for hosts with a forward pass of their own. */
static void run_pieces(dq_context *ctx, pieces *out)
{
    float x[ROWS * COLS], w[OUT * COLS];
    int32_t index[COLS], targets[ROWS];
    for (int i = 0; i < ROWS * COLS; i++) x[i] = (float)sin(i * 0.37) + (float)(i % 11) / 10;
    for (int i = 0; i < OUT * COLS; i++) w[i] = (float)cos(i * 0.73) / 4;
    for (int i = 0; i < ROWS; i++) targets[i] = i * 3;
    dq_hessian *hessian = NULL;
    dq_config *config = job_config("w_bits=4 w_groupsize=32 percdamp=0.1");
    OK(dq_hessian_new(ctx, COLS, &hessian));
    OK(dq_hessian_add(hessian, x, ROWS, COLS, DQ_F32));
    OK(dq_quantize_weight(ctx, config, w, OUT, COLS, hessian, out->codes, out->scale, out->zero, index, &out->error,
                          NULL));
    memcpy(out->activations, x, sizeof x);
    OK(dq_fake_quantize(ctx, out->activations, ROWS, COLS, 4, 32, 0, 0.9));
    memcpy(out->turned, x, sizeof x);
    OK(dq_apply_hadamard(ctx, 12, out->turned, ROWS, COLS, 0)); /* with a 12 x 12 table that the device must copy */
    OK(dq_score_logits(ctx, x, ROWS, COLS, COLS, targets, out->nll, NULL));
    dq_hessian_free(hessian);
    dq_config_free(config);
}

static void pieces_below_the_jobs(void **state)
{
    (void)state;
    pieces want, got;
    dq_context *ref = context_on("ref", "forbid"), *far = context_on("farsim:depth=100", "warn");
    run_pieces(ref, &want);
    run_pieces(far, &got);
    int other = 0;
    for (int i = 0; i < OUT * COLS; i++) other += want.codes[i] != got.codes[i];
    assert_true(other <= 4);                  /* ties */
    assert_near(got.error, want.error, 1e-2); /* the energy that scales it may come from bf16 products */
    assert_memory_equal(want.activations, got.activations, sizeof want.activations);
    for (int i = 0; i < ROWS * COLS; i++) assert_true(fabsf(got.turned[i] - want.turned[i]) < 1e-5f);
    for (int i = 0; i < ROWS; i++) assert_near(got.nll[i], want.nll[i], 1e-6);
    dq_context_free(ref);
    dq_context_free(far);
}

/* ---- faults ---- */

typedef struct fault {
    const char *option;
    dq_status status;
    int64_t code;
    const char *word;
} fault;

static const fault faults[] = {{"oom_at", DQ_E_DEVICE_MEMORY, CODE_OOM, "was told to fail"},
                               {"fail_copy", DQ_E_BACKEND, CODE_COPY, "load of "},
                               {"lost_at", DQ_E_DEVICE_LOST, CODE_LOST, "the device was lost"}};

/* The n-th allocation, copy or op fails. False once n is past the end of the job. */
static bool fault_at(const fault *f, int64_t n, double healthy)
{
    char backend[96];
    double ppl = -1;
    snprintf(backend, sizeof backend, "farsim:%s=%lld,depth=%lld", f->option, (long long)n, (long long)(1 + n % 40));
    dq_context *far = context_on(backend, "forbid");
    dq_status status = run_ppl(far, &ppl);
    bool happened = status != DQ_OK;
    if (happened) {
        assert_error(status, f->status, f->code, "farsim:0", f->word);
        assert_true(ppl == -1);
    }
    /* The same context again: only a lost device stays lost, and says why. */
    status = run_ppl(far, &ppl);
    if (happened && f->status == DQ_E_DEVICE_LOST)
        assert_error(status, DQ_E_DEVICE_LOST, CODE_LOST, "farsim:0", "was lost");
    else if (status != DQ_OK)
        assert_false(happened); /* it came in the second run */
    else
        assert_true(ppl == healthy);
    dq_context_free(far);
    assert_int_equal(live_blocks, 0);
    return happened;
}

static void every_fault_is_an_error(void **state)
{
    (void)state;
    double healthy = 0, again = 0;
    dq_context *far = context_on("farsim", "forbid");
    OK(run_ppl(far, &healthy));
    dq_context_free(far);
    for (size_t i = 0; i < sizeof faults / sizeof faults[0]; i++) {
        int64_t n = 1, seen = 0;
        for (; fault_at(&faults[i], n, healthy); n += 1 + n / 8) seen++;
        print_message("%s: %lld places, the last before %lld\n", faults[i].option, (long long)seen, (long long)n);
        assert_true(seen > 12);
    }
    /* and the process is none the worse */
    far = context_on("farsim", "forbid");
    OK(run_ppl(far, &again));
    assert_true(again == healthy);
    dq_context_free(far);
}

static void quantization_survives_faults(void **state)
{
    (void)state;
    results want, got;
    dq_context *far = context_on("farsim", "forbid");
    OK(run_pipeline(far, "", &want));
    dq_device_counters c = counters_of(far);
    dq_context_free(far);
    uint64_t copies = c.uploads + c.downloads;
    int64_t where[3][3] = {{50, 200, 400},
                           {(int64_t)copies / 4, (int64_t)copies / 2, (int64_t)copies * 3 / 4},
                           {(int64_t)c.ops / 4, (int64_t)c.ops / 2, (int64_t)c.ops * 3 / 4}};
    for (int i = 0; i < 3; i++)
        for (int k = 0; k < 3; k++) {
            char backend[96];
            snprintf(backend, sizeof backend, "farsim:%s=%lld", faults[i].option, (long long)where[i][k]);
            far = context_on(backend, "forbid");
            assert_error(run_pipeline(far, "", &got), faults[i].status, faults[i].code, "farsim:0", faults[i].word);
            if (faults[i].status != DQ_E_DEVICE_LOST && k == 1) { /* the same job, the same device, the same bits */
                OK(run_pipeline(far, "", &got));
                assert_true(got.quantized == want.quantized && got.rotated == want.rotated);
            }
            dq_context_free(far);
            assert_int_equal(live_blocks, 0);
        }
    dq_context *ref = context_on("ref", "forbid"); /* another backend takes over */
    OK(run_pipeline(ref, "", &got));
    assert_near(got.quantized, want.quantized, 1e-3);
    dq_context_free(ref);
}

static void small_memory(void **state)
{
    (void)state;
    double ppl = 0, want = 0;
    dq_context *far = context_on("farsim:limit=100000", "forbid");
    assert_error(run_ppl(far, &ppl), DQ_E_DEVICE_MEMORY, CODE_OOM, "farsim:0", "of 100000 bytes are in use");
    dq_context_free(far);
    /* One layer is in memory at a time, and what is freed comes back although the release is queued. */
    far = context_on("farsim:limit=600000,depth=100000", "forbid");
    OK(run_ppl(far, &ppl));
    dq_context_free(far);
    far = context_on("farsim", "forbid");
    OK(run_ppl(far, &want));
    assert_true(ppl == want);
    dq_context_free(far);
}

static void bad_options(void **state)
{
    (void)state;
    static const char *const bad[] = {"farsim:limit=", "farsim:limit=-4", "farsim:colour=red",
                                      "farsim:missing=teleport"};
    for (int i = 0; i < 4; i++) {
        dq_context *ctx = NULL;
        dq_config *config = config_of(bad[i], "forbid");
        assert_error(dq_context_new(config, &services, &ctx), DQ_E_INVALID, 11, "farsim", "does not understand");
        assert_null(ctx);
        dq_config_free(config);
    }
}

/* Built-in tables take options too, and "simd" reaches only them. */
static void options_of_builtin_backends(void **state)
{
    (void)state;
    dq_context *ctx = context_on("cpu:simd=plain", "forbid");
    assert_string_equal(dq_context_device_name(ctx), "cpu:plain");
    dq_context_free(ctx);
    dq_config *config = config_of("farsim", "forbid");
    OK(dq_config_set(config, "simd", "avx2"));
    OK(dq_context_new(config, NULL, &ctx));
    assert_string_equal(dq_context_device_name(ctx), "farsim:0");
    dq_context_free(ctx);
    dq_config_free(config);
}

/* ---- tables that are wrong or lie ---- */

static const dq_backend *honest;
static dq_backend liar;

static void refused(const dq_backend *table, const char *word)
{
    dq_context *ctx = NULL;
    assert_int_equal(dq_context_new_with_backend(NULL, &services, table, "", &ctx), DQ_E_INVALID);
    if (!strstr(dq_error_text(), word)) fail_msg("'%s' lacks '%s'", dq_error_text(), word);
    assert_null(ctx);
}

static void wrong_tables(void **state)
{
    (void)state;
    honest = farsim_table();
    refused(NULL, "NULL argument");
    liar = *honest, liar.abi = 7, refused(&liar, "abi 7");
    liar = *honest, liar.struct_size = 40, refused(&liar, "struct_size 40");
    liar = *honest, liar.name = NULL, refused(&liar, "no name");
    liar = *honest, liar.open = NULL, refused(&liar, "'open'");
    liar = *honest, liar.close = NULL, refused(&liar, "'close'");
    liar = *honest, liar.info = NULL, refused(&liar, "'info'");
    liar = *honest, liar.alloc = NULL, refused(&liar, "'alloc'");
    liar = *honest, liar.free = NULL, refused(&liar, "'free'");
    liar = *honest, liar.upload = NULL, refused(&liar, "'upload'");
    liar = *honest, liar.download = NULL, refused(&liar, "'download'");
    liar = *honest, liar.sync = NULL, refused(&liar, "'sync'");
}

static dq_status open_nothing(const dq_host *host, const char *options, void **dev)
{
    (void)host;
    (void)options;
    (void)dev;
    return DQ_OK;
}

static dq_status alloc_nothing(void *dev, uint64_t bytes, void **mem)
{
    (void)dev;
    (void)bytes;
    (void)mem;
    return DQ_OK;
}

static dq_status positive_status(void *dev, const dq_view *cosine, const dq_view *sine, int64_t head_dim,
                                 const dq_view *x)
{
    (void)dev;
    (void)cosine;
    (void)sine;
    (void)head_dim;
    (void)x;
    return 17;
}

static dq_status endless_name(void *dev, dq_device_info *out)
{
    (void)dev;
    memset(out->name, 'x', sizeof out->name);
    memset(out->description, 'y', sizeof out->description);
    return DQ_OK;
}

static void lying_tables(void **state)
{
    (void)state;
    double ppl;
    dq_context *ctx = NULL;
    honest = farsim_table();
    liar = *honest;
    liar.open = open_nothing;
    assert_error(dq_context_new_with_backend(NULL, &services, &liar, "", &ctx), DQ_E_BACKEND, 0, "farsim",
                 "without a device");
    liar = *honest;
    liar.alloc = alloc_nothing;
    ctx = context_with(&liar, "", "forbid");
    assert_error(run_ppl(ctx, &ppl), DQ_E_BACKEND, 0, "farsim:0", "succeeded without memory");
    dq_context_free(ctx);
    liar = *honest;
    liar.rope = positive_status;
    ctx = context_with(&liar, "", "allow");
    assert_error(run_ppl(ctx, &ppl), DQ_E_BACKEND, 0, "farsim:0", "rope returned 17, which is no status");
    assert_int_equal(dq_context_fallback_count(ctx), 0); /* an error is no reason to fall back */
    dq_context_free(ctx);
    liar = *honest;
    liar.info = endless_name;
    ctx = context_with(&liar, "", "forbid");
    assert_int_equal(strlen(dq_context_device_name(ctx)), 63);
    dq_context_free(ctx);
}

/* ---- a host replaces one op of a backend of the library ---- */

static int replaced_calls;
static const dq_backend *plain;

static dq_status counted_rope(void *dev, const dq_view *cosine, const dq_view *sine, int64_t head_dim, const dq_view *x)
{
    replaced_calls++;
    assert_non_null(plain->host_pointer(dev, x->mem));
    return plain->rope(dev, cosine, sine, head_dim, x);
}

static void one_op_replaced(void **state)
{
    (void)state;
    double want = 0, got = 0;
    const dq_backend *none = NULL;
    dq_context *ref = context_on("ref", "forbid");
    OK(dq_backend_builtin("ref", &plain));
    dq_backend mine = *plain;
    mine.name = "mine";
    mine.rope = counted_rope;
    mine.activation = NULL; /* of a copy of ref, too, what is missing runs on the host */
    dq_context *ctx = context_with(&mine, "", "allow");
    OK(run_ppl(ref, &want));
    OK(run_ppl(ctx, &got));
    assert_true(got == want);
    assert_int_equal(replaced_calls, LAYERS * WINDOWS * 2);
    assert_int_equal(dq_context_fallback_count(ctx), LAYERS * WINDOWS);
    assert_int_equal(counters_of(ctx).downloads, PPL_DOWNLOADS); /* memory in reach is not copied */
    dq_context_free(ctx);
    dq_context_free(ref);
    assert_int_equal(dq_backend_builtin("farsim", &none), DQ_E_NOTFOUND);
    assert_int_equal(dq_backend_builtin(NULL, &none), DQ_E_INVALID);
    assert_null(none);
}

int main(void)
{
#define T(name) cmocka_unit_test_teardown(name, no_leaks)
    const struct CMUnitTest tests[] = {
        T(perplexity_like_the_reference),
        T(pipeline_like_the_reference),
        T(saved_model_moves_on),
        T(two_contexts_in_two_threads),
        T(pieces_below_the_jobs),
        T(missing_ops_are_counted),
        T(null_slots_are_counted),
        T(no_ops_at_all),
        T(forbidden_fallback),
        T(every_fault_is_an_error),
        T(quantization_survives_faults),
        T(small_memory),
        T(bad_options),
        T(options_of_builtin_backends),
        T(wrong_tables),
        T(lying_tables),
        T(one_op_replaced),
    };
    return cmocka_run_group_tests(tests, find_plugin, NULL);
}
