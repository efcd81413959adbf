/* Comparison with a reference model, through the public header: against PyTorch (tests/golden/make_compare.py), against
 * itself, kept in a file, step by step, from checkpoints. SPDX-License-Identifier: Apache-2.0 */
#include <math.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <cmocka.h>

#include "golden.h"
#include "host_model.h"
#include "scratch.h"

#define TINY "tests/data/tiny"
#define SETTINGS "seqlen=32 w_bits=4 w_rtn=true vocab_dtype=f32"

static const char *file(const char *name)
{
    static char paths[4][400];
    static int next;
    char *path = paths[next++ % 4];
    snprintf(path, sizeof paths[0], "%s/%s", scratch_dir(), name);
    return path;
}

/* The tiny model, the same with 4-bit weights, and the golden's tokens. */
typedef struct pair {
    dq_context *ctx;
    dq_config *config;
    dq_model *model, *four;
    dq_dataset *set;
    golden g;
} pair;

static const double *numbers(const pair *p, const char *name) { return golden_find(&p->g, name)->data; }

static pair open_pair(const char *backend, int threads)
{
    pair p = {.config = host_config(SETTINGS), .g = golden_load("compare_models")};
    dq_config *device = host_config(SETTINGS);
    dq_quantizer *q = NULL;
    char count[16];
    snprintf(count, sizeof count, "%d", threads);
    OK(dq_config_set(device, "backend", backend));
    OK(dq_config_set(device, "threads", count));
    OK(dq_context_new(device, NULL, &p.ctx));
    dq_config_free(device);
    OK(dq_model_open(p.ctx, TINY, &p.model));
    OK(dq_quantizer_new(p.model, p.config, &q));
    OK(dq_quantizer_run(q, NULL, NULL, NULL));
    OK(dq_quantizer_take_model(q, &p.four));
    dq_quantizer_free(q);
    const golden_array *ids = golden_find(&p.g, "ids");
    OK(dq_dataset_from_ids(p.ctx, ids->data, (size_t)ids->cols, "golden", &p.set));
    return p;
}

static void close_pair(pair *p)
{
    dq_dataset_free(p->set);
    dq_model_free(p->four);
    dq_model_free(p->model);
    dq_config_free(p->config);
    dq_context_free(p->ctx);
    golden_free(&p->g);
}

static double result(dq_evaluator *e, const char *key)
{
    double value = NAN;
    OK(dq_evaluator_get_float(e, key, &value));
    return value;
}

static dq_evaluator *evaluator_of(pair *p, dq_model *model)
{
    dq_evaluator *e = NULL;
    OK(dq_evaluator_new(model, p->config, &e));
    OK(dq_evaluator_bind(e, p->set));
    return e;
}

static dq_reference *reference_of(pair *p, double *ppl)
{
    dq_reference *r = NULL;
    dq_evaluator *e = evaluator_of(p, p->model);
    assert_int_equal(dq_evaluator_take_reference(e, &r), DQ_E_STATE);
    OK(dq_evaluator_keep_reference(e, 1));
    OK(dq_evaluator_run(e, NULL, NULL, NULL));
    if (ppl) *ppl = result(e, "ppl");
    OK(dq_evaluator_take_reference(e, &r));
    dq_reference *again = NULL;
    assert_int_equal(dq_evaluator_take_reference(e, &again), DQ_E_STATE);
    dq_evaluator_free(e);
    return r;
}

/* Mean over the positions that predict something. */
static double mean_of(const double *x)
{
    double sum = 0;
    for (int i = 0; i < 128; i++) sum += (i + 1) % 32 ? x[i] : 0;
    return sum / (4 * 31);
}

static void follows_pytorch(void **state)
{
    (void)state;
    static const char *const backends[] = {"cpu", "ref"};
    for (int i = 0; i < 2; i++) {
        pair p = open_pair(backends[i], 2);
        double ppl, largest = 0;
        int same = 0;
        dq_reference *r = reference_of(&p, &ppl);
        dq_evaluator *e = evaluator_of(&p, p.four);
        OK(dq_evaluator_set_reference(e, r));
        dq_reference_free(r); /* the evaluator keeps it */
        OK(dq_evaluator_run(e, NULL, NULL, NULL));
        for (int t = 0; t < 128; t++)
            if ((t + 1) % 32) {
                largest = fmax(largest, numbers(&p, "kl")[t]);
                same += ((const int32_t *)golden_find(&p.g, "same")->data)[t];
            }
        assert_true(fabs(ppl / exp(mean_of(numbers(&p, "nll"))) - 1) < 1e-5);
        assert_true(fabs(result(e, "ppl") / exp(mean_of(numbers(&p, "nll4"))) - 1) < 1e-5);
        assert_true(fabs(result(e, "kl") / mean_of(numbers(&p, "kl")) - 1) < 1e-4);
        assert_true(fabs(result(e, "kl_max") / largest - 1) < 1e-3);
        assert_true(fabs(result(e, "top1_agreement") - same / 124.0) < 1e-12);
        dq_evaluator_free(e);
        close_pair(&p);
    }
}

/* No divergence from itself, exactly; and the other results as without a reference. */
static void nothing_else_changes(void **state)
{
    (void)state;
    pair p = open_pair("cpu", 2);
    double ppl, alone = host_perplexity(p.four, p.config, p.set);
    dq_reference *r = reference_of(&p, &ppl);
    dq_evaluator *e = evaluator_of(&p, p.model), *f = evaluator_of(&p, p.four);
    double value;
    OK(dq_evaluator_set_reference(e, r));
    OK(dq_evaluator_run(e, NULL, NULL, NULL));
    assert_true(result(e, "kl") == 0 && result(e, "kl_max") == 0 && result(e, "top1_agreement") == 1);
    assert_true(result(e, "ppl") == ppl);
    OK(dq_evaluator_set_reference(f, r));
    OK(dq_evaluator_run(f, NULL, NULL, NULL));
    assert_true(result(f, "ppl") == alone && result(f, "kl") > 0 && result(f, "top1_agreement") < 1);
    OK(dq_evaluator_set_reference(f, NULL));
    OK(dq_evaluator_run(f, NULL, NULL, NULL));
    assert_true(result(f, "ppl") == alone);
    assert_int_equal(dq_evaluator_get_float(f, "kl", &value), DQ_E_NOTFOUND);
    dq_reference_free(r);
    dq_evaluator_free(e);
    dq_evaluator_free(f);
    close_pair(&p);
}

/* Any number of threads, run or stepped, from every checkpoint, with the reference kept or read from its file. */
static void same_bits_everywhere(void **state)
{
    (void)state;
    const char *saved = file("reference.safetensors"), *dir = file("checkpoint");
    double kl = 0, agreement = 0;
    for (int threads = 1; threads <= 3; threads++) {
        pair p = open_pair("cpu", threads);
        dq_reference *r = NULL;
        const char *report = NULL;
        if (threads == 1) {
            r = reference_of(&p, NULL);
            OK(dq_reference_save(r, saved));
        } else {
            OK(dq_reference_open(p.model, saved, &r));
        }
        OK(dq_reference_report(r, &report));
        assert_non_null(strstr(report, "\"ppl\""));
        dq_evaluator *e = evaluator_of(&p, p.four);
        OK(dq_evaluator_set_reference(e, r));
        int32_t done = 0;
        while (!done) {
            OK(dq_evaluator_step(e, NULL, NULL, NULL, &done));
            if (done) break;
            OK(dq_evaluator_checkpoint(e, dir));
            dq_evaluator *other = evaluator_of(&p, p.four);
            assert_int_equal(dq_evaluator_restore(other, dir), DQ_E_MISMATCH); /* without the reference */
            assert_non_null(strstr(dq_error_text(), "reference is "));
            dq_evaluator_free(e);
            e = other;
            OK(dq_evaluator_set_reference(e, r));
            OK(dq_evaluator_restore(e, dir));
        }
        if (threads == 1) {
            kl = result(e, "kl");
            agreement = result(e, "top1_agreement");
        }
        assert_true(result(e, "kl") == kl && result(e, "top1_agreement") == agreement);
        OK(dq_checkpoint_remove(p.ctx, dir));
        dq_evaluator_free(e);
        dq_reference_free(r);
        close_pair(&p);
    }
}

static void what_is_refused(void **state)
{
    (void)state;
    const char *saved = file("refused.safetensors");
    pair p = open_pair("cpu", 1);
    dq_reference *r = reference_of(&p, NULL), *again = NULL;
    dq_evaluator *e = NULL;
    dq_dataset *other = host_ids(p.ctx, 128);
    dq_config *shorter = host_config("seqlen=16");
    OK(dq_evaluator_new(p.four, p.config, &e));
    OK(dq_evaluator_set_reference(e, r));
    OK(dq_evaluator_bind(e, other)); /* as many tokens, but others */
    assert_int_equal(dq_evaluator_run(e, NULL, NULL, NULL), DQ_E_MISMATCH);
    assert_non_null(strstr(dq_error_text(), "other tokens"));
    dq_evaluator_free(e);
    OK(dq_evaluator_new(p.four, shorter, &e));
    OK(dq_evaluator_set_reference(e, r));
    OK(dq_evaluator_bind(e, p.set));
    assert_int_equal(dq_evaluator_run(e, NULL, NULL, NULL), DQ_E_MISMATCH);
    assert_non_null(strstr(dq_error_text(), "4 windows of 32 tokens, not 8 of 16"));
    dq_evaluator_free(e);
    OK(dq_evaluator_new_host(p.ctx, dq_model_vocab_size(p.model), p.config, &e));
    assert_int_equal(dq_evaluator_set_reference(e, r), DQ_E_STATE);
    assert_int_equal(dq_evaluator_keep_reference(e, 1), DQ_E_STATE);
    dq_evaluator_free(e);
    assert_int_equal(dq_reference_save(r, file("reference.bin")), DQ_E_INVALID);
    OK(dq_reference_save(r, saved));
    assert_int_equal(dq_reference_open(p.four, saved, &again), DQ_E_MISMATCH); /* of the model with 16 bits */
    if (!strstr(dq_error_text(), "codes is none there")) fail_msg("%s", dq_error_text());
    assert_int_equal(dq_reference_open(p.model, TINY "/model.safetensors", &again), DQ_E_FORMAT);
    FILE *f = fopen(saved, "r+b"); /* one bit of the last hidden state */
    assert_non_null(f);
    fseek(f, -4, SEEK_END);
    int byte = fgetc(f);
    fseek(f, -4, SEEK_END);
    fputc(byte ^ 1, f);
    fclose(f);
    assert_int_equal(dq_reference_open(p.model, saved, &again), DQ_E_FORMAT);
    assert_non_null(strstr(dq_error_text(), "hash"));
    assert_null(again);
    dq_config_free(shorter);
    dq_dataset_free(other);
    dq_reference_free(r);
    close_pair(&p);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(follows_pytorch),
        cmocka_unit_test(nothing_else_changes),
        cmocka_unit_test(same_bits_everywhere),
        cmocka_unit_test(what_is_refused),
    };
    return cmocka_run_group_tests_name("reference", tests, scratch_setup, scratch_teardown);
}
