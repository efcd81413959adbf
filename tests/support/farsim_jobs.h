/* Whole jobs on farsim, the plug-in whose memory is out of reach, whose stream is late and which fails when told to. Public
 * headers only. SPDX-License-Identifier: Apache-2.0 */
#ifndef DQ_TESTS_FARSIM_JOBS_H
#define DQ_TESTS_FARSIM_JOBS_H

#include <dartquant/backend.h>

#include "host.h"

/* The tiny model's layers, and the data: windows of seqlen ids, with five ids to spare. */
enum { LAYERS = 4, SEQLEN = 16, WINDOWS = 3, IDS = WINDOWS * SEQLEN + 5 };
/* farsim's own error codes. */
enum { CODE_OOM = 2, CODE_COPY = 30, CODE_LOST = 46, CODE_NOT_BUILT = 801 };

/* What the library warned of since the last test; an error in the log fails the test. */
extern struct farsim_log {
    int warnings;
    char last[256];
} farsim_log;
/* The allocator is the refusing heap. */
extern const dq_services farsim_services;

int farsim_setup(void **state);    /* a group's: finds the plug-in beside the program */
int farsim_no_leaks(void **state); /* a test's teardown: no block is left, warnings are forgotten */

/* ---- devices; backend "farsim" or "farsim:options" stands for the plug-in's path ---- */

dq_config *config_of(const char *backend, const char *policy);
dq_context *context_on(const char *backend, const char *policy);
dq_context *context_with(const dq_backend *table, const char *options, const char *policy);
const dq_backend *farsim_table(void);
dq_device_counters counters_of(const dq_context *ctx);

/* ---- jobs: the first failure, or DQ_OK ---- */

typedef struct results {
    double rotated, quantized; /* perplexities */
    double bits;               /* per weight */
} results;

/* Perplexity of a model; of the tiny model as it is. */
dq_status measure(dq_context *ctx, dq_model *model, double *ppl);
dq_status run_ppl(dq_context *ctx, double *ppl);
/* fuse, rotate, perplexity, GPTQ, perplexity of the W4A4KV4 model; `extra` "name=value name=value". */
dq_status run_pipeline(dq_context *ctx, const char *extra, results *out);

/* What perplexity copies to the device: cos and sin; two groups of 256 vocabulary rows with their indices, and the index
 * of all tokens; two norms and seven linears per layer; the last norm; the targets; the head in one tile. And back: the
 * sums of the loss. */
enum { PPL_UPLOADS = 2 + (2 * 2 + 1) + LAYERS * (2 + 7) + 1 + 1 + 1, PPL_DOWNLOADS = 1 };

void assert_near(double got, double want, double relative);
/* The status, and the error record with a word of its text. */
void assert_error(dq_status got, dq_status status, int64_t code, const char *backend, const char *word);

#endif
