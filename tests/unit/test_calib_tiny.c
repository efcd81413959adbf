/* A whole training run on the activations of the tiny model, R1 and the R2 of every layer, SGD and Adam, against the same in
 * PyTorch (tests/golden/make_calib.py, on transformers' activations): the loss of every step. SPDX-License-Identifier: Apache-2.0 */
#include <math.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <cmocka.h>
#include <jansson.h>

#include "golden.h"
#include "host_model.h"

enum { STEPS = 20, LAYERS = 4 };

/* Every row in every step: the order in which they come does not count. */
#define FULL_BATCHES                                                                                                    \
    "nsamples=4 seqlen=32 loss=whip method=qr momentum=0.9 ep=20 bsz=1000 quant_steps=0 sink_weight=0 weight_weight=0 " \
    "holdout=0 budget=64M "

typedef struct learnt {
    host_bench b;
    dq_model *fused;
    dq_rotation *rotation;
    json_t *report;
} learnt;

/* Whip as a host would bring it. */
static dq_status host_whip(void *user, const float *o, int64_t rows, int64_t cols, float *grad, double *loss)
{
    double sum = 0;
    ++*(int *)user;
    for (int64_t i = 0; i < rows * cols; i++) {
        double e = exp(-fabs((double)o[i]));
        sum += e;
        if (grad) grad[i] = (float)((o[i] > 0 ? -e : o[i] < 0 ? e : 0) / (double)rows);
    }
    *loss = sum / (double)rows;
    return DQ_OK;
}

/* calls: not NULL = with the host's loss, which counts there how often it was asked. */
static learnt learn(const char *optim, int threads, int *calls)
{
    const dq_rotation_loss own = {.struct_size = sizeof own,
                                  .abi = DQ_ROTATION_LOSS_ABI,
                                  .user = calls,
                                  .name = "whip of the host",
                                  .evaluate = host_whip,
                                  .curvature = 1};
    char settings[400];
    const char *text = NULL;
    dq_calibrator *job = NULL;
    learnt l = {0};
    snprintf(settings, sizeof settings, FULL_BATCHES "%s", optim);
    l.b = host_bench_open(settings, threads, false);
    OK(dq_model_fuse_norms(l.b.model, l.b.config, &l.fused));
    OK(dq_calibrator_new(l.fused, l.b.config, &job));
    OK(dq_calibrator_bind(job, l.b.set));
    if (calls) OK(dq_calibrator_set_loss(job, &own));
    OK(dq_calibrator_run(job, NULL, NULL, NULL));
    OK(dq_calibrator_report(job, &text));
    l.report = json_loads(text, 0, NULL);
    assert_non_null(l.report);
    OK(dq_calibrator_take_rotation(job, &l.rotation));
    dq_calibrator_free(job);
    return l;
}

static void forget(learnt *l)
{
    json_decref(l->report);
    dq_rotation_free(l->rotation);
    dq_model_free(l->fused);
    host_bench_close(&l->b);
    assert_int_equal(heap.live, 0);
}

static const json_t *rotation_of(const learnt *l, int i)
{
    return json_array_get(json_object_get(l->report, "rotations"), (size_t)i);
}

static void follow(const golden *g, const json_t *rotation, const char *name)
{
    const double *want = golden_find(g, name)->data;
    const json_t *history = json_object_get(rotation, "history");
    assert_int_equal(json_array_size(history), STEPS);
    for (int i = 0; i < STEPS; i++) {
        double loss = json_number_value(json_object_get(json_array_get(history, (size_t)i), "loss"));
        if (!(fabs(loss - want[i]) <= 1e-4 * want[i]))
            fail_msg("%s, step %d: loss %.9g, PyTorch has %.9g", name, i, loss, want[i]);
    }
    assert_true(want[STEPS - 1] < 0.995 * want[0]); /* it is a way down */
}

/* With our Whip, then with the host's. */
static void training_follows_pytorch(void **state)
{
    static const char *const optims[] = {"sgd", "adam"}, *const settings[] = {"optim=sgd lr=0.02",
                                                                              "optim=adam lr=0.005"};
    (void)state;
    golden g = golden_load("calib_tiny");
    for (int k = 0; k < 4; k++) {
        int calls = 0;
        char name[32];
        learnt t = learn(settings[k % 2], 2, k < 2 ? NULL : &calls);
        const char *loss = json_string_value(json_object_get(t.report, "loss"));
        assert_string_equal(loss, k < 2 ? "whip" : "whip of the host");
        assert_true(k < 2 ? calls == 0 : calls > (LAYERS + 1) * STEPS);
        assert_non_null(rotation_of(&t, LAYERS));
        assert_null(rotation_of(&t, LAYERS + 1));
        for (int l = 0; l < LAYERS; l++) {
            snprintf(name, sizeof name, "r2_%d_%s", l, optims[k % 2]);
            follow(&g, rotation_of(&t, l), name);
        }
        snprintf(name, sizeof name, "r1_%s", optims[k % 2]);
        follow(&g, rotation_of(&t, LAYERS), name);
        forget(&t);
    }
    golden_free(&g);
}

/* ---- the rotation is one of the model ---- */

enum { TOKENS = 40, VOCAB = 512 };

static void logits_of(dq_model *model, float out[TOKENS * VOCAB])
{
    int32_t ids[TOKENS];
    for (int i = 0; i < TOKENS; i++) ids[i] = (i * 31 + 7) % 500;
    OK(dq_model_logits(model, ids, TOKENS, NULL, out, TOKENS * VOCAB));
}

/* Folded into the weights, at 16 bits, the learnt rotations change no logit; learnt on one thread or on three they are the
 * same to the bit, and so are the losses on the way. */
static void logits_stay_and_threads_do_not_count(void **state)
{
    (void)state;
    static float plain[TOKENS * VOCAB], turned[2][TOKENS * VOCAB];
    learnt l[2];
    for (int i = 0; i < 2; i++) {
        dq_model *rotated = NULL;
        l[i] = learn("optim=adam lr=0.005", i ? 3 : 1, NULL);
        OK(dq_model_rotate(l[i].fused, l[i].rotation, &rotated));
        logits_of(rotated, turned[i]);
        dq_model_free(rotated);
    }
    logits_of(l[0].b.model, plain);
    double largest = 0, off = 0;
    for (int i = 0; i < TOKENS * VOCAB; i++) {
        largest = fmax(largest, fabs(plain[i]));
        off = fmax(off, fabs((double)plain[i] - turned[0][i]));
    }
    if (!(off <= 1e-4 * largest)) fail_msg("logits up to %g differ by %g", largest, off);
    assert_true(off > 0); /* it is another model */
    assert_memory_equal(turned[0], turned[1], sizeof turned[0]);
    for (int i = 0; i <= LAYERS; i++)
        assert_true(json_equal(json_object_get(rotation_of(&l[0], i), "history"),
                               json_object_get(rotation_of(&l[1], i), "history")));
    json_decref(l[0].report); /* both at once: blocks are counted for all contexts */
    dq_rotation_free(l[0].rotation);
    dq_model_free(l[0].fused);
    host_bench_close(&l[0].b);
    forget(&l[1]);
}

int main(void)
{
    const struct CMUnitTest tests[] = {cmocka_unit_test(training_follows_pytorch),
                                       cmocka_unit_test(logits_stay_and_threads_do_not_count)};
    return cmocka_run_group_tests(tests, NULL, NULL);
}
