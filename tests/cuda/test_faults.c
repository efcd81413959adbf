/* Whole jobs on a simulated card that runs out of memory, refuses launches or vanishes at any point: the error names device,
 * op, shape and CUDA's code, nothing leaks, and the job can be done again on the same card or from its checkpoint on another
 * device. SPDX-License-Identifier: Apache-2.0 */
#include "jobs.h"

#include <dlfcn.h>
#include <math.h>
#include <pthread.h>

#include "card.h"

#include "../fakes/cudasim/control.h"

enum { NO_MEMORY = 2, TOO_MANY_RESOURCES = 701, LAUNCH_FAILED = 719, UNKNOWN = 999 };

static void (*fail_at)(int kind, int64_t n, int code, int times);
static void (*read_ledger)(cudasim_ledger *out);

static int set_up(void **state)
{
    (void)state;
    if (!find_simulated_card(card)) return -1;
    void *file = dlopen(card, RTLD_NOW | RTLD_LOCAL);
    if (!file) return print_error("%s\n", dlerror()), -1;
    void *symbol = dlsym(file, "cudasim_fail");
    memcpy(&fail_at, &symbol, sizeof fail_at);
    symbol = dlsym(file, "cudasim_read");
    memcpy(&read_ledger, &symbol, sizeof read_ledger);
    return fail_at && read_ledger ? 0 : -1;
}

/* ---- contexts that count what they hold ---- */

static long live_blocks;

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

static const dq_services services = {
    .struct_size = sizeof services, .abi = 1, .allocator = {count_alloc, count_free, NULL}};

static dq_context *context_of(const char *options)
{
    dq_context *ctx = NULL;
    OK(context_on(options, &services, &ctx));
    return ctx;
}

static void assert_nothing_left(const char *after)
{
    cudasim_ledger l;
    read_ledger(&l);
    if (l.device_blocks || l.pinned_blocks || l.streams || l.events || l.handles || live_blocks)
        fail_msg("%s: left on the card %lld blocks, pinned %lld, streams %lld, events %lld, handles %lld; in the "
                 "library %ld blocks",
                 after, (long long)l.device_blocks, (long long)l.pinned_blocks, (long long)l.streams,
                 (long long)l.events, (long long)l.handles, live_blocks);
}

static void assert_same(const char *what, numbers got, numbers want)
{
    if (got.a != want.a || got.b != want.b)
        fail_msg("%s: %.17g and %.17g, wanted %.17g and %.17g", what, got.a, got.b, want.a, want.b);
}

/* ---- sweeps ---- */

typedef struct fault {
    const char *name;
    int kind, code, times;
    dq_status status;
    const char *words; /* CUDA's own */
    int points;        /* how many of the job's calls are tried */
} fault;

/* Refused three times: the card is waited for, then landings are given up. */
static const fault memory_is_full = {"memory", CUDASIM_DEVICE, NO_MEMORY, 3, DQ_E_DEVICE_MEMORY, "out of memory", 8};
static const fault launch_is_refused = {
    "launch", CUDASIM_LAUNCH, TOO_MANY_RESOURCES, 1, DQ_E_BACKEND, "too many resources requested for launch", 6};
static const fault kernel_crashes = {
    "crash", CUDASIM_LAUNCH, LAUNCH_FAILED, CUDASIM_GONE_LATE, DQ_E_DEVICE_LOST, "unspecified launch failure", 5};
static const fault driver_vanishes = {"driver",         CUDASIM_CALL,    UNKNOWN, CUDASIM_GONE,
                                      DQ_E_DEVICE_LOST, "unknown error", 9};

/* Device, CUDA's words and number, and where it happened with shape or bytes. */
static void assert_told(const fault *f, const char *name, int64_t n, dq_status got)
{
    char code[64];
    const char *text = dq_error_text();
    snprintf(code, sizeof code, "[backend cuda:0, code %d]", f->code);
    bool where = strstr(text, "(op ") || strstr(text, "(tensor ") || strstr(text, "load of ");
    if (got != f->status || dq_error_vendor_code() != f->code || !strstr(text, "cuda:0: ") || !strstr(text, f->words) ||
        !strstr(text, code) || !where || !strstr(text, " ["))
        fail_msg("%s, %s %lld: status %d instead of %d: %s", name, f->name, (long long)n, got, f->status, text);
}

static numbers run_clean(const job *j, int64_t *calls)
{
    numbers out = {0};
    cudasim_ledger before, after;
    dq_context *ctx = context_of("");
    read_ledger(&before);
    OK(j->run(ctx, &out));
    read_ledger(&after);
    for (int k = 0; k < CUDASIM_KINDS; k++) calls[k] = after.calls[k] - before.calls[k];
    assert_int_equal(dq_context_fallback_count(ctx), 0);
    dq_context_free(ctx);
    assert_nothing_left(j->name);
    return out;
}

/* One job fails at the n-th call. True: it failed, as it should; some calls may be the last that mattered. */
static bool fail_once(const fault *f, const job *j, int64_t n, numbers want, bool again)
{
    numbers out = {0};
    char what[128];
    snprintf(what, sizeof what, "%s, %s %lld", j->name, f->name, (long long)n);
    dq_context *ctx = context_of("");
    fail_at(f->kind, n, f->code, f->times);
    dq_status status = j->run(ctx, &out);
    if (status == DQ_OK)
        assert_same(what, out, want);
    else
        assert_told(f, j->name, n, status);
    if (status == DQ_E_DEVICE_LOST) { /* never asked again, and says why */
        fail_at(0, 0, 0, 0);
        assert_int_equal(j->run(ctx, &out), DQ_E_DEVICE_LOST);
        assert_non_null(strstr(dq_error_text(), "the device was lost before: cuda:0: "));
        assert_non_null(strstr(dq_error_text(), f->words));
    } else {
        fail_at(0, 0, 0, 0);
        if (again) {
            OK(j->run(ctx, &out));
            assert_same(what, out, want);
        }
    }
    dq_context_free(ctx);
    assert_nothing_left(what);
    return status != DQ_OK;
}

static void sweep(const fault *f)
{
    for (int i = 0; i < JOBS; i++) {
        int64_t calls[CUDASIM_KINDS];
        numbers want = run_clean(&jobs[i], calls);
        int failed = 0, tried = 0;
        int64_t all = calls[f->kind], last = 0;
        for (int k = 0; k < f->points; k++) { /* the first ones, then all over the job, and the last */
            int64_t n = k < 2 ? k + 1 : 1 + (all - 1) * (k - 1) / (f->points - 2);
            if (n <= last || n > all) continue;
            last = n;
            tried++;
            failed += fail_once(f, &jobs[i], n, want, k % 4 == 1);
        }
        print_message("%s, %s: %d of %d points failed, of %lld calls\n", jobs[i].name, f->name, failed, tried,
                      (long long)all);
        assert_true(failed >= tried - 2 && failed > 0);
    }
}

static void no_memory_anywhere(void **state)
{
    (void)state;
    sweep(&memory_is_full);
}
static void launches_refused_anywhere(void **state)
{
    (void)state;
    sweep(&launch_is_refused);
}
static void kernels_crash_anywhere(void **state)
{
    (void)state;
    sweep(&kernel_crashes);
}
static void driver_vanishes_anywhere(void **state)
{
    (void)state;
    sweep(&driver_vanishes);
}

/* Each call while a card is opened. */
static void opening_fails(void **state)
{
    (void)state;
    cudasim_ledger before, after;
    read_ledger(&before);
    dq_context_free(context_of(""));
    read_ledger(&after);
    int64_t calls = after.calls[CUDASIM_CALL] - before.calls[CUDASIM_CALL];
    int failed = 0;
    for (int64_t n = 1; n <= calls; n++) {
        dq_context *ctx = NULL;
        fail_at(CUDASIM_CALL, n, UNKNOWN, CUDASIM_GONE);
        dq_status status = context_on("", &services, &ctx);
        if (status != DQ_OK) {
            failed++;
            assert_null(ctx);
            assert_int_equal(dq_error_vendor_code(), UNKNOWN);
            assert_non_null(strstr(dq_error_text(), "unknown error"));
        }
        dq_context_free(ctx);
        fail_at(0, 0, 0, 0);
        assert_nothing_left("opening");
    }
    print_message("%d of %lld calls end the opening\n", failed, (long long)calls);
    assert_true(failed > 10);
}

/* Pinned memory: at the opening it is needed, later an upload waits instead. */
static void no_pinned_memory(void **state)
{
    (void)state;
    int64_t calls[CUDASIM_KINDS];
    dq_context *ctx = NULL;
    numbers out = {0}, want = run_clean(&jobs[1], calls);
    fail_at(CUDASIM_PINNED, 3, NO_MEMORY, 1);
    assert_int_equal(context_on("", &services, &ctx), DQ_E_NOMEM);
    assert_null(ctx);
    assert_non_null(
        strstr(dq_error_text(), "cuda:0: pinned staging of 8388608 bytes: out of memory [backend cuda, code 2]"));
    fail_at(0, 0, 0, 0);
    assert_nothing_left("opening without pinned memory");
    for (int n = 1; n < 4; n++) {
        ctx = context_of("");
        fail_at(CUDASIM_PINNED, n, NO_MEMORY, 1000);
        OK(jobs[1].run(ctx, &out));
        assert_same("a job without more pinned memory", out, want);
        fail_at(0, 0, 0, 0);
        dq_context_free(ctx);
        assert_nothing_left("a job without more pinned memory");
    }
}

/* ---- cards ---- */

static void old_cards_are_refused(void **state)
{
    (void)state;
    dq_context *ctx = NULL;
    setenv("CUDASIM_CAPABILITY", "7.5", 1);
    assert_int_equal(context_on("", &services, &ctx), DQ_E_UNSUPPORTED);
    unsetenv("CUDASIM_CAPABILITY");
    assert_non_null(strstr(dq_error_text(), "cuda:0: compute capability 7.5 is too old: 8.0 is needed"));
    assert_null(ctx);
    assert_nothing_left("an old card");
    setenv("CUDASIM_NO_CODE", "1", 1); /* a plug-in for one other card alone */
    assert_int_equal(context_on("", &services, &ctx), DQ_E_UNSUPPORTED);
    unsetenv("CUDASIM_NO_CODE");
    assert_non_null(strstr(dq_error_text(),
                           "cuda:0: the plug-in was built without code for compute capability 9.0: no kernel image"));
    assert_null(ctx);
    assert_nothing_left("a card without code");
}

/* A card that is simply too small: the numbers are in the text. */
static void small_cards_say_so(void **state)
{
    (void)state;
    numbers out = {0};
    dq_context *ctx = context_of("");
    cudasim_ledger l;
    char bytes[32];
    read_ledger(&l);
    snprintf(bytes, sizeof bytes, "%lld", (long long)l.device_bytes + 20000);
    setenv("CUDASIM_MEMORY", bytes, 1);
    dq_status status = job_ppl(ctx, &out);
    unsetenv("CUDASIM_MEMORY");
    assert_int_equal(status, DQ_E_DEVICE_MEMORY);
    assert_non_null(strstr(dq_error_text(), "bytes: out of memory ("));
    snprintf(bytes + strlen(bytes), 16, " free)");
    assert_non_null(strstr(dq_error_text(), bytes));
    OK(job_ppl(ctx, &out));
    dq_context_free(ctx);
    assert_nothing_left("a small card");
}

typedef struct worker {
    const char *options;
    const job *job;
    numbers out;
    dq_status status;
    char text[300];
} worker;

static void *work(void *arg)
{
    worker *w = arg;
    dq_context *ctx = NULL;
    w->status = context_on(w->options, &services, &ctx);
    for (int i = 0; i < 2 && w->status == DQ_OK; i++) w->status = w->job->run(ctx, &w->out);
    if (w->status != DQ_OK) snprintf(w->text, sizeof w->text, "%s", dq_error_text());
    dq_context_free(ctx);
    return NULL;
}

/* At the same time, in threads of their own: everything of a context goes to its own card. */
static void at_once(const char *first, const char *second)
{
    int64_t calls[CUDASIM_KINDS];
    worker w[2] = {{.options = first, .job = &jobs[2]}, {.options = second, .job = &jobs[4]}};
    pthread_t threads[2];
    for (int i = 0; i < 2; i++) assert_int_equal(pthread_create(&threads[i], NULL, work, &w[i]), 0);
    for (int i = 0; i < 2; i++) (void)pthread_join(threads[i], NULL);
    for (int i = 0; i < 2; i++) {
        if (w[i].status != DQ_OK) fail_msg("%s: %s", w[i].job->name, w[i].text);
        assert_same(w[i].job->name, w[i].out, run_clean(w[i].job, calls));
    }
}

static void two_cards(void **state)
{
    (void)state;
    dq_context *ctx = NULL;
    setenv("CUDASIM_DEVICES", "2", 1);
    assert_int_equal(context_on("2", &services, &ctx), DQ_E_INVALID);
    assert_non_null(strstr(dq_error_text(), "cuda:2: there is no such card; this machine has 2, counted from 0"));
    at_once("device=0", "device=1");
    unsetenv("CUDASIM_DEVICES");
    assert_nothing_left("two cards");
}

static void two_contexts_on_one_card(void **state)
{
    (void)state;
    at_once("", "");
    assert_nothing_left("two contexts");
}

/* ---- from checkpoints ---- */

typedef struct bench {
    dq_context *ctx;
    dq_config *config;
    dq_dataset *set;
    dq_model *model;
} bench;

static bench open_bench(const char *options, const char *extra, bool rotated)
{
    bench b = {.ctx = context_of(options), .config = options_of(extra)};
    OK(tokens_of(b.ctx, &b.set));
    OK(rotated ? open_rotated(b.ctx, b.config, &b.model) : open_fused(b.ctx, b.config, &b.model));
    return b;
}

static void close_bench(bench *b)
{
    dq_model_free(b->model);
    dq_dataset_free(b->set);
    dq_config_free(b->config);
    dq_context_free(b->ctx);
}

static const char *const gptq = "percdamp=0.1 w_bits=4 w_groupsize=16 a_bits=8 k_bits=8 v_bits=8";

/* One layer, a checkpoint, and then the card is gone in the next; the rest on `to`. */
static numbers quantizer_moved(const char *dir, const char *to)
{
    numbers out;
    int32_t done = 0;
    dq_quantizer *q = NULL;
    dq_model *model = NULL;
    bench b = open_bench("", gptq, true);
    OK(dq_quantizer_new(b.model, b.config, &q));
    OK(dq_quantizer_bind(q, b.set));
    OK(dq_quantizer_checkpoint(q, dir));
    OK(dq_quantizer_step(q, NULL, NULL, NULL, &done));
    OK(dq_quantizer_checkpoint(q, dir));
    fail_at(CUDASIM_LAUNCH, 40, LAUNCH_FAILED, CUDASIM_GONE_LATE);
    assert_int_equal(dq_quantizer_step(q, NULL, NULL, NULL, &done), DQ_E_DEVICE_LOST);
    dq_quantizer_free(q);
    close_bench(&b);
    fail_at(0, 0, 0, 0);
    assert_nothing_left("a lost card");
    b = open_bench(to, gptq, true);
    OK(dq_quantizer_new(b.model, b.config, &q));
    OK(dq_quantizer_bind(q, b.set));
    OK(dq_quantizer_restore(q, dir));
    OK(dq_quantizer_run(q, NULL, NULL, NULL));
    OK(dq_quantizer_get_float(q, "mean_error", &out.b));
    OK(dq_quantizer_take_model(q, &model));
    OK(perplexity_of(b.ctx, model, b.config, &out.a));
    dq_model_free(model);
    dq_quantizer_free(q);
    OK(dq_checkpoint_remove(b.ctx, dir));
    close_bench(&b);
    return out;
}

/* Half of the steps of a learnt rotation. */
static numbers calibrator_moved(const char *dir, const char *to)
{
    numbers out;
    int32_t done = 0;
    dq_calibrator *c = NULL;
    bench b = open_bench("", CALIBRATION, false);
    OK(dq_calibrator_new(b.model, b.config, &c));
    OK(dq_calibrator_bind(c, b.set));
    for (int i = 0; i < LAYERS + 1; i++) OK(dq_calibrator_step(c, NULL, NULL, NULL, &done));
    OK(dq_calibrator_checkpoint(c, dir));
    fail_at(CUDASIM_CALL, 60, UNKNOWN, CUDASIM_GONE);
    dq_status status = DQ_OK;
    while (status == DQ_OK && !done) status = dq_calibrator_step(c, NULL, NULL, NULL, &done);
    assert_int_equal(status, DQ_E_DEVICE_LOST);
    dq_calibrator_free(c);
    close_bench(&b);
    fail_at(0, 0, 0, 0);
    assert_nothing_left("a lost card");
    b = open_bench(to, CALIBRATION, false);
    OK(dq_calibrator_new(b.model, b.config, &c));
    OK(dq_calibrator_bind(c, b.set));
    OK(dq_calibrator_restore(c, dir));
    OK(dq_calibrator_run(c, NULL, NULL, NULL));
    OK(dq_calibrator_get_float(c, "loss_before", &out.a));
    OK(dq_calibrator_get_float(c, "loss_after", &out.b));
    dq_calibrator_free(c);
    OK(dq_checkpoint_remove(b.ctx, dir));
    close_bench(&b);
    return out;
}

static void assert_near(const char *what, double got, double want, double relative)
{
    if (!(fabs(got - want) <= relative * fabs(want)))
        fail_msg("%s: %.12g instead of %.12g: off by %.3g", what, got, want, fabs(got / want - 1));
}

static void lost_jobs_go_on(void **state)
{
    (void)state;
    char dir[] = "/tmp/dq-faults-XXXXXX";
    assert_non_null(mkdtemp(dir));
    numbers quantized = {0}, learnt = {0};
    dq_context *ctx = context_of("");
    OK(quantize_with(ctx, gptq, &quantized));
    OK(calibrate_with(ctx, CALIBRATION, &learnt));
    dq_context_free(ctx);
    assert_same("GPTQ, on a card again", quantizer_moved(dir, ""), quantized);
    numbers cpu = quantizer_moved(dir, NULL);
    assert_near("GPTQ, on the CPU: error", cpu.b, quantized.b, 1e-2);
    assert_near("GPTQ, on the CPU: perplexity", cpu.a, quantized.a, 1e-2);
    assert_same("calibration, on a card again", calibrator_moved(dir, ""), learnt);
    cpu = calibrator_moved(dir, NULL);
    assert_near("calibration, on the CPU: before", cpu.a, learnt.a, 1e-4);
    assert_near("calibration, on the CPU: after", cpu.b, learnt.b, 1e-3);
    assert_nothing_left("jobs that went on");
    (void)rmdir(dir);
}

int main(void)
{
    if (getenv("DQ_TEST_FILTER")) cmocka_set_test_filter(getenv("DQ_TEST_FILTER"));
    const struct CMUnitTest tests[] = {cmocka_unit_test(no_memory_anywhere),
                                       cmocka_unit_test(launches_refused_anywhere),
                                       cmocka_unit_test(kernels_crash_anywhere),
                                       cmocka_unit_test(driver_vanishes_anywhere),
                                       cmocka_unit_test(opening_fails),
                                       cmocka_unit_test(no_pinned_memory),
                                       cmocka_unit_test(old_cards_are_refused),
                                       cmocka_unit_test(small_cards_say_so),
                                       cmocka_unit_test(two_cards),
                                       cmocka_unit_test(two_contexts_on_one_card),
                                       cmocka_unit_test(lost_jobs_go_on)};
    return cmocka_run_group_tests(tests, set_up, NULL);
}
