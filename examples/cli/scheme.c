/* The words of `dartquant compare --schemes`. SPDX-License-Identifier: Apache-2.0 */
#include <stdio.h>
#include <string.h>
#include <sys/stat.h>

#include "cli.h"

static int set(cli *c, const char *name, const char *value)
{
    return dq_config_set(c->config, name, value) == DQ_OK ? EXIT_OK : cli_usage(c, "%s", dq_error_text());
}

static int set_bits(cli *c, char letter, const char *digits)
{
    char name[] = "x_bits";
    name[0] = letter;
    return set(c, name, digits);
}

/* "w4a4kv4": letters that share the number behind them. */
static int parse_bits(cli *c, const char *text)
{
    int status = EXIT_OK;
    for (const char *l = "wakv"; *l && status == EXIT_OK; l++) status = set_bits(c, *l, "16");
    for (const char *at = text; *at && status == EXIT_OK;) {
        char digits[4] = "";
        size_t letters = strspn(at, "wakv"), n = strspn(at + letters, "0123456789");
        if (letters == 0 || n == 0 || n >= sizeof digits)
            return cli_usage(c, "--schemes: \"%s\" does not name bits: w4a4kv4, w4a8, a4", text);
        memcpy(digits, at + letters, n);
        for (size_t i = 0; i < letters && status == EXIT_OK; i++) status = set_bits(c, at[i], digits);
        at += letters + n;
    }
    return status;
}

/* Whether `word` is one of a choice option's values. */
static bool is_choice(const char *option, const char *word)
{
    for (int32_t i = 0; i < dq_option_count(); i++) {
        dq_option_info info = {.struct_size = sizeof info};
        if (dq_option_get(i, &info) != DQ_OK || strcmp(info.name, option) != 0) continue;
        size_t n = strlen(word);
        for (const char *at = info.choices; at && *at; at += strcspn(at, "|"), at += *at == '|')
            if (strcspn(at, "|") == n && strncmp(at, word, n) == 0) return true;
    }
    return false;
}

/* Sets what is still at its default: the command line and the scheme's own options count more. */
static int set_unless_given(cli *c, const char *name, const char *value)
{
    int32_t given = 0;
    TRY(c, dq_config_is_set(c->config, name, &given));
    return given ? EXIT_OK : set(c, name, value);
}

static int parse_learnt(cli *c, const char *word)
{
    if (strcmp(word, "learnt") == 0) return EXIT_OK;
    if (strcmp(word, "dartquant") == 0) return set(c, "compat", "upstream");
    int status = set(c, "loss", word);
    /* The loss by itself: the finish on the quantization error would make all of them alike. */
    return status == EXIT_OK ? set_unless_given(c, "quant_steps", "0") : status;
}

static int parse_rotation(cli *c, const char *word, cli_scheme *out)
{
    static const char *const off[] = {"use_r1", "use_r3", "use_r4", "fuse_norm"};
    int status = EXIT_OK;
    out->kind = SCHEME_ROTATED;
    if (strcmp(word, "none") == 0) {
        out->kind = SCHEME_PLAIN;
        for (int i = 0; i < 4 && status == EXIT_OK; i++) status = set(c, off[i], "false");
        return status == EXIT_OK ? set(c, "use_r2", "none") : status;
    }
    if (strcmp(word, "hadamard") == 0 || strcmp(word, "random") == 0) return set(c, "rotate_mode", word);
    if (strcmp(word, "learnt") == 0 || strcmp(word, "dartquant") == 0 || is_choice("loss", word)) {
        out->kind = SCHEME_LEARNT;
        return parse_learnt(c, word);
    }
    struct stat st;
    if (stat(word, &st) != 0)
        return cli_usage(
            c,
            "--schemes: \"%s\" is neither a kind of rotation (none, hadamard, random, learnt, dartquant, or "
            "a loss: whip, swd, ...) nor a file",
            word);
    if (S_ISDIR(st.st_mode)) {
        out->kind = SCHEME_SAVED;
        return EXIT_OK;
    }
    status = set(c, "r1_path", word);
    return status == EXIT_OK ? set(c, "r2_path", word) : status;
}

int cli_parse_scheme(cli *c, const char *text, cli_scheme *out)
{
    int part = 0, status = EXIT_OK;
    char field[sizeof out->word];
    *out = (cli_scheme){0};
    for (const char *at = text; at && status == EXIT_OK; part++) {
        size_t n = strcspn(at, ":");
        snprintf(field, sizeof field, "%.*s", (int)n, at);
        char *value = strchr(field, '=');
        if (part == 0) {
            snprintf(out->word, sizeof out->word, "%s", field);
            status = parse_rotation(c, field, out);
        } else if (value) {
            *value = '\0';
            status = set(c, field, value + 1);
        } else if (strcmp(field, "rtn") == 0) {
            status = set(c, "w_rtn", "true");
        } else if (strcmp(field, "kvquant") == 0) {
            status = set(c, "kv_method", "kvquant");
        } else {
            status = parse_bits(c, field);
        }
        at = at[n] ? at + n + 1 : NULL;
    }
    out->finished = out->kind == SCHEME_SAVED && part == 1;
    if (status == EXIT_OK && part == 1 && !out->finished)
        return cli_usage(c, "--schemes: \"%s\" names no bits: %s:w4a4kv4", text, text);
    return status;
}
