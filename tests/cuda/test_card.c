/* Jobs on a card through the public headers and the shared library alone: two contexts on one card, checkpoints that
 * wander between card and CPU, cancelling, memory that is refused in the middle, the same bits twice. DQ_TEST_BACKEND names
 * the backend; without it the simulated card beside this program. SPDX-License-Identifier: Apache-2.0 */
#include "card.h"

#include <math.h>
#include <stdlib.h>

#define MODEL "tests/data/tiny"

enum { SEQLEN = 32, WINDOWS = 4, STEPS = 2 /* done before the job moves */ };

static char dir[64];

static int set_up(void **state)
{
    (void)state;
    const char *given = getenv("DQ_TEST_BACKEND");
    if (given && given[0]) {
        snprintf(card, sizeof card, "%s", given);
    } else if (!find_simulated_card(card)) {
        return -1;
    }
    strcpy(dir, "/tmp/dq_test_card.XXXXXX");
    return mkdtemp(dir) ? 0 : -1;
}

static int clean_up(void **state)
{
    (void)state;
    (void)rmdir(dir); /* removed with its checkpoint, when there was one */
    return 0;
}

/* ---- one device with its model, data and options ---- */

typedef struct place {
    dq_context *ctx;
    dq_config *config;
    dq_dataset *set;
    dq_model *model; /* fused and rotated */
} place;

static place open_place(const char *options)
{
    place p = {0};
    /* More tokens than inputs, well damped: what differs between devices is then rounding alone. */
    static const char *const settings[][2] = {{"seqlen", "32"},      {"nsamples", "4"}, {"w_bits", "4"},
                                              {"w_groupsize", "32"}, {"a_bits", "8"},   {"k_bits", "8"},
                                              {"v_bits", "8"},       {"seed", "3"},     {"percdamp", "0.1"}};
    int32_t ids[WINDOWS * SEQLEN + 5];
    dq_model *model = NULL, *fused = NULL;
    dq_rotation *rotation = NULL;
    OK(context_on(options, NULL, &p.ctx));
    OK(dq_config_new(&p.config));
    for (size_t i = 0; i < sizeof settings / sizeof *settings; i++)
        OK(dq_config_set(p.config, settings[i][0], settings[i][1]));
    for (int i = 0; i < (int)(sizeof ids / sizeof *ids); i++) ids[i] = (i * i * 7 + i * i / 11 + i * 13 + 5) % 500;
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
    assert_int_equal(dq_context_fallback_count(p->ctx), 0);
    dq_context_free(p->ctx);
}

static dq_quantizer *new_quantizer(const place *p)
{
    dq_quantizer *q = NULL;
    OK(dq_quantizer_new(p->model, p->config, &q));
    OK(dq_quantizer_bind(q, p->set));
    return q;
}

static double perplexity(const place *p, dq_model *model)
{
    dq_evaluator *e = NULL;
    double ppl = 0;
    OK(dq_evaluator_new(model, p->config, &e));
    OK(dq_evaluator_bind(e, p->set));
    OK(dq_evaluator_run(e, NULL, NULL, NULL));
    OK(dq_evaluator_get_float(e, "ppl", &ppl));
    dq_evaluator_free(e);
    return ppl;
}

typedef struct outcome {
    double ppl, error;
} outcome;

/* Runs what is left of the job and measures its model. */
static outcome finish(const place *p, dq_quantizer *q)
{
    outcome o;
    dq_model *model = NULL;
    OK(dq_quantizer_run(q, NULL, NULL, NULL));
    OK(dq_quantizer_get_float(q, "mean_error", &o.error));
    OK(dq_quantizer_take_model(q, &model));
    o.ppl = perplexity(p, model);
    dq_model_free(model);
    dq_quantizer_free(q);
    return o;
}

static outcome alone(const char *options)
{
    place p = open_place(options);
    outcome o = finish(&p, new_quantizer(&p));
    close_place(&p);
    return o;
}

/* The first run's outcome, kept for the tests that only need it to compare with. */
static outcome on_card(void)
{
    static outcome kept;
    if (kept.ppl == 0) kept = alone("");
    return kept;
}

static void assert_near(const char *what, double got, double want, double relative)
{
    print_message("%s: %.9g, wanted %.9g\n", what, got, want);
    if (!(fabs(got - want) <= relative * fabs(want)))
        fail_msg("%s: %.12g instead of %.12g: off by %.3g, allowed %.3g", what, got, want, fabs(got / want - 1),
                 relative);
}

/* A code at a rounding tie may fall to either side, and four-bit activations carry that on. */
static void assert_same_job(const char *what, outcome got, outcome want)
{
    assert_near(what, got.error, want.error, 1e-3);
    assert_near(what, got.ppl, want.ppl, 1e-2);
}

/* ---- the tests ---- */

static void same_bits_twice(void **state)
{
    (void)state;
    outcome first = on_card(), second = alone("");
    assert_true(first.ppl == second.ppl && first.error == second.error);
    assert_same_job("card and CPU", first, alone(NULL));
}

/* Both work a step at a time, in turn. */
static void two_contexts_on_one_card(void **state)
{
    (void)state;
    outcome want = on_card();
    place p[2] = {open_place(""), open_place("")};
    dq_quantizer *q[2] = {new_quantizer(&p[0]), new_quantizer(&p[1])};
    for (int i = 0; i < STEPS; i++)
        for (int k = 0; k < 2; k++) {
            int32_t done = 0;
            OK(dq_quantizer_step(q[k], NULL, NULL, NULL, &done));
        }
    for (int k = 0; k < 2; k++) {
        outcome got = finish(&p[k], q[k]);
        close_place(&p[k]);
        assert_true(got.ppl == want.ppl && got.error == want.error);
    }
}

/* STEPS steps on one device, the rest on the other. */
static outcome moved(const char *from, const char *to)
{
    place p = open_place(from);
    dq_quantizer *q = new_quantizer(&p);
    int32_t done = 0;
    OK(dq_quantizer_checkpoint(q, dir)); /* from here on codes are kept */
    for (int i = 0; i < STEPS; i++) OK(dq_quantizer_step(q, NULL, NULL, NULL, &done));
    OK(dq_quantizer_checkpoint(q, dir));
    dq_quantizer_free(q);
    close_place(&p);
    p = open_place(to);
    q = new_quantizer(&p);
    OK(dq_quantizer_restore(q, dir));
    outcome o = finish(&p, q);
    OK(dq_checkpoint_remove(p.ctx, dir));
    close_place(&p);
    return o;
}

static void checkpoints_wander(void **state)
{
    (void)state;
    outcome want = alone(NULL), here = on_card();
    assert_same_job("card, then CPU", moved("", NULL), want);
    assert_same_job("CPU, then card", moved(NULL, ""), want);
    outcome again = moved("", "");
    assert_true(again.ppl == here.ppl && again.error == here.error);
}

/* Inside the second layer of seven linears, or at the first event after it on a machine that is too quick to send one. */
static int32_t cancel_later(void *user, const dq_progress_event *event)
{
    (void)user;
    return event->index >= 9;
}

static void cancelled_in_mid_layer(void **state)
{
    (void)state;
    outcome want = on_card();
    place p = open_place("");
    dq_quantizer *q = new_quantizer(&p);
    assert_int_equal(dq_quantizer_run(q, NULL, cancel_later, NULL), DQ_E_CANCELLED);
    dq_quantizer_free(q);
    outcome got = finish(&p, new_quantizer(&p));
    close_place(&p);
    assert_true(got.ppl == want.ppl && got.error == want.error);
}

/* What was refused once may be had the next time, on the same context. */
static void refused_memory_is_forgotten(void **state)
{
    (void)state;
    outcome want = on_card();
    place p = open_place("fail_at=700");
    dq_quantizer *q = new_quantizer(&p);
    assert_int_equal(dq_quantizer_run(q, NULL, NULL, NULL), DQ_E_DEVICE_MEMORY);
    assert_non_null(strstr(dq_error_text(), "refused as asked for (allocation 700)"));
    dq_quantizer_free(q);
    outcome got = finish(&p, new_quantizer(&p));
    close_place(&p);
    assert_true(got.ppl == want.ppl && got.error == want.error);
}

static void wrong_index(void **state)
{
    (void)state;
    dq_context *ctx = NULL;
    assert_int_equal(context_on("device=99", NULL, &ctx), DQ_E_INVALID);
    assert_non_null(strstr(dq_error_text(), "there is no such card; this machine has"));
    assert_null(ctx);
}

int main(void)
{
    const char *name = getenv("DQ_TEST_FILTER"); /* that test alone */
    if (name && name[0]) cmocka_set_test_filter(name);
    const struct CMUnitTest tests[] = {cmocka_unit_test(same_bits_twice),
                                       cmocka_unit_test(two_contexts_on_one_card),
                                       cmocka_unit_test(checkpoints_wander),
                                       cmocka_unit_test(cancelled_in_mid_layer),
                                       cmocka_unit_test(refused_memory_is_forgotten),
                                       cmocka_unit_test(wrong_index)};
    return cmocka_run_group_tests(tests, set_up, clean_up);
}
