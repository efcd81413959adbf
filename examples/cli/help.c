/* Help texts, generated from the library's option table and the subcommands' flags. SPDX-License-Identifier: Apache-2.0 */
#include <stdio.h>
#include <string.h>

#include "cli.h"

enum { TEXT_COLUMN = 34, WIDTH = 110 };

/* Prints `text` from TEXT_COLUMN on, broken at blanks; `used` columns are taken already. */
static void wrapped(int used, const char *text)
{
    if (used >= TEXT_COLUMN) {
        printf("\n");
        used = 0;
    }
    printf("%*s", TEXT_COLUMN - used, "");
    int column = TEXT_COLUMN;
    while (*text) {
        int length = (int)strcspn(text, " ");
        if (column > TEXT_COLUMN && column + 1 + length > WIDTH) {
            printf("\n%*s", TEXT_COLUMN, "");
            column = TEXT_COLUMN;
        } else if (column > TEXT_COLUMN) {
            printf(" ");
            column++;
        }
        printf("%.*s", length, text);
        column += length;
        text += length + (text[length] == ' ');
    }
    printf("\n");
}

static void option_line(const dq_option_info *o)
{
    static const char *const kinds[] = {"N", "X", "[true|false]", "TEXT", ""};
    char text[640];
    const char *value = o->type == DQ_OPTION_CHOICE ? o->choices : o->unit[0] ? o->unit : kinds[o->type];
    int used = printf("  --%s %s", o->name, value);
    const char *initial = o->default_value[0] ? o->default_value : "none";
    snprintf(text, sizeof text, "%s Default %s.", o->help, initial);
    wrapped(used + 1, text);
}

static void flag_line(const cli_flag *f)
{
    int used = printf("  --%s%s%s", f->name, f->value[0] ? " " : "", f->value);
    wrapped(used + 1, f->help);
}

void cli_help(const cli_command *command)
{
    printf("usage: dartquant %s %s%s%s [flags]\n\n%s\n\n", command->name, command->operand_optional ? "[" : "",
           command->operand, command->operand_optional ? "]" : "", command->summary);
    printf("Names may be written with '_' or '-', values as --name value or --name=value.\n\n%s:\n", command->name);
    for (const cli_flag *f = command->flags; f->name; f++) flag_line(f);
    flag_line(&(cli_flag){"json", FLAG_SWITCH, "", "One JSON object on standard output, all else on standard error."});
    flag_line(&(cli_flag){"quiet", FLAG_SWITCH, "", "No progress and no notes."});
    for (int a = 0; command->areas[a]; a++) {
        printf("\n%s:\n", command->areas[a]);
        for (int32_t i = 0; i < dq_option_count(); i++) {
            dq_option_info info = {.struct_size = sizeof info};
            if (dq_option_get(i, &info) == DQ_OK && strcmp(info.area, command->areas[a]) == 0) option_line(&info);
        }
    }
    if (command != &command_quantize) return;
    printf("\npresets:\n");
    for (int32_t i = 0; i < dq_preset_count(); i++) {
        dq_preset_info info = {.struct_size = sizeof info};
        if (dq_preset_get(i, &info) == DQ_OK) wrapped(printf("  %s", info.name), info.description);
    }
}

void cli_overview(const cli_command *const *commands)
{
    printf("dartquant %s: look at, run, measure and quantize language models\n\n"
           "usage: dartquant SUBCOMMAND MODEL [flags]\n\n",
           dq_version_string());
    for (int i = 0; commands[i]; i++) printf("  %-10s %s\n", commands[i]->name, commands[i]->summary);
    printf("\nMODEL is a GGUF file, a Hugging Face folder, or a folder saved by `quantize`.\n"
           "`dartquant SUBCOMMAND --help` lists the flags. Exit status: 0 done, 1 failed, 2 wrong usage.\n");
}
