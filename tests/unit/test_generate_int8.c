/* int8_products: packed linears that round their inputs, through whole passes of the model.
 * SPDX-License-Identifier: Apache-2.0 */
#include <math.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stdlib.h>
#include <string.h>
#include <cmocka.h>

#include "base/status.h"
#include "generate/job.h"
#include "models.h"

enum { PROMPT = 24, FIRST = 8, NEW = 12 };

static void ok(dq_status status)
{
    if (status != DQ_OK) print_message("%s\n", dq_error_text());
    assert_int_equal(status, DQ_OK);
}

/* A tiny model with codes of every linear; `bits` 16: without. */
typedef struct setting {
    const char *device;
    int threads, bits;
    bool symmetric, g_idx;
    int64_t group;
} setting;

typedef struct subject {
    fixture f;
    dq_model *base, *model;
} subject;

static void open_subject(subject *s, const setting *c)
{
    dq_scheme scheme = plain_scheme();
    fixture_open(&s->f, c->device, c->threads);
    s->base = open_tiny(&s->f, "mha");
    s->model = NULL;
    if (c->bits == 16) {
        s->model = dq_model_retain(s->base);
        return;
    }
    scheme.w.bits = c->bits;
    ok(dq_model_derive_quantized(s->base, quantize_to_memory(&s->f, s->base, c->bits, c->symmetric, c->group, c->g_idx),
                                 &scheme, &s->model));
}

static void close_subject(subject *s)
{
    dq_model_release(s->model);
    dq_model_release(s->base);
    fixture_close(&s->f);
}

static dq_generate_job *start(dq_model *model, int math, int head_bits, int64_t prefill, int prompts)
{
    dq_generate_spec spec = {.max_tokens = NEW,
                             .prefill = prefill,
                             .sampling = {.top_p = 1},
                             .head_bits = head_bits,
                             .math = math,
                             .ignore_eos = true};
    dq_generate_job *job = NULL;
    int32_t ids[PROMPT];
    ok(dq_generate_job_new(model, NULL, &spec, &job));
    for (int i = 0; i < PROMPT; i++) ids[i] = (i * 17 + 5) % 96;
    for (int i = 0; i < prompts; i++) ok(dq_generate_add(job, ids + i, PROMPT - i, NULL));
    return job;
}

static dq_status run(dq_generate_job *job)
{
    dq_status status = DQ_OK;
    for (bool done = false; status == DQ_OK && !done;) status = dq_generate_step(job, NULL, NULL, NULL, &done);
    return status;
}

/* Logits of the prompt's tokens from FIRST on, which go through the model together after the first ones. */
static float *logits_after(dq_model *model, int math, int64_t *count)
{
    dq_generate_job *job = start(model, math, 16, FIRST, 1);
    dq_pass_row rows[PROMPT - FIRST];
    float *logits = NULL, *copy;
    bool done = false;
    while (job->stats.prompt_tokens < FIRST) ok(dq_generate_step(job, NULL, NULL, NULL, &done));
    for (int i = FIRST; i < PROMPT; i++) rows[i - FIRST] = (dq_pass_row){0, i, job->sequences[0].ids[i], true};
    ok(dq_generate_pass(job, rows, PROMPT - FIRST, NULL, &logits));
    *count = (PROMPT - FIRST) * dq_model_arch(model)->vocab;
    copy = malloc((size_t)*count * sizeof *copy);
    memcpy(copy, logits, (size_t)*count * sizeof *copy);
    dq_free(logits);
    dq_generate_job_free(job);
    return copy;
}

static double largest(const float *x, int64_t n)
{
    double top = 0;
    for (int64_t i = 0; i < n; i++) {
        assert_true(isfinite(x[i]));
        if (fabsf(x[i]) > top) top = fabsf(x[i]);
    }
    return top;
}

static const setting possible[] = {{"cpu", 2, 4, true, false, 32},
                                   {"cpu", 2, 4, false, false, 32},
                                   {"cpu", 2, 8, true, false, -1},
                                   {"cpu", 2, 3, false, true, 32},
                                   {"cpu", 2, 8, false, false, 32}};
enum { POSSIBLE = sizeof possible / sizeof possible[0] };

/* Rounding by at most 1/254 of the largest of 32 inputs moves logits by a few percent of the largest at most, and does move them; the
 * reference rounds alike. */
static void band(void **state)
{
    (void)state;
    for (int i = 0; i < POSSIBLE; i++) {
        setting c = possible[i];
        int64_t n = 0;
        float *rounded[2], *plain = NULL;
        for (int ref = 1; ref >= 0; ref--) {
            subject s;
            if (ref) c.device = "ref";
            open_subject(&s, &c);
            rounded[ref] = logits_after(s.model, DQ_MATH_INT8, &n);
            if (!ref) plain = logits_after(s.model, DQ_MATH_F32, &n);
            close_subject(&s);
            c = possible[i];
        }
        double top = largest(plain, n), moved = max_difference(rounded[0], plain, n);
        double apart = max_difference(rounded[0], rounded[1], n);
        largest(rounded[0], n);
        if (!(moved > 1e-5 * top && moved < 0.05 * top && apart < 0.3 * moved))
            print_error("case %d: logits up to %g moved by %g, reference %g apart\n", i, top, moved, apart);
        assert_true(moved > 1e-5 * top);
        assert_true(moved < 0.05 * top);
        assert_true(apart < 0.3 * moved);
        free(rounded[0]);
        free(rounded[1]);
        free(plain);
    }
}

/* The same tokens for every number of threads, alone and beside other sequences; each the most likely one, or nearly, for
 * exact products. */
static void tokens(void **state)
{
    (void)state;
    for (int i = 0; i < POSSIBLE; i++) {
        int32_t want[NEW];
        for (int threads = 1; threads <= 3; threads++) {
            setting c = possible[i];
            subject s;
            c.threads = threads;
            open_subject(&s, &c);
            dq_generate_job *job = start(s.model, DQ_MATH_INT8, 16, 11, threads);
            ok(run(job));
            const int32_t *new = job->sequences[0].ids + PROMPT;
            if (threads == 1)
                memcpy(want, new, sizeof want);
            else
                assert_memory_equal(new, want, sizeof want);
            int64_t vocab = dq_model_arch(s.model)->vocab, count = PROMPT + NEW - 1;
            float *logits = malloc((size_t)(count * vocab) * sizeof *logits);
            ok(dq_model_forward_logits(s.model, job->sequences[0].ids, count, DQ_MATH_F32, logits));
            double top = largest(logits, count * vocab);
            for (int k = 0; k < NEW; k++) {
                const float *row = logits + (PROMPT - 1 + k) * vocab;
                float best = row[0];
                for (int64_t v = 1; v < vocab; v++) best = fmaxf(best, row[v]);
                assert_true(best - row[new[k]] < 0.1 * top); /* both may have moved by the band */
            }
            free(logits);
            dq_generate_job_free(job);
            close_subject(&s);
        }
    }
}

/* A prompt in one piece of 24 rows or more is not rounded: the same logits as without. */
static void long_pieces(void **state)
{
    (void)state;
    int32_t first[2];
    subject s;
    open_subject(&s, &possible[0]);
    for (int i = 0; i < 2; i++) {
        dq_generate_job *job = start(s.model, i ? DQ_MATH_INT8 : DQ_MATH_F32, 16, PROMPT, 1);
        dq_pass_row rows[PROMPT];
        float *logits = NULL;
        static float kept[128];
        bool done = false;
        while (job->stats.prompt_tokens < PROMPT) ok(dq_generate_step(job, NULL, NULL, NULL, &done));
        first[i] = job->sequences[0].ids[PROMPT];
        for (int k = 0; k < PROMPT; k++) rows[k] = (dq_pass_row){0, k, job->sequences[0].ids[k], k == PROMPT - 1};
        ok(dq_generate_pass(job, rows, PROMPT, NULL, &logits));
        size_t bytes = (size_t)dq_model_arch(s.model)->vocab * sizeof *logits;
        assert_true(bytes <= sizeof kept);
        if (i == 0) memcpy(kept, logits, bytes);
        if (i == 1) assert_memory_equal(kept, logits, bytes);
        dq_free(logits);
        dq_generate_job_free(job);
    }
    assert_int_equal(first[0], first[1]);
    close_subject(&s);
}

static void expect_refusal(const setting *c, int head_bits, const char *words)
{
    subject s;
    open_subject(&s, c);
    dq_generate_job *job = start(s.model, DQ_MATH_INT8, head_bits, 64, 1);
    for (int again = 0; again < 2; again++) { /* also when asked once more */
        assert_int_equal(run(job), DQ_E_UNSUPPORTED);
        if (!strstr(dq_error_text(), words)) print_error("%s\n", dq_error_text());
        assert_non_null(strstr(dq_error_text(), words));
    }
    assert_int_equal(job->stats.tokens, 0);
    dq_generate_job_free(job);
    close_subject(&s);
}

/* Where no linear can round its input the option would change nothing: refused with the numbers. */
static void refused(void **state)
{
    (void)state;
    expect_refusal(
        &(setting){"cpu", 1, 16, true, false, -1}, 16,
        "int8_products: none of the model's 14 linears can have them: 14 hold no integer codes, 0 have groups");
    expect_refusal(&(setting){"cpu", 1, 4, true, false, 16}, 16,
                   "int8_products: none of the model's 8 linears can have them: 0 hold no integer codes, 8 have groups "
                   "that are no multiple of 32 columns");
    subject s; /* a head of codes alone is enough */
    open_subject(&s, &(setting){"cpu", 1, 16, true, false, -1});
    dq_generate_job *job = start(s.model, DQ_MATH_INT8, 8, 64, 1);
    ok(run(job));
    assert_int_equal(job->stats.tokens, NEW);
    dq_generate_job_free(job);
    close_subject(&s);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(band),
        cmocka_unit_test(tokens),
        cmocka_unit_test(long_pieces),
        cmocka_unit_test(refused),
    };
    return cmocka_run_group_tests_name("generate_int8", tests, NULL, NULL);
}
