/* BOS, EOS and whether they are put around a text, from the small files beside a vocabulary.
 * SPDX-License-Identifier: Apache-2.0 */
#include "base/status.h"
#include "io/file.h"
#include "io/json.h"
#include "text/internal.h"

enum { MAX_CONFIG = 64 << 20, MAX_TEMPLATE = 1 << 20 };

/* *out = NULL when the file is not there. */
static dq_status load_optional(dq_env *env, const char *dir, const char *name, json_t **out, char **path)
{
    *path = dq_path_join(env, dir, name);
    if (!*path) return DQ_E_NOMEM;
    if (!dq_path_exists(*path)) return DQ_OK;
    DQ_TRY(dq_json_load(env, *path, MAX_CONFIG, out));
    if (json_is_object(*out)) return DQ_OK;
    return dq_error_in_file(dq_fail(DQ_E_FORMAT, "not a JSON object"), *path);
}

/* "bos_token": "<s>" or {"content": "<s>", ...} */
static dq_status token_text(dq_env *env, const json_t *root, const char *key, const char *path, char **out)
{
    const json_t *value = json_object_get(root, key);
    if (json_is_object(value)) value = json_object_get(value, "content");
    if (!value || json_is_null(value) || *out) return DQ_OK;
    if (!json_is_string(value)) return dq_error_in_file(dq_fail(DQ_E_FORMAT, "'%s' is not a token text", key), path);
    *out = dq_strdup(env, json_string_value(value));
    return *out ? DQ_OK : DQ_E_NOMEM;
}

/* Texts of special tokens, and where the tokenizer has chat templates: one text, or a list of {"name", "template"}. */
static dq_status chat_facts(dq_env *env, const json_t *root, const char *path, dq_tokenizer_config *c)
{
    static const char *const keys[] = {"bos_token", "eos_token", "unk_token", "sep_token",
                                       "pad_token", "cls_token", "mask_token"};
    const json_t *chat = json_object_get(root, "chat_template");
    for (size_t i = 0; i < sizeof keys / sizeof *keys; i++) {
        const json_t *value = json_object_get(root, keys[i]);
        if (json_is_object(value)) value = json_object_get(value, "content");
        if (!json_is_string(value)) continue;
        DQ_TRY(dq_named_set(env, &c->specials, keys[i], json_string_value(value), json_string_length(value), false));
    }
    if (json_is_string(chat))
        return dq_named_set(env, &c->templates, "default", json_string_value(chat), json_string_length(chat), false);
    for (size_t i = 0; i < json_array_size(chat); i++) {
        const json_t *name = json_object_get(json_array_get(chat, i), "name"),
                     *text = json_object_get(json_array_get(chat, i), "template");
        if (!json_is_string(name) || !json_is_string(text))
            return dq_error_in_file(dq_fail(DQ_E_FORMAT, "chat_template %zu is not {\"name\", \"template\"}", i), path);
        DQ_TRY(dq_named_set(env, &c->templates, json_string_value(name), json_string_value(text),
                            json_string_length(text), false));
    }
    if (!chat || json_is_null(chat) || json_is_array(chat)) return DQ_OK;
    return dq_error_in_file(dq_fail(DQ_E_FORMAT, "'chat_template' is neither a text nor a list"), path);
}

/* Templates in files of their own come before those in tokenizer_config.json. */
static dq_status chat_files(dq_env *env, const char *dir, dq_tokenizer_config *c)
{
    static const struct {
        const char *file, *name;
    } files[] = {{"chat_template.jinja", "default"}, {"additional_chat_templates/tool_use.jinja", "tool_use"}};
    for (size_t i = 0; i < sizeof files / sizeof *files; i++) {
        char *path = dq_path_join(env, dir, files[i].file), *text = NULL;
        size_t bytes = 0;
        dq_status status = path ? DQ_OK : DQ_E_NOMEM;
        if (path && dq_path_exists(path)) {
            status = dq_file_read(env, path, MAX_TEMPLATE, &text, &bytes);
            if (status == DQ_OK) status = dq_named_set(env, &c->templates, files[i].name, text, bytes, true);
        }
        dq_free(text);
        dq_free(path);
        DQ_TRY(status);
    }
    return DQ_OK;
}

static dq_status flag(const json_t *root, const char *key, const char *path, int *out)
{
    bool value = false;
    const json_t *member = json_object_get(root, key);
    if (!member || json_is_null(member)) return DQ_OK;
    DQ_TRY(dq_json_bool(root, key, true, path, &value));
    *out = value;
    return DQ_OK;
}

/* config.json gives numbers, sometimes several EOS ids: the first counts. */
static int64_t number(const json_t *root, const char *key)
{
    const json_t *value = json_object_get(root, key);
    if (json_is_array(value)) value = json_array_get(value, 0);
    return json_is_integer(value) && json_integer_value(value) >= 0 ? json_integer_value(value) : -1;
}

dq_status dq_tokenizer_config_read(dq_env *env, const char *dir, dq_tokenizer_config *out)
{
    static const char *const names[] = {"tokenizer_config.json", "special_tokens_map.json", "config.json"};
    dq_tokenizer_config c = {.bos_id = -1, .eos_id = -1, .add_bos = -1, .add_eos = -1};
    dq_status status = DQ_OK;
    for (int i = 0; i < 3 && status == DQ_OK; i++) {
        json_t *root = NULL;
        char *path = NULL;
        status = load_optional(env, dir, names[i], &root, &path);
        if (status == DQ_OK && root && i < 2) {
            status = token_text(env, root, "bos_token", path, &c.bos);
            if (status == DQ_OK) status = token_text(env, root, "eos_token", path, &c.eos);
            if (status == DQ_OK) status = chat_facts(env, root, path, &c);
            if (status == DQ_OK && i == 0) status = flag(root, "add_bos_token", path, &c.add_bos);
            if (status == DQ_OK && i == 0) status = flag(root, "add_eos_token", path, &c.add_eos);
        } else if (status == DQ_OK && root) {
            const json_t *base = json_object_get(root, "base_model_type"); /* of a model that we saved */
            const char *type = json_string_value(base ? base : json_object_get(root, "model_type"));
            c.bos_id = number(root, "bos_token_id");
            c.eos_id = number(root, "eos_token_id");
            c.opt = type && strcmp(type, "opt") == 0;
        }
        json_decref(root);
        dq_free(path);
    }
    if (status == DQ_OK) status = chat_files(env, dir, &c);
    if (status != DQ_OK) {
        dq_tokenizer_config_clear(&c);
        return status;
    }
    *out = c;
    return DQ_OK;
}

void dq_tokenizer_config_clear(dq_tokenizer_config *c)
{
    dq_free(c->bos);
    dq_free(c->eos);
    c->bos = c->eos = NULL;
    dq_named_clear(&c->templates);
    dq_named_clear(&c->specials);
}

void dq_tokenizer_take_chat(dq_tokenizer *t, dq_tokenizer_config *c)
{
    t->templates = c->templates;
    t->specials = c->specials;
    c->templates = c->specials = (dq_named){0};
}

static int32_t resolve(const dq_tokenizer *t, const char *text, int64_t id)
{
    if (text) return dq_vocab_find_any(&t->vocab, text, strlen(text));
    return id >= 0 && id < t->vocab.size && t->vocab.tokens[id].text ? (int32_t)id : -1;
}

dq_status dq_tokenizer_apply_config(dq_tokenizer *t, const dq_tokenizer_config *c, const char *file)
{
    t->bos = resolve(t, c->bos, c->bos_id);
    t->eos = resolve(t, c->eos, c->eos_id);
    if (c->add_bos < 0 && c->add_eos < 0) return DQ_OK;
    /* Either flag replaces the file's own template (transformers 5, update_post_processor). */
    if ((c->add_bos == 1 && c->bos && t->bos < 0) || (c->add_eos == 1 && c->eos && t->eos < 0))
        return dq_error_in_file(dq_fail(DQ_E_MISMATCH,
                                        "tokenizer_config.json names '%s', which the vocabulary does not have",
                                        c->add_bos == 1 && t->bos < 0 ? c->bos : c->eos),
                                file);
    dq_post_clear(&t->post);
    if (c->add_bos == 1 && t->bos >= 0) DQ_TRY(dq_id_list_add(&t->post.before, t->bos));
    if (c->add_eos == 1 && t->eos >= 0) DQ_TRY(dq_id_list_add(&t->post.after, t->eos));
    return DQ_OK;
}
