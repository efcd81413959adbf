/* One call at a time per context: calls from inside every kind of callback, and from a second thread, are refused with a
 * precise error; freeing is allowed at any time. SPDX-License-Identifier: Apache-2.0 */
#include <pthread.h>
#include <semaphore.h>
#include <stdatomic.h>
#include <stdbool.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>
#include <cmocka.h>

#include "dartquant/backend.h"
#include "host_model.h"

#define MODEL "tests/data/tiny"

/* ---- what a callback tries ---- */

enum {
    PROGRESS,
    DESCRIBE,
    READ,
    MAP,
    RELEASE,
    SOURCE_FREE,
    ADD,
    BEGIN,
    APPEND,
    METADATA,
    FINISH,
    LOG,
    ALLOC,
    FREE,
    RUN,
    TASK,
    SLOT,
    KINDS
};

static dq_context *ctx;
static dq_model *model;
static dq_cancel *token;
static atomic_int pokes[KINDS];
static char wrong[400]; /* the first answer that was not the right one */
static pthread_mutex_t wrong_lock = PTHREAD_MUTEX_INITIALIZER;

static void expect(int kind, const char *call, dq_status got, const char *words)
{
    const char *text = dq_error_text();
    bool right = got == DQ_E_STATE && dq_error_last() == DQ_E_STATE && strncmp(text, call, strlen(call)) == 0 &&
                 strstr(text, words);
    pthread_mutex_lock(&wrong_lock);
    if (!right && !wrong[0]) snprintf(wrong, sizeof wrong, "callback %d: %s gave %d \"%s\"", kind, call, got, text);
    pthread_mutex_unlock(&wrong_lock);
}

/* Calls of every noun; `words` stand in the message. */
static void try_calls(int kind, const char *words)
{
    int64_t number;
    int32_t flag;
    float x[4] = {0};
    dq_model *opened = NULL;
    dq_dataset *set = NULL;
    dq_tokenizer *tokenizer = NULL;
    dq_evaluator *evaluator = NULL;
    dq_quantizer *quantizer = NULL;
    dq_rotation *rotation = NULL;
    dq_hessian *hessian = NULL;
    dq_tensors *tensors = NULL;
    dq_device_counters counters = {.struct_size = sizeof counters};
    const char *text;
    expect(kind, "dq_model_open", dq_model_open(ctx, MODEL, &opened), words);
    expect(kind, "dq_tensors_open", dq_tensors_open(ctx, MODEL, &tensors), words);
    expect(kind, "dq_tokenizer_open", dq_tokenizer_open(ctx, MODEL, &tokenizer), words);
    expect(kind, "dq_dataset_from_ids", dq_dataset_from_ids(ctx, (int32_t[]){1, 2}, 2, "two", &set), words);
    expect(kind, "dq_hessian_new", dq_hessian_new(ctx, 4, &hessian), words);
    expect(kind, "dq_apply_hadamard", dq_apply_hadamard(ctx, 4, x, 1, 4, 0), words);
    expect(kind, "dq_checkpoint_exists", dq_checkpoint_exists(ctx, "x", &flag), words);
    expect(kind, "dq_context_counters", dq_context_counters(ctx, &counters), words);
    expect(kind, "dq_benchmark_ops", dq_benchmark_ops(ctx, 0.01, NULL, NULL, NULL, &text), words);
    if (model) {
        expect(kind, "dq_model_get_int", dq_model_get_int(model, "hidden_size", &number), words);
        expect(kind, "dq_evaluator_new", dq_evaluator_new(model, NULL, &evaluator), words);
        expect(kind, "dq_quantizer_new", dq_quantizer_new(model, NULL, &quantizer), words);
        expect(kind, "dq_rotation_new", dq_rotation_new(model, NULL, &rotation), words);
    }
    /* What docs/threading.md allows. */
    dq_config *config = NULL;
    bool allowed = dq_config_new(&config) == DQ_OK && dq_config_set(config, "seed", "5") == DQ_OK &&
                   dq_config_get_int(config, "seed", &number) == DQ_OK && number == 5 && dq_version_number() > 0 &&
                   dq_context_device_name(ctx)[0] && dq_context_memory_peak(ctx) > 0;
    dq_config_free(config);
    dq_cancel_set(token);
    dq_cancel_clear(token);
    pthread_mutex_lock(&wrong_lock);
    if (!allowed && !wrong[0]) snprintf(wrong, sizeof wrong, "callback %d: a call that is allowed failed", kind);
    pthread_mutex_unlock(&wrong_lock);
}

static void poke(int kind)
{
    if (!ctx || atomic_fetch_add(&pokes[kind], 1) > 20) return;
    try_calls(kind, kind == TASK ? "another thread is inside" : "from inside a callback of");
}

static void assert_poked(int kind)
{
    if (wrong[0]) fail_msg("%s", wrong);
    assert_true(atomic_load(&pokes[kind]) > 0);
}

/* ---- callbacks ---- */

static int32_t on_progress(void *user, const dq_progress_event *event)
{
    (void)user;
    (void)event;
    poke(PROGRESS);
    return 0;
}

static host_model weights;
static dq_tensor_source weights_table;

static dq_status on_describe(void *user, int64_t index, dq_tensor_desc *out)
{
    poke(DESCRIBE);
    return weights_table.describe(user, index, out);
}
static dq_status on_read(void *user, int64_t index, uint64_t offset, uint64_t bytes, void *dst)
{
    poke(READ);
    return weights_table.read(user, index, offset, bytes, dst);
}
static dq_status on_map(void *user, int64_t index, const void **out)
{
    poke(MAP);
    return weights_table.map(user, index, out);
}
static void on_release(void *user, int64_t index)
{
    (void)user;
    (void)index;
    poke(RELEASE);
}
static void on_source_free(void *user)
{
    (void)user;
    poke(SOURCE_FREE);
}

static dq_status on_add(void *user, const char *name, dq_dtype dtype, int32_t ndim, const int64_t *shape,
                        const void *data, uint64_t bytes)
{
    (void)user, (void)name, (void)dtype, (void)ndim, (void)shape, (void)data, (void)bytes;
    poke(ADD);
    return DQ_OK;
}
static dq_status on_begin(void *user, const char *name, dq_dtype dtype, int32_t ndim, const int64_t *shape,
                          uint64_t bytes)
{
    (void)user, (void)name, (void)dtype, (void)ndim, (void)shape, (void)bytes;
    poke(BEGIN);
    return DQ_OK;
}
static dq_status on_append(void *user, const void *data, uint64_t bytes)
{
    (void)user, (void)data, (void)bytes;
    poke(APPEND);
    return DQ_OK;
}
static dq_status on_metadata(void *user, const char *key, const char *value)
{
    (void)user, (void)key, (void)value;
    poke(METADATA);
    return DQ_OK;
}
static dq_status on_finish(void *user)
{
    (void)user;
    poke(FINISH);
    return DQ_OK;
}

static void on_log(void *user, int32_t level, const char *text)
{
    (void)user, (void)level, (void)text;
    poke(LOG);
}
static void *on_alloc(void *user, size_t bytes)
{
    (void)user;
    poke(ALLOC);
    return malloc(bytes);
}
static void on_free(void *user, void *ptr, size_t bytes)
{
    (void)user, (void)bytes;
    poke(FREE);
    free(ptr);
}

typedef struct round {
    void (*task)(void *arg, int64_t i, int thread);
    void *arg;
    int64_t count;
} round_of_tasks;

static void *run_odd(void *opaque)
{
    const round_of_tasks *r = opaque;
    poke(TASK);
    for (int64_t i = 1; i < r->count; i += 2) r->task(r->arg, i, 1);
    return NULL;
}
static void on_run(void *user, int64_t count, void (*task)(void *arg, int64_t i, int thread), void *arg)
{
    (void)user;
    round_of_tasks r = {task, arg, count};
    pthread_t helper;
    poke(RUN);
    bool helped = pthread_create(&helper, NULL, run_odd, &r) == 0;
    for (int64_t i = 0; i < count; i += 2) task(arg, i, 0);
    if (helped)
        pthread_join(helper, NULL);
    else
        run_odd(&r);
}

static const dq_backend *plain;
static dq_status on_rope(void *dev, const dq_view *cosine, const dq_view *sine, int64_t head_dim, const dq_view *x)
{
    poke(SLOT);
    return plain->rope(dev, cosine, sine, head_dim, x);
}

/* ---- set up ---- */

static int set_up(void **state)
{
    (void)state;
    for (int i = 0; i < KINDS; i++) atomic_store(&pokes[i], 0);
    wrong[0] = '\0';
    OK(dq_cancel_new(&token));
    return 0;
}

static int tear_down(void **state)
{
    (void)state;
    dq_cancel_free(token);
    return heap.live != 0;
}

static void close_all(void)
{
    dq_context *last = ctx;
    dq_model_free(model);
    model = NULL;
    ctx = NULL;
    dq_context_free(last);
}

/* ---- tests ---- */

static void inside_progress(void **state)
{
    (void)state;
    ctx = host_context(2);
    OK(dq_model_open(ctx, MODEL, &model));
    dq_config *config = host_config("seqlen=16 limit=2");
    dq_dataset *set = host_ids(ctx, 40);
    dq_evaluator *e = NULL;
    double ppl = 0, undisturbed = host_perplexity(model, config, set);
    OK(dq_evaluator_new(model, config, &e));
    OK(dq_evaluator_bind(e, set));
    OK(dq_evaluator_run(e, NULL, on_progress, NULL));
    assert_poked(PROGRESS);
    OK(dq_evaluator_get_float(e, "ppl", &ppl));
    assert_true(ppl == undisturbed);
    dq_evaluator_free(e);
    dq_dataset_free(set);
    dq_config_free(config);
    close_all();
}

static void open_own_weights(dq_model **out)
{
    dq_tensor_source table = host_model_source(&weights);
    weights_table = table;
    table.describe = on_describe;
    table.read = on_read;
    table.map = on_map;
    table.release = on_release;
    table.free = on_source_free;
    OK(dq_model_open_source(ctx, weights.config, &table, out));
}

static void inside_sources(void **state)
{
    (void)state;
    float logits[2 * 512];
    dq_model *own = NULL;
    host_model_load(&weights, MODEL);
    ctx = host_context(1);
    open_own_weights(&own);
    assert_poked(DESCRIBE);
    assert_poked(MAP);
    OK(dq_model_logits(own, (int32_t[]){1, 2}, 2, NULL, logits, 2 * 512));
    assert_poked(READ);
    assert_poked(RELEASE);
    dq_model_free(own);
    assert_poked(SOURCE_FREE);
    close_all();
    host_model_clear(&weights);
}

static void inside_sinks(void **state)
{
    (void)state;
    ctx = host_context(1);
    OK(dq_model_open(ctx, MODEL, &model));
    dq_tensor_sink sink = {.struct_size = sizeof sink,
                           .abi = DQ_TENSOR_SINK_ABI,
                           .add = on_add,
                           .set_metadata = on_metadata,
                           .finish = on_finish,
                           .begin = on_begin,
                           .append = on_append};
    OK(dq_model_save_to(model, &sink, NULL, NULL, NULL));
    static const int kinds[] = {ADD, BEGIN, APPEND, METADATA, FINISH};
    for (size_t i = 0; i < sizeof kinds / sizeof *kinds; i++) assert_poked(kinds[i]);
    close_all();
}

static void inside_services(void **state)
{
    (void)state;
    dq_services services = {.struct_size = sizeof services,
                            .abi = 1,
                            .allocator = {on_alloc, on_free, NULL},
                            .runner = {.run = on_run, .threads = 2},
                            .log = on_log};
    dq_quantizer *q = NULL;
    dq_context *made = NULL;
    dq_config *config = host_config("w_bits=4 w_rtn=1 w_groupsize=16 temp_dir=/dev/null/none");
    OK(dq_context_new(config, &services, &made));
    OK(dq_model_open(made, MODEL, &model));
    OK(dq_quantizer_new(model, config, &q));
    ctx = made; /* from here on the callbacks call */
    OK(dq_quantizer_run(q, NULL, NULL, NULL));
    static const int kinds[] = {ALLOC, FREE, RUN, TASK, LOG};
    for (size_t i = 0; i < sizeof kinds / sizeof *kinds; i++) assert_poked(kinds[i]);
    dq_quantizer_free(q);
    dq_config_free(config);
    close_all();
}

static void inside_backend_slots(void **state)
{
    (void)state;
    float logits[2 * 512];
    OK(dq_backend_builtin("ref", &plain));
    dq_backend mine = *plain;
    mine.rope = on_rope;
    OK(dq_context_new_with_backend(NULL, NULL, &mine, NULL, &ctx));
    OK(dq_model_open(ctx, MODEL, &model));
    OK(dq_model_logits(model, (int32_t[]){1, 2}, 2, NULL, logits, 2 * 512));
    assert_poked(SLOT);
    close_all();
}

/* ---- two threads ---- */

static sem_t inside, go_on;

static int32_t wait_inside(void *user, const dq_progress_event *event)
{
    (void)user;
    if (event->index != 1) return 0;
    sem_post(&inside);
    sem_wait(&go_on);
    return 0;
}

typedef struct measurement {
    dq_evaluator *evaluator;
    dq_status status;
} measurement;

static void *measure(void *opaque)
{
    measurement *m = opaque;
    m->status = dq_evaluator_run(m->evaluator, NULL, wait_inside, NULL);
    return NULL;
}

static void second_thread(void **state)
{
    (void)state;
    pthread_t thread;
    measurement m = {NULL, DQ_E_INTERNAL};
    double ppl = 0;
    ctx = host_context(1);
    OK(dq_model_open(ctx, MODEL, &model));
    dq_config *config = host_config("seqlen=16 limit=2");
    dq_dataset *set = host_ids(ctx, 40), *other_set;
    double alone = host_perplexity(model, config, set);
    dq_context *other = host_context(1);
    dq_model *other_model = NULL, *twin = NULL;
    OK(dq_model_open(other, MODEL, &other_model));
    OK(dq_model_open(ctx, MODEL, &twin));
    other_set = host_ids(other, 40);
    OK(dq_evaluator_new(model, config, &m.evaluator));
    OK(dq_evaluator_bind(m.evaluator, set));
    assert_int_equal(sem_init(&inside, 0, 0) | sem_init(&go_on, 0, 0), 0);
    assert_int_equal(pthread_create(&thread, NULL, measure, &m), 0);
    sem_wait(&inside); /* the thread sits in its progress callback */
    try_calls(KINDS, "another thread is inside dq_evaluator_run");
    uint64_t before = dq_context_memory_now(ctx);
    dq_model_free(twin); /* allowed, done when the call returns */
    dq_dataset_free(set);
    assert_true(dq_context_memory_now(ctx) == before);
    assert_true(host_perplexity(other_model, config, other_set) == alone); /* another context is free */
    sem_post(&go_on);
    pthread_join(thread, NULL);
    if (wrong[0]) fail_msg("%s", wrong);
    assert_int_equal(m.status, DQ_OK);
    assert_true(dq_context_memory_now(ctx) < before);
    OK(dq_evaluator_get_float(m.evaluator, "ppl", &ppl));
    assert_true(ppl == alone);
    dq_evaluator_free(m.evaluator);
    dq_dataset_free(other_set);
    dq_model_free(other_model);
    dq_context_free(other);
    dq_config_free(config);
    close_all();
    sem_destroy(&inside);
    sem_destroy(&go_on);
}

/* A job that frees itself and everything else from its own callback: freed when the call returns. */
typedef struct all_of {
    dq_evaluator *evaluator;
    dq_dataset *set;
} all_of;

static int32_t free_all(void *user, const dq_progress_event *event)
{
    all_of *a = user;
    (void)event;
    if (!a->evaluator) return 0;
    dq_evaluator_free(a->evaluator);
    dq_dataset_free(a->set);
    dq_model_free(model);
    dq_context_free(ctx);
    a->evaluator = NULL;
    return 0;
}

static void freed_inside(void **state)
{
    (void)state;
    all_of a;
    ctx = host_context(2);
    OK(dq_model_open(ctx, MODEL, &model));
    a.set = host_ids(ctx, 40);
    dq_config *config = host_config("seqlen=16 limit=2");
    OK(dq_evaluator_new(model, config, &a.evaluator));
    OK(dq_evaluator_bind(a.evaluator, a.set));
    OK(dq_evaluator_run(a.evaluator, NULL, free_all, &a));
    assert_int_equal(heap.live, 0);
    dq_config_free(config);
    model = NULL;
    ctx = NULL;
}

/* Two threads that do not know of each other: every call does its work or is refused, nothing is lost. */
static void *hammer(void *opaque)
{
    long *done = opaque;
    for (int i = 0; i < 20000; i++) {
        int32_t ids[] = {1, 2, i};
        dq_dataset *set = NULL;
        int64_t number = 0;
        dq_status status = dq_dataset_from_ids(ctx, ids, 3, "three", &set);
        if (status == DQ_OK) {
            int32_t back = -1;
            if (dq_dataset_copy_ids(set, 2, 1, &back) == DQ_OK && back != i) done[1]++;
            done[0]++;
            dq_dataset_free(set);
        } else if (status != DQ_E_STATE) {
            done[1]++;
        }
        status = dq_model_get_int(model, "hidden_size", &number);
        if (status != DQ_E_STATE && (status != DQ_OK || number < 1)) done[1]++;
    }
    return NULL;
}

static void two_threads_at_once(void **state)
{
    (void)state;
    pthread_t thread;
    long mine[2] = {0, 0}, theirs[2] = {0, 0};
    ctx = host_context(1);
    OK(dq_model_open(ctx, MODEL, &model));
    assert_int_equal(pthread_create(&thread, NULL, hammer, theirs), 0);
    hammer(mine);
    pthread_join(thread, NULL);
    assert_int_equal(mine[1] + theirs[1], 0);
    assert_true(mine[0] + theirs[0] > 100);
    close_all();
    assert_int_equal(heap.live, 0);
}

static void what_it_costs(void **state)
{
    (void)state;
    enum { CALLS = 1000000 };
    struct timespec a, b;
    int32_t id;
    ctx = host_context(1);
    dq_dataset *set = host_ids(ctx, 4);
    clock_gettime(CLOCK_MONOTONIC, &a);
    for (int i = 0; i < CALLS; i++) OK(dq_dataset_copy_ids(set, 0, 1, &id));
    clock_gettime(CLOCK_MONOTONIC, &b);
    print_message("one guarded call: %.0f ns\n",
                  ((double)(b.tv_sec - a.tv_sec) * 1e9 + (double)(b.tv_nsec - a.tv_nsec)) / CALLS);
    dq_dataset_free(set);
    close_all();
}

#define T(name) cmocka_unit_test_setup_teardown(name, set_up, tear_down)
int main(void)
{
    const struct CMUnitTest tests[] = {T(inside_progress), T(inside_sources),       T(inside_sinks),
                                       T(inside_services), T(inside_backend_slots), T(second_thread),
                                       T(freed_inside),    T(two_threads_at_once),  T(what_it_costs)};
    return cmocka_run_group_tests(tests, NULL, NULL);
}
