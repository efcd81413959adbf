/* dartquant tokenize: text to token ids. SPDX-License-Identifier: Apache-2.0 */
#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "cli.h"

static const char *const areas[] = {"general", NULL};
static const cli_flag flags[] = {
    {"text", FLAG_VALUE, "S", "The text."},
    {"file", FLAG_VALUE, "F", "A file with the text, read as it is; - is standard input."},
    {"no_special", FLAG_SWITCH, "", "Leave out the BOS / EOS tokens the tokenizer's template would add."},
    {"parse_special", FLAG_SWITCH, "", "Special tokens written out in the text become their ids."},
    {NULL, 0, NULL, NULL},
};

static int read_file(cli *c, const char *path, char **text, size_t *bytes)
{
    FILE *f = strcmp(path, "-") == 0 ? stdin : fopen(path, "rb");
    if (!f) return cli_fail(c, "%s: %s", path, strerror(errno));
    size_t capacity = 1 << 16, used = 0;
    char *data = malloc(capacity);
    while (data) {
        used += fread(data + used, 1, capacity - used, f);
        if (used < capacity) break;
        capacity *= 2;
        char *grown = realloc(data, capacity);
        if (!grown) free(data);
        data = grown;
    }
    int error = ferror(f) ? errno : 0;
    if (f != stdin) fclose(f);
    if (!data) return cli_fail(c, "out of memory reading %s", path);
    if (error) {
        free(data);
        return cli_fail(c, "%s: %s", path, strerror(error));
    }
    *text = data;
    *bytes = used;
    return EXIT_OK;
}

static int print_ids(cli *c, const dq_tokenizer *tokenizer, const int32_t *ids, size_t count)
{
    if (!c->json) {
        for (size_t i = 0; i < count; i++) printf("%s%d", i ? " " : "", ids[i]);
        printf("\n");
        return EXIT_OK;
    }
    json_t *list = json_array();
    for (size_t i = 0; i < count; i++) json_array_append_new(list, json_integer(ids[i]));
    return cli_print_json(c, json_pack("{s:s, s:o, s:I, s:s, s:I, s:i, s:i}", "command", "tokenize", "ids", list,
                                       "count", (json_int_t)count, "algorithm", dq_tokenizer_algorithm(tokenizer),
                                       "vocab_size", (json_int_t)dq_tokenizer_vocab_size(tokenizer), "bos_id",
                                       (int)dq_tokenizer_bos(tokenizer), "eos_id", (int)dq_tokenizer_eos(tokenizer)));
}

static int encode(cli *c, const dq_tokenizer *tokenizer, const char *text, size_t bytes)
{
    uint32_t how = (cli_switch(c, "no_special") ? 0 : DQ_ENCODE_ADD_SPECIAL) |
                   (cli_switch(c, "parse_special") ? DQ_ENCODE_PARSE_SPECIAL : 0);
    /* No text has more tokens than bytes, but for the special ones around it. */
    size_t capacity = bytes + 16, needed = 0;
    int32_t *ids = malloc(capacity * sizeof *ids);
    if (!ids) return cli_fail(c, "out of memory: %zu ids", capacity);
    int status = EXIT_OK;
    if (dq_tokenizer_encode(tokenizer, text, bytes, how, ids, capacity, &needed) != DQ_OK)
        status = cli_failed(c);
    else if (needed > capacity) {
        int32_t *more = realloc(ids, needed * sizeof *ids);
        if (more) ids = more;
        if (!more || dq_tokenizer_encode(tokenizer, text, bytes, how, ids, needed, &needed) != DQ_OK)
            status = more ? cli_failed(c) : cli_fail(c, "out of memory: %zu ids", needed);
    }
    if (status == EXIT_OK) status = print_ids(c, tokenizer, ids, needed);
    free(ids);
    return status;
}

static int run(cli *c)
{
    const char *text = cli_value(c, "text"), *file = cli_value(c, "file");
    if (!text == !file) return cli_usage(c, "tokenize needs either --text or --file");
    int status = cli_open_context(c);
    char *content = NULL;
    size_t bytes = text ? strlen(text) : 0;
    if (status == EXIT_OK && file) status = read_file(c, file, &content, &bytes);
    if (status != EXIT_OK) return status;
    dq_tokenizer *tokenizer = NULL;
    status = dq_tokenizer_open(c->ctx, c->operand, &tokenizer) == DQ_OK
                 ? encode(c, tokenizer, text ? text : content, bytes)
                 : cli_failed(c);
    dq_tokenizer_free(tokenizer);
    free(content);
    return status;
}

const cli_command command_tokenize = {
    "tokenize", "MODEL", "Turn text into token ids. MODEL may be a folder with only a tokenizer.", areas, flags,
    false,      run,
};
