/* Reading tokenizer files with errors that name the place. SPDX-License-Identifier: Apache-2.0 */
#include <stdarg.h>
#include <stdio.h>

#include "base/status.h"
#include "text/parts.h"

dq_json_at dq_at_key(const dq_json_at *at, const char *key)
{
    dq_json_at below = *at;
    below.depth++;
    snprintf(below.where, sizeof below.where, "%.200s.%.50s", at->where, key);
    return below;
}

dq_json_at dq_at_index(const dq_json_at *at, size_t i)
{
    dq_json_at below = *at;
    snprintf(below.where, sizeof below.where, "%.220s[%zu]", at->where, i);
    return below;
}

dq_status dq_at_fail(const dq_json_at *at, dq_status status, const char *fmt, ...)
{
    char text[512];
    va_list list;
    va_start(list, fmt);
    vsnprintf(text, sizeof text, fmt, list);
    va_end(list);
    return dq_error_in_file(dq_fail(status, "%s: %s", at->where, text), at->file);
}

/* The member, NULL when absent or null. */
static const json_t *member(const json_t *object, const char *key)
{
    const json_t *value = json_object_get(object, key);
    return json_is_null(value) ? NULL : value;
}

dq_status dq_at_string(const dq_json_at *at, const json_t *object, const char *key, bool required, const char **out,
                       size_t *bytes)
{
    const json_t *value = member(object, key);
    if (!value && !required) return DQ_OK;
    if (!value) return dq_at_fail(at, DQ_E_FORMAT, "member '%s' is missing", key);
    if (!json_is_string(value)) return dq_at_fail(at, DQ_E_FORMAT, "member '%s' is not a string", key);
    *out = json_string_value(value);
    if (bytes) *bytes = json_string_length(value);
    return DQ_OK;
}

dq_status dq_at_bool(const dq_json_at *at, const json_t *object, const char *key, bool fallback, bool *out)
{
    const json_t *value = member(object, key);
    if (value && !json_is_boolean(value)) return dq_at_fail(at, DQ_E_FORMAT, "member '%s' is not true or false", key);
    *out = value ? json_is_true(value) : fallback;
    return DQ_OK;
}

dq_status dq_at_int(const dq_json_at *at, const json_t *object, const char *key, int64_t min, int64_t max, int64_t *out)
{
    const json_t *value = member(object, key);
    if (!value) return dq_at_fail(at, DQ_E_FORMAT, "member '%s' is missing", key);
    if (!json_is_integer(value)) return dq_at_fail(at, DQ_E_FORMAT, "member '%s' is not an integer", key);
    int64_t number = json_integer_value(value);
    if (number < min || number > max)
        return dq_at_fail(at, DQ_E_FORMAT, "member '%s' is %lld, outside of %lld..%lld", key, (long long)number,
                          (long long)min, (long long)max);
    *out = number;
    return DQ_OK;
}

dq_status dq_at_array(const dq_json_at *at, const json_t *object, const char *key, const json_t **out)
{
    const json_t *value = member(object, key);
    if (!value) return dq_at_fail(at, DQ_E_FORMAT, "member '%s' is missing", key);
    if (!json_is_array(value)) return dq_at_fail(at, DQ_E_FORMAT, "member '%s' is not an array", key);
    *out = value;
    return DQ_OK;
}

dq_status dq_at_pattern(const dq_json_at *at, const json_t *object, const char *key, dq_pattern **out)
{
    const json_t *value = member(object, key);
    dq_json_at below = dq_at_key(at, key);
    if (!json_is_object(value))
        return dq_at_fail(&below, DQ_E_FORMAT, "a pattern {\"String\": ...} or {\"Regex\": ...} is needed");
    const char *text = NULL;
    size_t bytes = 0;
    DQ_TRY(dq_at_string(&below, value, "String", false, &text, &bytes));
    if (text) return dq_pattern_literal(at->env, text, bytes, out);
    DQ_TRY(dq_at_string(&below, value, "Regex", true, &text, &bytes));
    return dq_pattern_regex(at->env, text, bytes, at->file, below.where, out);
}

dq_status dq_chain_add(dq_chain *chain, dq_step step)
{
    dq_step *bigger = dq_realloc(chain->env, chain->steps, (chain->count + 1) * sizeof step);
    if (!bigger) {
        dq_pattern_free(step.pattern);
        dq_free(step.text);
        return DQ_E_NOMEM;
    }
    chain->steps = bigger;
    bigger[chain->count++] = step;
    return DQ_OK;
}

dq_status dq_chain_take(dq_chain *chain, dq_step step, dq_status status)
{
    if (status == DQ_OK) return dq_chain_add(chain, step);
    dq_pattern_free(step.pattern);
    dq_free(step.text);
    return status;
}

dq_status dq_chain_read(const dq_json_at *at, const json_t *json, const char *list_key, dq_step_reader read,
                        dq_chain *chain)
{
    if (!json || json_is_null(json)) return DQ_OK;
    const char *type = NULL;
    if (at->depth > DQ_MAX_NESTING) return dq_at_fail(at, DQ_E_FORMAT, "nested too deep");
    DQ_TRY(dq_at_string(at, json, "type", true, &type, NULL));
    if (strcmp(type, "Sequence") != 0) return read(at, json, type, chain);
    const json_t *list = NULL;
    DQ_TRY(dq_at_array(at, json, list_key, &list));
    dq_json_at below = dq_at_key(at, list_key);
    for (size_t i = 0; i < json_array_size(list); i++) {
        dq_json_at one = dq_at_index(&below, i);
        DQ_TRY(dq_chain_read(&one, json_array_get(list, i), list_key, read, chain));
    }
    return DQ_OK;
}

void dq_chain_clear(dq_chain *chain)
{
    for (size_t i = 0; i < chain->count; i++) {
        dq_pattern_free(chain->steps[i].pattern);
        dq_free(chain->steps[i].text);
    }
    dq_free(chain->steps);
    *chain = (dq_chain){.env = chain->env};
}

dq_status dq_step_set_text(dq_env *env, dq_step *step, const char *text, size_t bytes)
{
    step->text = dq_alloc(env, bytes + 1);
    if (!step->text) return DQ_E_NOMEM;
    memcpy(step->text, text, bytes);
    step->text[bytes] = '\0';
    step->bytes = bytes;
    return DQ_OK;
}
