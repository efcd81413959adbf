/* What a chat template is given: the conversation, special tokens, the caller's own variables (transformers,
 * apply_chat_template). SPDX-License-Identifier: Apache-2.0 */
#include "chat/chat.h"

#include <string.h>

#include "base/status.h"
#include "chat/template.h"
#include "io/json.h"

static dq_status no_memory(void) { return dq_fail(DQ_E_NOMEM, "no memory for a conversation"); }

/* JSON that the caller wrote: a wrong one is his mistake, not a file's. */
static dq_status parse(const char *text, const char *what, json_t **out)
{
    dq_status status = dq_json_parse(text, strlen(text), NULL, out);
    if (status != DQ_E_FORMAT && status != DQ_E_TEXT) return status;
    char why[256];
    strncpy(why, dq_error_text(), sizeof why - 1);
    why[sizeof why - 1] = '\0';
    return dq_fail(DQ_E_INVALID, "the %s: %s", what, why);
}

/* A message without what is null. */
static dq_status clean_message(const json_t *message, size_t index, json_t **out)
{
    const char *key;
    json_t *value, *copy;
    if (!json_is_object(message)) return dq_fail(DQ_E_INVALID, "message %zu is not a JSON object", index);
    if (!json_is_string(json_object_get(message, "role")))
        return dq_fail(DQ_E_INVALID, "message %zu has no \"role\"", index);
    if (!(copy = json_object())) return no_memory();
    json_object_foreach((json_t *)(uintptr_t)message, key, value) /* which only reads */
        if (!json_is_null(value) && json_object_set(copy, key, value) != 0)
    {
        json_decref(copy);
        return no_memory();
    }
    *out = copy;
    return DQ_OK;
}

static dq_status read_messages(const char *text, json_t **out)
{
    json_t *root = NULL, *list = NULL, *one = NULL;
    dq_status status = DQ_OK;
    DQ_TRY(parse(text, "messages", &root));
    if (!json_is_array(root) || json_array_size(root) == 0)
        status = dq_fail(DQ_E_INVALID, "the messages are not a JSON array of at least one");
    else if (!(list = json_array()))
        status = no_memory();
    for (size_t i = 0; status == DQ_OK && i < json_array_size(root); i++) {
        status = clean_message(json_array_get(root, i), i, &one);
        if (status == DQ_OK && json_array_append_new(list, one) != 0) status = no_memory();
    }
    json_decref(root);
    if (status == DQ_OK)
        *out = list;
    else
        json_decref(list);
    return status;
}

/* All names of the template. Later ones replace earlier ones, so that the caller's come last. */
static dq_status collect(const dq_tokenizer *t, const char *messages, const char *variables, bool prompt, json_t **out)
{
    json_t *all = json_pack("{s:n, s:n, s:b}", "tools", "documents", "add_generation_prompt", prompt), *own = NULL,
           *list = NULL;
    const char *key, *text;
    dq_status status = all ? DQ_OK : no_memory();
    for (size_t i = 0; status == DQ_OK && (text = dq_tokenizer_special_text(t, i, &key)); i++)
        if (json_object_set_new(all, key, json_string(text)) != 0) status = no_memory();
    if (status == DQ_OK && variables) status = parse(variables, "variables of the chat template", &own);
    if (status == DQ_OK && own && !json_is_object(own))
        status = dq_fail(DQ_E_INVALID, "the variables of the chat template are not a JSON object");
    if (status == DQ_OK && own && json_object_update(all, own) != 0) status = no_memory();
    if (status == DQ_OK) status = read_messages(messages, &list);
    if (status == DQ_OK && json_object_set_new(all, "messages", list) != 0) status = no_memory();
    json_decref(own);
    if (status == DQ_OK)
        *out = all;
    else
        json_decref(all);
    return status;
}

static dq_status choose(const dq_tokenizer *t, const char *given, const json_t *variables, const char **out)
{
    const json_t *tools = json_object_get(variables, "tools");
    if (given) {
        const char *named = dq_tokenizer_chat_template(t, given);
        *out = named ? named : given;
        return DQ_OK;
    }
    *out = tools && !json_is_null(tools) ? dq_tokenizer_chat_template(t, "tool_use") : NULL;
    if (!*out) *out = dq_tokenizer_chat_template(t, "default");
    return *out ? DQ_OK : dq_fail(DQ_E_NOTFOUND, "the tokenizer has no chat template");
}

dq_status dq_chat_apply(const dq_tokenizer *tokenizer, const char *chat_template, const char *messages,
                        const char *variables, bool add_generation_prompt, char **out, size_t *bytes)
{
    json_t *values = NULL;
    const char *text = NULL;
    dq_template *t = NULL;
    dq_status status;
    DQ_TRY(collect(tokenizer, messages, variables, add_generation_prompt, &values));
    DQ_GO(choose(tokenizer, chat_template, values, &text));
    DQ_GO(dq_template_parse(dq_env_of(tokenizer), text, strlen(text), &t));
    status = dq_template_render(t, values, out, bytes);
done:
    dq_template_free(t);
    json_decref(values);
    return status;
}
