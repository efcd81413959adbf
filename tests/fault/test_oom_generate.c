/* Generation and chat templates with a host's allocator that refuses: each failing point gives DQ_E_NOMEM and leaks nothing;
 * a generator whose step failed goes on to the same ids once there is memory again. SPDX-License-Identifier: Apache-2.0 */
#include <setjmp.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <cmocka.h>

#include "dartquant.h"
#include "ok.h"
#include "refusing_heap.h"

#define MODEL "tests/data/tiny"
enum { NEW = 6 };

typedef struct objects {
    dq_config *config;
    dq_context *ctx;
    dq_model *model;
    dq_tokenizer *tokenizer;
    dq_generator *generator;
    char text[200];
    int32_t ids[2][NEW];
} objects;

static dq_status prepare(objects *o, const char *kv)
{
    static const int32_t prompt[] = {11, 5, 300, 42, 7};
    const char template[] = "{% macro f(x) %}{{ x | upper }}{% endmacro %}{% for m in messages %}"
                            "{{ f(m.role) ~ m.content.split(' ') | join('-') }}{{ m | tojson }}{% endfor %}";
    dq_services services = {.struct_size = sizeof services, .abi = 1, .allocator = {refuse_alloc, refuse_free, NULL}};
    size_t n = 0;
    TRY(dq_config_new(&o->config));
    TRY(dq_config_set(o->config, "threads", "1"));
    TRY(dq_config_set(o->config, "max_tokens", "6"));
    TRY(dq_config_set(o->config, "ignore_eos", "true"));
    TRY(dq_config_set(o->config, "kv", kv));
    TRY(dq_config_set(o->config, "temperature", "0.7"));
    TRY(dq_context_new(o->config, &services, &o->ctx));
    TRY(dq_model_open(o->ctx, MODEL, &o->model));
    TRY(dq_tokenizer_open(o->ctx, MODEL, &o->tokenizer));
    TRY(dq_tokenizer_render_chat(o->tokenizer, template, "[{\"role\": \"user\", \"content\": \"a b\"}]", NULL,
                                 DQ_CHAT_GENERATION_PROMPT, o->text, sizeof o->text, &n));
    TRY(dq_generator_new(o->model, o->tokenizer, o->config, &o->generator));
    TRY(dq_generator_add(o->generator, prompt, 5, NULL));
    TRY(dq_generator_add(o->generator, prompt + 2, 3, NULL));
    TRY(dq_generator_add_stop(o->generator, "never in there"));
    return dq_generator_add_stop_id(o->generator, 511);
}

/* Steps to the end. A step that fails is tried again where the refusal was for once; *failed counts them. */
static dq_status finish(objects *o, int again, int *failed)
{
    size_t n = 0;
    for (int32_t done = 0; !done;) {
        dq_status status = dq_generator_step(o->generator, NULL, NULL, NULL, &done);
        if (status != DQ_OK && (status != DQ_E_NOMEM || !again || ++*failed > 3)) return status;
    }
    for (int i = 0; i < 2; i++) TRY(dq_generator_copy_ids(o->generator, i, o->ids[i], NEW, &n));
    return DQ_OK;
}

static void free_all(objects *o)
{
    dq_generator_free(o->generator);
    dq_tokenizer_free(o->tokenizer);
    dq_model_free(o->model);
    dq_context_free(o->ctx);
    dq_config_free(o->config);
}

/* With the n-th allocation refused; whether it was reached. */
static int run_once(long n, int for_good, const char *kv, const objects *expected, int *resumed)
{
    objects o = {0};
    int failed = 0;
    heap.calls = 0;
    heap.fail_at = n;
    heap.for_good = for_good;
    dq_status status = prepare(&o, kv);
    int prepared = status == DQ_OK;
    if (prepared) status = finish(&o, !for_good, &failed);
    int reached = heap.calls >= n;
    if (reached && status == DQ_OK && for_good) fail_msg("allocation %ld refused for good, and nobody noticed", n);
    if (status != DQ_OK && (status != DQ_E_NOMEM || dq_error_last() != status))
        fail_msg("allocation %ld refused: status %d, %s", n, (int)status, dq_error_text());
    if (prepared && !for_good && status != DQ_OK) fail_msg("allocation %ld refused once: it did not go on", n);
    if (prepared && status == DQ_OK && memcmp(o.ids, expected->ids, sizeof o.ids) != 0)
        fail_msg("allocation %ld refused changed the ids", n);
    *resumed += failed > 0 && status == DQ_OK;
    free_all(&o);
    if (heap.live != 0) fail_msg("allocation %ld refused: %ld blocks leaked", n, heap.live);
    return reached;
}

static void sweep(const char *kv, int for_good)
{
    objects o = {0};
    int failed = 0, resumed = 0;
    long points = 0;
    heap.fail_at = 0;
    assert_int_equal(prepare(&o, kv), DQ_OK);
    assert_int_equal(finish(&o, 0, &failed), DQ_OK);
    assert_string_equal(o.text, "USERa-b{\"role\": \"user\", \"content\": \"a b\"}");
    objects expected = o;
    free_all(&o);
    assert_int_equal(heap.live, 0);
    for (long n = 1; run_once(n, for_good, kv, &expected, &resumed); n += 1 + n / 150) points++;
    assert_true(points > 150);
    assert_true(for_good || resumed > 20);
}

static void once(void **state)
{
    (void)state;
    sweep("f32", 0);
}

static void once_with_codes(void **state)
{
    (void)state;
    sweep("int4", 0);
}

static void for_good(void **state)
{
    (void)state;
    sweep("fp8", 1);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(once),
        cmocka_unit_test(once_with_codes),
        cmocka_unit_test(for_good),
    };
    return cmocka_run_group_tests_name("oom_generate", tests, NULL, NULL);
}
