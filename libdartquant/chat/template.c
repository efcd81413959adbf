/* Parsing and rendering of templates as a whole. SPDX-License-Identifier: Apache-2.0 */
#include "chat/template.h"

#include "base/status.h"
#include "chat/parser.h"
#include "chat/run.h"
#include "text/utf8.h"

enum { MAX_JSON_DEPTH = 100 };

struct dq_template {
    dq_env *env;
    dq_jarena arena;
    dq_jnode *body;
};

dq_status dq_template_parse(dq_env *env, const char *text, size_t bytes, dq_template **out)
{
    dq_jtokens tokens = {0};
    if (bytes > DQ_TEMPLATE_MAX_BYTES)
        return dq_fail(DQ_E_FORMAT, "a chat template of %zu bytes, at most %d are possible", bytes,
                       (int)DQ_TEMPLATE_MAX_BYTES);
    size_t valid = dq_utf8_valid_prefix(text, bytes);
    if (valid != bytes) return dq_fail(DQ_E_FORMAT, "the chat template is not valid UTF-8 at its byte %zu", valid);
    dq_template *t = dq_calloc(env, 1, sizeof *t);
    if (!t) return DQ_E_NOMEM;
    t->env = env;
    t->arena = (dq_jarena){.env = env, .limit = UINT64_C(1) << 30};
    dq_status status = dq_jlex(&t->arena, text, bytes, &tokens);
    if (status == DQ_OK) status = dq_jparse(&t->arena, &tokens, &t->body);
    if (status == DQ_OK)
        *out = t;
    else
        dq_template_free(t);
    return status;
}

void dq_template_free(dq_template *t)
{
    if (!t) return;
    dq_jarena_clear(&t->arena);
    dq_free(t);
}

/* ---- JSON values ---- */

static dq_status from_json(dq_jrun *r, const json_t *json, int depth, dq_jvalue *out);

static dq_status from_array(dq_jrun *r, const json_t *json, int depth, dq_jvalue *out)
{
    size_t n = json_array_size(json);
    DQ_TRY(dq_jlist_new(&r->arena, DQ_J_LIST, n, out));
    for (size_t i = 0; i < n; i++) {
        dq_jvalue item = {0};
        DQ_TRY(from_json(r, json_array_get(json, i), depth + 1, &item));
        DQ_TRY(dq_jlist_add(&r->arena, out->list, item));
    }
    return DQ_OK;
}

static dq_status from_object(dq_jrun *r, const json_t *json, int depth, dq_jvalue *out)
{
    const char *key;
    json_t *member;
    DQ_TRY(dq_jdict_new(&r->arena, DQ_J_DICT, out));
    json_object_foreach((json_t *)(uintptr_t)json, key, member) /* which only reads */
    {
        dq_jvalue value = {0};
        DQ_TRY(from_json(r, member, depth + 1, &value));
        DQ_TRY(dq_jsteps(r, out->dict->count / 8));
        DQ_TRY(dq_jdict_set(&r->arena, out->dict, dq_jstring(dq_jtext_c(key)), value));
    }
    return DQ_OK;
}

/* Strings stay where they are. */
static dq_status from_json(dq_jrun *r, const json_t *json, int depth, dq_jvalue *out)
{
    if (depth > MAX_JSON_DEPTH)
        return dq_fail(DQ_E_INVALID, "the values for the chat template are nested deeper than %d levels",
                       MAX_JSON_DEPTH);
    switch (json_typeof(json)) {
        case JSON_OBJECT: return from_object(r, json, depth, out);
        case JSON_ARRAY: return from_array(r, json, depth, out);
        case JSON_STRING: *out = dq_jstring(dq_jtext_of(json_string_value(json), json_string_length(json))); break;
        case JSON_INTEGER: *out = dq_jint(json_integer_value(json)); break;
        case JSON_REAL: *out = dq_jfloat(json_real_value(json)); break;
        case JSON_NULL: *out = dq_jnone(); break;
        default: *out = dq_jbool(json_is_true(json)); break;
    }
    return DQ_OK;
}

/* ---- rendering ---- */

static size_t bytes_of(const json_t *json, int depth)
{
    size_t sum = 64, i;
    const char *key;
    json_t *member, *all = (json_t *)(uintptr_t)json;
    if (depth > MAX_JSON_DEPTH) return 0;
    if (json_is_string(json)) sum += json_string_length(json);
    json_array_foreach(all, i, member) sum += bytes_of(member, depth + 1);
    json_object_foreach(all, key, member) sum += strlen(key) + bytes_of(member, depth + 1);
    return sum;
}

static dq_status render(dq_jrun *r, const dq_template *t, const json_t *variables)
{
    dq_jscope *outside;
    const char *key;
    json_t *member;
    DQ_TRY(dq_jpush_scope(r, NULL, &outside));
    json_object_foreach((json_t *)(uintptr_t)variables, key, member)
    {
        dq_jvalue value = {0};
        DQ_TRY(from_json(r, member, 0, &value));
        DQ_TRY(dq_jbind(r, dq_jtext_c(key), &value));
    }
    return dq_jexec(r, t->body);
}

dq_status dq_template_render(const dq_template *t, const json_t *variables, char **out, size_t *bytes)
{
    dq_bytes text = {.env = t->env};
    dq_jrun r = {.arena = {.env = t->env, .limit = (uint64_t)DQ_J_MAX_BYTES + 16 * (uint64_t)bytes_of(variables, 0)},
                 .out = &text,
                 .line = 1};
    dq_status status = dq_bytes_reserve(&text, 256);
    if (status == DQ_OK) status = render(&r, t, variables);
    dq_jarena_clear(&r.arena);
    if (status != DQ_OK) {
        dq_bytes_clear(&text);
        return status;
    }
    text.data[text.size] = '\0';
    *out = text.data;
    *bytes = text.size;
    return DQ_OK;
}
