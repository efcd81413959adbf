/* Command lines: the library's options by their table, the subcommand's own flags beside them.
 * SPDX-License-Identifier: Apache-2.0 */
#include <getopt.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <strings.h>

#include "cli.h"

static const cli_flag common_flags[] = {
    {"json", FLAG_SWITCH, "", "Print one JSON object on standard output; everything else goes to standard error."},
    {"quiet", FLAG_SWITCH, "", "No progress and no notes."},
    {"help", FLAG_SWITCH, "", "Show this text."},
    {NULL, 0, NULL, NULL},
};

/* What getopt_long returns for a long option: its row here. */
typedef struct row {
    char name[72]; /* with '-' */
    const cli_flag *flag;
    dq_option_info option; /* name NULL when it is a flag */
} row;

typedef struct table {
    row *rows;
    struct option *long_options;
    int count;
} table;

enum { FIRST_ROW = 1000 };

static bool takes_area(const cli_command *command, const char *area)
{
    for (int i = 0; command->areas[i]; i++)
        if (strcmp(command->areas[i], area) == 0) return true;
    return false;
}

/* Both programs of the original name the calibration text in their own way; every subcommand knows both. */
static const char *other_name(const char *name)
{
    static const char *const pair[] = {"cal_dataset", "calib_dataset"};
    for (int i = 0; i < 2; i++)
        if (strcmp(name, pair[i]) == 0) return pair[1 - i];
    return NULL;
}

/* '_' and '-' are the same in a flag's name; its value after '=' stays. */
static void use_dashes(char *word)
{
    if (strncmp(word, "--", 2) != 0) return;
    for (char *at = word + 2; *at && *at != '='; at++)
        if (*at == '_') *at = '-';
}

static void add_row(table *t, const char *name, const cli_flag *flag, const dq_option_info *option)
{
    row *r = &t->rows[t->count];
    snprintf(r->name, sizeof r->name, "--%s", name);
    use_dashes(r->name);
    r->flag = flag;
    if (option) r->option = *option;
    bool is_switch = option ? option->type == DQ_OPTION_BOOL : flag->kind == FLAG_SWITCH;
    t->long_options[t->count] =
        (struct option){r->name + 2, is_switch ? optional_argument : required_argument, NULL, FIRST_ROW + t->count};
    t->count++;
}

static bool make_table(const cli_command *command, table *t)
{
    size_t most = (size_t)dq_option_count() + 64;
    *t = (table){calloc(most, sizeof *t->rows), calloc(most + 1, sizeof *t->long_options), 0};
    if (!t->rows || !t->long_options) return false;
    for (const cli_flag *f = common_flags; f->name; f++) add_row(t, f->name, f, NULL);
    for (const cli_flag *f = command->flags; f->name; f++) {
        add_row(t, f->name, f, NULL);
        if (other_name(f->name)) add_row(t, other_name(f->name), f, NULL);
    }
    for (int32_t i = 0; i < dq_option_count(); i++) {
        dq_option_info info = {.struct_size = sizeof info};
        if (dq_option_get(i, &info) == DQ_OK && takes_area(command, info.area)) add_row(t, info.name, NULL, &info);
    }
    return true;
}

static bool is_truth(const char *word)
{
    static const char *const words[] = {"true", "false", "yes", "no", "on", "off", "1", "0"};
    for (size_t i = 0; i < sizeof words / sizeof *words; i++)
        if (strcasecmp(word, words[i]) == 0) return true;
    return false;
}

static bool is_dataset(const char *word)
{
    return strcmp(word, "wikitext2") == 0 || strcmp(word, "ptb") == 0 || strcmp(word, "c4") == 0;
}

static int remember(cli *c, const char *name, const char *value)
{
    if (c->given_count == CLI_MAX_VALUES) return cli_usage(c, "more than %d flags", CLI_MAX_VALUES);
    c->given[c->given_count].name = name;
    c->given[c->given_count].value = value;
    c->given_count++;
    return EXIT_OK;
}

/* One flag with its value; a switch may be followed by true or false as a word of its own. */
static int take(cli *c, const row *r, int argc, char **argv)
{
    bool is_switch = r->flag ? r->flag->kind == FLAG_SWITCH : r->option.type == DQ_OPTION_BOOL;
    const char *value = optarg;
    if (is_switch && !value) value = optind < argc && is_truth(argv[optind]) ? argv[optind++] : "true";
    if (is_switch && !is_truth(value)) return cli_usage(c, "%s takes true or false, not \"%s\"", r->name, value);
    const char *name = r->flag ? r->flag->name : r->option.name;
    int status = remember(c, name, value);
    if (r->flag && r->flag->kind == FLAG_DATASETS)
        while (status == EXIT_OK && optind < argc && is_dataset(argv[optind]))
            status = remember(c, name, argv[optind++]);
    return status;
}

static int bad_flag(const cli *c, int code, const char *word)
{
    const char *command = c->command->name;
    if (code == ':') return cli_usage(c, "%s needs a value", word);
    dq_option_info info = {.struct_size = sizeof info};
    int32_t index = 0;
    char name[72];
    snprintf(name, sizeof name, "%s", strncmp(word, "--", 2) == 0 ? word + 2 : word);
    name[strcspn(name, "=")] = '\0';
    if (dq_option_find(name, &index) == DQ_OK && dq_option_get(index, &info) == DQ_OK)
        return cli_usage(c, "%s is no option of %s", word, command);
    const char *hint = strstr(dq_error_text(), "; did you mean");
    return cli_usage(c, "unknown flag %s%s", word, hint ? hint : "");
}

static int scan(cli *c, const table *t, int argc, char **argv, bool *finished)
{
    opterr = 0;
    optind = 1;
    for (;;) {
        if (optind < argc) use_dashes(argv[optind]);
        const char *word = optind < argc ? argv[optind] : "";
        int code = getopt_long(argc, argv, "-:h", t->long_options, NULL); /* "-": operands come in their place */
        int status = EXIT_OK;
        if (code == -1) break;
        if (code == 'h' || (code >= FIRST_ROW && strcmp(t->rows[code - FIRST_ROW].name, "--help") == 0)) {
            cli_help(c->command);
            *finished = true;
            return EXIT_OK;
        }
        if (code == 1) {
            if (c->operand) return cli_usage(c, "one %s too many: \"%s\"", c->command->operand, optarg);
            c->operand = optarg;
        } else if (code >= FIRST_ROW) {
            status = take(c, &t->rows[code - FIRST_ROW], argc, argv);
        } else {
            status = bad_flag(c, code, word);
        }
        if (status != EXIT_OK) return status;
    }
    if (optind < argc && !c->operand) c->operand = argv[optind++]; /* after "--" */
    if (optind < argc) return cli_usage(c, "one %s too many: \"%s\"", c->command->operand, argv[optind]);
    return EXIT_OK;
}

static bool is_option(const table *t, const char *name)
{
    for (int i = 0; i < t->count; i++)
        if (!t->rows[i].flag && strcmp(t->rows[i].option.name, name) == 0) return true;
    return false;
}

/* A preset first, then --no_rotation, then single options, in whatever order they were written. */
static int apply(cli *c, const table *t)
{
    static const char *const off[][2] = {
        {"fuse_norm", "false"}, {"use_r1", "false"}, {"use_r2", "none"}, {"use_r3", "false"}, {"use_r4", "false"}};
    const char *preset = cli_value(c, "preset");
    if (preset && dq_config_apply_preset(c->config, preset) != DQ_OK) return cli_usage(c, "%s", dq_error_text());
    if (cli_switch(c, "no_rotation"))
        for (size_t i = 0; i < sizeof off / sizeof *off; i++)
            if (dq_config_set(c->config, off[i][0], off[i][1]) != DQ_OK) return cli_usage(c, "%s", dq_error_text());
    for (int i = 0; i < c->given_count; i++)
        if (is_option(t, c->given[i].name) && dq_config_set(c->config, c->given[i].name, c->given[i].value) != DQ_OK)
            return cli_usage(c, "%s", dq_error_text());
    return EXIT_OK;
}

int cli_parse(cli *c, int argc, char **argv, bool *finished)
{
    table t;
    int status = make_table(c->command, &t) ? EXIT_OK : cli_fail(c, "out of memory");
    if (status == EXIT_OK) status = scan(c, &t, argc, argv, finished);
    if (status == EXIT_OK && !*finished) {
        if (!c->operand && !c->command->operand_optional)
            status = cli_usage(c, "%s needs a %s", c->command->name, c->command->operand);
        else
            status = apply(c, &t);
        c->json = cli_switch(c, "json");
        c->quiet = cli_switch(c, "quiet");
    }
    free(t.rows);
    free(t.long_options);
    return status;
}

const char *cli_value(const cli *c, const char *name)
{
    for (int i = c->given_count - 1; i >= 0; i--)
        if (strcmp(c->given[i].name, name) == 0) return c->given[i].value;
    return NULL;
}

const char *cli_value_at(const cli *c, const char *name, int index)
{
    for (int i = 0; i < c->given_count; i++)
        if (strcmp(c->given[i].name, name) == 0 && index-- == 0) return c->given[i].value;
    return NULL;
}

bool cli_switch(const cli *c, const char *name)
{
    const char *value = cli_value(c, name);
    return value && (strcasecmp(value, "true") == 0 || strcasecmp(value, "yes") == 0 || strcasecmp(value, "on") == 0 ||
                     strcmp(value, "1") == 0);
}

/* Names are literals of this program, so these cannot fail. */
int64_t cli_int(const cli *c, const char *option)
{
    int64_t value = 0;
    (void)dq_config_get_int(c->config, option, &value);
    return value;
}

const char *cli_text(const cli *c, const char *option)
{
    const char *text = "";
    (void)dq_config_get(c->config, option, &text);
    return text;
}
