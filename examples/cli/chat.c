/* Prompts and conversations as ids for a generator. SPDX-License-Identifier: Apache-2.0 */
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "cli.h"

char *cli_read_file(const cli *c, const char *path)
{
    FILE *f = fopen(path, "rb");
    char *text = NULL;
    size_t n = 0, room = 0;
    while (f && !feof(f) && !ferror(f)) {
        if (room - n < 4096) {
            char *more = realloc(text, room = room * 2 + 8192);
            if (!more) break;
            text = more;
        }
        n += fread(text + n, 1, room - n - 1, f);
    }
    bool whole = f && feof(f) && !ferror(f);
    if (f) fclose(f);
    if (!whole) {
        cli_fail(c, "%s cannot be read", path);
        free(text);
        return NULL;
    }
    text[n] = '\0';
    return text;
}

static int add_text(cli *c, dq_generator *g, const dq_tokenizer *tokenizer, const char *text, uint32_t encoding)
{
    size_t n = 0;
    TRY(c, dq_tokenizer_encode(tokenizer, text, strlen(text), encoding, NULL, 0, &n));
    if (n == 0) return cli_fail(c, "the prompt is empty");
    int32_t *ids = malloc(n * sizeof *ids);
    if (!ids) return cli_fail(c, "out of memory");
    int status = EXIT_OK;
    if (dq_tokenizer_encode(tokenizer, text, strlen(text), encoding, ids, n, &n) != DQ_OK ||
        dq_generator_add(g, ids, n, NULL) != DQ_OK)
        status = cli_failed(c);
    free(ids);
    return status;
}

/* Fresh text of a conversation, or NULL after having said why not. */
static char *render(cli *c, const dq_tokenizer *tokenizer, const char *template, const json_t *messages,
                    const json_t *variables)
{
    char *list = json_dumps(messages, JSON_COMPACT), *more = variables ? json_dumps(variables, JSON_COMPACT) : NULL;
    char *text = NULL;
    size_t n = 0;
    if (!list || (variables && !more)) {
        cli_fail(c, "out of memory");
    } else if (dq_tokenizer_render_chat(tokenizer, template, list, more, DQ_CHAT_GENERATION_PROMPT, NULL, 0, &n) !=
               DQ_OK) {
        cli_failed(c);
    } else if (!(text = malloc(n + 1)) ||
               dq_tokenizer_render_chat(tokenizer, template, list, more, DQ_CHAT_GENERATION_PROMPT, text, n + 1, &n) !=
                   DQ_OK) {
        cli_fail(c, "out of memory");
        free(text);
        text = NULL;
    }
    free(list);
    free(more);
    return text;
}

/* `messages` and `variables` by the template that --chat_template names, or the tokenizer's. */
static int add_chat(cli *c, dq_generator *g, const dq_tokenizer *tokenizer, const json_t *messages,
                    const json_t *variables)
{
    const char *given = cli_value(c, "chat_template"), *known;
    char *file = NULL;
    if (given && dq_tokenizer_get_chat_template(tokenizer, given, &known) != DQ_OK && !(file = cli_read_file(c, given)))
        return EXIT_FAILED;
    char *text = render(c, tokenizer, file ? file : given, messages, variables);
    int status = text ? add_text(c, g, tokenizer, text, DQ_ENCODE_PARSE_SPECIAL) : EXIT_FAILED;
    free(text);
    free(file);
    return status;
}

int cli_add_prompt(cli *c, dq_generator *g, const dq_tokenizer *tokenizer, const char *prompt)
{
    const char *system = cli_value(c, "system"), *template;
    bool chat = (cli_switch(c, "chat") || cli_value(c, "chat_template")) && !cli_switch(c, "no_chat");
    if (chat && !cli_value(c, "chat_template") && dq_tokenizer_get_chat_template(tokenizer, NULL, &template) != DQ_OK) {
        cli_note(c, "the tokenizer has no chat template: the prompt is taken as it is");
        chat = false;
    }
    if (!chat) return add_text(c, g, tokenizer, prompt, DQ_ENCODE_ADD_SPECIAL);
    json_t *messages = json_array();
    if (system) json_array_append_new(messages, json_pack("{s:s, s:s}", "role", "system", "content", system));
    json_t *user = json_pack("{s:s, s:s}", "role", "user", "content", prompt);
    int status = user && json_array_append_new(messages, user) == 0 ? add_chat(c, g, tokenizer, messages, NULL)
                                                                    : cli_fail(c, "the prompt is not valid UTF-8");
    json_decref(messages);
    return status;
}

int cli_add_messages(cli *c, dq_generator *g, const dq_tokenizer *tokenizer, const char *path)
{
    json_error_t error;
    json_t *root = json_load_file(path, JSON_REJECT_DUPLICATES, &error), *messages;
    if (!root) return cli_fail(c, "%s, line %d: %s", path, error.line, error.text);
    messages = json_is_object(root) ? json_object_get(root, "messages") : root;
    int status;
    if (!json_is_array(messages)) {
        status = cli_fail(c, "%s: neither a JSON array of messages nor an object that has one", path);
    } else {
        json_incref(messages);
        if (json_is_object(root)) json_object_del(root, "messages");
        status = add_chat(c, g, tokenizer, messages, json_is_object(root) ? root : NULL);
        json_decref(messages);
    }
    json_decref(root);
    return status;
}
