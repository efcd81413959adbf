/* dartquant: look at, tokenize, run, measure and quantize language models. SPDX-License-Identifier: Apache-2.0 */
#include <stdio.h>
#include <string.h>

#include "cli.h"

static const cli_command *const commands[] = {
    &command_info,         &command_tokenize, &command_logits,         &command_ppl,      &command_capture,
    &command_calibrate,    &command_quantize, &command_compare,        &command_generate, &command_list_layers,
    &command_test_forward, &command_export,   &command_quantize_model, &command_bench,    NULL};

static const cli_command *find(const char *name)
{
    for (int i = 0; commands[i]; i++)
        if (strcmp(commands[i]->name, name) == 0) return commands[i];
    return NULL;
}

static int run(cli *c, int argc, char **argv)
{
    bool finished = false;
    TRY(c, dq_config_new(&c->config));
    int status = cli_parse(c, argc, argv, &finished);
    if (status != EXIT_OK || finished) return status;
    TRY(c, dq_cancel_new(&c->cancel));
    cli_catch_interrupt(c->cancel);
    status = c->command->run(c);
    cli_progress_end(c);
    return status;
}

int main(int argc, char **argv)
{
    if (argc < 2 || strcmp(argv[1], "--help") == 0 || strcmp(argv[1], "-h") == 0 || strcmp(argv[1], "help") == 0) {
        cli_overview(commands);
        return argc < 2 ? EXIT_USAGE : EXIT_OK;
    }
    if (strcmp(argv[1], "--version") == 0) {
        printf("dartquant %s\n", dq_version_string());
        return EXIT_OK;
    }
    cli c = {.command = find(argv[1])};
    for (int i = 1; i < argc; i++) c.json = c.json || strcmp(argv[i], "--json") == 0; /* also for early errors */
    if (!c.command) return cli_usage(&c, "there is no subcommand \"%s\"", argv[1]);
    int status = run(&c, argc - 1, argv + 1);
    dq_context_free(c.ctx);
    dq_cancel_free(c.cancel);
    dq_config_free(c.config);
    if (fflush(stdout) != 0 && status == EXIT_OK) status = cli_fail(&c, "standard output cannot be written");
    return status;
}
