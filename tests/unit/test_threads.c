/* Threads of the host and of the library; tests/threads/run_sanitizers.sh runs this under ThreadSanitizer, too.
 * SPDX-License-Identifier: Apache-2.0 */
#include <pthread.h>
#include <sched.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stdatomic.h>
#include <stdbool.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <cmocka.h>

#include "host_model.h"

#define MODEL "tests/data/tiny"
#define SETTINGS "w_bits=4 w_groupsize=16 a_bits=8 k_bits=8 v_bits=8 nsamples=2 seqlen=24 limit=2 seed=4"

/* ---- the whole pipeline in one thread; no assertions, for they must not leave a thread ---- */

typedef struct pipeline {
    int threads;
    dq_status status;
    char error[200];
    double rotated, quantized, mean_error;
} pipeline;

typedef struct objects {
    dq_context *ctx;
    dq_config *config;
    dq_dataset *set;
    dq_model *model, *fused, *rotated, *quantized;
    dq_rotation *rotation;
    dq_quantizer *quantizer;
    dq_evaluator *evaluator;
} objects;

static dq_status configure(dq_config *config, const char *settings)
{
    char text[256];
    snprintf(text, sizeof text, "%s", settings);
    char *rest = text;
    for (char *item; (item = strsep(&rest, " ")) != NULL;) {
        char *value = strchr(item, '=');
        *value = '\0';
        TRY(dq_config_set(config, item, value + 1));
    }
    return DQ_OK;
}

static dq_status open_objects(objects *o, int threads)
{
    int32_t ids[100];
    TRY(dq_config_new(&o->config));
    TRY(configure(o->config, SETTINGS));
    TRY(dq_config_set_int(o->config, "threads", threads));
    TRY(dq_context_new(o->config, NULL, &o->ctx));
    for (int i = 0; i < 100; i++) ids[i] = (i * i * 7 + i * 13 + 5) % 500;
    TRY(dq_dataset_from_ids(o->ctx, ids, 100, "numbers", &o->set));
    TRY(dq_model_open(o->ctx, MODEL, &o->model));
    TRY(dq_model_fuse_norms(o->model, o->config, &o->fused));
    TRY(dq_rotation_new(o->fused, o->config, &o->rotation));
    return dq_model_rotate(o->fused, o->rotation, &o->rotated);
}

static dq_status measure(objects *o, dq_model *model, double *ppl)
{
    dq_evaluator_free(o->evaluator);
    o->evaluator = NULL;
    TRY(dq_evaluator_new(model, o->config, &o->evaluator));
    TRY(dq_evaluator_bind(o->evaluator, o->set));
    TRY(dq_evaluator_run(o->evaluator, NULL, NULL, NULL));
    return dq_evaluator_get_float(o->evaluator, "ppl", ppl);
}

static dq_status run_objects(objects *o, pipeline *p)
{
    TRY(open_objects(o, p->threads));
    TRY(measure(o, o->rotated, &p->rotated));
    TRY(dq_quantizer_new(o->rotated, o->config, &o->quantizer));
    TRY(dq_quantizer_bind(o->quantizer, o->set));
    TRY(dq_quantizer_run(o->quantizer, NULL, NULL, NULL));
    TRY(dq_quantizer_take_model(o->quantizer, &o->quantized));
    TRY(dq_quantizer_get_float(o->quantizer, "mean_error", &p->mean_error));
    return measure(o, o->quantized, &p->quantized);
}

static void free_objects(objects *o)
{
    dq_context_free(o->ctx); /* first: the others keep it alive */
    dq_evaluator_free(o->evaluator);
    dq_quantizer_free(o->quantizer);
    dq_rotation_free(o->rotation);
    dq_model_free(o->model);
    dq_model_free(o->fused);
    dq_model_free(o->rotated);
    dq_model_free(o->quantized);
    dq_dataset_free(o->set);
    dq_config_free(o->config);
}

static void *run_pipeline(void *opaque)
{
    pipeline *p = opaque;
    objects o;
    memset(&o, 0, sizeof o);
    p->status = run_objects(&o, p);
    snprintf(p->error, sizeof p->error, "%s", p->status == DQ_OK ? "" : dq_error_text());
    free_objects(&o);
    return NULL;
}

static void assert_same(const pipeline *got, const pipeline *want)
{
    if (got->status != DQ_OK) fail_msg("%s", got->error);
    assert_true(got->rotated == want->rotated && got->quantized == want->quantized);
    assert_true(got->mean_error == want->mean_error);
}

/* ---- tests ---- */

static void two_contexts_in_two_threads(void **state)
{
    (void)state;
    pipeline alone = {.threads = 1}, pair[2] = {{.threads = 2}, {.threads = 3}};
    pthread_t threads[2];
    run_pipeline(&alone);
    assert_same(&alone, &alone);
    for (int i = 0; i < 2; i++) assert_int_equal(pthread_create(&threads[i], NULL, run_pipeline, &pair[i]), 0);
    for (int i = 0; i < 2; i++) pthread_join(threads[i], NULL);
    for (int i = 0; i < 2; i++) assert_same(&pair[i], &alone);
}

/* One context that goes from thread to thread: nothing is tied to the one that made it. */
typedef struct baton {
    objects objects;
    dq_status status;
    double ppl;
} baton;

static void *measure_there(void *opaque)
{
    baton *b = opaque;
    b->status = measure(&b->objects, b->objects.rotated, &b->ppl);
    return NULL;
}

static void one_context_after_the_other(void **state)
{
    (void)state;
    baton b;
    double first = 0;
    memset(&b, 0, sizeof b);
    OK(open_objects(&b.objects, 3));
    OK(measure(&b.objects, b.objects.rotated, &first));
    for (int i = 0; i < 3; i++) {
        pthread_t thread;
        assert_int_equal(pthread_create(&thread, NULL, measure_there, &b), 0);
        pthread_join(thread, NULL);
        assert_int_equal(b.status, DQ_OK);
        assert_true(b.ppl == first);
    }
    free_objects(&b.objects);
}

typedef struct stopper {
    dq_cancel *cancel;
    atomic_int events;
    atomic_bool over;
} stopper;

static void *stop_after_an_event(void *opaque)
{
    stopper *s = opaque;
    while (!atomic_load(&s->over) && atomic_load(&s->events) < 2) sched_yield();
    dq_cancel_set(s->cancel);
    return NULL;
}

static int32_t count_event(void *user, const dq_progress_event *event)
{
    stopper *s = user;
    (void)event;
    if (atomic_fetch_add(&s->events, 1) >= 1) /* goes on until the other thread has seen it */
        for (int i = 0; i < 100; i++) sched_yield();
    return 0;
}

static void cancelled_from_another_thread(void **state)
{
    (void)state;
    objects o;
    double first = 0, again = 0;
    memset(&o, 0, sizeof o);
    OK(open_objects(&o, 2));
    OK(measure(&o, o.rotated, &first));
    for (int round = 0; round < 8; round++) {
        stopper s = {NULL, 0, false};
        pthread_t thread;
        dq_quantizer *q = NULL;
        OK(dq_cancel_new(&s.cancel));
        OK(dq_quantizer_new(o.rotated, o.config, &q));
        OK(dq_quantizer_bind(q, o.set));
        assert_int_equal(pthread_create(&thread, NULL, stop_after_an_event, &s), 0);
        dq_status status = round % 2 ? dq_quantizer_run(q, s.cancel, count_event, &s)
                                     : dq_evaluator_run(o.evaluator, s.cancel, count_event, &s);
        atomic_store(&s.over, true);
        pthread_join(thread, NULL);
        assert_true(status == DQ_OK || status == DQ_E_CANCELLED); /* the token may have come too late */
        /* a token that stays set stops the next one for certain, and the job can start afresh without */
        assert_int_equal(dq_evaluator_run(o.evaluator, s.cancel, NULL, NULL), DQ_E_CANCELLED);
        OK(measure(&o, o.rotated, &again));
        assert_true(again == first);
        dq_quantizer_free(q);
        dq_cancel_free(s.cancel);
    }
    free_objects(&o);
}

/* Contexts and their pools come and go in several threads at once. */
static void *open_and_close(void *opaque)
{
    dq_status *status = opaque;
    for (int i = 0; i < 20 && *status == DQ_OK; i++) {
        float x[256 * 64];
        dq_context *ctx = NULL;
        dq_config *config = NULL;
        for (int k = 0; k < 256 * 64; k++) x[k] = (float)(k % 17);
        *status = dq_config_new(&config);
        if (*status == DQ_OK) *status = dq_config_set_int(config, "threads", 3);
        if (*status == DQ_OK) *status = dq_context_new(config, NULL, &ctx);
        if (*status == DQ_OK) *status = dq_apply_hadamard(ctx, 64, x, 256, 64, 0);
        dq_context_free(ctx);
        dq_config_free(config);
    }
    return NULL;
}

static void contexts_come_and_go(void **state)
{
    (void)state;
    pthread_t threads[3];
    dq_status status[3] = {DQ_OK, DQ_OK, DQ_OK};
    for (int i = 0; i < 3; i++) assert_int_equal(pthread_create(&threads[i], NULL, open_and_close, &status[i]), 0);
    for (int i = 0; i < 3; i++) pthread_join(threads[i], NULL);
    for (int i = 0; i < 3; i++) assert_int_equal(status[i], DQ_OK);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(two_contexts_in_two_threads),
        cmocka_unit_test(one_context_after_the_other),
        cmocka_unit_test(cancelled_from_another_thread),
        cmocka_unit_test(contexts_come_and_go),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
