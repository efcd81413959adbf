/* Jobs that a host drives step by step, interrupts and resumes, through the public header alone.
 * SPDX-License-Identifier: Apache-2.0 */
#include <errno.h>
#include <math.h>
#include <setjmp.h>
#include <signal.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <sys/wait.h>
#include <unistd.h>
#include <cmocka.h>

#include "host_model.h"
#include "scratch.h"

#define TINY "tests/data/tiny"
#define GPTQ "w_bits=4 w_groupsize=16 w_clip=true nsamples=6 seqlen=32 limit=4"
#define RTN GPTQ " w_rtn=true"

static int no_leaks(void **state)
{
    scratch_empty();
    return host_no_leaks(state);
}

static const char *folder(const char *name)
{
    static char paths[4][400];
    static int next;
    char *path = paths[next++ % 4];
    snprintf(path, sizeof paths[0], "%s/%s", scratch_dir(), name);
    return path;
}

static dq_quantizer *new_job(host_bench *b)
{
    dq_quantizer *q = NULL;
    OK(dq_quantizer_new(b->model, b->config, &q));
    OK(dq_quantizer_bind(q, b->set));
    return q;
}

/* The job's result as the host would get it; frees the job. */
static void finish_job(dq_quantizer *q, host_model *out)
{
    dq_model *model = NULL;
    memset(out, 0, sizeof *out);
    dq_tensor_sink sink = host_model_sink(out, 1);
    OK(dq_quantizer_run(q, NULL, NULL, NULL));
    OK(dq_quantizer_take_model(q, &model));
    OK(dq_model_save_to(model, &sink, NULL, NULL, NULL));
    dq_model_free(model);
    dq_quantizer_free(q);
}

static void steps(dq_quantizer *q, int count, const char *dir)
{
    int32_t done = 0;
    for (int i = 0; i < count; i++) {
        OK(dq_quantizer_step(q, NULL, NULL, NULL, &done));
        assert_int_equal(done, 0);
        if (dir) OK(dq_quantizer_checkpoint(q, dir));
    }
}

/* Stopped after every possible number of steps and restored in a fresh context with another number of threads: the codes
 * of a job that was never stopped. */
static void resumes_to_the_same_bits(void **state)
{
    (void)state;
    static const char *const settings[] = {GPTQ, RTN};
    for (int s = 0; s < 2; s++) {
        host_bench b = host_bench_open(settings[s], 2, true);
        host_model expected, resumed;
        finish_job(new_job(&b), &expected);
        host_bench_close(&b);
        for (int stop = 0; stop < 4; stop++) {
            const char *dir = folder("checkpoint");
            double error = 0, layers = 0;
            b = host_bench_open(settings[s], 2, true);
            dq_quantizer *q = new_job(&b);
            OK(dq_quantizer_checkpoint(q, dir));
            steps(q, stop, dir);
            dq_quantizer_free(q);
            host_bench_close(&b);
            b = host_bench_open(settings[s], 1, true);
            q = new_job(&b);
            OK(dq_quantizer_restore(q, dir));
            OK(dq_quantizer_get_float(q, "layers_done", &layers));
            assert_true(layers == stop);
            finish_job(q, &resumed);
            host_model_assert_same(&expected, &resumed);
            host_model_clear(&resumed);
            OK(dq_checkpoint_remove(b.ctx, dir));
            assert_int_equal(access(dir, F_OK), -1);
            (void)error;
            host_bench_close(&b);
        }
        host_model_clear(&expected);
    }
}

/* Steps that were done after the last checkpoint are done again; a checkpoint may come every other step; the restored job
 * goes on with checkpoints of its own. */
static void sparse_checkpoints(void **state)
{
    (void)state;
    const char *dir = folder("sparse");
    host_model expected, resumed;
    host_bench b = host_bench_open(GPTQ, 2, true);
    finish_job(new_job(&b), &expected);
    dq_quantizer *q = new_job(&b);
    OK(dq_quantizer_checkpoint(q, dir));
    steps(q, 2, NULL);
    OK(dq_quantizer_checkpoint(q, dir));
    steps(q, 1, NULL);
    dq_quantizer_free(q);
    q = new_job(&b);
    OK(dq_quantizer_restore(q, dir));
    steps(q, 1, dir); /* layer 3 of 4 */
    dq_quantizer_free(q);
    q = new_job(&b);
    OK(dq_quantizer_restore(q, dir));
    double layers = 0;
    OK(dq_quantizer_get_float(q, "layers_done", &layers));
    assert_true(layers == 3);
    finish_job(q, &resumed);
    host_model_assert_same(&expected, &resumed);
    host_model_clear(&expected);
    host_model_clear(&resumed);
    host_bench_close(&b);
}

/* ---- a process that dies ---- */

typedef struct killer {
    int events, at;
} killer;

static int32_t die(void *user, const dq_progress_event *e)
{
    (void)e;
    killer *k = user;
    if (++k->events >= k->at) kill(getpid(), SIGKILL);
    return 0;
}

static void work_until_killed(const char *dir, const char *out, int at)
{
    killer k = {0, at};
    host_bench b = host_bench_open(GPTQ, 2, true);
    OK(dq_config_set(b.config, "save_qmodel_path", out));
    dq_quantizer *q = new_job(&b);
    int32_t exists = 0, done = 0;
    OK(dq_checkpoint_exists(b.ctx, dir, &exists));
    if (exists)
        OK(dq_quantizer_restore(q, dir));
    else
        OK(dq_quantizer_checkpoint(q, dir));
    while (!done) {
        dq_cancel *cancel = NULL;
        OK(dq_quantizer_step(q, cancel, die, &k, &done));
        if (!done) OK(dq_quantizer_checkpoint(q, dir));
    }
    _exit(0);
}

/* Killed again and again with SIGKILL, each process comes a little further; the folder that appears in the end is the one
 * of an undisturbed run, byte for byte, and no unfinished file is left. */
static void survives_sigkill(void **state)
{
    (void)state;
    char dir[400], out[400], calm[400], command[1400];
    snprintf(dir, sizeof dir, "%s", folder("killed"));
    snprintf(out, sizeof out, "%s", folder("out"));
    snprintf(calm, sizeof calm, "%s", folder("calm"));
    int deaths = 0;
    for (int attempt = 0; attempt < 40; attempt++) {
        fflush(NULL);
        pid_t child = fork();
        assert_true(child >= 0);
        if (child == 0) work_until_killed(dir, out, attempt < 8 ? 2 : 1 << 20);
        int how = 0;
        assert_int_equal(waitpid(child, &how, 0), child);
        if (WIFEXITED(how)) {
            assert_int_equal(WEXITSTATUS(how), 0);
            break;
        }
        assert_int_equal(WTERMSIG(how), SIGKILL);
        deaths++;
    }
    assert_true(deaths >= 2);
    host_bench b = host_bench_open(GPTQ, 1, true);
    OK(dq_config_set(b.config, "save_qmodel_path", calm));
    dq_quantizer *q = new_job(&b);
    OK(dq_quantizer_run(q, NULL, NULL, NULL));
    dq_quantizer_free(q);
    host_bench_close(&b);
    snprintf(command, sizeof command, "cmp '%s/model.safetensors' '%s/model.safetensors' && ! ls '%s' | grep -q tmp",
             out, calm, out);
    assert_int_equal(system(command), 0);
}

/* ---- refusals ---- */

static void refuses(host_bench *b, const char *dir, const char *what)
{
    dq_quantizer *q = new_job(b);
    assert_int_equal(dq_quantizer_restore(q, dir), DQ_E_MISMATCH);
    if (!strstr(dq_error_text(), what)) fail_msg("\"%s\" does not name %s", dq_error_text(), what);
    int32_t done = 0;
    OK(dq_quantizer_step(q, NULL, NULL, NULL, &done)); /* the job itself is as it was */
    dq_quantizer_free(q);
}

static void other_jobs_are_refused(void **state)
{
    (void)state;
    const char *dir = folder("mine");
    host_bench b = host_bench_open(GPTQ, 2, true);
    dq_quantizer *q = new_job(&b);
    OK(dq_quantizer_checkpoint(q, dir));
    steps(q, 1, dir);
    dq_quantizer_free(q);
    host_bench_close(&b);
    static const struct {
        const char *settings, *names;
    } other[] = {{GPTQ " w_bits=3", "w_bits is 4 there and 3 here"},
                 {GPTQ " percdamp=0.1", "percdamp"},
                 {GPTQ " seed=1", "data is"},
                 {GPTQ " use_r1=false", "rotations is"},
                 {GPTQ " rotate_mode=random", "embedding is"},
                 {GPTQ " math=bf16", "math is f32 there and bf16 here"}};
    for (size_t i = 0; i < sizeof other / sizeof *other; i++) {
        b = host_bench_open(other[i].settings, 1, true);
        refuses(&b, dir, other[i].names);
        host_bench_close(&b);
    }
    b = host_bench_open(GPTQ, 1, true);
    dq_model *plain = NULL, *derived = b.model;
    OK(dq_model_open(b.ctx, TINY, &plain));
    b.model = plain;
    refuses(&b, dir, "fused norms is yes there and no here");
    b.model = derived;
    dq_model_free(plain);
    /* a damaged file is found before it can do harm */
    FILE *f = fopen(folder("mine/activations-1.bin"), "r+b");
    assert_non_null(f);
    assert_int_equal(fseek(f, 1000, SEEK_SET), 0);
    assert_int_equal(fputc('x', f), 'x');
    assert_int_equal(fclose(f), 0);
    refuses(&b, dir, "activations");
    assert_int_equal(unlink(folder("mine/codes-00000.safetensors")), 0);
    q = new_job(&b);
    assert_int_not_equal(dq_quantizer_restore(q, dir), DQ_OK);
    dq_quantizer_free(q);
    host_bench_close(&b);
}

/* Whatever a killed process can leave in a checkpoint goes with it; a file of somebody else stays. */
static void removed_with_all_leftovers(void **state)
{
    (void)state;
    static const char *const names[] = {"checkpoint.json",         "checkpoint.json.tmp.77",
                                        "activations-0.bin",       "activations-1.bin.tmp.77",
                                        "codes-00000.safetensors", "codes-00002.safetensors.tmp.77",
                                        "codes-00002.tmp.77",      "codes-00003.part00001.tmp.77",
                                        "codes-00003.part00001",   "codes-00001.tmp.77.1"};
    char path[500];
    dq_context *ctx = host_context(1);
    for (size_t i = 0; i < sizeof names / sizeof *names; i++) {
        snprintf(path, sizeof path, "leftover/%s", names[i]);
        scratch_write(path, "x", 1);
    }
    scratch_write("leftover/model.safetensors", "x", 1);
    OK(dq_checkpoint_remove(ctx, folder("leftover")));
    for (size_t i = 0; i < sizeof names / sizeof *names; i++) {
        snprintf(path, sizeof path, "%s/%s", folder("leftover"), names[i]);
        if (access(path, F_OK) == 0) fail_msg("%s stays", names[i]);
    }
    snprintf(path, sizeof path, "%s/model.safetensors", folder("leftover"));
    assert_int_equal(unlink(path), 0);
    OK(dq_checkpoint_remove(ctx, folder("leftover")));
    assert_int_equal(access(folder("leftover"), F_OK), -1);
    OK(dq_checkpoint_remove(ctx, folder("leftover")));
    dq_context_free(ctx);
}

/* Where a folder is wanted and a file stands: an error that names the file, for everything that writes. */
static void below_a_plain_file(void **state)
{
    (void)state;
    char file[400], below[450];
    host_bench b = host_bench_open(GPTQ, 1, true);
    dq_quantizer *q = new_job(&b);
    dq_evaluator *e = NULL;
    int32_t done = 0;
    snprintf(file, sizeof file, "%s", scratch_write("plain", "x", 1));
    snprintf(below, sizeof below, "%s/below", file);
    OK(dq_evaluator_new(b.model, b.config, &e));
    OK(dq_evaluator_bind(e, b.set));
    OK(dq_evaluator_step(e, NULL, NULL, NULL, &done));
    for (int i = 0; i < 6; i++) {
        const char *at = i % 2 ? below : file;
        dq_status status = i < 2   ? dq_model_save(b.model, at, NULL, NULL, NULL, NULL)
                           : i < 4 ? dq_quantizer_checkpoint(q, at)
                                   : dq_evaluator_checkpoint(e, at);
        assert_int_equal(status, DQ_E_IO);
        if (!strstr(dq_error_text(), file) || !strstr(dq_error_text(), "folder"))
            fail_msg("case %d: %s", i, dq_error_text());
    }
    dq_evaluator_free(e);
    dq_quantizer_free(q);
    host_bench_close(&b);
}

static void checkpoint_misuse(void **state)
{
    (void)state;
    const char *dir = folder("c");
    int32_t done = 0, exists = 7;
    dq_model *model = NULL;
    host_bench b = host_bench_open(GPTQ, 1, true);
    dq_quantizer *q = NULL;
    OK(dq_quantizer_new(b.model, b.config, &q));
    assert_int_equal(dq_quantizer_checkpoint(q, dir), DQ_E_STATE); /* nothing bound */
    assert_int_equal(dq_quantizer_restore(q, dir), DQ_E_STATE);
    OK(dq_quantizer_bind(q, b.set));
    assert_int_equal(dq_quantizer_restore(q, dir), DQ_E_NOTFOUND);
    OK(dq_quantizer_step(q, NULL, NULL, NULL, &done));
    assert_int_equal(dq_quantizer_checkpoint(q, dir), DQ_E_STATE); /* too late for the first */
    assert_non_null(strstr(dq_error_text(), "before the first step"));
    assert_int_equal(dq_quantizer_restore(q, dir), DQ_E_STATE);
    dq_quantizer_free(q);
    OK(dq_checkpoint_exists(b.ctx, dir, &exists));
    assert_int_equal(exists, 0);
    OK(dq_checkpoint_remove(b.ctx, dir));
    q = new_job(&b);
    OK(dq_quantizer_checkpoint(q, dir));
    OK(dq_checkpoint_exists(b.ctx, dir, &exists));
    assert_int_equal(exists, 1);
    assert_int_equal(dq_quantizer_checkpoint(q, folder("d")), DQ_E_INVALID);
    OK(dq_quantizer_run(q, NULL, NULL, NULL));
    assert_int_equal(dq_quantizer_checkpoint(q, dir), DQ_E_STATE);
    OK(dq_quantizer_take_model(q, &model));
    dq_model_free(model);
    dq_quantizer_free(q);
    OK(dq_config_set(b.config, "w_bits", "16"));
    OK(dq_quantizer_new(b.model, b.config, &q));
    assert_int_equal(dq_quantizer_checkpoint(q, dir), DQ_E_UNSUPPORTED);
    assert_int_equal(dq_quantizer_checkpoint(NULL, dir), DQ_E_INVALID);
    assert_int_equal(dq_checkpoint_exists(b.ctx, NULL, &exists), DQ_E_INVALID);
    dq_quantizer_free(q);
    host_bench_close(&b);
}

/* ---- the evaluator ---- */

static void evaluator_steps(void **state)
{
    (void)state;
    const char *dir = folder("eval");
    host_bench b = host_bench_open("seqlen=32 limit=4 a_bits=8", 2, true);
    double expected = host_perplexity(b.model, b.config, b.set), ppl = 0;
    dq_evaluator *e = NULL;
    int32_t done = 0;
    int count = 0;
    OK(dq_evaluator_new(b.model, b.config, &e));
    assert_int_equal(dq_evaluator_step(e, NULL, NULL, NULL, &done), DQ_E_STATE);
    OK(dq_evaluator_bind(e, b.set));
    assert_int_equal(dq_evaluator_checkpoint(e, dir), DQ_E_STATE); /* nothing under way */
    for (; !done; count++) OK(dq_evaluator_step(e, NULL, NULL, NULL, &done));
    assert_true(count >= 5); /* four layers and at least one tile */
    OK(dq_evaluator_get_float(e, "ppl", &ppl));
    assert_true(ppl == expected);
    /* stopped after each number of steps, resumed by another evaluator */
    for (int stop = 1; stop < count; stop++) {
        dq_evaluator *first = NULL, *second = NULL;
        OK(dq_evaluator_new(b.model, b.config, &first));
        OK(dq_evaluator_bind(first, b.set));
        for (int i = 0; i < stop; i++) {
            OK(dq_evaluator_step(first, NULL, NULL, NULL, &done));
            OK(dq_evaluator_checkpoint(first, dir));
        }
        dq_evaluator_free(first);
        OK(dq_evaluator_new(b.model, b.config, &second));
        OK(dq_evaluator_bind(second, b.set));
        OK(dq_evaluator_restore(second, dir));
        OK(dq_evaluator_run(second, NULL, NULL, NULL));
        OK(dq_evaluator_get_float(second, "ppl", &ppl));
        assert_true(ppl == expected);
        dq_evaluator_free(second);
    }
    /* a quantizer's or another evaluation's checkpoint is none of ours */
    dq_config *other = host_config("seqlen=16 limit=4 a_bits=8");
    dq_evaluator *f = NULL;
    OK(dq_evaluator_new(b.model, other, &f));
    OK(dq_evaluator_bind(f, b.set));
    assert_int_equal(dq_evaluator_restore(f, dir), DQ_E_MISMATCH);
    assert_non_null(strstr(dq_error_text(), "seqlen is 32 there and 16 here"));
    dq_evaluator_free(f);
    dq_config_free(other);
    dq_evaluator_free(e);
    host_bench_close(&b);
}

static int32_t refuse(void *user, const dq_progress_event *event)
{
    (void)user;
    (void)event;
    return 1;
}

static void cancelled_evaluation_starts_afresh(void **state)
{
    (void)state;
    host_bench b = host_bench_open("seqlen=32 limit=4", 2, true);
    double expected = host_perplexity(b.model, b.config, b.set), ppl = 0;
    dq_evaluator *e = NULL;
    dq_cancel *cancel = NULL;
    int32_t done = 0;
    OK(dq_cancel_new(&cancel));
    OK(dq_evaluator_new(b.model, b.config, &e));
    OK(dq_evaluator_bind(e, b.set));
    OK(dq_evaluator_step(e, NULL, NULL, NULL, &done));
    dq_cancel_set(cancel);
    assert_int_equal(dq_evaluator_step(e, cancel, NULL, NULL, &done), DQ_E_CANCELLED);
    assert_int_equal(dq_evaluator_get_float(e, "ppl", &ppl), DQ_E_STATE);
    assert_int_equal(dq_evaluator_run(e, NULL, refuse, NULL), DQ_E_CANCELLED);
    OK(dq_evaluator_run(e, NULL, NULL, NULL));
    OK(dq_evaluator_get_float(e, "ppl", &ppl));
    assert_true(ppl == expected);
    dq_evaluator_free(e);
    dq_cancel_free(cancel);
    host_bench_close(&b);
}

/* An engine's own forward pass (here: the library's, asked for logits) under the library's protocol. */
static void logits_of_the_host(void **state)
{
    (void)state;
    enum { SEQLEN = 32 };
    host_bench b = host_bench_open("seqlen=32 limit=4", 2, true);
    double expected = host_perplexity(b.model, b.config, b.set), ppl = 0;
    int64_t vocab = dq_model_vocab_size(b.model), windows = 0;
    size_t capacity = (size_t)(SEQLEN * vocab);
    float *logits = malloc(capacity * sizeof *logits);
    dq_evaluator *e = NULL;
    int32_t ids[SEQLEN], done = 0;
    OK(dq_evaluator_new_host(b.ctx, vocab, b.config, &e));
    assert_int_equal(dq_evaluator_copy_ids(e, 0, ids, SEQLEN), DQ_E_STATE);
    OK(dq_evaluator_bind(e, b.set));
    assert_int_equal(dq_evaluator_run(e, NULL, NULL, NULL), DQ_E_STATE);
    for (; dq_evaluator_copy_ids(e, windows, ids, SEQLEN) == DQ_OK; windows++) {
        assert_int_equal(done, 0);
        OK(dq_model_logits(b.model, ids, SEQLEN, NULL, logits, capacity));
        OK(dq_evaluator_add_logits(e, windows, logits, capacity, &done));
    }
    assert_int_equal(dq_error_last(), DQ_E_NOTFOUND);
    assert_int_equal(windows, 4);
    assert_int_equal(done, 1);
    OK(dq_evaluator_get_float(e, "ppl", &ppl));
    assert_true(fabs(ppl / expected - 1) < 1e-4);
    assert_int_equal(dq_evaluator_add_logits(e, 4, logits, capacity, &done), DQ_E_NOTFOUND);
    assert_int_equal(dq_evaluator_add_logits(e, 0, logits, 5, &done), DQ_E_INVALID);
    logits[3] = NAN;
    assert_int_equal(dq_evaluator_add_logits(e, 0, logits, capacity, &done), DQ_E_NONFINITE);
    free(logits);
    dq_evaluator_free(e);
    host_bench_close(&b);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test_teardown(resumes_to_the_same_bits, no_leaks),
        cmocka_unit_test_teardown(sparse_checkpoints, no_leaks),
        cmocka_unit_test_teardown(survives_sigkill, no_leaks),
        cmocka_unit_test_teardown(other_jobs_are_refused, no_leaks),
        cmocka_unit_test_teardown(removed_with_all_leftovers, no_leaks),
        cmocka_unit_test_teardown(below_a_plain_file, no_leaks),
        cmocka_unit_test_teardown(checkpoint_misuse, no_leaks),
        cmocka_unit_test_teardown(evaluator_steps, no_leaks),
        cmocka_unit_test_teardown(cancelled_evaluation_starts_afresh, no_leaks),
        cmocka_unit_test_teardown(logits_of_the_host, no_leaks),
    };
    return cmocka_run_group_tests(tests, scratch_setup, scratch_teardown);
}
