/* The `dartquant` program: what its files share. It uses the public header alone.
 * SPDX-License-Identifier: Apache-2.0 */
#ifndef CLI_H
#define CLI_H

#include <dartquant.h>
#include <jansson.h>
#include <stdbool.h>

enum { EXIT_OK = 0, EXIT_FAILED = 1, EXIT_USAGE = 2 };

/* A flag of one subcommand, beside the library's options. */
enum { FLAG_SWITCH, FLAG_VALUE, FLAG_DATASETS /* one or more of wikitext2, ptb, c4 */ };
typedef struct cli_flag {
    const char *name; /* with '_' */
    int kind;
    const char *value; /* placeholder in help texts */
    const char *help;
} cli_flag;

typedef struct cli cli;

typedef struct cli_command {
    const char *name, *operand, *summary;
    const char *const *areas; /* areas of the option table it takes, NULL-terminated */
    const cli_flag *flags;    /* terminated by name NULL */
    bool operand_optional;
    int (*run)(cli *c);
} cli_command;

/* A parsed command line and what the subcommands need. */
enum { CLI_MAX_VALUES = 512 };
struct cli {
    const cli_command *command;
    const char *operand; /* MODEL; NULL when optional and absent */
    struct {
        const char *name, *value;
    } given[CLI_MAX_VALUES]; /* flags in the order they came */
    int given_count;
    bool json, quiet;
    dq_config *config;
    dq_cancel *cancel;
    dq_context *ctx;
};

extern const cli_command command_info, command_tokenize, command_logits, command_ppl, command_quantize, command_bench,
    command_compare, command_capture, command_calibrate, command_export, command_quantize_model, command_generate,
    command_list_layers, command_test_forward;

/* ---- backends.c ---- */
/* What `info --backends` shows. */
int cli_list_backends(cli *c);

/* ---- cmd_export.c ---- */
int cli_export(cli *c, dq_model *model, const char *format, const char *dir);

/* ---- args.c ---- */
/* 0, or an exit status after having said why; *finished is set when --help was served. */
int cli_parse(cli *c, int argc, char **argv, bool *finished);
/* Last value of a flag, or NULL; the i-th value of a repeated one, or NULL; whether a switch is on. */
const char *cli_value(const cli *c, const char *name);
const char *cli_value_at(const cli *c, const char *name, int i);
bool cli_switch(const cli *c, const char *name);
int64_t cli_int(const cli *c, const char *option);
const char *cli_text(const cli *c, const char *option);

/* ---- help.c ---- */
void cli_help(const cli_command *command);
void cli_overview(const cli_command *const *commands);

/* ---- output.c ---- */
/* Reports a failed library call (dq_error_*), also as JSON where asked for; returns EXIT_FAILED. */
int cli_failed(const cli *c);
/* The same for a failure of the program itself. */
int cli_fail(const cli *c, const char *fmt, ...) __attribute__((format(printf, 2, 3)));
int cli_usage(const cli *c, const char *fmt, ...) __attribute__((format(printf, 2, 3)));
/* Prints the object as one line of JSON on stdout and takes it over; returns the exit status. */
int cli_print_json(const cli *c, json_t *object);
json_t *cli_parse_json(const char *text);
uint64_t cli_peak_rss(void);
double cli_now(void);
/* A note on stderr unless --quiet. */
void cli_note(const cli *c, const char *fmt, ...) __attribute__((format(printf, 2, 3)));

#define TRY(c, call)                                                                                                   \
    do {                                                                                                               \
        if ((call) != DQ_OK) return cli_failed((c));                                                                   \
    } while (0)

/* ---- progress.c ---- */
/* A line on stderr while it is a terminal; give `c` as user pointer. */
int32_t cli_progress(void *user, const dq_progress_event *event);
void cli_progress_end(const cli *c);
/* Ctrl-C sets the token; a second one ends the program at once. */
void cli_catch_interrupt(dq_cancel *cancel);

/* ---- session.c ---- */
int cli_open_context(cli *c);
int cli_open_tokenizer(cli *c, const char *model_path, dq_tokenizer **out);
/* The datasets to evaluate on that the flags name: `dataset_flag` with --data_dir, --text_file, --ids. `tokenizer_path`:
 * where the words come from unless --tokenizer says otherwise. Free with cli_free_sets also after a failure. */
enum { CLI_MAX_SETS = 16 };
typedef struct cli_sets {
    dq_dataset *set[CLI_MAX_SETS];
    int count;
} cli_sets;
int cli_load_sets(cli *c, const char *tokenizer_path, const char *dataset_flag, cli_sets *out);
void cli_free_sets(cli_sets *sets);
/* The calibration text that the flags cal_file, cal_dataset or calib_dataset with data_dir name. */
int cli_load_calibration(cli *c, const char *tokenizer_path, dq_dataset **out);
/* Windows of the largest of them. */
int64_t cli_sets_windows(const cli *c, const cli_sets *sets);
/* Evaluates `model` on each and appends the reports to `results`. */
int cli_evaluate(cli *c, dq_model *model, const cli_sets *sets, json_t *results);
void cli_print_results(const json_t *results);
/* Bytes a job should need: the weights file, the residual stream of all windows, one layer, its Hessians. */
json_t *cli_memory_model(dq_model *model, int64_t windows, int64_t seqlen, bool hessians);
/* Fills what every report ends with. */
void cli_add_resources(const cli *c, json_t *report);
int64_t cli_model_int(dq_model *model, const char *key);

/* ---- calibration.c ---- */
/* All steps of a job for `model` (norms fused), with checkpoints where flags ask for them; then its rotations and its report. */
typedef struct cli_learnt {
    dq_rotation *rotation;
    json_t *report;
} cli_learnt;
int cli_calibrate(cli *c, dq_model *model, const dq_dataset *data, const char *folder, const char *checkpoint,
                  cli_learnt *out);
void cli_print_learnt(const json_t *report);
/* Opens MODEL and fuses its norms. */
int cli_open_fused(cli *c, const char *path, dq_model **out);

/* ---- scheme.c ---- */
/* One of `compare --schemes`: where the basis comes from. */
enum { SCHEME_PLAIN /* the model's own */, SCHEME_ROTATED, SCHEME_LEARNT, SCHEME_SAVED /* a folder: word */ };
typedef struct cli_scheme {
    int kind;
    char word[1024]; /* the first part */
    bool finished;   /* a saved model that is measured as it is */
} cli_scheme;
/* Sets the scheme's options in c->config. */
int cli_parse_scheme(cli *c, const char *text, cli_scheme *out);

/* ---- chat.c ---- */
/* Fresh text, or NULL after having said why not. */
char *cli_read_file(const cli *c, const char *path);
/* Adds a prompt as it is, or as a message where --chat asks for it; a conversation from a file. */
int cli_add_prompt(cli *c, dq_generator *g, const dq_tokenizer *tokenizer, const char *prompt);
int cli_add_messages(cli *c, dq_generator *g, const dq_tokenizer *tokenizer, const char *path);

/* ---- npy.c ---- */
/* Writes a C-ordered fp32 matrix in NumPy's format; whole or not at all. */
int cli_write_npy(const cli *c, const char *path, const float *data, int64_t rows, int64_t cols);

/* ---- plot.c ---- */
/* Draws the rows of a comparison as SVG; whole or not at all. */
int cli_plot_comparison(const cli *c, const char *path, const json_t *rows);

/* ---- synthetic.c ---- */
/* Makes a Hugging Face folder with random weights of a small LLaMA; the caller removes it with the second. */
int synthetic_make(const cli *c, const char *dir);
void synthetic_remove(const char *dir);

#endif
