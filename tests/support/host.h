/* A program that uses the library, as tests play it: contexts whose blocks are counted, options from a line of text, data,
 * whole jobs in one call. Public header only. SPDX-License-Identifier: Apache-2.0 */
#ifndef DQ_TESTS_HOST_H
#define DQ_TESTS_HOST_H

#include <dartquant.h>
#include <stdbool.h>

#include "ok.h"
#include "refusing_heap.h"

/* A context on `threads` threads whose allocator is the refusing heap. */
dq_context *host_context(int threads);
/* A test's teardown: fails when the heap holds a block, and forgets it. */
int host_no_leaks(void **state);
/* "name=value name=value" */
dq_config *host_config(const char *settings);
dq_dataset *host_ids(dq_context *ctx, size_t count);
#define HOST_TINY "tests/data/tiny"
dq_model *host_open_tiny(dq_context *ctx);
double host_perplexity(dq_model *model, const dq_config *config, const dq_dataset *set);

/* What tests of a job work on: the tiny model, fused and rotated if asked, with options and ids. */
typedef struct host_bench {
    dq_context *ctx;
    dq_config *config;
    dq_dataset *set;
    dq_model *model;
} host_bench;
/* On a context of its own with 400 ids. */
host_bench host_bench_open(const char *settings, int threads, bool rotate);
/* Takes the context over. */
host_bench host_bench_on(dq_context *ctx, const char *settings, size_t ids, bool rotate);
void host_bench_close(host_bench *b);
/* Jobs on it, bound to its data. */
dq_quantizer *host_quantizer(const host_bench *b);
dq_evaluator *host_evaluator(const host_bench *b, dq_model *model);
/* host_quantizer of a job that needs data. */
dq_quantizer *host_calibrated_quantizer(const host_bench *b);
/* So many steps, none of them the last, with a checkpoint before the first and behind each. */
void host_checkpoint_steps(dq_quantizer *q, int steps, const char *dir);

#endif
