/* Chat templates: every case of tests/data/chat/templates.json against jinja2, what is refused, hostile templates.
 * SPDX-License-Identifier: Apache-2.0 */
#include <jansson.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <cmocka.h>

#include "base/status.h"
#include "chat/chat.h"
#include "chat/template.h"
#include "comma_locale.h"
#include "paths.h"
#include "scratch.h"

static dq_env env;
static uint64_t at_start; /* bytes */

static dq_status render(const char *text, const json_t *values, char **out, size_t *bytes)
{
    dq_template *t = NULL;
    dq_status status = dq_template_parse(&env, text, strlen(text), &t);
    if (status == DQ_OK) status = dq_template_render(t, values, out, bytes);
    dq_template_free(t);
    return status;
}

static json_t *goldens(void)
{
    json_error_t error;
    json_t *root = json_load_file(test_data("chat/templates.json"), 0, &error);
    if (!root) fail_msg("%s", error.text);
    return root;
}

static void renders_as_jinja(void **state)
{
    (void)state;
    json_t *root = goldens(), *shared = json_object_get(root, "shared"), *one;
    size_t i;
    int wrong = 0;
    json_array_foreach(json_object_get(root, "cases"), i, one)
    {
        const json_t *values = json_object_get(one, "values"), *want = json_object_get(one, "text");
        char *text = NULL;
        size_t bytes = 0;
        dq_status status = render(json_string_value(json_object_get(one, "template")),
                                  json_is_string(values) ? shared : values, &text, &bytes);
        if (status != DQ_OK || bytes != json_string_length(want) || memcmp(text, json_string_value(want), bytes) != 0) {
            print_error("%s\n  want %s\n  got  %s\n", json_string_value(json_object_get(one, "name")),
                        json_string_value(want), status == DQ_OK ? text : dq_error_text());
            wrong++;
        }
        dq_free(text);
    }
    assert_true(i > 100);
    json_decref(root);
    assert_int_equal(wrong, 0);
}

static void refuses(void **state)
{
    (void)state;
    json_t *root = goldens(), *one;
    json_t *values = json_pack("{s:[{s:s, s:s}]}", "messages", "role", "user", "content", "hi");
    size_t i;
    int wrong = 0;
    json_array_foreach(json_object_get(root, "refused"), i, one)
    {
        const char *name = json_string_value(json_object_get(one, "status")), *template, *message;
        dq_status want = strcmp(name, "format") == 0    ? DQ_E_FORMAT
                         : strcmp(name, "invalid") == 0 ? DQ_E_INVALID
                                                        : DQ_E_UNSUPPORTED;
        char *text = NULL;
        size_t bytes = 0;
        template = json_string_value(json_object_get(one, "template"));
        message = json_string_value(json_object_get(one, "message"));
        dq_status status = render(template, values, &text, &bytes);
        if (status != want || !strstr(dq_error_text(), message) || !strstr(dq_error_text(), "chat template, line ")) {
            print_error("%s\n  want %s, %s\n  got  %d, %s\n", template, name, message, (int)status, dq_error_text());
            wrong++;
        }
        assert_null(text);
    }
    assert_true(i > 40);
    json_decref(values);
    json_decref(root);
    assert_int_equal(wrong, 0);
}

/* A template of `count` times `part`, as often `close`, between two ends. */
static char *repeated(const char *before, const char *part, const char *close, int count, const char *after)
{
    size_t n = strlen(part), m = strlen(close);
    char *text = malloc(strlen(before) + (n + m) * (size_t)count + strlen(after) + 1), *at = text;
    assert_non_null(text);
    at += sprintf(at, "%s", before);
    for (int i = 0; i < count; i++, at += n) memcpy(at, part, n);
    for (int i = 0; i < count; i++, at += m) memcpy(at, close, m);
    strcpy(at, after);
    return text;
}

static void expect_refusal(const char *template, dq_status want, const char *message)
{
    json_t *values = json_pack("{s:[i, i]}", "messages", 1, 2);
    char *text = NULL;
    size_t bytes = 0;
    dq_status status = render(template, values, &text, &bytes);
    if (status != want || !strstr(dq_error_text(), message))
        fail_msg("%.80s: status %d, %s", template, (int)status, dq_error_text());
    json_decref(values);
}

/* Every template ends, in little time and memory. */
static void hostile(void **state)
{
    (void)state;
    static const char *const cases[] = {
        "{% for a in range(99999) %}{% for b in range(99999) %}{% endfor %}{% endfor %}",
        "{% for a in range(99999) %}{% for b in range(99999) %}x{% endfor %}{% endfor %}",
        "{% macro f() %}{{ f() }}{% endmacro %}{{ f() }}",
        "{% macro f(n) %}{{ g(n) }}{% endmacro %}{% macro g(n) %}{{ f(n + 1) }}{% endmacro %}{{ f(0) }}",
        "{{ 'x' * 99999999999 }}",
        "{{ [1] * 9999999999999999 }}",
        "{{ 1 ** 9223372036854775807 }}",
        "{% set ns = namespace(s='xxxxxxxxxxxxxxxx') %}{% for i in range(60) %}{% set ns.s = ns.s ~ ns.s %}{% endfor %}",
        "{% set ns = namespace(s=[1]) %}{% for i in range(60) %}{% set ns.s = ns.s + ns.s %}{% endfor %}",
        "{% set ns = namespace(s=[1]) %}{% for i in range(900) %}{% set ns.s = [ns.s] %}{% endfor %}{{ ns.s }}",
        "{% set ns = namespace(s=[1]) %}{% for i in range(900) %}{% set ns.s = [ns.s] %}{% endfor %}{{ ns.s | tojson }}",
        "{% set ns = namespace(s=[1], t=[1]) %}{% for i in range(900) %}{% set ns.s = [ns.s] %}{% set ns.t = [ns.t] %}"
        "{% endfor %}{{ ns.s == ns.t }}",
        "{{ range(9223372036854775807) }}",
        "{% for i in range(99999) %}{{ ('x' * 30000000).find('xy') }}{% endfor %}",
        "{% set s = 'x' * 30000000 %}{% for i in range(99999) %}{{ s.find('xy') }}{% endfor %}",
        "{% set s = 'x' * 10000000 %}{% for i in range(99999) %}{{ s == s ~ '' }}{% endfor %}",
        "{{ ('ab' * 9999999).replace('', 'xxxxxxxxxxxxxxxxxxxxxxxxx') }}",
        "{{ ' ' * 1000000 | indent(99999999) }}",
        "{{ ('x' * 4000000).rfind('x' * 2000000 ~ 'y') }}",
        "{{ ('x' * 4000000).rsplit('x' * 2000000 ~ 'y') }}",
    };
    for (size_t i = 0; i < sizeof cases / sizeof *cases; i++) /* the bound that is met first */
        expect_refusal(cases[i], DQ_E_INVALID, " than ");
    expect_refusal("{{ '' * 9223372036854775807 }}{{ [] * 9223372036854775807 }}{{ 2 ** 9223372036854775807 }}",
                   DQ_E_UNSUPPORTED, "64 bits");
    expect_refusal("{{ (-9223372036854775807 - 1) | abs }}", DQ_E_UNSUPPORTED, "64 bits");
}

static void nested(void **state)
{
    (void)state;
    static const struct {
        const char *before, *part, *close, *after;
        int count;
        dq_status status;
        const char *message;
    } cases[] = {
        {"{{ ", "(", ")", "}}", 90, DQ_E_FORMAT, "nested deeper"},
        {"{{ ", "(", ")", "}}", 300, DQ_E_FORMAT, "nested too deep"},
        {"{{ ", "[", "]", "}}", 90, DQ_E_FORMAT, "nested deeper"},
        {"{{ ", "not ", "", "x }}", 1000, DQ_E_FORMAT, "nested deeper"},
        {"{{ ", "- ", "", "1 }}", 1000, DQ_E_FORMAT, "nested deeper"},
        {"{{ 1", " if 1 else 1", "", " }}", 1000, DQ_E_FORMAT, "nested deeper"},
        {"", "{% if 1 %}", "", "", 1000, DQ_E_FORMAT, "nested deeper"},
        {"{{ 1", " + 1", "", " }}", 1000, DQ_E_INVALID, "deeper"},
        {"{{ 1", "|string", "", " }}", 1000, DQ_E_INVALID, "deeper"},
        {"{{ messages", "[0]", "", " }}", 1000, DQ_E_INVALID, "deeper"},
        {"", "{% if 0 %}", "", "", 1, DQ_E_FORMAT, "ends where"},
        {"", "xxxxxxxxxxxxxxxx", "", "", 70000, DQ_E_FORMAT, "1048576"},
    };
    for (size_t i = 0; i < sizeof cases / sizeof *cases; i++) {
        char *text = repeated(cases[i].before, cases[i].part, cases[i].close, cases[i].count, cases[i].after);
        expect_refusal(text, cases[i].status, cases[i].message);
        free(text);
    }
    const char bad[] = "a\xff";
    dq_template *t = NULL;
    assert_int_equal(dq_template_parse(&env, bad, 2, &t), DQ_E_FORMAT);
    assert_non_null(strstr(dq_error_text(), "byte 1"));
    assert_null(t);
}

/* Every prefix of every template, and every template with a byte changed, is rendered or refused. */
static void damaged(void **state)
{
    (void)state;
    json_t *root = goldens(), *one;
    size_t i;
    unsigned random = 1;
    json_array_foreach(json_object_get(root, "cases"), i, one)
    {
        const json_t *values = json_object_get(one, "values");
        char *copy = strdup(json_string_value(json_object_get(one, "template")));
        size_t size = strlen(copy);
        if (json_is_string(values)) values = json_object_get(root, "shared");
        for (size_t n = 0; n < size; n += 1 + size / 60) {
            char kept = copy[n], *text = NULL;
            size_t bytes = 0;
            copy[n] = '\0';
            if (render(copy, values, &text, &bytes) == DQ_OK) dq_free(text);
            random = random * 1664525 + 1013904223;
            copy[n] = "{}%#-+'\"()[]|.,:=~*/<> xif0\\"[random >> 16 & 27];
            text = NULL;
            if (render(copy, values, &text, &bytes) == DQ_OK) dq_free(text);
            copy[n] = kept;
        }
        free(copy);
    }
    json_decref(root);
}

/* ---- conversations ---- */

static const char *const chat_template =
    "{{ bos_token }}{% for m in messages %}<{{ m.role }}>{{ m.content | default('-') }}{{ eos_token }}{% endfor %}"
    "{% if tools %}{{ tools | length }} tools{% endif %}{{ name }}{% if add_generation_prompt %}<model>{% endif %}";

/* The tiny tokenizer with a configuration of ours; NULL when it does not open. */
static dq_tokenizer *with_config(json_t *config)
{
    char command[700], *text = json_dumps(config, 0);
    dq_tokenizer *t = NULL;
    snprintf(command, sizeof command, "cp tests/data/tiny/tokenizer.json '%s'", scratch_dir());
    assert_int_equal(system(command), 0);
    scratch_write("tokenizer_config.json", text, 0);
    free(text);
    json_decref(config);
    return dq_tokenizer_open_path(&env, scratch_dir(), &t) == DQ_OK ? t : NULL;
}

static void expect_chat(const dq_tokenizer *t, const char *template, const char *messages, const char *variables,
                        bool prompt, const char *want)
{
    char *text = NULL;
    size_t bytes = 0;
    if (dq_chat_apply(t, template, messages, variables, prompt, &text, &bytes) != DQ_OK)
        fail_msg("%s", dq_error_text());
    assert_string_equal(text, want);
    assert_int_equal(bytes, strlen(want));
    dq_free(text);
}

#define HI "[{\"role\": \"user\", \"content\": \"hi\"}, {\"role\": \"tool\", \"content\": null}]"

static void conversations(void **state)
{
    (void)state;
    assert_int_equal(scratch_open(), 0);
    json_t *config = json_pack("{s:s, s:{s:s}, s:s}", "bos_token", "<s>", "eos_token", "content", "</s>",
                               "chat_template", chat_template);
    dq_tokenizer *t = with_config(config);
    expect_chat(t, NULL, HI, NULL, true, "<s><user>hi</s><tool>-</s><model>");
    expect_chat(t, NULL, HI, "{\"name\": \"N\", \"eos_token\": \".\", \"tools\": [1]}", false,
                "<s><user>hi.<tool>-.1 toolsN");
    expect_chat(t, "default", HI, NULL, false, "<s><user>hi</s><tool>-</s>");
    expect_chat(t, "{{ messages | length }}", HI, NULL, false, "2");
    char *text = NULL;
    size_t bytes = 0;
    static const char *const wrong[] = {"", "{}", "[]", "[1]", "[{\"content\": \"x\"}]", "[{\"role\": 1}]", "[{]"};
    for (size_t i = 0; i < sizeof wrong / sizeof *wrong; i++)
        assert_int_equal(dq_chat_apply(t, NULL, wrong[i], NULL, true, &text, &bytes), DQ_E_INVALID);
    assert_int_equal(dq_chat_apply(t, NULL, HI, "[]", true, &text, &bytes), DQ_E_INVALID);
    assert_int_equal(dq_chat_apply(t, "{% block %}", HI, NULL, true, &text, &bytes), DQ_E_UNSUPPORTED);
    assert_null(text);
    dq_tokenizer_destroy(t);
    /* Templates by name, and a file that comes before them. */
    config = json_pack("{s:[{s:s, s:s}, {s:s, s:s}]}", "chat_template", "name", "default", "template", "plain", "name",
                       "tool_use", "template", "with {{ tools | length }}");
    t = with_config(config);
    expect_chat(t, NULL, HI, NULL, true, "plain");
    expect_chat(t, NULL, HI, "{\"tools\": [1, 2]}", true, "with 2");
    expect_chat(t, "tool_use", HI, "{\"tools\": [1]}", true, "with 1");
    dq_tokenizer_destroy(t);
    scratch_write("chat_template.jinja", "from a file\n", 0);
    t = with_config(json_pack("{s:s}", "chat_template", "from the configuration"));
    expect_chat(t, NULL, HI, NULL, true, "from a file");
    dq_tokenizer_destroy(t);
    assert_null(with_config(json_pack("{s:i}", "chat_template", 1)));
    assert_null(with_config(json_pack("{s:[s]}", "chat_template", "x")));
    assert_non_null(strstr(dq_error_text(), "chat_template 0"));
    scratch_close();
    if (dq_tokenizer_open_path(&env, test_data("tiny"), &t) != DQ_OK) fail_msg("%s", dq_error_text());
    assert_int_equal(dq_chat_apply(t, NULL, HI, NULL, true, &text, &bytes), DQ_E_NOTFOUND);
    dq_tokenizer_destroy(t);
}

/* A real model's template from a GGUF file: the ids are transformers'. */
static void smollm2(void **state)
{
    (void)state;
    const char *path = getenv("DQ_SMOLLM2");
    json_t *cases = json_load_file(test_data("chat/smollm2.json"), 0, NULL), *one;
    dq_tokenizer *t = NULL;
    size_t i, bytes = 0;
    assert_non_null(cases);
    if (!path || dq_tokenizer_open_path(&env, path, &t) != DQ_OK) {
        print_message("note: DQ_SMOLLM2 names no SmolLM2-135M-Instruct GGUF file, test passed over\n");
        json_decref(cases);
        skip();
    }
    json_array_foreach(cases, i, one)
    {
        char *messages = json_dumps(json_object_get(one, "messages"), 0), *text = NULL;
        const json_t *want = json_object_get(one, "ids");
        dq_ids ids = {0};
        assert_int_equal(
            dq_chat_apply(t, NULL, messages, NULL, json_is_true(json_object_get(one, "prompt")), &text, &bytes), DQ_OK);
        assert_int_equal(dq_tokenizer_encode_text(t, text, bytes, false, true, &ids), DQ_OK);
        assert_int_equal(ids.count, json_array_size(want));
        for (size_t k = 0; k < ids.count; k++)
            assert_int_equal(ids.data[k], json_integer_value(json_array_get(want, k)));
        dq_free(ids.data);
        dq_free(text);
        free(messages);
    }
    assert_true(i == 6);
    dq_tokenizer_destroy(t);
    json_decref(cases);
}

/* Fractions have a point, whatever the host's locale writes. */
static void locale_does_not_matter(void **state)
{
    (void)state;
    json_t *values = json_pack("{s:f}", "x", -0.25);
    char *text = NULL;
    size_t bytes = 0;
    if (!comma_locale_enter()) skip();
    dq_status status =
        render("{{ 1.5 }} {{ 12.5e20 }} {{ '2.5'|float }} {{ '2.5'|int }} {{ x|tojson }} {{ '2,5'|float }}", values,
               &text, &bytes);
    comma_locale_leave();
    assert_int_equal(status, DQ_OK);
    assert_string_equal(text, "1.5 1.25e+21 2.5 2 -0.25 0.0");
    dq_free(text);
    json_decref(values);
}

static int open_env(void **state)
{
    (void)state;
    if (dq_env_init(&env, NULL, 1) != DQ_OK) return -1;
    at_start = atomic_load(&env.memory_now);
    return 0;
}

static int close_env(void **state)
{
    (void)state;
    assert_int_equal(atomic_load(&env.memory_now), at_start);
    dq_env_clear(&env);
    return 0;
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(renders_as_jinja), cmocka_unit_test(refuses),
        cmocka_unit_test(hostile),          cmocka_unit_test(nested),
        cmocka_unit_test(damaged),          cmocka_unit_test(conversations),
        cmocka_unit_test(smollm2),          cmocka_unit_test(locale_does_not_matter),
    };
    return cmocka_run_group_tests_name("chat", tests, open_env, close_env);
}
