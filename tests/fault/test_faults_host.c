/* What a host hands in and takes out, with every n-th allocation refused and every n-th callback failing: an error each
 * time, nothing leaked, the caller's arrays untouched, nothing finished by half. SPDX-License-Identifier: Apache-2.0 */
#include <setjmp.h>
#include <signal.h>
#include <stdarg.h>
#include <stdbool.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/resource.h>
#include <cmocka.h>

#include "host_model.h"
#include "refusing_heap.h"
#include "scratch.h"

#define MODEL "tests/data/tiny"

/* ---- callbacks that fail when told to ---- */

static struct {
    long calls, fail_at;
} callbacks;

/* DQ_E_IO from the n-th callback of whatever table. */
static dq_status next_callback(void) { return ++callbacks.calls == callbacks.fail_at ? DQ_E_IO : DQ_OK; }

static host_model weights, taken;
static dq_tensor_source plain_source;
static dq_tensor_sink plain_sink;

static dq_status on_describe(void *user, int64_t i, dq_tensor_desc *out)
{
    dq_status status = next_callback();
    return status == DQ_OK ? plain_source.describe(user, i, out) : status;
}
static dq_status on_read(void *user, int64_t i, uint64_t offset, uint64_t bytes, void *dst)
{
    dq_status status = next_callback();
    return status == DQ_OK ? plain_source.read(user, i, offset, bytes, dst) : status;
}
static dq_status on_map(void *user, int64_t i, const void **out)
{
    dq_status status = next_callback();
    return status == DQ_OK ? plain_source.map(user, i, out) : status;
}
static dq_status on_add(void *user, const char *name, dq_dtype dtype, int32_t ndim, const int64_t *shape,
                        const void *data, uint64_t bytes)
{
    dq_status status = next_callback();
    return status == DQ_OK ? plain_sink.add(user, name, dtype, ndim, shape, data, bytes) : status;
}
static dq_status on_begin(void *user, const char *name, dq_dtype dtype, int32_t ndim, const int64_t *shape,
                          uint64_t bytes)
{
    dq_status status = next_callback();
    return status == DQ_OK ? plain_sink.begin(user, name, dtype, ndim, shape, bytes) : status;
}
static dq_status on_append(void *user, const void *data, uint64_t bytes)
{
    dq_status status = next_callback();
    return status == DQ_OK ? plain_sink.append(user, data, bytes) : status;
}
static dq_status on_metadata(void *user, const char *key, const char *value)
{
    dq_status status = next_callback();
    return status == DQ_OK ? plain_sink.set_metadata(user, key, value) : status;
}
static dq_status on_finish(void *user)
{
    dq_status status = next_callback();
    return status == DQ_OK ? plain_sink.finish(user) : status;
}

static dq_tensor_source failing_source(void)
{
    dq_tensor_source t = plain_source = host_model_source(&weights);
    t.describe = on_describe;
    t.read = on_read;
    t.map = on_map;
    return t;
}

static dq_tensor_sink failing_sink(int pieces)
{
    dq_tensor_sink t = plain_sink = host_model_sink(&taken, pieces);
    t.add = on_add;
    t.begin = pieces ? on_begin : NULL;
    t.append = pieces ? on_append : NULL;
    t.set_metadata = on_metadata;
    t.finish = on_finish;
    return t;
}

/* ---- what the jobs below make, so that a failing one can be cleaned up ---- */

typedef struct world {
    dq_context *ctx;
    dq_config *config;
    dq_model *model, *fused, *more;
    dq_dataset *set;
    dq_tokenizer *tokenizer;
    dq_evaluator *evaluator;
    dq_quantizer *quantizer;
    dq_hessian *hessian;
    dq_tensors *tensors;
} world;

static void close_world(world *w)
{
    dq_context_free(w->ctx);
    dq_tensors_free(w->tensors);
    dq_hessian_free(w->hessian);
    dq_quantizer_free(w->quantizer);
    dq_evaluator_free(w->evaluator);
    dq_tokenizer_free(w->tokenizer);
    dq_dataset_free(w->set);
    dq_model_free(w->more);
    dq_model_free(w->fused);
    dq_model_free(w->model);
    dq_config_free(w->config);
}

typedef dq_status (*job)(world *w);

static dq_status run(job work, const char *settings)
{
    world w = {0};
    dq_services services = {.struct_size = sizeof services, .abi = 1, .allocator = {refuse_alloc, refuse_free, NULL}};
    heap.calls = callbacks.calls = 0;
    w.config = host_config(settings);
    dq_status status = dq_context_new(w.config, &services, &w.ctx);
    if (status == DQ_OK) status = work(&w);
    if (status != DQ_OK && dq_error_last() != status) fail_msg("status %d, recorded %d", status, dq_error_last());
    close_world(&w);
    if (heap.live != 0) fail_msg("%ld blocks leaked", heap.live);
    host_model_clear(&taken);
    return status;
}

/* Every allocation refused once, or from there on; `stride` thins out what comes late. */
static void refuse_each(const char *name, job work, const char *settings, long least, long stride)
{
    for (int for_good = 0; for_good < 2; for_good++) {
        long n = 1, points = 0;
        heap.fail_at = 0;
        OK(run(work, settings));
        for (;; n += 1 + n / stride, points++) {
            heap.fail_at = n;
            heap.for_good = for_good;
            dq_status status = run(work, settings);
            if (heap.calls < n) {
                assert_int_equal(status, DQ_OK);
                break;
            }
            if (status != DQ_E_NOMEM && (for_good || status != DQ_OK))
                fail_msg("%s: allocation %ld refused: %d %s", name, n, status, dq_error_text());
        }
        heap.fail_at = 0;
        print_message("%s: %ld refused allocations%s\n", name, points, for_good ? " for good" : "");
        assert_true(points >= least);
    }
}

static void fail_each_callback(const char *name, job work, const char *settings, long least)
{
    long n = 1;
    for (;; n++) {
        callbacks.fail_at = n;
        dq_status status = run(work, settings);
        if (callbacks.calls < n) {
            assert_int_equal(status, DQ_OK);
            break;
        }
        if (status != DQ_E_IO || !strstr(dq_error_text(), "the host's tensor s"))
            fail_msg("%s: callback %ld failed: %d %s", name, n, status, dq_error_text());
    }
    callbacks.fail_at = 0;
    print_message("%s: %ld failing callbacks\n", name, n - 1);
    assert_true(n - 1 >= least);
}

/* ---- arrays ---- */

enum { OUT = 24, IN = 32, ROWS = 40, VOCAB = 50 };

static float numbers[ROWS * VOCAB];
static uint8_t pattern[8192];

static void fill_numbers(void)
{
    uint32_t x = 1;
    for (int i = 0; i < ROWS * VOCAB; i++) {
        x = x * 1664525u + 1013904223u;
        numbers[i] = (float)(x >> 8) / (float)(1 << 23) - 1.0f;
    }
    memset(pattern, 0x5a, sizeof pattern);
}

/* The call's status; on failure its array must be as it was. */
static dq_status untouched(dq_status status, const void *array, const void *before, size_t bytes)
{
    if (status != DQ_OK && memcmp(array, before, bytes) != 0) fail_msg("an array was written: %s", dq_error_text());
    return status;
}

static dq_status use_hessian(world *w)
{
    float h[IN * IN];
    uint8_t codes[OUT * IN];
    float scale[OUT * IN], zero[OUT * IN], back[OUT * IN];
    int32_t g_idx[IN];
    memset(h, 0x5a, sizeof h);
    memset(codes, 0x5a, sizeof codes);
    TRY(dq_hessian_new(w->ctx, IN, &w->hessian));
    TRY(dq_hessian_add(w->hessian, numbers, ROWS, IN, DQ_F32));
    TRY(dq_hessian_add(w->hessian, numbers, ROWS, IN + 3, DQ_F32)); /* gaps: packed */
    TRY(untouched(dq_hessian_copy(w->hessian, h, IN * IN), h, pattern, sizeof h));
    TRY(dq_hessian_set(w->hessian, h, 2 * ROWS));
    TRY(untouched(
        dq_quantize_weight(w->ctx, w->config, numbers, OUT, IN, w->hessian, codes, scale, zero, g_idx, NULL, NULL),
        codes, pattern, sizeof codes));
    return dq_dequantize_weight(w->ctx, codes, scale, zero, g_idx, OUT, IN, 8, back);
}

static dq_status use_buffers(world *w)
{
    static const double eye[4] = {0, 1, 1, 0};
    static const float levels[3] = {-1, 0, 1};
    float x[ROWS * IN], bias[ROWS], scale[ROWS], zero[ROWS], before[ROWS * IN], range[2 * IN];
    uint8_t codes[ROWS * IN];
    int32_t targets[ROWS], best[ROWS];
    double nll[ROWS];
    for (int i = 0; i < ROWS; i++) targets[i] = i;
    memcpy(x, numbers, sizeof x);
    memcpy(bias, numbers, sizeof bias);
    memset(nll, 0x5a, sizeof nll);
    memcpy(before, x, sizeof x);
    TRY(untouched(dq_fake_quantize(w->ctx, x, ROWS, IN, 4, -1, 1, 0.9), x, before, sizeof x));
    TRY(dq_measure_columns(w->ctx, x, ROWS, IN, 0.1, 1, ROWS, range));
    memcpy(before, x, sizeof x);
    TRY(untouched(dq_fake_quantize_levels(w->ctx, x, ROWS, IN, levels, 3, range, 0, 1, 1, ROWS, 1, 0), x, before,
                  sizeof x));
    memcpy(before, x, sizeof x);
    TRY(untouched(dq_fake_quantize_levels(w->ctx, x, ROWS, IN, levels, 3, NULL, 0.3, 0, 0, 1, 1, 0), x, before,
                  sizeof x));
    memcpy(before, x, sizeof x);
    TRY(untouched(dq_apply_hadamard(w->ctx, IN, x, ROWS, IN, 0), x, before, sizeof x));
    memcpy(before, x, sizeof x);
    TRY(untouched(dq_fold_rotation(w->ctx, x, bias, ROWS, IN, eye, 2, DQ_FOLD_OUTPUT), x, before, sizeof x));
    TRY(dq_kv_quantize_rows(w->ctx, x, ROWS, IN, 4, -1, 0, 1.0, codes, scale, zero));
    TRY(dq_kv_dequantize_rows(w->ctx, codes, scale, zero, ROWS, IN, -1, x));
    return untouched(dq_score_logits(w->ctx, numbers, ROWS, VOCAB, VOCAB, targets, nll, best), nll, pattern,
                     sizeof nll);
}

static void arrays(void **state)
{
    (void)state;
    refuse_each("GPTQ of a weight", use_hessian, "threads=1 w_bits=4 w_groupsize=8 act_order=1", 20, 1000);
    refuse_each("RTN of a weight", use_hessian, "threads=1 w_bits=3 w_groupsize=8 w_rtn=1 w_clip=1", 15, 1000);
    refuse_each("buffers", use_buffers, "threads=1", 15, 1000);
}

/* ---- the host's logits ---- */

static dq_status use_logits(world *w)
{
    int32_t ids[20], window[4], done = 0;
    for (int i = 0; i < 20; i++) ids[i] = i;
    TRY(dq_dataset_from_ids(w->ctx, ids, 20, "numbers", &w->set));
    TRY(dq_evaluator_new_host(w->ctx, VOCAB, w->config, &w->evaluator));
    TRY(dq_evaluator_bind(w->evaluator, w->set));
    for (int i = 0; i < 5; i++) {
        TRY(dq_evaluator_copy_ids(w->evaluator, i, window, 4));
        TRY(dq_evaluator_add_logits(w->evaluator, i, numbers + i * VOCAB, 4 * VOCAB, &done));
        assert_int_equal(done, i == 4);
    }
    double ppl = 0;
    return dq_evaluator_get_float(w->evaluator, "ppl", &ppl);
}

static void host_logits(void **state)
{
    (void)state;
    refuse_each("the host's logits", use_logits, "threads=1 seqlen=4", 15, 1000);
}

/* ---- tokenizers, datasets, tensors ---- */

static char text_file[300];

static dq_status use_text(world *w)
{
    static const char text[] = "one day a cat saw the sun. one day a dog saw the cat.";
    int32_t ids[64];
    float row[64];
    size_t needed;
    char back[128];
    TRY(dq_tokenizer_open(w->ctx, MODEL, &w->tokenizer));
    TRY(dq_tokenizer_encode(w->tokenizer, text, strlen(text), DQ_ENCODE_ADD_SPECIAL, ids, 64, &needed));
    TRY(dq_tokenizer_decode(w->tokenizer, ids, needed, DQ_DECODE_SKIP_SPECIAL, back, sizeof back, &needed));
    assert_string_equal(back, text);
    TRY(dq_dataset_from_text(w->tokenizer, text, strlen(text), "cat", &w->set));
    TRY(dq_dataset_sample(w->set, 1, 2, 3, ids, 64));
    dq_dataset_free(w->set);
    w->set = NULL;
    TRY(dq_dataset_from_file(w->tokenizer, text_file, &w->set));
    TRY(dq_tensors_open(w->ctx, MODEL, &w->tensors));
    return dq_tensors_read_f32(w->tensors, 0, 0, 1, row, 64);
}

static void text_and_tensors(void **state)
{
    (void)state;
    snprintf(text_file, sizeof text_file, "%s", scratch_write("cat.txt", "one day a cat saw a dog.", 0));
    refuse_each("text and tensors", use_text, "threads=1", 100, 60);
}

/* ---- sources and sinks ---- */

static dq_status from_source_to_sink(world *w, int pieces)
{
    dq_tensor_source source = failing_source();
    dq_tensor_sink sink = failing_sink(pieces);
    float logits[2 * 512];
    weights.freed = 0;
    dq_status status = dq_model_open_source(w->ctx, weights.config, &source, &w->model);
    assert_int_equal(weights.freed, 0); /* never freed when opening failed */
    TRY(status);
    TRY(dq_model_logits(w->model, (int32_t[]){1, 2}, 2, NULL, logits, 2 * 512));
    TRY(dq_model_fuse_norms(w->model, NULL, &w->fused));
    status = dq_model_save_to(w->fused, &sink, NULL, NULL, NULL);
    assert_int_equal(taken.finished, status == DQ_OK);
    return status;
}

static dq_status whole_tensors(world *w) { return from_source_to_sink(w, 0); }
static dq_status in_pieces(world *w) { return from_source_to_sink(w, 1); }

/* RTN codes to the host's sink. */
static dq_status quantize_to_sink(world *w)
{
    dq_tensor_source source = failing_source();
    dq_tensor_sink sink = failing_sink(1);
    TRY(dq_model_open_source(w->ctx, weights.config, &source, &w->model));
    TRY(dq_quantizer_new(w->model, w->config, &w->quantizer));
    TRY(dq_quantizer_set_sink(w->quantizer, &sink));
    dq_status status = dq_quantizer_run(w->quantizer, NULL, NULL, NULL);
    assert_int_equal(taken.finished, status == DQ_OK);
    return status;
}

static void sources_and_sinks(void **state)
{
    (void)state;
    host_model_load(&weights, MODEL);
    refuse_each("whole tensors", whole_tensors, "threads=1", 100, 40);
    refuse_each("tensors in pieces", in_pieces, "threads=1", 100, 40);
    refuse_each("codes to a sink", quantize_to_sink, "threads=1 w_bits=4 w_rtn=1", 100, 40);
    fail_each_callback("whole tensors", whole_tensors, "threads=1", 100);
    fail_each_callback("tensors in pieces", in_pieces, "threads=1", 100);
    fail_each_callback("codes to a sink", quantize_to_sink, "threads=1 w_bits=4 w_rtn=1", 100);
    weights.mapped = 1;
    fail_each_callback("mapped tensors", whole_tensors, "threads=1", 60);
    host_model_clear(&weights);
}

/* ---- checkpoints: memory that is refused, disks that are full ---- */

static dq_status stop_and_go_on(world *w)
{
    int32_t done;
    char dir[300];
    snprintf(dir, sizeof dir, "%s/checkpoint", scratch_dir());
    TRY(dq_model_open(w->ctx, MODEL, &w->model));
    w->set = NULL;
    int32_t ids[80];
    for (int i = 0; i < 80; i++) ids[i] = (i * 37 + 5) % 500;
    TRY(dq_dataset_from_ids(w->ctx, ids, 80, "numbers", &w->set));
    TRY(dq_quantizer_new(w->model, w->config, &w->quantizer));
    TRY(dq_quantizer_bind(w->quantizer, w->set));
    TRY(dq_quantizer_checkpoint(w->quantizer, dir));
    TRY(dq_quantizer_step(w->quantizer, NULL, NULL, NULL, &done));
    TRY(dq_quantizer_checkpoint(w->quantizer, dir));
    dq_quantizer_free(w->quantizer);
    w->quantizer = NULL;
    TRY(dq_quantizer_new(w->model, w->config, &w->quantizer));
    TRY(dq_quantizer_bind(w->quantizer, w->set));
    TRY(dq_quantizer_restore(w->quantizer, dir));
    TRY(dq_quantizer_run(w->quantizer, NULL, NULL, NULL));
    TRY(dq_quantizer_take_model(w->quantizer, &w->more));
    return dq_checkpoint_remove(w->ctx, dir);
}

static const char gptq[] = "threads=1 w_bits=4 w_groupsize=16 nsamples=2 seqlen=16 temp_dir=";

static void checkpoints(void **state)
{
    (void)state;
    refuse_each("checkpoint and restore", stop_and_go_on, gptq, 100, 25);
}

/* Files may not grow beyond `bytes`: every write after that fails with EFBIG. */
static dq_status with_small_files(job work, const char *settings, rlim_t bytes)
{
    struct rlimit old, small;
    assert_int_equal(getrlimit(RLIMIT_FSIZE, &old), 0);
    small = old;
    small.rlim_cur = bytes;
    void (*handler)(int) = signal(SIGXFSZ, SIG_IGN);
    assert_int_equal(setrlimit(RLIMIT_FSIZE, &small), 0);
    dq_status status = run(work, settings);
    assert_int_equal(setrlimit(RLIMIT_FSIZE, &old), 0);
    signal(SIGXFSZ, handler);
    return status;
}

static int files_in_scratch(const char *name)
{
    char path[400];
    snprintf(path, sizeof path, "%s/%s", scratch_dir(), name);
    return files_in(path);
}

static dq_status save_and_open(world *w)
{
    char dir[300];
    snprintf(dir, sizeof dir, "%s/saved", scratch_dir());
    TRY(dq_model_open(w->ctx, MODEL, &w->model));
    TRY(dq_model_fuse_norms(w->model, NULL, &w->fused));
    TRY(dq_model_save(w->fused, dir, NULL, NULL, NULL, NULL));
    return dq_model_open(w->ctx, dir, &w->more);
}

static void full_disks(void **state)
{
    (void)state;
    int failures = 0, successes = 0;
    for (rlim_t bytes = 100; bytes < 4000000; bytes += bytes / 2) {
        dq_status status = with_small_files(save_and_open, "threads=1", bytes);
        if (status != DQ_OK && status != DQ_E_IO) fail_msg("files of %ld bytes: %s", (long)bytes, dq_error_text());
        if (status != DQ_OK && files_in_scratch("saved") != 0)
            fail_msg("files of %ld bytes: something stays", (long)bytes);
        failures += status != DQ_OK;
        successes += status == DQ_OK;
        scratch_empty();
    }
    assert_true(failures > 5 && successes > 0);
    failures = successes = 0;
    for (rlim_t bytes = 100; bytes < 4000000; bytes += bytes / 2) {
        dq_status status = with_small_files(stop_and_go_on, gptq, bytes);
        if (status != DQ_OK && status != DQ_E_IO) fail_msg("files of %ld bytes: %s", (long)bytes, dq_error_text());
        failures += status != DQ_OK;
        successes += status == DQ_OK;
        scratch_empty();
    }
    assert_true(failures > 3 && successes > 0);
}

static int open_all(void **state)
{
    (void)state;
    fill_numbers();
    return scratch_open();
}
static int close_all(void **state)
{
    (void)state;
    scratch_close();
    return 0;
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(arrays),           cmocka_unit_test(host_logits),
        cmocka_unit_test(text_and_tensors), cmocka_unit_test(sources_and_sinks),
        cmocka_unit_test(checkpoints),      cmocka_unit_test(full_disks),
    };
    return cmocka_run_group_tests(tests, open_all, close_all);
}
